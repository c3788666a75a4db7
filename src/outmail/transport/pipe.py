"""Delivery to the standard input of a program, as with sendmail.

Promises: the program never gets less than the whole message, because its stdin is a file that contains all of
it; killing us changes nothing for it. The dot is recorded before the program is started. The program inherits
stdin, stdout (/dev/null), stderr and our environment, but no other descriptors and no blocked or ignored
signals. It has a process group of its own, so keys typed at our terminal (Ctrl-C) do not reach it. The
beginning of its stderr is kept, the rest is read and dropped. When it has ended, nobody waits for other
processes that still have its stderr open. A program that does not end in time, or is running when the session
is cancelled, gets SIGTERM and after `GRACE` seconds SIGKILL; its outcome is unknown.
Fails: as outcomes, by the exit status (sysexits). Does not: run as another user.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator

from outmail.model import Delivery, Outcome, Reply
from outmail.policy.route import Relay
from outmail.system import circle
from outmail.system.writing import write_all
from outmail.transport import Awaited

_LATER = {69: "service unavailable", 70: "internal error", 71: "system error", 72: "system file missing",
          73: "cannot create output", 74: "input/output error", 75: "temporary failure",
          77: "permission denied",
          78: "configuration error"}  # fmt: skip
_NEVER = {
    64: "wrong usage",
    65: "data error",
    66: "no input",
    67: "no such user",
    68: "no such host",
    76: "protocol error",
}

#: Seconds between SIGTERM and SIGKILL.
GRACE = 2.0
#: How many bytes of stderr are kept.
WORDS = 4096
#: Seconds between two looks whether it has ended: at first, and at most.
_LOOK, _LONGEST_LOOK = 0.002, 0.1


#: How many descriptors are tried one by one where the system does not list the open ones; this takes 20 ms.
_MOST = 65536


class Unlisted(OSError):
    """It is unknown which descriptors a program would inherit, so none is started. The text is a sentence."""

    def __init__(self, sentence: str) -> None:
        super().__init__(errno.ENOSYS, sentence)


async def hand_over(relay: Relay, delivery: Delivery, feed: Awaited) -> None:
    """Give the message to one run of the program. Afterwards every recipient has its outcome."""
    arguments = [
        relay.path,
        "-i",
        "-f",
        delivery.sender or "<>",
        "--",
        *(r.address for r in delivery.recipients),
    ]
    with contextlib.ExitStack() as stack:
        try:
            content = stack.enter_context(_whole_file(delivery.content.replace(b"\r\n", b"\n")))
        except OSError as problem:
            delivery.all(
                _trouble(f"the message could not be put into a file for {relay.path}: {problem.strerror}")
            )
            return
        if not await on_record(delivery, feed):
            return
        try:
            program = stack.enter_context(Program(arguments, content))
        except Unlisted as problem:
            delivery.all(_trouble(str(problem.strerror)))
            return
        except OSError as problem:
            delivery.all(_trouble(f"{relay.path}: {problem.strerror}"))
            return
        try:
            async with asyncio.timeout(relay.dot_timeout):
                status = await program.ended()
        except TimeoutError:
            await program.end()
            delivery.all(_unknown(f"{relay.path} did not end in time"))
        except asyncio.CancelledError:
            await program.end()
            delivery.all(_unknown(f"{relay.path} was ended with outmail before it had answered"))
            raise
        else:
            delivery.all(by_status(status, program.words()))


async def on_record(delivery: Delivery, feed: Awaited) -> bool:
    """Record the dot. Without the record every recipient is deferred."""
    if await feed.dot(delivery, delivery.recipients):
        return True
    delivery.all(
        Outcome(
            "deferred",
            "destination",
            "dot",
            Reply(0, "the delivery could not be recorded before it was made, so it was not made"),
        )
    )
    return False


def _trouble(text: str) -> Outcome:
    return Outcome("deferred", "destination", "connect", Reply(0, text), fault=True)


def _unknown(text: str) -> Outcome:
    return Outcome("unknown", "message", "dot", Reply(0, text))


def by_status(status: int | None, words: str) -> Outcome:
    """An exit status as an outcome. Negative: killed by a signal. None: unknown."""
    if status is None:
        return _unknown(
            "the exit status of the sendmail program is unknown, because something in this process takes it "
            "away (is SIGCHLD ignored?)"
        )
    if status < 0:
        return _unknown(f"the sendmail program was killed by signal {-status}")
    if status == 0:
        return Outcome(
            "delivered", "message", "local", Reply(250, "accepted by the sendmail program", "2.0.0")
        )
    meaning = _NEVER.get(status) or _LATER.get(status) or "unknown status"
    text = " ".join((f"exit status {status} ({meaning})" + (f": {words}" if words else "")).split())[:500]
    if status in _NEVER:
        return Outcome("refused", "message", "local", Reply(550, text))
    return Outcome("deferred", "message", "local", Reply(450, text))


@contextlib.contextmanager
def _whole_file(content: bytes) -> Iterator[int]:
    """A file without a name that contains the content, ready to be read."""
    try:
        fd = os.memfd_create("outmail", os.MFD_CLOEXEC)
    except (AttributeError, OSError):  # not on this system, or not allowed
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        write_all(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


class Program:
    """A child process. Leaving the context kills it if it still runs."""

    def __init__(self, arguments: list[str], stdin: int) -> None:
        self.status: int | None = None
        self._running = False
        self._words = b""
        self._errors, theirs = os.pipe()
        try:
            os.set_blocking(self._errors, False)
            self.pid = _spawned(arguments, stdin, theirs)
        except BaseException:
            os.close(self._errors)
            raise
        finally:
            os.close(theirs)
        self._running = True

    def __enter__(self) -> Program:
        asyncio.get_running_loop().add_reader(self._errors, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._kill_and_reap()
        asyncio.get_running_loop().remove_reader(self._errors)
        os.close(self._errors)

    async def ended(self, within: float = math.inf) -> int | None:
        """Its exit status: negative for a signal, None when the system does not say, or when it has not ended
        within ``within`` seconds.
        """
        pause, deadline = _LOOK, asyncio.get_running_loop().time() + within
        while not self._reaped() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_LOOK)
        return self.status

    async def end(self) -> None:
        """SIGTERM, a short wait, SIGKILL. A second cancellation skips the wait.

        Not with `asyncio.timeout`: in a task that is being cancelled, Python 3.11.2 mistakes the time-out
        for another cancellation.
        """
        self._signal(signal.SIGTERM)
        try:
            await self.ended(GRACE)
        finally:
            self._kill_and_reap()

    def words(self) -> str:
        """The beginning of its stderr."""
        self._read()
        return self._words.decode("utf-8", "replace").strip()

    def _read(self) -> None:
        """Read one buffer without waiting: a program that never stops writing must not block the loop."""
        try:
            data = os.read(self._errors, 65536)
        except BlockingIOError:
            return
        self._words = (self._words + data)[:WORDS]
        if not data:  # all writers have closed it
            asyncio.get_running_loop().remove_reader(self._errors)

    def _reaped(self) -> bool:
        if self._running:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self._running = False
                return True
            if pid:
                self._running, self.status = False, os.waitstatus_to_exitcode(status)
        return not self._running

    def _signal(self, number: int) -> None:
        """Signal its whole process group. The number is still its own, because it has not been reaped."""
        if not self._reaped():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _kill_and_reap(self) -> None:
        self._signal(signal.SIGKILL)
        deadline = time.monotonic() + GRACE
        while not self._reaped() and time.monotonic() < deadline:
            time.sleep(0.001)  # it is being killed; this takes long only if it hangs in the kernel


def _spawned(arguments: list[str], stdin: int, stderr: int) -> int:
    """Start it with posix_spawn, the only way to set the child's signal mask without running Python between
    fork and exec.
    """
    import fcntl

    above = [
        fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (stdin, stderr)
    ]  # where our own 0, 1, 2 are closed, these may have their place
    try:
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
            (os.POSIX_SPAWN_DUP2, above[0], 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, above[1], 2),
        ]
        actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()]
        default = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
        return os.posix_spawn(
            arguments[0],
            arguments,
            {**os.environ, circle.MARK: "1"},
            file_actions=actions,
            setpgroup=0,
            setsigmask=(),
            setsigdef=default,
        )
    finally:
        for fd in above:
            os.close(fd)


def _inheritable() -> list[int]:
    """Descriptors above stderr that a child would inherit: those that the service manager handed over, and
    those of C libraries.
    """
    found = []
    for fd in _open_ones():
        with contextlib.suppress(OSError):  # closed meanwhile, or the descriptor of the listing itself
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
    return found


def _open_ones() -> Iterable[int]:
    """Numbers that include all open descriptors. Raises `Unlisted`."""
    import resource

    for listing in ("/dev/fd", "/proc/self/fd"):
        with contextlib.suppress(OSError):
            return [int(name) for name in os.listdir(listing)]
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if not 0 <= limit <= _MOST:
        raise Unlisted(
            "neither /dev/fd nor /proc/self/fd can be listed, and there are too many possible descriptors "
            f"to try them all: mount /proc, or set ulimit -n to {_MOST} or less"
        )
    return range(limit)
