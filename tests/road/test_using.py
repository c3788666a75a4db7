"""One transaction with the caller: `using=`, and the take-over from applications' own databases."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from outmail import AsyncOutbox, Outbox
from outmail.config import from_toml
from outmail.errors import ConfigError, NotFound, NotStored, Refused
from outmail.model import is_id, keyed_id
from outmail.store import StoreError, store_id
from outmail.store.postgres import verbs as pgsql
from outmail.testing import FakeClock, Sink
from outmail.transactional.poller import WORDS, abandoned
from outmail.transactional.reader import Claim
from tests import pgserver
from tests.waiting import until

DDL = (Path(__file__).parents[2] / "src/outmail/store/sql/outbox-sqlite.sql").read_text()


@pytest.fixture
def app(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "app.db")
    connection.executescript(DDL + "CREATE TABLE orders (id INTEGER PRIMARY KEY);")
    yield connection
    connection.close()


@pytest.fixture
def box(make_box: Callable[..., Outbox]) -> Outbox:
    return make_box(deliver="never")


class Beside:
    """Stands for the engine that mail is taken over for: ``name`` is what the store knows it by."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def wake(self) -> None:
        """Nobody sleeps."""


def waiting(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM outmail_outbox").fetchone()[0])


def config(tmp_path: Path, sink: Sink, more: str = "") -> Any:
    return from_toml(
        f'from = "me@outmail.test"\nrelay = "smtp://127.0.0.1:{sink.port}"\n[[outbox]]\nurl = '
        f'"{tmp_path}/app.db"\n{more}',
        "test",
        {},
    )


def test_rollback_sends_nothing_commit_sends_once(
    tmp_path: Path, app: sqlite3.Connection, sink: Sink
) -> None:
    with Outbox(tmp_path / "q.db", config=config(tmp_path, sink), deliver="thread") as box:
        app.execute("INSERT INTO orders VALUES (1)")
        box.send("a@x.test", "never", "text", using=app)
        app.rollback()
        app.execute("INSERT INTO orders VALUES (2)")
        receipt = box.send("a@x.test", "once", "text", using=app)
        assert receipt.durable is False and not receipt.duplicate
        with pytest.raises(NotFound):
            box.status(receipt.id)
        app.commit()
        began = time.monotonic()
        sink.wait_for(1, timeout=30)
        assert time.monotonic() - began < 10
        assert box.wait(receipt.id, 20).status == "delivered"
        until(lambda: waiting(app) == 0)
    assert [m.content.count(b"Subject: once") for m in sink.messages] == [1]
    assert receipt.message_id.encode() in sink.messages[0].content


def test_a_savepoint_takes_only_its_own_mail(app: sqlite3.Connection, box: Outbox) -> None:
    app.isolation_level = None
    app.execute("BEGIN")
    box.send("a@x.test", "kept", using=app)
    app.execute("SAVEPOINT s")
    box.send("a@x.test", "gone", using=app)
    app.execute("ROLLBACK TO s")
    assert app.in_transaction
    app.execute("COMMIT")
    assert waiting(app) == 1


def test_the_callers_settings_are_left_alone(app: sqlite3.Connection, box: Outbox) -> None:
    app.row_factory = sqlite3.Row
    app.text_factory = bytes
    before = (app.isolation_level, app.in_transaction, app.row_factory, app.text_factory)
    app.execute("BEGIN")
    box.send("a@x.test", "s", using=app)
    assert app.in_transaction
    app.rollback()
    assert (app.isolation_level, app.in_transaction, app.row_factory, app.text_factory) == before


def test_many_are_one_transaction_and_checked_first(app: sqlite3.Connection, box: Outbox) -> None:
    with pytest.raises(Refused) as caught:
        box.send_many([{"to": "a@x.test", "using": app}, {"to": "no address", "using": app}])
    assert caught.value.index == 1 and waiting(app) == 0
    assert (
        len(
            box.submit_many(
                [
                    {"content": b"A: b\n\nc", "sender": None, "recipients": "a@x.test", "using": app}
                    for _ in range(3)
                ]
            )
        )
        == 3
    )
    app.commit()
    assert waiting(app) == 3
    with pytest.raises(ConfigError, match="one connection"):
        box.send_many([{"to": "a@x.test", "using": app}, {"to": "b@x.test"}])


def test_what_is_no_connection_or_has_no_table_is_said(box: Outbox, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not builtins"):
        box.send("a@x.test", "s", using="app.db")
    bare = sqlite3.connect(tmp_path / "bare.db")
    with pytest.raises(NotStored, match="outmail_outbox") as caught:
        box.send("a@x.test", "s", using=bare)
    assert "store ddl" in caught.value.hint
    bare.close()


def test_the_same_file_by_two_libraries_is_refused(make_box: Callable[..., Outbox], tmp_path: Path) -> None:
    box = make_box(store=tmp_path / "one.db", deliver="never")
    app = sqlite3.connect(tmp_path / "one.db")
    with pytest.raises(ConfigError, match="lose commits"):
        box.send("a@x.test", "s", using=app)
    app.close()


def test_store_and_application_may_share_a_file(tmp_path: Path, sink: Sink) -> None:
    app = sqlite3.connect(tmp_path / "app.db")
    app.executescript(DDL)
    with Outbox(f"sqlite+stdlib:{tmp_path}/app.db", config=config(tmp_path, sink), deliver="thread") as box:
        box.send("a@x.test", "s", using=app)
        app.commit()
        sink.wait_for(1, timeout=10)
    assert waiting(app) == 0
    app.close()


def test_a_repeated_key_is_dropped_at_take_over(tmp_path: Path, app: sqlite3.Connection, sink: Sink) -> None:
    with Outbox(tmp_path / "q.db", config=config(tmp_path, sink), deliver="thread") as box:
        ids = set()
        for _ in range(3):
            ids.add(box.send("a@x.test", "s", key="order-1", using=app).id)
            app.commit()
        sink.wait_for(1, timeout=10)
        until(lambda: waiting(app) == 0)
    assert len(ids) == 1 and len(sink.messages) == 1


def test_envelope_priority_schedule_tag_and_safety_travel(
    tmp_path: Path, app: sqlite3.Connection, sink: Sink
) -> None:
    safe = from_toml('from = "me@outmail.test"\n[safety]\nonly_to = ["*@x.test"]\n', "test", {})
    with Outbox(tmp_path / "other.db", config=safe, deliver="never") as application:
        receipt = application.send(
            ["a@x.test", "b@y.test"],
            "s",
            using=app,
            at="2h",
            expires="3d",
            priority="high",
            tag="orders",
            bcc="c@x.test",
            key="k",
        )
        app.commit()
    with Outbox(tmp_path / "q.db", config=config(tmp_path, sink), deliver="never") as box:
        takeover = box.take_over("stdlib", Beside())
        assert takeover is not None and takeover.all() == 1
        takeover.stop()
        status = box.status(receipt.id)
        assert (status.priority, status.tag, status.key) == ("high", "orders", "k")
        assert {r.address: (r.state, r.reason) for r in status.recipients} == {
            "a@x.test": ("queued", ""),
            "b@y.test": ("failed", "safety"),
            "c@x.test": ("queued", ""),
        }
        assert 7_100_000 < status.recipients[0].next_try_at - status.accepted_at <= 7_200_000  # type: ignore[operator]


def test_two_stores_that_see_one_table_never_double(
    tmp_path: Path, app: sqlite3.Connection, sink: Sink
) -> None:
    for i in range(500):
        app.execute("INSERT INTO orders VALUES (?)", (i,))
    one, two = (
        Outbox(tmp_path / f"{name}.db", config=config(tmp_path, sink), deliver="thread")
        for name in ("one", "two")
    )
    try:
        one.send_many([{"to": f"u{i}@x.test", "subject": str(i), "using": app} for i in range(1000)])
        app.commit()
        sink.wait_for(1000, timeout=30)
        until(lambda: waiting(app) == 0 and all(s.settled for box in (one, two) for s in box.find()))
    finally:
        one.close()
        two.close()
    assert (
        len(sink.messages) == 1000
        and len({m.recipients[0] for m in sink.messages}) == 1000
        and waiting(app) == 0
    )


@pytest.mark.parametrize("point", ["T1", "T2"])
def test_killed_between_claim_and_delete_nothing_is_lost_or_doubled(
    tmp_path: Path, app: sqlite3.Connection, sink: Sink, point: str, outmail: Any
) -> None:
    (tmp_path / "outmail.toml").write_text(
        f'store = "q.db"\nrelay = "smtp://127.0.0.1:{sink.port}"\n[[outbox]]\nurl = "app.db"\n'
    )
    with Outbox(tmp_path / "other.db", deliver="never") as box:
        for i in range(5):
            box.send(f"u{i}@x.test", "s", sender="me@x.test", using=app)
    app.commit()
    assert outmail("run", "--once", OUTMAIL_FAIL=f"{point}:kill").returncode == -signal.SIGKILL
    assert outmail("run", "--once").returncode == 0
    assert (
        sorted(m.recipients[0] for m in sink.messages) == [f"u{i}@x.test" for i in range(5)]
        and waiting(app) == 0
    )


def test_a_row_that_cannot_be_sent_fails_with_the_reason_and_stops_nothing(
    tmp_path: Path, app: sqlite3.Connection, sink: Sink
) -> None:
    rows = [
        ("0" * 26, b"A: b\r\n\r\n", '{"sender": "me@x.test", "recipients": ["no address"]}'),
        ("1" * 26, b"A: b\r\n\r\n", "not json"),
        ("2" * 26, b"", json.dumps({"draft": {"to": "a@x.test", "attachments": ["/etc/passwd"]}})),
        ("3" * 26, b"", json.dumps({"draft": {"to": "good@x.test", "subject": "from SQL", "text": "hello"}})),
        ("4" * 26, b"", json.dumps({"draft": {"to": 5, "text": []}})),
        ("5" * 26, b"\0", '{"sender": "me@x.test", "recipients": "a@x.test"}'),
        ("6" * 26, b"A: b\r\n\r\n", '{"recipients": "a@x.test", "suppressed": [1]}'),
        (
            "8" * 26,
            b"A: b\r\n\r\n",
            '{"sender": "me@x.test", "recipients": "a@x.test", "route": "sendmail:/bin/sh"}',
        ),
        ("9" * 26, b"", json.dumps({"draft": {"to": "a@x.test", "text": "x", "relay": "file:/tmp"}})),
        ("7" * 26, b"A: b\r\n\r\n", '{"recipients": [7, null], "dsn": {"x": 1}}'),
    ]
    app.executemany("INSERT INTO outmail_outbox (id, added_at, content, envelope) VALUES (?, 1, ?, ?)", rows)
    app.commit()
    with Outbox(tmp_path / "q.db", config=config(tmp_path, sink), deliver="thread") as box:
        sink.wait_for(1, timeout=10)
        until(lambda: waiting(app) == 0)
        for i in (0, 1, 2, 4, 5, 6, 7, 8, 9):
            for recipient in box.status(str(i) * 26).recipients:
                assert recipient.state == "failed" and recipient.reason.startswith("refused: "), i
        assert "no word 'attachments'" in box.status("2" * 26).recipients[0].reason
    assert [m.recipients for m in sink.messages] == [("good@x.test",)]


#: What anybody may write where text, a number or a list is meant.
odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(
        [
            10**30,
            -(10**30),
            2**63,
            "99999999999999999999d",
            "9" * 400 + "d",
            "b@x.test",
            "\ud800",
            "a\0b",
            "high",
            "default",
        ]
    )
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["b@x.test", "X-A", "notify", "envid"]) | st.text(max_size=3), inner, max_size=3
        )
    ),
    max_leaves=5,
)
ENVELOPE = (
    "sender",
    "recipients",
    "suppressed",
    "key",
    "due",
    "expires_at",
    "priority",
    "tag",
    "route",
    "dsn",
    "draft",
)
spoilt = st.tuples(st.sampled_from(ENVELOPE), odd).map(
    lambda pair: {"recipients": ["b@x.test"]} | dict([pair])
)
spoilt_draft = st.tuples(st.sampled_from(WORDS), odd).map(
    lambda pair: {"draft": {"to": "b@x.test", "sender": "a@x.test"} | dict([pair])}
)
rows_of_anybody = st.lists(spoilt | spoilt_draft | odd, min_size=10, max_size=40)


@example([{"draft": {"to": "b@x.test", "sender": "a@x.test", "headers": {"X-A": 5}}}])
@example([{"draft": {"to": "b@x.test", "sender": "a@x.test", "at": "9" * 400 + "d"}}])
@example([{"recipients": ["b@x.test"], "due": 10**30}])
@example([{"recipients": ["b@x.test"], "suppressed": {"b@x.test": ["x"]}}])
@example([{"recipients": ["b@x.test"], "suppressed": {"b@x.test": "\ud800"}}])
@settings(max_examples=60, deadline=None)
@given(rows_of_anybody)
def test_no_row_stops_the_others(rows: list[Any]) -> None:
    """Whatever an application, or a person at its database, has written: each row ends in the queue, sent or
    failed with a reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.closing(sqlite3.connect(f"{folder}/app.db")) as app:
            app.executescript(DDL)
            made = [
                (
                    f"{i:026d}",
                    1,
                    b"" if isinstance(row, dict) and "draft" in row else b"A: b\r\n\r\n",
                    json.dumps(row),
                )
                for i, row in enumerate(rows)
            ]
            app.executemany(
                "INSERT INTO outmail_outbox (id, added_at, content, envelope) VALUES (?, ?, ?, ?)", made
            )
            app.commit()
            with Outbox(
                f"{folder}/q.db",
                config=from_toml(f'relay = "null:"\n[[outbox]]\nurl = "{folder}/app.db"\n', "test", {}),
                deliver="never",
            ) as box:
                takeover = box.take_over("stdlib", Beside())
                assert takeover is not None
                takeover.all()
                takeover.stop()
                assert waiting(app) == 0
                keyed = [
                    row
                    for row in rows
                    if isinstance(row, dict) and (row.get("key") or isinstance(row.get("draft"), dict))
                ]
                assert len(list(box.find())) >= len(rows) - len(keyed)  # those with one key are one


def test_a_missing_table_or_file_is_said_once_and_waited_for(
    tmp_path: Path, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    with Outbox(tmp_path / "q.db", config=config(tmp_path, sink), deliver="thread") as box:
        until(lambda: "does not exist" in caplog.text)
        app = sqlite3.connect(tmp_path / "app.db")
        app.executescript(DDL)
        box.send("a@x.test", "s", using=app)
        app.commit()
        sink.wait_for(1, timeout=10)
        app.close()
    assert [
        r for r in caplog.messages if "cannot be moved into the queue" in r and "does not exist" in r
    ] and len(caplog.messages) < 10


def test_check_shows_and_frees_claims_of_a_vanished_store(
    tmp_path: Path, app: sqlite3.Connection, sink: Sink, outmail: Any
) -> None:
    (tmp_path / "outmail.toml").write_text('store = "q.db"\n[[outbox]]\nurl = "app.db"\n')
    with Outbox(tmp_path / "q.db", deliver="never") as box:
        box.send("a@x.test", "s", sender="me@x.test", using=app)
    app.execute("UPDATE outmail_outbox SET store = 'gone', added_at = 1")
    app.commit()
    shown = outmail("store", "check")
    assert (
        shown.returncode == 65
        and b"claimed by the store gone" in shown.stdout
        and b"--free gone" in shown.stdout
    )
    assert outmail("store", "check", "--free", "gone").returncode == 0
    assert app.execute("SELECT store FROM outmail_outbox").fetchall() == [(None,)]


def test_check_shows_one_line_for_all_engines_of_a_vanished_store(
    tmp_path: Path, app: sqlite3.Connection, outmail: Any
) -> None:
    (tmp_path / "outmail.toml").write_text('store = "q.db"\n[[outbox]]\nurl = "app.db"\n')
    Outbox(tmp_path / "q.db", deliver="never").close()
    claims = ["gone", "gone/one", "gone/two", "other/one"]
    app.executemany(
        "INSERT INTO outmail_outbox (id, store, added_at, content, envelope) VALUES (?, ?, 1, '', '')",
        [(name, name) for name in claims],
    )
    app.commit()
    shown = outmail("store", "check").stdout.decode()
    assert shown.count("3 messages are claimed by the store gone,") == 1 and "--free other" in shown
    assert outmail("store", "check", "--free", "gone").returncode == 65  # the other one is still there
    assert app.execute("SELECT store FROM outmail_outbox ORDER BY n").fetchall() == [(None,)] * 3 + [
        ("other/one",)
    ]


# -- several engines of one store ----------------------------------------------------------------------------

OLD_DDL = DDL.replace(" AUTOINCREMENT", "")


def takeovers(
    tmp_path: Path, sink: Sink, url: str, boxes: contextlib.ExitStack, store: str, *names: str
) -> Iterator[tuple[Outbox, Any]]:
    """One Outbox on the store for each name, and what takes over beside an engine of that name."""
    for name in names:
        found = from_toml(
            f'from = "me@outmail.test"\nrelay = "{sink.url}"\n[[outbox]]\nurl = "{url}"\n', "test", {}
        )
        box = boxes.enter_context(Outbox(store, config=found, deliver="never"))
        takeover = box.take_over("stdlib", Beside(name))
        assert takeover is not None
        boxes.callback(takeover.stop)
        yield box, takeover


def once_at(takeover: Any, point: str, action: Callable[[], object]) -> None:
    """The first time it comes to this failpoint."""
    left = [action]

    def fail(name: str) -> None:
        if name == point and left:
            left.pop()()

    takeover._door.fail = fail


def queued(box: Outbox) -> list[str]:
    return sorted(r.address for status in box.find() for r in status.recipients)


@pytest.mark.parametrize("point", ["T1", "T2"])
@pytest.mark.parametrize("ddl", [DDL, OLD_DDL], ids=["new table", "old table"])
def test_an_engine_that_stood_still_removes_no_row_of_others(
    tmp_path: Path, sink: Sink, ddl: str, point: str
) -> None:
    """Meanwhile it was taken for dead, another engine has taken its rows, and new rows have come, with the
    same numbers where the table is old.
    """
    with contextlib.closing(sqlite3.connect(tmp_path / "app.db")) as app, contextlib.ExitStack() as boxes:
        app.executescript(ddl)
        (box, still), (_, other) = takeovers(
            tmp_path, sink, f"{tmp_path}/app.db", boxes, str(tmp_path / "q.db"), "a", "b"
        )

        def write(name: str) -> None:
            box.send_many([{"to": f"{name}{i}@x.test", "using": app} for i in range(3)])
            app.commit()

        def meanwhile() -> None:
            assert other.all() == 3 and waiting(app) == 0
            write("second")

        write("first")
        once_at(still, point, meanwhile)
        still.all()
        other.all()
        assert (
            queued(box) == [f"{name}{i}@x.test" for name in ("first", "second") for i in range(3)]
            and waiting(app) == 0
        )


def test_a_repeated_key_under_a_number_given_again_is_not_removed_unseen(tmp_path: Path, sink: Sink) -> None:
    """The one way to have number and id again: in an old table, the same key. The row is dropped by who
    claims it, not by a late delete.
    """
    with contextlib.closing(sqlite3.connect(tmp_path / "app.db")) as app, contextlib.ExitStack() as boxes:
        app.executescript(OLD_DDL)
        (box, still), (_, other) = takeovers(
            tmp_path, sink, f"{tmp_path}/app.db", boxes, str(tmp_path / "q.db"), "a", "b"
        )

        def write() -> None:
            box.send("a@x.test", key="k", using=app)
            app.commit()

        def meanwhile() -> None:
            assert other.all() == 1
            write()
            app.execute("UPDATE outmail_outbox SET store = 'another store'")
            app.commit()

        write()
        once_at(still, "T2", meanwhile)
        still.all()
        assert app.execute("SELECT n, store FROM outmail_outbox").fetchall() == [
            (1, "another store")
        ] and queued(box) == ["a@x.test"]


@pytest.mark.parametrize("server", [False, True], ids=["SQLite", "PostgreSQL"])
def test_engines_of_one_store_do_not_read_the_same_rows(
    tmp_path: Path, sink: Sink, app: sqlite3.Connection, server: bool
) -> None:
    """What a living engine has claimed is its own; once it has left, it is everybody's."""
    with contextlib.ExitStack() as boxes:
        url, using = f"{tmp_path}/app.db", app
        if server:
            url = boxes.enter_context(pgserver.database(VERSION))
            using = boxes.enter_context(contextlib.closing(psycopg.connect(url)))  # type: ignore[assignment]
            using.execute(PG_DDL)
        ((box, _),) = takeovers(tmp_path, sink, url, boxes, str(tmp_path / "q.db"), "nobody")
        engine = box.store.register(0)
        (_, living), (_, other) = takeovers(
            tmp_path, sink, url, boxes, str(tmp_path / "q.db"), engine.uuid, "b"
        )
        box.send_many([{"to": f"u{i}@x.test", "using": using} for i in range(300)])
        using.commit()
        seen: list[int] = []

        def meanwhile() -> None:
            seen.append(other.all())
            raise StoreError("busy", "the disk is slow")

        once_at(living, "T1", meanwhile)
        assert living.look() == 0 and seen == [100] and other.all() == 0
        engine.close()
        assert other.all() == 200 and len(set(queued(box))) == 300


def test_a_claim_of_a_dead_engine_is_taken_by_a_living_one(
    tmp_path: Path, app: sqlite3.Connection, sink: Sink
) -> None:
    with Outbox(tmp_path / "q.db", config=config(tmp_path, sink), deliver="thread") as box:
        box.send("first@x.test", using=app)
        app.commit()
        sink.wait_for(1, timeout=10)
        box.send("second@x.test", using=app)
        app.execute("UPDATE outmail_outbox SET store = ?", (f"{store_id(box.store)}/{'0' * 32}",))
        app.commit()
        sink.wait_for(2, timeout=10)
    assert [m.recipients for m in sink.messages] == [("first@x.test",), ("second@x.test",)]


def test_claims_of_older_versions_are_finished(
    tmp_path: Path, app: sqlite3.Connection, sink: Sink, outmail: Any
) -> None:
    (tmp_path / "outmail.toml").write_text(
        f'store = "q.db"\nrelay = "{sink.url}"\n[[outbox]]\nurl = "app.db"\n'
    )
    with Outbox(tmp_path / "q.db", deliver="never") as box:
        box.send("a@x.test", sender="me@x.test", using=app)
        app.execute("UPDATE outmail_outbox SET store = ?", (store_id(box.store),))
        app.commit()
    assert outmail("run", "--once").returncode == 0
    assert len(sink.messages) == 1 and waiting(app) == 0


def test_a_single_run_claims_as_the_engine_that_the_store_knows(
    tmp_path: Path, app: sqlite3.Connection, sink: Sink, outmail: Any
) -> None:
    (tmp_path / "outmail.toml").write_text(
        f'store = "q.db"\nrelay = "{sink.url}"\n[[outbox]]\nurl = "app.db"\n'
    )
    with Outbox(tmp_path / "q.db", deliver="never") as box:
        box.send("a@x.test", sender="me@x.test", using=app)
        app.commit()
        assert outmail("run", "--once", OUTMAIL_FAIL="T1:kill").returncode == -signal.SIGKILL
        ((_, engine, *_),) = box.store.read(box.store.verbs.owners())
        assert app.execute("SELECT store FROM outmail_outbox").fetchall() == [
            (f"{store_id(box.store)}/{engine}",)
        ]


def test_told_to_finish_it_takes_no_further_batch(
    tmp_path: Path, app: sqlite3.Connection, sink: Sink
) -> None:
    with contextlib.ExitStack() as boxes:
        ((box, takeover),) = takeovers(
            tmp_path, sink, f"{tmp_path}/app.db", boxes, str(tmp_path / "q.db"), "a"
        )
        box.send_many([{"to": f"u{i}@x.test", "using": app} for i in range(300)])
        app.commit()
        once_at(takeover, "T2", takeover.finish)
        assert takeover.all() == 200 and waiting(app) == 100


@pytest.mark.parametrize(
    ("claims", "living", "stood", "expected"),
    [
        (["s/me", "s/b", "s/c"], ["me", "b"], False, ["s/c"]),
        (["s/me", "s"], ["me"], False, ["s"]),
        (["s/me", "s"], ["me", "b"], False, []),
        (["s/me", "s"], ["me", "b"], True, ["s"]),
        (["t", "t/c", "st/c"], ["me"], True, []),
    ],
)
def test_which_claims_are_abandoned(
    claims: list[str], living: list[str], stood: bool, expected: list[str]
) -> None:
    assert abandoned([Claim(name, 1, 0) for name in claims], "s", "s/me", living, stood) == expected


def test_a_claim_in_the_stores_name_stands_a_while_beside_other_engines(
    tmp_path: Path, app: sqlite3.Connection, sink: Sink
) -> None:
    """An engine of an older version may be at it. Only one that does not change any more is given up."""
    clock = FakeClock(int(time.time() * 1000))
    with contextlib.ExitStack() as boxes:
        ((box, takeover),) = takeovers(
            tmp_path, sink, f"{tmp_path}/app.db", boxes, str(tmp_path / "q.db"), "nobody"
        )
        boxes.callback(box.store.register(0).close)
        takeover._door.clock = clock
        box.send_many([{"to": f"u{i}@x.test", "using": app} for i in range(2)])
        app.execute("UPDATE outmail_outbox SET store = ?", (store_id(box.store),))
        app.commit()
        for change in (True, False):
            assert takeover.all() == 0
            clock.advance("6s")
            assert takeover.all() == 0
            if change:
                app.execute("DELETE FROM outmail_outbox WHERE n = 1")
                app.commit()
            clock.advance("6s")
        assert takeover.all() == 1


def test_the_ddl_is_printed(outmail: Any) -> None:
    for dialect in ("sqlite", "postgresql"):
        assert b"outmail_outbox" in outmail("store", "ddl", "--dialect", dialect).stdout


# -- other libraries -----------------------------------------------------------------------------------------


def test_apsw(tmp_path: Path, app: sqlite3.Connection, box: Outbox) -> None:
    import apsw

    app.close()
    connection = apsw.Connection(str(tmp_path / "app.db"))
    with connection:
        box.send("a@x.test", "kept", using=connection)
    with pytest.raises(ZeroDivisionError), connection:
        box.send("a@x.test", "gone", using=connection)
        raise ZeroDivisionError
    assert connection.execute("SELECT count(*) FROM outmail_outbox").fetchall() == [(1,)]
    connection.close()


def test_sqlalchemy_core_and_orm(tmp_path: Path, app: sqlite3.Connection, box: Outbox) -> None:
    alchemy = pytest.importorskip("sqlalchemy")
    from sqlalchemy.orm import Session, scoped_session, sessionmaker

    engine = alchemy.create_engine(f"sqlite:///{tmp_path}/app.db")
    with engine.begin() as connection:
        box.send("a@x.test", "kept", using=connection)
    with engine.connect() as connection:
        box.send("a@x.test", "gone", using=connection)
    with Session(engine) as session:
        box.send("a@x.test", "kept", using=session)
        with session.begin_nested() as nested:
            box.send("a@x.test", "gone", using=session)
            nested.rollback()
        session.commit()
        box.send("a@x.test", "gone", using=session)
    scoped = scoped_session(sessionmaker(engine))
    box.send("a@x.test", "kept", using=scoped)
    scoped.commit()
    scoped.remove()
    engine.dispose()
    assert waiting(app) == 3


def test_asynchronous_connections(tmp_path: Path, app: sqlite3.Connection, box: Outbox) -> None:
    pytest.importorskip("aiosqlite")
    pytest.importorskip("sqlalchemy")
    import aiosqlite
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    async def work() -> None:
        async with AsyncOutbox(
            tmp_path / "other.db", config=from_toml('from = "me@x.test"', "test", {}), deliver="never"
        ) as outbox:
            async with aiosqlite.connect(tmp_path / "app.db") as connection:
                receipt = await outbox.send("a@x.test", "kept", using=connection)
                assert receipt.durable is False
                await connection.commit()
                with pytest.raises(ConfigError, match="AsyncOutbox"):
                    box.send("a@x.test", "s", using=connection)
            engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db")
            async with AsyncSession(engine) as session:
                await outbox.send_many([{"to": "a@x.test", "subject": "kept", "using": session}] * 2)
                await session.commit()
                await outbox.send("a@x.test", "gone", using=session)
            async with engine.begin() as connection:
                await outbox.submit(b"A: b\n\n", sender=None, recipients="a@x.test", using=connection)
            await engine.dispose()
            await outbox.send("a@x.test", "in the caller's thread", using=app)
            app.commit()

    asyncio.run(work())
    assert waiting(app) == 5


def test_nothing_of_the_callers_packages_is_imported() -> None:
    code = (
        "import outmail, sys; outmail.Outbox; print([m for m in ('sqlalchemy', 'psycopg', 'asyncpg', "
        "'django', 'aiosqlite') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=dict(os.environ)
        ).stdout.strip()
        == "[]"
    )


# -- PostgreSQL ----------------------------------------------------------------------------------------------

VERSION = max(pgserver.installed(), key=int)
PG_DDL = (Path(__file__).parents[2] / "src/outmail/store/sql/outbox-postgresql.sql").read_text()


@pytest.fixture
def database() -> Iterator[str]:
    with pgserver.database(VERSION) as url:
        with psycopg.connect(url, autocommit=True) as db:
            db.execute(PG_DDL)
        yield url


def left(url: str) -> int:
    with psycopg.connect(url) as db:
        return int(db.execute("SELECT count(*) FROM outmail_outbox").fetchone()[0])  # type: ignore[index]


def subjects(url: str) -> list[str]:
    with psycopg.connect(url) as db:
        return sorted(
            re.findall(rb"Subject: (\w+)", content)[0].decode()
            for (content,) in db.execute("SELECT content FROM outmail_outbox")
        )


def test_psycopg_and_psycopg2(database: str, box: Outbox) -> None:
    import psycopg2
    from psycopg.rows import dict_row

    with psycopg.connect(database, row_factory=dict_row) as db:
        with db.transaction():
            box.send("a@x.test", "kept", using=db)
            with pytest.raises(ZeroDivisionError), db.transaction():
                box.send("a@x.test", "gone", using=db)
                raise ZeroDivisionError
        assert db.info.transaction_status == psycopg.pq.TransactionStatus.IDLE and db.row_factory is dict_row
        box.send("a@x.test", "gone", using=db)
        db.rollback()
    other = psycopg2.connect(database)
    with other:
        box.send("a@x.test", "kept2", using=other)
    other.close()
    assert subjects(database) == ["kept", "kept2"]


def test_sqlalchemy_on_postgresql(database: str, box: Outbox) -> None:
    import sqlalchemy
    from sqlalchemy.orm import Session

    for driver in ("psycopg", "psycopg2"):
        engine = sqlalchemy.create_engine(database.replace("postgresql:", f"postgresql+{driver}:"))
        with Session(engine) as session:
            box.send("a@x.test", f"kept_{driver}", using=session)
            session.commit()
            box.send("a@x.test", "gone", using=session)
        engine.dispose()
    assert subjects(database) == ["kept_psycopg", "kept_psycopg2"]


def test_asynchronous_connections_to_postgresql(database: str, tmp_path: Path) -> None:
    import asyncpg
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    async def work() -> None:
        async with AsyncOutbox(
            tmp_path / "other.db", config=from_toml('from = "me@x.test"', "test", {}), deliver="never"
        ) as outbox:
            async with await psycopg.AsyncConnection.connect(database) as db:
                await outbox.send("a@x.test", "kept1", using=db)
                await db.commit()
                await outbox.send("a@x.test", "gone", using=db)
                await db.rollback()
            plain = await asyncpg.connect(database)
            async with plain.transaction():
                await outbox.send("a@x.test", "kept2", using=plain)
            with pytest.raises(ZeroDivisionError):
                async with plain.transaction():
                    await outbox.send("a@x.test", "gone", using=plain)
                    raise ZeroDivisionError
            await plain.close()
            async with (
                asyncpg.create_pool(database, min_size=1, max_size=1) as pool,
                pool.acquire() as pooled,
            ):
                await outbox.send("a@x.test", "kept3", using=pooled)
            engine = create_async_engine(database.replace("postgresql:", "postgresql+asyncpg:"))
            async with AsyncSession(engine) as session:
                await outbox.send("a@x.test", "kept4", using=session)
                await session.commit()
            await engine.dispose()

    asyncio.run(work())
    assert subjects(database) == ["kept1", "kept2", "kept3", "kept4"]


@pytest.mark.parametrize("where", ["sqlite", "beside", "same"])
def test_postgresql_tables_are_taken_over(database: str, where: str, tmp_path: Path, sink: Sink) -> None:
    """Into a SQLite queue, into a queue in another database, and into the queue in the same database."""
    with contextlib.ExitStack() as stack:
        store = str(tmp_path / "q.db") if where == "sqlite" else database
        if where == "beside":
            store = stack.enter_context(pgserver.database(VERSION))
        found = from_toml(
            f'from = "me@outmail.test"\nrelay = "{sink.url}"\n[[outbox]]\nurl = "{database}"\n', "test", {}
        )
        box = stack.enter_context(Outbox(store, config=found, deliver="thread"))
        with psycopg.connect(database) as db:
            receipts = [
                box.send(f"u{i}@x.test", "s", key="once" if i < 2 else None, using=db) for i in range(50)
            ]
            db.rollback()
            receipts = [
                box.send(f"u{i}@x.test", "s", key="once" if i < 2 else None, using=db) for i in range(50)
            ]
            began = time.monotonic()
            db.commit()
        sink.wait_for(49, timeout=30)
        assert time.monotonic() - began < 20
        assert box.wait(receipts[-1].id, 30).status == "delivered"
        until(lambda: left(database) == 0)
        assert box._takeover is not None and box._takeover._inside[database] == (where == "same")
    assert len(sink.messages) == 49


@pytest.mark.parametrize("point", ["T1", "T2"])
def test_killed_while_taking_over_from_postgresql(
    database: str, tmp_path: Path, sink: Sink, point: str, outmail: Any
) -> None:
    with psycopg.connect(database) as db, Outbox(tmp_path / "other.db", deliver="never") as box:
        for i in range(5):
            box.send(f"u{i}@x.test", "s", sender="me@x.test", using=db)
    for store in ("q.db", database):
        (tmp_path / "outmail.toml").write_text(
            f'store = "{store}"\nrelay = "{sink.url}"\n[[outbox]]\nurl = "{database}"\n'
        )
        outmail("run", "--once", OUTMAIL_FAIL=f"{point}:kill")
    (tmp_path / "outmail.toml").write_text(
        f'store = "q.db"\nrelay = "{sink.url}"\n[[outbox]]\nurl = "{database}"\n'
    )
    assert outmail("run", "--once").returncode == 0
    assert (
        sorted(m.recipients[0] for m in sink.messages) == [f"u{i}@x.test" for i in range(5)]
        and left(database) == 0
    )


@pytest.mark.parametrize("point", ["T1", "T2"])
@pytest.mark.parametrize("table", ["old SQLite table", "PostgreSQL table"])
def test_an_engine_that_wakes_up_after_its_lease_loses_and_doubles_nothing(
    database: str, tmp_path: Path, sink: Sink, table: str, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is in PostgreSQL: there an engine that was stopped (SIGSTOP) loses its lease, and goes on in
    the middle of a take-over.
    """
    # the server is young
    monkeypatch.setattr(
        pgsql, "_silent", lambda seconds: f"clock_timestamp() - renewed_at > interval '{seconds} seconds'"
    )
    monkeypatch.setattr(pgsql, "DOUBT", 0)
    with contextlib.ExitStack() as boxes:
        queue = boxes.enter_context(pgserver.database(VERSION))
        url = database
        app: Any = boxes.enter_context(contextlib.closing(psycopg.connect(database)))
        if table == "old SQLite table":
            url = f"{tmp_path}/app.db"
            app = boxes.enter_context(contextlib.closing(sqlite3.connect(tmp_path / "app.db")))
            app.executescript(OLD_DDL)
        ((box, _),) = takeovers(tmp_path, sink, url, boxes, queue, "nobody")
        stopped, awake = box.store.register(0), box.store.register(0)
        (_, still), (_, other) = takeovers(tmp_path, sink, url, boxes, queue, stopped.uuid, awake.uuid)

        def write(name: str) -> None:
            box.send_many([{"to": f"{name}{i}@x.test", "using": app} for i in range(3)])
            app.commit()

        def meanwhile() -> None:
            assert other.all() == 0
            with psycopg.connect(queue, autocommit=True) as db:
                db.execute(
                    "UPDATE outmail.owner SET renewed_at = clock_timestamp() - interval '200 seconds' WHERE "
                    "id = %s",
                    (stopped.id,),
                )
            box.store._owners.discard(stopped)  # type: ignore[attr-defined]  # as another program sees it
            box.store.reclaim(0, hold=False)
            assert other.all() == 3
            write("second")
            assert box.store.run(pgsql.renew(stopped.id)) is False

        write("first")
        once_at(still, point, meanwhile)
        still.all()
        other.all()
        assert (
            queued(box) == [f"{name}{i}@x.test" for name in ("first", "second") for i in range(3)]
            and other.all() == 0
        )
        assert not any(source.claims() for source in other._sources.values())
        stopped.close()
        awake.close()


def test_mail_from_sql(database: str, sink: Sink) -> None:
    found = from_toml(
        f'from = "me@outmail.test"\nrelay = "{sink.url}"\n[[outbox]]\nurl = "{database}"\n', "test", {}
    )
    with psycopg.connect(database) as db:
        ids = [
            db.execute(
                "SELECT outmail.enqueue('me@x.test', ARRAY['a@x.test', 'b@x.test'], convert_to(E'Subject: "
                "raw\\n\\nhello\\n', 'UTF8'))"
            ).fetchone(),
            db.execute(
                "SELECT outmail.enqueue('me@x.test', ARRAY['k@x.test'], 'Subject: keyed', 'order-1')"
            ).fetchone(),
            db.execute(
                """SELECT outmail.draft('{"to": ["Ann <c@x.test>"], "subject": "Grüße", "text": "hello",
                "tag": "t", "priority": "high"}')"""
            ).fetchone(),
            db.execute("""SELECT outmail.draft('{"to": "c@x.test", "subjekt": "?"}')""").fetchone(),
        ]
        assert [row[0] for row in ids][1] == keyed_id("order-1")  # type: ignore[index]
        with pytest.raises(psycopg.errors.InvalidParameterValue), db.transaction():
            db.execute("SELECT outmail.enqueue('me@x.test', '{}', '')")
        with pytest.raises(psycopg.errors.InvalidParameterValue), db.transaction():
            db.execute("SELECT outmail.draft('[1]')")
    now = int(time.time() * 1000)
    with Outbox(database, config=found, deliver="thread") as box:
        sink.wait_for(3, timeout=10)
        first = ids[0][0]  # type: ignore[index]
        assert is_id(first) and abs(int(first[:10], 32) - (now << 2)) < 4 * 60_000
        assert {box.wait(row[0], 5).status for row in ids[:3]} == {"delivered"}  # type: ignore[index]
        status = box.status(ids[2][0])  # type: ignore[index]
        assert (status.tag, status.priority, status.sender) == ("t", "high", "me@outmail.test")
        assert "no word 'subjekt'" in box.status(ids[3][0]).recipients[0].reason  # type: ignore[index]
    assert sorted(m.recipients for m in sink.messages) == [
        ("a@x.test", "b@x.test"),
        ("c@x.test",),
        ("k@x.test",),
    ]


def test_a_trigger_sends_with_the_row(database: str, sink: Sink) -> None:
    with psycopg.connect(database) as db:
        db.execute("CREATE TABLE orders (id int, customer text)")
        db.execute("""CREATE FUNCTION told() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM outmail.draft(jsonb_build_object(
                'to', NEW.customer, 'subject', 'order ' || NEW.id, 'text', 'thanks',
                'key', 'order-' || NEW.id));
            RETURN NULL; END $$""")
        db.execute("CREATE TRIGGER told AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION told()")
        db.commit()
        db.execute("INSERT INTO orders VALUES (1, 'gone@x.test')")
        db.rollback()
        db.execute("INSERT INTO orders VALUES (2, 'kept@x.test')")
        db.commit()
    found = from_toml(
        f'from = "me@outmail.test"\nrelay = "{sink.url}"\n[[outbox]]\nurl = "{database}"\n', "test", {}
    )
    with Outbox(database, config=found, deliver="thread"):
        sink.wait_for(1, timeout=10)
        until(lambda: left(database) == 0)
    assert [m.recipients for m in sink.messages] == [("kept@x.test",)]
