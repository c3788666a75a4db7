"""What `mq-run` tells plugins of mailqueue-runner: each attempt of the run, when the run is over.

Promises: the signals and their arguments are those of `MessageHandler`; "discard" cancels the recipients of
that attempt that still wait. A plugin that fails is logged, and harms no mail.
Does not: hold up the engine, or keep messages in memory: a content is read when a plugin asks for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from outmail.clock import as_datetime
from outmail.compat.mailqueue.delivery_log import DeliveryEvent, write
from outmail.compat.mailqueue.message_handler import BaseMsg
from outmail.compat.mailqueue.message_utils import MsgInfo, SendResult, SMTPResponse
from outmail.compat.mailqueue.plugins import MQSignal, notify
from outmail.model import Leased, Reply, Settled
from outmail.outbox.outbox import Outbox

log = logging.getLogger("mailqueue")


@dataclass(frozen=True, slots=True)
class Attempt:
    """What an attempt made of some recipients of a message."""

    id: str
    sender: str
    recipients: Sequence[tuple[int, str]]
    sent: bool
    reply: Reply
    failures: int
    accepted_at: int


def attempt_of(item: Settled, recipients: Sequence[Leased], reply: Reply, *, sent: bool) -> Attempt:
    delivery = item.delivery
    people = [(recipient.n, recipient.address) for recipient in recipients]
    failures = recipients[0].attempts + (not sent)
    return Attempt(delivery.id, delivery.sender, people, sent, reply, failures, delivery.accepted_at)


class StoredMsg(BaseMsg):
    """A message of the store, as plugins know messages."""

    is_in_queue = True
    waited_in_queue = True

    def __init__(self, box: Outbox, attempt: Attempt) -> None:
        super().__init__()
        self._box, self._attempt = box, attempt

    @property
    def msg(self) -> MsgInfo:
        if self._msg is None:
            attempt = self._attempt
            self._msg = MsgInfo(
                attempt.sender,
                tuple(address for _, address in attempt.recipients),
                BytesIO(self._box.content(attempt.id)),
                as_datetime(attempt.accepted_at),
                retries=attempt.failures,
            )
        return self._msg


def tell(plugins: Any, box: Outbox, attempts: Sequence[Attempt], host: str) -> None:
    """Tell the plugins of each attempt, and do what they decide."""
    for attempt in attempts:
        try:
            _tell(plugins, box, attempt, host)
        except Exception:
            log.exception("a plugin failed over message %s", attempt.id)


def _tell(plugins: Any, box: Outbox, attempt: Attempt, host: str) -> None:
    reply = attempt.reply
    response = SMTPResponse(reply.code, f"{reply.enhanced} {reply.text}".strip()) if reply.code else None
    error = None if reply.code else reply.text
    result = SendResult(attempt.sent, False, "smtp", host, response, error)
    signal = MQSignal.delivery_successful if attempt.sent else MQSignal.delivery_failed
    discard = notify(plugins, signal, StoredMsg(box, attempt), result)
    if not discard or attempt.sent:
        return
    gone = [address for n, address in attempt.recipients if box.cancel(f"{attempt.id}/{n}")]
    if gone:
        event = DeliveryEvent("discarded", ",".join(gone), from_addr=attempt.sender, app="mq-run")
        write(event, queued=True)
