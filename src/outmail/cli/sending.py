"""``outmail send`` and ``submit``: store one message; with --wait also deliver it.

Promises: 0 without --wait means stored; with --wait it means delivered, 69 that a recipient has failed, 75
that one still waits. Where this user's mail goes through a service, it is handed over at once. Fails:
`Refused` and `NotStored`; then nothing is stored. Does not: check the message (`intake.api`).
"""

from __future__ import annotations

import argparse
import sys
import time

from outmail.cli.common import config_of, in_words, moment, stdin_bytes, warn_idle
from outmail.cli.exits import EX_TEMPFAIL, EX_UNAVAILABLE
from outmail.clock import Clock
from outmail.config import Config
from outmail.errors import Refused
from outmail.model import Status
from outmail.outbox.direct import local_sender
from outmail.outbox.outbox import Outbox
from outmail.policy.plain import as_json, plain_line
from outmail.wiring import build_engine, route_of

#: Seconds for the way to a service on this machine.
PASS_ON = 5.0


def send(arguments: argparse.Namespace) -> int:
    """Store one message; with --wait deliver it here."""
    config = config_of(arguments, replace_default=False)
    box = Outbox(config=config, relay=arguments.relay, deliver="never")
    body = stdin_bytes()
    common = {
        "key": arguments.key,
        "at": moment("--at", arguments.at),
        "expires": moment("--expires", arguments.expires),
        "priority": arguments.priority,
        "tag": arguments.tag,
    }
    sender = sender_of(config, arguments.sender)
    if arguments.raw:
        sender = "" if arguments.sender == "<>" else sender  # the null sender, as of a bounce
        receipt = box.submit(
            body, sender=sender, recipients=[*arguments.recipients, *arguments.cc, *arguments.bcc], **common
        )
    else:
        receipt = box.send(
            arguments.recipients,
            arguments.subject,
            _text(body),
            _html(arguments.html),
            cc=arguments.cc,
            bcc=arguments.bcc,
            sender=sender,
            headers=_headers(arguments.header),
            attachments=arguments.attach,
            **common,
        )
    print(
        as_json({"id": receipt.id, "message_id": receipt.message_id, "duplicate": receipt.duplicate})
        if arguments.json
        else receipt.id,
        flush=True,
    )
    if arguments.wait is None and config.through:
        pass_on(box, config, receipt.id)
        return 0
    if arguments.wait is None:
        _warn_unknown(config, arguments.relay)
        warn_idle(box.queue)
        return 0
    return _deliver_here(box, config, arguments.relay, receipt.id, arguments.wait)


def pass_on(box: Outbox, config: Config, id: str) -> None:
    """From this user's own queue to the service that they share, at once; what stays is told."""
    if _deliver_here(box, config, None, id, PASS_ON) == EX_TEMPFAIL:
        print(
            f"outmail: it waits in your own queue until {config.through} takes it, by: outmail run --once",
            file=sys.stderr,
        )


def sender_of(config: Config, given: str | None) -> str:
    """``-f``, else the configured ``from``, else user@origin."""
    return given or config.sender or local_sender(config)


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        return body.decode("latin-1")


def _html(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as problem:
        raise Refused(
            f"the HTML file {path} cannot be read: {getattr(problem, 'strerror', None) or problem}",
            code="bad-attachment",
        ) from None


def _headers(lines: list[str]) -> dict[str, str]:
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise Refused(f"-H {line!r}: write 'Name: value'", code="bad-header")
        headers[name.strip()] = value.strip()
    return headers


def _deliver_here(box: Outbox, config: Config, relay: str | None, id: str, seconds: float) -> int:
    import asyncio

    engine = build_engine(box.store, config, route_of(relay, config)[1], Clock())
    deadline = time.monotonic() + seconds

    async def work() -> Status:
        running = asyncio.ensure_future(engine.run())
        while not (status := box.status(id)).settled and time.monotonic() < deadline and not running.done():
            await asyncio.sleep(0.02)
        engine.stop()
        await running
        return box.status(id) if not status.settled else status

    status = asyncio.run(work())
    states = {r.state for r in status.recipients}
    for recipient in status.recipients:
        if recipient.state != "delivered":
            print(plain_line(f"outmail: {recipient.address}: {in_words(recipient)}"), file=sys.stderr)
    return 0 if states == {"delivered"} else EX_UNAVAILABLE if "failed" in states else EX_TEMPFAIL


def _warn_unknown(config: Config, relay: str | None) -> None:
    """Warn when no engine with this configuration will take the message: by its name alone, a relay in a
    store is hardly allowed to do anything.
    """
    name = route_of(relay, config)[0]
    if name is not None and not config.routes.resolve(name):
        print(
            f"outmail: the message waits until an engine knows {name}: put it into [relays], or deliver here "
            f"with --wait",
            file=sys.stderr,
        )
