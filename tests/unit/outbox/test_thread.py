"""The engine's thread: a bug stays in it, and without a thread the end does its work."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import pytest

from outmail.outbox import thread as module
from outmail.outbox.thread import EngineThread
from tests.waiting import until


class FakeEngine:
    """Runs until it is stopped, or fails; ``rounds`` looks later it is quiet."""

    def __init__(self, problem: BaseException | None = None, rounds: int = 3) -> None:
        self.problem = problem
        self.rounds = rounds
        self.threads: list[str] = []
        self.stopped = False

    async def run(self) -> None:
        self.threads.append(threading.current_thread().name)
        if self.problem is not None:
            raise self.problem
        while not self.stopped:
            await asyncio.sleep(0)

    def quiet(self) -> bool:
        self.rounds -= 1
        return self.rounds < 0

    def stop(self, within: float = 0.0) -> None:
        self.stopped = True


def test_a_bug_ends_the_engine_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "outmail"):
        made = EngineThread(FakeEngine(ZeroDivisionError("a bug")))
        until(lambda: "mail stays queued" in caplog.text)
    assert isinstance(made.failure, ZeroDivisionError)
    made.drain(30)  # returns at once: nobody works
    made.end(0.1)


def test_who_gives_up_waiting_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(work: Any) -> None:
        work.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "started", lambda thread: False)
    monkeypatch.setattr(asyncio, "run", interrupted)
    made = EngineThread(FakeEngine())
    made.drain(30)
    assert made.failure is None


@pytest.mark.parametrize(("rounds", "seconds"), [(3, 30.0), (10**9, 0.05)], ids=["quiet", "too late"])
def test_where_no_thread_can_be_started_the_end_delivers_in_its_own(
    monkeypatch: pytest.MonkeyPatch, rounds: int, seconds: float
) -> None:
    monkeypatch.setattr(module, "started", lambda thread: False)
    engine: Any = FakeEngine(rounds=rounds)
    made, began = EngineThread(engine), time.monotonic()
    assert not engine.threads
    made.drain(seconds)
    assert engine.threads == [threading.current_thread().name] and engine.stopped
    assert time.monotonic() - began < 20
    made.end(0.1)
