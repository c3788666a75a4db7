"""The interface between the engine and the ways to deliver mail.

A transport runs *sessions*. Each session takes deliveries from its `Feed` until there are none, asks the feed
before each final dot, and reports a delivery when every recipient has its outcome. A failed delivery is an
outcome, never an exception. An exception from a session is a bug of ours; the engine then puts the mail back
into the queue.
Answers come as calls (``then``), so that a session which is a protocol object needs no task that waits.
`Awaited` is the same feed for sessions written as coroutines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from outmail.model import Delivery, Leased, Outcome, Reply
from outmail.smtp.client import CopyTrouble


class Feed(Protocol):
    """What the engine gives a session."""

    @property
    def ahead(self) -> bool:
        """True when the session may send the next envelope before it has read the answer to the last final
        dot. May change at any time.
        """

    def refuses_ahead(self, reply: Reply) -> None:
        """The next hop refuses an envelope that is sent early. ``reply`` is its answer; code 0 when it ended
        the session without one.
        """

    def copy_trouble(self, trouble: CopyTrouble) -> None:
        """The next hop does not take the loopback copy of a delivery as it was sent."""

    def take_now(self) -> Delivery | None:
        """The next delivery, if one waits."""

    def ask(self, then: Callable[[Delivery | None], None]) -> None:
        """Ask for the next delivery; it comes by a call. None means that the session should end."""

    def leave(self) -> None:
        """Withdraw the last `ask`."""

    def dot(self, delivery: Delivery, recipients: Sequence[Leased], then: Callable[[bool], None]) -> None:
        """Ask for a final dot. ``then`` gets True when it is recorded and may be sent."""

    def done(self, delivery: Delivery) -> None:
        """Every recipient of the delivery has its outcome."""

    def healthy(self, greeting: Sequence[tuple[int, str, bytes]] = ()) -> None:
        """The session is established; ``greeting`` is its transcript up to now."""

    def failed(self, outcome: Outcome, transcript: Sequence[tuple[int, str, bytes]] = ()) -> None:
        """The session has ended with a failure. ``outcome.fault`` is True when connecting or a handshake
        failed; ``transcript`` shows it.
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
    """A way to deliver to one next hop."""

    async def session(self, feed: Feed) -> None:
        """Connect, deliver until the feed gives None, disconnect."""


__all__ = ["Awaited", "Feed", "Transport"]
