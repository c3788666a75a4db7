"""Fuzz target: filter text: it is refused or it becomes a filter, and one that says ALL is never made of
words.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from collections.abc import Callable

from tests.fuzz.harness import run

SEEDS = [
    b"state:queued to:*@x.example -was:uncertain",
    b"before:2h larger:5MB 'two words'",
    b"after:2026-01-01T00:00:00Z code:4.2 is:live",
]


def make() -> Callable[[bytes], None]:
    from outmail import clock
    from outmail.errors import Refused
    from outmail.policy import selection

    def target(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        try:
            found = selection.select(text, 1_800_000_000_000)
            assert (
                found.ids or found.terms or not text.strip() or set(text) & set("'\"\\#") or not text.split()
            )
        except Refused:
            pass
        for parse in (selection.parse_size, clock.parse_span, lambda text: clock.instant(text, 0)):
            try:
                parse(text)
            except ValueError:
                pass

    return target


if __name__ == "__main__":
    run("filters", SEEDS, ["outmail.policy.selection", "outmail.clock"], make)
