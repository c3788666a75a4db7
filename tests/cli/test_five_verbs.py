"""Assign, dump, send one, send all, loopback (43, 44): the example runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outmail.config import from_toml
from outmail.errors import Refused
from outmail.outbox.outbox import Outbox
from outmail.policy.loopback import CANARY
from outmail.returns import canary
from outmail.testing import Sink
from outmail.wiring import arrivals_of
from tests.waiting import until

MakeBox = Callable[..., Outbox]
EXAMPLE = Path(__file__).parents[2] / "examples" / "five_verbs.sh"
BY_ID = '[loopback]\naddress = "loop@example.org"\nmode = "message-id"\n'


def test_the_example(each_store: str, sink: Sink, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "outmail"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m outmail "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["sh", str(EXAMPLE), each_store, sink.url],
        env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"},
        cwd=tmp_path,
        capture_output=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, again, *rest = done.stdout.decode().splitlines()
    assert first == again and first.endswith("@example.org>") and f"Message-ID: {first}" in rest
    assert len(sink.messages) == 2 and b"<own@example.org>" not in sink.messages[0].content
    assert (
        sink.messages[0].content
        == "\r\n".join([f"Message-ID: {first}", ""]).encode()
        + (sink.messages[0].content.split(b"\r\n", 1)[1])
    )
    assert all("loop@example.org" in m.recipients for m in sink.messages)
    assert [line for line in rest if " seen " in line] and "1 home" in done.stdout.decode()
    assert "the Message-ID was <own@example.org>" in done.stdout.decode()


@pytest.fixture
def box(each_store: str, make_box: MakeBox) -> Outbox:
    return make_box(toml=BY_ID, store=each_store, deliver="never")


@pytest.mark.parametrize("size", [10, 1_300_000])
def test_assign_once_and_the_dump_is_what_is_sent(box: Outbox, size: int) -> None:
    own = (
        b"Subject: s\r\nMessage-Id: <old@x.test>\r\nFrom: a@x.test\r\n\r\n"
        + b"x" * 70 * (size // 70)
        + b"\r\n"
    )
    id = box.submit(own, sender="a@x.test", recipients="b@x.test").id
    given = box.queue.assign(id)
    assert given == f"<{id}@x.test>" == box.queue.assign(id) == box.status(id).message_id
    content = box.content(id)
    assert content.startswith(f"Message-ID: {given}\r\nSubject: s\r\nDate:".encode()[:40])
    assert (
        b"old@x.test" not in content
        and content.endswith(own.partition(b"\r\n\r\n")[2])
        and box.status(id).size == len(content)
    )
    assert [e.reason for e in box.events() if e.event == "assigned"] == ["the Message-ID was <old@x.test>"]


@pytest.mark.parametrize("size", [10, 1_300_000])
def test_replaced_at_acceptance_where_it_is_asked_for(make_box: MakeBox, each_store: str, size: int) -> None:
    toml = BY_ID.replace("[loopback]", '[loopback]\nmessage_id = "replace"\nsample = "tag:x"')
    box = make_box(toml=toml, deliver="never", store=each_store)
    words: dict[str, Any] = {"sender": "a@x.test", "recipients": ["b@x.test"]}
    own = b"Subject: s\r\nMessage-Id: <old@x.test>\r\n\r\n" + b"x" * 70 * (size // 70) + b"\r\n"
    done = box.submit_many(
        [
            {"content": own, "tag": "x", "key": "once", **words},
            {"content": own, **words},
            {"content": own.replace(b"old", b"o2"), "tag": "x", **words},
        ]
    )
    chosen, other, _ = [one.id for one in done]
    again = box.submit(own, tag="x", key="once", **words)
    assert again.duplicate and again.message_id == done[0].message_id == f"<{chosen}@x.test>"
    assert b"old@x.test" not in box.content(chosen) and b"<old@x.test>" in box.content(other)
    assert f"Message-ID: {done[0].message_id}\r\n".encode() in box.content(chosen)
    assert box.content(chosen).endswith(own.partition(b"\r\n\r\n")[2])
    assert box.queue.assign(chosen) == done[0].message_id
    ours = box.send("b@x.test", "s", "t", tag="x")
    assert ours.message_id == f"<{ours.id}@outmail.test>"
    found = sorted(e.reason for e in box.events() if e.event == "assigned")
    assert found == ["the Message-ID was <o2@x.test>", "the Message-ID was <old@x.test>"]


def test_one_that_has_ours_or_was_tried_stays(sink: Sink, make_box: MakeBox) -> None:
    sink.script("DOT: 451 later")
    box = make_box(sink.url, BY_ID)
    ours = box.send("a@x.test", "s", "t").id
    assert box.queue.assign(ours) == box.status(ours).message_id
    mail = b"Message-ID: <o@x.test>\r\n\r\nt\r\n"
    own = box.submit(mail, sender="a@x.test", recipients="a@x.test").id
    until(lambda: box.status(own).recipients[0].attempts)
    with pytest.raises(Refused, match="tried already"):
        box.queue.assign(own)


@pytest.mark.parametrize(
    ("mail", "word"),
    [
        ("Message-ID: {ours}\n\n", "home"),
        ("Message-ID: <{id}@elsewhere.test>\n\n", "unknown"),
        ("Message-ID: <own@x.test>\n\n", "foreign"),
        ("Message-ID: nonsense\n\n", "foreign"),
        ("Subject: s\n\nMessage-ID: {ours}\n", "foreign"),
        ("Return-Path: <>\nMessage-ID: <bounce@mx.test>\nIn-Reply-To: {ours}\n\n", "foreign"),
        ("Message-ID: <00000000000000000000000000@x.test>\n\n", "unknown"),
    ],
)
def test_by_message_id_only_ours_is_seen(sink: Sink, make_box: MakeBox, mail: str, word: str) -> None:
    box = make_box(sink.url, BY_ID)
    id = box.send("a@x.test", "s", "t").id
    assert box.wait(id, 10).status == "delivered"
    arrivals = arrivals_of(box.store, box.config)
    mail = mail.format(ours=box.status(id).message_id, id=id)
    assert arrivals.take(mail.encode()) == word
    assert ("seen" in [e.event for e in box.events()]) == (word == "home")
    if word == "home":
        assert arrivals.take(mail.encode()) == "duplicate"


def test_a_message_id_proves_nothing_in_token_mode(sink: Sink, make_box: MakeBox) -> None:
    box = make_box(sink.url, '[loopback]\naddress = "loop@example.org"\n')
    id = box.send("a@x.test", "s", "t").id
    box.wait(id, 10)
    mail = f"Message-ID: {box.status(id).message_id}\n\n".encode()
    assert arrivals_of(box.store, box.config).take(mail) == "foreign"


def test_canaries_go_once_an_interval_by_each_relay(sink: Sink, make_box: MakeBox) -> None:
    toml = (
        '[loopback]\naddress = "loop@example.org"\nsample = 0\ncanary = "1h"\n'
        f'[relay]\nurl = "{sink.url}"\n[relays.other]\nurl = "{sink.url}"\n[relays.box]\nurl = "file:/x"\n'
        f'[relays.spare]\nurl = "{sink.url}"\n'
        '[[route]]\nto = "*@x.test"\nrelays = ["other", "box"]\n'
    )
    box = make_box(toml=toml, deliver="thread")
    words: tuple[Any, Any, Any] = (box.store, box.config.loopback, box.routes)
    now = box.clock.now()
    assert canary.send_due(*words, now, box.send) == ["default", "other", "spare"]
    assert canary.send_due(*words, now + 3_599_999, box.send) == []
    ids = [status.id for status in box.find(f"tag:{CANARY}")]
    assert [box.wait(id, 10).status for id in ids] == ["delivered"] * 3
    arrivals = arrivals_of(box.store, box.config)
    for message in sink.messages:
        bare, token = message.recipients
        assert arrivals.takes(bare) and arrivals.take(message.content, [bare]) == "canary"
        assert arrivals.take(message.content, [token]) == "home"
    found = box.queue.loopback_stats(10**9)
    each = ["default", "other", "spare"]
    assert [(route["route"], route["home"]) for route in found["routes"]] == [(name, 1) for name in each]
    assert canary.send_due(*words, now + 3_600_000, box.send) == each


def test_canary_settings() -> None:
    assert from_toml('[loopback]\naddress = "l@x.test"\ncanary = "1h"', "t", {}).loopback.canary == 3_600_000
