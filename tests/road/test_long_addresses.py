"""Local parts up to the path's limit (VERP, SRS, reply tokens), on every way in and out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from outmail import Outbox, Refused
from outmail.model import Dsn, Reply
from outmail.policy.aliases import Directory, parse
from outmail.smtp.client import MAX_ORIGINAL
from outmail.smtp.server import Deliver, Server, ServerSettings
from outmail.smtp.syntax import MAX_PATH, parse_mailbox
from outmail.testing import Sink
from tests.road.test_hostile_rows import Rows

MakeBox = Callable[..., Outbox]
DOMAIN = "@x.test"
LOCAL = "bounce+" + "k=" * 60 + "z" * (MAX_PATH - 127 - len(DOMAIN))
LONG = LOCAL + DOMAIN
OVER = "z" + LONG
CONTENT = b"From: a@x.test\r\n\r\nx\r\n"


def test_the_longest_has_254_octets() -> None:
    assert len(LONG) == 254 and str(parse_mailbox(LONG)) == LONG
    wide = "ü" * 123 + "u" + DOMAIN
    assert len(wide.encode()) == 254 and str(parse_mailbox(wide)) == wide
    for text in (OVER, "u" + wide, f'"{"q" * 246}"{DOMAIN}'):
        with pytest.raises(ValueError, match="longer than 254 octets"):
            parse_mailbox(text)


def test_in_by_the_library(make_box: MakeBox) -> None:
    box = make_box(toml=f'to = ["{LONG}"]', deliver="never")
    assert box.config.to == (LONG,)
    sent = box.send(LONG, "s", "t", sender=LONG, reply_to=LONG)
    for receipt in (sent, box.submit(CONTENT, sender=LONG, recipients=[LONG, "b@x.test"])):
        status = box.status(receipt.id)
        assert (status.sender, status.recipients[0].address) == (LONG, LONG)
        assert json.loads(json.dumps(status.as_dict()))["recipients"][0]["address"] == LONG
    head = box.content(sent.id).partition(b"\r\n\r\n")[0].replace(b"\r\n ", b" ").split(b"\r\n")
    for name in ("From", "To", "Reply-To"):
        assert f"{name}: {LONG}".encode() in head
    assert len(list(box.find(f"to:{LONG}"))) == len(list(box.find(f"from:{LONG}"))) == 2
    for sender, recipient in ((OVER, LONG), (LONG, OVER)):
        with pytest.raises(Refused, match="254"):
            box.submit(CONTENT, sender=sender, recipients=recipient)
        with pytest.raises(Refused, match="254"):
            box.send(recipient, "s", "t", sender=sender)


@pytest.mark.parametrize("hello", [b"EHLO", b"LHLO"])
def test_in_by_smtp_and_lmtp(hello: bytes) -> None:
    class Anyone:
        def mail(self, session: Server, sender: str) -> None: ...
        def rcpt(self, session: Server, address: str) -> None: ...

    server = Server(ServerSettings(lmtp=hello == b"LHLO"), Anyone())
    for address in (LONG, OVER):
        server.feed(hello + f" me\r\nMAIL FROM:<{address}>\r\nRCPT TO:<{address}>\r\nDATA\r\n".encode())
        server.feed(CONTENT + b".\r\n" if address == LONG else b"")
        if address == LONG:
            got = server.requests.popleft()
            assert isinstance(got, Deliver) and (got.sender, got.recipients) == (LONG, [LONG])
            server.answer([Reply(250, "queued")])
    assert not server.begun and not server.requests


@pytest.mark.parametrize("lmtp", [False, True])
def test_out_by_smtp_and_lmtp(make_box: MakeBox, lmtp: bool) -> None:
    """ORCPT has three characters for each ``=`` and ``+``: where it gets too long it is left out."""
    with Sink(lmtp=lmtp) as sink:
        box = make_box(relay=sink.url)
        many = "=" * (MAX_PATH - len(DOMAIN)) + DOMAIN
        box.submit(CONTENT, sender=LONG, recipients=[LONG, many], dsn=Dsn(notify="failure"))
        (got,) = sink.wait_for(1, 20)
        assert got.sender == LONG and set(got.recipients) == {LONG, many}
        asked = dict(zip(got.recipients, got.rcpt_parameters))
        originals = {address: words.partition(" ORCPT=")[2] for address, words in asked.items()}
        assert originals[LONG].startswith("rfc822;bounce+2Bk+3D") and len(originals[LONG]) <= MAX_ORIGINAL
        assert asked[many] == "NOTIFY=FAILURE"


def test_aliases() -> None:
    known = Directory(
        frozenset(["x.test"]), parse(f"{LOCAL}: alice, {LONG}.test\n"), "alice".__eq__, lambda path: ""
    )
    assert known.expand(LOCAL.upper()) == ["alice", f"{LONG}.test"]


def test_rows_of_an_outbox_table(tmp_path: Path) -> None:
    rows = Rows(tmp_path, "stdlib", False)
    good = {"sender": LONG, "recipients": [LONG]}
    late = {**good, "priority": "top"}
    for envelope in (good, late, {**good, "recipients": [OVER, "b@x.test"]}):
        rows.add(envelope=f"'{json.dumps(envelope)}'")
    found = rows.taken()
    states = [(status.sender, [(r.address, r.state) for r in status.recipients]) for status in found]
    rows.box.close()
    assert states[:2] == [(LONG, [(LONG, "queued")]), (LONG, [(LONG, "failed")])]
    assert states[2][1][1] == ("b@x.test", "failed") and states[2][1][0][1] == "failed"
