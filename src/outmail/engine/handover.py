"""Hand-over: an engine takes messages from the door of its own loop in the moment they are accepted.

How: `offer` is asked right before the commit that stores them; what it takes is leased in that transaction.
`taken` is told after the commit and makes deliveries of what is in memory, so nothing is read back.
Promises: nothing is taken past older mail that waits for the same destination, or beyond the room that its
next hop and the engine have; what was not stored is not delivered.
Fails: what was leased by a commit with an unknown end is given back like any lost lease.
Does not: write anything (the door does), or choose sessions (`nexthop`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from outmail.clock import Clock
from outmail.engine.completer import Completer
from outmail.engine.nexthop import MAX_RECIPIENTS, MOST, WINDOW_BYTES, NextHop
from outmail.model import Delivery, Leased, Message


class Leasing(Protocol):
    """What hand-over asks of the engine."""

    @property
    def due(self) -> Mapping[str, int]:
        """When (ms) each destination with mail in the store has something to do."""

    def new_lease(self) -> tuple[int, int] | None:
        """(owner, number) of a lease that was never given; None while the engine may take nothing."""

    def hop_for(self, destination: str) -> NextHop | None:
        """The next hop that a destination's mail takes now; None while none has room."""

    def distribute(self, deliveries: Sequence[Delivery], *, fresh: bool = False) -> None:
        """Give leased deliveries to their next hops. ``fresh``: their content never left this process."""


class HandOver:
    """One engine's; `accept.aio.HandOver` is how the door sees it."""

    def __init__(self, engine: Leasing, completer: Completer, clock: Clock) -> None:
        self._engine = engine
        self._completer = completer
        self._clock = clock

    def offer(self, messages: Sequence[Message]) -> dict[str, tuple[int, int]]:
        """(owner, lease) by id of those that the engine takes: due now, without a key, routes with room,
        nothing older waiting.
        """
        lease = self._engine.new_lease()
        if lease is None:
            return {}
        now = self._clock.now()
        left: dict[str, int] = {}
        taken: dict[str, tuple[int, int]] = {}
        space = WINDOW_BYTES - self._completer.bytes
        for message in messages:
            wanted: dict[str, int] = {}
            for recipient in message.recipients:
                if not recipient.suppressed:
                    wanted[recipient.destination] = wanted.get(recipient.destination, 0) + 1
            for name in wanted:
                if name not in left:
                    left[name] = self._spare(name, now)
            space -= len(message.content)
            if (
                message.due > now
                or message.key
                or space < 0
                or not wanted
                or any(left[name] < n for name, n in wanted.items())
            ):
                continue
            for name, n in wanted.items():
                left[name] -= n
            taken[message.id] = lease
        return taken

    def _spare(self, destination: str, now: int) -> int:
        """How many recipients may be handed over for a destination; none while older mail waits in the
        store.
        """
        if self._engine.due.get(destination, now + 1) <= now:
            return 0
        hop = self._engine.hop_for(destination)
        if hop is None or hop.pace.tripped or hop.pace.rate:
            return 0
        return MOST - hop.out

    def taken(
        self, messages: Sequence[Message], leases: dict[str, tuple[int, int]], added: Sequence[Any] | None
    ) -> None:
        """They are on disk, leased by this engine: make deliveries of what is in memory. ``added``: what
        `verbs.add` said of all messages, or None when the commit failed.
        """
        if added is None:
            self._completer.lost.extend(set(leases.values()))
            return
        deliveries = []
        for message, (_, _, _, duplicate, seq) in zip(messages, added):
            if message.id in leases and not duplicate:
                deliveries += made(message, seq, leases[message.id])
        self._engine.distribute(deliveries, fresh=True)


def made(message: Message, seq: int, lease: tuple[int, int]) -> list[Delivery]:
    """A message in memory → its deliveries, as a lease would have read them."""
    groups: dict[str, list[Leased]] = {}
    for n, recipient in enumerate(message.recipients, 1):
        if not recipient.suppressed:
            groups.setdefault(recipient.destination, []).append(Leased(n, recipient.address, 0, False, 0))
    return [
        Delivery(
            seq,
            message.id,
            lease[1],
            destination,
            message.sender,
            message.content,
            message.sha256,
            message.needs,
            message.message_id,
            message.accepted_at,
            message.expires_at,
            people[start : start + MAX_RECIPIENTS],
            dsn=message.dsn,
            owner=lease[0],
            life=message.expires_at - message.accepted_at,
        )
        for destination, people in groups.items()
        for start in range(0, len(people), MAX_RECIPIENTS)
    ]
