"""For parts of the engine alone: a loop whose time is set by hand, a commit loop that answers when told, and
verbs that are only spoken.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from outmail.model import Delivery, Leased
from outmail.policy.route import Relay, parse_relay

NOW = 1_800_000_000_000


class FakeLoop:
    """What parts of the engine use of an event loop. `advance` makes time pass and calls what is due."""

    def __init__(self) -> None:
        self.now = 100.0
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._cancelled: set[int] = set()

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[..., Any], *words: Any) -> Any:
        self._count += 1
        number = self._count
        heapq.heappush(self._calls, (self.now + seconds, number, lambda: call(*words)))
        return SimpleNamespace(cancel=lambda: self._cancelled.add(number))

    def call_soon(self, call: Callable[..., Any], *words: Any) -> Any:
        return self.call_later(0.0, call, *words)

    def create_task(self, work: Any) -> Any:
        """A session that nobody runs."""
        work.close()
        return SimpleNamespace(add_done_callback=lambda call: None, cancel=lambda: None)

    def advance(self, seconds: float = 0.0) -> None:
        until = self.now + seconds
        while self._calls and self._calls[0][0] <= until:
            at, number, call = heapq.heappop(self._calls)
            self.now = max(self.now, at)
            if number not in self._cancelled:
                call()
        self.now = until


class FakeCommits:
    """Keeps what it is asked: ``calls`` are functions for the writer's thread, ``asks`` are verbs."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[[], Any], Callable[[Any], None]]] = []
        self.asks: list[tuple[Any, Callable[[Any], None]]] = []
        self.soonest: list[float] = []

    def call(self, function: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self.calls.append((function, then))

    def ask(self, verb: Any, then: Callable[[Any], None]) -> None:
        self.asks.append((verb, then))

    def soon(self, seconds: float = 0.0) -> None:
        self.soonest.append(seconds)

    def called(self) -> list[str]:
        """The names of the functions that were to be called since the last time."""
        calls, self.calls = self.calls, []
        return [getattr(function, "func", function).__name__ for function, _ in calls]

    def asked(self) -> list[str]:
        """The names of the verbs that wait for an answer."""
        return [verb[0] for verb, _ in self.asks]

    def answer(self, answer: Any) -> None:
        """The same for all verbs that were asked."""
        asks, self.asks = self.asks, []
        for _, then in asks:
            then(answer)


class Spoken:
    """A module of verbs that returns what it was asked: ``(name, *arguments)``."""

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        return lambda *words, **named: (name, *words)


class Calls:
    """Whoever is only told something. ``heard`` are the names of its methods that were called."""

    def __init__(self, **attributes: Any) -> None:
        self.heard: list[str] = []
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *words, **named: self.heard.append(name)


class Lease:
    """A registration that stands until ``lost``."""

    def __init__(self, id: int = 7) -> None:
        self.id = id
        self.uuid = f"engine{id}"
        self.lost = False
        self.begun: list[Delivery] = []
        self.harmless_ones: list[Delivery] = []

    def begin(self, delivery: Delivery) -> None:
        self.begun.append(delivery)

    def harmless(self, delivery: Delivery) -> None:
        self.harmless_ones.append(delivery)


def relay(url: str = "smtp://relay.test:25", **settings: Any) -> Relay:
    return parse_relay(url, **settings)


def delivery(number: int = 1, *, owner: int = 7, life: int = 3_600_000, to: int = 1) -> Delivery:
    people = [Leased(n + 1, f"u{n}@x.test", 0, False, 0) for n in range(to)]
    return Delivery(
        number,
        f"m{number}",
        1,
        "default",
        "me@x.test",
        b"x" * 10,
        b"",
        0,
        f"<{number}@x.test>",
        NOW,
        NOW + life,
        people,
        owner=owner,
        life=life,
    )
