"""``outmail demo``: all of outmail on this machine, with a check of the result.

A test server refuses and defers some mail. This process puts 240 different messages into a queue in a
temporary folder. An engine in another process delivers them, is killed in the middle and started again. Then
every recipient is compared with what the server accepted: nothing is lost, everybody who got a message twice
is marked uncertain, and every byte is as accepted. The exit status is 0 only if all of this is true.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from typing import Any

from outmail.cli.exits import EX_USAGE
from outmail.outbox.outbox import Outbox
from outmail.testing.sink import Sink

SCRIPT = """
RCPT refused-*: 550 5.1.1 nobody of this name
RCPT greylisted-*: 451 4.7.1 greylisted, come back x12
DOT: 451 4.3.0 short of disk, come back 1/60
DOT: delay 0.002
"""
CONFIG = '[retry]\nschedule = "1s*20, 5s…"\nexpire = "10m"\n'


def demo(arguments: argparse.Namespace) -> int:
    """Run the demo and check its result."""
    if arguments.messages < 200:
        print("outmail: demo needs at least 200 messages", file=sys.stderr)
        return EX_USAGE
    with tempfile.TemporaryDirectory(prefix="outmail-demo-") as temporary:
        folder = arguments.keep or temporary
        os.makedirs(folder, exist_ok=True)
        with Sink(SCRIPT) as sink:
            return _story(arguments.messages, folder, sink)


def _say(text: str) -> None:
    print(text, flush=True)


def _story(count: int, folder: str, sink: Sink) -> int:
    store, settings = os.path.join(folder, "queue.db"), os.path.join(folder, "outmail.toml")
    with open(settings, "w", encoding="utf-8") as file:
        file.write(CONFIG)
    _say(
        f"1. A mail server that refuses some and defers some listens on port {sink.port}; the queue is "
        f"{store}"
    )
    with Outbox(store, config=settings, relay=sink.url, deliver="never") as box:
        began = time.monotonic()
        receipts = [box.send(**message) for message in _messages(count)]
        people = sum(len(box.status(receipt.id).recipients) for receipt in receipts)
        _say(
            f"2. Accepted {count} messages for {people} recipients, each on disk before its receipt: "
            f"{time.monotonic() - began:.2f} s"
        )
        killed = _kill_in_the_middle(store, settings, folder, sink, people // 4)
        _say(
            f"3. An engine began to deliver and was killed (SIGKILL) after {killed} deliveries; a new one "
            f"goes on"
        )
        ended = _finish(store, settings, folder, box, [r.id for r in receipts])
        return _verdict(box, [r.id for r in receipts], sink, ended)


def _messages(count: int) -> list[dict[str, Any]]:
    """Different messages: names in UTF-8, attachments, dots at line starts, 8-bit text, several
    recipients.
    """
    made = []
    for i in range(count):
        to: list[Any] = [("Żaneta Ünïcode, Ph.D.", f"user-{i}@example.test")]
        if i % 5 == 0:
            to += [f"second-{i}@example.test", f"third-{i}@example.test"]
        if i % 11 == 0:
            to.append(f"refused-{i}@example.test")
        if i % 13 == 0:
            to.append(f"greylisted-{i}@example.test")
        message: dict[str, Any] = {
            "to": to,
            "sender": ("outmail demo", "demo@example.test"),
            "subject": f"Demo {i}: grüße, 世界, {'long ' * (i % 30)}",
            "text": ("ordinary text\n" if i % 2 else "Grüße aus Zürich ✉\n")
            + ".\n..\n.leading dots\n" * (i % 3)
            + "x" * (i * 7 % 3000)
            + "\n",
        }
        if i % 4 == 0:
            message["attachments"] = [(f"naïve file {i}.bin", bytes(range(256)) * (i % 20))]
        if i % 6 == 0:
            message["html"] = f"<p>Message <b>{i}</b> with <i>grüße</i></p>"
        if i % 9 == 0:
            message["bcc"] = f"hidden-{i}@example.test"
        made.append(message)
    return made


def _engine(store: str, settings: str, folder: str) -> subprocess.Popen[bytes]:
    with open(os.path.join(folder, "engine.log"), "ab") as log:
        command = [sys.executable, "-P", "-m", "outmail", "run", "--config", settings, "--store", store]
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def _kill_in_the_middle(store: str, settings: str, folder: str, sink: Sink, after: int) -> int:
    engine = _engine(store, settings, folder)
    deadline = time.monotonic() + 60
    while (
        sum(len(m.recipients) for m in list(sink.messages)) < after
        and time.monotonic() < deadline
        and engine.poll() is None
    ):
        time.sleep(0.002)
    engine.send_signal(signal.SIGKILL)
    engine.wait()
    return sum(len(m.recipients) for m in list(sink.messages))


def _finish(store: str, settings: str, folder: str, box: Outbox, ids: list[str]) -> bool:
    """Run a second engine until everything is final. True when it was."""
    engine = _engine(store, settings, folder)
    deadline = time.monotonic() + 90
    try:
        while time.monotonic() < deadline and engine.poll() is None:
            if next(iter(box.find("-state:delivered -state:failed")), None) is None:
                return True
            time.sleep(0.1)
        return False
    finally:
        engine.send_signal(signal.SIGTERM)
        try:
            engine.wait(30)
        except subprocess.TimeoutExpired:
            engine.kill()
            engine.wait()


def _verdict(box: Outbox, ids: list[str], sink: Sink, ended: bool) -> int:
    got: Counter[tuple[str, str]] = Counter()
    altered = 0
    accepted = {box.status(id).message_id: id for id in ids}
    for message in sink.messages:
        message_id = message.content.split(b"\r\nMessage-ID: ", 1)[1].split(b"\r\n", 1)[0].decode()
        id = accepted[message_id]
        altered += box.content(id) != message.content
        for address in message.recipients:
            got[id, address] += 1
    states: Counter[str] = Counter()
    lost, unmarked, marked, wrong = [], [], 0, []
    _say("4. What became of every recipient:")
    for id in ids:
        for r in box.status(id).recipients:
            copies = got[id, r.address]
            states[r.state] += 1
            marked += r.uncertain
            if r.state == "delivered" and not copies:
                lost.append(r.address)
            if copies > 1 and not r.uncertain:
                unmarked.append(r.address)
            if (r.state == "failed") != r.address.startswith("refused-"):
                wrong.append(r.address)
            if r.state != "delivered" or r.uncertain or r.attempts > 1:
                note = ", uncertain" if r.uncertain else ""
                why = f": {r.reason}" if r.reason else ""
                _say(f"   {r.address:<32} {r.state}{note}, attempts {r.attempts}, copies {copies}{why}")
    doubled = sum(1 for copies in got.values() if copies > 1)
    _say(
        f"   and the rest delivered at the first attempt. In all: "
        f"{', '.join(f'{n} {state}' for state, n in sorted(states.items()))}"
    )
    checks = {
        "everything came to an end": ended,
        "nothing was lost": not lost and not wrong,
        f"every recipient delivered twice ({doubled}) carries the uncertain mark ({marked} "
        f"marked)": not unmarked,
        f"every byte of {len(sink.messages)} transmissions arrived as accepted": not altered,
    }
    _say("5. Checks:")
    for text, holds in checks.items():
        _say(f"   {'ok ' if holds else 'BAD'} {text}")
    return 0 if all(checks.values()) else 1
