"""Which fresh messages an engine takes in the moment they are accepted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from outmail.engine import handover as module
from outmail.engine.handover import HandOver, made
from outmail.engine.nexthop import WINDOW_BYTES
from outmail.model import Delivery
from outmail.policy.pace import Pace
from outmail.testing import FakeClock
from outmail.testing.conformance import NOW, message

LEASE = (7, 3)


class Scene:
    def __init__(self) -> None:
        self.pace = Pace()
        self.lease: tuple[int, int] | None = LEASE
        self.given: list[Delivery] = []
        self.hop = SimpleNamespace(pace=self.pace, out=0)
        completer: Any = SimpleNamespace(bytes=0, lost=[])
        self.completer = completer
        self.due: dict[str, int] = {}
        engine: Any = SimpleNamespace(
            due=self.due, new_lease=lambda: self.lease, hop_for=self.hop_for, distribute=self.distribute
        )
        self.handover = HandOver(engine, completer, FakeClock(NOW))

    def hop_for(self, destination: str) -> Any:
        return self.hop if destination == "default" else None

    def distribute(self, deliveries: Any, *, fresh: bool) -> None:
        assert fresh
        self.given += deliveries


def test_what_is_due_now_and_has_room_is_taken_under_one_lease() -> None:
    scene, messages = Scene(), [message(), message()]
    assert scene.handover.offer(messages) == {m.id: LEASE for m in messages}


def test_an_engine_that_may_take_nothing_takes_nothing() -> None:
    scene = Scene()
    scene.lease = None
    assert scene.handover.offer([message()]) == {}


@pytest.mark.parametrize("words", [{"due": NOW + 1}, {"key": "k"}, {"destination": "nowhere"}])
def test_what_is_not_due_has_a_key_or_no_way_goes_through_the_store(words: Any) -> None:
    scene, other = Scene(), message()
    assert scene.handover.offer([message(**words), other]) == {other.id: LEASE}


def test_nothing_overtakes_older_mail_that_waits_in_the_store() -> None:
    scene = Scene()
    scene.due["default"] = NOW
    assert scene.handover.offer([message()]) == {}
    scene.due["default"] = NOW + 1
    assert len(scene.handover.offer([message()])) == 1


def test_the_room_of_a_next_hop_is_given_away_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 5)
    scene = Scene()
    scene.hop.out = 1
    three, two, one = message("a@x.test", "b@x.test", "c@x.test"), message("d@x.test", "e@x.test"), message()
    assert set(scene.handover.offer([three, two, one])) == {three.id, one.id}


def test_nothing_is_handed_over_to_a_next_hop_that_is_paused_or_limited() -> None:
    scene = Scene()
    scene.pace.rate = 1.0
    assert scene.handover.offer([message()]) == {}
    scene.pace.rate = 0.0
    scene.pace.fault(0.0, "no route", fatal=True)
    assert scene.handover.offer([message()]) == {}


def test_no_more_content_is_taken_than_the_engine_may_hold() -> None:
    scene = Scene()
    small = message()
    scene.completer.bytes = WINDOW_BYTES - len(small.content)
    assert scene.handover.offer([small, message()]) == {small.id: LEASE}


def test_only_what_was_offered_and_stored_as_new_is_delivered() -> None:
    scene = Scene()
    taken, duplicate, other = message(), message(), message()
    added = [(m.id, "", NOW, m is duplicate, seq) for seq, m in enumerate((taken, duplicate, other), 1)]
    scene.handover.taken([taken, duplicate, other], {taken.id: LEASE, duplicate.id: LEASE}, added)
    assert [(d.id, d.seq, d.owner, d.lease) for d in scene.given] == [(taken.id, 1, *LEASE)]


def test_leases_of_a_commit_that_failed_are_looked_for() -> None:
    scene, messages = Scene(), [message(), message()]
    scene.handover.taken(messages, scene.handover.offer(messages), None)
    assert scene.completer.lost == [LEASE] and not scene.given


def test_a_message_in_memory_is_cut_as_a_lease_would_cut_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECIPIENTS", 2)
    deliveries = made(message("a@x.test", "b@x.test", "c@x.test", expires=9), 4, LEASE)
    assert [[r.n for r in d.recipients] for d in deliveries] == [[1, 2], [3]]
    assert {(d.seq, d.life, d.expires_at) for d in deliveries} == {(4, 9, NOW + 9)}
