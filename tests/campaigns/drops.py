"""Random users of sendmail against a service that is killed: nothing that sendmail took is lost, nothing is
doubled in the queue, and junk in the folder harms nobody.

Run: python tests/campaigns/drops.py [--minutes 1] [--seed N]. As root several users take part. Several
callers at once run ``sendmail`` in its modes with random headers; a service takes what they leave and is
killed (SIGKILL) every few seconds; somebody fills the folder with links, pipes, strange names and broken
files. Exit status: 0 when every message with status 0 is in the queue exactly once, with its recipients,
else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from outmail.outbox.outbox import Outbox
from outmail.system import dropbox

SENDMAIL = (
    "import sys; sys.path.insert(0, sys.argv[1]); from outmail.unix.main import main; "
    "sys.exit(main('sendmail', sys.argv[2:]))"
)
#: An interpreter that every user may run; without it, or without root, there is one user.
ANYBODYS = "/usr/bin/python3"
SEVERAL = os.geteuid() == 0 and os.path.exists(ANYBODYS)
SERVICE = [sys.executable, "-m", "outmail", "run", "--config"]
USERS = (0, 1, 2, 3, 65534) if SEVERAL else (os.geteuid(),)
HOLD = 60.0
SRC = Path(__file__).parents[2] / "src"


class Callers:
    """What they were promised: token → (uid, recipients)."""

    def __init__(self, folder: str, library: str, seed: int) -> None:
        self.folder = folder
        #: A copy of the package that every user may read.
        self.library = library
        self.seed = seed
        self.promised: dict[str, tuple[int, list[str]]] = {}
        self.refused: Counter[int] = Counter()
        self.over = threading.Event()

    def work(self, number: int) -> None:
        chance = random.Random(self.seed * 1000 + number)
        while not self.over.is_set():
            self._call(chance)

    def _call(self, chance: random.Random) -> None:
        token = f"{chance.getrandbits(64):016x}"
        uid = chance.choice(USERS)
        people = [f"{token}-{i}@y.test" for i in range(chance.choice((1, 1, 2, 9)))]
        words, given = _asked(chance, people, token)
        process = subprocess.Popen(
            [ANYBODYS if SEVERAL else sys.executable, "-I", "-S", "-c", SENDMAIL, self.library, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"OUTMAIL_DROP": self.folder, "PATH": os.environ["PATH"]},
            user=uid if SEVERAL else None,
        )
        if chance.random() < 0.1:
            time.sleep(chance.random() * 0.1)
            process.kill()
        with contextlib.suppress(BrokenPipeError):
            process.communicate(given, timeout=HOLD)
        if process.returncode == 0:
            self.promised[token] = (uid, people)
        else:
            self.refused[process.returncode] += 1


def _asked(chance: random.Random, people: list[str], token: str) -> tuple[list[str], bytes]:
    """Words and stdin of one call."""
    end = chance.choice(("\n", "\r\n"))
    head = [f"Subject: {token}", *(["From: root"] if chance.random() < 0.5 else [])]
    text = ["x" * chance.randrange(200) for _ in range(chance.choice((0, 1, 20, 2000)))]
    if chance.random() < 0.5:
        head.append(f"{chance.choice(('To', 'Cc', 'Bcc'))}: {f',{end} '.join(people)}")
        words = ["-t", "-i"]
    else:
        words = ["-i", "-f", chance.choice(("", "root", "me@x.test")), "--", *people]
    return words, end.join([*head, "", *text]).encode()


def junk(folder: str, chance: random.Random) -> None:
    """Somebody else's idea of a file."""
    name = f"{chance.getrandbits(48):012x}-{chance.getrandbits(96):024x}"
    place = f"{folder}/{chance.choice((name, name + '.half', 'x' + name, 'line' + chr(10) + name))}"
    with contextlib.suppress(OSError):
        match chance.randrange(5):
            case 0:
                os.symlink("/etc/passwd", place)
            case 1:
                os.mkfifo(place)
            case 2:
                os.mkdir(place)
            case 3:
                os.link(__file__, place)
            case _:
                Path(place).write_bytes(chance.randbytes(chance.randrange(100)))


def check(store: Path, callers: Callers) -> list[str]:
    """What is wrong."""
    found: Counter[str] = Counter()
    people: dict[str, set[str]] = {}
    with Outbox(store, deliver="never") as box:
        for status in box.find():
            found[status.subject] += 1
            people[status.subject] = {r.address for r in status.recipients}
    wrong = [f"{token} is lost" for token in callers.promised if not found[token]]
    wrong += [f"{token} is there {count} times" for token, count in found.items() if count > 1 and token]
    for token, (_, wanted) in callers.promised.items():
        if found[token] and people[token] != set(wanted):
            wrong.append(f"{token} goes to {people[token]} instead of {wanted}")
    return wrong


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--minutes", type=float, default=1)
    arguments.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    arguments.add_argument("--callers", type=int, default=4)
    options = arguments.parse_args()
    chance = random.Random(options.seed)
    kills = 0
    with tempfile.TemporaryDirectory(prefix="outmail-drops-") as place:
        os.chmod(place, 0o755)
        folder, store, config = f"{place}/drop", Path(place, "q.db"), Path(place, "outmail.toml")
        os.mkdir(folder)
        os.chmod(folder, 0o3777)
        config.write_text(
            f'store = "{store}"\nrelay = "null:"\n[accept]\norigin = "x.test"\ndrop = "{folder}"\n'
        )
        shutil.copytree(SRC, f"{place}/library", ignore=shutil.ignore_patterns("__pycache__"))
        callers = Callers(folder, f"{place}/library", options.seed)
        threads = [threading.Thread(target=callers.work, args=(i,)) for i in range(options.callers)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60 * options.minutes
        while time.monotonic() < end:
            with open(f"{place}/log", "ab") as log:
                service = subprocess.Popen([*SERVICE, str(config)], stderr=log, env={**os.environ})
            for _ in range(chance.randrange(1, 6)):
                junk(folder, chance)
                time.sleep(0.5)
            service.send_signal(signal.SIGKILL)
            service.wait(HOLD)
            kills += 1
        callers.over.set()
        for thread in threads:
            thread.join(HOLD)
        subprocess.run([*SERVICE, str(config), "--once"], stderr=subprocess.DEVNULL, timeout=600, check=True)
        left = [name for name in os.listdir(folder) if dropbox.is_name(name)]
        wrong = check(store, callers) + [f"{name} was left" for name in left]
        log_text = Path(place, "log").read_text(errors="replace")
        if "Traceback" in log_text:
            wrong.append(log_text[log_text.index("Traceback") :][:2000])
    print(
        f"drops: seed {options.seed}: {len(callers.promised)} taken, {kills} kills of the service, "
        f"{dict(callers.refused)} refused or killed, {len(wrong)} wrong"
    )
    for line in wrong[:20]:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
