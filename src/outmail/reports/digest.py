"""`DigestHandler` for `logging`: records are gathered during a run and become at most a few mails.

How: `emit` writes one line to this process's spool file and returns. At the end of the run, at most
``max_delay`` later, or a few seconds after a first record that is worth a mail by itself, the lines are
folded into the store's note of this handler and it is decided whether that is worth a mail; note and mail are
one transaction. What a killed process left is folded by the next.
Promises: `emit` never blocks on the network or the store and never raises; memory is flat; counts are exact
(what the spool's limit left out is counted too); outmail's own logging never feeds it. Fails: one line on
stderr.
Does not: survive a power cut with the last lines (no fsync), or work where the spool folder cannot be written
(it says so once).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from outmail.clock import parse_span
from outmail.errors import ConfigError
from outmail.policy import digest as policy
from outmail.policy.incident import Incident, Rule
from outmail.policy.plain import plain
from outmail.policy.progress import sparkline, took
from outmail.policy.veil import known
from outmail.reports import records, spool, spoolfiles, state, traces
from outmail.reports.door import ReportDoor, at_close, default_spool, door
from outmail.reports.mail import Report, Section, local_time, named, one_line
from outmail.reports.post import guarded, host, poster, report_key, root_id, tell, words

#: A first record that is worth a mail waits this long for others.
GATHER = 3.0
#: Characters of a logger's name, a template, a key.
NAME = 1000
#: Characters of a traceback: its end says what went wrong.
TRACE = 16_000


class DigestHandler(logging.Handler):
    """Gather log records; mail when it is worth it.

    ``name``: the handler's name in the store (default: the program's); ``trigger_level``: records at or above
    count; ``min_records``: how many, over runs, until a mail goes; ``after_runs``: runs in a row in which a
    key (``extra={"key": feed}``) fails until a mail goes; ``remind``: again every so often while it goes on;
    ``max_delay``: at most so long until a mail, in a run that goes on; ``at_most``: mails an hour ("4/h").
    ``only_errors`` and ``threshold`` are the older names for ``level="ERROR"`` and ``min_records`` of all
    records.
    """

    def __init__(
        self,
        to: str | Sequence[str] | None = None,
        subject: str = "",
        *,
        name: str | None = None,
        level: int | str = logging.NOTSET,
        trigger_level: int | str = logging.ERROR,
        min_records: int = 1,
        after_runs: int = 1,
        remind: str | None = None,
        recovered: bool = True,
        max_delay: str = "15m",
        at_most: str | int = "4/h",
        head: int = 50,
        tail: int = 20,
        spool_limit: int = 64_000_000,
        group_by: Callable[[logging.LogRecord], str] | None = None,
        only_errors: bool = False,
        threshold: int | None = None,
        outbox: ReportDoor | None = None,
    ) -> None:
        if only_errors:
            level = trigger_level = logging.ERROR
        if threshold is not None:
            min_records, trigger_level = threshold, level
        try:
            super().__init__(level)
            trigger = logging._checkLevel(trigger_level)  # type: ignore[attr-defined]
            self._rules = policy.Rules(
                int(trigger),
                _whole("min_records", min_records),
                Rule(_whole("after_runs", after_runs), parse_span(remind) if remind else 0, recovered),
                _rate(at_most),
            )
            self._max_delay = parse_span(max_delay) / 1000
        except (ValueError, TypeError) as problem:
            raise ConfigError(f"DigestHandler: {problem}") from None
        # `name` is dictConfig's to set
        self.title = named(name or os.path.basename(sys.argv[0] or "python")) or "python"
        self._to = (to,) if isinstance(to, str) else tuple(to or ())
        self._subject, self._group_by, self._given = subject, group_by, outbox
        self._head, self._tail, self._limit = head, tail, spool_limit
        self._spool: spool.Spool | None = None
        self._broken = False
        self._folding = threading.Lock()
        self._first = 0.0
        self._urgent = 0.0
        self._said = False
        self._closed = self._explicit = self._opened = False
        poster().tick(self._tick)
        _handlers.append(self)

    # -- records ---------------------------------------------------------------------------------------------

    def emit(self, record: logging.LogRecord) -> None:
        """One line into the spool."""
        if records.ours(record):
            return
        try:
            key = getattr(record, "key", "") or _bound(record)
            level = records.level_of(record)
            template = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
            if self._group_by is not None:
                template = str(self._group_by(record))
            values: list[Any] = [
                records.time_of(record),
                level,
                records.name_of(record)[:NAME],
                template[:NAME],
                records.message_of(record),
                records.in_words(key)[:NAME] if key else "",
            ]
            if getattr(record, "exc_info", None) or getattr(record, "exc_text", None):
                values += _exception(record)
            if not self._write(values):
                return
            if not self._opened:  # at exit it would be too late to start an engine
                self._opened = True
                poster().later(lambda: door(self._given))
            now = time.monotonic()
            if not self._first:
                self._first = now
            if (
                not self._urgent
                and not self._said
                and level >= self._rules.trigger
                and self._rules.min_records <= 1
                and not (key and self._rules.keys.after > 1)
            ):
                self._urgent = now
        except Exception as problem:
            tell(f"a log record could not be kept for the digest: {records.in_words(problem)}")

    def ok(self, key: str) -> None:
        """This key is well: its failures in a row begin again at zero."""
        try:
            self.acquire()
            try:
                self._write(["ok", time.time(), records.in_words(key)[:NAME]])
            finally:
                self.release()
        except Exception as problem:
            tell(f"ok() could not be kept for the digest: {records.in_words(problem)}")

    def _write(self, values: list[Any]) -> bool:
        file = self._file()
        if file is None:
            return False
        file.write(_encode(values).encode("utf-8", "backslashreplace") + b"\n")
        return True

    def _file(self) -> spool.Spool | None:
        if self._spool is not None and self._spool.pid == os.getpid():
            return self._spool
        if self._broken or self._closed:
            return None
        try:
            folder = self._given.spool if self._given is not None else default_spool()
            self._spool = spool.Spool(folder, self.title, self._limit)
        except Exception as problem:
            self._broken = True
            tell(f"log records cannot be kept for the digest: {problem}")
            return None
        return self._spool

    # -- runs ------------------------------------------------------------------------------------------------

    @contextmanager
    def run(self) -> Iterator[DigestHandler]:
        """A run: at its end it is decided what to mail. An exception through it makes it a run that died."""
        self._explicit = True
        try:
            yield self
        except BaseException:
            self._end_run(in_order=False)
            raise
        self._end_run(in_order=True)

    def flush(self) -> None:
        """Decide now about what was gathered; the run goes on."""
        if self._spool is not None and not self._closed:
            guarded(lambda: self._fold(None), "the digest was not folded")

    def close(self) -> None:
        """The process ends, and with it the run."""
        if not self._closed:
            if not self._explicit:
                self._end_run(in_order=traces.uncaught() is None)
            elif self._spool is not None:  # records after the last run
                self.flush()
            self._closed = True
            poster().untick(self._tick)
            if self in _handlers:
                _handlers.remove(self)
            if self._spool is not None:
                self._spool.abandon()  # what could not be stored is the next run's
        super().close()

    def _end_run(self, *, in_order: bool) -> None:
        if self._closed:
            return
        guarded(
            lambda: self._fold(in_order), "the digest was not folded; its records are kept for the next run"
        )
        self._first = self._urgent = 0.0
        self._said = False

    def _tick(self) -> None:
        now = time.monotonic()
        if self._closed or self._spool is None or self._spool.pid != os.getpid():
            return
        if (self._urgent and now - self._urgent >= GATHER) or (
            self._first and now - self._first >= self._max_delay
        ):
            self._first = self._urgent = 0.0
            self.flush()

    # -- folding ---------------------------------------------------------------------------------------------

    def _fold(self, in_order: bool | None) -> None:
        """Own lines and orphans' into the store, and a mail if it is worth one. ``in_order`` None: the run
        goes on.
        """
        with self._folding:
            box = door(self._given)
            own = self._spool
            upto = fold(box, self._settings(), own, in_order)
            self._said = self._said or in_order is None
            self.acquire()
            try:
                # everything is in the store: the next record begins a new file
                if own is not None and own.size == upto:
                    own.remove()
                    self._spool = None
            finally:
                self.release()

    def _settings(self) -> Settings:
        return Settings(self.title, self._to, self._subject, self._rules, self._head, self._tail)


class Settings:
    """What folding needs to know of a handler; the command makes one for a handler it only knows by name."""

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
    settings: Settings,
    own: spool.Spool | None,
    in_order: bool | None,
    *,
    send: bool | None = None,
) -> int:
    """Lines → note and mail; returns up to which byte of ``own`` they were taken. ``send``: True mails
    whatever waits, False never.
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
    settings: Settings,
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
    settings: Settings,
    muted: dict[str, int],
    now: int,
) -> bool:
    """Lines of a file into what waits and what the run said of keys; False when some are not ours."""
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
    """A record of the spool; None for what nobody of us wrote. The store gets no known password and no odd
    character.
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
    settings: Settings,
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
    settings: Settings,
    gathered: policy.Gathered,
    alerts: list[str],
    incidents: dict[str, Incident],
    held: int = 0,
) -> Report:
    """What waits, as a report."""
    said = policy.in_words(gathered)
    if alerts:
        first = incidents.get(alerts[0], Incident())
        more = f" and {len(alerts) - 1} more" if len(alerts) > 1 else ""
        subject = f"FAILED [{host()}] {settings.name}: {alerts[0]}{more}, {first.failures} runs in a row"
        headline = (
            f"FAILED: {', '.join(alerts[:10])}{' …' if len(alerts) > 10 else ''} failed in "
            f"{first.failures} runs in a row. In all: {said}."
        )
    else:
        subject = settings.subject or f"[{host()}] {settings.name}: {said}"
        headline = f"{settings.name} logged {said}."
    groups = gathered.ranked()
    facts = [("Host", host()), ("Records", f"{gathered.total:,}")]
    if groups:
        facts += [
            ("From", local_time(int(min(g.first for g in groups) * 1000))),
            ("To", local_time(int(max(g.last for g in groups) * 1000))),
        ]
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
        rows = [["Level", "Count", "First", "Last", "Message"]]
        rows += [
            [
                policy.level_name(g.level),
                f"{g.count:,}",
                _clock(g.first),
                _clock(g.last),
                g.sample.split("\n")[0],
            ]
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
                pre="\n".join(
                    f"{sparkline(g.course(), 40):<40}  {g.count:>7,}  {one_line(g.sample, 28)}"
                    for g in courses
                ),
            )
        )
    sections += [Section(f"Traceback: {one_line(g.sample, 50)}", pre=g.trace) for g in groups[:5] if g.trace]
    sections.append(Section("Lines", pre=_lines(gathered)))
    footer = [f"{settings.name} on {host()}", f"Why: {settings.rules.in_words()}"]
    if held:
        footer.append(
            f"Held back since the last mail: {held} times this mail was due and would have been one too many "
            f"({settings.rules.at_most} an hour)"
        )
    return Report("failed" if alerts else "digest", one_line(subject), headline, facts, sections, footer)


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _lines(gathered: policy.Gathered) -> str:
    shown = list(gathered.head)
    if gathered.omitted:
        shown.append(f"(… {gathered.omitted:,} lines left out)")
    return "\n".join(shown + gathered.tail)


def _say_recovered(box: ReportDoor, settings: Settings) -> None:
    """One mail for each key that is well again, answering its alert; what is owed stands in the note until it
    is queued.
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
            down = took((box.clock.now() - standing.since) / 1000)
            report = Report(
                "recovered",
                one_line(f"Re: {standing.subject}"),
                f"RECOVERED: {one['key']} is well again, after {standing.failures} failed runs in a row and "
                f"{down}.",
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


# -- small parts ---------------------------------------------------------------------------------------------


#: Made once: json.dumps with arguments builds an encoder at every call.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=repr).encode


def _bound(record: logging.LogRecord) -> Any:
    """The key that loguru's ``bind(key=…)`` puts into a record."""
    extra = getattr(record, "extra", None)
    return extra.get("key", "") if isinstance(extra, dict) else ""


def _exception(record: logging.LogRecord) -> list[str]:
    """(exception's type and words, innermost own frame, traceback) of a record."""
    found = records.problem_of(record)
    if found is None:
        return ["", "", records.in_words(getattr(record, "exc_text", None) or "")[-TRACE:]]
    problem, step = found
    frame = ""
    while step is not None:
        code = step.tb_frame.f_code
        if traces.is_own(code.co_filename):
            frame = f"{os.path.basename(code.co_filename)}:{code.co_name}"
        step = step.tb_next
    return [type(problem).__name__, frame, traces.formatted(problem)[-TRACE:]]


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    return value


def _rate(value: str | int) -> int:
    match = re.fullmatch(r"\s*(\d+)\s*(?:/\s*h)?\s*", str(value))
    if not match or not int(match[1]):
        raise ValueError(f"at_most={value!r}: write how many mails an hour, such as 4/h")
    return int(match[1])


_handlers: list[DigestHandler] = []


def _close_all() -> None:
    if _handlers:
        poster().drain(5.0)
    for handler in list(_handlers):
        handler.close()


at_close(_close_all)
