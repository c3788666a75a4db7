"""The service: one loop with the engine, what listens, and the watch over jobs. Also its one-time form, for cron.

Promises: SIGTERM and SIGINT stop it in order: nothing new comes in, what is being stored is answered, dialogues in flight end, the rest
goes back to the queue. Sockets handed over by systemd are used under their names (smtp, lmtp, submission).
Fails: `ConfigError` before anything starts. Does not: fork, write a pid file, or change its user.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from outmail.accept import LoopDoor
from outmail.config import Config, Listen
from outmail.engine import Engine
from outmail.errors import ConfigError
from outmail.intake.smtp import Listener, Settings
from outmail.outbox import Outbox
from outmail.reports import post, vigil, watch
from outmail.smtp import server as protocol

log = logging.getLogger("outmail")

#: How often the service looks for dead runs and late jobs, in seconds.
VIGIL = 20.0
KINDS = ("smtp", "submission", "lmtp")


async def once(box: Outbox, engine: Engine) -> None:
    """What is due now, and then the end."""
    _on_signals(engine.stop)
    post.guarded(lambda: _look(box), "jobs could not be looked after")
    await engine.run(once=True)


async def serve(box: Outbox, engine: Engine, started: Callable[[list[str]], None] | None = None) -> None:
    """Until a signal. ``started`` hears where it listens."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    _on_signals(over.set)
    config: Config = box._config
    prepared = {kind: settings_for(config, kind) for kind in KINDS}
    running = asyncio.ensure_future(engine.run())
    ending = asyncio.ensure_future(over.wait())
    ready = asyncio.ensure_future(engine.ready())
    listeners: list[Listener] = []
    looking = loop.create_task(_keep_looking(box, over))
    try:
        await asyncio.wait([ready, running, ending], return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            listeners = await _listen(box, engine, prepared, started)
        await asyncio.wait([running, ending], return_when=asyncio.FIRST_COMPLETED)
    finally:
        over.set()
        looking.cancel()
        await asyncio.gather(*(listener.close() for listener in listeners))
        engine.stop()
        await running
        ready.cancel()
        ending.cancel()


async def _listen(box: Outbox, engine: Engine, prepared: dict[str, Settings], started: Callable[[list[str]], None] | None) -> list[Listener]:
    """Open what the configuration and the service manager say."""
    listen, handed = box._config.listen, handed_over(os.environ)
    if not (listen.smtp or listen.lmtp or listen.submission or handed):
        return []
    door = LoopDoor(replace(box._door, wake=engine.wake), engine.commits, engine)
    listeners, names = [], []
    for kind in KINDS:
        sockets: list[str | socket.socket] = [*getattr(listen, kind), *handed.get(kind, [])]
        for address in sockets:
            settings = prepared[kind]
            if kind == "submission" and isinstance(address, str) and address.endswith(":465"):
                settings = replace(settings, implicit_tls=True)
            listener = Listener(door, settings)
            try:
                names.append(f"{kind} {await listener.listen(address)}")
            except (OSError, ValueError) as problem:
                raise ConfigError(f"[listen] {kind}: {address} cannot be listened on: {getattr(problem, 'strerror', None) or problem}") from None
            listeners.append(listener)
    for name in names:
        log.info("listening: %s", name)
    if started is not None:
        started(names)
    return listeners


def settings_for(config: Config, kind: str) -> Settings:
    """What one kind of listener offers; raises `ConfigError` for files that cannot be read."""
    listen = config.listen
    tls = certificate(listen) if listen.certificate else None
    users = read_users(listen.users_file) if listen.users_file else {}
    addresses = getattr(listen, kind)
    loopback_only = bool(addresses) and all(address.startswith(("127.", "[::1]", "localhost", "unix:")) for address in addresses)
    dialogue = protocol.Settings(
        hostname=config.hostname or "localhost", lmtp=kind == "lmtp", size=config.message_size, recipients=min(config.recipients, 10_000),
        starttls=tls is not None, require_tls=kind == "submission" and tls is not None, auth=bool(users) and kind != "lmtp",
        auth_clear=loopback_only, require_auth=kind == "submission", normalise=listen.normalise,
    )  # fmt: skip
    return Settings(dialogue, listen.networks, users, tls, connections=listen.connections, rate=listen.rate)


def certificate(listen: Listen) -> ssl.SSLContext:
    """The listeners' TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(listen.certificate, listen.key or None)
    except (OSError, ssl.SSLError) as problem:
        raise ConfigError(f"[listen] certificate {listen.certificate}: {getattr(problem, 'strerror', None) or problem}") from None
    return context


def read_users(path: str) -> dict[str, str]:
    """``name:scrypt$…`` a line; # begins a comment."""
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"[listen] users_file {path}: {getattr(problem, 'strerror', None) or problem}") from None
    users = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, hashed = line.strip().rpartition(":")
        if not colon or not hashed.startswith("scrypt$"):
            raise ConfigError(f"{path}, line {number}: write name:hash, the hash made by `outmail config --hash`")
        users[name] = hashed
    return users


def handed_over(env: Any) -> dict[str, list[socket.socket]]:
    """Sockets from the service manager (sd_listen_fds): LISTEN_FDS from 3 on, named by LISTEN_FDNAMES."""
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


def _on_signals(call: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, call)


def _look(box: Outbox) -> None:
    """Deaths, late jobs, and runs that were only noted."""
    watch.fold(box)
    vigil.look(box)


async def _keep_looking(box: Outbox, over: asyncio.Event) -> None:
    while not over.is_set():
        post.poster().later(lambda: _look(box), "vigil")
        await asyncio.sleep(VIGIL)
