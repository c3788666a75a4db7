"""Mail that waits for a route of which nothing is to be hoped here: found, and told with the command that
moves it.

A relay given in code is a route of its own, named by its URL. When its program has ended, an engine takes
that mail only if it knows the relay, or if the URL asks for no password; and a URL with a slip of the
keyboard never answers.
Promises: a route that a live engine was given is never told of. Where nothing is stranded, finding so costs a
few seeks, however much waits.
Fails: as `Queue` does. Does not: move anything.
"""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from outmail.model import Filter, Term
from outmail.outbox.queue import Queue

#: Why mail waits for a route in vain: no engine knows it; it is a URL that any may try, and does not answer;
#: or the configuration names it, but the engines that run were started before.
Why = Literal["unknown", "silent", "started before"]
_WORDS: dict[Why, str] = {
    "unknown": "which no engine knows. Name it in [relays], or send it another way",
    "silent": (
        "which the configuration does not name and which does not answer. If that relay is wrong, send it "
        "another way"
    ),
    "started before": (
        "which the configuration names and no running engine knows. Start them anew, or send it another way"
    ),
}


@dataclass(frozen=True, slots=True)
class Stranded:
    """A route and how many recipients wait for it."""

    route: str
    recipients: int
    why: Why

    def sentence(self, target: str, *options: str) -> str:
        """What waits, why, and the command that sends it by ``target`` instead."""
        many = "recipient waits" if self.recipients == 1 else "recipients wait"
        command = ["outmail", "queue", "reroute", *options, f"route:{self.route}", target]
        return f"{self.recipients} {many} for {self.route}, {_WORDS[self.why]}: {shlex.join(command)}"


def stranded(queue: Queue) -> list[Stranded]:
    """The routes for which mail waits in vain, as far as that can be known here."""
    routes = list(queue.next_due())
    elsewhere = queue.known_elsewhere() if routes else set()
    found = {route: why for route in routes if (why := _why(queue, route, elsewhere))}
    if not found:
        return []
    counts: Counter[str] = Counter()
    for row in queue.stats()["routes"]:
        if row["state"] in ("queued", "deferred"):
            counts[row["route"]] += row["recipients"]
    return [Stranded(route, counts[route], why) for route, why in found.items() if counts[route]]


def _why(queue: Queue, route: str, elsewhere: set[str]) -> Why | None:
    """None where there is hope. ``elsewhere``: what live engines know; empty where none runs."""
    names, relays = route.split(","), queue.routes.relays
    if not elsewhere.isdisjoint(names):
        return None
    mine = any(name in names or relay.url in names for name, relay in relays.items())
    if any(name not in relays and queue.routes.resolve(name) for name in names):  # any engine tries it
        return "silent" if not mine and _unanswered(queue, route) else None
    if mine:
        return "started before" if elsewhere else None
    return "unknown"


def _unanswered(queue: Queue, route: str) -> bool:
    """True when the oldest that was tried there found nobody."""
    first = next(queue.matching(Filter((Term("route", route), Term("is", "deferred")))), None)
    return first is not None and any(
        r.route == route and r.reason and r.reply is not None and not r.reply.code for r in first.recipients
    )
