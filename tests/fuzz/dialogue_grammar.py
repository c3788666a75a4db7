"""Fuzz target: both sides of a dialogue, with streams that are grammatical for the most part.

``python tests/fuzz/dialogue_grammar.py [--seconds N | --commands N] [--seed S]``. A session depends on its
name alone (side/seed/number). One that finds something is kept as a file; name the file to run it again.
Each side has a grammar and a model: `grammar_server` (pipelined command streams, cut anywhere, against our
server) and `grammar_client` (a scripted server, or ours, against our client). Exit: as `harness`.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.fuzz import grammar_client, grammar_server
from tests.fuzz.harness import Watched

SIDES = {"server": grammar_server.session, "client": grammar_client.session}
#: How often it says how far it is, in seconds.
EVERY = 60.0


class Count:
    """Commands that were seen, by side."""

    def __init__(self) -> None:
        self.commands = dict.fromkeys(SIDES, 0)

    def __call__(self, name: bytes) -> None:
        """One session by its name: ``side/seed/number``."""
        side = name.decode().partition("/")[0]
        self.commands[side] += SIDES[side](random.Random(name))

    @property
    def total(self) -> int:
        return sum(self.commands.values())


def run(seed: int, seconds: float, commands: int, watched: Watched, count: Count) -> None:
    """Both sides in turn, until the time is over or there were so many commands."""
    began = told = time.monotonic()
    number = 0
    while (time.monotonic() - began < seconds) if not commands else (count.total < commands):
        # the side with fewer commands goes on, so that both have the same share
        side = min(SIDES, key=count.commands.__getitem__)
        watched(f"{side}/{seed}/{number}".encode())
        number += 1
        if time.monotonic() - told > EVERY:
            told = time.monotonic()
            print(f"{number} sessions, {count.commands} commands", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="dialogue_grammar")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--commands", type=int, default=0, help="so many instead of a time")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", default=tempfile.gettempdir())
    parser.add_argument("input", nargs="?", help="a file that was kept: run only this")
    words = parser.parse_args()
    count = Count()
    watched = Watched("dialogue_grammar", count, words.keep)
    if words.input:
        watched(Path(words.input).read_bytes())
        return
    seed = words.seed if words.seed is not None else random.SystemRandom().randrange(2**31)
    print(f"dialogue_grammar: seed {seed}", flush=True)
    run(seed, words.seconds, words.commands, watched, count)
    told = ", ".join(f"{side} {number}" for side, number in count.commands.items())
    print(f"dialogue_grammar: {watched.count} sessions, commands: {told}; nothing found", flush=True)


if __name__ == "__main__":
    main()
