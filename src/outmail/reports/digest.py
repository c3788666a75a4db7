"""`DigestHandler` for `logging`: records are collected during a run and become a few mails.

How: `emit` writes one line into this process's spool file and returns. The lines are folded into this
handler's note in the store (`digest_fold`): at the end of the run, at the latest after ``max_delay``, or a
few seconds after a first record that is worth a mail. Lines of a killed process are folded by the next one.
Promises: `emit` never waits for the network or the store, and never raises. Memory is bounded. Counts are
exact (what the spool's limit left out is counted, too). outmail's own log records are never taken. Fails: one
line on stderr.
Does not: keep the last lines after a power cut (there is no fsync), or work where the spool folder cannot be
written (it says so once).
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
from typing import Any

from outmail.clock import parse_span
from outmail.errors import ConfigError
from outmail.policy import digest as policy
from outmail.policy.incident import Rule
from outmail.reports import records, spool, traces
from outmail.reports.digest_fold import DigestSettings, fold
from outmail.reports.door import ReportDoor, at_close, default_spool, door
from outmail.reports.mail import named
from outmail.reports.post import guarded, poster, tell

#: Seconds that a first record which is worth a mail waits for others.
GATHER = 3.0
#: Characters of a logger's name, a template, a key.
NAME = 1000
#: Characters of a traceback that are kept: its end says what went wrong.
TRACE = 16_000


class DigestHandler(logging.Handler):
    """Collects log records, and mails when it is worth it.

    ``name``: the handler's name in the store (default: the program's). ``trigger_level``: records at or above
    it count. ``min_records``: how many of them, over several runs, make a mail. ``after_runs``: in how many
    runs in a row a key (``extra={"key": feed}``) must fail for a mail. ``remind``: mail again after this time
    while it goes on. ``max_delay``: the longest time until a mail in a run that goes on. ``at_most``: mails
    an hour ("4/h"). ``only_errors`` and ``threshold`` are the older names for ``level="ERROR"`` and
    ``min_records`` of all records.
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
        # dictConfig sets `name`
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
        """Write one line into the spool."""
        if records.ours(record):
            return
        try:
            key = getattr(record, "key", "") or _bound(record)
            level = records.level_of(record)
            words = getattr(record, "msg", "")
            template = words if isinstance(words, str) else type(words).__name__
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
        """This key is well: its count of failures in a row starts again at zero."""
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
        """A run. At its end it is decided what to mail. If an exception ends it, it is a run that died."""
        self._explicit = True
        try:
            yield self
        except BaseException:
            self._end_run(in_order=False)
            raise
        self._end_run(in_order=True)

    def flush(self) -> None:
        """Decide now about what was collected; the run goes on."""
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
                self._spool.abandon()  # what could not be stored is left to the next run
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
        """Fold the lines of this process and of dead ones into the store, and mail if it is worth it.
        ``in_order`` None: the run goes on.
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

    def _settings(self) -> DigestSettings:
        return DigestSettings(self.title, self._to, self._subject, self._rules, self._head, self._tail)


# -- small parts ---------------------------------------------------------------------------------------------


#: Made once, because json.dumps with arguments builds an encoder at each call.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=repr).encode


def _bound(record: logging.LogRecord) -> Any:
    """The key that loguru's ``bind(key=…)`` puts into a record."""
    extra = getattr(record, "extra", None)
    return extra.get("key", "") if isinstance(extra, dict) else ""


def _exception(record: logging.LogRecord) -> list[str]:
    """(the exception's type and text, the innermost frame of the program's own code, the traceback) of a
    record.
    """
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
