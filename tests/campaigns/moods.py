"""Servers of every mood: they refuse what is sent ahead, answer late or byte by byte, hang up, refuse a
recipient. Nothing may be lost for it.

Run: python tests/campaigns/moods.py [--minutes 10] [--seed N]. Each round has a server with a mood of its own
(`tests.moody`) and a program that sends to it at random: one by one, many at once, to several recipients,
from several threads, in two runs. Prints the seed; writes soak-moods.json beside the caller. Exit status 0
only if every recipient came, but for those that the server refused for their own sake; nobody came twice
without the uncertain mark; and nobody was refused an attempt for what was sent ahead.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from outmail.config import from_toml
from outmail.outbox.outbox import Outbox
from tests.moody import Moody

#: What a server says to what is sent ahead; "" takes it.
AHEAD = (
    "",
    "503 5.5.1 wait for your turn",
    "500 what?",
    "502 not now",
    "421 4.7.0 too early",
    "550 5.5.1 wrong",
    "close",
    "hang-up",
    "silence",
)
SETTINGS = (
    'from = "me@x.test"\n[relay]\nurl = "{url}"\ntimeout = 1\ndot_timeout = 3\n[retry]\nschedule = '
    '"100ms, 300ms…"\n'
)


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--minutes", type=float, default=10)
    arguments.add_argument("--seed", type=int, default=None)
    options = arguments.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    logging.getLogger("outmail").setLevel(logging.ERROR)
    began, total, bad = time.monotonic(), Counter[str](), []
    while time.monotonic() - began < options.minutes * 60:
        chance = random.Random(seed + total["rounds"])
        mood = moods(chance)
        with tempfile.TemporaryDirectory(prefix="outmail-moods-") as folder:
            found, wrong = one_round(Path(folder), mood, chance)
        total["rounds"] += 1
        total.update(found)
        if wrong:
            bad.append(
                {
                    "seed": seed + total["rounds"] - 1,
                    "mood": {name: getattr(value, "__name__", value) for name, value in mood.items()},
                    "wrong": wrong[:10],
                }
            )
            print(json.dumps(bad[-1], indent=1), flush=True)
        if total["rounds"] % 25 == 0:
            print(
                f"{total['rounds']} rounds, {total['recipients']} recipients, {total['refused_ahead']} "
                f"refusals of what was sent ahead",
                flush=True,
            )
    result = dict(total) | {
        "bad": bad,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
    }
    print(json.dumps(result, indent=1))
    if options.minutes >= 1:
        Path("soak-moods.json").write_text(json.dumps(result, indent=1) + "\n")
    return 1 if bad else 0


def moods(chance: random.Random) -> dict[str, Any]:
    """How this round's server is."""
    ahead = chance.choice(AHEAD)
    return {
        "ahead": ahead,
        "after": chance.choice((0, 0, 1, 5)),
        "odds": chance.choice((1.0, 1.0, 0.2, 0.02)),
        "seed": chance.randrange(1 << 30),
        "cut": chance.choice((0, 0, 3, 9, 30)) if ahead[:1] == "5" else 0,
        "takes_the_rest": ahead.startswith("550") or (ahead[:1] == "5" and chance.random() < 0.2),
        "messages": chance.choice((0, 0, 0, 1, 7, 50)),
        "late": chance.choice((0.0, 0.0, 0.002, 0.02)),
        "bytewise": chance.random() < 0.3,
        "judge": chance.choice((_takes, _judges)),
    }


def _takes(address: str, times: int) -> str:
    return ""


def _judges(address: str, times: int) -> str:
    """Some recipients are refused for ever, some at first."""
    if address.startswith("refused"):
        return "550 5.1.1 nobody"
    return "451 4.7.1 later" if address.startswith("slow") and times < 2 else ""


def one_round(folder: Path, mood: dict[str, Any], chance: random.Random) -> tuple[dict[str, int], list[str]]:
    """Send, wait until everything is settled, compare."""
    judge, asked = mood["judge"], Counter[str]()

    def said(address: str) -> str:
        asked[address] += 1
        return str(judge(address, asked[address] - 1))

    server = Moody(**(mood | {"judge": said})).start()
    try:
        ids: list[str] = []
        for _ in range(2):  # the second run knows what the first one has learned
            with Outbox(
                folder / "q.db",
                config=from_toml(SETTINGS.format(url=server.url), "campaign", {}),
                deliver="thread",
                exit_wait=0,
            ) as box:
                program(box, ids, chance)
                deadline = time.monotonic() + 60
                while (
                    waiting := [id for id in ids if not box.status(id).settled]
                ) and time.monotonic() < deadline:
                    time.sleep(0.02)
        with Outbox(folder / "q.db", deliver="never") as box:
            return compare(box, ids, server, judge is _judges, len(waiting))
    finally:
        server.close()


def program(box: Outbox, ids: list[str], chance: random.Random) -> None:
    """Some of what programs do."""
    threads = [
        threading.Thread(target=_send, args=(box, ids, random.Random(chance.random()), n))
        for n in range(chance.choice((1, 1, 3)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _send(box: Outbox, ids: list[str], chance: random.Random, thread: int) -> None:
    for _ in range(chance.randint(1, 5)):
        if chance.random() < 0.5:
            ids += [
                receipt.id
                for receipt in box.send_many(_message(chance) for _ in range(chance.randint(2, 60)))
            ]
        else:
            ids += [box.send(**_message(chance)).id for _ in range(chance.randint(1, 8))]
        time.sleep(chance.choice((0, 0, 0.01)))


def _message(chance: random.Random) -> dict[str, Any]:
    people = chance.choice((1, 1, 1, 1, 2, 5, 40))
    kinds = ("u", "u", "u", "u", "refused", "slow")
    return {
        "to": [f"{chance.choice(kinds)}{chance.randrange(1 << 48)}@x.test" for _ in range(people)],
        "subject": "s",
        "text": ".dot\n" * chance.randrange(200),
    }


def compare(
    box: Outbox, ids: list[str], server: Moody, judges: bool, waiting: int
) -> tuple[dict[str, int], list[str]]:
    """The store's word and the server's."""
    wrong = [f"{waiting} messages are not settled"] if waiting else []
    found: Counter[str] = Counter(
        messages=len(ids), refused_ahead=server.refused, taken_ahead=server.taken, sessions=server.sessions
    )
    for id in ids:
        for r in box.status(id).recipients:
            copies = server.got[r.address]
            refused = judges and r.address.startswith("refused")
            found["recipients"] += 1
            found["refused"] += refused
            found["marked"] += r.uncertain
            found["doubles"] += copies > 1
            if r.state == "delivered" and not copies:
                wrong.append(f"{r.address}: lost")
            if copies > 1 and not r.uncertain:
                wrong.append(f"{r.address}: came {copies} times without the mark")
            if r.state != ("failed" if refused else "delivered"):
                wrong.append(f"{r.address}: {r.state}: {r.reason}")
    return found, wrong


if __name__ == "__main__":
    sys.exit(main())
