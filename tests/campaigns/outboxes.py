"""Engines × outboxes × programs: whoever empties applications' tables is killed, stopped, started, and given
a clock that jumps.

Run: python tests/campaigns/outboxes.py [--minutes 3] [--seed N] [--server 18] [--no-jumps]. Several engines
of one store (in SQLite; with --server in PostgreSQL) and programs with engines of their own empty SQLite
tables, some of them made without AUTOINCREMENT, one inside the store's own database, and a table of
PostgreSQL; programs write mail with ``using=`` into all of them, in transactions that are committed or rolled
back. Meanwhile any of them is killed (SIGKILL), ended, or stopped (SIGSTOP; with a store in PostgreSQL beyond
the lease, which is shortened for that), and wall clocks jump by up to two hours. Prints the seed; a run of
five minutes or more writes soak-outboxes.json beside the caller. Exit status 0 only if every row committed
went out once, or with the uncertain mark where it went out more often; nothing that was rolled back went out;
and no row is left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psycopg

sys.path.insert(0, str(Path(__file__).parents[2]))

from outmail import outbox_ddl
from outmail.config import from_toml
from outmail.errors import Error
from outmail.outbox.outbox import Outbox
from outmail.testing import Sink
from tests import pgserver

SCRIPT = "DOT: take-and-drop 1/300\nDOT: 451 4.3.0 later 1/50"
#: Seconds: the lease of engines on PostgreSQL here, and how long a process stands still at most (with a store
#: in SQLite, where it may hold the write lock).
LEASE = 8
STANDS_STILL = 2.0

#: What every process of the campaign does first: a wall clock that jumps, and the short lease.
SEAMS = r"""
import os, random, sys, time
from outmail.clock import Clock
from outmail.store.postgres import verbs as pgsql

lease = int(os.environ["CAMPAIGN_LEASE"])
pgsql.LEASE, pgsql.RENEWAL, pgsql.CONFIDENCE, pgsql.DOUBT = lease, lease / 8, lease * 0.75, lease * 3 / 8

class Jumping:
    def __init__(self):
        self.chance, self.until, self.off = random.Random(int(os.environ["CAMPAIGN_SEED"])), 0.0, 0

    def now(self):
        if time.monotonic() > self.until:
            self.until = time.monotonic() + self.chance.uniform(0.3, 5)
            self.off = self.chance.choice((0, self.chance.randint(-7_200_000, 7_200_000)))
        return time.time_ns() // 1_000_000 + self.off

if os.environ["CAMPAIGN_JUMPS"] == "1":
    jumping = Jumping()
    Clock.now = lambda self: jumping.now()
"""

ENGINE = SEAMS + "from outmail.cli import main\nsys.exit(main())\n"

PROGRAM = (
    SEAMS
    + r"""
import contextlib, json, sqlite3
import apsw, psycopg
from outmail import Outbox

settings, name, over, record = sys.argv[1:5]
tables = json.loads(sys.argv[5])
chance = random.Random(int(os.environ["CAMPAIGN_SEED"]))
box = Outbox(config=settings, deliver=sys.argv[6], exit_wait=0.5)
file = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
connections = {}

def open_table(table):
    if table["library"] == "psycopg":
        return psycopg.connect(table["path"], autocommit=True)
    if table["library"] == "apsw":
        db = apsw.Connection(table["path"])
        db.set_busy_timeout(30000)
        return db
    return sqlite3.connect(table["path"], timeout=30, isolation_level=None)

def write(table, items, keep):
    addresses = [item["to"] for item in items]
    tell("try", addresses)
    if table["name"] not in connections:
        connections[table["name"]] = open_table(table)
    db = connections[table["name"]]
    db.execute("BEGIN" if table["library"] == "psycopg" else "BEGIN IMMEDIATE")
    for item in items:
        box.send(using=db, sender="me@x.test", subject="s", text="text", **item)
        if chance.random() < 0.05: time.sleep(0.01)
    db.execute("COMMIT" if keep else "ROLLBACK")
    tell("kept" if keep else "gone", addresses)

def tell(word, addresses):
    os.write(file, " ".join([word, *addresses, "\n"]).encode())

n = 0
while not os.path.exists(over):
    items = []
    for _ in range(chance.randint(1, 5)):
        n += 1
        items.append({"to": f"{name}-{n}@x.test"} | ({"key": f"{name}-{n}"} if chance.random() < 0.2 else {}))
    table = chance.choice(tables)
    try:
        write(table, items, chance.random() < 0.75)
        again = [item for item in items if "key" in item]
        if again: write(table, again, chance.random() < 0.75)
    except (sqlite3.Error, apsw.Error, psycopg.Error) as problem:  # it may have been committed or not
        print(f"{table['name']}: {problem!r}", file=sys.stderr)
        with contextlib.suppress(Exception): connections.pop(table["name"]).close()
    time.sleep(chance.random() * 0.06)
box.close()
"""
)


@dataclass(frozen=True)
class Table:
    """One ``outmail_outbox``: where engines find it, and how programs open it."""

    name: str
    url: str
    path: str
    library: str


def main() -> int:
    servers = pgserver.installed()
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--minutes", type=float, default=3.0)
    arguments.add_argument("--seed", type=int, default=None)
    arguments.add_argument(
        "--server", choices=sorted(servers, key=int), help="the store is in PostgreSQL of this version"
    )
    arguments.add_argument(
        "--jumps", action=argparse.BooleanOptionalAction, default=True, help="wall clocks jump"
    )
    arguments.add_argument(
        "--expire", default="5d", help="[retry] expire; below two hours the jumps reach it"
    )
    options = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # nothing is left running
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    version = options.server or max(servers, key=int)
    print(f"seed {seed}, the store in {'PostgreSQL ' + version if options.server else 'SQLite'}", flush=True)
    server = pgserver.PgServer(servers[version], settings="max_connections = 200").start()
    began = time.monotonic()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="outmail-outboxes-") as folder,
            Sink(SCRIPT, seed=seed) as sink,
        ):
            os.environ["XDG_STATE_HOME"] = folder
            with contextlib.closing(
                Campaign(
                    Path(folder),
                    server,
                    bool(options.server),
                    sink,
                    seed,
                    jumps=options.jumps,
                    expire=options.expire,
                )
            ) as campaign:
                result = campaign.run(options.minutes * 60)
    finally:
        server.remove()
    result |= {
        "store": f"PostgreSQL {version}" if options.server else "SQLite",
        "jumps": options.jumps,
        "expire": options.expire,
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
        Path(f"soak-outboxes{'-postgresql' if options.server else ''}.json").write_text(
            json.dumps(result, indent=1) + "\n"
        )
    return 1 if result["bad"] else 0


class Campaign:
    """Processes and what befalls them."""

    def __init__(
        self,
        folder: Path,
        server: pgserver.PgServer,
        inside: bool,
        sink: Sink,
        seed: int,
        *,
        jumps: bool,
        expire: str,
    ) -> None:
        self.folder, self.sink, self.server = folder, sink, inside
        self.chance = random.Random(seed)
        self.store = server.create("queue") if inside else f"{folder}/q.db"
        Outbox(self.store, config=from_toml("", "campaign", {}), deliver="never").close()
        self.tables = [*sqlite_tables(folder), *other_tables(server, self.store, inside)]
        self.settings = folder / "outmail.toml"
        lines = [
            f'store = "{self.store}"',
            f'relay = "{sink.url}"',
            "[retry]",
            'schedule = "500ms…"',
            f'expire = "{expire}"',
        ]
        self.settings.write_text(
            "\n".join([*lines, *(f'[[outbox]]\nurl = "{table.url}"' for table in self.tables)]) + "\n"
        )
        self.over = folder / "over"
        self.jumps = jumps
        self.made = 0
        self.counts: Counter[str] = Counter()
        self.engines: list[subprocess.Popen[bytes]] = []
        self.programs: list[subprocess.Popen[bytes]] = []
        self.all: list[subprocess.Popen[bytes]] = []
        #: Who stands still, and until when.
        self.still: dict[subprocess.Popen[bytes], float] = {}

    # -- processes -------------------------------------------------------------------------------------------

    def _start(self, code: str, *words: str, jumps: bool = True) -> subprocess.Popen[bytes]:
        self.made += 1
        environment = {
            **os.environ,
            "CAMPAIGN_SEED": str(self.chance.randrange(1 << 32)),
            "CAMPAIGN_JUMPS": str(int(jumps and self.jumps)),
            "CAMPAIGN_LEASE": str(LEASE),
        }
        with open(self.folder / f"log.{self.made}", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", code, *words],
                stderr=log,
                env=environment,
                cwd=self.folder,
            )
        self.all.append(process)
        return process

    def engine(self, *words: str, jumps: bool = True) -> subprocess.Popen[bytes]:
        return self._start(ENGINE, "run", "--config", str(self.settings), *words, jumps=jumps)

    def program(self) -> subprocess.Popen[bytes]:
        """Half of them have an engine of their own."""
        name = f"p{self.made}"
        tables = json.dumps([asdict(table) for table in self.tables])
        deliver = self.chance.choice(("never", "thread"))
        return self._start(
            PROGRAM,
            str(self.settings),
            name,
            str(self.over),
            str(self.folder / f"record.{name}"),
            tables,
            deliver,
        )

    def close(self) -> None:
        for process in self.all:
            if process.poll() is None:
                process.kill()
                process.wait()

    # -- the course ------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> dict[str, object]:
        """The result; ``bad`` is empty when all is well."""
        self.engines = [self.engine() for _ in range(3)]
        self.programs = [self.program() for _ in range(4)]
        end, told = time.monotonic() + seconds, time.monotonic()
        alone: dict[str, object] = {}
        while time.monotonic() < end and not alone:
            self._wait_for_mail(self.chance.randint(0, 80), time.monotonic() + 5)
            alone = self._ended_alone()
            self._disturb()
            if time.monotonic() > told + 60:
                told = time.monotonic()
                print(f"{dict(self.counts)}, {self.sink.count} transmissions", flush=True)
        bad = alone | self._end()
        bad |= self._drain(time.monotonic() + 240)
        with contextlib.closing(
            Outbox(self.store, config=from_toml("", "campaign", {}), deliver="never")
        ) as box:
            result = judge(box, self.sink, kept_and_gone(self.folder))
        left = {table.name: n for table in self.tables if (n := waiting(table))}
        bad |= {"left in tables": left} if left else {}
        logs = "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("log.*")))
        bad |= (
            {"bugs in logs": logs[logs.index("bug of outmail") - 200 :][:2000]}
            if "bug of outmail" in logs
            else {}
        )
        result["bad"] = bad | result["bad"]  # type: ignore[operator]
        return {"processes": self.made, **self.counts, **result}

    def _wait_for_mail(self, count: int, deadline: float) -> None:
        """So much is done before the next blow, also on a busy machine; but a moment in which nothing moves
        is one too.
        """
        count += self.sink.count
        while time.monotonic() < deadline:
            self._wake_up(time.monotonic())
            time.sleep(self.chance.random() * 0.1)
            if self.sink.count >= count:
                break

    def _ended_alone(self) -> dict[str, object]:
        """Whoever ended without a blow, in words: nobody does."""
        for process in (*self.engines, *self.programs):
            if process.poll() is not None:
                log = self.folder / f"log.{self.all.index(process) + 1}"
                return {"ended by itself": [process.returncode, log.read_text(errors="replace")[-1500:]]}
        return {}

    def _disturb(self) -> None:
        awake = [process for process in (*self.engines, *self.programs) if process not in self.still]
        victim = self.chance.choice(awake) if awake else None
        what = self.chance.random()
        if victim is None:
            return
        if what < 0.35:
            self._stand_still(victim)
        elif what < 0.75:
            self._replace(victim, signal.SIGKILL, "killed")
        elif what < 0.85 and victim in self.engines:
            self._replace(victim, signal.SIGTERM, "ended")
        elif what < 0.95:
            self.counts["single runs"] += 1
            self.still[self.engine("--once")] = time.monotonic() + 20  # gets SIGCONT then, which harms nobody

    def _stand_still(self, victim: subprocess.Popen[bytes]) -> None:
        long = self.server and victim in self.engines and self.chance.random() < 0.3
        victim.send_signal(signal.SIGSTOP)
        self.still[victim] = time.monotonic() + (
            LEASE + self.chance.uniform(1, 6) if long else self.chance.random() ** 2 * STANDS_STILL
        )
        self.counts["stopped beyond the lease" if long else "stopped"] += 1

    def _wake_up(self, now: float) -> None:
        for process in [process for process, until in self.still.items() if until <= now]:
            del self.still[process]
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)

    def _replace(self, victim: subprocess.Popen[bytes], how: int, word: str) -> None:
        group, kind = (self.engines, "engines") if victim in self.engines else (self.programs, "programs")
        victim.send_signal(how)
        if how == signal.SIGKILL:
            victim.wait()
        group[group.index(victim)] = self.engine() if group is self.engines else self.program()
        self.counts[f"{kind} {word}"] += 1

    def _end(self) -> dict[str, object]:
        """Programs and engines come to their ends, in order."""
        self._wake_up(float("inf"))
        self.over.touch()
        for process in self.engines:
            process.terminate()
        hanging, deadline = 0, time.monotonic() + 120
        for process in self.all:
            try:
                process.wait(max(1.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                hanging += 1
                process.kill()
                process.wait()
        return {"hanging processes": hanging} if hanging else {}

    def _drain(self, deadline: float) -> dict[str, object]:
        """One engine with a clock that goes as it should, until nothing waits."""
        engine = self.engine(jumps=False)
        with contextlib.closing(
            Outbox(self.store, config=from_toml("", "campaign", {}), deliver="never")
        ) as box:
            while time.monotonic() < deadline and engine.poll() is None:
                with contextlib.suppress(Error):
                    # the third loss of a suspect holds it; a person would look, the campaign lets it go
                    box.release("state:held")
                    if (
                        not any(waiting(table) for table in self.tables)
                        and next(iter(box.find("is:live")), None) is None
                    ):
                        break
                time.sleep(0.2)
        engine.terminate()
        status = engine.wait(90)
        # it may not have begun yet
        return {"the last engine ended with": status} if status not in (0, -signal.SIGTERM) else {}


# -- tables --------------------------------------------------------------------------------------------------


def sqlite_tables(folder: Path) -> Iterator[Table]:
    """By the present DDL, and by that of before: with a rollback journal, and with a log."""
    new = outbox_ddl("sqlite")
    old = new.replace(" AUTOINCREMENT", "")
    for name, ddl in (("new", new), ("old", old), ("old-log", f"PRAGMA journal_mode = WAL; {old}")):
        path = str(folder / f"{name}.db")
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.executescript(ddl)
        yield Table(name, f"sqlite:{path}", path, "sqlite3")


def other_tables(server: pgserver.PgServer, store: str, inside: bool) -> Iterator[Table]:
    """One in a database of PostgreSQL, and one beside the queue's own tables."""
    places = {"postgresql": server.create("app")} | ({"inside": store} if inside else {})
    for name, url in places.items():
        with psycopg.connect(url, autocommit=True) as db:
            db.execute(outbox_ddl("postgresql"))
        yield Table(name, url, url, "psycopg")
    if not inside:
        import apsw

        with contextlib.closing(apsw.Connection(store)) as file:
            file.execute(outbox_ddl("sqlite").replace(" AUTOINCREMENT", ""))
        yield Table("inside", f"sqlite+apsw:{store}", store, "apsw")


def waiting(table: Table) -> int:
    """Rows that are left."""
    sql = "SELECT count(*) FROM outmail_outbox"
    if table.library == "psycopg":
        with psycopg.connect(table.path) as db:
            return int(db.execute(sql).fetchone()[0])  # type: ignore[index]
    code = (
        f"import {table.library} as library\ndb = "
        f"library.{'Connection' if table.library == 'apsw' else 'connect'}({table.path!r})\n"
        f"print(db.execute({sql!r}).fetchone()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    return int(done.stdout or -1)


# -- the judgement -------------------------------------------------------------------------------------------


def kept_and_gone(folder: Path) -> dict[str, set[str]]:
    """What the programs have written of their transactions: addresses that were committed, rolled back, or
    begun and not heard of.
    """
    found: dict[str, set[str]] = {"try": set(), "kept": set(), "gone": set()}
    tries: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for path in folder.glob("record.*"):
        for line in path.read_text().split("\n"):
            word, *addresses = line.split() or [""]
            if word in found:
                found[word].update(addresses)
                (tries if word == "try" else ends).update(addresses)
    unknown = {address for address, n in tries.items() if ends[address] < n} - found["kept"]
    return {"kept": found["kept"], "gone": found["gone"] - found["kept"] - unknown, "unknown": unknown}


def judge(box: Outbox, sink: Sink, said: dict[str, set[str]]) -> dict[str, object]:
    """The programs' word, the store's and the sink's."""
    got: Counter[str] = Counter(address for message in sink.messages for address in message.recipients)
    states: Counter[str] = Counter()
    stored: Counter[str] = Counter()
    marked, failed = set(), set()
    for status in box.find():
        for recipient in status.recipients:
            states[recipient.state] += 1
            stored[recipient.address] += 1
            if recipient.uncertain:
                marked.add(recipient.address)
            if recipient.state == "failed":
                failed.add(recipient.address)
    wrong = {
        "lost": [address for address in said["kept"] if not got[address] and address not in failed],
        "rolled back and sent": [address for address in said["gone"] if got[address]],
        "stored twice": [address for address, n in stored.items() if n > 1],
        "doubles without a mark": [address for address, n in got.items() if n > 1 and address not in marked],
        "sent by nobody": [
            address for address in got if not any(address in addresses for addresses in said.values())
        ],
    }
    bad: dict[str, object] = {name: [len(found), *found[:10]] for name, found in wrong.items() if found}
    if set(states) - {"delivered"}:
        bad["not delivered"] = dict(states)
    return {
        "committed": len(said["kept"]),
        "rolled_back": len(said["gone"]),
        "not_heard_of": len(said["unknown"]),
        "states": dict(states),
        "transmissions": len(sink.messages),
        "doubles": sum(n > 1 for n in got.values()),
        "marked": len(marked),
        "bad": bad,
    }


if __name__ == "__main__":
    sys.exit(main())
