"""From a report to the queue: threads of mails, header fields, and a worker thread, so that the reporting
program never waits.

Promises: `Poster.later` returns at once. A waiting report is replaced by a newer one in the same slot. Any
problem becomes one line on stderr (each text once), never an exception in the program. `drain` waits a
bounded time.
Does not: exist before the first report, start at exit, or survive a fork (a child does not report its
parent's job).
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from outmail.model import Receipt
from outmail.policy.plain import plain_line
from outmail.policy.veil import known
from outmail.reports.door import ReportDoor
from outmail.reports.mail import Report, as_html, as_text, one_line, sender_name
from outmail.reports.records import in_words
from outmail.store import Verb
from outmail.system.host import hostname
from outmail.system.starting import started


def host() -> str:
    """The machine's short name, for subjects."""
    return hostname().partition(".")[0]


def slug(text: str) -> str:
    """A job's name with letters, digits and dashes only."""
    return re.sub(r"[^a-z0-9]+", "-", text[:1000].lower()).strip("-")[:50] or "job"


def root_id(kind: str, name: str, run: str) -> str:
    """A Message-ID that belongs to no mail; all mails of one run refer to it."""
    return f"<{kind}.{slug(name)}.{slug(run)}@{slug(host())}.outmail.invalid>"


def headers(kind: str, name: str, state: str, run: str, thread: tuple[str, ...]) -> dict[str, str]:
    """The fields that filters, vacation programs and threads in mail readers use."""
    found = {
        "Auto-Submitted": "auto-generated",
        "X-Auto-Response-Suppress": "All",
        "List-Id": f"<{slug(name)}.{slug(host())}.{kind}.outmail.localhost>",
        "X-Outmail-Job": one_line(name, 200),
        "X-Outmail-Run": one_line(run, 80),
        "X-Outmail-State": state,
        "X-Outmail-Host": host(),
    }
    if thread:
        found["In-Reply-To"] = thread[-1]
        found["References"] = " ".join(dict.fromkeys(thread))
    if state in ("failed", "dead"):
        found["Importance"] = "high"
    return found


def report_key(text: str) -> str:
    """An idempotency key: unchanged, or shortened when names make it too long."""
    return text if len(text) <= 200 else f"{text[:120]}:{hashlib.sha256(text.encode()).hexdigest()}"


def words(
    report: Report,
    *,
    to: tuple[str, ...],
    kind: str,
    name: str,
    run: str,
    thread: tuple[str, ...] = (),
    templates: str = "",
    **more: Any,
) -> dict[str, Any]:
    """The arguments of `send` for a report."""
    return {
        "to": list(to),
        "subject": one_line(report.subject),
        "text": as_text(report, templates),
        "html": as_html(report, templates),
        "headers": headers(kind, name, report.state, run, thread),
        "tag": f"report:{kind}",
        "author": sender_name(name, report).replace("@", " at "),
        **more,
    }


_told: set[str] = set()


def tell(text: str) -> None:
    """Print one line on stderr, once."""
    text = plain_line(known.over(text[:2000]))
    if text in _told:
        return
    _told.add(text)
    try:
        print(f"outmail: {text}", file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):
        pass  # there is no stderr: nobody can be told


class Poster:
    """The process's thread for reports. It posts what is given to it, and calls registered functions once a
    second.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Condition()
        self._jobs: dict[str, Callable[[], Any]] = {}
        self._busy = False
        self._ticks: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None
        self._number = 0

    def later(self, function: Callable[[], Any], slot: str = "") -> None:
        """Run the function soon, in the thread. A waiting one of the same slot is dropped."""
        with self._lock:
            self._number += 1
            self._jobs.pop(slot, None)
            self._jobs[slot or f"#{self._number}"] = function
            self._start()
            self._lock.notify_all()

    def tick(self, function: Callable[[], None]) -> None:
        """Call it every second until `untick`."""
        with self._lock:
            self._ticks.append(function)
            self._start()
            self._lock.notify_all()

    def untick(self, function: Callable[[], None]) -> None:
        with self._lock:
            if function in self._ticks:
                self._ticks.remove(function)

    def drain(self, seconds: float) -> bool:
        """Wait until everything was posted; False when the time was over first."""
        deadline = time.monotonic() + seconds
        with self._lock:
            while self._jobs or self._busy:
                left = deadline - time.monotonic()
                if (
                    left <= 0
                    or self._thread is None
                    or not self._thread.is_alive()
                    or threading.current_thread() is self._thread
                ):
                    return False
                self._lock.wait(min(left, 0.5))
        return True

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._run, name="outmail-reports", daemon=True)
            # `drain` reports it, and the caller posts by itself
            self._thread = thread if started(thread) else None

    def _run(self) -> None:
        ticked = time.monotonic()
        while True:
            with self._lock:
                if not self._jobs:
                    self._lock.wait(max(0.01, ticked + 1.0 - time.monotonic()) if self._ticks else 3600)
                function = self._jobs.pop(next(iter(self._jobs))) if self._jobs else None
                self._busy = function is not None
                due = list(self._ticks) if time.monotonic() >= ticked + 1.0 else []
            if due:
                ticked = time.monotonic()
            for call in [function, *due]:
                if call is not None:
                    guarded(call)
            with self._lock:
                self._busy = False
                self._lock.notify_all()


def guarded(function: Callable[[], Any], what: str = "a report was not stored") -> Any:
    """Call it. A problem becomes a line on stderr."""
    try:
        return function()
    except Exception as problem:
        hint = getattr(problem, "hint", "")
        tell(f"{what}: {in_words(problem) or type(problem).__name__}" + (f" ({hint})" if hint else ""))
        return None


_poster: Poster | None = None
_guard = threading.Lock()


def poster() -> Poster:
    """The process's poster; a forked child gets its own."""
    global _poster, _guard
    if _poster is None or _poster._pid != os.getpid():
        if _poster is not None:
            _guard = threading.Lock()  # the parent's may have been held when it forked
        with _guard:
            if _poster is None or _poster._pid != os.getpid():
                _poster = Poster()
    return _poster


def post(
    door: ReportDoor,
    words: dict[str, Any] | None,
    *,
    supersede: str | None = None,
    when: Callable[[], Verb[bool]] | None = None,
) -> Receipt | None:
    """Store a report now, in this thread."""
    return door.report(words, supersede=supersede, when=when)
