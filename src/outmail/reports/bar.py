"""A progress bar on a terminal or in a notebook: tqdm's if tqdm is installed (`tqdm.auto` chooses which),
else one plain line. It is redrawn once a second. Does not: mail.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from typing import Any, Protocol

from outmail.policy.progress import rate_in_words, remaining_in_words, took
from outmail.reports.job_mails import position


class Counted(Protocol):
    """What a bar shows of a job. ``rate``: items a second. ``eta``: seconds left (at least, at most).
    ``elapsed``: seconds since the start.
    """

    name: str
    total: int | None
    done: int
    initial: int

    @property
    def elapsed(self) -> float: ...

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
        """A bar if it was asked for, or if stderr is a terminal or a notebook."""
        if wish is False or (wish is None and not (_terminal() or _notebook())):
            return None
        try:
            with warnings.catch_warnings():  # that a notebook could have a nicer bar
                warnings.simplefilter("ignore")
                tqdm = import_module("tqdm.auto").tqdm
        except ImportError:
            tqdm = None
        return cls(job, tqdm)

    def show(self, *, over: bool = False) -> None:
        job = self._job
        if self._tqdm is not None:
            self._tqdm.update(job.done - self._tqdm.n)
            return
        parts = [position(job.done, job.total), rate_in_words(job.rate)]
        if over:
            parts.append(f"in {took(job.elapsed)}")
        elif job.total and job.done < job.total:
            parts.append(f"remaining: {remaining_in_words(job.eta)}")
        said = ", ".join(filter(None, parts))
        print(f"\r\x1b[K{job.name}: {said}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        self.show(over=True)
        if self._tqdm is not None:
            self._tqdm.close()
        else:
            print(file=sys.stderr)


def _terminal() -> bool:
    return bool(sys.stderr and sys.stderr.isatty())


def _notebook() -> bool:
    """True in the kernel of a notebook, where `tqdm.auto` draws a bar, too."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())
