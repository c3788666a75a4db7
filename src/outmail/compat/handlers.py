"""Replacements for logging handlers that send mail: `SMTPHandler` of the standard library, the well-known
recipe `BufferingSMTPHandler` by Vinay Sajip, and `BufferSMTPHandler` of the podcast client poca.

The same as in the originals: the arguments, the attributes (which may be changed at any time),
``getSubject``; one mail for each record, for a full buffer, or for a run. Better: a mail is stored on disk
and delivered by an engine in the program, so a logging call never waits for the network, and no record is
lost when the server is down. Port 465 means implicit TLS. The server's certificate is verified off loopback.
For new programs prefer `outmail.DigestHandler`.
Fails: never while logging; trouble is a line on stderr. `outmail.ConfigError` and `outmail.NotStored` from
the constructor. Does not: read what the originals left behind.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from email.errors import InvalidHeaderDefect
from email.policy import default as modern
from logging.handlers import BufferingHandler
from typing import Any, NamedTuple

from outmail.compat.relays import Encryption, outbox, relay_url
from outmail.config import load
from outmail.outbox.outbox import Outbox
from outmail.policy.route import is_loopback
from outmail.reports import records, state
from outmail.reports.digest import DigestHandler
from outmail.reports.mail import BODY_LIMIT, one_line, safe
from outmail.reports.post import guarded

Host = str | tuple[str, int] | Sequence[Any]
_SUBMISSION = 587


class _Server:
    """What the handlers share: server, sender and recipients, as attributes with the originals' names."""

    def _configure(
        self,
        mailhost: Host,
        fromaddr: str,
        toaddrs: str | Sequence[str],
        subject: str,
        credentials: Sequence[str] | None,
        secure: Any,
        store: str | None,
    ) -> None:
        host, port = (mailhost, None) if isinstance(mailhost, str) else tuple(mailhost)
        self.mailhost: str = host
        self.mailport: int | None = port
        user, password = credentials if credentials else (None, None)
        self.username: str | None = user
        self.password: str | None = password
        self.fromaddr, self.subject, self.secure = fromaddr, subject, secure
        self.toaddrs = [toaddrs] if isinstance(toaddrs, str) else toaddrs
        self._store = store
        if secure:
            warnings.warn(
                "secure names files of a client's certificate, which outmail does not show to servers",
                stacklevel=3,
            )
        self._outbox()

    def _outbox(self) -> Outbox:
        port = self.mailport or 0
        if port == 465:
            encryption: Encryption = "ssl"
        elif self.secure is not None or (self.username and not is_loopback(self.mailhost)):
            encryption, port = "starttls", port or _SUBMISSION
        else:
            encryption = "off"
        return outbox(relay_url(self.mailhost, port, encryption, self.username, self.password), self._store)

    def _send(self, subject: str, text: str) -> bool:
        """Store a mail. False when that failed; stderr then says why."""

        def queue() -> Any:
            return self._outbox().send(
                _people(self.toaddrs),
                one_line(subject, 500),
                text,
                sender=self.fromaddr,
                headers={"Auto-Submitted": "auto-generated"},
            )

        return guarded(queue) is not None


def _people(addresses: Sequence[str]) -> list[str | tuple[str, str]]:
    """The addresses, one by one; a text may contain several, as in a header field."""
    field = modern.header_factory("to", ", ".join(addresses))
    if any(isinstance(one, InvalidHeaderDefect) and "no domain" not in str(one) for one in field.defects):
        return list(addresses)
    return [(one.display_name, one.addr_spec) for one in field.addresses]


class SMTPHandler(_Server, logging.Handler):
    """`logging.handlers.SMTPHandler`: one mail for each record, stored in the queue."""

    def __init__(
        self,
        mailhost: Host,
        fromaddr: str,
        toaddrs: str | Sequence[str],
        subject: str,
        credentials: Sequence[str] | None = None,
        secure: Any = None,
        timeout: float = 5.0,
        *,
        store: str | None = None,
    ) -> None:
        super().__init__()
        self.timeout = timeout
        self._configure(mailhost, fromaddr, toaddrs, subject, credentials, secure, store)

    def getSubject(self, record: logging.LogRecord) -> str:
        """The subject for a record. Override it as in the standard library."""
        return self.subject

    def emit(self, record: logging.LogRecord) -> None:
        if records.ours(record):
            return
        found = guarded(lambda: str(self.getSubject(record)), "getSubject failed")
        subject = records.in_words(self.subject) if found is None else found
        self._send(subject, safe(records.formatted(self, record), BODY_LIMIT))


class BufferingSMTPHandler(_Server, BufferingHandler):
    """Vinay Sajip's recipe: a mail for each ``capacity`` records, and for the rest at close. Records that
    cannot be stored stay in the buffer.
    """

    def __init__(
        self,
        mailhost: Host,
        fromaddr: str,
        toaddrs: str | Sequence[str],
        subject: str,
        capacity: int = 1000,
        logging_format: str = "%(asctime)s %(levelname)-5s %(message)s",
        *,
        credentials: Sequence[str] | None = None,
        secure: Any = None,
        store: str | None = None,
    ) -> None:
        super().__init__(capacity)
        self.setFormatter(logging.Formatter(logging_format))
        self._configure(mailhost, fromaddr, toaddrs, subject, credentials, secure, store)

    def emit(self, record: logging.LogRecord) -> None:
        if not records.ours(record):
            super().emit(record)

    def flush(self) -> None:
        """Send what is in the buffer as a mail."""
        with self.lock:  # type: ignore[union-attr]
            if not self.buffer:
                return
            lines = [safe(records.formatted(self, record)) for record in self.buffer]
            if self._send(records.in_words(self.subject), "\n".join(lines) + "\n"):
                self.buffer.clear()


class Outcome(NamedTuple):
    """What happened to a run's records: True stored, None nothing to send, False not stored."""

    success: bool | None
    msg: str


class BufferSMTPHandler(DigestHandler):
    """poca's handler: one mail at the end of a run, if this and earlier runs have collected ``threshold``
    records; otherwise they are kept.

    ``email``: the element of that name in poca's settings (``fromaddr``, ``toaddr``, ``host``, ``starttls``,
    ``password``, ``threshold``). ``paths`` has the folder ``db_dir``, which distinguishes several
    configurations. ``host`` may include a port. ``outcome`` is valid after `close`.
    """

    def __init__(self, email: Any, paths: Any, *, store: str | None = None) -> None:
        self.email, self.outcome = email, Outcome(None, "nothing logged yet")
        self._box = _poca_outbox(email, store)
        self.capacity = max(1, int(str(email.threshold)))
        super().__init__(
            _words(email.toaddr),
            "POCA log",
            name=f"poca {paths.db_dir}",
            threshold=self.capacity,
            max_delay="365d",
            at_most=3600,
            head=1000,
            outbox=self._box,
        )

    def _tick(self) -> None:
        """Nothing: a mail is sent only at the end of a run."""

    def _fold(self, in_order: bool | None) -> None:
        try:
            super()._fold(in_order)
            pending = state.read(self._box, "digest", self.title).get("pending") or {}
        except Exception as problem:
            self.outcome = Outcome(False, records.in_words(problem))
            raise
        waiting = pending.get("total", 0)
        if waiting:
            self.outcome = Outcome(None, f"{waiting} records wait until there are {self.capacity}")
        else:
            self.outcome = Outcome(True, "nothing waits: what was logged is queued as mail")


def _poca_outbox(email: Any, store: str | None) -> Outbox:
    host, _, port = _words(email.host).partition(":")
    sender = _words(email.fromaddr)
    if _words(email.starttls) == "yes":
        relay = relay_url(host, int(port or _SUBMISSION), "starttls", sender, _words(email.password))
    else:
        relay = relay_url(host, int(port or 0), "off")
    return outbox(relay, store, config=replace(load(), sender=sender), sender=sender)


def _words(element: Any) -> str:
    """The text of an element of lxml's objectify, or of a plain value."""
    return str(getattr(element, "text", element) or "").strip()
