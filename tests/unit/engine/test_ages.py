"""How old mail is, with a store and a clock that is set by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outmail.clock import DAY, HOUR
from outmail.engine.ages import GRACE, Ages
from outmail.store.sqlite.store import SqliteStore
from outmail.testing import FakeClock
from tests.unit.engine.fakes import NOW, delivery

LIFE = 5 * DAY


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    made = SqliteStore(str(tmp_path / "q.db"))
    yield made
    made.close()


def test_before_the_first_sign_nothing_is_too_old(store: Any) -> None:
    ages = Ages(store, FakeClock(NOW + 10 * DAY), LIFE)
    assert ages.now() is None and not ages.too_old(delivery(), ages.now())


def test_time_that_passes_makes_old_and_a_clock_that_is_set_does_not(store: Any) -> None:
    clock = FakeClock(NOW)
    ages = Ages(store, clock, LIFE)
    ages.begin()
    one = delivery(0, life=2 * HOUR)
    clock.jump("100d")
    ages.sweep()
    assert not ages.too_old(one, ages.now())
    clock.advance("1h")
    assert not ages.too_old(one, ages.now())
    clock.advance("2h")
    assert ages.too_old(one, ages.now())


def test_what_is_younger_than_its_dates_say_gets_the_end_of_its_true_life(store: Any) -> None:
    """It came after the last sign, so it cannot be older than that, whatever clock dated it."""
    clock = FakeClock(NOW)
    ages = Ages(store, clock, LIFE)
    ages.begin()
    clock.advance("1m")
    ages.sweep()
    clock.advance("1m")
    one = delivery(9, life=2 * HOUR)
    one.expires_at = NOW - DAY
    assert not ages.too_old(one, ages.now())
    assert one.expires_at == clock.now() + 2 * HOUR - 2 * 60_000


def test_a_clock_that_was_set_is_named_once(store: Any, caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock(NOW)
    ages = Ages(store, clock, LIFE)
    ages.begin()
    clock.jump("2h", back=True)
    ages.sweep()
    ages.sweep()
    (record,) = caplog.records
    assert "the clock of this machine was set back by 2h" in record.getMessage()


def test_what_became_too_old_without_an_engine_is_spared_for_an_hour(store: Any) -> None:
    clock = FakeClock(NOW)
    Ages(store, clock, LIFE).begin()
    clock.advance("10d")
    ages = Ages(store, clock, LIFE)
    ages.begin()
    spared: list[Any] = []

    class Verbs:
        def expire(self, now: int, between: Any = None, *words: Any, **named: Any) -> None:
            spared.append(between)

    ages._store = type("Store", (), {"verbs": Verbs()})()
    ages.expiry()
    clock.advance(f"{GRACE}ms")
    ages.expiry()
    assert spared == [(NOW, NOW + 10 * DAY), (0, 0)]
