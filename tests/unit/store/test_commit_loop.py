"""Group commit for a loop: each verb has its answer once, in order, and one batch is under way at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

from outmail.store import StoreError
from outmail.store.commit_loop import Committer
from tests.waiting import until_in_loop


class Store:
    """Its verbs are texts; each commit waits until it is let go, on the writer's thread."""

    blocking = False

    def __init__(self) -> None:
        self.begun: list[list[Any]] = []
        self.go = threading.Event()
        self.go.set()
        self.at_once: Exception | None = None
        self.later: Exception | None = None

    def begin(self, verbs: Sequence[Any]) -> Callable[[], list[Any]]:
        self.begun.append(list(verbs))
        if self.at_once is not None:
            raise self.at_once

        def rest() -> list[Any]:
            assert self.go.wait(20)
            if self.later is not None:
                raise self.later
            return [StoreError("other", verb) if verb == "bad" else verb for verb in verbs]

        return rest


def play(script: Callable[[Any, Store, list[Any]], Any]) -> tuple[list[Any], list[list[Any]]]:
    """Run a script until all is answered → (answers in the order in which they came, batches)."""

    async def main() -> tuple[list[Any], list[list[Any]]]:
        store, heard = Store(), list[Any]()
        itself: Any = store
        commits = Committer(itself, asyncio.get_running_loop())
        try:
            await script(commits, store, heard)
            await until_in_loop(lambda: commits.idle)
        finally:
            commits.close()
        return heard, store.begun

    return asyncio.run(main())


def test_what_is_asked_in_one_turn_is_one_transaction() -> None:
    async def script(commits: Any, store: Store, heard: list[Any]) -> None:
        commits.contributor(lambda: commits.ask("c", heard.append) if not heard else None)
        commits.ask("a", heard.append)
        commits.ask("b", heard.append)
        commits.soon()

    assert play(script) == (["a", "b", "c"], [["a", "b", "c"]])


def test_one_batch_is_under_way_at_a_time_and_what_comes_meanwhile_is_the_next() -> None:
    async def script(commits: Any, store: Store, heard: list[Any]) -> None:
        store.go.clear()
        for verb in "abc":
            commits.ask(verb, heard.append)
            commits.flush()
        assert store.begun == [["a"]] and not heard and not commits.idle
        store.go.set()

    assert play(script) == (["a", "b", "c"], [["a"], ["b", "c"]])


def test_one_verbs_exception_stands_in_its_own_place() -> None:
    async def script(commits: Any, store: Store, heard: list[Any]) -> None:
        for verb in ("a", "bad", "c"):
            commits.ask(verb, heard.append)
        commits.flush()

    (first, second, third), _ = play(script)
    assert (first, third) == ("a", "c") and isinstance(second, StoreError)


def test_a_commit_that_fails_is_told_to_each_once_and_the_next_one_goes_on() -> None:
    async def script(commits: Any, store: Store, heard: list[Any]) -> None:
        for place in ("at_once", "later"):
            setattr(store, place, StoreError("io", place))
            commits.ask("a", heard.append)
            commits.ask("b", heard.append)
            commits.flush()
            await until_in_loop(lambda: commits.idle)
            setattr(store, place, None)
        commits.ask("c", heard.append)
        commits.flush()

    heard, begun = play(script)
    assert [str(one) for one in heard] == ["at_once", "at_once", "later", "later", "c"]
    assert begun == [["a", "b"], ["a", "b"], ["c"]]


def test_an_answer_that_its_taker_stumbles_over_does_not_keep_the_others_from_theirs() -> None:
    async def script(commits: Any, store: Store, heard: list[Any]) -> None:
        def stumble(answer: Any) -> None:
            raise RuntimeError

        commits.ask("a", stumble)
        commits.ask("b", heard.append)
        commits.flush()

    assert play(script)[0] == ["b"]


def test_a_blocking_call_keeps_its_place_between_commits() -> None:
    async def script(commits: Any, store: Store, heard: list[Any]) -> None:
        commits.call(lambda: "called", heard.append)
        commits.ask("a", heard.append)
        commits.flush()
        assert not store.begun

    assert play(script) == (["called", "a"], [["a"]])


def test_commits_and_calls_take_turns_however_many_come() -> None:
    """A stream of long calls, each asked for before the last one ended, starved every commit; and a stream of
    commits starves no call.
    """

    async def script(commits: Any, store: Store, heard: list[Any]) -> None:
        def called(answer: str) -> None:
            heard.append(answer)
            if len(heard) < 20:
                commits.call(lambda: "call", called)

        def written(answer: str) -> None:
            heard.append(answer)
            if len(heard) < 20:
                commits.ask("commit", written)
                commits.flush()

        for _ in range(3):
            commits.call(lambda: "call", called)
        commits.ask("commit", written)
        commits.flush()

    heard, _ = play(script)
    assert heard[:20] == ["call", "commit"] * 10


def test_a_commit_for_which_nobody_asks_anything_keeps_no_call_waiting() -> None:
    async def script(commits: Any, store: Store, heard: list[Any]) -> None:
        commits.call(lambda: "one", heard.append)
        commits.soon(0.05)
        commits.call(lambda: "two", heard.append)

    assert play(script) == (["one", "two"], [])


def test_a_call_of_a_contributor_comes_before_the_commit() -> None:
    """No transaction is begun while the other thread works with the store."""

    async def script(commits: Any, store: Store, heard: list[Any]) -> None:
        commits.contributor(lambda: commits.call(lambda: "called", heard.append) if not heard else None)
        commits.ask("a", heard.append)
        commits.flush()
        assert not store.begun

    assert play(script) == (["called", "a"], [["a"]])


def test_after_the_end_no_commit_begins_and_each_has_its_answer() -> None:
    """A transaction that an ended thread should finish would lock the store for ever."""

    async def script(commits: Any, store: Store, heard: list[Any]) -> None:
        store.go.clear()
        commits.ask("a", heard.append)
        commits.flush()
        commits.call(lambda: "called", heard.append)
        commits.ask("b", lambda answer: heard.append(type(answer)))
        commits.soon()
        commits.close()
        commits.ask("c", lambda answer: heard.append(type(answer)))
        commits.flush()
        commits.call(lambda: "d", lambda answer: heard.append(type(answer)))
        store.go.set()
        await until_in_loop(lambda: len(heard) == 5)

    heard, begun = play(script)
    assert heard == [StoreError, StoreError, StoreError, "a", "called"] and begun == [["a"]]
