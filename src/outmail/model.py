"""The nouns: the values that are stored, attempted, found out and reported.

Promises: plain values whose only behaviour is to become the JSON of the interface. Nobody changes a value
that was handed out. (Those that are made once for each message are not frozen, because that costs
microseconds each; `Leased` and `Delivery` belong to one engine.) ``None`` occurs only where the docs say so.
Times are milliseconds UTC (`outmail.clock`), spans are milliseconds.
Does not: any I/O. Of outmail it imports only the clock's formats and the words of the lifecycle.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from outmail.clock import as_datetime, rfc3339
from outmail.lifecycle import FINAL, State

PRIORITIES = ("high", "normal", "low")
#: What a next hop must be able to do for a message (`Message.needs`).
NEEDS_8BIT = 1
NEEDS_UTF8 = 2

_ALPHABET = "0123456789abcdefghijklmnopqrstuv"


_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]


def _base32hex(number: int) -> str:
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in range(120, -1, -10)])


_AHEAD = 64
#: Random parts of the next ids. Asking the system for each one would cost more than all the rest.
_chances: list[str] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_chances.clear)


def new_id(now: int) -> str:
    """26 characters of base32hex: 48 bits of time, 80 random bits; sorts by time."""
    while True:
        try:
            return _time_part(now) + _chances.pop()
        except IndexError:
            numbers = struct.unpack(f"{8 * _AHEAD}H", os.urandom(16 * _AHEAD))
            pairs = [_PAIRS[number & 1023] for number in numbers]
            _chances.extend(["".join(pairs[i : i + 8]) for i in range(0, len(pairs), 8)])


@lru_cache(8)
def _time_part(now: int) -> str:
    return _base32hex(now << 82)[:10]


def keyed_id(key: str, namespace: str = "") -> str:
    """The id of a message with an idempotency key. It is the same on every host, and ids are unique in a
    store, so a key is used once.
    """
    digest = hashlib.sha256(
        b"outmail key\0" + namespace.encode() + b"\0" + key.encode("utf-8", "surrogatepass")
    ).digest()
    return _base32hex(int.from_bytes(digest[:17], "big") >> 6)


def is_id(text: str) -> bool:
    """True for the id of a message or of a recipient (``<id>/<n>``)."""
    head, slash, n = text.partition("/")
    return len(head) == 26 and not head.strip(_ALPHABET) and (not slash or n.isdecimal())


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server said. ``code`` is 0 when no server said anything; ``text`` is then our own."""

    code: int
    text: str
    enhanced: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code or None, "enhanced": self.enhanced or None, "text": self.text}

    def __str__(self) -> str:
        return " ".join(part for part in (str(self.code or ""), self.enhanced, self.text) if part)


Kind = Literal["delivered", "deferred", "refused", "unknown"]
Scope = Literal["recipient", "message", "destination", "session"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt found out about a recipient. A failed delivery is this value, never an exception.

    ``stage`` is the step of the dialogue: connect, banner, ehlo, tls, auth, mail, rcpt, data, dot, local.
    An outcome of scope ``session`` says nothing about the mail, and is charged no attempt.
    ``fault`` is True when the connection or a handshake failed; that is what opens a circuit breaker.
    """

    kind: Kind
    scope: Scope
    stage: str
    reply: Reply
    fault: bool = False


@dataclass(frozen=True, slots=True)
class Dsn:
    """Which delivery status notifications the sender asks for (RFC 3461).

    ``notify``: "never", or words of "success,failure,delay". ``ret``: "full" or "hdrs". ``envid``: any
    printable text. ``each``: recipients with requests of their own, as address → (notify, original recipient
    as ``type;xtext``; either may be "").
    """

    notify: str = ""
    ret: str = ""
    envid: str = ""
    each: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(slots=True)
class Recipient:
    """One address of one message when it is accepted. ``destination`` is the name of its route."""

    address: str
    destination: str
    suppressed: str = ""


@dataclass(slots=True)
class Message:
    """A complete message, as acceptance gives it to a store: immutable bytes with an envelope. ``replaced``:
    the Message-ID that it came with, if it has got another.
    """

    id: str
    content: bytes
    sender: str
    recipients: tuple[Recipient, ...]
    message_id: str
    subject: str
    sha256: bytes
    needs: int
    accepted_at: int
    due: int
    expires_at: int
    priority: int = 1
    key: str | None = None
    tag: str | None = None
    dsn: Dsn | None = None
    replaced: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Receipt:
    """What the caller gets for an accepted message.

    ``durable``: True when the commit has reached the disk. ``duplicate``: True when the key was known and
    nothing was added.
    """

    id: str
    message_id: str
    accepted_at: datetime
    durable: bool = True
    duplicate: bool = False

    def __repr__(self) -> str:
        how = ("durable" if self.durable else "not durable yet") + (", duplicate" if self.duplicate else "")
        return f"<Receipt {self.id}, accepted {self.accepted_at:%Y-%m-%d %H:%M:%SZ}, {how}>"


@dataclass(slots=True, eq=False)
class Leased:
    """One recipient that an engine has leased. The transport sets ``outcome``; ``dotted`` is set when its
    final dot is recorded.
    """

    n: int
    address: str
    attempts: int
    uncertain: bool
    losses: int
    outcome: Outcome | None = None
    dotted: bool = False
    copy: int = 0


@dataclass(slots=True, eq=False)
class Copies:
    """The loopback copies of one delivery. ``address`` makes the one for a transaction, by its number;
    ``sent`` has when (ms) each of their final dots went out. ``by_id``: they are known by the message's
    Message-ID alone, and prove nothing about a transaction. ``asks_first``: must the relay accept a recipient
    before DATA is sent? ``refused``: what the relay said to a copy; then there are no more.
    """

    address: Callable[[int], str]
    by_id: bool = False
    asks_first: Callable[[], bool] = lambda: False
    made: int = 0
    sent: dict[int, int] = field(default_factory=dict)
    refused: Reply | None = None


@dataclass(slots=True, eq=False)
class Delivery:
    """Recipients of one message that go to one destination in one transaction."""

    seq: int
    id: str
    lease: int
    destination: str
    sender: str
    content: bytes
    sha256: bytes
    needs: int
    message_id: str
    accepted_at: int
    expires_at: int
    recipients: list[Leased]
    started: float = 0.0
    host: str = ""
    dsn: Dsn | None = None
    transcript: list[tuple[int, str, bytes]] = field(default_factory=list)
    #: The number of the engine that leased it; together with ``lease`` it identifies the lease.
    owner: int = 0
    #: How long (ms) after its acceptance the message may wait.
    life: int = 0
    tag: str | None = None
    #: None for mail that goes without a loopback copy.
    copies: Copies | None = None

    def all(self, outcome: Outcome) -> None:
        """Give the same outcome to every recipient that has none yet."""
        for recipient in self.recipients:
            if recipient.outcome is None:
                recipient.outcome = outcome


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done because of an outcome: the change of state, when it is due again, and why."""

    event: str
    due: int = 0
    reason: str = ""
    charged: bool = True


@dataclass(slots=True)
class Settled:
    """A delivery with its verdicts, as an engine gives it to `store.settle`. ``verdicts`` are by
    recipient.
    """

    delivery: Delivery
    verdicts: tuple[tuple[Leased, Verdict], ...]
    at: int
    duration_ms: int
    keep_transcript: bool


@dataclass(frozen=True, slots=True)
class RecipientStatus:
    """The state of one recipient."""

    n: int
    address: str
    state: State
    uncertain: bool
    reason: str
    attempts: int
    next_try_at: int | None
    route: str
    reply: Reply | None

    @property
    def final(self) -> bool:
        return self.state in FINAL

    def as_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "address": self.address,
            "state": self.state,
            "uncertain": self.uncertain,
            "reason": self.reason,
            "attempts": self.attempts,
            "next_try_at": rfc3339(self.next_try_at),
            "route": self.route,
            "reply": self.reply.as_dict() if self.reply else None,
        }


@dataclass(frozen=True, slots=True, repr=False)
class Status:
    """A message with the states of its recipients. ``status`` is derived, never stored."""

    id: str
    message_id: str
    sender: str
    subject: str
    size: int
    sha256: str
    key: str | None
    tag: str | None
    priority: str
    accepted_at: int
    expires_at: int
    recipients: tuple[RecipientStatus, ...]

    def __repr__(self) -> str:
        people = ", ".join(f"{r.address} {r.state}" for r in self.recipients[:3])
        more = f", and {len(self.recipients) - 3} more" if len(self.recipients) > 3 else ""
        return f"<Status {self.id} {self.status}: {self.subject[:60]!r} to {people}{more}>"

    @property
    def status(self) -> str:
        """The recipients' state if all have the same one, else ``mixed``."""
        states = {recipient.state for recipient in self.recipients}
        return states.pop() if len(states) == 1 else "mixed"

    @property
    def settled(self) -> bool:
        """True when every recipient is final or held: nothing more will happen by itself."""
        return all(r.final or r.state == "held" for r in self.recipients)

    def as_dict(self) -> dict[str, Any]:
        return {
            "v": 1,
            "id": self.id,
            "message_id": self.message_id,
            "sender": self.sender,
            "subject": self.subject,
            "size": self.size,
            "sha256": self.sha256,
            "key": self.key,
            "tag": self.tag,
            "priority": self.priority,
            "accepted_at": rfc3339(self.accepted_at),
            "expires_at": rfc3339(self.expires_at),
            "status": self.status,
            "recipients": [recipient.as_dict() for recipient in self.recipients],
        }


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try for one or more recipients of a message, with its dialogue as far as that was kept."""

    at: int
    recipients: tuple[int, ...]
    route: str
    host: str
    duration_ms: int
    outcome: str
    reply: Reply
    transcript: tuple[Mapping[str, Any], ...]

    @property
    def where(self) -> str:
        """The server, for people, with the name of a relay that is not the default:
        ``mx.example.org (backup)``.
        """
        if not self.host:
            return self.route
        named = self.route != "default" and ":" not in self.route  # a URL says no more than the host
        return f"{self.host} ({self.route})" if named else self.host

    def as_dict(self) -> dict[str, Any]:
        return {
            "v": 1,
            "at": rfc3339(self.at),
            "recipients": list(self.recipients),
            "route": self.route,
            "host": self.host,
            "duration_ms": self.duration_ms,
            "outcome": self.outcome,
            "reply": self.reply.as_dict(),
            "transcript": [dict(line) for line in self.transcript],
        }


@dataclass(frozen=True, slots=True)
class Event:
    """One change, stored in the same transaction as the change itself.

    ``route``: the new route of a recipient; or the name of a next hop that was paused or answers again; then
    ``id`` and ``state`` are None. ``address`` is None when the event is about a whole message.
    """

    cursor: int
    at: int
    event: str
    id: str | None
    n: int | None
    address: str | None
    state: State | None
    uncertain: bool
    reason: str
    attempts: int
    reply: Reply | None
    route: str | None = None

    @property
    def when(self) -> datetime:
        return as_datetime(self.at)

    def as_dict(self) -> dict[str, Any]:
        return {
            "v": 1,
            "cursor": self.cursor,
            "at": rfc3339(self.at),
            "event": self.event,
            "id": self.id,
            "n": self.n,
            "address": self.address,
            "state": self.state,
            "uncertain": self.uncertain,
            "reason": self.reason,
            "attempts": self.attempts,
            "reply": self.reply.as_dict() if self.reply else None,
            "route": self.route,
        }


@dataclass(frozen=True, slots=True)
class Term:
    """One word of a filter: ``field:value``, perhaps negated."""

    field: str
    value: Any
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Filter:
    """The recipients that an operation is about. The terms are and-ed; without terms all recipients match."""

    terms: tuple[Term, ...] = ()
    #: (message id, recipient number or None) pairs, or-ed; empty = any.
    ids: tuple[tuple[str, int | None], ...] = ()
