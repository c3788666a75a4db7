"""The service under SMTP load: killed at random moments, and memory at full load.

Run: python tests/campaigns/listening.py --kills 200, or --minutes 10. Clients hand mail in by SMTP and note
what was answered with 250. Exit status 0 only if everything accepted came out at the relay, whoever got a
message twice carries the uncertain mark (or the client handed it in twice, because the answer was lost), and,
with --minutes, the service's memory does not grow. Writes soak-listening.json or soak-memory.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from outmail.outbox.outbox import Outbox
from outmail.testing import Sink


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--kills", type=int, default=200)
    arguments.add_argument("--minutes", type=float, default=0.0)
    arguments.add_argument("--seed", type=int, default=None)
    options = arguments.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="outmail-listening-") as folder:
        result = (
            memory(Path(folder), options.minutes)
            if options.minutes
            else kills(Path(folder), options.kills, random.Random(seed))
        )
    result |= {
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
    }
    print(json.dumps(result, indent=1))
    if options.kills >= 100 or options.minutes >= 10:
        Path("soak-memory.json" if options.minutes else "soak-listening.json").write_text(
            json.dumps(result, indent=1) + "\n"
        )
    return 1 if result["bad"] else 0


class Service:
    """`outmail run` listening on one port, started as often as needed."""

    def __init__(self, folder: Path, relay: str) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.folder = folder
        (folder / "outmail.toml").write_text(
            f'store = "q.db"\nrelay = "{relay}"\n[retry]\nschedule = "200ms…"\n[listen]\nsmtp = '
            f'["127.0.0.1:{self.port}"]\n'
        )
        self.start()

    def start(self) -> None:
        with open(self.folder / "service.log", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "outmail", "run", "--config", "outmail.toml"],
                cwd=self.folder,
                stderr=log,
                env=dict(os.environ),
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError((self.folder / "service.log").read_text()[-2000:])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(90)

    @property
    def resident(self) -> int:
        """MB."""
        words = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(words[1]) * os.sysconf("SC_PAGE_SIZE") // 1_048_576


def kills(folder: Path, times: int, chance: random.Random) -> dict[str, object]:
    with Sink(
        "DOT: take-and-drop 1/300\nDOT: 451 4.3.0 later 1/60\nDOT: delay 0.005 1/3",
        seed=chance.randrange(1 << 30),
    ) as sink:
        service = Service(folder, sink.url)
        accepted: list[str] = []
        offered: Counter[str] = Counter()
        over = threading.Event()

        def client(number: int) -> None:
            i = 0
            while not over.is_set():
                i += 1
                name, done = f"{number}-{i}", False
                # what was not answered is handed in again, as a mail server would
                while not done and not over.is_set():
                    try:
                        with smtplib.SMTP("127.0.0.1", service.port, timeout=10) as line:
                            offered[name] += 1
                            line.sendmail(
                                "a@x.test",
                                [f"{name}@x.test"],
                                f"Subject: {name}\r\n\r\n{'x' * (i % 3000)}\r\n".encode(),
                            )
                            accepted.append(name)
                            done = True
                    except (OSError, smtplib.SMTPException):
                        time.sleep(0.01)

        threads = [threading.Thread(target=client, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for done in range(1, times + 1):
            before = len(accepted)
            deadline = time.monotonic() + 20
            while len(accepted) < before + 3 and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(chance.random() ** 2 * 0.15)
            service.kill()
            service.start()
            if done % 25 == 0 or os.environ.get("TALK"):
                print(f"{done} kills, {len(accepted)} accepted, {sink.count} transmissions", flush=True)
        over.set()
        for thread in threads:
            thread.join(30)
        box = Outbox(folder / "q.db", deliver="never")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and next(iter(box.find("is:live")), None):
            box.release("state:held")
            time.sleep(0.1)
        status = service.stop()
        result = judge(box, accepted, offered, sink)
        box.close()
        return {"kills": times, "exit": status, **result}


def judge(box: Outbox, accepted: list[str], offered: Counter[str], sink: Sink) -> dict[str, object]:
    got: Counter[str] = Counter(address.partition("@")[0] for m in sink.messages for address in m.recipients)
    stored: Counter[str] = Counter()
    marked: Counter[str] = Counter()
    waiting = []
    for status in box.find():
        for r in status.recipients:
            name = r.address.partition("@")[0]
            stored[name] += 1
            marked[name] += r.uncertain
            if r.state != "delivered":
                waiting.append(f"{name} {r.state} {r.reason}")
    lost = [name for name in accepted if not got[name]]
    unmarked = [name for name, copies in got.items() if copies > stored[name] and not marked[name]]
    invented = [name for name in stored if stored[name] > offered[name]]
    bad = {
        what: found[:20]
        for what, found in (
            ("lost", lost),
            ("unmarked doubles", unmarked),
            ("stored more often than offered", invented),
            ("not delivered", waiting),
        )
        if found
    }
    return {
        "accepted": len(accepted),
        "stored": sum(stored.values()),
        "transmissions": len(sink.messages),
        "doubles": sum(c > stored[n] for n, c in got.items()),
        "marked": sum(marked.values()),
        "bad": bad,
    }


def memory(folder: Path, minutes: float) -> dict[str, object]:
    """Full load from smtp-source to smtp-sink (Debian's package postfix); resident memory every second, the
    first minute left out.
    """
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from bench import lab

    if not shutil.which("smtp-source", path=f"{os.environ.get('PATH', '')}:{lab.SBIN}"):
        sys.exit("smtp-source is needed: Debian's package postfix")
    sink = lab.SinkProcess()
    service = Service(folder, f"smtp://127.0.0.1:{sink.port}")
    seen: list[int] = []
    load = subprocess.Popen(
        [
            lab.tool("smtp-source"),
            "-s",
            "20",
            "-l",
            "4096",
            "-d",
            "-m",
            "100000000",
            "-f",
            "a@x.test",
            "-t",
            "b@x.test",
            f"127.0.0.1:{service.port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    began = time.monotonic()
    try:
        while time.monotonic() - began < minutes * 60:
            time.sleep(1.0)
            seen.append(service.resident)
            if len(seen) % 60 == 0:
                print(f"{len(seen) // 60} minutes, {sink.count} messages, {seen[-1]} MB", flush=True)
    finally:
        load.kill()
        load.wait()
        status = service.stop()
        count = sink.count
        sink.close()
    steady = seen[min(60, len(seen) // 4) :]
    third = max(1, len(steady) // 3)
    first, last = max(steady[:third]), max(steady[-third:])
    grown = {"memory grew": [first, last]} if last > first * 1.1 + 5 else {}
    return {
        "minutes": minutes,
        "messages": count,
        "exit": status,
        "MB after a minute": steady[0],
        "MB at most": max(seen),
        "MB at the end": seen[-1],
        "bad": grown,
    }


if __name__ == "__main__":
    sys.exit(main())
