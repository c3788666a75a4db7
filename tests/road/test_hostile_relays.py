"""Relays that mean harm, or are broken as if they did: a table of scripts, each against an engine that has
other mail to carry.

For each: the other next hop gets its mail meanwhile; the attempt ends within its deadline; memory stays
bounded; nothing is lost, nothing fails or counts as delivered that the relay did not say so of, nothing is
uncertain whose final dot was not sent; and one sentence in the attempt says what happened.

A script is a list of steps: ``C: word`` waits for a line that begins so; ``C: (content)`` for CRLF.CRLF; ``S:
text`` answers with a line; ``raw: text`` writes as it stands; ``drip: text`` writes it a byte at a time,
again and again; ``forever: text`` as fast as it is read; ``hang`` says nothing more; ``sip`` reads a byte now
and then; ``slowly`` the content; ``wait: seconds``; ``deaf`` reads nothing; ``eof`` ends its side; ``close``
and ``reset`` end all. After the last step the server hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from outmail import Outbox
from outmail.testing import Sink
from outmail.transport import smtp as transport
from tests.waiting import until

MakeBox = Callable[..., Outbox]

#: Seconds: of a step and of the final dot (in the relay's settings), and of what a loaded machine may take
#: beside.
STEP, DOT, SLACK = 1.0, 1.5, 12.0
#: For scripts that no time-out ends.
PATIENT = 20.0
HELLO = ["S: 220 hostile", "C: EHLO", "S: 250-hostile", "S: 250-PIPELINING", "S: 250 8BITMIME"]
MAIL = [*HELLO, "C: MAIL", "S: 250 ok"]
RCPT = [*MAIL, "C: RCPT", "S: 250 ok"]
DATA = [*RCPT, "C: DATA", "S: 354 go"]
CONTENT = [*DATA, "C: (content)"]
LMTP = [
    "S: 220 hostile",
    "C: LHLO",
    "S: 250-hostile",
    "S: 250 PIPELINING",
    "C: MAIL",
    "S: 250 ok",
    "C: RCPT",
    "S: 250 ok",
    "C: RCPT",
    "S: 250 ok",
    "C: DATA",
    "S: 354 go",
    "C: (content)",
]
QUEUED, UNCERTAIN, DELIVERED, FAILED = "queued", "queued uncertain", "delivered", "failed"


class Case(NamedTuple):
    script: list[str]
    words: str
    #: What becomes of each recipient.
    state: str = QUEUED
    settings: str = ""
    size: int = 0
    people: int = 1

    @property
    def timed(self) -> bool:
        """A time-out may end it: the relay waits, drips or goes on for ever at some point."""
        return any(not re.match("[SC]: |raw: |close|reset", line) for line in self.script)


CASES = {
    "says nothing at all": Case(["hang"], "no answer within 1 s (banner)"),
    "drips its banner": Case(["drip: 220-hello "], "no whole answer within 1 s (banner)"),
    "drips the answer to EHLO": Case([*HELLO[:2], "drip: 250-x"], "no whole answer within 1 s (ehlo)"),
    "drips lines of a reply that never ends": Case([*HELLO[:2], "drip: 250-x\r\n"], "(ehlo)"),
    "drips the answer to MAIL": Case([*HELLO, "C: MAIL", "drip: 250 o"], "no whole answer within 1 s (mail)"),
    "drips the answer to RCPT": Case([*MAIL, "C: RCPT", "drip: 250 o"], "no whole answer within 1 s (rcpt)"),
    "drips the answer to DATA": Case([*RCPT, "C: DATA", "drip: 354 g"], "no whole answer within 1 s (data)"),
    "drips the answer to the final dot": Case(
        [*CONTENT, "drip: 250 o"], "no whole answer within 1.5 s (dot)", UNCERTAIN
    ),
    "drips the answer to STARTTLS": Case(
        [*HELLO[:2], "S: 250-x", "S: 250 STARTTLS", "C: STARTTLS", "drip: 220 g"],
        "no whole answer within 1 s (tls)",
        settings='tls = "required"',
    ),
    "drips the answer to AUTH": Case(
        [*HELLO[:2], "S: 250-x", "S: 250 AUTH PLAIN", "C: AUTH", "drip: 235 o"],
        "no whole answer within 1 s (auth)",
        settings="user",
    ),
    "asks for ever in AUTH": Case(
        [*HELLO[:2], "S: 250-x", "S: 250 AUTH LOGIN", "C: AUTH", *["S: 334 VXNlcm5hbWU6", "C: "] * 9],
        "VXNlcm5hbWU6",
        settings="user",
    ),
    "a line without end": Case(
        ["forever: 220 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"], "a line of a reply has more than 2048 bytes"
    ),
    "a reply without end": Case(
        [*HELLO, "C: MAIL", "forever: 250-aaaaaaaaaaaaaaaa\r\n"], "a reply has more than 64 lines"
    ),
    "ten thousand extensions": Case(
        [*HELLO[:2], "raw: " + "250-X\r\n" * 10_000, "S: 250 X"], "a reply has more than 64 lines"
    ),
    "1xx for ever": Case([*HELLO, "C: MAIL", "forever: 150 wait\r\n"], "not an SMTP reply: '150 wait'"),
    "2xx for ever": Case(["forever: 250 ok\r\n"], "a reply to nothing: 250 ok"),
    "a hundred replies at once": Case([*HELLO, "raw: " + "250 ok\r\n" * 100], "a reply to nothing: 250 ok"),
    "all replies ahead of the commands": Case(
        ["raw: 220 hi\r\n250 x\r\n250 ok\r\n250 ok\r\n354 go\r\n250 taken\r\n"], "a reply to nothing: 250 x"
    ),
    "the last reply ahead of the content": Case(
        [*RCPT, "C: DATA", "raw: 354 go\r\n250 taken\r\n"], "a reply to nothing: 250 taken"
    ),
    "odd bytes in a reply": Case(
        [*HELLO, "C: MAIL", "raw: 451 a\0b\x1b[2Jc\xff\rd\r\n", "hang"], "451 a b [2Jc"
    ),
    "a bare LF inside a reply": Case([*HELLO, "C: MAIL", "raw: 451 later\ndone\r\n"], "451 later"),
    "lines of one reply with two codes": Case(
        [*HELLO, "C: MAIL", "raw: 250-ok\r\n550 no\r\n"], "the lines of one reply have different codes"
    ),
    "codes in the wrong order": Case(
        [*HELLO, "C: MAIL", "S: 354 go", "C: RCPT", "S: 354 go", "C: DATA", "S: 354 go", "hang"], "354 go"
    ),
    "garbage": Case(["raw: \x80\x00\x01HTTP/1.1 400 Bad\r\n"], "not an SMTP reply"),
    "garbage for TLS": Case(
        [
            *HELLO[:2],
            "S: 250-x",
            "S: 250 STARTTLS",
            "C: STARTTLS",
            "S: 220 go",
            "raw: garbage garbage\r\n" * 9,
        ],
        "TLS failed",
        settings='tls = "required"',
    ),
    "silence for TLS": Case(
        [*HELLO[:2], "S: 250-x", "S: 250 STARTTLS", "C: STARTTLS", "S: 220 go", "hang"],
        "the TLS handshake took too long",
        settings='tls = "required"',
    ),
    "silence for TLS from the start": Case(
        ["hang"], "the TLS handshake took too long", settings='tls = "implicit"'
    ),
    "a command injected behind STARTTLS": Case(
        [*HELLO[:2], "S: 250-x", "S: 250 STARTTLS", "C: STARTTLS", "raw: 220 go\r\n250 injected\r\n"],
        "bytes arrived before the TLS handshake",
        settings='tls = "required"',
    ),
    "half a reply injected behind STARTTLS": Case(
        [*HELLO[:2], "S: 250-x", "S: 250 STARTTLS", "C: STARTTLS", "raw: 220 go\r\n250"],
        "before the TLS handshake",
        settings='tls = "required"',
    ),
    "a banner of 554": Case(["S: 554 go away", "hang"], "554 go away"),
    "absurd limits": Case(
        [
            *HELLO[:2],
            "S: 250-x",
            "S: 250-PIPELINING",
            "S: 250-SIZE " + "9" * 1500,
            "S: 250 LIMITS RCPTMAX=" + "9" * 900 + " MAILMAX=-1 RCPTMAX=x",
            *CONTENT[5:],
            "S: 250 taken",
            "C: QUIT",
            "S: 221 bye",
        ],
        "250 taken",
        DELIVERED,
    ),
    "250 to everything, DATA too": Case([*RCPT, "C: DATA", "S: 250 ok", "C: QUIT", "S: 250 ok"], "250 ok"),
    "354 and then silence": Case([*DATA, "hang"], "no answer within 1.5 s (dot)", UNCERTAIN),
    "closes at the banner": Case(["close"], "connection closed by the relay"),
    "closes in the middle of a reply": Case(
        [*HELLO, "C: MAIL", "raw: 25", "close"], "connection closed by the relay"
    ),
    "closes behind 354": Case(
        [*RCPT, "C: DATA", "S: 354 go", "C: (content)", "close"], "connection closed by the relay", UNCERTAIN
    ),
    "resets in the middle of the envelope": Case([*MAIL, "reset"], "connection"),
    "resets at the final dot": Case([*CONTENT, "reset"], "connection", UNCERTAIN),
    "421 and a word behind it": Case(
        [*MAIL, "C: RCPT", "raw: 421 closing\r\n421 closing\r\n"], "421 closing"
    ),
    "LMTP with too few answers": Case(
        [*LMTP, "S: 250 one", "hang"],
        "no answer within 1.5 s (dot)",
        "delivered, " + UNCERTAIN,
        "lmtp",
        people=2,
    ),
    "LMTP with too many answers": Case(
        [*LMTP, "S: 250 one", "S: 250 two", "S: 550 three", "hang"], "250 one", DELIVERED, "lmtp", people=2
    ),
    "LMTP that drips its answers": Case(
        [*LMTP, "drip: 250 o"], "no whole answer within 1.5 s (dot)", UNCERTAIN, "lmtp", people=2
    ),
    "reads nothing of the content": Case([*DATA, "deaf"], "the relay has read only", QUEUED, size=6_000_000),
    "ends its side and reads nothing": Case(
        [*DATA, "eof", "deaf"], "the relay has read only", QUEUED, size=6_000_000
    ),
    "sips the content": Case([*DATA, "sip"], "the relay has read only", QUEUED, size=6_000_000),
    "refuses in the middle of the content and reads no more": Case(
        [*DATA, "S: 421 enough", "deaf"], "421 enough", QUEUED, size=6_000_000
    ),
    "reads slowly and honestly": Case(
        [*DATA, "slowly", "S: 250 taken"], "250 taken", DELIVERED, size=6_000_000
    ),
    "answers each recipient just in time": Case(
        [*MAIL, *["wait: 0.3", "S: 250 ok"] * 40], "the session was not over after 3 s (rcpt)", people=40
    ),
    "answers each of LMTP just in time": Case(
        [
            *LMTP[:5],
            *["S: 250 ok"] * 16,
            "C: DATA",
            "S: 354 go",
            "C: (content)",
            *["wait: 0.6", "S: 250 ok"] * 15,
        ],
        "the session was not over after 3 s (dot)",
        "delivered, " + UNCERTAIN,
        "lmtp",
        people=15,
    ),
    "words behind QUIT": Case(
        [*CONTENT, "S: 250 taken", "C: QUIT", "forever: 250 and another thing\r\n"], "250 taken", DELIVERED
    ),
    "drips its goodbye": Case([*CONTENT, "S: 250 taken", "C: QUIT", "drip: 221 b"], "250 taken", DELIVERED),
    "speaks when nobody asked": Case(
        [*CONTENT, "S: 250 taken", "forever: 250 unasked\r\n"], "250 taken", DELIVERED
    ),
}


class Hostile:
    """Plays one script to every client, in a thread of its own."""

    def __init__(self, script: list[str]) -> None:
        self.script = script
        self.connections = 0
        self.open = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Hostile:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        self.port = sock.getsockname()[1]
        server = await asyncio.start_server(self._client, sock=sock, limit=8192)
        self._ready.set()
        await self._over.wait()
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            for step in self.script:
                await self._step(step, reader, writer)
            while await reader.read(4096):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            pass
        finally:
            self.open -= 1
            writer.transport.abort()

    async def _step(self, step: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind, _, text = step.partition(": ")
        data = text.encode("latin-1")
        if step == "C: (content)":
            await reader.readuntil(b"\r\n.\r\n")
        elif kind == "C":
            line = await reader.readline()
            while line and not line.startswith(data):
                line = await reader.readline()
        elif kind in ("S", "raw"):
            writer.write(data + (b"\r\n" if kind == "S" else b""))
            await writer.drain()
        elif kind == "drip":
            while not writer.is_closing():
                for n in range(len(data)):
                    writer.write(data[n : n + 1])
                    await writer.drain()
                    await asyncio.sleep(0.02)
        elif kind == "forever":
            while not writer.is_closing():
                writer.write(data * 500)
                await writer.drain()
                await asyncio.sleep(0)
        elif kind == "sip":
            for _ in range(200):
                await reader.read(1)
                await asyncio.sleep(0.02)
        elif kind == "slowly":
            last = b""
            while not last.endswith(b"\r\n.\r\n"):
                last = (last + await reader.read(16384))[-5:]
                await asyncio.sleep(0.005)
        elif kind == "wait":
            await asyncio.sleep(float(text))
        elif kind == "deaf":
            await asyncio.sleep(4)
        elif kind == "eof":
            writer.write_eof()
        elif kind != "hang":
            if kind == "reset":
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                writer.transport.abort()
            else:
                writer.close()
            raise ConnectionAbortedError


def memory() -> int:
    """Bytes of this process; 0 where that cannot be told."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def descriptors() -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return 0


@pytest.fixture(scope="module")
def good() -> Iterator[Sink]:
    with Sink() as sink:
        yield sink


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_relay_harms_only_itself(
    name: str, good: Sink, make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    step, dot = (STEP, DOT) if case.timed else (PATIENT, PATIENT)
    monkeypatch.setattr(transport, "LONGEST", 3.0 if case.timed else PATIENT)
    with Hostile(case.script) as relay:
        scheme, user = (
            ("lmtp" if case.settings == "lmtp" else "smtp"),
            ("me:secret@" if case.settings == "user" else ""),
        )
        settings = case.settings if "=" in case.settings else ""
        box = make_box(
            deliver="thread",
            exit_wait=SLACK,
            toml=f'[relay]\nurl = "{good.url}"\n[relays.bad]\nurl = '
            f'"{scheme}://{user}127.0.0.1:{relay.port}"\ntimeout = {step}\ndot_timeout = {dot}\n{settings}\n'
            f'[[route]]\nto = "*@bad.test"\nrelays = ["bad"]\n[retry]\nschedule = "1h"\n',
        )
        content = (
            b"From: a@x.test\r\nSubject: s\r\n\r\n"
            + b"x" * 70
            + b"\r\n"
            + (b"y" * 70 + b"\r\n") * (case.size // 72)
        )
        used = memory()
        began = time.monotonic()
        id = box.submit(
            content, sender="a@x.test", recipients=[f"u{n}@bad.test" for n in range(case.people)]
        ).id
        until(lambda: relay.connections, 10)
        for n in range(2):  # the engine goes on meanwhile
            assert box.wait(box.send(f"u{n}@good.test", "s", "t").id, 20).status == "delivered"
        attempts = until(
            lambda: (
                box.attempts(id)
                and not any(r.state == "sending" for r in box.status(id).recipients)
                and box.attempts(id)
            ),
            30,
        )
        lasted = time.monotonic() - began
        assert attempts, box.status(id)
        status = box.status(id)
        states = [str(r.state) + (" uncertain" if r.uncertain else "") for r in status.recipients]
        assert ", ".join(dict.fromkeys(states)) == case.state, (states, [str(a.reply) for a in attempts])
        story = " ".join(str(a.reply) for a in attempts)
        assert case.words in story and story.isprintable(), story
        assert lasted < 3 * step + dot + 3.0 + SLACK, lasted
        assert memory() - used < 60_000_000 + 6 * case.size
        if case.state == DELIVERED or "C: QUIT" in case.script:
            box.close()  # the session was kept
        until(lambda: not relay.open, SLACK)  # the connection is hung up


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 25
