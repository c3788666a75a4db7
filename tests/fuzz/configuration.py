"""Fuzz target: a TOML file: it is a configuration or a ConfigError."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from collections.abc import Callable

from tests.fuzz.harness import run

SEEDS = [
    b'relay = ["x"]\n[[relays]]\nurl = 5\n',
    (
        b'store = "q.db"\nto = ["a@b.example"]\n[relay]\nurl = "smtps://me@h:465"\ntls = '
        b'"implicit"\n[retry]\nschedule = "1m, 2h..."\n'
    ),
    (
        b'[listen]\nsmtp = ["127.0.0.1:25"]\nnetworks = ["10.0.0.0/8"]\n[[route]]\nto = "*@x"\nrelays = '
        b'["default"]\n'
    ),
    b'[limits]\nmessage_size = "5MB"\n[retention]\nbodies = "1d"\n[receive]\nmailboxes = "/m/{user}"\n',
]


def make() -> Callable[[bytes], None]:
    from outmail.config import from_toml
    from outmail.errors import ConfigError

    def target(data: bytes) -> None:
        try:
            config = from_toml(data.decode("utf-8", "replace"), "fuzz", {"HOME": "/tmp"})
        except ConfigError as problem:
            assert "\n" not in str(problem)[:30]
            return
        config.as_dict()

    return target


if __name__ == "__main__":
    run("configuration", SEEDS, ["outmail.config"], make)
