"""Threads that ask while another one works share the next turn."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from outmail.system.leader import Call, Late, Leader
from tests.waiting import until


class Ask(Call):
    def __init__(self, name: str) -> None:
        self.name, self.done = name, False


def well(turn: list[Ask], mine: Ask) -> None:
    for ask in turn:
        ask.settle(ask.name.upper())


class Crowd:
    """Threads that share one leader. ``heard``: what each one heard; ``turns``: who was in each turn."""

    def __init__(self, work: Callable[[list[Ask], Ask], None] = well) -> None:
        self.leader: Leader[Ask] = Leader()
        self.work = work
        self.turns: list[list[str]] = []
        self.heard: dict[str, Any] = {}
        self.threads: list[threading.Thread] = []

    def come(self, *names: str, wait: float | None = None) -> None:
        for name in names:
            before = len(self.leader.calls)
            self.threads.append(threading.Thread(target=self._ask, args=(name, wait)))
            self.threads[-1].start()
            until(partial(self._more_than, before))

    def _more_than(self, count: int) -> bool:
        return len(self.leader.calls) > count

    def _ask(self, name: str, wait: float | None) -> None:
        try:
            self.heard[name] = self.leader.share(Ask(name), self._turn, wait)
        except BaseException as problem:
            self.heard[name] = problem

    def _turn(self, turn: list[Ask], mine: Ask) -> None:
        self.turns.append([ask.name for ask in turn])
        self.work(turn, mine)

    def gone(self) -> None:
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()
        assert not self.leader.lock.locked() and not self.leader.waiting


@pytest.mark.parametrize("wait", [None, 20.0])
def test_who_comes_while_another_works_shares_the_next_turn(wait: float | None) -> None:
    crowd = Crowd()
    with crowd.leader.lock:
        crowd.come("a", "b", "c", wait=wait)
        assert crowd.leader.waiting == 4
    crowd.gone()
    assert crowd.turns == [["a", "b", "c"]] and crowd.heard == {"a": "A", "b": "B", "c": "C"}


def test_an_exception_is_raised_in_the_thread_whose_call_it_answers() -> None:
    def one_is_bad(turn: list[Ask], mine: Ask) -> None:
        for ask in turn:
            ask.settle(ValueError(ask.name) if ask.name == "b" else ask.name)

    crowd = Crowd(one_is_bad)
    with crowd.leader.lock:
        crowd.come("a", "b", "c")
    crowd.gone()
    assert isinstance(crowd.heard["b"], ValueError) and (crowd.heard["a"], crowd.heard["c"]) == ("a", "c")


@pytest.mark.parametrize("wait", [None, 20.0])
def test_ctrl_c_is_the_leading_threads_and_the_others_lead_themselves(wait: float | None) -> None:
    def interrupted(turn: list[Ask], mine: Ask) -> None:
        crowd.work = well
        turn[1].settle("already done")
        raise KeyboardInterrupt

    crowd = Crowd(interrupted)
    with crowd.leader.lock:
        crowd.come("a", "b", "c", "d", wait=wait)
    crowd.gone()
    (led,) = [name for name, answer in crowd.heard.items() if isinstance(answer, KeyboardInterrupt)]
    assert crowd.heard == {
        led: crowd.heard[led],
        **{name: name.upper() for name in "acd" if name != led},
        **({} if led == "b" else {"b": "already done"}),
    }
    assert crowd.turns[1] == [name for name in "abcd" if name not in (led, "b")], "in their order"


def test_a_call_that_nobody_takes_up_in_time_is_never_done() -> None:
    crowd = Crowd()
    with crowd.leader.lock:
        crowd.come("a", wait=0.02)
        until(lambda: crowd.heard)
    assert isinstance(crowd.heard["a"], Late) and crowd.leader.calls == []
    assert crowd.leader.share(Ask("b"), crowd._turn, 1.0) == "B"
    crowd.gone()
    assert crowd.turns == [["b"]]


def test_a_call_that_is_taken_up_is_waited_for_beyond_its_time() -> None:
    going, go = threading.Event(), threading.Event()

    def slow(turn: list[Ask], mine: Ask) -> None:
        going.set()
        assert go.wait(20)
        well(turn, mine)

    crowd = Crowd(slow)
    with crowd.leader.lock:
        crowd.come("a", "b", wait=1.0)
    assert going.wait(20)
    threading.Event().wait(1.2)
    go.set()
    crowd.gone()
    assert crowd.heard == {"a": "A", "b": "B"}


def test_who_reached_the_old_list_too_late_leads_its_own_turn() -> None:
    """Between the look at the list and the append, a leader took the list away."""
    crowd = Crowd()
    stale = Ask("late")

    class Stolen(list[Ask]):
        def append(self, ask: Ask) -> None:
            crowd.leader.calls = []  # as a leader leaves it
            super().append(ask)

    crowd.leader.calls = Stolen()
    assert crowd.leader.share(stale, crowd._turn) == "LATE"
    assert crowd.turns == [["late"]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_begins_anew() -> None:
    crowd = Crowd()
    with crowd.leader.lock:
        crowd.come("a")
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:  # the parent's lock is held here, by a thread that does not exist
            try:
                crowd.leader.begin_anew()
                os.write(write, crowd.leader.share(Ask("child"), crowd._turn, 5.0).encode())
                os.write(write, repr(crowd.turns).encode())
            finally:
                os._exit(0)
        os.close(write)
        os.waitpid(pid, 0)
        with open(read, "rb") as said:
            assert said.read() == b"CHILD[['child']]"
    crowd.gone()
    assert crowd.turns == [["a"]]


def test_of_many_threads_each_hears_its_own_answer_once() -> None:
    leader: Leader[Ask] = Leader()
    worked: list[str] = []

    def work(turn: list[Ask], mine: Ask) -> None:
        worked.extend(ask.name for ask in turn)
        well(turn, mine)

    wrong: list[str] = []

    def many(thread: int) -> None:
        for i in range(200):
            name = f"t{thread}-{i}"
            if leader.share(Ask(name), work, 20.0 if i % 2 else None) != name.upper():
                wrong.append(name)

    threads = [threading.Thread(target=many, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and len(worked) == len(set(worked)) == 1200
