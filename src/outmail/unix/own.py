"""What sendmail does without a drop folder: the message goes into the caller's own queue, or the one that
was named.

Promises and failures: those of `outmail send`. Loads the store; `unix.main` does so only here.
"""

from __future__ import annotations

import os
import sys

from outmail.cli.common import configured, warn_idle
from outmail.cli.exits import told
from outmail.clock import Clock
from outmail.errors import Error
from outmail.intake import local
from outmail.intake.deposit import Deposit
from outmail.outbox.outbox import Outbox
from outmail.unix.flags import Call
from outmail.unix.traffic import tell_kept
from outmail.wiring import here, route_of


def kept(call: Call, deposit: Deposit) -> str:
    """Store it; returns its id. Raises `Refused`, `NotStored`, `ConfigError`."""
    config = configured(call.config, call.store, None)
    with Outbox(config=config, relay=call.relay, deliver="never") as box:
        route = route_of(call.relay, config)[0]
        draft = local.draft(
            deposit,
            here(config),
            uid=os.getuid(),
            now=Clock().now(),
            most=box.door.terms.recipients,
            route=route,
        )
        receipt = box.door.accept([draft])[0]
        if config.through:
            from outmail.cli.sending import pass_on

            pass_on(box, config, receipt.id)
        elif sys.stderr.isatty():
            warn_idle(box.queue)
        return receipt.id


def store(call: Call, deposit: Deposit) -> int:
    """`kept`, as an exit status with a line on stderr."""
    try:
        id = kept(call, deposit)
    except Error as problem:
        return told("sendmail", problem)
    tell_kept(call, f"{id} is stored")
    return 0
