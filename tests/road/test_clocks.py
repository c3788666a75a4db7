"""Clocks that are set, and mail that lies while no engine runs: nothing fails for an age that it does not
have, and all of it in the end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from outmail import Outbox
from outmail.clock import DAY, HOUR, Clock
from outmail.engine import ages, maintenance
from outmail.testing import FakeClock, Sink
from outmail.wiring import build_engine
from tests.waiting import stays_in_loop
from tests.waiting import until_in_loop as until

MakeBox = Callable[..., Outbox]


class Set(Clock):
    """The system's clocks; somebody sets the wall's."""

    offset = 0

    def now(self) -> int:
        return super().now() + self.offset


def work(box: Outbox, clock: Clock, scene: Callable[[Any], Any]) -> None:
    """An engine runs while the scene plays."""
    engine = build_engine(box.store, box.config, box.routes, clock)

    async def life() -> None:
        running = asyncio.ensure_future(engine.run())
        try:
            await scene(engine)
        finally:
            engine.stop()
            await running

    asyncio.run(life())


def once(box: Outbox, clock: Clock) -> None:
    asyncio.run(build_engine(box.store, box.config, box.routes, clock).run(once=True))


def states(box: Outbox) -> list[str]:
    return [r.state for status in box.find() for r in status.recipients]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "UPKEEP", 0.2)


@pytest.mark.parametrize("by", [6 * DAY, 400 * DAY])
def test_a_clock_that_jumps_ahead_fails_nothing_and_is_named_once(
    make_box: MakeBox, sink: Sink, caplog: pytest.LogCaptureFixture, by: int
) -> None:
    sink.script("RCPT: 451 4.7.1 later x20")
    clock = Set()
    box = make_box(toml=f'relay = "{sink.url}"\n[retry]\nschedule = "300ms…"\n', deliver="never", clock=clock)
    box.send_many(
        [
            {"to": f"u{i}@x.test", "subject": "s", "text": "t", **({"expires": "1h"} if i % 2 else {})}
            for i in range(20)
        ]
    )

    def named() -> int:
        return sum("was set ahead by" in record.getMessage() for record in caplog.records)

    async def scene(engine: Any) -> None:
        await until(lambda: engine.counts["deferred"] > 0)
        clock.offset = by
        await until(lambda: set(states(box)) == {"delivered"} and named() > 0)

    with caplog.at_level(logging.WARNING, "outmail"):
        work(box, clock, scene)
    assert named() == 1
    assert len(sink.messages) == 20


def test_a_clock_set_back_makes_no_mail_wait(make_box: MakeBox, sink: Sink) -> None:
    sink.script("RCPT: 451 4.7.1 later x5")
    clock = Set()
    box = make_box(toml=f'relay = "{sink.url}"\n[retry]\nschedule = "2s…"\n', deliver="never", clock=clock)
    box.send_many([{"to": f"u{i}@x.test", "subject": "s", "text": "t"} for i in range(5)])

    async def scene(engine: Any) -> None:
        await until(lambda: engine.counts["deferred"] == 5)
        clock.offset = -2 * HOUR
        await until(lambda: set(states(box)) == {"delivered"}, 10)

    work(box, clock, scene)
    assert len(sink.messages) == 5


def test_time_that_passes_still_ends_waiting_after_a_jump(make_box: MakeBox, sink: Sink) -> None:
    sink.script("RCPT: 451 4.7.1 later")
    clock = FakeClock()
    box = make_box(toml=f'relay = "{sink.url}"\n[retry]\nschedule = "1h…"\n', deliver="never", clock=clock)
    id = box.send("a@x.test", "s", "t", expires="3h").id

    async def scene(engine: Any) -> None:
        await until(lambda: engine.counts["deferred"] == 1)
        clock.jump("6d")
        await until(lambda: engine.maintenance.ages._seen.at - engine.maintenance.ages._seen.age > DAY)
        await stays_in_loop(
            lambda: box.status(id).status in ("queued", "sending"), 0.5
        )  # tried again, perhaps
        clock.advance("3h")
        await until(lambda: box.status(id).status == "failed")

    work(box, clock, scene)
    assert box.status(id).recipients[0].reason.startswith("too old")


def test_what_became_too_old_while_no_engine_ran_gets_one_attempt(make_box: MakeBox, sink: Sink) -> None:
    """Except where the program said itself when it is no use any more."""
    sink.script("RCPT later@*: 451 4.7.1 later")
    clock = FakeClock()
    box = make_box(toml=f'relay = "{sink.url}"\n', deliver="never", clock=clock)
    once(box, clock)
    taken, deferred, code = (
        box.send("a@x.test", "s", "t").id,
        box.send("later@x.test", "s", "t").id,
        box.send("b@x.test", "s", "t", expires="2h").id,
    )
    clock.advance("10d")

    async def scene(engine: Any) -> None:
        await until(lambda: engine.counts["expired"] == 2)
        await until(lambda: set(states(box)) <= {"delivered", "failed"})

    work(box, clock, scene)
    assert [box.status(id).status for id in (taken, deferred, code)] == ["delivered", "failed", "failed"]
    assert (
        box.status(code).recipients[0].reason == "too old"
        and box.status(deferred).recipients[0].attempts == 1
    )
    assert [m.recipients for m in sink.messages] == [("a@x.test",)]


def test_a_clock_that_was_set_while_no_engine_ran_is_found_out(make_box: MakeBox, sink: Sink) -> None:
    clock = FakeClock()
    box = make_box(toml=f'relay = "{sink.url}"\n', deliver="never", clock=clock)
    once(box, clock)
    id = box.send("a@x.test", "s", "t", expires="2h").id
    clock.jump("10d")
    once(box, clock)
    assert box.status(id).status == "delivered"


def test_mail_dated_by_a_clock_that_was_wrong_does_not_fail_at_once(make_box: MakeBox, sink: Sink) -> None:
    """The machine starts in 1970, a program sends, the time comes from the network, an engine starts."""
    sink.script("RCPT: 451 4.7.1 later x2")
    clock = FakeClock()
    box = make_box(toml=f'relay = "{sink.url}"\n[retry]\nschedule = "1s…"\n', deliver="never", clock=clock)
    once(box, clock)
    clock.jump("5000d", back=True)
    ids = [box.send("a@x.test", "s", "t").id, box.send("b@x.test", "s", "t", expires="2h").id]
    clock.jump("5000d")
    clock.advance("1m")

    async def scene(engine: Any) -> None:
        await until(lambda: engine.counts["deferred"] == 2)
        await stays_in_loop(lambda: "failed" not in states(box), 0.5)
        clock.advance("1m")
        await until(lambda: set(states(box)) == {"delivered"})

    work(box, clock, scene)
    assert [box.status(id).status for id in ids] == ["delivered", "delivered"]


def test_what_became_too_old_while_the_machine_was_off_gets_one_attempt(
    make_box: MakeBox, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink.script("RCPT later@*: 451 4.7.1 later")
    clock = FakeClock()
    box = make_box(toml=f'relay = "{sink.url}"\n', deliver="never", clock=clock)
    once(box, clock)
    taken, deferred = box.send("a@x.test", "s", "t").id, box.send("later@x.test", "s", "t").id
    clock.advance("10d")
    monkeypatch.setattr(ages, "clock_id", lambda: "another")
    once(box, clock)
    assert [box.status(id).status for id in (taken, deferred)] == ["delivered", "failed"]
    assert box.status(deferred).recipients[0].reason == "too old; last: 451 4.7.1 later"


def test_single_runs_seldom_end_waiting_all_the_same(make_box: MakeBox, sink: Sink) -> None:
    sink.script("RCPT: 451 4.7.1 later")
    clock = FakeClock()
    box = make_box(toml=f'relay = "{sink.url}"\n[retry]\nschedule = "1h…"\n', deliver="never", clock=clock)
    id = box.send("a@x.test", "s", "t").id
    for day in range(5):
        once(box, clock)
        assert (box.status(id).status, box.status(id).recipients[0].attempts) == ("queued", day + 1)
        clock.advance("1d")
    once(box, clock)
    assert box.status(id).status == "failed"


LATER = "RCPT: 451 4.7.1 later x1000000"
HOURLY = '\n[retry]\nschedule = "1h…"\n'


@pytest.mark.parametrize("seen", [True, False], ids=["the jump was seen", "nobody saw it"])
def test_a_sign_from_the_future_keeps_nothing_alive(
    make_box: MakeBox, sink: Sink, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    """The clock was a year ahead in one boot; the machine starts again with the right time."""
    sink.script(LATER)
    clock = FakeClock()
    box = make_box(toml=f'relay = "{sink.url}"{HOURLY}', deliver="never", clock=clock)
    if seen:
        once(box, clock)
    clock.jump("365d")
    once(box, clock)
    clock.jump("365d", back=True)
    monkeypatch.setattr(ages, "clock_id", lambda: "another boot")
    once(box, clock)
    ids = [box.send("a@x.test", "s", "t").id, box.send("b@x.test", "s", "t", expires="1h").id]
    for _ in range(6):
        clock.advance("1d")
        once(box, clock)
    assert [box.status(id).status for id in ids] == ["failed", "failed"]


def test_what_is_sent_after_a_jump_has_its_own_end(make_box: MakeBox, sink: Sink) -> None:
    sink.script(LATER)
    clock = FakeClock()
    box = make_box(toml=f'relay = "{sink.url}"{HOURLY}', deliver="never", clock=clock)
    once(box, clock)
    clock.jump("1d")
    once(box, clock)
    id = box.send("a@x.test", "s", "t", expires="10m").id
    clock.advance("11m")
    once(box, clock)
    assert box.status(id).status == "failed"


def test_a_program_whose_clock_is_behind_has_its_whole_life(
    make_box: MakeBox, sink: Sink, tmp_path: Any
) -> None:
    sink.script(LATER)
    clock = FakeClock()
    box = make_box(toml=f'relay = "{sink.url}"{HOURLY}', deliver="never", clock=clock)
    once(box, clock)
    clock.advance("1m")
    once(box, clock)
    late = make_box(
        toml=f'relay = "{sink.url}"', deliver="never", clock=FakeClock(clock.now() - 5 * DAY + 2 * HOUR)
    )
    id = late.send("a@x.test", "s", "t").id
    hours = 0
    while box.status(id).status != "failed" and hours < 130:
        clock.advance("1h")
        once(box, clock)
        hours += 1
    assert 118 <= hours <= 121


def test_requeued_mail_with_an_end_of_its_own_is_not_sent_late(make_box: MakeBox, sink: Sink) -> None:
    sink.script("RCPT: 550 no x1")
    clock = FakeClock()
    box = make_box(toml=f'relay = "{sink.url}"{HOURLY}', deliver="never", clock=clock)
    id = box.send("a@x.test", "s", "t", expires="1h").id
    once(box, clock)
    clock.advance("6d")
    once(box, clock)
    assert box.requeue(id) == 1
    clock.advance("5h")
    once(box, clock)
    assert box.status(id).status == "failed" and not sink.messages


def test_small_steps_back_make_nothing_due_before_its_time(make_box: MakeBox, sink: Sink) -> None:
    sink.script(LATER)
    clock = FakeClock()
    box = make_box(toml=f'relay = "{sink.url}"\n[retry]\nschedule = "4h…"\n', deliver="never", clock=clock)
    id = box.send("a@x.test", "s", "t").id
    once(box, clock)
    for _ in range(5):
        clock.advance("30s")
        clock.jump("6s", back=True)
        once(box, clock)
    assert box.status(id).recipients[0].attempts == 1


def test_moved_mail_keeps_its_age(make_box: MakeBox, sink: Sink, tmp_path: Any) -> None:
    from outmail.ops.move import move

    sink.script(LATER)
    clock = FakeClock()
    old = make_box(toml=f'relay = "{sink.url}"', deliver="never", clock=clock)
    new = make_box(
        toml=f'relay = "{sink.url}"{HOURLY}', deliver="never", clock=clock, store=str(tmp_path / "new.db")
    )
    id = old.send("a@x.test", "s", "t", expires="1h").id

    async def scene(engine: Any) -> None:
        await engine.ready()
        await until(lambda: engine.maintenance.ages._before is not None)
        clock.advance("3h")
        await until(lambda: engine.maintenance.ages._before.age >= clock.now())
        move(old.store, new.store, clock.now())
        engine.wake()
        await until(lambda: new.status(id).status == "failed")

    work(new, clock, scene)
    assert not any(line.startswith("RCPT") for line in sink.commands)


def test_upkeep_that_fails_does_not_stop_the_road(
    make_box: MakeBox, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Set()
    box = make_box(toml=f'relay = "{sink.url}"', deliver="never", clock=clock)
    box.send_many([{"to": f"u{i}@x.test", "subject": "s", "text": "t"} for i in range(20)])

    def broken(*words: object) -> Any:
        raise RuntimeError("statement time-out")
        yield

    monkeypatch.setattr(box.store.verbs, "clamp", broken)

    async def scene(engine: Any) -> None:
        await until(lambda: len(sink.messages) == 20)

    work(box, clock, scene)


def test_after_a_doubt_about_the_lease_the_sessions_begin_again(make_box: MakeBox, sink: Sink) -> None:
    """All of them had ended while the lease did not stand, and what was leased lay there for ever."""
    box = make_box(toml=f'relay = "{sink.url}"', deliver="never", clock=Set())
    mail = [{"to": f"u{i}@x.test", "subject": "s", "text": "t"} for i in range(20)]

    async def scene(engine: Any) -> None:
        await until(lambda: engine.owner is not None)
        stands = [True]
        engine.owner.stands = lambda: stands[0]
        given = engine.distribute

        def distribute(deliveries: Any, **words: Any) -> None:
            stands[0] = not deliveries
            given(deliveries, **words)

        engine.distribute = distribute
        await asyncio.to_thread(box.send_many, mail)
        await until(lambda: engine.completer.out > 0)
        await stays_in_loop(lambda: not sink.messages, 0.2)
        engine.distribute, stands[0] = given, True
        await until(lambda: len(sink.messages) == 20)

    work(box, Set(), scene)
