"""Retry, pace, routes: pure decisions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outmail.clock import HOUR, MINUTE
from outmail.model import Outcome, Reply
from outmail.policy.pace import Pace, shares
from outmail.policy.retry import Retry, Schedule, verdict
from outmail.policy.route import Routes, Rule, matches, parse_relay


def decide(
    kind: str, attempts: int = 1, retry: Retry | None = None, now: int = 0, expires_at: int = 10**12
) -> object:
    outcome = Outcome(kind, "recipient", "rcpt", Reply(451, "later", "4.7.1"))  # type: ignore[arg-type]
    return verdict(
        outcome,
        attempts=attempts,
        now=now,
        accepted_at=-7,
        expired=now >= expires_at,
        retry=retry or Retry(),
        chance=0.5,
    )


def test_schedule_is_data() -> None:
    assert Schedule.parse("1m, 5m*2, 1h*3").steps == (MINUTE, 5 * MINUTE, 5 * MINUTE, HOUR, HOUR, HOUR)
    assert Schedule.parse("1m, 4h…").endless and Schedule.parse("1m, 4h...").endless
    assert Schedule.parse("1m").wait(1, 0.5) == MINUTE
    assert Schedule.parse("1m").wait(2, 0.5) is None
    assert Schedule.parse("1m, 2m…").wait(99, 0.5) == 2 * MINUTE


@pytest.mark.parametrize("text", ["", "1", "5x", "1m*0", "-1m", "1m,,2m", "1m*9999"])
def test_a_bad_schedule_is_said(text: str) -> None:
    with pytest.raises(ValueError):
        Schedule.parse(text)


def test_4xx_waits_longer_each_time() -> None:
    waits = [decide("deferred", attempts).due for attempts in range(1, 9)]  # type: ignore[attr-defined]
    assert waits == sorted(waits) and len(set(waits)) == 8


def test_attempts_and_age_are_used_up() -> None:
    short = Retry(schedule=Schedule.parse("1m*2"))
    assert decide("deferred", 3, short).event == "expired"  # type: ignore[attr-defined]
    assert decide("deferred", 1, now=100, expires_at=100).event == "expired"  # type: ignore[attr-defined]


def test_soft_bounce_and_uncertain() -> None:
    assert decide("refused").event == "refused"  # type: ignore[attr-defined]
    assert decide("refused", retry=Retry(soft_bounce=True)).event == "deferred"  # type: ignore[attr-defined]
    assert decide("unknown").event == "unknown"  # type: ignore[attr-defined]
    assert decide("unknown", 99, Retry(schedule=Schedule.parse("1m"))).event == "unknown"  # type: ignore[attr-defined]


@given(st.integers(1, 200), st.tuples(*[st.integers(0, 300)] * 3), st.integers(0, 100))
def test_shares_take_all_they_may_and_no_more(n: int, waiting: tuple[int, int, int], turn: int) -> None:
    took = shares(n, waiting, turn)
    assert sum(took) == min(n, sum(waiting))
    assert all(0 <= t <= w for t, w in zip(took, waiting))
    if n >= 16 and waiting[2]:
        assert took[2] >= min(waiting[2], n // 16)


def test_leases_of_one_starve_nobody() -> None:
    took = [shares(1, (100, 100, 100), turn) for turn in range(16)]
    assert [sum(column) for column in zip(*took)] == [13, 2, 1]


def test_breaker_opens_probes_and_closes() -> None:
    pace = Pace()
    assert [pace.fault(10.0, "refused") for _ in range(3)] == [False, False, True]
    assert not pace.has_room(10.5) and pace.has_room(11.0)
    pace.opening()
    assert not pace.may_open(0, 20.0)
    assert not pace.fault(11.0, "refused") and pace.pause == 2.0
    pace.opening()
    pace.success()
    assert pace.has_room(11.0) and not pace.tripped


def test_rate_limit_counts_messages() -> None:
    pace = Pace(rate=10)
    waits = [pace.take(100.0) for _ in range(3)]
    assert waits == [0.0, pytest.approx(0.1), pytest.approx(0.2)]


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
