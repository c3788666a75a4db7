"""The seam between the engine and the ways to hand mail over.

A transport runs *sessions*: each pulls deliveries from its `Feed` until there are none, asks the feed before
each final dot, and reports each delivery when every recipient has its outcome. A failure to deliver is an
outcome, never an exception; an exception out of a session is our own bug, and the engine takes the mail back.
Answers come as calls (``then``), because a session that is a protocol object needs no task to wait in;
`Awaited` is the same feed for sessions written as coroutines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from outmail.model import Delivery, Leased, Outcome, Reply


class Feed(Protocol):
    """What the engine gives a session."""

    @property
    def ahead(self) -> bool:
        """May a session send the next envelope before the answer to the last final dot is read? May change at
        any time.
        """

    def refuses_ahead(self, reply: Reply) -> None:
        """The next hop does not take what is sent ahead; ``reply`` is what it said, code 0 when the session
        ended without a word.
        """

    def refuses_copy(self, delivery: Delivery, reply: Reply, *, whole: bool) -> None:
        """The next hop does not take the loopback copy of this delivery; ``whole``: it refused a transaction
        that had one as a whole, and may have meant the mail.
        """

    def take_now(self) -> Delivery | None:
        """The next delivery if one waits."""

    def ask(self, then: Callable[[Delivery | None], None]) -> None:
        """The next delivery later, by a call; None when the session should end."""

    def leave(self) -> None:
        """Take the last `ask` back."""

    def dot(self, delivery: Delivery, recipients: Sequence[Leased], then: Callable[[bool], None]) -> None:
        """Asks for a final dot: True when it is on record and may be sent."""

    def done(self, delivery: Delivery) -> None:
        """Every recipient of the delivery has its outcome."""

    def healthy(self, greeting: Sequence[tuple[int, str, bytes]] = ()) -> None:
        """The session is established; ``greeting`` is its transcript up to now."""

    def failed(self, outcome: Outcome, transcript: Sequence[tuple[int, str, bytes]] = ()) -> None:
        """The session ended; ``outcome.fault`` when connecting or shaking hands was the trouble, told by
        ``transcript``.
        """


class Awaited:
    """A feed whose answers can be awaited."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    async def take(self) -> Delivery | None:
        delivery = self._feed.take_now()
        if delivery is None:
            future: asyncio.Future[Delivery | None] = asyncio.get_running_loop().create_future()
            self._feed.ask(lambda answer: _resolve(future, answer))
            delivery = await future
        return delivery

    async def dot(self, delivery: Delivery, recipients: Sequence[Leased]) -> bool:
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._feed.dot(delivery, recipients, lambda answer: _resolve(future, answer))
        return await future


def _resolve(future: asyncio.Future[Any], answer: Any) -> None:
    if not future.done():
        future.set_result(answer)


class Transport(Protocol):
    """A way to one next hop."""

    async def session(self, feed: Feed) -> None:
        """Connect, work until the feed gives None, disconnect."""


__all__ = ["Awaited", "Feed", "Transport"]
