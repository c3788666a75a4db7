"""What only the PostgreSQL store can do, or do wrong: many hosts, servers that go away, late commits."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from outmail import Outbox
from outmail.clock import Clock
from outmail.config import from_toml
from outmail.errors import ConfigError, NotStored
from outmail.model import Dsn, Filter, Message, Recipient
from outmail.store import StoreError, Verb, shown
from outmail.store.postgres import notify
from outmail.store.postgres import store as postgres
from outmail.store.postgres import verbs as pgsql
from outmail.store.postgres.connection import SharedConnection
from outmail.store.postgres.dialect import translated
from outmail.store.postgres.store import PostgresStore
from outmail.store.postgres.url import conninfo_of, place_of
from outmail.store.postgres.watermark import FullScanTimer, Watermark
from outmail.store.verbs.delivery import DELIVERED, LEASE, READY, SIZES, TO_SEND
from outmail.testing import Sink
from outmail.testing.conformance import NOW, add, lease, message, settle, standing
from outmail.wiring import build_engine
from tests import pgserver, programs
from tests.waiting import listens, stays_in_loop, until
from tests.waiting import until_in_loop as sees

VERSION = max(pgserver.installed(), key=int)


@pytest.fixture
def url() -> Iterator[str]:
    with pgserver.database(VERSION) as made:
        yield made


@pytest.fixture
def stores(url: str, tmp_path: Path) -> Iterator[Any]:
    """stores(host) → a store as a host of that name would open it."""
    made: list[PostgresStore] = []

    def store(host: str) -> PostgresStore:
        made.append(PostgresStore(url, str(tmp_path / host / "pg")))
        return made[-1]

    yield store
    for one in made:
        for owner in list(one._owners):
            owner.file.abandon()
        one.close()


def late(db: Any, owner: Any, seconds: int = 200) -> None:
    """As if the owner had not renewed for so long, and the server had been up for longer."""
    db.execute(
        "UPDATE outmail.owner SET renewed_at = clock_timestamp() - make_interval(secs => %s) WHERE id = %s",
        (seconds, owner.id),
    )


def test_two_hosts_lease_what_the_other_has_not(stores: Any) -> None:
    one, two = stores("one"), stores("two")
    add(one, *[message() for _ in range(20)])
    first, second = one.register(NOW), two.register(NOW)
    got = [d.id for d in lease(one, first, 12)] + [d.id for d in lease(two, second, 12)]
    assert len(got) == 20 == len(set(got))


def test_rows_being_leased_elsewhere_are_passed_over_not_waited_for(stores: Any, url: str) -> None:
    one = stores("one")
    add(one, message(), message())
    owner = one.register(NOW)
    with psycopg.connect(url) as foreign:
        foreign.execute(
            "SELECT 1 FROM outmail.recipient WHERE message = (SELECT min(seq) FROM outmail.message) FOR "
            "UPDATE"
        )
        began = time.monotonic()
        assert len(lease(one, owner, 5)) == 1 and time.monotonic() - began < 20
        foreign.rollback()


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the server had been up for long."""
    monkeypatch.setattr(
        pgsql, "_silent", lambda seconds: f"clock_timestamp() - renewed_at > interval '{seconds} seconds'"
    )


def test_another_hosts_lease_ends_by_the_servers_clock(
    stores: Any, url: str, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgsql, "DOUBT", 0)
    one, two = stores("one"), stores("two")
    add(one, message(), message())
    dead, alive = one.register(NOW), two.register(NOW)
    (delivery,) = lease(one, dead, 1)
    lease(two, alive, 1)
    with psycopg.connect(url, autocommit=True) as db:
        late(db, dead, 60)
        assert two.reclaim(NOW, hold=False) == []
        late(db, dead)
        assert [(f["leases"], f["uncertain"]) for f in two.reclaim(NOW, hold=False)] == [(1, 1)]
    assert two.reclaim(NOW, hold=False) == [] and standing(two, delivery.id).uncertain
    # it was alive after all: it cannot renew, and what it learns is a late answer
    assert not one.run(pgsql.renew(dead.id))
    assert (
        settle(one, dead, delivery, "deferred") == 0
        and settle(one, dead, delivery, "delivered", "delivered") == 1
    )
    assert standing(one, delivery.id).state == "delivered"


def test_a_servers_clock_that_is_set_ahead_takes_no_live_lease(stores: Any, url: str, settled: None) -> None:
    one, two = stores("one"), stores("two")
    add(one, message(), message())
    mine, other = one.register(NOW), two.register(NOW)
    lease(one, mine, 1)
    lease(two, other, 1)
    with psycopg.connect(url, autocommit=True) as db:
        late(db, mine, 3600)
        late(db, other, 3600)
        for _ in range(3):
            assert one.reclaim(NOW, hold=False) == [] == two.reclaim(NOW, hold=False)
        mine.renewed -= 31  # it renews as always
        one.reclaim(NOW, hold=False)
        assert not mine.lost
        db.execute(
            "UPDATE outmail.note SET value = jsonb_set(value::jsonb, '{at}', to_jsonb((value::jsonb ->> "
            "'at')::float8 - 46))::text WHERE kind = 'doubt'"
        )
        assert two.reclaim(NOW, hold=False) == []  # a doubt about a renewal that is past
        # the other was doubted, and has not renewed since
        assert [f["leases"] for f in one.reclaim(NOW, hold=False)] == [1]
        assert db.execute(
            "SELECT count(*) FROM outmail.note WHERE kind = 'doubt' AND key = %s", (str(other.id),)
        ).fetchone() == (0,)


def test_nobody_reclaims_for_one_lease_after_the_server_started(
    stores: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgsql, "DOUBT", 0)
    one, two = stores("one"), stores("two")
    add(one, message())
    dead = one.register(NOW)
    lease(one, dead, 1)
    with psycopg.connect(url, autocommit=True) as db:
        late(db, dead)
        young = db.execute(
            "SELECT pg_postmaster_start_time() > clock_timestamp() - interval '120 seconds'"
        ).fetchone()[0]  # type: ignore[index]
    assert young is False or two.reclaim(NOW, hold=False) == []


def test_without_renewal_no_dot_is_granted(stores: Any) -> None:
    one = stores("one")
    add(one, message())
    owner = one.register(NOW)
    (delivery,) = lease(one, owner)
    one.dots(owner, [(delivery, delivery.recipients)])
    owner.renewed -= 91
    with pytest.raises(StoreError):
        one.dots(owner, [(delivery, delivery.recipients)])


def test_an_engine_that_slept_beyond_its_lease_sends_nothing_of_it_and_begins_anew(
    url: str, sink: Sink, stores: Any, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped with its hands full: one dialogue waits for the answer to the final dot, the others for
    their first. Another host takes all of it. Awake, it drops that, confirms what was answered meanwhile, and
    works on under another number.
    """
    monkeypatch.setattr(pgsql, "DOUBT", 0)
    sink.script("DOT: delay 1.5")
    other = stores("other")
    with Outbox(url, config=config(sink), deliver="never") as box:
        ids = [
            r.id
            for r in box.send_many({"to": f"u{i}@x.test", "subject": "s", "text": "t"} for i in range(50))
        ]
        engine = build_engine(box.store, box.config, box.routes, Clock())

        async def scene() -> None:
            running = asyncio.ensure_future(engine.run())
            await sees(
                lambda: (
                    sum(r.dotted for hop in engine.hops.values() for d in hop.held() for r in d.recipients)
                    > 0
                )
            )
            before, out = (
                engine.owner,
                [r for hop in engine.hops.values() for d in hop.held() for r in d.recipients if r.dotted],
            )
            before.renewed -= 3600  # the process was stopped for an hour, and wakes here
            with psycopg.connect(url, autocommit=True) as db:
                late(db, before)
                taken = other.reclaim(Clock().now(), hold=True)
                assert taken[0]["leases"] >= len(out)
            assert not engine.standing()
            await sees(lambda: engine.owner is not before and bool(engine.owner.id))
            assert before.lost and engine.owner.id != before.id
            await sees(lambda: sink.count >= len(out))
            # no final dots for what others hold
            await stays_in_loop(lambda: sink.count == len(out), 0.2)
            await asyncio.to_thread(box.release, "state:held")
            await sees(lambda: all(s.status == "delivered" for s in box.find()))
            engine.stop()
            await running

        asyncio.run(scene())
        assert len(ids) == 50 and sink.count == 50  # whose answer came late was confirmed, not sent again
        assert [event.event for event in box.events()].count("confirm") >= 1


def test_a_late_commit_is_never_skipped_and_strangers_are_not_waited_for(stores: Any, url: str) -> None:
    one = stores("one")
    early, slow = message(), message()
    with psycopg.connect(url) as stranger, psycopg.connect(url) as db:
        stranger.execute("SELECT pg_current_xact_id()")
        number = db.execute("SELECT nextval('outmail.message_seq')").fetchone()[0]  # type: ignore[index]
        db.execute(
            "INSERT INTO outmail.event (at, event, message, state, uncertain, reason, attempts) VALUES (1, "
            "'accepted', %s, 'queued', 0, '', 0)",
            (number,),
        )
        add(one, early)
        began = time.monotonic()
        (first,) = one.read(one.verbs.events_after(0))
        assert first.id == early.id and time.monotonic() - began < 20
        db.execute(
            "INSERT INTO outmail.message VALUES (%s, %s, '', '', '', 1, '', 0, 1, 1, 1)", (number, slow.id)
        )
        db.commit()
        assert [e.id for e in one.read(one.verbs.events_after(first.cursor))] == [slow.id]


def test_what_a_late_clock_left_behind_is_found_in_the_end(
    stores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking begins a little before what was seen last; once in a while at the beginning."""
    one = stores("one")
    owner = one.register(NOW)
    add(one, message(now=NOW))
    assert len(lease(one, owner, 5, NOW + 1)) == 1
    late, later = message(now=NOW - Watermark.MARGIN // 2), message(now=NOW - 60_000)
    add(one, late, later)
    assert [d.id for d in lease(one, owner, 5, NOW + 2, 2)] == [late.id] and one.read(
        one.verbs.next_due(NOW + 3)
    ) == {}
    monkeypatch.setattr(FullScanTimer, "EVERY", 0.0)
    assert list(one.read(one.verbs.next_due(NOW + 3))) == ["default"] and [
        d.id for d in lease(one, owner, 5, NOW + 3, 3)
    ] == [later.id]


def test_looking_does_not_walk_over_what_a_stranger_keeps(
    stores: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long foreign transaction keeps dead rows from being cleaned up: a lease and a look touch few of
    them.
    """
    monkeypatch.setattr(FullScanTimer, "EVERY", 3600.0)  # this may take a minute where the machine is slow
    one = stores("one")
    owner = one.register(NOW)
    with psycopg.connect(url) as stranger, psycopg.connect(url, autocommit=True) as db:
        stranger.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        stranger.execute("SELECT count(*) FROM outmail.note")
        for i in range(6):
            add(one, *[message(now=NOW + i * 60_000) for _ in range(500)])
            for delivery in lease(one, owner, 500, NOW + i * 60_000, i):
                settle(one, owner, delivery, "delivered", "delivered")
        add(one, message(now=NOW + 400_000))
        db.execute("ANALYZE outmail.recipient_live")  # or the plan hangs on what the server happened to count
        sql, _ = translated(READY)
        watermark = one.verbs.watermark.of("default", 1)
        plan = "\n".join(
            row[0]
            for row in db.execute(
                "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) " + sql,
                ("default", 1, watermark, NOW + 500_000, 100),
            )
        )
        touched = int(re.search(r"Buffers: shared hit=(\d+)", plan)[1])  # type: ignore[index]
        everything = "\n".join(
            row[0]
            for row in db.execute(
                "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) " + sql,
                ("default", 1, 0, NOW + 500_000, 100),
            )
        )
        assert touched * 3 < int(re.search(r"Buffers: shared hit=(\d+)", everything)[1]), plan + everything  # type: ignore[index]
        stranger.rollback()


@pytest.mark.parametrize("together", [False, True])
def test_an_error_at_any_moment_leaves_a_connection_that_works(stores: Any, together: bool) -> None:
    """Statements are prepared after a few times. One that is passed over behind an error is not, whatever the
    library believes: commits failed for ever with "prepared statement does not exist".
    """

    def bad() -> Verb[None]:
        yield "UPDATE recipient SET state = ?, owner = ?", ("sending", None)

    for before in range(8):
        one = stores(str(before))
        for _ in range(before + 1):
            add(one, message())
        for _ in range(2):
            if together:
                good = one.verbs.add([message()])
                assert isinstance(one.commit([bad(), good])[0], StoreError)
            else:
                with pytest.raises(StoreError):
                    one.run(bad())
        for _ in range(8):
            add(one, message())


def test_one_key_from_several_hosts_at_once_is_one_message(stores: Any) -> None:
    hosts = [stores(str(i)) for i in range(4)]
    answers: list[Any] = []

    def work(host: Any) -> None:
        for i in range(20):
            answers.extend(add(host, message(key=f"k{i}"), message(key=f"k{(i + 7) % 20}")))

    threads = [threading.Thread(target=work, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 160 and sum(not duplicate for _, _, _, duplicate in answers) == 20
    assert len(hosts[0].read(hosts[0].verbs.find(Filter(), NOW))[0]) == 20


def test_text_that_postgresql_does_not_take_is_mended(stores: Any) -> None:
    one = stores("one")
    bad = message()
    bad.subject = "a\0b\ud800c"
    add(one, bad)
    assert one.read(one.verbs.find(Filter(), NOW))[0][0].subject == "a\ufffdb?c"


def test_two_versions_side_by_side_and_a_later_schema(stores: Any, url: str) -> None:
    one = stores("one")
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("UPDATE outmail.version SET n = 99")
    add(one, message())  # who is connected goes on
    with pytest.raises(StoreError, match="later outmail"):
        stores("two")


def test_schemas_made_at_the_same_moment(url: str, tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def open_it(i: int) -> None:
        try:
            PostgresStore(url, str(tmp_path / str(i))).close()
        except BaseException as problem:
            failures.append(problem)

    threads = [threading.Thread(target=open_it, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


@pytest.mark.parametrize(
    ("change", "kind", "words", "hint"),
    [("port", "io", "refused", "did not answer"), ("database", "forbidden", "does not exist", "createdb")],
)
def test_a_server_that_cannot_be_reached_is_said_in_a_sentence(
    url: str, change: str, kind: str, words: str, hint: str
) -> None:
    bad = url.replace(url.rsplit(":", 1)[1].split("/")[0], "1") if change == "port" else url + "x"
    with pytest.raises(NotStored, match=words) as caught:
        Outbox(bad)
    assert caught.value.code == f"store-{kind}" and hint in caught.value.hint
    assert "folder" not in caught.value.hint


def test_a_read_only_server_refuses_and_keeps_what_it_has(stores: Any, url: str) -> None:
    one = stores("one")
    add(one, message())
    one._writers[0].connection.open().execute("SET default_transaction_read_only = on")
    with pytest.raises(StoreError) as caught:
        add(one, message())
    assert caught.value.kind == "readonly" and caught.value.passing
    one._writers[0].connection.drop()
    add(one, message())


def test_a_statement_that_takes_too_long_is_said_and_leaves_nothing(stores: Any) -> None:
    one = stores("one")

    def slow() -> Any:
        yield from one.verbs.add([message()])
        yield "SELECT pg_sleep(5)", ()

    one._writers[0].connection.open().execute("SET statement_timeout = '100ms'")
    with pytest.raises(StoreError) as caught:
        one.run(slow())
    assert caught.value.kind == "busy" and one.read(one.verbs.find(Filter(), NOW))[0] == []


def test_a_table_that_somebody_holds_is_waited_for_and_then_said(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VACUUM FULL, a migration, a forgotten session: nobody waits for ever, and what was in time is
    stored.
    """
    monkeypatch.setattr("outmail.store.postgres.connection.LOCK_WAIT", 0.5)
    with Outbox(url, deliver="never") as box, psycopg.connect(url) as db:
        first = box.send("a@x.test", "s", sender="me@x.test").id
        db.execute("LOCK TABLE outmail.message IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        with pytest.raises(NotStored, match="lock timeout") as problem:
            box.send("b@x.test", "s", sender="me@x.test")
        with pytest.raises(NotStored, match="lock timeout"):
            box.status(first)
        assert time.monotonic() - began < 20 and problem.value.code == "store-busy"
        threading.Timer(0.2, db.rollback).start()
        assert box.send("c@x.test", "s", sender="me@x.test")
        assert [status.recipients[0].address for status in box.find()] == ["a@x.test", "c@x.test"]
        with psycopg.connect(url) as other:  # who says otherwise for the role is heard
            other.execute("ALTER ROLE outmail SET lock_timeout = '123s'")
        try:
            late = SharedConnection(url, conninfo_of(url)[0], prepare=True)
            assert late.connection.open().execute("SHOW lock_timeout").fetchone() == ("123s",)
            late.close()
        finally:
            with psycopg.connect(url) as other:
                other.execute("ALTER ROLE outmail RESET lock_timeout")


def test_a_commit_that_takes_long_does_not_hold_up_all_other_threads(stores: Any, url: str) -> None:
    one = stores("one")

    def slow() -> Any:
        yield "SELECT pg_advisory_xact_lock(7)", ()

    with psycopg.connect(url) as foreign:
        foreign.execute("SELECT pg_advisory_xact_lock(7)")
        thread = threading.Thread(target=lambda: one.run(slow()))
        thread.start()
        until(lambda: one._writers[0].waiting)
        for _ in range(5):
            add(one, message())
        assert thread.is_alive()
    thread.join(20)
    assert not thread.is_alive()
    assert len(one.read(one.verbs.find(Filter(), NOW))[0]) == 5


def test_after_close_nobody_gets_a_new_connection(url: str, tmp_path: Path) -> None:
    store = PostgresStore(url, str(tmp_path / "q"))
    add(store, message())
    writer = store._writers[0]
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        add(store, message())
    with pytest.raises(StoreError, match="is closed"):
        writer.run(store.verbs.add([message()]))  # it was on its way when the store was closed


def test_a_connection_lost_during_the_commit_is_no_error_and_no_double(url: str, sink: Sink) -> None:
    """The answer to the commit is lost on the way: the message is there, and the caller hears yes."""
    with (
        Outbox(url, config=config(sink), deliver="never") as box,
        psycopg.connect(url, autocommit=True) as db,
    ):
        db.execute(
            "CREATE FUNCTION outmail.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM "
            "pg_sleep(0.3); RETURN NULL; END $$"
        )
        db.execute(
            "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON outmail.message DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION outmail.slow()"
        )
        store: Any = box.store
        for key in (None, "k"):
            line = socket.socket(fileno=os.dup(store._writers[0].connection.open().fileno()))
            threading.Timer(0.15, lambda line=line: line.shutdown(socket.SHUT_RDWR)).start()
            receipt = box.send("a@x.test", "s", key=key)
            assert receipt.durable and [s.id for s in box.find()].count(receipt.id) == 1
            line.close()
        assert len(list(box.find())) == 2


def test_urls() -> None:
    assert shown("postgresql://u:secret@h/db?password=x&a=b") == "postgresql://u:…@h/db?password=…&a=b"
    conninfo, prepare = conninfo_of("postgresql://u@a,b/db?pgbouncer=1")
    assert "target_session_attrs=read-write" in conninfo and not prepare and "pgbouncer" not in conninfo
    assert (
        place_of("postgresql://u:x@h/db")
        == place_of("postgresql://v@h/db?connect_timeout=3")
        != place_of("postgresql://h/other")
    )
    with pytest.raises(ConfigError, match="no URL"):
        conninfo_of("postgresql://h/db?nonsense=1")


# -- the whole road ------------------------------------------------------------------------------------------


def config(sink: Sink, more: str = "") -> Any:
    return from_toml(f'from = "me@outmail.test"\nrelay = "smtp://127.0.0.1:{sink.port}"\n{more}', "test", {})


def test_a_program_sends_through_postgresql(url: str, sink: Sink) -> None:
    with Outbox(url, config=config(sink), deliver="thread") as box:
        receipts = box.send_many([{"to": f"u{i}@x.test", "subject": str(i)} for i in range(300)])
        sink.wait_for(300, timeout=30)
        assert box.wait(receipts[-1].id, 10).status == "delivered"
        assert box.attempts(receipts[0].id)[0].outcome == "delivered" and b"Subject: 0" in box.content(
            receipts[0].id
        )
        heard = [e.event for e in box.events()]
        assert heard.count("accepted") == 300
    assert len({m.recipients for m in sink.messages}) == 300 == len(sink.messages)


def test_an_operators_commands_work(url: str, sink: Sink) -> None:
    with Outbox(url, config=config(sink), deliver="never") as box:
        one = box.send("a@x.test", "Überschrift", tag="t", at="1h").id
        assert [s.id for s in box.find("subject:*BERSCHRIFT tag:t state:queued to:*@x.test -tag:u")] == [one]
        assert (
            box.hold(one) == 1
            and box.release("is:live") == 1
            and box.cancel(one) == 1
            and box.requeue("state:cancelled") == 1
        )
        assert box.store.read(box.store.verbs.stats(box.clock.now()))["states"] == {"queued": 1}
        assert box.store.check() == []


def test_mail_from_another_host_is_found_by_looking(url: str, sink: Sink, tmp_path: Path) -> None:
    with (
        Outbox(url, config=config(sink), deliver="thread"),
        Outbox(url, config=config(sink), deliver="never") as other,
    ):
        other.send("a@x.test", "s")
        sink.wait_for(1, timeout=5)


def test_several_engines_on_one_database_send_each_message_once(url: str, sink: Sink) -> None:
    boxes = [Outbox(url, config=config(sink), deliver="thread") for _ in range(3)]
    boxes[0].send_many([{"to": f"u{i}@x.test", "subject": str(i)} for i in range(1500)])
    sink.wait_for(1500, timeout=60)
    until(lambda: all(status.settled for status in boxes[0].find()))
    for box in boxes:
        box.close()
    assert len(sink.messages) == 1500 == len({m.recipients for m in sink.messages})


@pytest.mark.parametrize("point", ["C3", "C4", "C5"])
def test_an_engine_killed_here_is_taken_back_at_once(url: str, sink: Sink, point: str, outmail: Any) -> None:
    with Outbox(url, config=config(sink), deliver="never") as box:
        receipts = [box.send(f"u{i}@x.test", "s") for i in range(5)]
        words = ("run", "--once", "--store", url, "--relay", sink.url)
        assert outmail(*words, OUTMAIL_FAIL=f"{point}:kill").returncode == -9
        # a run ends when what was due at its start has had an attempt; suspects are put off meanwhile
        until(lambda: outmail(*words).returncode == 0 and all(status.settled for status in box.find()))
        delivered = [m.recipients[0] for m in sink.messages]
        assert set(delivered) == {f"u{i}@x.test" for i in range(5)}
        for receipt in receipts:
            (recipient,) = box.status(receipt.id).recipients
            assert recipient.state == "delivered"
            assert delivered.count(recipient.address) == 1 or recipient.uncertain


def test_a_server_that_restarts_is_waited_for(sink: Sink, tmp_path: Path) -> None:
    server = pgserver.PgServer(pgserver.installed()[VERSION]).start()
    try:
        with Outbox(server.create("q"), config=config(sink), deliver="thread") as box:
            box.send("a@x.test", "before")
            sink.wait_for(1, timeout=10)
            server.stop()
            with pytest.raises(NotStored) as caught:
                box.send("b@x.test", "away")
            assert caught.value.code == "store-io"
            server.start()
            box.send("c@x.test", "after")
            sink.wait_for(2, timeout=20)
            assert {s.status for s in box.find()} <= {"delivered", "sending"}
    finally:
        server.remove()


def test_smtp_in_postgresql_smtp_out(url: str, sink: Sink, tmp_path: Path) -> None:
    import smtplib

    port = pgserver.free_port()
    (tmp_path / "o.toml").write_text(
        f'store = "{url}"\nrelay = "{sink.url}"\n[listen]\nsmtp = ["127.0.0.1:{port}"]\n'
    )
    service = subprocess.Popen(
        [sys.executable, "-m", "outmail", "run", "--config", str(tmp_path / "o.toml")], stderr=subprocess.PIPE
    )
    try:
        until(lambda: listens(port))
        client = smtplib.SMTP("127.0.0.1", port, timeout=10)
        for i in range(20):
            client.sendmail("me@x.test", [f"u{i}@x.test"], b"Subject: x\r\n\r\nhello\r\n")
        client.quit()
        sink.wait_for(20, timeout=20)
    finally:
        service.terminate()
        _, words = service.communicate(timeout=30)
    assert service.returncode == 0 and b"Traceback" not in words, words.decode()


def test_limits_are_divided_between_engines(url: str, sink: Sink) -> None:
    """Two engines, a limit of four sessions: two each, also for the one that had all four before."""
    more = "concurrency = 4\n"
    made = from_toml(f'from = "me@outmail.test"\n[relay]\nurl = "{sink.url}"\n{more}', "test", {})
    sink.script("DOT: delay 0.02")
    with Outbox(url, config=made, deliver="thread") as one:
        one.send_many([{"to": f"u{i}@x.test", "subject": str(i)} for i in range(300)])
        sink.wait_for(20, timeout=20)
        with Outbox(url, config=made, deliver="thread") as two:
            engines = [box._engine.engine for box in (one, two)]  # type: ignore[union-attr]
            until(lambda: [engine.engines for engine in engines] == [2, 2])
            one.send_many([{"to": f"v{i}@x.test", "subject": str(i)} for i in range(300)])
            sink.wait_for(450, timeout=30)
            for engine in engines:
                (hop,) = engine.hops.values()
                assert hop.pace.ceiling == 2 and len(hop.feeds) - hop.leaving <= 2
            sink.wait_for(600, timeout=30)
    assert len({m.recipients for m in sink.messages}) == 600


def test_outcomes_learned_while_the_server_was_away_are_kept(sink: Sink) -> None:
    server = pgserver.PgServer(pgserver.installed()[VERSION]).start()
    sink.script("DOT: delay 1.5")
    try:
        with Outbox(server.create("q"), config=config(sink), deliver="thread") as box:
            receipt = box.send("a@x.test", "s")
            until(lambda: "DATA" in sink.commands)
            server.stop()
            sink.wait_for(1, timeout=10)
            completer = box._engine.engine.completer  # type: ignore[union-attr]
            until(lambda: completer._unsettled)
            server.start()
            assert box.wait(receipt.id, 20).status == "delivered"
    finally:
        server.remove()
    assert len(sink.messages) == 1


@programs.needs("pgbouncer", "pgbouncer")
def test_pgbouncer_in_transaction_mode_may_stand_between(url: str, sink: Sink, tmp_path: Path) -> None:
    server, port = pgserver.running(VERSION), pgserver.free_port()
    settings = server.home / "bouncer.ini"
    settings.write_text(
        f"[databases]\n* = host=127.0.0.1 port={server.port} user=outmail\n[pgbouncer]\nlisten_addr = "
        f"127.0.0.1\nlisten_port = {port}\n"
        "unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = "
        "2\nignore_startup_parameters = extra_float_digits\n"
    )
    who: dict[str, Any] = (
        {"user": server.user, "group": server._group(), "extra_groups": []} if server.user else {}
    )
    with open(tmp_path / "bouncer.log", "wb") as log:
        bouncer = subprocess.Popen(
            [str(programs.found("pgbouncer")), str(settings)], stderr=log, stdout=log, cwd=server.home, **who
        )
    try:
        until(lambda: bouncer.poll() is not None or listens(port))
        assert bouncer.poll() is None, (tmp_path / "bouncer.log").read_text()
        through = url.replace(f":{server.port}/", f":{port}/") + "?pgbouncer=1"
        boxes = [Outbox(through, config=config(sink), deliver="thread") for _ in range(3)]
        threads = [
            threading.Thread(target=lambda n=n: [boxes[n].send(f"u{n}-{i}@x.test", "s") for i in range(60)])
            for n in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        sink.wait_for(180, timeout=30)
        for box in boxes:
            box.close()
    finally:
        bouncer.terminate()
        bouncer.wait(10)
    assert len({m.recipients for m in sink.messages}) == 180 == len(sink.messages)


def test_reports_and_digests_live_on_postgresql_too(url: str, sink: Sink) -> None:
    import logging

    import outmail

    made = from_toml(f'from = "me@x.test"\nto = "me@x.test"\nrelay = "{sink.url}"\n', "test", {})
    with Outbox(url, config=made, deliver="thread") as box:
        for fail in (True, False):
            try:
                with outmail.job("nightly", outbox=box, start=True):
                    assert not fail
            except AssertionError:
                pass
        sink.wait_for(3, timeout=20)
        handler = outmail.DigestHandler(name="feeds", outbox=box)
        logger = logging.getLogger("feeds")
        logger.addHandler(handler)
        logger.error("feed %s failed", "x", extra={"key": "x"})
        logger.removeHandler(handler)
        handler.close()
        sink.wait_for(5, timeout=20)  # started, failed, started, recovered, and the digest
        jobs = box.store.read(box.store.verbs.note_list("job"))
        assert "nightly" in str(jobs)
    text = b"".join(m.content for m in sink.messages)
    assert b"FAILED" in text and b"nightly" in text and b"feed x failed" in text


def test_out_of_connections_is_said_at_once(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("DROP ROLE IF EXISTS few")
        db.execute("CREATE ROLE few LOGIN CONNECTION LIMIT 1")
        try:
            few = url.replace("outmail@", "few@")
            with psycopg.connect(few):
                began = time.monotonic()
                with pytest.raises(NotStored, match="too many connections") as caught:
                    Outbox(few)
                assert caught.value.code == "store-busy" and time.monotonic() - began < 20
        finally:
            db.execute("DROP ROLE few")


def test_a_role_that_may_not_create_the_schema_is_told(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("DROP ROLE IF EXISTS reader")
        db.execute("CREATE ROLE reader LOGIN")
        try:
            with pytest.raises(NotStored, match="permission denied") as caught:
                Outbox(url.replace("outmail@", "reader@"))
            assert caught.value.code == "store-forbidden"
        finally:
            db.execute("DROP ROLE reader")


def test_a_wrong_password_is_said_and_never_shown(sink: Sink) -> None:
    server = pgserver.PgServer(pgserver.installed()[VERSION])
    hba = server.data / "pg_hba.conf"
    hba.write_text("host all guarded 127.0.0.1/32 scram-sha-256\n" + hba.read_text())
    server.start()
    try:
        url = server.create("q")
        with psycopg.connect(url, autocommit=True) as db:
            db.execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
            db.execute("GRANT CREATE ON DATABASE q TO guarded")
        with pytest.raises(NotStored, match="password authentication failed") as caught:
            Outbox(url.replace("outmail@", "guarded:geheim@"))
        assert (
            caught.value.code == "store-forbidden"
            and caught.value.forbidden
            and "geheim" not in str(caught.value)
        )
        with Outbox(url.replace("outmail@", "guarded:right@"), config=config(sink), deliver="thread") as box:
            box.send("a@x.test", "s")
            sink.wait_for(1, timeout=10)
            assert "right" not in box.store.url
    finally:
        server.remove()


def test_two_that_change_the_same_rows_are_told_or_wait(stores: Any, url: str) -> None:
    """An operator cancels what is being settled in that moment: one of the two waits for the other, nobody
    gets a half.
    """
    one, two = stores("one"), stores("two")
    made = [message() for _ in range(40)]
    add(one, *made)
    owner = one.register(NOW)
    deliveries = lease(one, owner, 40)
    troubles: list[BaseException] = []

    def cancel() -> None:
        for m in made:
            try:
                two.run(two.verbs.change(Filter(ids=((m.id, None),)), "cancel", NOW))
            except StoreError as problem:
                troubles.append(problem)

    thread = threading.Thread(target=cancel)
    thread.start()
    for delivery in deliveries:
        for _ in range(3):
            try:
                settle(one, owner, delivery, "delivered", "delivered")
                break
            except StoreError as problem:
                assert problem.kind == "conflict"
    thread.join(60)
    assert all(isinstance(problem, StoreError) and problem.kind == "conflict" for problem in troubles)
    assert {standing(one, m.id).state for m in made} <= {"delivered"}


@pytest.mark.parametrize(
    ("event", "wish", "state"),
    [("hold", None, "held"), ("cancel", None, "cancelled"), ("release", "hold", "queued")],
)
def test_a_change_does_not_miss_what_an_engine_returns_meanwhile(
    stores: Any, url: str, event: str, wish: str | None, state: str
) -> None:
    store = stores("one")
    one = message()
    add(store, one)
    assert lease(store, store.register(NOW))
    if wish:
        store.run(store.verbs.change(Filter(), wish, NOW))
    counted: list[int] = []
    changing = threading.Thread(
        target=lambda: counted.append(store.run(store.verbs.change(Filter(), event, NOW))[0])
    )
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'UPDATE'"
    with psycopg.connect(url) as engine, psycopg.connect(url, autocommit=True) as looking:
        to = "held" if wish else "queued"
        engine.execute(
            "UPDATE outmail.recipient SET state = %s, wish = NULL, owner = NULL, lease = NULL", (to,)
        )
        changing.start()
        until(lambda: looking.execute(waits).fetchone() == (1,))
        engine.commit()
        changing.join(20)
    assert counted == [1] and standing(store, one.id).state == state


def test_very_many_at_once_come_by_copy_and_are_the_same(stores: Any, url: str, tmp_path: Path) -> None:
    """COPY takes other paths for text, numbers and nothing; what comes out is what a few at a time
    would be.
    """
    few, many = stores("few"), stores("many")
    subjects = ["plain", "NUL \0 in it", "half \ud83d of a pair", "tab\tnewline\\N", "grüße"]
    people = (Recipient("a@x.test", "default"), Recipient("b@x.test", "default", "suppressed: asked to"))

    def made(n: int) -> list[Message]:
        return [
            replace(
                message(),
                tag=f"t{i}" if i % 2 else None,
                subject=subjects[i % 5],
                recipients=people,
                dsn=Dsn("never", "hdrs", "e") if i % 3 else None,
                priority=i % 3,
            )
            for i in range(n)
        ]

    def rows(where: str) -> list[Any]:
        with psycopg.connect(url) as db:
            sql = (
                "SELECT m.sender, m.subject, m.size, m.sha256, m.needs, m.priority, m.tag, m.dsn, "
                "b.content, r.n, r.address, r.state, r.due, r.reason, r.finished_at, e.event, e.n"
            )
            sql += (
                " FROM outmail.message m JOIN outmail.body b USING (seq) JOIN outmail.recipient r ON "
                "r.message = m.seq JOIN outmail.event e ON e.message = m.seq"
            )
            return db.execute(f"{sql} WHERE {where} ORDER BY m.seq, r.n, e.id").fetchall()

    first = few.run(few.verbs.add(made(10)))
    last = many.run(many.verbs.add(made(10) + made(200)))
    assert len(rows(f"m.seq <= {first[-1][4]}")) == 40
    assert rows(f"m.seq BETWEEN {first[0][4]} AND {first[-1][4]}") == rows(
        f"m.seq BETWEEN {last[0][4]} AND {last[9][4]}"
    )
    assert len(rows(f"m.seq BETWEEN {last[0][4]} AND {last[-1][4]}")) == 840
    owner = many.register(NOW)
    assert len(lease(many, owner, 500)) == 220


def test_very_many_at_once_are_all_or_none(stores: Any) -> None:
    store = stores("one")
    bad = [message() for _ in range(100)]
    bad[70] = replace(bad[70], id=bad[3].id)
    with pytest.raises(StoreError):
        store.run(store.verbs.add(bad))
    assert list(store.read(store.verbs.next_due(NOW))) == []
    add(store, *[message() for _ in range(100)])
    assert len(lease(store, store.register(NOW), 500)) == 100


def test_an_upgrade_runs_under_the_version_before_it(
    stores: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind three hosts that upgrade at once the old one works on, a new one of the old version still comes
    in, an older one does not.
    """
    old = stores("old")
    add(old, *[message() for _ in range(40)])
    owner = old.register(NOW)
    before = lease(old, owner, 10)
    step, latest = postgres.schema_step, postgres.SCHEMA
    more = (
        "ALTER TABLE outmail.message ADD COLUMN later text NOT NULL DEFAULT 'x'; ALTER TABLE "
        "outmail.recipient ADD COLUMN later smallint; CREATE TABLE outmail.later (n int)"
    )
    with monkeypatch.context() as patch:
        patch.setattr(postgres, "SCHEMA", latest + 1)
        patch.setattr(postgres, "schema_step", lambda n: more if n == latest + 1 else step(n))
        threads = [threading.Thread(target=stores, args=(f"new{i}",)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        new = stores("new")
        theirs = lease(new, new.register(NOW), 10)
    assert all(settle(old, owner, delivery, "delivered", "delivered") == 1 for delivery in before)
    add(old, *[message() for _ in range(5)])
    add(new, *[message() for _ in range(50)])
    rest = lease(old, owner, 500, number=2)
    assert len({d.id for d in rest} | {d.id for d in theirs}) == 85 and not {d.id for d in rest} & {
        d.id for d in theirs
    }
    assert len(lease(stores("again"), owner, 1, number=3)) == 0  # the old version, opened on the new schema
    with psycopg.connect(url) as db:
        assert db.execute("SELECT n FROM outmail.version").fetchall() == [(latest + 1,)]
        db.execute("UPDATE outmail.version SET n = n + 1")
        db.commit()
    with pytest.raises(StoreError, match="made by a later outmail") as refused:
        stores("older")
    assert refused.value.kind == "schema"


def test_an_upgrade_does_not_make_everybody_wait_behind_it(
    stores: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = stores("old")
    step, latest = postgres.schema_step, postgres.SCHEMA
    monkeypatch.setattr(postgres, "SCHEMA", latest + 1)
    monkeypatch.setattr(postgres, "UPGRADE_WAIT", 1)
    monkeypatch.setattr(
        postgres,
        "schema_step",
        lambda n: "ALTER TABLE outmail.message ADD COLUMN later text" if n == latest + 1 else step(n),
    )
    with psycopg.connect(url) as foreign:
        foreign.execute("SELECT count(*) FROM outmail.message")  # a dump, say
        began = time.monotonic()
        with pytest.raises(StoreError) as busy:
            stores("new")
        assert busy.value.kind == "busy" and time.monotonic() - began < 20
        add(old, message())
        foreign.rollback()
    stores("new")
    with psycopg.connect(url) as db:
        assert db.execute("SELECT n FROM outmail.version").fetchall() == [(latest + 1,)]


def test_a_hint_brings_mail_of_another_host_at_once(
    url: str, stores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With looking turned off, what is found is found by the hint; a lost connection is made again."""
    monkeypatch.setattr(postgres, "POLL", 3600.0)
    monkeypatch.setattr(notify, "RETRY", 0.1)
    monkeypatch.setattr(notify, "LOOK", 0.1)
    monkeypatch.setattr(notify, "PAUSE", 60.0)
    heard: list[float] = []
    here, there = (
        PostgresStore(f"{url}{'&' if '?' in url else '?'}notify=1", f"/nonexistent/{n}") for n in "ab"
    )
    here.follow(lambda: heard.append(time.monotonic()))
    until(lambda: len(heard) == 1)  # it listens
    add(there, message())
    there.announce()
    there.announce()  # a moment later: not said again
    until(lambda: len(heard) == 2)
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE query LIKE 'LISTEN%' AND datname = current_database()"
        )
        until(lambda: len(heard) == 3)  # it listens again
    monkeypatch.setattr(notify, "PAUSE", 0.0)
    there.announce()
    until(lambda: len(heard) == 4)
    for store in (here, there):
        store.close()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "outmail-hints"])


def test_mail_is_announced_by_whoever_accepts_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"{url}{'&' if '?' in url else '?'}notify=1"
    with psycopg.connect(url, autocommit=True) as db, Outbox(store, deliver="never") as box:
        db.execute(f"LISTEN {notify.CHANNEL}")
        box.send("a@x.test", "s", "t", sender="b@x.test")
        assert [n.channel for n in db.notifies(timeout=5, stop_after=1)] == [notify.CHANNEL]


def test_hints_and_pgbouncer_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="PgBouncer"):
        conninfo_of("postgresql://u@h/db?notify=1&pgbouncer=1")
    assert "notify" not in conninfo_of("postgresql://u@h/db?notify=1&connect_timeout=3")[0]


def test_numbering_begins_where_it_ended_and_still_finds_what_stood_still(
    stores: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long foreign transaction keeps every numbered event in the index; a commit that was late for minutes
    is found all the same.
    """
    store = stores("one")
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    watermark = Watermark()
    insert = (
        "INSERT INTO outmail.event (at, event, message, state, uncertain, reason, attempts) VALUES (1, "
        "'accepted', %s, 'queued', 0, '', 0) RETURNING id"
    )

    def cursors() -> list[Any]:
        return db.execute("SELECT message, cursor FROM outmail.event ORDER BY cursor").fetchall()

    with psycopg.connect(url, autocommit=True) as db, psycopg.connect(url) as late:
        late.execute(insert, (1,))  # its id is the first, its commit comes last
        for i in (2, 3):
            db.execute(insert, (i,))
        assert store.run(pgsql.number_events(watermark)) is False and cursors() == [(2, 1), (3, 2)]
        assert watermark.event() == 0
        clock[0] += watermark.LATE + 1
        assert watermark.event() == 3
        late.commit()
        db.execute(insert, (4,))
        store.run(pgsql.number_events(watermark))
        assert cursors() == [(2, 1), (3, 2), (4, 3), (1, None)]
        clock[0] += FullScanTimer.EVERY
        store.run(pgsql.number_events(watermark))
        assert cursors() == [(2, 1), (3, 2), (4, 3), (1, 4)]
        monkeypatch.setattr(pgsql, "_AT_ONCE", 2)
        monkeypatch.setattr(pgsql, "_NUMBER", pgsql._NUMBER.replace("LIMIT 20000", "LIMIT 2"))
        for i in range(5, 10):
            db.execute(insert, (i,))
        assert store.run(pgsql.last_cursor(watermark=watermark)) == 9


def test_a_look_from_the_beginning_that_takes_long_is_a_rare_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a transaction that keeps millions of dead rows, such a look may take ten seconds: a twentieth of
    all time is enough for it.
    """
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    watermark = Watermark()
    watermark.seen("d", 1, 900_000)

    def look(lasts: float) -> bool:
        """Whether it began at the beginning."""
        verb = pgsql.next_due(0, watermark=watermark)
        next(verb)
        verb.send([("d",)])
        request = verb.send([(None,)])
        clock[0] += lasts
        verb.send([])
        with pytest.raises(StopIteration):
            verb.send([])
        return bool(request.rows[1][2] == 0)  # type: ignore[union-attr]

    assert not look(0.1)
    clock[0] += 61
    assert look(10)
    clock[0] += 61
    assert not look(0.1), "not yet again"
    clock[0] += 140
    assert look(0.1)
    clock[0] += 61
    assert look(0.1), "quick ones are made once a minute"


def test_a_look_from_the_beginning_does_not_hold_up_leases(
    stores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one of `next_due` alone; a lease begins further down only when something was found there."""
    one = stores("one")
    owner = one.register(NOW)
    add(one, message(now=NOW))
    lease(one, owner, 5, NOW + 1)
    watermark = one.verbs.watermark
    before = watermark.of("default", 1)
    assert before > 0
    monkeypatch.setattr(FullScanTimer, "EVERY", 0.0)
    monkeypatch.setattr(FullScanTimer, "SHARE", 0)
    assert one.read(one.verbs.next_due(NOW + 2)) == {} and watermark.of("default", 1) == before
    add(one, message(now=NOW - 60_000))
    assert (
        one.read(one.verbs.next_due(NOW + 2)) == {"default": NOW - 60_000}
        and watermark.of("default", 1) == NOW - 60_000
    )


def test_events_are_numbered_by_an_index(stores: Any, url: str) -> None:
    """The join once read all events, every ten seconds; and what the planner thinks of how many there are
    must not matter.
    """
    stores("one")
    sql, _ = translated(pgsql._NUMBER)
    with psycopg.connect(url) as db:
        db.execute("SET LOCAL enable_seqscan = off")
        db.execute(pgsql._NO_LOOPS)
        plan = "\n".join(row[0] for row in db.execute("EXPLAIN (COSTS OFF) " + sql, (7, 7)))
        db.execute(pgsql._LOOPS)
        assert db.execute("SHOW enable_nestloop").fetchone() == ("on",)
        db.rollback()
    assert (
        "Seq Scan on event" not in plan
        and "Nested Loop" not in plan
        and plan.count("Index Cond: (id >= ") == 2 * len(("event_0", "event_hops"))
    ), plan


def test_thousands_of_events_are_numbered_in_a_moment(stores: Any, url: str) -> None:
    """As after an hour without a reader, in a table whose statistics know of none."""
    one = stores("one")
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("ANALYZE outmail.event")
        db.execute(
            "INSERT INTO outmail.event (at, event, message, state, uncertain, reason, attempts)"
            " SELECT 1, 'accepted', i, 'queued', 0, '', 0 FROM generate_series(1, 45000) i"
        )
        began = time.monotonic()
        assert one.run(pgsql.last_cursor(watermark=Watermark())) == 45_000
        assert time.monotonic() - began < 30
        assert db.execute("SELECT count(*) FROM outmail.event WHERE cursor <> message").fetchone() == (0,)


@pytest.mark.parametrize("few", [1, 30])
@pytest.mark.parametrize("known", [False, True], ids=["never analysed", "analysed"])
@pytest.mark.parametrize("version", pgserver.versions())
def test_rows_are_found_by_their_keys_whatever_the_planner_knows(
    version: str, known: bool, few: int, tmp_path: Path
) -> None:
    """Sessions keep plans: one that was made for a small table read the grown one whole, once for each batch
    or for each row.
    """
    with pgserver.database(version) as url:
        store = PostgresStore(url, str(tmp_path / "pg"))
        add(store, *[message() for _ in range(few)])
        db = store._writers[0].connection.open()
        if known:
            db.execute("ANALYZE outmail.recipient_live, outmail.message, outmail.body")
        db.execute("SET plan_cache_mode = force_generic_plan")
        for i, sql in enumerate([SIZES, TO_SEND]):
            db.execute(f"PREPARE made{i} AS {translated(sql)[0].replace('%s', '$1')}")
            db.execute(f"EXPLAIN EXECUTE made{i} ('[1]')")
        add(store, *[message() for _ in range(3000)])
        plans = {f"made{i}": f"EXPLAIN EXECUTE made{i} ('[1]')" for i in range(2)}
        plans |= {
            sql: "EXPLAIN " + translated(sql)[0].replace("%s::json", "'[]'::json").replace("%s", "1")
            for sql in (LEASE, DELIVERED)
        }
        for sql, explain in plans.items():
            plan = "\n".join(row[0] for row in db.execute(explain))
            assert "Seq Scan on" not in plan and "recipient_leased" not in plan, plan
            if not sql.startswith("made"):
                assert re.search(
                    r"Nested Loop.*\n +-> +Function Scan on batch.*\n +-> +"
                    r"Index Scan using recipient_live_key",
                    plan,
                ), plan
        owner = store.register(NOW)
        for delivery in lease(store, owner, 10):
            settle(store, owner, delivery, "delivered", "delivered")
        kept = db.execute("SELECT statement FROM pg_prepared_statements").fetchall()
        assert any("outmail.event" in sql for (sql,) in kept) and not any(
            "outmail.batch" in sql for (sql,) in kept
        )
        owner.file.abandon()
        store.close()
