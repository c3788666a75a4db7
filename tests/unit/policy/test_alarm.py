"""Limits of a check for monitoring."""

import pytest

from outmail.policy.alarm import Limit, broken


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("500", Limit(count=500)),
        ("0", Limit(count=0)),
        ("2h", Limit(age=7_200_000)),
        ("90s", Limit(age=90_000)),
    ],
)
def test_limits_as_they_are_typed(text: str, limit: Limit) -> None:
    assert Limit.parse(text) == limit


@pytest.mark.parametrize("text", ["", "soon", "-1", "2.5", "1" * 19, "2 hours"])
def test_what_is_no_limit_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="neither a number"):
        Limit.parse(text)


def test_the_first_broken_limit_is_told() -> None:
    limits = [Limit(count=5), Limit(age=60_000)]
    assert broken(limits, 5, 60_000) == "" == broken([], 10**6, 10**9)
    assert "6 recipients" in broken(limits, 6, 10**9)
    assert "2m, longer than 1m" in broken(limits, 0, 120_000)
