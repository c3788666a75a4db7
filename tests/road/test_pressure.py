"""The engine under pressure: foreign locks, slow relays, settles that fail."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from outmail import Outbox
from outmail.clock import Clock
from outmail.engine import ages, completer, maintenance
from outmail.store import Kind, StoreError, verbs
from outmail.store.commit_loop import Committer
from outmail.store.sqlite.store import SqliteStore
from outmail.testing import Sink
from outmail.wiring import build_engine
from tests.waiting import stays_in_loop
from tests.waiting import until_in_loop as until

MakeBox = Callable[..., Outbox]


def engine_of(box: Outbox) -> Any:
    return build_engine(box.store, box.config, box.routes, Clock())


def switch(store: Any, monkeypatch: pytest.MonkeyPatch, kind: Kind) -> list[bool]:
    """While its one element is True, a loop can write nothing."""
    begin, broken = store.begin, [False]

    def failing(asks: Any) -> Any:
        if broken[0]:
            raise StoreError(kind, "the disk is not well")
        return begin(asks)

    monkeypatch.setattr(store, "begin", failing)
    return broken


def test_a_foreign_write_lock_does_not_stop_the_loop(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "q.db"))
    foreign = apsw.Connection(str(tmp_path / "q.db"))

    async def scene() -> None:
        commits = Committer(store, asyncio.get_running_loop())
        answers: list[Any] = []
        foreign.execute("BEGIN IMMEDIATE")
        commits.ask(verbs.note_put("test", "a", 1), answers.append)
        commits.flush()  # returns although nobody can write
        commits.ask(verbs.note_put("test", "b", 2), answers.append)
        commits.flush()
        await stays_in_loop(lambda: answers == [] and not commits.idle, 0.05)
        foreign.execute("COMMIT")
        await until(lambda: commits.idle)
        assert answers == [True, True]
        commits.close()

    asyncio.run(scene())
    assert store.read(verbs.note_list("test")) == {"a": 1, "b": 2}
    store.close()


def test_the_loop_goes_on_while_the_disk_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(str(tmp_path / "q.db"))
    commit_now = store._commit
    disk = threading.Event()

    def commit() -> None:
        assert disk.wait(20)
        commit_now()

    monkeypatch.setattr(store, "_commit", commit)

    async def scene() -> None:
        commits = Committer(store, asyncio.get_running_loop())
        answers: list[Any] = []
        commits.ask(verbs.note_put("test", "a", 1), answers.append)
        commits.flush()
        commits.contributor(
            lambda: commits.ask(verbs.note_put("test", "b", 2), answers.append) if len(answers) == 1 else None
        )
        commits.flush()  # wanted while one is under way: comes right after it
        # the loop goes on, the commit has not ended
        await stays_in_loop(lambda: answers == [] and not commits.idle, 0.05)
        disk.set()
        await until(lambda: len(answers) == 2 and commits.idle)
        commits.close()

    asyncio.run(scene())
    assert store.read(verbs.note_list("test")) == {"a": 1, "b": 2}
    store.close()


def test_a_commit_that_fails_is_an_answer_and_nothing_of_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(str(tmp_path / "q.db"))
    execute = store._writer.execute

    def full(sql: str, params: Any = ()) -> Any:
        if sql == "COMMIT":
            raise StoreError("full", "no space left")
        return execute(sql, params)

    async def scene() -> None:
        commits = Committer(store, asyncio.get_running_loop())
        answers: list[Any] = []
        monkeypatch.setattr(store._writer, "execute", full)
        for name in ("a", "b"):
            commits.ask(verbs.note_put("test", name, 1), answers.append)
        commits.flush()
        await until(lambda: commits.idle)
        assert [answer.kind for answer in answers] == ["full", "full"]
        monkeypatch.undo()
        commits.ask(verbs.note_put("test", "c", 3), answers.append)
        commits.flush()
        await until(lambda: commits.idle)
        commits.close()

    asyncio.run(scene())
    assert store.read(verbs.note_list("test")) == {"c": 3}
    store.close()


def test_a_verb_that_fails_spoils_only_itself(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "q.db"))

    def bad() -> Any:
        yield "INSERT INTO nowhere VALUES (1)", ()

    async def scene() -> None:
        commits = Committer(store, asyncio.get_running_loop())
        answers: list[Any] = []
        for verb in (verbs.note_put("test", "a", 1), bad(), verbs.note_put("test", "b", 2)):
            commits.ask(verb, answers.append)
        commits.flush()
        await until(lambda: commits.idle)
        assert answers[0] is True and isinstance(answers[1], StoreError) and answers[2] is True
        commits.close()

    asyncio.run(scene())
    assert store.read(verbs.note_list("test")) == {"a": 1, "b": 2}
    store.close()


def test_a_slow_relay_does_not_starve_a_healthy_one(make_box: MakeBox) -> None:
    with Sink("MAIL: hang") as tarpit, Sink() as healthy:
        box = make_box(
            toml=f'[relays.slow]\nurl = "{tarpit.url}"\n[relays.good]\nurl = "{healthy.url}"', deliver="never"
        )
        box.send_many(
            [{"to": f"s{i}@x.test", "subject": "s", "text": "t", "relay": "slow"} for i in range(3000)]
        )
        engine = engine_of(box)

        async def scene() -> None:
            running = asyncio.ensure_future(engine.run())
            await until(lambda: bool(engine.hops) and any(hop.feeds for hop in engine.hops.values()))
            box.send_many(
                [{"to": f"g{i}@x.test", "subject": "s", "text": "t", "relay": "good"} for i in range(300)]
            )
            await until(lambda: healthy.count == 300)
            assert engine.hops["slow"].out <= 100
            tarpit.close()
            engine.stop()
            await running

        asyncio.run(scene())


def test_upkeep_that_takes_longer_than_its_pause_does_not_stop_deliveries(
    make_box: MakeBox, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a database behind a slow line."""
    box = make_box(sink.url, deliver="never")
    sweep = ages.Ages.sweep

    def slow(itself: ages.Ages) -> None:
        time.sleep(0.03)  # a database that is far away
        sweep(itself)

    monkeypatch.setattr(maintenance, "UPKEEP", 0.01)
    monkeypatch.setattr(ages.Ages, "sweep", slow)
    box.send_many({"to": f"u{n}@x.test", "subject": "s"} for n in range(20))

    async def scene() -> None:
        engine = engine_of(box)
        running = asyncio.ensure_future(engine.run())
        await until(lambda: engine.counts["delivered"] == 20)
        engine.stop()
        await running

    asyncio.run(scene())


def test_one_outcome_that_cannot_be_written_does_not_hold_up_the_others(
    make_box: MakeBox, sink: Sink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    box = make_box(relay=sink.url, deliver="never")
    receipts = box.send_many([{"to": f"s{i}@x.test", "subject": "s", "text": "t"} for i in range(20)])
    settle = verbs.settle

    def failing(owner: int, settled: Any, **words: Any) -> Any:
        if any(item.delivery.id == receipts[7].id for item in settled):
            raise ValueError("a bug")
        return (yield from settle(owner, settled, **words))

    monkeypatch.setattr(verbs, "settle", failing)
    engine = engine_of(box)
    asyncio.run(asyncio.wait_for(engine.run(once=True), 30))
    states = [box.status(receipt.id).status for receipt in receipts]
    assert states.count("delivered") == 19 and states[7] == "sending"
    # its file stays, with the record of its dot
    assert [name for name in os.listdir(tmp_path) if ".engine." in name]
    monkeypatch.undo()
    asyncio.run(asyncio.wait_for(engine_of(box).run(once=True), 30))
    (recipient,) = box.status(receipts[7].id).recipients
    assert recipient.uncertain and recipient.state == "delivered"


def test_a_store_reached_by_a_symlink_is_the_same_store(make_box: MakeBox, tmp_path: Path) -> None:
    os.symlink(tmp_path / "q.db", tmp_path / "link.db")
    make_box()
    assert SqliteStore(str(tmp_path / "link.db")).path == SqliteStore(str(tmp_path / "q.db")).path


def test_producers_and_an_engine_share_one_file(tmp_path: Path) -> None:
    from tests.campaigns.producers import campaign

    result = campaign(tmp_path, 1.5, producers=4)
    assert result["errors"] == [] and result["submitted"] == result["delivered"] != 0


def test_two_routes_over_one_dead_relay_are_both_probed(make_box: MakeBox) -> None:
    with Sink() as backup:
        toml = (
            '[relay]\nurl = "smtp://127.0.0.1:1"\n[relays.b]\nurl = "smtp://127.0.0.1:1"\n[[route]]\nto = '
            '"*@two.test"\nrelays = ["b", "default"]\n'
        )
        box = make_box(toml=toml, deliver="never")
        box.send_many(
            [{"to": f"u{i}@{'two' if i % 2 else 'one'}.test", "subject": "s", "text": "t"} for i in range(20)]
        )
        engine = engine_of(box)

        async def scene() -> None:
            running = asyncio.ensure_future(engine.run())
            await until(lambda: engine.counts["deferred"] >= 8, 30)
            engine.stop()
            await running

        asyncio.run(scene())
        assert backup.count == 0
        tried = {r.route for status in box.find() for r in status.recipients if r.attempts}
        assert tried == {"default", "b,default"}


@pytest.mark.parametrize("kind", ["full", "readonly", "io"])
def test_the_engine_goes_on_by_itself_when_the_disk_is_well_again(
    make_box: MakeBox, sink: Sink, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """Outcomes learned while nothing can be written are kept, and written once; nothing is sent twice."""
    box = make_box(toml=f'relay = "{sink.url}"', deliver="never")
    box.send_many([{"to": f"u{i}@x.test", "subject": "s", "text": "t"} for i in range(50)])
    broken = switch(box.store, monkeypatch, kind)
    engine = engine_of(box)

    async def scene() -> None:
        running = asyncio.ensure_future(engine.run())
        await until(lambda: bool(engine.hops))
        broken[0] = True
        await until(lambda: sink.count == 50)
        await stays_in_loop(lambda: "sending" in {status.status for status in box.find()}, 0.2)
        broken[0] = False
        await until(lambda: all(status.status == "delivered" for status in box.find()))
        engine.stop()
        await running

    asyncio.run(scene())
    assert sink.count == 50


def test_suspects_go_one_after_the_other_without_a_pause(make_box: MakeBox, sink: Sink) -> None:
    box = make_box(toml=f'relay = "{sink.url}"', deliver="never")
    box.send_many([{"to": f"u{i}@x.test", "subject": "s", "text": "t"} for i in range(300)])
    store: Any = box.store
    dead = store.register(Clock().now())
    for delivery in store.run(verbs.lease(dead.id, 1, {"default": 300}, Clock().now())):
        dead.begin(delivery)
    dead.file.abandon()  # its lock is free, its file is there: killed
    engine = engine_of(box)

    async def scene() -> None:
        running = asyncio.ensure_future(engine.run())
        await until(lambda: sink.count == 300, 28)  # at a tenth of a second each it would be half a minute
        engine.stop()
        await running

    asyncio.run(scene())
    assert {status.status for status in box.find()} == {"delivered"}


@pytest.mark.parametrize("hangs_up", [False, True])
def test_what_is_not_on_record_is_bounded(
    make_box: MakeBox, sink: Sink, monkeypatch: pytest.MonkeyPatch, hangs_up: bool
) -> None:
    """While outcomes cannot be written no more final dots are sent than a settle batch and one for each
    session: so many doubles a kill could leave. A relay that hangs up on those who wait for permission was
    sent nothing, and nothing is uncertain.
    """
    monkeypatch.setattr(completer, "SETTLE_BATCH", 10)
    box = make_box(toml=f'relay = "{sink.url}"', deliver="never")
    box.send_many([{"to": f"u{i}@x.test", "subject": "s", "text": "t"} for i in range(300)])
    broken = switch(box.store, monkeypatch, "full")
    engine = engine_of(box)

    async def scene() -> None:
        running = asyncio.ensure_future(engine.run())
        await until(lambda: sink.count > 20)
        broken[0] = True
        written = sum(status.status == "delivered" for status in box.find())
        await until(lambda: bool(engine.completer._dots))
        # one commit may have been under way
        await stays_in_loop(lambda: sink.count <= written + 10 + 20 + 10, 0.3)
        if hangs_up:
            await asyncio.to_thread(sink.close)
            await stays_in_loop(lambda: engine.completer._unsettled, 0.2)
        broken[0] = False
        if not hangs_up:
            await until(lambda: all(status.status == "delivered" for status in box.find()))
        else:
            await until(lambda: not engine.completer._dots and not engine.completer._unsettled)
        engine.stop()
        await running

    asyncio.run(scene())
    people = [recipient for status in box.find() for recipient in status.recipients]
    assert not any(recipient.uncertain for recipient in people)
    assert sink.count == sum(recipient.state == "delivered" for recipient in people)
