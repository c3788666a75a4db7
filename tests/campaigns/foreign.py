"""The real mailqueue-runner writes into a queue directory and sends from it, while outmail's ``mq-run`` takes
the same directory over and is killed: nothing is lost, and doubled only what the tables of crashes allow.

Run: python tests/campaigns/foreign.py [--minutes 0.5] [--seed N]. mailqueue-runner is installed into an
environment of its own under ``build/interop``. Its writers store mail; its own ``mq-run`` sends some of it,
and is killed now and then; outmail's ``mq-run`` runs again and again, and is killed (SIGKILL, or at a
failpoint); somebody leaves broken files, links and half-written files. Each program has a server of its own.
Exit status: 0 when every stored message arrived; outmail sent none twice that it does not mark as uncertain,
and none that mailqueue-runner had sent, but those that mailqueue-runner's own killed runs had in their hands;
and all junk was set aside. 69 when mailqueue-runner cannot be installed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from outmail.outbox.outbox import Outbox  # noqa: E402
from outmail.testing import Sink  # noqa: E402
from tests.campaigns.queues import HOLD, Writer, arrived, wrong_addresses, wrong_files  # noqa: E402
from tests.interop.compare import Unavailable, environment  # noqa: E402
from tests.interop.peers import PEERS  # noqa: E402

WRITER = """
import random, sys
from email.message import Message
from schwarz.mailqueue import MaildirBackend, MessageHandler
handler, chance = MessageHandler([MaildirBackend(sys.argv[1])]), random.Random(int(sys.argv[2]))
for line in sys.stdin:
    token = line.strip()
    message = Message()
    message["Subject"] = token
    message.set_payload("x" * chance.randrange(20000) + chr(10))
    people = ["%s-%d@x.test" % (token, n) for n in range(chance.choice((1, 1, 2, 5)))]
    assert handler.send_message(message, sender="me@x.test", recipients=people)
    print(token, len(people), flush=True)
"""
#: The last run takes everything in ``cur``, too: the killed runs of mailqueue-runner are not 30 minutes old.
LAST = (
    "import sys; from outmail.compat.mailqueue import run, spool; spool.STALE = -1.0;"
    " sys.exit(run.main(sys.argv[1:]))"
)
OURS = [sys.executable, "-m", "outmail.compat.mailqueue.run"]
_TOKEN = re.compile(rb"^Subject: ([0-9a-f]{16})\r?$", re.M)


def junk(queue: Path, chance: random.Random, put: set[str]) -> None:
    """Somebody else's idea of a file."""
    name = f"junk{chance.getrandbits(48):012x}"
    place = queue / "new" / name
    with contextlib.suppress(FileExistsError):
        match chance.randrange(5):
            case 0:
                place.symlink_to("/etc/passwd")
            case 1:
                os.mkfifo(place)
            case 2:
                place.write_bytes(b"Return-path: <a@x.test>\r\nEnvelope-to: junk@x.test\r\n")
            case 3:
                (queue / "tmp" / name).write_bytes(b"X-Queue-Meta-End: end\r\n\r\n")
                return
            case _:
                (queue / "new" / f".{name}").write_bytes(chance.randbytes(100))
                return
    put.add(name)


def tokens(folder: Path) -> set[str]:
    found = set()
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            found |= {match.decode() for match in _TOKEN.findall(path.read_bytes())}
    return found


class Campaign:
    """The directory, the two programs, and what they may double."""

    def __init__(self, place: Path, chance: random.Random, python: Path, sinks: tuple[Sink, Sink]) -> None:
        self.queue, self.chance, self.python = place / "queue", chance, python
        for part in ("tmp", "cur", "new"):
            (self.queue / part).mkdir(parents=True)
        self.files = []
        for name, sink in zip(("theirs.ini", "ours.ini"), sinks):
            (place / name).write_text(f"[mqrunner]\nsmtp_hostname = 127.0.0.1\nsmtp_port = {sink.port}\n")
            self.files.append(str(place / name))
        self.log = place / "log"
        self.environment = {**os.environ, "XDG_CONFIG_HOME": str(place), "HOME": str(place)}
        self.in_their_hands: set[str] = set()
        self.kills: Counter[str] = Counter()
        self.junk: set[str] = set()

    def ours(self, *, kill: bool = True) -> None:
        environment = self.environment
        if kill and self.chance.random() < 0.5:
            point = f"C{self.chance.randrange(1, 6)}:kill:{self.chance.randrange(1, 9)}"
            environment = {**environment, "OUTMAIL_FAIL": point}
        words = OURS if kill else [sys.executable, "-c", LAST]
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                [*words, *self.files[1:], str(self.queue)], stderr=log, env=environment
            )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.chance.random() * 4 if kill and self.chance.random() < 0.5 else HOLD)
        process.kill()
        self.kills["ours"] += process.wait(HOLD) == -signal.SIGKILL

    def theirs(self) -> None:
        program = "from schwarz.mailqueue.cli import one_shot_queue_run_main as run; run()"
        words = [str(self.python), "-c", program, "-C", self.files[0], str(self.queue)]
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.environment
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.chance.random() * 3)
        process.kill()
        if process.wait(HOLD) == -signal.SIGKILL:
            self.kills["theirs"] += 1
            self.in_their_hands |= tokens(self.queue / "cur")

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        other = threading.Thread(target=self._their_turns, args=(end,))
        other.start()
        while time.monotonic() < end:
            junk(self.queue, self.chance, self.junk)
            self.ours()
        other.join(HOLD)

    def _their_turns(self, end: float) -> None:
        while time.monotonic() < end:
            self.theirs()
            time.sleep(0.5)


def check(campaign: Campaign, promised: dict[str, int], sinks: tuple[Sink, Sink]) -> list[str]:
    """What is wrong."""
    queue = campaign.queue
    excused = campaign.in_their_hands.__contains__
    return [
        *wrong_addresses(queue / "outmail.db", promised, *sinks, may=excused),
        *wrong_files(queue, ("new", "cur", "taking"), campaign.junk, campaign.log),
    ]


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--minutes", type=float, default=0.5)
    arguments.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    arguments.add_argument("--writers", type=int, default=3)
    options = arguments.parse_args()
    peer = PEERS["mailqueue-runner"]
    folder = ROOT / "build" / "interop"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        python = environment(peer, folder.resolve() / peer.name)
    except Unavailable as problem:
        print(f"foreign: mailqueue-runner cannot be had: {problem}")
        return 69
    over = threading.Event()
    script = "DOT: delay 0.02 1/3\nRCPT: 451 4.2.1 later 1/50"
    with tempfile.TemporaryDirectory(prefix="outmail-foreign-") as place, Sink() as one, Sink(script) as two:
        campaign = Campaign(Path(place), random.Random(options.seed), python, (one, two))
        words = [str(python), "-c", WRITER, str(campaign.queue)]
        writers = [Writer(words, options.seed * 100 + n, over) for n in range(options.writers)]
        for writer in writers:
            writer.start()
        campaign.run(60 * options.minutes)
        over.set()
        for writer in writers:
            writer.join(HOLD)
        two.rules.clear()
        promised = {token: count for writer in writers for token, count in writer.promised.items()}
        campaign.ours(kill=False)
        with Outbox(campaign.queue / "outmail.db", deliver="never") as box:
            box.retry("state:queued")
        campaign.ours(kill=False)
        wrong = check(campaign, promised, (one, two))
        theirs, ours = map(arrived, (one, two))
    print(
        f"foreign: seed {options.seed}: {len(promised)} messages stored by mailqueue-runner, "
        f"{sum(theirs.values())} recipients served by it, {sum(ours.values())} by outmail, "
        f"{campaign.kills['theirs']} and {campaign.kills['ours']} kills, {len(campaign.junk)} pieces of "
        f"junk, {len(wrong)} wrong"
    )
    for line in wrong[:20]:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
