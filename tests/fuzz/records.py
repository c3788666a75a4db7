"""Fuzz target: log records with odd attributes: every handler takes them, and what becomes of them can be
stored and mailed.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import json
from collections.abc import Callable
from typing import Any

from tests.fuzz.harness import Found, run

SEEDS = [bytes(range(start, start + 40)) for start in range(0, 200, 20)]


def make() -> Callable[[bytes], None]:
    from outmail.compat import handlers
    from outmail.intake import api
    from outmail.policy.digest import Gathered
    from outmail.reports import digest_fold
    from outmail.reports.digest import DigestHandler, _encode
    from tests.records import odd_record

    class Box:
        """Composes what is sent, and keeps nothing."""

        def send(self, to: Any, subject: str, text: str, **words: Any) -> Any:
            return api.composed(0, "h.test", "", to=to, subject=subject, text=text, **words)

    class Digest(DigestHandler):
        def _write(self, values: list[Any]) -> bool:
            back = json.loads(_encode(values).encode("utf-8", "backslashreplace"))
            line = digest_fold._line(back)
            if line is None:
                raise Found(f"a line of ours is not taken for one: {back!r}")
            gathered.add(line, digest_fold._shown(line), counts=True)
            json.dumps(gathered.dump()).encode()
            return False

    box = Box()
    faked: Any = handlers
    faked.outbox = lambda *_, **__: box
    gathered = Gathered()
    server = ("localhost", "bot@x.test", "me@x.test", "odd")
    buffering = handlers.BufferingSMTPHandler(*server, 1)
    targets = [handlers.SMTPHandler(*server), buffering, Digest("me@x.test", name="odd")]

    def target(data: bytes) -> None:
        octets = iter(data)
        record = odd_record(lambda below: next(octets, 0) % below)
        for handler in targets:
            handler.handle(record)
        if buffering.buffer:
            raise Found("a full buffer could not be composed")

    return target


if __name__ == "__main__":
    run("records", SEEDS, ["outmail.compat.handlers", "outmail.reports.digest", "outmail.mime.compose"], make)
