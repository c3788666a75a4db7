"""``outmail certify ID``: a signed statement about a message; ``--verify FILE``: check one."""

from __future__ import annotations

import argparse
import sys

from outmail.cli.common import config_of, queue_of
from outmail.cli.exits import EX_USAGE
from outmail.clock import rfc3339
from outmail.errors import ConfigError, NotFound
from outmail.ops import certify as certificates
from outmail.outbox.queue import Queue
from outmail.policy.plain import plain_line
from outmail.wiring import spool_of


def certify(arguments: argparse.Namespace) -> int:
    """Make one, check one, or print the public key."""
    if arguments.verify:
        return _verify(arguments)
    if not arguments.id:
        print("outmail: give the id of a message, or --verify FILE", file=sys.stderr)
        return EX_USAGE
    with queue_of(arguments) as queue:
        sys.stdout.write(certificates.certificate(queue.store, _statement(queue, arguments)))
        print(f"outmail: the public key is in {certificates.paths(queue.store)[1]}", file=sys.stderr)
    return 0


def _statement(queue: Queue, arguments: argparse.Namespace) -> dict[str, object]:
    id, hostname = arguments.id, config_of(arguments).hostname
    return certificates.statement(
        queue.status(id).as_dict(),
        [attempt.as_dict() for attempt in queue.attempts(id)],
        [
            {"at": rfc3339(e.at), "event": e.event, "n": e.n, "state": e.state, "reason": e.reason}
            for e in queue.history(id)
        ],
        [
            {
                "recipients": list(copy.recipients),
                "route": copy.route,
                "sent_at": rfc3339(copy.sent_at),
                "home_at": rfc3339(copy.home_at),
                "hops": [{"name": name, "at": rfc3339(at)} for name, at in copy.hops],
            }
            for copy in queue.copies(id)
        ],
        host=hostname,
        now=queue.clock.now(),
    )


def _verify(arguments: argparse.Namespace) -> int:
    public = arguments.key or f"{spool_of(config_of(arguments).store).removesuffix('.spool')}.certify.pub"
    found = certificates.check(_read(arguments.verify), _read(public))
    message = found.get("message", {})
    print(
        plain_line(
            f"good: made at {found.get('made_at')} on {found.get('made_on')} about {message.get('id')}, "
            f"content sha256 {message.get('sha256')}, {message.get('status')}"
        )
    )
    return 0


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(certificates.LONGEST)
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist") from None
    except OSError as problem:
        raise ConfigError(f"{path} cannot be read: {problem.strerror}") from None
