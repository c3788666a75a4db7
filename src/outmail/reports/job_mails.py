"""What the mails of a job say: each state of a run as a report.

Promises: a report is made of one look at the run (`Run`) and asks nobody, but for the host's name and the
memory used; an exception is put into words even when its own text raises.
Fails: never. Does not: decide whether a mail goes, or send it (`jobs` does).
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
from outmail.policy.progress import remaining_in_words, span_in_words, sparkline, took
from outmail.reports import records, traces
from outmail.reports.mail import Report, Section, local_time, one_line
from outmail.reports.post import host


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a job at one moment. ``elapsed`` in seconds, ``began_at`` in seconds since 1970; ``rate`` (of
    late) and ``mean`` in items a second; ``eta``: seconds left, at least and at most.
    """

    name: str
    id: str
    state: str
    pid: int
    began_at: float
    elapsed: float
    done: int
    total: int | None
    rate: float
    mean: float
    eta: tuple[float, float] | None
    samples: Sequence[float]
    fields: Mapping[str, Any]
    metrics: Mapping[str, Sequence[float]]
    notes: Sequence[str]
    tables: Sequence[tuple[str, list[list[str]]]]
    rule: incident.Rule
    tail: Tail | None
    signal: str


# -- a report for each state ---------------------------------------------------------------------------------


def started(run: Run) -> Report:
    total = f" with {run.total:,} items to do" if run.total else ""
    return _report(run, "started", f"{run.name} has started on {host()}{total}.")


def progress(run: Run, milestones: Sequence[str]) -> Report:
    reached = "; ".join(milestones) or position(run.done, run.total)
    return _report(run, "progress", f"{run.name}: {reached}, remaining: {remaining_in_words(run.eta)}.")


def stalled(run: Run, seconds: float) -> Report:
    return _report(run, "stalled", f"{run.name} has not moved for {span_in_words(seconds)}.")


def finished(run: Run) -> Report:
    early = run.total is not None and run.done < run.total
    where = position(run.done, run.total)
    shown = f", at {where}" if early else f": {where}" if run.done else ""
    return _report(run, "finished", f"{run.name} has finished after {took(run.elapsed)}{shown}.")


def failure_subject(run: Run, problem: BaseException | None, failures: int) -> str:
    nth = f", {failures} in a row" if failures > 1 else ""
    return one_line(f"FAILED [{host()}] {run.name}: {brief(problem)}{nth}")


def failed(run: Run, problem: BaseException | None, subject: str, failures: int) -> Report:
    row = f" This is failure {failures} in a row." if failures > 1 else ""
    shown = [Section("Traceback", pre=trace(problem))] if trace(problem) else []
    return _report(
        run,
        "failed",
        f"FAILED: {run.name} ended after {took(run.elapsed)} by {brief(problem)}.{row}",
        subject,
        shown,
    )


def recovered(run: Run, seconds: float, subject: str) -> Report:
    """``seconds``: since the first failure; ``subject``: of the mail that told it."""
    return _report(
        run, "recovered", f"RECOVERED: {run.name} works again after {took(seconds)}.", f"Re: {subject}"
    )


def stopped(run: Run, problem: BaseException | None) -> Report:
    reason = run.signal or brief(problem) or "the program's end"
    shown = [Section("Traceback", pre=trace(problem))] if trace(problem) and not run.signal else []
    return _report(
        run,
        "stopped",
        f"ABORTED: {run.name} was stopped by {reason} after {took(run.elapsed)}, at "
        f"{position(run.done, run.total)}.",
        f"ABORTED [{host()}] {run.name}: {reason}",
        shown,
    )


def position(done: int, total: int | None) -> str:
    """How far: "120 of 480 done (25%)"."""
    if total:
        return f"{done:,} of {total:,} done ({done / total:.0%})"
    return f"{done:,} done"


# -- what all of them show -----------------------------------------------------------------------------------


def _report(
    run: Run, word: Any, headline: str, subject: str = "", sections: Sequence[Section] = ()
) -> Report:
    """A report with everything there is to say now."""
    parts = list(sections)
    if len(run.samples) > 2 and word != "started":
        parts.append(Section("Rate", pre=f"{sparkline(run.samples, 60)}  up to {max(run.samples):,.1f}/s"))
    parts += [
        Section(name, pre=f"{sparkline(series, 60)}  {series[-1]:g}") for name, series in run.metrics.items()
    ]
    parts += [Section(title, table=rows) for title, rows in run.tables]
    if run.notes:
        parts.append(Section("Notes", pre="\n".join(run.notes)))
    if word in ("failed", "stopped", "stalled") and run.tail is not None and run.tail.records:
        parts.append(Section("Last log lines", pre=run.tail.text()))
    footer = [f"{run.name} on {host()}, run {run.id}", f"Why: {_why(run, word)}"]
    return Report(word, subject or _thread_subject(run), headline, _facts(run), parts, footer)


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


def _facts(run: Run) -> list[tuple[str, str]]:
    facts = [
        ("Host", f"{host()}, process {run.pid}"),
        ("Program", " ".join(sys.argv)[:200] or "(interactive)"),
        ("Started", local_time(int(run.began_at * 1000))),
        ("Running for" if run.state == "running" else "Duration", took(run.elapsed)),
    ]
    if run.done or run.total:
        facts.append(("Done", position(run.done, run.total)))
    if run.mean > 0:
        facts.append(("Rate", f"{run.rate or run.mean:,.1f}/s now, {run.mean:,.1f}/s on average"))
    if run.total and run.state == "running":
        facts.append(("Remaining", remaining_in_words(run.eta)))
    facts += [
        (records.in_words(name), records.in_words(value)) for name, value in list(run.fields.items())[:30]
    ]
    return [*facts, *_resources()]


def _resources() -> list[tuple[str, str]]:
    try:
        import resource
    except ImportError:
        return []
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = used.ru_maxrss / (1024 if sys.platform != "darwin" else 1024 * 1024)
    return [("Memory, CPU", f"{peak:,.0f} MB at most, {took(used.ru_utime + used.ru_stime)} of CPU time")]


# -- exceptions and log lines in words -----------------------------------------------------------------------


class Reason(Exception):
    """`Job.fail` with a text."""


class Frozen(BaseException):
    """An exception as text, so that a thread may take its time with it."""

    def __init__(self, problem: BaseException) -> None:
        self.brief, self.trace = brief(problem), trace(problem)
        super().__init__(self.brief)


def brief(problem: BaseException | None) -> str:
    """In one line; "" for none."""
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
    """The traceback; "" where it would say nothing."""
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
