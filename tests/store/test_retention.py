"""What is removed of finished mail, on every kind of store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from outmail.accept.acceptance import Door, Draft, Terms
from outmail.engine.maintenance import Maintenance
from outmail.engine.retention import Retention
from outmail.engine.settings import EngineSettings
from outmail.model import Delivery, Filter, Outcome, Reply, Settled, Verdict, is_id
from outmail.policy.age import Sign
from outmail.policy.route import Routes
from outmail.testing.clock import FakeClock
from outmail.testing.conformance import NOW, add, lease, message
from tests.store.helpers import KINDS, opened
from tests.waiting import until

AGES = {"bodies": 1_000, "transcripts": 2_000, "records": 10**9}


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    with opened(request.param, tmp_path) as made:
        yield made


def delivered(store: Any, count: int, now: int = NOW) -> list[Any]:
    made = [message(now=now) for _ in range(count)]
    add(store, *made)
    owner = store.register(NOW)
    ends = [_end(delivery, now) for delivery in lease(store, owner, count, now=now)]
    for first in range(0, count, 100):  # an engine settles many at once, too
        store.run(store.verbs.settle(owner.id, ends[first : first + 100], hold_unknown=False))
    owner.close()
    return made


def _end(delivery: Delivery, now: int) -> Settled:
    for recipient in delivery.recipients:
        recipient.outcome = Outcome("delivered", "recipient", "dot", Reply(250, "text"))
    ends = tuple((recipient, Verdict("delivered", now, "why")) for recipient in delivery.recipients)
    return Settled(delivery, ends, now, 5, True)


def bodies(store: Any) -> int:
    found = [
        store.read(store.verbs.content(store.read(store.verbs.seq_of(status.id))))
        for status in store.read(store.verbs.find(Filter(), NOW))[0]
    ]
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

    words = {name: getattr(store.verbs, name) for name in ("note_list", "note_put", "forget_copies")}
    there = SimpleNamespace(
        run=store.run,
        read=store.read,
        drop_history=store.drop_history,
        kept=store.kept,
        give_space_back=store.give_space_back,
        sweep_uploads=store.sweep_uploads,
        verbs=SimpleNamespace(purge=watched, **words),
    )
    through(Retention(there, AGES), NOW + 3_000)  # another engine
    assert [kind for kind, _ in seen] == ["bodies", "transcripts", "records"]
    assert all(
        after == store.read(store.verbs.seq_of(young[0].id)) - 1 for kind, after in seen if kind != "records"
    )


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
    clock, engine = FakeClock(NOW + 3_000), SimpleNamespace(owner=store.register(NOW))
    words: Any = (engine, store, None, None, clock, EngineSettings(retention=AGES))
    maintenance = Maintenance(*words)
    assert maintenance._retention is not None
    maintenance.ages._seen = Sign(NOW + 3_000, NOW + 3_000, clock.elapsed(), 0, NOW + 3_000)
    retention = maintenance._retention
    assert maintenance._retain(retention) is False and bodies(store) == 3
    elder.close()
    until(lambda: maintenance._retain(retention) is False)  # on a slow machine in several turns
    assert bodies(store) == 0
    engine.owner.close()


def forgotten(store: Any) -> None:
    """All records are purged."""
    store.run(store.verbs.change(Filter(), "cancel", NOW))
    at, more = 0, True
    while more:
        at, _, more = store.run(store.verbs.purge("records", NOW + 10, at))


def without_recipients(store: Any) -> None:
    """What an earlier version left of the newest message, and what a dropped period leaves until it is
    swept.
    """

    def forget() -> Any:
        yield "DELETE FROM recipient", ()

    store.run(forget())


@pytest.mark.parametrize("gone", [forgotten, without_recipients])
@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("size", [10, 1_500_000])
def test_a_key_is_new_again_when_its_record_is_gone(store: Any, gone: Any, count: int, size: int) -> None:
    """Also where the row stays that keeps the newest number; ``count``: few and many are added in two
    ways.
    """
    door = Door(store, Terms(Routes({}, ())), FakeClock(NOW))
    old = door.accept(
        [Draft(b"Subject: old\r\n\r\n" + b"o\r\n" * (size // 3), "me@x.test", ["a@x.test"], key="k")]
    )[0]
    gone(store)
    drafts = [Draft(b"Subject: new\r\n\r\n" + b"n\r\n" * (size // 3), "me@x.test", ["b@x.test"], key="k")]
    new = door.accept(
        drafts + [Draft(b"Subject: x\r\n\r\n", "me@x.test", ["c@x.test"]) for _ in range(count)]
    )[0]
    assert new.id == old.id and not new.duplicate and new.durable
    found = store.read(store.verbs.statuses([store.read(store.verbs.seq_of(new.id))]))[0]
    assert found.subject == "new" and found.recipients[0].address == "b@x.test"
    assert store.read(store.verbs.content(store.read(store.verbs.seq_of(new.id)))).endswith(b"n\r\n")
    assert store.check() == []
    assert door.accept(drafts)[0].duplicate


def test_a_number_is_never_given_again_and_nothing_else_is_kept_of_it(store: Any) -> None:
    numbers = []
    for _ in range(3):
        made = message(key="k")
        add(store, made)
        numbers.append(store.read(store.verbs.seq_of(made.id)))
        forgotten(store)
    assert numbers == sorted(set(numbers))

    def rows() -> Any:
        return (yield "SELECT id, key, upload, sender, subject FROM message", ())

    left = store.read(rows())
    assert len(left) <= 1 and all(
        not is_id(row[0]) and row[1:3] == (None, None) and row[3:] == ("", "") for row in map(tuple, left)
    )
    add(store, message())
    assert store.check() == []
