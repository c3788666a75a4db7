"""``outmail queue``: what waits, and what an operator does about it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import sqlite3
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outmail.cli import terminal
from outmail.cli.queue_help import VERBS
from outmail.outbox.outbox import Outbox
from outmail.store import schemas
from outmail.testing import Sink
from tests.cli.conftest import Command
from tests.waiting import until

MakeBox = Callable[..., Outbox]
S = ("--store", "q.db")


def test_reroute(command: Command, make_box: MakeBox, sink: Sink) -> None:
    box = make_box(deliver="never")
    waiting = box.send("a@x.test", "s", "t", relay="smtp://localhost:1").id
    held = box.send("b@x.test", "s", "t").id
    box.hold(held)
    for words, status in (((), 64), ((sink.url,), 64), (("ALL", "nowhere"), 78), (("ALL", "null:x"), 78)):
        assert command("queue", "reroute", *S, *words).status == status, words
    refused = command("queue", "reroute", *S, "ALL", "smtps://me:secret@isp.example")
    assert refused.status == 78 and "smtps://me@isp.example" in refused.err and "secret" not in refused.err
    assert "1 recipient changed" in command("queue", "reroute", *S, "route:smtp://localhost:1", sink.url).err
    both = f"{waiting} {held}".encode()
    assert "1 recipient changed" in command("queue", "reroute", *S, "-", sink.url, stdin=both).err
    assert {box.status(id).recipients[0].route for id in (waiting, held)} == {sink.url}
    assert box.status(held).status == "held"


def test_scheduled_mail_says_when_in_a_pipe_too(command: Command, make_box: MakeBox) -> None:
    make_box(deliver="never").send("a@x.test", "s", "t", at="2050-12-24T18:00:00Z")
    listed = command("queue", "list", *S, "--utc").out
    assert "a@x.test via default: queued; next try 2050-12-24 18:00:00 UTC\n" in listed


def test_all_with_words_is_the_words_over_everything(command: Command, make_box: MakeBox, sink: Sink) -> None:
    sink.script("RCPT bad*: 550 5.1.1 nobody here")
    box = make_box(relay=sink.url)
    for to in ("bad@x.test", "good@x.test"):
        box.wait(box.send(to, "s", "t").id, 10)
    for verb, many in (("requeue", "1 recipient"), ("retry", "0 recipients"), ("purge", "2 recipients")):
        assert f"at most {many} would change" in command("queue", verb, *S, "--dry-run", "ALL").err
    listed = command("queue", "list", *S, "ALL", "state:failed")
    assert "bad@x.test" in listed.out and "good@x.test" not in listed.out and "1 message" in listed.err
    assert command("queue", "list", *S, "ALL").out.count(".test via") == 2
    told = command("queue", "list", *S).err
    assert "1 recipient failed in the last day: outmail queue list ALL state:failed" in told


def test_an_id_that_is_not_known_changes_nothing(command: Command, make_box: MakeBox) -> None:
    box = make_box(deliver="never")
    known, unknown = box.send("a@x.test", "s", "t").id, "0" * 26
    for verb in ("cancel", "hold", "retry"):
        done = command("queue", verb, *S, known, unknown)
        assert done.status == 66 and unknown in done.err
    assert command("queue", "list", *S, unknown).status == 66
    assert command("queue", "cancel", *S, f"{known}/2").status == 66
    assert box.status(known).status == "queued"
    piped = command("queue", "hold", *S, "-", stdin=f"{known} {unknown}".encode())
    assert piped.status == 66 and box.status(known).status == "held"


def test_another_verb_is_named_where_it_was_meant(command: Command, make_box: MakeBox) -> None:
    box = make_box(deliver="never")
    id = box.send("a@x.test", "s", "t").id
    box.cancel(id)
    assert "queue requeue" in command("queue", "retry", *S, "state:cancelled").err
    box.requeue(id)
    box.hold(id)
    assert "queue release" in command("queue", "retry", *S, id).err


def test_the_beginning_of_an_id_is_enough(command: Command, make_box: MakeBox) -> None:
    box = make_box(deliver="never")
    id, other = box.send("a@x.test", "aaa111", "t").id, box.send("b@x.test", "s", "t", key="k").id
    short = id[:12]
    for words in (("show", short), ("log", short), ("why", short), ("queue", "list", short)):
        done = command(*words, *S)
        assert done.status == 0 and (words[0] == "log" or id in done.out), words
    assert command("queue", "list", *S, "aaa111", "--ids").out.split() == [id]  # no id begins so: a word
    box.queue.store.run(_renamed(other, f"{id[:20]}vvvvvv"))
    doubtful = command("show", *S, id[:20])
    assert doubtful.status == 65 and id in doubtful.err
    assert command("show", *S, "zzz").status == 66 and command("show", *S, "00000099").status == 66


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    ("environment", "colour"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_a_real_terminal(
    make_box: MakeBox, tmp_path: Path, width: int, environment: dict[str, str], colour: bool
) -> None:
    box = make_box(deliver="never")
    box.send("somebody-with-a-long-name@department.example.org", "日本語 " * 20 + "👩‍👩‍👧 é", "t")
    failed = box.send("b@x.test", "s", "t").id
    box.hold(failed)
    master, slave = pty.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        given = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
        done = subprocess.run(
            [sys.executable, "-m", "outmail", "queue", "list", *S],
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env={**given, "TERM": "xterm", **environment},
            timeout=60,
            check=True,
        )
        shown = os.read(master, 1 << 16).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert ("\x1b[33mheld" in shown) is colour and b"2 messages" in done.stderr
    lines = re.sub(r"\x1b\[\d+m", "", shown).splitlines()
    assert lines[0].split() == ["ID", "AGE", "TO", "STATE", "SUBJECT"]
    assert len(lines) == 3 and lines[2].startswith(failed[:12]) and " held " in lines[2]
    assert width - 1 <= max(map(terminal.cells, lines)) <= width  # a wide letter may not fit


def _waits_for(reason: str) -> Any:
    return (yield "UPDATE recipient SET reason = ?", (reason,))


def _renamed(id: str, to: str) -> Any:
    return (yield "UPDATE message SET id = ? WHERE id = ?", (to, id))


def test_stats_by_relay_domain_and_reason(command: Command, make_box: MakeBox, sink: Sink) -> None:
    sink.script("RCPT *@grey.test: 451 4.7.1 later\nRCPT *@shut.test: 450 4.2.1 full")
    box = make_box(relay=sink.url, exit_wait=5)
    for to in ("a@grey.test", "b@GREY.test", "c@shut.test"):
        box.send(to, "s", "t")
    until(lambda: all(s.recipients[0].attempts for s in box.find()))
    box.send("d@x.test", "s", "t", at="3h")
    held = box.send("e@x.test", "s", "t", relay="default").id
    box.hold(held)
    until(lambda: box.status(held).status == "held")
    stats = json.loads(command("queue", "stats", *S, "--json").out)
    waiting = {by: {row["which"]: row["recipients"] for row in rows} for by, rows in stats["waiting"].items()}
    assert waiting["relay"] == {sink.url: 3, "default": 1}
    assert waiting["domain"] == {"grey.test": 2, "shut.test": 1, "x.test": 1}
    assert waiting["reason"] == {"451 4.7.1": 2, "450 4.2.1": 1, "operator": 1}
    plain = command("queue", "stats", *S, "--by", "reason").out
    assert "450 4.2.1" in plain and "RELAY" not in plain and "queued 4" in plain


def test_stats_for_monitoring(command: Command, make_box: MakeBox) -> None:
    box = make_box(deliver="never")
    for _ in range(3):
        box.send("a@x.test", "s", "t")
    for options, status, word in (
        (("--warn", "3", "--crit", "1h"), 0, "OK: 3 recipients waiting"),
        (("--warn", "2", "--crit", "5"), 1, "WARNING: 3 recipients wait, more than 2"),
        (("--warn", "2", "--crit", "2"), 2, "CRITICAL"),
        (("--warn", "0ms"), 1, "WARNING: the oldest waits"),
        (("--crit", "1h", "--crit", "1"), 2, "waiting=3"),
    ):
        done = command("queue", "stats", *S, *options)
        assert (done.status, word in done.out) == (status, True), (options, done)
    assert command("queue", "stats", *S, "--crit", "soon").status == 65
    assert json.loads(command("queue", "stats", *S, "--json", "--crit", "1").out)["status"] == 2


def test_rows_that_wait_to_be_taken_over_are_counted_and_found(
    command: Command, make_box: MakeBox, tmp_path: Path
) -> None:
    shop = tmp_path / "shop.db"
    (tmp_path / "outmail.toml").write_text(f'[[outbox]]\nurl = "{shop}"\n[[outbox]]\nurl = "missing.db"\n')
    with contextlib.closing(sqlite3.connect(shop)) as db:
        db.executescript(schemas.sql("outbox-sqlite"))
        make_box(deliver="never").send("anna@x.test", "s", "t", using=db)
        db.commit()
    listed = command("queue", "list", *S)
    assert "1 message in sqlite:" in listed.err and "to be taken over" in listed.err
    assert "missing.db" in listed.err and listed.status == 0
    assert "1 message in sqlite:" in command("queue", "stats", *S).out
    assert json.loads(command("queue", "stats", *S, "--json").out)["outboxes"][0]["rows"] == 1
    assert command("queue", "stats", *S, "--crit", "0").status == 2
    told = command("why", *S, "anna@x.test")
    assert told.status == 0 and "shop.db" in told.out and "outmail run" in told.out
    assert command("why", *S, "berta@x.test").status == 66


def test_help_for_each_verb(command: Command) -> None:
    whole = command("queue", "--help")
    assert whole.status == 0 and "queue VERB --help" in whole.out
    for verb in VERBS:
        told = command("queue", verb, "--help")
        assert told.status == 0 and f"usage: outmail queue {verb}" in told.out and "examples" in told.out


def test_a_terminal_gets_a_table_and_a_pipe_does_not(
    command: Command, make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = make_box(deliver="never")
    first = box.send(["a@x.test", "b@x.test"], "A subject that is longer than the table is wide" * 2, "t").id
    second = box.send("c@x.test", "日本語 subject", "t").id
    box.hold(f"{first}/2")
    piped = command("queue", "list", *S).out
    assert first in piped and "\x1b" not in piped and "via default" in piped
    monkeypatch.setattr(terminal, "columns", lambda: 80)
    table = command("queue", "list", *S).out.splitlines()
    assert (
        table[0].split() == ["ID", "AGE", "TO", "STATE", "SUBJECT"] and "A subject that is longer" in table[1]
    )
    assert len(table) == 4 and all(terminal.cells(line) <= 80 for line in table)
    assert table[1].startswith(first[:12]) and "held" in table[2] and "…" in table[1]
    assert command("show", *S, table[3].split()[0]).out.split()[1] == second
    box.send("somebody-with-a-long-name@department.example.org", "x" * 60, "t", relay="null:", at="3h")
    table = command("queue", "list", *S).out.splitlines()
    assert (
        table[0].split() == ["ID", "AGE", "TO", "STATE", "RELAY", "NEXT", "SUBJECT"] and "x" * 15 in table[4]
    )
    assert all(terminal.cells(line) <= 80 for line in table)
    box.queue.store.run(_waits_for("451 4.7.1 later"))
    table = command("queue", "list", *S).out.splitlines()
    assert [line.strip() for line in table].count("451 4.7.1 later") == 1 and len(table) == 6
    monkeypatch.setattr(terminal, "coloured", lambda: True)
    assert "\x1b[33mheld\x1b[0m" in command("queue", "list", *S).out
