"""History of the PostgreSQL store that goes by whole partitions."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import psycopg
import pytest

from outmail.engine.retention import Retention
from outmail.model import Filter, Term
from outmail.store.postgres import partitions
from outmail.store.postgres.store import PostgresStore
from outmail.testing import conformance
from outmail.testing.conformance import NOW, add, lease, message, settle, standing
from tests import pgserver

AGES = {"bodies": 10**9, "records": 1000, "transcripts": 10**9}
LATER = NOW + 100_000


@pytest.fixture(params=pgserver.versions())
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with pgserver.database(request.param) as made:
        yield made


@pytest.fixture
def store(url: str, tmp_path: Path) -> Iterator[PostgresStore]:
    made = PostgresStore(url, str(tmp_path / "pg"))
    yield made
    for owner in list(made._owners):
        owner.file.abandon()
    made.close()


def delivered(store: PostgresStore) -> str:
    """The id of a message that was."""
    made = message()
    add(store, made)
    owner = next(iter(store._owners), None) or store.register(NOW)
    (delivery,) = lease(store, owner)
    settle(store, owner, delivery, "delivered", "delivered")
    return made.id


def turn(store: PostgresStore, db: Any) -> None:
    """The newest period has lasted long enough: another one is opened and entered."""
    db.execute("UPDATE outmail.period SET began_at = least(began_at, 1 + n)")
    for _ in range(2):
        store.commit([partitions.advance(AGES["records"])])


def retained(store: PostgresStore, now: int = LATER) -> None:
    assert not store.run(store.verbs.number_events())
    store._turned = store._dropped = -partitions.LOOK
    retention = Retention(store, AGES)
    while retention.turn(now, 5):
        pass


def existing(db: Any) -> list[str]:
    return [
        row[0]
        for row in db.execute(
            "SELECT relname FROM pg_class WHERE relname ~ '_[0-9]+$' AND relkind = 'r' ORDER BY 1"
        )
    ]


def of(*numbers: int) -> list[str]:
    return sorted(f"{table}_{n}" for table in ("attempt", "event", "recipient_done") for n in numbers)


def test_what_is_past_retention_goes_with_its_period(store: PostgresStore, url: str) -> None:
    with psycopg.connect(url, autocommit=True) as db:
        old = delivered(store)
        turn(store, db)
        young = delivered(store)
        assert [
            row[0] >> partitions.SPAN for row in db.execute("SELECT seq FROM outmail.message ORDER BY seq")
        ] == [0, 1]
        events = store.read(store.verbs.events_after(0))
        assert [(e.id, e.event) for e in events] == [
            (old, "accepted"),
            (old, "delivered"),
            (young, "accepted"),
            (young, "delivered"),
        ]
        assert existing(db) == of(0, 1)
        retained(store, NOW + 500)
        assert existing(db) == of(0, 1)  # young as yet
        retained(store)
        assert existing(db) == of(1)  # the newest period, and the newest event, stay
        assert store.read(store.verbs.seq_of(old)) is None and standing(store, young).state == "delivered"
        assert db.execute("SELECT count(*) FROM outmail.body").fetchone() == (1,)
        assert store.check() == []
        last = delivered(store)
        assert [e.id for e in store.read(store.verbs.events_after(events[-1].cursor))] == [last, last]


def test_a_period_with_mail_that_is_not_finished_stays(store: PostgresStore, url: str) -> None:
    with psycopg.connect(url, autocommit=True) as db:
        delivered(store)
        waiting = message(expires=10**11)
        add(store, waiting)
        for _ in range(2):
            turn(store, db)
            delivered_in_between = message()
            add(store, delivered_in_between)
        retained(store)
        assert existing(db) == of(0, 1, 2)
        store.run(store.verbs.change(Filter(), "cancel", NOW))
        delivered(store)
        retained(store)
        assert existing(db) == of(2)


def test_a_period_that_stays_does_not_keep_the_next_one(store: PostgresStore, url: str) -> None:
    with psycopg.connect(url, autocommit=True) as db:
        add(store, message(expires=10**11))
        for _ in range(2):
            turn(store, db)
            add(store, message())
        store.run(store.verbs.change(Filter(terms=(Term("state", "queued"),)), "hold", NOW))
        newer = db.execute("SELECT id FROM outmail.message ORDER BY seq").fetchall()[1:]
        store.run(store.verbs.change(Filter(ids=tuple((id, None) for (id,) in newer)), "cancel", NOW))
        turn(store, db)
        delivered(store)
        retained(store)
        assert existing(db) == of(0, 3) and db.execute("SELECT count(*) FROM outmail.message").fetchone() == (
            2,
        )


def test_what_is_dropped_is_swept_in_short_steps_and_not_found_meanwhile(
    store: PostgresStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "PAGE", 3)
    with psycopg.connect(url, autocommit=True) as db:
        made = [message() for _ in range(8)]
        add(store, *made)
        store.run(store.verbs.change(Filter(), "cancel", NOW))
        turn(store, db)
        delivered(store)
        assert not store.run(store.verbs.number_events())
        assert store.commit([partitions.drop(LATER, AGES["records"])]) == [0]
        left = []
        while store.run(partitions.sweep()):
            (count,) = db.execute("SELECT count(*) FROM outmail.message").fetchone() or (None,)
            left.append(count)
            assert [store.read(store.verbs.seq_of(one.id)) for one in made] == [None] * 8 and len(
                store.read(store.verbs.find(Filter(), NOW))[0]
            ) == 1
            assert store.check() == []
        assert left == [6, 3, 1, 1] and db.execute("SELECT n FROM outmail.period").fetchall() == [(1,)]
        assert db.execute("SELECT count(*) FROM outmail.body").fetchone() == (1,)


def test_one_put_back_in_the_last_moment_keeps_its_period(
    store: PostgresStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(url, autocommit=True) as db:
        ((id, *_),) = add(store, message())
        store.run(store.verbs.change(Filter(), "cancel", NOW))
        turn(store, db)
        delivered(store)
        honest = partitions._past

        def past(n: int, before: int) -> Any:
            answer = yield from honest(n, before)
            change = PostgresStore(url, store._base)
            change.run(change.verbs.change(Filter(ids=((id, None),)), "requeue", NOW))
            change.close()
            return answer

        monkeypatch.setattr(partitions, "_past", past)
        retained(store)
        assert existing(db) == of(0, 1) and standing(store, id).state == "queued"
        owner = next(iter(store._owners))
        (delivery,) = lease(store, owner)
        settle(store, owner, delivery, "delivered", "delivered")
        assert standing(store, id).state == "delivered" and store.check() == []


def test_who_reads_history_for_long_is_not_waited_for(store: PostgresStore, url: str) -> None:
    with psycopg.connect(url, autocommit=True) as db, psycopg.connect(url) as reader:
        delivered(store)
        turn(store, db)
        delivered(store)
        reader.execute("SELECT count(*) FROM outmail.event")  # as a backup does, for hours
        began = time.monotonic()
        retained(store)
        assert existing(db) == of(0, 1) and time.monotonic() - began < 20
        turn(store, db)  # new periods are opened all the same
        assert existing(db) == of(0, 1, 2)
        delivered(store)
        reader.rollback()
        retained(store)
        assert existing(db) == of(2)


def test_a_role_that_owns_nothing_keeps_and_removes_by_row(
    store: PostgresStore, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("DROP ROLE IF EXISTS clerk")
        db.execute("CREATE ROLE clerk LOGIN")
        db.execute("GRANT USAGE ON SCHEMA outmail TO clerk")
        db.execute("GRANT ALL ON ALL TABLES IN SCHEMA outmail TO clerk")
        db.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA outmail TO clerk")
        clerk = PostgresStore(url.replace("outmail@", "clerk@"), store._base + "-clerk")
        id = delivered(clerk)
        db.execute("UPDATE outmail.period SET began_at = 1")
        retained(clerk)
        retained(clerk)
        assert (
            standing(store, id).state == "delivered"
            and len([r for r in caplog.records if "deleted row by row" in r.message]) == 1
        )
        retained(clerk, NOW + 200_000)
        assert existing(db) == of(0) and store.read(store.verbs.seq_of(id)) is None
        for owner in list(clerk._owners):
            owner.file.abandon()
        clerk.close()
        db.execute("DROP OWNED BY clerk")
        db.execute("DROP ROLE clerk")


def test_engines_that_turn_at_once_while_mail_comes(store: PostgresStore, url: str) -> None:
    """Each number is given once, and has a partition."""
    ending, problems = threading.Event(), []

    def accepting() -> None:
        try:
            while not ending.is_set():
                add(store, *[message() for _ in range(3)])
        except Exception as problem:
            problems.append(problem)

    def turning() -> None:
        mine = PostgresStore(url, store._base)
        try:
            with psycopg.connect(url, autocommit=True) as db:
                deadline = time.monotonic() + 30
                while (
                    db.execute("SELECT max(n) < 6 FROM outmail.period").fetchone() == (True,)
                    and time.monotonic() < deadline
                ):
                    turn(mine, db)
        except Exception as problem:
            problems.append(problem)
        finally:
            mine.close()

    threads = [threading.Thread(target=turning) for _ in range(3)]
    sender = threading.Thread(target=accepting)
    for thread in [sender, *threads]:
        thread.start()
    for thread in threads:
        thread.join(60)
    ending.set()
    sender.join(60)
    assert problems == []
    with psycopg.connect(url, autocommit=True) as db:
        newest = db.execute("SELECT max(n) FROM outmail.period").fetchone()
        assert newest is not None and newest[0] >= 6
    assert store.check() == []


def in_a_later_period(url: str, base: str) -> PostgresStore:
    made = PostgresStore(url, base)
    with psycopg.connect(url, autocommit=True) as db:
        for _ in range(3):
            turn(made, db)
            add(made, message())
        db.execute(
            "TRUNCATE outmail.message, outmail.body, outmail.recipient, outmail.attempt, outmail.event"
        )
    return made


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each test of the conformance suite with each set of its parameters."""
    for name, test in vars(conformance).items():
        if name.startswith("test_") and name != "test_the_store_walks_as_the_lifecycle":
            marks = [mark.args for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
            for values in product(*(values for _, values in marks)):
                yield name, dict(zip((parameter for parameter, _ in marks), values))


@pytest.mark.parametrize(("name", "words"), cases())
def test_all_stores_do_in_a_later_period(name: str, words: dict[str, Any], tmp_path: Path) -> None:
    with pgserver.database(max(pgserver.installed(), key=int)) as url:
        made = in_a_later_period(url, str(tmp_path / "pg"))
        getattr(conformance, name)(made, **words)
        for owner in list(made._owners):
            owner.file.abandon()
        made.close()
