"""What a store is: the typed protocols `Store` and `Verbs`, between the engine and the databases.

A *verb* is one operation on the queue, written as a generator that yields SQL and returns its result
(`verbs`). A verb never begins or commits a transaction. `Store.commit` does: it runs several verbs in one
transaction, each in a savepoint of its own, so that one caller's bad row harms only its own verb. When
`commit` has returned without raising, everything is on disk.
Fails: `StoreError` when the store itself is in trouble; `Kind` says what kind of trouble.
Does not: know transports, decide anything beyond fair shares, or decide when something happens.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from outmail.model import Attempt, Delivery, Event, Filter, Leased, Message, Settled, Status
from outmail.policy.age import NO_MARK, Mark
from outmail.policy.loopback import Token


@dataclass(frozen=True, slots=True)
class Many:
    """One statement, run for many rows of parameters. The answer: all rows that it returned, in order."""

    sql: str
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Alone:
    """The only statement of its verb. Where that saves round trips, it is run as a transaction of its own.
    The answer: its rows.
    """

    sql: str
    params: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Numbers:
    """``count`` new numbers of a table, ascending; nobody else gets them. The answer: a list of int."""

    table: str
    count: int


@dataclass(frozen=True, slots=True)
class Exclusive:
    """Until the transaction ends, nobody else adds a message with one of these ids. The answer is empty."""

    ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Bulk:
    """The first request of a verb that inserts very many rows. Where it is faster, the database takes the
    plain INSERTs of its `Many` requests in bulk (COPY). The answer is empty.
    """


R = TypeVar("R")
#: A verb: it yields (sql, parameters) or one of the requests above, is sent the answer, and returns its
#: result.
Verb = Generator[tuple[str, Sequence[Any]] | Many | Alone | Numbers | Exclusive | Bulk, list[Any], R]


#: What `Verbs.add` returns for each message: (id, message_id, accepted_at, duplicate, the store's number or 0
#: for a duplicate).
Added = tuple[str, str, int, bool, int]
#: For each of some messages, in their order: the name under which the pieces of its content were written
#: before, or None. Empty when no message has pieces.
Uploads = Sequence[str | None]


#: What is wrong with a store. busy: somebody else holds the write lock. conflict: somebody else changed the
#: same at the same time. full: no space left. readonly: it takes no writes. forbidden: no permission. io: the
#: disk or the connection failed. corrupt: its data are damaged. schema: its tables have another version.
#: closed: we have closed it. other: anything else.
Kind = Literal[
    "busy", "conflict", "full", "readonly", "forbidden", "io", "corrupt", "schema", "closed", "other"
]


class StoreError(Exception):
    """The store itself cannot do this now. Callers decide by ``kind`` what to do; ``errno`` is the system's,
    where known; ``hint`` says what to do, where that is known better than by ``kind``.
    """

    def __init__(self, kind: Kind, text: str, errno: int | None = None, hint: str = "") -> None:
        super().__init__(text)
        self.kind = kind
        self.errno = errno
        self.hint = hint

    @property
    def passing(self) -> bool:
        """True when the same call may succeed later although nobody has changed anything."""
        return self.kind in ("busy", "conflict", "full", "readonly", "forbidden", "io", "other")


class Missing(Exception):
    """Some pieces of a long content, which were written before their message, are gone. Nothing was stored.
    Write the pieces again.
    """


def shown(url: str) -> str:
    """A store's URL without its password."""
    return re.sub(r"(password=)[^&\s]*", r"\1…", re.sub(r"(?<=://)([^/@:]*):[^@]*@", r"\1:…@", url))


class Lock(Protocol):
    """Proof that an engine is alive (`Store.register`). Its leases are its own while this object is held."""

    id: int
    #: The engine's name in the store (`verbs.owners`), until it ends or is declared dead.
    uuid: str

    def close(self) -> None: ...


class Upload(Protocol):
    """The claim on the pieces of a long content while they are written (`Store.uploading`). Nobody removes
    them while it is held.
    """

    def end(self) -> None:
        """The message of these pieces is stored."""

    def abandon(self) -> None:
        """Pieces that belong to no message may be removed."""


class Verbs(Protocol):
    """All operations of a store, in the order of a message's life.

    Calling one does nothing yet: it returns a `Verb`, to be given to `Store.run`, `Store.commit` or (if it
    writes nothing) `Store.read`. Times are milliseconds UTC, spans are milliseconds. A message's number
    (``seq``) is the store's own. A *page* has a bounded length.
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
        """Store messages, all or none. A message with a known key is not added; the answer is the receipt of
        the first one.

        ``uploads`` names the pieces of messages whose content was written before; raises `Missing` when some
        of them are gone. ``supersede`` cancels, in the same transaction, what still waits of another message.
        ``taken`` leases messages to an engine in the same transaction, as (owner, lease). With ``again``
        these messages may have been added before, with or without a key: a message with a known id is not
        added. ``alone`` promises that the transaction has no other verb.
        """

    def add_chunks(self, upload: str, first: int, pieces: Sequence[bytes], now: int) -> Verb[None]:
        """Write pieces of a long content before its message. ``first`` is the number of the first of these
        pieces.
        """

    def know(self, destinations: set[str]) -> Verb[None]:
        """Mail for these destinations will come: scans must look for it."""

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
        """Lease up to ``room[destination]`` due recipients of each destination: by priority shares, and the
        oldest first.

        ``budget`` bounds the bytes of content; at least one message is always taken. With ``suspects`` one
        suspect message is leased, too, alone. A destination without room is not looked at. With ``only`` only
        this message is leased.
        """

    def next_due(self, now: int) -> Verb[dict[str, int]]:
        """For each destination with queued mail, when something is due. A million waiting rows cost a few
        index seeks.
        """

    # -- settling --------------------------------------------------------------------------------------------

    def settle(self, owner: int, settled: Sequence[Settled], *, hold_unknown: bool = False) -> Verb[int]:
        """Write what attempts found out: attempt, state and event of each recipient in one transaction.
        Returns how many recipients changed.

        A recipient that this engine no longer has is not changed, with one exception: a late *delivered*
        confirms an uncertain recipient, whoever has leased it. A recipient that got another route
        meanwhile is due there at once when it is deferred; when it is delivered, it keeps the route
        that delivered it.
        """

    def unlease(self, owner: int, numbers: Sequence[int], now: int) -> Verb[int]:
        """Put back into the queue what these leases hold: the store gave the leases, but the engine never got
        the answer. Returns how many recipients.
        """

    def give_back(self, owner: int, deliveries: Iterable[Delivery], now: int, why: str = "") -> Verb[int]:
        """Put untried recipients back into the queue. No attempt is counted. With ``why`` an attempt is
        recorded that gives the reason. Returns how many recipients.
        """

    def quarantine(self, owner: int, delivery: Delivery, now: int, reason: str) -> Verb[int]:
        """Hold a message that cannot be read, with an event. Returns how many recipients."""

    # -- engines ---------------------------------------------------------------------------------------------

    def register(self, uuid: str, pid: int, host: str, boot: str, now: int) -> Verb[int]:
        """Register a new engine. Returns its number."""

    def owners(self) -> Verb[list[tuple[int, str, int, str, int, int, int | None]]]:
        """All known engines, as (id, uuid, pid, boot, started_at, leased recipients, time of the oldest
        lease).
        """

    def engines(self) -> Verb[int]:
        """How many engines share the limits of next hops; at least 1."""

    def eldest(self) -> Verb[int | None]:
        """The number of the engine that was registered first. It does what only one engine has to do."""

    def forget_owner(self, owner: int) -> Verb[bool]:
        """Remove an engine that has ended. False when it still has leases."""

    def reclaim(
        self, owner: int, noted: set[tuple[int, int, int]] | None, now: int, *, hold: bool, within: int = 0
    ) -> Verb[dict[str, int]]:
        """Take back all leases of a dead engine. ``noted``: the records in its file, as (message, recipient,
        lease). With None every lease counts as possibly sent, and none as begun. ``within``: for so long
        (ms) those wait whose loopback copy may tell what became of them. Returns owner, leases and uncertain
        recipients.
        """

    # -- changing and reading --------------------------------------------------------------------------------

    def change(
        self, selection: Filter, event: str, now: int, reason: str = "", after: tuple[int, int] = (0, 0)
    ) -> Verb[tuple[int, tuple[int, int] | None]]:
        """One page of a change that a person asked for. Returns (recipients changed, where the next page
        begins or None).
        """

    def reroute(
        self, selection: Filter, route: str, now: int, after: tuple[int, int] = (0, 0)
    ) -> Verb[tuple[int, tuple[int, int] | None]]:
        """Give one page of recipients another route. Returns what `change` returns. Queued recipients are due
        at once, but not before the time the sender asked for. Recipients that are being sent take the new
        route if they come back.
        """

    def seq_of(self, id: str) -> Verb[int | None]:
        """The store's number of a message, or None."""

    def find(
        self, selection: Filter, now: int, after: int = 0, limit: int = 500
    ) -> Verb[tuple[list[Status], int | None]]:
        """A page of messages of which at least one recipient matches, oldest first. Also returns where the
        next page begins, or None.
        """

    def ids_beginning(self, prefix: str, limit: int = 3) -> Verb[list[str]]:
        """The ids of messages that begin so, at most so many."""

    def failed_since(self, since: int, most: int = 100_000) -> Verb[int]:
        """How many recipients have failed since then (ms), among so many of the newest events."""

    def unfinished(
        self, after: tuple[int, int], limit: int = 5000
    ) -> Verb[tuple[list[tuple[Any, ...]], tuple[int, int] | None]]:
        """A page of recipients that are not final, as (id, size, accepted_at, sender, address, state,
        reason), oldest first; and where the next page begins, or None.
        """

    def statuses(self, seqs: Sequence[int]) -> Verb[list[Status]]:
        """Messages with their recipients, by the store's numbers."""

    def content(self, seq: int) -> Verb[bytes | None]:
        """The bytes of a message; None when retention has taken them."""

    def attempts(self, seq: int) -> Verb[list[Attempt]]:
        """Every try of a message, oldest first."""

    def events_after(self, cursor: int, limit: int = 1000) -> Verb[list[Event]]:
        """Events after a cursor, in the order of their commits."""

    def cursor_at(self, since: int) -> Verb[int]:
        """The cursor behind which all events lie that happened at that time (ms) or later."""

    def last_cursor(self) -> Verb[int]:
        """The newest event's cursor; 0 when there is none."""

    def stats(self, now: int) -> Verb[dict[str, Any]]:
        """Numbers about the queue: live recipients by route and state, with the oldest; all recipients by
        state.
        """

    def waiting(self, by: str, now: int, limit: int) -> Verb[list[tuple[str, int, int, int]]]:
        """What waits and whose time has come, by "relay" (the route's name), recipient "domain" or "reason",
        as (which, recipients, since when (ms) the oldest, how many of them held); most first.
        """

    def deeper(self, limit: int) -> Verb[bool]:
        """True when more recipients wait than ``limit``. Costs no more than counting that many."""

    def destinations(self) -> Verb[list[str]]:
        """The destinations that have queued mail."""

    # -- loopback --------------------------------------------------------------------------------------------

    def came_home(
        self, token: Token, now: int, hops: str, message_id: str, bounce: bool
    ) -> Verb[Literal["home", "duplicate", "unknown", "bounced"]]:
        """A loopback copy with a believed token is there: an event ``seen`` for each recipient of its
        transaction, and `confirm` for those who had no answer. Says what it was, and counts it. ``hops`` is a
        JSON list of [name, ms or null]; ``message_id`` and ``bounce`` are as it came.
        """

    def came_home_by_id(self, message_id: str, now: int, hops: str, bounce: bool, *, mark: bool) -> Verb[str]:
        """A mail without a token is there. With ``mark`` it is seen, where its Message-ID is one that we
        gave. Says what it was ("canary" and "foreign" as well), and counts it.
        """

    def assign(self, seq: int, domain: str, now: int) -> Verb[tuple[str, str] | None]:
        """Give a message that was not tried yet the Message-ID ``<id@domain>``, unless it has one of that
        form: (present, what it was before or ""). None where it is too late, or the content is gone.
        """

    def loopback_count(self, word: str, n: int = 1) -> Verb[None]:
        """So many more of this word came to the loopback address."""

    def loopback_counts(self) -> Verb[dict[str, int]]:
        """How many of each word."""

    def miss(self, before: int) -> Verb[dict[str, int]]:
        """Mark a page of copies that were sent before that instant and have not come home; how many by
        route.
        """

    def missing(self) -> Verb[dict[str, tuple[int, int]]]:
        """For each route how many copies are missed, and when (ms) the oldest of them was sent."""

    def copies_of(self, seq: int) -> Verb[list[tuple[Any, ...]]]:
        """The copies of a message, oldest first, as (id, route, host, recipients, outcome, sent_at, home_at,
        hops, late); recipients and hops are JSON.
        """

    def copies_since(
        self, since: int, limit: int = 100_000
    ) -> Verb[list[tuple[str, int, int | None, int, str | None]]]:
        """Copies that were sent since, newest first, as (route, sent_at, home_at, late, hops)."""

    def forget_copies(self, before: int) -> Verb[int]:
        """Forget a page of copies that are older than that; how many."""

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
        """Fail one page of waiting recipients that are too old. Returns how many.

        Spared are recipients that expire after ``spared[0]`` and not after ``spared[1]``, those that expire
        not after ``after``, and messages whose number is not higher than ``above``. A recipient that the
        ``mark`` shows to be younger than its dates gets a later expiry instead.
        """

    def newest(self) -> Verb[int]:
        """The highest number of a message; 0 when there is none."""

    def rejuvenate(self, now: int, low: int, high: int, ago: int) -> Verb[int]:
        """Messages numbered above ``low`` and up to ``high`` are at most ``ago`` old, whatever a wrong clock
        wrote into them: move their expiry accordingly. Returns how many recipients.
        """

    def shorten(self, now: int, life: int) -> Verb[int]:
        """After a clock was set back: no waiting recipient has more time left than its whole life, or
        ``life`` if that is longer. Returns how many recipients changed.
        """

    def earlier(self, by: int, now: int, destination: str) -> Verb[int]:
        """After a clock was set back by ``by``: waiting recipients keep the same time until they are due, but
        are not due before the time the sender asked for. Returns how many changed.
        """

    def clamp(self, now: int, longest: int) -> Verb[int]:
        """No recipient waits longer than the longest retry step, even after a clock that jumped. Returns how
        many changed.
        """

    def purge(self, kind: str, before: int, after: int = 0, limit: int = 500) -> Verb[tuple[int, int, bool]]:
        """One page of retention (``kind`` is "bodies", "transcripts" or "records"): messages numbered above
        ``after`` whose last recipient became final before ``before``.

        Returns the last number looked at, the number up to which nothing is left to do, and whether there may
        be more.
        """

    def forget_messages(self, seqs: Sequence[int]) -> Verb[int]:
        """Remove these finished messages now. Returns how many."""

    def drop_upload(self, upload: str) -> Verb[int]:
        """Remove pieces whose message never came, because their writer is gone. Returns how many pieces."""

    # -- next hops -------------------------------------------------------------------------------------------

    def pause_hop(self, name: str, url: str, trouble: str, engine: str, now: int) -> Verb[None]:
        """An engine (its uuid) found that a next hop takes nothing: a note of kind ``hop``, and, if that is
        news, an event ``paused``.
        """

    def resume_hop(self, name: str, now: int) -> Verb[None]:
        """It answers again: the note goes, and, where there was one, an event ``resumed`` tells so."""

    def forget_hops(self, engines: set[str], now: int) -> Verb[None]:
        """Forget notes that no engine has confirmed for long, of engines that are not among these."""

    # -- notes -----------------------------------------------------------------------------------------------

    def note_get(self, kind: str, key: str) -> Verb[tuple[Any, int] | None]:
        """A small document (what JSON can hold) and its version."""

    def note_list(self, kind: str) -> Verb[dict[str, Any]]:
        """All documents of a kind, by key."""

    def note_keys(self, kind: str) -> Verb[list[str]]:
        """The keys of a kind, whatever their documents contain."""

    def note_put(self, kind: str, key: str, value: Any, version: int | None = None) -> Verb[bool]:
        """Write a document. With ``version`` only if that is still its version (0: only if it does not
        exist). False: somebody else wrote it first.
        """

    def note_set_aside(self, kind: str, key: str) -> Verb[None]:
        """Move an unreadable document out of the way, unchanged: to the kind ``<kind>.unreadable``."""

    def note_drop(self, kind: str, key: str) -> Verb[None]:
        """Remove a document."""


class Store(Protocol):
    """What the engine and the other users of a store need."""

    url: str
    #: A folder beside the store, for what is written before it is stored. It may not exist yet.
    spool: str
    #: True when a call may wait for a network. Then event loops make all calls on threads.
    blocking: bool
    #: How many commits can run at the same time.
    writers: int

    @property
    def verbs(self) -> Verbs: ...

    def commit(self, verbs: Sequence[Verb[Any]], wait: float = 30.0) -> list[Any]:
        """Run the verbs in one transaction. It is on disk when this returns. When a verb raises an exception
        of its own, that exception is its answer.
        """

    def begin(self, verbs: Sequence[Verb[Any]]) -> Callable[[], list[Any]]:
        """`commit` for event loops, in two parts: what need not wait is done now; the rest is the returned
        function, to be called once, on a thread.
        """

    def run(self, verb: Verb[R], wait: float = 30.0) -> R:
        """Run one verb. It shares its commit with other threads that ask at the same moment."""

    def read(self, verb: Verb[R]) -> R:
        """Run a verb that writes nothing, on one consistent snapshot."""

    def register(self, now: int) -> Lock:
        """Become an engine: get the number under which to lease."""

    def dots(self, owner: Any, notes: Iterable[tuple[Delivery, Sequence[Leased]]]) -> None:
        """Record final dots before they are sent. The record survives a killed process. Raises OSError: then
        the dot must not be sent.
        """

    def settled(self, owner: Any, deliveries: Iterable[Delivery]) -> None:
        """These leases have ended: their dots need no record any more."""

    def time(self) -> int | None:
        """The time of the store's own clock, or None if it has none. Several machines agree on the age of
        mail by it.
        """

    def reclaim(self, now: int, *, hold: bool, within: int = 0) -> list[dict[str, Any]]:
        """Put the work of dead engines back into the queue. Returns one record for each engine.
        ``within``: as of `Verbs.reclaim`.
        """

    def drop_history(self, now: int, records: int) -> bool:
        """One short step of removing finished mail that is stored in partitions and is past retention as a
        whole. True when another step should follow.
        """

    def kept(self, records: int) -> int:
        """The age (ms) from which on finished mail is removed row by row, when its records are kept for
        ``records``.
        """

    def uploading(self, upload: str) -> Upload:
        """Pieces under this name are about to be written."""

    def sweep_uploads(self) -> int:
        """Remove pieces whose message never came and whose writer is gone. Returns how many pieces."""

    def give_space_back(self) -> None:
        """Give some of the freed space back to the file system, where the database does not do that by
        itself.
        """

    def changed(self) -> bool:
        """True when somebody has committed since the last call: time to ask `next_due` again."""

    def announce(self) -> None:
        """This process has accepted mail. Tell engines elsewhere, if that is configured."""

    def follow(self, wake: Callable[[], None]) -> None:
        """``wake`` is called, on some thread, when others announce mail, if that is configured. It is only a
        hint; `changed` decides.
        """

    def check(self) -> list[str]:
        """What is wrong with the queue, in sentences. An empty list means that all is well."""

    def backup(self, target: str) -> bool:
        """Copy the live queue, consistent and compacted, into the empty file ``target``, which becomes a
        SQLite store. False where the store cannot do that, and nothing was written: then messages are copied
        one by one (`ops.move.copied`).
        """

    def close(self) -> None: ...


def store_id(store: Store) -> str:
    """The store's own name, created on first use."""
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
