"""The text that a spool consists of beside the messages: one JSON object a line, each with its checksum.

A *part* is what one commit changed of one message, or of the spool itself: ``{"set": {table: [row, …]},
"drop": {table: [key, …]}}``. A row is an object of columns without those that are NULL; bytes are written in
hexadecimal. The journal of a message holds the parts of its commits. The commit log holds whole commits.
Promises: a line that was written in part, or changed since, is not taken for a whole one.
Fails: never; what is no line of ours is returned as None. Does not: touch files.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
Key = tuple[Any, ...]

#: The tables of the queue: the columns of the primary key, and the column that names the message.
TABLES: dict[str, tuple[tuple[str, ...], str | None]] = {
    "message": (("seq",), "seq"),
    "recipient": (("message", "n"), "message"),
    "attempt": (("id",), "message"),
    "event": (("cursor",), "message"),
    "loopback": (("message", "owner", "lease", "part"), "message"),
    "owner": (("id",), None),
    "note": (("kind", "key"), None),
    "loopback_count": (("word",), None),
}
_BYTES = {("message", "sha256")}
_WITH_BYTES = {table for table, _ in _BYTES}
_SUM = b',"sum":"'


def line(value: dict[str, Any]) -> bytes:
    """An object as a line with its checksum (CRC-32) as the last member."""
    head = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")[:-1]
    return b'%b%b%08x"}\n' % (head, _SUM, zlib.crc32(head))


def read(data: bytes) -> dict[str, Any] | None:
    """The object of a line, without its checksum; None when it is no whole line."""
    head, found, tail = data.rpartition(_SUM)
    if not found or len(tail) != 11 or tail[8:] != b'"}\n' or tail[:8] != b"%08x" % zlib.crc32(head):
        return None
    try:
        value = json.loads(head.decode("utf-8", "surrogatepass") + "}")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def packed(table: str, columns: Sequence[str], values: Sequence[Any]) -> Row:
    """A row of a table as a line holds it."""
    return {
        name: value.hex() if (table, name) in _BYTES else value
        for name, value in zip(columns, values)
        if value is not None
    }


def unpacked(table: str, row: Row, columns: Sequence[tuple[str, Any]]) -> tuple[Any, ...]:
    """The values of a row for these columns, given as (name, default)."""
    values = [row.get(name, default) for name, default in columns]
    for i, (name, _) in enumerate(columns) if table in _WITH_BYTES else ():
        if (table, name) in _BYTES:
            values[i] = bytes.fromhex(row[name])
    return tuple(values)


@dataclass(slots=True)
class Part:
    """What changed."""

    set: dict[str, list[Row]] = field(default_factory=dict)
    drop: dict[str, list[list[Any]]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.set or self.drop)

    def add(self, other: Part) -> None:
        """Change this, and then that."""
        for table, rows in other.set.items():
            self.set.setdefault(table, []).extend(rows)
        for table, keys in other.drop.items():
            self.drop.setdefault(table, []).extend(keys)

    def value(self) -> dict[str, Any]:
        return {name: found for name, found in (("set", self.set), ("drop", self.drop)) if found}


def part_of(value: dict[str, Any]) -> Part:
    return Part(value.get("set", {}), value.get("drop", {}))


@dataclass(slots=True)
class Change(Part):
    """What one commit changed of one message. ``live``: somebody is still to get it. ``content``: "" when it
    is as before, None when it is gone, else the name of the file in ``tmp`` that becomes it.
    """

    live: bool = True
    content: str | None = ""

    def value(self) -> dict[str, Any]:
        value = Part.value(self)
        value["live"] = self.live
        return value if self.content == "" else value | {"content": self.content}


@dataclass(slots=True)
class Commit:
    """Everything that one commit changed. ``removed``: messages that are forgotten, as (number, id)."""

    number: int = 0
    removed: list[tuple[int, str]] = field(default_factory=list)
    messages: dict[str, Change] = field(default_factory=dict)
    spool: Part = field(default_factory=Part)

    def __bool__(self) -> bool:
        return bool(self.removed or self.messages or self.spool)

    def line(self) -> bytes:
        value: dict[str, Any] = {"commit": self.number}
        if self.removed:
            value["removed"] = self.removed
        if self.messages:
            value["messages"] = {id: change.value() for id, change in self.messages.items()}
        if self.spool:
            value["spool"] = self.spool.value()
        return line(value)


def commit_of(value: dict[str, Any] | None) -> Commit | None:
    """A line of the commit log; None when it is none."""
    if value is None or not isinstance(value.get("commit"), int):
        return None
    return Commit(
        value["commit"],
        [(seq, id) for seq, id in value.get("removed", ())],
        {
            id: Change(found.get("set", {}), found.get("drop", {}), found["live"], found.get("content", ""))
            for id, found in value.get("messages", {}).items()
        },
        part_of(value.get("spool", {})),
    )


class Rows:
    """Rows by table and key: what is left when parts are applied one after the other."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[Key, Row]] = {}

    def apply(self, part: Part) -> None:
        for table, keys in part.drop.items():
            found = self.tables.get(table, {})
            for key in keys:
                found.pop(tuple(key), None)
        for table, rows in part.set.items():
            names, kept = TABLES[table][0], self.tables.setdefault(table, {})
            for row in rows:
                kept[tuple([row[name] for name in names])] = row

    def put(self, table: str, row: Row) -> None:
        """One row, in the place of one with the same key."""
        self.tables.setdefault(table, {})[tuple([row[name] for name in TABLES[table][0]])] = row

    def part(self) -> Part:
        """All of them as one part."""
        return Part({table: list(found.values()) for table, found in self.tables.items() if found})

    def rows(self) -> Iterator[tuple[str, Row]]:
        for table, found in self.tables.items():
            for row in found.values():
                yield table, row

    @property
    def message(self) -> Row | None:
        """The message's own row."""
        return next(iter(self.tables.get("message", {}).values()), None)
