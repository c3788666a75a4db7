"""The wiring: which classes implement a store's URL, a relay, or an application's database. No other module
names them.

Fails: `ConfigError` for a URL that makes no sense, `StoreError` for a store that cannot be opened. Does not:
keep state.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from outmail.clock import Clock
from outmail.config import Config, relay_in_code
from outmail.errors import ConfigError
from outmail.policy.route import Relay, Routes, allowed
from outmail.policy.veil import known
from outmail.store import Store, StoreError
from outmail.system import failpoints
from outmail.system.loading import loading
from outmail.system.place import default_store, parts, user_store

if TYPE_CHECKING:
    from outmail.intake.local import Here
    from outmail.transactional.reader import Source


#: What keeps a store from being written, and perhaps not from being read.
UNWRITABLE = ("full", "readonly", "forbidden", "io")


def here(config: Config) -> Here:
    """This machine, as far as messages need to know it that programs hand to sendmail."""
    with loading:
        from outmail.intake.local import Here, aliases

    return Here(config.hostname, config.origin, aliases(config.aliases), config.masquerade)


def open_store(url: str, *, reading: bool = False) -> Store:
    """``mail.db``, ``sqlite:rel/path``, ``sqlite:///abs/path``, ``sqlite+stdlib:…``, ``maildir:/path``,
    ``postgresql://…`` → an open store. ``reading``: one that can be read only is enough.
    """
    if is_postgres(url):
        with loading:
            from outmail.store.postgres.store import PostgresStore

        known.add_url(url)
        return PostgresStore(url, _place(url))
    if is_maildir(url):
        return _open_spool(store_path(url)[0], reading=reading)
    with loading:
        from outmail.ops.backup import refuse_unfinished
        from outmail.store.sqlite.store import SqliteStore

    path, library = store_path(url)
    refuse_unfinished(path)
    if url in (default_store(os.environ), user_store(os.environ)):
        _make_folder(os.path.dirname(path))
    try:
        return SqliteStore(path, library)
    except StoreError as problem:
        if not reading or problem.kind not in UNWRITABLE or not (os.path.isfile(path) and _may_read(path)):
            raise
        from outmail.store.sqlite.reading import SqliteReading

        return SqliteReading(path, library, problem)


def _may_read(path: str) -> bool:
    return os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)


def _open_spool(path: str, *, reading: bool) -> Store:
    with loading:
        from outmail.store.maildir.store import MaildirStore

    try:
        return MaildirStore(path)
    except StoreError as problem:
        if not reading or problem.kind not in UNWRITABLE or not (os.path.isdir(path) and _may_read(path)):
            raise
        from outmail.store.maildir.reading import MaildirReading

        return MaildirReading(path, problem)


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as problem:
        raise StoreError(
            "forbidden" if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else "io",
            f"its folder cannot be made: {problem.strerror}",
            problem.errno,
            "set XDG_DATA_HOME to a folder of yours, or name a store",
        ) from None


@contextmanager
def sqlite_copy(path: str) -> Iterator[Store]:
    """A new store in a new file, to be filled. At the end of the block the whole file is on disk."""
    from outmail.store.sqlite.store import SqliteStore

    with closing(SqliteStore(path)) as store:
        yield store
        store.flush()


def is_postgres(url: str) -> bool:
    return url.startswith(("postgresql://", "postgres://"))


def is_maildir(url: str) -> bool:
    return url.startswith("maildir:")


def _place(url: str) -> str:
    """The folder for this host's files of a PostgreSQL store: the spool, and engines' lock files."""
    from outmail.store.postgres.url import place_of

    state = os.environ.get("XDG_STATE_HOME")
    return os.path.join(
        os.path.join(state, "outmail") if state else os.path.dirname(default_store(os.environ)), place_of(url)
    )


def store_path(url: str) -> tuple[str, str]:
    """(path, library) of a SQLite store; (path, "") of a Maildir spool."""
    found = parts(url)
    if found is None:
        raise ConfigError(
            f"{url!r} is not a store: give a path, or a URL: sqlite:…, maildir:… or postgresql://…"
        )
    kind, path = found
    if kind and not path.strip("/"):
        raise ConfigError(f"{url!r} names no path", hint=f"for example {kind}:/var/spool/mail-queue")
    if kind == "maildir":
        return path.rstrip("/"), ""
    return path, "stdlib" if kind.endswith("stdlib") else "apsw"


def absolute(url: str) -> str:
    """The same store from wherever it is opened, by the same library."""
    if is_postgres(url):
        return url
    path, library = store_path(url)
    return f"{f'sqlite+{library}' if library else 'maildir'}:{os.path.abspath(path)}"


def open_source(url: str, library: str) -> Source:
    """An application's database (``[[outbox]]``). ``library`` opens SQLite files, unless the URL names
    another one.
    """
    with loading:
        from outmail.transactional.reader import PostgresSource, SqliteSource

    if is_postgres(url):
        known.add_url(url)
        return PostgresSource(url)
    path, named = store_path(url)
    if not named:
        raise ConfigError(f"{url!r} is a spool, and no application's database")
    return SqliteSource(path, named if url.startswith("sqlite+") else library)


def no_relay(name: str, routes: Routes) -> ConfigError:
    """Nobody has configured a relay of this name."""
    import difflib

    near = difflib.get_close_matches(name, routes.relays, 1)
    return ConfigError(
        f"no relay is named {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
        hint=f"configured are {', '.join(sorted(routes.relays))}; or give a URL such as smtp://localhost:25",
    )


def route_of(
    relay: str | None, config: Config, read: Callable[[str], Relay] = relay_in_code
) -> tuple[str | None, Routes]:
    """The value of ``relay=``, a configured name or a URL, as (name of the forced route or None, routes).
    ``read`` makes a relay of a URL.
    """
    routes = config.routes
    if relay is None:
        return None, routes
    if not isinstance(relay, str):
        raise ConfigError(f"relay must be a configured name or a URL, not {relay!r}")
    if relay in routes.relays:
        return relay, routes
    if ":" not in relay:
        raise no_relay(relay, routes)
    made = read(relay)
    return made.name, routes.with_relays([made])


def transports(config: Config) -> Callable[[Relay], Any]:
    """A factory of transports that share one resolver."""
    with loading:
        from outmail.transport.local import LocalTransport
        from outmail.transport.mailbox import MailboxTransport
        from outmail.transport.resolver import Resolver
        from outmail.transport.smtp import SmtpTransport

    resolver = Resolver()

    def make(relay: Relay) -> Any:
        if relay.scheme in ("smtp", "lmtp"):
            return SmtpTransport(relay, resolver, config.hostname or "localhost")
        if relay.scheme == "mailbox":
            return MailboxTransport(relay)
        return LocalTransport(relay)

    return make


def build_engine(
    store: Store,
    config: Config,
    routes: Routes,
    clock: Clock,
    only: str | None = None,
    *,
    service: bool = False,
    observe: Any = None,
) -> Any:
    """An engine with all its parts. The relays' passwords are read here, and not earlier."""
    with loading:
        from outmail.engine.engine import Engine

    return Engine(
        store,
        config.with_passwords(routes),
        transports(config),
        engine_settings(store, config, clock, only, service=service, observe=observe),
        clock,
    )


def engine_settings(
    store: Store,
    config: Config,
    clock: Clock,
    only: str | None = None,
    *,
    service: bool = False,
    observe: Any = None,
) -> Any:
    """What a configuration says to an engine."""
    with loading:
        from outmail.engine.settings import EngineSettings
        from outmail.ops import delivery_log

    return EngineSettings(
        retry=config.retry,
        only_to=config.only_to,
        transcripts=config.transcripts,
        retention=dict(config.retention),
        observe=observe or delivery_log.observe,
        fail=failpoints.hit,
        only=only,
        service=service,
        copies=copy_maker(store, config, clock),
    )


def copy_maker(store: Store, config: Config, clock: Clock) -> Any:
    """What an engine makes loopback copies with; None when there are none. The key is made here."""
    loopback = config.loopback
    if not loopback.address:
        return None
    if not allowed(config.only_to, loopback.address):
        raise ConfigError(
            f"[safety] only_to does not name {loopback.address}, so no loopback copy may be sent",
            hint="name it there, or leave [loopback] out",
        )
    with loading:
        from outmail.engine.copies import CopyMaker
        from outmail.returns.key import signing_key

    return CopyMaker(loopback, signing_key(store), clock, always=config.retry.on_uncertain == "verify")


def arrivals_of(store: Store, config: Config, clock: Clock | None = None) -> Any:
    """What hears loopback copies come home; raises `ConfigError` where none are sent."""
    if not config.loopback.address:
        raise ConfigError(
            "no loopback copies are sent: [loopback] address is not set",
            hint='for example: [loopback] address = "loop@example.org"',
        )
    with loading:
        from outmail.returns.arrivals import Arrivals
        from outmail.returns.key import signing_key

    return Arrivals(store, config.loopback, signing_key(store), clock)


def is_queue(url: str) -> bool:
    """True when what is at this place has been made by outmail. It is not changed."""
    if is_postgres(url):
        return True
    path, library = store_path(url)
    if not library:
        from outmail.store.maildir.store import is_spool

        return is_spool(path)
    from outmail.store.sqlite.files import is_store

    return os.path.isfile(path) and is_store(path)


def spool_of(url: str) -> str:
    """The spool folder of a store, without opening it."""
    return f"{_place(url) if is_postgres(url) else os.path.realpath(store_path(url)[0])}.spool"
