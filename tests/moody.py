"""A pipelining SMTP server in a bad mood: it takes mail, but not what is sent ahead of its turn. Haraka 3.3
in small, and others.

``ahead`` says what becomes of commands that are there before the final dot is answered: "" (they are taken),
a reply (to each whole command, a begun one is thrown away, as Haraka does it; 421 closes), "close" and
"hang-up" (behind the answer to the dot, or in its place), "silence" (thrown away without a word). ``after``
so many were taken in a session, and with ``odds``. ``enough``: the MAIL behind so many messages of a session
gets 421. ``limits`` is said in LIMITS.
Promises: `got` counts what was taken, by recipient; one thread; loopback. Not a test by itself:
`tests/road/test_ahead.py` and `tests/campaigns/moods.py` use it.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any


class Moody:
    """Use `start` and `close`."""

    def __init__(
        self,
        *,
        ahead: str = "",
        after: int = 0,
        odds: float = 1.0,
        cut: int = 0,
        takes_the_rest: bool = False,
        messages: int = 0,
        enough: int = 0,
        limits: str = "",
        late: float = 0.0,
        bytewise: bool = False,
        senders: Mapping[str, str] = {},
        recipients: Mapping[str, str] = {},
        judge: Callable[[str], str] = lambda address: "",
        seed: int = 1,
    ) -> None:
        self.ahead, self.after, self.odds, self.cut, self.takes_the_rest = (
            ahead,
            after,
            odds,
            cut,
            takes_the_rest,
        )
        self.messages, self.enough, self.limits, self.late, self.bytewise = (
            messages,
            enough,
            limits,
            late,
            bytewise,
        )
        self.senders, self.recipients, self.judge = senders, recipients, judge
        self.chance = random.Random(seed)
        self.got: Counter[str] = Counter()
        #: How often something that was sent ahead was not taken, and taken.
        self.refused = self.taken = 0
        #: How often a session got 421 because of ``enough``.
        self.overrun = 0
        self.sessions = 0
        self.open: set[_Line] = set()
        self.url = ""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def start(self) -> Moody:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await self._loop.create_server(lambda: _Line(self), "127.0.0.1", 0, backlog=200)
        self.url = f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for line in list(self.open):
            line.transport.abort()
        await asyncio.sleep(0)


class _Line(asyncio.Protocol):
    def __init__(self, server: Moody) -> None:
        self.server = server
        self.transport: Any = None
        self.buffer = b""
        self.waiting = self.in_data = False
        self.sender: str | None = None
        self.people: list[str] = []
        self.count = self.early = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.server.open.add(self)
        self.server.sessions += 1
        self.say("220 moody.test")

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.open.discard(self)

    def say(self, *lines: str) -> None:
        data = "".join(line + "\r\n" for line in lines).encode()
        for portion in [data[i : i + 1] for i in range(len(data))] if self.server.bytewise else [data]:
            if not self.transport.is_closing():
                self.transport.write(portion)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.work()

    def work(self) -> None:
        while not self.waiting and not self.transport.is_closing():
            end = b"\r\n.\r\n" if self.in_data else b"\r\n"
            if self.in_data and self.buffer.startswith(b".\r\n"):
                self.buffer = b"\r\n" + self.buffer
            found, mark, rest = self.buffer.partition(end)
            if not mark:
                return
            self.buffer = rest
            if self.in_data:
                self.in_data, self.waiting = False, True
                asyncio.get_running_loop().call_later(self.server.late, self.answer)
            else:
                self.command(found.decode())

    def command(self, line: str) -> None:
        verb, argument = line[:4].upper(), line.partition("<")[2].partition(">")[0]
        server = self.server
        if verb == "EHLO":
            self.say("250-moody.test", "250-PIPELINING", f"250-LIMITS {server.limits}", "250 8BITMIME")
        elif verb == "MAIL" and server.enough and self.count == server.enough:
            server.overrun += 1
            self.say("421 4.7.0 too many messages in this connection")
            self.transport.close()
        elif verb == "MAIL":
            refusal = server.senders.get(argument, "")
            self.sender, self.people = None if refusal else argument, []
            self.say(refusal or "250 ok")
        elif verb == "RCPT":
            refusal = (
                "503 MAIL first"
                if self.sender is None
                else server.recipients.get(argument, "") or server.judge(argument)
            )
            self.people += [] if refusal else [argument]
            self.say(refusal or "250 ok")
        elif verb == "DATA":
            self.in_data = bool(self.people)
            self.say("354 go on" if self.people else "503 no recipients")
        elif verb in ("RSET", "NOOP"):
            self.sender, self.people = None, []
            self.say("250 ok")
        elif verb == "QUIT":
            self.say("221 bye")
            self.transport.close()
        else:
            self.say("500 what?")

    def answer(self) -> None:
        """The final dot's turn, and whatever came too early behind it."""
        server = self.server
        if self.transport.is_closing():
            return
        server.got.update(self.people)
        self.count += 1
        self.waiting, self.sender, self.people = False, None, []
        last = self.count == server.messages
        refuses = (
            bool(self.buffer and server.ahead)
            and self.early >= server.after
            and server.chance.random() < server.odds
        )
        self.early += bool(self.buffer)
        server.taken += bool(self.buffer) and not refuses
        server.refused += refuses
        if refuses and server.ahead == "hang-up":
            self.transport.abort()
            return
        self.say("250 taken")
        if last or (refuses and server.ahead == "close"):
            self.transport.close()
            return
        if refuses:
            self.refuse()
        self.work()

    def refuse(self) -> None:
        server = self.server
        there = len(self.buffer) - server.cut
        commands, self.buffer = self.buffer[:there].count(b"\r\n"), self.buffer[there:] if server.cut else b""
        if server.ahead == "silence":
            return
        if server.takes_the_rest:
            self.say(server.ahead, *["250 ok"] * (commands - 2), "354 go on")
            self.in_data = True
            return
        if server.ahead.startswith("421"):
            self.say(server.ahead)
            self.transport.close()
            return
        self.say(*[server.ahead] * commands)
