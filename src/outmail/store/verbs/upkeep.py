"""The verbs of maintenance: fail what is too old, repair the effects of a clock that jumped, remove what is
past retention, and keep small documents (notes).

Promises: each verb is short, or one page of bounded length. The newest message, event and attempt keep their
numbers, so that no number is used twice. With a version given, a note is written only if it still has that
version.
Does not: decide when this happens, or read a clock (``now`` is passed in).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from outmail.policy.age import JUMP, NO_MARK, Mark
from outmail.store import Exclusive, Many, Verb
from outmail.store.verbs.queue import PAGE, apply, destinations
from outmail.store.verbs.rows import BLANK, GONE, LISTED, json_list

# -- age -----------------------------------------------------------------------------------------------------


def expire(
    now: int, spared: tuple[int, int] = (0, 0), mark: Mark = NO_MARK, *, above: int = -1, after: int = -1
) -> Verb[int]:
    """Fail waiting recipients that are too old, at most `PAGE`. Returns how many.

    Spared are recipients that expire after ``spared[0]`` and not after ``spared[1]``, those that expire not
    after ``after``, and messages whose number is not higher than ``above``. A recipient that the ``mark``
    shows to be younger than its dates gets a later expiry instead.
    """
    old: list[tuple[int, int]] = []
    for begin, until in ((after, min(now, spared[0])), (max(after, spared[1]), now)):
        if begin < until:
            rows = yield _ENDED, (begin, until, above, PAGE - len(old))
            young = [
                (now + life - mark[1], message, n)
                for message, n, life in rows
                if message > mark[0] and life > mark[1]
            ]
            if young:  # they were accepted lately, but perhaps by another store
                moved = yield from note_get("imported", "newest")
                young = [row for row in young if row[1] > (moved[0] if moved else 0)]
            yield Many("UPDATE recipient SET expires_at = ? WHERE message = ? AND n = ?", young)
            spare = {(message, n) for _, message, n in young}
            old += [(message, n) for message, n, _ in rows if (message, n) not in spare]
    return (yield from apply("expired", old, now, "too old")) if old else 0


_ENDED = (
    "SELECT r.message, r.n, m.expires_at - m.accepted_at FROM recipient r JOIN message m ON m.seq = r.message"
    " WHERE r.state IN ('queued', 'held') AND r.expires_at > ? AND r.expires_at <= ? AND r.message > ? LIMIT "
    "?"
)


def newest() -> Verb[int]:
    """The highest number of a message."""
    rows = yield "SELECT max(seq) FROM message", ()
    return rows[0][0] or 0


_LIFE = "(SELECT m.expires_at - m.accepted_at FROM message m WHERE m.seq = recipient.message)"


def rejuvenate(now: int, low: int, high: int, ago: int) -> Verb[int]:
    """Messages numbered above ``low`` and up to ``high`` are at most ``ago`` old, whatever a wrong clock
    wrote into them: move their expiry accordingly.
    """
    rows = yield (
        f"UPDATE recipient SET expires_at = ? + {_LIFE} WHERE message > ? AND message <= ? AND state IN "
        f"('queued', 'held', 'sending')"
        f" AND expires_at < ? + {_LIFE} RETURNING n",
        (now - ago, low, high, now - ago - JUMP),
    )
    return len(rows)


def shorten(now: int, life: int) -> Verb[int]:
    """After a clock was set back: no waiting recipient has more time left than its whole life, or ``life`` if
    that is longer.
    """
    rows = yield (
        f"UPDATE recipient SET expires_at = ? + {_LIFE} WHERE state IN ('queued', 'held') AND expires_at > ?"
        f" AND expires_at > ? + {_LIFE} AND not_before <= ? RETURNING n",
        (now, now + life, now, now),
    )
    return len(rows)


def earlier(by: int, now: int, destination: str) -> Verb[int]:
    """After a clock was set back by ``by``: waiting recipients keep the same time until they are due, but are
    not due before the time the sender asked for.
    """
    sooner = "CASE WHEN due - ? > not_before THEN due - ? WHEN not_before < due THEN not_before ELSE due END"
    count = 0
    for losses in ("losses = 0", "losses > 0"):
        rows = yield Many(
            f"UPDATE recipient SET due = {sooner} WHERE state = 'queued' AND {losses} AND destination = ? "
            f"AND priority = ? AND due > ? RETURNING n",
            [(by, by, destination, priority, now) for priority in range(3)],
        )
        count += len(rows)
    return count


def clamp(now: int, longest: int) -> Verb[int]:
    """No recipient waits longer than the longest retry step, even after a clock that jumped."""
    early = (
        "due = CASE WHEN not_before > ? THEN not_before ELSE ? END WHERE state = 'queued' AND expires_at "
        "> ? AND due > ? AND due > not_before"
    )
    count = 0
    for destination in (yield from destinations()):
        keys = [(now, now, now, now + longest, destination, priority) for priority in range(3)]
        count += len(
            (
                yield Many(
                    f"UPDATE recipient SET {early} AND losses = 0 AND destination = ? AND priority = ? "
                    f"RETURNING n",
                    keys,
                )
            )
        )
    count += len(
        (yield f"UPDATE recipient SET {early} AND losses > 0 RETURNING n", (now, now, now, now + longest))
    )
    return count


# -- retention -----------------------------------------------------------------------------------------------

#: What retention removes; each kind has its own age.
KINDS = ("bodies", "transcripts", "records")


def purge(kind: str, before: int, after: int = 0, limit: int = 500) -> Verb[tuple[int, int, bool]]:
    """One page of retention: messages numbered above ``after`` whose last recipient became final before
    ``before``.

    Returns the last number looked at, the number up to which nothing is left to do, and whether there may be
    more. The newest message, event and attempt stay, so that their numbers are never used again.
    """
    rows = yield (
        "SELECT m.seq, m.upload, m.accepted_at, max(coalesce(r.finished_at, 4611686018427387904))"
        " FROM (SELECT seq, upload, accepted_at FROM message WHERE seq > ? ORDER BY seq LIMIT ?) m JOIN "
        "recipient r ON r.message = m.seq"
        " GROUP BY m.seq, m.upload, m.accepted_at ORDER BY m.seq",
        (after, limit),
    )
    old = [(seq, upload) for seq, upload, _, final in rows if final <= before]
    if old:
        yield from _REMOVING[kind](old)
    if kind == "records":
        yield OLD_HOPS, (before,)
    young = next((seq for seq, _, _, final in rows if final > before), None)
    last = rows[-1][0] if rows else after
    return (
        last,
        last if young is None else young - 1,
        len(rows) == limit and any(row[2] <= before for row in rows),
    )


def _remove_bodies(old: list[tuple[int, str | None]]) -> Verb[None]:
    yield f"DELETE FROM body WHERE seq {LISTED}", (_numbers(old),)
    yield Many("DELETE FROM chunk WHERE upload = ?", [(upload,) for _, upload in old if upload])


def _remove_transcripts(old: list[tuple[int, str | None]]) -> Verb[None]:
    yield (
        f"UPDATE attempt SET transcript = NULL WHERE message {LISTED} AND message >= ? AND message <= ? AND "
        f"transcript IS NOT NULL",
        (_numbers(old), old[0][0], old[-1][0]),
    )


#: Events of next hops are kept as long as records, and as long as an older event of a message: so only the
#: front of the table is looked at.
OLD_HOPS = (
    "DELETE FROM event WHERE message < 0 AND at <= ? AND cursor < (SELECT min(cursor) FROM event WHERE "
    "message >= 0)"
)

NEWEST = "SELECT (SELECT max(seq) FROM message), (SELECT max(id) FROM attempt)"


def _numbers(old: Sequence[tuple[int, Any]]) -> str:
    return json_list([row[0] for row in old])


def _forget(old: Sequence[tuple[int, Any]]) -> Verb[None]:
    """Remove whole records. Of the newest row of a numbered table nothing stays but the number, so that it is
    never used again.
    """
    newest = yield NEWEST, ()
    seq, attempt = newest[0]
    these, first, last = _numbers(old), old[0][0], old[-1][0]
    yield (
        f"DELETE FROM attempt WHERE message {LISTED} AND message >= ? AND message <= ? AND id <> ?",
        (these, first, last, attempt or 0),
    )
    yield (
        f"DELETE FROM recipient WHERE message {LISTED} AND message >= ? AND message <= ?",
        (these, first, last),
    )
    yield f"DELETE FROM body WHERE seq {LISTED}", (these,)
    yield (
        f"DELETE FROM chunk WHERE upload IN (SELECT upload FROM message WHERE seq {LISTED} AND upload IS NOT "
        f"NULL)",
        (these,),
    )
    yield f"DELETE FROM message WHERE seq {LISTED} AND seq <> ?", (these, seq or 0)
    if seq is not None:
        # a number that was kept earlier
        yield "DELETE FROM message WHERE id >= ? AND id < ? AND seq < ?", (GONE, "gone/", seq)
        if any(number == seq for number, _ in old):
            yield BLANK, (f"{GONE}{seq}", seq)
    yield (
        "DELETE FROM event WHERE cursor < (SELECT max(cursor) FROM event) AND message >= 0 AND message <= ? "
        "AND NOT EXISTS (SELECT 1 FROM recipient r WHERE r.message = event.message)",
        (last,),
    )


_REMOVING: dict[str, Callable[[list[tuple[int, str | None]]], Verb[None]]] = {
    "bodies": _remove_bodies,
    "transcripts": _remove_transcripts,
    "records": _forget,
}


def forget_messages(seqs: Sequence[int]) -> Verb[int]:
    """Remove these finished messages now."""
    if seqs:
        yield from _forget([(seq, None) for seq in sorted(seqs)])
    return len(seqs)


# -- long content whose message never came -------------------------------------------------------------------

#: Not a correlated subquery: the messages are looked at once, however many pieces there are.
_UNUSED = "NOT EXISTS (SELECT 1 FROM message m WHERE m.upload = ?)"


def unused(upload: str) -> Verb[bool]:
    """True when there are pieces of this name and no message has them."""
    return bool((yield f"SELECT 1 FROM chunk WHERE upload = ? AND {_UNUSED} LIMIT 1", (upload, upload)))


def drop_upload(upload: str) -> Verb[int]:
    """Remove pieces whose message never came, because their writer is gone. Returns how many pieces."""
    # The DELETE is a statement of its own after this one, so that it sees what a writer has committed
    # meanwhile.
    yield Exclusive([upload])
    return len((yield f"DELETE FROM chunk WHERE upload = ? AND {_UNUSED} RETURNING n", (upload, upload)))


# -- notes ---------------------------------------------------------------------------------------------------


def note_get(kind: str, key: str) -> Verb[tuple[Any, int] | None]:
    """A small document and its version."""
    rows = yield "SELECT value, version FROM note WHERE kind = ? AND key = ?", (kind, key)
    return (json.loads(rows[0][0]), rows[0][1]) if rows else None


def note_list(kind: str) -> Verb[dict[str, Any]]:
    """All documents of a kind."""
    rows = yield "SELECT key, value FROM note WHERE kind = ? ORDER BY key", (kind,)
    return {key: json.loads(value) for key, value in rows}


def note_put(kind: str, key: str, value: Any, version: int | None = None) -> Verb[bool]:
    """Write a document. With ``version`` only if that is still its version (0: only if it does not exist).
    False: somebody else wrote it first.
    """
    text = json.dumps(value)
    if version is None:
        yield (
            "INSERT INTO note (kind, key, value, version) VALUES (?,?,?,1) ON CONFLICT (kind, key)"
            " DO UPDATE SET value = excluded.value, version = note.version + 1",
            (kind, key, text),
        )
        return True
    if version == 0:
        sql = (
            "INSERT INTO note (kind, key, value, version) VALUES (?,?,?,1) ON CONFLICT DO NOTHING "
            "RETURNING version"
        )
        return bool((yield sql, (kind, key, text)))
    sql = (
        "UPDATE note SET value = ?, version = version + 1 WHERE kind = ? AND key = ? AND version = ? "
        "RETURNING version"
    )
    return bool((yield sql, (text, kind, key, version)))


def note_keys(kind: str) -> Verb[list[str]]:
    """The keys of a kind, whatever their documents contain."""
    rows = yield "SELECT key FROM note WHERE kind = ? ORDER BY key", (kind,)
    return [key for (key,) in rows]


def note_set_aside(kind: str, key: str) -> Verb[None]:
    """Move an unreadable document out of the way, unchanged: to the kind ``<kind>.unreadable``."""
    yield "DELETE FROM note WHERE kind = ? AND key = ?", (f"{kind}.unreadable", key)
    yield "UPDATE note SET kind = ? WHERE kind = ? AND key = ?", (f"{kind}.unreadable", kind, key)


def note_drop(kind: str, key: str) -> Verb[None]:
    """Remove a document."""
    yield "DELETE FROM note WHERE kind = ? AND key = ?", (kind, key)


# -- checks --------------------------------------------------------------------------------------------------

#: Things that must not be found, as (the statement that counts them, what they are).
CHECKS = (
    (
        "SELECT count(*) FROM recipient r WHERE NOT EXISTS (SELECT 1 FROM message m WHERE m.seq = r.message)",
        "recipients without a message",
    ),
    (
        "SELECT count(*) FROM message m WHERE EXISTS (SELECT 1 FROM recipient r WHERE r.message = m.seq AND "
        "r.state IN ('queued', 'sending'))"
        " AND m.upload IS NULL AND NOT EXISTS (SELECT 1 FROM body b WHERE b.seq = m.seq)",
        "waiting messages without content",
    ),
)
