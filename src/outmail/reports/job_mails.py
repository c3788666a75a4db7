"""The content of a job's mails: each state of a run as a report.

Promises: a report is made of one look at the run (`Run`). It asks nothing else, except for the host's name
and the memory used. An exception is described even if its own text raises.
Fails: never. Does not: decide whether a mail is sent, or send it (`jobs` does).
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outmail.policy import incident
from outmail.policy.progress import percent, rate, rate_in_words, remaining_in_words, took
from outmail.reports import records, traces
from outmail.reports.mail import Course, Report, Section, local_time, one_line, subject_line
from outmail.reports.post import host

#: How many MB of memory are worth a line.
MEMORY = 100
#: How many values are worth a drawing.
DRAWN = 3


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a job at one moment. ``elapsed``: seconds. ``began_at``: seconds since 1970. ``rate``: items a
    second in the last minute, 0.0 if that cannot be said. ``course``: rates of equal parts of the run.
    ``eta``: seconds left (at least, at most). ``others``: other runs of the job now, in words.
    """

    name: str
    id: str
    state: str
    pid: int
    began_at: float
    elapsed: float
    done: int
    total: int | None
    initial: int
    rate: float
    eta: tuple[float, float] | None
    course: Sequence[float]
    others: Sequence[str]
    fields: Mapping[str, Any]
    metrics: Mapping[str, Sequence[float]]
    notes: Sequence[str]
    tables: Sequence[tuple[str, list[list[str]]]]
    rule: incident.Rule
    tail: Tail | None
    signal: str


# -- a report for each state ---------------------------------------------------------------------------------


def started(run: Run) -> Report:
    total = f", {run.total:,} items to do" if run.total else ""
    return _report(run, "started", f"{run.name} on {host()}{total}.", preview=f"on {host()}{total}")


def progress(run: Run, milestones: Sequence[str]) -> Report:
    left = _left(run)
    reached = "; ".join(milestones) or left or f"{run.done:,} done after {took(run.elapsed)}"
    shown = f"{run.done:,} of {run.total:,}" if run.total else f"{run.done:,} done"
    badge = f"{part} %" if (part := percent(run.done, run.total)) is not None else shown
    preview = _line(*milestones, shown, left or took(run.elapsed))
    return _report(
        run, "progress", f"{run.name}: {reached}.", badge=badge, preview=preview, milestones=milestones
    )


def stalled(run: Run, seconds: float) -> Report:
    text = f"has not moved for {took(seconds)}"
    return _report(run, "stalled", f"{run.name} {text}.", preview=_line(text, position(run.done, run.total)))


def finished(run: Run) -> Report:
    early = bool(run.total) and run.done < (run.total or 0)
    where = f", at {position(run.done, run.total)}" if early else ""
    items = f"{run.done:,} items" if run.done and not early else ""
    return _report(
        run,
        "finished",
        f"{run.name} took {took(run.elapsed)}{where}.",
        preview=_line(took(run.elapsed), items or where.removeprefix(", ")),
    )


def failure_subject(run: Run, problem: BaseException | None, failures: int) -> str:
    nth = f", {failures} in a row" if failures > 1 else ""
    return subject_line("failed", f"{run.name} failed{nth}: {brief(problem)}", host())


def failed(run: Run, problem: BaseException | None, subject: str, failures: int) -> Report:
    row = f" This is failure {failures} in a row." if failures > 1 else ""
    shown = [Section("Traceback", pre=trace(problem))] if trace(problem) else []
    return _report(
        run,
        "failed",
        f"{run.name} ended{_after(run)} by {brief(problem)}.{row}",
        subject,
        shown,
        preview=_line(brief(problem) + _after(run), position(run.done, run.total)),
    )


def recovered(run: Run, seconds: float) -> Report:
    """``seconds``: since the first failure."""
    after = f" after {took(seconds)}" if seconds >= 1 else ""
    return _report(
        run,
        "recovered",
        f"{run.name} works again{after}.",
        subject_line("recovered", f"{run.name} works again", host()),
        preview=_line(f"works again{after}", f"this run took {took(run.elapsed)}"),
    )


def stopped(run: Run, problem: BaseException | None) -> Report:
    reason = run.signal or brief(problem) or "the program's end"
    shown = [Section("Traceback", pre=trace(problem))] if trace(problem) and not run.signal else []
    return _report(
        run,
        "stopped",
        f"{run.name} was ended by {reason}{_after(run)}.",
        subject_line("stopped", f"{run.name} stopped: {reason}", host()),
        shown,
        preview=_line(reason + _after(run), position(run.done, run.total)),
    )


def position(done: int, total: int | None) -> str:
    """How far: "120 of 480 (25 %)"."""
    if total:
        part = percent(done, total)
        return f"{done:,} of {total:,}" + (f" ({part} %)" if part is not None else "")
    return f"{done:,} done"


def _left(run: Run) -> str:
    if not run.total or run.done >= run.total:
        return ""
    return f"{remaining_in_words(run.eta)} left" if run.eta else "the remaining time is not known yet"


def _after(run: Run) -> str:
    return f" after {took(run.elapsed)}" if run.elapsed >= 1 else ""


def _line(*parts: str) -> str:
    return ", ".join(filter(None, parts))


# -- what all of them show -----------------------------------------------------------------------------------


def _report(
    run: Run,
    word: Any,
    headline: str,
    subject: str = "",
    sections: Sequence[Section] = (),
    badge: str = "",
    preview: str = "",
    milestones: Sequence[str] = (),
) -> Report:
    """A report with everything there is to say now."""
    parts = list(sections)
    if run.course and word != "started":
        peak = rate_in_words(max(run.course))
        parts.append(Section("Rate over time", courses=[Course(run.course, f"up to {peak}" if peak else "")]))
    parts += [
        Section(name, courses=[Course(series, f"now {series[-1]:g}, at most {max(series):g}")])
        for name, series in run.metrics.items()
        if len(series) >= DRAWN
    ]
    parts += [Section(title, table=rows) for title, rows in run.tables]
    if run.notes:
        parts.append(Section("Notes", pre="\n".join(run.notes)))
    if word in ("failed", "stopped", "stalled") and run.tail is not None and run.tail.records:
        parts.append(Section("Last log lines", pre=run.tail.text()))
    footer = [f"{run.name} on {host()}, run {run.id}", f"Why: {_why(run, word)}"]
    complete = word in ("finished", "recovered") and bool(run.total) and run.done >= (run.total or 0)
    return Report(
        word,
        subject or _thread_subject(run),
        headline,
        _facts(run, left=word != "progress" or bool(milestones)),
        parts,
        footer,
        progress=(run.done, run.total) if run.total and not complete else None,
        badge=badge,
        preview=preview,
    )


def _thread_subject(run: Run) -> str:
    return one_line(f"[{host()}] {run.name} {time.strftime('%Y-%m-%d %H:%M', time.localtime(run.began_at))}")


def _why(run: Run, word: str) -> str:
    if word == "progress":
        return "a milestone of the job was reached"
    if word in ("failed", "finished", "recovered"):
        return (
            f"the rule of this job: {run.rule.in_words()}"
            if word != "finished"
            else "the job reports its end"
        )
    return {
        "started": "the job reports its start",
        "stopped": "the job was stopped before its end",
        "stalled": "the counter stands still",
    }[word]


def _facts(run: Run, *, left: bool) -> list[tuple[str, str]]:
    """``left``: also show the time that is left, because the headline does not."""
    going = run.state == "running"
    facts = [
        ("Host", f"{host()}, process {run.pid}"),
        ("Program", " ".join(sys.argv)[:200] or "(interactive)"),
        ("Started", local_time(int(run.began_at * 1000))),
    ]
    if not going or run.elapsed >= 1:
        facts.append(("Running for" if going else "Duration", took(run.elapsed)))
    if run.done >= run.total if run.total else run.done:
        facts.append(("Done", f"{run.done:,}" + (f" of {run.total:,}" if run.total else "")))
    if rates := _rates(run, going):
        facts.append(("Rate", rates))
    if left and going and run.eta and run.total and run.done < run.total:
        facts.append(("Remaining", remaining_in_words(run.eta)))
    facts += [
        (records.in_words(name), f"{series[-1]:g}")
        for name, series in run.metrics.items()
        if len(series) < DRAWN
    ]
    facts += [("At the same time", f"{run.name} is also run by {other}") for other in run.others[:5]]
    facts += [
        (records.in_words(name), records.in_words(value)) for name, value in list(run.fields.items())[:30]
    ]
    return [*facts, *_memory()]


def _rates(run: Run, going: bool) -> str:
    """The rates of what was really done; "" when that was too little."""
    mean = rate_in_words(rate(run.done - run.initial, run.elapsed))
    recent = rate_in_words(run.rate) if going and run.elapsed >= 90 else ""
    if mean and recent:
        return f"{recent} in the last minute, {mean} on average"
    return f"{mean} on average" if mean else ""


def _memory() -> list[tuple[str, str]]:
    try:
        import resource
    except ImportError:
        return []
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak //= 1024 if sys.platform != "darwin" else 1024 * 1024
    return [("Memory", f"{peak:,} MB at most")] if peak >= MEMORY else []


# -- exceptions and log lines in words -----------------------------------------------------------------------


class Reason(Exception):
    """`Job.fail` with a text."""


class Frozen(BaseException):
    """An exception as text, so that a thread can describe it later."""

    def __init__(self, problem: BaseException) -> None:
        self.brief, self.trace = brief(problem), trace(problem)
        super().__init__(self.brief)


def brief(problem: BaseException | None) -> str:
    """In one line; "" for None."""
    if problem is None:
        return ""
    if isinstance(problem, Frozen):
        return problem.brief
    if isinstance(problem, Reason):
        return str(problem)
    if isinstance(problem, KeyboardInterrupt):
        return "Ctrl-C"
    if isinstance(problem, SystemExit):
        return f"exit status {records.in_words(problem.code)}"
    return traces.last_line(problem)


def trace(problem: BaseException | None) -> str:
    """The traceback; "" if it would say nothing."""
    if isinstance(problem, Frozen):
        return problem.trace
    if problem is None or isinstance(problem, (Reason, SystemExit)):
        return ""
    return traces.formatted(problem)


class Tail(logging.Handler):
    """The last log records, formatted only when a mail needs them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=size)

    def emit(self, record: logging.LogRecord) -> None:
        if not records.ours(record):
            self.records.append(record)

    def text(self) -> str:
        lines = []
        for record in list(self.records):
            clock = time.strftime("%H:%M:%S", time.localtime(records.time_of(record)))
            lines.append(
                f"{clock} {records.in_words(getattr(record, 'levelname', '')):<7} {records.name_of(record)}: "
                f"{records.message_of(record)}"
            )
        return "\n".join(lines)
