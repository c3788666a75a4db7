"""What to report about watched commands, and what is remembered. `cli.watch` runs them; this module is loaded
when a mail may be due.

Promises: the run, the state of the job and the mail about it are stored together. N−1 failures in a row cause
no mail.
Does not: run commands, or build the door.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import stat
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from outmail.clock import END, human_span
from outmail.model import keyed_id
from outmail.policy import incident
from outmail.policy.progress import took
from outmail.policy.secrets import masked
from outmail.reports import lastresort, spoolfiles, state, watchdog
from outmail.reports.door import ReportDoor, Unstored
from outmail.reports.job_mails import MEMORY
from outmail.reports.mail import Report, Section, State, local_time, named, one_line, safe, subject_line
from outmail.reports.post import host, root_id, tell, words

#: How many bytes of output are kept with a run in the store.
KEPT = 20_000
#: How many characters of one word of a command, and how many words, are shown.
WORD = 4_000
WORDS = 500
#: White space inside a word, while the command is one line.
_INNER = str.maketrans({" ": "\ue000", "\t": "\ue001", "\n": "\ue002", "\r": "\ue003"})
_OUTER = {new: old for old, new in zip(_INNER, map(ord, _INNER.values()))}


def started(door: ReportDoor, options: Any, command: list[str]) -> None:
    """``--start``: a mail before the command runs."""
    to = _to(door, options)
    if to:
        now = door.clock.now()
        report = Report(
            "started",
            subject_line("started", f"{options.name} started", host()),
            f"{options.name} on {host()}.",
            [*_facts(command, now, None), *_others(door, options.name)],
            footer=_footer(options, "it was asked for by --start"),
            preview=f"{options.name} started on {host()}",
        )
        door.report(
            words(
                report, to=to, kind="watch", name=options.name, run=str(now), templates=door.report_templates
            )
        )


def ended(door: ReportDoor, options: Any, command: list[str], result: Any) -> None:
    """A run has ended: record it, and report what there is to report."""
    fold(door)
    watchdog.dead_runs(door, options.name)
    attention = spoolfiles.attention(door.spool, options.name)
    if result.failed:
        _try(lambda: spoolfiles.put(attention))
    rule = incident.Rule(options.after, options.remind, not options.no_recovered)
    run = keyed_id(f"watch:{options.name}:{result.began_ms}:{os.getpid()}")
    now = door.clock.now()
    standing = [incident.Incident()]

    def decide(document: state.Document) -> state.Decision:
        before = incident.Incident.load(document.get("incident"))
        after, say = (incident.failed if result.failed else incident.succeeded)(before, rule, now)
        output = hashlib.sha256(result.output + bytes([result.failed])).hexdigest()
        word = _word(options, result, say, changed=document.get("output") not in (None, output))
        mail = None
        if word and (to := _to(door, options)) and now >= after.muted_until:
            key = f"report:{run}:{word}"
            mail = _mail(door, options, command, result, word, before, after, to, run, key)
            if word == "alert":
                after = replace(after, thread=door.message_id(key), subject=mail["subject"])
        if say == "alert" and mail is None:
            after = replace(after, alerted_at=0, said_at=0)  # nobody was told
        standing[0] = after
        changed = {
            **document,
            "kind": "watch",
            "incident": after.dump(),
            "output": output,
            "command": shown_words(command),
            "last": {
                "run": run,
                "state": "failed" if result.failed else "finished",
                "at": now,
                "reason": result.reason,
            },
        }
        if options.late:
            changed["late"] = {"every_ms": options.late, "seen_at": now, "to": list(options.to)}
        else:
            changed.pop("late", None)
        return changed, mail

    noted = ("run", run, _run(options, command, result))
    state.change(door, "job", options.name, decide, also=noted)
    result.told = True
    state.forget_old_runs(door, options.name)
    if standing[0].quiet:
        _try(lambda: spoolfiles.drop(attention))
    _try(
        lambda: (
            spoolfiles.put(spoolfiles.late(door.spool, options.name), str(options.late))
            if options.late
            else spoolfiles.drop(spoolfiles.late(door.spool, options.name))
        )
    )


def past_the_store(door: Unstored, options: Any, command: list[str], result: Any, why: str) -> None:
    """Report a run by mail only. Failures in a row cannot be counted then, so each one is mailed."""
    standing = incident.Incident()
    word = _word(options, result, "alert" if result.failed else "", changed=False)
    to = _to(door, options)
    if not word or not to:
        tell(f"the run of {options.name} is not on record: {why}")
        return
    run = keyed_id(f"watch:{options.name}:{result.began_ms}:{os.getpid()}")
    key = f"report:{run}:{word}"
    mail = _mail(door, options, command, result, word, standing, standing, to, run, key)
    lastresort.tell(door, mail, _headline(options, result), why, door.exit_wait)


def headline_only(options: Any, result: Any, why: str, how: str) -> None:
    """For when no mail may be sent at all."""
    if _word(options, result, "alert" if result.failed else "", changed=False):
        lastresort.headline_only(_headline(options, result), options.name, why, how)
    else:
        tell(f"the run of {options.name} is not on record: {why}")


def _headline(options: Any, result: Any) -> str:
    lasted = took(result.duration_ms / 1000)
    return f"{'FAILED' if result.failed else 'FINISHED'}: {options.name}: {result.reason or lasted}"


def _word(options: Any, result: Any, say: incident.Say, *, changed: bool) -> str:
    """What to report about this run: alert, remind, recovered, finished, failed, or nothing."""
    if options.on == "never":
        return ""
    if say:
        return say
    if options.on == "always" or (options.on == "change" and changed):
        return "failed" if result.failed else "finished"
    if not result.failed and options["longer-than"] and result.duration_ms > options["longer-than"]:
        return "slow"
    return ""


class _Told(NamedTuple):
    """What a mail says. ``rule``: the option that asked for it."""

    state: State
    subject: str
    headline: str
    rule: str
    #: The Message-ID of an earlier mail that this one answers, or "".
    answers: str = ""


def _told(
    door: Unstored, options: Any, result: Any, word: str, before: incident.Incident, after: incident.Incident
) -> _Told:
    name, host_name = options.name, host()
    lasted = took(result.duration_ms / 1000)
    if word in ("alert", "failed"):
        row = f", {after.failures} in a row" if after.failures > 1 else ""
        passed = f", after {lasted}" if result.duration_ms >= 1000 else ""
        subject = subject_line("failed", f"{name} failed{row}: {result.reason}", host_name)
        return _Told("failed", subject, f"{name}: {result.reason}{row}{passed}.", options_rule(options))
    if word == "remind":
        headline = (
            f"{name} has failed {after.failures} times in a row{_for(door, after)}; last: {result.reason}."
        )
        return _Told("reminder", f"Re: {after.subject}", headline, options_rule(options), after.thread)
    if word == "recovered":
        row = f" after {before.failures} failures in a row" if before.failures > 1 else ""
        subject = subject_line("recovered", f"{name} works again", host_name)
        headline = (
            f"{name} works again{row or ' after a failure' if before.failures else ''}{_for(door, before)}."
        )
        return _Told("recovered", subject, headline, options_rule(options), before.thread)
    if word == "slow":
        subject = subject_line("finished", f"{name} took {lasted}", host_name)
        rule = f"--longer-than {human_span(options['longer-than'])}"
        return _Told("finished", subject, f"{name} succeeded, but it took {lasted}.", rule)
    subject = subject_line("finished", f"{name} finished", host_name)
    return _Told("finished", subject, f"{name} took {lasted}.", f"--on {options.on}")


def _mail(
    door: Unstored,
    options: Any,
    command: list[str],
    result: Any,
    word: str,
    before: incident.Incident,
    after: incident.Incident,
    to: tuple[str, ...],
    run: str,
    key: str,
) -> dict[str, Any]:
    name = options.name
    told = _told(door, options, result, word, before, after)
    first = root_id("watch", name, str(after.since or before.since or run))
    sections = []
    if not options.no_output and options.tail and (shown := _tail(result, options.tail)):
        sections.append(
            Section(
                f"Output (the last {options.tail} lines)"
                if result.cut or result.output.count(b"\n") > options.tail
                else "Output",
                pre=shown,
            )
        )
    report = Report(
        told.state,
        one_line(told.subject),
        told.headline,
        [*_facts(command, result.began_ms, result, after.failures), *_others(door, name)],
        sections,
        _footer(options, told.rule),
        preview=_preview(result, took(result.duration_ms / 1000), told.headline),
    )
    more: dict[str, Any] = {}
    if options.attach and not options.no_output and result.output:
        more["attachments"] = [("output.txt", result.output, "text/plain")]
    return words(
        report,
        to=to,
        kind="watch",
        name=name,
        run=run,
        thread=tuple(filter(None, (first, told.answers))),
        templates=door.report_templates,
        key=key,
        **more,
    )


def _for(door: Unstored, standing: incident.Incident) -> str:
    """How long the trouble has lasted; "" when that cannot be said."""
    seconds = (door.clock.now() - standing.since) / 1000
    return f", for {took(seconds)}" if seconds >= 1 else ""


def _preview(result: Any, lasted: str, headline: str) -> str:
    """The preview in a list of mails. When a command failed, the last line of its output says most."""
    last = next((line for line in reversed(_tail(result, 5).splitlines()) if line.strip()), "")
    return f"{result.reason}: {last}" if result.failed and last else f"{lasted}, {last}" if last else headline


def options_rule(options: Any) -> str:
    """The policy of a watched command in words."""
    if options.on == "never":
        return "no mail (--on never); runs are recorded"
    text = incident.Rule(options.after, options.remind, not options.no_recovered).in_words()
    if options.on == "always":
        text += ", and after every other run"
    elif options.on == "change":
        text += ", and when outcome or output is not that of the last run"
    return text


def explain(options: Any) -> str:
    """``--explain``: everything that can cause a mail, in sentences."""
    name = options.name or "the command"
    lines = [f"{name}: {options_rule(options)}."]
    failures = [f"an exit status other than {', '.join(map(str, options['ok-codes']))}", "an end by a signal"]
    if options.on_stderr:
        failures.append("output on stderr")
    if options.grep_fail:
        failures.append(f"output that matches {options.grep_fail!r}")
    if options.timeout:
        failures.append(
            f"more than {human_span(options.timeout)} (then SIGTERM, and SIGKILL "
            f"{human_span(options['kill-after'])} later)"
        )
    lines.append(f"A failure is: {'; '.join(failures)}.")
    if options["longer-than"]:
        lines.append(f"A success that takes longer than {human_span(options['longer-than'])} is told too.")
    if options.late:
        lines.append(
            f"No run for {human_span(options.late)} is told by `outmail run`, or `outmail run --once` from "
            f"cron."
        )
    if options.lock:
        lines.append(
            "While the last run is still going, this one "
            + ("is skipped, with status 75." if options.lock == "skip" else "waits.")
        )
    lines.append(
        "The output is "
        + (
            "not in the mail."
            if options.no_output
            else f"in the mail: the last {options.tail} lines"
            + (", and attached whole." if options.attach else ".")
        )
    )
    return "\n".join(lines)


def _facts(command: list[str], began: int, result: Any, failures: int = 0) -> list[tuple[str, str]]:
    facts = [
        ("Host", host()),
        ("Command", shlex.join(shown_words(command))[:500]),
        ("Folder", os.getcwd()),
        ("Started", local_time(began)),
    ]
    if result is not None:
        facts += [
            ("Duration", took(result.duration_ms / 1000)),
            (
                "Exit status",
                f"{result.status}"
                + (
                    f" ({result.reason})"
                    if result.reason and not result.reason.startswith("exit status")
                    else ""
                ),
            ),
        ]
        if failures > 1:
            facts.append(("In a row", f"{failures} failures"))
        if result.peak_kb >= MEMORY * 1024:
            facts.append(("Memory", f"{result.peak_kb // 1024:,} MB at most"))
    return facts


def _others(door: Unstored, name: str) -> list[tuple[str, str]]:
    """Other runs of the same job that are running now."""
    return [
        ("At the same time", f"{name} is also run by {other}")
        for other in spoolfiles.others(door.spool, name, pid=os.getpid())[:5]
    ]


def _footer(options: Any, why: str) -> list[str]:
    return [
        f"{options.name} on {host()}, watched by outmail",
        f"Why: {why}",
        f"Quiet for a while: outmail jobs mute {shlex.quote(options.name)} 8h",
    ]


def _tail(result: Any, lines: int) -> str:
    text = result.output.decode("utf-8", "replace")
    kept = text.replace("\r\n", "\n").removesuffix("\n").split("\n")[-lines:]
    return "\n".join(kept)


def _to(door: Unstored, options: Any) -> tuple[str, ...]:
    to = tuple(options.to) or door.report_to
    if not to:
        tell(
            "nobody is told of watched commands: give --to, or set `to` in the configuration, or $OUTMAIL_TO"
        )
    return to


def shown_words(command: list[str]) -> list[str]:
    """A command's words without secrets. The words before a word say what it is (``--password x``); a word
    may also be a script.
    """
    words = [masked(word[:WORD]) for word in command[:WORDS]]
    line = masked(" ".join(word.translate(_INNER) for word in words))
    return [word.translate(_OUTER) for word in line.split(" ")]


def _run(options: Any, command: list[str], result: Any) -> state.Document:
    return {
        "job": options.name,
        "kind": "watch",
        "host": host(),
        "started_at": result.began_ms,
        "at": result.began_ms + result.duration_ms,
        "duration_ms": result.duration_ms,
        "status": result.status,
        "state": "failed" if result.failed else "finished",
        "reason": safe(result.reason, 2000),
        "command": shown_words(command),
        "output": "" if options.no_output else safe(result.output[-KEPT:].decode("utf-8", "replace"), KEPT),
    }


def _try(action: Any) -> None:
    try:
        action()
    except OSError as problem:
        tell(f"a mark beside the store could not be written: {problem}")


# -- folding -------------------------------------------------------------------------------------------------


def fold(door: ReportDoor) -> int:
    """Store runs that are only lines in a file yet. Returns how many. The same line twice is one run."""
    import fcntl

    path = spoolfiles.runs(door.spool)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    except OSError:
        tell(spoolfiles.set_aside(path))
        return 0
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        tell(spoolfiles.set_aside(path))
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        lines = os.pread(fd, os.fstat(fd).st_size, 0).decode("utf-8", "replace").splitlines()
        found = [run for line in lines if (run := _parsed(line))]
        for name in {run["job"] for run in found}:
            state.read(door, "job", name)  # an unreadable one is set aside
        if found:
            door.store.run(_keep(door, found))
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)
    for name in {run["job"] for run in found}:
        state.forget_old_runs(door, name)
    return len(found)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        run = json.loads(line)
        at, lasted = int(run["at"]), int(run["duration_ms"])
        if not (0 <= at < END and 0 <= lasted < END):
            return None
        return {
            **run,
            "job": named(str(run["job"])),
            "at": at,
            "duration_ms": lasted,
            "status": int(run["status"]),
        }
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None  # an incomplete line: the disk was full, or somebody else wrote here


def _keep(door: ReportDoor, found: list[dict[str, Any]]) -> Any:
    verbs = door.store.verbs
    for run in found:
        id = keyed_id(f"watch:{run['job']}:{run['at']}:{run.get('pid')}")
        at = run["at"] + run["duration_ms"]
        yield from verbs.note_put(
            "run",
            id,
            {
                "job": run["job"],
                "kind": "watch",
                "host": host(),
                "started_at": run["at"],
                "at": at,
                "duration_ms": run["duration_ms"],
                "status": run["status"],
                "state": "finished",
                "reason": "",
                "output": "",
            },
        )
        known = yield from verbs.note_get("job", run["job"])
        document: Mapping[str, Any] = known[0] if known else {}
        if at >= document.get("last", {}).get("at", 0):
            document = {**document, "kind": "watch", "last": {"run": id, "state": "finished", "at": at}}
            if document.get("late"):
                document["late"] = {**document["late"], "seen_at": at, "told": False}
            if known is None:
                document["incident"] = incident.Incident().dump()
            yield from verbs.note_put("job", run["job"], document)
