"""What a program leaves in the queue when it ends, in sentences.

Promises: the end of a program never reads a long queue. At most `LOOK` messages are looked at; where more
wait, it says "more than".
Fails: as `Queue` does. Does not: send anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from outmail.clock import human_span
from outmail.model import Filter, RecipientStatus, Term
from outmail.outbox.queue import Queue
from outmail.policy.route import Routes

#: How many waiting messages are looked at.
LOOK = 1000


@dataclass(slots=True)
class Rest:
    """Queued recipients: how many were tried or are due, and why; how many are scheduled for later, the first
    of them in how many ms. ``more``: not all messages were looked at.
    """

    waiting: int = 0
    reasons: set[str] = field(default_factory=set)
    scheduled: int = 0
    first_in: int = 0
    more: bool = False

    def sentences(self, command: str) -> list[str]:
        """One sentence for what should have gone, one for what is scheduled; ``command`` sends both."""
        said = []
        if self.waiting:
            why = f" ({'; '.join(sorted(self.reasons)[:2])})" if self.reasons else ""
            said.append(
                f"{self._counted(self.waiting)} still queued{why}; to go out with the next run, or by: "
                f"{command}"
            )
        if self.scheduled:
            verb = "is" if self.scheduled == 1 and not self.more else "are"
            first = "" if self.more else f", the first in {human_span(self.first_in)}"
            said.append(
                f"{self._counted(self.scheduled)} {verb} scheduled{first}; to go out with the first run "
                f"after that, or then by: {command}"
            )
        return said

    def add(self, r: RecipientStatus, now: int) -> None:
        """Count one."""
        ahead = (r.next_try_at or now) - now
        if ahead > 0 and not r.attempts:
            self.first_in = min(ahead, self.first_in or ahead)
            self.scheduled += 1
        else:
            self.waiting += 1
            self.reasons |= {r.reason} - {""}

    def _counted(self, n: int) -> str:
        return f"{'more than ' * self.more}{n:,} recipient{'s' if n > 1 or self.more else ''}"


def rest(queue: Queue, routes: Routes) -> Rest:
    """What waits for relays of these routes."""
    found, now = Rest(), queue.clock.now()
    looked = 0
    for route in queue.next_due():
        if not routes.resolve(route):
            continue
        for status in queue.matching(Filter((Term("state", "queued"), Term("route", route)))):
            if looked == LOOK:
                found.more = True
                return found
            looked += 1
            for r in status.recipients:
                if r.state == "queued" and r.route == route:
                    found.add(r, now)
    return found
