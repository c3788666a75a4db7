"""The operators' notice about mail that failed: ``[notify] failed``.

Promises: the first failure is told at once, what follows within `GAP` in one mail; each failure is told once,
also when several services look; a notice that itself fails is no reason for another. What is remembered and
the mail are one transaction. Fails: as the store does; whoever calls guards.
Does not: run by itself (`outmail run` looks every few seconds, `run --once` at each call), tell what failed
before it was first asked, or count what ``[safety]`` held back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outmail.clock import MINUTE
from outmail.model import Event, Status
from outmail.policy.plain import plain_line
from outmail.reports import state
from outmail.reports.door import ReportDoor
from outmail.reports.mail import Report, Section, local_time, one_line, subject_line
from outmail.reports.post import host, words

#: Milliseconds between two notices.
GAP = 15 * MINUTE
#: Failures that a notice lists, and pages of events that one look reads.
MOST = 20
PAGES = 50
_TAG = "report:notify"
#: Events that end a recipient as failed.
FAILURES = ("refused", "expired", "suppress")


def look(door: ReportDoor, to: Sequence[str]) -> None:
    """Gather what has failed since the last look, and tell it when it is time."""
    if not to:
        return

    def decide(document: state.Document) -> state.Decision:
        if "cursor" not in document:
            return {"cursor": door.store.read(door.store.verbs.last_cursor()), "waiting": [], "more": 0}, None
        gathered = _gathered(door, document)
        now = door.clock.now()
        if not gathered["waiting"] or now - state.whole(gathered.get("said_at")) < GAP:
            return gathered, None
        mail = _notice(door, gathered, tuple(to), now)
        return {**gathered, "waiting": [], "more": 0, "said_at": now}, mail

    state.change(door, "notify", "failed", decide)


def _gathered(door: ReportDoor, document: state.Document) -> state.Document:
    """The document with what has happened since."""
    cursor, waiting, more = state.whole(document["cursor"]), list(document["waiting"]), document["more"]
    for _ in range(PAGES):
        page = door.store.read(door.store.verbs.events_after(cursor))
        for event in page:
            cursor = event.cursor
            if event.event not in FAILURES or event.reason == "safety":
                continue
            if len(waiting) >= MOST:
                more += 1
            elif (status := _status(door, event)) is not None and status.tag != _TAG:
                waiting.append(_entry(event, status))
        if not page:
            break
    return {**document, "cursor": cursor, "waiting": waiting, "more": more}


def _status(door: ReportDoor, event: Event) -> Status | None:
    verbs = door.store.verbs
    seq = door.store.read(verbs.seq_of(event.id or ""))
    found = door.store.read(verbs.statuses([seq])) if seq is not None else []
    return found[0] if found else None


def _entry(event: Event, status: Status) -> dict[str, Any]:
    why = event.reason
    if event.reply is not None and event.reply.text not in why:
        why = f"{why}; {event.reply}" if why else str(event.reply)
    return {
        "id": status.id,
        "at": event.at,
        "to": event.address or "",
        "from": status.sender,
        "subject": status.subject[:200],
        "why": why[:500],
    }


def _lines(entry: dict[str, Any]) -> str:
    """One failure: when and to whom, why, which message. Not a row of a table: a telephone is 375 px wide."""
    return "\n  ".join(
        (
            f"{local_time(entry['at'])}  {one_line(entry['to'], 100)}",
            one_line(entry["why"], 300),
            one_line(f"{entry['subject']}, from {entry['from'] or '<>'}", 120),
        )
    )


def _notice(door: ReportDoor, gathered: state.Document, to: tuple[str, ...], now: int) -> dict[str, Any]:
    entries, more = gathered["waiting"], gathered["more"]
    count = len(entries) + more
    first = entries[0]
    what = (
        f"mail to {first['to']} failed: {first['why']}"
        if count == 1
        else f"{count:,} recipients failed: {first['why']}"
    )
    sections = [Section("What failed", pre="\n\n".join(map(_lines, entries)))]
    if more:
        sections.append(Section("", text=f"And {more:,} more."))
    commands = "\n".join(f"outmail why {id}" for id in dict.fromkeys(entry["id"] for entry in entries))
    sections.append(
        Section(
            "Look, and send again",
            pre=f"{commands}\noutmail queue list state:failed\noutmail queue requeue ID",
        )
    )
    report = Report(
        "failed",
        subject_line("failed", plain_line(what), host()),
        one_line(f"{count:,} recipient{'' if count == 1 else 's'} failed and will not be tried again.", 200),
        [("Host", host()), ("Queue", door.store.url)],
        sections,
        footer=[
            f"The queue {door.store.url} on {host()}",
            f"Why: [notify] failed in outmail's configuration; at most one notice in {GAP // MINUTE} minutes",
        ],
    )
    return words(
        report,
        to=to,
        kind="notify",
        name="mail",
        run=first["id"],
        templates=door.report_templates,
        key=f"report:notify:{gathered['cursor']}:{now}",
    )
