"""repoze.sendmail's Python interface: deliveries that belong to a transaction, and the mailers behind them.

    from outmail.compat.repoze import QueuedMailDelivery     # instead of: from repoze.sendmail.delivery
    import …

Promises: the arguments, the Message-ID that `send` returns, and what transactions and savepoints do are the
same (`outmail.contrib.transaction`). A delivery stores; nothing is sent in the calling thread.
`QueuedMailDelivery` stores in the queue directory (``PATH/outmail.db``), and `qp` sends from there.
`DirectMailDelivery` and ``SMTPMailer.send`` store in outmail's own queue, and an engine in this program
sends.
Fails: `outmail.Refused` (a ValueError) for a message or an address, `outmail.NotStored`, ValueError for what
is no message of the email package. Does not: raise what smtplib raises.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from email.header import Header
from email.message import Message
from email.policy import compat32
from email.utils import formataddr, getaddresses
from typing import Any, Protocol

from outmail.compat import relays
from outmail.compat.drain import store_of
from outmail.compat.relays import Encryption, relay_url
from outmail.compat.repoze.maildir import make
from outmail.contrib.transaction import TransactionMail
from outmail.mime.mailboxes import addresses
from outmail.outbox.outbox import Outbox
from outmail.system import rights

_ADDRESSES = (
    "from", "sender", "reply-to", "to", "cc", "bcc",
    "resent-from", "resent-sender", "resent-to", "resent-cc", "resent-bcc",
)  # fmt: skip


class Mailer(Protocol):
    """Where a `DirectMailDelivery` sends to."""

    @property
    def outbox(self) -> Outbox:
        """The `Outbox` whose mail goes there."""


class _Sends:
    def send(self: Mailer, fromaddr: str, toaddrs: Iterable[str], message: Message) -> None:
        """Store at once, without a transaction."""
        self.outbox.submit(**_words(fromaddr, toaddrs, message))


class SMTPMailer(_Sends):
    """A mail server. Off this machine TLS is required, unless ``no_tls`` says otherwise. ``store``: the queue
    (default: the configured one).
    """

    def __init__(
        self,
        hostname: str = "localhost",
        port: int | str = 25,
        username: str | None = None,
        password: str | None = None,
        no_tls: bool = False,
        force_tls: bool = False,
        ssl: bool = False,
        debug_smtp: bool = False,
        *,
        store: str | None = None,
    ) -> None:
        self.hostname, self.port = hostname, port
        self.username, self.password = username, password
        self.no_tls, self.force_tls, self.ssl, self.debug_smtp = no_tls, force_tls, ssl, debug_smtp
        self._store = store

    @property
    def outbox(self) -> Outbox:
        encryption: Encryption = "ssl" if self.ssl else "off" if self.no_tls else "starttls"
        url = relay_url(self.hostname, int(self.port), encryption, self.username, self.password)
        return relays.outbox(url, self._store)


class SendmailMailer(_Sends):
    """A sendmail program. It gets the envelope on its command line."""

    def __init__(self, sendmail_app: str | None = None, *, store: str | None = None) -> None:
        self.sendmail_app = sendmail_app or "/usr/sbin/sendmail"
        self._store = store

    @property
    def outbox(self) -> Outbox:
        return relays.outbox(f"sendmail:{self.sendmail_app}", self._store)


class _Delivery:
    def __init__(self, outbox: Outbox, transaction_manager: Any) -> None:
        self._mail = TransactionMail(outbox, manager=transaction_manager)
        self.transaction_manager = self._mail.manager

    def send(self, fromaddr: str, toaddrs: Iterable[str], message: Message) -> str:
        """Send if the transaction commits. Returns the Message-ID, which ``message`` has then, too."""
        receipt = self._mail.submit(**_words(fromaddr, toaddrs, message))
        if message["Message-Id"] is None:
            message["Message-Id"] = receipt.message_id
        return receipt.message_id


class DirectMailDelivery(_Delivery):
    """An engine in this program sends as soon as the transaction has committed."""

    def __init__(self, mailer: Mailer, transaction_manager: Any = None) -> None:
        super().__init__(mailer.outbox, transaction_manager)
        self.mailer = mailer


class QueuedMailDelivery(_Delivery):
    """Leaves mail for `qp` in a queue directory, which is made where it is missing. Raises `NotStored`
    when root would write into another user's directory.
    """

    def __init__(self, queuePath: str | os.PathLike[str], transaction_manager: Any = None) -> None:
        self.queuePath = os.fspath(queuePath)
        rights.refuse(self.queuePath, "run this program as {user}")
        make(self.queuePath)
        super().__init__(relays.outbox(None, store_of(self.queuePath)), transaction_manager)


def _words(fromaddr: str, toaddrs: Iterable[str], message: Message) -> dict[str, Any]:
    """The arguments of ``submit``. Bcc is cut, as in `Outbox.send`."""
    if not isinstance(message, Message):
        raise ValueError("Message must be email.message.Message")
    old = message.policy is compat32
    message = copy.deepcopy(message)
    del message["bcc"]
    if old:
        _encode(message)
    people = [toaddrs] if isinstance(toaddrs, str) else toaddrs
    found = [address for text in people for address in addresses(text) or [text]]
    return {"content": message, "sender": "".join(addresses(fromaddr or "")[:1]) or None, "recipients": found}


def _encode(message: Message) -> None:
    """What is not ASCII becomes encoded words and UTF-8. In address fields the addresses stay readable, which
    the email package does not do for messages of its old kind.
    """
    for name, value in message.items():
        if isinstance(value, str) and not value.isascii():
            message.replace_header(name, _field(name, value))
    payload = message.get_payload()
    if isinstance(payload, list):
        for part in payload:
            if isinstance(part, Message):
                _encode(part)
    elif isinstance(payload, str) and not payload.isascii() and message.get_charset() is None:
        message.set_payload(payload, "utf-8")


def _field(name: str, value: str) -> str:
    if name.lower() not in _ADDRESSES:
        return Header(value, "utf-8", header_name=name).encode()
    people = (
        (person if person.isascii() else Header(person, "utf-8").encode(), address)
        for person, address in getaddresses([value])
    )
    return ", ".join(
        f"{person} <{address}>" if not address.isascii() else formataddr((person, address))
        for person, address in people
    )
