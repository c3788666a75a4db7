"""Mail that waits for a route of which nothing is to be hoped here: found, and told with the command that
moves it.

A relay given in code is a route of its own, named by its URL. When its program has ended, an engine takes
that mail only if it knows the relay, or if the URL asks for no password; and a URL with a slip of the
keyboard never answers.
Promises: a route that the configuration names, or that a live engine was given, is never told of. Where
nothing is stranded, finding so costs a few seeks, however much waits.
Fails: as `Queue` does. Does not: move anything.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from outmail.model import Filter, Term
from outmail.outbox.queue import Queue


@dataclass(frozen=True, slots=True)
class Stranded:
    """A route and what waits for it. ``oldest`` is when (ms) the first was accepted. ``known``: an engine of
    this configuration would try it, because a URL without a user name may be tried by any.
    """

    route: str
    recipients: int
    oldest: int
    known: bool

    def sentence(self, target: str, *options: str) -> str:
        """What waits, why, and the command that sends it by ``target`` instead."""
        many = "recipient waits" if self.recipients == 1 else "recipients wait"
        why = (
            "which the configuration does not name and which does not answer. If that relay is wrong"
            if self.known
            else "which no engine knows. Name it in [relays], or"
        )
        return f"{self.recipients} {many} for {self.route}, {why}, send it another way: " + shlex.join(
            ["outmail", "queue", "reroute", *options, f"route:{self.route}", target]
        )


def stranded(queue: Queue) -> list[Stranded]:
    """The routes that no live engine was given and that the configuration does not name, if no engine will
    try them, or one has and no server answered.
    """
    relays = queue.routes.relays
    named = {name for relay in relays.values() for name in (relay.name, relay.url)} | set(relays)
    strange = {route for route in queue.next_due() if named.isdisjoint(route.split(","))}
    if strange:
        elsewhere = queue.known_elsewhere()
        strange = {route for route in strange if elsewhere.isdisjoint(route.split(","))}
    if not strange:
        return []
    found: dict[str, Stranded] = {}
    for row in queue.stats()["routes"]:
        route, known = row["route"], bool(queue.routes.resolve(row["route"]))
        if route not in strange or row["state"] not in ("queued", "deferred"):
            continue
        if known and not _unanswered(queue, route):
            continue
        before = found.get(route, Stranded(route, 0, row["oldest_at"], known))
        count = before.recipients + row["recipients"]
        found[route] = Stranded(route, count, min(before.oldest, row["oldest_at"]), known)
    return list(found.values())


def _unanswered(queue: Queue, route: str) -> bool:
    """True when the oldest that was tried there found nobody."""
    first = next(queue.matching(Filter((Term("route", route), Term("is", "deferred")))), None)
    return first is not None and any(
        r.route == route and r.reason and r.reply is not None and not r.reply.code for r in first.recipients
    )
