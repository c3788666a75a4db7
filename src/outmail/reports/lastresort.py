"""The last report of a job or a watched command, when the store refuses it: it goes straight to the relay,
else to the machine's sendmail program; else its headline goes to syslog, else to stderr.

Promises: for each recipient exactly one of these ways is used, and one line on stderr says which. syslog and
stderr get only the headline, with secrets masked. All of this ends within the given time. A sendmail program
that is outmail itself is not used; one that calls outmail all the same is refused by it (`MARK`).
Fails: never; the last way always exists. Does not: store, try again, or decide whether something is worth it.
Not certain: a relay or program that does not answer in time may have accepted the mail. Then it arrives
twice, with one Message-ID.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from outmail.system import circle

if TYPE_CHECKING:
    from outmail.reports.door import Unstored

#: The places of the machine's sendmail program; $PATH is never searched.
PROGRAMS = ("/usr/sbin/sendmail", "/usr/lib/sendmail", "/usr/bin/sendmail")
SYSLOG = ("/dev/log", "/var/run/syslog")
#: Facility mail, severity error (RFC 5424 §6.2.1).
_PRIORITY = 2 * 8 + 3
#: How many bytes of a program are looked at.
_LOOK = 8192


class Claim:
    """Decides who reports the end of a run: the thread that asks first, and nobody else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None

    def take(self) -> bool:
        """True for the first thread that asks."""
        with self._lock:
            if self._owner is None:
                self._owner = threading.get_ident()
            return self._owner == threading.get_ident()


class TooLate(Exception):
    """Somebody else has reported it."""


def tell(door: Unstored, words: dict[str, Any], headline: str, why: str, seconds: float) -> None:
    """Send a mail that was not stored because of ``why``, by the first way that accepts it."""
    from outmail.reports.post import tell as say
    from outmail.reports.records import in_words

    deadline = time.monotonic() + seconds
    name = words["headers"]["X-Outmail-Job"]
    try:
        message = door.compose(words)
    except Exception as problem:
        say(f"{_begin(name, why)}; {_headline(headline, f'no mail can be made of it ({in_words(problem)})')}")
        return
    people = [recipient.address for recipient in message.recipients if not recipient.suppressed]
    if not people:
        say(f"{_begin(name, why)}, and [safety] lets nobody have it")
        return
    left = door.hand_over(message, 0.7 * seconds)
    if not left:
        say(f"{_begin(name, why)}; it went straight to the relay")
        return
    relay = f"the relay did not take it ({'; '.join(dict.fromkeys(left.values()))[:300]})"
    trouble = by_sendmail(message.content, message.sender, list(left), max(1.0, deadline - time.monotonic()))
    if not trouble:
        say(f"{_begin(name, why)}; {relay}, so it was given to the sendmail program")
        return
    say(f"{_begin(name, why)}; {_headline(headline, f'{relay}, {trouble}')}")


def headline_only(headline: str, name: str, why: str, how: str) -> None:
    """For when no mail may be sent at all."""
    from outmail.reports.post import tell as say

    say(f"{_begin(name, why)}; {_headline(headline, how)}")


def _begin(name: str, why: str) -> str:
    return f"the report of {name} was not stored: {why}"


def _headline(headline: str, tried: str) -> str:
    """Where the headline goes when everything else was tried."""
    from outmail.reports.mail import one_line

    line = one_line(headline, 400)
    if to_syslog(line):
        return f"{tried}; its headline went to syslog"
    return f"{tried}, and there is no syslog; so it is told only here: {line}"


# -- the sendmail program ------------------------------------------------------------------------------------


def by_sendmail(content: bytes, sender: str, recipients: Sequence[str], seconds: float) -> str:
    """Give the mail to the machine's sendmail program. Returns "" when that accepted it, else the reason."""
    program = next((path for path in PROGRAMS if os.access(path, os.X_OK)), "")
    if not program:
        return "there is no sendmail program"
    if is_ours(program):
        return f"{program} is outmail itself"
    try:
        return _run([program, "-i", "-f", sender or "<>", "--", *recipients], content, seconds)
    except OSError as problem:
        return f"{program} cannot be started: {problem.strerror or problem}"


def is_ours(program: str) -> bool:
    """True for a sendmail program that is outmail under that name."""
    try:
        with open(program, "rb") as file:
            return b"outmail" in os.path.realpath(program).encode() or b"outmail" in file.read(_LOOK)
    except OSError:
        return True  # a program that cannot be read is not trusted


def _run(arguments: list[str], content: bytes, seconds: float) -> str:
    """By posix_spawn, because CPython 3.12 and later refuse to fork at a program's end."""
    read, write = os.pipe()
    try:
        actions: list[Any] = [
            (os.POSIX_SPAWN_DUP2, read, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ]
        environment = {**os.environ, circle.MARK: "1"}
        pid = os.posix_spawn(
            arguments[0], arguments, environment, file_actions=actions, setsigdef=[signal.SIGPIPE]
        )
    except BaseException:
        os.close(write)
        raise
    finally:
        os.close(read)
    deadline = time.monotonic() + seconds
    whole = _write(write, content.replace(b"\r\n", b"\n"), deadline)
    if not whole:  # it must not take half of the mail for all of it
        os.kill(pid, signal.SIGKILL)
    os.close(write)
    status = _ended(pid, deadline)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return f"{arguments[0]} did not end in time"
    return "" if status == 0 else f"{arguments[0]} ended with status {status}"


def _write(fd: int, content: bytes, deadline: float) -> bool:
    """Write everything, within the time that is left."""
    import select

    os.set_blocking(fd, False)
    view = memoryview(content)
    while view and time.monotonic() < deadline:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [], max(0.0, min(0.1, deadline - time.monotonic())))
        except BrokenPipeError:
            return False
    return not view


def _ended(pid: int, deadline: float) -> int | None:
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.01)


# -- syslog --------------------------------------------------------------------------------------------------


def to_syslog(line: str) -> bool:
    """One line to the system's log. False when nobody listens there."""
    import socket

    text = f"<{_PRIORITY}>outmail[{os.getpid()}]: {line}".encode("utf-8", "backslashreplace")
    for path in SYSLOG:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            try:
                sock.settimeout(1.0)
                sock.connect(path)
                sock.send(text)
            except OSError:
                continue
            return True
    return False
