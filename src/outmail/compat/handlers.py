"""Drop-in classes for logging handlers that mail: `SMTPHandler` of the standard library, and the well-known
recipe `BufferingSMTPHandler`.

What stays: the arguments, one mail a record or one a full buffer, ``getSubject``. What is better: a mail is
queued on disk and delivered by an engine in the program, so a logging call never waits for the network and no
record is lost when the server is down; port 465 means implicit TLS; the server's certificate is verified off
loopback. Prefer `outmail.DigestHandler` for new programs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from logging.handlers import BufferingHandler
from typing import Any
from urllib.parse import quote

from outmail.outbox.outbox import Outbox
from outmail.policy.route import is_loopback
from outmail.reports import records
from outmail.reports.mail import BODY_LIMIT, one_line, safe
from outmail.reports.post import guarded

_boxes: dict[tuple[str, str | None], Outbox] = {}


def _box(
    mailhost: str | tuple[str, int], credentials: tuple[str, str] | None, secure: Any, store: str | None
) -> Outbox:
    """One Outbox for each server."""
    host, port = (mailhost, 0) if isinstance(mailhost, str) else mailhost
    user = f"{quote(credentials[0], safe='')}:{quote(credentials[1], safe='')}@" if credentials else ""
    if port == 465:
        scheme = "smtps"
    elif secure is not None or (credentials and not is_loopback(host)):
        scheme = "smtp"
    else:
        scheme = "smtp+plain"
    shown = f"[{host}]" if ":" in host else host
    key = (f"{scheme}://{user}{shown}:{port or (587 if scheme == 'smtp' else 25)}", store)
    if key not in _boxes or _boxes[key].closed:
        _boxes[key] = Outbox(store, relay=key[0])
    return _boxes[key]


class SMTPHandler(logging.Handler):
    """One mail a record, queued."""

    def __init__(
        self,
        mailhost: str | tuple[str, int],
        fromaddr: str,
        toaddrs: str | Sequence[str],
        subject: str,
        credentials: tuple[str, str] | None = None,
        secure: Any = None,
        timeout: float = 5.0,
        *,
        store: str | None = None,
    ) -> None:
        super().__init__()
        self.fromaddr, self.subject, self.timeout = fromaddr, subject, timeout
        self.toaddrs = [toaddrs] if isinstance(toaddrs, str) else list(toaddrs)
        self._box = _box(mailhost, credentials, secure, store)

    def getSubject(self, record: logging.LogRecord) -> str:
        """The subject for a record; override it as with the standard library's."""
        return self.subject

    def emit(self, record: logging.LogRecord) -> None:
        if records.ours(record):
            return
        try:
            subject = str(self.getSubject(record))
        except Exception:
            self.handleError(record)
            subject = self.subject
        text = records.formatted(self, record)
        guarded(
            lambda: self._box.send(
                self.toaddrs,
                one_line(subject, 500),
                safe(text, BODY_LIMIT),
                sender=self.fromaddr,
                headers={"Auto-Submitted": "auto-generated"},
            )
        )


class BufferingSMTPHandler(BufferingHandler):
    """``capacity`` records a mail, the rest at close; what cannot be queued stays in the buffer."""

    def __init__(
        self,
        mailhost: str | tuple[str, int],
        fromaddr: str,
        toaddrs: str | Sequence[str],
        subject: str,
        capacity: int = 1000,
        *,
        logging_format: str = "%(asctime)s %(levelname)-5s %(message)s",
        credentials: tuple[str, str] | None = None,
        secure: Any = None,
        store: str | None = None,
    ) -> None:
        super().__init__(capacity)
        self.fromaddr, self.subject = fromaddr, subject
        self.toaddrs = [toaddrs] if isinstance(toaddrs, str) else list(toaddrs)
        self.setFormatter(logging.Formatter(logging_format))
        self._box = _box(mailhost, credentials, secure, store)

    def emit(self, record: logging.LogRecord) -> None:
        if not records.ours(record):
            super().emit(record)

    def flush(self) -> None:
        if not self.buffer:
            return
        self.acquire()
        try:
            text = "\n".join(safe(records.formatted(self, record)) for record in self.buffer) + "\n"
            sent = guarded(
                lambda: self._box.send(
                    self.toaddrs,
                    one_line(str(self.subject), 500),
                    text,
                    sender=self.fromaddr,
                    headers={"Auto-Submitted": "auto-generated"},
                )
            )
            if sent is not None:
                self.buffer.clear()
        finally:
            self.release()
