"""`python -m outmail …` as a process of its own, at a tenth of what a start of Python costs: it is forked
from the starter, a process that has loaded the package.

Each call has its own process, folder, environment, umask, streams and exit status, and can be killed. What
differs from a start of Python: modules are loaded already, and the parent is the starter. That each command
loads what it needs is shown by the tests that start Python: the walks, the examples, the services and
`test_imports`.
Fails: as `subprocess.run`. Python itself is started where the environment changes what it or the package does
when it is loaded, where coverage is measured, and where the system has no process descriptors.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import resource
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

#: What Python and the package read when they are loaded.
_AT_START = ("PYTHON", "LANG", "LC_", "LD_", "COVERAGE_", "OUTMAIL_FAIL")
#: Bytes of stdin that a pipe takes before anybody reads.
_PIPE = 60_000
_POSSIBLE = (
    sys.platform == "linux" and hasattr(os, "pidfd_open") and "COVERAGE_PROCESS_CONFIG" not in os.environ
)


def outmail(
    words: tuple[str, ...], *, stdin: bytes, cwd: Path, env: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[bytes]:
    """Run `python -m outmail` with these words and read what it prints."""
    command = [sys.executable, "-m", "outmail", *words]
    if _POSSIBLE and len(stdin) <= _PIPE and _limits() == _starter().limits and _same_start(env):
        with contextlib.suppress(_TooLong):
            return _forked(command, stdin, cwd, env, timeout)
    return subprocess.run(
        command, input=stdin, capture_output=True, cwd=cwd, timeout=timeout, env=env, check=False
    )


class _TooLong(Exception):
    """The words or the environment do not fit into one message to the starter."""


def _same_start(env: dict[str, str]) -> bool:
    ours = _starter().environment
    return {k: v for k, v in env.items() if k.startswith(_AT_START)} == ours


def _limits() -> list[tuple[int, int]]:
    kinds = (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_AS, resource.RLIMIT_CORE)
    return [resource.getrlimit(kind) for kind in kinds]


def _umask() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("\nUmask:")[2].split(None, 1)[0], 8)


class _Starter:
    """The process that is forked. It ends when its socket is closed, so with the process that uses it."""

    def __init__(self) -> None:
        self.limits = _limits()
        self.environment = {k: v for k, v in os.environ.items() if k.startswith(_AT_START)}
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = str(Path(__file__).parents[1])
        code = (
            f"import sys; sys.path[0] = {root!r}; from tests import starts; starts.serve({theirs.fileno()})"
        )
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                cwd="/",
                stdin=subprocess.PIPE,  # nobody uses them, but Python treats pipes otherwise than files
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )

    def stop(self) -> None:
        self.socket.close()
        self.process.communicate(timeout=30)


@cache
def _starter() -> _Starter:
    starter = _Starter()
    atexit.register(starter.stop)
    return starter


def _forked(
    command: list[str], stdin: bytes, cwd: Path, env: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[bytes]:
    request = json.dumps({"command": command, "cwd": str(cwd), "env": env, "umask": _umask()}).encode()
    (given, give), (out, outs), (err, errs), (ended, ends) = pipes = [os.pipe() for _ in range(4)]
    left = {fd for pipe in pipes for fd in pipe}

    def close(*fds: int) -> None:
        for fd in fds:
            left.discard(fd)
            os.close(fd)

    try:
        os.write(give, stdin)
        close(give)
        try:
            socket.send_fds(_starter().socket, [request], [given, outs, errs, ends])
        except OSError as problem:
            raise _TooLong from problem
        close(given, outs, errs, ends)
        read = _until_closed((out, err, ended), command, timeout)
    finally:
        close(*left)
    _, _, status = read[ended].split()
    return subprocess.CompletedProcess(command, int(status), read[out], read[err])


def _until_closed(fds: tuple[int, int, int], command: list[str], timeout: float) -> dict[int, bytes]:
    """What comes from each until its end. The last tells the process, which is killed if it is late."""
    read, deadline = dict.fromkeys(fds, b""), time.monotonic() + timeout
    with selectors.DefaultSelector() as waiting:
        for fd in fds:
            waiting.register(fd, selectors.EVENT_READ)
        while waiting.get_map():
            ready = waiting.select(max(0.0, deadline - time.monotonic()))
            if not ready and time.monotonic() >= deadline:
                told = read[fds[2]].split()
                if len(told) == 1:
                    os.kill(int(told[0]), signal.SIGKILL)
                raise subprocess.TimeoutExpired(command, timeout, read[fds[0]], read[fds[1]])
            for key, _ in ready:
                piece = os.read(key.fd, 65536)
                read[key.fd] += piece
                if not piece:
                    waiting.unregister(key.fd)
    return read


# -- in the starter ------------------------------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """Start commands until the socket is closed. Returns in the process of a command, after the command."""
    _load()
    asked = socket.socket(fileno=descriptor)
    running: dict[int, tuple[int, int]] = {}
    while True:
        for ready in select.select([asked.fileno(), *running], [], [])[0]:
            if ready in running:
                _tell(ready, *running.pop(ready))
                continue
            request, fds, _, _ = socket.recv_fds(asked, 1 << 20, 4)
            if not request:
                return
            if (pid := os.fork()) == 0:
                for other in (asked.detach(), *running, *(to for _, to in running.values()), fds[3]):
                    os.close(other)
                _become(json.loads(request), fds[:3])
                return
            os.write(fds[3], f"{pid} ".encode())
            running[os.pidfd_open(pid)] = pid, fds[3]
            for fd in fds[:3]:
                os.close(fd)


def _tell(watched: int, pid: int, to: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # who asked has given up
        os.write(to, f"ended {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}".encode())
    os.close(to)
    os.close(watched)


def _load() -> None:
    """The modules of the command and of what it uses."""
    import outmail.cli

    for module in pkgutil.walk_packages(outmail.__path__, "outmail."):
        if ".contrib" in module.name or ".testing" in module.name or module.name.endswith("__main__"):
            continue
        with contextlib.suppress(ImportError):
            importlib.import_module(module.name)
    for name in ("apsw", "asyncio", "psycopg", "ssl"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _become(request: dict[str, Any], fds: list[int]) -> None:
    """This process is `python -m outmail` from here on."""
    for to, fd in enumerate(fds):
        os.dup2(fd, to)
        os.close(fd)
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    sys.orig_argv[:] = request["command"]
    sys.argv[:] = request["command"][2:]
    sys.path[0] = request["cwd"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    try:
        runpy.run_module("outmail", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        _end(end.code)


def _end(status: int) -> None:
    """As Python ends, but without taking apart each module, which takes longer than most commands."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)
