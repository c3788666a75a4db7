"""The delivery log: one logfmt line per attempt and outcome on the logger ``outmail.delivery``.

Fields: status, id, to, msgid, from, via, attempts, delay, code, text. Nothing is formatted when nobody listens.
"""

from __future__ import annotations

import logging
import re

from outmail.clock import human_span
from outmail.model import Settled

logger = logging.getLogger("outmail.delivery")
_PLAIN = re.compile(r"[!#-<>-~]+")
_STATUS = {"delivered": "delivered", "refused": "failed", "deferred": "deferred", "unknown": "uncertain", "expired": "failed"}


def observe(item: Settled) -> None:
    """Log what was settled."""
    if not logger.isEnabledFor(logging.INFO):
        return
    delivery = item.delivery
    for recipient, verdict in item.verdicts:
        outcome = recipient.outcome
        assert outcome is not None
        fields = {
            "status": _STATUS[verdict.event], "id": f"{delivery.id}/{recipient.n}", "to": recipient.address, "msgid": delivery.message_id,
            "from": delivery.sender or "<>", "via": f"{delivery.destination}:{delivery.host}", "attempts": str(recipient.attempts + 1),
            "delay": human_span(item.at - delivery.accepted_at), "code": str(outcome.reply.code or ""), "text": outcome.reply.text,
        }  # fmt: skip
        level = logging.INFO if verdict.event == "delivered" else logging.WARNING
        logger.log(level, " ".join(f"{key}={_quoted(value)}" for key, value in fields.items() if value))


def _quoted(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
