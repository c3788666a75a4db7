"""Reading and changing a queue: the state of messages, what happened to them, and changes that people ask
for.

`Outbox` has one (``box.queue``). The command, Django's admin and later a web page use one without an Outbox
(`Queue.open`).
Promises: each page that it returns comes from one consistent snapshot. A change is committed, page by page,
when the call returns, and engines are told to look. Threads may share it.
Fails: `NotFound` for an id that the store does not know, `Refused` for a filter that cannot be read,
`NotStored` when the store cannot be read or written.
Does not: accept or deliver messages, or start anything.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from outmail.accept.acceptance import not_stored
from outmail.clock import Clock
from outmail.config import Config
from outmail.errors import ConfigError, NotFound, NotStored, Refused
from outmail.mime import splice
from outmail.model import Attempt, Event, Filter, RecipientStatus, Status, is_id
from outmail.policy import selection
from outmail.policy.loopback import statistics
from outmail.policy.route import Routes
from outmail.smtp.syntax import printable
from outmail.store import Store, StoreError, Verb, shown
from outmail.store.verbs.export import events_of
from outmail.system.loading import loading
from outmail.system.lockfile import boot_id
from outmail.wiring import open_store

if TYPE_CHECKING:
    from outmail.policy.timeline import Happened

R = TypeVar("R")
#: The reason shown for a recipient whose route the engines of this configuration do not know.
UNKNOWN_ROUTE = "route unknown here"
#: A service that gave its last sign of life longer ago than this is no longer relied on.
SERVICE_MS = 90_000


#: The Received field that outmail's listeners put in front of a message.
_TAKEN = re.compile(rb"Received: from ([^\r\n]{1,255})\r\n\tby \S+ with (\w+) id")


class EngineSeen(NamedTuple):
    """An engine that the store knows. Times are in ms; ``oldest`` is when its oldest lease was taken."""

    id: int
    uuid: str
    pid: int
    boot: str
    started_at: int
    leases: int
    oldest: int | None


class CopySeen(NamedTuple):
    """One loopback copy. Times are in ms; ``sent_at`` and ``home_at`` are None while they are not known.
    ``hops``: (name, ms or None) in the order of travel. ``missed``: it did not come home in time.
    """

    route: str
    host: str
    recipients: tuple[int, ...]
    outcome: str
    sent_at: int | None
    home_at: int | None
    hops: tuple[tuple[str, int | None], ...]
    missed: bool


def _hops(text: str | None) -> tuple[tuple[str, int | None], ...]:
    return tuple((name, at) for name, at in json.loads(text)) if text else ()


class Waiting(NamedTuple):
    """What waits for one relay, to one domain or for one reason. ``since`` (ms): the oldest; ``held``: how
    many of the recipients an engine does not touch.
    """

    which: str
    recipients: int
    since: int
    held: int


def _dead(engine: EngineSeen) -> bool:
    """True when its process could be looked for here and does not exist."""
    if engine.boot != boot_id():
        return False  # of another machine or another boot: this cannot be known here
    try:
        os.kill(engine.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


class Unfinished(NamedTuple):
    """A recipient that is not final, with what a list shows of its message. ``accepted_at``: ms."""

    id: str
    size: int
    accepted_at: int
    sender: str
    address: str
    state: str
    reason: str


def opened(place: str, *, reading: bool = False) -> Store:
    """The store at a path or URL. Raises `NotStored` when it cannot be opened."""
    try:
        return open_store(place, reading=reading)
    except StoreError as problem:
        raise not_stored(problem, f"the store {shown(place)} cannot be opened") from None


class Queue:
    """The messages in ``store``. ``routes`` are those that an engine of this configuration knows; recipients
    with another route are explained. ``wake`` is called after each change.

    ``store``, ``clock`` and ``routes`` are for the package, not for users.
    """

    def __init__(
        self, store: Store, routes: Routes, clock: Clock | None = None, wake: Callable[[], None] | None = None
    ) -> None:
        self.store = store
        self.routes = routes
        self.clock = clock or Clock()
        self._wake = wake

    @classmethod
    def open(cls, config: Config, *, reading: bool = False) -> Queue:
        """The queue of a configuration, without an Outbox. ``reading``: one that can only be read is enough
        (`only_reads` says why). Raises `NotStored`; to be closed.
        """
        return cls(opened(config.store, reading=reading), config.routes)

    @property
    def only_reads(self) -> str:
        """Why nothing can be changed, as a sentence; "" where it can."""
        return getattr(self.store, "only_reads", "")

    def close(self) -> None:
        """Close the store; only for a queue that `open` has opened."""
        self.store.close()

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- messages --------------------------------------------------------------------------------------------

    def status(self, id: str) -> Status:
        """The state of a message and its recipients. Raises `NotFound`."""
        return self._explained(self._read(self.store.verbs.statuses([self.seq(id)]))[0])

    def find(self, filter: str = "", **words: str) -> Iterator[Status]:
        """Messages with a matching recipient, oldest first. ``find(state="queued", to="*@x.org")`` does the
        same as filter text.
        """
        text = " ".join([filter, *(f"{key}:{shlex.quote(str(value))}" for key, value in words.items())])
        yield from self.matching(selection.parse(text, self.clock.now()))

    def matching(self, selected: Filter) -> Iterator[Status]:
        """`find`, with a filter that was read already."""
        after: int | None = 0
        while after is not None:
            page, after = self._read(self.store.verbs.find(selected, self.clock.now(), after))
            yield from map(self._explained, page)

    def unfinished(self) -> Iterator[Unfinished]:
        """Recipients that are not final, message by message, oldest first; faster than `find`."""
        after: tuple[int, int] | None = (0, 0)
        while after is not None:
            page, after = self._read(self.store.verbs.unfinished(after))
            yield from map(Unfinished._make, page)

    def content(self, id: str) -> bytes:
        """The bytes of the next DATA, before dot-stuffing. Raises `NotFound`, also when retention has removed
        them.
        """
        content = self._read(self.store.verbs.content(self.seq(id)))
        if content is None:
            raise NotFound(
                f"the content of {id} is gone: retention keeps that of finished mail for a limited time"
            )
        return content

    def attempts(self, id: str) -> list[Attempt]:
        """All attempts, oldest first, with their transcripts as far as they were kept."""
        return self._read(self.store.verbs.attempts(self.seq(id)))

    def wait(self, id: str, timeout: float) -> Status:
        """The status when every recipient is final or held, or the present one after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while not (status := self.status(id)).settled and time.monotonic() < deadline:
            time.sleep(min(0.02, max(0.0, deadline - time.monotonic())))
        return status

    def is_known(self, id: str) -> bool:
        """True for a message, or a recipient ``id/n``, that is in the records."""
        try:
            self.seq(id)
        except NotFound:
            return False
        return True

    def seq(self, id: str) -> int:
        """The store's own number of the message ``id`` or ``id/n``; raises `NotFound`."""
        head, _, n = str(id).partition("/")
        seq = self._read(self.store.verbs.seq_of(head)) if head.isascii() else None
        if seq is None or (
            n and not any(str(r.n) == n for r in self._read(self.store.verbs.statuses([seq]))[0].recipients)
        ):
            raise NotFound(f"no message {printable(str(id))} is in {self.store.url}")
        return seq

    def ids_beginning(self, prefix: str, limit: int = 3) -> list[str]:
        """The ids of messages that begin so, at most so many."""
        return self._read(self.store.verbs.ids_beginning(prefix, limit))

    def failed_since(self, since: int) -> int:
        """How many recipients have failed since then (ms), among the newest 100,000 events."""
        return self._read(self.store.verbs.failed_since(since))

    # -- what happened, and what is to come ------------------------------------------------------------------

    def events(self, after: int = 0) -> Iterator[Event]:
        """Events after the cursor ``after``, in the order of commits, up to now."""
        while page := self._read(self.store.verbs.events_after(after)):
            yield from page
            after = page[-1].cursor

    def cursor_at(self, since: int) -> int:
        """The cursor behind which all events lie that happened at that time (ms) or later."""
        return self._read(self.store.verbs.cursor_at(since))

    def last_cursor(self) -> int:
        """The newest event's cursor; 0 when there is none."""
        return self._read(self.store.verbs.last_cursor())

    def stats(self) -> dict[str, Any]:
        """``routes``: live recipients by route and state, a dict each (``route, state, recipients, oldest_at,
        due, uncertain``); ``states``: how many recipients are in each state.
        """
        return self._read(self.store.verbs.stats(self.clock.now()))

    def waiting(self, by: str = "relay", limit: int = 100) -> list[Waiting]:
        """What waits and whose time has come, by "relay", recipient "domain" or "reason"; most first."""
        return [Waiting(*row) for row in self._read(self.store.verbs.waiting(by, self.clock.now(), limit))]

    def next_due(self) -> dict[str, int]:
        """When each route has something due, in ms."""
        return self._read(self.store.verbs.next_due(self.clock.now()))

    def engines(self) -> list[EngineSeen]:
        """The engines that the store knows, with what they have leased."""
        return [EngineSeen(*row) for row in self._read(self.store.verbs.owners())]

    def last_engine(self) -> dict[str, Any] | None:
        """The last sign of life of any engine (``at`` in ms), or None."""
        return self._note("engine", "last")

    def service(self) -> dict[str, Any] | None:
        """The last sign of life of a service (``at`` in ms, ``routes`` it serves), or None."""
        return self._note("engine", "service")

    def is_served(self, route: str) -> bool:
        """True when a service that lives has said that it serves a relay of this route."""
        seen = self.service()
        return (
            seen is not None
            and self.clock.now() - seen["at"] <= SERVICE_MS
            and any(name in seen["routes"] for name in route.split(","))
        )

    def paused_hops(self) -> dict[str, dict[str, Any]]:
        """Next hops that live engines have paused: ``since`` (ms), ``trouble`` and ``url`` of each. Left out
        are notes of engines that have ended, and notes about a URL that is no longer configured.
        """
        notes = self.troubled_hops()
        living = self.living() if notes else set()
        return {name: note for name, note in notes.items() if note["engine"] in living}

    def troubled_hops(self) -> dict[str, dict[str, Any]]:
        """`paused_hops`, and those that took nothing when an ended engine tried them last, ``at``."""
        known = self.routes.relays
        return {
            name: note
            for name, note in self._read(self.store.verbs.note_list("hop")).items()
            if "url" in note and (name not in known or note["url"] == known[name].url)
        }

    def known_elsewhere(self) -> set[str]:
        """Names and URLs of the relays that live engines know, even if this process does not."""
        notes = self._read(self.store.verbs.note_list("knows"))
        living = self.living() if notes else set()
        return {name for engine, names in notes.items() if engine in living for name in names}

    def living(self) -> set[str]:
        """The uuids of the engines that the store knows and that are not certainly dead."""
        return {engine.uuid for engine in self.engines() if not _dead(engine)}

    def ahead_notes(self) -> dict[str, dict[str, Any]]:
        """Relays that are known to refuse what is sent ahead: ``since``, ``until`` (ms) and ``reply`` of each
        (`policy.pace.may_send_ahead`).
        """
        return self._read(self.store.verbs.note_list("ahead"))

    def history(self, id: str) -> list[Happened]:
        """The events of one message, oldest first."""
        with loading:
            from outmail.policy.timeline import Happened

        rows = self._read(events_of(self.seq(id)))
        return [
            Happened(at, event, n, state, reason, route or "")
            for at, event, n, state, _, reason, _, _, route in rows
        ]

    def story(self, id: str, when: Callable[[int], str]) -> list[str]:
        """What happened to a message, in sentences, and what comes next. ``when`` writes a time (ms)."""
        with loading:
            from outmail.policy.timeline import Copied, timeline

        status = self.status(id)
        copies = [Copied(c.recipients, c.sent_at, c.home_at, c.hops, c.missed) for c in self.copies(id)]
        events, now = self.history(id), self.clock.now()
        return timeline(status, self.attempts(id), events, copies, now, when, self._how(id))

    def _how(self, id: str) -> str:
        """How it came in, as the first Received field of our own tells; "" for programs that have none."""
        content = self._read(self.store.verbs.content(self.seq(id))) or b""
        name, field = next(splice.fields(content), ("", b""))
        found = _TAKEN.match(field) if name == "received" else None
        return f"by {found[2].decode()} from {found[1].decode('ascii', 'replace')}" if found else ""

    # -- loopback --------------------------------------------------------------------------------------------

    def copies(self, id: str) -> list[CopySeen]:
        """The loopback copies of a message, oldest first."""
        rows = self._read(self.store.verbs.copies_of(self.seq(id)))
        return [
            CopySeen(route, host, tuple(json.loads(people)), outcome, sent, home, _hops(hops), bool(late))
            for _, route, host, people, outcome, sent, home, hops, late in rows
        ]

    def assign(self, id: str) -> str:
        """Give a message that was not tried yet a Message-ID by which it is known when it comes home; returns
        it. A second call changes nothing. Raises `Refused` where it is too late.
        """
        status = self.status(id)
        domain = status.sender.rpartition("@")[2] or "localhost"
        done = self._write(self.store.verbs.assign(self.seq(id), domain, self.clock.now()))
        if done is None:
            raise Refused(
                f"{id} was tried already, or its content is gone: its Message-ID stays {status.message_id}",
                code="too-late",
            )
        return done[0]

    def loopback_stats(self, span: int) -> dict[str, Any]:
        """How the copies of the last ``span`` ms fare (`policy.loopback.statistics`)."""
        now, verbs = self.clock.now(), self.store.verbs
        return statistics(
            self._read(verbs.copies_since(now - span)), self._read(verbs.loopback_counts()), now
        )

    def _note(self, kind: str, key: str) -> dict[str, Any] | None:
        found = self._read(self.store.verbs.note_get(kind, key))
        return found[0] if found else None

    # -- changing --------------------------------------------------------------------------------------------

    def cancel(self, what: str | Filter) -> int:
        """Cancel waiting recipients. Returns how many changed; recipients that are being sent count, too (as
        a wish).
        """
        return self.change(what, "cancel")

    def hold(self, what: str | Filter) -> int:
        """Stop recipients until `release`."""
        return self.change(what, "hold")

    def release(self, what: str | Filter) -> int:
        """Let held recipients go on."""
        return self.change(what, "release")

    def retry(self, what: str | Filter) -> int:
        """Make queued recipients due now."""
        return self.change(what, "due")

    def requeue(self, what: str | Filter) -> int:
        """Queue failed or cancelled recipients again, with new attempts and a new age. Without content
        nothing changes.
        """
        return self.change(what, "requeue")

    def reroute(self, what: str | Filter, relay: str) -> int:
        """Queued and held recipients take another route from now on; what waits is due at once, and what is
        being sent takes it when it comes back. ``relay``: the name of a configured relay, or a URL, or
        several of them with commas. Raises `ConfigError` for a relay that this process does not know:
        configured, given to its Outbox, or a server that asks for no password.
        """
        try:
            route = self.routes.named(relay)
        except ValueError as problem:
            raise ConfigError(
                str(problem), hint="name it in [relays], or give it to this process: --relay, Outbox(relay=)"
            ) from None
        return self._paged(what, partial(self.store.verbs.reroute, route=route))

    def change(self, what: str | Filter, event: str) -> int:
        """One change of the lifecycle for an id or a filter. Empty text raises `Refused`."""
        return self._paged(what, partial(self.store.verbs.change, event=event))

    def _paged(
        self, what: str | Filter, verb: Callable[..., Verb[tuple[int, tuple[int, int] | None]]]
    ) -> int:
        """Page by page until all that is selected has changed."""
        now = self.clock.now()
        selected = self._selected(what, now)
        count = 0
        after: tuple[int, int] | None = (0, 0)
        while after is not None:
            changed, after = self._changed(partial(verb, selected, now=now, after=after))
            count += changed
        if self._wake is not None:
            self._wake()
        return count

    def purge(self, what: str | Filter) -> int:
        """Remove messages all of whose recipients are final. Returns how many messages."""
        selected = self._selected(what, self.clock.now())
        seqs = [self.seq(s.id) for s in self.matching(selected) if all(r.final for r in s.recipients)]
        return self._write(self.store.verbs.forget_messages(seqs))

    def _selected(self, what: str | Filter, now: int) -> Filter:
        if isinstance(what, Filter):
            return what
        if not what.strip():
            raise Refused(
                "an empty selection would mean everything; give an id or a filter", code="bad-filter"
            )
        if is_id(what):
            self.seq(what)
        return selection.select(what, now)

    def _changed(self, page: Callable[[], Verb[R]]) -> R:
        """One page; tried again when an engine settles the same rows at that moment."""
        for last in (False, False, True):
            try:
                return self._write(page())
            except NotStored as problem:
                if last or problem.code != "store-conflict":
                    raise
        raise AssertionError("unreachable")

    # -- underneath ------------------------------------------------------------------------------------------

    def _explained(self, status: Status) -> Status:
        """Add why a recipient waits, where no engine with our configuration would take it."""
        if all(r.state != "queued" or self.routes.resolve(r.route) for r in status.recipients):
            return status
        return replace(status, recipients=tuple(_stranded(r, self.routes) for r in status.recipients))

    def _read(self, verb: Verb[R]) -> R:
        try:
            return self.store.read(verb)
        except StoreError as problem:
            raise not_stored(problem, "the store cannot be read") from None

    def _write(self, verb: Verb[R]) -> R:
        try:
            return self.store.run(verb)
        except StoreError as problem:
            raise not_stored(problem, "the change was not stored") from None


def _stranded(recipient: RecipientStatus, routes: Routes) -> RecipientStatus:
    if recipient.state != "queued" or routes.resolve(recipient.route):
        return recipient
    return replace(recipient, reason="; ".join(filter(None, (recipient.reason, UNKNOWN_ROUTE))))
