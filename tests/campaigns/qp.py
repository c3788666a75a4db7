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
from tests.campaigns.foreign import HOLD, arrived

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


class Writer(threading.Thread):
    """One process of repoze.sendmail. ``promised``: token → recipients; ``aborted``: what must not go."""

    def __init__(self, queue: str, seed: int, over: threading.Event) -> None:
        super().__init__()
        self._chance, self._over = random.Random(seed), over
        self.promised: dict[str, int] = {}
        self.aborted: set[str] = set()
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITER, queue, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self) -> None:
        process = self._process
        assert process.stdin and process.stdout
        while not self._over.wait(self._chance.random() * 0.1):
            process.stdin.write(f"{self._chance.getrandbits(64):016x}\n")
            process.stdin.flush()
            token, _, count = process.stdout.readline().partition(" ")
            if int(count):
                self.promised[token] = int(count)
            else:
                self.aborted.add(token)
        process.stdin.close()
        process.wait(HOLD)


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
    theirs, ours = arrived(campaign.theirs), arrived(campaign.ours)
    with Outbox(store_of(str(campaign.queue)), deliver="never") as box:
        uncertain = {r.address for s in box.find("was:uncertain") for r in s.recipients if r.uncertain}
        wrong = list(map(str, box.store.check()))
    promised = {
        f"{token}-{n}@x.test" for w in writers for token in w.promised for n in range(w.promised[token])
    }
    for address in promised:
        if not ours[address] + theirs[address]:
            wrong.append(f"{address} is lost")
        if ours[address] > 1 and address not in uncertain:
            wrong.append(f"{address} got it {ours[address]} times from outmail, unmarked")
        if ours[address] and theirs[address]:
            wrong.append(f"{address} got it from both")
    wrong += [f"{address} must not get anything" for address in {*ours, *theirs} - promised]
    wrong += [f"new/{name} was left" for name in os.listdir(campaign.queue / "new") if name[0] != "."]
    aside = set(os.listdir(campaign.queue / "set-aside"))
    wrong += [f"{name} was not set aside" for name in JUNK.keys() - aside]
    wrong += [f"{name} was set aside" for name in aside - JUNK.keys()]
    log = campaign.log.read_text(errors="replace")
    if "Traceback" in log:
        wrong.append(log[log.index("Traceback") :][:2000])
    return wrong


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
        writers = [Writer(str(queue), options.seed * 100 + n, over) for n in range(options.writers)]
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
