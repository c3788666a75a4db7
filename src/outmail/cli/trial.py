"""``outmail test``: send one message straight to the relay, and show every step and the whole dialogue.

Promises: the message is never in a queue. The last sentence says what happened to it. ``[safety]`` holds.
Each problem has its own advice; for that, outmail looks at the relay's address once more, without password
and mail. Fails: 69 when the relay refused, 75 when it may work later. Does not: try again, or write to the
store.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import re
import sys
from collections.abc import Callable, Sequence

from outmail.cli.advice import advice
from outmail.cli.common import config_of, is_there, queue_of, tell_ahead
from outmail.cli.exits import EX_TEMPFAIL, EX_UNAVAILABLE
from outmail.clock import Clock
from outmail.config import Config
from outmail.errors import ConfigError, NotStored, Refused
from outmail.intake import api
from outmail.model import NEEDS_UTF8, Delivery, Leased, Outcome, Reply
from outmail.outbox.direct import local_sender
from outmail.policy.plain import plain_line
from outmail.policy.route import Relay, Routes, allowed
from outmail.transport import probe
from outmail.wiring import transports

Lines = Sequence[tuple[int, str, bytes]]
#: Seconds without a greeting after which the address is looked at.
SILENT = 4.0
_QUEUE_ID = re.compile(r"queued (?:mail for delivery as|as)\s+(\S+)|\bid=(\S+)|\bqueued:?\s+id\s+(\S+)", re.I)


def test(arguments: argparse.Namespace) -> int:
    """Send a test message now."""
    config = config_of(arguments)
    outcome, delivery = attempted(config, arguments.to, arguments.sender, arguments.relay)
    _tell_ahead(arguments, config)
    return verdict(outcome, delivery)


def attempted(
    config: Config,
    to: str,
    sender: str | None,
    named_relay: str | None = None,
    *,
    routes: Routes | None = None,
    brief: bool = False,
) -> tuple[Outcome, Delivery]:
    """Send the message, and print every step. ``named_relay``: what the caller calls the relay `default`;
    ``routes``: the configuration's, with their passwords; ``brief``: the dialogue of a failure only.
    """
    delivery = _message(config, to, sender)
    relays = (routes or config.with_passwords(config.routes)).resolve(delivery.destination)
    _tell(f"a test message from {delivery.sender or '<>'} to {delivery.recipients[0].address}")
    for relay in relays:
        named = named_relay if named_relay and relay.name == "default" else relay.name
        outcome = asyncio.run(_tried(relay, named, config, delivery, brief=brief))
        if outcome.kind != "deferred" or outcome.scope != "destination":
            break
    return outcome, delivery


def _message(config: Config, asked: str, sender: str | None) -> Delivery:
    """The message. It is in no store, so it has no number there."""
    now = Clock().now()
    to = config.redirect_to or asked
    draft = api.composed(
        now,
        config.hostname,
        config.origin,
        to=to,
        subject="outmail test",
        text="This is a test message of outmail: this relay accepts mail.\n",
        sender=sender or config.sender or local_sender(config),
    )
    if len(draft.recipients) != 1:
        raise Refused("--to takes one address", code="bad-address")
    address = draft.recipients[0]
    if config.redirect_to:
        _tell(f"[safety] redirect_to: it goes to {config.redirect_to} instead of {asked}")
    elif not allowed(config.only_to, address):
        raise Refused(f"[safety] only_to does not allow mail to {address}", code="bad-address")
    return Delivery(
        0,
        draft.id or "",
        0,
        config.routes.choose(draft.sender, address, None),
        draft.sender,
        draft.content,
        hashlib.sha256(draft.content).digest(),
        0 if draft.sender.isascii() else NEEDS_UTF8,
        draft.head.message_id if draft.head else "",
        now,
        now,
        [Leased(1, address, 0, False, 0)],
    )


class _Feed:
    """What the session sees: one message (`transport.Feed`)."""

    ahead = False

    def __init__(self, delivery: Delivery) -> None:
        self.delivery: Delivery | None = delivery
        self.transcript: Lines = ()
        self.failure: Outcome | None = None

    def refuses_ahead(self, reply: Reply) -> None:
        """Nothing is sent ahead."""

    def take_now(self) -> Delivery | None:
        delivery, self.delivery = self.delivery, None
        return delivery

    def ask(self, then: Callable[[Delivery | None], None]) -> None:
        asyncio.get_running_loop().call_soon(then, self.take_now())

    def leave(self) -> None:
        """Nothing: no other session waits for a message."""

    def dot(self, delivery: Delivery, recipients: Sequence[Leased], then: Callable[[bool], None]) -> None:
        then(True)

    def done(self, delivery: Delivery) -> None:
        """Its recipient has the outcome."""

    def healthy(self, greeting: Lines = ()) -> None:
        self.transcript = list(greeting)

    def failed(self, outcome: Outcome, transcript: Lines = ()) -> None:
        self.failure, self.transcript = outcome, list(transcript)


async def _tried(relay: Relay, named: str, config: Config, delivery: Delivery, *, brief: bool) -> Outcome:
    """Try one relay, and print the steps, the dialogue and the advice. ``named``: as the caller says it."""
    _tell(f"relay {relay.url}" if named == relay.url else f"relay {named}: {relay.url}")
    delivery.recipients[0].outcome = None
    feed = _Feed(delivery)
    session = asyncio.ensure_future(transports(config)(relay).session(feed))
    seen = await _until_over(session, relay, config, feed)
    outcome = delivery.recipients[0].outcome or feed.failure or _SILENCE
    if outcome.fault and outcome.stage in ("banner", "tls") and seen is None and relay.host:
        seen = await _look(relay, config)
    _tell_steps(feed.transcript, outcome)
    shown = not brief or outcome.kind != "delivered"
    if shown and (feed.transcript or delivery.transcript):
        _tell("the dialogue (milliseconds; C: this machine, S: the relay):")
    for ms, direction, line in (*feed.transcript, *delivery.transcript):
        for part in line.decode("utf-8", "replace").split("\n"):
            _tell(f"{ms:>6} {direction}: {part}")
    if outcome.kind != "delivered":
        _tell(f"{delivery.recipients[0].address}: {_STANDS[outcome.kind]}. {advice(outcome, relay, seen)}")
    return outcome


async def _look(relay: Relay, config: Config, *, silent: bool = False) -> probe.Seen:
    encrypted = silent or relay.tls == "implicit"
    return await probe.look(relay.host, relay.port, config.hostname or "localhost", encrypted=encrypted)


#: The outcome of a session that was ended, because the look at the address explained the silence.
_SILENCE = Outcome(
    "deferred",
    "destination",
    "banner",
    Reply(0, f"no greeting within {SILENT:g} s: the server waits for the first word"),
    fault=True,
)
_STANDS = {"refused": "refused", "deferred": "not taken", "unknown": "uncertain"}


async def _until_over(
    session: asyncio.Future[None], relay: Relay, config: Config, feed: _Feed
) -> probe.Seen | None:
    """Wait for the session. When nothing arrives for a while, look at the address, and end the session if
    that explains the silence.
    """
    seen = None
    await asyncio.wait([session], timeout=SILENT)
    if not session.done() and not feed.transcript and relay.host and relay.tls != "implicit":
        _tell("no greeting yet; looking what is there")
        seen = await _look(relay, config, silent=True)
        if seen.speaks == "tls":
            session.cancel()
    await asyncio.wait([session])
    if not session.cancelled():
        session.result()
    return seen


# -- telling -------------------------------------------------------------------------------------------------


def _tell(line: str) -> None:
    print(plain_line(line), file=sys.stderr, flush=True)


def _tell_steps(greeting: Lines, outcome: Outcome) -> None:
    """Print which steps worked, and which one failed."""
    for name, words in _steps(greeting):
        _tell(f"  ok     {name:<9} {words}")
    if outcome.kind == "delivered":
        _tell(f"  ok     {'message':<9} {outcome.reply}")
    else:
        name = _NAMES.get(outcome.stage, outcome.stage)
        _tell(f"  FAILED {name:<9} {outcome.reply}")


_NAMES = {
    "connect": "connect",
    "banner": "greeting",
    "ehlo": "EHLO",
    "tls": "TLS",
    "auth": "AUTH",
    "mail": "MAIL FROM",
    "rcpt": "RCPT TO",
    "data": "DATA",
    "dot": "message",
}


def _steps(greeting: Lines) -> list[tuple[str, str]]:
    """The steps of a transcript that worked: (name, text)."""
    found: list[tuple[str, str]] = []
    asked = "greeting"
    for _, direction, raw in greeting:
        line = raw.decode("utf-8", "replace")
        if line.startswith("(connected to "):
            found.append(("connect", line.strip("()").removeprefix("connected ")))
        elif line.startswith("("):
            found.append(("TLS", line.strip("()")))
        elif direction == "C":
            asked = line.partition(" ")[0]
            mechanism = line.split(" ")[1] if asked == "AUTH" else ""
        elif line[:1] != "2":
            continue
        elif asked == "greeting":
            found.append(("greeting", line))
        elif asked in ("EHLO", "LHLO", "HELO"):
            offers = [part[4:] for part in line.split("\n")[1:]]
            found.append((asked, f"offers {', '.join(offers)}" if offers else "offers no extension"))
        elif asked == "AUTH":
            found.append(("AUTH", f"{mechanism}: {line}"))
    return found


def _tell_ahead(arguments: argparse.Namespace, config: Config) -> None:
    """Print what the queue's engines have learned about this relay."""
    try:
        if not is_there(config.store):
            return
        with queue_of(arguments) as queue:
            tell_ahead(queue)
    except (ConfigError, NotStored) as problem:  # the test itself needs no store
        _tell(f"outmail: what is known of this relay cannot be read: {problem}")


def verdict(outcome: Outcome, delivery: Delivery) -> int:
    """Print the last sentence. Returns the exit status."""
    address = delivery.recipients[0].address
    if outcome.kind == "delivered":
        found = _QUEUE_ID.search(outcome.reply.text)
        name = next(filter(None, found.groups()), "").rstrip(".,;)") if found else ""
        print(plain_line(f"{address}: accepted by the relay: {outcome.reply}"))
        _tell(
            "The relay has the message"
            + (f"; its queue id there is {name}" if name else "")
            + f". The Message-ID is {delivery.message_id}. It was never in the queue of this machine."
        )
        return 0
    if outcome.kind == "unknown":
        _tell("The relay may have the message, and may not. It was never in the queue of this machine.")
        return EX_TEMPFAIL
    _tell("The message is dropped: it was never in the queue, and is not tried again.")
    return EX_UNAVAILABLE if outcome.kind == "refused" else EX_TEMPFAIL
