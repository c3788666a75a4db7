"""Exit statuses of the commands: which error of ours ends with which. `outmail.cli` explains them."""

from __future__ import annotations

from outmail.errors import ConfigError, Error, NotFound, NotStored, Refused
from outmail.policy.plain import plain_line
from outmail.system import streams
from outmail.system.exits import (
    EX_CONFIG,
    EX_CRIT,
    EX_DATAERR,
    EX_NOINPUT,
    EX_NOPERM,
    EX_SOFTWARE,
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    EX_USAGE,
)

__all__ = (
    "EX_CONFIG",
    "EX_CRIT",
    "EX_DATAERR",
    "EX_NOINPUT",
    "EX_NOPERM",
    "EX_SOFTWARE",
    "EX_TEMPFAIL",
    "EX_UNAVAILABLE",
    "EX_USAGE",
    "status_of",
    "told",
)


def status_of(problem: Error) -> int:
    """The exit status for an error of ours."""
    if isinstance(problem, ConfigError):
        return EX_CONFIG
    if isinstance(problem, NotFound):
        return EX_NOINPUT
    if isinstance(problem, NotStored):
        return EX_NOPERM if problem.forbidden else EX_TEMPFAIL
    return EX_DATAERR if isinstance(problem, Refused) else EX_SOFTWARE


def told(program: str, problem: Error) -> int:
    """The exit status, with one line on stderr."""
    streams.say(plain_line(f"{program}: {problem}" + (f" ({problem.hint})" if problem.hint else "")))
    return status_of(problem)
