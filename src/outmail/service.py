"""The service: one event loop with the engine, the listeners, and the watch over jobs. Also its form for
cron, which runs once.

Promises: on SIGHUP it looks at the queue and at its certificate files at once. SIGTERM and SIGINT stop it in
order: no new mail comes in, messages that are being stored are answered, running dialogues end, and the rest
goes back into the queue. Sockets handed over by systemd are used under their names (smtp, lmtp, submission).
systemd is told when the service is ready, alive and stopping.
Fails: `ConfigError` before anything starts. Does not: fork, write a pid file, or change its user.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from outmail.accept.aio import AsyncAcceptance
from outmail.config import Config, secret_text
from outmail.engine.engine import Engine
from outmail.errors import ConfigError
from outmail.intake.certificate import Certificate
from outmail.intake.drop import DropFolder
from outmail.intake.receive import Everything, Receiver
from outmail.intake.smtp import Listener, ListenerSettings
from outmail.outbox.outbox import Outbox
from outmail.policy.aliases import MAX_INCLUDED, AliasError, Directory, parse
from outmail.policy.route import Routes, Rule, parse_relay
from outmail.policy.veil import known
from outmail.reports import failures, post, watch, watchdog
from outmail.returns import canary
from outmail.returns.listening import listens_for_copies
from outmail.returns.watching import Maildir, Mbox, Watcher
from outmail.smtp import server as protocol
from outmail.system import dropbox
from outmail.system.manager import Manager
from outmail.transport.mailbox import Mailboxes
from outmail.wiring import arrivals_of, here

log = logging.getLogger("outmail")

#: Seconds between two looks for dead runs and late jobs.
VIGIL = 20.0
#: Seconds between two looks whether the certificate's files have changed.
FRESH = 60.0
KINDS = ("smtp", "submission", "lmtp")


async def once(box: Outbox, engine: Engine) -> None:
    """Send what is due now, then end."""
    takeover = box.take_over("apsw", engine)
    drop = drop_folder(box, engine)

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


async def serve(box: Outbox, engine: Engine, started: Callable[[list[str]], None] | None = None) -> None:
    """Run until a signal. ``started`` is told where the service listens."""
    config = box.config
    _enough_descriptors(config.listen.connections)
    tls = certificate("listen", config.listen.certificate, config.listen.key)
    users = read_users(config.listen.users_file) if config.listen.users_file else {}
    prepared = {kind: settings_for(config, kind, _context(tls), users) for kind in KINDS}
    handed = handed_over(os.environ)

    def listeners(door: AsyncAcceptance) -> list[tuple[str, Listener, str | socket.socket]]:
        found: list[tuple[str, Listener, str | socket.socket]] = []
        for kind in KINDS:
            for address in (*getattr(config.listen, kind), *handed.get(kind, [])):
                implicit = kind == "submission" and isinstance(address, str) and address.endswith(":465")
                made = Listener(door, replace(prepared[kind], implicit_tls=implicit))
                found.append((kind, _hearing(made, box, config), address))
        return found

    watching = watchers(box)
    looking = asyncio.ensure_future(_keep_looking(box))
    takeover = box.take_over("apsw", engine)
    if takeover is not None:
        takeover.start()
    for watcher in watching:
        watcher.start()
    drop = drop_folder(box, engine)
    if drop is not None:
        drop.start()
    try:
        await _until_signal(box, engine, listeners, started, tls=tls)
    finally:
        looking.cancel()
        for watcher in watching:
            watcher.stop()
        if takeover is not None:
            takeover.stop()
        if drop is not None:
            drop.stop()


def drop_folder(box: Outbox, engine: Engine) -> DropFolder | None:
    """What takes the messages that sendmail has left; None where there is no folder of ours. Raises
    `ConfigError` for a folder that was named and is none of ours.
    """
    named = box.config.drop
    folder = named or dropbox.FOLDER
    try:
        owner = os.stat(folder).st_uid
    except OSError as problem:
        if named:
            raise ConfigError(f"[accept] drop: {folder} cannot be used: {problem.strerror}") from None
        return None
    if owner != os.geteuid():
        if named:
            raise ConfigError(
                f"[accept] drop: {folder} belongs to userid {owner}, and this is {os.geteuid()}: only its "
                f"owner can remove what others have left there"
            )
        return None
    return DropFolder(folder, replace(box.door, wake=engine.wake), lambda: here(box.config))


def _enough_descriptors(connections: int) -> None:
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


def settings_for(
    config: Config, kind: str, tls: ssl.SSLContext | None, users: Mapping[str, str]
) -> ListenerSettings:
    """What one kind of listener offers."""
    listen = config.listen
    addresses = getattr(listen, kind)
    loopback_only = bool(addresses) and all(
        address.startswith(("127.", "[::1]", "localhost", "unix:")) for address in addresses
    )
    dialogue = protocol.ServerSettings(
        hostname=config.hostname or "localhost",
        origin=config.origin,
        lmtp=kind == "lmtp",
        size=config.message_size,
        recipients=min(config.recipients, 10_000),
        starttls=tls is not None,
        require_tls=kind == "submission" and tls is not None,
        auth=bool(users) and kind != "lmtp",
        auth_clear=loopback_only,
        require_auth=kind == "submission",
    )
    return ListenerSettings(
        dialogue,
        listen.networks,
        users,
        tls,
        connections=listen.connections,
        per_client=listen.connections_per_client,
        rate=listen.rate,
        normalise=listen.normalise,
        deepest=config.deepest,
        accounts=listen.accounts,
    )


def certificate(section: str, path: str, key: str) -> Certificate | None:
    """The TLS of a section, or None. Raises `ConfigError`."""
    return Certificate(section, path, key) if path else None


def _context(tls: Certificate | None) -> ssl.SSLContext | None:
    return tls.context if tls is not None else None


async def _keep_alive(manager: Manager) -> None:
    """Tell the service manager that the loop goes round."""
    while True:
        manager.alive()
        await asyncio.sleep(manager.patience / 3)


async def _keep_fresh(tls: Certificate, listeners: Sequence[Listener], look: asyncio.Event) -> None:
    """Let new handshakes use what the files contain now: checked from time to time, and when ``look``
    is set.
    """
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FRESH):
                await look.wait()
        look.clear()
        if tls.renew():
            for listener in listeners:
                listener.settings = replace(listener.settings, tls=tls.context)


def read_users(path: str) -> dict[str, str]:
    """Lines of ``name:scrypt$…``; # begins a comment."""
    users = {}
    for number, line in enumerate(secret_text(path, "[listen] users_file").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, hashed = line.strip().rpartition(":")
        if not colon or not hashed.startswith("scrypt$"):
            raise ConfigError(
                f"{path}, line {number}: write name:hash, the hash made by `outmail config --hash`"
            )
        users[name] = hashed
    return users


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


def _on_signals(engine: Engine, call: Callable[[], None], look: Callable[[], None] = lambda: None) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, call)

    def look_now() -> None:
        look()
        engine.wake()

    loop.add_signal_handler(signal.SIGHUP, look_now)


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
        post.poster().later(lambda: _look_as_service(box), "vigil")
        await asyncio.sleep(VIGIL)


# -- the receiving server ------------------------------------------------------------------------------------


def receiving(config: Config, *, catch: bool) -> Config:
    """The configuration of `outmail receive`: local domains go to mailboxes, everything else to the
    relays.
    """
    receive = config.receive
    if catch:
        nothing = parse_relay("null:", "default")
        keep = dict.fromkeys(config.retention, 1 << 60)
        return replace(
            config, routes=Routes({"default": nothing}), retention=keep, only_to=(), redirect_to=""
        )
    if not receive.mailboxes:
        raise ConfigError(
            "[receive] mailboxes is not set: where local mail goes, such as /home/{user}/Maildir/ or "
            "/var/mail/{user}; or use --catch"
        )
    local = parse_relay(f"mailbox:{receive.mailboxes}", "local")
    domain = local_domains(config)[0]
    rule = Rule(("*",), (f"*@{domain}",), ("*",), ("local",))
    routes = config.routes.with_relays([local])
    return replace(config, routes=replace(routes, rules=(rule, *routes.rules)))


def local_domains(config: Config) -> tuple[str, ...]:
    """The local domains. The first one is used in the addresses of mailboxes."""
    own = config.hostname or "localhost"
    return tuple(
        dict.fromkeys(domain.lower() for domain in (*(config.receive.domains or (own,)), own, "localhost"))
    )


def directory(config: Config) -> Directory:
    """Users and aliases. Raises `ConfigError` when the file is wrong or nobody gets mail for postmaster."""
    receive = config.receive
    try:
        aliases = parse(_text_of(receive.aliases), receive.aliases) if receive.aliases else {}
        made = Directory(frozenset(local_domains(config)), aliases, _knows(receive.users), _text_of)
        for name in aliases:
            made.expand(name)
        if not made.expand("postmaster"):
            raise ConfigError(
                "nobody gets mail for postmaster: add `postmaster: somebody` to the aliases ([receive] "
                "aliases)"
            )
    except (AliasError, OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"[receive] {getattr(problem, 'strerror', None) or problem}") from None
    return made


def _text_of(path: str) -> str:
    """The text of an alias file or an included file. It must be a regular file of bounded size, so that
    whoever can name files here cannot make the server wait or read without end.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise AliasError(f"{path} is not a regular file")
        with open(fd, "rb", closefd=False) as file:
            raw = file.read(MAX_INCLUDED + 1)
    finally:
        os.close(fd)
    if len(raw) > MAX_INCLUDED:
        raise AliasError(f"{path} is larger than {MAX_INCLUDED} bytes")
    return raw.decode("utf-8")


def _knows(users: tuple[str, ...]) -> Callable[[str], bool]:
    if users != ("system",):
        return frozenset(user.lower() for user in users).__contains__

    def known(name: str) -> bool:
        import pwd

        try:
            pwd.getpwnam(name)
        except (KeyError, ValueError):
            return False
        return True

    return known


async def receive(
    box: Outbox, engine: Engine, *, catch: bool, started: Callable[[list[str]], None] | None = None
) -> None:
    """Run until a signal: listen, deliver to mailboxes, pass on what is not local."""
    config = box.config
    known = None if catch else directory(config)
    origin = local_domains(config)[0] if known is not None and config.origin else config.origin
    tls = certificate("receive", config.receive.certificate, config.receive.key)

    def open_listeners(door: AsyncAcceptance) -> list[tuple[str, Listener, str]]:
        found = []
        for kind in ("smtp", "lmtp"):
            for address in getattr(config.receive, kind):
                hostname = config.hostname or "localhost"
                dialogue = protocol.ServerSettings(
                    hostname, origin, lmtp=kind == "lmtp", size=config.message_size, starttls=tls is not None
                )
                if known is None:
                    made = Listener(
                        door,
                        ListenerSettings(dialogue, tls=_context(tls), normalise=True),
                        lambda listener: Everything(),
                    )
                else:
                    made = _receiver(
                        door,
                        ListenerSettings(dialogue, config.receive.networks, tls=_context(tls)),
                        known,
                        config,
                    )
                found.append((kind, _hearing(made, box, config), address))
        return found

    await _until_signal(box, engine, open_listeners, started, "receive", tls)


def watchers(box: Outbox) -> list[Watcher]:
    """One for each mailbox of ``[loopback]``. Raises `ConfigError`; the password is read here."""
    homes = box.config.homes
    found: list[Watcher] = []
    if not (homes.maildir or homes.mbox or homes.imap):
        return found
    arrivals = arrivals_of(box.store, box.config, box.clock)
    if homes.maildir:
        found.append(Watcher(Maildir(homes.maildir, arrivals), homes.maildir))
    if homes.mbox:
        found.append(Watcher(Mbox(homes.mbox, arrivals, box.store), homes.mbox))
    if homes.imap:
        from outmail.returns import imap

        try:
            url = imap.parse(homes.imap)
        except ValueError as problem:
            raise ConfigError(f"[loopback] imap: {problem}") from None
        if not homes.password_file:
            raise ConfigError("[loopback] imap needs password_file, too")
        password = secret_text(homes.password_file, "[loopback] password_file").rstrip("\r\n")
        known.add(password, lasting=True)
        found.append(Watcher(imap.Mailbox(replace(url, password=password, ca=homes.ca), arrivals), url.host))
    return found


def _hearing(listener: Listener, box: Outbox, config: Config) -> Listener:
    """The same listener; where loopback copies are sent, it takes those that come home."""
    if not config.loopback.address:
        return listener
    return listens_for_copies(listener, arrivals_of(box.store, config, box.clock))


def _receiver(
    door: AsyncAcceptance, settings: ListenerSettings, known: Directory, config: Config
) -> Listener:
    domain = local_domains(config)[0]
    holder: list[Receiver] = []

    def policy(listener: Listener) -> Receiver:
        template = config.receive.mailboxes
        mailboxes = Mailboxes(template, listener.door.run) if template else None
        holder.append(Receiver(known, domain, mailboxes, config.receive.networks, listener.gate))
        return holder[0]

    listener = Listener(
        door,
        settings,
        policy,
        lambda line, session, request, then: holder[0].take(listener, line, session, request, then),
    )
    return listener


async def _until_signal(
    box: Outbox,
    engine: Engine,
    make: Callable[[AsyncAcceptance], Sequence[tuple[str, Listener, str | socket.socket]]],
    started: Callable[[list[str]], None] | None,
    section: str = "listen",
    tls: Certificate | None = None,
) -> None:
    over, look = asyncio.Event(), asyncio.Event()
    _on_signals(engine, over.set, look.set)
    manager = Manager(os.environ)
    alive = asyncio.ensure_future(_keep_alive(manager)) if manager.patience else None
    running = asyncio.ensure_future(engine.run())
    waits = [running, asyncio.ensure_future(over.wait()), asyncio.ensure_future(engine.ready())]
    listeners: list[Listener] = []
    fresh = asyncio.ensure_future(_keep_fresh(tls, listeners, look)) if tls is not None else None
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if waits[2].done():
            door = AsyncAcceptance(replace(box.door, wake=engine.wake), engine.commits, engine.handover)
            names = []
            for kind, listener, address in make(door):
                listeners.append(listener)
                try:
                    names.append(f"{kind} {await listener.listen(address)}")
                except (OSError, ValueError) as problem:
                    raise ConfigError(
                        f"[{section}] {kind}: {address} cannot be listened on: "
                        f"{getattr(problem, 'strerror', None) or problem}"
                    ) from None
                log.info("listening: %s", names[-1])
            if started is not None:
                started(names)
            manager.ready(f"listening: {', '.join(names)}" if names else "delivering")
        await asyncio.wait(waits[:2], return_when=asyncio.FIRST_COMPLETED)
    finally:
        manager.stopping()
        for task in (fresh, alive):
            if task is not None:
                task.cancel()
        await asyncio.gather(*(listener.close() for listener in listeners))
        engine.stop()
        await running
        for wait in waits[1:]:
            wait.cancel()
