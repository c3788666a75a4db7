"""Exit statuses of the commands (sysexits). 0 means done; `outmail.cli` explains the others."""

from __future__ import annotations

from outmail.errors import ConfigError, Error, NotFound, NotStored, Refused
from outmail.policy.plain import plain_line

#: A check found trouble.
EX_CRIT = 2
EX_USAGE = 64
EX_DATAERR = 65
EX_NOINPUT = 66
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_TEMPFAIL = 75
EX_NOPERM = 77
EX_CONFIG = 78


def status_of(problem: Error) -> int:
    """The exit status for an error of ours."""
    if isinstance(problem, ConfigError):
        return EX_CONFIG
    if isinstance(problem, NotFound):
        return EX_NOINPUT
    if isinstance(problem, NotStored):
        return EX_NOPERM if problem.forbidden else EX_TEMPFAIL
    return EX_DATAERR if isinstance(problem, Refused) else EX_SOFTWARE


def sentence(program: str, problem: Error) -> str:
    """What is told on stderr: one line."""
    return plain_line(f"{program}: {problem}" + (f" ({problem.hint})" if problem.hint else ""))
