"""A server that talks for ever, or says too much, costs neither more time than was meant nor memory."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from outmail.returns import imap


class Server:
    """One connection. ``idle`` and ``fetch`` are what it does when it is asked for that."""

    def __init__(
        self, idle: Callable[[Server], None] | None = None, fetch: Callable[[Server], None] | None = None
    ) -> None:
        self._does = {b"IDLE": idle, b"FETCH": fetch}
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.over = threading.Event()
        self.said = 0
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def say(self, data: bytes) -> None:
        self._client.sendall(data)
        self.said += len(data)

    def _serve(self) -> None:
        self._client, _ = self._listening.accept()
        try:
            with self._client, self._client.makefile("rb") as lines:
                self.say(b"* OK hello\r\n")
                for line in lines:
                    self._answer(line)
        except OSError:
            pass  # the client has hung up

    def _answer(self, line: bytes) -> None:
        tag, *words = line.upper().split()
        for word, does in self._does.items():
            if does is not None and word in words[:2]:
                does(self)
                return self._client.shutdown(socket.SHUT_RDWR)
        if words[0] == b"CAPABILITY":
            self.say(b"* CAPABILITY IMAP4rev1 IDLE\r\n")
        if words[1:2] == [b"SEARCH"]:
            self.say(b"* SEARCH 1\r\n")
        self.say(tag + b" OK done\r\n")

    def close(self) -> None:
        self.over.set()
        self._listening.close()
        self.thread.join(20)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def start(**does: Any) -> Server:
        made.append(Server(**does))
        return made[-1]

    yield start
    for one in made:
        one.close()


class Nobody:
    """Arrivals that are not expected."""

    def take(self, head: bytes) -> None:
        raise AssertionError(f"{len(head)} bytes were taken")


def mailbox(server: Server) -> imap.Mailbox:
    url = imap.ImapUrl("127.0.0.1", server.port, "loop", tls=False, password="geheim")
    return imap.Mailbox(url, Nobody())  # type: ignore[arg-type]


@pytest.mark.parametrize("words", [b"* OK Still here\r\n", b"*"], ids=["lines", "one-long-line"])
def test_a_server_that_talks_while_it_is_idle_does_not_keep_wait(
    serve: Callable[..., Server], words: bytes
) -> None:
    def talks(server: Server) -> None:
        for _ in range(200):
            server.say(words)
            if server.over.wait(0.05):
                return

    box = mailbox(serve(idle=talks))
    box._connected()
    began = time.monotonic()
    assert box.wait(0.3)
    assert time.monotonic() - began < 6
    box.close()


LITERAL = b"* 1 FETCH (UID 1 BODY[HEADER]<0> {2000000000}\r\n"
LINES = b"* 1 FETCH (FLAGS (\\Seen))\r\n" * 1000


@pytest.mark.parametrize(
    ("first", "then", "told"),
    [(LITERAL, b"x" * 100_000, "literal of 2000000000 bytes"), (b"", LINES, "more than 4000000 bytes")],
    ids=["literal", "lines"],
)
def test_a_server_that_says_too_much_is_left(
    serve: Callable[..., Server], first: bytes, then: bytes, told: str
) -> None:
    def floods(server: Server) -> None:
        server.say(first)
        while server.said < 50_000_000:
            server.say(then)

    server = serve(fetch=floods)
    box = mailbox(server)
    with pytest.raises(OSError, match=told):
        box.look()
    server.thread.join(20)
    assert not server.thread.is_alive() and server.said < 40_000_000
    assert box._server is None
