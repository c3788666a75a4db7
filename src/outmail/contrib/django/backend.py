"""The e-mail backend: mail that Django sends is stored, in the running transaction if there is one.

Promises: inside ``transaction.atomic`` mail goes out if and only if the block commits. Outside, it is on disk
when `send_messages` returns. Bcc is in the envelope only. Bare names (``root``) get the configured origin, in
the envelope and in the header. A message that is refused raises before any message of the call is stored
(with ``fail_silently`` it is left out). The number of stored messages is returned. Priority and so on are set
by an attribute ``outmail`` of the message, a dict of arguments of ``submit`` (``priority, at, expires, tag,
key, relay``), or by headers X-Outmail-Priority, -At, -Expires, -Tag, -Key, -Relay, which are removed. The
attributes of django-anymail are translated by `anymail`.
Fails: `outmail.Refused` (a ValueError, also for every address that Django's own SMTP backend refuses),
`outmail.NotStored`, `outmail.ConfigError`. Does not: deliver.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.errors import InvalidHeaderDefect
from email.policy import default as modern
from typing import Any

from django.core.mail.backends.base import BaseEmailBackend

from outmail import Error, Refused
from outmail.contrib.django import anymail, queue
from outmail.intake import api

WORDS = ("priority", "at", "expires", "tag", "key", "relay")
_HEADERS = {f"x-outmail-{word}": word for word in WORDS}


class EmailBackend(BaseEmailBackend):
    """For EMAIL_BACKEND (Django 5.2) and MAILERS (6.1 and later); options as in `queue.WORDS`."""

    def __init__(self, fail_silently: bool = False, *, alias: str | None = None, **options: Any) -> None:
        own = {name: options.pop(name) for name in queue.WORDS if name in options}
        # The base class judges the rest: 5.2 accepts anything (host, username), 6.1 warns or raises.
        super().__init__(**({} if alias is None else {"alias": alias}), **options)
        self.fail_silently = fail_silently
        self.options = own

    def send_messages(self, email_messages: Sequence[Any]) -> int:
        """Store the messages. Returns how many."""
        messages = [message for message in email_messages or () if message.recipients()]
        if not messages:
            return 0
        box, using = queue.outbox(self.options), queue.transaction(self.options)
        origin = box.config.origin
        if not self.fail_silently:
            return len(
                box.submit_many({**submitted(message, origin), "using": using} for message in messages)
            )
        count = 0
        for message in messages:
            try:
                box.submit(**submitted(message, origin), using=using)
                count += 1
            except Error:
                pass
        return count


def submitted(message: Any, origin: str) -> dict[str, Any]:
    """The arguments of ``Outbox.submit`` for a Django message."""
    theirs = anymail.words(message)
    kept = dict(message.extra_headers)
    own = {_HEADERS[name.lower()]: str(value) for name, value in kept.items() if name.lower() in _HEADERS}
    headers = {
        **theirs.headers,
        **{name: value for name, value in kept.items() if name.lower() not in _HEADERS},
    }
    # checked first: some versions of the email package raise IndexError for an address such as "to@"
    envelope = {
        "sender": _addresses([theirs.sender or message.from_email], "from_email", origin)[0],
        "recipients": _addresses(message.recipients(), "recipient", origin),
    }
    with _changed(message, _qualified(message, headers, origin)):
        content = message.message().as_bytes()
    return {
        "content": content,
        **envelope,
        **theirs.words,
        **own,
        **dict(getattr(message, "outmail", None) or {}),
    }


def _qualified(message: Any, headers: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The attributes that become address fields, with the domain ``origin`` behind bare names."""
    lists = {
        name: [api.whole(_text(one), origin) for one in getattr(message, name)]
        for name in ("to", "cc", "reply_to")
    }
    return {
        "from_email": api.whole(_text(message.from_email), origin),
        **lists,
        "extra_headers": api.whole_fields(headers, origin),
    }


@contextmanager
def _changed(message: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """The message with other attributes, inside the block."""
    kept = {name: getattr(message, name) for name in values}
    try:
        for name, value in values.items():
            setattr(message, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(message, name, value)


def _text(value: Any) -> str:
    """Text, also of lazy texts. None is no name."""
    return "" if value is None else str(value)


def _addresses(values: Iterable[Any], where: str, origin: str) -> list[str]:
    return [_address(_text(value), where, origin) for value in values]


def _address(text: str, where: str, origin: str) -> str:
    """The mailbox of one address, read by us and by the email package. If the two readings differ (a second
    ``@`` in a name without quotes, two addresses in one), the mail could go to a stranger; then it is
    refused.
    """
    mailbox = api.people(text, where, origin)[0][1]
    read, sound = _read(text)
    if not sound or len(read) != 1 or api.people(read[0], where, origin)[0][1] != mailbox:
        raise Refused(
            f"{where}: Invalid address {text!r}; write one mailbox, and put a name that is not plain words "
            f"in quotes",
            code="bad-address",
        )
    return str(mailbox)


def _read(text: str) -> tuple[list[str], bool]:
    """The mailboxes that the email package finds, and whether RFC 5322, section 3.4, allows the text. Whether
    a mailbox without a domain is allowed is decided by `api.people`.
    """
    try:
        field = modern.header_factory("to", text)
    except ValueError:  # a line break
        return [], False
    forbidden = (one for one in field.defects if isinstance(one, InvalidHeaderDefect))
    return [one.addr_spec for one in field.addresses], all("no domain" in str(one) for one in forbidden)
