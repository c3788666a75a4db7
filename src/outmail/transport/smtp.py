"""SMTP and LMTP over real connections: the I/O around the dialogue of `outmail.smtp.client`.

Promises: every step has a deadline (connecting, each handshake, each reply, ten minutes at the final dot);
only a whole reply meets it, not single bytes. `BLOCK` bytes of content must be read within the time of one
step. A time-out or a lost connection ends the session. A session takes new messages for at most five minutes,
and at most a thousand; then a new session begins. A session ends after one hour whatever it is doing, except
that content being sent may finish, and that all answers to the last final dot together have one more hour.
Certificates are verified unless the relay's settings say otherwise.
Fails: as outcomes, through the feed. Does not: choose relays, try again, or decide anything about mail.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from outmail.model import Delivery, Outcome, Reply
from outmail.policy.route import Relay
from outmail.smtp import client as protocol
from outmail.transport import Feed, tls
from outmail.transport.probe import Distrust
from outmail.transport.resolver import Resolver
from outmail.transport.wire import Wire, unread

REUSE_SECONDS = 300.0
REUSE_MESSAGES = 1000
#: Seconds that a session may last, and that all answers to one final dot may take together (LMTP has one for
#: each recipient).
LONGEST = 3600.0
CONNECT_TIMEOUT = 30.0
#: How many bytes of content a relay must read in the time of one step; with two minutes that is 550 bytes a
#: second (Postfix has smtp_min_data_rate = 500).
BLOCK = 64 * 1024
_PIECE = 256 * 1024
_BUFFER = 16 * 1024
_READING, _IDLE, _BUSY, _OVER = range(4)


class _Session(asyncio.BufferedProtocol):
    """One connection: incoming bytes drive the dialogue, which produces outgoing bytes; no task or future for
    each step.

    ``ended`` resolves to the failure that ended the session, or None. ``words``: what a failed handshake is
    called.
    """

    def __init__(
        self, relay: Relay, hostname: str, feed: Feed, host: str, words: Callable[[Exception], Awaitable[str]]
    ) -> None:
        self.relay = relay
        self.host = host
        self._words = words
        self.dialogue = protocol.Client(_settings(relay, hostname))
        self.transport: Any = None
        self._feed = feed
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[protocol.SessionFailed | None] = self._loop.create_future()
        self._flow = self.dialogue.dialogue()
        self._began = self._loop.time()
        self._buffer = memoryview(bytearray(_BUFFER))
        self._state = _BUSY
        self._established = False
        self._lost: protocol.Broken | None = None
        self._unasked = False
        self._unsent: deque[bytes | memoryview] = deque()
        self._paused = False
        self._stage = "banner"
        self._limit = self._deadline = 0.0
        self._final = self._final_since = 0.0
        #: Since when bytes have waited for the relay to read them, and how many there were then.
        self._writing: tuple[float, int] | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._shaking: asyncio.Task[None] | None = None

    # -- what the loop calls ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def begin(self) -> None:
        """The connection stands: start the dialogue."""
        self._watch(min(5.0, max(0.02, self.relay.timeout / 10)))
        self._on()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._state == _OVER:
            return
        try:
            self.dialogue.feed(bytes(self._buffer[:nbytes]))
        except protocol.ProtocolError as problem:
            if self._state == _READING and self.dialogue.heard:
                self._on()  # what arrived before is an answer
            self._break(str(problem))
            return
        if self._state == _READING:
            if self.dialogue.heard:  # a part of a reply does not extend the deadline
                self._on()
        elif self._state == _IDLE:  # the relay has sent something unasked: end the session
            self._unasked = True
            self._feed.leave()
            self._on()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._break(f"connection lost: {exc}" if exc else "connection closed by the relay")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._push()

    # -- the dialogue ----------------------------------------------------------------------------------------

    def _on(self, answer: Any = None, trouble: protocol.Broken | None = None) -> None:
        """Drive the dialogue until it must wait."""
        self._deadline = 0.0
        self.dialogue.now = int((self._loop.time() - self._began) * 1000)
        self.dialogue.ahead = self._feed.ahead
        try:
            self._drive(answer, trouble)
        except StopIteration:
            self._end()
        except protocol.SessionFailed as failure:
            self._end(failure)
        except Exception as bug:
            self._end(bug=bug)

    def _drive(self, answer: Any, trouble: protocol.Broken | None) -> None:
        flow, feed = self._flow, self._feed
        while True:
            request = flow.throw(trouble) if trouble is not None else flow.send(answer)
            answer = trouble = None
            if isinstance(request, protocol.Read):
                if self._lost is not None:
                    trouble = self._lost
                    continue
                self._state = _READING
                self._expect(request.stage)
                self._send(self.dialogue.outgoing())
                return
            if isinstance(request, protocol.Done):
                feed.done(request.delivery)
            elif isinstance(request, protocol.Dot):
                self._state = _BUSY
                feed.dot(request.delivery, request.recipients, self._granted)
                return
            elif isinstance(request, protocol.Take):
                answer = self._take()
                if answer is None and request.wait and self._usable():
                    self._state = _IDLE
                    feed.ask(self._given)
                    return
                if answer is None and request.wait and self._lost is not None:
                    raise StopIteration
            elif isinstance(request, protocol.AheadRefused):
                feed.refuses_ahead(request.reply)
            elif isinstance(request, protocol.CopyTrouble):
                feed.copy_trouble(request)
            else:
                self._state = _BUSY
                self.transport.pause_reading()
                self._shaking = self._loop.create_task(self._shake_hands())
                return

    def _usable(self) -> bool:
        worn = self.dialogue.transactions >= REUSE_MESSAGES or self._loop.time() - self._began > REUSE_SECONDS
        return not worn and self._lost is None and not self._unasked

    def _take(self) -> Delivery | None:
        if not self._established:
            self._established = True
            self._feed.healthy(self.dialogue.greeting)
        delivery = self._feed.take_now() if self._usable() else None
        if delivery is not None:
            delivery.host, delivery.started = self.host, self._loop.time()
        return delivery

    def _given(self, delivery: Delivery | None) -> None:
        if delivery is None:
            self._unasked = True  # the feed has no more: end the session
        else:
            delivery.host, delivery.started = self.host, self._loop.time()
        self._on(delivery)

    def _granted(self, granted: bool) -> None:
        if self._state == _OVER:
            return
        # lost while the dialogue waited: nothing was sent, so nothing is uncertain
        if self._lost is not None:
            self._on(trouble=protocol.Broken(str(self._lost)))
        else:
            self._on(granted)

    def _break(self, why: str, *, late: bool = False) -> None:
        """The connection is of no more use. The dialogue is told at once, or when it next wants to read."""
        if self._state == _OVER or self._lost is not None:
            return
        # with asyncio's TLS the buffered bytes are unknown: they differ from what was given to it
        held = self.transport.get_write_buffer_size() if isinstance(self.transport, Wire) else 0
        self._lost = protocol.Broken(why, late=late, withheld=held + sum(map(len, self._unsent)))
        self._unsent.clear()
        self.transport.abort()
        if self._state == _READING:
            self._on(trouble=self._lost)
        elif self._state == _IDLE:
            self._feed.leave()
            self._end()

    def _end(self, failure: protocol.SessionFailed | None = None, bug: Exception | None = None) -> None:
        self._state = _OVER
        if self._tick is not None:
            self._tick.cancel()
        self._flow.close()
        if self.ended.done():
            return
        if bug is not None:
            self.ended.set_exception(bug)
        else:
            self.ended.set_result(failure)

    def close(self) -> None:
        """Hang up, whatever is going on. TLS is closed in order only when QUIT was said."""
        goodbye = (
            self.ended.done()
            and not self.ended.cancelled()
            and self.ended.exception() is None
            and self.ended.result() is None
        )
        self._end()
        if self._shaking is not None:
            self._shaking.cancel()
        if goodbye:
            self.transport.close()
        else:
            self.transport.abort()  # nobody may be left to read what is unsent

    # -- time ------------------------------------------------------------------------------------------------

    def _expect(self, stage: str) -> None:
        now = self._loop.time()
        self._stage = stage
        self._limit = min(5.0, self.relay.timeout) if stage == "quit" else self.relay.timeout
        if stage == "dot":
            self._limit = max(self._limit, self.relay.dot_timeout)
            if self._final != self.dialogue.finals:
                self._final, self._final_since = self.dialogue.finals, now
        self._deadline = now + self._limit

    def _watch(self, tick: float) -> None:
        """Check every ``tick`` seconds whether a deadline has passed: one timer for the session, not one for
        each step.
        """
        if self._state == _READING and (why := self._overdue(self._loop.time())):
            self._break(f"{why} ({self._stage})", late=True)
        if self._state != _OVER:
            self._tick = self._loop.call_later(tick, self._watch, tick)

    def _overdue(self, now: float) -> str:
        """What the relay is late with; "" if nothing."""
        left = (
            sum(map(len, self._unsent))
            + self.transport.get_write_buffer_size()
            + unread(self.transport.get_extra_info("socket"))
        )
        if left:
            return self._reads_too_slowly(now, left)
        self._writing = None
        if now >= self._deadline:
            return f"{'no whole answer' if self.dialogue.hearing else 'no answer'} within {self._limit:g} s"
        if now >= (self._final_since if self._stage == "dot" else self._began) + LONGEST:
            return f"the session was not over after {LONGEST:g} s"
        return ""

    def _reads_too_slowly(self, now: float, left: int) -> str:
        since, most = self._writing or (now, left)
        if most - left >= BLOCK or most < left:
            since, most = now, left
        self._writing = since, most
        if now - since >= self.relay.timeout:
            return f"the relay has read only {most - left} bytes in {now - since:.1f} s, and {left} are left"
        self._deadline = now + self._limit  # now for the answer, as everything is sent
        self._final_since = now
        return ""

    # -- writing ---------------------------------------------------------------------------------------------

    def _send(self, pieces: list[bytes]) -> None:
        """Give bytes to the kernel; a long content in pieces, so that memory stays flat."""
        if not pieces:
            return
        if not self._unsent and sum(map(len, pieces)) <= _PIECE:
            self.transport.write(b"".join(pieces))
            return
        for piece in pieces:
            view = memoryview(piece)
            self._unsent.extend(view[start : start + _PIECE] for start in range(0, len(piece), _PIECE))
        self._push()

    def _push(self) -> None:
        while self._unsent and not self._paused:
            self.transport.write(self._unsent.popleft())

    # -- TLS -------------------------------------------------------------------------------------------------

    def check_tls(self) -> None:
        """TLS stands: look at the pin, and note what was agreed on."""
        agreed = self.transport.get_extra_info("ssl_object")
        tls.check_pin(self.relay, agreed)
        self.dialogue.remark(tls.described(agreed))

    async def _shake_hands(self) -> None:
        try:
            async with asyncio.timeout(self.relay.timeout):
                made = tls.context(self.relay)
                await self._loop.create_connection(
                    lambda: self, sock=self.transport.detach(), ssl=made, server_hostname=self.relay.host
                )
                self.check_tls()
        except (OSError, tls.Untrusted) as problem:
            text = f"{self.relay.url}: {await self._words(problem)}"
            self._end(
                protocol.SessionFailed(Outcome("deferred", "destination", "tls", Reply(0, text), fault=True))
            )
        except Exception as bug:
            self._end(bug=bug)
        else:
            self._on()


class SmtpTransport:
    """One relay by SMTP or LMTP."""

    def __init__(self, relay: Relay, resolver: Resolver, hostname: str) -> None:
        self.relay = relay
        self._resolver = resolver
        self._hostname = hostname
        self._distrust = Distrust(relay, hostname)

    async def session(self, feed: Feed) -> None:
        """The life of one connection."""
        try:
            session = await self._connect(feed)
        except _Unreachable as problem:
            outcome = Outcome("deferred", "destination", problem.stage, Reply(0, str(problem)), fault=True)
            feed.failed(outcome, problem.transcript)
            return
        try:
            session.begin()
            failure = await session.ended
        finally:
            session.close()
        if failure is not None:
            feed.failed(failure.outcome, session.dialogue.greeting)

    async def _connect(self, feed: Feed) -> _Session:
        relay = self.relay
        try:
            async with asyncio.timeout(min(relay.timeout, CONNECT_TIMEOUT)):
                sock, host = await self._socket()
        except TimeoutError:
            raise _Unreachable(
                "connect", f"{relay.url}: no connection within {min(relay.timeout, CONNECT_TIMEOUT):.0f} s"
            ) from None
        except OSError as problem:
            raise _Unreachable("connect", f"{relay.url}: {_os_words(problem)}") from None
        address = _address(sock)
        words = partial(self._tls_words, sock.family, address)
        session = _Session(relay, self._hostname, feed, host, words)
        session.dialogue.remark(f"connected to {_peer(address)}")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(relay.timeout):
                if relay.tls == "implicit":
                    made = tls.context(relay)
                    await loop.create_connection(
                        lambda: session, sock=sock, ssl=made, server_hostname=relay.host
                    )
                    session.check_tls()
                else:
                    Wire(loop, sock, session)
        except (OSError, tls.Untrusted, TimeoutError) as problem:
            if session.transport is not None:
                session.transport.abort()  # the pin is wrong: the loop still has the line
            else:
                sock.close()
            text = f"{relay.url}: {await words(problem)}"
            raise _Unreachable("tls", text, session.dialogue.greeting) from None
        return session

    async def _tls_words(self, family: int, address: Any, problem: Exception) -> str:
        """Why TLS failed, with the dates and names of a certificate that is not trusted."""
        if isinstance(problem, ssl.SSLCertVerificationError) and address is not None:
            said = await self._distrust.words(problem.verify_message, (family, address))
            return f"the certificate is not trusted: {said}"
        return _tls_words(problem)

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


def _settings(relay: Relay, hostname: str) -> protocol.ClientSettings:
    return protocol.ClientSettings(
        hostname=hostname,
        lmtp=relay.scheme == "lmtp",
        encrypted=relay.tls == "implicit",
        starttls=relay.starttls,
        opportunistic=relay.tls == "opportunistic",
        user=relay.user,
        password=relay.password,
        may_clear=relay.loopback or relay.insecure_auth,
        pipelining=relay.pipelining,
    )


def _address(sock: socket.socket) -> Any:
    try:
        return sock.getpeername()
    except OSError:  # the server has hung up
        return None


def _peer(address: Any) -> str:
    if address is None:
        return "a server that has hung up"
    return f"{address[0]}, port {address[1]}" if isinstance(address, tuple) else str(address)


class _Unreachable(Exception):
    def __init__(self, stage: str, text: str, transcript: Sequence[tuple[int, str, bytes]] = ()) -> None:
        super().__init__(text)
        self.stage = stage
        self.transcript = transcript


def _os_words(problem: OSError) -> str:
    if isinstance(problem, socket.gaierror) or not problem.errno:
        return f"{problem.strerror or problem}"
    return os.strerror(problem.errno)


def _tls_words(problem: Exception) -> str:
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted: {problem.verify_message}"
    if isinstance(problem, ssl.SSLError) and problem.reason in tls.NOT_TLS:
        return "TLS failed: the server does not speak TLS on this port, at least not from the start"
    if isinstance(problem, TimeoutError):
        return "the TLS handshake took too long"
    if isinstance(problem, ConnectionError) and not str(problem):
        return "TLS failed: the server closed the connection"
    return f"TLS failed: {str(problem) or type(problem).__name__}"
