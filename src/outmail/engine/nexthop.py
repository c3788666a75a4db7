"""A next hop as the engine sees it: the deliveries that wait for it, the sessions that serve it, its pace.

`NextHop` decides how many sessions run and how much may be leased for it. A `SessionFeed` is what one session
sees of the engine (`transport.Feed`).
Promises: a delivery that a session got is in `SessionFeed.flying` until it is done. When a session ends, for
whatever reason, what it still had goes back or becomes uncertain (`Completing.abandoned`), and nothing else
changes. A next hop holds about a second's worth of mail, so a slow one does not fill the engine, and a killed
engine had little in hand.
Fails: a session that ends because of a bug pauses its next hop and is logged.
Does not: know SMTP, or store anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from outmail.model import Delivery, Leased, Outcome, Reply
from outmail.policy.pace import Pace
from outmail.policy.route import Relay
from outmail.smtp.client import CopyTrouble
from outmail.system.throttle import Throttle
from outmail.transport import Transport

log = logging.getLogger("outmail.engine")

#: How many recipients may be leased for a next hop: at first, and at most.
ALLOWANCE = 100
MOST = 1000
#: How many recipients and bytes of content may be in hand, for all next hops together.
WINDOW = 20_000
WINDOW_BYTES = 64 * 1024 * 1024
#: How many recipients one delivery has at most.
MAX_RECIPIENTS = 100


class Completing(Protocol):
    """Who is told what sessions do and find out (`completer`)."""

    def begin(self, delivery: Delivery) -> None:
        """A session is about to work on it."""

    def dot(self, delivery: Delivery, recipients: Sequence[Leased], then: Callable[[bool], None]) -> None:
        """A session asks for a final dot. ``then`` gets True when it is recorded and may be sent."""

    def finished(self, hop: NextHop, delivery: Delivery) -> None:
        """Every recipient of the delivery has its outcome."""

    def hop_failed(
        self, hop: NextHop, outcome: Outcome, transcript: Sequence[tuple[int, str, bytes]] = ()
    ) -> None:
        """A session could not be had."""

    def abandoned(self, feed: SessionFeed) -> None:
        """A session has ended. `SessionFeed.flying` is what it still had in hand."""


class Noting(Protocol):
    """Who keeps what is learned about next hops (`maintenance`)."""

    def paused(self, hop: NextHop, trouble: str) -> None:
        """It gets nothing for a while, for this reason."""

    def answers(self, hop: NextHop) -> None:
        """It takes part in a dialogue."""

    def refuses_ahead(self, hop: NextHop, reply: Reply) -> None:
        """It refuses an envelope that is sent before its answer to the final dot."""

    def copy_trouble(self, hop: NextHop, trouble: CopyTrouble) -> None:
        """It does not take the loopback copy of a delivery as it was sent."""


class Host(Protocol):
    """What a next hop needs of its engine."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    @property
    def completer(self) -> Completing: ...

    @property
    def maintenance(self) -> Noting: ...

    @property
    def throttle(self) -> Throttle: ...

    @property
    def stopping(self) -> bool:
        """True when no session may begin anything more."""

    @property
    def idle(self) -> float:
        """Seconds after which a session with nothing to do is ended."""

    @property
    def engines(self) -> int:
        """How many engines share the limits of next hops."""

    def standing(self) -> bool:
        """True while the engine's leases are certainly its own."""

    def wake(self) -> None:
        """A session has ended: there may be room."""


class NextHop:
    """One next hop of one engine."""

    def __init__(self, engine: Host, relay: Relay, transport: Transport) -> None:
        self.engine = engine
        self.relay = relay
        self.transport = transport
        self.pace = Pace(ceiling=relay.concurrency, rate=relay.rate)
        self.queue: deque[Delivery] = deque()
        self.waiting: deque[SessionFeed] = deque()
        self.feeds: set[SessionFeed] = set()
        #: How many recipients are leased and not yet settled or put back.
        self.out = 0
        #: How many sessions were told to end because more engines share the limit now.
        self.leaving = 0
        #: False when the next hop refuses an envelope that is sent before its answer to the final dot.
        self.ahead = True
        #: Loop time from which on it gets loopback copies, and until which `asks_first` holds.
        self.copies_from = self.asks_first_until = 0.0
        #: True when its relay is no longer configured like this: its sessions begin nothing more.
        self.retired = False
        self._allowance = ALLOWANCE
        self._filled = 0.0
        self.pace.divide(relay.concurrency, relay.rate, engine.engines)

    # -- how much --------------------------------------------------------------------------------------------

    def room(self) -> int:
        """How many recipients may be leased for this next hop now; 1 for a probe."""
        now = self.engine.loop.time()
        if not self.pace.has_room(now):
            return 0
        if self.pace.tripped:
            return 1 if not self.out else 0
        if self.pace.rate:
            return max(0, int(2 * self.pace.rate) + 1 - self.out)
        if self.out >= self._allowance // 2:
            return 0
        if not self.queue and self.feeds:
            self._allowance = min(MOST, self._allowance * 2)
        elif self.queue and now - self._filled > 1.0:
            self._allowance = max(ALLOWANCE, self._allowance // 2)
        return self._allowance - self.out

    def asks_first(self) -> bool:
        """Must it accept a recipient before it gets DATA in a transaction with a loopback copy?"""
        return self.engine.loop.time() < self.asks_first_until

    def push(self, delivery: Delivery) -> None:
        self.queue.append(delivery)
        self._filled = self.engine.loop.time()

    # -- sessions --------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Give deliveries to idle sessions, and open new sessions as the pace allows. A session that has got
        one takes further ones by itself.
        """
        if self.engine.stopping or not self.engine.standing():
            return
        wake = -(-len(self.queue) // self.pace.bunch)
        while wake > 0 and self.queue and self.waiting:
            wake -= 1
            self.waiting.popleft().give(self.queue.popleft())
        now = self.engine.loop.time()
        wanted = min(len(self.queue), 1 + len(self.queue) // 4)
        while wanted > 0 and self.queue and self.pace.may_open(len(self.feeds), now):
            if self.pace.tripped and self.feeds:
                return
            self.pace.opening()
            feed = SessionFeed(self)
            self.feeds.add(feed)
            feed.task = self.engine.loop.create_task(self.transport.session(feed))
            feed.task.add_done_callback(lambda task, feed=feed: self._ended(feed, task))  # type: ignore[misc]
            wanted -= 1

    def tidy(self) -> None:
        """End sessions that have had nothing to do for the engine's idle time."""
        before = self.engine.loop.time() - self.engine.idle
        for feed in list(self.waiting):
            feed.idle(before)

    def stop(self) -> list[Delivery]:
        """End idle sessions. Returns the waiting deliveries that no session has."""
        rest, self.queue = list(self.queue), deque()
        for feed in self.feeds:
            rest += feed.stop()
        return rest

    def recall(self) -> list[Delivery]:
        """Take back the deliveries that no session has begun; sessions go on."""
        rest, self.queue = list(self.queue), deque()
        for feed in self.feeds:
            rest += feed.recall()
        return rest

    def retire(self) -> list[Delivery]:
        """`stop` for a next hop that another one replaces while the engine goes on."""
        self.retired = True
        return self.stop()

    def held(self) -> Iterator[Delivery]:
        """The waiting deliveries and those that sessions have."""
        yield from self.queue
        for feed in self.feeds:
            yield from feed.flying

    def drop(self) -> list[Delivery]:
        """Other engines may have taken over everything: end sessions except where a final dot is out. Returns
        the deliveries that waited.
        """
        rest, self.queue = list(self.queue), deque()
        for feed in self.feeds:
            rest += feed.drop()
        return rest

    def _ended(self, feed: SessionFeed, task: asyncio.Task[None]) -> None:
        self.feeds.discard(feed)
        self.leaving -= feed.sent_home
        feed.leave()
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error(
                "a session with %s ended because of a bug of outmail; its mail goes back into the queue",
                self.relay.name,
                exc_info=problem,
            )
            self.pace.fault(self.engine.loop.time(), f"bug: {problem!r}", fatal=True)
            self.engine.completer.hop_failed(
                self,
                Outcome(
                    "deferred", "destination", "connect", Reply(0, f"internal error: {problem!r}"), fault=True
                ),
            )
        if self.pace.tripped and not self.feeds:
            self.pace.probing = False
        self.engine.completer.abandoned(feed)
        self.serve()
        self.engine.wake()


class SessionFeed:
    """What one session sees of the engine: a `transport.Feed`. ``flying``: the deliveries that it gave to the
    session and that are not done.
    """

    def __init__(self, hop: NextHop) -> None:
        self.hop = hop
        self.task: asyncio.Task[None] | None = None
        self.flying: set[Delivery] = set()
        self._engine = hop.engine
        self._completer = hop.engine.completer
        self._then: Callable[[Delivery | None], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._late: Delivery | None = None
        self._since = 0.0
        self.sent_home = False

    # -- the feed -------------------------------------------------------------------------------------------

    def take_now(self) -> Delivery | None:
        """The next delivery, without waiting; None also when a rate limit says to wait."""
        hop = self.hop
        if (
            not hop.queue
            or hop.pace.rate
            or self._engine.stopping
            or self._too_many()
            or not self._engine.standing()
        ):
            return None
        delivery = hop.queue.popleft()
        self.flying.add(delivery)
        self._completer.begin(delivery)
        return delivery

    def ask(self, then: Callable[[Delivery | None], None]) -> None:
        loop = self._engine.loop
        self._then = then
        if self._engine.stopping or self.hop.retired or self._too_many():
            loop.call_soon(self._tell, None)
            return
        self.hop.waiting.append(self)
        self._since = loop.time()
        if self.hop.queue:
            loop.call_soon(self.hop.serve)

    def _too_many(self) -> bool:
        """True when this session is beyond the limit, because other engines share it since the session was
        opened.
        """
        hop = self.hop
        if not self.sent_home and len(hop.feeds) - hop.leaving > hop.pace.ceiling:
            self.sent_home = True
            hop.leaving += 1
        return self.sent_home

    def leave(self) -> None:
        """The session no longer asks; what was meant for it goes to another one."""
        self._then = None
        self._quiet()
        if self._late is not None:
            delivery, self._late = self._late, None
            self.flying.discard(delivery)
            self.hop.queue.appendleft(delivery)
            self._engine.loop.call_soon(self.hop.serve)

    def dot(self, delivery: Delivery, recipients: Sequence[Leased], then: Callable[[bool], None]) -> None:
        self._completer.dot(delivery, recipients, then)

    def done(self, delivery: Delivery) -> None:
        self.flying.discard(delivery)
        if delivery.started:
            self.hop.pace.lasted(self._engine.loop.time() - delivery.started)
        for recipient in delivery.recipients:
            if recipient.outcome is not None and recipient.outcome.scope not in ("destination", "session"):
                self.hop.pace.success()
                break
        self._completer.finished(self.hop, delivery)

    @property
    def ahead(self) -> bool:
        return self.hop.ahead

    def refuses_ahead(self, reply: Reply) -> None:
        self._engine.maintenance.refuses_ahead(self.hop, reply)

    def copy_trouble(self, trouble: CopyTrouble) -> None:
        self._engine.maintenance.copy_trouble(self.hop, trouble)

    def healthy(self, greeting: Sequence[tuple[int, str, bytes]] = ()) -> None:
        if self.hop.pace.tripped:
            name = self.hop.relay.name
            self._engine.throttle.say(logging.INFO, f"well {name}", "%s answers again", name)
        self._engine.maintenance.answers(self.hop)
        self.hop.pace.success()

    def failed(self, outcome: Outcome, transcript: Sequence[tuple[int, str, bytes]] = ()) -> None:
        if not outcome.fault:
            return
        hop = self.hop
        fatal = outcome.stage in ("tls", "auth")
        if hop.pace.fault(self._engine.loop.time(), str(outcome.reply), fatal=fatal):
            text = "%s is paused: %s (%s); next probe in %.0f s"
            self._engine.throttle.say(
                logging.WARNING,
                f"paused {hop.relay.name}",
                text,
                hop.relay.name,
                outcome.reply,
                outcome.stage,
                hop.pace.pause,
            )
            self._engine.maintenance.paused(hop, str(outcome.reply))
        self._completer.hop_failed(hop, outcome, transcript)

    # -- the next hop's side --------------------------------------------------------------------------------

    def give(self, delivery: Delivery) -> None:
        """Give a delivery to a session that has asked. With a rate limit it may have to wait for its turn."""
        self.flying.add(delivery)
        pause = self.hop.pace.take(self._engine.loop.time()) if self.hop.pace.rate else 0.0
        if pause > 0:
            self._late = delivery
            self._timer = self._engine.loop.call_later(pause, self._tell, delivery)
        else:
            self._tell(delivery)

    def stop(self) -> list[Delivery]:
        """Give this session nothing more. Returns the deliveries that it had not begun."""
        unbegun = [] if self._late is None else [self._late]
        self._late = None
        self.flying.difference_update(unbegun)
        self._quiet()
        self._tell(None)
        return unbegun

    def recall(self) -> list[Delivery]:
        """Take back a delivery that waits for its turn; the session waits for another one."""
        if self._late is None:
            return []
        late, self._late = self._late, None
        self.flying.discard(late)
        self._quiet()
        self.hop.waiting.append(self)
        return [late]

    def drop(self) -> list[Delivery]:
        """`stop`, and end the session if it is in a dialogue; but a session that waits for the answer to a
        final dot goes on.
        """
        unbegun = [] if self._late is None else [self._late]
        self._late = None
        self.flying.difference_update(unbegun)
        if unbegun:
            self._quiet()
            self._tell(None)
        elif (
            self.flying
            and self.task is not None
            and not any(r.dotted for delivery in self.flying for r in delivery.recipients)
        ):
            self.task.cancel()
        return unbegun

    def idle(self, before: float) -> None:
        """End the session if it has waited since before that moment."""
        if self._since < before:
            self._quiet()
            self._tell(None)

    def _quiet(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self in self.hop.waiting:
            self.hop.waiting.remove(self)

    def _tell(self, delivery: Delivery | None) -> None:
        if delivery is not None and not self._engine.standing():
            self._late, self._timer = delivery, self._engine.loop.call_later(1.0, self._tell, delivery)
            return
        self._late = None
        if delivery is not None:
            self._completer.begin(delivery)
        then, self._then = self._then, None
        if then is not None:
            then(delivery)
