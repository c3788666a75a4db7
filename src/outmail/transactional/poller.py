"""Moves mail that applications left in their own databases (``using=``) into the queue.

How: a thread looks at each source several times a second: it claims rows, adds their messages to the store,
and deletes the rows (`reader`). Rows are claimed in the name of the engine beside which this thread runs.
Claims of an engine that the store no longer knows (`Store.reclaim` removes dead ones) are released. A table
in the store's own database is emptied in one transaction. A row that the library wrote contains a complete
message; a row that was written in SQL (``outmail.enqueue``, ``outmail.draft``) is checked and composed here
for the first time.
Promises: a committed row is in the queue within a second; one that a dead engine had claimed, within seconds
after the death is known. Wherever the process is killed or stopped, nothing is lost, and nothing is stored
twice while the store keeps the record of a message. A row that cannot be sent becomes a failed message with
the reason, and stops no other row. Whoever can write rows can make outmail send mail, but not run programs or
write files. A source in trouble is logged once, left alone for a moment, and tried again; the other sources
go on.
Fails: never into the program; it logs. Does not: keep an application's database locked, or deliver.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from math import inf
from typing import Any

from outmail.accept.acceptance import Door, Draft
from outmail.errors import ConfigError, NotStored, Refused
from outmail.model import Dsn, Message, is_id, keyed_id, new_id
from outmail.policy.plain import plain_line
from outmail.smtp.syntax import printable
from outmail.store import StoreError, Verb, store_id
from outmail.store.verbs.outbox_rows import MOST, Row, take
from outmail.system.starting import started
from outmail.system.throttle import Throttle
from outmail.transactional.insert import Values, row
from outmail.transactional.reader import Claim, Source, claimant, missing_table

log = logging.getLogger("outmail")

#: Seconds between looks at an empty table, and after trouble.
PAUSE = 0.25
TROUBLE_PAUSE = 2.0
#: Seconds between looks for claims of dead engines. Longer where such a look takes long, so that the looks
#: take at most one part in `SHARE` of all time.
FREE = 2.0
SHARE = 20
#: Seconds after which a claim in the store's own name is released although other engines exist. An engine of
#: an older version, which claims in that name, may still be working on it.
STANDS = 10.0

#: Seconds until rows that the store could not accept one by one are tried again.
AGAIN = 60.0
#: Codes of `NotStored` that may be about one message and not about the store.
_OF_THE_ROWS = ("store-missing", "store-conflict", "store-other")
#: Limits: bytes of an envelope, and characters of all header values of a draft. JSON and folding use many
#: times the memory of their input.
MOST_ENVELOPE = 16 * 1024 * 1024
MOST_HEADER = 1_000_000

Compose = Callable[[dict[str, Any]], Draft]


def written(message: Message, draft: Draft, now: int) -> Values:
    """The row for a message that acceptance has checked."""
    envelope = {
        "sender": message.sender,
        "recipients": [r.address for r in message.recipients],
        "suppressed": {r.address: r.suppressed for r in message.recipients if r.suppressed},
        "key": message.key,
        "due": draft.due,
        "expires_at": message.expires_at,
        "priority": draft.priority,
        "tag": message.tag,
        "route": draft.route,
        "dsn": asdict(message.dsn) if message.dsn else None,
    }
    return row(message.id, now, message.content, {key: value for key, value in envelope.items() if value})


def drafted(found: Row, compose: Compose, recipients: int = 10_000) -> Draft:
    """The draft that a row asks for. Raises `Refused` when the row cannot be read or asks for too much."""
    if len(found.envelope) > MOST_ENVELOPE:
        raise Refused(
            f"the envelope has {len(found.envelope)} bytes; the limit is {MOST_ENVELOPE}", code="too-large"
        )
    try:
        envelope = json.loads(found.envelope.decode("utf-8"))
    except (ValueError, RecursionError):
        envelope = None
    if not isinstance(envelope, dict):
        raise Refused("the envelope is not a JSON object", code="bad-content")
    words = envelope.get("draft")
    if words is not None:
        if not isinstance(words, dict):
            raise Refused("a draft is a JSON object with the words of send", code="bad-content")
        _check_counts([words.get(name) for name in ("to", "cc", "bcc")], recipients)
        draft = _composed(words, compose)
    else:
        _check_counts([envelope.get("recipients")], recipients)
        draft = _enveloped(found.content, envelope)
    draft.id = keyed_id(draft.key) if draft.key and isinstance(draft.key, str) else found.id
    return draft


#: The keys of the envelope and their types. All but recipients may be missing or null.
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "sender": str, "recipients": (str, list), "suppressed": dict, "key": str, "due": int, "expires_at": int,
    "priority": str, "tag": str, "route": str,
    "dsn": dict,
}  # fmt: skip


def _enveloped(content: bytes, envelope: Mapping[str, Any]) -> Draft:
    for name, value in envelope.items():
        if value is not None and not isinstance(value, _FIELDS.get(name, object)):
            raise Refused(f"the envelope's {name} cannot be {printable(repr(value))}", code="bad-argument")
    recipients = envelope.get("recipients") or []
    suppressed = {
        address: plain_line(str(why)[:200]) for address, why in (envelope.get("suppressed") or {}).items()
    }
    notify, ret, envid = (
        str((envelope.get("dsn") or {}).get(name) or "") for name in ("notify", "ret", "envid")
    )
    return Draft(
        content,
        envelope.get("sender") or "",
        [recipients] if isinstance(recipients, str) else recipients,
        envelope.get("key"),
        envelope.get("due"),
        envelope.get("expires_at"),
        envelope.get("priority") or "normal",
        envelope.get("tag"),
        envelope.get("route"),
        Dsn(notify, ret, envid) if notify or ret or envid else None,
        suppressed=suppressed,
    )


#: The arguments of a draft in SQL. Files of the engine's machine are not among them.
WORDS = (
    "to",
    "cc",
    "bcc",
    "subject",
    "text",
    "html",
    "sender",
    "reply_to",
    "headers",
    "key",
    "at",
    "expires",
    "priority",
    "tag",
    "relay",
)


#: Those that become header fields.
_IN_HEADER = ("to", "cc", "bcc", "subject", "sender", "reply_to", "headers")


def _check_counts(given: Sequence[Any], most: int) -> None:
    """Check the number of recipients before anything is built from them."""
    count = sum(
        value.count("@") if isinstance(value, str) else len(value) if isinstance(value, (list, dict)) else 0
        for value in given
    )
    if count > most:
        raise Refused(
            f"the message has {count} recipients; the limit is {most} ([limits] recipients)",
            code="too-many-recipients",
        )


def _weight(value: Any) -> int:
    """The number of characters in all texts, plus some for each text."""
    total, left = 0, [value]
    while left:
        one = left.pop()
        total += len(one) if isinstance(one, str) else 0
        if isinstance(one, dict):
            left += [*one, *one.values()]
        elif isinstance(one, list):
            left += one
        total += 4
    return total


def _composed(words: Mapping[str, Any], compose: Compose) -> Draft:
    unknown = sorted(set(words) - set(WORDS))
    if unknown:
        raise Refused(
            f"a draft has no word {printable(unknown[0])}; it has {', '.join(WORDS)}", code="bad-argument"
        )
    if (weight := _weight([words.get(name) for name in _IN_HEADER])) > MOST_HEADER:
        raise Refused(
            f"the header would have {weight} characters; the limit of a draft is {MOST_HEADER}",
            code="too-large",
        )
    try:
        return compose({name: value for name, value in words.items() if value is not None})
    except (
        ConfigError,
        TypeError,
        ValueError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RecursionError,
    ) as problem:
        raise (
            problem if isinstance(problem, Refused) else Refused(str(problem), code="bad-argument")
        ) from None


def check_storable(message: Message) -> None:
    """Raises `Refused` for a message that not every store can store: it would keep all others of its batch
    from being stored.
    """
    texts = (message.sender, message.message_id, message.subject, message.key or "", message.tag or "")
    for text in (
        *texts,
        *(text for r in message.recipients for text in (r.address, r.destination, r.suppressed)),
    ):
        if "\0" in text or (
            not text.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in text)
        ):
            raise Refused(f"{printable(text)} holds a character that cannot be stored", code="bad-content")


def usable(id: str) -> bool:
    """True for text that can be a message's id."""
    return is_id(id) and "/" not in id


def abandoned(
    claims: Sequence[Claim], store: str, me: str, living: Collection[str], stood: bool
) -> list[str]:
    """Claims of our store that others may take over. ``living``: the engines that the store knows. ``stood``:
    the claim in the store's own name has existed for long enough. An engine is always registered before it
    claims.
    """
    known = {claimant(store, engine) for engine in living}
    alone = known <= {me}
    return [
        claim.claimant
        for claim in claims
        if claim.store == store
        and claim.claimant != me
        and (alone or stood if claim.claimant == store else claim.claimant not in known)
    ]


class TakeOver:
    """All sources of one store. ``open_source`` opens one by its URL. ``compose`` makes a draft from the
    arguments of ``send``. ``engine`` returns the name under which the store knows the engine beside which
    this runs, "" while it is not registered.
    """

    def __init__(
        self,
        door: Door,
        urls: Sequence[str],
        open_source: Callable[[str], Source],
        compose: Compose,
        engine: Callable[[], str] = lambda: "",
    ) -> None:
        self._door = door
        self._urls = urls
        self._open = open_source
        self._compose = compose
        self._engine = engine
        self._sources: dict[str, Source] = {}
        self._inside: dict[str, bool] = {}
        #: For each source, the numbers of rows that are ours and not moved yet; no entry while that is
        #: unknown.
        self._claimed: dict[str, list[int]] = {}
        #: When the rows that the store could not accept are tried again.
        self._again_at: dict[str, float] = {}
        self._free_at: dict[str, float] = {}
        #: For each source, a claim in the store's own name and since when it has been unchanged.
        self._standing: dict[str, tuple[Claim, float]] = {}
        self._troubles: dict[str, str] = {}
        self._throttle = Throttle(log)
        self._rest_until: dict[str, float] = {}
        self._store = ""
        self._guard = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a thread that looks again and again."""
        thread = threading.Thread(target=self._run, name="outmail-takeover", daemon=True)
        self._thread = thread if started(thread) else None

    def finish(self) -> None:
        """Begin no further batch. Does not wait."""
        self._over.set()

    def stop(self) -> None:
        """Stop, after a running batch has finished."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(30)
        with self._guard:
            for source in self._sources.values():
                with suppress(StoreError):
                    source.close()
            self._sources.clear()

    def all(self) -> int:
        """Move everything that is there now, also where there was trouble a moment ago. Returns how many
        rows.
        """
        count = 0
        self._rest_until.clear()
        self._again_at = dict.fromkeys(self._again_at, 0.0)
        self._free_at.clear()
        while not self._over.is_set() and (taken := self.look()):
            count += taken
        return count

    def _run(self) -> None:
        while not self._over.is_set():
            if not self._engine() or not self.look():
                self._over.wait(PAUSE)

    # -- work ------------------------------------------------------------------------------------------------

    def look(self) -> int:
        """Move one batch of each source. Returns how many rows were moved."""
        with self._guard:
            return sum(self._guarded(url) for url in self._urls)

    def _guarded(self, url: str) -> int:
        now = self._door.clock.monotonic()
        if self._over.is_set() or now < self._rest_until.get(url, 0.0):
            return 0
        try:
            count = self._step(url)
        except (StoreError, NotStored, ConfigError) as problem:
            if isinstance(problem, StoreError) and problem.kind in ("busy", "conflict"):
                return 0  # somebody else writes for long; nothing is wrong
            self._complain(url, str(problem))
        except Exception:
            log.exception("a bug of outmail while mail was moved into the queue; it stays in the table")
            self._complain(url, "internal error")
        else:
            if self._troubles.pop(url, None):
                log.info("%s is readable again", self._sources[url].name)
            return count
        self._rest_until[url] = now + TROUBLE_PAUSE
        if (source := self._sources.pop(url, None)) is not None:
            with suppress(StoreError):
                source.close()
        return 0

    def _complain(self, url: str, text: str) -> None:
        if self._troubles.get(url) != text:
            self._troubles[url] = text
            log.error("mail cannot be moved into the queue: %s; trying again", text)

    def _step(self, url: str) -> int:
        self._store = self._store or store_id(self._door.store)
        me = claimant(self._store, self._engine())
        source = self._sources.get(url)
        if source is None:
            source = self._sources[url] = self._open(url)
            self._inside[url] = source.inside(self._door.store)
        self._free_abandoned(url, source, me)
        return self._step_inside(me) if self._inside[url] else self._step_across(url, source, me)

    def _free_abandoned(self, url: str, source: Source, me: str) -> None:
        """Release claims in our store's name that nobody will finish."""
        began = self._door.clock.monotonic()
        if began < self._free_at.get(url, 0.0):
            return
        claims = [claim for claim in source.claims() if claim.store == self._store]
        if claims:
            living = {row[1] for row in self._door.store.read(self._door.store.verbs.owners())}
            for name in abandoned(claims, self._store, me, living, self._stood(url, claims, began)):
                log.info(
                    "%d rows in %s that a dead engine had claimed can be moved again",
                    source.free(name),
                    source.name,
                )
        now = self._door.clock.monotonic()
        self._free_at[url] = now + max(FREE, SHARE * (now - began))

    def _stood(self, url: str, claims: Sequence[Claim], now: float) -> bool:
        named = next((claim for claim in claims if claim.claimant == self._store), None)
        before, since = self._standing.pop(url, (None, now))
        if named is None:
            return False
        self._standing[url] = (named, since if named == before else now)
        return named == before and now - since >= STANDS

    def _step_across(self, url: str, source: Source, me: str) -> int:
        """Move rows by three transactions. Whatever interrupts them, the next look finds out what is ours."""
        numbers = self._claimed.pop(url, None)
        if numbers is None or self._door.clock.monotonic() >= self._again_at.get(url, inf):
            self._again_at.pop(url, None)
            numbers = source.claimed(me)
        numbers = numbers or source.claim(me)
        if numbers:
            self._door.fail("T1")
        rows = source.rows(me, numbers) if numbers else []
        trouble: NotStored | None = None
        last = rows[-1].n if rows else 0
        if rows:
            self._name(source, me, rows)
            messages = [self._message(found) for found in rows]
            try:
                self._door.keep(messages, again=True)
            except NotStored as problem:
                if problem.code not in _OF_THE_ROWS:
                    raise
                rows, trouble = self._kept_each(rows, messages), problem
            self._door.fail("T2")
            source.done(me, rows)
        self._claimed[url] = [n for n in numbers if n > last] if rows or trouble else []
        if trouble is not None:
            self._again_at[url] = self._door.clock.monotonic() + AGAIN
            raise trouble
        return len(rows)

    def _kept_each(self, rows: Sequence[Row], messages: Sequence[Message]) -> list[Row]:
        """Store each message alone, so that one which the store cannot accept does not hold up the others.
        Returns the rows of the messages that are stored.
        """
        kept: list[Row] = []
        for found, message in zip(rows, messages):
            try:
                self._door.keep([message], again=True)
                kept.append(found)
            except NotStored as problem:
                if problem.code not in _OF_THE_ROWS:
                    raise
        return kept

    def _name(self, source: Source, me: str, rows: Sequence[Row]) -> None:
        """Give rows with an impossible id one of ours, in the table first: if we are killed after the next
        step, the row is recognised by it.
        """
        ids = {found.n: new_id(self._door.clock.now()) for found in rows if not usable(found.id)}
        if ids:
            source.rename(me, ids)
        for found in rows:
            found.id = ids.get(found.n, found.id)

    def _step_inside(self, me: str) -> int:
        """The table is in the store's own database: move the rows in one transaction."""

        def move() -> Verb[int]:
            messages = [self._message(found) for found in (yield from take(me))]
            if messages:
                yield from self._door.store.verbs.add(messages, again=True)
            self._door.fail("T2")
            return len(messages)

        try:
            count = self._door.store.run(move())
        except StoreError as problem:
            raise missing_table(problem, self._door.store.url) from None
        if count:
            self._door.wake()
        return count

    def _check_route(self, route: str | None) -> None:
        """Whoever can write a row must not be able to run a program or write a file here by it: such relays
        must be configured.
        """
        if route and (name := self._door.terms.routes.hopeless(route)):
            raise Refused(
                f"the relay {printable(name)} is not configured where the mail is sent from",
                code="bad-argument",
            )

    def _message(self, found: Row) -> Message:
        found.id = found.id if usable(found.id) else new_id(self._door.clock.now())
        draft = Draft(found.content or found.envelope, "", (), id=found.id)
        try:
            if found.size > MOST:
                draft.content = b""
                raise Refused(
                    f"the row has {found.size} bytes; no more than {MOST} are read", code="too-large"
                )
            draft = drafted(found, self._compose, self._door.terms.recipients)
            self._check_route(draft.route)
            message = self._door.complete(draft)
            check_storable(message)
            return message
        except Refused as refusal:
            self._throttle.say(
                logging.ERROR,
                "unfit",
                "a row of outmail_outbox cannot be sent: %s (%s)",
                plain_line(str(refusal)[:500]),
                found.id,
            )
            return self._unfit(found, draft, refusal)
        except Exception as bug:
            self._throttle.say(
                logging.ERROR,
                "bug",
                "a bug of outmail: a row of outmail_outbox cannot be read (%s)",
                found.id,
                exc_info=bug,
            )
            return self._unfit(found, draft, Refused(f"internal error: {bug!r}", code="bad-content"))

    def _unfit(self, found: Row, draft: Draft, refusal: Refused) -> Message:
        if found.size <= MOST:
            draft.content = draft.content or found.envelope
        return self._door.unfit(refusal, draft)
