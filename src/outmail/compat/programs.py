"""What the commands share that stand in the place of another program's: how options are refused, and which
trouble ends with which status.
"""

from __future__ import annotations

import argparse
import errno
from collections.abc import Callable
from typing import Any

from outmail.cli.exits import EX_NOPERM, EX_TEMPFAIL, EX_USAGE, told
from outmail.errors import Error
from outmail.policy.plain import plain_line
from outmail.system import circle, streams

#: The last lines of ``--help`` of a command that drains a queue directory.
STATUSES = (
    "Exit status: 0 nothing waits any more; 64 usage; 66 no such directory; 69 a recipient "
    "failed; 70 something was set aside; 75 mail still waits; 77 not allowed; 78 configuration."
)


class Usage(Exception):
    """The words cannot be meant."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong with status 64."""

    def error(self, message: str) -> Any:
        self.exit(EX_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def teller(program: str) -> Callable[[str], None]:
    """Prints one line on stderr, which begins with the program's name."""

    def tell(text: str) -> None:
        streams.say(plain_line(f"{program}: {text}"))

    return tell


def ended(program: str, work: Callable[[], int]) -> int:
    """The exit status of ``work``. An error becomes a line on stderr."""
    streams.complete()
    tell = teller(program)
    if circle.is_closed():
        return EX_TEMPFAIL
    try:
        return work()
    except Usage as problem:
        tell(str(problem))
        return EX_USAGE
    except Error as problem:
        return told(program, problem)
    except OSError as problem:
        where = f"{problem.filename}: " if problem.filename else ""
        tell(f"{where}{problem.strerror or problem}: what waits there stays there")
        return EX_NOPERM if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else EX_TEMPFAIL
    except KeyboardInterrupt:
        return 130
