"""The grammar-based fuzzer in short, and that it notices what it is for."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from outmail.smtp.client import Client
from outmail.smtp.server import Server
from tests.fuzz import grammar_client, grammar_server
from tests.fuzz.grammar import Desync

Session = Callable[[random.Random], int]


def played(session: Session, seed: str, commands: int) -> None:
    done = number = 0
    while done < commands:
        try:
            done += session(random.Random(f"{seed}/{number}"))
        except Desync as problem:
            raise Desync(f"session {seed}/{number}: {problem}") from None
        number += 1


@pytest.mark.parametrize(
    "session", [grammar_server.session, grammar_client.session], ids=["server", "client"]
)
def test_both_sides_have_the_same_idea(session: Session) -> None:
    played(session, str(random.SystemRandom().randrange(2**31)), 6000)


def early(self: Server) -> bool:
    """Content that ends at a bare LF, too."""
    before = bytes(self._buffer)
    self._buffer[:] = before.replace(b"\n.\r\n", b"\r\n.\r\n").replace(b"\r\r\n", b"\r\n")
    return DATA(self)


DATA = Server._data


@pytest.mark.parametrize(
    ("session", "target", "name", "broken"),
    [
        (grammar_server.session, Server, "_data", early),
        (grammar_server.session, Server, "_reset", lambda self: None),
        (grammar_client.session, Client, "_check_unasked", lambda self: None),
        (grammar_client.session, Client, "_send", lambda self, command, script: None),
    ],
    ids=["content that ends at a bare LF", "no reset", "replies that nobody asked for", "silence"],
)
def test_a_broken_side_is_noticed(
    monkeypatch: pytest.MonkeyPatch, session: Session, target: Any, name: str, broken: Any
) -> None:
    monkeypatch.setattr(target, name, broken)
    with pytest.raises((Desync, AssertionError)):
        played(session, "broken", 20_000)
