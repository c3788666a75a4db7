"""A live bar on a terminal: tqdm's where tqdm is installed, else one plain line. Does not: mail."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from outmail.policy.progress import remaining_in_words

if TYPE_CHECKING:
    from outmail.reports.jobs import Job


class Bar:
    """Redrawn once a second by the job's tick."""

    def __init__(self, job: Job, tqdm: Any) -> None:
        self._job = job
        self._tqdm = (
            tqdm(total=job.total, desc=job.name, initial=job.initial, file=sys.stderr) if tqdm else None
        )

    @classmethod
    def wanted(cls, wish: bool | None, job: Job) -> Bar | None:
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
                f"\r\x1b[K{job.name}: {share}{job._position()}, {job.rate:,.1f}/s, remaining: "
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
