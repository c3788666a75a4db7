"""Waiting for what must come: a slow machine may take its time, and a defect does not hang the tests.

`until` waits for what must happen and costs only as long as that takes. `stays` watches that something does
*not* happen and always costs its seconds: keep them few. Nothing else in the tests sleeps, except peers that
play a slow program.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds. Generous, because it only counts where a test fails.
PATIENCE = 30.0

#: Seconds between two looks.
PAUSE = 0.01


def until(condition: Callable[[], T], seconds: float = PATIENCE, *, pause: float = PAUSE) -> T:
    """What ``condition()`` returns, once that is true; fails after ``seconds``. A look that starts a program
    needs a longer ``pause``.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not come within {seconds} s"
        time.sleep(pause)
    return found


async def until_in_loop(condition: Callable[[], T], seconds: float = PATIENCE) -> T:
    """The same, while the loop goes on."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not come within {seconds} s"
        await asyncio.sleep(PAUSE)
    return found


def listens(port: int) -> bool:
    """Whether somebody takes connections at this port of the loopback address."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def stays(condition: Callable[[], object], seconds: float) -> None:
    """Returns after ``seconds`` in which ``condition()`` was always true; fails as soon as it is not."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert condition(), "it did not stay so"
        time.sleep(PAUSE)
    assert condition(), "it did not stay so"


async def stays_in_loop(condition: Callable[[], object], seconds: float) -> None:
    """The same, while the loop goes on."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert condition(), "it did not stay so"
        await asyncio.sleep(PAUSE)
    assert condition(), "it did not stay so"
