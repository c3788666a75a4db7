"""A live bar on a terminal: tqdm's where tqdm is installed, else one plain line. Does not: mail."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, Protocol

from outmail.policy.progress import remaining_in_words
from outmail.reports.job_mails import position


class Counted(Protocol):
    """What a bar shows of a job. ``rate`` in items a second; ``eta``: seconds left, at least and at most."""

    name: str
    total: int | None
    done: int
    initial: int

    @property
    def rate(self) -> float: ...

    @property
    def eta(self) -> tuple[float, float] | None: ...


class Bar:
    """Redrawn once a second by the job's tick."""

    def __init__(self, job: Counted, tqdm: Any) -> None:
        self._job = job
        self._tqdm = (
            tqdm(total=job.total, desc=job.name, initial=job.initial, file=sys.stderr) if tqdm else None
        )

    @classmethod
    def wanted(cls, wish: bool | None, job: Counted) -> Bar | None:
        """A bar when asked for, or where stderr is a terminal."""
        if wish is False or (wish is None and not (sys.stderr and sys.stderr.isatty())):
            return None
        try:
            tqdm = import_module("tqdm").tqdm
        except ImportError:
            tqdm = None
        return cls(job, tqdm)

    def show(self) -> None:
        job = self._job
        if self._tqdm is not None:
            self._tqdm.update(job.done - self._tqdm.n)
        else:
            share = f"{job.done / job.total:4.0%} " if job.total else ""
            print(
                f"\r\x1b[K{job.name}: {share}{position(job.done, job.total)}, {job.rate:,.1f}/s, remaining: "
                f"{remaining_in_words(job.eta)}",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        self.show()
        if self._tqdm is not None:
            self._tqdm.close()
        else:
            print(file=sys.stderr)
