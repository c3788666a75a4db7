"""The watched command: fork, exec, two pipes (or terminals), and a loop that passes bytes and signals on.

Promises: bytes are passed on at once and unchanged. The last lines are kept, up to a limit. On a terminal the
command sees a terminal. A time-out ends the command and, without a terminal, everything that it started. Does
not: import anything of outmail.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import time
from typing import Any

_CHUNK = 65536
#: How many bytes of output are kept for the mail, and for an attachment.
KEEP = 256 * 1024
KEEP_ALL = 10 * 1024 * 1024


class Result:
    """The result of the command. ``output``: the end of both streams together, in the order in which they
    were seen.
    """

    def __init__(self) -> None:
        self.status = 0
        self.began_ms = int(time.time() * 1000)
        self.duration_ms = 0
        self.signal = 0
        self.timed_out = False
        self.failed = False
        #: True when everything about it is stored or was sent.
        self.told = False
        self.reason = ""
        self.output = b""
        self.cut = 0
        self.stderr_seen = False
        self.cpu = 0.0
        self.peak_kb = 0


def locked(spool: str, name: str, wait: bool) -> int | None:
    """The descriptor of the job's lock, or None when another run holds it and ``wait`` is False."""
    import fcntl
    import re

    os.makedirs(spool, mode=0o700, exist_ok=True)
    fd = os.open(
        os.path.join(spool, "lock." + re.sub(r"[^A-Za-z0-9_-]", "_", name)[:100]),
        os.O_RDWR | os.O_CREAT | os.O_CLOEXEC,
        0o600,
    )
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(fd)
        return None
    return fd


def run(command: list[str], options: Any) -> Result:
    """Run the command to its end."""
    result = Result()
    terminal = any(map(os.isatty, (0, 1, 2)))
    out, err = _channel(1), _channel(2)
    same = _same_file(1, 2)
    began = time.monotonic()
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        _exec(command, out[1], out[1] if same else err[1], own_group=not terminal)
    os.close(out[1])
    os.close(err[1])
    restore = _forward(pid, terminal)
    try:
        _pump(pid, {out[0]: 1, **({} if same else {err[0]: 2})}, result, options, began, terminal)
        _, state, used = os.wait4(pid, 0)
    finally:
        restore()
        for fd in (out[0], err[0]):
            os.close(fd)
    result.duration_ms = int((time.monotonic() - began) * 1000)
    result.cpu, result.peak_kb = used.ru_utime + used.ru_stime, used.ru_maxrss
    _judge(result, state, options)
    if options.quiet and result.failed and not terminal:
        _write(1, result.output)
    return result


def _judge(result: Result, state: int, options: Any) -> None:
    if os.WIFSIGNALED(state):
        result.signal = os.WTERMSIG(state)
        result.status = 128 + result.signal
    else:
        result.status = os.WEXITSTATUS(state)
    if result.timed_out:
        result.status, result.reason = 124, "it took too long and was ended"
    elif result.signal:
        result.reason = f"it was ended by {_signal_name(result.signal)}"
    elif result.status not in options["ok-codes"]:
        result.reason = {126: "it cannot be executed", 127: "it was not found"}.get(
            result.status, f"exit status {result.status}"
        )
    elif options["on-stderr"] and result.stderr_seen:
        result.reason = "it wrote to stderr"
    elif options["grep-fail"] and _matches(options["grep-fail"], result.output):
        result.reason = f"its output matches {options['grep-fail']!r}"
    result.failed = bool(result.reason)


def _matches(pattern: str, output: bytes) -> bool:
    import re

    return re.search(pattern, output.decode("utf-8", "replace"), re.MULTILINE) is not None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# -- the child -----------------------------------------------------------------------------------------------


def _exec(command: list[str], out: int, err: int, own_group: bool) -> None:
    """In the child; never returns."""
    try:
        if own_group:
            os.setpgid(0, 0)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.execvp(command[0], command)
    except OSError as problem:
        status = 127 if problem.errno in (errno.ENOENT, errno.ENOTDIR) else 126
        os.write(2, f"outmail watch: {command[0]}: {problem.strerror}\n".encode())
        os._exit(status)
    except BaseException:
        os._exit(126)


def _channel(fd: int) -> tuple[int, int]:
    """(read end, write end): a pseudo-terminal of the same size where ``fd`` is a terminal, else a pipe."""
    if not os.isatty(fd):
        return os.pipe()
    import termios

    master, slave = os.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[1] &= ~termios.OPOST  # the real terminal does this once
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    try:
        termios.tcsetwinsize(slave, termios.tcgetwinsize(fd))
    except (OSError, termios.error):
        pass
    return master, slave


def _same_file(a: int, b: int) -> bool:
    try:
        first, second = os.fstat(a), os.fstat(b)
    except OSError:
        return False
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino) and not os.isatty(a)


# -- passing on ----------------------------------------------------------------------------------------------


def _forward(pid: int, terminal: bool) -> Any:
    """Pass signals that reach us on to the command. On a terminal Ctrl-C reaches both by itself."""
    names = ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGQUIT"]
    before = {}

    def handler(number: int, frame: Any) -> None:
        if not (terminal and number in (signal.SIGINT, signal.SIGQUIT)):
            _kill(pid, number, group=not terminal)

    for name in names:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, handler)

    def restore() -> None:
        for number, old in before.items():
            signal.signal(number, old)

    return restore


def _kill(pid: int, number: int, group: bool) -> None:
    try:
        if group:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def _pump(
    pid: int, streams: dict[int, int], result: Result, options: Any, began: float, terminal: bool
) -> None:
    """Pass output on until the command has ended and everything that it wrote was passed on. Grandchildren
    that keep the pipe open do not hold us up.
    """
    limit = options.timeout / 1000 if options.timeout else None
    kill_at = None
    kept: list[bytes] = []
    held = 0
    most = KEEP_ALL if options.attach else KEEP
    poll = select.poll()
    for fd in streams:
        poll.register(fd, select.POLLIN | select.POLLHUP)
    ended_at = None
    while streams:
        now = time.monotonic()
        if limit is not None and not result.timed_out and now - began >= limit and ended_at is None:
            result.timed_out, kill_at = True, now + options["kill-after"] / 1000
            _kill(pid, signal.SIGTERM, group=not terminal)
        if kill_at is not None and now >= kill_at:
            _kill(pid, signal.SIGKILL, group=not terminal)
            kill_at = None
        if ended_at is None and _has_ended(pid):
            ended_at = now
        events = poll.poll(_patience(now, began, limit, kill_at, result.timed_out, ended_at))
        if not events and ended_at is not None:
            break  # silent for a moment after its end: some other process holds the pipe
        for fd, _ in events:
            data = _take(fd)
            if not data:
                poll.unregister(fd)
                del streams[fd]
                continue
            target = streams[fd]
            result.stderr_seen = result.stderr_seen or target == 2
            if not options.quiet or terminal:
                _write(target, data)
            kept.append(data)
            held += len(data)
            while held - len(kept[0]) >= most:
                result.cut += len(kept[0])
                held -= len(kept.pop(0))
    result.output = b"".join(kept)
    # the streams are closed, but the command has not ended
    while kill_at is not None or (limit is not None and not result.timed_out):
        if _has_ended(pid):
            break
        now = time.monotonic()
        if limit is not None and not result.timed_out and now - began >= limit:
            result.timed_out, kill_at = True, now + options["kill-after"] / 1000
            _kill(pid, signal.SIGTERM, group=not terminal)
        if kill_at is not None and now >= kill_at:
            _kill(pid, signal.SIGKILL, group=not terminal)
            break
        time.sleep(0.02)


def _patience(
    now: float,
    began: float,
    limit: float | None,
    kill_at: float | None,
    timed_out: bool,
    ended_at: float | None,
) -> float:
    """How many milliseconds to wait for output."""
    wait = 0.2 if ended_at is not None else 0.5
    if limit is not None and not timed_out:
        wait = min(wait, began + limit - now)
    if kill_at is not None:
        wait = min(wait, kill_at - now)
    return max(1.0, wait * 1000)


def _has_ended(pid: int) -> bool:
    """True when the command has ended: it is a zombie until somebody waits for it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _take(fd: int) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except OSError as problem:
        if problem.errno == errno.EIO:  # a pseudo-terminal reports like this that its other end is closed
            return b""
        raise


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [], 1.0)
        except OSError:
            return  # nobody reads any more; the command goes on and so do we
