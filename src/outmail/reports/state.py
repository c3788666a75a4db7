"""What reports remember, in notes of the store: the state of each job, and its runs.

Kinds: ``job`` (name → incident, last run, rule, …), ``run`` (run id → one run), ``digest`` (handler name →
waiting groups and incidents).
Promises: a change of a note and the mail that it causes are one transaction; if somebody else was faster, the
decision is made again. A note that cannot be read (no JSON, no document, not written by us) is set aside
under the kind ``<kind>.unreadable`` with a sentence, and stops nothing. Does not: decide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from outmail.clock import END
from outmail.model import Receipt
from outmail.reports.door import ReportDoor
from outmail.reports.lastresort import Claim, TooLate
from outmail.reports.post import tell
from outmail.store import StoreError, Verb

#: How many runs of each job are kept.
HISTORY = 100

Document = dict[str, Any]
Decision = tuple[Document, dict[str, Any] | None]


def change(
    door: ReportDoor,
    kind: str,
    key: str,
    decide: Callable[[Document], Decision],
    *,
    supersede: str | None = None,
    claim: Claim | None = None,
    also: tuple[str, str, Document] | None = None,
) -> Receipt | None:
    """``decide(document)`` → (the new document, arguments of a mail or None). Both are stored together or not
    at all, together with the note ``also`` (kind, key, document). With ``claim`` only if nobody else has
    reported it meanwhile; otherwise `TooLate` is raised.
    """
    verbs = door.store.verbs
    for _ in range(50):
        before, version = _found(door, kind, key)
        try:
            after, words = decide(before)
        except _MALFORMED:
            decide({})  # raises again when the note is not the reason
            _set_aside(door, kind, key)
            continue
        landed: list[bool] = []

        def when(after: Document = after, version: int = version, landed: list[bool] = landed) -> Verb[bool]:
            if claim is not None and not claim.take():
                raise TooLate
            done = yield from verbs.note_put(kind, key, after, version)
            if done and also is not None:
                yield from verbs.note_put(*also)
            landed.append(done)
            return bool(done)

        if after == before and words is None:
            return None
        receipt = door.report(words, when=when, supersede=supersede)
        if landed[-1]:
            return receipt
    raise StoreError("busy", f"the note {kind}/{key} was changed by others 50 times in a row")


def read(door: ReportDoor, kind: str, key: str) -> Document:
    """A note; empty if there is none."""
    return _found(door, kind, key)[0]


def documents(door: ReportDoor, kind: str) -> dict[str, Document]:
    """All notes of a kind that can be read."""
    try:
        found: dict[str, Any] = door.store.read(door.store.verbs.note_list(kind))
    except (ValueError, RecursionError):
        found = {key: _found(door, kind, key)[0] for key in door.store.read(door.store.verbs.note_keys(kind))}
    return {
        key: document if isinstance(document, dict) else _found(door, kind, key)[0]
        for key, document in found.items()
        if document
    }


#: The errors of code that reads a document which is not ours.
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)


def _found(door: ReportDoor, kind: str, key: str) -> tuple[Document, int]:
    try:
        found = door.store.read(door.store.verbs.note_get(kind, key))
    except (ValueError, RecursionError):
        found = (None, 0)
    if found and not isinstance(found[0], dict):
        _set_aside(door, kind, key)
        found = None
    return (dict(found[0]), found[1]) if found else ({}, 0)


def _set_aside(door: ReportDoor, kind: str, key: str) -> None:
    door.store.run(door.store.verbs.note_set_aside(kind, key))
    tell(
        f"the note {kind}/{key} cannot be read: it is kept under the kind {kind}.unreadable, and begins anew"
    )


def remember(door: ReportDoor, kind: str, key: str, document: Document) -> None:
    """Write a note, whatever was there before."""
    door.store.run(door.store.verbs.note_put(kind, key, document))


def runs(door: ReportDoor, job: str = "") -> dict[str, Document]:
    """Known runs, oldest first; only those of ``job`` if it is given."""
    mine = [(id, run) for id, run in documents(door, "run").items() if not job or run.get("job") == job]
    return dict(sorted(mine, key=lambda item: whole(item[1].get("started_at"))))


def whole(value: Any) -> int:
    """An instant from a document; 0 when it is none."""
    return int(value) if isinstance(value, (int, float)) and 0 <= value < END else 0


def forget_old_runs(door: ReportDoor, job: str) -> None:
    """Keep the newest `HISTORY` runs of a job."""
    old = [id for id, run in runs(door, job).items() if run.get("state") != "running"][:-HISTORY]
    for id in old:
        door.store.run(door.store.verbs.note_drop("run", id))
