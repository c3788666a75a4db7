"""What is removed of finished mail, on every kind of store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from outmail.engine import Engine, Settings
from outmail.model import Filter
from outmail.policy.age import Sign
from outmail.policy.route import Routes
from outmail.retention import Retention
from outmail.testing.clock import FakeClock
from outmail.testing.conformance import NOW, add, lease, message, settle
from tests.store.helpers import KINDS, opened

AGES = {"bodies": 1_000, "transcripts": 2_000, "records": 10**9}


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    with opened(request.param, tmp_path) as made:
        yield made


def delivered(store: Any, count: int, now: int = NOW) -> list[Any]:
    made = [message(now=now) for _ in range(count)]
    add(store, *made)
    owner = store.register(NOW)
    for delivery in lease(store, owner, count, now=now):
        settle(store, owner, delivery, "delivered", "delivered", now=now)
    owner.close()
    return made


def bodies(store: Any) -> int:
    found = [store.read(store.verbs.content(store.read(store.verbs.seq_of(status.id)))) for status in store.read(store.verbs.find(Filter(), NOW))[0]]
    return sum(body is not None for body in found)


def through(retention: Retention, now: int) -> None:
    for _ in range(1000):
        if not retention.turn(now, 1):
            return
    raise AssertionError("retention does not end")


def test_what_waits_or_is_young_keeps_its_body_and_is_looked_at_again(store: Any) -> None:
    waiting = message(expires=10**11)
    add(store, waiting)
    store.run(store.verbs.change(Filter(), "hold", NOW))
    delivered(store, 20)
    young = delivered(store, 5, NOW + 5_000)
    retention = Retention(store, AGES)
    through(retention, NOW + 3_000)
    assert bodies(store) == 1 + len(young)
    through(retention, NOW + 7_000)
    assert bodies(store) == 1
    store.run(store.verbs.change(Filter(), "cancel", NOW + 7_000))
    through(retention, NOW + 7_500)
    assert bodies(store) == 1
    through(retention, NOW + 9_000)
    assert bodies(store) == 0 and store.check() == []


def test_where_everything_is_done_is_not_walked_over_again(store: Any) -> None:
    delivered(store, 700)
    young = delivered(store, 5, NOW + 5_000)
    retention = Retention(store, AGES)
    through(retention, NOW + 3_000)
    seen: list[tuple[str, int]] = []
    honest = store.verbs.purge

    def watched(kind: str, before: int, after: int) -> Any:
        seen.append((kind, after))
        return honest(kind, before, after)

    words = {name: getattr(store.verbs, name) for name in ("note_list", "note_put")}
    there = SimpleNamespace(run=store.run, read=store.read, drop_history=store.drop_history, kept=store.kept, give_space_back=store.give_space_back, sweep_uploads=store.sweep_uploads,
                            verbs=SimpleNamespace(purge=watched, **words))  # fmt: skip
    through(Retention(there, AGES), NOW + 3_000)  # type: ignore[arg-type]  # another engine
    assert [kind for kind, _ in seen] == ["bodies", "transcripts", "records"]
    assert all(after == store.read(store.verbs.seq_of(young[0].id)) - 1 for kind, after in seen if kind != "records")


def test_a_turn_ends_in_its_time_and_the_next_one_goes_on(store: Any) -> None:
    delivered(store, 1200)
    retention, turns = Retention(store, {"bodies": 1_000, "transcripts": 10**9, "records": 10**9}), 0
    while retention.turn(NOW + 3_000, 1e-9):
        turns += 1
        assert turns < 20
    assert turns >= 2 and bodies(store) == 0


def test_only_the_eldest_engine_removes(store: Any) -> None:
    delivered(store, 3)
    elder = store.register(NOW)
    engine = Engine(store, Routes({}), lambda relay: pytest.fail(relay.name), Settings(retention=AGES), FakeClock(NOW + 3_000))
    assert engine._retention is not None
    engine._owner = store.register(NOW)
    engine._seen = Sign(NOW + 3_000, NOW + 3_000, engine.clock.elapsed(), 0, NOW + 3_000)
    assert engine._retain(engine._retention) is False and bodies(store) == 3
    elder.close()
    assert engine._retain(engine._retention) is False and bodies(store) == 0
    engine._owner.close()
