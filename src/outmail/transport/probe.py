"""A look at what answers at a relay's address, to explain why a session with it failed.

Why a second handshake shows a certificate that is not trusted: Python tells nothing of the certificate that
the first one refused (`SSLSocket.getpeercert` and `get_unverified_chain` need a finished handshake).
Promises: no password and no mail is sent; certificates are read, not judged; each step ends within `PATIENCE`
seconds. Fails: never; what could not be seen is not in the answer. Does not: say what it means.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from outmail.policy.route import Relay
from outmail.transport.certificate import Certificate, distrusted, read

PATIENCE = 4.0
#: Seconds for which a certificate that was seen is not looked at again.
FRESH = 3600.0
#: Where a server was found: (family, sockaddr).
Address = tuple[int, Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """``speaks``: "smtp" (in clear, at first), "tls" (from the start), "other" (something else), "silence"
    (connected, and nothing came), or "nothing" (no connection).
    """

    speaks: Literal["smtp", "tls", "other", "silence", "nothing"]
    starttls: bool = False
    certificate: Certificate | None = None


async def look(
    host: str,
    port: int,
    hostname: str,
    *,
    encrypted: bool = False,
    at: Address | None = None,
    lmtp: bool = False,
) -> Seen:
    """What answers there; ``hostname`` is said in EHLO; ``encrypted``: look for TLS first; ``at``: where the
    host was found, else it is looked up.
    """
    place = _Place(host, port, at)
    if encrypted and (seen := await _encrypted(place)).speaks == "tls":
        return seen
    try:
        async with place.line() as (reader, writer):
            try:
                banner = await _reply(reader)
            except TimeoutError:
                return await _encrypted(place)
            if not banner:
                return await _encrypted(place)
            if not banner.startswith(b"220"):
                return Seen("smtp" if banner[:3].isdigit() else "other")
            writer.write(f"{'LHLO' if lmtp else 'EHLO'} {hostname}\r\n".encode("ascii", "replace"))
            if b"STARTTLS" not in (await _reply(reader)).upper():
                return Seen("smtp")
            writer.write(b"STARTTLS\r\n")
            if not (await _reply(reader)).startswith(b"220"):
                return Seen("smtp", True)
            async with asyncio.timeout(PATIENCE):
                await writer.start_tls(_blind(), server_hostname=host)
            return Seen("smtp", True, _certificate(writer))
    except OSError:  # a time-out, too
        return Seen("nothing")


class Distrust:
    """Says why a relay's certificate is not trusted, for the transport of one relay.

    The relay is looked at once for each reason, and again after an hour: not at each attempt.
    """

    def __init__(self, relay: Relay, hostname: str) -> None:
        self._relay = relay
        self._hostname = hostname
        self._seen: dict[str, tuple[float, Certificate]] = {}
        self._lock = asyncio.Lock()

    async def words(self, said: str, at: Address) -> str:
        """``said`` (OpenSSL's reason) with what the server's certificate says of itself."""
        now = asyncio.get_running_loop().time()
        async with self._lock:
            since, seen = self._seen.get(said, (-FRESH, Certificate()))
            if now - since >= FRESH:
                seen = await self._look(at)
                self._seen[said] = now, seen
        return distrusted(said, seen, datetime.now(UTC))

    async def _look(self, at: Address) -> Certificate:
        relay = self._relay
        implicit, lmtp = relay.tls == "implicit", relay.scheme == "lmtp"
        seen = await look(relay.host, relay.port, self._hostname, encrypted=implicit, at=at, lmtp=lmtp)
        return seen.certificate or Certificate()


async def _encrypted(place: _Place) -> Seen:
    try:
        async with place.line(_blind()) as (_, writer):
            return Seen("tls", certificate=_certificate(writer))
    except OSError:
        return Seen("silence")


@dataclass(frozen=True, slots=True)
class _Place:
    host: str
    port: int
    at: Address | None

    @contextlib.asynccontextmanager
    async def line(
        self, encrypt: ssl.SSLContext | None = None
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        async with asyncio.timeout(PATIENCE):
            where: dict[str, Any] = {"host": self.host, "port": self.port}
            if self.at is not None:
                where = {"sock": await _connected(*self.at)}
            if encrypt is not None:
                where |= {"ssl": encrypt, "server_hostname": self.host}
            reader, writer = await asyncio.open_connection(**where)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


async def _connected(family: int, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _reply(reader: asyncio.StreamReader) -> bytes:
    """The lines of one reply; b"" when the server hung up."""
    lines = b""
    async with asyncio.timeout(PATIENCE):
        while len(lines) < 64 * 1024:
            try:
                line = await reader.readline()
            except ValueError:  # a line without an end
                return lines
            lines += line
            if line[3:4] != b"-":
                break
    return lines


def _blind() -> ssl.SSLContext:
    """Accepts any certificate: it is only looked at."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _certificate(writer: asyncio.StreamWriter) -> Certificate:
    return read(writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b"")
