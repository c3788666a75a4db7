"""Programs as they are: threads, forks, several Outboxes on one file, ends in any order, SIGKILL. Nothing
that was accepted may be missing.

Run: python tests/campaigns/programs.py [--minutes 3] [--seed N] [--server 18]; without a server of PostgreSQL
on SQLite by both libraries. Each round starts some programs on one queue; each does at random what programs
do, and writes the id of every receipt to a file of its own before it goes on. At the end of a round the queue
is read by a process that has not seen it before. Exit status 0 only if every receipt was found and the store
is whole.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests import pgserver

PROGRAM = r"""
import os, random, signal, sys, threading, time, warnings
warnings.simplefilter("ignore")
from outmail import Outbox

store, receipts, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
chance = random.Random(seed)
relays = ({}, {"relay": "null:"})
boxes = [Outbox(store, exit_wait=chance.choice((0, 0.3)), **chance.choice(relays))]
guard = threading.Lock()
file = os.open(receipts, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

def send(box, count):
    for _ in range(count):
        with guard:
            many = chance.random() < 0.1
        item = {"to": "u@x.test", "subject": "s", "text": "t", "sender": "a@x.test"}
        got = box.send_many([item] * 40) if many else [box.send(**item)]
        os.write(file, "".join(one.id + "\n" for one in got).encode())

def threads(count, each):
    running = [threading.Thread(target=send, args=(chance.choice(boxes), each)) for _ in range(count)]
    for thread in running: thread.start()
    if chance.random() < 0.3: fork(0)
    for thread in running: thread.join()

def fork(depth):
    global guard
    child = os.fork()
    if child:
        children.append(child)
        return
    guard = threading.Lock()
    chance.seed(os.getpid() * 7919 + depth)
    children.clear()
    work(depth + 1)
    if chance.random() < 0.3: os.kill(os.getpid(), signal.SIGKILL)
    os._exit(0) if chance.random() < 0.5 else end()

def end():
    for box in boxes: box.close()
    sys.exit(0)

def work(depth):
    for _ in range(chance.randint(1, 6)):
        what = chance.random()
        if what < 0.4: send(chance.choice(boxes), chance.randint(1, 15))
        elif what < 0.6: threads(chance.randint(2, 5), chance.randint(1, 10))
        elif what < 0.75 and depth < 3: fork(depth)
        elif what < 0.85: boxes.append(Outbox(store, exit_wait=0, **chance.choice(relays)))
        elif what < 0.95 and len(boxes) > 1: boxes.pop(chance.randrange(len(boxes))).close()
        else: time.sleep(chance.random() * 0.05)

children = []
work(0)
if chance.random() < 0.2: os.kill(os.getpid(), signal.SIGKILL)
for box in boxes if chance.random() < 0.5 else (): box.close()
for child in children: os.waitpid(child, 0)
"""

READER = r"""
import sys
from outmail.model import Filter
from outmail.wiring import open_store
store = open_store(sys.argv[1])
lost = [id for id in open(sys.argv[2]).read().split() if store.read(store.verbs.seq_of(id)) is None]
print(len(lost), *store.check())
"""


def one_round(folder: Path, url: str, seed: int) -> tuple[int, str]:
    """(receipts, what is wrong or "")."""
    store = url if url.startswith("postgres") else f"{url}{folder}/q.db"
    environment = {**os.environ, "XDG_STATE_HOME": str(folder)}
    programs = []
    for i in range(random.Random(seed).randint(2, 4)):
        with open(folder / f"log.{i}", "wb") as log:
            programs.append(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, store, str(folder / f"receipts.{i}"), str(seed * 10 + i)],
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
    problems = []
    for i, program in enumerate(programs):
        try:
            status = program.wait(90)
        except subprocess.TimeoutExpired:
            problems.append(f"program {i} hangs")
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()
            continue
        if status not in (0, -signal.SIGKILL):
            problems.append(f"program {i} ended with {status}")
        _others_end(program.pid)
    ids = [line for path in folder.glob("receipts.*") for line in path.read_text().split()]
    (folder / "all").write_text("\n".join(ids))
    found = subprocess.run(
        [sys.executable, "-c", READER, store, str(folder / "all")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if found.stdout.strip() != "0":
        problems.append(f"missing, wrong: {found.stdout}{found.stderr}")
    logs = "".join(path.read_text() for path in sorted(folder.glob("log.*")))
    if "Traceback" in logs or "bug" in logs:
        problems.append(logs[-3000:])
    return len(ids), "\n".join(problems)


def _others_end(group: int) -> None:
    """Children whose parent was killed."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    os.killpg(group, signal.SIGKILL)


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--minutes", type=float, default=3.0)
    arguments.add_argument("--seed", type=int, default=int(time.time()))
    arguments.add_argument("--server", choices=sorted(pgserver.installed(), key=int))
    options = arguments.parse_args()
    server = (
        pgserver.PgServer(pgserver.installed()[options.server], settings="max_connections = 400").start()
        if options.server
        else None
    )
    try:
        return rounds(server, options.seed, time.monotonic() + options.minutes * 60)
    finally:
        if server is not None:
            server.remove()


def rounds(server: pgserver.PgServer | None, seed: int, end: float) -> int:
    """Exit status."""
    print(f"seeds from {seed}", flush=True)
    receipts = done = 0
    while time.monotonic() < end:
        url = server.create(f"round{seed}") if server else ("sqlite:", "sqlite+stdlib:")[seed % 2]
        with tempfile.TemporaryDirectory(prefix="outmail-programs-") as folder:
            count, wrong = one_round(Path(folder), url, seed)
        receipts, done = receipts + count, done + 1
        if wrong:
            print(f"seed {seed}, {url}: {count} receipts\n{wrong}")
            return 1
        seed += 1
    print(f"{done} rounds, {receipts:,} receipts, all of them found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
