"""An SMTP or LMTP server that does what a script says: replies, delays, drops, half-written answers.

A script is lines of ``STEP [PATTERN]: ACTION [ODDS]``. The first line that fits decides.
  STEP     CONNECT, EHLO, STARTTLS, AUTH, MAIL, RCPT, DATA, DOT (the content is complete), RSET or QUIT
  PATTERN  a shell pattern: of the sender for MAIL, DATA and DOT, of the recipient for RCPT and the DOT of
           LMTP
  ACTION   a reply (``451 4.7.1 later``), or one of
           ``drop``           close without a word
           ``take-and-drop``  DOT: keep the message, then close
           ``half``           write half of the answer, then close
           ``hang``           never answer
           ``delay 0.5``      wait for so many seconds, then answer as usual
  ODDS     ``1/10``: one passage in ten, by chance (seeded); ``x3``: the first three passages only

Promises: binds to a free port of the loopback address; `messages` holds what was taken, bytes as received
minus dot-stuffing; only CRLF.CRLF ends content. Does not: store anything, or suit production.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any


@dataclass(frozen=True, slots=True)
class Received:
    """A message the sink took. ``content`` is what DATA carried without dot-stuffing."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    at: float
    session: int
    encrypted: bool
    user: str
    mail_parameters: str
    rcpt_parameters: tuple[str, ...]


@dataclass(slots=True)
class Rule:
    """One line of a script."""

    step: str
    pattern: str
    action: str
    odds: float = 1.0
    times: int = -1

    @classmethod
    def parse(cls, line: str) -> Rule:
        match = re.fullmatch(
            r"\s*([A-Za-z]+)(?:\s+(\S+?))?\s*:\s*(.*?)(?:\s+(?:(\d+)/(\d+)|x(\d+)))?\s*", line
        )
        if not match or not match[3]:
            raise ValueError(f"{line!r} is not a rule of a sink: write STEP [pattern]: action [odds]")
        odds = int(match[4]) / int(match[5]) if match[4] else 1.0
        return cls(match[1].upper(), match[2] or "*", match[3], odds, int(match[6]) if match[6] else -1)

    def fits(self, step: str, subject: str, chance: random.Random) -> bool:
        if self.step != step or self.times == 0 or not fnmatch(subject.lower(), self.pattern.lower()):
            return False
        if self.odds < 1.0 and chance.random() >= self.odds:
            return False
        self.times -= self.times > 0
        return True


Script = str | Iterable[str | Rule]


def parse_script(script: Script) -> list[Rule]:
    """Text or lines → rules; blank lines and ``#`` comments are skipped."""
    lines = script.splitlines() if isinstance(script, str) else script
    return [
        line if isinstance(line, Rule) else Rule.parse(line)
        for line in lines
        if isinstance(line, Rule) or (line.strip() and not line.strip().startswith("#"))
    ]


@dataclass(slots=True)
class _Envelope:
    sender: str | None = None
    parameters: str = ""
    recipients: list[str] = field(default_factory=list)
    rcpt_parameters: list[str] = field(default_factory=list)


class Sink:
    """A server in a thread of its own; use it as a context manager or call `start` and `close`."""

    def __init__(
        self,
        script: Script = "",
        *,
        lmtp: bool = False,
        extensions: Iterable[str] = (
            "PIPELINING",
            "8BITMIME",
            "SMTPUTF8",
            "ENHANCEDSTATUSCODES",
            "DSN",
            "SIZE 100000000",
        ),
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        users: dict[str, str] | None = None,
        auth: str = "PLAIN LOGIN",
        port: int = 0,
        keep: bool = True,
        seed: int = 1,
        on_message: Callable[[Received], None] | None = None,
    ) -> None:
        self.rules = parse_script(script)
        self.extensions = list(extensions)
        self.lmtp, self.tls, self.implicit_tls = lmtp, tls, implicit_tls
        self.users, self.auth = users, auth
        self.port = port
        self.keep = keep
        self.messages: list[Received] = []
        self.count = 0
        self.connections = 0
        self.commands: list[str] = []
        self.on_message = on_message
        self.chance = random.Random(seed)
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: set[_Session] = set()
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        scheme = "lmtp" if self.lmtp else "smtps" if self.implicit_tls else "smtp"
        return f"{scheme}://127.0.0.1:{self.port}"

    def start(self) -> Sink:
        self._thread = threading.Thread(target=self._run, name="outmail-sink", daemon=True)
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the sink did not start within 10 s")
        return self

    def close(self) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)
            self._loop = None

    def script(self, script: Script) -> None:
        """Change the rules from now on."""
        self.rules = parse_script(script)

    def wait_for(self, n: int, timeout: float = 10.0) -> list[Received]:
        """The messages, once there are at least ``n``; raises TimeoutError naming how many came."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while self.count < n:
                if (
                    not self._changed.wait(max(0.0, deadline - time.monotonic()))
                    and time.monotonic() >= deadline
                ):
                    raise TimeoutError(f"{self.count} of {n} messages came within {timeout} s")
            return list(self.messages)

    def __enter__(self) -> Sink:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await self._loop.create_server(
            lambda: _Session(self),
            "127.0.0.1",
            self.port,
            ssl=self.tls if self.implicit_tls else None,
            backlog=1000,
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for session in list(self._open):
            session.transport.abort()
        await asyncio.sleep(0)

    def take(self, message: Received) -> None:
        with self._changed:
            self.count += 1
            if self.keep:
                self.messages.append(message)
            self._changed.notify_all()
        if self.on_message:
            self.on_message(message)


class _Session(asyncio.Protocol):
    """One client."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.transport: Any = None
        self.buffer = b""
        self.in_data = False
        self.encrypted = sink.implicit_tls
        self.user = ""
        self.envelope = _Envelope()
        self.expect: Callable[[str], str] | None = None
        self.paused = False
        self.number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        fresh = self.transport is None
        self.transport = transport
        self.sink._open.add(self)
        if fresh:
            self.sink.connections += 1
            self.number = self.sink.connections
            self._act("CONNECT", "", "220 sink.test ready", lambda: None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.sink._open.discard(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self._work()

    def _work(self) -> None:
        while not self.paused and not self.transport.is_closing():
            if self.in_data:
                if not self._content():
                    return
                continue
            line, end, rest = self.buffer.partition(b"\r\n")
            if not end:
                return
            self.buffer = rest
            self._command(line.decode("utf-8", "replace"))

    def _content(self) -> bool:
        if self.buffer.startswith(b".\r\n"):
            content, rest = b"", self.buffer[3:]
        else:
            content, end, rest = self.buffer.partition(b"\r\n.\r\n")
            if not end:
                return False
            content += b"\r\n"
        self.buffer, self.in_data = rest, False
        if content.startswith(b"."):
            content = content[1:]
        content = content.replace(b"\r\n.", b"\r\n")
        envelope, self.envelope = self.envelope, _Envelope()
        message = Received(
            envelope.sender or "",
            tuple(envelope.recipients),
            content,
            time.time(),
            self.number,
            self.encrypted,
            self.user,
            envelope.parameters,
            tuple(envelope.rcpt_parameters),
        )
        if self.sink.lmtp:
            for i, recipient in enumerate(message.recipients):
                self._act(
                    "DOT",
                    recipient,
                    "250 2.0.0 taken",
                    (lambda: self.sink.take(message)) if i == 0 else (lambda: None),
                )
        else:
            self._act("DOT", message.sender, "250 2.0.0 taken", lambda: self.sink.take(message))
        return True

    def _command(self, line: str) -> None:
        self.sink.commands.append(line)
        if self.expect is not None:
            answer, self.expect = self.expect, None
            self._write(answer(line))
            return
        verb, _, rest = line.partition(" ")
        verb = verb.upper()
        handler = {
            "EHLO": self._ehlo,
            "HELO": self._ehlo,
            "LHLO": self._ehlo,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data,
            "RSET": self._rset,
            "NOOP": self._noop,
            "QUIT": self._quit,
            "STARTTLS": self._starttls,
            "AUTH": self._auth,
        }.get(verb)
        if handler is None:
            self._write("500 5.5.2 what?")
        else:
            handler(rest)

    def _act(self, step: str, subject: str, usual: str, effect: Callable[[], None]) -> None:
        """Answer as the script says; ``effect`` happens only with the usual answer, or with a
        take-and-drop.
        """
        rule = next((rule for rule in self.sink.rules if rule.fits(step, subject, self.sink.chance)), None)
        action = rule.action if rule else ""
        if action.startswith("delay"):
            self.paused = True
            asyncio.get_running_loop().call_later(float(action.split()[1]), self._resume, usual, effect)
        elif action == "hang":
            self.paused = True
        elif action in ("drop", "take-and-drop", "half"):
            if action != "drop":
                effect()
            if action == "half":
                self.transport.write(usual[:2].encode())
                self.transport.close()
            else:
                self.transport.abort()
        elif action:
            self._write(action)
            if action.startswith("2"):
                effect()
            elif action.startswith("421"):
                self.transport.close()
        else:
            effect()
            self._write(usual)

    def _resume(self, usual: str, effect: Callable[[], None]) -> None:
        self.paused = False
        effect()
        self._write(usual)
        self._work()

    def _write(self, reply: str) -> None:
        if not self.transport.is_closing():
            self.transport.write(reply.encode() + b"\r\n")

    # commands
    # ------------------------------------------------------------------------------------------------------

    def _ehlo(self, rest: str) -> None:
        words = ["sink.test", *self.sink.extensions]
        if self.sink.tls and not self.encrypted:
            words.append("STARTTLS")
        if self.sink.users is not None:
            words.append(f"AUTH {self.sink.auth}")
        lines = [f"250{'-' if i < len(words) - 1 else ' '}{word}" for i, word in enumerate(words)]
        self._act("EHLO", rest, "\r\n".join(lines), lambda: None)

    def _mail(self, rest: str) -> None:
        sender, parameters = _path(rest, "FROM:")
        if self.sink.users is not None and not self.user:
            self._write("530 5.7.0 authenticate first")
            return

        def begin() -> None:
            self.envelope = _Envelope(sender, parameters)

        self._act("MAIL", sender, "250 2.1.0 ok", begin)

    def _rcpt(self, rest: str) -> None:
        recipient, parameters = _path(rest, "TO:")
        if self.envelope.sender is None:
            self._write("503 5.5.1 MAIL first")
            return

        def add() -> None:
            self.envelope.recipients.append(recipient)
            self.envelope.rcpt_parameters.append(parameters)

        self._act("RCPT", recipient, "250 2.1.5 ok", add)

    def _data(self, rest: str) -> None:
        if not self.envelope.recipients:
            self._write("554 5.5.1 no valid recipients")
            return

        def begin() -> None:
            self.in_data = True

        self._act("DATA", self.envelope.sender or "", "354 go ahead", begin)

    def _rset(self, rest: str) -> None:
        self.envelope = _Envelope()
        self._act("RSET", "", "250 2.0.0 ok", lambda: None)

    def _noop(self, rest: str) -> None:
        self._write("250 2.0.0 ok")

    def _quit(self, rest: str) -> None:
        self._act("QUIT", "", "221 2.0.0 bye", lambda: None)
        self.transport.close()

    def _starttls(self, rest: str) -> None:
        if self.sink.tls is None:
            self._write("502 5.5.1 no TLS here")
            return

        def upgrade() -> None:
            self.paused = True
            asyncio.get_running_loop().create_task(self._upgrade())

        self._act("STARTTLS", "", "220 2.0.0 go ahead", upgrade)

    async def _upgrade(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            upgraded = await loop.start_tls(self.transport, self, self.sink.tls, server_side=True)  # type: ignore[arg-type]
        except (OSError, ssl.SSLError):
            return
        if upgraded is None:  # the client has gone meanwhile
            return
        self.transport = upgraded
        self.encrypted, self.paused, self.envelope = True, False, _Envelope()
        self._work()

    def _auth(self, rest: str) -> None:
        mechanism, _, initial = rest.partition(" ")
        mechanism = mechanism.upper()
        if mechanism == "PLAIN":
            if initial:
                self._write(self._plain(initial))
            else:
                self.expect = self._plain
                self._write("334 ")
        elif mechanism == "LOGIN":
            self.expect = self._login_user
            self._write("334 VXNlcm5hbWU6")
        elif mechanism == "CRAM-MD5":
            self.expect = self._cram
            self._write("334 PDEyMy40NTZAc2luay50ZXN0Pg==")
        else:
            self._write("504 5.5.4 unknown mechanism")

    def _plain(self, response: str) -> str:
        _, user, password = b64decode(response).decode().split("\0")
        return self._check(user, password)

    def _login_user(self, response: str) -> str:
        user = b64decode(response).decode()
        self.expect = lambda line: self._check(user, b64decode(line).decode())
        return "334 UGFzc3dvcmQ6"

    def _cram(self, response: str) -> str:
        import hashlib
        import hmac

        user, _, digest = b64decode(response).decode().partition(" ")
        password = (self.sink.users or {}).get(user, "")
        wanted = hmac.new(password.encode(), b"<123.456@sink.test>", hashlib.md5).hexdigest()
        return self._check(user, password if hmac.compare_digest(wanted, digest) else password + "?")

    def _check(self, user: str, password: str) -> str:
        if (self.sink.users or {}).get(user) == password:
            self.user = user
            return "235 2.7.0 welcome"
        return "535 5.7.8 wrong credentials"


def _path(rest: str, prefix: str) -> tuple[str, str]:
    body = rest[len(prefix) :].strip() if rest.upper().startswith(prefix) else rest
    match = re.match(r"<([^>]*)>\s*(.*)", body)
    return (match[1], match[2]) if match else (body, "")
