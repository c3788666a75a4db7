"""``outmail queue``: list, count, change. Changes need a selection: without one nothing is changed.

Promises: on a terminal a table that fits its width; elsewhere the same words, line by line. The beginning of
an id is enough. An unknown id changes nothing (66). ``stats --warn`` and ``--crit`` are for monitoring: 0 all
is well, 1 warning, 2 critical.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice, pairwise
from typing import Any

from outmail import lifecycle
from outmail.cli import outboxes, terminal
from outmail.cli.common import (
    config_of,
    counted,
    in_words,
    known_id,
    queue_of,
    stdin_bytes,
    tell_engines,
    tell_stranded,
    warn_idle,
)
from outmail.cli.exits import EX_NOINPUT, EX_USAGE
from outmail.cli.terminal import Column, painted
from outmail.clock import DAY, Clock, human_span, rfc3339
from outmail.errors import NotFound, Refused
from outmail.model import Filter, RecipientStatus, Status, Term
from outmail.outbox.queue import Queue, Waiting
from outmail.policy import selection
from outmail.policy.alarm import Limit, broken
from outmail.policy.plain import as_json, plain_line

#: How many characters of an id a table shows at least: those of its time, and two more.
SHORT = 12


def queue(arguments: argparse.Namespace) -> int:
    """List, count, change."""
    try:
        opened = queue_of(arguments, reading=arguments.verb in ("list", "stats"))
    except NotFound as problem:
        if arguments.verb == "stats" and (arguments.warn or arguments.crit):
            print(f"UNKNOWN: {problem}")
            return 3
        raise
    with opened:
        if arguments.verb == "list":
            return _list(opened, arguments)
        if arguments.verb == "stats":
            return _stats(opened, arguments)
        return _change(opened, arguments)


# -- changing ------------------------------------------------------------------------------------------------


def _change(queue: Queue, arguments: argparse.Namespace) -> int:
    """hold, release, retry, requeue, reroute, cancel, purge."""
    relay = arguments.selection.pop() if arguments.verb == "reroute" and arguments.selection else None
    if not arguments.selection:
        print(
            f"outmail: queue {arguments.verb} needs a selection: ids, a filter, - for ids on stdin, or ALL"
            + (", and then a relay" if arguments.verb == "reroute" else ""),
            file=sys.stderr,
        )
        return EX_USAGE
    selected, unknown = _selected(queue, arguments.selection)
    if unknown:
        print(plain_line(f"outmail: no message is {', '.join(unknown[:5])}"), file=sys.stderr)
        if arguments.selection != ["-"]:
            return EX_NOINPUT
    if selected is not None:
        if arguments.dry_run:
            count = _would_change(queue, arguments.verb, selected)
            print(f"at most {counted(count, 'recipient')} would change; nothing was changed", file=sys.stderr)
        elif arguments.verb == "purge":
            print(f"{counted(queue.purge(selected), 'message')} forgotten", file=sys.stderr)
        else:
            change = getattr(queue, arguments.verb) if relay is None else partial(queue.reroute, relay=relay)
            count = change(selected)
            print(f"{counted(count, 'recipient')} changed", file=sys.stderr)
            if not count:
                _tell_why_not(queue, arguments.verb, selected)
    return EX_NOINPUT if unknown else 0


def _would_change(queue: Queue, verb: str, selected: Filter) -> int:
    """Recipients of matching messages in a state that the verb changes: at most so many match themselves."""
    event = "due" if verb == "retry" else verb
    states = lifecycle.FINAL if verb == "purge" else lifecycle.sources(event)
    return sum(r.state in states for status in queue.matching(selected) for r in status.recipients)


def _tell_why_not(queue: Queue, verb: str, selected: Filter) -> None:
    """Say which other verb was perhaps meant."""
    if verb == "requeue":
        print(
            "outmail: only failed or cancelled recipients whose content is still kept can be queued again",
            file=sys.stderr,
        )
        return
    states = {r.state for status in queue.matching(selected) for r in status.recipients}
    if verb in ("retry", "release", "reroute", "hold") and states & {"failed", "cancelled"}:
        print(
            "outmail: what has failed or was cancelled is queued again by: outmail queue requeue",
            file=sys.stderr,
        )
    elif verb == "retry" and "held" in states:
        print("outmail: what is held goes on by: outmail queue release", file=sys.stderr)


def _selected(queue: Queue, words: list[str]) -> tuple[Filter | None, list[str]]:
    """Ids and filter words of a command line → (a filter, the unknown ids). Ids are or-ed, together with the
    other words as one term. The filter is None when only unknown ids were given. ALL together with other
    words means just those.
    """
    if words == ["ALL"]:
        return Filter(), []
    if words == ["-"]:
        words = stdin_bytes().decode("utf-8", "replace").split()
    now = Clock().now()
    ids: list[tuple[str, int | None]] = []
    unknown: list[str] = []
    rest: list[str] = []
    for word in (word for word in words if word != "ALL"):
        id = known_id(queue, word)
        if not id:
            rest.append(word)
        elif queue.is_known(id):
            ids += selection.select(id, now).ids
        else:
            unknown.append(word)
    terms = tuple(term for word in rest for term in selection.parse(shlex.quote(word), now).terms)
    found = Filter(terms, tuple(ids)) if ids or terms else None
    return found, unknown


# -- listing -------------------------------------------------------------------------------------------------


def _list(queue: Queue, arguments: argparse.Namespace) -> int:
    words = arguments.selection
    selected, unknown = _selected(queue, words) if words else (Filter((Term("is", "live"),)), [])
    if unknown:
        print(plain_line(f"outmail: no message is {', '.join(unknown[:5])}"), file=sys.stderr)
    found = queue.matching(selected) if selected is not None else iter(())
    count = 0
    if arguments.ids or arguments.json or arguments.jsonl:
        for status in found:
            print(status.id if arguments.ids else as_json(status.as_dict()))
        return EX_NOINPUT if unknown else 0
    if width := terminal.columns():
        head: Sequence[Column] = ()
        while page := list(islice(found, PAGE)):
            head = _print_table(page, width, head)
            count += len(page)
    else:
        for status in found:
            count += 1
            _print_message(status, utc=arguments.utc)
    print(counted(count, "message") + ("" if words else " not finished"), file=sys.stderr)
    _tell_outboxes(arguments)
    if not words:
        _tell_failed(queue)
    tell_engines(queue, utc=arguments.utc)
    tell_stranded(queue, arguments)
    warn_idle(queue)
    return EX_NOINPUT if unknown else 0


def _print_message(status: Status, *, utc: bool) -> None:
    age = human_span(Clock().now() - status.accepted_at)
    print(
        f"{status.id}  {age:>6}  {status.size:>9}  {plain_line(status.sender or '<>')}  "
        f"{plain_line(status.subject[:50])}"
    )
    for r in status.recipients:
        print(plain_line(f"    {r.address} via {r.route}: {in_words(r, utc=utc)}"))


_HEAD = (
    Column("ID"),
    Column("AGE", right=True),
    Column("TO", 16),
    Column("STATE"),
    Column("RELAY", 7),
    Column("NEXT", right=True),
    Column("SUBJECT", 28),
)
#: Columns that are left out where all their cells are this.
_USUAL = {"RELAY": "default", "NEXT": ""}
_COLOURS = {
    "queued": "blue",
    "deferred": "yellow",
    "sending": "cyan",
    "held": "yellow",
    "failed": "red",
    "delivered": "green",
    "cancelled": "dim",
}


#: Messages that share one set of column widths.
PAGE = 500


def _print_table(found: list[Status], width: int, before: Sequence[Column]) -> Sequence[Column]:
    """Print a page. ``before``: the columns of the page before. Returns those of this page; their titles are
    printed where they are others.
    """
    now, short = Clock().now(), _short_ids([status.id for status in found])
    rows, styles, reasons = [], [], []
    for status, id in zip(found, short):
        for i, r in enumerate(_shown(status)):
            state = _state(r)
            rows.append(
                [
                    id if not i else "",
                    human_span(now - status.accepted_at) if not i else "",
                    r.address,
                    state + ("*" if r.uncertain else ""),
                    r.route,
                    f"in {human_span(r.next_try_at - now)}" if r.next_try_at and r.next_try_at > now else "",
                    status.subject if not i else "",
                ]
            )
            styles.append(["bold", "", "", _COLOURS[state], "", "", ""])
            reasons.append(r.reason if r.reason != "operator" else "")
    head, rows, styles = _telling(rows, styles)
    title, *lines = terminal.table(head, rows, styles, width)
    if head != before:
        print(title)
    last = ""
    for line, reason in zip(lines, reasons):
        print(line)
        if reason and reason != last:  # once for all behind each other that wait for the same
            print(painted(terminal.cut(plain_line(f"    {reason}"), width), "dim"))
        last = reason
    if any(r.uncertain for status in found for r in status.recipients):
        print(painted("* it may have arrived: a message was sent whole and no answer came back", "dim"))
    return head


def _telling(
    rows: list[list[str]], styles: list[list[str]]
) -> tuple[list[Column], list[list[str]], list[list[str]]]:
    """The columns that say something, and their cells and styles."""
    kept = [
        i
        for i, column in enumerate(_HEAD)
        if column.title not in _USUAL or any(row[i] != _USUAL[column.title] for row in rows)
    ]
    cells, colours = ([[row[i] for i in kept] for row in table] for table in (rows, styles))
    return [_HEAD[i] for i in kept], cells, colours


def _state(r: RecipientStatus) -> str:
    return "deferred" if r.state == "queued" and r.attempts else r.state


#: How many recipients of one message a table shows.
MOST = 10


def _shown(status: Status) -> list[RecipientStatus]:
    """Recipients that are not finished come first."""
    return sorted(status.recipients, key=lambda r: (r.state in ("delivered", "cancelled"), r.n))[:MOST]


def _short_ids(ids: Sequence[str]) -> list[str]:
    """The beginnings of ids, long enough to tell them apart."""
    alike: dict[str, int] = {}
    for one, other in pairwise(sorted(set(ids))):
        same = next(i for i, (a, b) in enumerate(zip(one, other)) if a != b)
        for id in (one, other):
            alike[id] = max(alike.get(id, 0), same + 1)
    return [id[: max(SHORT, alike.get(id, 0))] for id in ids]


def _tell_failed(queue: Queue) -> None:
    count = queue.failed_since(Clock().now() - DAY)
    if count:
        print(
            f"{counted(count, 'recipient')} failed in the last day: outmail queue list ALL state:failed",
            file=sys.stderr,
        )


def _tell_outboxes(arguments: argparse.Namespace) -> None:
    now = Clock().now()
    for one in outboxes.waiting(config_of(arguments).outboxes):
        since = f", the oldest for {human_span(now - one.oldest)}" if one.oldest else ""
        print(
            plain_line(f"{counted(one.rows, 'message')} in {one.name} ([[outbox]]) to be taken over{since}"),
            file=sys.stderr,
        )


# -- counting ------------------------------------------------------------------------------------------------

_BY = ("relay", "domain", "reason")


def _stats(queue: Queue, arguments: argparse.Namespace) -> int:
    warn, crit = (_limits(option, getattr(arguments, option)) for option in ("warn", "crit"))
    now = Clock().now()
    stats = queue.stats()
    sums = queue.waiting("relay", limit=1_000_000)
    waiting = {by: queue.waiting(by) for by in ([arguments.by] if arguments.by else _BY)}
    outside = outboxes.waiting(config_of(arguments).outboxes)
    count = sum(one.recipients for one in sums) + sum(one.rows for one in outside)
    since = min([*(one.since for one in sums), *(one.oldest or now for one in outside)], default=now)
    age = max(0, now - since)
    status, words = _verdict(warn, crit, count, age)
    if arguments.json or arguments.jsonl:
        print(as_json({**_dated(stats, waiting, outside), "status": status}))
        return status
    if words:
        print(words)
    _print_waiting(waiting, now)
    for one in outside:
        print(plain_line(f"{counted(one.rows, 'message')} in {one.name} ([[outbox]]) to be taken over"))
    states = "  ".join(f"{state} {n}" for state, n in sorted(stats["states"].items()))
    print(states or "the queue is empty")
    return status


def _dated(
    stats: dict[str, Any], waiting: Mapping[str, Sequence[Waiting]], outside: Sequence[outboxes.Waiting]
) -> dict[str, Any]:
    """As JSON has it: times in RFC 3339."""
    return {
        "v": 1,
        "routes": [{**row, "oldest_at": rfc3339(row["oldest_at"])} for row in stats["routes"]],
        "states": stats["states"],
        "waiting": {
            by: [{**one._asdict(), "since": rfc3339(one.since)} for one in ones]
            for by, ones in waiting.items()
        },
        "outboxes": [
            {"name": one.name, "rows": one.rows, "oldest_at": rfc3339(one.oldest)} for one in outside
        ],
    }


def _limits(option: str, texts: list[str]) -> list[Limit]:
    try:
        return [Limit.parse(text) for text in texts]
    except ValueError as problem:
        raise Refused(f"--{option}: {problem}", code="bad-argument") from None


def _verdict(warn: list[Limit], crit: list[Limit], count: int, age: int) -> tuple[int, str]:
    """(exit status, the line that monitoring shows; "" when no limit was given)."""
    if not warn and not crit:
        return 0, ""
    numbers = f"waiting={count} oldest={age // 1000}s"
    for status, word, limits in ((2, "CRITICAL", crit), (1, "WARNING", warn)):
        if why := broken(limits, count, age):
            return status, f"{word}: {why} | {numbers}"
    oldest = f", the oldest for {human_span(age)}" if count else ""
    return 0, f"OK: {counted(count, 'recipient')} waiting{oldest} | {numbers}"


def _print_waiting(waiting: Mapping[str, Sequence[Waiting]], now: int) -> None:
    width = terminal.columns() or 1 << 30
    for by, ones in waiting.items():
        head = (
            Column(by.upper(), 20),
            Column("WAITING", right=True),
            Column("HELD", right=True),
            Column("OLDEST", right=True),
        )
        rows = [
            [
                one.which or "not tried yet",
                str(one.recipients),
                str(one.held or ""),
                human_span(now - one.since),
            ]
            for one in ones
        ]
        if rows:
            print("\n".join([*terminal.table(head, rows, [[""] * 4] * len(rows), width), ""]))
