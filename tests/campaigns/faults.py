"""Disks that fail: whoever was told "accepted" is delivered to, no double is unmarked, and all goes on by
itself when the fault is over.

Run: python tests/campaigns/faults.py --minutes 10 [--seed N] [--cuts 100] [--broken]. The service listens and
delivers, programs send by the library, commands send by `outmail send`, clients hand in by SMTP, all on one
SQLite queue; relays are a sink and a folder. One fault at a time comes over all of them, for a random time
and with random odds: writes, flushes, truncations and opens of the queue's files fail (EIO, ENOSPC, EDQUOT,
EROFS), writes are done by half (`disk.Shim`), and so do those of engines' files, uploads and delivered files
(`os`). ``--cuts`` ends it after so many faults. ``--broken`` lets commits that failed count as done: then the
campaign must find losses, else it proves nothing. Exit status 0 only if nothing is wrong. Writes
soak-faults.json. Not covered: reads, PostgreSQL, and writes through Python's own file objects, of which the
flush fails instead.
"""

from __future__ import annotations

import argparse
import errno
import json
import mmap
import os
import platform
import random
import shutil
import smtplib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import apsw

from outmail.outbox.outbox import Outbox
from outmail.testing import Sink
from tests.campaigns import disk

SCRIPT = "DOT: 451 4.3.0 later 1/40\nDOT: take-and-drop 1/100\nDOT: delay 0.003 1/3"
LONG = 60_000
#: What fails: (name, calls, the system's error, SQLite's code).
FAULTS: tuple[tuple[str, tuple[str, ...], int, str], ...] = (
    ("write EIO", ("write",), errno.EIO, "IOERR_WRITE"),
    ("write ENOSPC", ("write",), errno.ENOSPC, "FULL"),
    ("write EDQUOT", ("write",), errno.EDQUOT, "IOERR_WRITE"),
    ("write EROFS", ("write", "create"), errno.EROFS, "READONLY"),
    ("half a write", ("half",), errno.ENOSPC, "FULL"),
    ("flush EIO", ("sync",), errno.EIO, "IOERR_FSYNC"),
    ("truncate EIO", ("truncate",), errno.EIO, "IOERR_TRUNCATE"),
    ("all ENOSPC", ("write", "half", "sync", "truncate", "create", "rename"), errno.ENOSPC, "FULL"),
    ("all EROFS", ("write", "sync", "truncate", "create", "rename", "delete"), errno.EROFS, "READONLY"),
    ("names EIO", ("create", "rename", "delete"), errno.EIO, "IOERR"),
)


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument("--seed", type=int, default=None)
    arguments.add_argument(
        "--cuts", type=int, default=0, help="stop after so many faults, however long that takes"
    )
    arguments.add_argument("--broken", action="store_true")
    arguments.add_argument("--under", metavar="CONTROL", default=None, help=argparse.SUPPRESS)
    arguments.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    if options.under:
        return under(options.under, options.words, seed, options.broken)
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="outmail-faults-") as folder:
        result = campaign(
            Path(folder), options.minutes * 60, options.cuts, random.Random(seed), options.broken
        )
    result |= {
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
    }
    print(json.dumps(result, indent=1))
    if result["faults"] >= 100 and not options.broken:
        Path("soak-faults.json").write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["bad"] else 0


# -- under a fault -------------------------------------------------------------------------------------------


class Control:
    """Three bytes that all processes see: which fault (0 is none), its odds in 255, and a round."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), 3)

    def set(self, fault: int, odds: float) -> None:
        self._bytes[:2] = bytes((fault, int(odds * 255)))

    def failing(self, call: str, chance: random.Random) -> tuple[int, str] | None:
        """(the system's error, SQLite's code) when this call is to fail."""
        fault, odds = self._bytes[0], self._bytes[1]
        if not fault or call not in FAULTS[fault - 1][1] or chance.random() * 255 > odds:
            return None
        return FAULTS[fault - 1][2:]


class Faulty(disk.Observer):
    """Makes SQLite's calls fail."""

    def __init__(self, control: Control, chance: random.Random) -> None:
        self._control, self._chance = control, chance

    def before(self, call: str, name: str, offset: int = 0, data: bytes = b"") -> None:
        found = self._control.failing(call, self._chance)
        if found is None and call == "write":
            found = self._control.failing("half", self._chance)
            if found is not None:
                raise disk.Half(_error(found[1]))
        if found is not None:
            raise _error(found[1])


def _error(code: str) -> Exception:
    return apsw.exception_for(getattr(apsw, f"SQLITE_{code}"))


def spoil_files(control: Control, chance: random.Random) -> None:
    """The calls of `os` fail too; only those that make or change files."""

    def spoiled(
        real: Callable[..., Any], call: str, when: Callable[..., bool] = lambda *a, **w: True
    ) -> Callable[..., Any]:
        def spoiled_call(*args: Any, **words: Any) -> Any:
            found = control.failing(call, chance) if when(*args, **words) else None
            if found is not None:
                raise OSError(found[0], os.strerror(found[0]))
            return real(*args, **words)

        return spoiled_call

    def making(path: Any, flags: int, *_: Any, **__: Any) -> bool:
        return bool(flags & os.O_CREAT)

    pwrite = spoiled(os.pwrite, "write")

    def half(fd: int, data: bytes, offset: int) -> int:
        return int(pwrite(fd, data[: len(data) // 2] if control.failing("half", chance) else data, offset))

    os.pwrite = half  # type: ignore[assignment]
    os.open = spoiled(os.open, "create", making)
    os.fsync = spoiled(os.fsync, "sync")
    os.ftruncate = spoiled(os.ftruncate, "truncate")
    for name in ("rename", "replace", "link"):
        setattr(os, name, spoiled(getattr(os, name), "rename"))


def under(control: str, words: list[str], seed: int, broken: bool) -> int:
    """A command or a program of ours, on a disk that fails."""
    chance = random.Random(seed)
    told = os.open(words[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if words[0] == "program" else -1
    state = Control(control)
    disk.Shim(Faulty(state, chance))
    spoil_files(state, chance)
    if broken:
        break_commits()
    if words[0] == "program":
        return program(words[2], words[3], told, random.Random(seed))
    from outmail.cli import main as command

    return command(words)


def break_commits() -> None:
    """A store that takes failed commits for done."""
    from outmail.store import StoreError
    from outmail.store.sqlite import store as sqlite

    def commit(self: Any) -> None:
        try:
            self._writer.execute("COMMIT")
        except StoreError:
            self._rollback()

    sqlite.SqliteStore._commit = commit  # type: ignore[method-assign]


def program(config: str, number: str, told: int, chance: random.Random) -> int:
    """Sends until its stdin is closed; writes down each answer, and goes on after every error that is
    promised.
    """
    from outmail.errors import NotStored

    box, i = None, 0
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    while True:
        i += 1
        names = [f"p{number}-{i}-{k}" for k in range(8 if chance.random() < 0.05 else 1)]
        items = [
            {
                "to": f"{name}@x.test",
                "subject": name,
                "text": body(name, chance),
                "relay": chance.choice((None, None, "file")),
            }
            for name in names
        ]
        try:
            box = box or Outbox(config=config, deliver="never")
            answer = ["accepted " + name for name, _ in zip(names, box.send_many(items), strict=True)]
        except NotStored as problem:
            answer = [f"error {name} {problem.code}" for name in names]
        except BaseException as problem:
            answer = [f"wrong {name} {problem!r}" for name in names]
        os.write(told, "".join(f"{line}\n" for line in answer).encode())
        time.sleep(chance.choice((0.002, 0.01, 0.05)))


def body(name: str, chance: random.Random) -> str:
    return f"line of {name:>12}\n" * (LONG if chance.random() < 0.02 else chance.randrange(1, 300))


# -- around it -----------------------------------------------------------------------------------------------


class World:
    """Who sends, what they were told, and the service."""

    def __init__(self, folder: Path, sink: Sink, chance: random.Random, broken: bool) -> None:
        self.folder, self.sink, self.chance, self.broken = folder, sink, chance, broken
        (folder / "control").write_bytes(bytes(3))
        self.control = Control(str(folder / "control"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.config = folder / "outmail.toml"
        self.config.write_text(
            f'store = "{folder}/q.db"\nfrom = "me@x.test"\nrelay = "{sink.url}"\n[relays.file]\nurl = '
            f'"file:{folder}/out"\n[retry]\nschedule = "200ms…"\n'
            f'[listen]\nsmtp = ["127.0.0.1:{self.port}"]\n'
        )
        self._under = [
            sys.executable,
            __file__,
            "--under",
            str(folder / "control"),
            *(["--broken"] if broken else []),
        ]
        self.accepted: set[str] = set()
        self.answers: Counter[str] = Counter()
        self.bad: list[str] = []
        self.taken_by_smtp = 0
        self.over = threading.Event()
        with open(folder / "service.log", "wb") as log:
            self.service = self._start(["run", "--config", str(self.config)], stderr=log)
        self.programs = [
            self._start(
                ["program", str(folder / f"told-{n}"), str(self.config), str(n)], stdin=subprocess.PIPE
            )
            for n in range(2)
        ]
        self._threads = [
            threading.Thread(target=work, args=(n,))
            for n, work in enumerate((self._hand_in, self._hand_in, self._command))
        ]
        self._await_port()
        for thread in self._threads:
            thread.start()

    def _start(self, words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._under, "--seed", str(self.chance.randrange(1 << 30)), "--", *words],
            cwd=self.folder,
            **options,
        )

    def _await_port(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError((self.folder / "service.log").read_text()[-2000:])

    def _hand_in(self, number: int) -> None:
        chance, i = random.Random(number), 0
        while not self.over.is_set():
            try:
                with smtplib.SMTP("127.0.0.1", self.port, timeout=30) as line:
                    for _ in range(20):
                        i += 1
                        name = f"s{number}-{i}"
                        line.sendmail(
                            "a@x.test",
                            [f"{name}@x.test"],
                            f"Subject: {name}\n\n{body(name, chance)}".replace("\n", "\r\n").encode(),
                        )
                        self.accepted.add(name)
                        self.taken_by_smtp += 1
                        self.answers["SMTP 250"] += 1
                        if self.over.is_set():
                            break
            except (smtplib.SMTPResponseException, smtplib.SMTPRecipientsRefused) as problem:
                code = (
                    problem.smtp_code
                    if isinstance(problem, smtplib.SMTPResponseException)
                    else next(iter(problem.recipients.values()))[0]
                )
                self.answers[f"SMTP {code}"] += 1
                if code >= 500:
                    self.bad.append(f"{name}: SMTP says {problem}")
                time.sleep(0.02)
            except (OSError, smtplib.SMTPException) as problem:
                self.answers[f"SMTP {type(problem).__name__}"] += 1
                time.sleep(0.05)

    def _command(self, number: int) -> None:
        i = 0
        while not self.over.is_set():
            i += 1
            name = f"c{number}-{i}"
            process = self._start(
                ["send", "--config", str(self.config), "-s", name, f"{name}@x.test"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            _, said = process.communicate(f"line of {name:>12}\n".encode() * 10, timeout=90)
            self.answers[f"command {process.returncode}"] += 1
            if process.returncode == 0:
                self.accepted.add(name)
            elif process.returncode not in (75, 77):
                self.bad.append(f"{name}: the command ends with {process.returncode}: {said.decode()[-300:]}")

    def fault(self) -> str:
        """One comes and goes; then mail must be taken again."""
        number = self.chance.randrange(len(FAULTS))
        self.control.set(number + 1, self.chance.choice((1.0, 1.0, 0.3, 0.05)))
        time.sleep(self.chance.choice((0.05, 0.2, 0.5, 2.0)) * self.chance.uniform(0.5, 1.5))
        self.control.set(0, 0.0)
        before, deadline = self.taken_by_smtp, time.monotonic() + 30
        while self.taken_by_smtp < before + 3:
            if self.service.poll() is not None:
                self.bad.append(
                    f"after {FAULTS[number][0]} the service has ended: "
                    f"{(self.folder / 'service.log').read_text()[-2000:]}"
                )
                break
            if time.monotonic() > deadline:
                self.bad.append(f"after {FAULTS[number][0]} the service takes no mail for 30 s")
                break
            time.sleep(0.01)
        time.sleep(self.chance.uniform(0, 0.5))
        return FAULTS[number][0]

    def end(self) -> None:
        """Everybody stops sending; the service goes on until nothing waits."""
        self.over.set()
        for thread in self._threads:
            thread.join(120)
        for n, process in enumerate(self.programs):
            if process.poll() is not None:
                self.bad.append(f"program {n} has ended with {process.returncode}")
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)
            for line in (self.folder / f"told-{n}").read_text().splitlines():
                word, name, *why = line.split(" ", 2)
                self.answers[f"library {word}" + (f" {why[0]}" if word == "error" else "")] += 1
                if word == "accepted":
                    self.accepted.add(name)
                elif word == "wrong":
                    self.bad.append(line)

    def close(self) -> None:
        for process in (self.service, *self.programs):
            if process.poll() is None:
                process.terminate()
                process.wait(90)


def campaign(folder: Path, seconds: float, count: int, chance: random.Random, broken: bool) -> dict[str, Any]:
    """Faults one after the other, then a judgement."""
    faults: Counter[str] = Counter()
    with Sink(SCRIPT, seed=chance.randrange(1 << 30)) as sink:
        world = World(folder, sink, chance, broken)
        try:
            until = time.monotonic() + seconds
            while (faults.total() < count if count else time.monotonic() < until) and len(world.bad) < 20:
                faults[world.fault()] += 1
                if faults.total() % 50 == 0:
                    print(
                        f"{faults.total()} faults, {len(world.accepted)} accepted, {sink.count} "
                        f"transmissions, {len(world.bad)} bad",
                        flush=True,
                    )
            world.end()
            result = judged(world)
        finally:
            world.over.set()
            world.close()
    if world.bad:
        shutil.copy(folder / "service.log", Path(tempfile.gettempdir()) / "outmail-faults-service.log")
    return {
        "faults": faults.total(),
        "by kind": dict(faults),
        "answers": dict(sorted(world.answers.items())),
        **result,
        "bad": world.bad,
    }


def judged(world: World) -> dict[str, Any]:
    """Everybody who was told yes has it, once or marked."""
    box = Outbox(config=str(world.config), deliver="never")
    deadline = time.monotonic() + (3 if world.broken else 120)
    while time.monotonic() < deadline and next(iter(box.find("is:live")), None):
        time.sleep(0.1)
        box.release("state:held")
    problems = box.store.check()
    got = Counter(address for message in world.sink.messages for address in message.recipients)
    files = {path.name.rpartition("-")[0] for path in (world.folder / "out").glob("*.eml")}
    known: set[str] = set()
    marked = doubles = 0
    for status in box.find():
        known.add(status.subject)
        whole = _whole(box.content(status.id), status.subject)
        for r in status.recipients:
            copies = got[r.address] + (status.id in files)
            marked += r.uncertain
            doubles += copies > 1
            if copies > 1 and not r.uncertain:
                problems.append(f"{r.address} has it {copies} times, without a mark")
            if r.state != "delivered" or not copies or not whole:
                problems.append(
                    f"{r.address} ends as {r.state} ({r.reason}), copies: {copies}, whole: {whole}"
                )
    problems = [f"{name} was accepted and is not there" for name in sorted(world.accepted - known)] + problems
    box.close()
    world.bad += problems[:20]
    return {"accepted": len(world.accepted), "stored": len(known), "doubles": doubles, "marked": marked}


def _whole(content: bytes, name: str) -> bool:
    line = f"line of {name:>12}".encode()
    head, _, text = content.partition(b"\r\n\r\n")
    return bool(head) and text.count(line) > 0 and text.replace(line + b"\r\n", b"").strip() == b""


if __name__ == "__main__":
    sys.exit(main())
