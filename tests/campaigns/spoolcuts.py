"""The power goes while a Maildir spool is written: what was acknowledged is there afterwards, and of the
commit in between all or nothing.

Run: python tests/campaigns/spoolcuts.py --minutes 1 [--seed N] [--without sync|folders]. A store does random
work in this process. Each write, rename and flush of its files goes to a model of a disk that forgets: of
what was not flushed, any writes and any names may be lost. At random moments a spool is made of what such a
disk would have. It is opened as after another boot, and must be as it was after the last acknowledged commit,
or after the next one; also when the power goes a second time while it is opened. ``--without`` leaves flushes
out: then losses must be found, else the campaign proves nothing. Writes soak-spoolcuts.json after 300 cuts.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from outmail.store.maildir import store as stores
from outmail.store.maildir.lines import TABLES
from outmail.store.maildir.store import MaildirStore
from outmail.testing.conformance import NOW, lease, message, settle

#: Steps of one record, and about how many cuts of it.
STEPS = 60
CUTS = 40


class Inode:
    """A file: what is on disk for sure, what may be, and what the program sees."""

    def __init__(self, content: bytes = b"") -> None:
        self.safe = content
        self.pending: list[tuple[int, bytes | None]] = []
        self.size = len(content)

    def left(self, chance: random.Random) -> bytes:
        content = bytearray(self.safe)
        manner = chance.choice(("nothing", "everything", "some"))
        for offset, data in self.pending:
            if manner == "nothing" or (manner == "some" and chance.random() < 0.5):
                continue
            if data is None:
                del content[offset:]
                continue
            if manner == "some" and chance.random() < 0.3:
                data = data[: chance.randrange(len(data) + 1)]
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(data)] = data
        return bytes(content)

    def flush(self) -> None:
        content = bytearray(self.safe)
        for offset, data in self.pending:
            content.extend(bytes(max(0, offset - len(content))))
            if data is None:
                del content[offset:]
            else:
                content[offset : offset + len(data)] = data
        self.safe, self.pending = bytes(content), []


Names = dict[str, Inode]


class Disk:
    """The files below a folder, as this process sees them, and what is safe of them."""

    def __init__(self, root: str, chance: random.Random, without: str | None = None) -> None:
        self.root, self.chance, self.without = root, chance, without
        self.now: Names = {}
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)
                if not name.startswith("index.sqlite"):
                    self.now[path] = Inode(Path(path).read_bytes())
        self.safe: Names = dict(self.now)
        #: Names that changed, in order: (old name or None, new name or None, the file).
        self.moves: list[tuple[str | None, str | None, Inode]] = []
        self.guard = threading.RLock()
        self.moments: Callable[[], None] = lambda: None

    def ours(self, path: Any) -> bool:
        text = os.fspath(path) if not isinstance(path, int) else ""
        return isinstance(text, str) and text.startswith(self.root + "/") and "/index.sqlite" not in text

    def move(self, old: str | None, new: str | None, file: Inode) -> None:
        if old:
            self.now.pop(old, None)
        if new:
            self.now[new] = file
        self.moves.append((old, new, file))

    def flush_folder(self, folder: str) -> None:
        """Names in this folder are safe, and whatever came before of the same names and files."""
        kept: list[tuple[str | None, str | None, Inode]] = []
        names: set[str] = set()
        files: set[int] = set()
        flushed = []
        for one in reversed(self.moves):
            here = {path for path in one[:2] if path}
            if id(one[2]) in files or here & names or any(os.path.dirname(p) == folder for p in here):
                names |= here
                files.add(id(one[2]))
                flushed.append(one)
            else:
                kept.append(one)
        for one in reversed(flushed):
            _moved(self.safe, one)
        self.moves = kept[::-1]

    def cut(self, target: str) -> None:
        """Write what a power cut would leave."""
        names = dict(self.safe)
        manner = self.chance.choice(("none", "all", "first", "some"))
        count = self.chance.randrange(len(self.moves) + 1)
        for i, one in enumerate(self.moves):
            there = one[0] is None or names.get(one[0]) is one[2]
            if there and (
                manner == "all"
                or (manner == "first" and i < count)
                or (manner == "some" and self.chance.random() < 0.5)
            ):
                _moved(names, one)
        for folder in ("queue", "done", "tmp", "broken"):
            os.makedirs(os.path.join(target, folder), exist_ok=True)
        for path, file in names.items():
            Path(target, os.path.relpath(path, self.root)).write_bytes(file.left(self.chance))


def _moved(names: Names, one: tuple[str | None, str | None, Inode]) -> None:
    old, new, file = one
    if old and names.get(old) is file:
        del names[old]
    if new:
        names[new] = file


@contextlib.contextmanager
def watched(disk: Disk) -> Iterator[None]:
    """What this process does to the files of the disk, the disk hears of."""
    names = "open close write pwrite ftruncate truncate rename unlink link fsync"
    real = {name: getattr(os, name) for name in names.split()}
    fds: dict[int, tuple[Inode, bool] | str] = {}

    def moment() -> None:
        disk.moments()

    def opened(path: Any, flags: int, mode: int = 0o777, **words: Any) -> int:
        with disk.guard:
            if not disk.ours(path):
                fd = real["open"](path, flags, mode, **words)
                if os.fspath(path).rstrip("/") == disk.root:
                    fds[fd] = disk.root
                return int(fd)
            if flags & os.O_CREAT:
                moment()
            fd = real["open"](path, flags, mode, **words)
            if os.path.isdir(path):
                fds[fd] = path.rstrip("/")
                return int(fd)
            if path not in disk.now:
                disk.move(None, path, Inode())
            file = disk.now[path]
            fds[fd] = file, bool(flags & os.O_APPEND)
            if flags & os.O_TRUNC and file.size:
                file.pending.append((0, None))
                file.size = 0
            return int(fd)

    def closed(fd: int) -> None:
        with disk.guard:
            fds.pop(fd, None)
            real["close"](fd)

    def written(fd: int, data: Any, at: int | None = None) -> int:
        with disk.guard:
            known = fds.get(fd)
            if not isinstance(known, tuple):
                return int(real["write"](fd, data) if at is None else real["pwrite"](fd, data, at))
            moment()
            place = at
            if place is None:
                place = known[0].size if known[1] else os.lseek(fd, 0, os.SEEK_CUR)
            count = int(real["write"](fd, data) if at is None else real["pwrite"](fd, data, at))
            known[0].pending.append((place, bytes(data)[:count]))
            known[0].size = max(known[0].size, place + count)
            return count

    def cut_off(which: Any, size: int) -> None:
        with disk.guard:
            known = fds.get(which) if isinstance(which, int) else (disk.now.get(which), False)
            moment()
            real["ftruncate" if isinstance(which, int) else "truncate"](which, size)
            if isinstance(known, tuple) and known[0]:
                known[0].pending.append((size, None))
                known[0].size = size

    def renamed(old: Any, new: Any, **words: Any) -> None:
        with disk.guard:
            moment()
            real["rename"](old, new, **words)
            if disk.ours(old):
                disk.move(old, new, disk.now[old])

    def unlinked(path: Any, **words: Any) -> None:
        with disk.guard:
            moment()
            real["unlink"](path, **words)
            if disk.ours(path):
                disk.move(path, None, disk.now[path])

    def linked(old: Any, new: Any, **words: Any) -> None:
        with disk.guard:
            moment()
            real["link"](old, new, **words)
            if disk.ours(new):
                disk.move(None, new, disk.now[old])

    def flushed(fd: int) -> None:
        with disk.guard:
            moment()
            known = fds.get(fd)
            if isinstance(known, str):
                if disk.without != "folders":
                    disk.flush_folder(known)
            elif known and disk.without != "sync":
                known[0].flush()

    system: Any = os
    changed = (opened, closed, written, written, cut_off, cut_off, renamed, unlinked, linked, flushed)
    patched = dict(zip(real, changed))
    try:
        for name, function in patched.items():
            setattr(system, name, function)
        yield
    finally:
        for name, function in real.items():
            setattr(system, name, function)


# -- the work ------------------------------------------------------------------------------------------------


def everything(store: MaildirStore) -> dict[str, list[Any]]:
    """All rows that are kept in files."""
    return {
        table: sorted(map(tuple, store._reader.execute(f"SELECT * FROM {table}")), key=repr)
        for table in (*TABLES, "content")
    }


def work(store: MaildirStore, chance: random.Random, told: Callable[[], None]) -> None:
    """Some of everything; ``told`` after each acknowledged step."""
    owner = store.register(NOW)
    told()
    ids: list[str] = []
    now, number = NOW, 0
    for step in range(STEPS):
        now += 1000
        kind = chance.random()
        if kind < 0.4:
            long = b"A: b\r\n\r\n" + b"0123456789abcde\r\n" * 70_000
            made = [
                message(
                    *[f"{step}-{i}-{k}@x.test" for k in range(chance.randrange(1, 4))],
                    now=now,
                    content=long if chance.random() < 0.05 else b"A: %d\r\n\r\n" % chance.randrange(10**9),
                    key=f"k{chance.randrange(5)}" if chance.random() < 0.2 else None,
                )
                for i in range(chance.choice((1, 1, 3)))
            ]
            supersede = chance.choice(ids) if ids and chance.random() < 0.2 else None
            store.run(store.verbs.add(made, supersede=supersede))
            ids += [one.id for one in made]
        elif kind < 0.8:
            number += 1
            deliveries = lease(store, owner, chance.randrange(1, 4), now, number)
            told()
            for delivery in deliveries:
                event = chance.choice(("delivered", "deferred", "refused"))
                settle(store, owner, delivery, event, event, due=now, now=now)
                told()
        elif kind < 0.9:
            store.run(store.verbs.note_put("job", f"j{chance.randrange(3)}", {"n": step}))
        elif kind < 0.95:
            number += 1
            deliveries = lease(store, owner, 5, now, number)
            told()
            store.run(store.verbs.give_back(owner.id, deliveries, now))
        else:
            for what in ("bodies", "records"):
                purged_step(store, what, now - 10_000)
                told()
        told()


def purged_step(store: MaildirStore, kind: str, before: int) -> None:
    store.run(store.verbs.purge(kind, before))


def record(
    folder: Path, chance: random.Random, cuts: int, without: str | None
) -> Iterator[tuple[Path, list[Any]]]:
    """Do some work, and give (a spool that a cut left, what it may be like) for each cut."""
    root = str(folder / "sp")
    stores.LOG_SIZE = chance.choice((2000, 10_000, 1 << 22))
    MaildirStore(root).close()
    disk = Disk(root, chance, without)
    states: list[Any] = []
    made: list[tuple[Path, int]] = []
    odds = cuts / (STEPS * 10)

    def moments() -> None:
        if chance.random() < odds and len(made) < 4 * cuts:
            target = folder / f"cut{len(made)}"
            disk.moments = lambda: None
            disk.cut(str(target))
            disk.moments = moments
            made.append((target, len(states)))

    with watched(disk):
        store = MaildirStore(root)
        states.append(everything(store))
        disk.moments = moments
        work(store, chance, lambda: states.append(everything(store)))
        disk.moments = lambda: None
        store.close()
    for target, count in made:
        yield target, states[count - 1 : count + 1]


def judged(spool: Path, allowed: list[Any]) -> list[str]:
    """What is wrong with a spool that a cut left."""
    try:
        store = MaildirStore(str(spool))
    except Exception as problem:
        return [f"it does not open: {problem!r}"]
    try:
        found = everything(store)
        bad = (
            []
            if found in allowed
            else [f"it is as it never was: {_first(found, allowed[0])}; nor {_first(found, allowed[-1])}"]
        )
        bad += store.check()
        for row in found["message"]:
            status = store.read(store.verbs.content(row[0])) if (row[0],) in found["content"] else None
            if status is not None and hashlib.sha256(status).digest() != row[6]:
                bad.append(f"the content of {row[1]} is another one")
        waits = {row[0] for row in found["recipient"] if row[5] in ("queued", "sending", "held")}
        for row in found["message"]:
            if row[0] in waits and not store.read(store.verbs.content(row[0])):
                bad.append(f"{row[1]} waits without content")
        return bad
    finally:
        store.close()


def recovered(spool: Path, chance: random.Random) -> Iterator[Path]:
    """Spools that power cuts leave while another one is opened after a power cut."""
    disk = Disk(str(spool), chance)
    made: list[Path] = []

    def moments() -> None:
        if chance.random() < 0.05:
            made.append(spool.with_name(f"{spool.name}-{len(made)}"))
            disk.moments = lambda: None
            disk.cut(str(made[-1]))
            disk.moments = moments

    disk.moments = moments
    with watched(disk):
        MaildirStore(str(spool)).close()
    yield from made


def _first(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    for table, rows in found.items():
        if rows != wanted[table]:
            more = [row for row in rows if row not in wanted[table]]
            less = [row for row in wanted[table] if row not in rows]
            return f"{table}: {more[:1]} instead of {less[:1]}"
    return "as before"


def campaign(
    chance: random.Random, seconds: float, cuts: int = 0, without: str | None = None
) -> dict[str, Any]:
    """Records and cuts until the time is over, or so many cuts are judged."""
    logging.getLogger("outmail").setLevel(logging.CRITICAL)  # what is set right is no news here
    until = time.monotonic() + seconds
    count, records = 0, 0
    bad: list[str] = []
    size = stores.LOG_SIZE
    try:
        while (count < cuts if cuts else time.monotonic() < until) and len(bad) < 20:
            with tempfile.TemporaryDirectory(prefix="outmail-spoolcuts-") as folder:
                seed = chance.randrange(1 << 32)
                records += 1
                for spool, allowed in record(Path(folder), random.Random(seed), CUTS, without):
                    again = Path(f"{spool}-again")
                    shutil.copytree(spool, again)
                    for one in (spool, *recovered(again, chance)):
                        count += 1
                        bad += [f"record {seed}, {one.name}: {text}" for text in judged(one, allowed)]
                        shutil.rmtree(one)
                    shutil.rmtree(again)
    finally:
        stores.LOG_SIZE = size
        logging.getLogger("outmail").setLevel(logging.NOTSET)
    return {"cuts": count, "records": records, "bad": bad}


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--minutes", type=float, default=1.0)
    arguments.add_argument("--seed", type=int, default=None)
    arguments.add_argument("--without", choices=("sync", "folders"), default=None)
    options = arguments.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    result = campaign(random.Random(seed), options.minutes * 60, without=options.without)
    result["seed"] = seed
    print(json.dumps(result, indent=1))
    if result["cuts"] >= 300 and not options.without:
        Path("soak-spoolcuts.json").write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["bad"] else 0


if __name__ == "__main__":
    sys.exit(main())
