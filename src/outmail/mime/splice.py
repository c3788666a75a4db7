"""Foreign messages as bytes: normalise once, look at header fields, cut or prepend whole ones.

Promises: apart from line ends (`normalised`) no byte changes that a function was not asked to change; fields
are found by their bytes, so a message that no parser likes passes unharmed; time is linear, and memory does
not grow with the number of fields.
Fails: `ContentError`, a ValueError with a stable ``code``. Does not: decode bodies, or write a header
(`headers` does).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from outmail.smtp.lines import has_bare

#: Octets of a header block: ten thousand recipients by name fit in. Exim's header_maxsize is the same.
MAX_HEAD = 1_000_000
#: Octets of a value that are looked at for people, and characters of a Message-ID that are remembered.
_LOOKED_AT = 8192
_MESSAGE_ID = 998

_FIRST = re.compile(rb"[!-9;-~]+[ \t]*:")
_FIELD = re.compile(rb"(?im)^([!-9;-~]+)[ \t]*:[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*")
_RECEIVED = re.compile(rb"(?im)^received[ \t]*:")
_DELIVERED_TO = re.compile(rb"(?m)^delivered-to[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)")
_REST = re.compile(rb"[^\r\n]*(?:\r\n[ \t][^\r\n]*)*")
#: Controls of both sets, marks that turn the direction of writing, line separators, halves of surrogate
#: pairs.
_OBEYED = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]+")
_BARE_CR = re.compile(rb"\r(?!\n)")


class ContentError(ValueError):
    """This content cannot be a message."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def normalised(content: bytes) -> bytes:
    """CRLF line ends and a last CRLF. NUL and bare CR are errors; lone LF becomes CRLF. Normal content comes
    back as it is.
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
    """Raises `ContentError` when the first line is no header field; with ``headless`` an empty line or
    nothing at all will do.
    """
    if _FIRST.match(content) or (headless and (not content or content.startswith(b"\r\n"))):
        return
    first = content[:60].split(b"\r")[0].decode("utf-8", "replace")
    hint = "; such a line belongs to a mailbox file: leave it out" if first.startswith("From ") else ""
    raise ContentError(
        f"the message does not begin with a header field but with {first!r}{hint}", "bad-content"
    )


def check_head(content: bytes) -> None:
    """Raises `ContentError` when the header block is too long to be walked. Looks at no more than the
    limit.
    """
    if (
        len(content) > MAX_HEAD
        and not content.startswith(b"\r\n")
        and content.find(b"\r\n\r\n", 0, MAX_HEAD + 2) < 0
    ):
        raise ContentError(f"the header block has more than {MAX_HEAD} bytes", "too-large")


def has_passed(content: bytes, servers: int) -> bool:
    """True when so many servers have passed the message on: each adds a Received field, however it writes the
    name.
    """
    head = content[: head_end(content)]
    return head.lower().count(b"received") >= servers and len(_RECEIVED.findall(head)) >= servers


def delivered_to(content: bytes) -> set[str]:
    """Whom the message says it has been delivered to, in lower case. A header without that name is not
    walked.
    """
    head = content[: head_end(content)].lower()
    return (
        {value.strip().decode("ascii", "replace") for value in _DELIVERED_TO.findall(head)}
        if b"delivered-to" in head
        else set()
    )


def head_end(content: bytes) -> int:
    """The offset behind the header block's last CRLF, which is also where the empty line or the end is."""
    if content.startswith(b"\r\n"):
        return 0
    end = content.find(b"\r\n\r\n")
    return len(content) if end < 0 else end + 2


@dataclass(slots=True)
class Head:
    """What acceptance needs to know of a header block. Empty strings for what is missing."""

    message_id: str
    subject: str
    dated: bool
    has_message_id: bool


def look(content: bytes, *, headless: bool = False) -> Head:
    """Read Message-ID, Subject and Date; raises `ContentError` when the first line is no header field.

    ``headless``: an empty header block will do, because fields are put in front of it.
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
    return Head(message_id, _readable(_value(head, spots[1])), spots[2] >= 0, bool(message_id))


_KNOWN = (b"message-id", b"subject", b"date")


def _value(head: bytes, at: int) -> bytes:
    """The field's value that begins at ``at`` in the head behind one line feed; nothing for -1."""
    if at < 0:
        return b""
    match = _REST.match(head, at - 1)  # low has one byte more in front
    return match[0].strip(b" \t") if match else b""


def _readable(raw: bytes) -> str:
    text = raw[:_LOOKED_AT].decode("utf-8", "replace").strip()
    if "\r\n" in text:
        text = text.replace("\r\n", "")
    if "=?" in text:
        from email.errors import MessageError
        from email.header import decode_header, make_header

        try:
            text = str(make_header(decode_header(text)))
        except (MessageError, LookupError, UnicodeError, ValueError):
            pass  # shown as it stands: this text is for people, the bytes are kept
    return short(text)


def short(text: str) -> str:
    """A subject for lists: one line of at most 500 characters, and nothing that a terminal or a page would
    obey.
    """
    text = text[:2000]
    return text[:500] if text.isprintable() else _OBEYED.sub(" ", text)[:500]


def split(head: bytes) -> list[bytes]:
    """The fields of a header block, as they stand; what is no field is left out."""
    return [match[0] for match in _FIELD.finditer(head)]


def fields(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The header fields in order as (lower-case name, whole bytes), one at a time: there may be millions."""
    for match in _FIELD.finditer(content, 0, head_end(content)):
        yield match[1].decode("ascii").lower(), match[0]


def cut(content: bytes, *names: str) -> bytes:
    """Remove whole fields by name."""
    end = head_end(content)
    gone = {name.lower().encode() for name in names}
    head = _FIELD.sub(lambda m: b"" if m[1].lower() in gone else m[0], content[:end])
    return head + content[end:]
