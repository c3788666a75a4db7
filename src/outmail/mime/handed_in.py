"""A message as programs give it to sendmail: read from stdin, with a header that may be half a header or
none.

Promises: the text is kept byte for byte, but for the line of a mailbox file in front (``From ``), what comes
behind a lone dot where that ends the input, a missing line end at the end, and carriage returns inside a
line, which no server may pass on: the output of a cron job's progress bar must arrive. In the text each of
them ends a line; in the header it becomes a space, because a line end would begin a field there. A first line
that is no field makes everything text; a header that ends without an empty line gets one. Bcc fields never
leave (`without_bcc`). Time is linear. Neither `re` nor the email package is loaded: `sendmail` starts in
milliseconds.
Fails: `Unreadable`, a ValueError, for a NUL byte. Does not: write fields (`headers` does), or change other
line ends (acceptance does).
"""

from __future__ import annotations

from outmail.mime.mailboxes import addresses, rewritten

TYPE_CHECKING = False  # as in typing, without the price of importing it

if TYPE_CHECKING:
    from collections.abc import Callable

#: Fields that hold addresses; those of a resent message count for it alone.
_TO = ("to", "cc", "bcc")
_RESENT_TO = ("resent-to", "resent-cc", "resent-bcc")
_PEOPLE = frozenset(("from", "sender", "reply-to", *_TO))
_BCC = frozenset(("bcc", "resent-bcc"))
_NAME = frozenset(range(33, 127)) - {58}

#: (name in lower case, the whole field with its line ends)
Field = tuple[str, bytes]


class Unreadable(ValueError):
    """No message can be made of this."""


class HandedIn:
    """A message in two parts. ``fields``: the header, in order; ``text``: all behind the empty line."""

    def __init__(self, fields: list[Field], text: bytes) -> None:
        self.fields = fields
        self.text = text

    @property
    def content(self) -> bytes:
        """The message, complete."""
        return b"".join([field for _, field in self.fields]) + b"\n" + self.text

    def has(self, name: str) -> bool:
        return any(found == name for found, _ in self.fields)

    def recipients(self) -> list[str]:
        """Whom the header names, as written: in its Resent fields if it has any, else in To, Cc and Bcc."""
        wanted = _RESENT_TO if any(name in _RESENT_TO for name, _ in self.fields) else _TO
        return [
            address for name, field in self.fields if name in wanted for address in addresses(_value(field))
        ]

    def without_bcc(self) -> None:
        """Nobody may see whom else the message goes to."""
        self.fields = [field for field in self.fields if field[0] not in _BCC]

    def rewrite(self, change: Callable[[str, str], str]) -> None:
        """Put another address in the place of those for which ``change(field, address)`` answers another
        one; the field's name comes without Resent-. All else stays.
        """
        self.fields = [
            (name, _rewritten(field, plain, change))
            if (plain := name.removeprefix("resent-")) in _PEOPLE
            else (name, field)
            for name, field in self.fields
        ]


def read(raw: bytes, *, dots: bool = False) -> HandedIn:
    """What came on stdin → a message. ``dots``: a lone dot ends it."""
    if b"\0" in raw:
        raise Unreadable("the message contains a NUL byte, which no mail server may pass on")
    if raw.startswith(b"From "):
        raw = raw[raw.find(b"\n") + 1 :] if b"\n" in raw else b""
    if dots:
        raw = _up_to_dot(raw)
    if not raw.endswith(b"\n"):
        raw += b"\n"
    fields: list[Field] = []
    at = 0
    while at < len(raw):
        end = raw.find(b"\n", at) + 1
        line = _without_returns(raw[at:end], b" ")
        if fields and line[:1] in (b" ", b"\t") and line.strip():
            name, before = fields[-1]
            fields[-1] = (name, before + line)
        elif name := _name(line):
            fields.append((name, line))
        else:
            at = end if not line.strip(b"\r\n") else at
            break
        at = end
    return HandedIn(fields, _without_returns(raw[at:], b"\n"))


def _without_returns(raw: bytes, instead: bytes) -> bytes:
    """The same with ``instead`` for each carriage return inside a line; several of them before a line feed
    are one line end.
    """
    if raw.count(b"\r") == raw.count(b"\r\n"):
        return raw
    return b"\n".join([line.rstrip(b"\r").replace(b"\r", instead) for line in raw.split(b"\n")])


def _up_to_dot(raw: bytes) -> bytes:
    if raw.startswith((b".\n", b".\r\n")) or raw == b".":
        return b""
    ends = [at + 1 for mark in (b"\n.\n", b"\n.\r\n") if (at := raw.find(mark)) >= 0]
    if raw.endswith(b"\n."):
        ends.append(len(raw) - 1)
    return raw[: min(ends)] if ends else raw


def _name(line: bytes) -> str:
    """The field's name in lower case; nothing when the line begins no field."""
    name, colon, _ = line.partition(b":")
    name = name.rstrip(b" \t")
    return name.decode("ascii").lower() if colon and name and _NAME.issuperset(name) else ""


def _value(field: bytes) -> str:
    return field.partition(b":")[2].decode("utf-8", "surrogateescape")


def _rewritten(field: bytes, name: str, change: Callable[[str, str], str]) -> bytes:
    head, colon, _ = field.partition(b":")
    value = rewritten(_value(field), lambda address: change(name, address))
    return head + colon + value.encode("utf-8", "surrogateescape")
