"""Signals, the program's end, and forks, for running jobs.

Promises: while a job runs, SIGTERM ends the program by an exception, unless the program has a handler of its
own; our handler is removed with the last job. Jobs that nobody ended are closed at the program's end, with
its last exception. A forked child can go on counting.
Fails: never. Where a handler cannot be set, SIGTERM ends the program at once, and the run is found dead
later.
Does not: know what a job reports.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any, Protocol

from outmail.reports import traces
from outmail.reports.door import at_close
from outmail.reports.post import guarded


class Terminated(SystemExit):
    """SIGTERM while a job runs. The program ends with 143, as the signal would have ended it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Running(Protocol):
    """A running job, as far as this module knows it."""

    _signal: str

    def _mine(self) -> bool: ...

    def in_child(self) -> None: ...

    def close(self, problem: BaseException | None = None) -> None: ...


running: list[Running] = []
_handling = False


def enter(job: Running) -> None:
    """A job has begun."""
    running.append(job)
    _watch()


def leave(job: Running) -> None:
    """It has ended."""
    if job in running:
        running.remove(job)
    _unwatch()


def _watch() -> None:
    global _handling
    if _handling or threading.current_thread() is not threading.main_thread():
        return
    try:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _on_sigterm)
            _handling = True
    except (ValueError, OSError):
        pass  # not possible here: SIGTERM then ends the program, and the run is found dead


def _unwatch() -> None:
    global _handling
    if _handling and not running and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _handling = False


def _on_sigterm(number: int, frame: Any) -> None:
    mine = [job for job in running if job._mine()]
    for job in mine:
        job._signal = "SIGTERM"
    if not mine:  # a forked child
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        return
    raise Terminated


def _at_exit() -> None:
    """End jobs that nobody ended; the program's last exception says how."""
    for job in list(running):
        guarded(lambda job=job: job.close(traces.uncaught()))  # type: ignore[misc]


def _after_fork() -> None:
    """A child reports nothing of its parent's jobs; what it does is counted for them."""
    for job in running:
        job.in_child()


at_close(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
