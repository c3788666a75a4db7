"""What to do when a test message was not accepted, in one or two sentences.

Promises: pure. A port that speaks another protocol than the URL says is recognised; everything else is told
by the relay's reply, or by the words that stand where no server answered. Does not: know what replies mean
(`policy.replies`), or connect (`transport.probe` has done that).
"""

from __future__ import annotations

from outmail.model import Outcome
from outmail.policy.replies import explained, trouble
from outmail.policy.route import Relay
from outmail.transport.probe import Seen

#: What any refusal of MAIL FROM means, whatever the code says.
_SENDER = (
    "The relay does not accept the sender: use -f with an address that your account may send as, and set "
    "`from`."
)
#: A test message is not in the queue.
_QUEUED = ("Nothing, the queue tries again", "Mail in the queue is tried again")


def advice(outcome: Outcome, relay: Relay, seen: Seen | None) -> str:
    """Sentences for a person. ``seen``: what answers at the relay's address, if somebody has looked."""
    if seen is not None and (found := _wrong_protocol(relay, seen)):
        return found
    reply = outcome.reply
    if not reply.code and (known := trouble(reply.text)):
        return f"Relay {relay.host or relay.path}: {known[0].rstrip('.')}. {known[1]}"
    if outcome.stage == "mail" and reply.code // 100 == 5:
        return _SENDER
    if not reply.code:
        return f"No answer came: {reply.text}."
    if told := explained(reply):
        return f"{told.cause} {told.remedy.replace(*_QUEUED)}".strip()
    return "The relay's own words above say why."


def _wrong_protocol(relay: Relay, seen: Seen) -> str:
    where = f"{relay.host}:{relay.port}"
    user = f"{relay.user}@" if relay.user else ""
    if relay.tls == "implicit" and seen.speaks == "smtp":
        better = f"smtp://{user}{where}" if seen.starttls else f"smtp+plain://{user}{where}"
        kind = "STARTTLS: it begins in clear and encrypts then" if seen.starttls else "SMTP without TLS"
        return (
            f"{where} speaks {kind}; smtps:// means TLS from the first byte. Use {better}, or smtps:// with "
            f"the port for it (mostly 465)."
        )
    if relay.tls != "implicit" and seen.speaks == "tls":
        return (
            f"{where} speaks TLS from the first byte, and waits for it in silence; smtp:// means a clear "
            f"beginning. Use smtps://{user}{where}."
        )
    if seen.speaks == "other":
        return f"What answers at {where} is no mail server: check the port (587, 465 or 25)."
    return ""
