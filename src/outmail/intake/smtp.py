"""SMTP and LMTP listeners in the service's event loop, around the dialogue of `outmail.smtp.server`.

Promises: 250 is said only after the commit. A session that is interrupted leaves nothing behind. Bounded are:
memory for clients (content and envelopes), connections (all, and of each client), and the time for a command,
a block of content and a session; only a complete command meets its deadline, not single bytes. What clients
can cause in the log is logged once a minute. When the disk is nearly full, the store is slow or too much mail
is in memory, clients are asked to come back later (4xx) instead of being kept waiting. On stopping, messages
that are being stored are answered; then clients get 421. A listener may replace another one on the same
sockets: nobody is refused, and a connection keeps what it was offered until it ends.
Fails: as replies. Does not: decide who may relay (`RelayPolicy` below, or the receiving server's policy,
does), or deliver.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import stat
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from time import monotonic
from typing import Any

from outmail.accept.acceptance import Draft
from outmail.accept.aio import AsyncAcceptance
from outmail.errors import NotStored, Refused
from outmail.intake.logins import Logins
from outmail.mime import headers, splice
from outmail.model import Dsn, Reply, new_id
from outmail.policy.admission import Meter, Network, is_trusted, neighbourhood
from outmail.smtp import server as protocol
from outmail.system.throttle import Throttle
from outmail.system.user import login
from outmail.transport.wire import Wire

log = logging.getLogger("outmail.intake")

#: Seconds for a command, even if it arrives byte by byte (RFC 5321 §4.5.3.2.7: five minutes).
IDLE = 300.0
#: This many bytes of content must arrive in this many seconds (§4.5.3.2.5 has three minutes for a block). So
#: 50 MB may take a day, but may not stall.
BLOCK = 64 * 1024
CONTENT = 180.0
#: Seconds after which a session ends: between two messages, if one ends within the time of one more command.
LONGEST = 3600.0
#: Seconds that a client may take to read the last reply.
LINGER = 30.0
TLS_HANDSHAKE = 30.0
IN_FLIGHT = 256 * 1024 * 1024
LEAST_DISK = 64 * 1024 * 1024
#: Seconds: a commit that takes longer stops new mail; the time between two counts of the queue.
SLOW_STORE = 5.0
COUNT_EVERY = 10.0
BACKLOG = 512
#: How many new connections are accepted in one turn, before existing ones are served.
AT_ONCE = 64
_BUFFER = 64 * 1024
_WRITE_LIMIT = 256 * 1024


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """What a listener offers, and to whom. ``users``: name → `hashed` password. ``rate``: messages a minute
    for each client, 0 for no limit.

    ``normalise``: whose bare line ends are replaced instead of refused: everybody's (True), nobody's (False),
    or those of trusted clients (None).
    """

    dialogue: protocol.ServerSettings = field(default_factory=protocol.ServerSettings)
    networks: tuple[Network, ...] = ()
    users: Mapping[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    implicit_tls: bool = False
    connections: int = 1000
    #: Connections of one address (IPv6: one /64) that is not trusted; None for a quarter of all, 0 for no
    #: limit.
    per_client: int | None = None
    rate: int = 0
    normalise: bool | None = None
    idle: float = IDLE
    #: Users of this machine who may use unix sockets; empty: all.
    accounts: Sequence[str] = ()
    #: How many recipients may wait in the queue before no new mail is accepted; 0 for no limit.
    deepest: int = 0

    @property
    def most_of_one(self) -> int:
        """How many connections one client may have."""
        if self.per_client is None:
            return max(1, self.connections // 4)
        return self.per_client or self.connections


#: The reply to MAIL and RCPT when too much is in memory.
FULL = Reply(452, "Too much mail in flight: come back soon", "4.3.1")


class RelayPolicy:
    """The policy of the service: trusted clients and authenticated users may send to anybody, all others to
    nobody.
    """

    def __init__(self, settings: ListenerSettings, gate: Callable[[], Reply | None], meter: Meter) -> None:
        self._settings = settings
        self._gate = gate
        self._meter = meter

    def mail(self, session: protocol.Server, sender: str) -> Reply | None:
        if (trouble := self._gate()) is not None:
            return trouble
        line: ClientConnection = session.peer
        if not session.user and not line.trusted:
            return Reply(550, "Relaying denied: authenticate, or ask for your network to be listed", "5.7.1")
        if line.account and self._settings.accounts and line.account not in self._settings.accounts:
            return Reply(550, f"The user {line.account} may not send by this socket", "5.7.1")
        if not self._meter.take(session.user or line.account or line.client, line.now()):
            return Reply(450, "Too many messages: come back in a minute", "4.7.1")
        return None

    def rcpt(self, session: protocol.Server, address: str) -> Reply | None:
        return FULL if session.peer.listener.full else None


class ClientConnection(asyncio.BufferedProtocol):
    """One connection."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.client = ""
        #: The user of this machine at the other end of a unix socket.
        self.account = ""
        self.trusted = False
        self.transport: Any = None
        self.began = self.moved = monotonic()
        self._view = listener.buffer
        self._session: protocol.Server = None  # type: ignore[assignment]
        #: The key under which it is counted among its listener's clients; None while it is not counted.
        self._counted: str | None = None
        #: Since when the present block of content has been awaited, how many bytes had arrived then, and of
        #: which message.
        self._block: tuple[float, int, int] | None = None
        self._shaking: asyncio.Task[None] | None = None

    def now(self) -> float:
        return monotonic()

    # -- what the loop calls ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        if self._session is not None:  # the second call: TLS is established
            return
        if self._counted is None:
            self.account = account(transport.get_extra_info("socket"))
            self.enter(transport.get_extra_info("peername"))
        settings = self.listener.settings
        normalise = self.trusted if settings.normalise is None else settings.normalise
        self._session = protocol.Server(
            settings.dialogue,
            self.listener.policy,
            self,
            tls=settings.implicit_tls,
            normalise=normalise,
            local=self.trusted,
        )
        self.listener.joined(self)
        crowded = self.crowded
        if crowded or self.listener.connected > settings.connections:
            self._session.outgoing()
            self._session.refuse(
                Reply(
                    421,
                    "Too many connections from your address" if crowded else "Too many connections",
                    "4.7.0",
                )
            )
        self._serve()

    def enter(self, peer: Any) -> None:
        """Count a new connection of this client."""
        self.client = peer[0] if isinstance(peer, tuple) else ""
        self.trusted = is_trusted(self.client, self.listener.settings.networks)
        self._counted = "" if self.trusted else neighbourhood(self.client)
        if self._counted:
            self.listener.clients[self._counted] += 1

    def leave(self) -> None:
        """Count it no more. May be called repeatedly."""
        self.listener.lines.discard(self)
        self.listener.shaking.discard(self)
        counted, self._counted = self._counted, ""
        if counted:
            self.listener.clients[counted] -= 1
            if not self.listener.clients[counted]:
                del self.listener.clients[counted]

    @property
    def crowded(self) -> bool:
        """True when this client has more connections than it may."""
        if not self._counted or self.listener.clients[self._counted] <= self.listener.settings.most_of_one:
            return False
        self.listener.throttle.say(
            logging.WARNING,
            "crowded",
            "too many connections from %s at once: further ones are refused",
            self.client,
        )
        return True

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self._session.feed(bytes(self._view[:nbytes]))
        self._serve()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.leave()

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.transport.resume_reading()

    # -- the dialogue ----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        session = self._session
        out = session.outgoing()
        if out:
            self.moved = monotonic()
            self.listener.say(self.transport, out)
        while session.requests:
            request = session.requests.popleft()
            if isinstance(request, protocol.Deliver):
                self._deliver(request)
            elif isinstance(request, protocol.Verify):
                self._verify(request)
            elif isinstance(request, protocol.StartTls):
                self.transport.pause_reading()  # what comes now belongs to the TLS handshake
                self.listener.speak()
                self._shaking = self.listener.loop.create_task(self._shake_hands())
            else:
                self.listener.speak()
                self.transport.close()
        if session.waiting and session.buffered > _WRITE_LIMIT:
            self.transport.pause_reading()

    def _deliver(self, request: protocol.Deliver) -> None:
        self.listener.take(self, self._session, request, self._answered)

    def _answered(self, replies: Sequence[Reply]) -> None:
        if self._session.closed:
            return
        self._session.answer(replies)
        self.transport.resume_reading()
        self._serve()

    def _verify(self, request: protocol.Verify) -> None:
        stored = self.listener.settings.users.get(request.user, "")
        self.listener.logins.ask(
            neighbourhood(self.client),
            request.password,
            stored,
            lambda good: self._authenticated(request.user, good),
        )

    def _authenticated(self, user: str, good: bool | None) -> None:
        if self._session.closed:
            return
        if good is False:
            who = self.client or "a unix socket"
            # fail2ban reads this line
            self.listener.throttle.say(logging.WARNING, f"auth {who}", "authentication failed from %s", who)
        self._session.authenticated(user if good else None, looked=good is not None)
        self.transport.resume_reading()
        self._serve()

    def encrypt(self, sock: socket.socket) -> None:
        """Begin TLS on a connection that starts with it; the connection is counted already."""
        self._shaking = self.listener.loop.create_task(self._encrypt(sock))
        self.listener.shaking.add(self)

    async def _encrypt(self, sock: socket.socket) -> None:
        try:
            async with asyncio.timeout(TLS_HANDSHAKE):
                await self.listener.loop.connect_accepted_socket(
                    lambda: self, sock, ssl=self.listener.settings.tls
                )
        except (OSError, ValueError) as problem:
            self.listener.throttle.say(
                logging.INFO, "tls", "a TLS handshake with %s failed: %s", self.client, problem
            )
            sock.close()
            self.leave()
        except BaseException:
            self.leave()
            raise
        finally:
            self.listener.shaking.discard(self)

    async def _shake_hands(self) -> None:
        loop = self.listener.loop
        try:
            async with asyncio.timeout(TLS_HANDSHAKE):
                await loop.connect_accepted_socket(
                    lambda: self, self.transport.detach(), ssl=self.listener.settings.tls
                )
        except (OSError, ValueError) as problem:
            self.listener.throttle.say(
                logging.INFO, "tls", "a TLS handshake with %s failed: %s", self.client, problem
            )
            self._session.refuse(Reply(421, "TLS failed", "4.7.0"))
            self.transport.abort()
            # called here because nobody else calls it: the plain connection was given away, and TLS was never
            # established
            self.connection_lost(problem)
            return
        self._session.encrypted()
        self._serve()

    # -- time and end ----------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Check the deadlines; called about once a second."""
        if self._session.waiting:
            return
        if self._session.closed:
            if now - self.moved > LINGER:
                self.transport.abort()  # the client does not even read our last reply
            return
        if self._session.collecting:
            if self._stopped(now):
                self.refuse(Reply(421, "The message comes too slowly", "4.4.2"))
            return
        self._block = None
        idle = self.listener.settings.idle
        if now - self.moved > idle:
            self.refuse(Reply(421, "Idle too long", "4.4.2"))
        elif now - self.began > LONGEST + (idle if self._session.begun else 0):
            self.refuse(Reply(421, "This session has lasted long enough: connect again", "4.3.2"))

    def _stopped(self, now: float) -> bool:
        """True when content arrives too slowly."""
        received, message = self._session.received, self._session.messages
        since, before, which = self._block or (now, received, message)
        if which != message or received - before >= BLOCK:
            since, before = now, received
        self._block = (since, before, message)
        return now - since > CONTENT

    def refuse(self, reply: Reply) -> None:
        """Send a last reply and hang up. A message that is being stored is answered first."""
        self._session.refuse(reply)
        self._serve()

    @property
    def busy(self) -> bool:
        return self._session.waiting

    @property
    def buffered(self) -> int:
        """How many bytes are held for this client."""
        return self._session.buffered


class Listener:
    """One kind of listener (smtp, submission, lmtp) on one or several sockets. ``before``: the listener that
    it replaces. Its connections go on, and count.
    """

    def __init__(
        self,
        door: AsyncAcceptance,
        settings: ListenerSettings,
        policy: Callable[[Listener], protocol.Policy] | None = None,
        take: Take | None = None,
        before: Listener | None = None,
    ) -> None:
        self.door = door
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.lines: set[ClientConnection] = set()
        #: How many connections each client has that is not trusted.
        self.clients: Counter[str] = Counter() if before is None else before.clients
        self.logins = Logins()
        self.throttle = Throttle(log)
        #: True while more bytes are held than allowed.
        self.full = False
        #: Connections whose first TLS handshake is running.
        self.shaking: set[ClientConnection] = set()
        self.buffer = memoryview(bytearray(_BUFFER))
        self.before = before
        same_rate = before is not None and before.settings.rate == settings.rate
        self.meter: Meter = before.meter if before is not None and same_rate else Meter(settings.rate)
        self.policy = policy(self) if policy else RelayPolicy(settings, self.gate, self.meter)
        self._take = take or self.relay
        self._sockets: list[socket.socket] = []
        self._trouble: Reply | None = None
        self._deep: bool = before is not None and before._deep
        #: True when another listener has its sockets.
        self._replaced = False
        self._said: list[tuple[Any, bytes]] = []
        self._counted = 0.0
        self._tick: asyncio.TimerHandle | None = None
        door.listeners.append(self)
        self._check()

    async def listen(self, address: str | socket.socket) -> str:
        """Listen on ``host:port``, ``[::1]:port``, ``unix:/path`` or a socket that is bound already. Returns
        where it listens.
        """
        return self.open([address] if isinstance(address, socket.socket) else bound(address))

    def open(self, sockets: Sequence[socket.socket]) -> str:
        """`listen` on bound sockets."""
        for sock in sockets:
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                # accepted connections inherit this
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.listen(BACKLOG)
            self.loop.add_reader(sock, self._accept, sock)
        self._sockets += sockets
        name = sockets[0].getsockname()
        return name if isinstance(name, str) else f"{name[0]}:{name[1]}"

    def _accept(self, listening: socket.socket) -> None:
        """Accept connections. A task or a future for each would cost more than all the rest."""
        for _ in range(AT_ONCE):
            try:
                sock, peer = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as problem:  # no descriptors or no memory left: existing connections go on
                self.throttle.say(
                    logging.ERROR, "accept", "no connection can be accepted: %s", problem.strerror
                )
                self.loop.remove_reader(listening)
                self.loop.call_later(1.0, self._listen_again, listening)
                return
            sock.setblocking(False)
            if not self.settings.implicit_tls:
                Wire(self.loop, sock, ClientConnection(self), peer)
                continue
            line = ClientConnection(self)
            line.enter(peer)
            if self.connected < self.settings.connections and not line.crowded:
                line.encrypt(sock)
            else:  # too many, and nothing can be said before the TLS handshake
                line.leave()
                sock.close()

    def _listen_again(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            self.loop.add_reader(listening, self._accept, listening)

    @property
    def connected(self) -> int:
        """How many connections it has, with those of the listeners that it has replaced."""
        earlier = self.before.connected if self.before is not None else 0
        return len(self.lines) + len(self.shaking - self.lines) + earlier

    def replaced(self) -> list[socket.socket]:
        """Accept no new connections: another listener has these sockets from now on. Existing connections go
        on to their end.
        """
        self._replaced = True
        for sock in self._sockets:
            self.loop.remove_reader(sock)
        sockets, self._sockets = self._sockets, []
        return sockets

    def joined(self, line: ClientConnection) -> None:
        self.lines.add(line)

    def say(self, transport: Any, out: bytes) -> None:
        """Send bytes to a client at the end of this turn. A peer on this machine that is woken once for many
        replies answers them together.
        """
        if not self._said:
            self.loop.call_soon(self.speak)
        self._said.append((transport, out))

    def speak(self) -> None:
        """Send what `say` has collected."""
        said, self._said = self._said, []
        for transport, out in said:
            transport.write(out)

    async def close(self, patience: float = 10.0) -> None:
        """Accept no new connections, answer messages that are being stored, then send 421 to everybody."""
        for sock in self._sockets:
            self.loop.remove_reader(sock)
            sock.close()
        self._sockets = []
        deadline = self.loop.time() + patience
        while any(line.busy for line in self.lines) and self.loop.time() < deadline:
            await asyncio.sleep(0.01)
        self._end()
        for line in list(self.lines):
            line.refuse(Reply(421, "Shutting down", "4.3.2"))
        await asyncio.sleep(0)
        for line in list(self.lines):
            line.transport.abort()

    def _end(self) -> None:
        if self._tick is not None:
            self._tick.cancel()
        if self in self.door.listeners:
            self.door.listeners.remove(self)
        self.logins.close()

    # -- taking messages -------------------------------------------------------------------------------------

    def take(
        self,
        line: ClientConnection,
        session: protocol.Server,
        request: protocol.Deliver,
        then: Callable[[Sequence[Reply]], None],
    ) -> None:
        self._take(line, session, request, then)

    def relay(
        self,
        line: ClientConnection,
        session: protocol.Server,
        request: protocol.Deliver,
        then: Callable[[Sequence[Reply]], None],
    ) -> None:
        """Put the message into the queue for all recipients. LMTP gets the same answer for each."""
        times = len(request.recipients) if self.settings.dialogue.lmtp else 1
        id = new_id(self.door.door.clock.now())
        try:
            trace, content = traced(
                line, session, request.content, id, self.settings.dialogue, self.door.door.clock.now()
            )
        except Refused as refusal:
            then([reply_for(refusal)] * times)
            return
        draft = Draft(
            content, request.sender, request.recipients, id=id, dsn=_dsn(request), normal=True, trace=trace
        )
        self.door.accept(draft, lambda answer: then([reply_for(answer)] * times))

    # -- pressure --------------------------------------------------------------------------------------------

    def gate(self) -> Reply | None:
        """Called at MAIL. A reply when no mail can be accepted now, else None."""
        if self._trouble is None and self.door.in_flight > IN_FLIGHT:
            return FULL
        if self._trouble is None and self.door.longest() > SLOW_STORE:
            return Reply(451, "The store is slow: come back soon", "4.3.0")
        if self._trouble is None and self._deep:
            return Reply(452, "Too much mail is waiting to be sent: come back later", "4.3.1")
        return self._trouble

    def _told_depth(self, answer: Any) -> None:
        if isinstance(answer, BaseException) or answer == self._deep:
            return
        self._deep = bool(answer)
        if answer:
            log.warning(
                "more than %d recipients wait in the queue: clients are told to come back later",
                self.settings.deepest,
            )
        else:
            log.warning("the queue is shorter again: mail is accepted")

    def _check(self) -> None:
        """Once a second: idle connections, memory, free disk space."""
        if self.before is not None and not self.before.connected:
            self.before = None
        if self._replaced and not self.connected:
            self._end()
            return
        now = monotonic()
        for line in list(self.lines):
            line.check(now)
        if self.settings.deepest and now - self._counted >= COUNT_EVERY:
            self._counted = now
            store = self.door.door.store
            self.door.call(lambda: store.read(store.verbs.deeper(self.settings.deepest)), self._told_depth)
        self._trouble = None
        self.throttle.tell()
        lines = [line for listener in self.door.listeners for line in listener.lines]
        held = sum(line.buffered for line in lines) + self.door.in_flight
        self.full = held > IN_FLIGHT
        if self.full:
            self._trouble = FULL
            self.throttle.say(
                logging.WARNING,
                "full",
                "%d bytes are held for clients: the largest sessions are told to come back later",
                held,
            )
            idle = (line for line in lines if line.buffered and not line.busy)
            for line in sorted(idle, key=lambda line: line.buffered, reverse=True):
                if held <= IN_FLIGHT:
                    break
                held -= line.buffered
                line.refuse(Reply(421, "Too much mail in flight: come back later", "4.3.1"))
        try:
            free = os.statvfs(os.path.dirname(self.door.door.store.spool) or ".")
            if free.f_bavail * free.f_frsize < LEAST_DISK:
                self._trouble = Reply(452, "The disk is nearly full", "4.3.1")
        except (OSError, AttributeError):
            pass
        self._tick = self.loop.call_later(1.0, self._check)


Take = Callable[
    [ClientConnection, protocol.Server, protocol.Deliver, Callable[[Sequence[Reply]], None]], None
]


def reply_for(answer: str | Exception) -> Reply:
    """The reply for the answer of acceptance."""
    if isinstance(answer, str):
        return Reply(250, f"queued as {answer}", "2.0.0")
    if isinstance(answer, Refused):
        text = str(answer).encode("ascii", "backslashreplace").decode().replace("\n", " ")
        code, enhanced = _REFUSALS.get(answer.code, (554, "5.6.0"))
        return Reply(code, text, enhanced)
    full = isinstance(answer, NotStored) and answer.code == "store-full"
    return Reply(
        452 if full else 451, "The message could not be stored: come back later", "4.3.1" if full else "4.3.0"
    )


_REFUSALS = {"too-large": (552, "5.3.4"), "loop": (554, "5.4.6")}


def traced(
    line: ClientConnection,
    session: protocol.Server,
    content: bytes,
    id: str,
    settings: protocol.ServerSettings,
    now: int,
) -> tuple[bytes, bytes]:
    """(Received field (RFC 5321 §4.4), content). Raises `Refused` when the message has passed too many
    servers, or its header is missing or too long.

    An empty header is accepted: the fields that are put in front become the header.
    """
    try:
        splice.check_head(content)
        splice.check_first(content, headless=True)
    except splice.ContentError as problem:
        raise Refused(str(problem), code=problem.code) from None
    if splice.has_passed(content, splice.MAX_HOPS):
        raise Refused(f"the message has passed {splice.MAX_HOPS} servers already: a loop", code="loop")
    how = (
        ("LMTP" if settings.lmtp else "ESMTP" if session.extended else "SMTP")
        + ("S" if session.tls else "")
        + ("A" if session.user else "")
    )
    where = f" ([{line.client}])" if line.client else f" (user {line.account})" if line.account else ""
    trace = (
        f"Received: from {session.helo}{where}\r\n\tby {settings.hostname} with {how} id "
        f"{id};\r\n\t{headers.date(now)}\r\n"
    ).encode()
    return trace, content or b"\r\n"


def _dsn(request: protocol.Deliver) -> Dsn | None:
    """The client's requests for notifications; requests about single recipients are kept with them."""
    if not (request.ret or request.envid or any(request.notify) or any(request.originals)):
        return None
    if len(set(request.notify)) == 1 and not any(request.originals):
        return Dsn(request.notify[0], request.ret, request.envid)
    asked = zip(request.recipients, request.notify, request.originals)
    return Dsn(
        "",
        request.ret,
        request.envid,
        {address: (notify, original) for address, notify, original in asked if notify or original},
    )


def bound(address: str) -> list[socket.socket]:
    """Sockets for ``host:port``, ``[::1]:port`` or ``unix:/path``. Raises OSError and ValueError."""
    if not address.startswith("unix:"):
        host, _, port = address.rpartition(":")
        return list(_bound(host.strip("[]"), int(port)))
    path = address.removeprefix("unix:")
    _remove_stale(path)
    made = socket.socket(socket.AF_UNIX)
    try:
        made.bind(path)
        os.chmod(path, 0o666)  # for this machine: who may reach it, its folder says
    except OSError:
        made.close()
        raise
    return [made]


def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket for each address of this name; "" means all addresses of this host."""
    for family, kind, proto, _, address in dict.fromkeys(
        socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    ):
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
        except BaseException:
            sock.close()
            raise
        yield sock


def account(sock: Any) -> str:
    """The user of this machine who has connected to a unix socket; "" for other sockets, and where the system
    does not say.
    """
    if sock is None or sock.family != getattr(socket, "AF_UNIX", None) or not hasattr(socket, "SO_PEERCRED"):
        return ""
    try:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        return ""
    return _name(struct.unpack("3i", credentials)[1])


@lru_cache(256)
def _name(uid: int) -> str:
    return login(uid) or f"uid {uid}"


def _remove_stale(path: str) -> None:
    """Remove a unix socket that a killed service has left and nobody listens on.

    Anything else with this name stays: binding then reports that the name is taken.
    """
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(path, follow_symlinks=False)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid not in (os.geteuid(), 0):
            return
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            except (TimeoutError, BlockingIOError):
                pass  # somebody listens, and is very busy
