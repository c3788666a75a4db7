"""The seam between the road and what keeps it: which verbs a store has, and what each promises.

Each writing verb is one promise, written as a generator that yields SQL and returns its result (`verbs`). A
verb never begins or commits: `Store.commit` does, one savepoint per verb when there are several, so that one
caller's bad row spoils only its own. Whatever `commit` returned without raising is on disk.
Fails: `StoreError` (`Kind` says of what kind) for what is wrong with the store itself.
Does not: know transports, policy beyond fair shares, or when anything should happen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from outmail.model import Attempt, Delivery, Event, Filter, Leased, Message, Settled, Status
from outmail.policy.age import NO_MARK, Mark


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


#: What is wrong with a store: somebody else writes (busy) or was faster (conflict); no room left (full); it
#: takes no writes (readonly), or not ours (forbidden); the disk or the connection failed (io); its data is
#: damaged (corrupt), or of another version (schema); it was closed by us (closed); anything else (other).
Kind = Literal[
    "busy", "conflict", "full", "readonly", "forbidden", "io", "corrupt", "schema", "closed", "other"
]


class StoreError(Exception):
    """The store itself cannot do this now. ``kind`` decides what happens next; ``errno`` is the system's
    where known.
    """

    def __init__(self, kind: Kind, text: str, errno: int | None = None) -> None:
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


class Verbs(Protocol):
    """What a store can be asked to do, in the order of a message's life. Calling one does nothing yet: it
    returns a `Verb` to give to `Store.run`, `Store.commit` or, where it writes nothing, `Store.read`. Times
    are milliseconds UTC, spans milliseconds; a message's number (``seq``) is the store's own; a page is of
    bounded length.
    """

    # -- accepting -------------------------------------------------------------------------------------------

    def add(
        self,
        messages: Sequence[Message],
        uploads: Uploads = (),
        supersede: str | None = None,
        taken: Mapping[str, tuple[int, int]] | None = None,
        *,
        again: bool = False,
        alone: bool = False,
    ) -> Verb[list[Added]]:
        """Store messages whole; all or none. A known key adds nothing and answers with the first receipt.

        ``uploads`` names the pieces of those whose content was written before; raises `Missing` unless all of
        it is there. ``supersede`` cancels the waiting recipients of another message in the same transaction.
        ``taken`` names messages whose recipients an engine leases in the moment they are accepted, as (owner,
        lease). ``again`` says that these may have been added before, keyed or not: a known id adds nothing.
        ``alone`` promises that nothing else belongs to the transaction.
        """

    def add_chunks(self, upload: str, first: int, pieces: Sequence[bytes], now: int) -> Verb[None]:
        """Part of a long content, ahead of its message; ``first`` is the number of its first piece."""

    def know(self, destinations: set[str]) -> Verb[None]:
        """Mail will come for these destinations: look for it there."""

    # -- leasing ---------------------------------------------------------------------------------------------

    def lease(
        self,
        owner: int,
        number: int,
        room: Mapping[str, int],
        now: int,
        *,
        turn: int = 0,
        budget: int = 1 << 62,
        suspects: bool = True,
        only: int | None = None,
    ) -> Verb[list[Delivery]]:
        """Take up to ``room[destination]`` due recipients of each destination, by priority shares, older
        first.

        ``budget`` bounds the bytes of content; at least one message is always taken. With ``suspects`` one
        suspect message comes along, alone. A destination without room is not looked at. ``only`` takes this
        one message.
        """

    def next_due(self, now: int) -> Verb[dict[str, int]]:
        """When each destination has something to do; a million waiting rows cost a few seeks."""

    # -- settling --------------------------------------------------------------------------------------------

    def settle(self, owner: int, settled: Sequence[Settled], *, hold_unknown: bool = False) -> Verb[int]:
        """Write what attempts learned: attempt, state and event together. Returns how many recipients
        changed.

        A row that is no longer ours changes nothing, except that a late *delivered* confirms an uncertain
        recipient, whoever holds it. What got another route meanwhile is due there at once when it is
        deferred, and keeps the route that delivered it when it is delivered.
        """

    def unlease(self, owner: int, numbers: Sequence[int], now: int) -> Verb[int]:
        """Return what these leases hold: the store took them, and the engine never heard so. How many."""

    def give_back(self, owner: int, deliveries: Iterable[Delivery], now: int, why: str = "") -> Verb[int]:
        """Return untried recipients; no attempt is counted. With ``why`` the record is an attempt that says
        so. How many.
        """

    def quarantine(self, owner: int, delivery: Delivery, now: int, reason: str) -> Verb[int]:
        """Hold what cannot be read, with an event. How many recipients."""

    # -- engines ---------------------------------------------------------------------------------------------

    def register(self, uuid: str, pid: int, host: str, boot: str, now: int) -> Verb[int]:
        """A new engine's number."""

    def owners(self) -> Verb[list[tuple[int, str, int, str, int, int, int | None]]]:
        """Known engines as (id, uuid, pid, boot, started_at, leased recipients, oldest lease)."""

    def engines(self) -> Verb[int]:
        """How many engines share the limits of next hops; at least one."""

    def eldest(self) -> Verb[int | None]:
        """The engine that has been there the longest: it does what one of them has to do."""

    def forget_owner(self, owner: int) -> Verb[bool]:
        """An engine left in order; False when it still has leases."""

    def reclaim(
        self, owner: int, noted: set[tuple[int, int, int]] | None, now: int, *, hold: bool
    ) -> Verb[dict[str, int]]:
        """Take back all leases of a dead engine. ``noted``: its record as (message, recipient, lease); None
        counts every lease as noted, and none as begun. Answers owner, leases and uncertain.
        """

    # -- changing and reading --------------------------------------------------------------------------------

    def change(
        self, selection: Filter, event: str, now: int, reason: str = "", after: tuple[int, int] = (0, 0)
    ) -> Verb[tuple[int, tuple[int, int] | None]]:
        """One page of an operator's change; returns (recipients changed, where the next page begins or
        None).
        """

    def reroute(
        self, selection: Filter, route: str, now: int, after: tuple[int, int] = (0, 0)
    ) -> Verb[tuple[int, tuple[int, int] | None]]:
        """One page of recipients gets another route; returns as `change` does. What waits is due at once, but
        not before its time; what is being sent takes the new route when it comes back.
        """

    def seq_of(self, id: str) -> Verb[int | None]:
        """The store's number of a message, or None."""

    def find(
        self, selection: Filter, now: int, after: int = 0, limit: int = 500
    ) -> Verb[tuple[list[Status], int | None]]:
        """A page of messages that have a matching recipient, oldest first; and where the next page begins, or
        None.
        """

    def statuses(self, seqs: Sequence[int]) -> Verb[list[Status]]:
        """Messages with their recipients, by the store's numbers."""

    def content(self, seq: int) -> Verb[bytes | None]:
        """The bytes of a message; None when retention has taken them."""

    def attempts(self, seq: int) -> Verb[list[Attempt]]:
        """Every try of a message, oldest first."""

    def events_after(self, cursor: int, limit: int = 1000) -> Verb[list[Event]]:
        """Facts in the order of commit, behind a cursor."""

    def last_cursor(self) -> Verb[int]:
        """The newest event's cursor; 0 when there is none."""

    def stats(self, now: int) -> Verb[dict[str, Any]]:
        """The queue in numbers: live recipients by route and state, with the oldest; everything by state."""

    def deeper(self, limit: int) -> Verb[bool]:
        """True when more recipients than that wait; costs no more than counting so many."""

    def destinations(self) -> Verb[list[str]]:
        """The destinations that have queued mail."""

    # -- upkeep ----------------------------------------------------------------------------------------------

    def expire(
        self,
        now: int,
        spared: tuple[int, int] = (0, 0),
        mark: Mark = NO_MARK,
        *,
        above: int = -1,
        after: int = -1,
    ) -> Verb[int]:
        """Fail a page of what waits and whose end has come; returns how many.

        Ends behind ``spared[0]`` and up to ``spared[1]`` are passed over, and those up to ``after``; so are
        messages that are not numbered ``above``. What the ``mark`` says is younger than its dates gets the
        end of its true life.
        """

    def newest(self) -> Verb[int]:
        """The highest number of a message; 0 when there is none."""

    def rejuvenate(self, now: int, low: int, high: int, ago: int) -> Verb[int]:
        """Messages numbered above ``low`` and up to ``high`` are not older than ``ago``: their end is not
        earlier than that allows, whatever clock dated them. How many recipients.
        """

    def shorten(self, now: int, life: int) -> Verb[int]:
        """After a clock was set back: nobody has more time left than a whole life, ``life`` at the least. How
        many recipients.
        """

    def earlier(self, by: int, now: int, destination: str) -> Verb[int]:
        """After a clock was set back by so much: what waits is due as long from now as it was, but not before
        its time. How many recipients.
        """

    def clamp(self, now: int, longest: int) -> Verb[int]:
        """Nothing waits longer than the longest retry step, whatever a clock that jumped left behind. How
        many recipients.
        """

    def purge(self, kind: str, before: int, after: int = 0, limit: int = 500) -> Verb[tuple[int, int, bool]]:
        """One page of retention ("bodies", "transcripts" or "records"), of messages numbered above ``after``
        whose last recipient was final before that instant.

        Returns the last number looked at, the one up to which nothing is left to be done, and whether older
        ones may follow.
        """

    def forget_messages(self, seqs: Sequence[int]) -> Verb[int]:
        """Forget these finished messages now. How many."""

    def drop_upload(self, upload: str) -> Verb[int]:
        """Remove pieces whose message never came: their writer is gone. Returns how many."""

    # -- notes -----------------------------------------------------------------------------------------------

    def note_get(self, kind: str, key: str) -> Verb[tuple[Any, int] | None]:
        """A small document (what JSON can hold) and its version."""

    def note_list(self, kind: str) -> Verb[dict[str, Any]]:
        """All documents of a kind, by key."""

    def note_keys(self, kind: str) -> Verb[list[str]]:
        """The keys of a kind, whatever the documents hold."""

    def note_put(self, kind: str, key: str, value: Any, version: int | None = None) -> Verb[bool]:
        """Write a document; with ``version`` only if it is still that one (0: only if it is new). False =
        somebody was faster.
        """

    def note_set_aside(self, kind: str, key: str) -> Verb[None]:
        """A document that cannot be read, out of the way: under the kind ``<kind>.unreadable``, as it is."""

    def note_drop(self, kind: str, key: str) -> Verb[None]:
        """Remove a document."""


class Store(Protocol):
    """What the road needs of a store."""

    url: str
    #: A folder beside the store for what is written before it is stored; it may not exist yet.
    spool: str
    #: True when a call may wait for a network: then loops leave all calls to threads.
    blocking: bool
    #: How many commits can be under way at one moment.
    lanes: int

    @property
    def verbs(self) -> Verbs: ...

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

    def check(self) -> list[str]:
        """What is wrong with the queue, in sentences; an empty list is good news."""

    def backup(self, target: str) -> bool:
        """Copy the live queue, consistent and compacted, into the empty file ``target``, which becomes a
        SQLite store. False where the store cannot do that by itself, and nothing was written: then messages
        are copied one by one (`ops.move.copied`).
        """

    def close(self) -> None: ...


def store_id(store: Store) -> str:
    """The store's own name; made once."""
    while True:
        found = store.read(store.verbs.note_get("store", "id"))
        if found:
            return str(found[0])
        store.run(store.verbs.note_put("store", "id", os.urandom(16).hex(), 0))


__all__ = [
    "Added",
    "Alone",
    "Bulk",
    "Exclusive",
    "Kind",
    "Lock",
    "Many",
    "Missing",
    "Numbers",
    "Store",
    "StoreError",
    "Upload",
    "Uploads",
    "Verb",
    "Verbs",
    "shown",
    "store_id",
]
