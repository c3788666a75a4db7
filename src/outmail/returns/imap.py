"""A mailbox on an IMAP server in which loopback copies arrive.

How: the connection is kept open. The headers of unseen mails are fetched (BODY.PEEK[HEADER], at most
`trace.MOST` bytes) and recorded; then the mails are flagged ``\\Seen``. `wait` uses IDLE (RFC 2177) where the
server offers it.
Promises: TLS with a verified certificate (``imaps://``), or STARTTLS (``imap://``), except on loopback
addresses; no password is sent in clear. What a server says to one command comes within `STEP` seconds, and
`wait` ends in time, however busily it talks; it has at most `ANSWER` bytes, and a literal that announces more
than `LITERAL` is not read. A server that is away, slow or hostile costs time on this thread and nothing else;
the next look connects again.
Fails: `OSError` (imaplib's errors become one). Does not: delete mail, or read bodies.
"""

from __future__ import annotations

import imaplib
import re
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from urllib.parse import unquote, urlsplit

from outmail.mime import trace
from outmail.policy.route import is_loopback
from outmail.returns.arrivals import Arrivals
from outmail.returns.watching import MOST

#: Seconds for each step of the dialogue, and for one IDLE (RFC 2177 says less than 29 minutes).
STEP = 60.0
IDLE = 600.0
#: Bytes of the answers to one command, and of one literal in them.
ANSWER = 4_000_000
LITERAL = 1_000_000
_EXISTS = re.compile(rb"\* \d+ (EXISTS|RECENT)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ImapUrl:
    """``imaps://user@host[:port][/folder]``. ``ca``: the file of a certificate authority of your own."""

    host: str
    port: int
    user: str
    folder: str = "INBOX"
    tls: bool = True
    password: str = field(default="", repr=False)
    ca: str = ""


def parse(text: str) -> ImapUrl:
    """Raises ValueError with a sentence."""
    parts = urlsplit(text)
    if parts.scheme not in ("imap", "imaps") or not parts.hostname or not parts.username:
        raise ValueError(f"{text!r} is no mailbox: write such as imaps://user@imap.example.org/INBOX")
    if parts.password:
        raise ValueError("a password does not belong into the URL of a mailbox: set password_file")
    tls = parts.scheme == "imaps"
    folder = unquote(parts.path.lstrip("/")) or "INBOX"
    if not folder.isascii() or not folder.isprintable() or '"' in folder or "\\" in folder:
        raise ValueError(
            f"{folder!r}: a mailbox's name is ASCII here, without quotation marks or backslashes"
        )
    port = parts.port or (993 if tls else 143)
    return ImapUrl(parts.hostname, port, unquote(parts.username), folder, tls)


class Mailbox:
    """One mailbox. Not thread-safe."""

    def __init__(self, url: ImapUrl, arrivals: Arrivals) -> None:
        self.url = url
        self._arrivals = arrivals
        self._server: _Bounded | None = None

    def look(self) -> int:
        """Record what is unseen. Returns how many mails were. Raises `OSError`."""
        try:
            return self._look(self._connected())
        except (imaplib.IMAP4.error, OSError, ValueError) as problem:
            self.close()
            raise OSError(0, _said(problem), f"imap://{self.url.user}@{self.url.host}") from None

    def wait(self, seconds: float) -> bool:
        """Wait for new mail, at most ``seconds``. False, without waiting, where the server offers no IDLE.
        Raises `OSError`.
        """
        server = self._server
        if server is None or "IDLE" not in server.capabilities:
            return False
        try:
            self._idle(server, min(seconds, IDLE))
        except (imaplib.IMAP4.error, OSError, ValueError) as problem:
            self.close()
            raise OSError(0, _said(problem), f"imap://{self.url.user}@{self.url.host}") from None
        return True

    def close(self) -> None:
        """Hang up."""
        server, self._server = self._server, None
        if server is not None:
            with suppress(OSError, imaplib.IMAP4.error):
                server.shutdown()

    def wake(self) -> None:
        """Wake the thread that waits, from another thread. (`close` would wait for the reader's lock
        there.)
        """
        server = self._server
        if server is not None:
            with suppress(OSError):
                server.sock.shutdown(socket.SHUT_RDWR)

    def _connected(self) -> _Bounded:
        if self._server is not None:
            self._done(self._server.noop())
            return self._server
        url = self.url
        context = ssl.create_default_context(cafile=url.ca or None)
        server: _Bounded
        if url.tls:
            server = _BoundedTls(url.host, url.port, ssl_context=context, timeout=STEP)
        else:
            server = _Bounded(url.host, url.port, timeout=STEP)
        self._server = server
        if not url.tls and not is_loopback(url.host):
            self._done(server.starttls(context))
        self._done(server.login(url.user, url.password))
        self._done(server.select(f'"{url.folder}"'))
        return server

    def _look(self, server: imaplib.IMAP4) -> int:
        found = self._done(server.uid("SEARCH", "UNSEEN"))
        uids = (found[0] or b"").split()[:MOST]
        for uid in uids:
            number = uid.decode("ascii")
            parts = self._done(server.uid("FETCH", number, f"(BODY.PEEK[HEADER]<0.{trace.MOST}>)"))
            head = [part[1] for part in parts if isinstance(part, tuple)]
            if not head:  # somebody has removed it since the search
                continue
            self._arrivals.take(b"".join(head))
            self._done(server.uid("STORE", number, "+FLAGS.SILENT", "(\\Seen)"))
        return len(uids)

    @staticmethod
    def _done(answer: tuple[str, Any]) -> Any:
        if answer[0] != "OK":
            raise imaplib.IMAP4.error(f"the server says {answer[0]} {answer[1]!r:.200}")
        return answer[1]

    def _idle(self, server: _Bounded, seconds: float) -> None:
        """IDLE by hand, because imaplib has it only from Python 3.14 on. After a time-out the next look
        connects again.
        """
        tag = server._new_tag()
        server.send(tag + b" IDLE\r\n")
        server.until = monotonic() + seconds
        try:
            while not _EXISTS.match(line := server.readline()):
                if not line:
                    raise OSError("the server hung up")
        except TimeoutError:
            self.close()
            return
        server.send(b"DONE\r\n")
        while not (line := server.readline()).startswith(tag):
            if not line:
                raise OSError("the server hung up")


class _Bounded(imaplib.IMAP4):
    """A dialogue in which the server can neither talk for ever nor fill the memory. ``until``: when the
    present answer must be there, in monotonic seconds.
    """

    def __init__(self, *words: Any, **named: Any) -> None:
        self.until = monotonic() + STEP
        self._left = ANSWER
        self._heard = bytearray()
        self._from: socket.socket | None = None
        super().__init__(*words, **named)

    def send(self, data: Any) -> None:
        if self._from not in (None, self.sock):  # STARTTLS: what came before it was not protected
            self._heard.clear()
        self._from = self.sock
        self._left = ANSWER
        self.until = monotonic() + STEP
        self.sock.settimeout(STEP)
        super().send(data)

    def readline(self) -> bytes:
        looked = 0
        while (end := self._heard.find(b"\n", looked)) < 0:
            looked = len(self._heard)
            if not self._more():
                return self._cut(looked)
        return self._cut(end + 1)

    def read(self, size: int) -> bytes:
        if size > LITERAL:
            raise self.abort(f"the server announces a literal of {size} bytes; the limit is {LITERAL}")
        while len(self._heard) < size and self._more():
            pass
        return self._cut(size)

    def _more(self) -> bool:
        """False when the server has hung up."""
        left = self.until - monotonic()
        if left <= 0:
            raise TimeoutError("the server's answer takes too long")
        self.sock.settimeout(left)
        data = self.sock.recv(65536)
        self._left -= len(data)
        if self._left < 0:
            raise self.abort(f"the server says more than {ANSWER} bytes to one command")
        self._heard += data
        return bool(data)

    def _cut(self, size: int) -> bytes:
        data = bytes(self._heard[:size])
        del self._heard[:size]
        return data


class _BoundedTls(_Bounded, imaplib.IMAP4_SSL):
    """The same, with TLS from the beginning."""


def _said(problem: Exception) -> str:
    return getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
