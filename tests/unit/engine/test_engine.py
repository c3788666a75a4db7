"""Leasing without a store: who may have how much, and what becomes of what was leased."""

from __future__ import annotations

import asyncio
import hashlib
from types import SimpleNamespace
from typing import Any

import pytest

from outmail.engine.engine import AGAIN, Engine
from outmail.engine.settings import EngineSettings
from outmail.model import Delivery
from outmail.policy.route import Routes
from outmail.store import StoreError
from outmail.testing import FakeClock
from tests.unit.engine.fakes import NOW, Calls, FakeLoop, Lease, delivery


class FakeHop:
    def __init__(self, room: int = 100) -> None:
        self.left = room
        self.queue: list[Delivery] = []
        self.served = 0

    def room(self) -> int:
        return self.left

    def push(self, delivery: Delivery) -> None:
        self.queue.append(delivery)

    def serve(self) -> None:
        self.served += 1


class Scene:
    def __init__(self, settings: EngineSettings | None = None) -> None:
        words: Any = (SimpleNamespace(), Routes({}), None, settings, FakeClock(NOW))
        engine: Any = Engine(*words)
        self.engine = engine
        self.loop = self.engine.loop = FakeLoop()
        self.hops: dict[str, FakeHop] = {}
        self.completer: Any = Calls(out=0, bytes=0, suspect=None, lost=[], safe=lambda hop, delivery: True)
        self.too_old: set[int] = set()
        ages = SimpleNamespace(now=lambda: None, too_old=lambda one, now: one.seq in self.too_old)
        self.engine.completer, self.engine.maintenance = self.completer, SimpleNamespace(ages=ages)
        self.engine.owner = SimpleNamespace(**vars(Lease()), stands=lambda: True)
        self.engine.hop_for = self.hops.get
        self.engine._awake = SimpleNamespace(set=lambda: None)


def leased(number: int = 1, **words: Any) -> Delivery:
    made = delivery(number, **words)
    made.sha256 = hashlib.sha256(made.content).digest()
    return made


def test_destinations_of_one_next_hop_share_its_room() -> None:
    scene = Scene()
    scene.hops["a"] = scene.hops["b"] = FakeHop(100)
    scene.hops["c"] = FakeHop(30)
    scene.engine.due = {"a": NOW, "b": NOW - 1, "c": NOW, "later": NOW + 1, "without room": NOW}
    assert scene.engine._room() == {"a": 50, "b": 50, "c": 30}


def test_too_little_for_all_goes_round() -> None:
    scene = Scene()
    scene.hops["a"] = scene.hops["b"] = scene.hops["c"] = FakeHop(1)
    scene.engine.due = dict.fromkeys("abc", NOW)
    turns = []
    for scene.engine._number in range(3):
        turns += scene.engine._room()
    assert turns == ["a", "b", "c"]


def test_more_than_the_window_is_never_leased() -> None:
    scene = Scene()
    scene.hops["a"] = FakeHop(100)
    scene.engine.due = {"a": NOW}
    scene.completer.out = 20_000 - 7
    assert scene.engine._room() == {"a": 7}


def test_what_is_leased_goes_to_its_next_hop() -> None:
    scene, one = Scene(), leased()
    hop = scene.hops["default"] = FakeHop()
    scene.engine.distribute([one])
    assert hop.queue == [one] and hop.served == 1 and scene.completer.heard == ["add"]


def test_content_with_another_hash_is_quarantined_and_what_has_no_next_hop_goes_back() -> None:
    scene = Scene()
    scene.hops["default"] = FakeHop()
    bad, homeless = delivery(), leased(2)
    homeless.destination = "elsewhere"
    scene.engine.distribute([bad, homeless])
    assert scene.completer.heard == ["quarantine", "give_back_untaken"] and not scene.hops["default"].queue


def test_what_an_earlier_registration_leased_is_looked_for_and_not_sent() -> None:
    scene = Scene()
    hop = scene.hops["default"] = FakeHop()
    scene.engine.distribute([leased(owner=6)])
    assert scene.completer.lost == [(6, 1)] and not hop.queue


@pytest.mark.parametrize("life, sent", [(3_600_000, False), (5 * 86_400_000, True)])
def test_too_old_mail_gets_no_attempt_if_its_sender_set_the_end(life: int, sent: bool) -> None:
    scene, one = Scene(), leased(life=life)
    hop = scene.hops["default"] = FakeHop()
    scene.too_old = {1}
    scene.engine.distribute([one])
    assert (hop.queue == [one], "expired" not in scene.completer.heard) == (sent, sent)


def test_no_lease_is_made_by_an_engine_that_stops_or_does_not_stand() -> None:
    scene = Scene()
    assert [scene.engine.new_lease() for _ in range(2)] == [(7, 1), (7, 2)]
    scene.engine.owner.stands = lambda: False
    assert scene.engine.new_lease() is None
    scene.engine.owner.stands = lambda: True
    scene.engine.stopping = True
    assert scene.engine.new_lease() is None


def test_a_lease_that_finds_less_than_there_was_room_for_asks_again_what_is_due() -> None:
    scene = Scene()
    scene.hops["default"] = FakeHop()
    scene.engine._looked = scene.engine._wakes
    scene.engine._leased({"default": 1}, (7, 1), [leased()])
    assert not scene.engine.hungry
    scene.engine._leased({"default": 5}, (7, 2), [leased()])
    assert scene.engine.hungry


def test_the_same_trouble_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    for _ in range(3):
        scene.engine.complain("a lease", StoreError("full", "the disk is full"))
    assert len(caplog.records) == 1
    scene.loop.advance(AGAIN)
    scene.engine.complain("a lease", StoreError("full", "the disk is full"))
    assert len(caplog.records) == 2


def test_after_trouble_the_store_is_left_alone_for_a_second() -> None:
    scene = Scene()
    scene.engine._ask_lease = lambda: None
    scene.engine.wake = lambda: None
    scene.engine.failed("a lease", StoreError("full", "the disk is full"))
    scene.engine._contribute()
    assert not scene.completer.heard
    scene.loop.advance(1.0)
    scene.engine._contribute()
    assert scene.completer.heard == ["contribute"]


def test_who_sends_while_the_engine_begins_wakes_it_or_nobody() -> None:
    """The message is on disk by then: an exception would make its program send it again."""

    class Slow(asyncio.Event):
        def __init__(self) -> None:
            super().__init__()
            engine.wake()  # another thread, in the middle of the beginning

    def failing() -> None:
        raise StoreError("io", "enough seen")

    words: Any = (SimpleNamespace(blocking=False), Routes({}), None, None, FakeClock(NOW))
    engine: Any = Engine(*words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "Event", Slow)
        patch.setattr(engine, "_assemble", failing)
        with pytest.raises(StoreError, match="enough seen"):
            asyncio.run(engine.run())
