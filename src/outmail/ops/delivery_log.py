"""The delivery log: one logfmt line for each attempt and recipient, on the logger ``outmail.delivery``.

Fields: status, id, to, msgid, from, via, attempts, delay, code, text.
Promises: a line stays one line, whatever a server or an address says; nothing is formatted when nobody
listens. Does not: fail a delivery, or log what an engine puts back untried.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import TextIO

from outmail.clock import human_span
from outmail.model import Leased, Settled, Verdict
from outmail.policy.plain import plain_line

logger = logging.getLogger("outmail.delivery")
_PLAIN = re.compile(r"[!#-<>-~]+")
_STATUS = {
    "delivered": "delivered",
    "refused": "failed",
    "deferred": "deferred",
    "unknown": "uncertain",
    "expired": "failed",
}


def observe(items: Sequence[Settled]) -> None:
    """Log deliveries that were settled together."""
    if not logger.isEnabledFor(logging.INFO):
        return
    for item in items:
        for recipient, verdict in item.verdicts:
            logger.log(
                logging.INFO if verdict.event == "delivered" else logging.WARNING,
                line(item, recipient, verdict),
            )


class Batched:
    """The same lines for the service's stderr: one write for all deliveries that were settled together, and
    no log record for each.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, items: Sequence[Settled]) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)) + f",{int(now * 1000) % 1000:03d}"
        lines = [
            (
                f"{stamp} {'INFO' if verdict.event == 'delivered' else 'WARNING'} outmail.delivery "
                f"{line(item, recipient, verdict)}\n"
            )
            for item in items
            for recipient, verdict in item.verdicts
        ]
        try:
            self._stream.write("".join(lines))
            self._stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads the log any more; deliveries go on


def line(item: Settled, recipient: Leased, verdict: Verdict) -> str:
    """logfmt for one attempt of one recipient."""
    delivery, outcome = item.delivery, recipient.outcome
    assert outcome is not None
    code = f" code={outcome.reply.code}" if outcome.reply.code else ""
    text = f" text={_quoted(outcome.reply.text)}" if outcome.reply.text else ""
    return (
        f"status={_STATUS[verdict.event]} id={delivery.id}/{recipient.n} to={_quoted(recipient.address)} "
        f"msgid={_written(delivery.message_id)}"
        f" from={_quoted(delivery.sender or '<>')} via={_quoted(f'{delivery.destination}:{delivery.host}')} "
        f"attempts={recipient.attempts + 1}"
        f" delay={human_span(item.at - delivery.accepted_at)}{code}{text}"
    )


@lru_cache(2048)
def _quoted(value: str) -> str:
    """Cached, because addresses, routes and server texts repeat themselves."""
    return _written(value)


def _written(value: str) -> str:
    return (
        value
        if _PLAIN.fullmatch(value)
        else '"' + plain_line(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
    )
