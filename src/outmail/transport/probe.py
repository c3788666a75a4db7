"""A look at what answers at a relay's address, to explain why a session with it failed.

Promises: no password and no mail is sent; certificates are read, not judged; each step ends within `PATIENCE`
seconds. Fails: never; what could not be seen is not in the answer. Does not: say what it means.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from outmail.transport.certificate import Certificate, read

PATIENCE = 4.0


@dataclass(frozen=True, slots=True)
class Seen:
    """``speaks``: "smtp" (in clear, at first), "tls" (from the start), "other" (something else), "silence"
    (connected, and nothing came), or "nothing" (no connection).
    """

    speaks: Literal["smtp", "tls", "other", "silence", "nothing"]
    starttls: bool = False
    certificate: Certificate | None = None


async def look(host: str, port: int, hostname: str, *, encrypted: bool = False) -> Seen:
    """What answers there; ``hostname`` is said in EHLO; ``encrypted``: look for TLS first."""
    if encrypted and (seen := await _encrypted(host, port)).speaks == "tls":
        return seen
    try:
        async with _line(host, port) as (reader, writer):
            try:
                banner = await _reply(reader)
            except TimeoutError:
                return await _encrypted(host, port)
            if not banner:
                return await _encrypted(host, port)
            if not banner.startswith(b"220"):
                return Seen("smtp" if banner[:3].isdigit() else "other")
            writer.write(f"EHLO {hostname}\r\n".encode("ascii", "replace"))
            if b"STARTTLS" not in (await _reply(reader)).upper():
                return Seen("smtp")
            writer.write(b"STARTTLS\r\n")
            if not (await _reply(reader)).startswith(b"220"):
                return Seen("smtp", True)
            async with asyncio.timeout(PATIENCE):
                await writer.start_tls(_blind())
            return Seen("smtp", True, _certificate(writer))
    except OSError:  # a time-out, too
        return Seen("nothing")


async def _encrypted(host: str, port: int) -> Seen:
    try:
        async with _line(host, port, _blind()) as (_, writer):
            return Seen("tls", certificate=_certificate(writer))
    except OSError:
        return Seen("silence")


@contextlib.asynccontextmanager
async def _line(
    host: str, port: int, encrypt: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(host, port, ssl=encrypt)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


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
