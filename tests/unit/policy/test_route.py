"""Relays by URL, and which rule chooses one."""

import pytest

from outmail.policy.route import Routes, Rule, matches, parse_relay


@pytest.mark.parametrize(
    ("url", "canonical", "tls"),
    [
        ("smtp://localhost", "smtp://localhost:25", "off-loopback"),
        ("smtps://me%40isp@ISP.example", "smtps://me%40isp@isp.example:465", "implicit"),
        ("smtp://u:secret@h.example", "smtp://u@h.example:587", "off-loopback"),
        ("smtp://h.example:465", "smtps://h.example:465", "implicit"),
        ("smtp+plain://h.example", "smtp+plain://h.example:25", "none"),
        ("lmtp:/run/lmtp", "lmtp:/run/lmtp", "none"),
        ("maildir:/var/mail/x", "maildir:/var/mail/x", "none"),
        ("null:", "null:", "none"),
        ("smtp://[::1]:2525", "smtp://[::1]:2525", "off-loopback"),
    ],
)
def test_relay_urls(url: str, canonical: str, tls: str) -> None:
    relay = parse_relay(url)
    assert (relay.url, relay.name, relay.tls) == (canonical, canonical, tls)
    assert "secret" not in repr(relay)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "http://x",
        "smtp://",
        "smtp://h:0",
        "smtp://h:99999",
        "smtp://h/path",
        "file:relative",
        "null:x",
        "smtp://a b",
    ],
)
def test_bad_relay_urls_are_said(url: str) -> None:
    with pytest.raises(ValueError):
        parse_relay(url)


def test_the_first_rule_that_fits_wins() -> None:
    relays = {name: parse_relay("null:", name) for name in ("default", "backup")}
    routes = Routes(
        relays,
        (
            Rule(("*@a.test",), ("*",), ("*",), ("backup", "default")),
            Rule(("*",), ("b.test",), ("*",), ("backup",)),
        ),
    )
    assert routes.choose("x@A.test", "y@c.test", None) == "backup,default"
    assert routes.choose("x@c.test", "y@B.test", None) == "backup"
    assert routes.choose("", "y@c.test", None) == "default"
    assert [r.name for r in routes.resolve("backup,default")] == ["backup", "default"]
    assert routes.resolve("smtp://who@x.test:25") == () and routes.resolve("gone") == ()
    assert routes.resolve("smtp://x.test:25")[0].host == "x.test"


def test_a_bare_pattern_is_a_domain() -> None:
    assert (
        matches("a.test", "x@a.test")
        and not matches("a.test", "x@b.a.test")
        and matches("*@*.test", "x@b.test")
    )


def test_mail_is_sent_another_way_only_where_an_engine_here_would_take_it() -> None:
    mine = parse_relay("smtps://me:secret@isp.example")
    routes = Routes(
        {
            "default": parse_relay("smtp://localhost", "default"),
            "local": parse_relay("sendmail:/usr/sbin/sendmail", "local"),
            mine.name: mine,
        }
    )
    assert routes.named("local, default") == "local,default"
    assert routes.named("smtp://LOCALHOST:2525") == "smtp://localhost:2525"
    assert routes.named("smtps://me:other@isp.example:465") == "smtps://me@isp.example:465"
    for unknown in (
        "backup",
        "default,backup",
        "smtps://you:secret@isp.example",
        "maildir:/var/mail/x",
        "",
        "smtp://",
        ",".join(["smtp://a.example"] * 40),
    ):
        with pytest.raises(ValueError) as caught:
            routes.named(unknown)
        assert "secret" not in str(caught.value)
