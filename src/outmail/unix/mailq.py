"""``mailq``: what waits, in the look of sendmail's and Postfix's, which monitoring programs match.

A mark behind the id says how a message stands: ``*`` on its way now, ``!`` held; nothing: it waits. The last
line is ``-- 23 Kbytes in 5 Requests.``, or all there is is ``Mail queue is empty``.
Promises: the first line comes before the queue is read through; memory does not grow with the queue; nothing
that a terminal obeys.
Fails: `NotStored`. Does not: show finished mail (`outmail queue list` does).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from outmail.outbox.queue import Queue, Unfinished
from outmail.policy.plain import plain_line

_HEAD = f"{'-Queue ID-':<27} {'--Size--':>8} {'----Arrival Time----':<19} -Sender/Recipient-------\n"
_INDENT = " " * 58
_MARKS = {"sending": "*", "held": "!"}


class Left(NamedTuple):
    """A message in the drop folder. ``size``: bytes of its file; ``at``: Unix ms; ``user``: whose it is."""

    id: str
    size: int
    at: int
    user: str


def listed(queue: Queue | None, left: Sequence[Left] = ()) -> Iterator[str]:
    """Lines, each with its end; those of one message together. ``left``: what the service has not taken into
    the queue yet, looked for before the queue is.
    """
    count = size = 0
    outside = {one.id: one for one in left}
    for _, group in groupby(queue.unfinished() if queue else (), key=attrgetter("id")):
        people = list(group)
        if not count:
            yield _HEAD
        count += 1
        size += people[0].size
        outside.pop(people[0].id, None)
        yield _message(people)
    for one in outside.values():
        if not count:
            yield _HEAD
        count += 1
        size += one.size
        yield f"{one.id:<27} {one.size:>8} {_arrival(one.at // 1000)} {plain_line(one.user)}\n{_NOT_TAKEN}\n"
    yield f"-- {max(1, size // 1024)} Kbytes in {count} Request{'s' * (count != 1)}.\n" if count else _EMPTY


_EMPTY = "Mail queue is empty\n"
_NOT_TAKEN = f"{'(it is in the drop folder: the service has not taken it yet)':>78}\n"


def _message(people: list[Unfinished]) -> str:
    first = people[0]
    states = {one.state for one in people}
    mark = next((mark for state, mark in _MARKS.items() if state in states), " ")
    sender = plain_line(first.sender or "MAILER-DAEMON")
    lines = [f"{first.id + mark:<27} {first.size:>8} {_arrival(first.accepted_at // 1000)} {sender}\n"]
    for reason, group in groupby(people, key=attrgetter("reason")):
        if reason:
            lines.append(f"{f'({plain_line(reason)})':>78}\n")
        lines += [f"{_INDENT}{plain_line(one.address)}\n" for one in group]
    lines.append("\n")
    return "".join(lines)


@lru_cache(64)
def _arrival(second: int) -> str:
    return time.strftime("%a %b %e %H:%M:%S", time.localtime(second))
