"""What the campaigns share in which another program writes into its queue directory while outmail empties it:
writers in processes of that program, and what must be true of every address at the end.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from outmail.outbox.outbox import Outbox
from outmail.testing import Sink

HOLD = 60.0


class Writer(threading.Thread):
    """One process of the other program that stores message after message: it reads a token a line, and
    answers with the token and the number of its recipients, 0 for a message that it gave up. ``promised``:
    token → recipients; ``aborted``: what must not go.
    """

    def __init__(self, words: Sequence[str], seed: int, over: threading.Event) -> None:
        super().__init__()
        self._chance, self._over = random.Random(seed), over
        self.promised: dict[str, int] = {}
        self.aborted: set[str] = set()
        self._process = subprocess.Popen(
            [*words, str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self) -> None:
        process = self._process
        assert process.stdin and process.stdout
        while not self._over.wait(self._chance.random() * 0.1):
            process.stdin.write(f"{self._chance.getrandbits(64):016x}\n")
            process.stdin.flush()
            token, _, count = process.stdout.readline().partition(" ")
            if not count:
                return
            if int(count):
                self.promised[token] = int(count)
            else:
                self.aborted.add(token)
        process.stdin.close()
        process.wait(HOLD)


def arrived(sink: Sink) -> Counter[str]:
    """Recipient → how often it got its message."""
    return Counter(address for message in sink.messages for address in message.recipients)


def wrong_addresses(
    store: Path, promised: dict[str, int], theirs: Sink, ours: Sink, may: Callable[[str], bool]
) -> list[str]:
    """What is wrong with the recipients and with the store. ``may``: whether both programs may have served
    the message of a token.
    """
    by_them, by_us = arrived(theirs), arrived(ours)
    with Outbox(store, deliver="never") as box:
        uncertain = {r.address for s in box.find("was:uncertain") for r in s.recipients if r.uncertain}
        wrong = list(map(str, box.store.check()))
    addresses = {f"{token}-{n}@x.test": token for token, count in promised.items() for n in range(count)}
    for address, token in addresses.items():
        if not by_us[address] + by_them[address]:
            wrong.append(f"{address} is lost")
        if by_us[address] > 1 and address not in uncertain:
            wrong.append(f"{address} got it {by_us[address]} times from outmail, unmarked")
        if by_us[address] and by_them[address] and not may(token):
            wrong.append(f"{address} got it from both")
    return wrong + [f"{address} must not get anything" for address in {*by_us, *by_them} - addresses.keys()]


def wrong_files(queue: Path, parts: Sequence[str], junk: set[str], log: Path) -> list[str]:
    """What is wrong with the directory: files that were left, junk that was not set aside, or mail that was;
    and a traceback in the log.
    """
    left = [f"{part}/{name}" for part in parts for name in os.listdir(queue / part) if name[0] != "."]
    aside = set(os.listdir(queue / "set-aside")) if junk else set()
    text = log.read_text(errors="replace")
    return [
        *(f"{name} was left" for name in left),
        *(f"{name} was not set aside" for name in junk - aside),
        *(f"{name} was set aside" for name in aside - junk),
        *([text[text.index("Traceback") :][:2000]] if "Traceback" in text else []),
    ]
