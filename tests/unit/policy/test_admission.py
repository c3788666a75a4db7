"""How many messages a client may hand in."""

from __future__ import annotations

from outmail.policy.admission import Meter


def test_a_client_has_so_many_a_minute_and_they_come_back_with_the_time() -> None:
    meter = Meter(rate=3)
    assert [meter.take("a", 100.0) for _ in range(5)] == [True, True, True, False, False]
    assert meter.take("b", 100.0), "another's are its own"
    assert not meter.take("a", 119.0) and meter.take("a", 140.0) and not meter.take("a", 140.0)
    assert [meter.take("a", 10_000.0) for _ in range(4)] == [True] * 3 + [False], "they do not pile up"


def test_without_a_rate_nobody_is_counted() -> None:
    meter = Meter()
    assert all(meter.take("a", 1.0) for _ in range(100)) and not meter.buckets


def test_clients_that_are_gone_are_forgotten() -> None:
    meter = Meter(rate=3)
    for n in range(10_001):
        meter.take(f"c{n}", 100.0)
    meter.take("new", 161.0)
    assert list(meter.buckets) == ["new"]
