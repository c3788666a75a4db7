"""Addresses: what passes, and what never may."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
