"""A plain stream socket in the event loop. It does what asyncio's own transport does, in a third of the steps
for each message.

It is the transport of an `asyncio.BufferedProtocol` whose `get_buffer` returns the same buffer every time. A
connection that is to be encrypted is given to asyncio (`detach`).
Promises: data goes out in order, before `close` closes. When the peer does not read, `pause_writing` and
later `resume_writing` are called. `connection_lost` is called once, in a turn of its own, whatever happened.
A bug in the protocol ends this connection and is logged. Fails: by `connection_lost` with the exception. Does
not: TLS, or half-closed connections.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from typing import Any
from weakref import WeakKeyDictionary

from outmail.system.throttle import Throttle

log = logging.getLogger("outmail")
#: The throttled log of each loop.
throttles: WeakKeyDictionary[asyncio.AbstractEventLoop, Throttle] = WeakKeyDictionary()

#: How many bytes may wait for a peer before its protocol is paused.
HIGH_WATER = 64 * 1024


def unread(sock: Any) -> int:
    """How many sent bytes the peer's system has not accepted yet (a slow line, or a peer that does not read);
    0 where that cannot be asked, as on Windows.
    """
    try:
        import fcntl
        import termios

        if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return 0
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (ImportError, OSError):
        return 0


class Wire:
    """One connection. ``sock`` is connected and non-blocking."""

    __slots__ = (
        "_buffer",
        "_closing",
        "_fd",
        "_loop",
        "_lost",
        "_paused",
        "_peer",
        "_protocol",
        "_reading",
        "_sock",
        "_unsent",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        protocol: asyncio.BufferedProtocol,
        peer: Any = None,
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._protocol = protocol
        self._peer = peer
        self._buffer = protocol.get_buffer(-1)
        self._unsent = bytearray()
        self._closing = self._lost = self._paused = False
        self._reading = True
        loop.add_reader(self._fd, self._readable)
        protocol.connection_made(self)  # type: ignore[arg-type]

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``peername`` and ``socket``, as asyncio has them."""
        return {"peername": self._peer, "socket": self._sock}.get(name, default)

    # -- reading ---------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            count = self._sock.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as problem:
            self._end(problem)
            return
        try:
            if count:
                self._protocol.buffer_updated(count)
            else:
                self.close()
        except Exception as bug:
            throttles.setdefault(self._loop, Throttle(log)).say(
                logging.ERROR, "bug", "a connection is closed because of a bug of outmail", exc_info=bug
            )
            self._end(bug)

    def pause_reading(self) -> None:
        """Leave incoming data in the system's buffer."""
        if self._reading and not self._closing:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Read again; no harm when it was not paused."""
        if not self._reading and not self._closing:
            self._reading = True
            self._loop.add_reader(self._fd, self._readable)

    # -- writing ---------------------------------------------------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        """Send what the system accepts now, and the rest later. After `close` nothing more is sent."""
        if self._closing:
            return
        if not self._unsent:
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as problem:
                self._end(problem)
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
            self._loop.add_writer(self._fd, self._writable)
        self._unsent += data
        if len(self._unsent) > HIGH_WATER and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        """How many bytes wait for the peer to read."""
        return len(self._unsent)

    def _writable(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as problem:
            self._end(problem)
            return
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._fd)
            if self._closing:
                self._end(None)
        if self._paused and len(self._unsent) <= HIGH_WATER // 4:
            self._paused = False
            self._protocol.resume_writing()

    # -- the end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Hang up when everything is sent."""
        if self._closing:
            return
        self._closing = True
        self._loop.remove_reader(self._fd)
        if not self._unsent:
            self._end(None)

    def abort(self) -> None:
        """Hang up now."""
        self._end(None)

    def detach(self) -> socket.socket:
        """Give up the bare socket, for asyncio to encrypt. Raises ConnectionError while something is unsent
        or the connection is closed.
        """
        if self._closing or self._unsent:
            raise ConnectionError("the line is not free")
        self._closing = self._lost = True
        self._loop.remove_reader(self._fd)
        return self._sock

    def _end(self, problem: Exception | None) -> None:
        if self._lost:
            return
        self._closing = self._lost = True
        self._loop.remove_reader(self._fd)
        if self._unsent:
            self._unsent = bytearray()
            self._loop.remove_writer(self._fd)
        self._loop.call_soon(self._gone, problem)

    def _gone(self, problem: Exception | None) -> None:
        try:
            self._protocol.connection_lost(problem)
        finally:
            self._sock.close()
