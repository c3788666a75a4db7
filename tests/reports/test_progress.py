"""Milestones, estimates and failures in a row: pure decisions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outmail.policy.incident import Incident, Rule, failed, succeeded
from outmail.policy.progress import (
    LOOKS,
    UNKNOWN,
    Estimate,
    parse_every,
    percent,
    rate_in_words,
    remaining_in_words,
    span_in_words,
    sparkline,
    took,
)


def test_a_milestone_is_reached_once_and_jumps_count_once() -> None:
    marks = parse_every(100, None)
    assert marks is not None
    assert [marks.reached(n, 0) for n in (99, 100, 100, 101, 210, 299, 300)] == [
        False,
        True,
        False,
        False,
        True,
        False,
        True,
    ]


def test_percent_time_list_and_function() -> None:
    percent = parse_every("10%", 48_000)
    assert percent is not None and percent.next_count() == 4800
    by_time = parse_every("2h", None)
    assert by_time is not None and [by_time.reached(0, t) for t in (7199, 7200, 7201, 14_400)] == [
        False,
        True,
        False,
        True,
    ]
    some = parse_every([5, 3, 50], None)
    assert some is not None and [some.reached(n, 0) for n in (3, 4, 5, 6, 49, 51, 99)] == [
        True,
        False,
        True,
        False,
        False,
        True,
        False,
    ]
    odd = parse_every(lambda n: n % 7 == 0, None)
    assert odd is not None and [odd.reached(n, 0) for n in (6, 7, 7, 8, 14)] == [
        False,
        True,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("every", [True, -1, "soon", "0%", "101%", "x%", [1, "a"], 1.5])
def test_what_cannot_be_a_milestone_is_refused(every: object) -> None:
    with pytest.raises(ValueError):
        parse_every(every, 100)  # type: ignore[arg-type]


def test_percent_needs_a_total() -> None:
    with pytest.raises(ValueError, match="needs total"):
        parse_every("10%", None)


@given(st.lists(st.integers(0, 1000), min_size=1), st.integers(1, 200))
def test_each_count_milestone_is_told_at_most_once(steps: list[int], every: int) -> None:
    marks = parse_every(every, None)
    assert marks is not None
    done = hits = 0
    for step in steps:
        done += step
        hits += marks.reached(done, 0)
    assert hits <= done // every


def test_remaining_time_is_unknown_in_words_and_then_a_range() -> None:
    estimate = Estimate(1000, 0.0)
    assert remaining_in_words(estimate.remaining(0, 50)) == UNKNOWN
    assert remaining_in_words(estimate.remaining(5, 5)) == UNKNOWN
    for second in range(1, 61):
        estimate.sample(second * (2 if second <= 30 else 1), float(second))
    low, high = estimate.remaining(60, 60.0) or (0, 0)
    assert 0 < low <= high and "min" in remaining_in_words((low, high))


def test_a_resumed_job_uses_this_runs_rate() -> None:
    estimate = Estimate(1000, 0.0, initial=900)
    estimate.sample(950, 50.0)
    assert estimate.mean(950, 50.0) == 1.0 and estimate.remaining(950, 50.0) == (50.0, 50.0)


def test_words() -> None:
    assert [span_in_words(s) for s in (5, 70, 3660, 7200, 200_000)] == [
        "under a minute",
        "1 min",
        "1 h 01 min",
        "2 h",
        "2 days 7 h",
    ]
    assert [took(s) for s in (0.01, 0.42, 9.97, 42, 59.7, 100, 120, 599.6, 601, 8040)] == [
        "under 0.1 s",
        "0.4 s",
        "10 s",
        "42 s",
        "1 min",
        "1 min 40 s",
        "2 min",
        "10 min",
        "10 min",
        "2 h 14 min",
    ]
    assert (
        sparkline([0, 1, 2, 4]) == "▁▂▄█"
        and len(sparkline(range(1000), 40)) == 40
        and sparkline([]) == ""
        and sparkline([0, 0]) == "▁▁"
    )


def say(rule: Rule, story: str, step: int = 60_000) -> list[str]:
    """``story`` of f(ailure) and o(k) → what is said at each."""
    standing, now, said = Incident(), 0, list[str]()
    for letter in story:
        now += step
        standing, word = failed(standing, rule, now) if letter == "f" else succeeded(standing, rule, now)
        said.append(word or "-")
    return said


def test_failures_in_a_row() -> None:
    assert say(Rule(3), "ffffo") == ["-", "-", "alert", "-", "recovered"]
    assert say(Rule(3), "ffoffo") == ["-"] * 6
    assert say(Rule(1, remind=120_000), "fffffoo") == [
        "alert",
        "-",
        "remind",
        "-",
        "remind",
        "recovered",
        "-",
    ]
    assert say(Rule(1, recovered=False), "fof") == ["alert", "-", "alert"]


@given(st.text("fo"), st.integers(1, 5))
def test_one_alert_an_incident_and_one_recovery_an_alert(story: str, after: int) -> None:
    said = [word for word in say(Rule(after), story) if word != "-"]
    assert all(word == ("alert", "recovered")[i % 2] for i, word in enumerate(said))


def test_muting_silences_and_does_not_forget() -> None:
    standing, word = failed(Incident(muted_until=1000), Rule(), 10)
    assert word == "" and standing.failures == 1
    standing, word = failed(standing, Rule(), 2000)
    assert word == "alert" and standing.failures == 2
    with pytest.raises(ValueError):
        Rule(0)


def looks(rate: float, seconds: int, total: int | None = None) -> Estimate:
    """A run at a constant rate, looked at once a second, and once more right after."""
    estimate = Estimate(total, 0.0)
    for second in range(1, seconds + 1):
        estimate.sample(int(rate * second), second + 0.003 * (second % 3))
    estimate.sample(int(rate * seconds) + 1, seconds + 0.02)
    return estimate


@pytest.mark.parametrize(("rate", "seconds"), [(10, 6), (10, 600), (0.5, 3000), (1000, 12), (7, 86_400)])
def test_a_constant_rate_is_told_as_it_is(rate: float, seconds: int) -> None:
    """Also by the last look, which may come a moment after the one before."""
    estimate, done, now = looks(rate, seconds), int(rate * seconds) + 1, seconds + 0.02
    told = [estimate.recent(done, now), estimate.mean(done, now), *estimate.course(done, now)]
    assert all(one == pytest.approx(rate, rel=0.12) for one in told), told
    assert len(estimate._at) <= LOOKS, "memory stays flat"


def test_a_change_of_the_rate_is_seen() -> None:
    estimate = Estimate(None, 0.0)
    for second in range(1, 601):
        estimate.sample(second * 10 if second <= 300 else 3000 + (second - 300), second)
    course = estimate.course(3300, 600.0)
    assert course[0] == pytest.approx(10, rel=0.1) and course[-1] == pytest.approx(1, rel=0.3)
    assert estimate.recent(3300, 600.0) == pytest.approx(1, rel=0.05)


def test_too_little_makes_no_rate() -> None:
    short = looks(10, 1)
    assert short.course(10, 1.0) == [] and short.recent(10, 1.0) == 0.0
    assert rate_in_words(0.0) == "" and rate_in_words(float("inf")) == ""
    assert [rate_in_words(r) for r in (1234, 12.34, 0.5, 0.001)] == [
        "1,234/s",
        "12.3/s",
        "30.0 a minute",
        "3.6 an hour",
    ]


def test_all_of_it_is_said_when_it_is_reached() -> None:
    assert [percent(n, 1000) for n in (0, 9, 10, 999, 1000, 1001)] == [0, 0, 1, 99, 100, 100]
    assert percent(float("nan"), 10) is None and percent(5, None) is None and percent(5, 0) is None
