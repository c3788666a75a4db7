"""Engines that are stopped beyond their lease, killed, and run with clocks that jump, on one store.

Run: python tests/campaigns/leases.py --minutes 10 [--store postgresql] [--seed N]. Prints the seed; writes
soak-leases-<store>.json beside the caller. Exit status 0 only if every message accepted was delivered at
least once, whoever got one twice carries the uncertain mark, nothing failed as too old (nothing was), nothing
is held as poison (all deaths come from outside), and no stop or kill left more doubles than a settle batch
and one for each session.

On PostgreSQL each engine is a host of its own (its own folder, boot id and clock); leases last sixteen
seconds. On SQLite all share one machine and its clock, and so does the program that sends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from outmail import clock as clocks
from outmail.config import from_toml
from outmail.errors import Error, NotStored, Refused
from outmail.outbox.outbox import Outbox
from outmail.testing import Sink
from tests import pgserver

LEASE, RENEWAL, CONFIDENCE, DOUBT = 16.0, 2.0, 11.0, 6.0
SESSIONS, BATCH = 20, 200
SCRIPT = "RCPT: 451 4.7.1 later 1/40\nDOT: delay 0.02 1/3\nDOT: delay 1.5 1/60"
DAY = 86_400.0


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite")
    arguments.add_argument("--engines", type=int, default=3)
    arguments.add_argument("--seed", type=int, default=None)
    arguments.add_argument("--engine", nargs=2, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.engine:
        return run_engine(*options.engine)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}, {options.store}", flush=True)
    with tempfile.TemporaryDirectory(prefix="outmail-leases-") as folder, Sink(SCRIPT, seed=seed) as sink:
        os.environ["XDG_STATE_HOME"] = folder
        began = time.monotonic()
        result = campaign(
            Path(folder), sink, options.store, options.engines, options.minutes * 60, random.Random(seed)
        )
    result |= {
        "store": options.store,
        "engines": options.engines,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
    }
    print(json.dumps(result, indent=1))
    if options.minutes >= 5:
        Path(f"soak-leases-{options.store}.json").write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["bad"] else 0


# -- clocks that jump ----------------------------------------------------------------------------------------


class Jumping:
    """`Clock.now` of this process is off by what a file says."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.offset = 0.0
        self.read()
        true = clocks.Clock.now
        everybodys: Any = clocks.Clock
        everybodys.now = lambda clock: true(clock) + int(self.offset * 1000)
        threading.Thread(target=self._follow, daemon=True).start()

    def read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.offset = float(self.file.read_text())

    def _follow(self) -> None:
        while True:
            self.read()
            time.sleep(0.02)


def set_clock(file: Path, offset: float) -> None:
    file.with_suffix(".new").write_text(str(offset))
    file.with_suffix(".new").rename(file)


def run_engine(settings: str, clock: str) -> int:
    """`outmail run` with short leases and a clock that jumps."""
    from outmail import cli
    from outmail.engine import maintenance
    from outmail.store import owner
    from outmail.store.postgres import store as postgres
    from outmail.store.postgres import verbs as pgsql
    from outmail.store.sqlite import store as sqlite

    pgsql.LEASE, pgsql.RENEWAL, pgsql.CONFIDENCE, pgsql.DOUBT, maintenance.RECLAIM = (
        LEASE,
        RENEWAL,
        CONFIDENCE,
        DOUBT,
        0.5,
    )
    if "postgresql" in Path(settings).read_text():
        for module in (owner, postgres, sqlite):
            if hasattr(module, "boot_id"):
                module.boot_id = lambda: f"boot of {clock}"  # type: ignore[attr-defined]
    Jumping(Path(clock))
    return cli.main(["run", "--config", settings])


# -- the campaign --------------------------------------------------------------------------------------------


class Host:
    """An engine's home."""

    def __init__(self, folder: Path, name: str, settings: Path, clock: Path) -> None:
        self.clock, self.settings = clock, settings
        self.home = folder / name
        self.home.mkdir()
        self.log = folder / f"{name}.log"
        self.stopped_until = 0.0
        self.offset = 0.0
        self.start()

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--engine", str(self.settings), str(self.clock)],
                stderr=log,
                stdout=log,
                env={**os.environ, "XDG_STATE_HOME": str(self.home)},
            )

    def stop_for(self, seconds: float) -> None:
        self.process.send_signal(signal.SIGSTOP)
        self.stopped_until = time.monotonic() + seconds

    def go_on(self, *, now: bool = False) -> None:
        if self.stopped_until and (now or time.monotonic() >= self.stopped_until):
            self.stopped_until = 0.0
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.stopped_until = 0.0
        self.process.kill()
        self.process.wait()
        self.start()


def jump(chance: random.Random) -> float:
    """Half of them back to the truth; others from seconds to months."""
    return (
        0.0
        if chance.random() < 0.4
        else chance.choice((-1, 1))
        * chance.choice((7.0, 90.0, 3600.0, 6 * 3600.0, 2 * DAY, 6 * DAY, 100 * DAY))
        * (0.5 + chance.random())
    )


def campaign(
    folder: Path, sink: Sink, kind: str, count: int, seconds: float, chance: random.Random
) -> dict[str, Any]:
    server = (
        pgserver.PgServer(pgserver.installed()[max(pgserver.installed(), key=int)]).start()
        if kind == "postgresql"
        else None
    )
    try:
        url = server.create("soak") if server else f"sqlite:{folder}/q.db"
        settings = folder / "outmail.toml"
        settings.write_text(
            f'store = "{url}"\nfrom = "me@x.test"\nrelay = "{sink.url}"\n[retry]\nschedule = "500ms, '
            f'1s…"\nexpire = "1d"\n'
        )
        shared = folder / "clock"
        if not server:
            Jumping(shared)
        box = Outbox(
            url, config=from_toml('from = "me@x.test"\n[retry]\nexpire = "1d"\n', "soak", {}), deliver="never"
        )
        box.send("first@x.test", "s", "t")
        time.sleep(LEASE if server else 0.0)  # nobody reclaims while the server is young
        hosts = [
            Host(folder, f"host{i}", settings, folder / f"clock{i}" if server else shared)
            for i in range(count)
        ]
        _first_sign(box)
        sender = Sender(box, chance.randrange(1 << 30))
        events = trouble(hosts, server is not None, seconds, sender, sink, chance)
        sender.over.set()
        sender.join(120)
        for host in hosts:
            set_clock(host.clock, 0.0)
            host.go_on(now=True)
        deadline = time.monotonic() + float(os.environ.get("DRAIN", "300"))
        while time.monotonic() < deadline and _waiting(box):
            time.sleep(0.5)
        for host in hosts:
            host.process.terminate()
        for host in hosts:
            host.process.wait(90)
        result = judge(box, ["first@x.test", *sender.accepted], sink, events)
        result["refused"] = sender.refused
        box.close()
        for host in hosts:
            text = host.log.read_text()
            if "Traceback" in text:
                result["bad"].setdefault("tracebacks", []).append(text[text.index("Traceback") :][:1500])
        if os.environ.get("KEEP_LOGS") or result["bad"]:
            for host in hosts:
                print(host.log.read_text()[-1500:], file=sys.stderr)
        return result
    finally:
        if server:
            server.remove()


def _first_sign(box: Outbox) -> None:
    """Nothing can be known of a clock that was set before the first engine of a store had seen it."""
    deadline = time.monotonic() + 30
    while not box.store.read(box.store.verbs.note_list("clock")) and time.monotonic() < deadline:
        time.sleep(0.1)


def _waiting(box: Outbox) -> bool:
    try:
        return next(iter(box.find("-state:delivered -state:failed -state:held")), None) is not None
    except Error:
        return True


class Sender(threading.Thread):
    """A program that sends, some of it with an end of its own that is far."""

    def __init__(self, box: Outbox, seed: int) -> None:
        super().__init__(daemon=True)
        self.box, self.chance = box, random.Random(seed)
        self.over = threading.Event()
        self.accepted: list[str] = []
        self.refused = 0
        self.start()

    def run(self) -> None:
        while not self.over.is_set():
            people = [f"u{len(self.accepted) + i}@x.test" for i in range(self.chance.randrange(1, 40))]
            try:
                self.box.send_many(
                    {
                        "to": to,
                        "subject": "s",
                        "text": "text\n" * 20,
                        **({"expires": "3h"} if i % 10 == 0 else {}),
                    }
                    for i, to in enumerate(people)
                )
                self.accepted += people
            except (NotStored, Refused):
                # the clock jumps between two lines: it would expire before its first attempt
                self.refused += 1
            self.over.wait(self.chance.random() * 0.5)


def trouble(
    hosts: list[Host], leased: bool, seconds: float, sender: Sender, sink: Sink, chance: random.Random
) -> list[tuple[float, str]]:
    """Returns what was done, and when."""
    events: list[tuple[float, str]] = []
    deadline, told = time.monotonic() + seconds, time.monotonic() + 30
    while time.monotonic() < deadline:
        time.sleep((0.3 + chance.random() * 1.5) * (4 if leased else 1))
        for host in hosts:
            host.go_on()
        running = [host for host in hosts if not host.stopped_until]
        if not running:
            continue
        host, what = chance.choice(running), chance.random()
        if what < 0.3:
            host.stop_for(chance.uniform(LEASE * 0.8, LEASE * 1.6) if leased else chance.uniform(0.5, 3.0))
            events.append((time.time(), "stop"))
        elif what < 0.6:
            host.kill()
            events.append((time.time(), "kill"))
        else:
            set_clock(host.clock, jump(chance))
            events.append((time.time(), "jump"))
        if time.monotonic() > told:
            told += 30
            print(
                f"{Counter(what for _, what in events)}, {len(sender.accepted)} accepted, {sink.count} "
                f"transmissions",
                flush=True,
            )
    return events


def judge(box: Outbox, people: list[str], sink: Sink, events: list[tuple[float, str]]) -> dict[str, Any]:
    """Compare the store's word with what the sink took."""
    got: dict[str, list[float]] = defaultdict(list)
    for message in sink.messages:
        for address in message.recipients:
            got[address].append(message.at)
    states: Counter[str] = Counter()
    bad: dict[str, list[str]] = defaultdict(list)
    doubles = marked = 0
    cuts = sorted((at, what) for at, what in events if what != "jump")
    after: Counter[int] = Counter()
    known = set()
    for status in box.find():
        for r in status.recipients:
            known.add(r.address)
            states[r.state] += 1
            marked += r.uncertain
            times = got.get(r.address, [])
            if r.state != "delivered":
                bad[f"{r.state}: {r.reason}"].append(r.address)
            elif not times:
                bad["lost"].append(r.address)
            if len(times) > 1:
                doubles += len(times) - 1
                for at in sorted(times)[:-1]:
                    after[bisect_left(cuts, (at - 0.1, ""))] += 1
                if not r.uncertain:
                    bad["unmarked doubles"].append(r.address)
    bad["accepted and not there"] = [address for address in people if address not in known]
    kinds: Counter[str] = Counter()
    for i, number in after.items():
        kinds[cuts[i][1] if i < len(cuts) else "none"] += number
    most = max(after.values(), default=0)
    if most > SESSIONS + BATCH:
        bad["too many doubles of one stop or kill"] = [str(most)]
    return {
        "messages": len(people),
        "states": dict(states),
        "transmissions": len(sink.messages),
        "events": dict(Counter(what for _, what in events)),
        "doubles": doubles,
        "doubles by": dict(kinds),
        "most of one": most,
        "marked": marked,
        "bad": {name: [len(found), *found[:20]] for name, found in bad.items() if found},
    }


if __name__ == "__main__":
    sys.exit(main())
