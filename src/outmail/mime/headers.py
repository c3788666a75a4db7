"""Header fields as bytes (RFC 5322, 2047), by a writer of our own.

Why our own: the standard library drops the quotes of long display names, encodes structured tokens such as
Message-IDs, and let a newline inside an encoded word become a header (CVE-2024-6923 and its successors).
Promises: lines are folded only at existing white space. Encoded words have at most 75 characters and never
occur in a structured field. Control characters are refused. The bytes end in CRLF and contain no 8-bit
character.
Fails: `HeaderError`, a ValueError. Does not: parse, or know which fields a message should have.
"""

from __future__ import annotations

import re
import time
from base64 import b64encode
from collections.abc import Iterable
from functools import lru_cache

from outmail.smtp.syntax import Mailbox, printable, valid_key

LINE = 78
HARD_LINE = 998
_WORD = 75
_NAME = re.compile(r"[!-9;-~]+", re.ASCII)
_ATOM_PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~]+(?: [A-Za-z0-9!#$%&'*+\-/=?^_`{|}~]+)*")
_TOKEN = re.compile(r"[ \t]*[^ \t]+")
_Q_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

#: Fields whose tokens have a meaning: outside ASCII they are refused, never encoded.
STRUCTURED = frozenset(
    [
        "message-id",
        "in-reply-to",
        "references",
        "list-id",
        "list-unsubscribe",
        "list-unsubscribe-post",
        "list-post",
        "list-help",
        "list-archive",
        "list-subscribe",
        "list-owner",
        "auto-submitted",
        "date",
        "return-path",
        "received",
        "mime-version",
        "content-type",
        "content-id",
        "content-transfer-encoding",
        "content-disposition",
        "dkim-signature",
        "authentication-results",
        "feedback-id",
        "precedence",
    ]
)


class HeaderError(ValueError):
    """This cannot be a header field."""


def unstructured(name: str, value: str) -> bytes:
    """``name: value`` for free text. Outside ASCII it becomes encoded words; in a structured field that is a
    HeaderError.
    """
    _check(name, value)
    value = value.strip(" \t")
    if len(name) + 2 + len(value) <= LINE and value.isascii() and "=?" not in value:
        return f"{name}: {value}\r\n".encode("ascii")
    if (
        value.isascii()
        and "=?" not in value
        and max(map(len, value.split(" ")), default=0) < HARD_LINE - len(name) - 2
    ):
        return folded(name, [token[0] for token in _TOKEN.finditer(value)])
    if name.lower() in STRUCTURED:
        raise HeaderError(f"{name}: {printable(value)} must be plain ASCII without over-long words")
    return folded(
        name, [" " + word if i else word for i, word in enumerate(encoded_words(value, len(name) + 2))]
    )


def addresses(name: str, people: Iterable[tuple[str, Mailbox]]) -> bytes:
    """``name: A <a@x>, b@y`` from (display name, mailbox) pairs. Display names with commas are quoted."""
    _check(name, "")
    tokens: list[str] = []
    for display, mailbox in people:
        tokens += _person(display, mailbox)
        tokens[-1] += ","
    if not tokens:
        raise HeaderError(f"{name} has no address")
    tokens[-1] = tokens[-1][:-1]
    return folded(name, [" " + token if i else token for i, token in enumerate(tokens)], ascii_only=False)


def folded(name: str, tokens: list[str], *, ascii_only: bool = True) -> bytes:
    """One field of tokens, each with the white space before it. A line is broken only before such white
    space.
    """
    whole = f"{name}: {''.join(tokens)}\r\n"
    if len(whole) <= LINE + 2 and whole.isascii():
        return whole.encode("ascii")
    lines, line = [], f"{name}: "
    for token in tokens:
        if len(line) + len(token) > LINE and line.strip() != f"{name}:" and token[:1] in (" ", "\t"):
            lines.append(line)
            line = ""
        line += token
    lines.append(line)
    text = "\r\n".join(lines)
    if max(len(part.encode()) for part in lines) > HARD_LINE:
        raise HeaderError(f"{name}: a word of it is longer than {HARD_LINE} octets")
    return text.encode("ascii" if ascii_only else "utf-8") + b"\r\n"


def encoded_words(text: str, used: int = 0) -> list[str]:
    """Encoded words (RFC 2047) for ``text``: UTF-8, B or Q, whichever is shorter; no character is split; each
    has at most 75 characters.
    """
    raw = text.encode("utf-8")
    quoted = sum(1 if b in _Q_SAFE or b == 32 else 3 for b in raw) <= 4 * len(raw) / 3
    words, piece, room = [], "", _WORD - min(used, 40)
    for char in text:
        if len(_encoded(piece + char, quoted)) > room and piece:
            words.append(_encoded(piece, quoted))
            piece, room = "", _WORD
        piece += char
    return [*words, _encoded(piece, quoted)]


def _encoded(text: str, quoted: bool) -> str:
    raw = text.encode("utf-8")
    if not quoted:
        return f"=?utf-8?b?{b64encode(raw).decode()}?="
    body = "".join("_" if b == 32 else chr(b) if b in _Q_SAFE else f"={b:02X}" for b in raw)
    return f"=?utf-8?q?{body}?="


def _person(display: str, mailbox: Mailbox) -> list[str]:
    if not valid_key(display):
        raise HeaderError(f"the display name {printable(display)} contains a control character")
    display = display.strip()
    if not display:
        return [str(mailbox)]
    if not display.isascii() or "=?" in display or len(display) > 200:
        return [*encoded_words(display, 20), f"<{mailbox}>"]
    if _ATOM_PHRASE.fullmatch(display):
        return [*display.split(" "), f"<{mailbox}>"]
    escaped = display.replace("\\", "\\\\").replace('"', '\\"')
    return (
        [*f'"{escaped}"'.split(" "), f"<{mailbox}>"]
        if "  " not in escaped
        else [f'"{escaped}"', f"<{mailbox}>"]
    )


def _check(name: str, value: str) -> None:
    if not _NAME.fullmatch(name):
        raise HeaderError(f"{printable(name)} cannot be the name of a header field")
    if not valid_key(value.replace("\t", " ")):
        raise HeaderError(f"{name}: {printable(value)} contains a line break or another control character")


def date(ms: int) -> str:
    """RFC 5322 date in UTC, independent of the locale."""
    return _date(ms // 1000)


@lru_cache(8)
def _date(seconds: int) -> str:
    t = time.gmtime(seconds)
    return (
        f"{_DAYS[t.tm_wday]}, {t.tm_mday:02d} {_MONTHS[t.tm_mon - 1]} {t.tm_year} "
        f"{t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} +0000"
    )
