"""What SRV records and autoconfig files say about a domain's server."""

from __future__ import annotations

import pytest

from outmail.policy.discovery import Srv, by_autoconfig, by_autodiscover, by_srv

ADDRESS = "me.too@example.org"


def document(*servers: str, head: str = "", root: str = "clientConfig") -> bytes:
    provider = f'<emailProvider id="x">{"".join(servers)}</emailProvider>'
    return f'<?xml version="1.0"?>{head}<{root} version="1.1">{provider}</{root}>'.encode()


def server(
    host: str = "smtp.%EMAILDOMAIN%",
    port: str = "587",
    tls: str = "STARTTLS",
    user: str = "%EMAILADDRESS%",
    way: str = "password-cleartext",
    kind: str = "smtp",
) -> str:
    return (
        f'<outgoingServer type="{kind}"><hostname>{host}</hostname><port>{port}</port>'
        f"<socketType>{tls}</socketType><username>{user}</username><authentication>{way}</authentication>"
        f"</outgoingServer>"
    )


def test_marks_of_an_autoconfig_file_are_filled() -> None:
    found = by_autoconfig(document(server(user="%EMAILLOCALPART%")), ADDRESS, "here")
    assert found is not None
    assert found[:5] == ("smtp.example.org", 587, "starttls", "me.too", "here")
    assert found.url == "smtp://smtp.example.org:587"


def test_tls_from_the_first_byte_is_preferred() -> None:
    found = by_autoconfig(document(server(), server(port="465", tls="SSL")), ADDRESS, "")
    assert found is not None and (found.port, found.tls) == (465, "implicit")
    assert found.url == "smtps://smtp.example.org:465"


@pytest.mark.parametrize(
    "useless",
    [
        server(tls="plain"),
        server(way="OAuth2"),
        server(host="a b"),
        server(host=""),
        server(host="-x.example.org"),
        server(port="0"),
        server(port="99999"),
        server(port="９"),
        server(user=""),
        server(user="a&#10;b"),
        server(kind="exchange"),
        "<incomingServer type='imap'><hostname>imap.example.org</hostname></incomingServer>",
        "<outgoingServer type='smtp'><x><hostname>smtp.example.org</hostname></x></outgoingServer>",
    ],
)
def test_a_server_without_tls_or_password_or_sense_is_passed_over(useless: str) -> None:
    assert by_autoconfig(document(useless), ADDRESS, "") is None
    found = by_autoconfig(document(useless, server(host="next.example.org")), ADDRESS, "")
    assert found is not None and found.host == "next.example.org"


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"<html><body>404</body></html>",
        b"no xml",
        document(server())[:-20],
        document(server(), root="other"),
        document(server(host="&x;"), head='<!DOCTYPE a [<!ENTITY x "smtp.evil.test">]>'),
        document(server(host="&x;"), head='<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'),
        document(server(host="&x;"), head='<!DOCTYPE a SYSTEM "https://evil.test/a.dtd">'),
        document(server(), head='<!DOCTYPE a [<!ENTITY x "y">]>').decode().replace(
            '<?xml version="1.0"?>', '<?xml version="1.0" encoding="utf-16"?>').encode("utf-16"),
    ],
)  # fmt: skip
def test_what_is_no_autoconfig_file_is_refused_and_entities_are_never_read(bad: bytes) -> None:
    with pytest.raises(ValueError):
        by_autoconfig(bad, ADDRESS, "")


def test_srv_prefers_implicit_tls_then_priority_then_weight() -> None:
    implicit = [Srv(20, 0, 465, "b.example.org."), Srv(10, 1, 465, "c.example.org."),
                Srv(10, 9, 465, "A.example.org.")]  # fmt: skip
    found = by_srv(implicit, [Srv(0, 0, 587, "d.example.org.")], ADDRESS)
    assert found is not None
    assert (found.host, found.port, found.tls, found.user) == ("a.example.org", 465, "implicit", ADDRESS)
    assert found.sure


def test_srv_with_starttls_only() -> None:
    found = by_srv([Srv(0, 0, 0, ".")], [Srv(0, 0, 587, "mail.other.test.")], ADDRESS)
    assert found is not None and (found.host, found.tls, found.sure) == ("mail.other.test", "starttls", False)


@pytest.mark.parametrize("record", [Srv(0, 0, 0, "."), Srv(0, 0, 587, "."), Srv(0, 0, 0, "a.example.org")])
def test_srv_that_says_no(record: Srv) -> None:
    assert by_srv([], [record], ADDRESS) is None and by_srv([], [], ADDRESS) is None


def test_a_domain_that_only_looks_like_the_own_one_is_not_sure() -> None:
    found = by_srv([Srv(0, 0, 465, "smtp.notexample.org")], [], ADDRESS)
    assert found is not None and not found.sure


def test_autodiscover_tells_microsoft_by_name() -> None:
    found = by_autodiscover("autodiscover.outlook.com.", ADDRESS)
    assert found is not None and found.host == "smtp.office365.com" and "tokens" in found.note
    for name in ("", "autodiscover.example.org", "evil-outlook.com"):
        assert by_autodiscover(name, ADDRESS) is None
