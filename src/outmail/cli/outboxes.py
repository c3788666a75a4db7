"""Mail that waits in applications' own databases (``[[outbox]]``) until an engine moves it into the queue:
counting and finding it, as far as these databases can be read.

Promises: a database that cannot be read is named on stderr and does not stop the rest. Does not: move, claim
or release anything.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple, TypeVar

from outmail.errors import ConfigError
from outmail.policy.plain import plain_line
from outmail.store import StoreError, shown
from outmail.transactional.reader import Source
from outmail.wiring import open_source

R = TypeVar("R")
#: How many rows are listed.
MOST = 20


class Waiting(NamedTuple):
    """One database: how many rows wait in it, and since when (ms) the oldest."""

    name: str
    rows: int
    oldest: int | None


def waiting(urls: Sequence[str]) -> list[Waiting]:
    """The databases in which mail waits."""
    found = [Waiting(name, *answer) for name, answer in _each(urls, lambda source: source.waiting())]
    return [one for one in found if one.rows]


def naming(urls: Sequence[str], address: str) -> list[tuple[str, str, int]]:
    """Rows to an address, as (database, message id, since when in ms)."""
    return [
        (name, id, since)
        for name, rows in _each(urls, lambda source: source.naming(address, MOST))
        for id, since in rows
    ]


def _each(urls: Sequence[str], ask: Callable[[Source], R]) -> Iterator[tuple[str, R]]:
    for url in urls:
        try:
            with closing(open_source(url, "apsw")) as source:
                yield source.name, ask(source)
        except (StoreError, ConfigError) as problem:
            print(plain_line(f"outmail: [[outbox]] {shown(url)}: {problem}"), file=sys.stderr)
