"""`MessageHandler`: a message goes through several transports until one of them takes it.

Promises: as in mailqueue-runner: the first transport that takes it wins, plugins are told, a failed message
stays where it was, with a plugin's "discard" it is dropped, and each message is a line in the logs. Better:
where a server takes a message for some recipients, only the others go to the next transport and stay queued.
Fails: ValueError and TypeError for wrong arguments. Does not: thread, or retry.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from outmail.compat.mailqueue.delivery_log import DELIVERY, QUEUE, DeliveryEvent, format_delay, format_logfmt
from outmail.compat.mailqueue.message_utils import MsgInfo, SendResult, dt_now, msg_as_bytes
from outmail.compat.mailqueue.plugins import MQSignal, notify


class BaseMsg:
    """A message on its way. ``is_in_queue``: it has a file; ``waited_in_queue``: it waited there."""

    is_in_queue = False
    waited_in_queue = False

    def __init__(self, msg: MsgInfo | None = None) -> None:
        self._msg = msg
        self._from: str | None = None
        self._to: Sequence[str] | None = None
        self._retries: int | None = None
        self._last: Any = None

    def start_delivery(self) -> bool | None:
        """True when it may be sent now."""
        raise NotImplementedError

    def delivery_failed(self, discard: bool = False) -> None:
        """No transport took it."""

    def delivery_successful(self) -> None:
        """A transport took it."""

    @property
    def msg(self) -> MsgInfo:
        assert self._msg is not None
        return self._msg

    @property
    def from_addr(self) -> str | None:
        return self._from if self._from is not None else self.msg.from_addr

    @from_addr.setter
    def from_addr(self, value: str | None) -> None:
        self._from = value

    @property
    def to_addrs(self) -> Sequence[str] | None:
        return self._to if self._to is not None else self.msg.to_addrs

    @to_addrs.setter
    def to_addrs(self, value: Sequence[str] | None) -> None:
        self._to = value

    @property
    def msg_bytes(self) -> bytes:
        return self.msg.msg_bytes

    @property
    def msg_id(self) -> str | None:
        return self.msg.msg_id

    @property
    def queue_date(self) -> Any:
        return self.msg.queue_date

    @property
    def retries(self) -> int:
        """How often it has failed."""
        return self._retries if self._retries is not None else self.msg.retries

    @retries.setter
    def retries(self, value: int) -> None:
        self._retries = value

    @property
    def last_delivery_attempt(self) -> Any:
        return self._last if self._last is not None else self.msg.last

    @last_delivery_attempt.setter
    def last_delivery_attempt(self, value: Any) -> None:
        self._last = value


class InMemoryMsg(BaseMsg):
    """A message without a file."""

    def __init__(self, from_addr: str | None, to_addrs: Sequence[str] | None, msg_bytes: bytes) -> None:
        super().__init__(MsgInfo(from_addr, to_addrs, BytesIO(msg_bytes)))

    def start_delivery(self) -> bool:
        return True


class MessageHandler:
    """``transports``: objects with ``send(from_addr, to_addrs, message)``. ``plugins``: a registry, see
    `plugins`. ``app``: the program's name in the logs.
    """

    def __init__(
        self,
        transports: Sequence[Any],
        delivery_log: Any = None,
        plugins: Any = None,
        queue_log: Any = None,
        app: str | None = None,
    ) -> None:
        self.transports, self.plugins, self.app = transports, plugins, app
        self.delivery_log = delivery_log or logging.getLogger(DELIVERY)
        self.queue_log = queue_log or logging.getLogger(QUEUE)

    def send_message(self, msg: Any, **words: Any) -> SendResult | None:
        """bytes, an `email.message.Message`, a file or a queued message → what became of it; None when
        somebody else is sending it. ``sender``, ``recipient`` or ``recipients`` replace its envelope.
        """
        mail = msg if hasattr(msg, "start_delivery") else InMemoryMsg(None, None, msg_as_bytes(msg))
        if not mail.start_delivery():
            return None
        sender, recipients = _envelope(mail, **words)
        mail.from_addr, mail.to_addrs = sender, recipients
        event = _event(mail, sender, recipients, self.app)
        flags = mail.is_in_queue, mail.waited_in_queue
        result, before = self._offered(mail, sender, recipients)
        if result:
            notify(self.plugins, MQSignal.delivery_successful, mail, result)
            mail.delivery_successful()
            status = "queued" if result.queued is not False else "sent"
        else:
            mail.retries += 1
            mail.last_delivery_attempt = dt_now()
            discard = notify(self.plugins, MQSignal.delivery_failed, mail, result)
            mail.delivery_failed(discard=bool(discard))
            result.discarded = discard
            status = "discarded" if discard else "deferred" if flags[0] else "failed"
        self._log(event | {"status": status}, flags, result, before)
        return result

    def _offered(
        self, mail: Any, sender: str, recipients: Sequence[str]
    ) -> tuple[SendResult, SendResult | None]:
        """(what the last transport said, what the one before it said)."""
        result, before = SendResult(False), None
        content = mail.msg_bytes
        for transport in self.transports:
            found = transport.send(sender, recipients, content)
            before, result = result, found if isinstance(found, SendResult) else SendResult(bool(found))
            if result:
                break
            if result.remaining is not None:
                mail.to_addrs = recipients = tuple(result.remaining)
        return result, before

    def _log(
        self, event: dict[str, Any], flags: tuple[bool, bool], result: SendResult, before: SendResult | None
    ) -> None:
        in_queue, waited = flags
        told = result
        if result.smtp_response is None and result.error is None and before is not None:
            told = before  # what was queued says why
        via, host, reply = result.transport, result.host, told.smtp_response
        event["via"] = f"{via}:{host}" if via and host else via
        if reply is not None:
            event["smtp"] = f"{reply.code:d} {' '.join(reply.message.splitlines())}".rstrip()
        else:
            event["error"] = told.error
        made = DeliveryEvent(**event)
        line, extra = format_logfmt(made), {"delivery": made.as_dict()}
        self.delivery_log.info(line, extra=extra)
        if made.status == "queued" or (in_queue and (waited or made.status != "sent")):
            self.queue_log.info(line, extra=extra)


def _envelope(mail: Any, **words: Any) -> tuple[str, Sequence[str]]:
    sender, one, several = (words.pop(name, None) for name in ("sender", "recipient", "recipients"))
    if words:
        raise TypeError(f"send_message() got an unexpected keyword argument {next(iter(words))!r}")
    if one and several:
        raise ValueError(f"recipient={one!r} and recipients={several!r} exclude each other")
    sender = sender or mail.from_addr
    recipients = (one,) if one else several or mail.to_addrs
    if not sender:
        raise ValueError("send_message() needs sender=")
    if not recipients:
        raise ValueError("send_message() needs recipient= or recipients=")
    return sender, recipients


def _event(mail: Any, sender: str, recipients: Sequence[str], app: str | None) -> dict[str, Any]:
    """What can be told of the message, before its file may be gone."""
    waited = mail.waited_in_queue
    date = getattr(mail, "queue_date", None)
    return {
        "to": ",".join(recipients),
        "msgid": mail.msg_id,
        "from_addr": sender,
        "attempts": mail.retries + 1 if waited else None,
        "delay": format_delay(dt_now() - date) if waited and date else None,
        "app": app,
    }
