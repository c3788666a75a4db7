"""What to do when a test message was not accepted: one or two sentences for each kind of trouble.

Promises: pure. Each problem of a certificate, each port that speaks another protocol than the URL says, and
each step that failed has its own advice. Does not: connect (`transport.probe` has done that).
"""

from __future__ import annotations

from outmail.model import Outcome
from outmail.policy.route import Relay
from outmail.transport.certificate import day
from outmail.transport.probe import Seen


def advice(outcome: Outcome, relay: Relay, seen: Seen | None) -> str:
    """Sentences for a person. ``seen``: what answers at the relay's address, if somebody has looked."""
    said = str(outcome.reply)
    if seen is not None and (found := _wrong_protocol(relay, seen)):
        return found
    if outcome.stage == "tls" and "certificate" in said:
        return _certificate(said, relay, seen)
    for stage, mark, words in _ADVICE:
        if outcome.stage in stage.split() and mark in said:
            return words
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


def _certificate(said: str, relay: Relay, seen: Seen | None) -> str:
    shown = seen.certificate if seen is not None else None
    if "has expired" in said:
        when = f" on {day(shown.ends)}" if shown and shown.ends else ""
        return (
            f"The relay's certificate expired{when}. Ask its operator to renew it; until then nothing is "
            f"sent, and mail waits. (Does this machine's clock go right?)"
        )
    if "not yet valid" in said:
        when = f" before {day(shown.begins)}" if shown and shown.begins else " yet"
        return f"The relay's certificate is not valid{when}: check this machine's clock first."
    if "mismatch" in said:
        names = f" It is for {', '.join(shown.names[:5])}." if shown and shown.names else ""
        return (
            f"The certificate is for another name than {relay.host}.{names} Write the name that it has into "
            f"the relay's URL."
        )
    if "SHA-256" in said:
        return (
            "The relay shows another certificate than the one pinned by `fingerprint`: if its operator says "
            "that it was renewed, write the new one."
        )
    by = f" ({shown.issuer})" if shown and shown.issuer else ""
    return (
        f"This machine does not know who signed the relay's certificate{by}: give that authority's "
        f"certificate as `ca` in the relay's table, or pin this one with `fingerprint`."
    )


#: (stages of the dialogue, text in the reply, what to do). The first one that matches is used.
_ADVICE = (
    (
        "tls",
        "STARTTLS",
        "The relay offers no encryption: use smtps:// if it has that, or smtp+plain:// if the line is safe.",
    ),
    ("connect", "refused", "Nobody listens there: check host and port, and that the server runs."),
    (
        "connect",
        "no connection",
        "No answer: a firewall, or your provider blocks this port; 587 and 465 are rarely blocked.",
    ),
    ("connect", "Name or service", "The host name is unknown: check its spelling and the machine's DNS."),
    ("connect", "no address", "The host name is unknown: check its spelling and the machine's DNS."),
    ("connect", "name resolution", "The machine's DNS does not answer: check its network."),
    (
        "banner",
        "no answer",
        "Somebody accepts the connection and says nothing: check the port, or a firewall stands in between.",
    ),
    (
        "auth",
        "without TLS",
        "The relay offers no encryption, so the password was not sent: use smtps://, or insecure_auth where "
        "the line is safe.",
    ),
    ("auth", "no common way", "The relay offers no way to log in that outmail knows: try port 587 or 465."),
    (
        "auth",
        "",
        "The relay does not accept user name or password. Many providers want a password made for programs "
        "(an app password) instead of your own.",
    ),
    (
        "mail",
        "",
        "The relay does not accept the sender: use -f with an address that your account may send as, and set "
        "`from`.",
    ),
    ("rcpt", "451", "The relay asks to try again later (often greylisting): the queue would do so."),
    (
        "rcpt",
        "elay",
        "The relay does not send to other domains for you: log in (a user in the URL, and a password), or "
        "ask its operator to allow this machine.",
    ),
    ("mail rcpt data dot", "451", "The relay asks to try again later: the queue would do so."),
)
