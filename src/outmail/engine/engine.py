"""The engine is the only way out: it leases mail, lets transports deliver it, and settles the outcomes.

Theory of operation
  One asyncio loop. Each next hop (`nexthop.NextHop`) has a queue of leased deliveries and a few sessions that
  take deliveries from it. What sessions find out goes to the completer (`completer.Completer`), which stores
  outcomes together. Outcomes, returned mail and the next lease share one transaction
  (`commit_loop.Committer`). Before final dots are sent, all dots of a turn are recorded by one write
  (`store.dots`). `maintenance` does periodic work; `handover` takes messages from the door of the same loop.
  This module is the engine's life, and leasing. No transaction is open while the network is used. Leasing
  never reads a destination whose next hops have no room.
Promises: everything that was leased is settled, put back, or found by `reclaim`. Deliveries that other
engines may have taken over are dropped: no dialogue and no final dot begins for them. SIGTERM (`stop`) lets
running dialogues finish and puts the rest back. The promises of the parts are in their modules.
Fails: never by raising into the program; it logs and waits. Does not: accept or compose mail, or know SMTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from outmail.clock import Clock
from outmail.engine.completer import Completer
from outmail.engine.handover import HandOver
from outmail.engine.maintenance import Maintenance
from outmail.engine.nexthop import MAX_RECIPIENTS, WINDOW, WINDOW_BYTES, NextHop
from outmail.engine.registration import register
from outmail.engine.settings import EngineSettings
from outmail.errors import ConfigError
from outmail.model import Delivery
from outmail.policy.route import Relay, Routes
from outmail.store import Store, StoreError
from outmail.store.commit_loop import Committer
from outmail.system.threads import CallThread
from outmail.system.throttle import Throttle
from outmail.transport import Transport

log = logging.getLogger("outmail.engine")

#: The longest pause (seconds) between two looks at the queue.
POLL = 0.1
#: Seconds until the same trouble is logged again.
AGAIN = 60.0
#: Seconds that `stop` lets running dialogues go on.
PATIENCE = 60.0
#: Seconds that a cancelled session gets to end what it has begun.
ENDING = 5.0
#: Seconds that the end waits for a store that does not accept the last outcomes.
LAST_WORDS = 10.0


class Engine:
    """One engine on one store. `run` is its life. `stop` and `wake` may be called from any thread."""

    def __init__(
        self,
        store: Store,
        routes: Routes,
        transport: Callable[[Relay], Transport],
        settings: EngineSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.store = store
        self.routes = routes
        self.settings = settings or EngineSettings()
        self.clock = clock or Clock()
        self.stopping = False
        self.patience = math.inf
        #: Its name in the store; "" before it is registered and when it leaves. May be read from any thread.
        self.name = ""
        self.idle = 60.0
        self.throttle = Throttle(log)
        #: How many engines share the limits of next hops.
        self.engines = 1
        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]
        self.commits: Committer = None  # type: ignore[assignment]
        self.maintenance: Maintenance = None  # type: ignore[assignment]
        self.completer: Completer = None  # type: ignore[assignment]
        self.handover: HandOver = None  # type: ignore[assignment]
        self._transport = transport
        #: The next hops in use, by the name of the relay.
        self.hops: dict[str, NextHop] = {}
        #: Those that others have replaced, while sessions of theirs finish.
        self.retired: list[NextHop] = []
        #: Our registration with the store.
        self.owner: Any = None
        self._number = 0
        #: True while this engine registers again, because others may have taken over what it held.
        self._anew = False
        self._reader: CallThread | None = None
        self._asking = False
        self._leasing = False
        self._awake: asyncio.Event = None  # type: ignore[assignment]
        self._ready: asyncio.Event = None  # type: ignore[assignment]
        self._wakes, self._looked = 1, 0
        #: True when a lease has taken something, since the last one that found less than there was room for.
        self._stirred = False
        #: For each destination with mail in the store: when (ms) something is due.
        self.due: dict[str, int] = {}
        self._held_until = 0.0
        #: The last trouble of the store that was logged, and when it may be logged again.
        self._told = ("", 0.0)
        self._once_before: int | None = None
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
        """Work until `stop`; with ``once`` until everything that was due at the start has had one attempt.
        ``first`` is called on a thread of its own, after the engine is registered and before it looks for due
        mail.
        """
        self._awake = asyncio.Event()
        self.loop = asyncio.get_running_loop()  # from here on other threads wake it
        self._ready = self._ready or asyncio.Event()
        self.commits = Committer(self.store, self.loop)
        self.commits.contributor(self._contribute)
        self._assemble()
        self._reader = CallThread("reader") if self.store.blocking else None
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

    def _assemble(self) -> None:
        """Make the parts that need the loop."""
        words = self.store, self.commits, self.loop, self.clock, self.settings
        self.maintenance = Maintenance(self, *words)
        self.completer = Completer(self, *words, self.maintenance.ages, self.throttle, self.counts)
        self.handover = HandOver(self, self.completer, self.clock)

    async def _prelude(self, first: Callable[[], object]) -> None:
        """Run ``first``; meanwhile the lease is renewed."""
        worker = CallThread("prelude")
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
        """One look at store and queue. A bug of ours delays mail and is logged; it does not end the
        engine.
        """
        try:
            self.maintenance.look()
            for hop in self.hops.values():
                if hop.waiting:
                    hop.tidy()
                # all its sessions may have ended while the lease was in doubt
                if hop.waiting or (hop.queue and not hop.feeds):
                    hop.serve()
            if self.hungry or self.store.changed():
                self._ask_next()
            self.commits.flush()
        except StoreError as problem:
            self._complain(problem)
        except Exception:
            log.exception("a bug of outmail; mail stays queued and the engine goes on")
            self.maintenance.postpone(5.0)

    def _ask_next(self) -> None:
        """Ask the store when each destination has something due."""
        wakes = self._wakes

        def ask() -> dict[str, int]:
            return self.store.read(self.store.verbs.next_due(self.clock.now()))

        def told(answer: Any) -> None:
            self._asking = False
            if isinstance(answer, BaseException):
                self.failed("a look at the queue", answer)
                return
            self.due = answer
            self._looked = wakes  # only here, because `quiet` may be asked during the call
            self.commits.flush()
            self._awake.set()

        if self._reader is None:
            self.due = ask()
            self._looked = wakes
        elif not self._asking:
            self._asking = True
            self._reader.call(ask, told)

    async def ready(self) -> None:
        """Wait until the engine is registered. From then on others may use its `commits`."""
        self._ready = self._ready or asyncio.Event()
        await self._ready.wait()

    def stop(self, patience: float = math.inf) -> None:
        """Finish what is being sent within ``patience`` seconds (at most `PATIENCE`), put the rest back,
        end.
        """
        self.patience = min(self.patience, patience)
        self.stopping = True
        self.wake()

    def reconfigure(
        self, routes: Routes, settings: EngineSettings, transport: Callable[[Relay], Transport] | None = None
    ) -> None:
        """Go on with these, from the loop, after `ready`. Nothing in hand is lost: what a session has begun
        it finishes as it began it; everything else goes back into the queue, untried, and is leased again by
        the new rules. A next hop whose relay is the same keeps its pace and its pauses. ``transport``: when
        sessions must be made in another way.
        """
        self.routes = routes
        for one in fields(EngineSettings):
            setattr(self.settings, one.name, getattr(settings, one.name))
        self._transport = transport or self._transport
        self.maintenance.reconfigured()
        for hop in list(self.hops.values()):
            if transport is not None or hop.relay not in routes.resolve(hop.relay.name):
                self._retire(hop)
                continue
            for delivery in hop.recall():
                self.completer.give_back(hop, delivery)
        self.look_again()

    def _retire(self, hop: NextHop) -> None:
        """Another next hop will have its name."""
        self.hops.pop(hop.relay.name, None)
        for delivery in hop.retire():
            self.completer.give_back(hop, delivery)
        self.retired = [one for one in (*self.retired, hop) if one.feeds]

    def _all_hops(self) -> list[NextHop]:
        return [*self.hops.values(), *self.retired]

    def wake(self) -> None:
        """Look at the queue now."""
        self._wakes += 1
        if self.loop is None:
            return
        try:
            self.loop.call_soon_threadsafe(self._awake.set)
        except RuntimeError:
            pass  # the loop is closed: the engine has ended

    def stir(self) -> None:
        """Something may have become due; look soon."""
        self._wakes += 1

    def look_again(self) -> None:
        """`wake`, for callers inside the loop."""
        self._wakes += 1
        self._awake.set()

    @property
    def hungry(self) -> bool:
        """True when something may be due that `due` does not show yet."""
        return self._wakes != self._looked

    def quiet(self) -> bool:
        """True when nothing is in hand and nothing could be tried now. May be asked from any thread."""
        if self.completer is None or self.hungry or self.completer.out or self._unwritten():
            return False
        now = self.clock.now()
        return not any(due <= now and self._pressable(name) for name, due in list(self.due.items()))

    def _unwritten(self) -> bool:
        return self._asking or not self.completer.idle or not self.commits.idle

    def _pressable(self, destination: str) -> bool:
        relays = self.routes.resolve(destination)
        return any((hop := self.hops.get(relay.name)) is None or not hop.pace.tripped for relay in relays)

    async def _register(self) -> bool:
        while not self.stopping:
            try:
                self.owner = register(self.store, self.clock.now())
                self.name = self.owner.uuid
                self.store.follow(self.wake)
                return True
            except StoreError as problem:
                if not problem.passing:
                    raise
                log.error("the engine cannot register with the store: %s", problem)
                await asyncio.sleep(1)
        return False

    def standing(self) -> bool:
        """True while the leases are certainly ours."""
        return self.owner.stands()  # type: ignore[no-any-return]

    def ours(self, delivery: Delivery) -> bool:
        """False for a delivery that was leased before this engine registered again."""
        return delivery.owner == self.owner.id and not self.owner.lost

    def begin_anew(self) -> None:
        """Our lease was lost: other engines have taken over what we held, or will. Drop it; only the answers
        to final dots that are out are still awaited.
        """
        if self._anew:
            return
        self._anew = True
        dropped = self.completer.drop(self._all_hops())
        log.warning(
            "this engine was stopped or cut off from the store and has lost its lease: it leaves %d "
            "recipients to other engines and registers again",
            dropped,
        )
        self.commits.call(lambda: register(self.store, self.clock.now()), self._begun_anew)

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

    async def _leave(self) -> None:
        self.stopping = True
        self.name = ""
        self._return_unbegun()
        await self._end_sessions()
        self._return_unbegun()
        await self._write_the_rest()
        self.owner.close()

    def _return_unbegun(self) -> None:
        for hop in self._all_hops():
            for delivery in hop.stop():
                self.completer.give_back(hop, delivery)

    async def _end_sessions(self) -> None:
        """Let sessions finish; cancel those that take longer than that."""
        feeds = [feed for hop in self._all_hops() for feed in hop.feeds]
        tasks = [feed.task for feed in feeds if feed.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=min(PATIENCE, self.patience))
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=ENDING)  # they end what they have begun, such as a program
        for feed in feeds:
            self.completer.abandoned(feed)

    async def _write_the_rest(self) -> None:
        deadline = self.loop.time() + LAST_WORDS
        self._held_until = 0.0
        if self.settings.service:
            self.commits.ask(self.store.verbs.note_drop("engine", "service"), lambda answer: None)
        while self._unwritten() and self.loop.time() < deadline:
            self.commits.flush()
            await asyncio.sleep(0.01)

    def _pause(self) -> float:
        now = self.clock.now()
        ahead = [due - now for due in self.due.values() if due > now]
        probes = [
            hop.pace.open_until - self.loop.time()
            for hop in self.hops.values()
            if hop.pace.tripped and not hop.pace.probing
        ]
        soonest = min([POLL * 1000, *ahead]) / 1000
        return max(0.005, min([soonest, *(max(0.005, probe) for probe in probes)]))

    def _exhausted(self) -> bool:
        """For ``once``: nothing is in hand, and nothing is due that could still be tried."""
        if self.completer.out or self._unwritten():
            return False
        return not self._room()

    # -- leasing ---------------------------------------------------------------------------------------------

    def _contribute(self) -> None:
        """Called right before a commit: what the completer has to store, and the next lease."""
        if self.loop.time() < self._held_until:
            return
        self.completer.contribute()
        self._ask_lease()

    def _room(self) -> dict[str, int]:
        """For each destination, how many recipients may be leased now."""
        before = self._once_before if self._once_before is not None else self.clock.now()
        free = WINDOW - self.completer.out
        room: dict[str, int] = {}
        shared: dict[NextHop, list[str]] = {}
        for name, due in self.due.items():
            if due <= before and (hop := self.hop_for(name)) is not None:
                shared.setdefault(hop, []).append(name)
        for hop, names in shared.items():
            spare = min(hop.room(), free // len(shared))
            share = spare // len(names)
            if share == 0:  # too few for all (one probe, say): the destinations take turns
                turn = self._number % len(names)
                room.update(dict.fromkeys([*names[turn:], *names[:turn]][:spare], 1))
                continue
            if share > 2 * MAX_RECIPIENTS:
                # messages with very many recipients fill whole transactions
                share -= share % MAX_RECIPIENTS
            room.update(dict.fromkeys(names, share))
        return room

    def hop_for(self, destination: str) -> NextHop | None:
        """The next hop for a destination's mail: the first of its relays that can take more now."""
        now = self.loop.time()
        for relay in self.routes.resolve(destination):
            hop = self.hops.get(relay.name)
            if hop is not None and hop.relay != relay:
                self._retire(hop)
                hop = None
            if hop is None:
                hop = self.hops[relay.name] = NextHop(self, relay, self._transport(relay))
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
        # in the same transaction and before the lease, so that mail which is too old now is not sent
        if self.loop.time() >= self.maintenance.expire_at:
            self.maintenance.expire()
        before = self._once_before if self._once_before is not None else self.clock.now()
        lease = self.store.verbs.lease(
            self.owner.id,
            self._number,
            room,
            before,
            turn=self._number,
            budget=max(1, WINDOW_BYTES - self.completer.bytes),
            suspects=self.completer.suspect is None,
            only=self._only,
        )
        self.commits.ask(lease, partial(self._leased, room, (self.owner.id, self._number)))

    def _leased(
        self, room: dict[str, int], lease: tuple[int, int], answer: list[Delivery] | BaseException
    ) -> None:
        self._leasing = False
        if isinstance(answer, BaseException):
            self.completer.lost.append(lease)
            self.failed("a lease", answer)
            return
        found: Counter[str] = Counter()
        for delivery in answer:
            found[delivery.destination] += len(delivery.recipients)
        for name in room:
            if not found[name]:
                self.due.pop(name, None)
        self._stirred = self._stirred or bool(answer)
        if self._stirred and any(found[name] < wanted for name, wanted in room.items()):
            self._stirred = False
            self.look_again()  # nothing more is due there: ask when something will be
        self.distribute(answer)

    def distribute(self, deliveries: Sequence[Delivery], *, fresh: bool = False) -> None:
        """Give leased deliveries to their next hops. ``fresh``: their content comes from this process's
        memory, not from the store.
        """
        hops: dict[str, NextHop | None] = {}
        completer, ages, copies = self.completer, self.maintenance.ages, self.settings.copies
        now = ages.now()
        for delivery in deliveries:
            if not self.ours(delivery):
                completer.lost.append((delivery.owner, delivery.lease))
                continue
            name = delivery.destination
            if name not in hops:
                hops[name] = self.hop_for(name)
            hop = hops[name]
            if not fresh and hashlib.sha256(delivery.content).digest() != delivery.sha256:
                completer.quarantine(delivery)
                continue
            if hop is None or self.stopping:
                completer.give_back_untaken(delivery)
                continue
            completer.add(hop, delivery)
            if copies is not None and hop.copies_from <= self.loop.time():
                delivery.copies = copies.of(delivery, hop.asks_first)
            if ages.too_old(delivery, now) and delivery.life < self.settings.retry.expire:
                completer.expired(hop, delivery)  # the sender set this expiry: never sent late
            elif not self.settings.only_to or completer.safe(hop, delivery):
                hop.push(delivery)
        if deliveries:
            self.settings.fail("C3")
        for hop in {hop for hop in hops.values() if hop is not None}:
            hop.serve()

    # -- what its parts ask ----------------------------------------------------------------------------------

    def new_lease(self) -> tuple[int, int] | None:
        """(owner, number) for a lease that is not in the store yet; None while the engine may take
        nothing.
        """
        if self.stopping or self.owner is None or not self.standing():
            return None
        self._number += 1
        return self.owner.id, self._number

    def on_record(self, *, again: bool) -> None:
        """Outcomes are stored. ``again``: some of their recipients are due again later."""
        self._wakes += again
        if self.hungry or self.due or self._once_before is not None:
            self._awake.set()

    def complain(self, what: str, problem: BaseException) -> None:
        """Log a problem; deliveries go on."""
        if isinstance(problem, StoreError):
            self._complain(problem)
        else:
            log.error("%s failed because of a bug of outmail", what, exc_info=problem)

    def failed(self, what: str, problem: BaseException) -> None:
        """The store did not accept something: log it, and leave the store alone for a moment."""
        self.complain(what, problem)
        self._held_until = self.loop.time() + (0.01 if self.stopping else 1.0)
        self.loop.call_later(1.01, self.wake)

    def _complain(self, problem: StoreError) -> None:
        if problem.kind in ("busy", "conflict"):
            log.info("the store is busy: %s", problem)
        else:
            text, time = str(problem), self.loop.time()
            if self._told[0] != text or time >= self._told[1]:
                self._told = text, time + AGAIN
                log.error(
                    "trouble with the store (%s): %s; the engine waits and tries again", problem.kind, text
                )
