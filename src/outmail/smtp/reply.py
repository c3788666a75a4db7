"""Replies of a server (RFC 5321 §4.2): bytes in portions of any size become `Reply` values.

Promises: bounded (a line of 2 KB, a reply of 64 lines and 16 KB; else `ProtocolError`). Only the first digit
of a code has a meaning, so an unexpected but well-formed code is no error. Texts are printable and bounded.
Does not: wait, or know which command a reply answers.
"""

from __future__ import annotations

import re
from collections import deque
from functools import lru_cache

from outmail.model import Reply

MAX_LINE = 2048
MAX_LINES = 64
MAX_REPLY = 16 * 1024
MAX_TEXT = 500

_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:\s+|$)", re.ASCII)
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]+")


class ProtocolError(Exception):
    """The peer does not speak SMTP."""


class ReplyReader:
    """Feed it bytes; take whole replies with their raw lines."""

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[bytes] = []
        self._size = 0
        #: Whole replies that were not taken yet.
        self.ready: deque[tuple[Reply, list[bytes]]] = deque()

    def feed(self, data: bytes) -> None:
        """Add bytes. Raises `ProtocolError` when they cannot be SMTP."""
        if not self._rest and not self._lines and len(data) <= MAX_TEXT and (known := _flight(data)):
            self.ready.extend(known)
        else:
            self._read(data)

    def _read(self, data: bytes) -> None:
        lines = (self._rest + data).split(b"\n") if self._rest else data.split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MAX_LINE:
            raise ProtocolError(f"a line of a reply has more than {MAX_LINE} bytes")
        for line in lines:
            self._line(line.rstrip(b"\r"))

    def pop(self) -> tuple[Reply, list[bytes]] | None:
        """The next whole reply and its lines, or None."""
        return self.ready.popleft() if self.ready else None

    @property
    def buffered(self) -> bool:
        """True when anything was received and not taken. Before a TLS handshake that ends the session."""
        return bool(self._rest or self._lines or self.ready)

    def _line(self, line: bytes) -> None:
        code, mark = line[:3], line[3:4]
        if (
            len(line) > MAX_LINE
            or not code.isdigit()
            or not b"200" <= code < b"600"
            or mark not in (b" ", b"-", b"")
        ):
            raise ProtocolError(f"not an SMTP reply: {line[:80].decode('ascii', 'replace')!r}")
        if self._lines and self._lines[0][:3] != code:
            raise ProtocolError("the lines of one reply have different codes")
        self._lines.append(line)
        self._size += len(line)
        if len(self._lines) > MAX_LINES or self._size > MAX_REPLY:
            raise ProtocolError(f"a reply has more than {MAX_LINES} lines or {MAX_REPLY} bytes")
        if mark != b"-":
            lines, self._lines, self._size = self._lines, [], 0
            self.ready.append((read(*lines), lines))


@lru_cache(512)
def _flight(data: bytes) -> tuple[tuple[Reply, list[bytes]], ...]:
    """Whole replies that arrived together, as servers answer an envelope. Empty when the bytes are anything
    else.
    """
    reader = ReplyReader()
    try:
        reader._read(data)
    except ProtocolError:
        return ()
    return () if reader._rest or reader._lines else tuple(reader.ready)


@lru_cache(512)
def read(*lines: bytes) -> Reply:
    """The value of the lines of one reply. Cached, because servers repeat themselves."""
    code = int(lines[0][:3])
    texts = [line[4:].decode("utf-8", "replace") for line in lines]
    enhanced = ""
    match = _ENHANCED.match(texts[0])
    if match and match[1][0] == str(code)[0]:
        enhanced = match[1]
        texts = [text[len(match[0]) :] if text.startswith(enhanced) else text for text in texts]
    text = _UNSAFE.sub(" ", " ".join(part.strip() for part in texts)).strip()
    return Reply(code, text[:MAX_TEXT], enhanced)
