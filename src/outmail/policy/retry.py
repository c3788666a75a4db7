"""What to do about an outcome: the change of state, the next try, the reason.

Promises: pure; the same arguments give the same verdict. A schedule is data (``1m, 5m*2, 1h*3``): each step
is the wait before the next attempt, ``*n`` repeats it, a ``…`` (or ``...``) at the end repeats the last step
until the message expires. Without it the attempts are used up after the last step. Waits vary by ±20 %, so
that messages which failed together do not come back together (as in chasquid's queue and the retry advice of
RFC 5321 §4.5.4.1).
Fails: `Schedule.parse` raises ValueError with a sentence.
Does not: change a state (`lifecycle` does) or know SMTP, except the first digit of a reply, which is in the
outcome's kind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from outmail.clock import DAY, MINUTE, parse_span
from outmail.model import Outcome, Verdict

#: Doubling from one minute to four hours, for five days: some forty attempts.
DEFAULT_SCHEDULE = "1m, 2m, 4m, 8m, 15m, 30m, 1h, 2h, 4h…"
_STEP = re.compile(r"([0-9a-z. ]+?)(?:\*(\d+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Waits in milliseconds; ``endless`` repeats the last one."""

    steps: tuple[int, ...]
    endless: bool

    @classmethod
    def parse(cls, text: str) -> Schedule:
        body = text.strip()
        endless = body.endswith(("…", "..."))
        body = body.removesuffix("…").removesuffix("...").rstrip(" ,")
        steps: list[int] = []
        for part in body.split(","):
            match = _STEP.fullmatch(part.strip())
            if not match:
                raise ValueError(
                    f"{part.strip()!r} in the retry schedule is not a step: write such as 5m or 5m*2"
                )
            wait, times = parse_span(match[1]), int(match[2] or 1)
            if wait <= 0 or not 0 < times <= 1000:
                raise ValueError(
                    f"{part.strip()!r} in the retry schedule must be a positive time, at most 1000 times"
                )
            steps += [wait] * times
        return cls(tuple(steps), endless)

    def wait(self, attempts: int, chance: float) -> int | None:
        """The wait after ``attempts`` attempts, or None when they are used up. ``chance`` is a random number
        in [0, 1).
        """
        if attempts > len(self.steps) and not self.endless:
            return None
        step = self.steps[min(attempts, len(self.steps)) - 1]
        return int(step * (0.8 + 0.4 * chance))


@dataclass(frozen=True, slots=True)
class Retry:
    """The settings of ``[retry]``."""

    schedule: Schedule = Schedule.parse(DEFAULT_SCHEDULE)  # noqa: RUF009  (immutable)
    expire: int = 5 * DAY
    soft_bounce: bool = False
    on_uncertain: Literal["retry", "hold", "verify"] = "retry"
    #: For ``verify``: how long (ms) the loopback copy is waited for.
    within: int = 10 * MINUTE

    @property
    def longest(self) -> int:
        """No retry waits longer than this. Mail that does (a clock has jumped) is due at once."""
        wait = self.within if self.on_uncertain == "verify" else 0
        return max(wait, int(max(self.schedule.steps) * 1.2)) + MINUTE

    @property
    def waits(self) -> int:
        """How long (ms) an uncertain recipient waits for its loopback copy; 0 when it does not."""
        return self.within if self.on_uncertain == "verify" else 0


DELIVERED = Verdict("delivered")
#: Why an uncertain recipient is not tried again yet.
WAITS_FOR_COPY = "its loopback copy may come home before the next try"


def verdict(
    outcome: Outcome,
    *,
    attempts: int,
    now: int,
    accepted_at: int,
    expired: bool,
    retry: Retry,
    chance: float,
    copied: bool = False,
) -> Verdict:
    """``attempts`` counts this one; ``expired``: its age is used up; ``copied``: a loopback copy was in its
    transaction. The reason of a failure is the server's own word where there is one.
    """
    if outcome.kind == "delivered":
        return DELIVERED
    reason = str(outcome.reply)
    if outcome.kind == "refused" and not retry.soft_bounce:
        return Verdict("refused", reason=reason)
    if outcome.kind == "unknown" and retry.on_uncertain == "hold":
        return Verdict("unknown", now, reason)
    if outcome.kind == "unknown" and copied and retry.waits:
        return Verdict("unknown", now + retry.waits, f"{reason}; {WAITS_FOR_COPY}")
    if outcome.scope == "session" and not expired:  # due at once, and in its old place among the others
        return Verdict(
            "deferred",
            accepted_at,
            f"no attempt: this ended the session, and says nothing about the mail: {reason}",
            charged=False,
        )
    wait = retry.schedule.wait(attempts, chance)
    if wait is None and outcome.kind != "unknown":
        return Verdict("expired", reason=f"attempts used up ({attempts}); last: {reason}")
    if expired and outcome.kind != "unknown":
        return Verdict("expired", reason=f"too old; last: {reason}")
    event = "unknown" if outcome.kind == "unknown" else "deferred"
    return Verdict(event, now + (wait or retry.schedule.steps[-1]), reason)


def lost_due(losses: int, now: int) -> int:
    """When a lost recipient is due: the first time at once, as a suspect one minute later."""
    return now + (MINUTE if losses > 1 else 0)
