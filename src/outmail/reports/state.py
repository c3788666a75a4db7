"""What reports remember, in the store's notes: where a job stands, which runs there were.

Kinds: ``job`` (name → incident, last run, rule, …), ``run`` (run id → one run), ``digest`` (handler name →
pending groups and incidents). Promises: a change of a note and the mail it causes are one transaction;
whoever was slower decides again; a note that cannot be read (no JSON, no document, not what we write) is set
aside under the kind ``<kind>.unreadable`` with a sentence, and stops nobody. Does not: decide.
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

#: Runs kept for each job.
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
    """``decide(document)`` → (the new document, arguments of a mail or None); both are stored together or not
    at all, and with them the note ``also`` (kind, key, document). With ``claim`` only while nobody else has
    told it meanwhile, else it raises `TooLate`.
    """
    verbs = door.store.verbs
    for _ in range(50):
        before, version = _found(door, kind, key)
        try:
            after, words = decide(before)
        except _MALFORMED:
            decide({})  # raises again where it is not the note's fault
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
    """A note, empty if there is none."""
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


#: What a document that is not ours makes of the code that takes it for one.
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
    """Write a note, whatever was there."""
    door.store.run(door.store.verbs.note_put(kind, key, document))


def runs(door: ReportDoor, job: str = "") -> dict[str, Document]:
    """Known runs, oldest first; of one job when it is named."""
    mine = [(id, run) for id, run in documents(door, "run").items() if not job or run.get("job") == job]
    return dict(sorted(mine, key=lambda item: whole(item[1].get("started_at"))))


def whole(value: Any) -> int:
    """An instant of a document, 0 for what is none."""
    return int(value) if isinstance(value, (int, float)) and 0 <= value < END else 0


def forget_old_runs(door: ReportDoor, job: str) -> None:
    """Keep the newest `HISTORY` runs of a job."""
    old = [id for id, run in runs(door, job).items() if run.get("state") != "running"][:-HISTORY]
    for id in old:
        door.store.run(door.store.verbs.note_drop("run", id))
