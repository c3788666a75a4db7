"""``outmail jobs`` and ``outmail digest``: show and change what reports remember in the store.

Promises: what runs and handlers have written beside the store is taken in first, so that all is shown.
Fails: `NotFound` (66) for an unknown name; 64 for a missing one. Does not: deliver mail.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from outmail.cli.common import config_of, counted
from outmail.cli.exits import EX_USAGE
from outmail.clock import human_span, parse_span
from outmail.errors import NotFound, Refused
from outmail.outbox.outbox import Outbox
from outmail.policy.digest import Gathered, in_words
from outmail.policy.incident import Incident
from outmail.policy.plain import as_json, plain_line
from outmail.policy.progress import sparkline, took
from outmail.reports import digest_fold, spoolfiles, state, watch, watchdog
from outmail.reports.mail import as_text, local_time


def _box(arguments: argparse.Namespace) -> Outbox:
    """An Outbox that does not deliver by itself."""
    return Outbox(config=config_of(arguments), deliver="never")


def jobs(arguments: argparse.Namespace) -> int:
    """List, look, mute, forget."""
    box = _box(arguments)
    watch.fold(box)
    watchdog.look(box)
    if arguments.verb == "ls":
        return _list(box, arguments)
    if not arguments.name:
        print(f"outmail: jobs {arguments.verb} needs a job's name", file=sys.stderr)
        return EX_USAGE
    document = state.read(box, "job", arguments.name)
    if not document:
        raise NotFound(f"no job named {arguments.name!r} is known; outmail jobs ls lists them")
    return int(
        {"show": _show, "history": _history, "mute": _mute, "reset": _reset}[arguments.verb](
            box, arguments, document
        )
    )


def _list(box: Outbox, arguments: argparse.Namespace) -> int:
    documents: dict[str, Any] = state.documents(box, "job")
    if arguments.json:
        print(as_json(documents))
        return 0
    now = box.clock.now()
    for name, document in documents.items():
        last = document.get("last", {})
        ago = human_span(now - last["at"]) + " ago" if last else "never"
        row = _row(Incident.load(document.get("incident")), now)
        print(
            f"{plain_line(name):<30} {document.get('kind', 'job'):<6} {last.get('state', 'no run'):<9} "
            f"{ago:<14} {row}".rstrip()
        )
    if not documents:
        print("no job is known yet", file=sys.stderr)
    return 0


def _row(standing: Incident, now: int) -> str:
    parts = []
    if standing.failures:
        parts.append(f"{standing.failures} failure{'s' if standing.failures > 1 else ''} in a row")
    if standing.alerted_at:
        parts.append("told")
    if standing.muted_until > now:
        parts.append(f"muted for {human_span(standing.muted_until - now)}")
    return ", ".join(parts)


def _show(box: Outbox, arguments: argparse.Namespace, document: dict[str, Any]) -> int:
    found = state.runs(box, arguments.name)
    if arguments.json:
        print(as_json({"name": arguments.name, **document, "runs": len(found)}))
        return 0
    now = box.clock.now()
    standing = Incident.load(document.get("incident"))
    last = document.get("last", {})
    print(
        f"{arguments.name}: {last.get('state', 'no run yet')}"
        + (f" {human_span(now - last['at'])} ago" if last else "")
    )
    if _row(standing, now):
        print(
            f"  {_row(standing, now)}" + (f", since {local_time(standing.since)}" if standing.since else "")
        )
    if document.get("late"):
        print(f"  expected at least every {human_span(document['late']['every_ms'])}")
    durations = [run["duration_ms"] for run in found.values() if run.get("duration_ms")]
    if durations:
        middle = sorted(durations)[len(durations) // 2]
        kept = counted(len(found), "run")
        print(f"  {kept} kept, usually {took(middle / 1000)}  {sparkline(durations[-40:])}")
    newest = next(reversed(list(found.values())), None)
    if newest and newest.get("output"):
        print("  last output:")
        print("\n".join(f"    {plain_line(line)}" for line in newest["output"].split("\n")[-20:]))
    return 0


def _history(box: Outbox, arguments: argparse.Namespace, document: dict[str, Any]) -> int:
    for id, run in state.runs(box, arguments.name).items():
        if arguments.json:
            print(as_json({"run": id, **run}))
            continue
        lasted = took(run["duration_ms"] / 1000) if "duration_ms" in run else ""
        status = f"exit {run['status']}" if "status" in run else ""
        print(
            f"{local_time(run['started_at'])}  {run.get('state', ''):<9} {lasted:>10}  {status:<9} "
            f"{plain_line(str(run.get('reason', '')))}".rstrip()
        )
    return 0


def _mute(box: Outbox, arguments: argparse.Namespace, document: dict[str, Any]) -> int:
    try:
        until = box.clock.now() + parse_span(arguments.span or "8h")
    except ValueError as problem:
        raise Refused(str(problem), code="bad-argument") from None
    state.change(
        box,
        "job",
        arguments.name,
        lambda doc: (
            {**doc, "incident": {**Incident.load(doc.get("incident")).dump(), "muted_until": until}},
            None,
        ),
    )
    print(f"{arguments.name} is muted until {local_time(until)}; failures are counted", file=sys.stderr)
    return 0


def _reset(box: Outbox, arguments: argparse.Namespace, document: dict[str, Any]) -> int:
    """Forget failures, mutes and the expected interval; the runs are kept."""
    state.change(
        box,
        "job",
        arguments.name,
        lambda doc: ({k: v for k, v in doc.items() if k not in ("incident", "late", "output")}, None),
    )
    for mark in (spoolfiles.attention(box.spool, arguments.name), spoolfiles.late(box.spool, arguments.name)):
        spoolfiles.drop(mark)
    print(f"{arguments.name} begins anew", file=sys.stderr)
    return 0


# -- digests -------------------------------------------------------------------------------------------------


def digest(arguments: argparse.Namespace) -> int:
    """What log handlers have gathered."""
    box = _box(arguments)
    documents: dict[str, Any] = state.documents(box, "digest")
    if arguments.verb == "ls":
        if arguments.json:
            print(as_json({name: _digest(document) for name, document in documents.items()}))
            return 0
        for name, document in documents.items():
            found = _digest(document)
            failing = f"  failing: {', '.join(found['failing'][:5])}" if found["failing"] else ""
            print(plain_line(f"{name:<30} {found['waiting']}{failing}"))
        if not documents:
            print("no digest is known yet", file=sys.stderr)
        return 0
    if not arguments.name:
        print(f"outmail: digest {arguments.verb} needs a handler's name", file=sys.stderr)
        return EX_USAGE
    if arguments.name not in documents:
        raise NotFound(f"no digest named {arguments.name!r} is known; outmail digest ls lists them")
    return int(
        {"show": _show_digest, "send": _send_digest, "drop": _drop_digest, "mute": _mute_digest}[
            arguments.verb
        ](box, arguments)
    )


def _digest(document: dict[str, Any]) -> dict[str, Any]:
    pending = Gathered.load(document.get("pending"), 100, 20)
    incidents = {key: Incident.load(found) for key, found in document.get("incidents", {}).items()}
    return {
        "records": pending.total,
        "waiting": in_words(pending) if pending.total else "nothing waits",
        "failing": [f"{key} ({one.failures} in a row)" for key, one in incidents.items() if one.failures],
        "muted": document.get("muted", {}),
    }


def _fold_orphans(box: Outbox, name: str, send: bool | None) -> None:
    """Process the lines of dead processes. The rules of their program are unknown here, so nothing is judged:
    the lines are only counted, or with ``send`` mailed.
    """
    digest_fold.fold(
        box,
        digest_fold.DigestSettings(name, tuple(state.read(box, "digest", name).get("to", ()))),
        None,
        None,
        send=send,
    )


def _show_digest(box: Outbox, arguments: argparse.Namespace) -> int:
    document = state.read(box, "digest", arguments.name)
    if arguments.json:
        print(as_json({"name": arguments.name, **_digest(document)}))
        return 0
    pending = Gathered.load(document.get("pending"), 100, 20)
    incidents = {key: Incident.load(found) for key, found in document.get("incidents", {}).items()}
    for key, one in incidents.items():
        print(
            f"{plain_line(key)}: {one.failures} failed runs in a row" + (", told" if one.alerted_at else "")
        )
    if not pending.total:
        print(f"{arguments.name}: nothing waits", file=sys.stderr)
        return 0
    print(
        as_text(digest_fold.digest_report(digest_fold.DigestSettings(arguments.name), pending, [], incidents))
    )
    return 0


def _send_digest(box: Outbox, arguments: argparse.Namespace) -> int:
    before = state.read(box, "digest", arguments.name).get("mails", [])
    _fold_orphans(box, arguments.name, True)
    sent = state.read(box, "digest", arguments.name).get("mails", []) != before
    print("a mail is queued" if sent else "nothing to send, or nobody to send it to", file=sys.stderr)
    return 0


def _drop_digest(box: Outbox, arguments: argparse.Namespace) -> int:
    _fold_orphans(box, arguments.name, False)
    dropped = state.read(box, "digest", arguments.name).get("pending", {}).get("total", 0)
    state.change(box, "digest", arguments.name, lambda doc: ({**doc, "pending": Gathered().dump()}, None))
    print(f"{dropped} records dropped", file=sys.stderr)
    return 0


def _mute_digest(box: Outbox, arguments: argparse.Namespace) -> int:
    """The whole handler, or one key of it."""
    words = [word for word in (arguments.key, arguments.span) if word]
    try:
        until = box.clock.now() + parse_span(words.pop() if words else "8h")
    except ValueError as problem:
        raise Refused(str(problem), code="bad-argument") from None
    key = words[0] if words else ""
    state.change(
        box,
        "digest",
        arguments.name,
        lambda doc: ({**doc, "muted": {**doc.get("muted", {}), key: until}}, None),
    )
    print(
        f"{arguments.name}{' ' + key if key else ''} is muted until {local_time(until)}; records are counted",
        file=sys.stderr,
    )
    return 0
