"""Mail for a route that nobody will serve is told of, with the command that moves it."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest

from outmail.outbox.outbox import Outbox
from outmail.outbox.stranded import stranded
from outmail.testing import Sink
from tests.cli.conftest import Command, command
from tests.waiting import until

__all__ = ["command"]
MakeBox = Callable[..., Outbox]
S = ("--store", "q.db")


def test_a_relay_that_only_an_ended_program_knew(
    make_box: MakeBox, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    box = make_box(relay="smtps://me:secret@localhost:1", exit_wait=0)
    id = box.send("a@x.test", "s", "t", at="1h").id
    reader = make_box(deliver="never")
    until(lambda: "smtps://me@localhost:1" in reader.queue.known_elsewhere())
    assert stranded(reader.queue) == []
    box.close()
    (one,) = stranded(reader.queue)
    assert (one.route, one.recipients, one.why) == ("smtps://me@localhost:1", 1, "unknown")
    assert "no engine knows" in capsys.readouterr().err
    for words in (("queue", "list"), ("why", id)):
        told = command(*words, *S).err
        advised = told.partition("another way: ")[2].splitlines()[0]
        assert shlex.split(advised)[:3] == ["outmail", "queue", "reroute"], told
    assert "1 recipient changed" in command(*shlex.split(advised)[1:]).err
    assert stranded(reader.queue) == []


def test_a_slip_in_the_port(make_box: MakeBox, sink: Sink, capsys: pytest.CaptureFixture[str]) -> None:
    box = make_box(relay="smtp://localhost:1", exit_wait=0)
    id = box.send("a@x.test", "s", "t").id
    until(lambda: box.status(id).recipients[0].attempts)
    box.close()
    assert "if that relay is wrong" in capsys.readouterr().err.lower()
    reader = make_box(deliver="never")
    (one,) = stranded(reader.queue)
    assert one.why == "silent" and "route:smtp://localhost:1 backup" in one.sentence("backup")
    reader.queue.reroute(id, sink.url)
    assert stranded(reader.queue) == []  # nobody has tried it there


def test_a_relay_that_asks_to_wait_is_not_told_of(make_box: MakeBox, sink: Sink) -> None:
    sink.script("RCPT: 451 4.7.1 greylisted")
    box = make_box(relay=sink.url, exit_wait=0)
    id = box.send("a@x.test", "s", "t").id
    until(lambda: box.status(id).recipients[0].attempts)
    box.close()
    assert stranded(make_box(deliver="never").queue) == []


def test_an_engine_that_was_started_before_the_relay_was_configured(make_box: MakeBox, sink: Sink) -> None:
    engine = make_box(toml=f'relay = "{sink.url}"', deliver="thread")
    later = make_box(toml='[relays.backup]\nurl = "smtps://me@localhost:1"', deliver="never")
    until(lambda: "default" in later.queue.known_elsewhere())
    later.send("a@x.test", "s", "t", relay="backup")
    (one,) = stranded(later.queue)
    assert one.why == "started before" and "Start them anew" in one.sentence("default")
    engine.close()
    assert stranded(later.queue) == []  # the next run knows it
