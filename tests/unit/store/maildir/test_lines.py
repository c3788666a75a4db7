"""Lines of a spool: what was written in part, or changed since, is not taken for a whole line."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

from outmail.store import schemas
from outmail.store.maildir.files import Journal
from outmail.store.maildir.lines import TABLES, Change, Commit, Part, Rows, commit_of, line, read
from outmail.store.sqlite.store import SCHEMA

VALUE = {"commit": 7, "set": {"note": [{"kind": "a", "key": "ü\n\r", "value": '{"sum":"00000000"}'}]}}


def test_a_line_is_read_as_it_was_written_and_ends_where_it_ends() -> None:
    made = line(VALUE)
    assert read(made) == VALUE and made.count(b"\n") == 1 and made.endswith(b"\n")


def test_no_beginning_of_a_line_and_no_changed_byte_is_taken() -> None:
    made = line(VALUE)
    for i in range(len(made)):
        assert read(made[:i]) is None
        assert read(made[:i] + bytes([made[i] ^ 1]) + made[i + 1 :]) is None
    assert read(b"\0" * len(made)) is None and read(b"") is None and read(line({})[:0] + b"{}\n") is None


def test_a_commit_is_read_as_it_was_written() -> None:
    made = Commit(
        3,
        [(1, "gone")],
        {"id": Change({"message": [{"seq": 2}]}, {"event": [[5]]}, live=False, content=None)},
        Part({"owner": [{"id": 1}]}),
    )
    assert commit_of(read(made.line())) == made
    assert commit_of(read(line({"log": "x"}))) is None and commit_of(None) is None


def test_rows_are_what_is_left_of_their_parts() -> None:
    rows = Rows()
    rows.apply(Part({"recipient": [{"message": 1, "n": 1, "state": "queued"}, {"message": 1, "n": 2}]}))
    rows.apply(Part({"recipient": [{"message": 1, "n": 1, "state": "failed"}]}, {"recipient": [[1, 2]]}))
    assert rows.part() == Part({"recipient": [{"message": 1, "n": 1, "state": "failed"}]})


def test_every_table_of_the_queue_is_known_with_its_key() -> None:
    database = sqlite3.connect(":memory:")
    for step in range(1, SCHEMA + 1):
        database.executescript(schemas.sql(f"sqlite-{step}"))
    found = {}
    for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        columns = database.execute(f"PRAGMA table_info({table})").fetchall()
        found[table] = tuple(row[1] for row in sorted(columns, key=lambda row: row[5]) if row[5])
    database.close()
    for apart in ("body", "chunk", "sqlite_sequence"):  # contents are files
        del found[apart]
    assert found == {table: key for table, (key, _) in TABLES.items()}


def _line(number: int, **more: Any) -> bytes:
    return line({"commit": number, "set": {"message": [{"seq": 1, "n": number}]}, **more})


#: The changes that the log has, commits 3 to 5; up to 2 everything is on disk.
EXPECTED = [(number, Change({"message": [{"seq": 1, "n": number}]})) for number in (3, 4, 5)]
ZEROS = bytes(len(_line(4)) - 1)


@pytest.mark.parametrize(
    ("journal", "kept", "lacks"),
    [
        ([], 0, [3, 4, 5]),
        ([_line(1), _line(2)], 2, [3, 4, 5]),
        ([_line(1), _line(2), _line(3)], 3, [4, 5]),
        ([_line(1), _line(2), _line(3), _line(4), _line(5)], 5, []),
        ([_line(1), _line(2), _line(3), _line(4)[:-9]], 3, [4, 5]),
        ([_line(1), _line(2), _line(3), ZEROS + b"\n", _line(5)], 2, [3, 4, 5]),
        ([_line(1), _line(2), _line(3), ZEROS, _line(5)], 3, [4, 5]),
        ([_line(1), _line(2), _line(4), _line(5)], 2, [3, 4, 5]),
        ([_line(5, whole=True)], 1, []),
        ([_line(4, whole=True)], 1, [5]),
        ([_line(4, whole=True), _line(5)], 2, []),
        ([ZEROS[:50]], 0, [3, 4, 5]),
        ([_line(1), b"rot\n", _line(2), _line(3)], 4, [4, 5]),
    ],
    ids=range(13),
)
def test_a_journal_gets_the_lines_that_a_power_cut_took(
    journal: list[bytes], kept: int, lacks: list[int]
) -> None:
    end, missing = Journal(b"".join(journal)).missing(2, EXPECTED)
    assert (end, [number for number, _ in missing]) == (len(b"".join(journal[:kept])), lacks)
