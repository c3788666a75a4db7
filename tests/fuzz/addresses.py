"""Fuzz target: addresses, their parameters and aliases: what passes cannot end a command, and parses again to
itself.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from collections.abc import Callable

from tests.fuzz.harness import run

SEEDS = [
    b"a@b.example",
    "grüße@bücher.example".encode(),
    b'"a b\\"c"@[IPv6:::1]',
    b'a: b, :include:/x\n c: "d, e"\n',
    b"rfc822;a+2Bb",
]


def make() -> Callable[[bytes], None]:
    from outmail.policy import aliases
    from outmail.smtp import syntax

    def target(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        try:
            box = str(syntax.parse_mailbox(text))
        except syntax.AddressError:
            pass
        else:
            assert not any(c in box for c in "\r\n\0") and len(box.encode()) <= syntax.MAX_PATH
            assert str(syntax.parse_mailbox(box)) == box
        syntax.valid_notify(text)
        syntax.valid_original(text)
        syntax.valid_key(text)
        try:
            found = aliases.parse(text)
            known = aliases.Directory(frozenset({"h"}), found, lambda name: len(name) < 4, lambda path: text)
            for name in list(found)[:3]:
                known.expand(name)
        except aliases.AliasError:
            pass

    return target


if __name__ == "__main__":
    run("addresses", SEEDS, ["outmail.smtp.syntax", "outmail.policy.aliases"], make)
