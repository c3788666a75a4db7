"""The three policies for uncertain mail, compared: engines are killed while a relay answers final dots late,
or never.

Run: python tests/campaigns/verify.py --kills 40. For each policy and relay: how many recipients got their
mail twice, how long the uncertain ones took, and how many a person must decide. Prints the seed and a table;
writes soak-verify.json beside the caller.
Exit status 0 only if nothing was lost (delivered or confirmed, and never taken by the relay), and whoever got
a message twice carries the uncertain mark.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from outmail.outbox.outbox import Outbox
from outmail.testing import Sink
from outmail.testing.sink import Received
from outmail.wiring import arrivals_of

#: One final dot in 25 is answered when the client has given up (and taken only then), or never (and taken).
RELAYS = {"late": "DOT: delay 1.5 1/25", "never": "DOT: take-and-drop 1/25"}
POLICIES = ("retry", "hold", "verify")
#: Of copies one in so many does not come home; the others take between these times (seconds).
LOST, SOON, LATE = 50, 0.02, 0.6
SETTINGS = """
from = "me@x.test"
[relay]
url = "{url}"
timeout = 0.7
dot_timeout = 0.7
[retry]
schedule = "500ms…"
on_uncertain = "{policy}"
"""
LOOPBACK = '[loopback]\naddress = "loop@example.org"\nwithin = "6s"\n'


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--kills", type=int, default=40)
    arguments.add_argument("--seed", type=int, default=None)
    options = arguments.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    results = []
    for relay in RELAYS:
        for policy in POLICIES:
            with tempfile.TemporaryDirectory(prefix="outmail-verify-") as folder:
                results.append(Campaign(Path(folder), relay, policy, random.Random(seed)).run(options.kills))
            print(json.dumps(results[-1]), flush=True)
    table(results)
    result = {
        "kills": options.kills,
        "seed": seed,
        "machine": platform.platform(),
        "python": platform.python_version(),
        "results": results,
    }
    if options.kills >= 20:
        Path("soak-verify.json").write_text(json.dumps(result, indent=1) + "\n")
    return int(any(result["bad"] for result in results))


def table(results: list[dict[str, Any]]) -> None:
    """As it stands in docs/durability.md."""
    heads = ("relay answers", "policy", "recipients", "uncertain", "sent twice")
    print(f"| {' | '.join(heads)} | wait of the uncertain, median / longest | people needed |")
    print("|---|---|---|---|---|---|---|")
    for r in results:
        print(
            f"| {r['relay']} | `{r['policy']}` | {r['recipients']:,} | {r['uncertain']} | {r['doubles']} |"
            f" {r['median_s']:.1f} s / {r['longest_s']:.1f} s | {r['people']} |"
        )


class Homecoming:
    """Copies that come home after a while, as by a mail server of our own; some never do."""

    def __init__(self, box: Outbox, chance: random.Random) -> None:
        self._arrivals = arrivals_of(box.store, box.config)
        self._chance = chance
        self._waiting: queue.PriorityQueue[tuple[float, int, str, Received]] = queue.PriorityQueue()
        self._count = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def take(self, message: Received) -> None:
        for to in message.recipients:
            if to.startswith("loop+") and self._chance.randrange(LOST):
                self._count += 1
                due = time.monotonic() + self._chance.uniform(SOON, LATE)
                self._waiting.put((due, self._count, to, message))

    def _work(self) -> None:
        while not self._over.is_set():
            try:
                due, n, to, message = self._waiting.get(timeout=0.05)
            except queue.Empty:
                continue
            if (pause := due - time.monotonic()) > 0:
                self._waiting.put((due, n, to, message))
                self._over.wait(min(pause, 0.02))
                continue
            self._arrivals.take(message.content, [to], message.sender)

    def close(self) -> None:
        self._over.set()
        self._thread.join(30)


class Campaign:
    """One policy with one relay."""

    def __init__(self, folder: Path, relay: str, policy: str, chance: random.Random) -> None:
        self.folder, self.relay, self.policy, self.chance = folder, relay, policy, chance
        self.settings = folder / "outmail.toml"

    def run(self, kills: int) -> dict[str, Any]:
        with Sink(RELAYS[self.relay], seed=self.chance.randrange(1 << 30)) as sink:
            text = SETTINGS.format(url=sink.url, policy=self.policy)
            self.settings.write_text(text + (LOOPBACK if self.policy == "verify" else ""))
            box = Outbox(self.folder / "q.db", config=str(self.settings), deliver="never")
            home = None
            if self.policy == "verify":
                home = Homecoming(box, self.chance)
                sink.on_message = home.take
            ids: list[str] = []
            for _ in range(kills):
                ids += [r.id for r in box.send_many(_message(len(ids) + i) for i in range(30))]
                self._killed(sink)
            engine = self._engine()
            deadline = time.monotonic() + 180
            while time.monotonic() < deadline and next(iter(box.find("-state:delivered -state:held")), None):
                time.sleep(0.1)
            engine.send_signal(signal.SIGTERM)
            engine.wait(60)
            time.sleep(2.0)  # what the relay still delays, it takes
            if home is not None:
                home.close()
            found = self._judge(box, ids, sink)
            box.close()
            return found

    def _engine(self) -> subprocess.Popen[bytes]:
        with open(self.folder / "engine.log", "ab") as log:
            words = ("run", "--config", str(self.settings), "--store", str(self.folder / "q.db"))
            return subprocess.Popen(
                [sys.executable, "-m", "outmail", *words], stderr=log, env=dict(os.environ)
            )

    def _killed(self, sink: Sink) -> None:
        """An engine is killed at some moment after it has begun to deliver."""
        engine = self._engine()
        before, deadline = sink.count, time.monotonic() + 30
        while sink.count == before and time.monotonic() < deadline and engine.poll() is None:
            time.sleep(0.002)
        time.sleep(self.chance.random() ** 2 * 0.4)
        engine.send_signal(signal.SIGKILL)
        engine.wait()

    def _judge(self, box: Outbox, ids: list[str], sink: Sink) -> dict[str, Any]:
        got: Counter[tuple[str, str]] = Counter()
        for message in sink.messages:
            message_id = message.content.split(b"Message-ID: ", 1)[1].split(b"\r\n", 1)[0].decode()
            for address in message.recipients:
                got[message_id, address] += 1
        ended = {(e.id, e.n): e.at for e in box.events() if e.event in ("delivered", "confirm")}
        marked = {(e.id, e.n): e.at for e in reversed(list(box.events())) if e.uncertain}
        lost, unmarked, wrong, waits = [], [], [], []
        count = uncertain = doubles = people = 0
        for id in ids:
            status = box.status(id)
            for r in status.recipients:
                count += 1
                copies = got[status.message_id, r.address]
                uncertain += r.uncertain
                doubles += copies > 1
                people += r.state == "held"
                lost += [r.address] if r.state == "delivered" and not copies else []
                unmarked += [r.address] if copies > 1 and not r.uncertain else []
                wrong += [f"{r.address} {r.state}"] if r.state not in ("delivered", "held") else []
                if r.uncertain and (id, r.n) in ended:
                    waits.append((ended[id, r.n] - marked[id, r.n]) / 1000)
        bad = {
            name: found
            for name, found in (("lost", lost), ("unmarked", unmarked), ("wrong", wrong[:9]))
            if found
        }
        return {
            "relay": self.relay,
            "policy": self.policy,
            "recipients": count,
            "uncertain": uncertain,
            "doubles": doubles,
            "median_s": statistics.median(waits) if waits else 0.0,
            "longest_s": max(waits, default=0.0),
            "people": people,
            "bad": bad,
        }


def _message(i: int) -> dict[str, object]:
    to = [f"u{i}@x.test"] + ([f"second{i}@x.test"] if i % 3 == 0 else [])
    return {"to": to, "subject": f"s{i}", "text": f"{i}\n", "sender": "me@x.test"}


if __name__ == "__main__":
    sys.exit(main())
