"""The periodic work of an engine: taking back the work of dead engines, old age, retention, notes.

How: `look` is called in each turn of the engine and starts what is due. The work itself runs on the writer's
thread (`Committer.call`); its answer comes back into the loop, and the pause until the next time begins.
Promises: every 2 s it looks for dead engines. Every 30 s it checks ages and dates and leaves a sign of life.
Only the oldest engine of a store removes finished mail, 0.1 s at a time.
Fails: problems are logged, and the work is tried again later; deliveries go on meanwhile.
Does not: know how old mail is (`ages`), or what retention removes (`retention`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from typing import Any, Protocol

from outmail.clock import DAY, Clock, human_span
from outmail.engine.ages import Ages
from outmail.engine.copies import ASK_FIRST, pause_after
from outmail.engine.nexthop import NextHop
from outmail.engine.retention import Retention
from outmail.engine.settings import EngineSettings
from outmail.model import Reply
from outmail.policy.pace import ahead_note, may_send_ahead
from outmail.policy.route import Relay, Routes
from outmail.smtp.client import CopyTrouble
from outmail.store import Store, Verb
from outmail.store.commit_loop import Committer

log = logging.getLogger("outmail.engine")

#: Seconds between two looks for dead engines.
RECLAIM = 2.0
#: Seconds between two sweeps (ages, sign of life), and until retention looks again after it found nothing.
UPKEEP = 30.0
#: Seconds until a failed sweep is tried again.
UPKEEP_AGAIN = 10.0
#: Seconds between two checks for mail that is too old, while mail is being sent.
EXPIRE = 1.0
#: Seconds that a turn of retention takes; seconds between two turns while there is more to remove.
TURN = 0.1
RETAIN = 1.0
#: After so many turns in a row retention is behind, and the pauses between turns become a fifth.
PATIENT_TURNS = 60
#: For how long (ms) it is noted that a message goes without a loopback copy.
COPYLESS = 7 * DAY
#: Seconds within which a note is stored.
NOTE_DELAY = 0.01

#: What a look for dead engines found: their work, the number of live engines, the notes about next hops that
#: refuse pipelined envelopes, and the names of those that are paused.
Reclaimed = tuple[list[dict[str, Any]], int, dict[str, Any], list[str]]


class Maintained(Protocol):
    """What maintenance needs of the engine."""

    #: How many engines share the limits of next hops.
    engines: int

    @property
    def owner(self) -> Any:
        """The engine's registration (`Store.register`)."""

    @property
    def hops(self) -> Mapping[str, NextHop]:
        """The next hops in use, by the name of the relay."""

    @property
    def routes(self) -> Routes:
        """The routes at this moment; a program may add some."""

    @property
    def hungry(self) -> bool:
        """True when something may be due that the engine does not know yet."""

    def look_again(self) -> None:
        """Something may have become due."""

    def begin_anew(self) -> None:
        """The lease was lost: drop what is in hand and register again."""

    def complain(self, what: str, problem: BaseException) -> None:
        """Log a problem; deliveries go on."""

    def failed(self, what: str, problem: BaseException) -> None:
        """Log a problem, and leave the store alone for a moment."""


class Maintenance:
    """The maintenance of one engine."""

    def __init__(
        self,
        engine: Maintained,
        store: Store,
        commits: Committer,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        settings: EngineSettings,
    ) -> None:
        self.ages = Ages(store, clock, settings.retry.expire)
        #: Loop time at which `expire` is due again.
        self.expire_at = 0.0
        self._engine = engine
        self._store = store
        self._commits = commits
        self._loop = loop
        self._clock = clock
        self._settings = settings
        self._retention = Retention(store, settings.retention) if settings.retention else None
        #: How many turns retention has had since it was last finished.
        self._turns_of_retention = 0
        #: Loop times at which the works are due; infinite while they are under way.
        self._reclaim_at = 0.0
        self._upkeep_at = 0.0
        self._retain_at = 0.0
        #: Next hops, by URL, that refuse an envelope which is sent before the answer to the final dot: what
        #: this engine has learned, and the notes of other engines.
        self._refuse_ahead: dict[str, dict[str, Any]] = {}
        #: Routes of which loopback copies are missed.
        self._missing: set[str] = set()
        #: The routes that others know us to know.
        self._published: Routes | None = None
        #: Next hops (by the relay's name) that some engine has noted as paused.
        self._paused: set[str] = set()

    def reconfigured(self) -> None:
        """The settings are others now."""
        self.ages.life = self._settings.retry.expire
        self._retention = (
            Retention(self._store, self._settings.retention) if self._settings.retention else None
        )
        if self._settings.copies is not None:
            self._commits.call(self._recall, self._recalled)

    # -- when ------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Before the engine looks for due mail: check the ages, and take back what dead engines held, so that
        a single run tries it, too.
        """
        await self._first(self.ages.begin, self._ages_begun)
        if self._settings.copies is not None:
            await self._first(self._recall, self._recalled)
        await self._first(self._reclaim, self._reclaimed)

    async def _first(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        done: asyncio.Future[None] = self._loop.create_future()

        def answered(answer: Any) -> None:
            then(answer)
            if not done.done():  # else the engine was ended meanwhile
                done.set_result(None)

        self._reclaim_at = inf
        self._commits.call(work, answered)
        await done

    def look(self) -> None:
        """Start what is due."""
        time = self._loop.time()
        if time >= self._reclaim_at:
            self._reclaim_at = inf
            self._commits.call(self._reclaim, self._reclaimed)
        if self._routes_are_new and self._upkeep_at < inf:
            self._upkeep_at = time
        if time >= self._upkeep_at:
            self._published = self._engine.routes
            self._upkeep_at = inf
            self._commits.call(self._sweep, self._swept)
        if self._retention is not None and time >= self._retain_at:
            self._retain_at = inf
            self._commits.call(partial(self._retain, self._retention), self._retained)

    @property
    def _routes_are_new(self) -> bool:
        return self._published is not None and self._published is not self._engine.routes

    async def meanwhile(self, over: asyncio.Future[Any]) -> None:
        """Call `look` again and again, until ``over`` is done."""
        while not over.done():
            self.look()
            await asyncio.wait([over], timeout=RECLAIM)

    def postpone(self, seconds: float) -> None:
        """Start nothing for so many seconds. What is under way stays so."""
        later = self._loop.time() + seconds
        self._reclaim_at = max(self._reclaim_at, later)
        self._upkeep_at = max(self._upkeep_at, later)
        self._retain_at = max(self._retain_at, later)

    # -- age -------------------------------------------------------------------------------------------------

    def _ages_begun(self, answer: Any) -> None:
        if isinstance(answer, BaseException):
            self._engine.complain("a look at the clock", answer)

    def expire(self) -> None:
        """Fail what is too old now: before the next lease, in the same transaction."""
        self.expire_at = self._loop.time() + EXPIRE
        self._commits.ask(self.ages.expiry(), self._expired)

    def _expired(self, answer: int | BaseException) -> None:
        if isinstance(answer, BaseException):
            self._engine.failed("a look at what is too old", answer)

    # -- dead engines ----------------------------------------------------------------------------------------

    def _reclaim(self) -> Reclaimed:
        """On the writer's thread."""
        verbs = self._store.verbs
        retry = self._settings.retry
        found = self._store.reclaim(self._clock.now(), hold=retry.on_uncertain == "hold", within=retry.waits)
        paused = self._store.read(verbs.note_keys("hop"))
        return found, self._store.read(verbs.engines()), self._store.read(verbs.note_list("ahead")), paused

    def _reclaimed(self, answer: Any) -> None:
        self._reclaim_at = self._loop.time() + RECLAIM
        if self._engine.owner.lost:
            self._engine.begin_anew()
        if isinstance(answer, BaseException):
            self._engine.failed("taking back the work of dead engines", answer)
            return
        dead, engines, refuse_ahead, paused = answer
        self._paused |= set(paused)
        self._read_ahead_notes(refuse_ahead)
        self._share(engines)
        for found in dead:
            log.warning(
                "took back %(leases)d recipients of a dead engine, %(uncertain)d of them uncertain", found
            )
        if dead or self._engine.hungry:
            self._engine.look_again()

    def _share(self, engines: int) -> None:
        """Divide the limits of next hops by the number of engines."""
        if engines != self._engine.engines:
            self._engine.engines = engines
            for hop in self._engine.hops.values():
                hop.pace.divide(hop.relay.concurrency, hop.relay.rate, engines)

    # -- the sweep -------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """On the writer's thread: old age, clocks that jumped, notes that have ended, the sign of life."""
        self.ages.sweep()
        verbs, now = self._store.verbs, self._clock.now()
        self._store.run(verbs.clamp(now, self._settings.retry.longest))
        for url, note in self._store.read(verbs.note_list("ahead")).items():
            if may_send_ahead(note, now):
                self._store.run(verbs.note_drop("ahead", url))
        self._miss(now)
        self._store.run(self._signs_of_life(now))

    def _signs_of_life(self, now: int) -> Verb[None]:
        """That we live and which routes we know, in one transaction; what ended engines said goes."""
        verbs, routes = self._store.verbs, self._engine.routes
        alive = {"at": now, "routes": sorted(routes.relays)}
        yield from verbs.note_put("engine", "last", alive)
        if self._settings.service:
            yield from verbs.note_put("engine", "service", alive)
        names = {name for relay in routes.relays.values() for name in (relay.name, relay.url)}
        yield from verbs.note_put("knows", self._engine.owner.uuid, sorted(names))
        living = {row[1] for row in (yield from verbs.owners())}
        for engine in (yield from verbs.note_keys("knows")):
            if engine not in living:
                yield from verbs.note_drop("knows", engine)
        yield from verbs.forget_hops(living, now)

    def _miss(self, now: int) -> None:
        """On the writer's thread: complain of loopback copies that did not come home in time; say so when
        there are none any more.
        """
        copies, verbs = self._settings.copies, self._store.verbs
        if copies is None:
            return
        for route, n in self._store.run(verbs.miss(now - copies.settings.within)).items():
            log.warning(
                "%d loopback copies by the route %s have not come home within %s: what the relay takes may "
                "not arrive, or nobody hears them (outmail loopback stats)",
                n,
                route,
                human_span(copies.settings.within),
            )
        missing = set(self._store.read(verbs.missing()))
        for route in self._missing - missing:
            log.info("all loopback copies by the route %s are home", route)
        self._missing = missing

    def _swept(self, answer: Any) -> None:
        failed = isinstance(answer, BaseException)
        self._upkeep_at = self._loop.time() + (UPKEEP_AGAIN if failed else UPKEEP)
        if failed:
            self._engine.complain("upkeep", answer)
        for hop in self._engine.hops.values():
            if hop.pace.tripped:  # still: the note says which engine found so last
                self.paused(hop, hop.pace.trouble)
        self._engine.look_again()

    # -- retention -------------------------------------------------------------------------------------------

    def _retain(self, retention: Retention) -> bool:
        """On the writer's thread."""
        now = self.ages.now()
        return (
            now is not None
            and self._store.read(self._store.verbs.eldest()) == self._engine.owner.id
            and retention.turn(now.age, TURN)
        )

    def _retained(self, answer: Any) -> None:
        """Another turn soon, and sooner when there is much to do. When finished, rest as long as the work
        took.
        """
        if isinstance(answer, BaseException):
            self._retain_at = self._loop.time() + UPKEEP
            self._engine.complain("retention", answer)
            return
        self._turns_of_retention += 1
        pause = RETAIN if self._turns_of_retention < PATIENT_TURNS else RETAIN / 5
        self._retain_at = self._loop.time() + (
            pause if answer else max(UPKEEP, self._turns_of_retention * pause)
        )
        if not answer:
            self._turns_of_retention = 0

    # -- notes about next hops -------------------------------------------------------------------------------

    def paused(self, hop: NextHop, trouble: str) -> None:
        """Publish that it gets nothing for a while, so that people see why mail waits."""
        relay, engine = hop.relay, self._engine.owner.uuid
        self._paused.add(relay.name)
        self._note(self._store.verbs.pause_hop(relay.name, relay.url, trouble, engine, self._clock.now()))

    def answers(self, hop: NextHop) -> None:
        """It takes part in a dialogue: whatever any engine has noted of it is over."""
        if hop.relay.name in self._paused:
            self._paused.discard(hop.relay.name)
            self._note(self._store.verbs.resume_hop(hop.relay.name, self._clock.now()))

    def may_send_ahead(self, relay: Relay) -> bool:
        """False for a relay that is known to refuse pipelined envelopes."""
        return may_send_ahead(self._refuse_ahead.get(relay.url), self._clock.now())

    def refuses_ahead(self, hop: NextHop, reply: Reply) -> None:
        """This next hop refuses an envelope that is sent before the answer to the final dot. Keep that in a
        note, so that later engines need not find out again.
        """
        if not hop.ahead:
            return
        hop.ahead = False
        note = ahead_note(reply, self._clock.now())
        self._refuse_ahead[hop.relay.url] = note
        log.warning(
            "%s refuses commands that are sent before its answer to the final dot (%s): it gets one "
            "message after the other",
            hop.relay.name,
            reply,
        )
        self._note(self._store.verbs.note_put("ahead", hop.relay.url, note))

    def copy_trouble(self, hop: NextHop, trouble: CopyTrouble) -> None:
        """A next hop that does not take loopback copies gets none for a while; a message that was refused
        together with its copy goes without. A next hop that took a copy alone must accept a recipient before
        it gets DATA, because a session ends each time.
        """
        if trouble.kind == "alone":
            hop.asks_first_until = self._loop.time() + ASK_FIRST
            return
        self._note(self._store.verbs.loopback_count("refused"))
        if trouble.kind == "together":
            id = trouble.delivery.id
            if self._settings.copies is not None:
                self._settings.copies.without(id)
            self._note(self._store.verbs.note_put("copyless", id, self._clock.now()))
            return
        reply = trouble.reply
        pause = pause_after(reply)
        hop.copies_from = self._loop.time() + pause
        log.warning(
            "%s does not take the loopback copy (%s): it gets none for %.0f minutes; mail goes on without",
            hop.relay.name,
            reply,
            pause / 60,
        )

    def _recall(self) -> list[str]:
        """On the writer's thread: the messages that go without a copy, as engines before have noted."""
        verbs, now = self._store.verbs, self._clock.now()
        found: dict[str, int] = self._store.read(verbs.note_list("copyless"))
        for id in [id for id, at in found.items() if not now - COPYLESS <= at <= now]:
            self._store.run(verbs.note_drop("copyless", id))
            del found[id]
        return sorted(found, key=found.__getitem__)

    def _recalled(self, answer: Any) -> None:
        if isinstance(answer, BaseException):
            self._engine.complain("a look at which mail goes without a loopback copy", answer)
        elif self._settings.copies is not None:
            for id in answer:
                self._settings.copies.without(id)

    def _read_ahead_notes(self, notes: Mapping[str, dict[str, Any]]) -> None:
        """Use what other engines have learned."""
        for url, note in notes.items():
            if url not in self._refuse_ahead or note["since"] > self._refuse_ahead[url]["since"]:
                self._refuse_ahead[url] = note
        for hop in self._engine.hops.values():
            hop.ahead = self.may_send_ahead(hop.relay)

    def _note(self, verb: Verb[Any]) -> None:
        self._commits.ask(verb, self._noted)
        self._commits.soon(NOTE_DELAY)

    def _noted(self, answer: Any) -> None:
        if isinstance(answer, BaseException):
            self._engine.failed("a note", answer)
