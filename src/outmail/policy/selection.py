"""Filter text → `model.Filter`: the same language in library, command and (later) web.

The words ``state: to: from: subject: tag: key: code: route: before: after: larger: is: was:`` are and-ed;
``-`` negates; a word without a name is looked for in addresses and subjects; quotes keep blanks together.
Promises: an unknown word raises `Refused` and names it. Nothing is guessed, because the same text may select
what to cancel.
"""

from __future__ import annotations

import re
import shlex

from outmail import clock
from outmail.errors import Refused
from outmail.lifecycle import STATES
from outmail.model import Filter, Term, is_id

#: Characters of a filter.
LONGEST = 10_000
_FIELDS = (
    "state",
    "to",
    "from",
    "subject",
    "tag",
    "key",
    "code",
    "route",
    "before",
    "after",
    "larger",
    "is",
    "was",
)
_FLAGS = {"is": ("live", "uncertain", "deferred"), "was": ("uncertain",)}
_SIZES = {"": 1, "k": 1000, "kb": 1000, "m": 1000**2, "mb": 1000**2, "g": 1000**3, "gb": 1000**3}


def parse_size(text: str) -> int:
    """``"50MB"`` → bytes, in powers of ten."""
    if len(text) > clock.LONGEST:
        raise ValueError(f"{text[:40]!r}… is too long for a size")
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgG]?[bB]?)\s*", text, re.ASCII)
    if not match or match[2].lower() == "b":
        raise ValueError(f"{text!r} is not a size: write a number of bytes, or such as 500kB, 50MB")
    size = float(match[1]) * _SIZES[match[2].lower()]
    if size >= 2**62:
        raise ValueError(f"{text[:40]!r} is larger than anything there is")
    return int(size)


def select(selection: str, now: int) -> Filter:
    """An id (``<id>`` or ``<id>/<n>``) or filter text → Filter. Empty text raises: to select everything,
    people write ALL.
    """
    if is_id(selection):
        head, _, n = selection.partition("/")
        return Filter(ids=((head, int(n) if n else None),))
    return parse(selection, now)


def parse(text: str, now: int) -> Filter:
    """Filter text → Filter; raises `Refused` (code ``bad-filter``)."""
    if len(text) > LONGEST:
        raise Refused(f"a filter has at most {LONGEST} characters, not {len(text)}", code="bad-filter")
    try:
        text.encode()
        words = shlex.split(text)
    except ValueError as problem:
        raise Refused(f"the filter {text!r} cannot be read: {problem}", code="bad-filter") from None
    return Filter(terms=tuple(_term(word, now) for word in words))


def _term(word: str, now: int) -> Term:
    negated = word.startswith("-") and len(word) > 1
    body = word[1:] if negated else word
    field, colon, value = body.partition(":")
    if not colon:
        return Term("any", body, negated)
    if (field, value) == ("state", "deferred"):  # as lists show what waits after a try
        field = "is"
    if field not in _FIELDS:
        raise Refused(
            f"unknown filter word {field[:80]!r}; known are {', '.join(_FIELDS)}",
            code="bad-filter",
            hint="see: outmail queue --help",
        )
    try:
        return Term(field, _value(field, value, now), negated)
    except ValueError as problem:
        raise Refused(f"{word[:80]!r}: {problem}", code="bad-filter") from None


def _value(field: str, value: str, now: int) -> object:
    if not value:
        raise ValueError("a value is missing behind the colon")
    if field == "state" and value not in STATES:
        raise ValueError(f"no such state; they are {', '.join(STATES)}, deferred")
    if field in _FLAGS and value not in _FLAGS[field]:
        raise ValueError(f"known is {' and '.join(f'{field}:{flag}' for flag in _FLAGS[field])}")
    if field in ("before", "after"):
        return _moment(value, now)
    return parse_size(value) if field == "larger" else value


def _moment(value: str, now: int) -> int:
    """``before:2h`` means longer ago than two hours; an ISO time means itself."""
    try:
        return now - clock.parse_span(value)
    except ValueError:
        return clock.instant(value, now)
