"""Relays and routes: what a relay URL means, and which relays a recipient's mail may take.

Promises: pure. `parse_relay` turns a URL and its settings into one immutable `Relay`, or raises ValueError
with a sentence. A relay given in code has its own URL as its name, in canonical form and without the password
(``smtps://me@isp.example:465``). A route's name is the names of its relays joined by commas, so a name in the
store says which relays are meant, even after the rules of the configuration were reordered.
Does not: resolve host names, open files or read passwords (`config` does).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import translate
from functools import lru_cache
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

Tls = Literal["implicit", "required", "off-loopback", "opportunistic", "none"]

_PORTS = {"smtp": 25, "smtps": 465, "smtp+plain": 25, "lmtp": 24}
_LOCAL = ("sendmail", "maildir", "mailbox", "file", "null")
LOOPBACK = ("localhost", "localhost.localdomain", "ip6-localhost", "::1")


def is_loopback(host: str) -> bool:
    """True for the names and addresses of this machine itself."""
    return host.lower() in LOOPBACK or bool(re.fullmatch(r"127\.\d+\.\d+\.\d+", host))


@dataclass(frozen=True, slots=True)
class Relay:
    """One next hop. ``scheme``: smtp, lmtp, sendmail, maildir, mailbox (with {user} in its path), file or
    null.

    ``tls``: implicit, required (STARTTLS), off-loopback (required, but not on loopback), opportunistic
    (STARTTLS where it is offered; `outmail.compat` alone uses it) or none. ``verify`` False trusts any
    certificate; ``ca`` is a PEM file; ``fingerprint`` pins the SHA-256 of the certificate.
    ``timeout`` in seconds bounds each step but the final dot's, which gets ten minutes at least (RFC 5321
    §4.5.3.2.6). ``rate`` is messages per second, 0 for no limit.
    """

    name: str
    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    tls: Tls = "off-loopback"
    verify: bool = True
    ca: str = ""
    fingerprint: str = ""
    insecure_auth: bool = False
    pipelining: bool = True
    concurrency: int = 20
    rate: float = 0.0
    timeout: float = 120.0
    dot_timeout: float = 600.0

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host) or (self.scheme == "lmtp" and bool(self.path))

    @property
    def acts_here(self) -> bool:
        """True when it starts a program, writes files or opens a socket file on this machine. Only
        configuration and code may name such a relay.
        """
        return self.scheme != "null" and (self.scheme in _LOCAL or bool(self.path))

    @property
    def starttls(self) -> bool:
        """True when the dialogue must be encrypted by STARTTLS."""
        return self.tls == "required" or (self.tls == "off-loopback" and not self.loopback)

    @property
    def url(self) -> str:
        """Canonical form without the password."""
        if self.scheme == "null":
            return "null:"
        if self.scheme in _LOCAL or self.path:
            return f"{self.scheme}:{self.path}"
        scheme = self.scheme
        if scheme == "smtp" and self.tls == "implicit":
            scheme = "smtps"
        elif scheme == "smtp" and self.tls == "none":
            scheme = "smtp+plain"
        user = quote(self.user, safe="") + "@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{user}{host}:{self.port}"


#: Limits in characters: of a relay's URL, and of a route that a stranger names (an index entry of a store has
#: at most 2,700 bytes).
MAX_URL = 2000
MAX_STORED = 600


def parse_relay(url: str, name: str = "", **settings: object) -> Relay:
    """A relay URL and settings (the keys of ``[relay]``) → Relay; ValueError says what is wrong."""
    if len(url) > MAX_URL:
        raise ValueError(f"a relay's URL has at most {MAX_URL} characters, not {len(url)}")
    scheme, colon, rest = url.strip().partition(":")
    scheme = scheme.lower()
    if not colon or scheme not in (*_PORTS, *_LOCAL):
        known = "smtp://, smtps://, smtp+plain://, lmtp:, sendmail:/path, maildir:/path, file:/dir and null:"
        raise ValueError(f"{_masked(url)!r} is not a relay: known are {known}")
    if scheme in _LOCAL or (scheme == "lmtp" and not rest.startswith("//")):
        relay = _local(scheme, rest, url)
    else:
        relay = _remote(scheme, url)
    relay = _with_settings(relay, settings)
    return replace(relay, name=name or relay.url)


def _masked(url: str) -> str:
    return re.sub(r"(://[^:/@]{0,200}):[^@]{0,1000}@", r"\1:…@", url)


def _local(scheme: str, rest: str, url: str) -> Relay:
    path = unquote(rest[2:] if rest.startswith("//") else rest)
    if scheme == "null":
        if path:
            raise ValueError(f"{url!r}: null: takes no path")
        return Relay("", "null", tls="none")
    if not path.startswith("/"):
        raise ValueError(f"{url!r}: the path must be absolute, such as {scheme}:/var/mail")
    return Relay("", scheme, path=path, tls="none")


def _remote(scheme: str, url: str) -> Relay:
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as problem:
        raise ValueError(f"{_masked(url)!r} cannot be read as a URL: {problem}") from None
    host = (parts.hostname or "").rstrip(".")
    if not host or re.search(r"[\s\x00-\x1f\x7f]", unquote(host)):
        raise ValueError(f"{_masked(url)!r}: a host name is missing or malformed")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{_masked(url)!r}: nothing may follow host and port; settings go beside the url")
    user = unquote(parts.username or "")
    if port is None:
        port = 587 if scheme == "smtp" and user else _PORTS[scheme]
    if not 0 < port < 65536:
        raise ValueError(f"{_masked(url)!r}: port {port} does not exist")
    tls: Tls = "off-loopback"
    if scheme == "smtps" or (scheme == "smtp" and port == 465):
        tls = "implicit"
    elif scheme in ("smtp+plain", "lmtp"):
        tls = "none"
    base = "lmtp" if scheme == "lmtp" else "smtp"
    return Relay("", base, host, port, user=user, password=unquote(parts.password or ""), tls=tls)


def _with_settings(relay: Relay, settings: Mapping[str, object]) -> Relay:
    for key, value in settings.items():
        if key == "tls":
            value = _tls(relay, value)
        elif key == "fingerprint":
            value = _fingerprint(str(value))
        elif key in ("timeout", "dot_timeout", "concurrency") and not float(value) > 0:  # type: ignore[arg-type]
            raise ValueError(f"{key} must be greater than zero, not {value!r}")
        elif key == "rate" and float(value) < 0:  # type: ignore[arg-type]
            raise ValueError(f"rate must not be negative, not {value!r}")
        relay = replace(relay, **{key: value})  # type: ignore[arg-type]
    return relay


def _tls(relay: Relay, value: object) -> Tls:
    if value not in ("implicit", "required", "none", "off-loopback"):
        raise ValueError(f'tls = {value!r}: known are "required" (STARTTLS), "implicit" and "none"')
    if relay.scheme not in ("smtp", "lmtp"):
        raise ValueError(f"tls means nothing for {relay.scheme}:")
    return value


def _fingerprint(value: str) -> str:
    plain = value.lower().removeprefix("sha256:").replace(":", "").strip()
    if not re.fullmatch(r"[0-9a-f]{64}", plain):
        raise ValueError("fingerprint must be the SHA-256 of the certificate: 64 hexadecimal digits")
    return plain


@lru_cache(256)
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(translate(glob.lower()))


def matches(glob: str, value: str) -> bool:
    """A shell pattern against an address or tag; case does not matter. A pattern without ``@`` and wildcards
    is a domain.
    """
    if "@" not in glob and not any(c in glob for c in "*?["):
        return value.lower().rpartition("@")[2] == glob.lower()
    return _pattern(glob).match(value.lower()) is not None


@dataclass(frozen=True, slots=True)
class Rule:
    """One ``[[route]]``: patterns for sender, recipient and tag, and the relays in the order in which they
    are tried.
    """

    sender: tuple[str, ...]
    recipient: tuple[str, ...]
    tag: tuple[str, ...]
    relays: tuple[str, ...]

    def fits(self, sender: str, recipient: str, tag: str) -> bool:
        return (
            any(glob == "*" or matches(glob, sender) for glob in self.sender)
            and any(glob == "*" or matches(glob, recipient) for glob in self.recipient)
            and any(glob == "*" or _pattern(glob).match(tag.lower()) is not None for glob in self.tag)
        )


@dataclass(frozen=True, slots=True)
class Routes:
    """The relays an engine knows, by name, and the rules that choose among them."""

    relays: Mapping[str, Relay]
    rules: tuple[Rule, ...] = ()
    fallback: str = "default"

    def choose(self, sender: str, recipient: str, tag: str | None) -> str:
        """The route's name for one recipient: of the first rule that matches, else the default."""
        for rule in self.rules:
            if rule.fits(sender, recipient, tag or ""):
                return ",".join(rule.relays)
        return self.fallback

    def resolve(self, route: str) -> tuple[Relay, ...]:
        """The relays of a stored route name, in the order in which they are tried; empty = unknown here,
        leave the mail queued.

        Known are configured names, URLs given in code, URLs equal to a configured relay's, and every URL that
        needs no secret and only talks to a server. A program, file or socket on this machine is not used
        because a row in the store names it: whoever can leave mail could otherwise act as the user who sends
        it.
        """
        return tuple(relay for relay in map(self._relay, route.split(",")) if relay is not None)

    def _relay(self, name: str) -> Relay | None:
        if name in self.relays:
            return self.relays[name]
        for relay in self.relays.values():
            if relay.url == name:
                return relay
        named = _parsed(name)
        return None if named is None or named.user or named.acts_here else named

    def hopeless(self, route: str) -> str:
        """The first part of a route's name that no engine may use unless it is configured there, and that is
        not known here; "" if there is none. A URL with a user name is not such a part: another engine may
        know its password.
        """
        if len(route) > MAX_STORED:
            return route
        for name in route.split(","):
            if self._relay(name) is None and ((relay := _parsed(name)) is None or relay.acts_here):
                return name or route or "(empty)"
        return ""

    def named(self, route: str) -> str:
        """What mail that takes ``route`` is stored under: the name of a configured relay, a relay's URL, or
        several of them with commas, in fallback order. ValueError for what an engine with these relays would
        not take, so that nobody sends mail where it waits for ever.
        """
        parts = [self._known_name(part.strip()) for part in route.split(",")]
        if len(",".join(parts)) > MAX_STORED:
            raise ValueError(f"a route has at most {MAX_STORED} characters")
        return ",".join(parts)

    def _known_name(self, name: str) -> str:
        if name in self.relays:
            return name
        if ":" not in name:
            raise ValueError(f"no relay is named {name!r}; known are {', '.join(self.relays)}")
        url = parse_relay(name).url
        if self._relay(url) is None:
            raise ValueError(
                f"{url} is not among the relays known here, and needs a password or acts on this machine"
            )
        return url

    def with_relays(self, extra: Iterable[Relay]) -> Routes:
        """The same rules with more relays; these replace relays of the same name."""
        return replace(self, relays={**self.relays, **{relay.name: relay for relay in extra}})


def _parsed(name: str) -> Relay | None:
    """The relay of a URL that is its own name; None when it is no URL."""
    if ":" not in name or len(name) > MAX_URL or not name.isprintable():
        return None
    try:
        return parse_relay(name)
    except ValueError:
        return None


def allowed(only_to: tuple[str, ...], address: str) -> bool:
    """``[safety] only_to``: an empty list allows all."""
    return not only_to or any(matches(glob, address) for glob in only_to)
