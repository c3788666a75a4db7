"""The campaign of moves: ``outmail move`` between each two kinds of store, killed by SIGKILL again and again.

Run: python tests/campaigns/moves.py [--kills 4] [--seed N]. Each move is killed so often, at random moments,
and then let finish. Prints the seed. Exit status 0 only if the new store has every message with its content,
recipients and states, and nothing else; the old one is empty; and neither store's check complains.
Without PostgreSQL's programs only SQLite and Maildir spools are moved.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import permutations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from outmail.config import from_toml
from outmail.outbox.outbox import Outbox
from tests import pgserver

CONFIG = from_toml('from = "me@x.test"', "moves", {})
MESSAGES = 2000
#: Seconds after which a move that is not killed is taken for stuck.
PATIENCE = 300


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--kills", type=int, default=4)
    arguments.add_argument("--seed", type=int, default=None)
    options = arguments.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"moves: seed {seed}", flush=True)
    chance, wrong, killed = random.Random(seed), 0, 0
    kinds = ["sqlite", "maildir", *(["postgresql"] if pgserver.installed() else [])]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outmail-moves-")))
        for number, (one, other) in enumerate(permutations(kinds, 2)):
            old, new = (_store(stack, folder, kind, f"{number}-{kind}") for kind in (one, other))
            before = _fill(old, chance)
            kills = _move(folder, old, new, options.kills, chance)
            killed += kills
            problems = _problems(old, new, before)
            wrong += len(problems)
            print(f"{one} to {other}: {kills} kills", *problems[:5], sep="; ", flush=True)
    print(f"moves: {killed} kills, {wrong} wrong")
    return min(wrong, 1)


def _store(stack: contextlib.ExitStack, folder: Path, kind: str, name: str) -> str:
    if kind == "postgresql":
        return stack.enter_context(pgserver.database(max(pgserver.installed(), key=int)))
    return f"{folder}/{name}.db" if kind == "sqlite" else f"maildir:{folder}/{name}"


def _fill(url: str, chance: random.Random) -> dict[str, Any]:
    with Outbox(url, config=CONFIG, deliver="never", relay="null:") as box:
        ids = [
            receipt.id
            for _ in range(MESSAGES // 500)
            for receipt in box.send_many(
                {"to": [f"u{i}@x.test", f"v{i}@x.test"], "subject": "s", "text": "x" * chance.randrange(3000)}
                for i in range(500)
            )
        ]
        for id in chance.sample(ids, 20):
            chance.choice((box.hold, box.cancel))(f"{id}/{chance.choice((1, 2))}")
        return _everything(box)


def _everything(box: Outbox) -> dict[str, Any]:
    """Message → what is known of it, but when it is tried: what was due is due at the moment of the move."""
    found = {}
    for status in box.find():
        known = status.as_dict()
        for recipient in known["recipients"]:
            del recipient["next_try_at"]
        found[status.id] = known, box.content(status.id)
    return found


def _move(folder: Path, old: str, new: str, kills: int, chance: random.Random) -> int:
    """How often it was killed before it was through."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OUTMAIL_")}
    env |= {name: str(folder) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME")}
    words = [sys.executable, "-m", "outmail", "move", old, new]
    for number in range(kills):
        with subprocess.Popen(words, env=env, stderr=subprocess.PIPE) as process:
            deadline = time.monotonic() + 0.3 + chance.random()
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            process.kill()
        if process.returncode == 0:
            return number
    subprocess.run(words, env=env, stderr=subprocess.PIPE, timeout=PATIENCE, check=True)
    return kills


def _problems(old: str, new: str, before: dict[str, Any]) -> list[str]:
    with Outbox(new, config=CONFIG, deliver="never") as box:
        after, problems = _everything(box), [f"check: {one}" for one in box.store.check()]
    with Outbox(old, config=CONFIG, deliver="never") as box:
        problems += [f"{status.id} is still in the old store" for status in box.find()]
        problems += [f"check of the old store: {one}" for one in box.store.check()]
    return problems + [
        f"{id} is not what it was" for id in before.keys() | after.keys() if before.get(id) != after.get(id)
    ]


if __name__ == "__main__":
    sys.exit(main())
