"""Jobs: a program that takes its time says how it goes.

``with outmail.job("crawl", total=48_000, every="10%") as job``, ``for x in outmail.track(xs, "crawl")``,
``@outmail.notify()``.
Promises: reporting never raises into, blocks, or changes the result of the job; wrong options raise
`ConfigError` at once; each milestone is mailed once, a waiting one is replaced by the next, the last word is
always sent; a job ends in exactly one of finished, failed, stopped, or (told by whoever comes next) dead.
``strict=True`` lets errors of reporting through, for tests.
Fails: one line on stderr. Does not: report from forked children, or from ranks other than 0.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

from outmail.accept.acceptance import not_stored
from outmail.clock import parse_span
from outmail.errors import ConfigError
from outmail.model import new_id
from outmail.policy import incident
from outmail.policy.progress import (
    Estimate,
    Every,
    parse_every,
    remaining_in_words,
    span_in_words,
    sparkline,
    took,
)
from outmail.reports import records, state, traces, watchdog
from outmail.reports.bar import Bar
from outmail.reports.door import ReportDoor, at_close, door
from outmail.reports.liveness import alive
from outmail.reports.mail import Report, Section, local_time, named, one_line
from outmail.reports.post import guarded, host, poster, root_id, tell, words
from outmail.store import Trouble
from outmail.system.lockfile import HeldFile

T = TypeVar("T")

#: How long the end of a job waits for its last report to be stored.
LAST_WORD = 10.0
HEARTBEAT = 30.0


class Terminated(SystemExit):
    """SIGTERM while a job runs: the program unwinds, and ends with 143 as the signal would have ended it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Job:
    """One run of a named job.

    ``total``: how many items (None: unknown); ``every``: milestones (a count, "10%", "2h", a list of counts,
    a function); ``start``: True, False or "auto" (a start mail once the job has lasted ``quiet_under``);
    ``min_interval``: least time between progress mails; ``stall``: mail when nothing moves for so long;
    ``initial``: what an earlier run had done; ``after_failures``: runs that fail in a row before a mail goes;
    ``remind``: at most one mail in so long while it goes on failing; ``tail``: log lines kept for the mail;
    ``bar``: a live bar (None: where stderr is a terminal).
    """

    def __init__(
        self,
        name: str,
        total: int | None = None,
        *,
        every: Every = None,
        to: str | Sequence[str] | None = None,
        outbox: ReportDoor | None = None,
        start: bool | str = "auto",
        finish: bool = True,
        fail: bool = True,
        stop: bool = True,
        min_interval: str = "1m",
        quiet_under: str = "1m",
        stall: str | None = None,
        initial: int = 0,
        after_failures: int = 1,
        remind: str | None = None,
        recovered: bool = True,
        tail: int = 40,
        bar: bool | None = None,
        strict: bool = False,
        templates: str = "",
    ) -> None:
        if not isinstance(name, str) or not name.strip():
            raise ConfigError("a job needs a name")
        if total is not None and (not isinstance(total, int) or isinstance(total, bool) or total < 0):
            raise ConfigError(f"total must be a whole number of items, or None, not {total!r}")
        if start not in (True, False, "auto"):
            raise ConfigError(f"start={start!r}: it is True, False or 'auto'")
        self.name, self.total, self.done, self.initial = named(name), total, initial, initial
        try:
            self._marks = parse_every(every, total)
            self._min_interval = parse_span(min_interval) / 1000 if min_interval else 0.0
            self._quiet_under = parse_span(quiet_under) / 1000 if quiet_under else 0.0
            self._stall = parse_span(stall) / 1000 if stall else 0.0
            self._rule = incident.Rule(after_failures, parse_span(remind) if remind else 0, recovered)
        except ValueError as problem:
            raise ConfigError(str(problem)) from None
        self._to = (to,) if isinstance(to, str) else tuple(to or ())
        self._given = outbox
        self._says = {"start": bool(start), "finish": finish, "fail": fail, "stop": stop}
        self._start_at_once = start is True
        self._tail_size, self._bar_wanted, self._templates = tail, bar, templates
        self.strict = strict
        self.id = ""
        self.state = "new"
        self._lock = threading.Lock()
        self._next = float("inf")
        self._pid = 0
        self._fields: dict[str, Any] = {}
        self._notes: list[str] = []
        self._metrics: dict[str, list[float]] = {}
        self._tables: list[tuple[str, list[list[str]]]] = []
        self._milestones: list[str] = []
        self._progress_id: str | None = None
        self._said = self._moved = self._beat = self._left = 0.0
        self._start_said = self._owes = self._stalled = False
        self._life: HeldFile | None = None
        self._tail: _Tail | None = None
        self._bar: Bar | None = None
        self._signal = ""

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> Job:
        """Begin; `with` does it. A child process or another rank gets a job that says nothing."""
        if self.state != "new":
            return self
        self._pid = os.getpid()
        self.state = "running"
        self._began, self._began_at = time.monotonic(), time.time()
        self._moved = self._beat = self._began
        self._estimate = Estimate(self.total, self._began, self.initial)
        if self._marks is not None:
            self._marks.done, self._marks.at = self.initial, self._began
        self.id = new_id(int(self._began_at * 1000))
        if _rank():
            self.state = "quiet"
            return self
        self._next = self._marks.next_count() if self._marks and not self._marks.seconds else float("inf")
        _active.append(self)
        _watch_signals()
        if self._tail_size:
            self._tail = _Tail(self._tail_size)
            logging.getLogger().addHandler(self._tail)
        self._bar = Bar.wanted(self._bar_wanted, self)
        poster().tick(self._tick)
        try:
            self._act(self._register)
        except BaseException:  # strict
            self._let_go("quiet")
            raise
        if self._says["start"] and (self._start_at_once or self._quiet_under <= 0):
            self._say_start()
        return self

    def __enter__(self) -> Job:
        return self.start()

    def __exit__(self, kind: Any, problem: BaseException | None, trace: Any) -> None:
        self.close(problem)

    def close(self, problem: BaseException | None = None) -> None:
        """End: finished, failed with ``problem``, or stopped when it is a signal, Ctrl-C or an exit status
        other than 0.
        """
        if not self._mine() or self.state != "running":
            return
        if (
            self._signal
            or isinstance(problem, (KeyboardInterrupt, GeneratorExit))
            or (isinstance(problem, SystemExit) and problem.code)
        ):
            self._end("stopped", problem)
        elif problem is None or isinstance(problem, SystemExit):
            self._end("finished", None)
        else:
            self._end("failed", problem)

    def fail(self, problem: BaseException | str) -> None:
        """End as failed without an exception passing through."""
        if self._mine() and self.state == "running":
            self._end(
                "failed",
                problem if isinstance(problem, BaseException) else _Reason(records.in_words(problem)),
            )

    def finish(self) -> None:
        """End as finished."""
        self.close()

    # -- what the program says -------------------------------------------------------------------------------

    def update(self, n: int = 1, **fields: Any) -> None:
        """``n`` more items are done; ``fields`` are shown in the next mail. Costs a microsecond when nothing
        is due.
        """
        with self._lock:
            self.done += n
            if fields:
                self._fields.update(fields)
            due = self.done >= self._next
        if due:
            self._reached()

    def note(self, text: str) -> None:
        """A remark for the next mail."""
        self._notes.append(f"{time.strftime('%H:%M:%S')}  {records.in_words(text)[:2000]}")
        del self._notes[:-200]

    def metric(self, name: str, value: float) -> None:
        """One value of a series; the mail shows the last one and the course."""
        series = self._metrics.setdefault(name, [])
        series.append(float(value))
        if len(series) > 2000:
            del series[::2]

    def milestone(self, text: str) -> None:
        """Something worth a mail of its own was reached."""
        if self._mine() and self.state == "running":
            self._milestones.append(records.in_words(text)[:2000])
            self._say_progress()

    def table(self, rows: Iterable[Sequence[Any]], title: str = "Table") -> None:
        """Rows for the next mail; the first one is the head."""
        shown = [[records.in_words(cell) for cell in row] for row in islice(rows, 200)]
        width = max((len(row) for row in shown), default=0)
        if width:
            self._tables.append((records.in_words(title), [row + [""] * (width - len(row)) for row in shown]))

    def iter(self, items: Iterable[T]) -> Iterator[T]:
        """The items, counted as they are done."""
        for item in items:
            yield item
            self.update()

    # what a tqdm bar has, so that a job can stand in its place
    @property
    def n(self) -> int:
        return self.done

    def set_description(self, text: str = "", refresh: bool = True) -> None:
        self._fields["Doing"] = text

    def set_postfix(self, ordered: Any = None, refresh: bool = True, **fields: Any) -> None:
        self._fields.update(ordered or {}, **fields)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Items a second in this run."""
        return self._estimate.smoothed or self._estimate.mean(self.done, time.monotonic())

    @property
    def eta(self) -> tuple[float, float] | None:
        """Seconds left, at least and at most; None while unknown."""
        return self._estimate.remaining(self.done, time.monotonic())

    def wait(self, seconds: float = LAST_WORD) -> bool:
        """Until all reports so far are stored."""
        return poster().drain(seconds)

    # -- time ------------------------------------------------------------------------------------------------

    def _mine(self) -> bool:
        return self._pid == os.getpid()

    def _tick(self) -> None:
        """Once a second, in the poster's thread."""
        if not self._mine() or self.state != "running":
            return
        now, done = time.monotonic(), self.done
        if done != self._estimate._done:
            self._moved, self._stalled = now, False
        self._estimate.sample(done, now)
        if self._says["start"] and not self._start_said and now - self._began >= self._quiet_under:
            self._say_start()
        if self._marks and self._marks.seconds and self._marks.reached(done, now):
            self._owes = True
        if self._owes and now - self._said >= self._min_interval:
            self._say_progress()
        if self._stall and not self._stalled and now - self._moved >= self._stall:
            self._stalled = True
            self._say(
                self._report("stalled", f"{self.name} has not moved for {span_in_words(now - self._moved)}."),
                "stalled",
            )
        if now - self._beat >= HEARTBEAT:
            self._beat = now
            guarded(self._register)
        if self._bar:
            self._bar.show()
        if self._left and now - self._left >= 1.0:
            self.close()

    def leave(self) -> None:
        """The loop was left before its end: by `break`, unless an exception turns out to have ended the
        program.
        """
        self._left = time.monotonic()

    def _reached(self) -> None:
        if not self._mine() or self.state != "running":
            return
        with self._lock:
            if self._marks is None:
                return
            now = time.monotonic()
            try:
                hit = self._marks.reached(self.done, now)
            except Exception as problem:
                tell(f"every= of {self.name} raised {records.in_words(problem)}: no more milestones")
                self._marks, self._next = None, float("inf")
                return
            self._next = self._marks.next_count()
            if not hit:
                return
            self._owes = True
            early = self._said and now - self._said < self._min_interval
        if not early and not (self.total and self.done >= self.total and self._says["finish"]):
            self._say_progress()

    # -- mails -----------------------------------------------------------------------------------------------

    def _say_start(self) -> None:
        self._start_said = True
        total = f" with {self.total:,} items to do" if self.total else ""
        self._say(self._report("started", f"{self.name} has started on {host()}{total}."), "start")

    def _say_progress(self) -> None:
        self._owes, self._said = False, time.monotonic()
        reached = "; ".join(self._milestones) or self._position()
        self._milestones.clear()
        report = self._report(
            "progress", f"{self.name}: {reached}, remaining: {remaining_in_words(self.eta)}."
        )
        self._say(report, "progress")

    def _position(self) -> str:
        if self.total:
            return f"{self.done:,} of {self.total:,} done ({self.done / self.total:.0%})"
        return f"{self.done:,} done"

    def _say(self, report: Report, slot: str) -> None:
        self._act(lambda: self._post(report), f"{slot}:{self.id}")

    def _act(self, action: Callable[[], Any], slot: str = "") -> None:
        if self.strict:
            _strictly(action)
        else:
            poster().later(action, slot)

    def _post(self, report: Report, **more: Any) -> None:
        box = door(self._given)
        to = self._recipients(box)
        if not to:
            return
        receipt = box.report(self._words(box, report, to, **more), supersede=self._progress_id)
        self._progress_id = receipt.id if receipt and report.state == "progress" else None

    def _recipients(self, box: ReportDoor) -> tuple[str, ...]:
        to = self._to or box.report_to
        if not to:
            tell(
                "reports have no recipient: set `to` in the configuration, $OUTMAIL_TO, or to=; the job runs "
                "on"
            )
        return to

    def _words(self, box: ReportDoor, report: Report, to: tuple[str, ...], **more: Any) -> dict[str, Any]:
        thread = (self._root, *more.pop("thread", ()))
        return words(
            report,
            to=to,
            kind="jobs",
            name=self.name,
            run=self.id,
            thread=thread,
            templates=self._templates or box.report_templates,
            **more,
        )

    @property
    def _root(self) -> str:
        return root_id("run", self.name, self.id)

    @property
    def _thread_subject(self) -> str:
        return one_line(
            f"[{host()}] {self.name} {time.strftime('%Y-%m-%d %H:%M', time.localtime(self._began_at))}"
        )

    def _report(
        self, word: Any, headline: str, subject: str = "", sections: Sequence[Section] = ()
    ) -> Report:
        """A report with everything there is to say now; notes and tables are said once."""
        notes, tables = list(self._notes), list(self._tables)
        # the last word is laid out anew when somebody else changed the job's note meanwhile
        if self.state == "running":
            self._notes, self._tables = [], []
        parts = list(sections)
        if len(self._estimate.samples) > 2 and word != "started":
            parts.append(
                Section(
                    "Rate",
                    pre=f"{sparkline(self._estimate.samples, 60)}  up to "
                    f"{max(self._estimate.samples):,.1f}/s",
                )
            )
        parts += [
            Section(name, pre=f"{sparkline(series, 60)}  {series[-1]:g}")
            for name, series in self._metrics.items()
        ]
        parts += [Section(title, table=rows) for title, rows in tables]
        if notes:
            parts.append(Section("Notes", pre="\n".join(notes)))
        if word in ("failed", "stopped", "stalled") and self._tail is not None and self._tail.records:
            parts.append(Section("Last log lines", pre=self._tail.text()))
        footer = [f"{self.name} on {host()}, run {self.id}", f"Why: {self._why(word)}"]
        return Report(word, subject or self._thread_subject, headline, self._facts(), parts, footer)

    def _why(self, word: str) -> str:
        if word == "progress":
            return "a milestone of the job was reached"
        if word in ("failed", "finished", "recovered"):
            return (
                f"the rule of this job: {self._rule.in_words()}"
                if word != "finished"
                else "the job reports its end"
            )
        return {
            "started": "the job reports its start",
            "stopped": "the job was stopped before its end",
            "stalled": "the counter stands still",
        }[word]

    def _facts(self) -> list[tuple[str, str]]:
        elapsed = self.elapsed
        facts = [
            ("Host", f"{host()}, process {self._pid}"),
            ("Program", " ".join(sys.argv)[:200] or "(interactive)"),
            ("Started", local_time(int(self._began_at * 1000))),
            ("Running for" if self.state == "running" else "Duration", took(elapsed)),
        ]
        if self.done or self.total:
            facts.append(("Done", self._position()))
        mean = self._estimate.mean(self.done, time.monotonic())
        if mean > 0:
            facts.append(("Rate", f"{self._estimate.smoothed or mean:,.1f}/s now, {mean:,.1f}/s on average"))
        if self.total and self.state == "running":
            facts.append(("Remaining", remaining_in_words(self.eta)))
        facts += [
            (records.in_words(name), records.in_words(value))
            for name, value in list(self._fields.items())[:30]
        ]
        return [*facts, *_resources()]

    # -- the end ---------------------------------------------------------------------------------------------

    def _end(self, word: str, problem: BaseException | None) -> None:
        self._estimate.sample(self.done, time.monotonic())
        self._let_go(word)
        try:
            if self.strict:
                _strictly(lambda: self._last_word(word, problem))
            else:
                guarded(lambda: self._hand_in(word, problem))
        finally:
            if self._tail is not None:
                logging.getLogger().removeHandler(self._tail)
            if self._bar:
                self._bar.close()

    def _let_go(self, word: str) -> None:
        self.state = word
        poster().untick(self._tick)
        if self in _active:
            _active.remove(self)
        _unwatch_signals()

    def _hand_in(self, word: str, problem: BaseException | None) -> None:
        """The last word, by the poster's thread and in a bounded time; by this one where no thread can be
        started any more.
        """
        if problem is not None:
            problem = _Frozen(problem)
        if threading.current_thread() is poster()._thread:
            self._last_word(word, problem)
            return
        poster().later(lambda: self._last_word(word, problem), f"end:{self.id}")
        if not poster().drain(LAST_WORD):
            if poster()._thread is None or not poster()._thread.is_alive():  # type: ignore[union-attr]
                self._last_word(word, problem)
            else:
                tell(
                    f"the last report of {self.name} is not stored yet: the store did not answer for "
                    f"{LAST_WORD:.0f} s"
                )

    def _last_word(self, word: str, problem: BaseException | None) -> None:
        """The end, on record and by mail, together with where the job now stands."""
        box = door(self._given)
        to = self._recipients(box)
        now = box.clock.now()

        def decide(document: state.Document) -> state.Decision:
            standing = incident.Incident.load(document.get("incident"))
            say: incident.Say = ""
            if word == "failed":
                standing, say = incident.failed(standing, self._rule, now)
            elif word == "finished":
                before = standing
                standing, say = incident.succeeded(standing, self._rule, now)
            key = f"report:{self.id}:{word}"
            mail = None
            if say in ("alert", "remind") and self._says["fail"] and to:
                nth = f", {standing.failures} in a row" if standing.failures > 1 else ""
                subject = one_line(f"FAILED [{host()}] {self.name}: {_brief(problem)}{nth}")
                thread = (standing.thread,) if standing.thread else ()
                mail = self._words(box, self._failure(problem, subject, standing), to, key=key, thread=thread)
                if not standing.thread:
                    standing = replace(standing, thread=box.message_id(key), subject=subject)
            elif say == "alert":
                standing = replace(standing, alerted_at=0, said_at=0)  # nobody is told
            elif say == "recovered" and to:
                report = self._report(
                    "recovered",
                    f"RECOVERED: {self.name} works again after {took((now - before.since) / 1000)}.",
                    f"Re: {before.subject}",
                )
                mail = self._words(box, report, to, key=key, thread=(before.thread,) if before.thread else ())
            elif word == "finished" and self._says["finish"] and to:
                mail = self._words(box, self._success(), to, key=key)
            elif word == "stopped" and self._says["stop"] and to:
                mail = self._words(box, self._stop(problem), to, key=key)
            return {
                **document,
                "incident": standing.dump(),
                "kind": "job",
                "last": {"run": self.id, "state": word, "at": now},
            }, mail

        state.change(box, "job", self.name, decide, supersede=self._progress_id)
        self._register()
        if self._life is not None:
            self._life.end()
        state.forget_old_runs(box, self.name)

    def _success(self) -> Report:
        early = self.total is not None and self.done < self.total
        position = f", at {self._position()}" if early else f": {self._position()}" if self.done else ""
        return self._report("finished", f"{self.name} has finished after {took(self.elapsed)}{position}.")

    def _failure(self, problem: BaseException | None, subject: str, standing: incident.Incident) -> Report:
        row = f" This is failure {standing.failures} in a row." if standing.failures > 1 else ""
        shown = [Section("Traceback", pre=_trace(problem))] if _trace(problem) else []
        return self._report(
            "failed",
            f"FAILED: {self.name} ended after {took(self.elapsed)} by {_brief(problem)}.{row}",
            subject,
            shown,
        )

    def _stop(self, problem: BaseException | None) -> Report:
        reason = self._signal or _brief(problem) or "the program's end"
        shown = [Section("Traceback", pre=_trace(problem))] if _trace(problem) and not self._signal else []
        return self._report(
            "stopped",
            f"ABORTED: {self.name} was stopped by {reason} after {took(self.elapsed)}, at "
            f"{self._position()}.",
            f"ABORTED [{host()}] {self.name}: {reason}",
            shown,
        )

    def _register(self) -> None:
        """The run's note: who it is, how far, and (by the lock on its file) that it lives."""
        box = door(self._given)
        first = self._life is None and self.state == "running"
        if first:
            watchdog.dead_runs(box, self.name)
            try:
                self._life = alive(box.spool, self.id)
            except OSError as problem:
                tell(f"{problem}: if this run of {self.name} is killed, nobody will hear of it")
        state.remember(
            box,
            "run",
            self.id,
            {
                "job": self.name,
                "kind": "job",
                "host": host(),
                "pid": self._pid,
                "started_at": int(self._began_at * 1000),
                "at": box.clock.now(),
                "done": self.done,
                "total": self.total,
                "state": self.state,
                "to": list(self._to),
                "duration_ms": int(self.elapsed * 1000),
            },
        )


def _strictly(action: Callable[[], Any]) -> None:
    """For tests: trouble with the store is one of the public errors."""
    try:
        action()
    except Trouble as problem:
        raise not_stored(problem) from None


class _Reason(Exception):
    """`Job.fail` with a text."""


class _Frozen(BaseException):
    """An exception as text, so that a thread may take its time with it."""

    def __init__(self, problem: BaseException) -> None:
        self.brief, self.trace = _brief(problem), _trace(problem)
        super().__init__(self.brief)


def _brief(problem: BaseException | None) -> str:
    if problem is None:
        return ""
    if isinstance(problem, _Frozen):
        return problem.brief
    if isinstance(problem, _Reason):
        return str(problem)
    if isinstance(problem, KeyboardInterrupt):
        return "Ctrl-C"
    if isinstance(problem, SystemExit):
        return f"exit status {records.in_words(problem.code)}"
    return traces.last_line(problem)


def _trace(problem: BaseException | None) -> str:
    if isinstance(problem, _Frozen):
        return problem.trace
    if problem is None or isinstance(problem, (_Reason, SystemExit)):
        return ""
    return traces.formatted(problem)


def _rank() -> bool:
    """True in a process that is not the first of a distributed run."""
    return any(
        os.environ.get(name, "0") not in ("", "0")
        for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
    )


def _resources() -> list[tuple[str, str]]:
    try:
        import resource
    except ImportError:
        return []
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = used.ru_maxrss / (1024 if sys.platform != "darwin" else 1024 * 1024)
    return [("Memory, CPU", f"{peak:,.0f} MB at most, {took(used.ru_utime + used.ru_stime)} of CPU time")]


class _Tail(logging.Handler):
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


# -- signals and the program's end ---------------------------------------------------------------------------

_active: list[Job] = []
_handling = False


def _watch_signals() -> None:
    """SIGTERM unwinds the program while a job runs, unless the program has a handler of its own."""
    global _handling
    if _handling or threading.current_thread() is not threading.main_thread():
        return
    try:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _on_sigterm)
            _handling = True
    except (ValueError, OSError):
        pass  # not possible here: SIGTERM then ends the program, and the run is found dead


def _unwatch_signals() -> None:
    global _handling
    if _handling and not _active and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _handling = False


def _on_sigterm(number: int, frame: Any) -> None:
    mine = [job for job in _active if job._mine()]
    for job in mine:
        job._signal = "SIGTERM"
    if not mine:  # a forked child
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        return
    raise Terminated


def _at_exit() -> None:
    """Jobs that nobody ended: the program's last exception says how."""
    for job in list(_active):
        guarded(lambda job=job: job.close(traces.uncaught()))  # type: ignore[misc]


def _after_fork() -> None:
    """A child reports nothing of its parent's jobs; it may go on counting."""
    for job in _active:
        job._lock = threading.Lock()


at_close(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# -- the three ways to begin ---------------------------------------------------------------------------------


def job(name: str, total: int | None = None, **options: Any) -> Job:
    """``with outmail.job("crawl", total=48_000, every="10%") as job: …``; see `Job` for the options."""
    return Job(name, total, **options)


def track(items: Iterable[T], name: str = "job", total: int | None = None, **options: Any) -> Iterator[T]:
    """``for url in outmail.track(urls, "crawl", every=1000): …``: the items, and a job around them."""
    if total is None:
        try:
            total = len(items)  # type: ignore[arg-type]
        except TypeError:
            total = None
    return _tracked(items, Job(name, total, **options))


def _tracked(items: Iterable[T], made: Job) -> Iterator[T]:
    made.start()
    try:
        for item in items:
            yield item
            made.update()
    except GeneratorExit:
        made.leave()
        raise
    except BaseException as problem:
        made.close(problem)
        raise
    made.close()
