"""Processes that work on another process's job: each counts in a file of its own beside the store, and the
job adds the counts up.

``<spool>/count.<run>.<pid>-<random>`` contains one number as text, rewritten by each `Tally.add`.
Promises: one ``write`` for each update. What was counted survives the worker's death (but not a power cut).
Fails: OSError from `Tally`. Does not: keep anything but a number, or know which processes still work.
"""

from __future__ import annotations

import os
from glob import escape, glob

_WIDTH = 32


class Tally:
    """What this process has done for a run."""

    def __init__(self, folder: str, run: str) -> None:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        path = os.path.join(folder, f"count.{run}.{os.getpid()}-{os.urandom(4).hex()}")
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._done: float = 0
        self.pid = os.getpid()

    def add(self, n: float) -> None:
        self._done += n
        os.pwrite(self._fd, repr(self._done).encode().ljust(_WIDTH), 0)

    def close(self) -> None:
        os.close(self._fd)


def _files(folder: str, run: str) -> list[str]:
    return glob(os.path.join(escape(folder), f"count.{escape(run)}.*"))


def total(folder: str, run: str) -> float:
    """What all of them have done; an int if it is whole."""
    count = 0.0
    for path in _files(folder, run):
        try:
            with open(path, encoding="ascii") as file:
                count += float(file.read() or 0)
        except (OSError, ValueError):
            continue  # it was made at this moment, or is not ours
    return int(count) if count.is_integer() else count


def forget(folder: str, run: str) -> None:
    """The run has ended: remove its files."""
    for path in _files(folder, run):
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue


def sweep(folder: str, before: float) -> None:
    """Remove files of runs that have ended, last written before ``before`` (seconds since 1970): a worker
    went on after its job had ended.
    """
    for path in glob(os.path.join(escape(folder), "count.*")):
        run = os.path.basename(path).split(".")[1]
        try:
            if not os.path.exists(os.path.join(folder, f"run.{run}")) and os.stat(path).st_mtime < before:
                os.unlink(path)
        except FileNotFoundError:
            continue
