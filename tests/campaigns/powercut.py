"""The power goes: everything acknowledged before is there afterwards, the store is whole, and no double is
unmarked.

Run: python tests/campaigns/powercut.py --minutes 10 [--seed N] [--cuts 1000] [--without fsync|synchronous]. A
child process accepts and delivers on a SQLite store, by SMTP and into files; each write and flush of it is
written down (`disk`). Then the power is cut at random moments of that record: flushed writes are there,
others are kept, lost, reordered or torn by sectors. A fresh outmail, under another boot id, opens what is
left and delivers the rest. ``--without`` leaves flushes out, or sets synchronous=OFF: then the campaign must
find losses, else it proves nothing. Writes soak-powercut.json. Not covered: the record of final dots (its
content is not trusted after another boot), PostgreSQL (its own promise), mbox.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from outmail.config import from_toml
from outmail.errors import Error
from outmail.outbox.outbox import Outbox
from outmail.store import StoreError
from outmail.store.sqlite import store as sqlite
from outmail.testing import Sink
from tests.campaigns import disk

SCRIPT = (
    "RCPT refused*: 550 5.1.1 no\nDOT: 451 4.3.0 later 1/15\nDOT: take-and-drop 1/20\nDOT: delay 0.003 1/3"
)
#: Messages of one record, and cuts of it.
MESSAGES = 120
CUTS = 40


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument("--seed", type=int, default=None)
    arguments.add_argument("--cuts", type=int, default=0, help="stop after so many, however long that takes")
    arguments.add_argument("--without", choices=("fsync", "synchronous"), default=None)
    arguments.add_argument("--child", metavar="FOLDER", default=None, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    if options.child:
        return child(Path(options.child), seed, options.without)
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    result = campaign(random.Random(seed), options.minutes * 60, options.cuts, options.without)
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
    if result["cuts"] >= 300 and not options.without:
        Path("soak-powercut.json").write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["bad"] else 0


# -- the program that is recorded ----------------------------------------------------------------------------


def child(folder: Path, seed: int, without: str | None) -> int:
    """Accept and deliver, writing everything down; ends without closing anything."""
    chance = random.Random(seed)
    log = disk.Log(folder / "log", syncs=without != "fsync")
    disk.Shim(log)
    disk.watch_folders(log, syncs=without != "fsync")
    if without == "synchronous":
        weak: Any = sqlite
        weak._PRAGMAS = tuple(p.replace("synchronous = FULL", "synchronous = OFF") for p in sqlite._PRAGMAS)
    sqlite_pages(chance.choice((20, 100, 1000)))
    with Sink(
        SCRIPT, seed=seed, on_message=lambda m: log.note("got", _name(m.content), m.recipients)
    ) as sink:
        box = Outbox(folder / "q.db", config=_config(sink.url, folder / "out"), deliver="thread")
        threads = [
            threading.Thread(target=_produce, args=(box, log, random.Random(chance.random()), n))
            for n in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        deadline = time.monotonic() + chance.choice((0, 0.3, 5))
        while time.monotonic() < deadline and next(iter(box.find("is:live")), None):
            time.sleep(0.02)
        log.close()
        os._exit(0)


def sqlite_pages(pages: int) -> None:
    """The write-ahead log is moved into the database after so many: with few, that happens often."""
    from outmail.store.sqlite import checkpoint

    checkpoint.PAGES = pages


def _config(url: str, out: Path) -> Any:
    return from_toml(
        f'from = "me@x.test"\nrelay = "{url}"\n[relays.file]\nurl = "file:{out}"\n[retry]\nschedule = '
        f'"50ms…"\n',
        "powercut",
        {},
    )


def _produce(box: Outbox, log: disk.Log, chance: random.Random, number: int) -> None:
    for i in range(MESSAGES // 3):
        name = f"{number}-{i}"
        kind = chance.random()
        if kind < 0.05:
            items = [_message(f"{name}-{k}", chance) for k in range(8)]
            receipts = box.send_many(items)
        else:
            items = [
                _message(
                    name,
                    chance,
                    lines=60_000 if kind < 0.08 else chance.randrange(200),
                    relay="file" if kind > 0.9 else None,
                )
            ]
            receipts = [box.send(**items[0])]
        for item, receipt in zip(items, receipts):
            log.note("accepted", receipt.id, item["subject"], len(item["text"]))
        time.sleep(chance.choice((0, 0, 0.002)))


def _message(name: str, chance: random.Random, lines: int = 5, relay: str | None = None) -> dict[str, Any]:
    to = (
        [f"u{name}@x.test"]
        + ([f"second{name}@x.test"] if chance.random() < 0.3 else [])
        + ([f"refused{name}@x.test"] if chance.random() < 0.1 else [])
    )
    return {"to": to, "subject": name, "text": f"line of {name:>12}\n" * lines, "relay": relay}


def _name(content: bytes) -> str:
    return content.split(b"Subject: ", 1)[1].split(b"\r\n", 1)[0].decode()


# -- cuts ----------------------------------------------------------------------------------------------------


def campaign(chance: random.Random, seconds: float, cuts: int, without: str | None) -> dict[str, Any]:
    """Records and cuts until the time is over, or so many cuts are made."""
    changed: Any = sqlite
    changed.boot_id = lambda: "another boot"
    logging.getLogger("outmail").setLevel(logging.ERROR)  # what is taken back is no news here
    until = time.monotonic() + seconds
    bad: list[str] = []
    counts: Counter[str] = Counter()
    with Sink() as sink:
        while (counts["cuts"] < cuts if cuts else time.monotonic() < until) and len(bad) < 20:
            with tempfile.TemporaryDirectory(prefix="outmail-powercut-") as folder:
                seed = chance.randrange(1 << 32)
                log, out = recorded(Path(folder), seed, without)
                places = sorted(
                    _place(log, chance) for _ in range(min(CUTS, cuts - counts["cuts"]) if cuts else CUTS)
                )
                counts["records"] += 1
                counts["writes"] += sum(1 for one in log if one[0] == "write")
                counts["flushes"] += sum(1 for one in log if one[0] == "sync")
                whole, files, start = disk.Disk(), disk.Folder(), 0
                for place in places:
                    whole.replay(log, start, place)
                    files.replay(log, start, place)
                    start = place
                    counts["cuts"] += 1
                    here = Path(folder) / "cut"
                    here.mkdir()
                    manner = whole.cut(here, chance)
                    _leave_locks(Path(folder) / "child", here, chance)
                    counts[f"cuts that leave {manner}"] += 1
                    found = judged(here, log[:place], sink, files, out, counts)
                    bad += [f"record {seed}, cut at {place} of {len(log)}, {manner}: {one}" for one in found]
                    shutil.rmtree(here)
            if counts["records"] % 10 == 0:
                print(f"{counts['cuts']} cuts of {counts['records']} records, {len(bad)} bad", flush=True)
    return {**counts, "bad": bad}


def _place(log: list[tuple[Any, ...]], chance: random.Random) -> int:
    """Anywhere, or just after a flush, a receipt or an arrival: most of a record are writes."""
    if chance.random() < 0.4:
        return chance.randrange(len(log) + 1)
    moments = [place for place, one in enumerate(log) if one[0] not in ("write", "open")]
    return min(len(log), chance.choice(moments) + chance.randrange(4))


def _leave_locks(child: Path, here: Path, chance: random.Random) -> None:
    """Engines' files, nobody's now: there with some content, or not."""
    for path in child.glob("q.db.engine.*"):
        if chance.random() < 0.5:
            (here / path.name).write_bytes(chance.randbytes(chance.choice((0, 16, 100))))


def recorded(folder: Path, seed: int, without: str | None) -> tuple[list[tuple[Any, ...]], Path]:
    """(what a child did, where its files went)."""
    (folder / "child").mkdir()
    command = [
        sys.executable,
        __file__,
        "--child",
        str(folder / "child"),
        "--seed",
        str(seed),
        *(["--without", without] if without else []),
    ]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-3000:])
    return disk.read(folder / "child" / "log"), folder / "child" / "out"


def judged(
    folder: Path, log: list[tuple[Any, ...]], sink: Sink, files: disk.Folder, out: Path, counts: Counter[str]
) -> list[str]:
    """What is wrong with what a cut left; empty is good."""
    accepted = {one[1]: one[2:] for one in log if one[0] == "accepted"}
    before: Counter[str] = Counter(address for one in log if one[0] == "got" for address in one[2])
    counts["accepted before a cut"] += len(accepted)
    if not accepted and not (folder / "q.db").exists():
        return []
    sink.messages.clear()
    try:
        box = Outbox(folder / "q.db", config=_config(sink.url, folder / "out"), deliver="never")
    except Error as problem:
        return [f"the store does not open: {problem}"]
    try:
        return _compared(box, accepted, before, sink, files, out, counts)
    except (Error, StoreError) as problem:
        return [f"the store fails: {problem}"]
    finally:
        box.close()


def _compared(
    box: Outbox,
    accepted: dict[str, Any],
    before: Counter[str],
    sink: Sink,
    files: disk.Folder,
    out: Path,
    counts: Counter[str],
) -> list[str]:
    bad = list(box.store.check())
    first = {status.id: status for status in box.find()}
    for id, (name, _) in accepted.items():
        if id not in first:
            bad.append(f"{name} was accepted and is not there")
    for status in first.values():
        for r in status.recipients:
            counts["recipients after a cut"] += 1
            if (
                r.state == "delivered"
                and r.route == "file"
                and not any(f"{out}/{status.id}-{n}.eml" in files.safe for n in range(1, r.n + 1))
            ):
                bad.append(f"{r.address} is delivered, and its file may be lost")
            if r.state == "delivered" and r.route != "file" and not before[r.address]:
                bad.append(f"{r.address} is delivered, and nobody has it")
    box.deliver_here()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and next(iter(box.find("is:live")), None):
        time.sleep(0.01)
    box.close()
    after = Counter(address for message in sink.messages for address in message.recipients)
    again = Outbox(box.store.path, deliver="never", config=box.config)  # type: ignore[attr-defined]
    for status in again.find():
        name, size = accepted.get(status.id, (status.subject, None))
        if size is not None and not _whole(again.content(status.id), name, size):
            bad.append(f"the content of {name} has changed")
        for r in status.recipients:
            copies = before[r.address] + after[r.address]
            counts["doubles"] += copies > 1
            counts["marked"] += r.uncertain
            if copies > 1 and not r.uncertain:
                bad.append(f"{r.address} has it {copies} times, without a mark")
            if r.state not in ("delivered", "failed") or (
                r.state == "delivered" and r.route != "file" and not copies
            ):
                bad.append(f"{r.address} ends as {r.state} ({r.reason}), copies: {copies}")
    again.close()
    return bad


def _whole(content: bytes, name: str, size: int) -> bool:
    line = f"line of {name:>12}"
    return content.count(line.encode()) == size // (len(line) + 1)


if __name__ == "__main__":
    sys.exit(main())
