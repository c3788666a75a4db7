"""The help for ``outmail queue`` and for each of its verbs. Does not: parse (`arguments` does)."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

SELECTION = (
    "Which mail: ids (or their beginnings, six characters and more with a digit among them), words of a "
    "filter, - for ids on stdin, or ALL. Words are and-ed, and a - before one negates it."
)
#: (words of a filter, what they match).
FILTERS = (
    ("state:STATE", "queued, sending, held, failed, cancelled or delivered"),
    ("to:TEXT, from:TEXT, subject:TEXT", "that have TEXT in the address or the subject; * is any text"),
    ("tag:TAG, key:KEY", "with this tag or key"),
    ("code:451, code:5xx, code:4.7.1", "whose last answer begins with this code"),
    ("route:NAME", "that take this route"),
    ("before:TIME, after:TIME", "accepted before or after: 2h (ago), 2026-11-28"),
    ("larger:10MB", "larger than that"),
    ("is:live", "queued, sending or held"),
    ("is:deferred", "queued after a try that failed"),
    ("is:uncertain, was:uncertain", "that may have been sent already; was: also when they are finished"),
    ("TEXT", "that have TEXT in an address or the subject"),
)

#: verb of ``outmail queue`` → (its operands and options, what it does, examples).
VERBS = {
    "list": (
        "[ID|FILTER…|-|ALL] [--ids | --json | --jsonl] [--utc]",
        "List what waits. With a selection, list what matches it, finished mail too. ALL is "
        "everything on record.",
        ("list", "list to:@gmail.com is:deferred", "list ALL state:failed", "list --ids tag:news"),
    ),
    "stats": (
        "[--by relay|domain|reason] [--warn AGE|COUNT] [--crit AGE|COUNT] [--json]",
        "How much waits, by relay, by the recipients' domain and by the reason, with the age of the oldest. "
        "Mail that is scheduled for later does not count. With --warn or --crit it is a check for "
        "monitoring: exit status 0, 1 or 2.",
        ("stats", "stats --by reason", "stats --warn 500 --warn 30m --crit 4h"),
    ),
    "hold": (
        "ID|FILTER…|-|ALL [--dry-run]",
        "Stop what waits until release. What is being sent is stopped when it comes back.",
        ("hold tag:news",),
    ),
    "release": (
        "ID|FILTER…|-|ALL [--dry-run]",
        "Release what is held. Mail that is held because engines died with it (poison) is tried once more.",
        ("release ALL state:held",),
    ),
    "retry": (
        "ID|FILTER…|-|ALL [--dry-run]",
        "Make what waits due now; an engine tries it when it looks next. Failed mail needs requeue.",
        ("retry code:451 to:@example.org",),
    ),
    "requeue": (
        "ID|FILTER…|-|ALL [--dry-run]",
        "Queue what has failed or was cancelled again; age and attempts begin anew.",
        ("requeue ALL state:failed after:2h",),
    ),
    "reroute": (
        "ID|FILTER…|-|ALL RELAY [--dry-run]",
        "Send what waits or is held through another relay: a configured name, or a URL that needs no "
        "password; or several with commas, of which the first that answers is used. What is being sent uses "
        "it if it comes back.",
        ("reroute route:smtp://localhost:2599 default", "reroute ALL is:deferred backup,default"),
    ),
    "cancel": (
        "ID|FILTER…|-|ALL [--dry-run]",
        "End what waits or is held. What is being sent ends when it comes back undelivered.",
        ("cancel key:order-17",),
    ),
    "purge": (
        "ID|FILTER…|-|ALL [--dry-run]",
        "Delete finished messages and all records of them.",
        ("purge ALL state:delivered before:30d",),
    ),
}


class VerbHelp(argparse.Action):
    """``--help`` after a verb explains that verb."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        verb = getattr(namespace, "verb", None)
        if verb is None:
            print("\n".join([parser.format_help(), *_selection(), "", *_verbs()]))
        else:
            print("\n".join(_verb(verb)))
        parser.exit()


def _verb(verb: str) -> list[str]:
    operands, what, examples = VERBS[verb]
    lines = textwrap.wrap(f"usage: outmail queue {verb} {operands}", 78, subsequent_indent=" " * 7)
    lines += ["", *textwrap.wrap(what, 78), "", "examples:"]
    lines += [f"  outmail queue {example}" for example in examples]
    return [*lines, "", *_selection()] if "FILTER" in operands else lines


def _selection() -> list[str]:
    lines = textwrap.wrap(SELECTION, 78)
    for words, what in FILTERS:
        lines += (
            [f"  {words}", *_indented(what, 18)] if len(words) > 15 else _indented(what, 18, f"  {words}")
        )
    return lines


def _verbs() -> list[str]:
    lines = ["verbs, of which outmail queue VERB --help says more:"]
    for verb, (_, what, _) in VERBS.items():
        lines += _indented(what.partition(". ")[0].rstrip(".") + ".", 18, f"  {verb}")
    return lines


def _indented(text: str, column: int, head: str = "") -> list[str]:
    blank = " " * column
    return textwrap.wrap(text, 78, initial_indent=f"{head:<{column}}", subsequent_indent=blank)
