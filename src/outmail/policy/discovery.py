"""Which server takes the mail of an address, from what the network says about its domain.

Ways, in this order (`cli.lookup` asks, this module understands the answers):
1. the table of providers, by the address's domain;
2. SRV records ``_submissions._tcp`` and ``_submission._tcp`` (RFC 6186, RFC 8314 §5.1);
3. Mozilla's autoconfig, https://wiki.mozilla.org/Thunderbird:Autoconfiguration:ConfigFileFormat: the domain's
   own files, then the collection at autoconfig.thunderbird.net;
4. the table of providers, by the domain's MX records;
5. Exchange's Autodiscover, by the name that autodiscover.DOMAIN leads to. The protocol itself is not used:
   it wants the password before anybody knows who gets it.
Promises: pure. Only servers with TLS and a password are taken. XML is read without entities and document
types, and everything that a stranger's file says is checked as a host, a port and a login.
Fails: `ValueError` for a file that is no autoconfig file. Does not: connect.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple
from xml.parsers import expat

from outmail.policy.providers import Provider, Tls, by_key

#: Bytes of an autoconfig file that are read. The largest one known has 8,000.
MOST = 200_000
_HOST = re.compile(r"(?=.{1,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{2,63}", re.I)
_TLS: dict[str, Tls] = {"SSL": "implicit", "STARTTLS": "starttls"}
#: Ends of the names to which autodiscover.DOMAIN leads for customers of Microsoft 365.
_MICROSOFT = ("outlook.com", "office.com", "office365.com")


class Server(NamedTuple):
    """Where mail can be handed in, and how one logs in there. ``found`` says, for a person, who said so.
    ``sure`` False: DNS without a signature said so, and the host is not of the address's own domain.
    """

    host: str
    port: int
    tls: Tls
    user: str
    found: str
    note: str = ""
    sure: bool = True

    @property
    def url(self) -> str:
        """The relay's URL without the login."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'smtps' if self.tls == 'implicit' else 'smtp'}://{host}:{self.port}"


class Srv(NamedTuple):
    """One SRV record (RFC 2782). A target of "." says that the service does not exist."""

    priority: int
    weight: int
    port: int
    target: str


def of_provider(provider: Provider, address: str, how: str) -> Server:
    """The server of a provider of the table; ``user`` is "" when it must be asked for."""
    user = provider.user.format(address=address, local=address.rpartition("@")[0])
    found = f"{provider.name}, {how} ({provider.source}, as of {provider.read})"
    return Server(provider.host, provider.port, provider.tls, user, found, provider.note)


def by_srv(submissions: Sequence[Srv], submission: Sequence[Srv], address: str) -> Server | None:
    """The preferred server of the records; TLS from the first byte before STARTTLS, whatever the priority
    (RFC 8314 §5.1 leaves that to the client).
    """
    kinds: tuple[tuple[Sequence[Srv], Tls], ...] = ((submissions, "implicit"), (submission, "starttls"))
    for records, tls in kinds:
        for record in sorted(records, key=lambda one: (one.priority, -one.weight)):
            host = record.target.rstrip(".").lower()
            if _is_host(host) and 0 < record.port < 65536:
                sure = _within(host, address.rpartition("@")[2].lower())
                return Server(host, record.port, tls, address, "SRV records of the domain", sure=sure)
    return None


def by_autodiscover(name: str, address: str) -> Server | None:
    """Microsoft 365, when autodiscover.DOMAIN leads to ``name`` there."""
    provider = by_key("microsoft365")
    plain = name.lower().rstrip(".")
    if provider is None or not any(plain.endswith(f".{end}") for end in _MICROSOFT):
        return None
    return of_provider(provider, address, "as the name autodiscover of the domain says")


def by_autoconfig(document: bytes, address: str, where: str) -> Server | None:
    """The first server with TLS and a password in an autoconfig file; None when it names none. Raises
    ValueError for what is no such file.
    """
    servers = [_server(found, address, where) for found in _outgoing(document)]
    taken = [one for one in servers if one is not None]
    return min(taken, key=lambda one: one.tls != "implicit", default=None)


def _within(host: str, domain: str) -> bool:
    return host == domain or host.endswith(f".{domain}")


def _is_host(name: str) -> bool:
    return _HOST.fullmatch(name) is not None


def _server(found: dict[str, list[str]], address: str, where: str) -> Server | None:
    """A server of the file; None for one that we cannot use, or that is nonsense."""
    host, port, user = (_first(found, key) for key in ("hostname", "port", "username"))
    host = _filled(host, address).lower()
    tls = _TLS.get(_first(found, "socketType"))
    ways = found.get("authentication", [])
    if tls is None or not _is_host(host) or not port.isascii() or not port.isdecimal():
        return None
    login = _filled(user, address)
    if not 0 < int(port) < 65536 or not login.isprintable() or len(login) > 254:
        return None
    if not login or (ways and not {"password-cleartext", "plain", "password-encrypted"}.intersection(ways)):
        return None
    return Server(host, int(port), tls, login, where)


def _first(found: dict[str, list[str]], key: str) -> str:
    return next((value for value in found.get(key, []) if value), "")


def _filled(text: str, address: str) -> str:
    local, _, domain = address.rpartition("@")
    for mark, value in (("%EMAILADDRESS%", address), ("%EMAILLOCALPART%", local), ("%EMAILDOMAIN%", domain)):
        text = text.replace(mark, value)
    return text


class _Reader:
    """Collects the texts of each ``outgoingServer`` of type smtp while expat reads."""

    def __init__(self) -> None:
        self.servers: list[dict[str, list[str]]] = []
        self._path: list[str] = []
        self._text = ""
        self._inside = False
        self.root = ""

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.root = self.root or name
        self._path.append(name)
        self._text = ""
        if name == "outgoingServer" and attributes.get("type", "smtp") == "smtp":
            self._inside = True
            self.servers.append({})

    def text(self, data: str) -> None:
        self._text = (self._text + data)[:1000]

    def end(self, name: str) -> None:
        self._path.pop()
        if name == "outgoingServer":
            self._inside = False
        elif self._inside and self._path[-1:] == ["outgoingServer"]:
            self.servers[-1].setdefault(name, []).append(self._text.strip())
        self._text = ""

    def refuse(self, *_: object) -> None:
        raise ValueError("a document type is not taken")


def _outgoing(document: bytes) -> list[dict[str, list[str]]]:
    """The elements of each outgoing server, by name. Nothing outside the file is ever read for it."""
    reader, parser = _Reader(), expat.ParserCreate()
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    parser.StartDoctypeDeclHandler = reader.refuse
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler = reader.text
    try:
        parser.Parse(document[:MOST], True)
    except expat.ExpatError as problem:
        raise ValueError(f"it is no XML: {problem}") from None
    if reader.root != "clientConfig":
        raise ValueError("it is no autoconfig file")
    return reader.servers
