"""mailqueue-runner's transports that send: `SMTPMailer` to a server, `DebugMailer` nowhere.

Promises: one attempt by outmail's SMTP client, with its rules for TLS and passwords; the bytes are sent as
they are, with CRLF line ends. ``smtp_log`` gets each line of the dialogue (DEBUG) and what went wrong
(WARNING), with passwords masked.
Fails: never because of the server: a falsy `SendResult` says why. ValueError and TypeError from the
constructor. Does not: queue, or send to nobody because one recipient was refused: `SendResult.remaining`.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from io import BytesIO
from typing import Any, cast

from outmail.clock import Clock
from outmail.compat.mailqueue.message_utils import MsgInfo, SendResult, SMTPResponse, msg_as_bytes
from outmail.compat.relays import relay_url
from outmail.config import Config, load
from outmail.errors import Refused
from outmail.mime import splice
from outmail.model import NEEDS_8BIT, NEEDS_UTF8, Delivery, Leased, Outcome, new_id
from outmail.outbox.direct import attempt
from outmail.policy.plain import plain_line
from outmail.policy.route import Relay, Tls, allowed, is_loopback, parse_relay
from outmail.policy.veil import known
from outmail.smtp.syntax import AddressError, parse_mailbox
from outmail.wiring import transports

_SMTPS = 465


class TLSMode(Enum):
    """implicit: from the start; starttls: required; opportunistic: where it is offered."""

    IMPLICIT = "implicit"
    STARTTLS = "starttls"
    OPPORTUNISTIC = "opportunistic"


_TLS: dict[TLSMode, Tls] = {
    TLSMode.IMPLICIT: "implicit",
    TLSMode.STARTTLS: "required",
    TLSMode.OPPORTUNISTIC: "opportunistic",
}


def required_tls_mode(port: int) -> TLSMode:
    """The mode that always encrypts."""
    return TLSMode.IMPLICIT if port == _SMTPS else TLSMode.STARTTLS


def default_tls_mode(port: int) -> TLSMode:
    """The mode where none was asked for."""
    return TLSMode.IMPLICIT if port == _SMTPS else TLSMode.OPPORTUNISTIC


def is_local_host(hostname: str) -> bool:
    return is_loopback(hostname)


def default_tls_verify(hostname: str, tls: TLSMode) -> bool:
    """Certificates are verified where TLS is required, and the server is not this machine."""
    return tls != TLSMode.OPPORTUNISTIC and not is_loopback(hostname)


class SMTPMailer:
    """A transport that hands over to one server."""

    def __init__(
        self,
        hostname: str,
        port: int | str = 25,
        tls: TLSMode | str | None = None,
        tls_verify: bool = True,
        username: str | None = None,
        password: str | None = None,
        timeout: float = 10,
        smtp_log: Any = None,
    ) -> None:
        self.hostname, self.port = hostname, int(port)
        self.tls = TLSMode(tls) if tls is not None else default_tls_mode(self.port)
        if self.port == _SMTPS and self.tls != TLSMode.IMPLICIT:
            raise ValueError(f"port {_SMTPS} means TLS from the start, not {self.tls.value}")
        self.tls_verify = bool(tls_verify)
        self.username, self.password = username, password
        self.connect_timeout, self.smtp_log = float(timeout), smtp_log
        self._config = load(through=False)
        self._relay()

    def _relay(self) -> Relay:
        both = self.username is not None and self.password is not None
        user, password = (self.username or "", self.password or "") if both else ("", "")
        known.add_login(user, password)
        made = parse_relay(relay_url(self.hostname, self.port, "starttls", user, password), "default")
        return replace(
            made, tls=_TLS[self.tls], verify=self.tls_verify, timeout=self.connect_timeout, password=password
        )

    def send(self, from_addr: str, to_addrs: Sequence[str] | str, message: Any) -> SendResult:
        """One attempt now."""
        people = [to_addrs] if isinstance(to_addrs, str) else list(to_addrs)
        host = f"{self.hostname}:{self.port}"
        try:
            delivery = _delivery(from_addr, self._safe(people), msg_as_bytes(message))
        except (AddressError, splice.ContentError, Refused) as problem:
            return SendResult(False, queued=False, transport="smtp", host=host, error=str(problem))
        _run(self._relay(), delivery, self._config)
        self._tell(delivery)
        outcomes = [cast(Outcome, recipient.outcome) for recipient in delivery.recipients]
        left = [people[r.n - 1] for r, o in zip(delivery.recipients, outcomes) if o.kind != "delivered"]
        told = next((o for o in outcomes if o.kind != "delivered"), outcomes[0]).reply
        return SendResult(
            not left,
            queued=False,
            transport="smtp",
            host=host,
            smtp_response=SMTPResponse(told.code, f"{told.enhanced} {told.text}".strip())
            if told.code
            else None,
            error=None if told.code else told.text,
            remaining=left if 0 < len(left) < len(people) else None,
        )

    def _safe(self, people: list[str]) -> list[str]:
        """``[safety]`` of outmail's configuration holds. Raises `Refused`."""
        if self._config.redirect_to:
            return [self._config.redirect_to] * len(people)
        for address in people:
            if not allowed(self._config.only_to, address):
                raise Refused(f"[safety] only_to does not allow mail to {address}", code="bad-address")
        return people

    def _tell(self, delivery: Delivery) -> None:
        if self.smtp_log is None:
            return
        for _, direction, line in delivery.transcript:
            for part in line.decode("utf-8", "replace").split("\n"):
                self.smtp_log.debug("%s: %s", direction, plain_line(part))
        for reason in dict.fromkeys(
            plain_line(str(r.outcome.reply))
            for r in delivery.recipients
            if r.outcome is not None and r.outcome.kind != "delivered"
        ):
            self.smtp_log.warning("%s", reason)


def _delivery(sender: str, people: Sequence[str], content: bytes) -> Delivery:
    content = splice.normalised(content)
    addresses = [str(parse_mailbox(address)) for address in people]
    sender = str(parse_mailbox(sender)) if sender else ""
    needs = (NEEDS_8BIT if not content.isascii() else 0) | (NEEDS_UTF8 if not sender.isascii() else 0)
    now = Clock().now()
    recipients = [Leased(n, address, 0, False, 0) for n, address in enumerate(addresses, 1)]
    sha256 = hashlib.sha256(content).digest()
    return Delivery(0, new_id(now), 0, "default", sender, content, sha256, needs, "", now, now, recipients)


def _run(relay: Relay, delivery: Delivery, config: Config) -> None:
    """The attempt, in a loop of its own; in a thread of its own where this one runs a loop already."""

    def work() -> None:
        asyncio.run(attempt(transports(config), relay, delivery))

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        work()
    else:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()


class DebugMailer:
    """A transport for tests: it keeps what it is given in ``sent_mails``."""

    def __init__(self, simulate_failed_sending: bool = False, send_callback: Any = None) -> None:
        self.simulate_failed_sending, self.send_callback = simulate_failed_sending, send_callback
        self.sent_mails: list[MsgInfo] = []

    def send(self, from_addr: str, to_addrs: Sequence[str], message: Any) -> SendResult:
        result = SendResult(True, queued=False, transport="debug")
        if self.send_callback is not None:
            found = self.send_callback(from_addr, to_addrs, message)
            result = found if isinstance(found, SendResult) else SendResult(bool(found), transport="debug")
        if self.simulate_failed_sending:
            result.value = False
        if result:
            self.sent_mails.append(MsgInfo(from_addr, to_addrs, BytesIO(msg_as_bytes(message))))
        return result
