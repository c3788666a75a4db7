"""``outmail queue``: what waits, and what an operator does about it."""

from __future__ import annotations

from collections.abc import Callable

from outmail.outbox.outbox import Outbox
from outmail.testing import Sink
from tests.cli.conftest import Command

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
