"""Jobs as programs have them: in threads and forked processes, at odd rates, that fail, are ended and killed,
with a store and a relay that refuse at times. Every end is told exactly once, by one way, with true numbers.

Run: python tests/campaigns/reports.py [--minutes 1] [--seed N]. Each program writes down what it really did.
Afterwards all that could have told its end is read: the relay's mails, what waits in the queue, what the
sendmail program got, the lines of syslog. Exit status 0 only if nothing was missing, double or wrong.
"""

from __future__ import annotations

import argparse
import email
import email.policy
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from outmail import Outbox
from outmail.reports import watchdog
from outmail.testing import Sink

PROGRAM = r"""
import json, os, random, signal, sys, threading, time
import outmail
from outmail.reports import lastresort
from outmail.store import StoreError

folder, store, relay, name, seed = sys.argv[1:]
lastresort.PROGRAMS, lastresort.SYSLOG = (folder + "/sendmail",), (folder + "/log",)
chance = random.Random(int(seed))
box = outmail.Outbox(store, relay=relay, exit_wait=3)
refuses, run = False, box.store.run

def refusing(verb, wait=30.0):
    if refuses: raise StoreError("full", "the disk is full", 28)
    return run(verb, wait)

box.store.run = refusing
total = chance.choice((None, 500))
every = chance.choice((None, 40))
job = outmail.job(name, total, outbox=box, to="me@x.test", every=every, min_interval="", bar=False)
done, began = 0, time.monotonic()
if chance.random() < 0.5: job.start()

def count(n, pause):
    for _ in range(n):
        job.update()
        if pause: time.sleep(pause)

for _ in range(chance.randint(1, 4)):
    refuses = chance.random() < 0.4
    n, pause, how = chance.randint(1, 40), chance.choice((0, 0.001, 0.01)), chance.random()
    if chance.random() < 0.1: n, pause = 60, 0.1  # long enough for a rate
    if how < 0.3 and job.state != "new":
        children = []
        for _ in range(2):
            pid = os.fork()
            if not pid:
                count(n, pause)
                os.kill(os.getpid(), signal.SIGKILL) if chance.random() < 0.5 else os._exit(0)
            children.append(pid)
        for pid in children: os.waitpid(pid, 0)
        done += 2 * n
    elif how < 0.6:
        threads = [threading.Thread(target=count, args=(n, pause)) for _ in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        done += 3 * n
    else:
        count(n, pause)
        done += n

end = chance.choice(("finished", "failed", "stopped", "killed", "signal"))
if end == "killed": time.sleep(2.2)  # numbers of the last second are known
with open(f"{folder}/{name}.truth", "w") as file:
    # a job that began in another thread has no handler for SIGTERM
    watched = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    seconds = time.monotonic() - began
    json.dump({"done": done, "total": total, "end": end, "watched": watched, "seconds": seconds}, file)
if end == "killed": os.kill(os.getpid(), signal.SIGKILL)
if end == "signal":
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
if end == "finished": job.finish() if chance.random() < 0.7 else sys.exit(0)
if end == "failed": job.fail("out of luck") if chance.random() < 0.5 else job.close(ValueError("out of luck"))
if end == "stopped": job.close(SystemExit(3) if chance.random() < 0.5 else KeyboardInterrupt())
"""

SENDMAIL = """#!/bin/sh
exec cat > "$(mktemp {}/taken.XXXXXX)"
"""
#: How an end is called in a mail.
WORDS = {"killed": "dead", "signal": "stopped"}
ENDS = ("finished", "failed", "stopped", "dead")


def one_round(folder: Path, sink: Sink, seed: int, count: int) -> tuple[Counter[str], list[str]]:
    """(how often each way was taken, what is wrong) of ``count`` programs at the same time."""
    store = str(folder / "q.db")
    (folder / "sendmail").write_text(SENDMAIL.format(folder))
    (folder / "sendmail").chmod(0o755)
    chance = random.Random(seed)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(folder / "log"))
        log.setblocking(False)
        if chance.random() < 0.5:
            (folder / "sendmail").unlink()
        programs = []
        for i in range(count):
            relay = sink.url if chance.random() < 0.6 else "smtp://127.0.0.1:1"
            words = [str(folder), store, relay, f"job{i}", str(seed * 100 + i)]
            with open(folder / f"stderr.{i}", "wb") as errors:
                programs.append(
                    subprocess.Popen([sys.executable, "-c", PROGRAM, *words], stdout=errors, stderr=errors)
                )
        for program in programs:
            program.wait(90)
        with Outbox(store, relay=sink.url, exit_wait=10) as box:
            watchdog.look(box)
            told = list(_mails(folder, sink, box))
        lines = list(_lines(log))
    ways: Counter[str] = Counter()
    problems = []
    for i in range(count):
        truth = json.loads((folder / f"job{i}.truth").read_text())
        found = [one for one in told if one["name"] == f"job{i}"]
        ways.update(one["way"] for one in found)
        logged = [line for line in lines if f"job{i} " in line]
        ways["syslog"] += len(logged)
        said = (folder / f"stderr.{i}").read_text()
        for problem in _judged(truth, found, logged, said):
            problems.append(f"seed {seed}, job{i}: {problem}\n  {truth}\n  {found}\n  {said[-1500:]}")
    return ways, problems


def _judged(
    truth: dict[str, Any], found: list[dict[str, Any]], logged: list[str], said: str
) -> Iterator[str]:
    ends = [one for one in found if one["state"] in ENDS]
    if len(ends) + len(logged) != 1:
        yield f"its end was told {len(ends)} times by mail, {len(logged)} times by syslog"
    unseen = truth["end"] == "signal" and not truth["watched"]
    for one in ends:
        if one["state"] != ("dead" if unseen else WORDS.get(truth["end"], truth["end"])):
            yield f"{truth['end']}, but it was told {one['state']}"
        if one["done"] != truth["done"] and not unseen:
            yield f"{truth['done']} were done, and {one['done']} told"
        if one["rate"] and not 0.7 < one["rate"] / (truth["done"] / truth["seconds"]) < 1.5:
            yield f"{truth['done'] / truth['seconds']:.1f}/s, and {one['rate']}/s was told"
    if any(one["done"] is not None and one["done"] > truth["done"] for one in found):
        yield "more was told than was done"
    if "Traceback" in said or " bug" in said:
        yield "an error of ours"


def _mails(folder: Path, sink: Sink, box: Outbox) -> Iterator[dict[str, Any]]:
    deadline = time.monotonic() + 20
    waiting = "state:queued -route:smtp://127.0.0.1:1"
    while time.monotonic() < deadline and list(box.find(waiting)):
        time.sleep(0.05)
    for message in sink.messages:
        yield _read(message.content, "relay")
    for status in box.find("state:queued"):
        yield _read(box.content(status.id), "queue")
    for path in folder.glob("taken.*"):
        yield _read(path.read_bytes(), "sendmail")


def _read(content: bytes, way: str) -> dict[str, Any]:
    mail = email.message_from_bytes(content, policy=email.policy.default)
    part = mail.get_body(("plain",))
    text = str(part.get_content()) if part is not None else ""
    done = re.search(r"%: ([\d,]+) of|Done(?: then)? +([\d,]+)", text)
    rate = re.search(r"Rate .*?([\d.,]+)/s on average", text)
    return {
        "name": mail["x-outmail-job"],
        "state": mail["x-outmail-state"],
        "way": way,
        "done": int((done[1] or done[2]).replace(",", "")) if done else None,
        "rate": float(rate[1].replace(",", "")) if rate else None,
    }


def _lines(log: socket.socket) -> Iterator[str]:
    while True:
        try:
            yield log.recv(65536).decode()
        except BlockingIOError:
            return


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--minutes", type=float, default=1.0)
    arguments.add_argument("--rounds", type=int, default=0)
    arguments.add_argument("--programs", type=int, default=4)
    arguments.add_argument("--seed", type=int, default=int(time.time()))
    options = arguments.parse_args()
    deadline, seed, ways, bad = time.monotonic() + options.minutes * 60, options.seed, Counter[str](), []
    rounds = 0
    while rounds < options.rounds if options.rounds else time.monotonic() < deadline:
        with tempfile.TemporaryDirectory() as folder, Sink() as sink:
            found, problems = one_round(Path(folder), sink, seed, options.programs)
        ways.update(found)
        bad += problems
        rounds, seed = rounds + 1, seed + 1
        print(f"round {rounds}, seed {seed - 1}: {dict(found)}, {len(problems)} wrong", file=sys.stderr)
    print(json.dumps({"rounds": rounds, "seed": options.seed, "ways": ways, "bad": bad}, indent=1))
    return 1 if bad else 0


if __name__ == "__main__":
    os.environ.pop("OUTMAIL_CONFIG", None)
    sys.exit(main())
