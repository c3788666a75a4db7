"""The engine: the only way out. Leases, lets transports attempt, settles.

Theory of operation
  One asyncio loop. Each next hop (`hop.Hop`) has a queue of leased deliveries and a few sessions that pull
  from it. What sessions learn is gathered and written together (`commits.Committer`): settles, returns and
  the next lease share one transaction. Before final dots go out, those of a turn are put on record together
  (`store.dots`); no record, no dot. No transaction is open while the network is used, and leasing never
  touches a destination without room.
Promises: what was leased is settled, returned, or found by `reclaim`; what others may have taken meanwhile is
dropped, and no dialogue and no final dot begins for it; a clock that is set makes nothing older; outcomes
learned while the store was away are kept and written when it is back; SIGTERM (`stop`) lets dialogues in
flight finish and returns the rest; a bug of ours gives mail back and is logged, it never fails a recipient.
Fails: never by raising into the program; it logs and waits. Does not: accept, compose, or know SMTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from outmail.clock import Clock
from outmail.engine.maintenance import Maintenance
from outmail.engine.nexthop import MOST, Hop, Seat
from outmail.engine.settings import Settings
from outmail.errors import ConfigError
from outmail.model import Delivery, Leased, Message, Outcome, Reply, Settled, Verdict
from outmail.policy.retry import verdict
from outmail.policy.route import Relay, Routes, allowed
from outmail.store import Store, Trouble
from outmail.store.commit_loop import Committer
from outmail.system.threads import Worker
from outmail.system.throttle import Seldom
from outmail.transport import Transport

log = logging.getLogger("outmail.engine")

#: Recipients and bytes of content in hand, over all next hops.
WINDOW = 20_000
WINDOW_BYTES = 64 * 1024 * 1024
POLL = 0.1
SETTLE_BATCH = 200
SETTLE_DELAY = 0.01
MAX_RECIPIENTS = 100
#: After so many seconds in a session without harm a suspect is not suspected if the engine dies.
HARMLESS = 1.0
#: Seconds between two complaints about the same trouble.
AGAIN = 60.0
#: How long `stop` lets dialogues in flight go on.
PATIENCE = 60.0
#: How long a session that is broken off may take to end what it has begun.
ENDING = 5.0
#: How long the end waits for a store that does not take the last outcomes.
LAST_WORDS = 10.0


class Engine:
    """One engine on one store. `run` is its life; `stop` and `wake` may be called from any thread."""

    def __init__(
        self,
        store: Store,
        routes: Routes,
        transport: Callable[[Relay], Transport],
        settings: Settings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.store = store
        self.routes = routes
        self.settings = settings or Settings()
        self.clock = clock or Clock()
        self.stopping = False
        #: By what name the store knows it; "" before it was let in, and once it leaves. May be read from any
        #: thread.
        self.name = ""
        self.idle = 60.0
        self.seldom = Seldom(log)
        #: How many engines share the limits of next hops.
        self.engines = 1
        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]
        self.commits: Committer = None  # type: ignore[assignment]
        self.maintenance: Maintenance = None  # type: ignore[assignment]
        self._transport = transport
        #: Next hops in use, by the relay's name.
        self.hops: dict[str, Hop] = {}
        #: Our registration with the store.
        self.owner: Any = None
        self._number = 0
        self._out = 0
        self._bytes = 0
        self._learned: list[Settled] = []
        #: Deliveries whose outcome is known and not on record: learned, or in a commit under way.
        self._unsettled = 0
        self._withheld = False
        self._returns: list[Delivery] = []
        #: Numbers of leases that may stand in the store without our knowing what they hold.
        self._lost: list[tuple[int, int]] = []
        #: We are becoming another engine, because others may have taken what this one held.
        self._anew = False
        self._reader: Worker | None = None
        self._asking = False
        self._dots: list[tuple[Delivery, Sequence[Leased], Callable[[bool], None]]] = []
        self._leasing = False
        self._awake: asyncio.Event = None  # type: ignore[assignment]
        self._ready: asyncio.Event = None  # type: ignore[assignment]
        self._wakes, self._looked = 1, 0
        #: A lease has taken something since the last time one found less than there was room for.
        self._stirred = False
        self._next: dict[str, int] = {}
        self._held_until = 0.0
        #: The last trouble of the store that was logged, and when it may be logged again.
        self._told = ("", 0.0)
        self._once_before: int | None = None
        self._suspect: Delivery | None = None
        self._only: int | None = None
        self.counts = {
            "delivered": 0,
            "deferred": 0,
            "refused": 0,
            "unknown": 0,
            "quarantined": 0,
            "expired": 0,
        }

    # -- life ------------------------------------------------------------------------------------------------

    async def run(self, *, once: bool = False, first: Callable[[], object] | None = None) -> None:
        """Work until `stop`; with ``once`` until everything that was due at the start had one attempt.
        ``first`` is called, on a thread of its own, once the store has let the engine in and before it is
        looked what is due.
        """
        self.loop = asyncio.get_running_loop()
        self._awake = asyncio.Event()
        self._ready = self._ready or asyncio.Event()
        self.commits = Committer(self.store, self.loop)
        self.commits.contributor(self._contribute)
        self.maintenance = Maintenance(self, self.store, self.commits, self.loop, self.clock, self.settings)
        self._reader = Worker("reader") if self.store.blocking else None
        if once:
            self.idle = 0.05
        try:
            if not await self._register():
                return
            self._ready.set()
            try:
                await self.maintenance.begin()
                if first is not None:
                    await self._prelude(first)
                self._once_before = self.clock.now() if once else None
                if self.settings.only:
                    self._only = self.store.read(self.store.verbs.seq_of(self.settings.only))
                await self._turns(once)
            finally:
                await self._leave()
        finally:
            self.commits.close()
            if self._reader is not None:
                self._reader.close()

    async def _prelude(self, first: Callable[[], object]) -> None:
        """Meanwhile signs of life are given."""
        worker = Worker("prelude")
        over = asyncio.ensure_future(worker.run(first))
        try:
            await self.maintenance.meanwhile(over)
            over.result()
        finally:
            worker.close()

    async def _turns(self, once: bool) -> None:
        while not self.stopping:
            self._look()
            if once and self._exhausted():
                break
            self._awake.clear()
            try:
                async with asyncio.timeout(self._pause()):
                    await self._awake.wait()
            except TimeoutError:
                pass

    def _look(self) -> None:
        """One look at store and queue. A bug of ours delays mail and is loud; it does not end the engine."""
        try:
            self.maintenance.look()
            for hop in self.hops.values():
                if hop.waiting:
                    hop.tidy()
                # all may have ended while the lease did not stand
                if hop.waiting or (hop.queue and not hop.seats):
                    hop.serve()
            if self.hungry or self.store.changed():
                self._ask_next()
            self.commits.flush()
        except Trouble as problem:
            self._complain(problem)
        except Exception:
            log.exception("a bug of outmail; mail stays queued, the engine goes on")
            self.maintenance.postpone(5.0)

    def _ask_next(self) -> None:
        """When each destination has something to do."""
        wakes = self._wakes

        def ask() -> dict[str, int]:
            return self.store.read(self.store.verbs.next_due(self.clock.now()))

        def told(answer: Any) -> None:
            self._asking = False
            if isinstance(answer, BaseException):
                self.failed("a look at the queue", answer)
                return
            self._next = answer
            self._looked = wakes  # only now: `quiet` may be asked meanwhile
            self.commits.flush()
            self._awake.set()

        if self._reader is None:
            self._next = ask()
            self._looked = wakes
        elif not self._asking:
            self._asking = True
            self._reader.call(ask, told)

    async def ready(self) -> None:
        """Until the store has let the engine in; then others may use its `commits`."""
        self._ready = self._ready or asyncio.Event()
        await self._ready.wait()

    def stop(self) -> None:
        """Finish what is in flight, return the rest, end."""
        self.stopping = True
        self.wake()

    def wake(self) -> None:
        """Look at the queue now."""
        self._wakes += 1
        if self.loop is None:
            return
        try:
            self.loop.call_soon_threadsafe(self._awake.set)
        except RuntimeError:
            pass  # the loop is closed: the engine has ended

    def look_again(self) -> None:
        """`wake` for whoever is in the loop already."""
        self._wakes += 1
        self._awake.set()

    @property
    def hungry(self) -> bool:
        """True when something may be due that `_next` does not know of."""
        return self._wakes != self._looked

    def quiet(self) -> bool:
        """True when there is nothing in hand and nothing that could be tried now. May be asked from any
        thread.
        """
        if self.commits is None or self.hungry or self._out or self._unwritten():
            return False
        now = self.clock.now()
        return not any(due <= now and self._pressable(name) for name, due in list(self._next.items()))

    def _unwritten(self) -> bool:
        return bool(self._learned or self._returns or self._asking) or not self.commits.idle

    def _pressable(self, destination: str) -> bool:
        relays = self.routes.resolve(destination)
        return any((hop := self.hops.get(relay.name)) is None or not hop.pace.tripped for relay in relays)

    async def _register(self) -> bool:
        while not self.stopping:
            try:
                self.owner = self.store.register(self.clock.now())
                self._refuse_when_moving(self.owner)
                self.name = self.owner.uuid
                self.store.follow(self.wake)
                return True
            except Trouble as problem:
                if not problem.passing:
                    raise
                log.error("the store does not let the engine in: %s", problem)
                await asyncio.sleep(1)
        return False

    def standing(self) -> bool:
        """True while what we hold is certainly ours."""
        return self.owner.stands()  # type: ignore[no-any-return]

    def ours(self, delivery: Delivery) -> bool:
        """False for what was leased before we began anew."""
        return delivery.owner == self.owner.id and not self.owner.lost

    def begin(self, delivery: Delivery) -> None:
        """A session is about to work on it: if we die of that, our record says so."""
        self.owner.begin(delivery)
        if self._suspect is delivery:
            self.loop.call_later(HARMLESS, self._no_harm, delivery)

    def _no_harm(self, delivery: Delivery) -> None:
        if self._suspect is delivery:
            self.owner.harmless(delivery)

    def begin_anew(self) -> None:
        """Our lease was lost: others have, or will have, what we held. It is dropped; a final dot that is out
        is still listened to.
        """
        if self._anew:
            return
        self._anew = True
        dropped = self._out
        for hop in self.hops.values():
            for delivery in hop.drop():
                self._release(hop, delivery)
        self._returns = []
        log.warning(
            "this engine lost its lease, because it was stopped or cut off from the store: %d recipients are "
            "left to others, and it begins anew",
            dropped,
        )
        self.commits.call(self._known_anew, self._begun_anew)

    def _known_anew(self) -> Any:
        """On the writer's thread."""
        owner = self.store.register(self.clock.now())
        self._refuse_when_moving(owner)
        return owner

    def _begun_anew(self, answer: Any) -> None:
        self._anew = False
        if isinstance(answer, ConfigError):
            log.error("this engine ends: %s (%s)", answer, answer.hint)
            self.stop()
            return
        if isinstance(answer, BaseException):
            self.failed("a new registration", answer)  # the next look tries again
            return
        before, self.owner = self.owner, answer
        self.name = answer.uuid
        before.file.close()
        self.look_again()

    def _refuse_when_moving(self, owner: Any) -> None:
        """After we are known: `ops.move` writes its note first and looks for engines then, so one of the two
        sees the other.
        """
        found = self.store.read(self.store.verbs.note_get("store", "moving"))
        if found:
            owner.close()
            raise ConfigError(
                f"the queue is being moved to {found[0]['to']}",
                hint=f"finish that first: outmail move {self.store.url} {found[0]['to']}, or give it up: "
                f"outmail move --abandon {self.store.url}",
            )

    async def _leave(self) -> None:
        self.stopping = True
        self.name = ""
        for hop in self.hops.values():
            for delivery in hop.stop():
                self._give_back(hop, delivery)
        seats = [seat for hop in self.hops.values() for seat in hop.seats]
        tasks = [seat.task for seat in seats if seat.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=PATIENCE)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=ENDING)  # they end what they have begun, such as a program
        for seat in seats:
            self.abandoned(seat)
        for hop in self.hops.values():
            for delivery in hop.stop():
                self._give_back(hop, delivery)
        deadline = self.loop.time() + LAST_WORDS
        self._held_until = 0.0
        if self.settings.service:
            self.commits.ask(self.store.verbs.note_drop("engine", "service"), lambda answer: None)
        while self._unwritten() and self.loop.time() < deadline:
            self.commits.flush()
            await asyncio.sleep(0.01)
        self.owner.close()

    def _pause(self) -> float:
        now = self.clock.now()
        ahead = [due - now for due in self._next.values() if due > now]
        probes = [
            hop.pace.open_until - self.loop.time()
            for hop in self.hops.values()
            if hop.pace.tripped and not hop.pace.probing
        ]
        soonest = min([POLL * 1000, *ahead]) / 1000
        return max(0.005, min([soonest, *(max(0.005, probe) for probe in probes)]))

    def _exhausted(self) -> bool:
        """For one run: nothing in hand, and nothing due that could still be tried."""
        if self._out or self._unwritten():
            return False
        return not self._room()

    # -- leasing ---------------------------------------------------------------------------------------------

    def _room(self) -> dict[str, int]:
        """How many recipients of each destination may be leased now."""
        before = self._once_before if self._once_before is not None else self.clock.now()
        free = WINDOW - self._out
        room: dict[str, int] = {}
        shared: dict[Hop, list[str]] = {}
        for name, due in self._next.items():
            if due <= before and (hop := self._hop(name)) is not None:
                shared.setdefault(hop, []).append(name)
        for hop, names in shared.items():
            spare = min(hop.room(), free // len(shared))
            share = spare // len(names)
            if share == 0:  # too little for all, such as a probe: they take turns
                turn = self._number % len(names)
                room.update(dict.fromkeys([*names[turn:], *names[:turn]][:spare], 1))
                continue
            if share > 2 * MAX_RECIPIENTS:
                share -= share % MAX_RECIPIENTS  # whole transactions of messages with very many recipients
            room.update(dict.fromkeys(names, share))
        return room

    def _hop(self, destination: str) -> Hop | None:
        """The next hop a destination's mail takes now: the first of its relays that may be pressed."""
        now = self.loop.time()
        for relay in self.routes.resolve(destination):
            hop = self.hops.get(relay.name)
            if hop is None or hop.relay != relay:
                hop = self.hops[relay.name] = Hop(self, relay, self._transport(relay))
                hop.ahead = self.maintenance.may_send_ahead(relay)
            if hop.pace.has_room(now):
                return hop
        return None

    def _ask_lease(self) -> None:
        room = {} if self.stopping or self._leasing or not self.standing() else self._room()
        if not room:
            return
        self._leasing = True
        self._number += 1
        # first, in the same transaction: what is too old by now is not sent any more
        if self.loop.time() >= self.maintenance.expire_at:
            self.maintenance.expire()
        before = self._once_before if self._once_before is not None else self.clock.now()
        lease = self.store.verbs.lease(
            self.owner.id,
            self._number,
            room,
            before,
            turn=self._number,
            budget=max(1, WINDOW_BYTES - self._bytes),
            suspects=self._suspect is None,
            only=self._only,
        )
        self.commits.ask(lease, partial(self._leased, room, (self.owner.id, self._number)))

    def _leased(
        self, room: dict[str, int], lease: tuple[int, int], answer: list[Delivery] | BaseException
    ) -> None:
        self._leasing = False
        if isinstance(answer, BaseException):
            self._lost.append(lease)
            self.failed("a lease", answer)
            return
        found: Counter[str] = Counter()
        for delivery in answer:
            found[delivery.destination] += len(delivery.recipients)
        for name in room:
            if not found[name]:
                self._next.pop(name, None)
        self._stirred = self._stirred or bool(answer)
        if self._stirred and any(found[name] < wanted for name, wanted in room.items()):
            self._stirred = False
            self._wakes += 1  # nothing more is due there: when will it be?
            self._awake.set()
        self._distribute(answer)

    def _distribute(self, deliveries: Sequence[Delivery], *, fresh: bool = False) -> None:
        hops: dict[str, Hop | None] = {}
        now = self.maintenance.ages.now()
        for delivery in deliveries:
            if not self.ours(delivery):
                self._lost.append((delivery.owner, delivery.lease))
                continue
            name = delivery.destination
            if name not in hops:
                hops[name] = self._hop(name)
            hop = hops[name]
            if not fresh and hashlib.sha256(delivery.content).digest() != delivery.sha256:
                self._quarantine(delivery)
            elif hop is None or self.stopping:
                self._returns.append(delivery)
            elif self.maintenance.ages.too_old(delivery, now) and delivery.life < self.settings.retry.expire:
                # whoever sets an end of his own does not want it later
                self._take_in(hop, delivery, late=True)
            else:
                self._take_in(hop, delivery)
        if deliveries:
            self.settings.fail("C3")
        for hop in {hop for hop in hops.values() if hop is not None}:
            hop.serve()
        if self._returns:
            self.commits.soon(SETTLE_DELAY)

    def _take_in(self, hop: Hop, delivery: Delivery, *, late: bool = False) -> None:
        hop.out += len(delivery.recipients)
        self._out += len(delivery.recipients)
        self._bytes += len(delivery.content)
        if any(r.losses for r in delivery.recipients):
            self._suspect = delivery
        if late:
            self._fail_late(hop, delivery)
        elif not self.settings.only_to or self._safe(hop, delivery):
            hop.push(delivery)

    def _fail_late(self, hop: Hop, delivery: Delivery) -> None:
        outcome, decision = (
            Outcome("deferred", "recipient", "local", Reply(0, "too old")),
            Verdict("expired", reason="too old", charged=False),
        )
        delivery.all(outcome)
        self.counts["expired"] += len(delivery.recipients)
        self._learn(hop, delivery, [(recipient, decision) for recipient in delivery.recipients], keep=False)

    def _safe(self, hop: Hop, delivery: Delivery) -> bool:
        """``[safety]`` once more: the rule may be stricter than when the mail was accepted."""
        outcome = Outcome("refused", "recipient", "local", Reply(0, "safety: not in only_to"))
        for recipient in delivery.recipients:
            if not allowed(self.settings.only_to, recipient.address):
                recipient.outcome = outcome
        if all(r.outcome for r in delivery.recipients):
            self.finished(hop, delivery)
            return False
        return True

    def _quarantine(self, delivery: Delivery) -> None:
        self.counts["quarantined"] += len(delivery.recipients)
        reason = (
            "the content is missing"
            if not delivery.content
            else "the content does not have the hash it was accepted with"
        )
        log.error("message %s is quarantined: %s", delivery.id, reason)

        def then(answer: Any) -> None:
            if isinstance(answer, BaseException):
                self.failed("a quarantine", answer)
                self._returns.append(delivery)

        self.commits.ask(self.store.verbs.quarantine(self.owner.id, delivery, self.clock.now(), reason), then)
        self.commits.soon()

    # -- hand-over (`loopdoor.HandOver`) ---------------------------------------------------------------------

    def offer(self, messages: Sequence[Message]) -> dict[str, tuple[int, int]]:
        """Which of these the engine takes in the moment they are accepted: due now, routes with room, nothing
        older waiting.
        """
        if self.stopping or self.owner is None or not self.standing():
            return {}
        now = self.clock.now()
        left: dict[str, int] = {}
        taken: dict[str, tuple[int, int]] = {}
        space = WINDOW_BYTES - self._bytes
        self._number += 1
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
            taken[message.id] = (self.owner.id, self._number)
        return taken

    def _spare(self, destination: str, now: int) -> int:
        """How many recipients may be handed over for a destination; none while older mail waits in the
        store.
        """
        if self._next.get(destination, now + 1) <= now:
            return 0
        hop = self._hop(destination)
        if hop is None or hop.pace.tripped or hop.pace.rate:
            return 0
        return MOST - hop.out

    def taken(
        self, messages: Sequence[Message], leases: dict[str, tuple[int, int]], added: Sequence[Any] | None
    ) -> None:
        """They are on disk, leased by this engine: make deliveries of what is in memory."""
        if added is None:
            self._lost.extend(set(leases.values()))
            return
        deliveries = []
        for message, (_, _, _, duplicate, seq) in zip(messages, added):
            if message.id in leases and not duplicate:
                deliveries += _made(message, seq, leases[message.id])
        self._distribute(deliveries, fresh=True)

    # -- dots ------------------------------------------------------------------------------------------------

    def dot(self, delivery: Delivery, recipients: Sequence[Leased], then: Callable[[bool], None]) -> None:
        """Permission for a final dot: given at the end of this turn, when all of the turn are on record;
        while a settle batch of outcomes is not written yet, once it is. So a kill leaves no more doubles than
        that, and one for each session.
        """
        if not self._dots:
            self.loop.call_soon(self._record_dots)
        self._dots.append((delivery, recipients, then))

    def _record_dots(self) -> None:
        self._withheld = self._unsettled >= SETTLE_BATCH
        if self._withheld:
            return  # `_settled` comes back
        dots, self._dots = self._dots, []
        try:
            self.store.dots(
                self.owner,
                [(delivery, recipients) for delivery, recipients, _ in dots if self.ours(delivery)],
            )
            granted = True
        except (OSError, Trouble) as problem:
            self.seldom.say(
                logging.ERROR, "dots", "final dots cannot be put on record (%s); nothing is sent", problem
            )
            granted = False
        for delivery, recipients, then in dots:
            may = granted and self.ours(delivery)
            for recipient in recipients:
                recipient.dotted = may
            then(may)

    # -- settling --------------------------------------------------------------------------------------------

    def finished(self, hop: Hop, delivery: Delivery) -> None:
        """A delivery's outcomes are known: decide, and write with the others of this moment."""
        self.settings.fail("C4")
        if not self.ours(delivery) and not any(r.dotted for r in delivery.recipients):
            self._release(hop, delivery)
            return
        now, retry = self.clock.now(), self.settings.retry
        verdicts: list[tuple[Leased, Verdict]] = []
        failed = False
        ages = self.maintenance.ages
        expired = ages.too_old(delivery, ages.now())
        chance = random.random()  # one for all: those who failed together come back together
        for recipient in delivery.recipients:
            outcome = recipient.outcome
            assert outcome is not None
            decision = verdict(
                outcome,
                attempts=recipient.attempts + 1,
                now=now,
                accepted_at=delivery.accepted_at,
                expired=expired,
                retry=retry,
                chance=chance,
            )
            failed = failed or decision.event != "delivered"
            kind = "expired" if decision.event == "expired" else outcome.kind
            self.counts[kind] += 1
            verdicts.append((recipient, decision))
        mode = self.settings.transcripts
        self._learn(hop, delivery, verdicts, keep=mode == "all" or (failed and mode != "none"))

    def _learn(
        self, hop: Hop, delivery: Delivery, verdicts: list[tuple[Leased, Verdict]], *, keep: bool
    ) -> None:
        """Write it with the others of this moment."""
        duration = int((self.loop.time() - delivery.started) * 1000) if delivery.started else 0
        self._learned.append(Settled(delivery, tuple(verdicts), self.clock.now(), duration, keep))
        self._unsettled += 1
        suspect = self._suspect is delivery  # it was alone: the next one waits for it
        self._wakes += suspect
        urgent = len(self._learned) == SETTLE_BATCH or suspect
        self._release(hop, delivery)
        self.commits.soon(0.0 if urgent else SETTLE_DELAY)

    def hop_failed(
        self, hop: Hop, outcome: Outcome, transcript: Sequence[tuple[int, str, bytes]] = ()
    ) -> None:
        """A session could not be had: one delivery learns why, the others wait for the breaker."""
        if hop.queue:
            delivery = hop.queue.popleft()
            delivery.host = hop.relay.host or hop.relay.scheme
            delivery.transcript = list(transcript)
            delivery.all(outcome)
            self.finished(hop, delivery)
        if hop.pace.tripped:
            while hop.queue:
                self._give_back(hop, hop.queue.popleft())

    def abandoned(self, seat: Seat) -> None:
        """A session has ended. What it still had in hand is uncertain where a dot is on record, else
        untried.
        """
        while seat.flying:
            delivery = seat.flying.pop()
            if not any(r.dotted or r.outcome for r in delivery.recipients):
                self._give_back(seat.hop, delivery)
                continue
            reply = Reply(0, "the session was ended before the answer")
            for recipient in delivery.recipients:
                kind = "unknown" if recipient.dotted else "deferred"
                recipient.outcome = recipient.outcome or Outcome(kind, "message", "dot", reply)  # type: ignore[arg-type]
            self.finished(seat.hop, delivery)

    def _give_back(self, hop: Hop, delivery: Delivery) -> None:
        self._release(hop, delivery)
        if not self.ours(delivery):
            return
        self._returns.append(delivery)
        self.commits.soon(SETTLE_DELAY)

    def _release(self, hop: Hop, delivery: Delivery) -> None:
        hop.out -= len(delivery.recipients)
        self._out -= len(delivery.recipients)
        self._bytes -= len(delivery.content)
        if self._suspect is delivery:
            self._suspect = None

    def _contribute(self) -> None:
        """Right before a commit: all that was learned, all that goes back, and the next lease."""
        if self.loop.time() < self._held_until:
            return
        lost, self._lost = self._lost, []
        for owner in {owner for owner, _ in lost}:
            leases = [lease for lease in lost if lease[0] == owner]
            self.commits.ask(
                self.store.verbs.unlease(owner, [number for _, number in leases], self.clock.now()),
                partial(self._unleased, leases),
            )
        learned, self._learned = self._learned, []
        returns, self._returns = self._returns, []
        if learned:
            self._ask_settle(learned)
        if returns:
            self.commits.ask(
                self.store.verbs.give_back(self.owner.id, returns, self.clock.now()),
                partial(self._returned, returns),
            )
        self._ask_lease()

    def _ask_settle(self, learned: list[Settled]) -> None:
        hold = self.settings.retry.on_uncertain == "hold"
        for owner in {item.delivery.owner for item in learned}:
            theirs = [item for item in learned if item.delivery.owner == owner]
            self.commits.ask(
                self.store.verbs.settle(owner, theirs, hold_unknown=hold), partial(self._settled, theirs)
            )

    def _settled(self, learned: list[Settled], answer: int | BaseException) -> None:
        if isinstance(answer, Trouble):
            self._learned = learned + self._learned
            self.failed("outcomes", answer)
        elif isinstance(answer, BaseException) and len(learned) > 1:
            for item in learned:  # one of them does it: each for itself
                self._ask_settle([item])
        elif isinstance(answer, BaseException):
            log.error(
                "the outcome of %s cannot be written: a bug of outmail; it is taken back when this engine "
                "ends",
                learned[0].delivery.id,
                exc_info=answer,
            )
            self._unsettled -= 1
        else:
            self._unsettled -= len(learned)
            self._on_record(learned)
        if self._withheld:
            self._record_dots()

    def _on_record(self, learned: list[Settled]) -> None:
        self.settings.fail("C5")
        self.store.settled(self.owner, [item.delivery for item in learned])
        if self.settings.observe:
            self.settings.observe(learned)
        if any(verdict.event != "delivered" for item in learned for _, verdict in item.verdicts):
            self._wakes += 1  # something is due again at another time
        if self.hungry or self._next or self._once_before is not None:
            self._awake.set()

    def _returned(self, returns: list[Delivery], answer: int | BaseException) -> None:
        if isinstance(answer, Trouble):
            self._returns = returns + self._returns
            self.failed("returned mail", answer)
        elif isinstance(answer, BaseException):
            log.error(
                "%d deliveries could not be returned: a bug of outmail; they are taken back when this engine "
                "ends",
                len(returns),
                exc_info=answer,
            )
        else:
            self.store.settled(self.owner, returns)
        self.look_again()

    def _unleased(self, lost: list[tuple[int, int]], answer: int | BaseException) -> None:
        if isinstance(answer, BaseException):
            self._lost += lost
            self.failed("a lost lease", answer)
        elif answer:
            log.info("%d recipients were leased without our knowing and are back in the queue", answer)
            self._wakes += 1

    def complain(self, what: str, problem: BaseException) -> None:
        """Log it; the road goes on."""
        if isinstance(problem, Trouble):
            self._complain(problem)
        else:
            log.error("%s failed by a bug of outmail", what, exc_info=problem)

    def failed(self, what: str, problem: BaseException) -> None:
        """The store did not take it: complain, and leave it alone for a moment."""
        self.complain(what, problem)
        self._held_until = self.loop.time() + (0.01 if self.stopping else 1.0)
        self.loop.call_later(1.01, self.wake)

    def _complain(self, problem: Trouble) -> None:
        if problem.kind in ("busy", "conflict"):
            log.info("the store is busy: %s", problem)
        else:
            text, time = str(problem), self.loop.time()
            if self._told[0] != text or time >= self._told[1]:
                self._told = text, time + AGAIN
                log.error(
                    "the store is in trouble (%s): %s; the engine waits and tries again", problem.kind, text
                )


def _made(message: Message, seq: int, lease: tuple[int, int]) -> list[Delivery]:
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
