"""A next hop as the engine sees it: the deliveries that wait for it, the sessions that serve it, its pace.

`Hop` decides how many sessions run and how much may be leased for it; a `Seat` is one session's side
(`transport.Feed`).
Promises: a delivery given to a seat is in its hand (`flying`) until it is done; when a session ends for
whatever reason, what it still had in hand goes back or becomes uncertain (`Engine.abandoned`), and nothing
else is touched. A hop holds about a second's worth of mail, so a slow one does not fill the engine, and a
killed engine had little in hand.
Does not: know SMTP, or write anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from outmail.model import Delivery, Leased, Outcome, Reply
from outmail.policy.pace import Pace
from outmail.policy.route import Relay
from outmail.transport import Transport

if TYPE_CHECKING:
    from outmail.engine.engine import Engine

log = logging.getLogger("outmail.engine")

#: Recipients a hop may have leased: at first, and at most.
ALLOWANCE = 100
MOST = 1000


class Hop:
    """One next hop of one engine."""

    def __init__(self, engine: Engine, relay: Relay, transport: Transport) -> None:
        self.engine = engine
        self.relay = relay
        self.transport = transport
        self.pace = Pace(ceiling=relay.concurrency, rate=relay.rate)
        self.queue: deque[Delivery] = deque()
        self.waiting: deque[Seat] = deque()
        self.seats: set[Seat] = set()
        #: Recipients leased and not yet settled or returned.
        self.out = 0
        #: Sessions that were told to end because other engines share the limit now.
        self.leaving = 0
        #: False when the next hop refuses what is sent ahead.
        self.ahead = True
        self._allowance = ALLOWANCE
        self._filled = 0.0
        self.pace.divide(relay.concurrency, relay.rate, engine.engines)

    # -- how much --------------------------------------------------------------------------------------------

    def room(self) -> int:
        """How many recipients may be leased for this hop now; 1 for a probe."""
        now = self.engine.loop.time()
        if not self.pace.has_room(now):
            return 0
        if self.pace.tripped:
            return 1 if not self.out else 0
        if self.pace.rate:
            return max(0, int(2 * self.pace.rate) + 1 - self.out)
        if self.out >= self._allowance // 2:
            return 0
        if not self.queue and self.seats:
            self._allowance = min(MOST, self._allowance * 2)
        elif self.queue and now - self._filled > 1.0:
            self._allowance = max(ALLOWANCE, self._allowance // 2)
        return self._allowance - self.out

    def push(self, delivery: Delivery) -> None:
        self.queue.append(delivery)
        self._filled = self.engine.loop.time()

    # -- sessions --------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Give to idle sessions, and open new ones as the pace allows. Sessions that were given one take the
        next by themselves.
        """
        if self.engine.stopping or not self.engine.standing():
            return
        wake = -(-len(self.queue) // self.pace.bunch)
        while wake > 0 and self.queue and self.waiting:
            wake -= 1
            self.waiting.popleft().give(self.queue.popleft())
        now = self.engine.loop.time()
        wanted = min(len(self.queue), 1 + len(self.queue) // 4)
        while wanted > 0 and self.queue and self.pace.may_open(len(self.seats), now):
            if self.pace.tripped and self.seats:
                return
            self.pace.opening()
            seat = Seat(self)
            self.seats.add(seat)
            seat.task = self.engine.loop.create_task(self.transport.session(seat))
            seat.task.add_done_callback(lambda task, seat=seat: self._ended(seat, task))  # type: ignore[misc]
            wanted -= 1

    def tidy(self) -> None:
        """Send sessions home that have had nothing to do for the engine's idle time."""
        before = self.engine.loop.time() - self.engine.idle
        for seat in list(self.waiting):
            seat.idle(before)

    def stop(self) -> list[Delivery]:
        """Send idle sessions home; returns what waits and is not in a session's hand."""
        rest, self.queue = list(self.queue), deque()
        for seat in self.seats:
            rest += seat.stop()
        return rest

    def held(self) -> Iterator[Delivery]:
        """What waits and what is in the sessions' hands."""
        yield from self.queue
        for seat in self.seats:
            yield from seat.flying

    def drop(self) -> list[Delivery]:
        """Others may have all of it: hang up where no final dot is out; returns what waited."""
        rest, self.queue = list(self.queue), deque()
        for seat in self.seats:
            rest += seat.drop()
        return rest

    def _ended(self, seat: Seat, task: asyncio.Task[None]) -> None:
        self.seats.discard(seat)
        self.leaving -= seat.sent_home
        seat.leave()
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error(
                "a session with %s broke off by a bug of outmail; its mail goes back to the queue",
                self.relay.name,
                exc_info=problem,
            )
            self.pace.fault(self.engine.loop.time(), f"bug: {problem!r}", fatal=True)
            self.engine.hop_failed(
                self,
                Outcome(
                    "deferred", "destination", "connect", Reply(0, f"internal error: {problem!r}"), fault=True
                ),
            )
        if self.pace.tripped and not self.seats:
            self.pace.probing = False
        self.engine.abandoned(seat)
        self.serve()
        self.engine.wake()


class Seat:
    """One session's feed. What it gave to the session is ``flying`` until done."""

    def __init__(self, hop: Hop) -> None:
        self.hop = hop
        self.task: asyncio.Task[None] | None = None
        self.flying: set[Delivery] = set()
        self._engine = hop.engine
        self._then: Callable[[Delivery | None], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._late: Delivery | None = None
        self._since = 0.0
        self.sent_home = False

    # -- the feed -------------------------------------------------------------------------------------------

    def take_now(self) -> Delivery | None:
        """Without waiting; a rate limit means waiting."""
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
        self._engine.begin(delivery)
        return delivery

    def ask(self, then: Callable[[Delivery | None], None]) -> None:
        loop = self._engine.loop
        self._then = then
        if self._engine.stopping or self._too_many():
            loop.call_soon(self._tell, None)
            return
        self.hop.waiting.append(self)
        self._since = loop.time()
        if self.hop.queue:
            loop.call_soon(self.hop.serve)

    def _too_many(self) -> bool:
        """True for sessions beyond the limit, which other engines share since this one was opened."""
        hop = self.hop
        if not self.sent_home and len(hop.seats) - hop.leaving > hop.pace.ceiling:
            self.sent_home = True
            hop.leaving += 1
        return self.sent_home

    def leave(self) -> None:
        """The session takes its wish back; what was meant for it goes to another."""
        self._then = None
        self._quiet()
        if self._late is not None:
            delivery, self._late = self._late, None
            self.flying.discard(delivery)
            self.hop.queue.appendleft(delivery)
            self._engine.loop.call_soon(self.hop.serve)

    def dot(self, delivery: Delivery, recipients: Sequence[Leased], then: Callable[[bool], None]) -> None:
        self._engine.dot(delivery, recipients, then)

    def done(self, delivery: Delivery) -> None:
        self.flying.discard(delivery)
        if delivery.started:
            self.hop.pace.lasted(self._engine.loop.time() - delivery.started)
        for recipient in delivery.recipients:
            if recipient.outcome is not None and recipient.outcome.scope not in ("destination", "session"):
                self.hop.pace.success()
                break
        self._engine.finished(self.hop, delivery)

    @property
    def ahead(self) -> bool:
        return self.hop.ahead

    def refuses_ahead(self, reply: Reply) -> None:
        self._engine.maintenance.refuses_ahead(self.hop, reply)

    def healthy(self) -> None:
        if self.hop.pace.tripped:
            name = self.hop.relay.name
            self._engine.seldom.say(logging.INFO, f"well {name}", "%s answers again", name)
            self._engine.maintenance.tell_hop(self.hop, None)
        self.hop.pace.success()

    def failed(self, outcome: Outcome, transcript: Sequence[tuple[int, str, bytes]] = ()) -> None:
        if not outcome.fault:
            return
        hop = self.hop
        fatal = outcome.stage in ("tls", "auth")
        if hop.pace.fault(self._engine.loop.time(), str(outcome.reply), fatal=fatal):
            text = "%s is paused: %s (%s); next probe in %.0f s"
            self._engine.seldom.say(
                logging.WARNING,
                f"paused {hop.relay.name}",
                text,
                hop.relay.name,
                outcome.reply,
                outcome.stage,
                hop.pace.pause,
            )
            self._engine.maintenance.tell_hop(hop, str(outcome.reply))
        self._engine.hop_failed(hop, outcome, transcript)

    # the hop's side
    # ------------------------------------------------------------------------------------------------

    def give(self, delivery: Delivery) -> None:
        """A delivery for a session that asked and was taken off the waiting; under a rate limit it may have
        to wait for its turn.
        """
        self.flying.add(delivery)
        pause = self.hop.pace.take(self._engine.loop.time()) if self.hop.pace.rate else 0.0
        if pause > 0:
            self._late = delivery
            self._timer = self._engine.loop.call_later(pause, self._tell, delivery)
        else:
            self._tell(delivery)

    def stop(self) -> list[Delivery]:
        """No more for this session; returns what it had not begun."""
        unbegun = [] if self._late is None else [self._late]
        self._late = None
        self.flying.difference_update(unbegun)
        self._quiet()
        self._tell(None)
        return unbegun

    def drop(self) -> list[Delivery]:
        """As `stop` for what is not begun; a session that waits for the answer to a final dot goes on, others
        in a dialogue are ended.
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
        """Send the session home if it has waited since before that moment."""
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
            self._engine.begin(delivery)
        then, self._then = self._then, None
        if then is not None:
            then(delivery)
