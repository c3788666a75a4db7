"""The engine that goes on when its program has ended (``deliver="detached"``).

How: `hand_over` runs this module by the same Python, gives it configuration and relays through a pipe (what
stands in arguments can be read by every user of the machine), and returns once the new process has left the
program's session.
Promises: one such process for the same store and relays at a time, which a later program prolongs; it ends
when nothing waits that it could try within its time, and `LIFE` seconds after the last program at the latest;
SIGTERM ends it in order; whatever is left is in the store. Fails: `hand_over` says why as a clause.
Does not: start without ``os.fork``, run as another user, or say anything: the store has the story.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

from outmail.clock import Clock
from outmail.config import Config
from outmail.outbox.queue import Queue, opened
from outmail.policy.route import Routes
from outmail.policy.veil import known
from outmail.system.lockfile import try_lock
from outmail.wiring import build_engine

#: Seconds that it works after the last program handed over.
LIFE = 600.0
#: Seconds between two looks whether anything is left.
LOOK = 0.2
#: Seconds that a program waits for its successor to stand on its own feet.
PATIENCE = 20.0


def hand_over(store: str, spool: str, config: Config, routes: Routes, life: float = LIFE) -> str:
    """Leave what waits in ``store`` to a process of its own; "" when that runs, else why it does not."""
    if not hasattr(os, "fork"):
        return "this system has no fork"
    if not sys.executable or getattr(sys, "frozen", False):
        return "the Python interpreter's name is not known"
    mark = _mark(spool, routes)
    try:
        os.makedirs(spool, mode=0o700, exist_ok=True)
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.utime(mark)
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__],
            input=pickle.dumps((store, mark, config, routes, life)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.SubprocessError, RuntimeError) as problem:
        return f"no process could be started ({problem})"
    if done.returncode == 0:
        return ""
    said = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
    return f"the process ended with status {done.returncode}: {said}"


def _mark(spool: str, routes: Routes) -> str:
    """The file that is locked by whoever works, and touched by programs that end; one a set of relays."""
    relays = sorted((name, relay.url) for name, relay in routes.relays.items())
    return os.path.join(spool, f"detached.{hashlib.sha256(repr(relays).encode()).hexdigest()[:12]}")


# -- the new process -----------------------------------------------------------------------------------------


def main() -> None:
    """Read what is to be done, leave the program's session, and do it."""
    store, mark, config, routes, life = pickle.load(sys.stdin.buffer)
    if os.fork():
        os._exit(0)
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(nowhere, fd)
    for relay in routes.relays.values():
        known.add_login(relay.user, relay.password, lasting=True)
    work(store, mark, config, routes, life)


def work(store: str, mark: str, config: Config, routes: Routes, life: float = LIFE) -> None:
    """Deliver until nothing waits, unless somebody does it already."""
    with closing(Queue(opened(store), routes)) as queue:
        ends = partial(_ends, mark, life)
        told: list[int] = []
        while not told and _waiting(queue, ends()):
            fd = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if not try_lock(fd):
                    return  # whoever has the lock looks once more after letting go of it
                asyncio.run(_deliver(queue, config, ends, told.append))
            finally:
                os.close(fd)


def _ends(mark: str, life: float) -> float:
    """When (seconds since 1970) the work is over."""
    try:
        return os.stat(mark).st_mtime + life
    except OSError:
        return 0.0


def _waiting(queue: Queue, until: float) -> bool:
    """Something is due before that moment, and we know its relay."""
    if time.time() >= until:
        return False
    due = queue.next_due()
    return any(moment <= until * 1000 and queue.routes.resolve(route) for route, moment in due.items())


async def _deliver(
    queue: Queue, config: Config, ends: Callable[[], float], told: Callable[[int], object]
) -> None:
    """``told`` hears of a signal."""
    engine: Any = build_engine(queue.store, config, queue.routes, Clock())

    def stop(number: int) -> None:
        told(number)
        engine.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    running = asyncio.ensure_future(engine.run())
    while not running.done() and (_waiting(queue, ends()) or not engine.quiet()) and time.time() < ends():
        await asyncio.wait([running], timeout=LOOK)
    engine.stop()
    await running


if __name__ == "__main__":
    main()
