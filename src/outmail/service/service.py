"""The service: one event loop with the engine, the listeners, and the watch over jobs. Also its form for
cron, which runs once.

Promises: on SIGHUP it reads its configuration and certificates again (`serving`) and looks at the queue at
once; that signal may come at any moment. SIGTERM and SIGINT stop it in
order: no new mail comes in, messages that are being stored are answered, running dialogues end, and the rest
goes back into the queue. Sockets handed over by systemd are used under their names (smtp, lmtp, submission).
systemd is told when the service is ready, alive, reloading and stopping.
Fails: `ConfigError` before anything starts. Does not: fork, write a pid file, or change its user.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from outmail.config import Config
from outmail.engine.engine import Engine
from outmail.intake.drop import DropFolder
from outmail.outbox.outbox import Outbox
from outmail.reports import failures, post, watch, watchdog
from outmail.returns import canary
from outmail.service.prepared import KINDS, drop_folder, for_receiving, for_serving
from outmail.service.serving import Serving
from outmail.wiring import here

#: Seconds between two looks for dead runs and late jobs.
LOOK_EVERY = 20.0


async def once(box: Outbox, engine: Engine) -> None:
    """Send what is due now, then end."""
    box.door.wake = engine.wake
    takeover = box.take_over("apsw", engine)
    folder = drop_folder(box.config)
    drop = DropFolder(folder, box.door, lambda: here(box.config)) if folder else None

    def stop() -> None:
        if takeover is not None:
            takeover.finish()
        if drop is not None:
            drop.finish()
        engine.stop()

    def first() -> None:
        if drop is not None:
            drop.all()
        if takeover is not None:
            takeover.all()
            takeover.stop()

    _on_signals(engine, stop)
    post.guarded(lambda: _look(box), "jobs could not be looked after")
    await engine.run(once=True, first=first)


async def serve(
    box: Outbox,
    engine: Engine,
    reread: Callable[[], Config],
    hung_up: Callable[[], bool] = lambda: False,
    started: Callable[[list[str]], None] | None = None,
) -> None:
    """Run until a signal. ``started`` is told where the service listens. ``reread`` reads the configuration
    again; ``hung_up`` says that SIGHUP came before this was called.
    """
    serving = Serving(box, engine, partial(for_serving, box, handed_over(os.environ)), reread)
    looking = asyncio.ensure_future(_keep_looking(box))
    serving.start()
    try:
        await _until_signal(serving, engine, started, hung_up)
    finally:
        looking.cancel()
        serving.stop()


def handed_over(env: Any) -> dict[str, list[socket.socket]]:
    """Sockets from the service manager (sd_listen_fds): LISTEN_FDS descriptors from 3 on, named by
    LISTEN_FDNAMES.
    """
    if env.get("LISTEN_PID") != str(os.getpid()) or not env.get("LISTEN_FDS", "").isdecimal():
        return {}
    count = int(env["LISTEN_FDS"])
    names = (env.get("LISTEN_FDNAMES") or "").split(":")
    found: dict[str, list[socket.socket]] = {}
    for i in range(count):
        kind = names[i] if i < len(names) and names[i] in KINDS else "smtp"
        made = socket.socket(fileno=3 + i)
        made.setblocking(False)
        found.setdefault(kind, []).append(made)
    return found


def _on_signals(engine: Engine, call: Callable[[], None], hang_up: Callable[[], None] = lambda: None) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, call)

    def hung_up() -> None:
        hang_up()
        engine.wake()

    loop.add_signal_handler(signal.SIGHUP, hung_up)


def _look(box: Outbox) -> None:
    """Look for runs that died, jobs that are late, runs of which only a note exists, and mail that failed."""
    watch.fold(box)
    watchdog.look(box)
    post.guarded(
        lambda: failures.look(box, box.config.notify_failed), "failed mail could not be looked after"
    )


def _look_as_service(box: Outbox) -> None:
    """The same, and canaries."""
    _look(box)
    canary.send_due(box.store, box.config.loopback, box.routes, box.clock.now(), box.send)


async def _keep_looking(box: Outbox) -> None:
    while True:
        post.poster().later(lambda: _look_as_service(box), "looks")
        await asyncio.sleep(LOOK_EVERY)


async def receive(
    box: Outbox,
    engine: Engine,
    reread: Callable[[], Config],
    hung_up: Callable[[], bool] = lambda: False,
    started: Callable[[list[str]], None] | None = None,
    *,
    catch: bool,
) -> None:
    """Run until a signal: listen, deliver to mailboxes, pass on what is not local. The rest as in `serve`."""
    serving = Serving(box, engine, partial(for_receiving, box, catch=catch), reread)
    serving.start()
    try:
        await _until_signal(serving, engine, started, hung_up)
    finally:
        serving.stop()


async def _until_signal(
    serving: Serving, engine: Engine, started: Callable[[list[str]], None] | None, hung_up: Callable[[], bool]
) -> None:
    over, asked = asyncio.Event(), asyncio.Event()
    _on_signals(engine, over.set, asked.set)
    if hung_up():
        asked.set()
    running = asyncio.ensure_future(engine.run())
    waits: list[asyncio.Future[Any]] = [
        running,
        asyncio.ensure_future(over.wait()),
        asyncio.ensure_future(engine.ready()),
    ]
    beside: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(serving.keep_alive()),
        asyncio.ensure_future(serving.keep_fresh()),
    ]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        beside.append(waits.pop())
        if beside[-1].done():
            serving.listen()
            if started is not None:
                started(serving.names)
            serving.ready()
            waits.append(asyncio.ensure_future(serving.keep_reloading(asked)))
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        serving.manager.stopping()
        for task in (*beside, *waits[1:]):
            task.cancel()
        await serving.leave()
        engine.stop()
        await running
    for task in done:
        task.result()  # raises what a bug of ours has raised in a reload
