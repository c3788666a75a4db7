"""Waiting for what must come: a slow machine may take its time, and a defect does not hang the tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

#: Seconds. Generous, because it only counts where a test fails.
PATIENCE = 30.0


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Returns once ``condition()`` is true; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


async def until_in_loop(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """The same, while the loop goes on."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert condition()
