"""Folding: the lines in a digest's spool become its note in the store and, if it is worth it, a mail.

Promises: note and mail are one transaction, so each line is counted once and mailed once. Files of processes
that died are folded and then removed. A file with lines that are not ours is set aside, and stderr says so.
Fails: `StoreError` of the store, OSError of the spool; then the lines stay where they are. Does not: collect
records (`digest`), or decide what is worth a mail (`policy.digest`).
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

from outmail.policy import digest as policy
from outmail.policy.incident import Incident
from outmail.policy.plain import plain
from outmail.policy.progress import took
from outmail.policy.veil import known
from outmail.reports import records, spool, spoolfiles, state
from outmail.reports.door import ReportDoor
from outmail.reports.mail import Course, Report, Section, local_time, named, one_line, subject_line
from outmail.reports.post import host, report_key, root_id, tell, words


class DigestSettings:
    """What folding needs to know of a handler. The command makes one for a handler that it knows only by
    name.
    """

    def __init__(
        self,
        name: str,
        to: tuple[str, ...] = (),
        subject: str = "",
        rules: policy.Rules | None = None,
        head: int = 50,
        tail: int = 20,
    ) -> None:
        self.name, self.to, self.subject, self.rules, self.head, self.tail = (
            name,
            to,
            subject,
            rules or policy.Rules(),
            head,
            tail,
        )


def fold(
    box: ReportDoor,
    settings: DigestSettings,
    own: spool.Spool | None,
    in_order: bool | None,
    *,
    send: bool | None = None,
) -> int:
    """Fold lines into the note and a mail. Returns up to which byte of ``own`` they were read. ``send``: True
    mails everything that waits, False mails nothing.
    """
    lost = spool.orphans(box.spool, settings.name)
    try:
        dropped, took_up = (own.dropped, own.size) if own is not None else (0, 0)
        garbled: set[str] = set()

        def decide(document: state.Document) -> state.Decision:
            return _decided(box, settings, document, own, took_up, dropped, lost, garbled, in_order, send)

        state.change(box, "digest", settings.name, decide)
        for _, path, _ in lost:
            if path in garbled:
                tell(spoolfiles.set_aside(path))
            else:
                os.unlink(path)
        if own is not None:
            own.dropped -= dropped
    finally:
        for _, _, fd in lost:
            os.close(fd)
    _say_recovered(box, settings)
    return took_up


def _decided(
    box: ReportDoor,
    settings: DigestSettings,
    document: state.Document,
    own: spool.Spool | None,
    upto: int,
    dropped: int,
    lost: list[tuple[str, str, int]],
    garbled: set[str],
    in_order: bool | None,
    send: bool | None,
) -> state.Decision:
    rules, now = settings.rules, box.clock.now()
    gathered = policy.Gathered.load(document.get("pending"), settings.head, settings.tail)
    incidents = {key: Incident.load(found) for key, found in document.get("incidents", {}).items()}
    muted: dict[str, int] = document.get("muted", {})
    runs = {id: policy.Run.load(run) for id, run in document.get("runs", {}).items()}
    offsets: dict[str, int] = dict(document.get("offsets", {}))
    alerts: list[str] = []
    owed = list(document.get("owed", []))

    def over(run: policy.Run, well: bool) -> None:
        before = dict(incidents)
        alert, remind, recovered = policy.after_run(incidents, run, rules, now, in_order=well)
        alerts.extend(alert + remind)
        owed.extend({"key": key, **before[key].dump()} for key in recovered)

    for id, path, _ in lost:
        run = runs.pop(id, policy.Run())
        if not _read(path, offsets.pop(id, 0), None, gathered, run, settings, muted, now):
            garbled.add(path)
        over(run, False)
    if own is not None:
        run = runs.pop(own.id, policy.Run())
        start = offsets.get(own.id, 0)
        _read(own.path, start, upto, gathered, run, settings, muted, now)
        offsets[own.id] = upto
        if dropped:
            gathered.total += dropped
            gathered.omitted += dropped
        if in_order is None:
            runs[own.id] = run
        else:
            over(run, in_order)
    elif in_order is not None:
        over(policy.Run(), in_order)
    offsets = {id: at for id, at in offsets.items() if spool.exists(box.spool, settings.name, id)}
    alerts = [key for key in dict.fromkeys(alerts) if muted.get(key, 0) <= now]
    mails = [at for at in document.get("mails", []) if at > now - 3_600_000]
    to = settings.to or tuple(document.get("to", ())) or box.report_to
    wanted = (
        send
        if send is not None
        else policy.worth_a_mail(gathered, rules, alerts) or bool(document.get("alerts"))
    )
    pending_alerts = list(dict.fromkeys([*document.get("alerts", []), *alerts]))
    quiet = muted.get("", 0) > now
    after = {
        **document,
        "incidents": {},
        "runs": {id: run.dump() for id, run in runs.items()},
        "offsets": offsets,
        "owed": owed,
        "mails": mails,
        "to": list(settings.to),
        "muted": {key: until for key, until in muted.items() if until > now},
        "rules": rules.in_words(),
        "alerts": pending_alerts,
    }
    mail = None
    if (
        wanted
        and to
        and (gathered.total or pending_alerts)
        and not quiet
        and (send or policy.allowed_now(mails, rules, now))
    ):
        key = report_key(f"report:digest:{settings.name}:{now}:{os.urandom(4).hex()}")
        mail = _mail(
            box, settings, gathered, pending_alerts, incidents, int(document.get("held", 0)), to, key
        )
        for name in pending_alerts:
            if name in incidents and not incidents[name].thread:
                incidents[name] = replace(
                    incidents[name], thread=box.message_id(key), subject=mail["subject"]
                )
        gathered = policy.Gathered()
        after |= {"mails": [*mails, now], "alerts": [], "held": 0}
    elif wanted and not to:
        tell(
            "digests have no recipient: give to=, or set `to` in the configuration, or $OUTMAIL_TO; records "
            "are kept"
        )
    elif wanted:
        after["held"] = int(document.get("held", 0)) + 1
    after |= {"pending": gathered.dump(), "incidents": {key: one.dump() for key, one in incidents.items()}}
    return after, mail


def _read(
    path: str,
    start: int,
    upto: int | None,
    gathered: policy.Gathered,
    run: policy.Run,
    settings: DigestSettings,
    muted: dict[str, int],
    now: int,
) -> bool:
    """Read the lines of a file into what waits and into what the run said about keys. False when some are not
    ours.
    """
    ours = True
    for at, values in spool.lines(path, start):
        if upto is not None and at > upto:
            break
        if not isinstance(values, list) or len(values) < 3:
            ours = False
            continue
        if values[0] == "ok":
            run.well.add(named(str(values[2])))
            run.failed.discard(named(str(values[2])))
            continue
        line = _line(values)
        if line is None:
            ours = False
            continue
        gathered.add(line, _shown(line), counts=settings.rules.counts(line, muted, now))
        if line.key and line.level >= settings.rules.trigger:
            run.failed.add(line.key)
            run.well.discard(line.key)
    return ours


def _line(values: list[Any]) -> policy.Line | None:
    """A record of the spool; None when we have not written it. Known passwords are masked and odd characters
    escaped.
    """
    if not 5 <= len(values) <= 9 or not all(isinstance(text, str) for text in values[2:]):
        return None
    at, level, *texts = values
    logger, template, message, *rest = (plain(known.over(text)) for text in texts)
    key, exception, frame, trace = [*rest, *[""] * (4 - len(rest))]
    return policy.Line(
        records.moment(at),
        records.whole(level),
        named(logger),
        template,
        message,
        named(key),
        exception,
        frame,
        trace,
    )


def _shown(line: policy.Line) -> str:
    moment = time.strftime("%m-%d %H:%M:%S", time.localtime(line.at))
    return f"{moment} {policy.level_name(line.level):<8} {line.logger}: {line.message[:300]}" + (
        f" ({line.exception})" if line.exception else ""
    )


# -- mails ---------------------------------------------------------------------------------------------------


def _mail(
    box: ReportDoor,
    settings: DigestSettings,
    gathered: policy.Gathered,
    alerts: list[str],
    incidents: dict[str, Incident],
    held: int,
    to: tuple[str, ...],
    key: str,
) -> dict[str, Any]:
    report = digest_report(settings, gathered, alerts, incidents, held)
    thread = next(
        (incidents[name].thread for name in alerts if name in incidents and incidents[name].thread), ""
    )
    threads = (
        (root_id("digest", settings.name, "all"), thread)
        if thread
        else (root_id("digest", settings.name, "all"),)
    )
    return words(
        report,
        to=to,
        kind="digests",
        name=settings.name,
        run=key.rpartition(":")[2],
        thread=threads,
        templates=box.report_templates,
        key=key,
    )


def digest_report(
    settings: DigestSettings,
    gathered: policy.Gathered,
    alerts: list[str],
    incidents: dict[str, Incident],
    held: int = 0,
) -> Report:
    """What waits, as a report."""
    said = policy.in_words(gathered)
    subject, headline = _said(settings, gathered, alerts, incidents)
    groups = gathered.ranked()
    badge = "" if alerts else said.partition(" and ")[0].partition(" in ")[0]
    facts = [("Host", host()), ("Records", f"{gathered.total:,}")]
    if groups:
        begin, end = (
            local_time(int(at * 1000)) for at in (min(g.first for g in groups), max(g.last for g in groups))
        )
        facts += [("At", begin)] if begin == end else [("From", begin), ("To", end)]
    sections = _sections(gathered, groups, alerts, incidents)
    footer = [f"{settings.name} on {host()}", f"Why: {settings.rules.in_words()}"]
    if held:
        footer.append(
            f"Held back since the last mail: {held} times this mail was due and would have been one too many "
            f"({settings.rules.at_most} an hour)"
        )
    return Report(
        "failed" if alerts else "digest",
        one_line(subject),
        headline,
        facts,
        sections,
        footer,
        badge=badge,
        preview=f"{said}: {groups[0].sample}" if groups else said,
    )


def _said(
    settings: DigestSettings, gathered: policy.Gathered, alerts: list[str], incidents: dict[str, Incident]
) -> tuple[str, str]:
    """Subject and headline."""
    said = policy.in_words(gathered)
    if alerts:
        first = incidents.get(alerts[0], Incident())
        more = f" and {len(alerts) - 1} more" if len(alerts) > 1 else ""
        row = f", {first.failures} runs in a row" if first.failures > 1 else ""
        subject = subject_line("failed", f"{settings.name}: {alerts[0]}{more} failed{row}", host())
        headline = f"{', '.join(alerts[:10])}{' …' if len(alerts) > 10 else ''}{row}. In all: {said}."
    else:
        subject = settings.subject or f"[{host()}] {settings.name}: {said}"
        headline = f"{settings.name} logged {said}."
    return subject, headline


def _sections(
    gathered: policy.Gathered, groups: list[policy.Group], alerts: list[str], incidents: dict[str, Incident]
) -> list[Section]:
    sections = []
    if alerts:
        rows = [
            ["Key", "Runs in a row", "Since"],
            *(
                [name, str(incidents[name].failures), local_time(incidents[name].since)]
                for name in alerts[:50]
                if name in incidents
            ),
        ]
        sections.append(Section("Failing again and again", table=rows))
    if groups:
        rows = [["Level", "Count", "When", "Message"]]
        rows += [
            [policy.level_name(g.level), f"{g.count:,}", _when(g), g.sample.split("\n")[0]]
            for g in groups[:30]
        ]
        sections.append(
            Section(
                "Kinds",
                table=rows,
                text=f"The {min(30, len(groups))} of {len(groups):,} kinds that matter most."
                if len(groups) > 30
                else "",
            )
        )
    courses = [g for g in groups[:10] if len(g.course()) > 2]
    if courses:
        sections.append(
            Section(
                "Over time",
                courses=[Course(g.course(), f"{g.count:,} × {one_line(g.sample, 50)}") for g in courses],
            )
        )
    sections += [Section(f"Traceback: {one_line(g.sample, 50)}", pre=g.trace) for g in groups[:5] if g.trace]
    sections.append(Section("Lines", pre=_lines(gathered)))
    return sections


def _when(group: policy.Group) -> str:
    """From the first to the last record of a kind."""
    first, last = (time.strftime("%H:%M", time.localtime(at)) for at in (group.first, group.last))
    return first if first == last else f"{first}–{last}"


def _lines(gathered: policy.Gathered) -> str:
    shown = list(gathered.head)
    if gathered.omitted:
        shown.append(f"(… {gathered.omitted:,} lines left out)")
    return "\n".join(shown + gathered.tail)


def _say_recovered(box: ReportDoor, settings: DigestSettings) -> None:
    """One mail for each key that is well again, as a reply to its alert. The note keeps what is still to be
    mailed until it is stored.
    """
    for _ in range(policy.MAX_KEYS):
        owed = state.read(box, "digest", settings.name).get("owed", [])
        if not owed:
            return

        def decide(document: state.Document) -> state.Decision:
            waiting = document.get("owed", [])
            if not waiting:
                return document, None
            one = waiting[0]
            standing = Incident.load(one)
            to = settings.to or tuple(document.get("to", ())) or box.report_to
            seconds = (box.clock.now() - standing.since) / 1000
            down = f" and {took(seconds)}" if seconds >= 1 else ""
            report = Report(
                "recovered",
                subject_line("recovered", f"{settings.name}: {one['key']} works again", host()),
                f"{one['key']} works again after {standing.failures} failed "
                f"{'run' if standing.failures == 1 else 'runs in a row'}{down}.",
                [("Host", host()), ("Key", one["key"])],
                footer=[f"{settings.name} on {host()}", "Why: its failures had been told"],
            )
            key = report_key(f"report:digest:{settings.name}:well:{one['key']}:{standing.since}")
            thread = (root_id("digest", settings.name, "all"), standing.thread) if standing.thread else ()
            mail = words(
                report,
                to=to,
                kind="digests",
                name=settings.name,
                run=str(standing.since),
                thread=thread,
                templates=box.report_templates,
                key=key,
            )
            return {**document, "owed": waiting[1:]}, mail if to else None

        state.change(box, "digest", settings.name, decide)
