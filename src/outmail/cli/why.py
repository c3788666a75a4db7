"""``outmail why``: the story of a message, or of all mail to an address, in sentences with the next step.

It also looks where mail may be that seems lost: in applications' outbox tables (``[[outbox]]``), and under
the address that ``[safety] redirect_to`` has put in the recipient's place.
Fails: `NotFound` when there is nothing. Does not: change anything.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial

from outmail.cli import outboxes
from outmail.cli.common import config_of, known_id, queue_of, tell_engines, tell_stranded
from outmail.cli.terminal import painted, when
from outmail.clock import Clock, human_span
from outmail.config import Config
from outmail.errors import NotFound
from outmail.model import Status
from outmail.outbox.queue import Queue
from outmail.policy.plain import plain_line
from outmail.policy.story import relay_told, told

#: How many bytes of a message are searched for its header.
HEADER = 64 * 1024


def why(arguments: argparse.Namespace) -> int:
    """The story in sentences."""
    config = config_of(arguments)
    with queue_of(arguments, reading=True) as queue:
        id = known_id(queue, arguments.what)
        stories = [queue.status(id)] if id else list(queue.find(to=arguments.what))
        if not id:
            seen = {status.id for status in stories}
            stories += [s for s in _redirected(queue, config, arguments.what) if s.id not in seen]
        rows = [] if id else outboxes.naming(config.outboxes, arguments.what)
        if not stories and not rows:
            raise NotFound(f"no message to {arguments.what} is in the queue's records")
        for status in stories:
            _print(queue, status, arguments.utc)
        _print_troubled(queue, stories, arguments.utc)
        now = Clock().now()
        for name, row, since in rows:
            print(
                plain_line(
                    f"{row} waits in {name} for {human_span(now - since)}, to be taken over by an engine: "
                    f"`outmail run`, or `outmail run --once`."
                )
            )
        tell_engines(queue, utc=arguments.utc)
        tell_stranded(queue, arguments)
    return 0


def _print(queue: Queue, status: Status, utc: bool) -> None:
    moment, now = partial(when, utc=utc), Clock().now()
    attempts = queue.attempts(status.id)
    print(
        painted(plain_line(f"{status.id} “{status.subject}” from {status.sender or '<>'}"), "bold")
        + f", accepted {moment(status.accepted_at)}"
    )
    for r in status.recipients:
        print(plain_line(f"  {r.address}:"))
        for sentence in told(status, r, attempts, now, moment):
            print(plain_line(f"    {sentence}"))


def _print_troubled(queue: Queue, stories: Sequence[Status], utc: bool) -> None:
    """Relays that these messages wait for and that nobody tries now: what was the matter the last time."""
    waits = {
        name
        for status in stories
        for r in status.recipients
        if r.state == "queued"
        for name in r.route.split(",")
    }
    paused = queue.paused_hops()
    for name, note in queue.troubled_hops().items():
        if name in waits and name not in paused:
            since, last = when(note["since"], utc=utc), when(note["at"], utc=utc)
            print(plain_line(relay_told(name, since, str(note["trouble"]), last=last)))


def _redirected(queue: Queue, config: Config, address: str) -> Iterator[Status]:
    """Messages that went to ``redirect_to`` instead of this address."""
    if not config.redirect_to:
        return
    for status in queue.find(to=config.redirect_to):
        try:
            content = queue.content(status.id)
        except NotFound:
            continue
        if address.lower() in _originals(content):
            yield status


def _originals(content: bytes) -> list[str]:
    """The original recipients of a redirected message, in lower case."""
    from email.parser import BytesHeaderParser
    from email.policy import default

    header = BytesHeaderParser(policy=default).parsebytes(content[:HEADER])
    return [one.strip().lower() for one in str(header.get("X-Outmail-Redirected", "")).split(",")]
