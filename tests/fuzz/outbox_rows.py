"""Fuzz target: rows of outmail_outbox that anybody wrote: a draft that acceptance takes, or Refused."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from collections.abc import Callable

from tests.fuzz.harness import run

SEEDS = [
    (
        b'{"draft": {"to": "a@b.example", "subject": "x", "at": "2h", "relay": "smtp://h:25", "headers": '
        b'{"X-A": '
        b'"b"}}}'
    ),
    (
        b'{"sender": "a@b.example", "recipients": ["c@d.example"], "due": 1, "dsn": {"notify": "never"}, '
        b'"suppressed": {"c@d.example": "x"}}'
    ),
    b'{"draft": {"to": [["n", "a@b.example"]], "expires": "1d", "priority": "high"}}',
]


def make() -> Callable[[bytes], None]:
    import json
    from typing import Any

    from outmail.accept.acceptance import Door, Terms
    from outmail.errors import ConfigError, Refused
    from outmail.intake import api
    from outmail.policy.route import Routes, parse_relay
    from outmail.store.verbs.outbox_rows import Row
    from outmail.transactional import poller

    class NoStore:
        writers = 1
        blocking = False

    door = Door(NoStore(), Terms(Routes({"default": parse_relay("smtp://h", "default")})))  # type: ignore[arg-type]

    def compose(words: dict[str, Any]) -> Any:
        relay = words.pop("relay", None)
        if relay is not None:
            if not isinstance(relay, str):
                raise ConfigError("relay must be text")
            parse_relay(relay)
        return api.composed(
            1_800_000_000_000, "h", "", **{"sender": "a@b.example", "to": "c@d.example", **words}
        )

    def target(data: bytes) -> None:
        row = Row(1, "0" * 26, b"Subject: x\r\n\r\n", data, len(data))
        try:
            draft = poller.drafted(row, compose)
        except Refused as refusal:
            assert len(str(refusal)) < 5000
            return
        try:
            message = door.complete(draft)
        except Refused as refusal:
            message = door.unfit(refusal, draft)
        json.dumps(
            [message.sender, message.message_id, message.subject, [r.address for r in message.recipients]]
        )
        "".join([message.sender, message.message_id, *(r.address for r in message.recipients)]).encode()

    return target


if __name__ == "__main__":
    run(
        "outbox_rows",
        SEEDS,
        ["outmail.transactional.poller", "outmail.intake.api", "outmail.accept.acceptance"],
        make,
    )
