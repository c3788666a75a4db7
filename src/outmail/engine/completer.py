"""Everything that an engine has in hand, from the lease until its outcome is stored.

How: outcomes are collected and stored together; `contribute` is called right before each commit. Final dots
go through this module too, because the two have a common limit: when the engine is killed, there must be few
sent dots whose outcome is not stored.
Promises: a final dot is recorded before it is sent; without a record it is not sent. Final dots are withheld
while `SETTLE_BATCH` outcomes are not stored. Outcomes that the store does not accept are kept, and stored
when it works again. Deliveries that other engines may have taken over are dropped, unless their final dot is
out. When our own code has a bug, mail goes back into the queue and the bug is logged; no recipient fails
because of it.
Fails: never by raising; it logs, and the engine pauses. Does not: lease, or know more of sessions than what
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
from outmail.model import Copies, Delivery, Leased, Outcome, Reply, Settled, Verdict
from outmail.policy.loopback import APART
from outmail.policy.retry import DELIVERED, verdict
from outmail.policy.route import allowed
from outmail.store import Store, StoreError
from outmail.store.commit_loop import Committer
from outmail.system.throttle import Throttle

log = logging.getLogger("outmail.engine")

#: How many outcomes are stored at once, and from how many unstored ones on final dots are withheld.
SETTLE_BATCH = 200
#: Seconds that outcomes and returned mail wait for others to share a commit.
SETTLE_DELAY = 0.01
#: After so many seconds in a session a message is not suspected if the engine dies.
HARMLESS = 1.0

#: A final dot that waits for permission.
Dot = tuple[Delivery, Sequence[Leased], Callable[[bool], None]]


class Completed(Protocol):
    """What the completer needs of the engine."""

    @property
    def owner(self) -> Any:
        """The engine's registration (`Store.register`)."""

    def ours(self, delivery: Delivery) -> bool:
        """False for a delivery that was leased before the engine registered again."""

    def stir(self) -> None:
        """Something may have become due; look soon."""

    def look_again(self) -> None:
        """Something may have become due; look now."""

    def on_record(self, *, again: bool) -> None:
        """Outcomes are stored. ``again``: some of their recipients are due again later."""

    def failed(self, what: str, problem: BaseException) -> None:
        """Log the problem, and leave the store alone for a moment."""


class Completer:
    """The completer of one engine. ``counts`` counts outcomes by kind, for people."""

    def __init__(
        self,
        engine: Completed,
        store: Store,
        commits: Committer,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        settings: EngineSettings,
        ages: Ages,
        throttle: Throttle,
        counts: dict[str, int],
    ) -> None:
        #: How many recipients and bytes of content are in hand.
        self.out = 0
        self.bytes = 0
        #: The one delivery in hand that is suspect: an engine died with it before.
        self.suspect: Delivery | None = None
        #: Leases (owner, number) that the store may have given without our getting the answer.
        self.lost: list[tuple[int, int]] = []
        self._engine = engine
        self._store = store
        self._commits = commits
        self._loop = loop
        self._clock = clock
        self._settings = settings
        self._ages = ages
        self._throttle = throttle
        self._counts = counts
        self._dots: list[Dot] = []
        #: True while final dots wait for a settle batch to be stored.
        self._withheld = False
        self._learned: list[Settled] = []
        #: How many deliveries have an outcome that is not stored yet, or is in a running commit.
        self._unsettled = 0
        self._returns: list[Delivery] = []

    @property
    def idle(self) -> bool:
        """True when nothing waits to be stored."""
        return not (self._learned or self._returns)

    # -- in hand ---------------------------------------------------------------------------------------------

    def add(self, hop: NextHop, delivery: Delivery) -> None:
        """This delivery is in hand from now on, until `_release`."""
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
        """A session is about to work on it. We record that, so that it is a suspect if we die now."""
        self._engine.owner.begin(delivery)
        if self.suspect is delivery:
            self._loop.call_later(HARMLESS, self._no_harm, delivery)

    def _no_harm(self, delivery: Delivery) -> None:
        if self.suspect is delivery:
            self._engine.owner.harmless(delivery)

    def drop(self, hops: Iterable[NextHop]) -> int:
        """Other engines may have taken over everything: forget what is in hand, except for deliveries whose
        final dot is out. Returns how many recipients were in hand.
        """
        dropped = self.out
        for hop in hops:
            for delivery in hop.drop():
                self._release(hop, delivery)
        self._returns = []
        return dropped

    # -- dots ------------------------------------------------------------------------------------------------

    def dot(self, delivery: Delivery, recipients: Sequence[Leased], then: Callable[[bool], None]) -> None:
        """Ask for permission to send a final dot. ``then`` is called at the end of this turn, when all dots
        of the turn are recorded; or later, while a settle batch of outcomes is not stored. So a kill leaves
        at most that many doubles, plus one for each session.
        """
        if not self._dots:
            self._loop.call_soon(self._record_dots)
        self._dots.append((delivery, recipients, then))

    def _record_dots(self) -> None:
        self._withheld = self._unsettled >= SETTLE_BATCH
        if self._withheld:
            return  # `_settled` calls this again
        dots, self._dots = self._dots, []
        ours = self._engine.ours
        try:
            self._store.dots(
                self._engine.owner,
                [(delivery, recipients) for delivery, recipients, _ in dots if ours(delivery)],
            )
            granted = True
        except (OSError, StoreError) as problem:
            self._throttle.say(
                logging.ERROR, "dots", "final dots cannot be put on record (%s); nothing is sent", problem
            )
            granted = False
        for delivery, recipients, then in dots:
            may = granted and ours(delivery)
            for recipient in recipients:
                recipient.dotted = may
            if delivery.copies is not None and may and recipients[0].copy:
                delivery.copies.sent[recipients[0].copy] = self._clock.now()
            then(may)

    # -- outcomes --------------------------------------------------------------------------------------------

    def finished(self, hop: NextHop, delivery: Delivery) -> None:
        """All outcomes of a delivery are known. Decide, and store them together with others."""
        self._settings.fail("C4")
        if not self._engine.ours(delivery) and not any(r.dotted for r in delivery.recipients):
            self._release(hop, delivery)
            return
        now, retry = self._clock.now(), self._settings.retry
        verdicts: list[tuple[Leased, Verdict]] = []
        failed = False
        expired: bool | None = None
        chance = random.random()  # one for all: recipients that failed together are tried together again
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
                    copied=delivery.copies is not None and self._verifiable(delivery.copies, recipient),
                )
                failed = True
            kind = "expired" if decision.event == "expired" else outcome.kind
            self._counts[kind] += 1
            verdicts.append((recipient, decision))
        mode = self._settings.transcripts
        self._learn(hop, delivery, verdicts, now, keep=mode == "all" or (failed and mode != "none"))

    @staticmethod
    def _verifiable(copies: Copies, recipient: Leased) -> bool:
        """True when the copy of its transaction proves, once it is home, that the recipient was taken."""
        return recipient.copy in copies.sent and not recipient.copy & APART

    def _learn(
        self,
        hop: NextHop,
        delivery: Delivery,
        verdicts: list[tuple[Leased, Verdict]],
        now: int,
        *,
        keep: bool,
    ) -> None:
        """Keep the verdicts, to be stored together with others."""
        duration = int((self._loop.time() - delivery.started) * 1000) if delivery.started else 0
        self._learned.append(Settled(delivery, tuple(verdicts), now, duration, keep))
        self._unsettled += 1
        suspect = self.suspect is delivery
        if suspect:
            self._engine.stir()  # it was alone in hand; now the next suspect can be leased
        urgent = len(self._learned) == SETTLE_BATCH or suspect
        self._release(hop, delivery)
        self._commits.soon(0.0 if urgent else SETTLE_DELAY)

    def expired(self, hop: NextHop, delivery: Delivery) -> None:
        """The delivery was too old before a session got it. Its recipients fail without an attempt."""
        outcome, decision = (
            Outcome("deferred", "recipient", "local", Reply(0, "too old")),
            Verdict("expired", reason="too old", charged=False),
        )
        delivery.all(outcome)
        self._counts["expired"] += len(delivery.recipients)
        verdicts = [(recipient, decision) for recipient in delivery.recipients]
        self._learn(hop, delivery, verdicts, self._clock.now(), keep=False)

    def safe(self, hop: NextHop, delivery: Delivery) -> bool:
        """Apply ``[safety]`` once more, because the setting may have changed since the mail was accepted.
        False when no recipient is left; the delivery is then finished.
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
        """The content is not what was accepted: hold the message. The delivery was not taken in."""
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
        """No session could be established. One delivery gets this as its outcome; the others wait until the
        next hop is tried again.
        """
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
        """A session has ended. What it still had in hand becomes uncertain if its dot is recorded; otherwise
        it goes back untried.
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
        """Put a delivery back into the queue, untried."""
        self._release(hop, delivery)
        if self._engine.ours(delivery):
            self.give_back_untaken(delivery)

    def give_back_untaken(self, delivery: Delivery) -> None:
        """The same for a delivery that was leased and not taken in."""
        self._returns.append(delivery)
        self._commits.soon(SETTLE_DELAY)

    # -- writing ---------------------------------------------------------------------------------------------

    def contribute(self) -> None:
        """Called right before a commit: add the verbs for lost leases, for outcomes, and for deliveries that
        go back.
        """
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
            for item in learned:  # the whole batch failed: find out which one is at fault, each alone
                self._ask_settle([item])
        elif isinstance(answer, BaseException):
            log.error(
                "the outcome of %s cannot be stored because of a bug of outmail; it goes back into the queue "
                "when this engine ends",
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
                "%d deliveries could not be put back because of a bug of outmail; they go back into the "
                "queue when this engine ends",
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
            log.info("%d recipients of a lease whose answer was lost are back in the queue", answer)
            self._engine.stir()
