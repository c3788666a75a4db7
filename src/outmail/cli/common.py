"""What several commands share: finding the configuration, opening the queue, and words for what is in it.

Fails: `ConfigError`, `NotStored`. Does not: print to stdout; messages go to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import sys
from collections import Counter
from dataclasses import replace
from datetime import datetime

from outmail.cli.terminal import when
from outmail.clock import Clock, human_span, instant, parse_span
from outmail.config import Config, load, relay_in_code
from outmail.errors import NotFound, NotStored, Refused
from outmail.model import RecipientStatus, is_id
from outmail.outbox.queue import Queue
from outmail.outbox.stranded import stranded
from outmail.policy.pace import may_send_ahead
from outmail.policy.plain import plain_line
from outmail.policy.typed import EXAMPLES, typed
from outmail.smtp.syntax import printable
from outmail.store import shown
from outmail.wiring import is_postgres, no_relay, store_path

#: The beginning of an id as people type it. It contains a digit, so it is no ordinary word.
PREFIX = re.compile("(?=.*[0-9])[0-9a-v]{6,25}")


def config_of(arguments: argparse.Namespace, *, replace_default: bool = True) -> Config:
    """The configuration. Except for `send`, ``--relay`` replaces the relay `default` for this process."""
    return configured(arguments.config, arguments.store, arguments.relay if replace_default else None)


def configured(file: str | None, store: str | None, relay: str | None) -> Config:
    """The configuration of ``--config``, overridden by ``--store`` and ``--relay``."""
    config = load(file, through=not (store or relay))
    if store:
        config = replace(config, store=store)
    if relay:
        routes = config.routes
        if relay not in routes.relays and ":" not in relay:
            raise no_relay(relay, routes)
        found = routes.relays.get(relay) or relay_in_code(relay, name="default")
        config = replace(config, routes=routes.with_relays([replace(found, name="default")]))
    return config


def moment(option: str, text: str | None) -> str | datetime | None:
    """A time as people type it, in local time. What was understood is printed. Raises `Refused`."""
    if text is None:
        return None
    why = ""
    try:
        found = typed(text, datetime.now())
        meant = found.astimezone() if found is not None else None
    except (ValueError, OverflowError, OSError) as problem:
        why = f" ({problem})"
    else:
        if meant is not None:
            print(f"outmail: {option}: {meant:%a %d %b %Y %H:%M %Z}", file=sys.stderr)
            return meant
        with contextlib.suppress(ValueError):
            instant(text, Clock().now())
            return text
    raise Refused(f"{option} {text!r} is no time{why}: write such as {EXAMPLES}", code="bad-argument")


def past(option: str, text: str) -> int:
    """A past moment as people type it: how long ago ("2h"), or a time. Milliseconds. Raises `Refused`."""
    now = Clock().now()
    with contextlib.suppress(ValueError):
        return now - parse_span(text)
    found = moment(option, text)
    return instant(found, now) if found is not None else now


def queue_of(arguments: argparse.Namespace, *, reading: bool = False) -> Queue:
    """The queue, for reading and changing; the caller closes it. With ``reading`` also a queue that can only
    be read; then stderr says so. Raises `NotFound` rather than make an empty one where nobody looks for it.
    """
    config = config_of(arguments)
    if not is_there(config.store):
        raise NotFound(
            f"there is no queue at {shown(config.store)}",
            hint="the first message makes it; --store, or store in the configuration, names another one",
        )
    if config.through:
        print(
            f"outmail: this is your own queue; {config.through} takes from it, and has a queue of its own",
            file=sys.stderr,
        )
    queue = Queue.open(config, reading=reading)
    if queue.only_reads:
        print(plain_line(f"outmail: {queue.only_reads}"), file=sys.stderr)
    return queue


def stdin_bytes() -> bytes:
    """All of stdin. Raises `Refused` when it cannot be read: it is closed, or a bad disk's."""
    try:
        return sys.stdin.buffer.read()
    except OSError as problem:
        raise Refused(f"stdin cannot be read: {problem.strerror}", code="bad-content") from None


def known_id(queue: Queue, text: str) -> str:
    """The whole id for an id or the beginning of one (`PREFIX`); "" when there is none. Raises `Refused` when
    more than one message fits.
    """
    if is_id(text):
        return text
    head, slash, n = text.partition("/")
    if not PREFIX.fullmatch(head) or (slash and not n.isdecimal()):
        return ""
    found = queue.ids_beginning(head)
    if len(found) > 1:
        raise Refused(
            f"more than one id begins with {head}: {', '.join(found)}",
            code="bad-filter",
            hint="write more of it",
        )
    return found[0] + slash + n if found else ""


def named_id(queue: Queue, text: str) -> str:
    """`known_id` where the word can only be an id. Raises `NotFound`."""
    id = known_id(queue, text)
    if not id:
        raise NotFound(f"no message's id begins with {printable(text)}")
    return id


def is_there(url: str) -> bool:
    """True when the store exists, as far as that can be known without opening it. Raises `NotStored` when its
    folder is closed to this user: it must not be taken for an empty queue.
    """
    if is_postgres(url):
        return True
    path = store_path(url)[0]
    try:
        os.stat(path)
    except PermissionError:
        raise NotStored(
            f"the queue {path} is closed to you",
            hint="root and its owner may look, for example: sudo -u outmail outmail queue list",
            errno=errno.EACCES,
        ) from None
    except OSError:
        return False
    return True


def warn_idle(queue: Queue) -> None:
    """Warn when mail waits and no engine has worked on this store for a minute."""
    last = queue.last_engine()
    now = Clock().now()
    due = queue.next_due()
    if any(moment <= now - 60_000 for moment in due.values()) and (not last or now - last["at"] > 60_000):
        since = f"for {human_span(now - last['at'])}" if last else "yet"
        print(
            f"outmail: mail is due and no engine has run {since}: start `outmail run`, or `outmail run "
            f"--once` from cron",
            file=sys.stderr,
        )


def tell_engines(queue: Queue, *, utc: bool = False) -> None:
    """Report what is unusual: engines that have held mail for long, and paused next hops."""
    now = Clock().now()
    for engine in queue.engines():
        if engine.oldest is not None and now - engine.oldest > 15 * 60_000:
            print(
                f"outmail: engine {engine.id} (pid {engine.pid}) has held {engine.leases} recipients for "
                f"up to {human_span(now - engine.oldest)}",
                file=sys.stderr,
            )
    tell_hops(queue, utc=utc)
    tell_ahead(queue)


def tell_hops(queue: Queue, *, utc: bool = False) -> None:
    """Report paused next hops: since when, why, what to do, how much mail waits."""
    paused = queue.paused_hops()
    if not paused:
        return
    from outmail.policy.story import relay_told  # with all that is known of servers' replies

    waiting: Counter[str] = Counter()
    for row in queue.stats()["routes"]:
        if row["state"] in ("queued", "deferred"):
            waiting.update(dict.fromkeys(row["route"].split(","), row["recipients"]))
    for hop, note in paused.items():
        name = hop if hop == note["url"] else f"{hop} ({note['url']})"
        told = relay_told(name, when(note["since"], utc=utc), str(note["trouble"]), waiting[hop])
        print(plain_line(f"outmail: {told}"), file=sys.stderr)


def tell_stranded(queue: Queue, arguments: argparse.Namespace) -> None:
    """Report mail for a route that nobody will serve, with the command that moves it to another one."""
    given = [("--config", arguments.config), ("--store", arguments.store)]
    options = [word for option, value in given if value for word in (option, value)]
    for one in stranded(queue):
        sentence = one.sentence(queue.routes.fallback, *options)
        print(plain_line(f"outmail: {sentence}"), file=sys.stderr)


def tell_ahead(queue: Queue) -> None:
    """Report next hops that get one message after the other, because they refuse what is sent ahead."""
    now = Clock().now()
    for url, note in queue.ahead_notes().items():
        if not may_send_ahead(note, now):
            since, until = when(note["since"]), when(note["until"])
            print(
                f"outmail: {url} gets one message after the other from {since} until {until}, because it "
                f"refused an envelope that was sent ahead: {plain_line(str(note['reply']))}",
                file=sys.stderr,
            )


def in_words(r: RecipientStatus, *, utc: bool = False) -> str:
    """The state of a recipient in words."""
    state = "deferred" if r.state == "queued" and r.attempts else r.state
    parts = [state + (" (uncertain: it may have arrived)" if r.uncertain else "")]
    if r.reason:
        parts.append(r.reason)
    if r.state == "queued" and r.next_try_at and (r.attempts or r.next_try_at > Clock().now()):
        parts.append(f"next try {when(r.next_try_at, utc=utc)}")
    if r.attempts:
        parts.append(counted(r.attempts, "attempt"))
    return "; ".join(parts)


def counted(n: int, noun: str) -> str:
    """1 message, 2 messages."""
    return f"{n} {noun}" + ("" if n == 1 else "s")
