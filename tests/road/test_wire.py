"""The plain transport: what asyncio promises of one, this one keeps."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from outmail.transport.wire import HIGH_WATER, Wire
from tests.waiting import stays_in_loop, until_in_loop


class Peer(asyncio.BufferedProtocol):
    """Keeps what happens to it."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(1024))
        self.seen: list[Any] = []
        self.got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.seen.append("made")

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.got += bytes(self.buffer[:nbytes])
        if self.got.endswith(b"bug"):
            raise RuntimeError("a bug")

    def pause_writing(self) -> None:
        self.seen.append("pause")

    def resume_writing(self) -> None:
        self.seen.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.seen.append(exc and type(exc).__name__)


def play(scene: Callable[[Wire, Peer, socket.socket], Awaitable[None]]) -> Peer:
    peer = Peer()
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)

    async def run() -> None:
        await scene(Wire(asyncio.get_running_loop(), ours, peer, "them"), peer, theirs)
        await asyncio.sleep(0.01)  # the turns of the loop in which a connection's end is told

    with theirs:
        asyncio.run(asyncio.wait_for(run(), 20))
    return peer


async def read(sock: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count and (more := await asyncio.get_running_loop().sock_recv(sock, 65536)):
        found += more
    return found


def test_everything_written_arrives_in_order_before_the_close() -> None:
    data = bytes(range(256)) * 2048

    async def scene(wire: Wire, peer: Peer, theirs: socket.socket) -> None:
        wire.write(b"first ")
        wire.write(data)
        wire.write(memoryview(b" last"))
        wire.close()
        wire.write(b"too late")
        assert await read(theirs, 1 << 30) == b"first " + data + b" last"

    peer = play(scene)
    assert len(data) > HIGH_WATER
    assert peer.seen == ["made", "pause", None] or peer.seen == ["made", "pause", "resume", None]


def test_a_peer_that_reads_again_resumes_the_protocol() -> None:
    async def scene(wire: Wire, peer: Peer, theirs: socket.socket) -> None:
        wire.write(b"x" * (3 * HIGH_WATER))
        assert peer.seen == ["made", "pause"]
        await read(theirs, 3 * HIGH_WATER)
        assert peer.seen == ["made", "pause", "resume"]
        assert wire.get_extra_info("peername") == "them" and wire.get_extra_info("other", 7) == 7
        wire.abort()
        wire.abort()
        wire.close()

    assert play(scene).seen == ["made", "pause", "resume", None]


def test_paused_reading_leaves_bytes_where_they_are() -> None:
    async def scene(wire: Wire, peer: Peer, theirs: socket.socket) -> None:
        wire.pause_reading()
        wire.pause_reading()
        theirs.send(b"hello")
        await stays_in_loop(lambda: peer.got == b"", 0.02)
        wire.resume_reading()
        wire.resume_reading()
        await until_in_loop(lambda: peer.got == b"hello")
        theirs.close()
        await until_in_loop(lambda: peer.seen == ["made", None])
        wire.resume_reading()  # after the end: nothing

    play(scene)


def test_a_bug_in_the_protocol_ends_this_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(wire: Wire, peer: Peer, theirs: socket.socket) -> None:
        theirs.send(b"bug")
        assert await read(theirs, 1) == b""

    assert play(scene).seen == ["made", "RuntimeError"]
    assert "bug of outmail" in caplog.text


def test_a_reset_is_said_once() -> None:
    async def scene(wire: Wire, peer: Peer, theirs: socket.socket) -> None:
        wire.pause_reading()
        theirs.close()
        for _ in range(3):
            wire.write(b"x")
        await until_in_loop(lambda: len(peer.seen) == 2)

    assert play(scene).seen == ["made", "BrokenPipeError"]


def test_the_bare_socket_is_given_away_only_when_nothing_is_unsent() -> None:
    async def scene(wire: Wire, peer: Peer, theirs: socket.socket) -> None:
        wire.write(b"x" * HIGH_WATER)
        with pytest.raises(ConnectionError):
            wire.detach()
        await read(theirs, HIGH_WATER)
        sock = wire.detach()
        theirs.send(b"for somebody else")
        await stays_in_loop(lambda: peer.got == b"", 0.02)
        assert sock.recv(100) == b"for somebody else"
        wire.abort()  # no more ours
        await stays_in_loop(lambda: peer.seen == ["made"], 0.02)
        assert sock.send(b"y") == 1 and peer.seen == ["made"]
        sock.close()

    play(scene)


def test_without_descriptors_the_listener_waits_and_goes_on(tmp_path: Any) -> None:
    """accept() fails for a while: connections that stand are served, and later ones are taken."""
    from outmail.intake import smtp

    class Listening:
        def __init__(self, sock: socket.socket) -> None:
            self.sock, self.failing, self.failed = sock, True, 0

        def fileno(self) -> int:
            return self.sock.fileno()

        def accept(self) -> Any:
            if self.failing:
                self.failed += 1
                raise OSError(errno.EMFILE, "Too many open files")
            return self.sock.accept()

    async def run() -> None:
        door: Any = type(
            "D",
            (),
            {
                "in_flight": 0,
                "listeners": [],
                "door": type("I", (), {"store": type("S", (), {"spool": str(tmp_path / "q.spool")})}),
            },
        )
        listener = smtp.Listener(door, smtp.ListenerSettings())
        address = await listener.listen("127.0.0.1:0")
        (sock,) = listener._sockets
        fake: Any = Listening(sock)
        listener.loop.remove_reader(sock)
        listener._sockets = [fake]
        listener.loop.add_reader(fake, listener._accept, fake)
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await until_in_loop(lambda: fake.failed)
        fake.failing = False
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"220 ")
        writer.close()
        listener._sockets = [sock]
        await listener.close(0.1)

    asyncio.run(asyncio.wait_for(run(), 20))
