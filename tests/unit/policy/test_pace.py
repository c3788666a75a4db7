"""Shares of a lease, the breaker and the rate of one next hop."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outmail.policy.pace import Pace, shares


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
