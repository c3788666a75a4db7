"""What happened to a message, in the order of time, as sentences for a person; and how each recipient stands.

Promises: pure; every fact comes from what the store keeps; what is not on record is not told. What a server's
words mean, and what comes next, is told by `policy.replies` and `policy.story`.
Does not: colour, wrap or mask; texts of servers are passed on as they are (`policy.plain` makes them safe).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from outmail.clock import human_span
from outmail.model import Attempt, Status
from outmail.policy.replies import explained
from outmail.policy.story import When, told


class Happened(NamedTuple):
    """An event of one message. ``n`` is None for the whole message."""

    at: int
    event: str
    n: int | None
    state: str
    reason: str
    #: The new one, of `reroute`.
    route: str = ""


class Copied(NamedTuple):
    """A loopback copy of its transaction. Times are in ms; None while not known."""

    recipients: Sequence[int]
    sent_at: int | None
    home_at: int | None
    hops: Sequence[tuple[str, int | None]]
    missed: bool


#: Events that attempts do not tell.
_WORDS = {
    "suppress": "was not tried at all: {reason}",
    "lost": "the engine that had it died: {reason}",
    "confirm": "is delivered after all: there is evidence that the server had taken it",
    "expired": "was given up: {reason}",
    "due": "was made due at once by an operator",
    "hold": "was held by an operator",
    "release": "was released",
    "cancel": "was cancelled",
    "quarantine": "is held: {reason}",
    "requeue": "begins anew, by an operator",
    "reroute": "was given the route {route} by an operator",
}


def timeline(
    status: Status,
    attempts: Sequence[Attempt],
    events: Sequence[Happened],
    copies: Sequence[Copied],
    now: int,
    when: When,
    how: str = "",
) -> list[str]:
    """One sentence a line, oldest first, and then how each recipient stands. ``how`` it came in, if known."""
    names = {r.n: r.address for r in status.recipients}
    past: list[tuple[int, int, str]] = [(status.accepted_at, 0, _accepted(status, how))]
    for attempt in attempts:
        past.append((attempt.at, 1, _tried(attempt, names)))
    for event in events:
        if event.event == "assigned":
            past.append((event.at, 2, f"got the Message-ID {status.message_id}; {event.reason}"))
        elif event.event in _WORDS and (event.event != "expired" or event.reason == "too old"):
            words = _WORDS[event.event].format(reason=event.reason or event.state, route=event.route)
            past.append((event.at, 2, f"{names.get(event.n or 0, 'it')} {words}"))
    for copy in copies:
        past += _copy(copy, names)
    past.sort(key=lambda line: line[:2])
    lines = [f"{when(at)}  {text}" for at, _, text in past]
    for r in status.recipients:
        lines.append(f"{r.address}: {' '.join(told(status, r, attempts, now, when))}")
    return lines


def _accepted(status: Status, how: str) -> str:
    people = "1 recipient" if len(status.recipients) == 1 else f"{len(status.recipients)} recipients"
    return f"accepted from {status.sender or '<>'}{how and f', {how},'} for {people}"


def _tried(attempt: Attempt, names: dict[int, str]) -> str:
    who = ", ".join(names.get(n, str(n)) for n in attempt.recipients)
    if attempt.outcome == "returned":
        return f"{who}: handed back untried{attempt.reply.text and f' ({attempt.reply.text})'}"
    words = {
        "delivered": "taken",
        "deferred": "put off",
        "refused": "refused",
        "unknown": "no answer to the final dot: it may have been taken or not",
    }.get(attempt.outcome, attempt.outcome)
    found = explained(attempt.reply) if attempt.outcome in ("deferred", "refused") else None
    said = f"; it said: {attempt.reply}" if attempt.reply.code else f": {attempt.reply.text}"
    return f"{who}: {words} by {attempt.where}{said}" + (f". That means: {found.cause}" if found else "")


def _copy(copy: Copied, names: dict[int, str]) -> list[tuple[int, int, str]]:
    who = ", ".join(names.get(n, str(n)) for n in copy.recipients) or "somebody"
    if copy.home_at is not None:
        after = "" if copy.sent_at is None else f" after {_span(copy.home_at - copy.sent_at)}"
        way = " → ".join(_hops(copy.hops))
        return [(copy.home_at, 3, f"{who}: the loopback copy came home{after}{way and f', through {way}'}")]
    if copy.missed and copy.sent_at is not None:
        return [(copy.sent_at, 3, f"{who}: a loopback copy was sent along, and has not come home in time")]
    return []


def _hops(hops: Sequence[tuple[str, int | None]]) -> list[str]:
    """The servers on the way; where one took longer than a second, how long. (Their times are in seconds.)"""
    told, before = [], None
    for name, at in hops:
        wait = at - before if at is not None and before is not None else 0
        if name:
            told.append(f"{name} ({human_span(wait)} later)" if wait > 1000 else name)
        before = at
    return told


def _span(ms: int) -> str:
    return f"{max(0, ms)} ms" if ms < 10_000 else human_span(ms)
