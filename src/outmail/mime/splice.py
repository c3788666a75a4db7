"""Messages from outside, as bytes: normalise them once, read header fields, cut or prepend whole fields.

Promises: besides line ends (`normalised`) no byte changes unless a function is asked to change it. Fields are
found by their bytes, so a message that no parser accepts passes unharmed. Time is linear, and memory does not
grow with the number of fields.
Fails: `ContentError`, a ValueError with a stable ``code``. Does not: decode bodies, or write header fields
(`headers` does).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from outmail.smtp.lines import has_bare

#: Octets of a header: ten thousand recipients with names fit in. Exim's header_maxsize is the same.
MAX_HEAD = 1_000_000
#: How many octets of a value are read for people, and how many characters of a Message-ID are kept.
_LOOKED_AT = 8192
_MESSAGE_ID = 998

#: Received fields after which a message goes round in a circle.
MAX_HOPS = 50
_FIRST = re.compile(rb"[!-9;-~]+[ \t]*:")
_FIELD = re.compile(rb"(?im)^([!-9;-~]+)[ \t]*:[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*")
_RECEIVED = re.compile(rb"(?im)^received[ \t]*:")
_DELIVERED_TO = re.compile(rb"(?m)^delivered-to[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)")
_REST = re.compile(rb"[^\r\n]*(?:\r\n[ \t][^\r\n]*)*")
#: Control characters of both sets, marks that change the direction of writing, line separators, unpaired
#: surrogates.
_OBEYED = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]+")
_BARE_CR = re.compile(rb"\r(?!\n)")


class ContentError(ValueError):
    """This content cannot be a message."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def normalised(content: bytes) -> bytes:
    """The content with CRLF line ends and a CRLF at the end. NUL and bare CR are errors; a bare LF becomes
    CRLF. Normal content is returned as the same object.
    """
    if b"\0" in content:
        raise ContentError("the message contains a NUL byte, which no mail server may pass on", "bad-content")
    if has_bare(content):
        if bare := _BARE_CR.search(content):
            line = content.count(b"\n", 0, bare.start()) + 1
            raise ContentError(
                f"the message contains a carriage return without line feed in line {line}", "bad-content"
            )
        content = content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return content if content.endswith(b"\r\n") else content + b"\r\n"


def check_first(content: bytes, *, headless: bool = False) -> None:
    """Raises `ContentError` when the first line is no header field. With ``headless`` an empty line, or no
    content at all, is accepted.
    """
    if _FIRST.match(content) or (headless and (not content or content.startswith(b"\r\n"))):
        return
    first = content[:60].split(b"\r")[0].decode("utf-8", "replace")
    hint = "; such a line belongs into a mailbox file only: remove it" if first.startswith("From ") else ""
    raise ContentError(
        f"the message does not begin with a header field but with {first!r}{hint}", "bad-content"
    )


def check_head(content: bytes) -> None:
    """Raises `ContentError` when the header is too long. Reads no more than the limit."""
    if (
        len(content) > MAX_HEAD
        and not content.startswith(b"\r\n")
        and content.find(b"\r\n\r\n", 0, MAX_HEAD + 2) < 0
    ):
        raise ContentError(f"the header block has more than {MAX_HEAD} bytes", "too-large")


def has_passed(content: bytes, servers: int) -> bool:
    """True when so many servers have passed the message on. Each adds a Received field; the spelling of its
    name does not matter.
    """
    head = content[: head_end(content)]
    return head.lower().count(b"received") >= servers and len(_RECEIVED.findall(head)) >= servers


def delivered_to(content: bytes) -> set[str]:
    """The addresses in Delivered-To fields, in lower case. A header without that name is not walked
    through.
    """
    head = content[: head_end(content)].lower()
    return (
        {value.strip().decode("ascii", "replace") for value in _DELIVERED_TO.findall(head)}
        if b"delivered-to" in head
        else set()
    )


def head_end(content: bytes) -> int:
    """The offset after the last CRLF of the header, where the empty line or the end of the message is."""
    if content.startswith(b"\r\n"):
        return 0
    end = content.find(b"\r\n\r\n")
    return len(content) if end < 0 else end + 2


@dataclass(slots=True)
class Head:
    """What acceptance must know of a header. Empty strings for missing fields."""

    message_id: str
    subject: str
    dated: bool
    has_message_id: bool


def look(content: bytes, *, headless: bool = False) -> Head:
    """Read Message-ID, Subject and Date. Raises `ContentError` when the first line is no header field.

    ``headless``: an empty header is accepted, because fields are put in front of it.
    """
    check_first(content, headless=headless)
    check_head(content)
    head = content[: head_end(content)]
    low = b"\n" + head.lower()
    if b" :" in low or b"\t:" in low:  # obsolete syntax: white space before the colon
        spots = [
            match.end() if (match := re.search(rb"\n" + name + rb"[ \t]*:", low)) else -1 for name in _KNOWN
        ]
    else:
        spots = [at + len(name) + 2 if (at := low.find(b"\n" + name + b":")) >= 0 else -1 for name in _KNOWN]
    message_id = _value(head, spots[0]).strip().decode("utf-8", "replace")[:_MESSAGE_ID]
    return Head(message_id, readable(_value(head, spots[1])), spots[2] >= 0, bool(message_id))


_KNOWN = (b"message-id", b"subject", b"date")


def _value(head: bytes, at: int) -> bytes:
    """The value of the field that begins at ``at`` in the header with a line feed in front; nothing for
    -1.
    """
    if at < 0:
        return b""
    match = _REST.match(head, at - 1)  # `low` has one more byte in front
    return match[0].strip(b" \t") if match else b""


def readable(raw: bytes) -> str:
    """A field's value as its reader sees it, `short`."""
    text = raw[:_LOOKED_AT].decode("utf-8", "replace").strip()
    if "\r\n" in text:
        text = text.replace("\r\n", "")
    if "=?" in text:
        from email.errors import MessageError
        from email.header import decode_header, make_header

        try:
            text = str(make_header(decode_header(text)))
        except (MessageError, LookupError, UnicodeError, ValueError):
            pass  # shown as it is: this text is for people, and the bytes are kept
    return short(text)


def short(text: str) -> str:
    """A subject for lists: one line of at most 500 characters, without anything that a terminal or a page
    would obey.
    """
    text = text[:2000]
    return text[:500] if text.isprintable() else _OBEYED.sub(" ", text)[:500]


def split(head: bytes) -> list[bytes]:
    """The fields of a header, unchanged. Lines that are no field are left out."""
    return [match[0] for match in _FIELD.finditer(head)]


def fields(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The header fields in order, as (lower-case name, whole bytes), one at a time, because there may be
    millions.
    """
    for match in _FIELD.finditer(content, 0, head_end(content)):
        yield match[1].decode("ascii").lower(), match[0]


def cut(content: bytes, *names: str) -> bytes:
    """Remove whole fields by name."""
    end = head_end(content)
    gone = {name.lower().encode() for name in names}
    head = _FIELD.sub(lambda m: b"" if m[1].lower() in gone else m[0], content[:end])
    return head + content[end:]
