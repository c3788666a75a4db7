"""What a configuration asks of a service: read, checked and built, while nothing of it works yet.

Promises: whatever can be wrong with a configuration shows here: files that are missing, certificates, users,
passwords, aliases, a drop folder of somebody else. `reload` does all this before it gives up anything of the
old one. May be called from any thread.
Fails: `ConfigError`, `StoreError`. Does not: listen, start threads, or change anything.
"""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from outmail.accept.aio import AsyncAcceptance
from outmail.config import Config, secret_text
from outmail.errors import ConfigError
from outmail.intake.certificate import Certificate
from outmail.intake.receive import Everything, Receiver
from outmail.intake.smtp import Listener, ListenerSettings
from outmail.outbox.outbox import Outbox
from outmail.policy.aliases import MAX_INCLUDED, AliasError, Directory, parse
from outmail.policy.route import Routes, Rule, parse_relay
from outmail.policy.veil import known
from outmail.returns.arrivals import Arrivals
from outmail.returns.listening import listens_for_copies
from outmail.returns.watching import Maildir, Mbox, Watcher
from outmail.smtp import server as protocol
from outmail.system import dropbox
from outmail.system.user import is_user
from outmail.transport.mailbox import Mailboxes
from outmail.wiring import arrivals_of

KINDS = ("smtp", "submission", "lmtp")
#: The route of what `receive --catch` keeps.
CAUGHT = "caught"
#: ``host:port``, ``unix:/path``, or a socket that the service manager has handed over.
Address = str | socket.socket


@dataclass(frozen=True, slots=True)
class Offer:
    """Something to listen for. ``make`` makes its listener, in the place of another one or of none."""

    kind: str
    address: Address
    make: Callable[[AsyncAcceptance, Listener | None], Listener]


@dataclass(frozen=True, slots=True)
class Prepared:
    """All parts beside the engine. ``section``: which one of the configuration says where to listen;
    ``drop``: the drop folder, or "".
    """

    config: Config
    section: str
    tls: Certificate | None
    offers: Sequence[Offer]
    watchers: Sequence[Watcher] = ()
    drop: str = ""
    outboxes: Sequence[str] = ()


def for_serving(
    box: Outbox, handed: Mapping[str, Sequence[socket.socket]], config: Config, *, asks: bool = False
) -> Prepared:
    """For `outmail run`. ``handed``: sockets of the service manager, by kind. ``asks``: somebody may be asked
    for a key's password.
    """
    listen = config.listen
    tls = certificate("listen", listen.certificate, listen.key, asks=asks)
    users = read_users(listen.users_file) if listen.users_file else {}
    arrivals = arrivals_of(box.store, config, box.clock) if config.loopback.address else None
    offers: list[Offer] = []
    for kind in KINDS:
        settings = settings_for(config, kind, _context(tls), users)
        for address in (*getattr(listen, kind), *handed.get(kind, ())):
            implicit = kind == "submission" and isinstance(address, str) and address.endswith(":465")
            one = replace(settings, implicit_tls=implicit)
            offers.append(Offer(kind, address, partial(_relaying, one, arrivals)))
    watching = watchers(box, config, arrivals)
    return Prepared(config, "listen", tls, offers, watching, drop_folder(config), config.outboxes)


def _relaying(
    settings: ListenerSettings, arrivals: Arrivals | None, door: AsyncAcceptance, before: Listener | None
) -> Listener:
    return _hearing(Listener(door, settings, before=before), arrivals)


def for_receiving(box: Outbox, config: Config, *, catch: bool, asks: bool = False) -> Prepared:
    """For `outmail receive`; ``config`` comes from `receiving`."""
    receive = config.receive
    known = None if catch else directory(config)
    origin = local_domains(config)[0] if known is not None and config.origin else config.origin
    tls = certificate("receive", receive.certificate, receive.key, asks=asks)
    arrivals = arrivals_of(box.store, config, box.clock) if config.loopback.address else None
    offers: list[Offer] = []
    for kind in ("smtp", "lmtp"):
        dialogue = protocol.ServerSettings(
            config.hostname or "localhost",
            origin,
            lmtp=kind == "lmtp",
            size=config.message_size,
            starttls=tls is not None,
        )
        settings = (
            ListenerSettings(dialogue, tls=_context(tls), normalise=True)
            if known is None
            else ListenerSettings(dialogue, receive.networks, tls=_context(tls))
        )
        make = partial(_receiving, settings, known, config, arrivals)
        offers += [Offer(kind, address, make) for address in getattr(receive, kind)]
    return Prepared(config, "receive", tls, offers)


def _receiving(
    settings: ListenerSettings,
    known: Directory | None,
    config: Config,
    arrivals: Arrivals | None,
    door: AsyncAcceptance,
    before: Listener | None,
) -> Listener:
    if known is None:
        made = Listener(door, settings, lambda listener: Everything(), before=before)
    else:
        made = _receiver(door, settings, known, config, before)
    return _hearing(made, arrivals)


def drop_folder(config: Config) -> str:
    """Where sendmail leaves messages for this service; "" where there is no folder of ours. Raises
    `ConfigError` for a folder that was named and is none of ours.
    """
    named = config.drop
    folder = named or dropbox.FOLDER
    try:
        owner = os.stat(folder).st_uid
    except OSError as problem:
        if named:
            raise ConfigError(f"[accept] drop: {folder} cannot be used: {problem.strerror}") from None
        return ""
    if owner != os.geteuid():
        if named:
            raise ConfigError(
                f"[accept] drop: {folder} belongs to userid {owner}, and this is {os.geteuid()}: only its "
                f"owner can remove what others have left there"
            )
        return ""
    return folder


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


def certificate(section: str, path: str, key: str, *, asks: bool = False) -> Certificate | None:
    """The TLS of a section, or None. Raises `ConfigError`."""
    return Certificate(section, path, key, asks=asks) if path else None


def _context(tls: Certificate | None) -> ssl.SSLContext | None:
    return tls.context if tls is not None else None


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


def watchers(box: Outbox, config: Config, arrivals: Arrivals | None) -> list[Watcher]:
    """One for each mailbox of ``[loopback]``. Raises `ConfigError`; the password is read here."""
    homes = config.homes
    found: list[Watcher] = []
    if not (homes.maildir or homes.mbox or homes.imap):
        return found
    arrivals = arrivals or arrivals_of(box.store, config, box.clock)  # which says what is missing
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


def _hearing(listener: Listener, arrivals: Arrivals | None) -> Listener:
    """The same listener; where loopback copies are sent, it takes those that come home."""
    return listener if arrivals is None else listens_for_copies(listener, arrivals)


def _receiver(
    door: AsyncAcceptance,
    settings: ListenerSettings,
    known: Directory,
    config: Config,
    before: Listener | None,
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
        before,
    )
    return listener


# -- the receiving server ------------------------------------------------------------------------------------


def receiving(config: Config, *, catch: bool) -> Config:
    """The configuration of `outmail receive`: local domains go to mailboxes, everything else to the
    relays.
    """
    receive = config.receive
    if catch:
        # A route of its own: other mail in the store is left alone, and no other engine sends what is caught
        routes = Routes({CAUGHT: parse_relay("null:", CAUGHT)}, fallback=CAUGHT)
        keep = dict.fromkeys(config.retention, 1 << 60)
        return replace(config, routes=routes, retention=keep, only_to=(), redirect_to="")
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
    return is_user if users == ("system",) else frozenset(user.lower() for user in users).__contains__
