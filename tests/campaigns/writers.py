"""The writers' campaign: whatever writes mail on this machine is killed and stopped at every system call
that changes something.

Run: python tests/campaigns/writers.py --minutes 10. Engines with `sendmail:`, `mailbox:` (mbox and Maildir),
`maildir:` and `file:` relays kill or stop themselves at one call after the other (before it, after it, in the
middle of a write), are killed at random moments, or are told to end while they are at work. Beside the mboxes
a program that knows nothing of outmail locks, reads, appends, and puts a new file in the old one's place. At
random symbolic links, hard links, FIFOs and folders stand where mail belongs. Prints the seed; writes
soak-writers.json beside the caller.
Exit status 0 only if every message came whole, nobody got one twice without the uncertain mark, no reader who
has the locks ever saw a torn entry, no foreign message was harmed, and nothing behind a link got a byte.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import platform
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from outmail.clock import Clock
from outmail.config import from_toml
from outmail.engine import engine as engine_module
from outmail.outbox.outbox import Outbox
from outmail.wiring import build_engine, route_of

KINDS = ("mbox", "sendmail", "maildir box", "maildir", "file")
CALLS = (
    "open",
    "write",
    "rename",
    "replace",
    "link",
    "unlink",
    "fsync",
    "ftruncate",
    "mkdir",
    "utime",
    "posix_spawn",
)
PEOPLE = ("alice", "bob", "carol")
#: Whose mailbox is replaced by traps.
TRAPPED = "carol"
MESSAGES = 4
KILLS = 10
#: How far the calls of one life are counted through before it begins anew.
REACH = 40
HOWS = ("before", "half", "after")
#: Seconds of a life in which the call is not reached, and the exit status of one that left nothing to do.
LIFE = 0.6
THROUGH = 3
_SIZES = (0, 40, 400, 9_000, 70_000, 300_000)


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument("--seed", type=int, default=None)
    options = arguments.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    result = campaign(options.minutes * 60, seed)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    result |= {
        "seed": seed,
        "machine": platform.platform(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
    }
    print(json.dumps(result, indent=1))
    if options.minutes >= 10:
        Path("soak-writers.json").write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["bad"] else 0


def campaign(seconds: float, seed: int, kinds: tuple[str, ...] = KINDS) -> dict[str, Any]:
    """Rounds of all kinds in turn until the time is over."""
    chance = random.Random(seed)
    began = told = time.monotonic()
    counts: Counter[str] = Counter()
    bad: list[str] = []
    turns = dict.fromkeys(kinds, 0)
    while not counts["rounds"] or time.monotonic() - began < seconds:
        kind = kinds[counts["rounds"] % len(kinds)]
        with tempfile.TemporaryDirectory(prefix="outmail-writers-") as folder:
            one = Round(Path(folder), kind, chance, turns[kind])
            bad += [f"round {counts['rounds']} ({kind}): {found}" for found in one.run()]
            turns[kind] = one.turn
            counts += one.counts
        counts["rounds"] += 1
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(f"{dict(counts)}, {len(bad)} bad", flush=True)
    return {"seconds": round(time.monotonic() - began, 1), **dict(counts), "reached": turns, "bad": bad[:50]}


# -- what is sent --------------------------------------------------------------------------------------------


def content(serial: str) -> bytes:
    """The message with this serial, the same in every process."""
    chance = random.Random(serial)
    size = chance.choice(_SIZES)
    lines = [
        f"From line {i} of {serial} {chance.random()}"
        if i % 7 == 3
        else f"{i} {chance.random()} {'x' * chance.randrange(60)}"
        for i in range(size // 60)
    ]
    head = (
        "From: s@here.test\r\nTo: you@here.test\r\nDate: Sat, 21 Nov 2026 10:00:00 +0000\r\n"
        f"Message-ID: <{serial}@here.test>\r\nX-Serial: {serial}\r\n\r\n"
    )
    return (head + "".join(f"{line}\r\n" for line in lines)).encode()


def foreign_content(serial: str) -> bytes:
    return (
        f"From: foreign\nX-Serial: {serial}\n\n{hashlib.sha256(serial.encode()).hexdigest() * 20}\n".encode()
    )


def serial_of(text: bytes) -> str:
    found = re.search(rb"(?m)^X-Serial: (\S+)\r?$", text)
    return found[1].decode() if found else ""


def delivered_to(address: str, serial: str) -> bytes:
    """What a mailbox holds."""
    return f"Return-Path: <s@here.test>\nDelivered-To: {address}\n".encode() + content(serial).replace(
        b"\r\n", b"\n"
    )


# -- a round -------------------------------------------------------------------------------------------------


class Round:
    """Some messages by one kind of writer, and everything that is done to it."""

    def __init__(self, folder: Path, kind: str, chance: random.Random, turn: int) -> None:
        self.folder, self.kind, self.chance, self.turn = folder, kind, chance, turn
        self.counts: Counter[str] = Counter()
        self.bad: list[str] = []
        self.place = folder / "place"
        self.place.mkdir()
        self.relay = self._relay()
        self.serials = [f"{chance.randrange(1 << 60):x}" for _ in range(MESSAGES)]
        self.to = (
            [f"{name}@here.test" for name in PEOPLE] if kind in ("mbox", "maildir box") else ["you@here.test"]
        )
        self.victim = Victim(folder)

    def _relay(self) -> str:
        if self.kind == "mbox":
            return f"mailbox:{self.place}/{{user}}"
        if self.kind == "maildir box":
            return f"mailbox:{self.place}/{{user}}/"
        if self.kind == "sendmail":
            return f"sendmail:{_program(self.folder, self.place)}"
        return f"{self.kind}:{self.place}/it"

    def run(self) -> list[str]:
        ids = in_child(self.folder, self._accept)
        foreigners = [
            start(self._foreign, name, self.chance.random())
            for name in PEOPLE
            if self.kind == "mbox" and name != TRAPPED
        ]
        try:
            for _ in range(KILLS):
                with self._trap(ids):
                    through = self._one_life()
                if through:
                    break
            self._last_life()
        finally:
            (self.folder / "stop").touch()
            self.bad += [
                f"the foreign program ended with status {status}"
                for pid in foreigners
                if (status := os.waitpid(pid, 0)[1])
            ]
        self._await_programs()
        states = in_child(self.folder, self._states, ids)
        self._judge(ids, states)
        return self.bad

    # lives --------------------------------------------------------------------------------------------------

    def _one_life(self) -> bool:
        """An engine until it is killed, in one of the ways; True when it found nothing more to do."""
        way = self.chance.choice(("call", "call", "call", "call", "stop", "moment", "end"))
        at = (
            self.turn // len(HOWS) % REACH + 1
            if way == "call"
            else self.chance.randrange(1, REACH)
            if way == "stop"
            else 0
        )
        how = HOWS[self.turn % len(HOWS)] if way == "call" else self.chance.choice(HOWS)
        self.turn += way == "call"
        named = self.chance.random() < 0.2
        seen, begun = os.pipe()
        pid = start(
            self._engine, begun, at, how, signal.SIGSTOP if way == "stop" else signal.SIGKILL, named, LIFE
        )
        os.close(begun)
        if way in ("moment", "end"):
            select.select([seen], [], [], LIFE)
            time.sleep(self.chance.random() ** 2 * 0.1)
            os.kill(pid, signal.SIGKILL if way == "moment" else signal.SIGTERM)
        os.close(seen)
        _, status = os.waitpid(pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            self.counts["stops"] += 1
            other = start(
                self._engine, -1, 0, "", signal.SIGKILL, False, 0.3
            )  # it must not take what a stopped one holds for a dead one's
            time.sleep(LIFE)
            os.kill(other, signal.SIGKILL)  # the stopped one may have the store
            os.waitpid(other, 0)
            os.kill(pid, self.chance.choice((signal.SIGKILL, signal.SIGCONT)))
            _, status = os.waitpid(pid, 0)
        self.counts["kills"] += os.WIFSIGNALED(status)
        self.counts["ends"] += way == "end"
        return os.WIFEXITED(status) and os.WEXITSTATUS(status) == THROUGH

    def _last_life(self) -> None:
        os.waitpid(start(self._engine, -1, 0, "", signal.SIGKILL, False, 40.0), 0)

    def _engine(self, begun: int, at: int, how: str, number: int, named: bool, seconds: float) -> None:
        logging.disable(logging.CRITICAL)
        engine_module.PATIENCE = 0.02
        if named:
            with contextlib.suppress(ImportError):
                from outmail.transport import places

                places._UNNAMED = 0
        Countdown(begun, at, how, number).arm()
        box = self._box()
        config = box.config
        engine = build_engine(box.store, config, route_of(self.relay, config)[1], Clock())

        async def work() -> None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, engine.stop)
            life = asyncio.ensure_future(engine.run())
            deadline = time.monotonic() + seconds
            while (
                not life.done()
                and time.monotonic() < deadline
                and next(iter(box.find("-state:delivered")), None)
            ):
                box.release("state:held")
                box.retry("state:queued")
                await asyncio.sleep(0.05)
            engine.stop()
            await life

        asyncio.run(work())
        through = not next(iter(box.find("-state:delivered")), None)
        box.close()
        os._exit(THROUGH if through else 0)

    def _box(self) -> Outbox:
        config = from_toml('from = "s@here.test"\n[retry]\nschedule = "20ms…"\n', "campaign", {})
        return Outbox(self.folder / "q.db", config=config, relay=self.relay, deliver="never")

    def _accept(self) -> list[str]:
        box = self._box()
        ids = [
            box.submit(content(serial), sender="s@here.test", recipients=self.to).id
            for serial in self.serials
        ]
        box.close()
        return ids

    def _states(self, ids: list[str]) -> list[list[tuple[str, str, bool, str]]]:
        box = self._box()
        found: list[list[tuple[str, str, bool, str]]] = [
            [(r.address, r.state, r.uncertain, r.reason) for r in box.status(id).recipients] for id in ids
        ]
        box.close()
        return found

    def _await_programs(self) -> None:
        """Programs that outlived their engine."""
        deadline = time.monotonic() + 5
        while self.kind == "sendmail" and list(self.place.glob("tmp.*")) and time.monotonic() < deadline:
            time.sleep(0.02)

    # a program that knows nothing of us ---------------------------------------------------------------------

    def _foreign(self, name: str, seed: float) -> None:
        chance = random.Random(seed)
        path, sent = self.place / name, 0
        while not (self.folder / "stop").exists():
            time.sleep(chance.random() * 0.1)
            with foreign_locks(path, self.folder / "stop") as fd:
                if fd < 0:
                    continue
                torn = self._torn(path, f"{name}@here.test", f"{name}-")
                if torn:
                    (self.folder / f"torn.{name}").write_text("\n".join(torn))
                    return
                serial = f"{name}-{sent}"
                whole = b"From foreign Sat Nov 21 10:00:00 2026\n" + foreign_content(serial) + b"\n"
                if chance.random() < 0.1:
                    new = path.with_name(f".new.{name}")
                    new.write_bytes(path.read_bytes() + whole)
                    new.chmod(0o600)
                    os.rename(new, path)
                else:
                    os.lseek(fd, 0, os.SEEK_END)
                    os.write(fd, whole)
                sent += 1
                (self.folder / f"foreign.{name}").write_text(str(sent))

    # traps --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _trap(self, ids: list[str]) -> Iterator[None]:
        """Something else where mail belongs, for one life."""
        if self.kind == "sendmail" or self.chance.random() < 0.5:
            yield
            return
        where = {
            "mbox": [
                self.place / TRAPPED,
                self.place / f"{TRAPPED}.lock",
                self.place / f".{TRAPPED}.outmail",
            ],
            "maildir box": [self.place / TRAPPED / "new", self.place / TRAPPED / "tmp", self.place / TRAPPED],
            "maildir": [self.place / "it" / "new", self.place / "it" / "tmp", self.place / "it"],
            "file": [
                self.place / "it",
                *(self.place / "it" / f"{dot}{id}-1.eml" for id in ids for dot in ("", ".")),
            ],
        }[self.kind]
        target = self.chance.choice(where)
        aside = target.with_name(f"aside.{target.name}")
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.path.lexists(target):
            os.rename(target, aside)
        self.counts["traps"] += 1
        wrong = "folder" if self.kind == "mbox" or target.suffix == ".eml" else "file"
        traps = ["link to a file", "link to a folder", "link to nothing", "fifo", wrong]
        if (
            target.suffix != ".outmail"
        ):  # a journal that is none is ours to replace, but for what hides behind it
            traps.append("hard link")
        self.victim.put(target, self.chance.choice(traps))
        try:
            yield
        finally:
            self.bad += self.victim.take(target)
            if os.path.lexists(aside) and not os.path.lexists(target):
                os.rename(aside, target)

    # the judge ----------------------------------------------------------------------------------------------

    def _judge(self, ids: list[str], states: list[list[tuple[str, str, bool, str]]]) -> None:
        got = self._found(ids)
        for serial, recipients in zip(self.serials, states):
            for address, state, uncertain, reason in recipients:
                copies = got[serial, address]
                self.counts["recipients"] += 1
                self.counts["copies"] += copies
                self.counts["marked"] += uncertain
                self.counts["doubles"] += copies > 1
                if state != "delivered":
                    self.bad.append(f"{address} is {state}: {reason}")
                elif not copies:
                    self.bad.append(f"{serial} for {address} is lost")
                elif copies > 1 and not uncertain:
                    self.bad.append(f"{serial} for {address} came {copies} times, unmarked")
        self.counts["messages"] += len(ids)
        self.bad += [f"{path.name}: {path.read_text()}" for path in self.folder.glob("torn.*")]
        if self.kind == "mbox":
            self.bad += [
                f"left behind: {path.name}"
                for path in self.place.iterdir()
                if path.name.endswith((".lock", ".outmail"))
            ]

    def _found(self, ids: list[str]) -> Counter[tuple[str, str]]:
        """Whole copies by serial and address; everything else is bad."""
        got: Counter[tuple[str, str]] = Counter()
        if self.kind == "mbox":
            for name in PEOPLE:
                path, address = self.place / name, f"{name}@here.test"
                self.bad += self._torn(path, address, f"{name}-")
                serials = Counter(serial_of(entry) for entry in entries(path.read_bytes()))
                got.update({(serial, address): n for serial, n in serials.items()})
                file = self.folder / f"foreign.{name}"
                sent = int(file.read_text()) if file.exists() else 0
                self.counts["foreign messages"] += sent
                self.bad += [
                    f"foreign message {i} in {name}: {serials[f'{name}-{i}']} copies"
                    for i in range(sent)
                    if serials[f"{name}-{i}"] != 1
                ]
            return got
        for path, address in self._files():
            text = path.read_bytes() if path.is_file() else b""
            serial = serial_of(text)
            wanted = delivered_to(address, serial) if self.kind == "maildir box" else content(serial)
            if self.kind == "sendmail":
                wanted = wanted.replace(b"\r\n", b"\n")
            if serial not in self.serials or text != wanted:
                self.bad.append(f"{path.name} has {len(text)} bytes of {len(wanted)}")
            else:
                got[serial, address] += 1
        return got

    def _files(self) -> list[tuple[Path, str]]:
        if self.kind == "maildir box":
            return [
                (path, f"{name}@here.test")
                for name in PEOPLE
                for path in (self.place / name / "new").iterdir()
            ]
        shown = {
            "sendmail": self.place.glob("got.*"),
            "maildir": (self.place / "it" / "new").glob("*"),
            "file": (self.place / "it").glob("[!.]*"),
        }[self.kind]
        return [(path, "you@here.test") for path in shown]

    def _torn(self, path: Path, address: str, foreign: str) -> list[str]:
        """Entries of an mbox that are not whole messages, ours or the foreign program's."""
        text = path.read_bytes()
        found = [] if not text or text.endswith(b"\n\n") else [f"{path.name} does not end with a blank line"]
        for entry in entries(text):
            serial = serial_of(entry)
            if serial.startswith(foreign):
                wanted = foreign_content(serial)
            else:
                wanted = (
                    re.sub(rb"(?m)^(>*From )", rb">\1", delivered_to(address, serial))
                    if serial in self.serials
                    else b""
                )
            if entry != wanted + b"\n":
                found.append(
                    f"{path.name} has {len(entry)} bytes of an entry of {len(wanted)}: {entry[-60:]!r}"
                )
        return found


def entries(text: bytes) -> list[bytes]:
    """What a reader takes for the messages of an mbox, each without its From line."""
    return [part.partition(b"\n")[2] for part in re.split(rb"(?m)^From ", text)[1:]] + (
        [b"before any From line"] if text and not text.startswith(b"From ") else []
    )


@contextlib.contextmanager
def foreign_locks(path: Path, stop: Path) -> Iterator[int]:
    """As mail readers lock: a dot lock, then fcntl. It never breaks a lock. -1 when told to stop."""
    lock = path.with_name(f"{path.name}.lock")
    while True:
        if stop.exists():
            yield -1
            return
        try:
            os.close(os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            break
        except FileExistsError:
            time.sleep(0.003)
    try:
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield fd
                return
            except BlockingIOError:
                time.sleep(0.003)
            finally:
                os.close(fd)
    finally:
        lock.unlink()


class Victim:
    """What must not be written to, behind something that looks like a place for mail."""

    def __init__(self, folder: Path) -> None:
        self.file, self.folder = folder / "victim", folder / "victims"
        self.file.write_text("a key\n")
        self.folder.mkdir()
        self._reader = -1

    def put(self, target: Path, what: str) -> None:
        if what == "fifo":
            os.mkfifo(target, 0o600)
            self._reader = os.open(target, os.O_RDONLY | os.O_NONBLOCK)
        elif what == "folder":
            target.mkdir(mode=0o700)
        elif what == "file":
            target.touch(0o600)
        elif what == "hard link":
            os.link(self.file, target)
        else:
            target.symlink_to(
                {
                    "link to a file": self.file,
                    "link to a folder": self.folder,
                    "link to nothing": self.folder / "made",
                }[what]
            )

    def take(self, target: Path) -> list[str]:
        """Remove the trap; what it caught."""
        found = self.harm()
        if self._reader >= 0:
            with contextlib.suppress(BlockingIOError):
                found += ["a FIFO got mail"] if os.read(self._reader, 10) else []
            os.close(self._reader)
            self._reader = -1
        if target.is_symlink() or target.is_fifo() or (target.exists() and target.samefile(self.file)):
            target.unlink()
        elif target.is_dir() and not os.listdir(target):
            target.rmdir()
        elif target.is_file() and not target.stat().st_size:
            target.unlink()
        elif target.exists():
            found.append(f"{target.name} got mail")
        return found

    def harm(self) -> list[str]:
        found = [] if self.file.read_text() == "a key\n" else ["the file behind a link was written to"]
        found += ["the folder behind a link was written to"] if os.listdir(self.folder) else []
        self.file.write_text("a key\n")
        for name in os.listdir(self.folder):
            subprocess.run(["rm", "-r", self.folder / name], check=True)
        return found


def _program(folder: Path, place: Path) -> Path:
    """A sendmail that reads everything, not at once, and accepts it all or nothing."""
    path = folder / "sendmail"
    path.write_text(
        f'#!/bin/sh\nt="{place}/tmp.$$"\n: > "$t"\nsleep 0.01\ncat > "$t" && echo taken >&2 && mv "$t" '
        f'"{place}/got.$$.$(date +%s%N)"\n'
    )
    path.chmod(0o755)
    return path


# -- dying ---------------------------------------------------------------------------------------------------


_UNNAMED = getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY


class Countdown:
    """A signal for ourselves at the n-th call of a transport that changes something; 0 for none. ``begun``
    gets a byte at the first one.
    """

    def __init__(self, begun: int, at: int, how: str, number: int) -> None:
        self.begun, self.left, self.how, self.number = begun, at, how, number

    def arm(self) -> None:
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        subprocess.Popen = self._wrapped("Popen", subprocess.Popen)  # type: ignore[assignment,misc]

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **words: Any) -> Any:
            if name != "Popen" and "transport" not in sys._getframe(1).f_code.co_filename:
                return real(*arguments, **words)
            if name == "open" and not arguments[1] & (os.O_CREAT | _UNNAMED):
                return real(*arguments, **words)
            if self.begun >= 0:
                fd, self.begun = self.begun, -1
                os.close(fd)  # whoever reads there sees the end
            self.left -= 1
            if self.left:
                return real(*arguments, **words)
            if self.how == "before":
                os.kill(os.getpid(), self.number)
            elif self.how == "half" and name == "write":
                written = real(arguments[0], bytes(arguments[1][: len(arguments[1]) // 2]))
                os.kill(os.getpid(), self.number)
                return written
            result = real(*arguments, **words)
            if self.how != "before":
                os.kill(os.getpid(), self.number)
            return result

        return call


def start(function: Callable[..., Any], *arguments: Any) -> int:
    """A child process that calls this and ends; cheaper than a new interpreter."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        function(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def in_child(folder: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns, as JSON; so that this process never has the store open when it forks."""
    path = folder / "answer"
    pid = start(lambda: path.write_text(json.dumps(function(*arguments))))
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"{function.__name__} ended with status {status}")
    return json.loads(path.read_text())


if __name__ == "__main__":
    sys.exit(main())
