"""The verbs of loopback copies: which were sent, which have come home, what that proves.

How: a copy is known by its transaction (message, engine, lease, number in the delivery), which is what its
token says. Whichever comes first, its sending on record or its return, makes the row; the other completes it
and draws the conclusion, in the same transaction.
Promises: a copy that is home makes an event ``seen`` for each recipient of its transaction, once. It confirms
exactly those whose final dot is on record as part of that transaction and had no answer. Where that record is
lost (`presumed`), it confirms only the one recipient of a lease, and only when it came home as it was sent.
Nothing else that comes to the loopback address changes more than a count.
Does not: believe tokens (`policy.loopback.read`), or look at a clock (``now`` is passed in).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from outmail.clock import MINUTE
from outmail.mime import splice
from outmail.model import Settled, is_id
from outmail.policy.loopback import APART, CANARY, Token
from outmail.store import Many, Verb
from outmail.store.verbs.queue import apply, content
from outmail.store.verbs.rows import EVENT, MAX_BATCH, PIECE, event_rows, json_list

#: A row of `sent`: message, owner, lease, part, at, route, host, recipients, outcome, sent_at.
Sent = tuple[int, int, int, int, int, str, str, str, str, int]
#: What is counted: `came_home` and `came_home_by_id` say the most; "refused" are copies that a relay did not
#: take.
WORDS = (*("home", "duplicate", "unknown", "expired", "forged", "foreign", "bounced", "canary", "refused"),)
#: The part of all copies of a message that are known by its Message-ID; owner and lease are 0.
BY_ID = APART | 1
_SENT = (
    "INSERT INTO loopback (message, owner, lease, part, at, route, host, recipients, outcome, sent_at)"
    " VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT (message, owner, lease, part) DO UPDATE SET"
    " route = excluded.route, host = excluded.host, recipients = excluded.recipients,"
    " outcome = excluded.outcome, sent_at = excluded.sent_at"
    " RETURNING message, owner, lease, part, home_at"
)
_HOME = (
    "INSERT INTO loopback (message, owner, lease, part, at, home_at, hops, genuine) VALUES (?,?,?,?,?,?,?,?)"
    " ON CONFLICT (message, owner, lease, part) DO UPDATE SET"
    " home_at = excluded.home_at, hops = excluded.hops, genuine = excluded.genuine"
    " WHERE loopback.home_at IS NULL"
    " RETURNING message, owner, lease, part, home_at"
)
#: Both are on record: the conclusion is drawn once.
_TOLD = (
    "UPDATE loopback SET told = 1 WHERE message = ? AND owner = ? AND lease = ? AND part = ?"
    " AND outcome <> '' AND told = 0 RETURNING message, recipients, outcome, genuine"
)
_STANDING = "SELECT message, n, state, uncertain, reason, attempts FROM recipient WHERE message = ? AND n = ?"


def sent(rows: Sequence[Sent], now: int) -> Verb[None]:
    """These transactions had a copy, and may have been taken."""
    if rows:
        done = yield Many(_SENT, rows)
        yield from _conclude([row[:4] for row in done if row[4] is not None], now)


def of_settled(owner: int, settled: Iterable[Settled]) -> list[Sent]:
    """The rows of `sent` for what an engine has learned: whatever may have been taken with a copy."""
    rows: list[Sent] = []
    for item in settled:
        delivery = item.delivery
        if delivery.copies is None:
            continue
        if delivery.copies.by_id:
            rows += _of_settled_by_id(item)
            continue
        groups: dict[tuple[int, str], list[int]] = {}
        for leased, _ in item.verdicts:
            outcome = leased.outcome
            if (
                outcome is not None
                and outcome.kind in ("delivered", "unknown")
                and leased.copy in delivery.copies.sent
            ):
                groups.setdefault((leased.copy, outcome.kind), []).append(leased.n)
        rows += [
            (
                delivery.seq,
                owner,
                delivery.lease,
                part,
                item.at,
                delivery.destination,
                delivery.host,
                json_list(people),
                kind,
                delivery.copies.sent[part],
            )
            for (part, kind), people in groups.items()
        ]
    return rows


def _of_settled_by_id(item: Settled) -> list[Sent]:
    """One row for a message, whatever its transactions: its copies are known by the Message-ID alone."""
    delivery = item.delivery
    assert delivery.copies is not None
    people = [leased.n for leased, _ in item.verdicts if leased.copy in delivery.copies.sent]
    if not people:
        return []
    sent = min(delivery.copies.sent.values())
    where = delivery.destination, delivery.host
    return [(delivery.seq, 0, 0, BY_ID, item.at, *where, json_list(people), "unproven", sent)]


def came_home_by_id(message_id: str, now: int, hops: str, bounce: bool, *, mark: bool) -> Verb[str]:
    """A mail without a token is there; what it was, as counted: as of `came_home`, or "canary", or "foreign"
    where its Message-ID is none of ours. Unless ``mark`` it is counted only.
    """
    id = message_id[1:].partition("@")[0]
    rows = (yield "SELECT seq, message_id, tag FROM message WHERE id = ?", (id,)) if is_id(id) else []
    if rows and rows[0][1] == message_id and rows[0][2] == CANARY:
        word = "canary"  # whether it came home is told by its copy
    elif not mark or not is_id(id):
        word = "foreign"
    elif not rows or rows[0][1] != message_id:
        word = "unknown"
    else:
        token = Token(rows[0][0], 0, 0, BY_ID, now // MINUTE)
        return (yield from came_home(token, now, hops, message_id, bounce))
    yield from count(word)
    return word


def came_home(
    token: Token, now: int, hops: str, message_id: str, bounce: bool
) -> Verb[Literal["home", "duplicate", "unknown", "bounced"]]:
    """A copy with a believed token is there. Returns what it was, as counted: "home", "duplicate", "unknown"
    or "bounced".
    """
    rows = yield (
        "SELECT message_id FROM message m WHERE seq = ? AND EXISTS"
        " (SELECT 1 FROM recipient r WHERE r.message = m.seq)",
        (token.message,),
    )
    genuine = bool(rows) and rows[0][0] == message_id
    word: Literal["home", "duplicate", "unknown", "bounced"]
    if not rows:
        word = "unknown"
    elif bounce and not genuine:
        word = "bounced"
    else:
        key = (token.message, token.owner, token.lease, token.part)
        found = yield _HOME, (*key, now, now, hops, int(genuine))
        word = "home" if found else "duplicate"
        yield from _conclude([row[:4] for row in found], now)
    yield from count(word)
    return word


def _conclude(copies: Sequence[Any], now: int) -> Verb[None]:
    """These copies are home; what that proves, as far as their sending is on record."""
    if not copies:
        return
    for message, recipients, outcome, genuine in (yield Many(_TOLD, copies)):
        people = [(message, n) for n in json.loads(recipients)]
        if outcome == "unknown" or (outcome == "presumed" and genuine):
            yield from apply("confirm", people, now, "")
        yield Many(EVENT, event_rows(now, "seen", (yield Many(_STANDING, people))))


def count(word: str, n: int = 1) -> Verb[None]:
    """So many more of this word."""
    yield (
        "INSERT INTO loopback_count (word, n) VALUES (?, ?) ON CONFLICT (word)"
        " DO UPDATE SET n = loopback_count.n + excluded.n",
        (word, n),
    )


def counts() -> Verb[dict[str, int]]:
    """How many of each word."""
    rows = yield "SELECT word, n FROM loopback_count ORDER BY word", ()
    return dict(rows)


# -- work of dead engines ------------------------------------------------------------------------------------

#: The number of a transaction stands in an engine's record beside the recipient: above these bits.
PART = 24


def is_part(number: int) -> bool:
    """False for what no transaction of a delivery is numbered."""
    return number % APART <= MAX_BATCH


def noted_parts(noted: set[tuple[int, int, int]]) -> Mapping[tuple[int, int, int], int]:
    """An engine's record → for each recipient whose dot is noted, as (message, n, lease), the transaction's
    number (0: without a copy).
    """
    return {(message, n & ((1 << PART) - 1), lease): n >> PART for message, n, lease in noted}


def of_lost(
    owner: int, lost: Sequence[tuple[int, int, int, int, str, int]], now: int, *, presumed: bool
) -> list[Sent]:
    """The rows of `sent` for what a dead engine had noted, from (message, n, lease, part, route,
    leased_at).
    """
    groups: dict[tuple[int, int, int], tuple[list[int], str, int]] = {}
    for message, n, lease, part, route, leased_at in lost:
        groups.setdefault((message, lease, part), ([], route, leased_at))[0].append(n)
    return [
        (
            message,
            owner,
            lease,
            part,
            now,
            route,
            "",
            json_list(people),
            "presumed" if presumed else "unknown",
            leased_at,
        )
        for (message, lease, part), (people, route, leased_at) in groups.items()
        if part and not part & APART
    ]


# -- what is missed, what is known, what is forgotten --------------------------------------------------------

_PAGE = 2000
_COLUMNS = "m.id, l.route, l.host, l.recipients, l.outcome, l.sent_at, l.home_at, l.hops, l.late"


def miss(before: int) -> Verb[dict[str, int]]:
    """Mark a page of copies that were sent before that instant and have not come home; how many by route."""
    rows = yield (
        "UPDATE loopback SET late = 1 WHERE (message, owner, lease, part) IN"
        " (SELECT message, owner, lease, part FROM loopback WHERE home_at IS NULL AND sent_at <= ?"
        f" AND late = 0 ORDER BY sent_at LIMIT {_PAGE}) RETURNING route",
        (before,),
    )
    found: dict[str, int] = {}
    for (route,) in rows:
        found[route] = found.get(route, 0) + 1
    return found


def missing() -> Verb[dict[str, tuple[int, int]]]:
    """For each route how many copies are missed, and when (ms) the oldest of them was sent."""
    rows = yield (
        "SELECT route, count(*), min(sent_at) FROM loopback WHERE home_at IS NULL AND late = 1"
        " GROUP BY route",
        (),
    )
    return {route: (n, oldest) for route, n, oldest in rows}


def copies_of(seq: int) -> Verb[list[tuple[Any, ...]]]:
    """The copies of a message, oldest first, as (id, route, host, recipients, outcome, sent_at, home_at,
    hops, late).
    """
    rows = yield (
        f"SELECT {_COLUMNS} FROM loopback l JOIN message m ON m.seq = l.message WHERE l.message = ?"
        " ORDER BY l.at",
        (seq,),
    )
    return rows


def copies_since(
    since: int, limit: int = 100_000
) -> Verb[list[tuple[str, int, int | None, int, str | None]]]:
    """Copies that were sent since, newest first, as (route, sent_at, home_at, late, hops)."""
    rows = yield (
        "SELECT route, sent_at, home_at, late, hops FROM loopback WHERE at >= ? AND sent_at IS NOT NULL"
        " ORDER BY at DESC LIMIT ?",
        (since, limit),
    )
    return rows


def forget_copies(before: int) -> Verb[int]:
    """Forget a page of copies that are older than that; how many."""
    rows = yield (
        "DELETE FROM loopback WHERE (message, owner, lease, part) IN (SELECT message, owner, lease, part"
        f" FROM loopback WHERE at <= ? ORDER BY at LIMIT {_PAGE}) RETURNING part",
        (before,),
    )
    return len(rows)


# -- a Message-ID by which a message is known ----------------------------------------------------------------


def assign(seq: int, domain: str, now: int) -> Verb[tuple[str, str] | None]:
    """Give a message that was not tried yet the Message-ID ``<id@domain>``, unless it has one of that form.

    Returns (the Message-ID, the one that it replaced or ""). The one before is kept in an event ``assigned``.
    None where it is too late (a retry must carry the Message-ID of the first try), or the content is gone.
    """
    ((id, before, upload),) = yield "SELECT id, message_id, upload FROM message WHERE seq = ?", (seq,)
    if before.startswith(f"<{id}@"):
        return before, ""
    untried = yield (
        "UPDATE recipient SET attempts = attempts WHERE message = ? AND state IN ('queued', 'held')"
        " AND attempts = 0 AND uncertain = 0 AND losses = 0 RETURNING n",
        (seq,),
    )
    ((people,),) = yield "SELECT count(*) FROM recipient WHERE message = ?", (seq,)
    old = yield from content(seq)
    if len(untried) < people or old is None:
        return None
    message_id = f"<{id}@{domain}>"
    new = f"Message-ID: {message_id}\r\n".encode() + splice.cut(old, "message-id")
    if upload is None:
        yield "UPDATE body SET content = ? WHERE seq = ?", (new, seq)
    else:
        yield "DELETE FROM chunk WHERE upload = ?", (upload,)
        pieces = [new[start : start + PIECE] for start in range(0, len(new), PIECE)]
        rows = [(upload, i, now, piece) for i, piece in enumerate(pieces)]
        yield Many("INSERT INTO chunk (upload, n, added_at, content) VALUES (?,?,?,?)", rows)
    yield (
        "UPDATE message SET message_id = ?, size = ?, sha256 = ? WHERE seq = ?",
        (message_id, len(new), hashlib.sha256(new).digest(), seq),
    )
    yield EVENT, assigned(seq, now, before)
    return message_id, before


def assigned(seq: int, now: int, before: str) -> tuple[Any, ...]:
    """The event that keeps the Message-ID which a message had before."""
    return (now, "assigned", seq, None, "queued", 0, f"the Message-ID was {before}", 0, None)
