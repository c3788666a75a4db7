"""Group commit for threads: one transaction for those who ask at one moment, and each its own answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from outmail.store import StoreError
from outmail.store.commit_threads import GroupCommit
from tests.waiting import until


class Store(GroupCommit):
    """Its verbs are texts; a text is its own answer."""

    url = "memory:"

    def __init__(self, mishap: BaseException | None = None) -> None:
        super().__init__()
        self.mishap = mishap
        self.transactions: list[list[Any]] = []

    def _check_fork(self) -> None:
        pass

    def _transaction(self, verbs: Sequence[Any], wait: float) -> list[Any]:
        self.transactions.append(list(verbs))
        if self.mishap is not None:
            raise self.mishap
        return [StoreError("other", verb) if verb == "bad" else verb for verb in verbs]


def play(store: Store, *verbs: Any) -> dict[str, Any]:
    """A thread for each verb; all come while the write lock is held → what each heard."""
    heard: dict[str, Any] = {}

    def ask(verb: Any) -> None:
        try:
            heard[verb] = store.run(verb)
        except BaseException as problem:
            heard[verb] = problem

    threads = [threading.Thread(target=ask, args=(verb,)) for verb in verbs]
    with store._write_lock:
        for thread in threads:
            thread.start()
        until(lambda: store.waiting == len(verbs) + 1)
    for thread in threads:
        thread.join(20)
    return heard


def test_those_who_ask_while_another_commits_are_one_transaction() -> None:
    store = Store()
    assert play(store, "a", "b", "c") == {"a": "a", "b": "b", "c": "c"}
    assert [sorted(verbs) for verbs in store.transactions] == [["a", "b", "c"]]


def test_one_verbs_exception_is_only_its_own() -> None:
    heard = play(Store(), "a", "bad", "c")
    assert isinstance(heard["bad"], StoreError) and (heard["a"], heard["c"]) == ("a", "c")


def test_what_fails_for_all_is_told_to_all() -> None:
    heard = play(Store(StoreError("full", "no space left")), "a", "b")
    assert [answer.kind for answer in heard.values()] == ["full", "full"]


def test_ctrl_c_is_for_one_thread_and_the_others_hear_that_they_cannot_know() -> None:
    store = Store(KeyboardInterrupt())
    heard = play(store, "a", "b", "c")
    kinds = [type(answer).__name__ for answer in heard.values()]
    assert sorted(kinds) == ["KeyboardInterrupt", "StoreError", "StoreError"]
    assert all(answer.kind == "io" for answer in heard.values() if isinstance(answer, StoreError))
    assert len(store.transactions) == 1, "no verb runs twice"


def test_who_waits_too_long_hears_that_the_store_is_busy_and_stores_nothing() -> None:
    store: Any = Store()
    with store._write_lock:
        with pytest.raises(StoreError, match="was busy") as caught:
            store.run("a", 0.01)
        with pytest.raises(StoreError, match="is busy"):
            store.commit(["b"], 0)
    assert caught.value.kind == "busy"
    assert store.run("c") == "c"
    assert store.transactions == [["c"]]


def test_after_a_fork_neither_the_lock_nor_the_waiting_are_the_parents() -> None:
    store: Any = Store()
    store._write_lock.acquire()
    store._leader.calls.append(None)
    store._begin_anew()
    assert store.waiting == 0 and store.run("a", 1.0) == "a"
