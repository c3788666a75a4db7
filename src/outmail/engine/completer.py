"""What an engine has in hand, from the lease until its outcome is on record.

How: what sessions learn is gathered and written together: `contribute` is called right before each commit.
Final dots go through here too, because both sides share one bound: a kill must leave few dots without a
written outcome.
Promises: a final dot is put on record before it is sent; no record, no dot. Final dots are withheld while
`SETTLE_BATCH` outcomes are unwritten. Outcomes that the store does not take are kept and written when it is
back. What others may have taken meanwhile is dropped, unless its final dot is out. A bug of ours gives mail
back and is logged; it never fails a recipient.
Fails: never by raising; it logs, and the engine waits a moment. Does not: lease, or know sessions beyond what
they had in hand.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from outmail.clock import Clock
from outmail.engine.ages import Ages
from outmail.engine.nexthop import NextHop, SessionFeed
from outmail.engine.settings import EngineSettings
from outmail.model import Delivery, Leased, Outcome, Reply, Settled, Verdict
from outmail.policy.retry import DELIVERED, verdict
from outmail.policy.route import allowed
from outmail.store import Store, StoreError
from outmail.store.commit_loop import Committer
from outmail.system.throttle import Throttle

log = logging.getLogger("outmail.engine")

#: So many outcomes are written at once, and final dots are withheld while so many are unwritten.
SETTLE_BATCH = 200
#: Seconds that outcomes and returned mail wait for others.
SETTLE_DELAY = 0.01
#: After so many seconds in a session without harm a suspect is not suspected if the engine dies.
HARMLESS = 1.0

#: A final dot that waits for permission.
Dot = tuple[Delivery, Sequence[Leased], Callable[[bool], None]]


class Completed(Protocol):
    """What the completer asks of the engine."""

    @property
    def owner(self) -> Any:
        """The engine's registration (`Store.register`)."""

    def ours(self, delivery: Delivery) -> bool:
        """False for what was leased before the engine began anew."""

    def stir(self) -> None:
        """Something may have become due; there is no hurry."""

    def look_again(self) -> None:
        """Something may have become due."""

    def on_record(self, *, again: bool) -> None:
        """Outcomes are written. ``again``: some of their recipients are due at another time."""

    def failed(self, what: str, problem: BaseException) -> None:
        """Log it, and leave the store alone for a moment."""


class Completer:
    """One engine's. ``counts`` is kept by outcome, for people."""

    def __init__(
        self,
        engine: Completed,
        store: Store,
        commits: Committer,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        settings: EngineSettings,
        ages: Ages,
        seldom: Throttle,
        counts: dict[str, int],
    ) -> None:
        #: Recipients and bytes of content in hand.
        self.out = 0
        self.bytes = 0
        #: The one delivery in hand that was lost by a dead engine before.
        self.suspect: Delivery | None = None
        #: Leases (owner, number) that may stand in the store without our knowing what they hold.
        self.lost: list[tuple[int, int]] = []
        self._engine = engine
        self._store = store
        self._commits = commits
        self._loop = loop
        self._clock = clock
        self._settings = settings
        self._ages = ages
        self._seldom = seldom
        self._counts = counts
        self._dots: list[Dot] = []
        #: Final dots wait until a settle batch is written.
        self._withheld = False
        self._learned: list[Settled] = []
        #: Deliveries whose outcome is known and not on record: learned, or in a commit under way.
        self._unsettled = 0
        self._returns: list[Delivery] = []

    @property
    def idle(self) -> bool:
        """True when nothing waits to be written."""
        return not (self._learned or self._returns)

    # -- in hand ---------------------------------------------------------------------------------------------

    def take_in(self, hop: NextHop, delivery: Delivery) -> None:
        """It is in hand from now on, until `_release`."""
        hop.out += len(delivery.recipients)
        self.out += len(delivery.recipients)
        self.bytes += len(delivery.content)
        if any(r.losses for r in delivery.recipients):
            self.suspect = delivery

    def _release(self, hop: NextHop, delivery: Delivery) -> None:
        hop.out -= len(delivery.recipients)
        self.out -= len(delivery.recipients)
        self.bytes -= len(delivery.content)
        if self.suspect is delivery:
            self.suspect = None

    def begin(self, delivery: Delivery) -> None:
        """A session is about to work on it: if we die of that, our record says so."""
        self._engine.owner.begin(delivery)
        if self.suspect is delivery:
            self._loop.call_later(HARMLESS, self._no_harm, delivery)

    def _no_harm(self, delivery: Delivery) -> None:
        if self.suspect is delivery:
            self._engine.owner.harmless(delivery)

    def drop(self, hops: Iterable[NextHop]) -> int:
        """Others may have all of it: forget what is in hand, but for final dots that are out. Returns how
        many recipients were in hand.
        """
        dropped = self.out
        for hop in hops:
            for delivery in hop.drop():
                self._release(hop, delivery)
        self._returns = []
        return dropped

    # -- dots ------------------------------------------------------------------------------------------------

    def dot(self, delivery: Delivery, recipients: Sequence[Leased], then: Callable[[bool], None]) -> None:
        """Permission for a final dot: given at the end of this turn, when all of the turn are on record;
        while a settle batch of outcomes is not written yet, once it is. So a kill leaves no more doubles than
        that, and one for each session.
        """
        if not self._dots:
            self._loop.call_soon(self._record_dots)
        self._dots.append((delivery, recipients, then))

    def _record_dots(self) -> None:
        self._withheld = self._unsettled >= SETTLE_BATCH
        if self._withheld:
            return  # `_settled` comes back
        dots, self._dots = self._dots, []
        ours = self._engine.ours
        try:
            self._store.dots(
                self._engine.owner,
                [(delivery, recipients) for delivery, recipients, _ in dots if ours(delivery)],
            )
            granted = True
        except (OSError, StoreError) as problem:
            self._seldom.say(
                logging.ERROR, "dots", "final dots cannot be put on record (%s); nothing is sent", problem
            )
            granted = False
        for delivery, recipients, then in dots:
            may = granted and ours(delivery)
            for recipient in recipients:
                recipient.dotted = may
            then(may)

    # -- outcomes --------------------------------------------------------------------------------------------

    def finished(self, hop: NextHop, delivery: Delivery) -> None:
        """A delivery's outcomes are known: decide, and write with the others of this moment."""
        self._settings.fail("C4")
        if not self._engine.ours(delivery) and not any(r.dotted for r in delivery.recipients):
            self._release(hop, delivery)
            return
        now, retry = self._clock.now(), self._settings.retry
        verdicts: list[tuple[Leased, Verdict]] = []
        failed = False
        expired: bool | None = None
        chance = random.random()  # one for all: those who failed together come back together
        for recipient in delivery.recipients:
            outcome = recipient.outcome
            assert outcome is not None
            if outcome.kind == "delivered":  # nearly always; its age does not matter any more
                decision = DELIVERED
            else:
                if expired is None:
                    expired = self._ages.too_old(delivery, self._ages.now())
                decision = verdict(
                    outcome,
                    attempts=recipient.attempts + 1,
                    now=now,
                    accepted_at=delivery.accepted_at,
                    expired=expired,
                    retry=retry,
                    chance=chance,
                )
                failed = True
            kind = "expired" if decision.event == "expired" else outcome.kind
            self._counts[kind] += 1
            verdicts.append((recipient, decision))
        mode = self._settings.transcripts
        self._learn(hop, delivery, verdicts, now, keep=mode == "all" or (failed and mode != "none"))

    def _learn(
        self,
        hop: NextHop,
        delivery: Delivery,
        verdicts: list[tuple[Leased, Verdict]],
        now: int,
        *,
        keep: bool,
    ) -> None:
        """Write it with the others of this moment."""
        duration = int((self._loop.time() - delivery.started) * 1000) if delivery.started else 0
        self._learned.append(Settled(delivery, tuple(verdicts), now, duration, keep))
        self._unsettled += 1
        suspect = self.suspect is delivery
        if suspect:
            self._engine.stir()  # it was alone: the next one waits for it
        urgent = len(self._learned) == SETTLE_BATCH or suspect
        self._release(hop, delivery)
        self._commits.soon(0.0 if urgent else SETTLE_DELAY)

    def expired(self, hop: NextHop, delivery: Delivery) -> None:
        """It was too old before a session had it: fail it without an attempt."""
        outcome, decision = (
            Outcome("deferred", "recipient", "local", Reply(0, "too old")),
            Verdict("expired", reason="too old", charged=False),
        )
        delivery.all(outcome)
        self._counts["expired"] += len(delivery.recipients)
        verdicts = [(recipient, decision) for recipient in delivery.recipients]
        self._learn(hop, delivery, verdicts, self._clock.now(), keep=False)

    def safe(self, hop: NextHop, delivery: Delivery) -> bool:
        """``[safety]`` once more: the rule may be stricter than when the mail was accepted. False when nobody
        is left to send to; then it is finished.
        """
        outcome = Outcome("refused", "recipient", "local", Reply(0, "safety: not in only_to"))
        for recipient in delivery.recipients:
            if not allowed(self._settings.only_to, recipient.address):
                recipient.outcome = outcome
        if all(r.outcome for r in delivery.recipients):
            self.finished(hop, delivery)
            return False
        return True

    def quarantine(self, delivery: Delivery) -> None:
        """Its content is not what was accepted: hold it. It was not taken in."""
        self._counts["quarantined"] += len(delivery.recipients)
        reason = (
            "the content is missing"
            if not delivery.content
            else "the content does not have the hash it was accepted with"
        )
        log.error("message %s is quarantined: %s", delivery.id, reason)

        def then(answer: Any) -> None:
            if isinstance(answer, BaseException):
                self._engine.failed("a quarantine", answer)
                self._returns.append(delivery)

        self._commits.ask(
            self._store.verbs.quarantine(self._engine.owner.id, delivery, self._clock.now(), reason), then
        )
        self._commits.soon()

    # -- sessions that failed or ended -----------------------------------------------------------------------

    def hop_failed(
        self, hop: NextHop, outcome: Outcome, transcript: Sequence[tuple[int, str, bytes]] = ()
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
                self.give_back(hop, hop.queue.popleft())

    def abandoned(self, feed: SessionFeed) -> None:
        """A session has ended. What it still had in hand is uncertain where a dot is on record, else
        untried.
        """
        while feed.flying:
            delivery = feed.flying.pop()
            if not any(r.dotted or r.outcome for r in delivery.recipients):
                self.give_back(feed.hop, delivery)
                continue
            reply = Reply(0, "the session was ended before the answer")
            for recipient in delivery.recipients:
                kind = "unknown" if recipient.dotted else "deferred"
                recipient.outcome = recipient.outcome or Outcome(kind, "message", "dot", reply)  # type: ignore[arg-type]
            self.finished(feed.hop, delivery)

    def give_back(self, hop: NextHop, delivery: Delivery) -> None:
        """Untried, back into the queue."""
        self._release(hop, delivery)
        if self._engine.ours(delivery):
            self.give_back_untaken(delivery)

    def give_back_untaken(self, delivery: Delivery) -> None:
        """The same for what was leased and not taken in."""
        self._returns.append(delivery)
        self._commits.soon(SETTLE_DELAY)

    # -- writing ---------------------------------------------------------------------------------------------

    def contribute(self) -> None:
        """Right before a commit: leases that nobody knows of, all that was learned, all that goes back."""
        lost, self.lost = self.lost, []
        for owner in {owner for owner, _ in lost}:
            leases = [lease for lease in lost if lease[0] == owner]
            self._commits.ask(
                self._store.verbs.unlease(owner, [number for _, number in leases], self._clock.now()),
                partial(self._unleased, leases),
            )
        learned, self._learned = self._learned, []
        returns, self._returns = self._returns, []
        if learned:
            self._ask_settle(learned)
        if returns:
            self._commits.ask(
                self._store.verbs.give_back(self._engine.owner.id, returns, self._clock.now()),
                partial(self._returned, returns),
            )

    def _ask_settle(self, learned: list[Settled]) -> None:
        hold = self._settings.retry.on_uncertain == "hold"
        for owner in {item.delivery.owner for item in learned}:
            theirs = [item for item in learned if item.delivery.owner == owner]
            self._commits.ask(
                self._store.verbs.settle(owner, theirs, hold_unknown=hold), partial(self._settled, theirs)
            )

    def _settled(self, learned: list[Settled], answer: int | BaseException) -> None:
        if isinstance(answer, StoreError):
            self._learned = learned + self._learned
            self._engine.failed("outcomes", answer)
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
        self._settings.fail("C5")
        self._store.settled(self._engine.owner, [item.delivery for item in learned])
        if self._settings.observe:
            self._settings.observe(learned)
        self._engine.on_record(
            again=any(verdict.event != "delivered" for item in learned for _, verdict in item.verdicts)
        )

    def _returned(self, returns: list[Delivery], answer: int | BaseException) -> None:
        if isinstance(answer, StoreError):
            self._returns = returns + self._returns
            self._engine.failed("returned mail", answer)
        elif isinstance(answer, BaseException):
            log.error(
                "%d deliveries could not be returned: a bug of outmail; they are taken back when this engine "
                "ends",
                len(returns),
                exc_info=answer,
            )
        else:
            self._store.settled(self._engine.owner, returns)
        self._engine.look_again()

    def _unleased(self, lost: list[tuple[int, int]], answer: int | BaseException) -> None:
        if isinstance(answer, BaseException):
            self.lost += lost
            self._engine.failed("a lost lease", answer)
        elif answer:
            log.info("%d recipients were leased without our knowing and are back in the queue", answer)
            self._engine.stir()
