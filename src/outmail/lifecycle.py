"""The life of one recipient: six states, and the only functions that go from one to another.

Rules of this file
  1. Every change of state anywhere in outmail is one of the named functions below. A store's WHERE clauses
     are checked against `ARROWS`, its CHECK constraint against `STATES`, and the drawing in the docs is
     printed from `ARROWS`.
  2. An event that is not listed for the present state raises `Illegal` and changes nothing.

Theory of operation
  A recipient waits (QUEUED). One engine leases it (SENDING). The answer of the next hop makes it DELIVERED or
  FAILED, or it goes back to wait (QUEUED). Two facts are kept with the state. ``uncertain``: a final dot was
  sent and no answer was recorded, so the next hop may have the mail. No later event can make that untrue; the
  mark is set once and never cleared. ``losses``: how many engines died while they worked on the recipient. A
  first loss makes it a *suspect*, which is leased alone; the third loss holds it as *poison*. So a message
  that kills engines takes no other mail with it. Any settle clears the suspicion. What was leased and never
  begun is not suspected (decision 6).
  While a recipient is SENDING, only the engine may move it. An operator's hold or cancel becomes a ``wish``,
  and every arrow from SENDING back to QUEUED fulfils it. A new route is a wish, too, without a word of its
  own: ``route`` says where the recipient goes when it is leased the next time; an attempt under way keeps the
  route it was leased with.

Does not: know time, SQL or SMTP. When something is due, and why, is decided by `policy.retry` and passed in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

QUEUED: Final = "queued"
SENDING: Final = "sending"
HELD: Final = "held"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
DELIVERED: Final = "delivered"

State = Literal["queued", "sending", "held", "failed", "cancelled", "delivered"]
Wish = Literal["hold", "cancel"]

STATES: tuple[State, ...] = (QUEUED, SENDING, HELD, FAILED, CANCELLED, DELIVERED)
FINAL: frozenset[State] = frozenset((FAILED, CANCELLED, DELIVERED))

#: event → from → the states it may lead to. An arrow SENDING → SENDING is an operator's wish.
ARROWS: dict[str, dict[State, tuple[State, ...]]] = {
    "lease": {QUEUED: (SENDING,)},
    "delivered": {SENDING: (DELIVERED,)},
    "refused": {SENDING: (FAILED,)},
    "deferred": {SENDING: (QUEUED, HELD, CANCELLED)},
    "unknown": {SENDING: (QUEUED, HELD, CANCELLED)},
    "returned": {SENDING: (QUEUED, HELD, CANCELLED)},
    "lost": {SENDING: (QUEUED, HELD, CANCELLED)},
    "confirm": {QUEUED: (DELIVERED,), SENDING: (DELIVERED,), HELD: (DELIVERED,)},
    "expired": {QUEUED: (FAILED,), HELD: (FAILED,), SENDING: (FAILED,)},
    "due": {QUEUED: (QUEUED,)},
    "suppress": {QUEUED: (FAILED,)},
    "hold": {QUEUED: (HELD,), SENDING: (SENDING,)},
    "release": {HELD: (QUEUED,), SENDING: (SENDING,)},
    "cancel": {QUEUED: (CANCELLED,), HELD: (CANCELLED,), SENDING: (SENDING,)},
    "reroute": {QUEUED: (QUEUED,), HELD: (HELD,), SENDING: (SENDING,)},
    "superseded": {QUEUED: (CANCELLED,), HELD: (CANCELLED,), SENDING: (SENDING,)},
    "quarantine": {QUEUED: (HELD,), SENDING: (HELD,)},
    "requeue": {FAILED: (QUEUED,), CANCELLED: (QUEUED,)},
}

#: These arrows are recorded by the attempt, not by an event row.
SILENT: frozenset[str] = frozenset(("lease", "returned"))

#: When the third engine dies while it works on a recipient, the recipient is held as poison.
POISON_LOSSES = 3


#: Why a recipient is CANCELLED.
BY_OPERATOR = "cancelled by operator"
REPLACED = "replaced by a newer one"


class Illegal(Exception):
    """This event is not possible in this state; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of a recipient: the part of its row that the lifecycle owns."""

    state: State = QUEUED
    reason: str = ""
    uncertain: bool = False
    losses: int = 0
    wish: Wish | None = None
    #: The route that its next lease takes; of a DELIVERED recipient the one that delivered it.
    route: str = ""


def _step(now: Standing, event: str, to: State, reason: str, **changes: object) -> Standing:
    if to not in ARROWS[event].get(now.state, ()):
        raise Illegal(f"{event}: not possible from {now.state} to {to}")
    return replace(now, state=to, reason=reason, **changes)  # type: ignore[arg-type]


def _back(now: Standing, event: str, reason: str, **changes: object) -> Standing:
    """From SENDING back to QUEUED, or to what the wish says."""
    if now.wish == "cancel":
        why = REPLACED if now.reason == REPLACED else BY_OPERATOR
        return _step(now, event, CANCELLED, why, wish=None, **changes)
    if now.wish == "hold":
        return _step(now, event, HELD, "operator", wish=None, **changes)
    return _step(now, event, QUEUED, reason, wish=None, **changes)


def lease(now: Standing) -> Standing:
    """An engine took it."""
    return _step(now, "lease", SENDING, now.reason)


def delivered(now: Standing, route: str = "") -> Standing:
    """The next hop answered 2xx. ``route``: the one that the attempt took; "" where it is the present one."""
    return _step(now, "delivered", DELIVERED, "", losses=0, wish=None, route=route or now.route)


def refused(now: Standing, reason: str) -> Standing:
    """The next hop answered 5xx."""
    return _step(now, "refused", FAILED, reason, losses=0, wish=None)


def deferred(now: Standing, reason: str) -> Standing:
    """The next hop answered 4xx, or the connection failed."""
    return _back(now, "deferred", reason, losses=0)


def unknown(now: Standing, reason: str, *, hold: bool) -> Standing:
    """The final dot was sent and no reply came."""
    if hold and now.wish != "cancel":
        return _step(now, "unknown", HELD, "uncertain", uncertain=True, losses=0, wish=None)
    return _back(now, "unknown", reason, uncertain=True, losses=0)


def returned(now: Standing, why: str = "") -> Standing:
    """Put back untried. The reason why the recipient waits stays, unless the return has a reason of its
    own.
    """
    return _back(now, "returned", why or now.reason)


def lost(now: Standing, *, dot: bool, begun: bool, hold: bool) -> Standing:
    """The engine that leased it is dead. ``dot``: it had recorded a final dot. ``begun``: it died while it
    worked on this recipient.
    """
    losses = now.losses + begun
    marked = now.uncertain or dot
    if begun and losses >= POISON_LOSSES and now.wish != "cancel":
        return _step(now, "lost", HELD, "poison", uncertain=marked, losses=losses, wish=None)
    if dot and hold and now.wish != "cancel":
        return _step(now, "lost", HELD, "uncertain", uncertain=True, losses=losses, wish=None)
    return _back(now, "lost", "engine lost", uncertain=marked, losses=losses)


def confirm(now: Standing, route: str = "") -> Standing:
    """It turned out that an uncertain delivery happened. ``route``: the route that it took, if known."""
    if not now.uncertain:
        raise Illegal("confirm: only a recipient marked uncertain can be confirmed")
    return _step(now, "confirm", DELIVERED, "confirmed", wish=None, losses=0, route=route or now.route)


def expired(now: Standing, reason: str) -> Standing:
    """It is too old, or its last attempt was deferred; then its engine has lived to say so."""
    losses = 0 if now.state == SENDING else now.losses
    return _step(now, "expired", FAILED, reason, wish=None, losses=losses)


def due(now: Standing) -> Standing:
    """Try now."""
    return _step(now, "due", QUEUED, now.reason)


def suppress(now: Standing, reason: str) -> Standing:
    """It must not be contacted at all."""
    return _step(now, "suppress", FAILED, reason)


def hold(now: Standing) -> Standing:
    """An operator stops it."""
    if now.state == SENDING:
        if now.wish == "cancel":
            raise Illegal("hold: it is to be cancelled")
        return _step(now, "hold", SENDING, now.reason, wish="hold")
    return _step(now, "hold", HELD, "operator")


def release(now: Standing) -> Standing:
    """An operator lets it continue. Poison and corruption are forgiven once."""
    if now.state == SENDING:
        if now.wish != "hold":
            raise Illegal("release: nothing to release")
        return _step(now, "release", SENDING, now.reason, wish=None)
    return _step(now, "release", QUEUED, "", losses=0)


def cancel(now: Standing) -> Standing:
    """An operator ends it."""
    if now.state == SENDING:
        return _step(now, "cancel", SENDING, now.reason, wish="cancel")
    return _step(now, "cancel", CANCELLED, BY_OPERATOR)


def superseded(now: Standing) -> Standing:
    """The sender has said something newer instead. During SENDING the reason stands beside the wish."""
    if now.state == SENDING:
        if now.wish == "cancel":
            raise Illegal("superseded: it is to be cancelled")
        return _step(now, "superseded", SENDING, REPLACED, wish="cancel")
    return _step(now, "superseded", CANCELLED, REPLACED)


def reroute(now: Standing, route: str) -> Standing:
    """An operator gives it another route. The reason for waiting spoke of the old one; losses and the mark
    stay, because they are about the message.
    """
    if now.route == route:
        raise Illegal("reroute: it takes this route already")
    if now.wish == "cancel":
        raise Illegal("reroute: it is to be cancelled")
    reason = "" if now.state == QUEUED else now.reason
    return _step(now, "reroute", now.state, reason, route=route)


def quarantine(now: Standing, reason: str = "corrupt") -> Standing:
    """The content is unreadable or its hash is wrong."""
    return _step(now, "quarantine", HELD, reason, losses=0, wish=None)


def requeue(now: Standing) -> Standing:
    """An operator gives it a second chance: age and attempts start again."""
    return _step(now, "requeue", QUEUED, "", losses=0)


def sources(event: str) -> tuple[State, ...]:
    """The states from which ``event`` is possible. A store's WHERE clause must name them."""
    return tuple(ARROWS[event])


def diagram() -> str:
    """The table as a Mermaid state diagram. The docs contain its output; a test compares them."""
    lines = ["stateDiagram-v2", "    [*] --> queued : accepted"]
    for event, arrows in ARROWS.items():
        for origin, targets in arrows.items():
            lines += [f"    {origin} --> {target} : {event}" for target in targets]
    lines += [f"    {state} --> [*]" for state in STATES if state in FINAL]
    return "\n".join(lines)
