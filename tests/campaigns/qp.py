"""Programs write into a queue directory with the real repoze.sendmail, and its own `qp` sends from it, while
outmail's `qp` does the same and is killed: nothing is lost, and doubled only what is marked as uncertain.

Run: python tests/campaigns/qp.py [--minutes 0.5] [--seed N]. Several writers, each in a process of its own;
outmail's `qp`, sometimes twice at once, killed by SIGKILL at random moments and at failpoints; the real `qp`,
never killed; broken files at the end. The server that outmail uses defers some mail and answers slowly. Exit
status: 0 when every message that a writer committed arrived, and none that it aborted; none came from both;
outmail sent none twice that it does not mark; and all junk was set aside; else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from outmail.compat.drain import store_of
from outmail.outbox.outbox import Outbox
from outmail.testing import Sink
from tests.campaigns.queues import HOLD, Writer, arrived, wrong_addresses, wrong_files

WRITER = """
import random, sys, transaction
from email.mime.text import MIMEText
from repoze.sendmail.delivery import QueuedMailDelivery
delivery, chance = QueuedMailDelivery(sys.argv[1]), random.Random(int(sys.argv[2]))
for line in sys.stdin:
    token = line.strip()
    message = MIMEText("x" * chance.randrange(20000))
    message["Subject"] = token
    people = ["%s-%d@x.test" % (token, n) for n in range(chance.choice((1, 1, 2, 5)))]
    delivery.send("me@x.test", people, message)
    if chance.random() < 0.2:
        transaction.abort()
        people = []
    transaction.commit()
    print(token, len(people), flush=True)
"""
OURS, THEIRS = "outmail.compat.repoze.qp", "repoze.sendmail.queue"
JUNK = {
    "empty": b"",
    "plain": b"Subject: no envelope\n\nt\n",
    "noise": b"\xff" * 99,
    "twice": b"X-Actually-To: a@x.test\nX-Actually-To: b@x.test\n\nt\n",
}


class Campaign:
    """The directory and the two programs."""

    def __init__(self, queue: Path, chance: random.Random, theirs: Sink, ours: Sink) -> None:
        self.queue, self.chance, self.theirs, self.ours = queue, chance, theirs, ours
        self.log = queue.parent / "log"
        self.kills = self.runs = 0

    def start(self, module: str, port: int, **environment: str) -> subprocess.Popen[bytes]:
        words = ["--hostname", "127.0.0.1", "--port", str(port), str(self.queue)]
        with open(self.log if module == OURS else os.devnull, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, *words], stderr=log, env={**os.environ, **environment}
            )

    def turn(self) -> None:
        """One or two runs of ours, killed or not."""
        chance, runs = self.chance, []
        for _ in range(chance.choice((1, 1, 2))):
            point = f"C{chance.randrange(1, 6)}:kill:{chance.randrange(1, 9)}"
            runs.append(
                self.start(OURS, self.ours.port, **({"OUTMAIL_FAIL": point} if chance.random() < 0.5 else {}))
            )
        for run in runs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(chance.random() * 4 if chance.random() < 0.5 else HOLD)
            run.kill()
            self.kills += run.wait(HOLD) == -signal.SIGKILL
            self.runs += 1

    def their_turns(self, end: float) -> None:
        while time.monotonic() < end:
            self.start(THEIRS, self.theirs.port).wait(HOLD)
            time.sleep(0.5)

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        other = threading.Thread(target=self.their_turns, args=(end,))
        other.start()
        while time.monotonic() < end:
            self.turn()
        other.join(2 * HOLD)

    def finish(self) -> None:
        """Take and send all that is left; what waits for its time is due now. Junk comes last, because the
        real `qp` locks it for three hours.
        """
        for name, junk in JUNK.items():
            (self.queue / "new" / name).write_bytes(junk)
        for _ in range(2):
            self.start(OURS, self.ours.port).wait(HOLD)
            with Outbox(store_of(str(self.queue)), deliver="never") as box:
                box.retry("state:queued")
        self.start(OURS, self.ours.port).wait(HOLD)


def check(campaign: Campaign, writers: list[Writer]) -> list[str]:
    """What is wrong."""
    promised = {token: count for writer in writers for token, count in writer.promised.items()}
    store = Path(store_of(str(campaign.queue)))
    return [
        *wrong_addresses(store, promised, campaign.theirs, campaign.ours, may=lambda token: False),
        *wrong_files(campaign.queue, ("new",), set(JUNK), campaign.log),
    ]


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--minutes", type=float, default=0.5)
    arguments.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    arguments.add_argument("--writers", type=int, default=3)
    options = arguments.parse_args()
    over = threading.Event()
    script = "DOT: delay 0.02 1/3\nRCPT: 451 4.2.1 later 1/50"
    with tempfile.TemporaryDirectory(prefix="outmail-qp-") as place, Sink() as theirs, Sink(script) as ours:
        queue = Path(place) / "queue"
        for part in ("tmp", "cur", "new"):
            (queue / part).mkdir(parents=True)
        campaign = Campaign(queue, random.Random(options.seed), theirs, ours)
        words = [sys.executable, "-c", WRITER, str(queue)]
        writers = [Writer(words, options.seed * 100 + n, over) for n in range(options.writers)]
        for writer in writers:
            writer.start()
        campaign.run(60 * options.minutes)
        over.set()
        for writer in writers:
            writer.join(HOLD)
        ours.rules.clear()
        campaign.finish()
        wrong = check(campaign, writers)
        served = [sum(arrived(sink).values()) for sink in (theirs, ours)]
    kept, gone = (sum(map(len, (getattr(w, name) for w in writers))) for name in ("promised", "aborted"))
    print(
        f"qp: seed {options.seed}: {kept} messages committed and {gone} aborted by "
        f"repoze.sendmail, {served[0]} recipients served by it, {served[1]} by outmail, {campaign.runs} runs "
        f"of outmail's qp, {campaign.kills} killed, {len(wrong)} wrong"
    )
    for line in wrong[:20]:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
