"""Tests wait for what must come, and do not sleep."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import pytest

from tests.waiting import stays, stays_in_loop, until, until_in_loop

TESTS = Path(__file__).parents[1]

#: Who may sleep, and what for. Campaigns, and the programs of others, are no tests.
SLEEPERS = {
    "waiting.py": "here the looks have their pauses",
    "road/test_hostile_relays.py": "relays that drip, sip and let wait",
    "road/test_pressure.py": "upkeep that is slow",
    "road/test_wire.py": "turns of the loop",
    "road/test_writers.py": "children that live until they are killed",
}
ELSEWHERE = ("campaigns", "fuzz", "interop/guests")


def test_what_is_waited_for_is_returned_and_what_does_not_come_fails() -> None:
    looks = iter(["", "", "here"])
    assert until(lambda: next(looks)) == "here"
    with pytest.raises(AssertionError, match=r"within 0\.02 s"):
        until(lambda: False, 0.02)


def test_what_must_not_change_is_looked_at_all_the_time() -> None:
    looks = iter([True, True, False])
    with pytest.raises(AssertionError):
        stays(lambda: next(looks), 30)
    stays(lambda: True, 0.02)


def test_the_same_while_a_loop_goes_on() -> None:
    async def story() -> None:
        turns: list[int] = []
        asyncio.get_running_loop().call_later(0.02, turns.append, 1)
        assert await until_in_loop(lambda: turns) == [1]
        with pytest.raises(AssertionError):
            await stays_in_loop(lambda: not turns, 30)
        with pytest.raises(AssertionError):
            await until_in_loop(lambda: False, 0.02)

    asyncio.run(story())


def test_no_other_test_sleeps() -> None:
    """A fixed time is too short on a slow machine and too long on a fast one."""
    found = set()
    for path in TESTS.rglob("*.py"):
        name = path.relative_to(TESTS).as_posix()
        if name.startswith(ELSEWHERE):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "sleep"
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id in ("time", "asyncio")
                and not (isinstance(node.args[0], ast.Constant) and node.args[0].value == 0)
            ):
                found.add(name)
    assert found == set(SLEEPERS)
