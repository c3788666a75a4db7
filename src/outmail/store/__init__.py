"""The seam between the road and what keeps it: which verbs a store has, and what each promises.

Each writing verb is one promise, written as a generator that yields SQL and returns its result (`verbs`). A
verb never begins or commits: `Store.commit` does, one savepoint per verb when there are several, so that one
caller's bad row spoils only its own. Whatever `commit` returned without raising is on disk.
Fails: `Trouble` (kind busy, conflict, full, readonly, forbidden, io, corrupt, schema, other) for what is
wrong with the store itself.
Does not: know transports, policy beyond fair shares, or when anything should happen.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from outmail.model import Delivery, Leased


@dataclass(frozen=True, slots=True)
class Many:
    """One statement for many rows of parameters; the answer is all rows it returned, in order."""

    sql: str
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Alone:
    """The only statement of its verb: where that saves round trips, it is a transaction by itself. The answer
    is its rows.
    """

    sql: str
    params: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Numbers:
    """``count`` new numbers of a table, ascending; nobody else gets them. The answer is a list of int."""

    table: str
    count: int


@dataclass(frozen=True, slots=True)
class Exclusive:
    """Until the transaction ends nobody else adds a message of these ids. The answer is empty."""

    ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Bulk:
    """First of a verb that brings very many rows: where that pays, its `Many` of plain INSERTs go another
    way. The answer is empty.
    """


R = TypeVar("R")
#: A verb: yields (sql, parameters) or one of the requests above, is sent the answer, returns its result.
Verb = Generator[tuple[str, Sequence[Any]] | Many | Alone | Numbers | Exclusive | Bulk, list[Any], R]


#: What `Verbs.add` says of each message: (id, message_id, accepted_at, duplicate, the store's number or 0 for
#: a duplicate).
Added = tuple[str, str, int, bool, int]
#: For each of some messages, in their order, the name of the pieces that its content was written in, or None;
#: empty where none was.
Uploads = Sequence[str | None]


class Trouble(Exception):
    """The store itself cannot do this now. ``kind`` decides what happens next; ``errno`` is the system's
    where known.
    """

    def __init__(self, kind: str, text: str, errno: int | None = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.errno = errno

    @property
    def passing(self) -> bool:
        """True when the same call may succeed later without anybody changing the program."""
        return self.kind in ("busy", "conflict", "full", "readonly", "forbidden", "io", "other")


class Missing(Exception):
    """Pieces of a long content, written ahead of their message, are not all there. Nothing was stored: write
    them again.
    """


def shown(url: str) -> str:
    """A store's URL without its password."""
    return re.sub(r"(password=)[^&\s]*", r"\1…", re.sub(r"(?<=://)([^/@:]*):[^@]*@", r"\1:…@", url))


class Lock(Protocol):
    """An engine's claim to be alive (`Store.register`): its leases stand while this object is held."""

    id: int
    #: Its name among the engines that the store knows (`verbs.owners`), until it is closed or taken for dead.
    uuid: str

    def close(self) -> None: ...


class Upload(Protocol):
    """A claim on the pieces of a long content that is being written (`Store.uploading`): while it is held,
    nobody sweeps them.
    """

    def end(self) -> None:
        """Their message is stored."""

    def abandon(self) -> None:
        """Whatever is left of them without a message may be swept."""


class Store(Protocol):
    """What the road needs of a store. ``verbs`` is the dialect's module of verbs."""

    url: str
    #: A folder beside the store for what is written before it is stored; it may not exist yet.
    spool: str
    #: True when a call may wait for a network: then loops leave all calls to threads.
    blocking: bool
    #: How many commits can be under way at one moment.
    lanes: int

    @property
    def verbs(self) -> Any: ...

    def commit(self, verbs: Sequence[Verb[Any]], wait: float = 30.0) -> list[Any]:
        """Run the verbs in one transaction that reaches the disk. A verb's own exception stands in its
        place.
        """

    def begin(self, verbs: Sequence[Verb[Any]]) -> Callable[[], list[Any]]:
        """`commit` in two parts, for loops: what need not wait is done now; the rest is returned, to be
        called once, on a thread.
        """

    def run(self, verb: Verb[R], wait: float = 30.0) -> R:
        """One verb, sharing its commit with other threads that ask at the same moment."""

    def read(self, verb: Verb[R]) -> R:
        """A verb that writes nothing, from one consistent snapshot."""

    def register(self, now: int) -> Lock:
        """Become an engine: get an id under which to lease."""

    def dots(self, owner: Any, notes: Iterable[tuple[Delivery, Sequence[Leased]]]) -> None:
        """Put final dots on record before they are sent; survives a process kill. Raises OSError: then no
        dot.
        """

    def settled(self, owner: Any, deliveries: Iterable[Delivery]) -> None:
        """These leases are over: their dots need no record any more."""

    def time(self) -> int | None:
        """What the store's own clock says, where it has one: several machines age mail by that."""

    def reclaim(self, now: int, *, hold: bool) -> list[dict[str, Any]]:
        """Take the work of dead engines back into the queue; returns what was found, an engine each."""

    def drop_history(self, now: int, records: int) -> bool:
        """One short step towards letting go of finished mail that is kept in parts and is past retention as a
        whole; True when another should follow.
        """

    def kept(self, records: int) -> int:
        """From which age on (ms) finished mail is removed row by row, where its records are kept for so
        long.
        """

    def uploading(self, upload: str) -> Upload:
        """Pieces under this name are about to be written."""

    def sweep_uploads(self) -> int:
        """Remove the pieces whose message never came, of writers that are gone; returns how many pieces."""

    def give_space_back(self) -> None:
        """Return some of what has become free to the file system, where that is not done otherwise."""

    def changed(self) -> bool:
        """True when anybody has committed since the last call: time to ask `next_due` again."""

    def announce(self) -> None:
        """This process has accepted mail: where that is set up, engines elsewhere are told so."""

    def follow(self, wake: Callable[[], None]) -> None:
        """``wake`` is called from some thread when others announce, as far as that is set up. A hint:
        `changed` is the truth.
        """

    def close(self) -> None: ...


def store_id(store: Store) -> str:
    """The store's own name; made once."""
    while True:
        found = store.read(store.verbs.note_get("store", "id"))
        if found:
            return str(found[0])
        store.run(store.verbs.note_put("store", "id", uuid.uuid4().hex, 0))


__all__ = [
    "Added",
    "Alone",
    "Bulk",
    "Exclusive",
    "Lock",
    "Many",
    "Missing",
    "Numbers",
    "Store",
    "Trouble",
    "Upload",
    "Uploads",
    "Verb",
    "shown",
    "store_id",
]
