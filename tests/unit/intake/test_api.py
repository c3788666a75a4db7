"""Bare names of the library's callers get the origin: where they are composed in the header, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from outmail.errors import Refused
from outmail.intake.api import people, whole, whole_fields
from outmail.model import Dsn
from outmail.outbox.outbox import Outbox

MakeBox = Callable[..., Outbox]
ORIGIN = '[accept]\norigin = "o.test"'
CONTENT = b"From: root\r\nTo: John <john>\r\n\r\nx\r\n"


@pytest.fixture
def box(make_box: MakeBox) -> Outbox:
    return make_box(toml=ORIGIN, deliver="never")


def test_send_qualifies_envelope_and_header(box: Outbox) -> None:
    receipt = box.send(
        ["root", "Ann <ann>", "b@x.test"],
        cc=[("John Smith", "john")],
        bcc="eve-hidden",
        reply_to="Help",
        sender="cron",
        headers={"Sender": "root, a@x.test", "X-Other": "root"},
    )
    status, content = box.status(receipt.id), box.content(receipt.id)
    assert status.sender == "cron@o.test"
    assert [r.address for r in status.recipients] == [
        "root@o.test", "ann@o.test", "b@x.test", "john@o.test", "eve-hidden@o.test",
    ]  # fmt: skip
    for line in (
        b"From: cron@o.test\r\n",
        b"To: root@o.test, Ann <ann@o.test>, b@x.test\r\n",
        b"Cc: John Smith <john@o.test>\r\n",
        b"Reply-To: Help@o.test\r\n",
        b"Sender: root@o.test, a@x.test\r\n",
        b"X-Other: root\r\n",
    ):
        assert line in content, (line, content)
    assert receipt.message_id.endswith("@o.test>") and b"hidden" not in content


def test_submit_qualifies_the_envelope_and_no_byte_of_the_message(box: Outbox) -> None:
    dsn = Dsn(each={"john": ("never", "")})
    receipt = box.submit(CONTENT, sender="root", recipients=["john", "a@x.test"], dsn=dsn)
    status = box.status(receipt.id)
    assert status.sender == "root@o.test"
    assert [r.address for r in status.recipients] == ["john@o.test", "a@x.test"]
    assert box.content(receipt.id).endswith(CONTENT)


def test_who_is_nobody_stays_nobody(box: Outbox) -> None:
    assert box.status(box.submit(CONTENT, sender=None, recipients="root").id).sender == ""
    assert box.status(box.submit(CONTENT, sender="", recipients="root").id).sender == ""


@pytest.mark.parametrize(
    "wrong",
    ["", " ", "John Smith", '"John"', "a b", "root,john", "a@", "<>", "root\n", "a..b", ["ok", ""], [5]],
)
def test_what_could_be_no_local_part_is_refused(box: Outbox, wrong: Any) -> None:
    with pytest.raises(Refused):
        box.send(wrong, "s", "t")
    with pytest.raises(Refused):
        box.submit(CONTENT, sender="a@x.test", recipients=wrong)


def test_a_pair_that_may_be_two_addresses_is_refused(box: Outbox) -> None:
    """Taken for a name and an address, the first of two recipients would get nothing."""
    with pytest.raises(Refused, match="two addresses, or a name and an address"):
        box.send(("alice", "bob"), "s", "t")
    assert len(people(["alice", "bob"], "to", "o.test")) == 2
    assert len(people(("alice", "bob", "eve"), "to", "o.test")) == 3
    assert people(("Alice", "bob@x.test"), "to", "o.test")[0][0] == "Alice"
    assert str(people(("Alice Smith", "bob"), "to", "o.test")[0][1]) == "bob@o.test"


def test_without_an_origin_bare_names_are_refused(make_box: MakeBox) -> None:
    box = make_box(toml='[accept]\norigin = ""', deliver="never")
    with pytest.raises(Refused, match="has no @"):
        box.send("root", "s", "t")
    with pytest.raises(Refused, match="has no @"):
        box.submit(CONTENT, sender="a@x.test", recipients="root")
    with pytest.raises(Refused, match="has no @"):
        box.send(("alice", "bob"), "s", "t")


def test_items_cannot_name_an_origin(box: Outbox) -> None:
    with pytest.raises(TypeError):
        box.send_many([{"to": "root", "origin": "evil.test"}])
    with pytest.raises(TypeError):
        box.submit_many([{"content": CONTENT, "sender": None, "recipients": "root", "origin": "evil.test"}])


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("root", "root@o.test"), (" root ", " root@o.test "), ("Name <root>", "Name <root@o.test>"),
        ("<root>", "<root@o.test>"), ("root <root>", "root <root@o.test>"),
    ],
)  # fmt: skip
def test_whole_keeps_what_stands_around(text: str, meant: str) -> None:
    assert whole(text, "o.test") == meant and whole(text, "") == text


@pytest.mark.parametrize(
    "text", ["", "a@x.test", "Name <a@x.test>", "John Smith", "<>", "undisclosed-recipients:;"]
)
def test_whole_leaves_the_rest_alone(text: str) -> None:
    assert whole(text, "o.test") == text


def test_lists_in_fields() -> None:
    given = {"to": 'root,"a, b" <john>, x@y.test, "open', "Subject": "root", "Sender": 5}
    assert whole_fields(given, "o.test") == {
        "to": 'root@o.test,"a, b" <john@o.test>, x@y.test, "open',
        "Subject": "root",
        "Sender": 5,
    }
