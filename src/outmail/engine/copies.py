"""Loopback copies: which deliveries have one, and what is learned of next hops that do not take it.

Promises: a message that was refused together with its copy goes without one from then on, also by later
engines of the store (`maintenance` keeps notes); a next hop that refused a copy gets none for a while. With
loopback off nothing of this is called.
Does not: send (`smtp.client`), or know what became of a copy (`store.verbs.loopback`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from outmail.clock import MINUTE, Clock
from outmail.model import Copies, Delivery, Reply
from outmail.policy.loopback import Loopback, Token, mint

#: Seconds without copies for a next hop that said no to one for good (5xx), or hung up over it; and for one
#: that said 4xx.
REFUSED = 3600.0
NOT_NOW = 300.0
#: Seconds for which DATA waits for the answers to RCPT, with a next hop that took a copy and no recipient.
ASK_FIRST = 3600.0
#: So many messages are remembered that go without a copy.
REMEMBERED = 10_000


class CopyMaker:
    """One engine's. ``always``: every transaction has a copy (``on_uncertain = "verify"``)."""

    def __init__(self, settings: Loopback, key: bytes, clock: Clock, *, always: bool = False) -> None:
        self.settings = settings
        self._key = key
        self._clock = clock
        self._always = always
        #: Messages, by id, that are sent without; the oldest first.
        self._without: dict[str, None] = {}

    def of(self, delivery: Delivery, asks_first: Callable[[], bool] = lambda: False) -> Copies | None:
        """What a delivery's copies are made with; None for one that has none."""
        if delivery.id in self._without:
            return None
        if not self._always and not self.settings.wants(delivery.id, delivery.tag):
            return None
        if self.settings.mode == "token":
            return Copies(partial(self._address, delivery), asks_first=asks_first)
        if not delivery.message_id.startswith(f"<{delivery.id}@"):
            return None  # it would not be known again: outmail loopback --assign
        return Copies(lambda part: self.settings.address, by_id=True, asks_first=asks_first)

    def without(self, id: str) -> None:
        """This message goes without a copy from now on."""
        self._without[id] = None
        if len(self._without) > REMEMBERED:
            del self._without[next(iter(self._without))]

    def _address(self, delivery: Delivery, part: int) -> str:
        minute = self._clock.now() // MINUTE
        return self.settings.to(
            mint(self._key, Token(delivery.seq, delivery.owner, delivery.lease, part, minute))
        )


def pause_after(reply: Reply) -> float:
    """For how many seconds a next hop that said this to a copy gets none."""
    return NOT_NOW if reply.code // 100 == 4 and reply.code != 421 else REFUSED
