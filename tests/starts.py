"""`python -m outmail …` as a process of its own, at a tenth of what a start of Python costs: it is forked
from a starter, a process that has loaded the package. There is a second starter, which has loaded Django too.

Each call has its own process, folder, environment, umask, streams and exit status, and can be killed. What
differs from a start of Python: modules are loaded already, and the parent is the starter. That each command
loads what it needs is shown by the tests that start Python: the walks, the examples and `test_imports`.
Fails: as `subprocess.run`. Python itself is started where the environment changes what it or the package does
when it is loaded, where coverage is measured, and where the system has no process descriptors.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import warnings
import weakref
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

#: What Python and the package read when they are loaded.
_AT_START = ("PYTHON", "LANG", "LC_", "LD_", "COVERAGE_", "OUTMAIL_FAIL")
DJANGO = (
    "django.contrib.messages.middleware", "django.contrib.sessions.middleware", "django.core.mail",
    "django.core.management", "django.db", "django.template.defaultfilters", "django.template.defaulttags",
    "django.template.loader_tags", "django.test",
)  # fmt: skip
Loaded = Literal["outmail", "django"]
#: Bytes of what the starter tells: a process id, and later an exit status.
_WORD = 16
#: Bytes of stdin that a pipe takes before anybody reads.
_PIPE = 60_000
_POSSIBLE = (
    sys.platform == "linux" and hasattr(os, "pidfd_open") and "COVERAGE_PROCESS_CONFIG" not in os.environ
)


def outmail(
    words: tuple[str, ...], *, stdin: bytes, cwd: Path, env: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[bytes]:
    """Run `python -m outmail` with these words and read what it prints."""
    return run(("-m", "outmail", *words), stdin=stdin, cwd=cwd, env=env, timeout=timeout)


def run(
    words: tuple[str, ...],
    *,
    cwd: Path,
    env: dict[str, str],
    timeout: float,
    stdin: bytes = b"",
    loaded: Loaded = "outmail",
) -> subprocess.CompletedProcess[bytes]:
    """Run Python with these words, `-m MODULE …`, `-c CODE …` or `FILE …`, and read what it prints."""
    command = [sys.executable, *words]
    if len(stdin) <= _PIPE and _can_fork(env, loaded):
        with contextlib.suppress(_TooLong):
            return _forked(command, stdin, cwd, env, timeout, loaded)
    return subprocess.run(
        command, input=stdin, capture_output=True, cwd=cwd, timeout=timeout, env=env, check=False
    )


def service(
    words: tuple[str, ...], *, stderr: IO[bytes], cwd: Path, env: dict[str, str]
) -> Forked | subprocess.Popen[bytes]:
    """Start `python -m outmail` with these words; it goes on until it is told to end."""
    command = [sys.executable, "-m", "outmail", *words]
    if _can_fork(env):
        with contextlib.suppress(_TooLong), open(os.devnull, "r+b") as nothing:
            return Forked(command, (nothing.fileno(), nothing.fileno(), stderr.fileno()), cwd, env)
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, cwd=cwd, env=env
    )


class Forked:
    """A process that the starter has forked, with what tests use of `subprocess.Popen`."""

    def __init__(
        self,
        command: list[str],
        streams: tuple[int, int, int],
        cwd: Path,
        env: dict[str, str],
        loaded: Loaded = "outmail",
    ) -> None:
        self.args = command
        self.returncode: int | None = None
        request = {"command": command, "cwd": str(cwd), "env": env, "umask": _umask()}
        self._told, tells = os.pipe()
        self._ended = weakref.finalize(self, os.close, self._told)
        try:
            socket.send_fds(_starter(loaded).socket, [json.dumps(request).encode()], [*streams, tells])
        except OSError as problem:
            raise _TooLong from problem
        finally:
            os.close(tells)
        self.pid = int(os.read(self._told, _WORD))

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float) -> int:
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(os.read(self._told, _WORD))
            self._ended()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _can_fork(env: dict[str, str], loaded: Loaded = "outmail") -> bool:
    if not _POSSIBLE or _limits() != (starter := _starter(loaded)).limits:
        return False
    return {k: v for k, v in env.items() if k.startswith(_AT_START)} == starter.environment


class _TooLong(Exception):
    """The words or the environment do not fit into one message to the starter."""


def _limits() -> list[tuple[int, int]]:
    kinds = (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_AS, resource.RLIMIT_CORE)
    return [resource.getrlimit(kind) for kind in kinds]


def _umask() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("\nUmask:")[2].split(None, 1)[0], 8)


class _Starter:
    """The process that is forked. It ends when its socket is closed, so with the process that uses it."""

    def __init__(self, loaded: Loaded) -> None:
        self.limits = _limits()
        self.environment = {k: v for k, v in os.environ.items() if k.startswith(_AT_START)}
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = (
            f"import sys; sys.path[0] = {str(Path(__file__).parents[1])!r}\n"
            f"from tests import starts; starts.serve({theirs.fileno()}, {loaded!r})"
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
def _starter(loaded: Loaded) -> _Starter:
    starter = _Starter(loaded)
    atexit.register(starter.stop)
    return starter


def _forked(
    command: list[str], stdin: bytes, cwd: Path, env: dict[str, str], timeout: float, loaded: Loaded
) -> subprocess.CompletedProcess[bytes]:
    with contextlib.ExitStack() as open_files:
        (given, give), (out, outs), (err, errs) = (
            (open_files.enter_context(open(r, "rb", 0)), open_files.enter_context(open(w, "wb", 0)))
            for r, w in (os.pipe() for _ in range(3))
        )
        give.write(stdin)
        give.close()
        process = Forked(command, (given.fileno(), outs.fileno(), errs.fileno()), cwd, env, loaded)
        for file in (given, outs, errs):
            file.close()
        deadline = time.monotonic() + timeout
        try:
            read = _until_closed((out, err), deadline)
            return subprocess.CompletedProcess(
                command, process.wait(max(0, deadline - time.monotonic())), *read
            )
        except TimeoutError:
            process.kill()
            process.wait(30)
            raise subprocess.TimeoutExpired(command, timeout) from None


def _until_closed(files: tuple[IO[bytes], IO[bytes]], deadline: float) -> list[bytes]:
    """What comes from each until its end; TimeoutError at the deadline."""
    read = dict.fromkeys(files, b"")
    left = set(files)
    while left:
        ready = select.select(left, [], [], max(0.0, deadline - time.monotonic()))[0]
        if not ready:
            raise TimeoutError
        for file in ready:
            piece = file.read(65536)
            read[file] += piece
            if not piece:
                left.discard(file)
    return list(read.values())


# -- in the starter ------------------------------------------------------------------------------------------


def serve(descriptor: int, loaded: Loaded) -> None:
    """Start commands until the socket is closed. Returns in the process of a command, after the command."""
    _load(loaded)
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
            os.write(fds[3], b"%*d" % (_WORD, pid))
            running[os.pidfd_open(pid)] = pid, fds[3]
            for fd in fds[:3]:
                os.close(fd)


def _tell(watched: int, pid: int, to: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # who asked has given up
        os.write(to, b"%*d" % (_WORD, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
    os.close(to)
    os.close(watched)


def _load(loaded: Loaded) -> None:
    """The modules of the command and of what it uses; of Django, those that need no settings."""
    import outmail.cli

    for module in pkgutil.walk_packages(outmail.__path__, "outmail."):
        if ".contrib" in module.name or ".testing" in module.name or module.name.endswith("__main__"):
            continue
        with contextlib.suppress(ImportError):
            importlib.import_module(module.name)
    for name in ("apsw", "asyncio", "psycopg", "ssl", *(DJANGO if loaded == "django" else ())):
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
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    words = request["command"][1:]
    if words[0].startswith("-W"):
        warnings.filterwarnings(*_filter(words.pop(0)))
    try:
        _run_main(words, request["cwd"])
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        _end(end.code)
    _end(0)


def _filter(word: str) -> tuple[Any, ...]:
    """`-Werror::DeprecationWarning` as arguments of `warnings.filterwarnings`."""
    action, _, category = word.removeprefix("-W").split(":")
    return action, "", getattr(builtins, category)


def _run_main(words: list[str], cwd: str) -> None:
    if words[0] == "-m":
        sys.argv[:], sys.path[0] = words[1:], cwd
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv[:], sys.path[0] = ["-c", *words[2:]], ""
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv[:], sys.path[0] = words, cwd
        runpy.run_path(words[0], run_name="__main__")


def _end(status: int) -> None:
    """As Python ends, but without taking apart each module, which takes longer than most commands."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)
