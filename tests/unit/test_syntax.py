"""Addresses, replies, spans, filters: parsers and hostile text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outmail.clock import human_span, instant, parse_span
from outmail.errors import Refused
from outmail.model import is_id, keyed_id, new_id
from outmail.policy.selection import parse, parse_size, select
from outmail.smtp.reply import ProtocolError, ReplyReader
from outmail.smtp.syntax import AddressError, parse_mailbox


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("a@b.test", "b.test"),
        ("a.b+c@x-y.test", "x-y.test"),
        ('"a b\\"c"@x.test', "x.test"),
        ("ü@x.test", "x.test"),
        ("a@faß.de", "xn--fa-hia.de"),
        ("a@[127.0.0.1]", "[127.0.0.1]"),
        ("a@[IPv6:::1]", "[IPv6:::1]"),
        ("a@[ipv6:2001:DB8::1]", "[IPv6:2001:db8::1]"),
        ("root@localhost", "localhost"),
        ("a@x.test.", "x.test"),
        ("SRS0=HHHH=TT=x.test=" + "a" * 227 + "@x.test", "x.test"),
        ('"' + "a " * 122 + '"@x.test', "x.test"),
        ("ü" * 123 + "@x.test", "x.test"),
    ],
)
def test_good_addresses(text: str, domain: str) -> None:
    assert parse_mailbox(text).domain == domain


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "@x",
        "a@",
        "a b@x.test",
        "a@x..test",
        "a@-x.test",
        "a@x.test>",
        "<a@x.test>",
        "a@x.test\r\nRCPT TO:<b@x>",
        "a\0@x.test",
        "a@x.test)b@y",
        ".a@x.test",
        "a..b@x.test",
        "a@[1.2.3]",
        "a" * 248 + "@x.test",
        "ü" * 124 + "@x.test",
        "a@" + "x" * 64 + ".test",
        "a@" + "x." * 130 + "test",
        '"a@x.test',
        "a@x .test",
        "a@x.test\u2028",
        "a@[IPv6:::1%> NOTIFY=NEVER]",
        "a@[IPv6:fe80::1%eth0]",
        "a@[IPv6:::1%25]",
        "a@[IPv6: ::1]",
        "a@[1.2.3.4>]",
        "a@[1.2.3.4]x",
        "a@[IPv6:1.2.3.4]",
        "a@[01.2.3.4]",
    ],
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(AddressError):
        parse_mailbox(text)


@given(st.text(max_size=80))
def test_what_passes_cannot_end_a_command(text: str) -> None:
    try:
        mailbox = str(parse_mailbox(text))
    except AddressError:
        return
    outside_quotes = mailbox if not mailbox.startswith('"') else mailbox.rpartition('"')[2]
    assert not any(c in outside_quotes for c in " <>\r\n\0") and "\r" not in mailbox and "\n" not in mailbox


REPLIES = b"220 hi\r\n250-one\r\n250-SIZE 10\r\n250 2.1.0 last\r\n354\r\n550 5.1.1 no\nsuch"


def test_replies_whole_and_byte_by_byte() -> None:
    whole, single = ReplyReader(), ReplyReader()
    whole.feed(REPLIES)
    for i in range(len(REPLIES)):
        single.feed(REPLIES[i : i + 1])
    for reader in (whole, single):
        codes = []
        while got := reader.pop():
            codes.append((got[0].code, got[0].enhanced))
        assert codes == [(220, ""), (250, ""), (354, ""), (550, "5.1.1")]
        assert reader.buffered


@pytest.mark.parametrize(
    "data", [b"hello\r\n", b"250-a\r\n550 b\r\n", b"99 x\r\n", b"600 x\r\n", b"x" * 5000, b"250-x\r\n" * 100]
)
def test_what_is_no_smtp_is_said(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        ReplyReader().feed(data)


@given(st.binary(max_size=300))
def test_the_reader_never_breaks_otherwise(data: bytes) -> None:
    try:
        ReplyReader().feed(data)
    except ProtocolError:
        pass


def test_spans_and_instants() -> None:
    assert parse_span("1d12h") == 129_600_000 and parse_span("1.5h") == 5_400_000
    assert instant("2h", 1000) == 7_201_000 and instant("2027-01-01T00:00:00Z", 0) == 1_798_761_600_000
    assert [human_span(ms) for ms in (42_000, 600_000, 7_500_000, 97_200_000)] == [
        "42s",
        "10m",
        "2h05m",
        "1d3h",
    ]
    for bad in ("", "5", "h", "2 hours", "2027-01-01"):
        with pytest.raises(ValueError):
            instant(bad, 0)


def test_ids() -> None:
    ids = [new_id(now) for now in range(1_700_000_000_000, 1_700_000_000_050)]
    assert ids == sorted(ids) and all(is_id(id) and len(id) == 26 for id in ids)
    assert (
        keyed_id("a") == keyed_id("a") != keyed_id("b")
        and is_id(keyed_id("a") + "/3")
        and not is_id("state:queued")
    )


def test_filters() -> None:
    terms = parse("state:queued -to:*@x.test 'subject:two words' larger:1MB", 0).terms
    assert [(t.field, t.value, t.negated) for t in terms] == [
        ("state", "queued", False),
        ("to", "*@x.test", True),
        ("subject", "two words", False),
        ("larger", 1_000_000, False),
    ]
    assert parse_size("50MB") == 50_000_000 and select(keyed_id("a"), 0).ids
    for bad in ("state:unknown", "colour:red", "to:", "larger:big", "is:what", "'"):
        with pytest.raises(Refused):
            parse(bad, 0)
