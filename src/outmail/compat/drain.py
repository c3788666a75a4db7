"""One run over a queue directory of another program: its entries are taken into a store, and an engine works
once on what is due there.

Promises: those of `foreign_queue.take_in` and of `outmail run --once`. What failed because of the connection
is tried again by each run, what a server put off when its time has come. SIGTERM and SIGINT end the run after
the dialogues that are under way.
Fails: `NotStored`, OSError for a directory that cannot be looked at. Does not: read the other program's
settings, or print.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from outmail import config as own
from outmail.clock import Clock, human_span
from outmail.compat.foreign_queue import ForeignQueue, Taken, take_in
from outmail.config import Config, Homes, Listen
from outmail.model import Settled
from outmail.outbox.outbox import Outbox
from outmail.policy.loopback import Loopback
from outmail.policy.plain import plain_line
from outmail.policy.route import Relay, Routes
from outmail.system.exits import EX_SOFTWARE, EX_TEMPFAIL, EX_UNAVAILABLE
from outmail.wiring import build_engine

#: The store in a queue directory that holds what was taken out of it.
STORE = "outmail.db"
#: What the connection or the login, not the mail, kept from being delivered; nothing of it may have arrived.
_CONNECTION = ("is:deferred -is:uncertain -code:4 -code:5", "is:deferred -is:uncertain code:53")

Observe = Callable[[Sequence[Settled]], object]


def store_of(folder: str) -> str:
    """The store that belongs to a queue directory."""
    return os.path.join(os.path.abspath(folder), STORE)


@contextlib.contextmanager
def known_beside(folder: str, box: Outbox) -> Iterator[Callable[[str], bool]]:
    """For an import into ``box``: whether the store in the directory, if there is one, knows a message. A run
    that was killed may have stored an entry there, and not removed it.
    """
    path = store_of(folder)
    if not os.path.exists(path) or box.store.url == f"sqlite:{path}":
        yield lambda id: False
        return
    with Outbox(path, config=box.config, deliver="never") as beside:
        yield beside.queue.is_known


def config_for(folder: str, relay: Callable[[], Relay], env: Mapping[str, str], **changed: Any) -> Config:
    """The configuration for the mail of a queue directory. What only outmail has (retries, limits, safety)
    comes from outmail's own one; ``OUTMAIL_RELAY`` replaces the server; nothing is listened to.
    """
    base = own.load(None, env, through=False)
    server = base.routes.relays["default"] if env.get("OUTMAIL_RELAY") else relay()
    uncertain = "retry" if base.retry.on_uncertain == "verify" else base.retry.on_uncertain
    return replace(
        base,
        store=store_of(folder),
        routes=Routes({"default": server}),
        retry=replace(base.retry, on_uncertain=uncertain),
        listen=Listen(),
        loopback=Loopback(),
        homes=Homes(),
        outboxes=(),
        notify_failed=(),
        secrets={},
        **changed,
    )


@dataclass(slots=True)
class Drained:
    """``counts``: recipients by what became of them. ``reasons``: why some were not delivered, with their
    number. ``waits``: how long until the next one is due, as text, "" for now; None when nobody waits.
    ``held``: recipients that wait until somebody releases them, in ``store``.
    """

    taken: Taken
    counts: Mapping[str, int]
    reasons: Counter[str]
    waits: str | None
    held: int
    store: str

    @property
    def status(self) -> int:
        """The exit status: 70 set aside or quarantined, 69 failed for good, 75 some wait, also held ones and
        files in somebody else's hands, 0 nobody does.
        """
        if self.taken.status == EX_SOFTWARE or self.counts["quarantined"]:
            return EX_SOFTWARE
        if self.counts["refused"] or self.counts["expired"]:
            return EX_UNAVAILABLE
        return EX_TEMPFAIL if self.waits is not None or self.held else self.taken.status

    def sentences(self) -> list[str]:
        """Why some were not delivered and when they are tried again, and how many are held: a line each."""
        why = "; ".join(f"{count} × {reason}" for reason, count in self.reasons.most_common(3))
        lines = [f"not delivered: {why}{self._outlook()}"] if why else []
        if self.held:
            people = "recipient is" if self.held == 1 else "recipients are"
            lines.append(
                f"{self.held} {people} held, and no run sends to them: outmail queue list state:held "
                f"--store {self.store} says why; outmail queue release state:held --store {self.store} lets "
                "them go on"
            )
        return lines

    def _outlook(self) -> str:
        if self.waits is None:
            return ""
        return f"; the next try is due in {self.waits}" if self.waits else "; the next run tries again"


def drain(
    queue: ForeignQueue,
    box: Outbox,
    tell: Callable[[str], None],
    observe: Observe = lambda items: None,
    then: Callable[[], object] = lambda: None,
) -> Drained:
    """Take in what waits, and try once what is due. ``tell`` is given what people must know, a line each,
    also before an error; ``observe`` all that is settled; ``then`` is called before it is looked what waits.
    """
    for failed in _CONNECTION:
        box.retry(failed)
    taken, reasons = Taken(), Counter[str]()

    def watch(items: Sequence[Settled]) -> None:
        observe(items)
        for item in items:
            for recipient, verdict in item.verdicts:
                if verdict.event != "delivered" and recipient.outcome is not None:
                    reasons[plain_line(str(recipient.outcome.reply))] += 1

    try:
        counts = asyncio.run(_worked(queue, box, taken, watch))
    finally:
        for line in taken.sentences(queue.folder):
            tell(line)
    then()
    due = box.queue.next_due()
    left = min(due.values()) - box.clock.now() if due else 0
    waits = None if not due else human_span(left) if left > 0 else ""
    held = box.queue.stats()["states"].get("held", 0)
    done = Drained(taken, counts, reasons, waits, held, box.config.store)
    for line in done.sentences():
        tell(line)
    return done


async def _worked(queue: ForeignQueue, box: Outbox, taken: Taken, observe: Observe) -> Mapping[str, int]:
    engine = build_engine(box.store, box.config, box.routes, Clock(), observe=observe)
    over: list[int] = []

    def stop(number: int) -> None:
        over.append(number)
        engine.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    await engine.run(
        once=True, first=lambda: take_in(queue, box.door, box.config.origin, lambda: bool(over), taken)
    )
    counts: Mapping[str, int] = engine.counts
    return counts
