"""The table of providers: it is well formed, and found by address, MX and name."""

from __future__ import annotations

import re

import pytest

from outmail.policy.discovery import of_provider
from outmail.policy.providers import PROVIDERS, Provider, by_domain, by_key, by_mx
from outmail.policy.route import parse_relay


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda one: one.key)
def test_every_entry_makes_a_relay_and_says_where_it_is_from(provider: Provider) -> None:
    assert re.fullmatch(r"20\d\d-\d\d", provider.read) and ("." in provider.source or ":" in provider.source)
    relay = parse_relay(of_provider(provider, "me@x.test", "").url.replace("{region}", "eu-central-1"))
    assert (relay.tls == "implicit") == (provider.tls == "implicit")
    assert provider.port in (465, 587, 1025) and (provider.port == 465) == (provider.tls == "implicit")
    assert all(domain == domain.lower() and "." in domain for domain in (*provider.domains, *provider.mx))


def test_no_domain_is_claimed_twice() -> None:
    for words in ([d for one in PROVIDERS for d in one.domains], [one.key for one in PROVIDERS]):
        assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("domain", "key"),
    [("gmail.com", "gmail"), ("GMX.de", "gmx"), ("hotmail.com", "outlook"), ("pm.me", "proton")],
)
def test_by_domain(domain: str, key: str) -> None:
    found = by_domain(domain)
    assert found is not None and found.key == key


@pytest.mark.parametrize("domain", ["example.org", "notgmail.com", "gmail.com.example.org", ""])
def test_strangers_are_not_known(domain: str) -> None:
    assert by_domain(domain) is None and by_mx((domain,)) is None


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (("aspmx.l.google.com.", "alt1.aspmx.l.google.com."), "gmail"),
        (("firm-de.mail.protection.outlook.com",), "microsoft365"),
        (("mx.example.org", "in1-smtp.messagingengine.com"), "fastmail"),
        (("hotmail-com.olc.protection.outlook.com",), "outlook"),
        (("mxlb.ispgateway.de",), None),
        (("evilgoogle.com",), None),
    ],
)
def test_by_mx(names: tuple[str, ...], key: str | None) -> None:
    found = by_mx(names)
    assert (found.key if found else None) == key


def test_by_name() -> None:
    assert by_key("Fastmail") == by_key(" fastmail ") != by_key("gmail")
    assert by_key("nobody") is None
    ses = by_key("ses:eu-central-1")
    assert ses is not None and ses.host == "email-smtp.eu-central-1.amazonaws.com"


@pytest.mark.parametrize("word", ["ses", "ses:", "ses:a b", "ses:../x"])
def test_a_region_is_needed_where_there_are_some(word: str) -> None:
    with pytest.raises(ValueError, match="ses:eu-central-1"):
        by_key(word)


def test_the_login_is_as_the_provider_wants_it() -> None:
    logins = {}
    for key in ("gmail", "web.de", "sendgrid", "postmark"):
        provider = by_key(key)
        assert provider is not None
        logins[key] = of_provider(provider, "me@web.de", "").user
    assert logins == {"gmail": "me@web.de", "web.de": "me", "sendgrid": "apikey", "postmark": ""}
