"""Threads that accept at one moment share one `add`, and one's misfortune is not the others'."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from outmail.accept.batcher import Batcher
from outmail.model import Message
from outmail.outbox.outbox import Outbox
from outmail.store import StoreError, forks
from outmail.store.sqlite.store import SqliteStore
from outmail.testing.conformance import message


class Stage:
    """A store whose first call waits until two others stand behind it; the second one, which is for all of
    those, does what it is told.
    """

    def __init__(self, store: Any, mishap: Any) -> None:
        self.store, self.mishap = store, mishap
        self.calls = 0
        self.behind = threading.Event()
        self.verbs = store.verbs

    def run(self, verb: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            assert self.behind.wait(10)
        elif self.calls == 2:
            return self.mishap(self.store, verb)
        return self.store.run(verb)


def play(folder: Path, mishap: Any) -> tuple[dict[str, Any], list[str], int]:
    """Four threads, the first one alone, three behind it → (what each heard, what is stored, calls)."""
    with Outbox(str(folder / "q.db"), deliver="never") as box:
        store: SqliteStore = box.store  # type: ignore[assignment]
        stage = Stage(store, mishap)
        door = box.door
        door.store = stage  # type: ignore[assignment]
        batcher = Batcher(remote=True)
        heard: dict[str, Any] = {}

        def accept(name: str, made: Message) -> None:
            try:
                heard[name] = batcher.keep(door._batch, [made], (), False)
            except BaseException as problem:
                heard[name] = problem

        threads = [threading.Thread(target=accept, args=(f"t{i}", message())) for i in range(4)]
        threads[0].start()
        while stage.calls == 0:
            threading.Event().wait(0.001)
        for thread in threads[1:]:
            thread.start()
        while len(batcher.leader.calls) < 3:
            threading.Event().wait(0.001)
        stage.behind.set()
        for thread in threads:
            thread.join(20)
        door.store = store
        return heard, [status.id for status in box.find()], stage.calls


def ids(answers: Any) -> list[str]:
    return sorted(answer[0][0] for answer in answers if not isinstance(answer, BaseException))


def test_what_comes_while_another_commits_is_one_add(tmp_path: Path) -> None:
    heard, stored, calls = play(tmp_path, lambda store, verb: store.run(verb))
    assert calls == 2 and ids(heard.values()) == sorted(stored) and len(stored) == 4


def test_a_bad_one_spoils_only_itself(tmp_path: Path) -> None:
    def fail(store: Any, verb: Any) -> Any:
        raise StoreError("other", "one of them is bad")

    heard, stored, calls = play(tmp_path, fail)
    assert calls == 5 and ids(heard.values()) == sorted(stored) and len(stored) == 4


def test_a_full_disk_is_everybodys(tmp_path: Path) -> None:
    def fail(store: Any, verb: Any) -> Any:
        raise StoreError("full", "no space left")

    heard, stored, calls = play(tmp_path, fail)
    assert calls == 2 and len(stored) == 1
    assert sorted(type(answer).__name__ for answer in heard.values()) == [
        "StoreError",
        "StoreError",
        "StoreError",
        "list",
    ]


@pytest.mark.parametrize("committed", [False, True])
def test_ctrl_c_is_for_one_thread_and_the_others_store_theirs_once(tmp_path: Path, committed: bool) -> None:
    """Whether or not the commit had happened when the interrupt came."""

    def interrupt(store: Any, verb: Any) -> Any:
        if committed:
            store.run(verb)
        raise KeyboardInterrupt

    heard, stored, _ = play(tmp_path, interrupt)
    assert sum(isinstance(answer, KeyboardInterrupt) for answer in heard.values()) == 1
    told = [answer[0] for answer in heard.values() if not isinstance(answer, BaseException)]
    assert len(told) == 3 and not any(one[3] for one in told), "nobody is told of a duplicate"
    assert set(ids(heard.values())) <= set(stored) and len(stored) == (4 if committed else 3)


def test_a_lost_connection_is_tried_again_and_adds_nothing_twice(tmp_path: Path) -> None:
    def lost(store: Any, verb: Any) -> Any:
        store.run(verb)
        raise StoreError("io", "the connection was lost")

    heard, stored, _ = play(tmp_path, lost)
    assert (
        ids(heard.values()) == sorted(stored)
        and len(stored) == 4
        and not any(answer[0][3] for answer in heard.values())
    )


def alone(remote: bool, problems: list[Exception | None]) -> tuple[Any, list[bool]]:
    """One thread, one message, and a store that fails as told → (what it heard, "again" of each try)."""
    tries: list[bool] = []

    def add(messages: Any, uploads: Any, again: bool) -> Any:
        tries.append(again)
        if (problem := problems[len(tries) - 1]) is not None:
            raise problem
        return [(messages[0].id, "<id>", 0, again, None)]

    try:
        return Batcher(remote=remote).keep(add, [message()], (), False), tries
    except Exception as problem:
        return problem, tries


def test_a_lost_connection_is_tried_again_only_where_there_is_one() -> None:
    lost = StoreError("io", "lost")
    heard, tries = alone(True, [lost, None])
    assert tries == [False, True] and heard[0][3] is False, "the second try's duplicate is our own"
    assert alone(False, [lost, None]) == (lost, [False])


def test_a_conflict_is_tried_three_times_in_all() -> None:
    conflict = StoreError("conflict", "in each other's way")
    assert alone(False, [conflict] * 3) == (conflict, [False] * 3)


def test_a_bug_is_raised_and_not_tried_again() -> None:
    bug = ZeroDivisionError()
    assert alone(True, [bug, None]) == (bug, [False])


def test_after_a_fork_the_childs_batcher_waits_for_nobody() -> None:
    batcher = Batcher(remote=False)
    batcher.leader.lock.acquire()
    forks._renewals[batcher](batcher)
    assert batcher.waiting == 0
    made = message()
    assert batcher.keep(lambda messages, *rest: [(made.id,)], [made], (), False) == [(made.id,)]
