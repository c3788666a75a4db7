"""Composes a new message: texts, files and addresses become complete bytes.

Promises: 7-bit, lines of at most 998 octets, CRLF. Headers are written by `headers`. Plain ASCII text goes in
as it is; other bodies are written by the standard library with 7-bit transfer encodings. The finished *bytes*
are checked: the header splits back into exactly the fields that were written. Bcc is never written. Fails:
`ValueError` (`headers.HeaderError`, `splice.ContentError`) with a sentence.
Does not: read files, know the time, or choose recipients.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from outmail.mime import headers, splice
from outmail.smtp.syntax import Mailbox, printable, valid_key

Person = tuple[str, Mailbox]

#: Fields for which `Parts` has a place of its own, or that only the transport may write.
_OURS = frozenset(
    [
        "from",
        "to",
        "cc",
        "bcc",
        "reply-to",
        "subject",
        "date",
        "message-id",
        "mime-version",
        "content-type",
        "content-transfer-encoding",
        "content-id",
        "content-disposition",
        "received",
        "return-path",
        "resent-bcc",
    ]
)


@dataclass(frozen=True, slots=True)
class Attachment:
    """One file: its name as the reader sees it, content, MIME type (guessed from the name when empty)."""

    name: str
    content: bytes
    type: str = ""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a message. ``inline`` maps Content-IDs (``cid:logo``) to files of the HTML part."""

    sender: Person
    to: Sequence[Person] = ()
    cc: Sequence[Person] = ()
    reply_to: Sequence[Person] = ()
    subject: str = ""
    text: str | None = None
    html: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    attachments: Sequence[Attachment] = ()
    inline: Mapping[str, Attachment] = field(default_factory=dict)
    date_ms: int = 0
    message_id: str = ""


_UNGUARDED: AbstractContextManager[None] = nullcontext()


def compose(parts: Parts, loading: AbstractContextManager[None] = _UNGUARDED) -> bytes:
    """The finished message. ``loading`` is entered around imports that happen on first use."""
    block = _head(parts)
    mime_head, body = _body(parts, loading)
    head = b"".join(block) + mime_head
    _verify(head, block)
    return head + b"\r\n" + body


def _head(parts: Parts) -> list[bytes]:
    block = [
        b"Date: %b\r\n" % headers.date(parts.date_ms).encode(),
        headers.addresses("From", [parts.sender]),
    ]
    for name, people in (("Reply-To", parts.reply_to), ("To", parts.to), ("Cc", parts.cc)):
        if people:
            block.append(headers.addresses(name, people))
    if not parts.to and not parts.cc:
        block.append(headers.unstructured("To", "undisclosed-recipients:;"))
    block.append(headers.unstructured("Message-ID", parts.message_id))
    block.append(headers.unstructured("Subject", parts.subject))
    for name, value in parts.headers.items():
        if name.lower() in _OURS:
            raise headers.HeaderError(f"the header {name} has its own argument or is written by outmail")
        block.append(headers.unstructured(name, value))
    return block


def _body(parts: Parts, loading: AbstractContextManager[None]) -> tuple[bytes, bytes]:
    """(MIME header fields, body), both with CRLF and without lines that are too long."""
    if parts.html is None and not parts.attachments and not parts.inline:
        text = parts.text or ""
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if _plain(text):
            plain = text.replace("\n", "\r\n").encode("ascii")
            return _PLAIN, plain + b"\r\n" if text and not text.endswith("\n") else plain
    flat = splice.normalised(_mime(parts, loading).as_bytes())
    _bounded(flat)
    end = splice.head_end(flat)
    return flat[:end], flat[end + 2 :]


_MIME = (b"content-", b"mime-version:")
_PLAIN = b'MIME-Version: 1.0\r\nContent-Type: text/plain; charset="us-ascii"\r\n'


def _plain(text: str) -> bool:
    """True for text (line ends LF) that needs no transfer encoding."""
    return text.isascii() and "\0" not in text and len(max(text.split("\n"), key=len)) <= headers.LINE


def _mime(parts: Parts, loading: AbstractContextManager[None]) -> Any:
    with loading:  # everything that is used from here on, and what that loads by itself
        import email.generator  # noqa: F401
        import mimetypes  # noqa: F401
        from email.message import EmailMessage
        from email.policy import SMTP

    message: Any = EmailMessage(policy=SMTP.clone(cte_type="7bit"))
    if parts.html is None:
        message.set_content(parts.text or "")
    else:
        if parts.text is not None:
            message.set_content(parts.text)
            message.add_alternative(parts.html, subtype="html")
            html = message.get_payload()[1]
        else:
            message.set_content(parts.html, subtype="html")
            html = message
        for cid, file in parts.inline.items():
            maintype, subtype = _type(file)
            html.add_related(
                file.content,
                maintype,
                subtype,
                cid=f"<{_cid(cid)}>",
                filename=_filename(file.name),
                disposition="inline",
            )
    if parts.inline and parts.html is None:
        raise headers.HeaderError("inline files need an HTML part that shows them")
    for file in parts.attachments:
        maintype, subtype = _type(file)
        if maintype in ("message", "multipart"):
            # composite types may not be encoded (RFC 2046 §5.2.1)
            maintype, subtype = "application", "octet-stream"
        message.add_attachment(file.content, maintype, subtype, filename=_filename(file.name))
    return message


def _type(file: Attachment) -> tuple[str, str]:
    import mimetypes

    kind = file.type or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    match = re.fullmatch(r"([A-Za-z0-9!#$&^_.+-]+)/([A-Za-z0-9!#$&^_.+-]+)", kind)
    if not match:
        raise headers.HeaderError(f"{printable(kind)} is not a MIME type such as application/pdf")
    return match[1].lower(), match[2].lower()


def _filename(name: str) -> str:
    if not valid_key(name):
        raise headers.HeaderError(f"the file name {printable(name)} contains a control character")
    return name.replace("\\", "/").rpartition("/")[2] or "file"


def _cid(cid: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.+\-]+(@[A-Za-z0-9_.\-]+)?", cid):
        raise headers.HeaderError(f"{printable(cid)} cannot be a content id: use letters, digits, . _ -")
    return cid


def _verify(head: bytes, block: list[bytes]) -> None:
    """Check the bytes themselves, because versions of the library differ."""
    if not head.isascii():
        head.decode("utf-8")  # only UTF-8 local parts in address fields are left; such mail needs SMTPUTF8
    _bounded(head)
    written = splice.split(head)
    rest = written[len(block) :]
    if (
        b"".join(written) != head
        or b"\0" in head
        or written[: len(block)] != block
        or not all(field.lower().startswith(_MIME) for field in rest)
    ):
        raise splice.ContentError("the composed header does not read back as it was written", "bad-content")


def _bounded(content: bytes) -> None:
    if len(max(content.split(b"\r\n"), key=len)) > headers.HARD_LINE:
        raise splice.ContentError("a line of the composed message is longer than 998 octets", "bad-content")
