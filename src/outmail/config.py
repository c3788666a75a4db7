"""Configuration: TOML, environment and defaults become one immutable `Config`.

Promises: the first file wins (``--config``, ``$OUTMAIL_CONFIG``, ``./outmail.toml``, the user's, the
system's). A file that was *found* (not named) and that somebody else may have written (`trust`) is an error
and is never skipped: the next file might name another relay, or lack the ``[safety]`` that holds back a test
machine's mail, and mail cannot be called back. From a *named* file that somebody else may have written,
neither passwords nor relays that act on this machine are taken, and none of our passwords are sent to its
relays. Relative paths in a file are relative to that file. Unknown keys are errors that suggest the nearest
known key. Every error names the file and the key. Passwords are read when an engine needs them, from a file,
a command or ``$OUTMAIL_PASSWORD``, and are never printed.
Fails: `ConfigError`. Does not: open stores or connect.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from outmail.clock import MINUTE, parse_span
from outmail.errors import ConfigError
from outmail.policy import settings
from outmail.policy.admission import Network, networks
from outmail.policy.loopback import LONGEST_NAME, Loopback, parse_sample
from outmail.policy.plain import plain_line
from outmail.policy.retry import Retry, Schedule
from outmail.policy.route import Relay, Routes, Rule, is_loopback, parse_relay
from outmail.policy.selection import parse_size
from outmail.policy.veil import known
from outmail.smtp.syntax import AddressError, parse_mailbox, qualified
from outmail.store import shown
from outmail.system import host, place, trust

DEFAULT_RELAY = "smtp://localhost:25"

#: The keys that contain file names. (A password_command runs in the configuration's folder.)
_PATHS = {
    "listen": ("certificate", "key", "users_file"),
    "receive": ("aliases", "certificate", "key"),
    "accept": ("aliases", "drop"),
    "reports": ("templates",),
    "loopback": ("maildir", "mbox", "password_file", "ca"),
}
_RELAY_PATHS = ("password_file", "ca")


@dataclass(frozen=True, slots=True)
class Listen:
    """``[listen]``: addresses are ``host:port`` or ``unix:/path``. ``rate``: messages a minute for each
    client, 0 for no limit.
    """

    smtp: tuple[str, ...] = ()
    lmtp: tuple[str, ...] = ()
    submission: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    certificate: str = ""
    key: str = ""
    users_file: str = ""
    connections: int = 1000
    #: None: a quarter of ``connections``; 0: no limit.
    connections_per_client: int | None = None
    rate: int = 0
    #: None: for clients of this machine and of ``networks``.
    normalise: bool | None = None
    #: Users of this machine who may use unix sockets; empty: all.
    accounts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Receive:
    """``[receive]``, for `outmail receive`. ``users``: names, or ("system",) for those of the machine."""

    smtp: tuple[str, ...] = ("127.0.0.1:2525",)
    lmtp: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    aliases: str = ""
    mailboxes: str = ""
    users: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    certificate: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Homes:
    """Mailboxes of ``[loopback]`` in which copies come home; "" for none. ``imap`` is a URL without a
    password.
    """

    maildir: str = ""
    mbox: str = ""
    imap: str = ""
    password_file: str = ""
    ca: str = ""


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a configuration can say, checked."""

    store: str
    routes: Routes
    sender: str = ""
    to: tuple[str, ...] = ()
    retry: Retry = field(default_factory=Retry)
    listen: Listen = field(default_factory=Listen)
    receive: Receive = field(default_factory=Receive)
    loopback: Loopback = field(default_factory=Loopback)
    homes: Homes = field(default_factory=Homes)
    message_size: int = 50_000_000
    recipients: int = 10_000
    #: How many recipients may wait before listeners ask clients to come back later; 0 for no limit.
    deepest: int = 0
    only_to: tuple[str, ...] = ()
    redirect_to: str = ""
    retention: Mapping[str, int] = field(
        default_factory=lambda: {
            "bodies": 7 * 86_400_000,
            "records": 90 * 86_400_000,
            "transcripts": 30 * 86_400_000,
        }
    )
    transcripts: str = "failures"
    loop: str = "asyncio"
    hostname: str = ""
    #: Finds `origin`. It may read files of the machine: at the first call only.
    find_origin: Callable[[], str] = field(default=str, repr=False, compare=False)
    #: For what sendmail hands in: the aliases of bare names, the service's drop folder ("" for the machine's
    #: own, if the service owns it), and the address that authors of this machine are written as.
    aliases: str = "/etc/aliases"
    drop: str = ""
    masquerade: str = ""
    #: Databases of applications, as URLs.
    outboxes: tuple[str, ...] = field(default=(), repr=False)
    templates: str = ""
    #: Where the service listens that owns the configured store, if that is another user's: this user's mail
    #: goes there, from a queue of its own (`_through_service`).
    through: str = ""
    #: Who is told of failed mail.
    notify_failed: tuple[str, ...] = ()
    source: str = "defaults"
    #: Relay name → the part of its table that says where the password is.
    secrets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)

    @property
    def origin(self) -> str:
        """The domain that bare names of this machine's own programs get; "" refuses bare names."""
        return self.find_origin()

    def with_passwords(self, routes: Routes) -> Routes:
        """The same routes with their passwords, which are read now from files and commands. Only an engine
        needs them.
        """
        filled = [
            replace(relay, password=_password(self.secrets[name], name))
            for name, relay in routes.relays.items()
            if name in self.secrets and relay.user and not relay.password
        ]
        for relay in filled:
            known.add_login(relay.user, relay.password, lasting=True)
        return routes.with_relays(filled)

    def as_dict(self) -> dict[str, Any]:
        """For people and `outmail config --json`; no secrets."""
        return {
            "source": self.source,
            "store": shown(self.store),
            "from": self.sender or None,
            "to": list(self.to),
            "relays": {name: relay.url for name, relay in self.routes.relays.items()},
            "routes": [
                {
                    "from": list(r.sender),
                    "to": list(r.recipient),
                    "tag": list(r.tag),
                    "relays": list(r.relays),
                }
                for r in self.routes.rules
            ],
            "retry": {
                "expire_ms": self.retry.expire,
                "steps_ms": list(self.retry.schedule.steps),
                "endless": self.retry.schedule.endless,
                "soft_bounce": self.retry.soft_bounce,
                "on_uncertain": self.retry.on_uncertain,
            },
            "limits": {
                "message_size": self.message_size,
                "recipients": self.recipients,
                "queue": self.deepest,
            },
            "listen": {
                "smtp": list(self.listen.smtp),
                "lmtp": list(self.listen.lmtp),
                "submission": list(self.listen.submission),
                "networks": [str(network) for network in self.listen.networks],
            },
            "loopback": {
                "address": self.loopback.address or None,
                "mode": self.loopback.mode,
                "message_id": "replace" if self.loopback.renames else "keep",
                "sample": f"tag:{self.loopback.tag}" if self.loopback.tag else self.loopback.share,
                "within_ms": self.loopback.within,
                "canary_ms": self.loopback.canary or None,
                **{key: getattr(self.homes, key) or None for key in ("maildir", "mbox", "imap")},
            },
            "safety": {"only_to": list(self.only_to), "redirect_to": self.redirect_to or None},
            "outboxes": [shown(url) for url in self.outboxes],
            "retention_ms": dict(self.retention),
            "transcripts": self.transcripts,
            "hostname": self.hostname,
            "accept": {
                "origin": self.origin or None,
                "aliases": self.aliases,
                "drop": self.drop or None,
                "masquerade": self.masquerade or None,
            },
            "reports": {"templates": self.templates or None},
            "notify": {"failed": list(self.notify_failed)},
        }


def load(path: str | None = None, env: Mapping[str, str] | None = None, *, through: bool = True) -> Config:
    """Find and read the configuration. Without a file the defaults hold. ``through`` False: as if the
    configured store were this user's.
    """
    env = os.environ if env is None else env
    try:
        file = trust.configuration(path or "", env)
    except OSError as problem:
        raise ConfigError(
            f"{problem.filename}: {problem.strerror}", hint="name an existing, readable file"
        ) from None
    if file is None:
        return from_toml("", "defaults", env)
    if file.found and file.doubt:
        raise ConfigError(
            f"{file.path} was found here but is not read, because {file.doubt}, and a configuration can run "
            f"programs",
            hint=f"if it is yours, let nobody else write it and its folder ({_remedy(file.path)}), or name "
            f"it: --config {file.path}; if not, name the file you mean",
        )
    try:
        data = _parsed(file.content.decode("utf-8"), file.path)
    except UnicodeDecodeError:
        raise ConfigError(f"{file.path}: not UTF-8 text") from None
    config = _checked(data, file.path, env, file.doubt)
    if _holds_secret(data):
        trust.warn_if_open(file.path, "the configuration, which holds a password,")
    return _through_service(config, env) if through else config


def _through_service(config: Config, env: Mapping[str, str]) -> Config:
    """For users who share a configuration, and do not own its store: a queue of their own, from which the
    service takes by its LMTP socket. Nobody writes to another user's store: files that root makes beside
    it, say, would lock its owner out.
    """
    path = next((one[5:] for one in config.listen.lmtp if one.startswith("unix:")), "")
    if not path or env.get("OUTMAIL_STORE") or env.get("OUTMAIL_RELAY") or not _is_anothers(config.store):
        return config
    return replace(
        config,
        store=place.user_store(env),
        routes=Routes({"default": parse_relay(f"lmtp:{path}", "default")}),
        secrets={},
        listen=Listen(),
        loopback=Loopback(),
        outboxes=(),
        notify_failed=(),
        through=path,
    )


def _is_anothers(store: str) -> bool:
    """True for a file or folder that belongs to another user, or that only another user may make."""
    found = place.parts(store)
    if not hasattr(os, "geteuid") or found is None:
        return False
    path = os.path.abspath(found[1])
    me, folder = os.geteuid(), os.path.dirname(path)
    try:
        return os.stat(path).st_uid != me
    except OSError:
        pass  # it is not there, or its folder is closed to us
    try:
        return os.stat(folder).st_uid != me and (me == 0 or not os.access(folder, os.W_OK))
    except OSError:
        return False


def _holds_secret(data: dict[str, Any]) -> bool:
    """True when a password stands in the file itself, not in one that it names."""
    if any(relay.password for relay in _relays(data, {}).values()):
        return True
    urls = (data.get("store", ""), *_outboxes(data.get("outbox", []), ""))
    return any(shown(url) != url for url in urls)


def from_toml(text: str, source: str, env: Mapping[str, str], doubt: str = "") -> Config:
    """The checked configuration of a TOML text, with the ``OUTMAIL_*`` variables that override it. ``doubt``:
    see `trust`.
    """
    return _checked(_parsed(text, source) if text else {}, source, env, doubt)


def _checked(data: dict[str, Any], source: str, env: Mapping[str, str], doubt: str) -> Config:
    try:
        if doubt:
            _check_harmless(data, env, f"because {doubt}; if it is yours: {_remedy(source)}")
        return _build(_beside(data, source), source, env)
    except ValueError as problem:
        raise ConfigError(f"{source}: {problem}") from None


def _parsed(text: str, source: str) -> dict[str, Any]:
    import tomllib  # not needed by a process without a configuration file

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise ConfigError(f"{source}: {problem}{_line_of(str(problem), text)}") from None


def _line_of(problem: str, text: str) -> str:
    """The line that a complaint of tomllib names, shown."""
    from outmail.policy.secrets import masked  # a big table, for a broken file only

    match = re.search(r"at line (\d+)", problem)
    lines = text.splitlines()
    if match is None or not 0 < int(match[1]) <= len(lines):
        return ""
    line = lines[int(match[1]) - 1].strip()
    bare = re.match(r"([\w-]+)\s*=\s*[^\"'\[{\d\s]", line)
    hint = f'; text stands in quotes: {bare[1]} = "…"' if bare else ""
    return f": {plain_line(masked(line[:200]))}{hint}"


def _build(data: dict[str, Any], source: str, env: Mapping[str, str]) -> Config:
    _check(data, settings.known(), "")
    for table in settings.TABLES:
        if table.types == (dict,) and table is not settings.RELAYS:
            _check(data.get(table.name, {}), table.known, f"{table.heading} ")
    loopback = _loopback(data.get("loopback", {}))
    relays = _relays(data, env)
    retention, limits, safety = data.get("retention", {}), data.get("limits", {}), data.get("safety", {})
    origin, accept = _origin(data), data.get("accept", {})
    to = env["OUTMAIL_TO"].split(",") if env.get("OUTMAIL_TO") else data.get("to", [])
    config = Config(
        store=env.get("OUTMAIL_STORE") or data.get("store") or place.default_store(env),
        routes=Routes(relays, _rules(data.get("route", []), relays)),
        secrets=_secrets(data, env, source),
        sender=_mailbox("from", env.get("OUTMAIL_FROM") or data.get("from", ""), origin),
        to=tuple(_mailbox("to", item, origin) for item in ([to] if isinstance(to, str) else to)),
        retry=_retry(data.get("retry", {}), loopback),
        loopback=loopback,
        homes=Homes(**{key: data["loopback"][key] for key in _HOMES if key in data.get("loopback", {})}),
        listen=_listen(data.get("listen", {})),
        receive=_receive(data.get("receive", {})),
        only_to=tuple(_texts("[safety] only_to", safety.get("only_to", []))),
        redirect_to=_mailbox("[safety] redirect_to", safety.get("redirect_to", ""), origin),
        transcripts=_one_of("transcripts", data.get("transcripts", "failures"), ("failures", "all", "none")),
        loop=_one_of("loop", data.get("loop", "asyncio"), ("asyncio", "uvloop")),
        templates=data.get("reports", {}).get("templates", ""),
        notify_failed=tuple(
            _mailbox("[notify] failed", item)
            for item in _texts("[notify] failed", data.get("notify", {}).get("failed", []))
        ),
        outboxes=_outboxes(data.get("outbox", []), env.get("OUTMAIL_OUTBOX", "")),
        hostname=data.get("hostname") or host.hostname(),
        find_origin=origin,
        aliases=accept.get("aliases", "/etc/aliases"),
        drop=accept.get("drop", ""),
        masquerade=_mailbox("[accept] masquerade", accept.get("masquerade", ""), origin),
        source=source,
    )
    known.add(env.get("OUTMAIL_PASSWORD", ""), lasting=True)
    for relay in relays.values():
        known.add_login(relay.user, relay.password, lasting=True)
    for url in config.outboxes:
        known.add_url(url, lasting=True)
    if "message_size" in limits:
        size = limits["message_size"]
        config = replace(config, message_size=size if isinstance(size, int) else parse_size(size))
    if "recipients" in limits:
        config = replace(config, recipients=limits["recipients"])
    if limits.get("queue", 0) < 0:
        raise ValueError("[limits] queue must not be negative")
    config = replace(config, deepest=limits.get("queue", 0))
    if config.templates and not os.path.isdir(config.templates):
        raise ValueError(f"[reports] templates: {config.templates} is no folder that can be seen")
    if min(config.message_size, config.recipients) <= 0:
        raise ValueError("[limits] must be greater than zero")
    ages = {
        **config.retention,
        **{key: _age(f"[retention] {key}", value) for key, value in retention.items()},
    }
    return replace(config, retention=ages)


def _check(table: Mapping[str, Any], known: Mapping[str, settings.Types], where: str) -> None:
    for key, value in table.items():
        if key not in known:
            import difflib

            near = difflib.get_close_matches(key, known, 1)
            raise ValueError(
                f"{where}unknown key {key!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}")
            )
        wanted = known[key]
        if float in wanted and isinstance(value, int) and not isinstance(value, bool):
            continue
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            names = " or ".join(
                {
                    str: "text",
                    int: "a whole number",
                    float: "a number",
                    bool: "true or false",
                    list: "a list",
                    dict: "a table",
                }[t]
                for t in wanted
            )
            raise ValueError(f"{where}{key} must be {names}, not {value!r}")


def _check_harmless(data: dict[str, Any], env: Mapping[str, str], why: str) -> None:
    """Raise for what must not come from a file that somebody else may have written: passwords, hosts that
    would get ours, and anything that acts on this machine.
    """
    for name, relay in _relays(data, {}).items():
        table = {"default": data.get("relay"), **data.get("relays", {})}.get(name)
        given = [
            key
            for key in ("password", "password_file", "password_command")
            if isinstance(table, dict) and table.get(key)
        ]
        what = (
            given[0]
            if given
            else "a password"
            if relay.password
            else f"{relay.scheme}:"
            if relay.acts_here
            else ""
        )
        if what:
            raise ValueError(f"{_where(name)}{what} is not taken from this file, {why}")
        if (
            relay.user
            and env.get("OUTMAIL_PASSWORD")
            and not (name == "default" and env.get("OUTMAIL_RELAY"))
        ):
            raise ValueError(f"{_where(name)}$OUTMAIL_PASSWORD is not sent where this file says, {why}")
    if isinstance(receive := data.get("receive", {}), dict) and receive.get("mailboxes"):
        raise ValueError(f"[receive] mailboxes is not taken from this file, {why}")
    for where, url in (
        ("store", data.get("store", "")),
        *(("[[outbox]]", url) for url in _outboxes(data.get("outbox", []), "")),
    ):
        if isinstance(url, str) and shown(url) != url:
            raise ValueError(f"{where}: a password is not taken from this file, {why}")


def _remedy(path: str) -> str:
    return f"chown root {path}; chmod go-w {path}"


def _beside(data: dict[str, Any], source: str) -> dict[str, Any]:
    """The same with relative paths made absolute, relative to the file. The current folder does not count,
    because a stranger's file may lie there.
    """
    data = {key: dict(value) if isinstance(value, dict) else value for key, value in data.items()}
    relays = data.get("relays", {})
    if isinstance(relays, dict):
        data["relays"] = relays = {
            name: dict(table) if isinstance(table, dict) else table for name, table in relays.items()
        }
    named = relays.values() if isinstance(relays, dict) else ()  # anything else is refused later
    places: list[tuple[Any, tuple[str, ...]]] = [
        (data.get(table), keys) for table, keys in _PATHS.items()
    ] + [(table, _RELAY_PATHS) for table in (data.get("relay"), *named)]
    for table, keys in places:
        for key in keys if isinstance(table, dict) else ():
            if isinstance(path := table.get(key), str) and path:
                table[key] = os.path.join(_folder(source), path)
    if isinstance(store := data.get("store"), str):
        data["store"] = place.beside(store, source)
    if isinstance(outboxes := data.get("outbox"), list):
        data["outbox"] = [
            {**table, "url": place.beside(table["url"], source)}
            if isinstance(table, dict) and isinstance(table.get("url"), str)
            else table
            for table in outboxes
        ]
    return data


def _folder(source: str) -> str:
    return os.path.dirname(os.path.abspath(source))


def _where(name: str) -> str:
    return "[relay] " if name == "default" else f"[relays.{name}] "


def _relays(data: dict[str, Any], env: Mapping[str, str]) -> dict[str, Relay]:
    tables: dict[str, Any] = {"default": data.get("relay", DEFAULT_RELAY), **data.get("relays", {})}
    relays = {}
    for name, table in tables.items():
        table = {"url": table} if isinstance(table, str) else table
        where = _where(name)
        if not isinstance(table, dict):
            raise ValueError(f"{where}must be a table with a url")
        _check(table, settings.RELAY.known, where)
        if "," in name or ":" in name:
            raise ValueError(f"{where}a relay's name may not contain a comma or colon")
        if "url" not in table:
            raise ValueError(f"{where}url is missing")
        given = {key: value for key, value in table.items() if key not in settings.RELAY_OWN}
        try:
            relay = parse_relay(table["url"], name, **given)
        except ValueError as problem:
            raise ValueError(f"{where}{problem}") from None
        relays[name] = replace(relay, password=str(table.get("password", relay.password)))
    if env.get("OUTMAIL_RELAY"):
        relays["default"] = relay_in_code(env["OUTMAIL_RELAY"], env, name="default")
    return relays


def _secrets(data: dict[str, Any], env: Mapping[str, str], source: str) -> dict[str, dict[str, Any]]:
    tables: dict[str, Any] = {"default": data.get("relay", DEFAULT_RELAY), **data.get("relays", {})}
    secrets = {}
    for name, table in tables.items():
        found = (
            {key: table[key] for key in ("password_file", "password_command") if key in table}
            if isinstance(table, dict)
            else {}
        )
        if "password_command" in found:
            found["folder"] = _folder(source)
        secrets[name] = found or {"password": env.get("OUTMAIL_PASSWORD", "")}
    return {name: found for name, found in secrets.items() if any(found.values())}


def _password(source: Mapping[str, Any], name: str) -> str:
    where = _where(name)
    if "password_file" in source:
        return secret_text(source["password_file"], f"{where}password_file").rstrip("\r\n")
    if "password_command" in source:
        return _command(source["password_command"], source["folder"], where)
    return str(source["password"])


def secret_text(path: str, what: str) -> str:
    """The text of a file that decides who may do what. It is trusted only when nobody else may have written
    it. Raises `ConfigError`.
    """
    try:
        file = trust.read(path)
        text = file.content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{what} {path}: {getattr(problem, 'strerror', None) or problem}") from None
    if file.doubt:
        raise ConfigError(
            f"{what} {path} is not used, because {file.doubt}",
            hint=f"let only yourself or root own and write it: {_remedy(path)}",
        )
    trust.warn_if_open(path, what)
    return text


def _command(command: str | list[str], folder: str, where: str) -> str:
    import shlex
    import subprocess

    words = shlex.split(command) if isinstance(command, str) else command
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
            stdin=subprocess.DEVNULL,
            cwd=folder,
        )
    except (OSError, subprocess.SubprocessError) as problem:
        raise ConfigError(f"{where}password_command failed: {problem}") from None
    return done.stdout.rstrip("\r\n")


def relay_in_code(url: str, env: Mapping[str, str] | None = None, name: str = "") -> Relay:
    """A relay given in code or on the command line. ``$OUTMAIL_PASSWORD`` is used when the URL has a user and
    no password.
    """
    try:
        relay = parse_relay(url, name)
    except ValueError as problem:
        raise ConfigError(str(problem)) from None
    if relay.user and not relay.password:
        relay = replace(relay, password=(os.environ if env is None else env).get("OUTMAIL_PASSWORD", ""))
    known.add_login(relay.user, relay.password)
    return relay


def _rules(tables: list[Any], relays: Mapping[str, Relay]) -> tuple[Rule, ...]:
    rules = []
    for i, table in enumerate(tables, 1):
        where = f"[[route]] {i}: "
        if not isinstance(table, dict):
            raise ValueError(f"{where}must be a table")
        _check(table, settings.ROUTE.known, where)
        names = _texts(f"{where}relays", table.get("relays", []))
        for name in names:
            if name not in relays:
                import difflib

                near = difflib.get_close_matches(name, relays, 1)
                raise ValueError(
                    f"{where}no relay is named {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
                )
        if not names:
            raise ValueError(f"{where}relays is empty")
        globs = [tuple(_texts(f"{where}{key}", table.get(key, "*"))) for key in ("from", "to", "tag")]
        rules.append(Rule(globs[0], globs[1], globs[2], tuple(names)))
    return tuple(rules)


def _outboxes(tables: list[Any], more: str) -> tuple[str, ...]:
    urls = [more] if more else []
    for i, table in enumerate(tables, 1):
        where = f"[[outbox]] {i}: "
        if not isinstance(table, dict):
            raise ValueError(f"{where}must be a table with a url")
        _check(table, settings.OUTBOX.known, where)
        if not table.get("url"):
            raise ValueError(f"{where}url is missing")
        urls.append(table["url"])
    return tuple(dict.fromkeys(urls))


_HOMES = ("maildir", "mbox", "imap", "password_file", "ca")


def _loopback(table: Mapping[str, Any]) -> Loopback:
    if not table:
        return Loopback()
    address = _mailbox("[loopback] address", table.get("address", ""))
    if not address:
        raise ValueError("[loopback] address is missing: where the copies go, such as loop@example.org")
    name = address.rpartition("@")[0]
    if len(name) > LONGEST_NAME or "+" in name or not name.isascii():
        raise ValueError(
            f"[loopback] address: {name!r} must be at most {LONGEST_NAME} ASCII characters without a plus, "
            f"because the token of 48 goes behind it"
        )
    try:
        share, tag = parse_sample(table.get("sample", 1))
    except ValueError as problem:
        raise ValueError(f"[loopback] {problem}") from None
    within = _age("[loopback] within", table.get("within", "10m"))
    if within <= 0:
        raise ValueError("[loopback] within must be longer than nothing")
    mode = _one_of("[loopback] mode", table.get("mode", "token"), ("token", "message-id"))
    canary = _age("[loopback] canary", table["canary"]) if table.get("canary") else 0
    if table.get("canary") and canary < MINUTE:
        raise ValueError("[loopback] canary: one mail a minute by each relay is the most")
    message_id = _one_of("[loopback] message_id", table.get("message_id", "keep"), ("keep", "replace"))
    return Loopback(address, mode, share, tag, canary, within, message_id == "replace")  # type: ignore[arg-type]


def _retry(table: Mapping[str, Any], loopback: Loopback) -> Retry:
    retry = Retry()
    if "schedule" in table:
        retry = replace(retry, schedule=Schedule.parse(table["schedule"]))
    if "expire" in table:
        retry = replace(retry, expire=_age("[retry] expire", table["expire"]))
    policy = table.get("on_uncertain", "retry")
    _one_of("[retry] on_uncertain", policy, ("retry", "hold", "verify"))
    if policy == "verify" and (not loopback.address or loopback.mode != "token"):
        raise ValueError(
            '[retry] on_uncertain = "verify" needs loopback copies that come home: set [loopback] address, '
            'with mode = "token"'
        )
    retry = replace(retry, soft_bounce=table.get("soft_bounce", False), on_uncertain=policy)
    return replace(retry, within=loopback.within) if loopback.address else retry


def _listen(table: dict[str, Any]) -> Listen:
    texts = {
        key: tuple(_texts(f"[listen] {key}", table.get(key, [])))
        for key in ("smtp", "lmtp", "submission", "networks", "accounts")
    }
    plain = ("certificate", "key", "users_file", "connections", "connections_per_client", "rate", "normalise")
    given = {key: table[key] for key in plain if key in table}
    listen = Listen(
        texts["smtp"],
        texts["lmtp"],
        texts["submission"],
        networks(texts["networks"]),
        accounts=texts["accounts"],
        **given,
    )
    if listen.connections < 1 or listen.rate < 0 or (listen.connections_per_client or 0) < 0:
        raise ValueError(
            "[listen] connections must be at least 1; connections_per_client and rate must not be negative"
        )
    for kind in ("smtp", "lmtp", "submission"):
        for address in texts[kind]:
            _check_address(listen, kind, address)
    if listen.submission and not listen.users_file:
        raise ValueError(
            "[listen] submission needs users_file: who may send, with a hashed password each (outmail config "
            "--hash)"
        )
    return listen


def _receive(table: dict[str, Any]) -> Receive:
    given: dict[str, Any] = {
        key: tuple(_texts(f"[receive] {key}", table[key]))
        for key in ("smtp", "lmtp", "domains", "users")
        if key in table
    }
    given |= {key: table[key] for key in ("aliases", "mailboxes", "certificate", "key") if key in table}
    receive = Receive(**given, networks=networks(_texts("[receive] networks", table.get("networks", []))))
    if receive.mailboxes and ("{user}" not in receive.mailboxes or not receive.mailboxes.startswith("/")):
        raise ValueError(
            "[receive] mailboxes must be a path with {user} in it, such as /var/mail/{user} (mbox) or "
            "/home/{user}/Maildir/ (Maildir)"
        )
    return receive


def _check_address(listen: Listen, kind: str, address: str) -> None:
    """Loopback and unix sockets are open to this machine. Any other address must say for whom it is."""
    if address.startswith("unix:/"):
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or not host:
        raise ValueError(
            f"[listen] {kind}: {address!r} is no address: write such as 127.0.0.1:2525, [::1]:2525 or "
            f"unix:/run/outmail.sock"
        )
    if is_loopback(host.strip("[]")):
        return
    if kind == "submission" and listen.certificate:
        return
    if kind != "submission" and (
        listen.networks or (kind == "smtp" and listen.certificate and listen.users_file)
    ):
        return
    wanted = (
        "certificate"
        if kind == "submission"
        else "networks, or certificate and users_file"
        if kind == "smtp"
        else "networks"
    )
    raise ValueError(
        f"[listen] {kind}: {address} is open to other machines; set {wanted} too, or listen on 127.0.0.1"
    )


def _age(where: str, text: str) -> int:
    try:
        return parse_span(text)
    except ValueError as problem:
        raise ValueError(f"{where}: {problem}") from None


def _one_of(where: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{where} = {value!r}: known are {', '.join(known)}")
    return value


def _texts(where: str, value: Any) -> list[str]:
    items = [value] if isinstance(value, str) else value
    if not all(isinstance(item, str) and item for item in items):
        raise ValueError(f"{where} must be a list of text")
    return list(items)


def _origin(data: Mapping[str, Any]) -> Callable[[], str]:
    """``[accept] origin``, else what the machine calls itself in mail. Its files are read when it is asked
    for: /etc/hosts can be long, and most commands need no origin.
    """
    given = data.get("accept", {}).get("origin")
    if given is None:
        return _MachinesOrigin(data.get("hostname", ""))
    try:
        domain = parse_mailbox(f"x@{given}").domain if given else ""
    except AddressError:
        raise ValueError(f"[accept] origin = {given!r} is no domain: write such as example.org") from None
    return partial(str, domain)


class _MachinesOrigin:
    """What the machine calls itself in mail, found at the first call. A name that is no domain is passed
    over. It can be pickled: a configuration goes to detached engines.
    """

    def __init__(self, hostname: str) -> None:
        self._hostname = hostname
        self._found = ""

    def __call__(self) -> str:
        self._found = self._found or self._find()
        return self._found

    def _find(self) -> str:
        for name in (host.mail_name(), self._hostname or host.full_name()):
            with suppress(AddressError):
                return parse_mailbox(f"x@{name}").domain
        return "localhost"


def _mailbox(where: str, text: str, origin: Callable[[], str] = str) -> str:
    if not text:
        return ""
    try:
        return str(parse_mailbox(qualified(text.strip(), "" if "@" in text else origin())))
    except AddressError as problem:
        raise ValueError(f"{where}: {problem}") from None
