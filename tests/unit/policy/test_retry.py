"""When to try again, and when to give up: numbers in, a verdict out."""

import pytest

from outmail.clock import HOUR, MINUTE
from outmail.model import Outcome, Reply
from outmail.policy.retry import Retry, Schedule, verdict


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
