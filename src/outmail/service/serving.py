"""The parts of a running service, and how a new configuration exchanges them while mail is in flight.

How (docs/decisions/0015): the new configuration is read, checked and built (`prepared`) on a thread, while
everything goes on; addresses that are new are bound. Then, in one turn of the loop, the engine gets the new
routes and settings, and new listeners get the sockets of the old ones. A dialogue that has begun, on either
side, ends as it began.
Promises: nothing in flight is lost or doubled, and no connection is refused. A configuration that cannot be
used is refused as a whole, and the one before stays in force; both are logged, and told to the service
manager. A second request during a reload leads to another reload.
Fails: `ConfigError` from `Serving` and `listen`, before anything works; a reload fails into the log. Does
not: exchange the store or the kind of loop (`FIXED`), or read the environment again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from outmail.accept.aio import AsyncAcceptance
from outmail.config import Config
from outmail.engine.engine import Engine
from outmail.engine.settings import EngineSettings
from outmail.errors import ConfigError, Error
from outmail.intake.drop import DropFolder
from outmail.intake.smtp import Listener, bound
from outmail.outbox.outbox import Outbox
from outmail.policy.plain import plain_line
from outmail.policy.route import Routes
from outmail.policy.veil import known
from outmail.service.prepared import Address, Offer, Prepared
from outmail.store import StoreError, shown
from outmail.system.manager import Manager
from outmail.system.threads import CallThread
from outmail.wiring import engine_settings, here, transports

log = logging.getLogger("outmail")

#: Seconds between two looks whether the certificate's files have changed.
FRESH = 60.0
#: What a running service does not exchange, by the field of `Config`, and what that is for people. Another
#: file, or none, is not what the signal meant: the file may be missing for a moment, and the defaults know
#: no `[safety]`.
FIXED = {"source": "the configuration's file", "store": "store", "loop": "loop"}
#: What it does exchange: the field, and where that stands in the configuration.
EXCHANGED = {
    "routes": "relays and routes",
    "sender": "from",
    "to": "to",
    "retry": "[retry]",
    "listen": "[listen]",
    "receive": "[receive]",
    "loopback": "[loopback]",
    "homes": "[loopback]",
    "message_size": "[limits]",
    "recipients": "[limits]",
    "deepest": "[limits]",
    "only_to": "[safety]",
    "redirect_to": "[safety]",
    "retention": "[retention]",
    "transcripts": "transcripts",
    "hostname": "hostname",
    "find_origin": "[accept]",
    "aliases": "[accept]",
    "drop": "[accept]",
    "masquerade": "[accept]",
    "outboxes": "[[outbox]]",
    "templates": "[reports]",
    "through": "store",
    "notify_failed": "[notify]",
    "secrets": "where passwords are",
}


class Prepare(Protocol):
    def __call__(self, config: Config, *, asks: bool = False) -> Prepared: ...


class Key(NamedTuple):
    """A listener. ``nth``: the same address may be named twice, if its port is 0."""

    kind: str
    address: Address
    nth: int


@dataclass(frozen=True, slots=True)
class _Next:
    """A configuration that may come into force: everything is read, and new addresses are bound."""

    prepared: Prepared
    routes: Routes
    settings: EngineSettings
    sockets: Mapping[Key, list[socket.socket]]


class Serving:
    """The service around an engine. ``prepare`` builds its parts of a configuration, ``reread`` reads the
    configuration again. Everything but the two is called in the loop.
    """

    def __init__(self, box: Outbox, engine: Engine, prepare: Prepare, reread: Callable[[], Config]) -> None:
        self.manager = Manager(os.environ)
        self.listeners: dict[Key, Listener] = {}
        self._box = box
        self._engine = engine
        self._prepare = prepare
        self._reread = reread
        self._now = prepare(box.config, asks=True)
        self._door: AsyncAcceptance | None = None
        self._helper = CallThread("reload")
        self._names: dict[Key, str] = {}
        #: An exchange that is being made; it is not broken off.
        self._exchange: asyncio.Future[None] | None = None
        box.door.wake = engine.wake
        self._watchers = self._now.watchers
        self._drop = _drop(box, self._now)
        self._takeover = _take_over(box, engine, self._now)
        enough_descriptors(box.config.listen.connections)

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start what has a thread of its own."""
        _start([*self._watchers, self._takeover, self._drop])

    def stop(self) -> None:
        """End it; what it has begun is finished."""
        _stop([*self._watchers, self._takeover, self._drop])
        self._helper.close()

    def listen(self) -> None:
        """Open the listeners, when the engine is ready. Raises `ConfigError`."""
        self._door = AsyncAcceptance(self._box.door, self._engine.commits, self._engine.handover)
        self._open(_bind(self._now, ()))

    async def leave(self) -> None:
        """Close the listeners: what is being stored is answered first."""
        if self._exchange is not None:
            await asyncio.wait([self._exchange])
        if self._door is not None:
            await asyncio.gather(*(listener.close() for listener in list(self._door.listeners)))

    def ready(self, more: str = "") -> None:
        """Tell the service manager how things are."""
        names = ", ".join(self._names.values())
        self.manager.ready((f"listening: {names}" if names else "delivering") + more)

    @property
    def names(self) -> list[str]:
        """Where it listens, for people."""
        return list(self._names.values())

    async def keep_alive(self) -> None:
        """Tell the service manager that the loop goes round."""
        while self.manager.patience:
            self.manager.alive()
            await asyncio.sleep(self.manager.patience / 3)

    async def keep_fresh(self) -> None:
        """Let new handshakes use what the certificate's files contain now."""
        while True:
            await asyncio.sleep(FRESH)
            self._renew()

    def _renew(self) -> None:
        tls = self._now.tls
        if tls is not None and tls.renew():
            for listener in self.listeners.values():
                listener.settings = replace(listener.settings, tls=tls.context)

    # -- another configuration -------------------------------------------------------------------------------

    async def keep_reloading(self, asked: asyncio.Event) -> None:
        """A reload each time that ``asked`` is set."""
        while True:
            await asked.wait()
            asked.clear()
            await self.reload()

    async def reload(self) -> None:
        """Read the configuration again and go on with it, or say why not."""
        self.manager.reloading()
        found = await self._helper.run(lambda: _tried(self._read))
        if isinstance(found, str):
            log.error("the new configuration is refused: %s; the one before stays in force", found)
            self.ready(f"; the new configuration is refused: {found}")
            return
        before = self._now.config
        self._exchange = asyncio.ensure_future(self._install(found))
        await asyncio.shield(self._exchange)
        self._exchange = None
        log.info("the configuration was read again (%s): %s", *_said(before, self._now.config))
        self.ready()

    def _read(self) -> _Next:
        """On the helper's thread: everything that takes time or may fail."""
        config = self._reread()
        if why := fixed(self._now.config, config):
            raise ConfigError(why)
        prepared = self._prepare(config)
        routes = config.with_passwords(config.routes)
        settings = engine_settings(
            self._box.store,
            config,
            self._engine.clock,
            service=self._engine.settings.service,
            observe=self._engine.settings.observe,
        )
        before = self._now.config
        if (config.loopback, config.retry.on_uncertain) == (before.loopback, before.retry.on_uncertain):
            settings.copies = self._engine.settings.copies  # it knows which messages go without one
        return _Next(prepared, routes, settings, _bind(prepared, self.listeners))

    async def _install(self, found: _Next) -> None:
        before, self._now = self._now, found.prepared
        config, takeover, drop = found.prepared.config, self._takeover, self._drop
        self._box.adopt(config)
        enough_descriptors(config.listen.connections)
        self._engine.reconfigure(
            found.routes,
            found.settings,
            transports(config) if config.hostname != before.config.hostname else None,
        )
        self._open(found.sockets)
        watchers, self._watchers = self._watchers, found.prepared.watchers
        ending: list[Any] = list(watchers)
        starting: list[Any] = list(self._watchers)
        if found.prepared.outboxes != before.outboxes:
            self._takeover = _take_over(self._box, self._engine, found.prepared)
            ending.append(takeover)
            starting.append(self._takeover)
        if found.prepared.drop != before.drop:
            self._drop = _drop(self._box, found.prepared)
            ending.append(drop)
            starting.append(self._drop)

        def exchange() -> None:
            _stop(ending)
            _start(starting)

        await self._helper.run(exchange)

    def _open(self, sockets: Mapping[Key, list[socket.socket]]) -> None:
        """Listen where the present configuration says; ``sockets`` are bound for what is new."""
        assert self._door is not None
        before, self.listeners = self.listeners, {}
        names, self._names = self._names, {}
        wanted = _keyed(self._now.offers)
        free = _free(before, wanted)
        for key, offer in wanted.items():
            earlier = before.get(key)
            listener = offer.make(self._door, earlier)
            if earlier is not None:
                name = listener.open(earlier.replaced())
            elif key in sockets:
                name = listener.open(sockets[key])
            else:  # the address was another kind's
                name = listener.open(before[free[key.address]].replaced())
            self.listeners[key] = listener
            self._names[key] = f"{key.kind} {name}"
            if key not in names:
                log.info("listening: %s", self._names[key])
        for key in before.keys() - wanted.keys():
            log.info("no longer listening: %s", names[key])
            for sock in before[key].replaced():
                sock.close()


# -- decisions -----------------------------------------------------------------------------------------------


def fixed(before: Config, after: Config) -> str:
    """Why a running service does not go on with this configuration; "" where it does."""
    changed = [
        f"{what} was {shown(getattr(before, name))} and would be {shown(getattr(after, name))}"
        for name, what in FIXED.items()
        if _differ(name, before, after)
    ]
    return "; ".join(changed) + ": that needs a restart" if changed else ""


def changes(before: Config, after: Config) -> list[str]:
    """What is not as it was, for people."""
    values = {name: "origin" if name == "find_origin" else name for name in EXCHANGED}  # a way to find it
    changed = [EXCHANGED[name] for name, value in values.items() if _differ(value, before, after)]
    return list(dict.fromkeys(changed))


def _differ(name: str, before: Config, after: Config) -> bool:
    return bool(getattr(before, name) != getattr(after, name))


def _said(before: Config, after: Config) -> tuple[str, str]:
    what = ", ".join(changes(before, after))
    return after.source, f"changed are {what}" if what else "it says the same as before"


def _keyed(offers: Iterable[Offer]) -> dict[Key, Offer]:
    found: dict[Key, Offer] = {}
    for offer in offers:
        nth = sum(key[:2] == (offer.kind, offer.address) for key in found)
        found[Key(offer.kind, offer.address, nth)] = offer
    return found


def _free(held: Iterable[Key], wanted: Container[Key]) -> dict[Address, Key]:
    """Listeners whose address another kind may have now. Port 0 names no address."""
    return {key.address: key for key in held if key not in wanted and not str(key.address).endswith(":0")}


# -- the outside ---------------------------------------------------------------------------------------------


def enough_descriptors(connections: int) -> None:
    """Each connection needs a file descriptor: raise the soft limit as far as needed, or warn."""
    try:
        import resource
    except ImportError:
        return
    wanted = connections + 300
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    granted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
    if granted < wanted:
        log.warning(
            "only %d files may be open (ulimit -n -H): %d connections ([listen] connections) need %d",
            granted,
            connections,
            wanted,
        )


def _tried(read: Callable[[], _Next]) -> _Next | str:
    """What was read, or in a line why that cannot be used."""
    try:
        return read()
    except (Error, StoreError, OSError, ValueError) as problem:
        hint = getattr(problem, "hint", "")
        return plain_line(known.over(f"{problem}" + (f" ({hint})" if hint else "")))
    except Exception as bug:
        log.exception("a bug of outmail")
        return f"a bug of outmail: {bug!r}"


def _bind(prepared: Prepared, held: Iterable[Key]) -> dict[Key, list[socket.socket]]:
    """Sockets for what is listened for and not ``held``. Raises `ConfigError`; then none is left open."""
    wanted = _keyed(prepared.offers)
    held = set(held)
    free = _free(held, wanted)
    made: dict[Key, list[socket.socket]] = {}
    for key in wanted.keys() - held:
        if key.address in free:
            del free[key.address]
            continue
        try:
            made[key] = [key.address] if isinstance(key.address, socket.socket) else bound(key.address)
        except (OSError, ValueError) as problem:
            for sock in (sock for sockets in made.values() for sock in sockets):
                sock.close()
            raise ConfigError(
                f"[{prepared.section}] {key.kind}: {key.address} cannot be listened on: "
                f"{getattr(problem, 'strerror', None) or problem}"
            ) from None
    return made


def _drop(box: Outbox, prepared: Prepared) -> DropFolder | None:
    return DropFolder(prepared.drop, box.door, lambda: here(box.config)) if prepared.drop else None


def _take_over(box: Outbox, engine: Engine, prepared: Prepared) -> Any:
    return box.take_over("apsw", engine) if prepared.outboxes else None


def _start(parts: Iterable[Any]) -> None:
    for part in parts:
        if part is not None:
            part.start()


def _stop(parts: Iterable[Any]) -> None:
    for part in parts:
        if part is not None:
            part.stop()
