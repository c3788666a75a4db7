"""What a received message tells of its way: the hops of its Received fields, and whether it is a bounce.

Promises: only the header block is read, at most `MOST` bytes of it, with line ends of either kind; whatever
it holds, nothing raises, and time is linear. The last `HOPS` hops are kept. What a relay wrote may be wrong:
hops are for statistics and for people, never for a decision.
Does not: look at the body, verify anything, or know what a token is (`policy.loopback`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from itertools import pairwise

#: Octets of a header block that are looked at, of one field, and hops that are kept.
MOST = 256 * 1024
LONGEST = 4096
HOPS = 50

_END = re.compile(rb"\n\r?\n")
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)(?:\n|$)")
_BY = re.compile(r"\bby\s+([^\s;()]+)", re.IGNORECASE)
_MESSAGE_ID = re.compile(r"<[^<>\s]+>")
#: Fields that say for whom a message was put into a mailbox, as Postfix, Exim, qmail, Sendmail and Dovecot
#: write them.
ADDRESSED = ("delivered-to", "x-original-to", "envelope-to", "x-envelope-to", "original-recipient")


@dataclass(frozen=True, slots=True)
class Hop:
    """One server that passed the message on: its name as it calls itself, and when (ms; None: not said)."""

    name: str
    at: int | None


@dataclass(frozen=True, slots=True)
class Trace:
    """Hops are in the order of travel. ``texts``: fields in which the address of the copy may stand."""

    message_id: str = ""
    hops: tuple[Hop, ...] = ()
    bounce: bool = False
    texts: tuple[str, ...] = ()

    def slowest(self) -> tuple[int, int] | None:
        """(which hop, how many ms after the one before it) of the longest wait between two hops; None where
        no two hops say the time.
        """
        waits = [
            (later.at - earlier.at, i)
            for i, (earlier, later) in enumerate(pairwise(self.hops), 1)
            if earlier.at is not None and later.at is not None
        ]
        if not waits:
            return None
        wait, which = max(waits, key=lambda found: (found[0], -found[1]))
        return which, max(0, wait)


def head_of(content: bytes) -> bytes:
    """The header block, or as much of it as is looked at."""
    start = content[: MOST + 4]
    if start.startswith((b"\n", b"\r\n")):
        return b""
    end = _END.search(start)
    return start[: end.start() + 1] if end else start[:MOST]


def read(content: bytes) -> Trace:
    """What the header block of a received message says."""
    message_id, hops, texts = "", [], []
    bounce = False
    for name, value in _fields(head_of(content)):
        if name == "received":
            hops.append(_hop(value))
            texts.append(value)
        elif name == "message-id" and not message_id:
            found = _MESSAGE_ID.search(value)
            message_id = found[0] if found else ""
        elif name == "return-path":
            bounce = bounce or value.strip() == "<>"
        elif name == "content-type":
            bounce = bounce or value.strip().lower().startswith("multipart/report")
        elif name == "auto-submitted":
            bounce = bounce or value.strip().lower().startswith("auto-replied")
        elif name in ADDRESSED:
            texts.append(value)
    hops = hops[:HOPS]
    return Trace(message_id, tuple(reversed(hops)), bounce, tuple(texts))


def _fields(head: bytes) -> Iterator[tuple[str, str]]:
    """(lower-case name, value on one line). What is no field is passed over, a line at a time."""
    at = 0
    while at < len(head):
        match = _FIELD.match(head, at)
        if match is None:
            at = head.find(b"\n", at) + 1 or len(head)
            continue
        at = match.end()
        value = match[2][:LONGEST].decode("utf-8", "replace")
        yield match[1].decode("ascii").lower(), " ".join(value.split())


def _hop(value: str) -> Hop:
    by = _BY.search(value)
    return Hop(by[1][:255] if by else "", _date(value.rpartition(";")[2]))


def _date(text: str) -> int | None:
    """RFC 5322's date in ms. The parser of the email package raises what it likes over dates that are none
    (CPython's issue tracker has ValueError, TypeError, IndexError and OverflowError).
    """
    try:
        found = parsedate_tz(text[:200])
        moment = mktime_tz(found) if found else None
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return int(moment * 1000) if moment is not None and 0 <= moment < 253402300800 else None
