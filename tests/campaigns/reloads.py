"""A service under load that gets other configurations by SIGHUP at random moments, good and bad ones, and is
sometimes killed: nothing is lost, nothing is doubled without a kill, and no connection is refused.

Run: python tests/campaigns/reloads.py [--minutes 1] [--seed N] [--kills N] [--store postgresql]. Clients
hand mail in by SMTP, some by connections that stay open; others drop files as sendmail does, or use the
library. Meanwhile the configuration changes between two relays, their limits, listeners and the drop folder's
place, or is nonsense, and SIGHUP follows, now and then many at once. Exit status 0 when every message that
was taken is at a relay exactly once (after a kill, twice only with the uncertain mark), else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from outmail.config import from_toml
from outmail.errors import NotStored
from outmail.intake.deposit import Deposit
from outmail.outbox.outbox import Outbox
from outmail.system import dropbox
from outmail.testing import Sink
from tests import pgserver

HOLD = 90.0
#: What relays do. Without a kill no answer is lost: `take-and-drop` is the business of other campaigns.
MOODS = "DOT: 451 4.3.0 later 1/50\nDOT: delay 0.05 1/10\nMAIL: delay 0.02 1/10\nRCPT: 452 4.5.3 x 1/60\n"
BAD = (
    "nonsense\n",
    'rely = "null:"\n',
    '[listen]\nsmtp = ["127.0.0.1:0"]\ncertificate = "/nonexistent"\n',
    '[accept]\ndrop = "/nonexistent"\n',
    'store = "another.db"\n',
)


class Scene:
    """One service, its configuration, and what was taken from whom."""

    def __init__(self, folder: Path, store: str, relays: list[str], chance: random.Random) -> None:
        self.folder, self.store, self.relays, self.chance = folder, store, relays, chance
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = int(sock.getsockname()[1])
        self.drops = [folder / "drop-a", folder / "drop-b"]
        for drop in self.drops:
            drop.mkdir()
            drop.chmod(0o3777)
        #: Messages that were taken.
        self.taken: list[str] = []
        #: Messages that a client has handed in twice, because an answer was lost.
        self.again: set[str] = set()
        self.refused_connections = 0
        self.over, self.down = threading.Event(), threading.Event()
        self.write(self.good())

    def good(self) -> str:
        """A configuration that works; its port and store are the same each time."""
        chance = self.chance
        rate = "rate = 40.0\n" if chance.random() < 0.2 else ""
        lines = [
            f'store = "{self.store}"\n[relay]\nurl = "{chance.choice(self.relays)}"\n'
            f"concurrency = {chance.choice((1, 3, 20))}\n{rate}",
            f'[listen]\nsmtp = ["127.0.0.1:{self.port}"]\nconnections = {chance.choice((200, 500))}\n',
            '[retry]\nschedule = "200ms…"\n',
        ]
        if chance.random() < 0.5:
            lines[1] += f'lmtp = ["unix:{self.folder}/lmtp"]\n'
        if chance.random() < 0.8:
            lines.append(f'[accept]\norigin = "x.test"\ndrop = "{chance.choice(self.drops)}"\n')
        if chance.random() < 0.3:
            lines.append(f"[limits]\nmessage_size = {chance.choice((1_000_000, 2_000_000))}\n")
        return "".join(lines)

    def write(self, text: str) -> None:
        (self.folder / "new").write_text(text)
        os.replace(self.folder / "new", self.folder / "outmail.toml")

    def start(self) -> None:
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "outmail", "run", "--config", f"{self.folder}/outmail.toml"],
                stderr=log,
            )
        deadline = time.monotonic() + HOLD
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                self.down.clear()
                return
            time.sleep(0.02)
        raise RuntimeError((self.folder / "log").read_text()[-2000:])

    def hang_up(self) -> None:
        chance = self.chance
        self.write(chance.choice(BAD) if chance.random() < 0.25 else self.good())
        for _ in range(chance.choice((1, 1, 1, 2, 30))):
            self.process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        self.down.set()
        self.process.kill()
        self.process.wait(HOLD)
        self.write(self.good())
        self.start()

    # -- those who hand in -----------------------------------------------------------------------------------

    def client(self, number: int) -> None:
        """By SMTP. An odd one keeps its connection open."""
        line: smtplib.SMTP | None = None
        for name in self._names(f"smtp{number}"):
            done = False
            while not done and not (self.over.is_set() and self.down.is_set()):
                try:
                    line = line or smtplib.SMTP("127.0.0.1", self.port, timeout=HOLD)
                    line.sendmail("a@x.test", [f"{name}@x.test"], self._message(name))
                    self.taken.append(name)
                    done = True
                except ConnectionRefusedError:
                    self.refused_connections += not self.down.is_set()
                    time.sleep(0.02)
                except (OSError, smtplib.SMTPException):
                    self.again.add(name)
                    line = None
                    time.sleep(0.02)
            if line is not None and number % 2 == 0:
                with contextlib.suppress(OSError, smtplib.SMTPException):
                    line.quit()
                line = None

    def dropper(self, number: int) -> None:
        """As sendmail does."""
        for name in self._names(f"drop{number}"):
            folder = str(self.drops[len(self.taken) % 2])
            content = self._message(name).replace(b"\r\n", b"\n")
            dropbox.put(folder, Deposit(content, [f"{name}@x.test"], sender="a@x.test").packed())
            self.taken.append(name)
            time.sleep(0.01)

    def program(self, number: int) -> None:
        """By the library, on the same store."""
        with Outbox(self.store, config=from_toml("", "test", {}), deliver="never") as box:
            for name in self._names(f"call{number}"):
                with contextlib.suppress(NotStored):
                    box.submit(self._message(name), sender="a@x.test", recipients=f"{name}@x.test")
                    self.taken.append(name)
                time.sleep(0.005)

    def _names(self, who: str) -> Iterator[str]:
        count = 0
        while not self.over.is_set():
            count += 1
            yield f"{who}-{count}"

    def _message(self, name: str) -> bytes:
        return f"Subject: {name}\r\n\r\n{'x' * (len(self.taken) % 3000)}\r\n".encode()


def wrong(scene: Scene, sinks: list[Sink], kills: int) -> list[str]:
    """What must not be."""
    found: Counter[str] = Counter()
    for sink in sinks:
        for one in sink.messages:
            match = re.search(rb"Subject: (\S+)", one.content)
            found[match[1].decode() if match else ""] += 1
    with Outbox(scene.store, config=from_toml("", "test", {}), deliver="never") as box:
        uncertain = {status.subject for status in box.find("was:uncertain")}
        copies = Counter(status.subject for status in box.find())
        left = Counter(status.status for status in box.find("-state:delivered"))
    said = [f"{name} was taken and is at no relay" for name in scene.taken if not found[name]]
    for name, count in found.items():
        meant = copies[name] if name in scene.again else 1
        if count > meant and not (kills and name in uncertain):
            said.append(f"{name} is {count} times at the relays and {meant} times in the queue")
    said += [f"{count} are {state}" for state, count in left.items()]
    if scene.refused_connections:
        said.append(f"{scene.refused_connections} connections were refused")
    if scene.again and not kills:
        said.append(f"{len(scene.again)} clients were sent away")
    log = (scene.folder / "log").read_text(errors="replace")
    if "Traceback" in log:
        said.append(log[log.index("Traceback") :][:2000])
    return said


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--minutes", type=float, default=1)
    arguments.add_argument("--kills", type=int, default=0)
    arguments.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite")
    arguments.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = arguments.parse_args()
    chance = random.Random(options.seed)
    print(f"reloads: seed {options.seed}", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="outmail-reloads-") as place,
        Sink(MOODS, seed=options.seed) as one,
        Sink(MOODS, seed=options.seed + 1) as two,
        contextlib.ExitStack() as servers,
    ):
        store = f"{place}/q.db"
        if options.store == "postgresql":
            newest = max(pgserver.installed(), key=int)
            store = servers.enter_context(pgserver.database(newest))
        scene = Scene(Path(place), store, [one.url, two.url], chance)
        scene.start()
        works = [(scene.client, n) for n in range(4)] + [(scene.dropper, 0), (scene.program, 0)]
        threads = [threading.Thread(target=work, args=(n,)) for work, n in works]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60 * options.minutes
        kill_at = [end - 60 * options.minutes * (n + 0.5) / options.kills for n in range(options.kills)]
        hangups = 0
        while time.monotonic() < end:
            time.sleep(chance.choice((0.01, 0.1, 0.5, 1.0)))
            if kill_at and time.monotonic() >= kill_at[-1]:
                kill_at.pop()
                scene.kill()
            scene.hang_up()
            hangups += 1
            if scene.process.poll() is not None:
                print((scene.folder / "log").read_text()[-3000:])
                return 1
        scene.over.set()
        for thread in threads:
            thread.join(HOLD)
        _empty(scene)
        log = (scene.folder / "log").read_text(errors="replace")
        said = wrong(scene, [one, two], options.kills)
        print(
            f"reloads: {len(scene.taken)} taken, {hangups} changes of the configuration "
            f"({log.count('was read again')} in force, {log.count('is refused: ')} refused), "
            f"{options.kills} kills, {len(said)} wrong"
        )
    for line in said[:20]:
        print(line)
    return 1 if said else 0


def _empty(scene: Scene) -> None:
    """A service that takes what was dropped last, for both folders, until nothing waits."""
    for drop in scene.drops:
        scene.write(
            f'store = "{scene.store}"\nrelay = "{scene.relays[0]}"\n[retry]\nschedule = "200ms…"\n'
            f'[accept]\norigin = "x.test"\ndrop = "{drop}"\n'
        )
        scene.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + HOLD
        while os.listdir(drop) and time.monotonic() < deadline:
            time.sleep(0.05)
    with Outbox(scene.store, config=from_toml("", "test", {}), deliver="never") as box:
        deadline = time.monotonic() + HOLD
        while any(True for _ in box.find("-state:delivered")) and time.monotonic() < deadline:
            time.sleep(0.2)
    scene.process.terminate()
    scene.process.wait(HOLD)


if __name__ == "__main__":
    sys.exit(main())
