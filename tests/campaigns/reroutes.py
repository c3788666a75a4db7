"""The campaign of other routes: at random moments mail is rerouted, retried, held, released, cancelled, and
engines die by SIGKILL.

Run: python tests/campaigns/reroutes.py --kills 30. Prints the seed.
Exit status 0 only if every message ended as delivered or cancelled, arrived once unless it is marked
uncertain, and arrived where its record says; and if each recipient's events are a walk over the lifecycle's
arrows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from outmail import lifecycle
from outmail.model import Status
from outmail.outbox.outbox import Outbox
from outmail.outbox.queue import Queue
from outmail.testing import Sink

SCRIPT = (
    "CONNECT: 421 4.3.2 not now 1/10\nRCPT: 451 4.7.1 later 1/4\nDOT: take-and-drop 1/30\nDOT: 451 4.3.0 "
    "later 1/10\nDOT: delay 0.02 1/2"
)


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--kills", type=int, default=30)
    arguments.add_argument("--messages", type=int, default=1000)
    arguments.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = arguments.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="outmail-reroutes-") as folder:
        bad, states = campaign(Path(folder), options.kills, options.messages, options.seed)
    print(json.dumps({"states": states, "bad": bad}, indent=1))
    return 1 if bad else 0


def campaign(
    folder: Path, kills: int, count: int, seed: int, store: str = ""
) -> tuple[list[str], dict[str, int]]:
    """(what went wrong, how many recipients ended how)."""
    chance = random.Random(seed)
    with Sink(SCRIPT, seed=seed) as one, Sink(SCRIPT, seed=seed + 1) as other:
        settings = folder / "outmail.toml"
        settings.write_text(
            f'relay = "{one.url}"\n[relays.other]\nurl = "{other.url}"\n[retry]\nschedule = "50ms…"\n'
        )
        box = Outbox(store or folder / "q.db", config=str(settings), deliver="never")
        ids = [r.id for r in box.send_many(_message(i) for i in range(count))]
        for _ in range(kills):
            engine = _engine(box, settings, folder)
            for _ in range(chance.randrange(4, 12)):
                time.sleep(chance.random() * 0.1)
                _meddle(box.queue, chance.choice(ids), chance)
            engine.send_signal(signal.SIGKILL)
            engine.wait()
        _until_all_is_final(box, settings, folder, count)
        bad = judge(box, ids, {"default": one, "other": other})
        states: Counter[str] = Counter(r.state for id in ids for r in box.status(id).recipients)
        box.close()
    return bad, dict(states)


def _message(i: int) -> dict[str, Any]:
    to = [f"{name}{i}@x.test" for name in ("a", "b")[: 1 + i % 2]]
    return {"to": to, "subject": f"s{i}", "text": "t", "sender": "me@x.test"}


def _engine(box: Outbox, settings: Path, folder: Path) -> subprocess.Popen[bytes]:
    with open(folder / "engine.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "outmail", "run", "--config", str(settings), "--store", box.store.url],
            stderr=log,
            env=dict(os.environ),
        )


def _meddle(queue: Queue, id: str, chance: random.Random) -> None:
    what = chance.choice((id, f"{id}/1", f"subject:s{chance.randrange(10)}"))
    verb = chance.choice(("reroute", "reroute", "reroute", "retry", "hold", "release", "cancel", "requeue"))
    if verb == "reroute":
        queue.reroute(what, chance.choice(("default", "other", "other,default")))
    else:
        getattr(queue, verb)(id if verb == "cancel" else what)


def _until_all_is_final(box: Outbox, settings: Path, folder: Path, count: int) -> None:
    engine = _engine(box, settings, folder)
    deadline = time.monotonic() + 30 + count / 20
    while time.monotonic() < deadline and next(iter(box.find("is:live")), None):
        box.release("state:held")
        box.retry("state:queued")
        time.sleep(0.05)
    engine.send_signal(signal.SIGTERM)
    engine.wait(60)


def judge(box: Outbox, ids: list[str], sinks: dict[str, Sink]) -> list[str]:
    """Compare the store's word with what the sinks took."""
    got: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in sinks}
    for name, sink in sinks.items():
        for message in sink.messages:
            message_id = message.content.split(b"Message-ID: ", 1)[1].split(b"\r\n", 1)[0].decode()
            got[name].update((message_id, address) for address in message.recipients)
    bad = _illegal(box)
    for id in ids:
        bad += _wrong(box.status(id), got)
    return bad


def _wrong(status: Status, got: dict[str, Counter[tuple[str, str]]]) -> list[str]:
    found = []
    for r in status.recipients:
        copies = {name: took[status.message_id, r.address] for name, took in got.items()}
        where = [name for name, n in copies.items() if n]
        if r.state not in ("delivered", "cancelled"):
            found.append(f"{r.address} ended {r.state}: {r.reason}")
        if r.state == "delivered" and not where:
            found.append(f"{r.address} is lost")
        if not r.uncertain and sum(copies.values()) != (r.state == "delivered"):
            found.append(f"{r.address} arrived {copies} and is {r.state}, without the mark")
        if r.state == "delivered" and not r.uncertain and not set(where) <= set(r.route.split(",")):
            found.append(f"{r.address} arrived by {where}, the record says {r.route}")
    return found


#: Where a recipient may be by the next event: leases and returns write none.
_MEANWHILE: dict[str, set[lifecycle.State]] = {
    "queued": {"queued", "sending"},
    "sending": {"sending", "queued", "held", "cancelled"},
}


def _illegal(box: Outbox) -> list[str]:
    """Events that no walk over the arrows gives."""
    found = []
    states: dict[tuple[str, int], lifecycle.State] = {}
    for event in box.events():
        if event.n is None or event.id is None or event.state is None:
            continue
        before = states.get((event.id, event.n), "queued")
        arrows = lifecycle.ARROWS[event.event]
        if not any(event.state in arrows.get(one, ()) for one in _MEANWHILE.get(before, {before})):
            found.append(f"{event.id}/{event.n}: {event.event} from {before} to {event.state}")
        states[event.id, event.n] = event.state
    return found


if __name__ == "__main__":
    sys.exit(main())
