"""The library's way in: Python values become complete messages.

Promises: everything is checked before anything is stored. Wrong arguments raise `Refused` with a sentence
that names the argument. Bcc recipients are in the envelope only. Bare names (``root``) get the domain
``origin``: in the envelope, and in header fields if the message is composed here. Does not: store (`accept`
does), or touch the network.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from outmail import clock
from outmail.accept.acceptance import Draft
from outmail.errors import ConfigError, Refused
from outmail.mime import splice
from outmail.mime.compose import Attachment, Parts, Person, compose
from outmail.mime.mailboxes import rewritten
from outmail.model import Dsn, keyed_id, new_id
from outmail.smtp.syntax import AddressError, parse_mailbox, printable, qualified
from outmail.system.loading import loading

if TYPE_CHECKING:
    from email.message import EmailMessage, Message

Address = str | tuple[str, str]
Addresses = Address | Iterable[Address]
When = str | datetime | timedelta
Buffer = bytes | bytearray | memoryview
Content: TypeAlias = "Buffer | EmailMessage | Message | BinaryIO"
File = str | os.PathLike[str] | tuple[str, bytes] | tuple[str, bytes, str]

_ADDRESS_FIELDS = frozenset(
    f"{prefix}{name}" for prefix in ("", "resent-") for name in ("from", "sender", "to", "cc", "reply-to")
)


def people(value: Addresses, where: str, origin: str = "") -> list[Person]:
    """``str``, ``(name, address)`` or an iterable of them → (display name, mailbox) pairs."""
    if isinstance(value, str):
        return [_person(value, where, origin)]
    if value == ():
        return []
    if isinstance(value, tuple) and len(value) == 2:
        name, address = value
        if isinstance(name, str) and isinstance(address, str) and "@" not in name:
            _check_pair(name, address, where, origin)
            return [(name, _mailbox(address, where, origin))]
    if not isinstance(value, Iterable) or isinstance(value, (bytes, Mapping)):
        raise Refused(
            f"{where} must be an address, a (name, address) pair, or several of them, not {value!r}",
            code="bad-address",
        )
    found: list[Person] = []
    for item in value:
        if not isinstance(item, (str, tuple)):
            raise Refused(
                f"{where} holds {item!r}, which is neither an address nor a (name, address) pair",
                code="bad-address",
            )
        found += people(item, where, origin)
    return found


def _check_pair(name: str, address: str, where: str, origin: str) -> None:
    """Two bare names in a tuple may be two recipients, of whom one would get nothing: refuse them."""
    if name != qualified(name, origin) and address != qualified(address, origin):
        raise Refused(
            f"{where}: {(name, address)!r} may be two addresses, or a name and an address: write a list of "
            f"addresses, or give the address its domain",
            code="bad-address",
        )


def whole(text: str, origin: str) -> str:
    """An address list with the domain ``origin`` behind its bare names; all else stays as it is."""
    return rewritten(text, partial(qualified, origin=origin))


def whole_fields(fields: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Header fields in which bare names in address lists have got the domain ``origin``."""
    return {
        name: whole(value, origin) if isinstance(value, str) and name.lower() in _ADDRESS_FIELDS else value
        for name, value in fields.items()
    }


def _person(text: str, where: str, origin: str) -> Person:
    head, bracket, tail = text.strip().rpartition("<")
    if bracket and tail.endswith(">"):
        name = head.strip()
        if len(name) > 1 and name[0] == name[-1] == '"':
            name = name[1:-1].replace('\\"', '"').replace("\\\\", "\\")
        return name, _mailbox(tail[:-1], where, origin)
    return "", _mailbox(text, where, origin)


def _mailbox(text: str, where: str, origin: str) -> Any:
    try:
        return parse_mailbox(qualified(text.strip(" "), origin))
    except AddressError as problem:
        raise Refused(f"{where}: {problem}", code="bad-address") from None


def attachment(value: File) -> Attachment:
    """A path, or (name, bytes[, type])."""
    if isinstance(value, tuple):
        if (
            not 2 <= len(value) <= 3
            or not isinstance(value[0], str)
            or not isinstance(value[1], (bytes, bytearray, memoryview))
        ):
            raise Refused(_FILE, code="bad-attachment")
        return Attachment(value[0], bytes(value[1]), value[2] if len(value) == 3 else "")
    if not isinstance(value, (str, os.PathLike)):
        raise Refused(f"{_FILE}, not {value!r}", code="bad-attachment")
    from pathlib import Path

    path = Path(value)
    try:
        return Attachment(path.name, path.read_bytes())
    except (OSError, ValueError) as problem:  # ValueError: no file can have this name
        why = getattr(problem, "strerror", None) or str(problem)
        raise Refused(
            f"the attachment {printable(str(path))} cannot be read: {why}", code="bad-attachment"
        ) from None


_FILE = "an attachment is a path, or (name, bytes) or (name, bytes, type)"


def timing(now: int, at: When | None, expires: When | None) -> tuple[int | None, int | None]:
    """``at=`` and ``expires=`` as instants."""
    return _instant("at", at, now), _instant("expires", expires, now)


def _instant(name: str, value: When | None, now: int) -> int | None:
    try:
        return clock.instant(value, now) if value is not None else None
    except ValueError as problem:
        raise Refused(f"{name}: {problem}", code="bad-argument") from None


def composed(
    now: int,
    hostname: str,
    origin: str,
    *,
    to: Addresses = (),
    subject: str | None = "",
    text: str | None = None,
    html: str | None = None,
    cc: Addresses = (),
    bcc: Addresses = (),
    sender: Address | None = None,
    reply_to: Addresses = (),
    headers: Mapping[str, str] | None = None,
    attachments: Iterable[File] = (),
    inline: Mapping[str, File] | None = None,
    key: str | None = None,
    at: When | None = None,
    expires: When | None = None,
    priority: str = "normal",
    tag: str | None = None,
    route: str | None = None,
) -> Draft:
    """The arguments of ``send`` as a draft."""
    if not sender:
        raise ConfigError("no sender: give sender=, or set `from` in the configuration or $OUTMAIL_FROM")
    for name, value in (("subject", subject), ("text", text), ("html", html)):
        if value is not None and not isinstance(value, str):
            raise Refused(f"{name} must be text, not {type(value).__name__}", code="bad-argument")
    if headers and not (
        isinstance(headers, Mapping)
        and all(isinstance(word, str) for pair in headers.items() for word in pair)
    ):
        raise Refused("headers is a mapping of names to texts", code="bad-header")
    if inline and not isinstance(inline, Mapping):
        raise Refused("inline is a mapping of Content-IDs to files", code="bad-attachment")
    author = people(sender, "sender", origin)
    if len(author) != 1:
        raise Refused("sender must be one address", code="bad-address")
    groups = {
        where: people(value, where, origin)
        for where, value in (("to", to), ("cc", cc), ("bcc", bcc), ("reply_to", reply_to))
    }
    due, end = timing(now, at, expires)
    if isinstance(attachments, (str, os.PathLike)):
        attachments = [attachments]
    if key is not None and not (isinstance(key, str) and key):
        raise Refused(f"key must be text and not empty, not {key!r}", code="bad-argument")
    id = keyed_id(key) if key else new_id(now)
    parts = Parts(
        author[0],
        groups["to"],
        groups["cc"],
        groups["reply_to"],
        subject or "",
        text,
        html,
        whole_fields(headers or {}, origin),
        [attachment(a) for a in attachments or ()],
        {cid: attachment(file) for cid, file in (inline or {}).items()},
        now,
        f"<{id}@{author[0][1].domain.strip('[]') or hostname}>",
    )
    try:
        content = compose(parts, loading)
    except ValueError as problem:
        raise Refused(str(problem), code=getattr(problem, "code", "bad-header")) from None
    envelope = [str(mailbox) for where in ("to", "cc", "bcc") for _, mailbox in groups[where]]
    head = splice.Head(parts.message_id, splice.short(parts.subject.strip()), dated=True, has_message_id=True)
    return Draft(
        content,
        str(author[0][1]),
        envelope,
        key,
        due,
        end,
        priority,
        tag,
        route,
        id=id,
        normal=True,
        head=head,
    )


def _as_bytes(content: Message | BinaryIO) -> Buffer:
    package = sys.modules.get("email.message")  # it is loaded if this is one of its messages
    kind = getattr(package, "Message", None)  # missing while another thread is loading the package
    if kind is not None and isinstance(content, kind):
        return _flattened(content)
    if not hasattr(content, "read"):
        raise Refused(
            f"content must be bytes, an EmailMessage or a binary file, not {type(content).__name__}",
            code="bad-content",
        )
    found = content.read()
    if not isinstance(found, (bytes, bytearray, memoryview)):
        raise Refused("the file was opened as text; open it in binary mode", code="bad-content")
    return found


def _flattened(message: Message) -> bytes:
    """The bytes of a message of the email package. Parsed fields are not folded again, and no field may
    appear or vanish (header injection).
    """
    from email.errors import MessageError

    policy = message.policy.clone(linesep="\r\n")
    if hasattr(policy, "refold_source"):
        policy = policy.clone(refold_source="none")  # type: ignore[call-arg]
    try:
        content = message.as_bytes(policy=policy)
    except (MessageError, ValueError, LookupError) as problem:
        raise Refused(
            f"the email package cannot turn this message into bytes: {problem}", code="bad-content"
        ) from None
    head = content.partition(b"\r\n\r\n")[0]
    names = [
        line.partition(b":")[0].decode("latin-1").lower()
        for line in head.split(b"\r\n")
        if line and line[:1] not in b" \t"
    ]
    if names != [name.lower() for name in message]:
        raise Refused(
            "a header value of the message contains a line break and would become several fields",
            code="bad-header",
        )
    return content


def _enveloped(address: Any, origin: str) -> Any:
    """Acceptance refuses whatever is no text."""
    return qualified(address, origin) if isinstance(address, str) else address


def complete(
    now: int,
    origin: str,
    content: Content,
    *,
    sender: str | None,
    recipients: str | Iterable[str],
    key: str | None = None,
    at: When | None = None,
    expires: When | None = None,
    priority: str = "normal",
    tag: str | None = None,
    route: str | None = None,
    dsn: Dsn | None = None,
) -> Draft:
    """The arguments of ``submit`` as a draft. Only line ends of the bytes are changed. Bare names in the
    envelope get the domain ``origin``.
    """
    if not isinstance(content, (bytes, bytearray, memoryview)):
        content = _as_bytes(content)
    if not isinstance(recipients, Iterable) or not isinstance(dsn, Dsn | None):
        raise Refused("recipients is an address or several of them, and dsn a Dsn", code="bad-argument")
    if at is not None or expires is not None:
        due, end = timing(now, at, expires)
    else:
        due = end = None
    if dsn is not None and dsn.each:
        dsn = replace(dsn, each={_enveloped(address, origin): asked for address, asked in dsn.each.items()})
    return Draft(
        bytes(content),
        _enveloped(sender or "", origin),
        [
            _enveloped(address, origin)
            for address in ([recipients] if isinstance(recipients, str) else recipients)
        ],
        key,
        due,
        end,
        priority,
        tag,
        route,
        dsn,
    )
