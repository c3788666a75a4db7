"""Runs that died, and runs that did not happen. They are found by the service, by `run --once`, or by the
next run.

Promises: each death and each late job is reported once, even if several processes look at the same moment.
Does not: run by itself.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from glob import escape, glob
from typing import Any

from outmail.clock import human_span
from outmail.policy import incident
from outmail.policy.progress import span_in_words
from outmail.reports import spoolfiles, state, workers
from outmail.reports.door import ReportDoor
from outmail.reports.liveness import bury, dead
from outmail.reports.mail import Report, local_time, subject_line
from outmail.reports.post import host, root_id, tell, words

log = logging.getLogger("outmail.reports")


def look(door: ReportDoor) -> None:
    """Look for everything."""
    dead_runs(door)
    late_jobs(door)


def dead_runs(door: ReportDoor, job: str = "") -> None:
    """Report runs that never ended although their process is gone: nobody holds the lock on their file."""
    for path in sorted(glob(os.path.join(escape(door.spool), "run.*"))):
        id = os.path.basename(path).removeprefix("run.")
        if id.endswith(spoolfiles.UNREADABLE) or not dead(door.spool, id):
            continue
        try:
            _dead_run(door, id, path, job)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as problem:
            tell(f"{spoolfiles.set_aside(path)} ({problem!r})")


def _dead_run(door: ReportDoor, id: str, path: str, job: str) -> None:
    run = _newest(state.read(door, "run", id), path)
    if not isinstance(run["job"], str) or not isinstance(run.get("to") or [], list):
        raise ValueError("no run of ours")
    if not job or run["job"] == job:
        if run.get("state") == "running":
            _tell_death(door, id, run)
        bury(door.spool, id)
        workers.forget(door.spool, id)


def _newest(noted: dict[str, Any], path: str) -> dict[str, Any]:
    """What is known of a run: its note in the store, and what it has written into its file since. The run of
    a watched command is in its file only.
    """
    try:
        filed = {"state": "running", **json.loads(spoolfiles.read(path))}
    except (ValueError, TypeError, RecursionError):
        if not noted:
            raise ValueError("no run of ours") from None
        return noted
    if noted.get("state", "running") != "running" or state.whole(noted.get("at")) > state.whole(
        filed.get("at")
    ):
        return {**filed, **noted}
    return {**noted, **filed}


def _tell_death(door: ReportDoor, id: str, run: dict[str, Any]) -> None:
    name, to = run["job"], tuple(run.get("to") or ()) or door.report_to
    key = f"report:{id}:dead"
    subject = subject_line("dead", f"{name} died: process {run['pid']} is gone", host())

    def decide(document: state.Document) -> state.Decision:
        if document.get("state", "running") != "running":
            return document, None  # somebody else was faster
        return {**document, **run, "state": "dead", "at": door.clock.now()}, _mail() if to else None

    def _mail() -> dict[str, Any]:
        facts = [
            ("Host", f"{run['host']}, process {run['pid']}"),
            ("Started", local_time(state.whole(run["started_at"]))),
        ]
        done, total = run.get("done"), run.get("total")
        if done is not None:
            facts.append(("Last sign of life", local_time(state.whole(run["at"]))))
            if not total:
                facts.append(("Done then", f"{done:,}"))
        report = Report(
            "dead",
            subject,
            f"{name} ended without a word: killed, or the machine went down.",
            facts,
            progress=(done, total) if done is not None and total else None,
            preview="killed, or the machine went down"
            + (f", last seen at {done:,}" + (f" of {total:,}" if total else "") if done is not None else ""),
            footer=[
                f"{name} on {host()}, run {id}",
                "Why: the process that ran it is gone and had not said that it ended",
            ],
        )
        return words(
            report,
            to=to,
            kind="jobs",
            name=name,
            run=id,
            thread=(root_id("run", name, id),),
            templates=door.report_templates,
            key=key,
        )

    if run.get("kind") == "watch":
        spoolfiles.put(spoolfiles.attention(door.spool, name))
    state.change(door, "run", id, decide)
    rule = incident.Rule()
    now = door.clock.now()

    def stand(document: state.Document) -> state.Decision:
        standing, say = incident.failed(incident.Incident.load(document.get("incident")), rule, now)
        if say == "alert" and not standing.thread:
            standing = replace(standing, thread=door.message_id(key), subject=subject)
        return {
            **document,
            "kind": run.get("kind", "job"),
            "incident": standing.dump(),
            "last": {"run": id, "state": "dead", "at": now},
        }, None

    state.change(door, "job", name, stand)


def late_jobs(door: ReportDoor) -> None:
    """Report jobs that should have run and did not."""
    now = door.clock.now()
    for name, document in state.documents(door, "job").items():
        late = document.get("late")
        if (
            isinstance(late, dict)
            and not late.get("told")
            and now - state.whole(late.get("seen_at")) > state.whole(late.get("every_ms"))
        ):
            _tell_lateness(door, name, now)


def _tell_lateness(door: ReportDoor, name: str, now: int) -> None:
    def decide(document: state.Document) -> state.Decision:
        late = document.get("late") or {}
        to = tuple(late.get("to") or ()) or door.report_to
        if not late or late.get("told") or now - late["seen_at"] <= late["every_ms"]:
            return document, None
        standing = incident.Incident.load(document.get("incident"))
        key = f"report:late:{name}:{late['seen_at']}"
        subject = subject_line(
            "late", f"{name} is late: no run for {span_in_words((now - late['seen_at']) / 1000)}", host()
        )
        mail = None
        if to and now >= standing.muted_until:
            facts = [
                ("Host", host()),
                ("Expected", f"at least every {span_in_words(late['every_ms'] / 1000)}"),
                ("Last run", local_time(late["seen_at"])),
            ]
            report = Report(
                "late",
                subject,
                f"{name} should have run and did not.",
                facts,
                footer=[
                    f"{name} on {host()}",
                    f"Why: it was registered with --late {human_span(late['every_ms'])}",
                ],
            )
            mail = words(
                report,
                to=to,
                kind="watch",
                name=name,
                run=str(late["seen_at"]),
                templates=door.report_templates,
                key=key,
            )
        if not standing.alerted_at:
            standing = replace(
                standing,
                since=standing.since or now,
                alerted_at=now,
                said_at=now,
                thread=door.message_id(key),
                subject=subject,
            )
        return {**document, "incident": standing.dump(), "late": {**late, "told": True}}, mail

    spoolfiles.put(spoolfiles.attention(door.spool, name))
    state.change(door, "job", name, decide)
