"""The seam between the engine and the ways to hand mail over.

A transport runs *sessions*: it pulls deliveries from a `Feed` until there are none, asks the feed before each final
dot, and reports each delivery when every recipient has its outcome. A failure to deliver is an outcome, never an
exception; an exception out of a session is our own bug, and the engine takes the mail back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from outmail.model import Delivery, Leased, Outcome


class Feed(Protocol):
    """What the engine gives a session."""

    def take_now(self) -> Delivery | None:
        """The next delivery if one waits."""

    async def take(self) -> Delivery | None:
        """The next delivery; None when the session should end."""

    async def dot(self, delivery: Delivery, recipients: Sequence[Leased]) -> bool:
        """True when the final dot is on record and may be sent."""

    def done(self, delivery: Delivery) -> None:
        """Every recipient of the delivery has its outcome."""

    def healthy(self) -> None:
        """The session is established."""

    def failed(self, outcome: Outcome, transcript: Sequence[tuple[int, str, bytes]] = ()) -> None:
        """The session ended; ``outcome.fault`` when connecting or shaking hands was the trouble, told by ``transcript``."""


class Transport(Protocol):
    """A way to one next hop."""

    async def session(self, feed: Feed) -> None:
        """Connect, work until the feed gives None, disconnect."""


__all__ = ["Feed", "Transport"]
