"""SMTP and LMTP over real connections: the shell around the dialogue of `outmail.smtp.client`.

Promises: every wait has a limit of its own (connect, each reply, ten minutes at the final dot); a time-out or a lost
connection ends the session; a session is used for at most five minutes or a thousand messages, then a new one
begins; certificates are verified unless the relay's settings say otherwise.
Fails: as outcomes through the feed. Does not: choose relays, retry, or decide anything about mail.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Sequence
from typing import Any

from outmail.model import Delivery, Outcome, Reply
from outmail.policy.route import Relay
from outmail.smtp import client as protocol
from outmail.transport import Feed, tls
from outmail.transport.resolver import Resolver

REUSE_SECONDS = 300.0
REUSE_MESSAGES = 1000
CONNECT_TIMEOUT = 30.0
_PIECE = 256 * 1024


class _Wire(asyncio.Protocol):
    """Bytes between the socket and the dialogue."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.lost: str | None = None
        self._chunks: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._paused: asyncio.Future[None] | None = None
        self.on_idle: Any = None
        self.deadline = 0.0
        self.waits_for = ""
        self._tick: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = f"connection lost: {exc}" if exc else "connection closed by the relay"
        if self._paused and not self._paused.done():
            self._paused.set_result(None)
        self._wake()

    def watch(self, tick: float) -> None:
        """Look every ``tick`` seconds whether the step's deadline has passed: one timer a session, not one a step."""
        loop = asyncio.get_running_loop()
        if self.deadline and loop.time() >= self.deadline:
            self._expire()
        elif self.lost is None:
            self._tick = loop.call_later(tick, self.watch, tick)

    def unwatch(self) -> None:
        if self._tick is not None:
            self._tick.cancel()

    def _expire(self) -> None:
        self.lost = self.lost or f"no answer in time ({self.waits_for})"
        self._chunks.clear()
        if self._paused and not self._paused.done():
            self._paused.set_result(None)
        self._wake()

    def pause_writing(self) -> None:
        self._paused = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._paused and not self._paused.done():
            self._paused.set_result(None)
        self._paused = None

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)
        if self.on_idle:
            self.on_idle()

    @property
    def disturbed(self) -> bool:
        """True when the relay closed or said something while nothing was asked."""
        return bool(self._chunks) or self.lost is not None

    async def read(self) -> bytes:
        """At least one byte, or `Broken`."""
        if not self._chunks:
            if self.lost is not None:
                raise protocol.Broken(self.lost)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = b"".join(self._chunks)
        self._chunks.clear()
        if not data:
            raise protocol.Broken(self.lost or "connection lost")
        return data

    async def write(self, pieces: Sequence[bytes]) -> None:
        """Hand bytes to the kernel, a long content piece by piece so that memory stays flat."""
        small: list[bytes] = []
        for piece in pieces:
            if len(piece) <= _PIECE:
                small.append(piece)
                continue
            self.transport.write(b"".join(small))
            small = []
            view = memoryview(piece)
            for start in range(0, len(piece), _PIECE):
                self.transport.write(view[start : start + _PIECE])
                if self._paused:
                    await self._paused
        if small:
            self.transport.write(b"".join(small))
        if self._paused:
            await self._paused


class SmtpTransport:
    """One relay by SMTP or LMTP."""

    def __init__(self, relay: Relay, resolver: Resolver, hostname: str) -> None:
        self.relay = relay
        self._resolver = resolver
        self._hostname = hostname

    async def session(self, feed: Feed) -> None:
        """One connection's life."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            wire, host = await self._connect()
        except _Unreachable as problem:
            feed.failed(Outcome("deferred", "destination", problem.stage, Reply(0, str(problem)), fault=True))
            return
        dialogue = protocol.Client(self._settings())
        try:
            await self._converse(dialogue, wire, feed, host, began)
        except protocol.SessionFailed as failure:
            feed.failed(failure.outcome, dialogue.greeting)
        finally:
            wire.unwatch()
            wire.transport.close()

    # -- connecting -------------------------------------------------------------------------------------------------

    async def _connect(self) -> tuple[_Wire, str]:
        relay = self.relay
        try:
            async with asyncio.timeout(min(relay.timeout, CONNECT_TIMEOUT)):
                sock, host = await self._socket()
        except TimeoutError:
            raise _Unreachable("connect", f"{relay.url}: no connection within {min(relay.timeout, CONNECT_TIMEOUT):.0f} s") from None
        except OSError as problem:
            raise _Unreachable("connect", f"{relay.url}: {_os_words(problem)}") from None
        wire = _Wire()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(relay.timeout):
                if relay.tls == "implicit":
                    made = tls.context(relay)
                    await loop.create_connection(lambda: wire, sock=sock, ssl=made, server_hostname=relay.host)
                    tls.check_pin(relay, wire.transport.get_extra_info("ssl_object"))
                else:
                    await loop.create_connection(lambda: wire, sock=sock)
        except (OSError, tls.Untrusted, TimeoutError) as problem:
            sock.close()
            raise _Unreachable("tls", f"{relay.url}: {_tls_words(problem)}") from None
        return wire, host

    async def _socket(self) -> tuple[socket.socket, str]:
        loop = asyncio.get_running_loop()
        if self.relay.path:
            found: list[tuple[int, Any]] = [(socket.AF_UNIX, self.relay.path)]
        else:
            found = await self._resolver.addresses(self.relay.host, self.relay.port)
        trouble: OSError = OSError(f"{self.relay.host} has no address")
        for family, address in found:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                await loop.sock_connect(sock, address)
            except OSError as problem:
                sock.close()
                trouble = problem
                continue
            except BaseException:
                sock.close()
                raise
            if family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock, self.relay.host or self.relay.path
        raise trouble

    def _settings(self) -> protocol.Settings:
        relay = self.relay
        return protocol.Settings(
            hostname=self._hostname,
            lmtp=relay.scheme == "lmtp",
            encrypted=relay.tls == "implicit",
            starttls=relay.starttls,
            user=relay.user,
            password=relay.password,
            may_clear=relay.loopback or relay.insecure_auth,
            pipelining=relay.pipelining,
        )

    # -- conversing -------------------------------------------------------------------------------------------------

    async def _converse(self, dialogue: protocol.Client, wire: _Wire, feed: Feed, host: str, began: float) -> None:
        loop = asyncio.get_running_loop()
        flow = dialogue.dialogue()
        answer: Any = None
        trouble: protocol.Broken | None = None
        ready = False
        wire.watch(min(5.0, max(0.02, self.relay.timeout / 10)))
        while True:
            try:
                request = flow.throw(trouble) if trouble else flow.send(answer)
            except StopIteration:
                return
            answer = trouble = None
            if isinstance(request, protocol.Read):
                trouble = await self._read(dialogue, wire, request.stage)
                dialogue.now = int((loop.time() - began) * 1000)
            elif isinstance(request, protocol.Dot):
                answer = await feed.dot(request.delivery, request.recipients)
            elif isinstance(request, protocol.Done):
                feed.done(request.delivery)
            elif isinstance(request, protocol.Take):
                if not ready:
                    ready = True
                    feed.healthy()
                if dialogue.transactions >= REUSE_MESSAGES or loop.time() - began > REUSE_SECONDS:
                    continue
                answer = await self._take(wire, feed) if request.wait else feed.take_now()
                if answer is not None:
                    answer.host, answer.started = host, loop.time()
                elif wire.disturbed and request.wait:
                    return
            else:
                await self._starttls(wire)

    async def _take(self, wire: _Wire, feed: Feed) -> Delivery | None:
        """Wait for a delivery, but not on a line the relay has closed meanwhile."""
        if wire.disturbed:
            return None
        got = feed.take_now()
        if got is None:
            taking = asyncio.ensure_future(feed.take())
            wire.on_idle = taking.cancel
            try:
                got = await taking
            except asyncio.CancelledError:
                if not wire.disturbed:
                    raise
            finally:
                wire.on_idle = None
        return got

    async def _read(self, dialogue: protocol.Client, wire: _Wire, stage: str) -> protocol.Broken | None:
        """Send, receive, feed. Trouble is returned, to be thrown into the dialogue, which then ends the session."""
        limit = 5.0 if stage == "quit" else self.relay.timeout
        if stage == "dot":
            limit = max(limit, self.relay.dot_timeout)
        wire.deadline, wire.waits_for = asyncio.get_running_loop().time() + limit, stage
        try:
            outgoing = dialogue.outgoing()
            if outgoing:
                await wire.write(outgoing)
            dialogue.feed(await wire.read())
            return None
        except protocol.ProtocolError as problem:
            trouble = protocol.Broken(str(problem))
        except protocol.Broken as problem:
            trouble = problem
        finally:
            wire.deadline = 0.0
        wire.transport.abort()
        return trouble

    async def _starttls(self, wire: _Wire) -> None:
        loop = asyncio.get_running_loop()
        plain = wire.transport
        try:
            async with asyncio.timeout(self.relay.timeout):
                encrypted = await loop.start_tls(plain, wire, tls.context(self.relay), server_hostname=self.relay.host)
                wire.transport = encrypted
                tls.check_pin(self.relay, wire.transport.get_extra_info("ssl_object"))
        except (OSError, tls.Untrusted) as problem:
            raise protocol.SessionFailed(
                Outcome("deferred", "destination", "tls", Reply(0, f"{self.relay.url}: {_tls_words(problem)}"), fault=True)
            ) from None


class _Unreachable(Exception):
    def __init__(self, stage: str, text: str) -> None:
        super().__init__(text)
        self.stage = stage


def _os_words(problem: OSError) -> str:
    if isinstance(problem, socket.gaierror) or not problem.errno:
        return f"{problem.strerror or problem}"
    return os.strerror(problem.errno)


def _tls_words(problem: Exception) -> str:
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted: {problem.verify_message}"
    if isinstance(problem, TimeoutError):
        return "the TLS handshake took too long"
    return f"TLS failed: {problem}"
