"""The settings of an engine, beside store and routes. Its parts share one such object, which only
`Engine.reconfigure` changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from outmail.engine.copies import CopyMaker
from outmail.model import Settled
from outmail.policy.retry import Retry


@dataclass(slots=True)
class EngineSettings:
    """``observe`` is called with deliveries that were settled together, ``fail`` with the name of each
    failpoint that the engine passes (`system.failpoints`).
    """

    retry: Retry = field(default_factory=Retry)
    only_to: tuple[str, ...] = ()
    #: Which transcripts are kept: "failures", "all" or "none".
    transcripts: str = "failures"
    #: Ages in ms for each of `store.verbs.KINDS`; None removes nothing.
    retention: dict[str, int] | None = None
    observe: Callable[[Sequence[Settled]], None] | None = None
    fail: Callable[[str], None] = lambda point: None
    #: The id of the only message that may be attempted; None means all.
    only: str | None = None
    #: True for a service. The store then says so, and programs with the same routes need no engine of their
    #: own.
    service: bool = False
    #: None when no loopback copies are sent.
    copies: CopyMaker | None = None
