"""make bench: outmail against a bare loop, the naive way and a peer, on this machine, in one run; writes
docs/benchmarks.md.

Ratios are the claim; the absolute numbers belong to the machine. Sections: accepting (one commit each, 1,000
at once), draining a waiting queue into a sink in another process, a large queue, import time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import pgserver

import outmail
from bench import handing_in, lab, postgres
from outmail.clock import Clock
from outmail.config import from_toml
from outmail.outbox.outbox import Outbox
from outmail.wiring import build_engine

CONTENT = (
    b"From: me@x.test\r\nTo: you@x.test\r\nDate: Thu, 01 Jan 1970 00:00:00 +0000\r\nMessage-ID: "
    b"<bench@x.test>\r\nSubject: bench\r\n\r\n" + (b"x" * 70 + b"\r\n") * 55
)
CONFIG = from_toml('from = "me@x.test"', "bench", {})


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def item(i: int) -> dict[str, object]:
    return {"content": CONTENT, "sender": "me@x.test", "recipients": [f"user{i}@example.test"]}


# -- accepting -----------------------------------------------------------------------------------------------


def rows_of_one(path: str) -> list[tuple[str, tuple[object, ...]]]:
    """The rows that one submit writes, read back from a store, for the bare loop to write again."""
    box = Outbox(path, config=CONFIG, deliver="never")
    box.submit(**item(0))  # type: ignore[arg-type]
    box.close()
    db = apsw.Connection(path)
    rows = []
    for table in ("message", "body", "recipient", "event"):
        (row,) = db.execute(f"SELECT * FROM {table}").fetchall()
        rows.append((f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row))
    db.close()
    return rows


def bare(path: str, rows: list[tuple[str, tuple[object, ...]]], count: int, batch: int) -> float:
    """A bare apsw loop that inserts the same rows with the same schema and FULL."""
    Outbox(path, config=CONFIG, deliver="never").close()
    db = apsw.Connection(path)
    db.execute("PRAGMA synchronous = FULL")
    made = []
    for i in range(1, count + 1):
        one = []
        for sql, row in rows:
            values = list(row)
            if "message" in sql.split()[2]:
                values[0], values[1] = i, f"{i:026d}"
            elif "event" in sql:
                values[0], values[3] = i, i
            else:
                values[0] = i
            one.append((sql, tuple(values)))
        made.append(one)

    def loop() -> None:
        for start in range(0, count, batch):
            db.execute("BEGIN IMMEDIATE")
            for one in made[start : start + batch]:
                for sql, values in one:
                    db.execute(sql, values)
            db.execute("COMMIT")

    seconds = timed(loop)
    db.close()
    return seconds


def append_loop(path: str, count: int) -> float:
    def loop() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for _ in range(count):
            os.write(fd, CONTENT)
            os.fdatasync(fd)
        os.close(fd)

    return timed(loop)


def accepting(folder: Path, count: int, rounds: int) -> list[str]:
    rows = rows_of_one(str(folder / "one.db"))
    singles, batches, rates = [], [], []
    for r in range(rounds):
        box = Outbox(folder / f"s{r}.db", config=CONFIG, deliver="never")
        ours = timed(lambda box=box: [box.submit(**item(i)) for i in range(count)])  # type: ignore[misc]
        theirs = bare(str(folder / f"b{r}.db"), rows, count, 1)
        many = timed(lambda box=box: [box.submit_many([item(k) for k in range(1000)]) for _ in range(10)])  # type: ignore[misc]
        many_bare = bare(str(folder / f"m{r}.db"), rows, 10_000, 1000)
        box.close()
        append = append_loop(str(folder / f"a{r}"), count)
        singles.append(theirs / ours)
        batches.append(many_bare / many)
        rates.append((count / ours, count / theirs, 10_000 / many, 10_000 / many_bare, count / append))
    mid = [statistics.median(column) for column in zip(*rates)]
    return [
        "## How long does a program wait when it hands in a message?",
        "",
        '| messages of 4 KB, on disk before "accepted" | messages/s | the same rows by bare apsw | ratio |',
        "|---|---|---|---|",
        f"| `submit`, one commit each | {mid[0]:,.0f} | {mid[1]:,.0f} | {statistics.median(singles):.2f} |",
        f"| `submit_many(1,000)` | {mid[2]:,.0f} | {mid[3]:,.0f} | {statistics.median(batches):.2f} |",
        f"| append and fdatasync, for comparison | | {mid[4]:,.0f} | |",
    ]


# -- draining ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sink_process() -> Iterator[int]:
    """smtp-sink (Debian's postfix package) where there is one, else our own sink; in a process of its own."""
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    program = shutil.which("smtp-sink") or (
        "/usr/sbin/smtp-sink" if os.path.exists("/usr/sbin/smtp-sink") else None
    )
    if program:
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        command = [program, *user, f"127.0.0.1:{port}", "1000"]
    else:
        command = [
            sys.executable,
            "-c",
            (
                f"from outmail.testing import Sink; import time; Sink(port={port}, keep=False).start(); "
                f"time.sleep(3600)"
            ),
        ]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def fill(box: Outbox, count: int) -> None:
    for start in range(0, count, 1000):
        box.submit_many([item(start + i) for i in range(min(1000, count - start))])


def drain(path: Path, port: int, count: int) -> float:
    """The engine as `outmail run --once` runs it; features on."""
    config = from_toml(f'relay = "smtp://127.0.0.1:{port}"', "bench", {})
    box = Outbox(path, config=config, deliver="never")
    fill(box, count)
    engine = build_engine(box.store, config, config.routes, Clock())
    seconds = timed(lambda: asyncio.run(engine.run(once=True)))
    assert engine.counts["delivered"] == count, engine.counts
    box.close()
    return seconds


def naive(path: Path, port: int, count: int) -> float:
    """The naive way: a table, aiosmtplib on 20 connections, one commit per mail."""
    import aiosmtplib

    db = apsw.Connection(str(path))
    for sql in (
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "CREATE TABLE mail (id INTEGER PRIMARY KEY, rcpt TEXT, content BLOB, sent INTEGER)",
    ):
        db.execute(sql).fetchall()
    with db:
        db.executemany(
            "INSERT INTO mail VALUES (?,?,?,0)", [(i, f"user{i}@example.test", CONTENT) for i in range(count)]
        )

    async def work() -> None:
        waiting: Iterator[Any] = iter(
            db.execute("SELECT id, rcpt, content FROM mail WHERE sent = 0").fetchall()
        )

        async def one() -> None:
            client = aiosmtplib.SMTP(hostname="127.0.0.1", port=port, use_tls=False, start_tls=False)
            await client.connect()
            for id, rcpt, content in waiting:
                await client.sendmail("me@x.test", [rcpt], content)
                db.execute("UPDATE mail SET sent = 1 WHERE id = ?", (id,))
            await client.quit()

        await asyncio.gather(*(one() for _ in range(20)))

    seconds = timed(lambda: asyncio.run(work()))
    db.close()
    return seconds


def draining(folder: Path, count: int, rounds: int) -> list[str]:
    ratios, ours, theirs = [], [], []
    small = max(1000, count // 10)
    for r in range(rounds):
        with sink_process() as port:
            mine = count / drain(folder / f"d{r}.db", port, count)
            other = small / naive(folder / f"n{r}.db", port, small)
        ours.append(mine)
        theirs.append(other)
        ratios.append(mine / other)
    return [
        "",
        "## How fast does a full queue empty?",
        "",
        f"| {count:,} waiting messages | messages/s | aiosmtplib × 20, a commit for each mail | ratio |",
        "|---|---|---|---|",
        f"| one engine, server in another process | {statistics.median(ours):,.0f} | "
        f"{statistics.median(theirs):,.0f} | {statistics.median(ratios):.1f} |",
    ]


def peer(folder: Path, count: int = 300) -> list[str]:
    """mailqueue-runner: enqueue into its maildir, drain by its queue runner."""
    try:
        from schwarz.mailqueue import MaildirBackend, MessageHandler
    except ImportError:
        return ["", "mailqueue-runner is not installed; its row is missing."]
    queue = folder / "mq"
    handler = MessageHandler([MaildirBackend(str(queue))])
    enqueue = count / timed(
        lambda: [
            handler.send_message(CONTENT, sender="me@x.test", recipient=f"u{i}@example.test")
            for i in range(count)
        ]
    )
    with sink_process() as port:
        settings = folder / "mq.ini"
        settings.write_text(f"[mqrunner]\nsmtp_hostname = 127.0.0.1\nsmtp_port = {port}\n")
        program = Path(sys.executable).with_name("mq-run")
        seconds = timed(
            lambda: subprocess.run(
                [str(program), "-C", str(settings), str(queue)], capture_output=True, check=False, timeout=300
            )
        )
    left = len(list((queue / "new").iterdir()))
    return [
        "",
        (
            f"mailqueue-runner in the same run: {enqueue:,.0f} enqueues/s, {(count - left) / seconds:,.0f} "
            f"drained/s (of {count} waiting)."
        ),
    ]


def calling(folder: Path, *, quick: bool) -> list[str]:
    """What a program waits for when it calls sendmail or mailq."""
    folder.chmod(0o755)
    (folder / "calling").mkdir()
    measured = handing_in.measured(folder / "calling", quick=quick)
    return ["", "## What does a call of sendmail or mailq cost?", "", *measured]


def waiting(folder: Path, count: int) -> list[str]:
    """BEHAVIOURS 73 in the size given: start-up, memory and rate with many waiting for a dead relay."""
    path = folder / "w.db"
    config = from_toml("", "bench", {})
    box = Outbox(path, config=config, relay="smtp://127.0.0.1:1", deliver="never")
    fill(box, count)
    box.close()
    opening = timed(lambda: Outbox(path, config=config, deliver="never").close())
    ratios, memories = [], []
    with sink_process() as port:
        for i in range(3):
            busy, memory = drained_apart(path, port)
            empty, _ = drained_apart(folder / f"e{i}.db", port)
            ratios.append(busy / empty)
            memories.append(memory)
    return [
        "",
        f"With {count:,} messages waiting for a dead relay: opening {opening * 1000:.0f} ms; "
        f"another relay's mail drains at {statistics.median(ratios):.2f} of the rate "
        f"of an otherwise empty queue; the engine needs {max(memories):.0f} MB.",
    ]


DRAIN_APART = """
import asyncio, resource, sys, time
from outmail.outbox import *
from outmail.wiring import build_engine
from outmail.config import from_toml

box = Outbox(sys.argv[1], config=from_toml("", "bench", {}), deliver="never")
engine = build_engine(box.store, box.config, box.config.routes, Clock())
began = time.perf_counter()
asyncio.run(engine.run(once=True))
print(
    engine.counts["delivered"] / (time.perf_counter() - began),
    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
)
"""


def drained_apart(path: Path, port: int, count: int = 20_000) -> tuple[float, float]:
    """(messages/s, memory in MB) of a process of its own that drains mail for a healthy relay from this
    store.
    """
    box = Outbox(path, config=CONFIG, relay=f"smtp://127.0.0.1:{port}", deliver="never")
    fill(box, count)
    box.close()
    done = subprocess.run(
        [sys.executable, "-c", DRAIN_APART, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=900,
    )
    rate, memory = map(float, done.stdout.split())
    return rate, memory


def reporting(folder: Path) -> list[str]:
    """Jobs, digests and watched commands against what they stand in for."""
    import logging

    box = Outbox(folder / "r.db", config=CONFIG, deliver="never")
    with outmail.job("bench", total=10**9, every="10%", outbox=box, bar=False, finish=False) as job:
        update = job.update
        once = timed(lambda: [update() for _ in range(300_000)]) / 300_000
    record = logging.LogRecord("bench", 30, "f", 1, "feed %s took %d s", ("x", 5), None)
    plain, digest = (
        logging.FileHandler(folder / "plain.log"),
        outmail.DigestHandler(outbox=box, name="bench", at_most=1000),
    )
    ratios = []
    for _ in range(5):
        file = timed(lambda: [plain.handle(record) for _ in range(20_000)])
        ratios.append(timed(lambda: [digest.handle(record) for _ in range(20_000)]) / file)
    digest.flush()
    kinds = [logging.LogRecord("bench", 40, "f", 1, f"kind {i}", (), None) for i in range(10_000)]
    for one in kinds:
        digest.handle(one)
    finish = timed(digest.flush)
    digest.close()
    box.close()
    env = {**os.environ, "OUTMAIL_STORE": str(folder / "w.db")}
    bare = statistics.median(
        timed(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True)) for _ in range(21)
    )
    program = str(Path(sys.executable).with_name("outmail"))
    watched = statistics.median(
        timed(lambda: subprocess.run([program, "watch", "--", "true"], check=True, env=env))
        for _ in range(21)
    )
    return [
        "",
        "## What do reports cost the program?",
        "",
        "| what | cost |",
        "|---|---|",
        f"| `job.update()` when nothing is due | {once * 1e6:.2f} µs |",
        f"| `DigestHandler.emit` beside `FileHandler.emit` | {statistics.median(ratios):.1f} × |",
        f"| `outmail watch -- true` beside `python -c pass` | {watched / bare:.1f} × |",
        f"| finishing a run with 10,000 kinds of records | {finish:.2f} s |",
    ]


def importing() -> list[str]:
    def best(code: str) -> float:
        return (
            min(timed(lambda: subprocess.run([sys.executable, "-c", code], check=True)) for _ in range(15))
            * 1000
        )

    base, ours = best("pass"), best("import outmail")
    full = best("from outmail import Outbox")
    return [
        f"| `import outmail`, beyond bare Python's {base:.0f} ms | {ours - base:.0f} ms |",
        f"| `from outmail import Outbox` | {full - base:.0f} ms |",
    ]


def peers_of_postgres() -> bool:
    """django-post_office, django-mailer and a server are there."""
    return all(importlib.util.find_spec(name) for name in ("post_office", "mailer", "psycopg")) and bool(
        pgserver.installed()
    )


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--lab", type=int, default=5, help="rounds of the lab; 0 leaves it out")
    options = arguments.parse_args()
    count, rounds, drained, large = (
        (2000, 3, 20_000, 50_000) if options.quick else (5000, 5, 100_000, 1_000_000)
    )
    lines = [
        "# Benchmarks",
        "",
        (
            "Each section asks one question. Compare the ratios: both sides ran in turns on the same "
            "machine, and the numbers are medians of several rounds. Absolute rates are of this machine. "
            "`make bench` runs everything and writes this page; `bench/run.py --quick` takes minutes."
        ),
        "",
        f"outmail {outmail.__version__}, Python {platform.python_version()}, "
        f"SQLite {apsw.sqlite_lib_version()}, {os.cpu_count()} cores, {platform.machine()},"
        f" {time.strftime('%Y-%m-%d')}{', --quick' if options.quick else ''}.",
        "",
    ]
    with tempfile.TemporaryDirectory(prefix="outmail-bench-", dir=os.environ.get("BENCH_DIR")) as temporary:
        folder = Path(temporary)
        os.environ["XDG_STATE_HOME"] = temporary
        sections: tuple[Callable[[], list[str]], ...] = (
            lambda: accepting(folder, count, rounds),
            lambda: draining(folder, drained, min(3, rounds)),
            lambda: peer(folder),
            lambda: waiting(folder, large),
            lambda: calling(folder, quick=options.quick),
            lambda: reporting(folder),
            importing,
        )
        for section in sections:
            fresh = section()
            print("\n".join(fresh), flush=True)
            lines += fresh
        if peers_of_postgres():
            lines += ["", "## How does PostgreSQL compare with the queues of Django?", ""]
            (folder / "postgres").mkdir()
            for line in postgres.measured(
                folder / "postgres", max(pgserver.installed(), key=int), quick=options.quick
            ):
                print(line, flush=True)
                lines.append(line)
        if options.lab:
            lines += [
                "",
                "## How does it compare with Postfix, from SMTP in to SMTP out?",
                "",
                lab.ABOUT,
                "",
                "![rates as times Postfix's](img/lab.svg)",
            ]
            for line in lab.measured(
                folder,
                quick=options.quick,
                rounds=options.lab,
                picture=Path(__file__).parents[1] / "docs" / "img" / "lab.svg",
            ):
                print(line, flush=True)
                lines.append(line)
            lines += ["", "## What do loopback copies cost?", ""]
            for line in lab.copies(folder, rounds=options.lab, count=2000 if options.quick else 10_000):
                print(line, flush=True)
                lines.append(line)
    Path(__file__).parents[1].joinpath("docs", "benchmarks.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
