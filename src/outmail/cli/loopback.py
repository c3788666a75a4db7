"""``outmail loopback`` records a mail that arrived at the loopback address (on stdin); ``outmail loopback
stats`` shows how many copies came home.

Promises: exit status 0 when the mail is recorded, whatever it was, because a mail server that pipes mail here
must not bounce it. 75 when the store cannot be written, so that the mail server tries again. All of stdin is
read, but only what is needed is kept.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, BinaryIO

from outmail.cli.common import config_of
from outmail.cli.exits import EX_CRIT, EX_USAGE
from outmail.cli.terminal import when
from outmail.clock import DAY, human_span
from outmail.mime.trace import MOST
from outmail.outbox.queue import Queue
from outmail.policy.loopback import Loopback
from outmail.policy.plain import as_json, plain_line
from outmail.wiring import arrivals_of

#: Environment variables in which Postfix, Exim, Courier and qmail name a mail's recipient (local(8), pipe
#: transports).
_TOLD = ("ORIGINAL_RECIPIENT", "RECIPIENT", "LOCAL_PART_SUFFIX", "EXT", "EXTENSION", "DELIVERED_TO", "LOCAL")


def loopback(arguments: argparse.Namespace) -> int:
    """Record a mail, or show the statistics."""
    if arguments.verb == "stats":
        return _stats(arguments)
    if arguments.assign:
        with Queue.open(config_of(arguments)) as queue:
            print(queue.assign(arguments.assign))
        return 0
    if sys.stdin.isatty():
        print("outmail: give the mail that came home on stdin (a pipe alias does)", file=sys.stderr)
        return EX_USAGE
    config = config_of(arguments)
    with Queue.open(config) as queue:
        arrivals = arrivals_of(queue.store, config)
        content = _head(sys.stdin.buffer)
        word = arrivals.take(content, _recipients(config.loopback), _sender())
    if word != "home":
        print(f"outmail: {word}: only counted", file=sys.stderr)
    return 0


def _head(stream: BinaryIO) -> bytes:
    """The part that is needed. The rest is read and dropped, because the writer must not be stopped."""
    kept = stream.read(MOST)
    while stream.read(256 * 1024):
        pass
    return kept


def _recipients(settings: Loopback) -> list[str]:
    """The recipients that the mail server names in its variables."""
    told = [os.environ[name] for name in _TOLD if os.environ.get(name)]
    # some servers give only the part behind the plus
    return [*told, *[settings.to(word.lstrip("+-")) for word in told if "@" not in word]]


def _sender() -> str | None:
    """The envelope's sender; "" for the null sender, which Postfix passes as an empty text."""
    sender = os.environ.get("SENDER")
    return "" if sender in ("", "<>", "MAILER-DAEMON") else sender


def _stats(arguments: argparse.Namespace) -> int:
    with Queue.open(config_of(arguments)) as queue:
        found = queue.loopback_stats(7 * DAY)
    if arguments.json:
        print(as_json(found))
    else:
        for route in found["routes"]:
            print(plain_line(_line(route)))
        words = ", ".join(f"{n} {word}" for word, n in found["counts"].items())
        print(f"came to the loopback address, ever: {words or 'nothing'}")
    return EX_CRIT if any(route["missing"] for route in found["routes"]) else 0


def _line(route: dict[str, Any]) -> str:
    parts = [f"{route['route']}: {route['sent']} sent in the last 7 days, {route['home']} home"]
    if route["p50_ms"] is not None:
        p50, p90, p99 = (_exact(route[name]) for name in ("p50_ms", "p90_ms", "p99_ms"))
        parts.append(f"half of them within {p50}, 90 % within {p90}, 99 % within {p99}")
    if route["slow_hop"]:
        parts.append(f"they wait longest for {route['slow_hop']}")
    if route["missing"]:
        parts.append(f"{route['missing']} MISSING, the oldest sent {when(route['missing_since'])}")
    return "; ".join(parts)


def _exact(ms: int) -> str:
    """As `human_span`, but short times in milliseconds."""
    return f"{ms} ms" if ms < 10_000 else human_span(ms)
