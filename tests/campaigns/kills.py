"""The kill campaign: engines die by SIGKILL at random moments, and accepted = delivered + still queued, every
double marked.

Run: python tests/campaigns/kills.py --kills 500 [--store maildir]. Prints the seed; writes
soak-kills.json beside the caller. Exit status 0 only if nothing was lost, no byte changed, and whoever got a
message twice carries the uncertain mark.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from outmail.outbox.outbox import Outbox
from outmail.testing import Sink

SCRIPT = (
    "RCPT refused*: 550 5.1.1 no\nRCPT slow*: 451 4.7.1 later 1/3\nDOT: take-and-drop 1/200\nDOT: 451 "
    "4.3.0 later 1/50\nDOT: delay 0.01 1/3"
)


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--kills", type=int, default=500)
    arguments.add_argument("--messages", type=int, default=0)
    arguments.add_argument("--seed", type=int, default=None)
    arguments.add_argument("--store", choices=("sqlite", "maildir"), default="sqlite")
    options = arguments.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    count = options.messages or options.kills * 40
    with tempfile.TemporaryDirectory(prefix="outmail-kills-") as folder, Sink(SCRIPT, seed=seed) as sink:
        place = f"{folder}/q.db" if options.store == "sqlite" else f"maildir:{folder}/spool"
        return campaign(Path(folder), place, sink, options.kills, count, random.Random(seed), seed)


def campaign(
    folder: Path, store: str, sink: Sink, kills: int, count: int, chance: random.Random, seed: int
) -> int:
    settings = folder / "outmail.toml"
    settings.write_text('[retry]\nschedule = "200ms…"\n')
    began = time.monotonic()
    box = Outbox(store, config=str(settings), relay=sink.url, deliver="never")
    ids: list[str] = []
    done = 0
    while done < kills:
        ids += [r.id for r in box.send_many(_message(len(ids) + i) for i in range(max(1, count // kills)))]
        engine = _engine(store, settings, folder)
        before = sink.count
        deadline = time.monotonic() + 20
        while sink.count == before and time.monotonic() < deadline and engine.poll() is None:
            time.sleep(0.002)  # it has begun to deliver: now any moment is as good as any other
        time.sleep(chance.random() ** 2 * 0.15)
        engine.send_signal(signal.SIGKILL)
        engine.wait()
        done += 1
        if done % 50 == 0:
            print(f"{done} kills, {len(ids)} messages, {sink.count} transmissions", flush=True)
    box.release("state:held")
    engine = _engine(store, settings, folder)
    deadline = time.monotonic() + 120 + count / 100
    while time.monotonic() < deadline and next(iter(box.find("-state:delivered -state:failed")), None):
        time.sleep(0.5)
        box.release("state:held")
        box.retry("state:queued")  # a second loss would wait for a minute
    engine.send_signal(signal.SIGTERM)
    engine.wait(60)
    result = judge(box, ids, sink)
    if found := box.store.check():
        result["bad"] = {**dict(result["bad"]), "store": found}  # type: ignore[call-overload]
    result |= {
        "store": store.partition(":")[0] if ":" in store else "sqlite",
        "kills": kills,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
    }
    print(json.dumps(result, indent=1))
    if kills >= 100:
        Path("soak-kills.json").write_text(json.dumps(result, indent=1) + "\n")
    if result["bad"]:
        print((folder / "engine.log").read_text()[-3000:], file=sys.stderr)
    return 1 if result["bad"] else 0


def _message(i: int) -> dict[str, object]:
    to = (
        [f"u{i}@x.test"]
        + ([f"second{i}@x.test"] if i % 3 == 0 else [])
        + ([f"slow{i}@x.test"] if i % 5 == 0 else [])
        + ([f"refused{i}@x.test"] if i % 7 == 0 else [])
    )
    return {"to": to, "subject": f"s{i}", "text": f".{i}\n" * (i % 50), "sender": "me@x.test"}


def _engine(store: str, settings: Path, folder: Path) -> subprocess.Popen[bytes]:
    with open(folder / "engine.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "outmail", "run", "--config", str(settings), "--store", store],
            stderr=log,
            env=dict(os.environ),
        )


def judge(box: Outbox, ids: list[str], sink: Sink) -> dict[str, object]:
    """Compare the store's word with what the sink took."""
    statuses = {box.status(id).message_id: box.status(id) for id in ids}
    got: Counter[tuple[str, str]] = Counter()
    altered = 0
    for message in sink.messages:
        message_id = message.content.split(b"Message-ID: ", 1)[1].split(b"\r\n", 1)[0].decode()
        altered += box.content(statuses[message_id].id) != message.content
        for address in message.recipients:
            got[message_id, address] += 1
    states: Counter[str] = Counter()
    lost, unmarked, wrong, doubles, marked = [], [], [], 0, 0
    for message_id, status in statuses.items():
        for r in status.recipients:
            copies = got[message_id, r.address]
            states[r.state] += 1
            marked += r.uncertain
            doubles += copies > 1
            if r.state == "delivered" and not copies:
                lost.append(r.address)
            if copies > 1 and not r.uncertain:
                unmarked.append(r.address)
            if r.state not in ("delivered", "failed") or (r.state == "failed") != r.address.startswith(
                "refused"
            ):
                wrong.append(f"{r.address} {r.state} {r.reason}")
    bad = {
        name: found
        for name, found in (
            ("lost", lost),
            ("unmarked doubles", unmarked),
            ("wrong end", wrong[:20]),
            ("altered", altered),
        )
        if found
    }
    return {
        "messages": len(ids),
        "states": dict(states),
        "transmissions": len(sink.messages),
        "doubles": doubles,
        "marked": marked,
        "bad": bad,
    }


if __name__ == "__main__":
    sys.exit(main())
