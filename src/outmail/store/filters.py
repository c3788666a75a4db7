"""Turns a `model.Filter` into an SQL condition with parameters, on the aliases m (message), r (recipient) and
a (last attempt).

Promises: pure; what the user wrote is a parameter, never SQL. Fails: never, because
`policy.selection` has checked the words. Does not: run the statement, or choose its columns.
"""

from __future__ import annotations

from typing import Any

from outmail.model import Filter, Term

_LIVE = (
    "m.seq IN (SELECT message FROM recipient WHERE state IN ('queued', 'held') UNION SELECT message FROM "
    "recipient WHERE state = 'sending')"
)
_FLAGS = {
    ("is", "live"): "r.state IN ('queued', 'sending', 'held')",
    ("is", "uncertain"): "r.uncertain = 1 AND r.state IN ('queued', 'sending', 'held')",
    ("is", "deferred"): "r.state = 'queued' AND r.attempts > 0",
    ("was", "uncertain"): "r.uncertain = 1",
}
_COMPARE = {"before": "m.accepted_at < ?", "after": "m.accepted_at >= ?", "larger": "m.size > ?"}
_EXACT = {
    "state": "r.state",
    "tag": "coalesce(m.tag, '')",
    "key": "coalesce(m.key, '')",
    "route": "r.destination",
}
_WITHIN = {
    "to": ("r.address",),
    "from": ("m.sender",),
    "subject": ("m.subject",),
    "any": ("r.address", "m.sender", "m.subject"),
}


def where(selection: Filter, now: int) -> tuple[str, list[Any]]:
    """The condition, never empty, and its parameters."""
    parts: list[str] = ["1 = 1"]
    params: list[Any] = []
    if selection.ids:
        each = []
        for id, n in selection.ids:
            each.append("m.id = ?" if n is None else "(m.id = ? AND r.n = ?)")
            params += [id] if n is None else [id, n]
        parts.append("(" + " OR ".join(each) + ")")
    for term in selection.terms:
        condition, values = _term(term)
        parts.append(f"NOT ({condition})" if term.negated else f"({condition})")
        params += values
    if any(_only_live(term) for term in selection.terms):
        parts.append(_LIVE)
    return " AND ".join(parts), params


def _only_live(term: Term) -> bool:
    """True for terms that only live recipients can match. Those are found by small indexes, however many
    finished recipients there are.
    """
    return not term.negated and (
        (term.field == "state" and term.value in ("queued", "sending", "held")) or term.field == "is"
    )


def _term(term: Term) -> tuple[str, list[Any]]:
    if (term.field, term.value) in _FLAGS:
        return _FLAGS[term.field, term.value], []
    if term.field in _COMPARE:
        return _COMPARE[term.field], [term.value]
    if term.field in _EXACT:
        return f"{_EXACT[term.field]} = ?", [term.value]
    if term.field == "code":
        return (
            "coalesce(CAST(a.code AS TEXT), '') LIKE ? ESCAPE '\\' OR coalesce(a.enhanced, '') LIKE ? ESCAPE "
            "'\\'",
            [_prefix(term.value)] * 2,
        )
    columns = _WITHIN[term.field]
    pattern = "%" + _escape(term.value).replace("*", "%") + "%"
    return " OR ".join(f"{column} LIKE ? ESCAPE '\\'" for column in columns), [pattern] * len(columns)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _prefix(text: str) -> str:
    return _escape(text).rstrip("xX") + "%"
