"""Hand-over: an engine takes messages from the door of its own loop at the moment when they are accepted.

How: `offer` is called right before the commit that stores the messages; those that the engine takes are
leased in that transaction. `taken` is called after the commit and makes deliveries of the messages in memory,
so nothing is read from the store.
Promises: no message overtakes older mail that waits for the same destination, and no more is taken than its
next hop and the engine have room for. A message that was not stored is not delivered.
Fails: when it is unknown whether the commit happened, the leases are put back like any lost lease.
Does not: store anything (the door does), or choose sessions (`nexthop`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from outmail.clock import Clock
from outmail.engine.completer import Completer
from outmail.engine.nexthop import MAX_RECIPIENTS, MOST, WINDOW_BYTES, NextHop
from outmail.model import Delivery, Leased, Message


class Leasing(Protocol):
    """What hand-over needs of the engine."""

    @property
    def due(self) -> Mapping[str, int]:
        """For each destination with mail in the store: when (ms) something is due."""

    def new_lease(self) -> tuple[int, int] | None:
        """(owner, number) for a lease that is not in the store yet; None while the engine may take
        nothing.
        """

    def hop_for(self, destination: str) -> NextHop | None:
        """The next hop for a destination's mail; None while none has room."""

    def distribute(self, deliveries: Sequence[Delivery], *, fresh: bool = False) -> None:
        """Give leased deliveries to their next hops. ``fresh``: their content comes from this process's
        memory.
        """


class HandOver:
    """The hand-over of one engine. The door sees it as `accept.aio.HandOver`."""

    def __init__(self, engine: Leasing, completer: Completer, clock: Clock) -> None:
        self._engine = engine
        self._completer = completer
        self._clock = clock

    def offer(self, messages: Sequence[Message]) -> dict[str, tuple[int, int]]:
        """Choose messages that the engine takes: due now, without a key, with room at their next hops, and
        with no older mail waiting. Returns (owner, lease) for each, by id.
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
        """How many recipients of a destination may be handed over; 0 while older mail for it waits in the
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
        """The messages are on disk and leased by this engine: make deliveries of what is in memory.
        ``added``: what `verbs.add` answered for all messages, or None when the commit failed.
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
    """The deliveries of a message in memory, as a lease would have read them."""
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
            tag=message.tag,
        )
        for destination, people in groups.items()
        for start in range(0, len(people), MAX_RECIPIENTS)
    ]
