"""Asking the network which server takes the mail of an address (`policy.discovery` says in which order, and
understands the answers).

Promises: https only, also behind a redirect; at most `REDIRECTS` of them and `MOST` bytes. Everything is
asked at once, and answered or given up within `PATIENCE` seconds. The whole address goes only to servers of
its own domain; the collection at autoconfig.thunderbird.net is asked for the domain. Nobody gets a password.
Fails: never; what did not answer is named in `Found.missed`. Does not: try a server. SRV and MX records need
dnspython (``outmail[init]``) and are left out where it is missing.
"""

from __future__ import annotations

import queue
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from outmail.policy.discovery import MOST, Server, Srv, by_autoconfig, by_autodiscover, by_srv, of_provider
from outmail.policy.providers import by_domain, by_mx
from outmail.smtp.syntax import printable

#: Seconds for everything together, and for one step of one connection.
PATIENCE = 8.0
STEP = 4.0
REDIRECTS = 3
#: Submission with TLS from the first byte, and with STARTTLS.
PORTS = (465, 587)


def srv_records(name: str) -> list[Srv]:
    """The SRV records of a name; empty where there are none."""
    return [Srv(r.priority, r.weight, r.port, r.target.to_text()) for r in _records(name, "SRV")]


def mx_names(domain: str) -> tuple[str, ...]:
    """The names of the servers that receive the domain's mail, the preferred one first."""
    records = sorted(_records(domain, "MX"), key=lambda record: int(record.preference))
    return tuple(record.exchange.to_text() for record in records)


def _records(name: str, kind: str) -> list[Any]:
    """Answers of the machine's own resolver; empty for none, and without dnspython."""
    try:
        import dns.exception
        import dns.resolver
    except ImportError:
        return []
    try:
        return list(dns.resolver.resolve(f"{name}.", kind, lifetime=STEP))
    except (dns.exception.DNSException, OSError, ValueError):
        return []


def canonical(name: str) -> str:
    """The name that a name leads to; "" where there is none."""
    import socket

    try:
        return str(socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME)[0][3])
    except (OSError, UnicodeError):
        return ""


def autoconfig_urls(address: str) -> list[str]:
    """Where an autoconfig file for an address may be: the domain's own places first."""
    from urllib.parse import quote

    domain, asked = address.rpartition("@")[2], quote(address)
    return [
        f"https://autoconfig.{domain}/mail/config-v1.1.xml?emailaddress={asked}",
        f"https://{domain}/.well-known/autoconfig/mail/config-v1.1.xml?emailaddress={asked}",
        f"https://autoconfig.thunderbird.net/v1.1/{domain}",
    ]


def fetch(url: str, context: ssl.SSLContext | None = None, *, patience: float = PATIENCE) -> bytes:
    """The document at an https URL; b"" when there is none. Raises OSError and ValueError."""
    from http.client import HTTPException
    from urllib.parse import urljoin

    ends = time.monotonic() + patience
    for _ in range(REDIRECTS + 1):
        try:
            body, onward = _get(url, context or ssl.create_default_context(), ends)
        except HTTPException as problem:
            raise OSError(f"no HTTP: {problem!r}") from None
        if not onward:
            return body
        url = urljoin(url, onward)
    raise ValueError(f"more than {REDIRECTS} redirects")


def _get(url: str, context: ssl.SSLContext, ends: float) -> tuple[bytes, str]:
    """(the document, "") or (b"", where it has moved to)."""
    from http.client import HTTPSConnection
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise ValueError(f"{printable(url)} is not https")
    line = HTTPSConnection(parts.hostname, parts.port or 443, timeout=STEP, context=context)
    try:
        line.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        answer = line.getresponse()
        if answer.status in (301, 302, 303, 307, 308):
            return b"", answer.headers.get("Location", "")
        return (_read(answer, ends) if answer.status == 200 else b""), ""
    finally:
        line.close()


def _read(answer: Any, ends: float) -> bytes:
    """The body, bounded in size and time: a server that drips is given up."""
    parts, size = [], 0
    while part := answer.read1(16_384):
        parts.append(part)
        size += len(part)
        if size > MOST:
            raise ValueError(f"more than {MOST} bytes")
        if time.monotonic() > ends:
            raise OSError("it was too slow")
    return b"".join(parts)


@dataclass
class Ways:
    """What asks; tests put their own in."""

    srv: Callable[[str], Sequence[Srv]] = srv_records
    mx: Callable[[str], tuple[str, ...]] = mx_names
    name: Callable[[str], str] = canonical
    urls: Callable[[str], list[str]] = autoconfig_urls
    get: Callable[[str], bytes] = fetch
    patience: float = PATIENCE


@dataclass
class Found:
    """``server`` None: nobody knows. ``missed``: what was asked and gave no usable answer, for a person."""

    server: Server | None = None
    missed: list[str] = field(default_factory=list)


def find(address: str, ways: Ways | None = None) -> Found:
    """The server for an address."""
    domain = address.rpartition("@")[2].lower()
    if (provider := by_domain(domain)) is not None:
        return Found(of_provider(provider, address, "by its table"))
    ways = ways or Ways()
    urls = ways.urls(address)
    answers = _asked(
        [
            lambda: ways.srv(f"_submissions._tcp.{domain}"),
            lambda: ways.srv(f"_submission._tcp.{domain}"),
            lambda: ways.mx(domain),
            lambda: ways.name(f"autodiscover.{domain}"),
            *((lambda url=url: ways.get(url)) for url in urls),
        ],
        ways.patience,
    )
    submissions, submission, mx, name, *documents = answers
    found = Found(by_srv(_or(submissions, []), _or(submission, []), address))
    for url, document in zip(urls, documents):
        found.server = found.server or _read_autoconfig(url, document, address, found.missed)
    if found.server is None and (provider := by_mx(_or(mx, ()))) is not None:
        found.server = of_provider(provider, address, "as the domain's MX records say")
    found.server = found.server or by_autodiscover(_or(name, ""), address)
    return found


def at_host(host: str, user: str, ports: tuple[int, int] = PORTS) -> Server | None:
    """What answers at a host that was named without a port: TLS from the first byte before STARTTLS (RFC
    8314 §3.3); None when neither does. Nothing but a greeting is exchanged.
    """
    import asyncio

    from outmail.system.host import hostname
    from outmail.transport.probe import look

    async def both() -> Server | None:
        name = hostname()
        first, second = await asyncio.gather(
            look(host, ports[0], name, encrypted=True), look(host, ports[1], name)
        )
        if first.speaks == "tls":
            return Server(host, ports[0], "implicit", user, "what answers there")
        if second.starttls:
            return Server(host, ports[1], "starttls", user, "what answers there")
        return None

    return asyncio.run(both())


def _or(answer: Any, default: Any) -> Any:
    return default if isinstance(answer, BaseException) else answer


def _read_autoconfig(url: str, document: Any, address: str, missed: list[str]) -> Server | None:
    place = url.partition("?")[0]
    if isinstance(document, BaseException):
        missed.append(f"{place}: {getattr(document, 'reason', None) or document}")
        return None
    if not document:
        missed.append(f"{place}: there is nothing")
        return None
    try:
        server = by_autoconfig(document, address, place)
    except ValueError as problem:
        missed.append(f"{place}: {problem}")
        return None
    if server is None:
        missed.append(f"{place}: it names no server with TLS and a password")
    return server


def _asked(questions: Sequence[Callable[[], Any]], patience: float) -> list[Any]:
    """The answers, in order; an exception where one failed or was too slow. The threads that still wait then
    are daemons: nobody waits for them.
    """
    answers: list[Any] = [OSError(f"no answer within {patience:g} s")] * len(questions)
    arrived: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()

    def work(i: int) -> None:
        try:
            arrived.put((i, questions[i]()))
        except Exception as problem:  # a thread has nobody else to tell; the caller names it
            arrived.put((i, problem))

    for i in range(len(questions)):
        threading.Thread(target=work, args=(i,), name="outmail-lookup", daemon=True).start()
    ends = time.monotonic() + patience
    for _ in questions:
        try:
            i, answer = arrived.get(timeout=max(ends - time.monotonic(), 0))
        except queue.Empty:
            break
        answers[i] = answer
    return answers
