"""The engine: the only way out. Leases, lets transports attempt, settles.

Theory of operation
  One asyncio loop. Each next hop (`Hop`) has a queue of leased deliveries and a few sessions that pull from it. What
  sessions learn is gathered and written once per turn: settles, returns and the next lease share one transaction.
  Before final dots go out, those of a turn are put on record together (`store.dots`); no record, no dot.
  No transaction is open while the network is used, and leasing never touches a destination without room.
Promises: what was leased is settled, returned, or found by `reclaim`; outcomes learned while the store was away are
kept and written when it is back; SIGTERM (`stop`) lets dialogues in flight finish and returns the rest; a bug of ours
gives mail back and is logged, it never fails a recipient.
Fails: never by raising into the program; it logs and waits. Does not: accept, compose, or know SMTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from outmail.clock import MINUTE, Clock
from outmail.model import Delivery, Leased, Outcome, Reply, Settled, Verdict
from outmail.policy.pace import Pace
from outmail.policy.retry import Retry, verdict
from outmail.policy.route import Relay, Routes, allowed
from outmail.store import Store, Trouble
from outmail.transport import Transport

log = logging.getLogger("outmail.engine")

WINDOW = 2000
WINDOW_BYTES = 64 * 1024 * 1024
POLL = 0.1
SETTLE_BATCH = 200
SETTLE_DELAY = 0.01
MAX_RECIPIENTS = 100
UPKEEP = 30.0
RECLAIM = 2.0
#: How long `stop` lets dialogues in flight go on.
PATIENCE = 60.0


@dataclass(slots=True)
class Settings:
    """What an engine is told beside store and routes. ``observe`` hears of every settled delivery."""

    retry: Retry = field(default_factory=Retry)
    only_to: tuple[str, ...] = ()
    transcripts: str = "failures"
    retention: dict[str, int] | None = None
    observe: Callable[[Settled], None] | None = None
    fail: Callable[[str], None] = lambda point: None
    only: str | None = None


class Hop:
    """One next hop: its pace, the deliveries that wait for it, the sessions that serve it. It is their `Feed`."""

    def __init__(self, engine: Engine, relay: Relay, transport: Transport) -> None:
        self.engine = engine
        self.relay = relay
        self.transport = transport
        self.pace = Pace(ceiling=relay.concurrency, rate=relay.rate)
        self.queue: deque[Delivery] = deque()
        self.waiting: deque[asyncio.Future[Delivery | None]] = deque()
        self.tasks: set[asyncio.Task[None]] = set()
        self.flying: set[Delivery] = set()

    # Feed ----------------------------------------------------------------------------------------------------------

    def take_now(self) -> Delivery | None:
        """Without waiting; a rate limit means waiting."""
        if self.relay.rate or not self.queue or self.engine.stopping:
            return None
        return self._claim(self.queue.popleft())

    async def take(self) -> Delivery | None:
        delivery = await self._next()
        if delivery is not None and self.relay.rate:
            try:
                await asyncio.sleep(self.pace.take(self.engine.loop.time()))
            except asyncio.CancelledError:
                self._unclaim(delivery)
                raise
        return delivery

    async def _next(self) -> Delivery | None:
        if self.engine.stopping:
            return None
        if self.queue:
            return self._claim(self.queue.popleft())
        future: asyncio.Future[Delivery | None] = self.engine.loop.create_future()
        self.waiting.append(future)
        try:
            async with asyncio.timeout(self.engine.idle):
                return await future
        except (TimeoutError, asyncio.CancelledError) as end:
            if future.done() and not future.cancelled() and (delivery := future.result()) is not None:
                self._unclaim(delivery)  # it was given in the same moment: somebody else takes it
            if isinstance(end, TimeoutError):
                return None
            raise
        finally:
            if future in self.waiting:
                self.waiting.remove(future)

    def _unclaim(self, delivery: Delivery) -> None:
        self.flying.discard(delivery)
        self.queue.appendleft(delivery)
        self.engine.loop.call_soon(self.serve)

    def _claim(self, delivery: Delivery) -> Delivery:
        self.flying.add(delivery)
        return delivery

    async def dot(self, delivery: Delivery, recipients: Sequence[Leased]) -> bool:
        return await self.engine.dot(delivery, recipients)

    def done(self, delivery: Delivery) -> None:
        self.flying.discard(delivery)
        if any(r.outcome and r.outcome.scope != "destination" for r in delivery.recipients):
            self.pace.success()
        self.engine.finished(delivery)

    def healthy(self) -> None:
        if self.pace.tripped:
            log.info("%s answers again", self.relay.name)
            self.engine.tell_hop(self, None)
        self.pace.success()

    def failed(self, outcome: Outcome, transcript: Sequence[tuple[int, str, bytes]] = ()) -> None:
        if not outcome.fault:
            return
        fatal = outcome.stage in ("tls", "auth")
        if self.pace.fault(self.engine.loop.time(), str(outcome.reply), fatal=fatal):
            log.warning("%s is paused: %s (%s); next probe in %.0f s", self.relay.name, outcome.reply, outcome.stage, self.pace.pause)
            self.engine.tell_hop(self, str(outcome.reply))
        self.engine.hop_failed(self, outcome, transcript)

    # sessions ------------------------------------------------------------------------------------------------------

    def push(self, delivery: Delivery) -> None:
        self.queue.append(delivery)

    def serve(self) -> None:
        """Wake idle sessions and open new ones as the pace allows."""
        while self.queue and self.waiting:
            future = self.waiting.popleft()
            if not future.done():
                future.set_result(self._claim(self.queue.popleft()))
        now = self.engine.loop.time()
        wanted = min(len(self.queue), 1 + len(self.queue) // 4)
        while wanted > 0 and self.queue and self.pace.may_open(len(self.tasks), now) and not self.engine.stopping:
            if self.pace.tripped and self.tasks:
                return
            self.pace.opening()
            task = self.engine.loop.create_task(self._session())
            self.tasks.add(task)
            task.add_done_callback(self._ended)
            wanted -= 1

    async def _session(self) -> None:
        await self.transport.session(self)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error("a session with %s broke off by a bug of outmail; its mail goes back to the queue", self.relay.name, exc_info=problem)
            self.pace.fault(self.engine.loop.time(), f"bug: {problem!r}", fatal=True)
            self.engine.hop_failed(self, Outcome("deferred", "destination", "connect", Reply(0, f"internal error: {problem!r}"), fault=True))
        if self.pace.tripped and not self.tasks:
            self.pace.probing = False
        if not self.tasks:
            self.engine.abandon_flying(self)
        self.serve()
        self.engine.wake()


class Engine:
    """One engine on one store. `run` is its life; `stop` and `wake` may be called from any thread."""

    def __init__(self, store: Store, routes: Routes, transport: Callable[[Relay], Transport], settings: Settings | None = None, clock: Clock | None = None) -> None:
        self.store = store
        self.routes = routes
        self.settings = settings or Settings()
        self.clock = clock or Clock()
        self.stopping = False
        self.idle = 60.0
        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]
        self._transport = transport
        self._hops: dict[str, Hop] = {}
        self._owner: Any = None
        self._number = 0
        self._turn = 0
        self._out = 0
        self._bytes = 0
        self._learned: list[Settled] = []
        self._returns: list[tuple[Delivery, str]] = []
        self._dots: list[tuple[Delivery, Sequence[Leased], asyncio.Future[bool]]] = []
        self._flushing = False
        self._timer: asyncio.TimerHandle | None = None
        self._awake: asyncio.Event = None  # type: ignore[assignment]
        self._hungry = True
        self._next: dict[str, int] = {}
        self._upkeep_at = 0.0
        self._purge_after = 0
        self._once_before: int | None = None
        self._suspect: Delivery | None = None
        self._only: int | None = None
        self._reclaim_at = 0.0
        self.counts = {"delivered": 0, "deferred": 0, "refused": 0, "unknown": 0, "quarantined": 0, "expired": 0}

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self, *, once: bool = False) -> None:
        """Work until `stop`; with ``once`` until everything that was due at the start had one attempt."""
        self.loop = asyncio.get_running_loop()
        self._awake = asyncio.Event()
        if once:
            self.idle = 0.05
        if not await self._register():
            return
        try:
            self._once_before = self.clock.now() if once else None
            if self.settings.only:
                self._only = self.store.read(self.store.verbs.seq_of(self.settings.only))
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
        finally:
            await self._leave()

    def _look(self) -> None:
        """One look at store and queue. A bug of ours delays mail and is loud; it does not end the engine."""
        try:
            self._maintain()
            self._work()
        except Exception:
            log.exception("a bug of outmail; mail stays queued, the engine goes on")
            self._reclaim_at = self._upkeep_at = self.loop.time() + 5.0

    def stop(self) -> None:
        """Finish what is in flight, return the rest, end."""
        self.stopping = True
        self.wake()

    def wake(self) -> None:
        """Look at the queue now."""
        self._hungry = True
        if self.loop is None:
            return
        try:
            self.loop.call_soon_threadsafe(self._awake.set)
        except RuntimeError:
            pass  # the loop is closed: the engine has ended

    def quiet(self) -> bool:
        """True when there is nothing in hand and nothing that could be tried now. May be asked from any thread."""
        if self.loop is None or self._hungry or self._out or self._learned or self._returns or self._flushing:
            return False
        now = self.clock.now()
        return not any(due <= now and self._pressable(name) for name, due in list(self._next.items()))

    def _pressable(self, destination: str) -> bool:
        relays = self.routes.resolve(destination)
        return any((hop := self._hops.get(relay.name)) is None or not hop.pace.tripped for relay in relays)

    async def _register(self) -> bool:
        while not self.stopping:
            try:
                self._owner = self.store.register(self.clock.now())
                return True
            except Trouble as problem:
                if not problem.passing:
                    raise
                log.error("the store does not let the engine in: %s", problem)
                await asyncio.sleep(1)
        return False

    async def _leave(self) -> None:
        self.stopping = True
        for hop in self._hops.values():
            while hop.waiting:
                future = hop.waiting.popleft()
                if not future.done():
                    future.set_result(None)
            while hop.queue:
                self._give_back(hop.queue.popleft(), "")
        tasks = [task for hop in self._hops.values() for task in hop.tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=PATIENCE)
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0)
        for hop in self._hops.values():
            self.abandon_flying(hop)
            while hop.queue:
                self._give_back(hop.queue.popleft(), "")
        for _ in range(200):
            self._flush()
            if not self._learned and not self._returns:
                break
            await asyncio.sleep(0.05)
        self._owner.close()

    def _pause(self) -> float:
        if self._learned or self._returns:
            return 0.2
        now = self.clock.now()
        ahead = [due - now for due in self._next.values() if due > now]
        probes = [hop.pace.open_until - self.loop.time() for hop in self._hops.values() if hop.pace.tripped and not hop.pace.probing]
        soonest = min([POLL * 1000, *ahead]) / 1000
        return max(0.005, min([soonest, *(max(0.005, probe) for probe in probes)]))

    def _exhausted(self) -> bool:
        """For one run: nothing in hand, and nothing due that could still be tried."""
        if self._out or self._learned or self._returns or any(hop.queue or hop.flying for hop in self._hops.values()):
            return False
        return not self._room()

    # -- leasing ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """One look at the queue: lease what there is room for, and let sessions run."""
        try:
            if self._hungry or self.store.changed() or self._timer_due():
                self._hungry = False
                self._next = self.store.read(self.store.verbs.next_due(self.clock.now()))
        except Trouble as problem:
            self._complain(problem)
            return
        self._flush()

    def _timer_due(self) -> bool:
        now = self.clock.now()
        return any(due <= now for due in self._next.values())

    def _room(self) -> dict[str, int]:
        """How many recipients of each destination may be leased now."""
        before = self._once_before if self._once_before is not None else self.clock.now()
        free = WINDOW - self._out
        open_ = [name for name, due in self._next.items() if due <= before and self._hop(name) is not None]
        if free < WINDOW // 2 or not open_:
            return {}
        share = max(1, free // len(open_))
        if share > 2 * MAX_RECIPIENTS:
            share -= share % MAX_RECIPIENTS  # whole transactions of messages with very many recipients
        return dict.fromkeys(open_, share)

    def _hop(self, destination: str) -> Hop | None:
        """The next hop a destination's mail takes now: the first of its relays that may be pressed."""
        now = self.loop.time()
        for relay in self.routes.resolve(destination):
            hop = self._hops.get(relay.name)
            if hop is None or hop.relay != relay:
                hop = self._hops[relay.name] = Hop(self, relay, self._transport(relay))
            if hop.pace.has_room(now):
                return hop
        return None

    def _distribute(self, deliveries: Sequence[Delivery]) -> None:
        hops = set()
        for delivery in deliveries:
            self._out += len(delivery.recipients)
            self._bytes += len(delivery.content)
            if any(r.losses for r in delivery.recipients):
                self._suspect = delivery
            if hashlib.sha256(delivery.content).digest() != delivery.sha256:
                self._quarantine(delivery)
                continue
            hop = self._hop(delivery.destination)
            if hop is None:
                self._give_back(delivery, "")
                continue
            if self.settings.only_to and not self._safe(delivery):
                continue
            hop.push(delivery)
            hops.add(hop)
        if deliveries:
            self.settings.fail("C3")
        for hop in hops:
            hop.serve()

    def _safe(self, delivery: Delivery) -> bool:
        """``[safety]`` once more: the rule may be stricter than when the mail was accepted."""
        outcome = Outcome("refused", "recipient", "local", Reply(0, "safety: not in only_to"))
        for recipient in delivery.recipients:
            if not allowed(self.settings.only_to, recipient.address):
                recipient.outcome = outcome
        if all(r.outcome for r in delivery.recipients):
            self.finished(delivery)
            return False
        return True

    def _quarantine(self, delivery: Delivery) -> None:
        self._release(delivery)
        self.counts["quarantined"] += len(delivery.recipients)
        reason = "the content is missing" if not delivery.content else "the content does not have the hash it was accepted with"
        log.error("message %s is quarantined: %s", delivery.id, reason)
        try:
            self.store.run(self.store.verbs.quarantine(self._owner.id, delivery, self.clock.now(), reason))
        except Trouble as problem:
            self._complain(problem)
            self._give_back(delivery, reason, counted=False)

    # -- dots -------------------------------------------------------------------------------------------------------

    def dot(self, delivery: Delivery, recipients: Sequence[Leased]) -> asyncio.Future[bool]:
        """Permission for a final dot: resolved at the end of this turn, when all of the turn are on record."""
        future: asyncio.Future[bool] = self.loop.create_future()
        if not self._dots:
            self.loop.call_soon(self._record_dots)
        self._dots.append((delivery, recipients, future))
        return future

    def _record_dots(self) -> None:
        dots, self._dots = self._dots, []
        try:
            self.store.dots(self._owner, [(delivery, recipients) for delivery, recipients, _ in dots])
            granted = True
        except (OSError, Trouble) as problem:
            log.error("final dots cannot be put on record (%s); nothing is sent", problem)
            granted = False
        for _, recipients, future in dots:
            for recipient in recipients:
                recipient.dotted = granted
            if not future.done():
                future.set_result(granted)

    # -- settling ---------------------------------------------------------------------------------------------------

    def finished(self, delivery: Delivery) -> None:
        """A delivery's outcomes are known: decide, and write with the others of this moment."""
        self.settings.fail("C4")
        now, retry = self.clock.now(), self.settings.retry
        verdicts: list[tuple[Leased, Verdict]] = []
        failed = False
        chance = random.random()  # one for all: those who failed together come back together
        for recipient in delivery.recipients:
            outcome = recipient.outcome
            assert outcome is not None
            decision = verdict(
                outcome, attempts=recipient.attempts + 1, now=now, expires_at=delivery.expires_at, retry=retry, chance=chance
            )
            failed = failed or decision.event != "delivered"
            kind = "expired" if decision.event == "expired" else outcome.kind
            self.counts[kind] += 1
            verdicts.append((recipient, decision))
        mode = self.settings.transcripts
        keep = mode == "all" or (failed and mode != "none")
        duration = int((self.loop.time() - delivery.started) * 1000) if delivery.started else 0
        self._learned.append(Settled(delivery, tuple(verdicts), now, duration, keep))
        if len(self._learned) == SETTLE_BATCH or self._suspect is delivery:
            self.loop.call_soon(self._flush)  # a suspect is alone: the next one waits for it
        self._release(delivery)
        self._flush_soon()

    def hop_failed(self, hop: Hop, outcome: Outcome, transcript: Sequence[tuple[int, str, bytes]] = ()) -> None:
        """A session could not be had: one delivery learns why, the others wait for the breaker."""
        if hop.queue:
            delivery = hop.queue.popleft()
            delivery.host = hop.relay.host or hop.relay.scheme
            delivery.transcript = list(transcript)
            delivery.all(outcome)
            self.finished(delivery)
        if hop.pace.tripped:
            while hop.queue:
                self._give_back(hop.queue.popleft(), "")

    def abandon_flying(self, hop: Hop) -> None:
        """Deliveries that ended sessions still had in hand: uncertain where a dot is on record, else untried."""
        while hop.flying:
            delivery = hop.flying.pop()
            if not any(r.dotted or r.outcome for r in delivery.recipients):
                self._give_back(delivery, "")
                continue
            reply = Reply(0, "the session was ended before the answer")
            for recipient in delivery.recipients:
                kind = "unknown" if recipient.dotted else "deferred"
                recipient.outcome = recipient.outcome or Outcome(kind, "message", "dot", reply)  # type: ignore[arg-type]
            self.finished(delivery)

    def _give_back(self, delivery: Delivery, why: str, *, counted: bool = True) -> None:
        if counted:
            self._release(delivery)
        self._returns.append((delivery, why))
        self._flush_soon()

    def _release(self, delivery: Delivery) -> None:
        self._out -= len(delivery.recipients)
        self._bytes -= len(delivery.content)
        if self._suspect is delivery:
            self._suspect = None

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._timer = self.loop.call_later(SETTLE_DELAY, self._flush)

    def _flush(self) -> None:
        """One transaction for all that was learned, and for the next lease."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._flushing = False
        learned, self._learned = self._learned, []
        returns, self._returns = self._returns, []
        room = self._room() if not self.stopping else {}
        verbs = self.store.verbs
        asks: list[Any] = []
        now = self.clock.now()
        if learned:
            asks.append(verbs.settle(self._owner.id, learned, hold_unknown=self.settings.retry.on_uncertain == "hold"))
        if returns:
            asks.append(verbs.give_back(self._owner.id, [delivery for delivery, _ in returns], now))
        if room:
            self._number += 1
            self._turn += 1
            before = self._once_before if self._once_before is not None else now
            budget = max(1, WINDOW_BYTES - self._bytes)
            asks.append(verbs.lease(self._owner.id, self._number, room, before, turn=self._turn, budget=budget, suspects=self._suspect is None, only=self._only))
        if not asks:
            return
        try:
            answers = self.store.commit(asks, wait=0.02 if not self.stopping else 5.0)
        except Trouble as problem:
            self._learned = learned + self._learned
            self._returns = returns + self._returns
            if problem.kind != "busy":
                self._complain(problem)
            self.loop.call_later(0.005 if problem.kind == "busy" else 1.0, self.wake)
            return
        except Exception:
            log.exception("outcomes could not be written by a bug of outmail; their recipients are taken back when this engine ends")
            return
        self._committed(learned, returns, answers[-1] if room else None, room)
        for answer in answers:
            if isinstance(answer, BaseException):
                log.error("a change of the queue failed by a bug of outmail; the lease will be taken back", exc_info=answer)

    def _committed(self, learned: list[Settled], returns: list[tuple[Delivery, str]], leased: Any, room: dict[str, int]) -> None:
        if learned:
            self.settings.fail("C5")
        self.store.settled(self._owner, [item.delivery for item in learned])
        if self.settings.observe:
            for item in learned:
                self.settings.observe(item)
        if isinstance(leased, list):
            for name in room:
                if not any(delivery.destination == name for delivery in leased):
                    self._next.pop(name, None)
            self._distribute(leased)
        if returns or (learned and self._out < WINDOW // 2):
            self._hungry = True
            self._awake.set()

    # -- upkeep -----------------------------------------------------------------------------------------------------

    def tell_hop(self, hop: Hop, trouble: str | None) -> None:
        """Publish a paused next hop, so that people see why mail waits."""
        verbs = self.store.verbs
        try:
            if trouble is None:
                self.store.run(verbs.note_drop("hop", hop.relay.name), wait=0.5)
            else:
                self.store.run(verbs.note_put("hop", hop.relay.name, {"trouble": trouble, "since": self.clock.now()}), wait=0.5)
        except Trouble as problem:
            self._complain(problem)

    def _maintain(self) -> None:
        """At the start and from time to time: dead engines, old age, clocks that jumped, retention."""
        now, time = self.clock.now(), self.loop.time()
        try:
            if time >= self._reclaim_at:
                self._reclaim_at = time + RECLAIM
                self._reclaim(now)
            if time >= self._upkeep_at:
                self._upkeep_at = time + UPKEEP
                self._sweep(now)
        except Trouble as problem:
            self._complain(problem)
            self._reclaim_at = self._upkeep_at = time + 1.0

    def _reclaim(self, now: int) -> None:
        for found in self.store.reclaim(now, hold=self.settings.retry.on_uncertain == "hold"):
            log.warning("took back %(leases)d recipients of a dead engine, %(uncertain)d of them uncertain", found)
            self._hungry = True

    def _sweep(self, now: int) -> None:
        verbs = self.store.verbs
        while self.store.run(verbs.expire(now), wait=1.0) >= 2000:
            pass
        self.store.run(verbs.clamp(now, self.settings.retry.longest), wait=1.0)
        self.store.run(verbs.note_put("engine", "last", {"at": now, "routes": sorted(self.routes.relays)}), wait=1.0)
        if self.settings.retention:
            self._retain(now)
        self._hungry = True

    def _retain(self, now: int) -> None:
        """Retention, for at most a tenth of a second a minute."""
        until = self.loop.time() + 0.1
        removed = 0
        assert self.settings.retention is not None
        while self.loop.time() < until:
            count, after = self.store.run(self.store.verbs.purge(now, after=self._purge_after, **self.settings.retention))
            removed += count
            self._purge_after = after or 0
            if after is None:
                break
        self.store.run(self.store.verbs.purge_uploads(now - 60 * MINUTE))
        if removed:
            getattr(self.store, "give_space_back", lambda: None)()

    def _complain(self, problem: Trouble) -> None:
        if problem.kind == "busy":
            log.info("the store is busy: %s", problem)
        else:
            log.error("the store is in trouble (%s): %s; the engine waits and tries again", problem.kind, problem)
