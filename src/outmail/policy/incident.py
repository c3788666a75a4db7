"""Failures in a row: when to alert, when to remind, when to say that it is over.

Promises: pure; times are milliseconds passed in. N−1 failures say nothing, the N-th alerts once, further ones
remind at most once a stated interval, the first success after an alert says recovered once; muting silences,
it does not forget.
Does not: send, store, or know what failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Say = Literal["", "alert", "remind", "recovered"]


@dataclass(frozen=True, slots=True)
class Rule:
    """``after`` failures in a row alert; ``remind`` ms between reminders (0 = none); ``recovered``: say when
    it is over.
    """

    after: int = 1
    remind: int = 0
    recovered: bool = True

    def __post_init__(self) -> None:
        if self.after < 1:
            raise ValueError(f"a mail after {self.after} failures in a row makes no sense: at least 1")
        if self.remind < 0:
            raise ValueError("a reminder's interval must not be negative")

    def in_words(self) -> str:
        """The policy as a sentence's parts."""
        parts = [
            "a mail at the first failure"
            if self.after == 1
            else f"a mail after {self.after} failures in a row"
        ]
        if self.remind:
            from outmail.clock import human_span

            often = f"every {human_span(self.remind)}" if self.remind >= 1000 else "each time"
            parts.append(f"again {often} while it goes on failing")
        if self.recovered:
            parts.append("once when it has recovered")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Incident:
    """Where a key stands. ``thread`` is the Message-ID of the alert, which reminders and the recovery
    answer.
    """

    failures: int = 0
    since: int = 0
    alerted_at: int = 0
    said_at: int = 0
    muted_until: int = 0
    thread: str = ""
    subject: str = ""

    @property
    def quiet(self) -> bool:
        """True when there is nothing to remember."""
        return not self.failures and not self.alerted_at and not self.muted_until

    @classmethod
    def load(cls, document: Mapping[str, Any] | None) -> Incident:
        return cls(**{key: value for key, value in (document or {}).items() if key in cls.__slots__})

    def dump(self) -> dict[str, Any]:
        """As a small document."""
        return asdict(self)


def failed(incident: Incident, rule: Rule, now: int) -> tuple[Incident, Say]:
    """One more failure."""
    incident = replace(incident, failures=incident.failures + 1, since=incident.since or now)
    if incident.failures < rule.after or now < incident.muted_until:
        return incident, ""
    if not incident.alerted_at:
        return replace(incident, alerted_at=now, said_at=now), "alert"
    if rule.remind and now - incident.said_at >= rule.remind:
        return replace(incident, said_at=now), "remind"
    return incident, ""


def succeeded(incident: Incident, rule: Rule, now: int) -> tuple[Incident, Say]:
    """A success: forget, and say so if an alert had gone out."""
    say: Say = "recovered" if incident.alerted_at and rule.recovered and now >= incident.muted_until else ""
    muted = incident.muted_until if incident.muted_until > now else 0
    return Incident(muted_until=muted), say
