"""Ages, as numbers: no clock is read here."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from outmail.policy.age import JUMP, Sign, following, latest, was_set

HOUR = 3_600_000
DAY = 24 * HOUR
LIFE = 5 * DAY
START = 1_800_000_000_000


def after(before: Sign, seconds: int, set_by: int = 0, *, same: bool = True) -> Sign:
    at = before.at + seconds * 1000 + set_by
    return following(before, same, at, at, before.up + seconds, before.newest, LIFE)


FIRST = following(None, False, START, START, 100.0, 7, LIFE)


def test_time_that_passes_ages_and_small_corrections_are_followed() -> None:
    sign = FIRST
    for _ in range(100):
        sign = after(sign, 30, 200)
    assert sign.age == sign.at == START + 100 * 30_200


def test_a_clock_set_ahead_ages_nothing_until_what_was_dated_before_is_over() -> None:
    sign = after(FIRST, 30, 100 * DAY)
    assert sign.age == START + 30_000
    sign = after(sign, 3600)
    assert sign.age == START + 30_000 + HOUR and sign.at - sign.age == 100 * DAY
    assert sign.time_of(7) == sign.age and sign.time_of(8) == sign.at  # dated by the clock as it is now
    sign = after(sign, 5 * 86_400)
    assert sign.age == sign.at


def test_a_clock_set_back_makes_new_mail_no_older() -> None:
    sign = after(FIRST, 30, -2 * HOUR)
    assert sign.age == sign.at
    ahead_and_back = after(after(FIRST, 30, 100 * DAY), 30, -100 * DAY)
    assert ahead_and_back.age == ahead_and_back.at


def test_between_two_boots_the_clock_is_believed_and_what_it_was_set_before_is_not_forgotten() -> None:
    assert after(FIRST, 86_400, same=False).age == START + DAY
    sign = after(after(FIRST, 30, 100 * DAY), 3600, same=False)
    assert sign.at - sign.age == 100 * DAY


def test_what_was_set_is_told_once() -> None:
    sign = after(FIRST, 30, 6 * DAY)
    assert was_set(FIRST, True, sign) == (6 * DAY, 6 * DAY) and was_set(sign, True, after(sign, 30)) == (0, 0)
    assert was_set(None, True, sign) == was_set(FIRST, False, sign) == (0, 0)


def test_only_a_sign_is_a_sign() -> None:
    from dataclasses import asdict

    assert Sign.of(asdict(FIRST)) == FIRST
    assert Sign.of({**asdict(FIRST), "of a later version": 1}) == FIRST
    odds: tuple[Any, ...] = (
        None,
        3,
        [],
        {},
        {"at": 1, "up": 2.0, "newest": 3},
        *({**asdict(FIRST), "up": up} for up in (None, "1", 1e300, float("nan"), -(10**30))),
    )
    for odd in odds:
        assert Sign.of(odd) is None


def test_a_sign_from_the_future_says_nothing() -> None:
    ahead = after(FIRST, 30, 365 * DAY)
    back = following(ahead, False, START + HOUR, START + HOUR, 5.0, 9, LIFE)
    assert (back.age, back.until) == (START + HOUR, 0)
    assert latest([FIRST, ahead], START + HOUR) == FIRST and latest([ahead], START) is None


steps = st.lists(st.tuples(st.integers(0, 2 * 86_400), st.integers(-400 * DAY, 400 * DAY)), max_size=30)


@given(steps)
def test_nothing_fails_before_its_life_has_passed_and_all_of_it_in_the_end(
    walk: list[tuple[int, int]],
) -> None:
    """Mail accepted at any moment, by the clock as it was: its end comes after its life, and no later than
    after two of them.
    """
    sign, passed = FIRST, 0
    # when it was accepted, its end; accepted right behind a sign, so its number is that sign's
    mail: list[tuple[int, int]] = []
    for seconds, set_by in walk:
        mail.append((passed, sign.at + LIFE))
        sign = after(sign, seconds, set_by)
        passed += seconds * 1000
        for accepted, ends in mail:
            assert passed - accepted >= LIFE - JUMP * len(walk) or ends > sign.age
    for _ in range(12):
        mail = [(accepted, min(ends, sign.at + LIFE)) for accepted, ends in mail]  # `verbs.shorten`
        sign = after(sign, 86_400)
    assert all(ends <= sign.age for _, ends in mail)
