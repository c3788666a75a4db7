"""Groups of log records, and whether they are worth a mail.

Promises: pure. Groups, first and last lines and samples are bounded, whatever comes in; how many were left
out is counted, and counts are exact. Records with the same logger, level, message template, exception and key
are one group. A key has failed in a run when the run has a record of it at the trigger level or above;
`incident` counts in how many runs in a row.
Does not: read clocks or files, format records, or send.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outmail.policy import incident
from outmail.policy.incident import Incident, Rule

MAX_GROUPS = 1000
MAX_KEYS = 5000
SAMPLE = 500
TRACE = 4000
#: How many groups keep a traceback.
TRACES = 50
BUCKETS = 60
#: How many characters of a line are the time, which is ignored when lines are compared.
STAMP = 15

LEVELS = ((50, "CRITICAL"), (40, "ERROR"), (30, "WARNING"), (20, "INFO"), (10, "DEBUG"))


def level_name(number: int) -> str:
    """The nearest standard level at or below."""
    return next((name for at, name in LEVELS if number >= at), "NOTSET")


@dataclass(slots=True)
class Line:
    """One log record as the spool stores it. ``template`` is the unformatted message; ``frame`` the innermost
    frame of the program's own code.
    """

    at: float
    level: int
    logger: str
    template: str
    message: str
    key: str = ""
    exception: str = ""
    frame: str = ""
    trace: str = ""

    @property
    def fingerprint(self) -> str:
        return "\0".join((self.logger, str(self.level), self.template, self.exception, self.frame, self.key))


@dataclass(slots=True)
class Group:
    """Records that are alike. ``times`` counts them by minute, or by longer intervals when there are many."""

    level: int
    logger: str
    key: str
    count: int
    first: float
    last: float
    sample: str
    trace: str = ""
    times: dict[str, int] = field(default_factory=dict)
    step: int = 60

    def add(self, at: float) -> None:
        self.count += 1
        self.first, self.last = min(self.first, at), max(self.last, at)
        bucket = str(int(at // self.step))
        self.times[bucket] = self.times.get(bucket, 0) + 1
        if len(self.times) > BUCKETS:
            self.step *= 2
            coarse: dict[str, int] = {}
            for start, count in self.times.items():
                wide = str(int(start) // 2)
                coarse[wide] = coarse.get(wide, 0) + count
            self.times = coarse

    def course(self) -> list[int]:
        """Counts over time, with zeros for gaps."""
        if not self.times:
            return []
        slots = sorted(map(int, self.times))
        return [
            self.times.get(str(slot), 0)
            for slot in range(slots[0], min(slots[-1], slots[0] + 4 * BUCKETS) + 1)
        ]


@dataclass(slots=True)
class Gathered:
    """What waits for a mail: groups, the first and the last lines, and the number of what was left out."""

    groups: dict[str, Group] = field(default_factory=dict)
    head: list[str] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)
    total: int = 0
    counted: int = 0
    others: int = 0
    omitted: int = 0
    levels: dict[str, int] = field(default_factory=dict)
    last: str = ""
    same: int = 0
    head_size: int = 50
    tail_size: int = 20

    def add(self, line: Line, text: str, *, counts: bool) -> None:
        """Add one record. ``text`` is its line in the mail; ``counts`` says whether it counts towards the
        threshold.
        """
        self.total += 1
        self.counted += counts
        name = level_name(line.level)
        self.levels[name] = self.levels.get(name, 0) + 1
        stamp = text[:STAMP]
        if self.last and text[STAMP:] == self.last[STAMP:]:
            self.same += 1
            (self.tail or self.head)[-1] = f"{self.last}  (× {self.same}, until {stamp.strip()})"
        elif len(self.head) < self.head_size:
            self.head.append(text)
            self.last, self.same = text, 1
        else:
            self.last, self.same = text, 1
            self.tail.append(text)
            if len(self.tail) > self.tail_size:
                self.tail.pop(0)
                self.omitted += 1
        mark = line.fingerprint
        group = self.groups.get(mark)
        if group is None:
            if len(self.groups) >= MAX_GROUPS:
                self.others += 1
                return
            trace = (
                line.trace[-TRACE:]
                if sum(bool(g.trace) for g in self.groups.values()) < TRACES and line.trace
                else ""
            )
            group = self.groups[mark] = Group(
                line.level, line.logger, line.key, 0, line.at, line.at, line.message[:SAMPLE], trace
            )
        group.add(line.at)

    def ranked(self) -> list[Group]:
        """The worst first, then the most frequent."""
        return sorted(self.groups.values(), key=lambda group: (-group.level, -group.count, group.first))

    def dump(self) -> dict[str, Any]:
        return {
            "groups": {
                mark: [g.level, g.logger, g.key, g.count, g.first, g.last, g.sample, g.trace, g.times, g.step]
                for mark, g in self.groups.items()
            },
            "head": self.head,
            "tail": self.tail,
            "total": self.total,
            "counted": self.counted,
            "others": self.others,
            "omitted": self.omitted,
            "levels": self.levels,
            "last": self.last,
            "same": self.same,
        }

    @classmethod
    def load(cls, document: Mapping[str, Any] | None, head: int, tail: int) -> Gathered:
        found = dict(document or {})
        groups = {mark: Group(*values) for mark, values in found.pop("groups", {}).items()}
        return cls(groups=groups, **found, head_size=head, tail_size=tail)


@dataclass(frozen=True, slots=True)
class Rules:
    """When a digest is worth a mail. ``at_most``: mails an hour; ``keys``: how many failures in a row of a
    key.
    """

    trigger: int = 40
    min_records: int = 1
    keys: Rule = field(default_factory=Rule)
    at_most: int = 4

    def counts(self, line: Line, muted: Mapping[str, int], now: int) -> bool:
        """True when a record counts towards the threshold by itself. When failures in a row are counted, a
        record with a key does not.
        """
        if line.level < self.trigger or (line.key and self.keys.after > 1):
            return False
        return not (line.key and muted.get(line.key, 0) > now)

    def in_words(self) -> str:
        parts = [
            f"{self.min_records} records" if self.min_records > 1 else "a record",
            f"at {level_name(self.trigger)} or above",
        ]
        text = " ".join(parts)
        if self.keys.after > 1:
            text += f"; a key that fails in {self.keys.after} runs in a row"
        return f"{text}; at most {self.at_most} mails an hour"


@dataclass(slots=True)
class Run:
    """What one run said about keys."""

    failed: set[str] = field(default_factory=set)
    well: set[str] = field(default_factory=set)

    def dump(self) -> dict[str, list[str]]:
        return {"failed": sorted(self.failed), "well": sorted(self.well)}

    @classmethod
    def load(cls, document: Mapping[str, Sequence[str]] | None) -> Run:
        found = document or {}
        return cls(set(found.get("failed", ())), set(found.get("well", ())))


def after_run(
    incidents: dict[str, Incident], run: Run, rules: Rules, now: int, *, in_order: bool
) -> tuple[list[str], list[str], list[str]]:
    """A run has ended. Returns (keys to alert, keys to remind of, keys that recovered); ``incidents`` is
    changed in place.

    A key starts again at zero if the run said that it is well, or if the run ended in order without a failure
    of it. A run that died resets only the keys that it said are well: it may not have reached the others.
    """
    alert, remind, recovered = [], [], []
    for key in (
        sorted(run.failed - run.well)
        if len(run.failed) <= MAX_KEYS
        else sorted(run.failed - run.well)[:MAX_KEYS]
    ):
        incidents[key], say = incident.failed(incidents.get(key, Incident()), rules.keys, now)
        if say == "alert":
            alert.append(key)
        elif say == "remind":
            remind.append(key)
    over = [key for key in incidents if key in run.well or (in_order and key not in run.failed)]
    for key in over:
        before = incidents[key]
        incidents[key], say = incident.succeeded(before, rules.keys, now)
        if say == "recovered":
            recovered.append(key)
        if incidents[key].quiet:
            del incidents[key]
    return alert, remind, recovered


def worth_a_mail(gathered: Gathered, rules: Rules, alerts: Iterable[str]) -> bool:
    """True when what waits is enough."""
    return bool(list(alerts)) or gathered.counted >= max(1, rules.min_records)


def allowed_now(mails: Sequence[int], rules: Rules, now: int) -> bool:
    """True when one more mail in this hour is allowed."""
    return sum(at > now - 3_600_000 for at in mails) < rules.at_most


def in_words(gathered: Gathered) -> str:
    """``12 errors and 3 warnings in 4 kinds``."""
    names = {
        "CRITICAL": "critical error",
        "ERROR": "error",
        "WARNING": "warning",
        "INFO": "notice",
        "DEBUG": "debug line",
        "NOTSET": "line",
    }
    parts = []
    for _, name in (*LEVELS, (0, "NOTSET")):
        if count := gathered.levels.get(name):
            parts.append(f"{count:,} {names[name]}" + ("" if count == 1 else "s"))
    kinds = len(gathered.groups)
    text = " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts) or "nothing"
    return text + (f" in {kinds:,}{'+' if gathered.others else ''} kinds" if kinds > 1 else "")
