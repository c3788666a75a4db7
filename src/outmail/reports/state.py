"""What reports remember, in the store's notes: where a job stands, which runs there were.

Kinds: ``job`` (name → incident, last run, rule, …), ``run`` (run id → one run), ``digest`` (handler name → pending groups
and incidents). Promises: a change of a note and the mail it causes are one transaction; whoever was slower decides again.
Does not: decide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from outmail.model import Receipt
from outmail.reports.door import ReportDoor
from outmail.store import Trouble, Verb

#: Runs kept for each job.
HISTORY = 100

Document = dict[str, Any]
Decision = tuple[Document, dict[str, Any] | None]


def change(door: ReportDoor, kind: str, key: str, decide: Callable[[Document], Decision], *, supersede: str | None = None) -> Receipt | None:
    """``decide(document)`` → (the new document, arguments of a mail or None); both are stored together or not at all."""
    verbs = door.store.verbs
    for _ in range(50):
        found = door.store.read(verbs.note_get(kind, key))
        before, version = found if found else ({}, 0)
        after, words = decide(before)
        landed: list[bool] = []

        def when(after: Document = after, version: int = version, landed: list[bool] = landed) -> Verb[bool]:
            done = yield from verbs.note_put(kind, key, after, version)
            landed.append(done)
            return bool(done)

        if after == before and words is None:
            return None
        receipt = door.report(words, when=when, supersede=supersede)
        if landed[-1]:
            return receipt
    raise Trouble("busy", f"the note {kind}/{key} was changed by others 50 times in a row")


def read(door: ReportDoor, kind: str, key: str) -> Document:
    """A note, empty if there is none."""
    found = door.store.read(door.store.verbs.note_get(kind, key))
    return dict(found[0]) if found else {}


def remember(door: ReportDoor, kind: str, key: str, document: Document) -> None:
    """Write a note, whatever was there."""
    door.store.run(door.store.verbs.note_put(kind, key, document))


def runs(door: ReportDoor, job: str = "") -> dict[str, Document]:
    """Known runs, oldest first; of one job when it is named."""
    found: dict[str, Document] = door.store.read(door.store.verbs.note_list("run"))
    mine = [(id, run) for id, run in found.items() if not job or run.get("job") == job]
    return dict(sorted(mine, key=lambda item: item[1].get("started_at", 0)))


def forget_old_runs(door: ReportDoor, job: str) -> None:
    """Keep the newest `HISTORY` runs of a job."""
    old = [id for id, run in runs(door, job).items() if run.get("state") != "running"][:-HISTORY]
    for id in old:
        door.store.run(door.store.verbs.note_drop("run", id))
