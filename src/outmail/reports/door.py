"""What reports need of an Outbox, and the one place where reports that were given none find it.

`outbox.py` registers a factory, which is called on first use and never at import. Does not: know concrete
classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from outmail.clock import Clock
from outmail.model import Message, Receipt
from outmail.store import Store, Verb


class Unstored(Protocol):
    """What reports need of an Outbox when its store refuses them."""

    @property
    def clock(self) -> Clock: ...
    @property
    def report_to(self) -> tuple[str, ...]: ...
    @property
    def report_templates(self) -> str: ...
    @property
    def spool(self) -> str:
        """The folder for what is written before it is stored; it may not exist yet."""

    @property
    def exit_wait(self) -> float:
        """Seconds that the program's end may wait for mail."""

    def message_id(self, key: str) -> str:
        """The Message-ID that a report with this idempotency key has or will have."""

    def compose(self, words: dict[str, Any]) -> Message:
        """The message that `ReportDoor.report` would store. Raises `Refused` and `ConfigError`."""

    def hand_over(self, message: Message, seconds: float) -> dict[str, str]:
        """Give the message straight to its relay, within ``seconds``. Returns, for each recipient that no
        relay accepted, the reason.
        """


class ReportDoor(Unstored, Protocol):
    """An Outbox as reports see it."""

    @property
    def store(self) -> Store: ...

    def relay_trouble(self) -> str:
        """Why the relay of reports accepts nothing, if that is known already; else ""."""

    def report(
        self,
        words: dict[str, Any] | None,
        *,
        supersede: str | None = None,
        when: Callable[[], Verb[bool]] | None = None,
    ) -> Receipt | None:
        """`send`. In the same transaction a waiting message is replaced, and ``when`` is asked; if it says
        False nothing is stored.

        Without ``words`` only what ``when`` writes is stored. Then, and when ``when`` said False, the answer
        is None.
        """


_closers: list[Callable[[], None]] = []


def at_close(function: Callable[[], None]) -> None:
    """``function`` is called at exit, before the program's Outboxes are closed: the last chance to report."""
    _closers.append(function)


def closing() -> None:
    """Called by the wiring at exit, before it closes Outboxes."""
    for function in _closers:
        function()


_factory: Callable[[], ReportDoor] | None = None
_spool: Callable[[], str] | None = None
_unstored: Callable[[], Unstored] | None = None


def register(
    factory: Callable[[], ReportDoor], spool: Callable[[], str], unstored: Callable[[], Unstored]
) -> None:
    """Called by the wiring. ``spool`` and ``unstored`` answer without opening anything."""
    global _factory, _spool, _unstored
    _factory, _spool, _unstored = factory, spool, unstored


def unstored(given: ReportDoor | None) -> Unstored:
    """The way around the store for the given Outbox, or for the program's default one. Raises
    `ConfigError`.
    """
    if given is not None:
        return given
    if _unstored is None:
        raise RuntimeError("no Outbox was given and outmail.outbox was not imported")
    return _unstored()


def default_spool() -> str:
    """The spool folder of the default Outbox, which need not exist yet."""
    if _spool is None:
        raise RuntimeError("no Outbox was given and outmail.outbox was not imported")
    return _spool()


def door(given: ReportDoor | None) -> ReportDoor:
    """The Outbox given, or the program's default one."""
    if given is not None:
        return given
    if _factory is None:
        raise RuntimeError("no Outbox was given and outmail.outbox was not imported")
    return _factory()
