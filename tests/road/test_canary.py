"""Canaries of a running service: by each relay, once in their interval; a missing one is an alarm until it
comes home (46).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

import pytest

from outmail.engine import maintenance
from outmail.outbox.outbox import Outbox
from outmail.policy.loopback import CANARY
from outmail.service import service
from outmail.testing import FakeClock, Sink
from outmail.wiring import arrivals_of, build_engine
from tests.waiting import until_in_loop as until

MakeBox = Callable[..., Outbox]


@pytest.fixture
def other() -> Iterator[Sink]:
    with Sink(lmtp=True) as running:
        yield running


def test_by_each_relay_and_a_missing_one_is_an_alarm_until_it_is_home(
    each_store: str,
    sink: Sink,
    other: Sink,
    make_box: MakeBox,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(service, "LOOK_EVERY", 0.1)
    monkeypatch.setattr(maintenance, "UPKEEP", 0.1)
    clock = FakeClock()
    toml = (
        '[loopback]\naddress = "loop@example.org"\nsample = 0\ncanary = "1h"\nwithin = "10m"\n'
        f'[relay]\nurl = "{sink.url}"\n[relays.other]\nurl = "{other.url}"\n'
        '[[route]]\nto = "*@x.test"\nrelays = ["other"]\n'
    )
    box = make_box(toml=toml, deliver="never", store=each_store, clock=clock)
    arrivals = arrivals_of(box.store, box.config, clock)
    engine = build_engine(box.store, box.config, box.routes, clock, service=True)

    def home(relay: Sink, n: int) -> None:
        """The copy of the relay's n-th mail comes home."""
        message = relay.messages[n]
        assert arrivals.take(message.content, message.recipients[-1:]) == "home"

    def missing() -> list[int]:
        return [route["missing"] for route in box.queue.loopback_stats(10**9)["routes"]]

    def said(text: str) -> int:
        return sum(text in record.getMessage() for record in caplog.records)

    async def on_record(n: int) -> None:
        """So many copies were sent, as the store knows."""
        await until(lambda: sum(r["sent"] for r in box.queue.loopback_stats(10**9)["routes"]) == n)

    async def scene() -> None:
        await on_record(2)
        home(sink, 0)
        clock.advance("11m")
        await until(lambda: missing() == [0, 1] and said("by the route other have not come home") == 1)
        assert not said("by the route default")
        home(other, 0)
        await until(lambda: missing() == [0, 0] and said("copies by the route other are home") == 1)
        clock.advance("50m")
        await on_record(4)
        for relay in (sink, other):
            home(relay, 1)

    async def life() -> None:
        running = asyncio.ensure_future(service.serve(box, engine, lambda: box.config))
        try:
            await scene()
        finally:
            engine.stop()
            await running

    with caplog.at_level(logging.INFO, "outmail"):
        asyncio.run(life())
    assert [len(relay.messages) for relay in (sink, other)] == [2, 2]
    assert len(list(box.find(f"tag:{CANARY} state:delivered"))) == 4
    assert box.queue.loopback_stats(10**9)["counts"] == {"home": 4}
