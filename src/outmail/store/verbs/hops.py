"""The verbs about next hops: a note of each that gets nothing for a while, and the events ``paused`` and
``resumed``.

How: a note says what the trouble is, since when, at which URL, and which engine found it last. It outlives
its engine on purpose: of a relay that stays dead, ``run --once`` from cron writes one event, not one a
minute, and "since" stays true. Whoever shows notes leaves out those whose engine has ended
(`Queue.paused_hops`).
Promises: ``paused`` and ``resumed`` take turns for each next hop, whichever engines write them.
Does not: begin, commit, or look at a clock (``now`` is passed in).
"""

from __future__ import annotations

from typing import Any

from outmail.store import Verb
from outmail.store.verbs.rows import HOPS, ROUTE_EVENT
from outmail.store.verbs.upkeep import note_get, note_put

KIND = "hop"
#: A note that no engine has confirmed for so long (ms) is forgotten.
FORGOTTEN = 7 * 86_400_000


def pause_hop(name: str, url: str, trouble: str, engine: str, now: int) -> Verb[None]:
    """An engine found that the next hop takes nothing."""
    found = yield from note_get(KIND, name)
    before, version = found if found else ({}, 0)
    same = before.get("url") == url
    since = before["since"] if same else now
    note = {"trouble": trouble, "since": since, "at": now, "url": url, "engine": engine}
    if (yield from note_put(KIND, name, note, version)) and not same:
        yield ROUTE_EVENT, _event(now, "paused", name, trouble)


def resume_hop(name: str, now: int) -> Verb[None]:
    """It answers again."""
    if (yield "DELETE FROM note WHERE kind = ? AND key = ? RETURNING key", (KIND, name)):
        yield ROUTE_EVENT, _event(now, "resumed", name, "")


def forget_hops(engines: set[str], now: int) -> Verb[None]:
    """Notes that no engine has confirmed for long, of engines that are not among those that are known."""
    rows = yield "SELECT key FROM note WHERE kind = ?", (KIND,)
    for (name,) in rows:
        found = yield from note_get(KIND, name)
        if found and found[0].get("engine") not in engines and now - found[0].get("at", 0) > FORGOTTEN:
            yield "DELETE FROM note WHERE kind = ? AND key = ? AND version = ?", (KIND, name, found[1])


def _event(now: int, event: str, name: str, reason: str) -> tuple[Any, ...]:
    return now, event, HOPS, None, "", 0, reason, 0, None, name
