"""More hosts on one PostgreSQL: what each adds until the server saturates, and what a message costs the
server meanwhile.

Run: python bench/hosts.py [--messages 20000] [--server 18] [--hosts 1,2,4,8]. A host is a process that
leases, settles and leases again as an engine does, 200 messages a transaction, with nothing in between: no
mail server is spoken to, so that few cores suffice to load a server. The server has the first processor for
itself, the hosts share the others. Prints a table; server time is user and system time of all its processes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import pgserver

from bench.postgres import DONE, READY, TEXT

BATCH = 200
#: Connections stay open until the server's time has been read.
END = DONE + "sys.stdin.readline()\n"

#: Accepts and drains; argv: messages, URL, folder. Eight threads each accept, as in a web server.
ACCEPT = f"""import sys, threading
from outmail import Outbox
TEXT = {TEXT!r}
box = Outbox(sys.argv[2], deliver='never')
def send(count):
    for i in range(count): box.send('b@x.test', f's{{i}}', TEXT, sender='a@x.test')
send(10)
{READY}
threads = [threading.Thread(target=send, args=(int(sys.argv[1]) // 8,)) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
DRAIN = f"""import sys, time
from outmail.model import Outcome, Reply, Settled, Verdict
from outmail.store.postgres.store import PostgresStore
store = PostgresStore(sys.argv[2], sys.argv[3] + "/host")
now = int(time.time() * 1000)
owner = store.register(now)
outcome = Outcome("delivered", "recipient", "dot", Reply(250, "2.0.0 queued"))
verdict = Verdict("delivered", now, "")
{READY}
found, number, done = [], 1, 0
while True:
    settled = []
    for delivery in found:
        for recipient in delivery.recipients: recipient.outcome = outcome
        verdicts = tuple((recipient, verdict) for recipient in delivery.recipients)
        settled.append(Settled(delivery, verdicts, now, 5, False))
    lease = store.verbs.lease(owner.id, number, {{"default": {BATCH}}}, int(time.time() * 1000))
    verbs = [*([store.verbs.settle(owner.id, settled)] if settled else []), lease]
    done, number = done + len(settled), number + 1
    found = store.commit(verbs)[-1]
    if isinstance(found, Exception): raise found
    if not found and not settled: break
owner.file.abandon()
"""


def busy(server: pgserver.PgServer) -> float:
    """Seconds of processor time that the server's processes have used, ended ones included."""
    assert server.process is not None
    ticks, family = 0, {server.process.pid}
    stats = {
        int(path.name): path.joinpath("stat").read_text().rpartition(") ")[2].split() for path in _processes()
    }
    for pid, words in stats.items():
        if pid in family or int(words[1]) in family:
            ticks += sum(map(int, words[11:15] if pid in family else words[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _processes() -> Iterator[Path]:
    return (
        path for path in Path("/proc").iterdir() if path.name.isdecimal() and path.joinpath("stat").exists()
    )


def together(
    code: str, count: int, hosts: int, url: str, folder: str, server: pgserver.PgServer
) -> tuple[float, float]:
    """(messages a second, microseconds of the server's time a message) of so many hosts that start
    together.
    """
    others = set(range(1, os.cpu_count() or 1)) or {0}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code + END, str(count // hosts), url, f"{folder}/{i}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: os.sched_setaffinity(0, others),
        )
        for i in range(hosts)
    ]
    for process in running:
        assert process.stdout and process.stdout.readline() == b"ready\n"
    before, began = busy(server), time.perf_counter()
    for process in running:
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in running:
        assert process.stdout and process.stdout.readline() == b"done\n"
    took, used = time.perf_counter() - began, busy(server) - before
    for process in running:
        process.communicate(b"\n", timeout=600)
        if process.returncode:
            sys.exit("a host failed")
    return count / took, used / count * 1e6


def measured(folder: str, version: str, messages: int, hosts: list[int], rounds: int) -> Iterator[str]:
    """The table, hosts down."""
    server = pgserver.PgServer(pgserver.installed()[version], settings="max_connections = 200").start()
    assert server.process is not None
    try:
        for pid in (int(path.name) for path in _processes()):
            if pid == server.process.pid or os.getpgid(pid) == server.process.pid:
                os.sched_setaffinity(pid, {0})
        url = server.create("hosts")
        seen: dict[int, list[tuple[float, ...]]] = {}
        for _ in range(rounds):
            for count in hosts:
                accepted = together(ACCEPT, messages, count, url, folder, server)
                drained = together(DRAIN, messages, count, url, folder, server)
                seen.setdefault(count, []).append((*accepted, *drained))
                print(
                    f"  {count} hosts: " + " ".join(f"{value:,.0f}" for value in seen[count][-1]),
                    file=sys.stderr,
                    flush=True,
                )
        yield "| hosts | accepted/s | server µs a message | leased and settled/s | server µs a message |"
        yield "|---|---|---|---|---|"
        for count, found in seen.items():
            middle = [sorted(column)[len(column) // 2] for column in zip(*found)]
            yield f"| {count} | " + " | ".join(f"{value:,.0f}" for value in middle) + " |"
    finally:
        server.remove()


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--messages", type=int, default=16_000)
    arguments.add_argument("--server", default=max(pgserver.installed(), key=int))
    arguments.add_argument("--hosts", default="1,2,4,8")
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="outmail-hosts-") as folder:
        os.environ["XDG_STATE_HOME"] = folder
        for line in measured(
            folder,
            options.server,
            options.messages,
            [int(word) for word in options.hosts.split(",")],
            options.rounds,
        ):
            print(line, flush=True)


if __name__ == "__main__":
    main()
