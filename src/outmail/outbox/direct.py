"""A report that the store does not take, handed straight to its relay.

Promises: the same checks, `[safety]`, passwords and rules of TLS as for mail that is stored; one attempt at
each relay of its route, one after the other, within the time given; no thread is needed.
Fails: never because of a relay: what was not taken is returned with the reason; `Refused` and `ConfigError`
from `compose`. Does not: store, or retry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from outmail.accept.acceptance import Terms, message_of
from outmail.clock import Clock
from outmail.config import Config
from outmail.intake import api
from outmail.model import Delivery, Leased, Message, Outcome, Reply, keyed_id
from outmail.policy.route import Relay, Routes
from outmail.system import host
from outmail.system.loading import loading
from outmail.wiring import spool_of, transports

if TYPE_CHECKING:
    from outmail.smtp.client import CopyTrouble
    from outmail.transport import Feed


def local_sender(config: Config) -> str:
    """user@origin, for whoever names no sender."""
    import getpass

    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "outmail"
    return f"{user}@{config.origin or config.hostname or host.hostname()}"


def terms(config: Config, routes: Routes) -> Terms:
    """What acceptance is bound to by a configuration."""
    return Terms(
        routes,
        config.message_size,
        config.recipients,
        config.only_to,
        config.redirect_to,
        config.retry.expire,
        config.hostname or "localhost",
        config.loopback if config.loopback.renames else None,
    )


class Direct:
    """The way past a store (`reports.door.Unstored`). ``route``: the name of the route of all that is
    sent.
    """

    def __init__(
        self, config: Config, routes: Routes, clock: Clock, route: str | None, exit_wait: float = 5.0
    ) -> None:
        self.config, self.routes, self.clock, self.exit_wait = config, routes, clock, exit_wait
        self._route = route

    @property
    def report_to(self) -> tuple[str, ...]:
        return self.config.to

    @property
    def report_templates(self) -> str:
        return self.config.templates

    @property
    def spool(self) -> str:
        return spool_of(self.config.store)

    def message_id(self, key: str) -> str:
        return f"<{keyed_id(key)}@{self.sender.rpartition('@')[2]}>"

    @property
    def sender(self) -> str:
        return self.config.sender or local_sender(self.config)

    def compose(self, words: dict[str, Any]) -> Message:
        """The arguments of `Outbox.report` → a complete message."""
        words = {**words, "route": self._route}
        words["sender"] = (words.pop("author", ""), self.sender)
        now = self.clock.now()
        draft = api.composed(now, self.config.hostname, self.config.origin, **words)
        return message_of(draft, terms(self.config, self.routes), now)

    def hand_over(self, message: Message, seconds: float) -> dict[str, str]:
        """One attempt; returns why, for each recipient that no relay took."""
        with loading:
            import asyncio

            from outmail.engine.handover import made

        deliveries = made(message, 0, (0, 0))
        try:
            asyncio.run(self._hand_over(deliveries, seconds))
        except Exception as problem:  # no password, or a loop that runs in this thread already
            for delivery in deliveries:
                delivery.all(_not_taken(str(problem) or type(problem).__name__))
        return dict(_left(deliveries))

    async def _hand_over(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        import asyncio

        routes = self.config.with_passwords(self.routes)
        make = transports(self.config)
        try:
            async with asyncio.timeout(seconds):
                for delivery in deliveries:
                    relays = routes.resolve(delivery.destination)
                    for relay in relays:
                        await attempt(make, relay, delivery)
                    if not relays:
                        delivery.all(_not_taken(f"no relay is known for {delivery.destination}"))
        except TimeoutError:
            for delivery in deliveries:
                delivery.all(_not_taken(f"no answer within {seconds:.1f} s"))


async def attempt(make: Callable[[Relay], Any], relay: Relay, delivery: Delivery) -> None:
    """One relay, for the recipients that no other one took. A later relay's word replaces an earlier
    one's.
    """
    rest = [r for r in delivery.recipients if r.outcome is None or r.outcome.kind != "delivered"]
    if not rest:
        return
    for recipient in rest:
        recipient.outcome = None
    part = _part(delivery, rest)
    feed: Feed = (one := _One(part))
    await make(relay).session(feed)
    part.all(one.failure or _not_taken(f"{relay.url} ended the session without an answer"))
    delivery.transcript += [*one.transcript, *part.transcript]


def _part(delivery: Delivery, recipients: list[Leased]) -> Delivery:
    """The same content for some of the recipients."""
    return replace(delivery, recipients=recipients, transcript=[])


def _not_taken(text: str) -> Outcome:
    return Outcome("deferred", "destination", "connect", Reply(0, text))


def _left(deliveries: Sequence[Delivery]) -> Iterator[tuple[str, str]]:
    for delivery in deliveries:
        for recipient in delivery.recipients:
            outcome = recipient.outcome
            if outcome is None or outcome.kind != "delivered":
                yield recipient.address, str(outcome.reply) if outcome is not None else "no answer"


def _soon(then: Callable[[Any], None], answer: Any) -> None:
    import asyncio

    asyncio.get_running_loop().call_soon(then, answer)


class _One:
    """A `transport.Feed` of one delivery."""

    ahead = False

    def __init__(self, delivery: Delivery) -> None:
        self._delivery: Delivery | None = delivery
        self.failure: Outcome | None = None
        #: The lines of the dialogue that belong to no delivery.
        self.transcript: Sequence[tuple[int, str, bytes]] = ()

    def take_now(self) -> Delivery | None:
        taken, self._delivery = self._delivery, None
        return taken

    def ask(self, then: Callable[[Delivery | None], None]) -> None:
        _soon(then, self.take_now())

    def leave(self) -> None:
        """Nothing was asked for that is not answered."""

    def dot(self, delivery: Delivery, recipients: Sequence[Leased], then: Callable[[bool], None]) -> None:
        _soon(then, True)

    def done(self, delivery: Delivery) -> None:
        """Its recipients have their outcomes."""

    def healthy(self, greeting: Sequence[tuple[int, str, bytes]] = ()) -> None:
        self.transcript = list(greeting)

    def refuses_ahead(self, reply: Reply) -> None:
        """There is nothing to send ahead."""

    def copy_trouble(self, trouble: CopyTrouble) -> None:
        """No copy of a report past the store comes home."""

    def failed(self, outcome: Outcome, transcript: Sequence[tuple[int, str, bytes]] = ()) -> None:
        self.failure, self.transcript = outcome, list(transcript)
