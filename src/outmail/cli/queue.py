"""``outmail queue``: list, count, change. Changing needs a selection: nothing is meant by default."""

from __future__ import annotations

import argparse
import shlex
import sys
from functools import partial

from outmail.cli.common import counted, in_words, queue_of, tell_engines, tell_stranded, warn_idle
from outmail.cli.exits import EX_USAGE
from outmail.clock import Clock, human_span
from outmail.model import Filter, Status, Term, is_id
from outmail.outbox.queue import Queue
from outmail.policy import selection
from outmail.policy.plain import as_json, plain_line


def queue(arguments: argparse.Namespace) -> int:
    """List, count, change."""
    with queue_of(arguments) as opened:
        if arguments.verb == "list":
            return _list(opened, arguments)
        if arguments.verb == "stats":
            return _stats(opened, arguments)
        return _change(opened, arguments)


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
    selected = _selections(arguments.selection, Clock().now())
    if arguments.dry_run:
        count = sum(1 for one in selected for s in queue.matching(one) for _ in s.recipients)
        print(f"{counted(count, 'recipient')} of matching messages; nothing was changed", file=sys.stderr)
        return 0
    if arguments.verb == "purge":
        count = sum(queue.purge(one) for one in selected)
        print(f"{counted(count, 'message')} forgotten", file=sys.stderr)
        return 0
    change = getattr(queue, arguments.verb) if relay is None else partial(queue.reroute, relay=relay)
    count = sum(change(one) for one in selected)
    print(f"{counted(count, 'recipient')} changed", file=sys.stderr)
    if not count and arguments.verb == "requeue":
        print(
            "outmail: only failed or cancelled recipients whose content is still kept can be queued again",
            file=sys.stderr,
        )
    return 0


def _selections(words: list[str], now: int) -> list[Filter]:
    """Ids and filter words of a command line → filters: ids are or-ed, the other words make one filter."""
    if words == ["ALL"]:
        return [Filter()]
    if words == ["-"]:
        words = sys.stdin.buffer.read().decode("utf-8", "replace").split()
    ids = tuple(pair for word in words if is_id(word) for pair in selection.select(word, now).ids)
    rest = [word for word in words if not is_id(word)]
    terms = tuple(term for word in rest for term in selection.parse(shlex.quote(word), now).terms)
    return [Filter(terms, ids)]


def _list(queue: Queue, arguments: argparse.Namespace) -> int:
    words = arguments.selection
    selected = _selections(words, Clock().now())[0] if words else Filter((Term("is", "live"),))
    found = 0
    for status in queue.matching(selected):
        found += 1
        if arguments.ids:
            print(status.id)
        elif arguments.json or arguments.jsonl:
            print(as_json(status.as_dict()))
        else:
            _print_message(status)
    if not (arguments.ids or arguments.json or arguments.jsonl):
        print(counted(found, "message") + ("" if words else " not finished"), file=sys.stderr)
        tell_engines(queue)
        tell_stranded(queue, arguments)
        warn_idle(queue)
    return 0


def _print_message(status: Status) -> None:
    age = human_span(Clock().now() - status.accepted_at)
    print(
        f"{status.id}  {age:>6}  {status.size:>9}  {plain_line(status.sender or '<>')}  "
        f"{plain_line(status.subject[:50])}"
    )
    for r in status.recipients:
        print(plain_line(f"    {r.address}: {in_words(r)}"))


def _stats(queue: Queue, arguments: argparse.Namespace) -> int:
    stats = queue.stats()
    if arguments.json or arguments.jsonl:
        print(as_json(stats))
        return 0
    for row in stats["routes"]:
        age = human_span(Clock().now() - row["oldest_at"])
        print(
            f"{plain_line(row['route']):<40} {row['state']:<9} {row['recipients']:>9}  oldest {age}"
            + (f"  uncertain {row['uncertain']}" if row["uncertain"] else "")
        )
    print(
        "  ".join(f"{state} {count}" for state, count in sorted(stats["states"].items()))
        or "the queue is empty"
    )
    return 0
