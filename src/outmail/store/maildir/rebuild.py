"""Making the index of a spool anew, from the files.

Promises: whatever lies in the folders, the index has every message whose journal can be read. What waits and
whose journal is damaged is held, as corrupt, with an event; the damaged file is set aside in ``broken``.
Files that are no outmail's are left alone, and named.
Fails: `OSError`, `StoreError`. Does not: lock; the caller holds the spool's lock.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from outmail.lifecycle import FINAL
from outmail.store.maildir.files import (
    DONE,
    EML,
    JOURNAL,
    QUEUE,
    Files,
    Journal,
    name_of,
    of_one_file,
    unlink,
)
from outmail.store.maildir.index import Index
from outmail.store.maildir.lines import Row, Rows
from outmail.store.maildir.state import State

log = logging.getLogger("outmail")

#: So many messages are read before their rows are written.
PAGE = 2000
REASON = "corrupt: its journal is damaged"


@dataclass(slots=True)
class Findings:
    """What was found that is not as it should be: journals whose lines cannot all be read, by id; files that
    belong to no message; contents without a journal, and journals that tell nothing.
    """

    damaged: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    #: Numbers of engines that have leased recipients, and of which no file tells any more.
    engines: list[str] = field(default_factory=list)
    #: The number of the last commit that a journal tells of.
    last: int = 0

    def sentences(self) -> list[str]:
        return [
            f"{len(names)} {text}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
            for names, text in (
                (self.damaged, "journals have lines that cannot be read"),
                (self.unreadable, "journals tell nothing"),
                (self.alone, "contents have no journal"),
                (self.engines, "engines have left mail behind, and their record is lost"),
                (self.foreign, "files were not written by outmail"),
            )
            if names
        ]


def build(
    files: Files, state: State, path: str, stamp: tuple[str, int, str, int], *, repair: bool
) -> Findings:
    """A new index in a new file. ``stamp`` is its row of the table ``spool``. With ``repair`` what is damaged
    is held and set aside.
    """
    unlink(path, f"{path}-journal", f"{path}-wal", f"{path}-shm")
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    index = Index(path, files)
    try:
        index.execute("PRAGMA journal_mode = OFF")
        index.execute("PRAGMA synchronous = OFF")
        index.create()
        index.execute("BEGIN")
        findings = fill(files, index, state, repair=repair)
        identity, number, name, size = stamp
        index.execute(
            "INSERT INTO spool (identity, number, log, size) VALUES (?,?,?,?)",
            (identity, max(number, findings.last), name, size),
        )
        index.execute("COMMIT")
    finally:
        index.close()
    return findings


def fill(files: Files, index: Index, state: State, *, repair: bool) -> Findings:
    """Write everything that the files say into an empty index."""
    return _Builder(files, index, state).run(repair=repair)


class _Builder:
    def __init__(self, files: Files, index: Index, state: State) -> None:
        self._files, self._index, self._state = files, index, state
        self.findings = Findings()

    def run(self, *, repair: bool) -> Findings:
        self._index.apply(self._state.rows.part())
        if self._state.owners:
            self._index.execute("DELETE FROM sqlite_sequence WHERE name = 'owner'")
            self._index.execute(
                "INSERT INTO sqlite_sequence (name, seq) VALUES ('owner', ?)", (self._state.owners,)
            )
        for folder in (QUEUE, DONE):
            found, foreign = self._files.ids(folder)
            self.findings.foreign += [f"{folder}/{name}" for name in foreign]
            self._take(folder, found)
        if repair:
            self._repair()
        self._note_lost_engines()
        return self.findings

    def _note_lost_engines(self) -> None:
        """Engines that have leased recipients and whose record is lost get one that names no process. So the
        next engine takes their work back as possibly sent, and no number is used a second time.
        """
        for (number,) in self._index.execute(
            "SELECT DISTINCT owner FROM recipient WHERE state = 'sending' AND owner NOT IN "
            "(SELECT id FROM owner) ORDER BY owner"
        ):
            self.findings.engines.append(str(number))
            self._index.execute(
                "INSERT INTO owner (id, uuid, pid, host, boot, started_at) VALUES (?,?,0,'','',0)",
                (number, f"lost-{number}"),
            )

    def _take(self, folder: str, found: dict[str, set[str]]) -> None:
        """All messages of a folder, a page at a time."""
        page: list[tuple[str, Rows, bool]] = []
        for id, suffixes in found.items():
            if JOURNAL not in suffixes:
                self.findings.alone.append(f"{folder}/{name_of(id)}{EML}")
                continue
            journal = self._journal(folder, id)
            self.findings.last = max(self.findings.last, journal.last)
            rows = journal.rows()
            message = rows.message
            if message is None or message.get("id") != id:
                self.findings.unreadable.append(f"{folder}/{name_of(id)}{JOURNAL}")
                continue
            if journal.damaged or journal.torn is not None:
                self.findings.damaged.append(id)
            page.append((id, rows, EML in suffixes))
            if len(page) >= PAGE:
                self._write(page)
                page = []
        self._write(page)

    def _journal(self, folder: str, id: str) -> Journal:
        """A journal; an empty one where the disk does not give it."""
        try:
            return self._files.journal(name_of(id), (folder,))[0]
        except OSError as problem:
            if not of_one_file(problem):
                raise
            log.error("the journal of %s cannot be read: %s", id, problem)
            return Journal()

    def _write(self, page: list[tuple[str, Rows, bool]]) -> None:
        tables: dict[str, list[Row]] = {}
        for _, rows, _ in page:
            for table, found in rows.tables.items():
                tables.setdefault(table, []).extend(found.values())
        for table, found_rows in tables.items():
            self._index.insert(table, found_rows)
        there = [rows.message for _, rows, content in page if content]
        self._index.many(
            "INSERT INTO content (seq) VALUES (?)",
            [(message["seq"],) for message in there if message and "upload" not in message],
        )
        for message in there:
            if message and "upload" in message:
                self._index.note_pieces(message["upload"], message["size"])

    # -- repairs ---------------------------------------------------------------------------------------------

    def _repair(self) -> None:
        cursor = self._index.execute("SELECT max(cursor) FROM event")[0][0] or 0
        for id in self.findings.damaged:
            journal, path = self._files.journal(name_of(id))
            rows = journal.rows()
            events = list(_held(rows, cursor))
            cursor += len(events)
            for event in events:
                rows.put("event", event)
            part = rows.part()
            self._index.apply(part)
            kept = self._files.keep_aside(path)
            self._files.write_journal(name_of(id), path, journal.last, part)
            log.error("the journal of %s is damaged; it is kept as %s, and the message is held", id, kept)
        for name in self.findings.unreadable:
            kept = self._files.set_aside(os.path.join(self._files.root, name))
            log.error("%s tells nothing that can be read; it is kept as %s", name, kept)
        for text in Findings(foreign=self.findings.foreign, alone=self.findings.alone).sentences():
            log.warning("%s: %s; they are left alone", self._files.root, text)


def _held(rows: Rows, cursor: int) -> Iterator[Row]:
    """Hold who waits, and tell so in events that come after ``cursor``."""
    now = int(time.time() * 1000)
    for recipient in rows.tables.get("recipient", {}).values():
        if recipient["state"] in FINAL or recipient["state"] == "held":
            continue
        for name in ("due", "owner", "lease", "leased_at", "wish"):
            recipient.pop(name, None)
        recipient.update(state="held", reason=REASON)
        cursor += 1
        yield {
            "cursor": cursor,
            "at": now,
            "event": "quarantine",
            "message": recipient["message"],
            "n": recipient["n"],
            "state": "held",
            "uncertain": recipient["uncertain"],
            "reason": REASON,
            "attempts": recipient["attempts"],
        }
