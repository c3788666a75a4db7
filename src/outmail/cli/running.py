"""``outmail run`` and ``outmail receive``: the engine and the servers, until a signal, or once.

Promises: the exit status of ``run --once --strict`` says what became of the mail: 0 all that was due is
delivered, 69 some failed, 70 some is damaged, 75 some still waits. Fails: `ConfigError` (78) before anything
is sent. Does not: know signals or listeners (`service`).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from outmail.cli.common import config_of, tell_stranded
from outmail.cli.exits import EX_SOFTWARE, EX_TEMPFAIL, EX_UNAVAILABLE
from outmail.clock import Clock, rfc3339
from outmail.config import Config
from outmail.errors import ConfigError, NotFound
from outmail.model import Settled, is_id
from outmail.ops import delivery_log
from outmail.outbox.outbox import Outbox
from outmail.policy.plain import plain
from outmail.policy.veil import known
from outmail.service import prepared, service
from outmail.store import shown
from outmail.system import streams
from outmail.system.place import default_store
from outmail.wiring import build_engine

Observe = Callable[[Sequence[Settled]], None]


def run(arguments: argparse.Namespace) -> int:
    """The engine, as a service or once."""
    once = arguments.once or bool(arguments.only)
    hung_up = bool if once else _hangups()
    config = config_of(arguments)
    _log_to_stderr()
    box = Outbox(config=config, deliver="never")
    if arguments.only:
        head = arguments.only.partition("/")[0]
        if not is_id(arguments.only):
            raise NotFound(f"{arguments.only!r} is not a message id")
        box.retry(arguments.only)
        arguments.only = head
    observe = delivery_log.Batched(sys.stderr)
    if arguments.transcript and config.transcripts == "none":
        streams.say('outmail: --transcript: nothing is written, because transcripts = "none"')
        arguments.transcript = ""
    engine = build_engine(
        box.store,
        replace(config, transcripts="all") if arguments.transcript else config,
        config.routes,
        Clock(),
        arguments.only,
        service=not once,
        observe=_and_traffic(arguments.transcript, observe) if arguments.transcript else observe,
    )
    before = _due_now(box) if arguments.strict else 0

    if once:
        work = service.once(box, engine)
    else:
        work = service.serve(box, engine, lambda: config_of(arguments), hung_up)
    if config.loop == "uvloop":
        _uvloop().run(work)
    else:
        asyncio.run(work)
    if once:
        tell_stranded(box.queue, arguments)
    box.close()
    counts = engine.counts
    if not arguments.strict:
        return 0
    if counts["quarantined"]:
        return EX_SOFTWARE
    if counts["refused"] or counts["expired"]:
        return EX_UNAVAILABLE
    return EX_TEMPFAIL if before > counts["delivered"] else 0


def _and_traffic(path: str, observe: Observe) -> Observe:
    """For ``sendmail -q -X FILE``: the dialogues, too."""
    from outmail.unix.traffic import Traffic

    traffic = Traffic(path)

    def both(items: Sequence[Settled]) -> None:
        observe(items)
        traffic.dialogues(items)

    return both


def _due_now(box: Outbox) -> int:
    now = rfc3339(Clock().now()) or ""
    return sum(
        1
        for s in box.find("state:queued")
        for r in s.recipients
        if r.state == "queued" and (rfc3339(r.next_try_at) or "") <= now
    )


def _uvloop() -> Any:
    try:
        import uvloop  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise ConfigError('loop = "uvloop" needs the package: pip install "outmail[speed]"') from None
    return uvloop


def receive(arguments: argparse.Namespace) -> int:
    """The local receiving server; with --catch the development mailbox."""
    hung_up = _hangups()
    config = _receiving(arguments)
    if not arguments.catch:
        prepared.directory(config)
    _log_to_stderr()
    box = Outbox(config=config, deliver="never")
    engine = build_engine(box.store, config, config.routes, Clock(), observe=delivery_log.Batched(sys.stderr))
    if arguments.catch:
        kept = shown(config.store)
        print(f"outmail: all mail is kept in {kept}: outmail queue list ALL --store {kept}", file=sys.stderr)
    reread = partial(_receiving, arguments)
    asyncio.run(service.receive(box, engine, reread, hung_up, catch=arguments.catch))
    box.close()
    return 0


def _receiving(arguments: argparse.Namespace) -> Config:
    """The configuration of `receive`."""
    config = config_of(arguments)
    if arguments.catch and not arguments.store:
        folder = os.path.dirname(default_store(os.environ))
        os.makedirs(folder, mode=0o700, exist_ok=True)
        config = replace(config, store=os.path.join(folder, "catch.db"))
    if arguments.listen:
        config = replace(config, receive=replace(config.receive, smtp=tuple(arguments.listen)))
    return prepared.receiving(config, catch=arguments.catch)


def _hangups() -> Callable[[], bool]:
    """From now on SIGHUP does not end us. Returns what says whether it came; the service has its own handler
    later.
    """
    seen: list[int] = []
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda number, frame: seen.append(number))
    return lambda: bool(seen)


class _Lines(logging.Formatter):
    """The log of a service: known passwords are masked, and nothing in it controls a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(known.over(super().format(record)))


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
