"""Jobs: a long-running program reports its progress by mail.

``with outmail.job("crawl", total=48_000, every="10%") as job``, ``for x in outmail.track(xs, "crawl")``,
``@outmail.notify()``.
Promises: reporting never raises into the job, never blocks it and never changes its result. Wrong options
raise `ConfigError` at once. Each milestone is mailed once; one that still waits is replaced by the next; the
last mail is always sent. A job ends in exactly one way: finished, failed, stopped, or (reported by whoever
finds it) dead. ``strict=True`` lets errors of reporting through, for tests.
Fails: one line on stderr. Does not: report from forked children, or from ranks other than 0.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

from outmail.accept.acceptance import not_stored
from outmail.clock import parse_span
from outmail.errors import ConfigError
from outmail.model import new_id
from outmail.policy import incident
from outmail.policy.progress import Estimate, Every, parse_every, rate_in_words
from outmail.reports import (
    job_mails,
    job_signals,
    lastresort,
    liveness,
    records,
    spoolfiles,
    state,
    watchdog,
    workers,
)
from outmail.reports.bar import Bar
from outmail.reports.door import ReportDoor, Unstored, default_spool, door, unstored
from outmail.reports.mail import Report, named
from outmail.reports.post import guarded, host, poster, root_id, tell, words
from outmail.store import StoreError
from outmail.system.lockfile import LockFile

T = TypeVar("T")

#: Seconds that `Job.wait`, and the end of a job whose Outbox says nothing else, wait for the last report.
WAIT = 10.0
EXIT_WAIT = 5.0
HEARTBEAT = 30.0


class Job:
    """One run of a named job.

    ``total``: how many items (None: unknown). ``every``: milestones (a count, "10%", "2h", a list of counts,
    a function). ``start``: True, False or "auto" (a start mail when the job has lasted ``quiet_under``).
    ``min_interval``: the shortest time between progress mails. ``stall``: mail when there was no progress for
    so long. ``initial``: what an earlier run had done. ``after_failures``: how many runs in a row must fail
    for a mail. ``remind``: at most one mail in this time while failures go on. ``tail``: how many log lines
    are kept for the mail. ``bar``: a live bar (None: if stderr is a terminal).
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
        self._starting = threading.Lock()
        self._next = float("-inf")  # so that the first update starts it
        self._pid, self._maker = 0, os.getpid()
        self._fields: dict[str, Any] = {}
        self._notes: list[str] = []
        self._metrics: dict[str, list[float]] = {}
        self._tables: list[tuple[str, list[list[str]]]] = []
        self._milestones: list[str] = []
        self._progress_id: str | None = None
        self._said = self._moved = self._beat = self._left = 0.0
        self._start_said = self._owes = self._stalled = False
        self._life: LockFile | None = None
        self._known = False
        self._tail: job_mails.Tail | None = None
        self._bar: Bar | None = None
        self._signal = ""
        self._began = self._ended = 0.0
        self._began_at = 0.0
        self._estimate = Estimate(total, 0.0, initial)
        #: True in another process than the one that started the job; what is done here is counted there.
        self._elsewhere = False
        self._tally: workers.Tally | None = None
        self._theirs: float = 0
        self._spool = ""

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> Job:
        """Begin. `with` does this, and so does the first `update`. In ranks other than 0 the job says
        nothing.
        """
        with self._starting:
            if self.state == "new":
                self._start()
        return self

    def _begun(self) -> bool:
        """Start the job if nobody has. False for a job that another process made and did not start."""
        if self.state == "new":
            if self._maker != os.getpid():
                self._next = float("inf")
                tell(
                    f"the job {self.name} was made in another process, and is not started: it reports "
                    f"nothing. Start it before the processes begin that work on it (with … as job:)"
                )
                return False
            self.start()
        return True

    def _start(self) -> None:
        self._pid = os.getpid()
        self.state = "running"
        self._began, self._began_at = time.monotonic(), time.time()
        self._moved = self._beat = self._began
        self._estimate = Estimate(self.total, self._began, self.initial)
        if self._marks is not None:
            self._marks.done, self._marks.at = self.initial, self._began
        self.id = new_id(int(self._began_at * 1000))
        if _rank():
            self.state, self._next = "quiet", float("inf")
            return
        self._next = self._marks.next_count() if self._marks and not self._marks.seconds else float("inf")
        job_signals.enter(self)
        if self._tail_size:
            self._tail = job_mails.Tail(self._tail_size)
            logging.getLogger().addHandler(self._tail)
        self._bar = Bar.wanted(self._bar_wanted, self)
        poster().tick(self._tick)
        try:
            self._act(self._enrol)
        except BaseException:  # strict
            self._let_go("quiet")
            raise
        if self._says["start"] and (self._start_at_once or self._quiet_under <= 0):
            self._say_start()

    def __enter__(self) -> Job:
        return self.start()

    def __exit__(self, kind: Any, problem: BaseException | None, trace: Any) -> None:
        self.close(problem)

    def close(self, problem: BaseException | None = None) -> None:
        """End as finished, as failed with ``problem``, or as stopped if that is a signal, Ctrl-C or an exit
        status other than 0.
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
        """End as failed, without an exception."""
        if self._begun() and self._mine() and self.state == "running":
            self._end(
                "failed",
                problem
                if isinstance(problem, BaseException)
                else job_mails.Reason(records.in_words(problem)),
            )

    def finish(self) -> None:
        """End as finished."""
        if self._begun():
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
        if self._elsewhere:
            self._count_there(n)
        elif due:
            self._reached()

    def note(self, text: str) -> None:
        """A remark for the next mail."""
        self._notes.append(f"{time.strftime('%H:%M:%S')}  {records.in_words(text)[:2000]}")
        del self._notes[:-200]

    def metric(self, name: str, value: float) -> None:
        """One value of a series. The mail shows the last value and a drawing of the series."""
        series = self._metrics.setdefault(name, [])
        series.append(float(value))
        if len(series) > 2000:
            del series[::2]

    def milestone(self, text: str) -> None:
        """Something was reached that is worth a mail of its own."""
        if self._begun() and self._mine() and self.state == "running":
            self._milestones.append(records.in_words(text)[:2000])
            self._say_progress()

    def table(self, rows: Iterable[Sequence[Any]], title: str = "Table") -> None:
        """Rows for the next mail; the first one is the header."""
        shown = [[records.in_words(cell) for cell in row] for row in islice(rows, 200)]
        width = max((len(row) for row in shown), default=0)
        if width:
            self._tables.append((records.in_words(title), [row + [""] * (width - len(row)) for row in shown]))

    def iter(self, items: Iterable[T]) -> Iterator[T]:
        """The items, counted as they are done."""
        for item in items:
            yield item
            self.update()

    # the interface of a tqdm bar, so that a job can replace one
    @property
    def n(self) -> int:
        return self.done

    def set_description(self, text: str = "", refresh: bool = True) -> None:
        self._fields["Doing"] = text

    def set_postfix(self, ordered: Any = None, refresh: bool = True, **fields: Any) -> None:
        self._fields.update(ordered or {}, **fields)

    @property
    def elapsed(self) -> float:
        """Seconds since the start, until the end."""
        if self.state == "new":
            return 0.0
        return (self._ended or time.monotonic()) - self._began

    @property
    def rate(self) -> float:
        """Items a second: in the last minute, or, if too few were done in it, in this run."""
        now = self._ended or time.monotonic()
        return self._estimate.recent(self.done, now) or self._estimate.mean(self.done, now)

    @property
    def eta(self) -> tuple[float, float] | None:
        """(least, most) seconds left; None while unknown."""
        return self._estimate.remaining(self.done, self._ended or time.monotonic())

    def wait(self, seconds: float = WAIT) -> bool:
        """Wait until all reports so far are stored."""
        return poster().drain(seconds)

    def __repr__(self) -> str:
        where = job_mails.position(self.done, self.total)
        now = self._ended or time.monotonic()
        rate = rate_in_words(self._estimate.mean(self.done, now)) if self.state != "new" else ""
        parts = [f"{self.name!r} {self.state}: {where}", rate, f"run {self.id}" if self.id else ""]
        return f"<Job {', '.join(filter(None, parts))}>"

    # -- processes that work on it ---------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        """For worker processes: `update` counts for this job there."""
        if self.state == "new":
            raise ConfigError(
                f"the job {self.name} is not started: start it before it is passed to other processes "
                f"(with … as job:)"
            )
        return _in_worker, (self.name, self.total, self.id, self._place())

    def _place(self) -> str:
        """The folder beside the store. Raises `ConfigError`."""
        if not self._spool:
            self._spool = self._given.spool if self._given is not None else default_spool()
        return self._spool

    def in_child(self) -> None:
        """After a fork, in the child."""
        self._lock, self._starting = threading.Lock(), threading.Lock()
        self._elsewhere, self._tally, self._next = True, None, float("inf")

    def _count_there(self, n: float) -> None:
        try:
            with self._lock:
                if self._tally is None:
                    self._tally = workers.Tally(self._place(), self.id)
                self._tally.add(n)
        except Exception as problem:
            tell(f"what this process does for {self.name} is not counted: {records.in_words(problem)}")

    def _gather(self) -> None:
        """Add what other processes have done since the last look."""
        theirs = workers.total(self._place(), self.id)
        with self._lock:
            self.done += theirs - self._theirs  # type: ignore[assignment]  # whole, if their updates were
            self._theirs = theirs
            due = self.done >= self._next
        if due:
            self._reached()

    # -- time ------------------------------------------------------------------------------------------------

    def _mine(self) -> bool:
        return self._pid == os.getpid()

    def _tick(self) -> None:
        """Once a second, in the poster's thread."""
        if not self._mine() or self.state != "running":
            return
        guarded(self._gather, f"what other processes do for {self.name} is not counted")
        now, done = time.monotonic(), self.done
        if self._estimate.sample(done, now):
            self._moved, self._stalled = now, False
            self._note()
        if self._says["start"] and not self._start_said and now - self._began >= self._quiet_under:
            self._say_start()
        if self._marks and self._marks.seconds and self._marks.reached(done, now):
            self._owes = True
        if self._owes and now - self._said >= self._min_interval:
            self._say_progress()
        if self._stall and not self._stalled and now - self._moved >= self._stall:
            self._stalled = True
            self._say(job_mails.stalled(self._run(), now - self._moved), "stalled")
        if now - self._beat >= HEARTBEAT:
            self._beat = now
            guarded(self._register)
        if self._bar:
            self._bar.show()
        if self._left and now - self._left >= 1.0:
            self.close()

    def leave(self) -> None:
        """The loop was left before its end: by `break`, unless it turns out that an exception has ended the
        program.
        """
        self._left = time.monotonic()

    def _reached(self) -> None:
        if not self._begun() or self.done < self._next or not self._mine() or self.state != "running":
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
        self._say(job_mails.started(self._run()), "start")

    def _say_progress(self) -> None:
        self._owes, self._said = False, time.monotonic()
        milestones = list(self._milestones)
        self._milestones.clear()
        self._say(job_mails.progress(self._run(), milestones), "progress")

    def _say(self, report: Report, slot: str) -> None:
        self._note()
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

    def _recipients(self, box: Unstored) -> tuple[str, ...]:
        to = self._to or box.report_to
        if not to:
            tell(
                "reports have no recipient: set `to` in the configuration, $OUTMAIL_TO, or to=; the job runs "
                "on"
            )
        return to

    def _words(self, box: Unstored, report: Report, to: tuple[str, ...], **more: Any) -> dict[str, Any]:
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

    def _run(self) -> job_mails.Run:
        """Everything there is to say now. Notes and tables are said once."""
        notes, tables = list(self._notes), list(self._tables)
        # the last mail is made again when somebody else has changed the job's note meanwhile
        if self.state == "running":
            self._notes, self._tables = [], []
        now = self._ended or time.monotonic()
        return job_mails.Run(
            name=self.name,
            id=self.id,
            state=self.state,
            pid=self._pid,
            began_at=self._began_at,
            elapsed=self.elapsed,
            done=self.done,
            total=self.total,
            initial=self.initial,
            rate=self._estimate.recent(self.done, now),
            eta=self.eta,
            course=self._estimate.course(self.done, now),
            others=self._others(),
            fields=self._fields,
            metrics=self._metrics,
            notes=notes,
            tables=tables,
            rule=self._rule,
            tail=self._tail,
            signal=self._signal,
        )

    def _others(self) -> list[str]:
        """Other runs of this job that are running now."""
        try:
            return spoolfiles.others(self._place(), self.name, id=self.id)
        except Exception as problem:
            tell(
                f"whether another run of {self.name} is going on cannot be said: {records.in_words(problem)}"
            )
            return []

    def _note(self) -> None:
        """Write down how far it is, where whoever finds it dead will look."""
        if self._life is not None:
            try:
                liveness.write(self._life, json.dumps(self._document()).encode())
            except (OSError, TypeError, ValueError) as problem:
                tell(f"how far {self.name} is cannot be noted beside the store: {records.in_words(problem)}")

    # -- the end ---------------------------------------------------------------------------------------------

    def _end(self, word: str, problem: BaseException | None) -> None:
        self._let_go(word)
        guarded(self._gather, f"what other processes did for {self.name} is not counted")
        self._ended = time.monotonic()
        self._estimate.sample(self.done, self._ended)
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
        self.state, self._next = word, float("inf")
        poster().untick(self._tick)
        job_signals.leave(self)

    def _hand_in(self, word: str, problem: BaseException | None) -> None:
        """Store and mail the end, in the poster's thread and within a bounded time; in this thread when no
        thread can be started any more. If the store refuses, send the mail without it.
        """
        if problem is not None:
            problem = job_mails.Frozen(problem)
        claim = lastresort.Claim()
        if threading.current_thread() is poster()._thread:
            self._told(word, problem, claim)
            return
        poster().later(lambda: self._told(word, problem, claim), f"end:{self.id}")
        seconds = self._given.exit_wait if self._given is not None else EXIT_WAIT
        if poster().drain(seconds):
            return
        thread = poster()._thread
        if thread is None or not thread.is_alive():
            self._told(word, problem, claim)
        elif claim.take():
            self._past_the_store(word, problem, f"the store did not answer within {seconds:g} s")
        elif not poster().drain(seconds + 1):  # it is being committed, or is being sent without the store
            tell(f"the end of {self.name} is on its way, and nobody knows yet whether it arrives")

    def _told(self, word: str, problem: BaseException | None, claim: lastresort.Claim) -> None:
        try:
            self._last_word(word, problem, claim)
        except lastresort.TooLate:
            return
        except Exception as trouble:
            if claim.take():
                self._past_the_store(word, problem, records.in_words(trouble) or type(trouble).__name__)

    def _past_the_store(self, word: str, problem: BaseException | None, why: str) -> None:
        """Report the end by mail only. Failures in a row cannot be counted then, so each one is mailed."""
        run = self._run()
        if word == "failed":
            made = job_mails.failed(run, problem, job_mails.failure_subject(run, problem, 1), 1)
        else:
            made = job_mails.finished(run) if word == "finished" else job_mails.stopped(run, problem)
        says = self._says[{"finished": "finish", "stopped": "stop", "failed": "fail"}[word]]
        headline = f"{made.called.upper()}: {made.headline}"
        try:
            box = unstored(self._given)
            to = self._recipients(box)
            if says and to:
                words = self._words(box, made, to, key=f"report:{self.id}:{word}")
                lastresort.tell(box, words, headline, why, box.exit_wait)
            else:
                tell(f"the end of {self.name} is not on record: {why}")
        except ConfigError as trouble:  # it is unknown who may be told
            lastresort.headline_only(headline, self.name, why, str(trouble))
        self._life_is_over()

    def _life_is_over(self) -> None:
        """The end was reported: nobody must take the run for dead."""
        guarded(self._clear, f"what {self.name} has left beside its store could not be removed")

    def _clear(self) -> None:
        if self._life is not None:
            self._life.end()
        workers.forget(self._place(), self.id)

    def _last_word(
        self, word: str, problem: BaseException | None, claim: lastresort.Claim | None = None
    ) -> None:
        """The end, recorded and mailed, together with the new state of the job."""
        box = door(self._given)
        to = self._recipients(box)
        now = box.clock.now()

        def decide(document: state.Document) -> state.Decision:
            run = self._run()
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
                subject = job_mails.failure_subject(run, problem, standing.failures)
                thread = (standing.thread,) if standing.thread else ()
                report = job_mails.failed(run, problem, subject, standing.failures)
                mail = self._words(box, report, to, key=key, thread=thread)
                if not standing.thread:
                    standing = replace(standing, thread=box.message_id(key), subject=subject)
            elif say == "alert":
                standing = replace(standing, alerted_at=0, said_at=0)  # nobody is told
            elif say == "recovered" and to:
                report = job_mails.recovered(run, (now - before.since) / 1000)
                mail = self._words(box, report, to, key=key, thread=(before.thread,) if before.thread else ())
            elif word == "finished" and self._says["finish"] and to:
                mail = self._words(box, job_mails.finished(run), to, key=key)
            elif word == "stopped" and self._says["stop"] and to:
                mail = self._words(box, job_mails.stopped(run, problem), to, key=key)
            return {
                **document,
                "incident": standing.dump(),
                "kind": "job",
                "last": {"run": self.id, "state": word, "at": now},
            }, mail

        noted = ("run", self.id, self._document())
        state.change(box, "job", self.name, decide, supersede=self._progress_id, claim=claim, also=noted)
        self._life_is_over()
        guarded(lambda: state.forget_old_runs(box, self.name), "old runs were not forgotten")

    def _register(self) -> None:
        """The note about the run: which one it is, how far it is, and (by the lock on its file) that it is
        alive.
        """
        if self._life is None and self.state == "running":
            self._begin_life()
        box = door(self._given)
        if not self._known:
            watchdog.dead_runs(box, self.name)
            workers.sweep(self._place(), time.time() - 86_400)
            self._known = True
        state.remember(box, "run", self.id, self._document())

    def _enrol(self) -> None:
        """The first registration. Problems that will hinder the last report are reported now."""
        try:
            self._register()
        except Exception as problem:
            if self.strict:
                raise
            tell(
                f"reports of {self.name} cannot be stored: {records.in_words(problem)}; how it ends will go "
                f"straight to the relay"
            )
            return
        if trouble := guarded(door(self._given).relay_trouble, "the relay of reports is not known"):
            tell(f"reports of {self.name} may have to wait: the relay {trouble}")

    def _begin_life(self) -> None:
        try:
            self._life = liveness.alive(self._place(), self.id, json.dumps(self._document()).encode())
        except OSError as problem:
            tell(f"{problem}: if this run of {self.name} is killed, nobody will hear of it")

    def _document(self) -> state.Document:
        return {
            "job": self.name,
            "kind": "job",
            "host": host(),
            "pid": self._pid,
            "started_at": int(self._began_at * 1000),
            "at": int((self._began_at + self.elapsed) * 1000),
            "done": self.done,
            "total": self.total,
            "state": self.state,
            "to": list(self._to),
            "duration_ms": int(self.elapsed * 1000),
        }


def _in_worker(name: str, total: int | None, id: str, spool: str) -> Job:
    """The job of another process, in a worker; it counts there. In its own process it is the job itself."""
    for known in [*job_signals.running, *_from_elsewhere]:
        if isinstance(known, Job) and known.id == id:
            return known
    made = Job(name, total, bar=False)
    made.id, made.state, made._spool = id, "elsewhere", spool
    made._began, made._elsewhere, made._next = time.monotonic(), True, float("inf")
    _from_elsewhere.append(made)
    return made


#: Jobs of other processes on which this one works.
_from_elsewhere: list[Job] = []


def _after_fork() -> None:
    for job in _from_elsewhere:
        job.in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _strictly(action: Callable[[], Any]) -> None:
    """For tests: trouble with the store becomes one of the public errors."""
    try:
        action()
    except StoreError as problem:
        raise not_stored(problem) from None


def _rank() -> bool:
    """True in a process that is not the first of a distributed run."""
    return any(
        os.environ.get(name, "0") not in ("", "0")
        for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
    )


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
