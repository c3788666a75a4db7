"""Rows of ``outmail_outbox`` that nobody should have written: each fails for itself, with the reason, and the
others go on.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outmail import Outbox
from outmail.accept.acceptance import Door
from outmail.config import from_toml
from outmail.errors import NotStored, Refused
from outmail.model import Status, keyed_id
from outmail.policy.veil import known
from outmail.store.verbs.outbox_rows import MOST, Row
from outmail.transactional import poller, reader
from outmail.transactional.insert import outbox_ddl
from outmail.transactional.poller import WORDS
from tests import pgserver
from tests.road.test_using import Beside

GOOD = b"Subject: good\r\n\r\nhello\r\n"
TO = '{"sender": "me@x.test", "recipients": ["a@x.test"]}'
#: SQL expressions: every type that SQLite has, and what is wrong with the bytes of each.
VALUES = (
    "NULL",
    "5",
    "-1",
    "9223372036854775807",
    "1.5",
    "9e999",
    "''",
    "'text'",
    "X''",
    "X'00'",
    "X'FF00FE'",
    "CAST(X'C328FF' AS TEXT)",
    "CAST(X'61006200' AS TEXT)",
    "CAST(X'EDA080' AS TEXT)",
    "'../../etc/passwd'",
    "'[1]'",
    "'5'",
    "'{}'",
    "'{\"draft\": {}}'",
    "'{\"draft\": 5}'",
    "char(27) || '[31m' || char(155)",
    "hex(zeroblob(600000))",
    "replace(hex(zeroblob(100000)), '00', '[')",
    "zeroblob(3000000)",
)
LOOSE = "CREATE TABLE outmail_outbox (n INTEGER PRIMARY KEY, id, store, added_at, content, envelope)"


class Rows:
    """An application's SQLite file, and what becomes of its rows."""

    def __init__(self, folder: Path, library: str, inside: bool, encoding: str = "UTF-8") -> None:
        self.library = library
        self.file = folder / "app.db"
        self.app = sqlite3.connect(self.file)
        self.app.execute(f"PRAGMA encoding = '{encoding}'")
        self.app.execute(LOOSE)
        self.app.commit()
        config = from_toml(
            f'from = "me@x.test"\n[limits]\nmessage_size = "2MB"\n[[outbox]]\nurl = '
            f'"sqlite+{library}:{self.file}"',
            "t",
            {},
        )
        self.place = f"sqlite+{library}:{self.file if inside else folder / 'q.db'}"
        self.config = config
        self.box: Outbox = None  # type: ignore[assignment]

    def add(self, **columns: str) -> None:
        """Columns as SQL expressions, over those of a good row."""
        n = self.app.execute("SELECT coalesce(max(n), 0) + 1 FROM outmail_outbox").fetchone()[0]
        row = {
            "id": f"'{n:026d}'",
            "added_at": "1",
            "content": f"X'{GOOD.hex()}'",
            "envelope": f"'{TO}'",
            "store": "NULL",
            **columns,
        }
        self.app.execute(f"INSERT INTO outmail_outbox ({', '.join(row)}) VALUES ({', '.join(row.values())})")

    def taken(self) -> list[Status]:
        self.app.commit()
        self.app.close()  # before the other library opens the file
        self.box = Outbox(self.place, config=self.config, deliver="never")
        takeover = self.box.take_over(self.library, Beside())
        assert takeover is not None
        takeover.all()
        takeover.stop()
        assert not takeover._troubles
        return list(self.box.find())


@pytest.fixture(params=["apsw", "stdlib", "apsw-inside", "stdlib-inside"])
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rows]:
    library, _, inside = request.param.partition("-")
    made = Rows(tmp_path, library, bool(inside))
    yield made
    made.app.close()
    if made.box is not None:
        made.box.close()


def left(rows: Rows) -> int:
    rows.box.close()
    with sqlite3.connect(rows.file) as app:
        return int(app.execute("SELECT count(*) FROM outmail_outbox").fetchone()[0])


def shown(rows: Rows, outmail: Any, tmp_path: Path, ids: list[str]) -> None:
    """Lists and stories survive, and nothing that a terminal would obey comes out."""
    store = rows.box.store.url
    rows.box.close()
    for words in (
        ("queue", "list", "state:failed"),
        ("queue", "list", "state:failed", "--json"),
        ("events",),
        ("events", "--jsonl"),
        ("why", ids[0]),
        ("show", ids[0]),
        ("show", ids[0], "--json"),
    ):
        done = outmail(*words, "--store", store)
        assert done.returncode == 0 and not any(mark in done.stdout.decode() for mark in "\x1b\x9b\0"), (
            words,
            done.stderr,
        )


@pytest.mark.parametrize("column", ["id", "added_at", "content", "envelope", "store"])
def test_every_type_in_every_column_stops_nobody(
    rows: Rows, column: str, outmail: Callable[..., Any], tmp_path: Path
) -> None:
    rows.add()
    for value in VALUES:
        rows.add(**{column: value})
    rows.add()
    found = rows.taken()
    states = [status.status for status in found]
    assert len({status.id for status in found}) == len(found) and all(
        len(status.id) == 26 for status in found
    )
    assert states[0] == states[-1] == "queued" and found[0].subject == found[-1].subject == "good"
    if column in ("id", "added_at"):  # a message whole and well: what is odd beside it does not matter
        assert states == ["queued"] * (len(VALUES) + 2)
    elif column == "store":  # claimed by whom nobody knows, but for the first, which is NULL
        assert states == ["queued"] * 3
        assert left(rows) == len(VALUES) - 1
        return
    else:
        # as a message that is one odd header field
        fits = [column == "content" and "draft" in value for value in VALUES]
        assert states[1:-1] == ["queued" if fit else "failed" for fit in fits]
        assert all(
            r.reason.startswith("refused: ") and len(r.reason) < 600
            for s in found[1:-1]
            for r in s.recipients
            if r.state == "failed"
        )
        if rows.library == "apsw":
            shown(rows, outmail, tmp_path, [status.id for status in found[1:2]])
    assert left(rows) == 0


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
@pytest.mark.parametrize("library", ["apsw", "stdlib"])
def test_an_id_as_a_blob_is_deleted_as_any_other(tmp_path: Path, library: str, encoding: str) -> None:
    rows = Rows(tmp_path, library, False, encoding)
    rows.add(id=f"CAST('{7:026d}' AS BLOB)")
    rows.add()
    assert [status.id for status in rows.taken()] == [f"{7:026d}", f"{2:026d}"]
    assert left(rows) == 0


LONG_LINES = (
    "CAST('Subject: long' || char(10) || char(10) || replace(hex(zeroblob({})), '00', '{}' || "
    "char(10)) AS BLOB)"
)
KEYED = '\'{"sender": "me@x.test", "recipients": ["a@x.test"], "key": "k"}\''


def test_two_long_rows_of_one_key_are_one_message_and_stop_nobody(rows: Rows) -> None:
    rows.add(content=LONG_LINES.format(400_000, "aaaa"), envelope=KEYED)
    rows.add(content=LONG_LINES.format(300_000, "bbbb"), envelope=KEYED)
    rows.add()
    one, two = rows.taken()
    assert (one.id, two.subject) == (keyed_id("k"), "good")
    content = rows.box.content(one.id)
    assert b"bbbb" not in content and hashlib.sha256(content).hexdigest() == one.sha256
    assert left(rows) == 0


@pytest.mark.parametrize("code", ["store-missing", "store-other"])
def test_a_row_that_the_store_cannot_take_stops_nobody_and_is_tried_again(
    tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows(tmp_path, "apsw", False)
    monkeypatch.setattr(reader, "BATCH", 2)
    rows.add(id="'0badbadbadbadbadbadbadbad0'")
    for _ in range(5):
        rows.add()
    rows.app.commit()
    box = Outbox(rows.place, config=rows.config, deliver="never")
    takeover = box.take_over("stdlib", Beside())
    assert takeover is not None
    honest, bad = Door.keep, [True]

    def keep(door: Door, messages: Any, **words: Any) -> Any:
        if bad[0] and any(message.id.startswith("0bad") for message in messages):
            raise NotStored("not this one", code=code)
        return honest(door, messages, **words)

    monkeypatch.setattr(Door, "keep", keep)
    for _ in range(6):
        takeover.look()
        takeover._rest_until.clear()
    count = "SELECT count(*) FROM outmail_outbox"
    assert len(list(box.find())) == 5 and rows.app.execute(count).fetchone() == (1,)
    bad[0] = False
    takeover.look()
    assert len(list(box.find())) == 5  # not with each look
    takeover.all()
    assert len(list(box.find())) == 6 and rows.app.execute(count).fetchone() == (0,)
    takeover.stop()
    rows.app.close()
    box.close()


def test_text_is_taken_where_bytes_are_meant_and_the_other_way_round(rows: Rows) -> None:
    rows.add(content="'Subject: good' || char(10) || char(10) || 'ä'", envelope=f"CAST('{TO}' AS BLOB)")
    (status,) = rows.taken()
    assert (status.status, rows.box.content(status.id).partition(b"\r\nSubject: good\r\n\r\n")[2]) == (
        "queued",
        "ä\r\n".encode(),
    )


@pytest.mark.parametrize("encoding", ["UTF-16le", "UTF-16be"])
def test_a_database_in_utf_16(tmp_path: Path, encoding: str) -> None:
    rows = Rows(tmp_path, "apsw", False, encoding)
    rows.add()
    rows.add(
        content="'Subject: good' || char(10) || char(10) || 'ä'",
        envelope='\'{"sender": "me@x.test", "recipients": ["a@x.test"], "tag": "ü"}\'',
    )
    one, two = rows.taken()
    assert (one.status, one.id, two.status, two.id, two.tag) == (
        "queued",
        f"{1:026d}",
        "queued",
        f"{2:026d}",
        "ü",
    ) and rows.box.content(two.id).endswith("ä\r\n".encode())
    assert left(rows) == 0


def test_a_row_with_an_odd_id_is_one_message_however_often_we_are_killed(
    tmp_path: Path, outmail: Callable[..., Any]
) -> None:
    rows = Rows(tmp_path, "apsw", False)
    for value in ("NULL", "'../x'", "X'FF'"):
        rows.add(id=value)
    rows.add(id="NULL", envelope='\'{"sender": "me@x.test", "recipients": ["a@x.test"], "key": "order-1"}\'')
    rows.app.commit()
    rows.app.close()
    (tmp_path / "outmail.toml").write_text('store = "q.db"\nrelay = "null:"\n[[outbox]]\nurl = "app.db"\n')
    for _ in range(2):
        assert outmail("run", "--once", OUTMAIL_FAIL="T2:kill").returncode < 0
    assert outmail("run", "--once").returncode == 0
    found = list(Outbox(tmp_path / "q.db", deliver="never").find())
    assert [status.status for status in found] == ["delivered"] * 4 and keyed_id("order-1") in {
        status.id for status in found
    }
    with sqlite3.connect(rows.file) as app:
        assert app.execute("SELECT count(*) FROM outmail_outbox").fetchone() == (0,)


def test_a_row_too_long_to_be_read_fails_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_ROWS", "_SIZES"):
        monkeypatch.setattr(reader, name, getattr(reader, name).replace(str(MOST), "1000"))
    monkeypatch.setattr("outmail.transactional.poller.MOST", 1000)
    rows = Rows(tmp_path, "apsw", False)
    rows.add(content="CAST('Subject: x' || char(10) || char(10) || hex(zeroblob(1000)) AS BLOB)")
    rows.add()
    one, two = rows.taken()
    assert (one.status, one.size, two.status) == (
        "failed",
        0,
        "queued",
    ) and "no more than 1000 are read" in one.recipients[0].reason


ENVELOPES: tuple[Any, ...] = (
    {"recipients": ["a@x.test"], "route": "smtp://\ud800"},
    {"recipients": ["a@x.test"], "route": "smtp://h\n"},
    {"recipients": ["a@x.test"], "route": "nowhere"},
    {"recipients": ["a@x.test"], "route": "smtp://h," * 1000},
    {"recipients": ["a@x.test"], "route": "file:/tmp"},
    {"recipients": ["a@x.test"], "route": "default,sendmail:/bin/sh"},
    {"recipients": ["a@x.test"], "route": ",".join(["default", ""])},
    {"recipients": ["a@x.test"], "key": "\ud800"},
    {"recipients": ["a@x.test"], "key": "k" * 256},
    {"recipients": ["a@x.test"], "tag": "\x00"},
    {"recipients": ["a@x.test"], "due": 10**30},
    {"recipients": ["a@x.test"], "due": -1},
    {"recipients": ["a@x.test"], "expires_at": 10**300},
    {"recipients": ["a@x.test"], "expires_at": 5},
    {"recipients": ["a@x.test"], "priority": "x" * 100_000},
    {"recipients": ["a@x.test"], "dsn": {"envid": "\ud800", "notify": "x"}},
    {"recipients": [["a@x.test"]]},
    {"recipients": ["\ud800@x.test"]},
    {"recipients": []},
    {"recipients": {}},
    {"recipients": ["a@x.test"] * 3 + [f"u{i}@x.test" for i in range(11_000)]},
    {"recipients": ["x" * 1_000_000]},
    {"sender": "\r\nDATA", "recipients": ["a@x.test"]},
    {"sender": "\x1b[31m", "recipients": ["\x1b[31m"]},
    {"draft": {"to": "a@x.test", "x" * 10_000: 1}},
    {"draft": {"to": "a@x.test", "text": "\ud800"}},
    {"draft": {"to": "a@x.test", "headers": [1]}},
    {"draft": {"to": "a@x.test", "relay": 5}},
    {"draft": {"to": {"a": 1}}},
)


def test_odd_json_fails_for_itself(rows: Rows, outmail: Callable[..., Any], tmp_path: Path) -> None:
    rows.add()
    for envelope in ENVELOPES:
        rows.add(envelope="'" + json.dumps(envelope).replace("'", "''") + "'")
    for text in (
        '{"recipients": ["a@x.test"], "due": 1e400}',
        '{"recipients": ["a@x.test"], "due": NaN}',
        '{"recipients": ' + "[" * 100_000,
        "9" * 10_000,
    ):
        rows.add(envelope=f"'{text}'")
    rows.add(
        envelope='\'{"recipients": ["a@x.test"], "suppressed": {"a@x.test": "\\u0000\\u001b[31m\\ud800"}}\''
    )
    rows.add()
    found = rows.taken()
    assert [status.status for status in found] == ["queued", *["failed"] * (len(ENVELOPES) + 5), "queued"]
    assert all(len(r.reason) < 600 and r.reason.isprintable() for status in found for r in status.recipients)
    assert all("internal error" not in r.reason for status in found for r in status.recipients)
    if rows.library == "apsw":
        shown(rows, outmail, tmp_path, [found[1].id])
    assert left(rows) == 0


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)
envelopes = st.dictionaries(
    st.sampled_from(
        [
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
            "x",
        ]
    ),
    anything,
) | st.fixed_dictionaries({"draft": st.fixed_dictionaries({}, optional=dict.fromkeys(WORDS, anything))})


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.tuples(envelopes, st.binary(max_size=40)), min_size=2, max_size=6))
def test_whatever_the_envelope_says(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture, items: list[tuple[Any, bytes]]
) -> None:
    rows = Rows(tmp_path_factory.mktemp("rows"), "apsw", False)
    for envelope, content in items:
        rows.add(
            envelope="'" + json.dumps(envelope).replace("'", "''") + "'",
            content=f"X'{(GOOD if len(content) % 2 else content).hex()}'",
        )
    rows.add()
    found = rows.taken()
    rows.box.close()
    assert found[-1].subject == "good" and len(found) >= 1
    assert not [record for record in caplog.records if record.exc_info], "a bug of ours"


def test_rows_teach_the_process_no_passwords(tmp_path: Path) -> None:
    rows = Rows(tmp_path, "stdlib", False)
    before = set(known._forms)
    for n in range(3):
        rows.add(
            envelope="'"
            + json.dumps(
                {
                    "draft": {
                        "to": "a@x.test",
                        "subject": "s",
                        "text": "t",
                        "relay": f"smtp://me:delivered-{n}@h.test",
                    }
                }
            )
            + "'"
        )
    assert len(rows.taken()) == 3
    assert set(known._forms) == before and known.over("delivered-1") == "delivered-1"
    rows.box.send("a@x.test", "s", "t", relay="smtp://me:one-of-ours@h.test")
    assert known.over("one-of-ours") == "****", "a relay of our own code is learned"
    rows.box.close()


@pytest.mark.parametrize(
    ("envelope", "code"),
    [
        ({"sender": "me@x.test", "recipients": ["a@x.test"], "z": "z" * poller.MOST_ENVELOPE}, "too-large"),
        ({"recipients": ["a@x.test"] * 11}, "too-many-recipients"),
        ({"draft": {"to": ["a@x.test"] * 6, "cc": "a@x.test, " * 5}}, "too-many-recipients"),
        ({"draft": {"to": "a@x.test", "subject": "é " * 500_001}}, "too-large"),
        ({"draft": {"to": "a@x.test", "headers": {f"X-{n}": "y" * 80 for n in range(12_000)}}}, "too-large"),
        ({"draft": {"to": [["é" * 1_000_001, "a@x.test"]]}}, "too-large"),
        ({"draft": {"to": "a@x.test", "headers": {"X-A": "y " * 500_001}}}, "too-large"),
    ],
    ids=["envelope", "recipients", "to-and-cc", "subject", "headers", "name", "header"],
)
def test_a_row_that_asks_for_too_much_is_refused_before_it_is_composed(
    envelope: dict[str, Any], code: str
) -> None:
    row = Row(1, "0" * 26, b"A: b\r\n\r\n", json.dumps(envelope).encode(), 0)
    with pytest.raises(Refused) as told:
        poller.drafted(row, lambda words: pytest.fail("composed"), 10)
    assert told.value.code == code


def test_claims_of_nobody_are_shown(rows: Rows, outmail: Callable[..., Any], tmp_path: Path) -> None:
    for value in ("X'FF'", "CAST(X'C328' AS TEXT)", "5", "1.5", "char(27)", "hex(zeroblob(100000))"):
        rows.add(store=value, added_at=value)
    rows.taken()
    store = rows.box.store.url
    rows.box.close()
    done = outmail("store", "check", "--store", store, OUTMAIL_OUTBOX=f"sqlite:{rows.file}")
    assert (
        done.returncode == 65
        and b"are claimed by" in done.stdout
        and b"\x1b" not in done.stdout
        and b"Traceback" not in done.stderr
    ), done.stderr


@pytest.mark.parametrize("version", [max(pgserver.installed(), key=int)])
@pytest.mark.parametrize("inside", [False, True])
def test_odd_rows_on_postgresql(version: str, inside: bool, tmp_path: Path) -> None:
    with pgserver.database(version) as url:
        with psycopg.connect(url, autocommit=True) as app:
            app.execute(outbox_ddl("postgresql"))
            insert = "INSERT INTO outmail_outbox (id, added_at, content, envelope) VALUES (%s, %s, %s, %s)"
            ids = ["", "../x", "x" * 1_000_000, "\x1b[31m", "ä" * 26]
            app.execute(insert, ("0" * 26, 1, GOOD, TO))
            for id in ids:
                app.execute(insert, (id, -(2**62), GOOD, TO))
            for i, envelope in enumerate(ENVELOPES):
                app.execute(insert, (f"{i:025d}v", 1, GOOD, json.dumps(envelope)))
            for content, text in (
                (b"", TO),
                (b"\0", TO),
                (b"\xff" * 3_000_000, TO),
                (GOOD, ""),
                (GOOD, "[" * 100_000),
            ):
                app.execute(insert, (f"{len(text) + len(content):025d}u", 1, content, text))
            app.execute(insert, ("1" * 26, 1, GOOD, TO))
        config = from_toml(
            f'from = "me@x.test"\n[limits]\nmessage_size = "2MB"\n[[outbox]]\nurl = "{url}"', "t", {}
        )
        with Outbox(url if inside else tmp_path / "q.db", config=config, deliver="never") as box:
            takeover = box.take_over("apsw", Beside())
            assert takeover is not None
            takeover.all()
            takeover.stop()
            assert takeover._inside[url] == inside and not takeover._troubles
            found = list(box.find())
        with psycopg.connect(url) as app:
            (waiting,) = app.execute("SELECT count(*) FROM outmail_outbox").fetchone() or (None,)
    states = [status.status for status in found]
    assert waiting == 0 and states == ["queued"] * (1 + len(ids)) + ["failed"] * (len(ENVELOPES) + 5) + [
        "queued"
    ]
