"""The index of a spool: the tables of the SQLite store, made from the files, so that every verb runs on them.

The index is a cache. It is not flushed to disk, because a power cut (another boot id) makes it void; then it
is made anew from the files, as it is when it is missing. Contents are no part of it: the views ``body`` and
``chunk`` read the files, and keep what is written until the commit writes it into files.
How changes are found: triggers that only this connection has note the key of each row that a verb touches, so
whatever a verb does, `changes` can tell it to the files.
Promises: `changes` and `apply` are each other's opposite.
Fails: `StoreError`. Does not: write files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from outmail.lifecycle import FINAL
from outmail.store import schemas
from outmail.store.maildir.files import UPLOAD, Files, name_of, of_one_file
from outmail.store.maildir.lines import TABLES, Change, Commit, Part, Row, packed, unpacked
from outmail.store.sqlite import drivers
from outmail.store.sqlite.files import file_trouble
from outmail.store.sqlite.store import SCHEMA
from outmail.store.verbs.rows import GONE, LISTED, PIECE, json_list

log = logging.getLogger("outmail")

_LIVE = (
    f"EXISTS (SELECT 1 FROM recipient r WHERE r.message = m.seq AND r.state NOT IN {tuple(sorted(FINAL))})"
)


class Index(drivers.Apsw):
    """One connection to the index; ``files`` are the spool's."""

    def __init__(self, path: str, files: Files, how: str = "") -> None:
        super().__init__(path, how)
        self._files = files
        #: Contents that the transaction has written and no file has yet.
        self._bodies: dict[int, bytes] = {}
        self._pieces: dict[tuple[str, int], bytes] = {}
        self._columns: dict[str, list[tuple[str, Any]]] = {}
        self._sql: dict[str, str] = {}
        functions: tuple[tuple[str, Any], ...] = (
            ("outmail_content", self._content),
            ("outmail_piece", self._piece),
            ("outmail_body", self._write_body),
            ("outmail_chunk", self._write_piece),
        )
        for name, function in functions:
            self._db.create_scalar_function(name, function)

    # -- contents, as SQL sees them --------------------------------------------------------------------------

    def _content(self, seq: int, id: str) -> bytes | None:
        waiting = self._bodies.get(seq)
        try:
            return waiting if waiting is not None else self._files.content(id)
        except OSError as problem:
            _lacks(problem, f"the content of {id}")
            return None

    def _piece(self, upload: str, n: int, size: int, id: str | None) -> bytes | None:
        waiting = self._pieces.get((upload, n))
        try:
            return waiting if waiting is not None else self._files.piece(id, upload, n * PIECE, size)
        except OSError as problem:
            _lacks(problem, f"a piece of {id or upload}")
            return None

    def _write_body(self, seq: int, content: bytes) -> None:
        self._bodies[seq] = content

    def _write_piece(self, upload: str, n: int, content: bytes) -> None:
        self._pieces[upload, n] = content

    # -- making ----------------------------------------------------------------------------------------------

    def create(self) -> None:
        """The tables, in a new file."""
        self.execute("PRAGMA auto_vacuum = INCREMENTAL")
        for step in range(1, SCHEMA + 1):
            self.execute(schemas.sql(f"sqlite-{step}"))
        self.execute(schemas.sql("maildir-index"))

    def columns(self, table: str) -> list[tuple[str, Any]]:
        """The columns of a table, as (name, what a row has that does not name it)."""
        if table not in self._columns:
            found = self.execute(f"PRAGMA table_info({table})")
            self._columns[table] = [
                (row[1], self.execute(f"SELECT {row[4]}")[0][0] if row[4] is not None else None)
                for row in found
            ]
        return self._columns[table]

    def insert(self, table: str, rows: Iterable[Row]) -> None:
        """Write rows, each in the place of one with the same key."""
        columns = self.columns(table)
        self.many(
            f"INSERT OR REPLACE INTO {table} ({', '.join(name for name, _ in columns)}) "
            f"VALUES ({', '.join('?' * len(columns))})",
            [unpacked(table, row, columns) for row in rows],
        )

    def apply(self, part: Part) -> None:
        """Do what a part says. Tables that this version does not know are left out."""
        for table in TABLES:
            if table in part.drop:
                where = " AND ".join(f"{name} = ?" for name in TABLES[table][0])
                self.many(f"DELETE FROM {table} WHERE {where}", part.drop[table])
            if table in part.set:
                self.insert(table, part.set[table])

    def apply_commit(self, commit: Commit) -> None:
        """A commit that the log has and the index has not."""
        for seq, _ in commit.removed:
            self._remove(seq)
        for id, change in commit.messages.items():
            self.apply(change)
            self.note_content(id, change.content)
        self.apply(commit.spool)

    def _remove(self, seq: int) -> None:
        for table, (_, column) in TABLES.items():
            if column:
                self.execute(f"DELETE FROM {table} WHERE {column} = ?", (seq,))
        self.execute("DELETE FROM content WHERE seq = ?", (seq,))

    def note_content(self, id: str, content: str | None) -> None:
        """A content has come or gone."""
        if content == "":
            return
        rows = self.execute("SELECT seq, upload, size FROM message WHERE id = ?", (id,))
        for seq, upload, size in rows:
            self.execute("DELETE FROM content WHERE seq = ?", (seq,))
            self.execute("DELETE FROM piece WHERE upload = ?", (upload,))
            if content is not None and upload is None:
                self.execute("INSERT INTO content (seq) VALUES (?)", (seq,))
            elif content is not None:
                self.note_pieces(upload, size)

    def note_pieces(self, upload: str, size: int) -> None:
        self.many(
            "INSERT INTO piece (upload, n, added_at, size) VALUES (?,?,0,?)",
            [(upload, n, min(PIECE, size - n * PIECE)) for n in range(-(-size // PIECE))],
        )

    # -- changes ---------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """From now on note which rows change on this connection."""
        for table, (key, column) in TABLES.items():
            self._watch(table, key, column)
        self._watch("content", ("seq",), None)
        self._watch("piece", ("upload",), None)
        self.execute("CREATE TEMP TABLE gone (seq, id)")
        gone = f"WHEN OLD.id NOT GLOB '{GONE}*'"
        put = "BEGIN INSERT INTO gone VALUES (OLD.seq, OLD.id); END"
        self.execute(f"CREATE TEMP TRIGGER gone_d AFTER DELETE ON main.message {gone} {put}")
        self.execute(
            f"CREATE TEMP TRIGGER gone_u AFTER UPDATE OF id ON main.message {gone} AND OLD.id <> NEW.id {put}"
        )

    def _watch(self, table: str, key: Sequence[str], column: str | None) -> None:
        touched = f"touched_{table}"
        self.execute(f"CREATE TEMP TABLE {touched} ({', '.join(f'k_{name}' for name in key)}, whose)")
        for event, which in (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD")):
            values = ", ".join(f"{which}.{name}" for name in key)
            whose = f"{which}.{column}" if column else "NULL"
            self.execute(
                f"CREATE TEMP TRIGGER {touched}_{event} AFTER {event} ON main.{table} "
                f"BEGIN INSERT INTO {touched} VALUES ({values}, {whose}); END"
            )

    def forget(self) -> None:
        """Nothing has changed, and nothing waits to be written."""
        self.forget_contents()
        for table in (*TABLES, "content", "piece"):
            self.execute(f"DELETE FROM temp.touched_{table}")
        self.execute("DELETE FROM temp.gone")

    def forget_contents(self) -> None:
        """The transaction has ended."""
        self._bodies.clear()
        self._pieces.clear()

    def changes(self, number: int) -> tuple[Commit, Contents]:
        """What the transaction has changed so far, as the commit of this number, and the contents that are to
        be written for it.
        """
        commit = Commit(
            number, removed=[(seq, id) for seq, id in self.execute("SELECT DISTINCT seq, id FROM gone")]
        )
        parts: dict[int | None, Part] = {}
        for table, (key, _) in TABLES.items():
            for *values, whose in self.execute(self._touched(table)):
                part = parts.setdefault(whose, Part())
                if values[len(key)] is None:
                    part.drop.setdefault(table, []).append(values[: len(key)])
                else:
                    part.set.setdefault(table, []).append(
                        packed(table, [name for name, _ in self.columns(table)], values[len(key) :])
                    )
        for seq, _ in commit.removed:
            parts[seq] = self._left_over(seq)
            self.execute("DELETE FROM content WHERE seq = ?", (seq,))
        contents = self._contents(number)
        for seq in contents.changed:
            parts.setdefault(seq, Part())
        ids = self._ids([seq for seq in parts if seq is not None])
        for whose, part in parts.items():
            if whose is not None and whose in ids:
                id, live = ids[whose]
                commit.messages[id] = Change(part.set, part.drop, live, contents.changed.get(whose, ""))
            else:  # it belongs to no message, or to one of which only the number is left
                commit.spool.add(part)
        return commit, contents

    def _touched(self, table: str) -> str:
        """SQL for what was touched, as (key, columns as they are now, whose)."""
        if table not in self._sql:
            key = TABLES[table][0]
            self._sql[table] = (
                f"SELECT {', '.join(f't.k_{name}' for name in key)}, "
                f"{', '.join(f'r.{name}' for name, _ in self.columns(table))}, t.whose "
                f"FROM (SELECT DISTINCT * FROM temp.touched_{table}) t LEFT JOIN main.{table} r "
                f"ON {' AND '.join(f'r.{name} = t.k_{name}' for name in key)}"
            )
        return self._sql[table]

    def _left_over(self, seq: int) -> Part:
        """Rows that stay of a message that is removed, so that their numbers are not used again."""
        part = Part()
        for table, (_, column) in TABLES.items():
            if column:
                names = [name for name, _ in self.columns(table)]
                rows = self.execute(f"SELECT {', '.join(names)} FROM {table} WHERE {column} = ?", (seq,))
                if rows:
                    part.set[table] = [packed(table, names, row) for row in rows]
        return part

    def _ids(self, seqs: Iterable[int]) -> dict[int, tuple[str, bool]]:
        """Of those that are messages, the id and whether somebody is still to get them."""
        rows = self.execute(
            f"SELECT seq, id, {_LIVE} FROM message m WHERE seq {LISTED} AND id NOT GLOB '{GONE}*'",
            (json_list(seqs),),
        )
        return {seq: (id, bool(live)) for seq, id, live in rows}

    def _contents(self, number: int) -> Contents:
        """Contents that have come, changed or gone."""
        found = Contents()
        rows = self.execute(
            "SELECT DISTINCT t.k_seq, m.id, c.seq FROM touched_content t JOIN message m ON m.seq = t.k_seq "
            "LEFT JOIN content c ON c.seq = t.k_seq"
        )
        for seq, id, there in rows:
            if there is None:
                found.changed[seq] = None
            elif seq in self._bodies:
                found.write(seq, f"{name_of(id)}.{number}", self._bodies[seq])
        added = self.execute(
            "SELECT m.seq, m.upload FROM touched_message t JOIN message m ON m.seq = t.k_seq "
            "WHERE EXISTS (SELECT 1 FROM piece p WHERE p.upload = m.upload)"
        )
        for seq, upload in added:
            found.changed[seq] = UPLOAD + upload
        for (upload,) in self.execute("SELECT DISTINCT k_upload FROM touched_piece"):
            self._long_content(number, upload, found)
        return found

    def _long_content(self, number: int, upload: str, found: Contents) -> None:
        """Pieces that have come or gone, before their message or with it. All pieces of one commit are one
        file: the name that belongs to the upload is used only once.
        """
        there = [n for (n,) in self.execute("SELECT n FROM piece WHERE upload = ? ORDER BY n", (upload,))]
        fresh = [n for n in there if (upload, n) in self._pieces]
        rows = self.execute("SELECT seq, id FROM message WHERE upload = ?", (upload,))
        if rows and there and fresh == there:
            whole = b"".join([self._pieces[upload, n] for n in there])
            found.write(rows[0][0], f"{name_of(rows[0][1])}.{number}", whole)
            return
        if fresh:
            found.pieces.append((upload, [(n * PIECE, self._pieces[upload, n]) for n in fresh]))
        for seq, _ in rows:
            found.changed[seq] = UPLOAD + upload if there else None
        if not rows and not there:
            found.dropped.append(upload)


def _lacks(problem: OSError, what: str) -> None:
    """A content that cannot be read counts as missing, so that no other message waits for it."""
    if not of_one_file(problem):
        raise file_trouble(problem, what) from None
    log.error("%s cannot be read: %s", what, problem)


class Contents:
    """Contents of a commit: ``files`` and ``pieces`` are to be written before it, uploads that are
    ``dropped`` to be removed after it. ``changed``: what becomes of a message's content, as of `Change`.
    """

    def __init__(self) -> None:
        self.files: list[tuple[str, bytes]] = []
        self.pieces: list[tuple[str, list[tuple[int, bytes]]]] = []
        self.dropped: list[str] = []
        self.changed: dict[int, str | None] = {}

    def write(self, seq: int, name: str, content: bytes) -> None:
        """This file of ``tmp`` becomes the content of a message."""
        self.files.append((name, content))
        self.changed[seq] = name
