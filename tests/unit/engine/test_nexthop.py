"""A next hop without a network: how much is leased for it, who gets what, and who is sent home."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from outmail.engine.nexthop import ALLOWANCE, MOST, NextHop, SessionFeed
from outmail.model import Delivery, Outcome, Reply
from tests.unit.engine.fakes import Calls, FakeLoop, delivery, relay

DOWN = Outcome("deferred", "destination", "connect", Reply(0, "connection refused"), fault=True)


class Scene:
    def __init__(self, **settings: Any) -> None:
        self.loop, self.completer, self.maintenance, self.log = FakeLoop(), Calls(), Calls(), Calls()
        self.stands = True
        self.host: Any = SimpleNamespace(
            loop=self.loop,
            completer=self.completer,
            maintenance=self.maintenance,
            throttle=self.log,
            stopping=False,
            idle=60.0,
            engines=1,
            standing=lambda: self.stands,
            wake=lambda: None,
        )

        async def session(feed: Any) -> None:
            raise AssertionError("nobody runs it")

        transport: Any = SimpleNamespace(session=session)
        self.hop = NextHop(self.host, relay(**settings), transport)

    def waiting(self, count: int = 1) -> list[Delivery]:
        deliveries = [delivery(n) for n in range(1, count + 1)]
        for one in deliveries:
            self.hop.out += len(one.recipients)
            self.hop.push(one)
        return deliveries

    def session(self) -> SessionFeed:
        feed = SessionFeed(self.hop)
        self.hop.feeds.add(feed)
        return feed


def test_a_fast_next_hop_may_have_more_leased_and_a_slow_one_less() -> None:
    scene = Scene()
    scene.session()
    for _ in range(10):
        scene.hop.room()
    assert scene.hop.room() == MOST
    scene.waiting()
    for _ in range(10):
        scene.loop.advance(2)
        scene.hop.room()
    assert scene.hop.room() == ALLOWANCE - 1


def test_a_paused_next_hop_gets_one_for_a_probe() -> None:
    scene = Scene()
    scene.hop.pace.fault(scene.loop.time(), "no route", fatal=True)
    assert scene.hop.room() == 0
    scene.loop.advance(scene.hop.pace.pause)
    assert scene.hop.room() == 1
    scene.hop.out = 1
    assert scene.hop.room() == 0


def test_a_rate_is_leased_for_two_seconds_and_given_out_one_by_one() -> None:
    scene = Scene(rate=2.0)
    assert scene.hop.room() == 5
    first, second, third = scene.waiting(3)
    got: list[Delivery | None] = []
    feed = scene.session()
    assert feed.take_now() is None
    feed.ask(got.append)
    scene.loop.advance()
    assert got == [first]
    feed.ask(got.append)
    scene.loop.advance(0.4)
    assert got == [first]
    scene.loop.advance(0.1)
    assert got == [first, second]
    feed.ask(got.append)
    scene.loop.advance(0.5)
    assert got == [first, second, third]


def test_no_dialogue_begins_while_the_lease_may_be_lost() -> None:
    scene = Scene()
    (one,) = scene.waiting()
    feed, got = scene.session(), list[Any]()
    scene.stands = False
    scene.hop.serve()
    assert feed.take_now() is None and scene.hop.feeds == {feed}
    feed.ask(got.append)
    feed.hop.waiting.remove(feed)
    feed.give(scene.hop.queue.popleft())
    scene.loop.advance(5)
    assert got == [] and not scene.completer.heard
    scene.stands = True
    scene.loop.advance(1)
    assert got == [one] and scene.completer.heard == ["begin"]


def test_sessions_beyond_a_limit_that_other_engines_share_now_are_sent_home() -> None:
    scene = Scene(concurrency=4)
    feeds = [scene.session() for _ in range(4)]
    scene.hop.pace.divide(4, 0.0, 2)
    scene.waiting(4)
    assert [feed.take_now() is not None for feed in feeds] == [False, False, True, True]
    assert scene.hop.leaving == 2


def test_a_session_that_takes_its_wish_back_leaves_the_mail_to_others() -> None:
    scene = Scene(rate=1.0)
    first, second = scene.waiting(2)
    feed, got = scene.session(), list[Any]()
    for _ in range(2):
        feed.ask(got.append)
        scene.loop.advance()
    assert got == [first]
    feed.leave()
    assert list(scene.hop.queue) == [second] and feed.flying == {first}


def test_stopping_gives_back_what_no_session_has_begun() -> None:
    scene = Scene()
    first, second = scene.waiting(2)
    feed, got = scene.session(), list[Any]()
    assert feed.take_now() is first
    idle = scene.session()
    idle.ask(got.append)
    assert scene.hop.stop() == [second] and got == [None]
    assert list(scene.hop.held()) == [first]


def test_a_lost_lease_ends_dialogues_but_for_those_that_wait_for_their_last_answer() -> None:
    scene = Scene()
    sent, unsent = scene.waiting(2)
    ended = []
    for one in (sent, unsent):
        feed = scene.session()
        assert feed.take_now() is one
        feed.task = SimpleNamespace(cancel=lambda one=one: ended.append(one))  # type: ignore[assignment]
    sent.recipients[0].dotted = True
    assert scene.hop.drop() == [] and ended == [unsent]


def test_a_next_hop_is_paused_after_trouble_and_said_so_once() -> None:
    scene = Scene()
    feed = scene.session()
    for _ in range(10):
        feed.failed(DOWN)
    assert scene.hop.pace.tripped and scene.maintenance.heard == ["paused"]
    assert scene.completer.heard == ["hop_failed"] * 10
    feed.healthy()
    assert not scene.hop.pace.tripped and scene.maintenance.heard == ["paused", "answers"]


def test_idle_sessions_are_sent_home_after_the_idle_time() -> None:
    scene = Scene()
    feed, got = scene.session(), list[Any]()
    feed.ask(got.append)
    scene.loop.advance(59)
    scene.hop.tidy()
    assert got == []
    scene.loop.advance(2)
    scene.hop.tidy()
    assert got == [None] and not scene.hop.waiting


def test_what_no_session_has_begun_can_be_taken_back_and_sessions_go_on() -> None:
    scene = Scene(rate=1.0)
    first, late, queued = scene.waiting(3)
    got: list[Delivery | None] = []
    begun, paced = scene.session(), scene.session()
    begun.ask(got.append)
    paced.ask(got.append)
    scene.hop.serve()
    assert got == [first] and paced.flying == {late}
    assert scene.hop.recall() == [queued, late] and not paced.flying and begun.flying == {first}
    assert scene.hop.recall() == [] and list(scene.hop.waiting) == [paced]
    scene.loop.advance(60)
    assert got == [first]
    [again] = scene.waiting(1)
    scene.hop.serve()
    scene.loop.advance(60)
    assert got == [first, again]


def test_the_sessions_of_a_retired_next_hop_end_after_what_they_have_begun() -> None:
    scene = Scene()
    first, second = scene.waiting(2)
    got: list[Delivery | None] = []
    begun, idle = scene.session(), scene.session()
    assert begun.take_now() is first
    idle.ask(got.append)
    assert scene.hop.retire() == [second] and got == [None]
    assert begun.take_now() is None
    begun.ask(got.append)
    scene.loop.advance(0)
    assert got == [None, None] and begun.flying == {first}
