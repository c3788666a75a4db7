"""Mail that applications left in their own databases (``using=``): taken over into the queue.

How: a thread looks at each source several times a second: claim, add to the store, delete; see `store.source`. A table in the store's own
database is emptied in one transaction. A row of ours carries a
complete message; a row made by SQL (``outmail.enqueue``, ``outmail.draft``) is checked and composed here for the first time.
Promises: a committed row is in the queue within a second; killed anywhere, nothing is lost and nothing doubled; a row that cannot be
sent ends as failed, with the reason, and stops nothing; whoever may write rows can make outmail send mail, not run programs or write files; a source in trouble is told once, left alone for a moment, and tried again;
the others go on.
Fails: never into the program; it logs. Does not: hold an application's database, or deliver.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from outmail.accept import Door, Draft
from outmail.errors import ConfigError, NotStored, Refused
from outmail.model import Dsn, Message
from outmail.store import Store, Trouble, Verb
from outmail.store.caller import Values, row
from outmail.store.source import Row, Source, missing_table, take
from outmail.worker import started

log = logging.getLogger("outmail")

#: Seconds between looks at an empty table, and after trouble.
PAUSE = 0.25
TROUBLE_PAUSE = 2.0

#: Relays that a row may name without their being configured.
NETWORK = ("smtp://", "smtps://", "smtp+plain://", "lmtp://")

Compose = Callable[[dict[str, Any]], Draft]


def written(message: Message, draft: Draft, now: int) -> Values:
    """A message that acceptance has checked → the row that carries it."""
    envelope = {
        "sender": message.sender, "recipients": [r.address for r in message.recipients],
        "suppressed": {r.address: r.suppressed for r in message.recipients if r.suppressed}, "key": message.key, "due": draft.due,
        "expires_at": message.expires_at, "priority": draft.priority, "tag": message.tag, "route": draft.route,
        "dsn": asdict(message.dsn) if message.dsn else None,
    }  # fmt: skip
    return row(message.id, now, message.content, {key: value for key, value in envelope.items() if value})


def drafted(found: Row, compose: Compose) -> Draft:
    """A row → what it asks for; raises `Refused` for what cannot be read."""
    try:
        envelope = json.loads(found.envelope)
    except ValueError:
        envelope = None
    if not isinstance(envelope, dict):
        raise Refused("the envelope is not a JSON object", code="bad-content")
    words = envelope.get("draft")
    if words is not None:
        if not isinstance(words, dict):
            raise Refused("a draft is a JSON object with the words of send", code="bad-content")
        draft = _composed(words, compose)
    else:
        draft = _enveloped(bytes(found.content), envelope)
    draft.id = found.id
    return draft


#: The envelope's words and what each may be; all but recipients may be missing or null.
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "sender": str, "recipients": (str, list), "suppressed": dict, "key": str, "due": int, "expires_at": int, "priority": str, "tag": str, "route": str,
    "dsn": dict,
}  # fmt: skip


def _enveloped(content: bytes, envelope: Mapping[str, Any]) -> Draft:
    for name, value in envelope.items():
        if value is not None and not isinstance(value, _FIELDS.get(name, object)):
            raise Refused(f"the envelope's {name} cannot be {value!r}", code="bad-argument")
    recipients = envelope.get("recipients") or []
    suppressed = {address: str(why)[:200].encode("ascii", "replace").decode() for address, why in (envelope.get("suppressed") or {}).items()}
    notify, ret, envid = (str((envelope.get("dsn") or {}).get(name) or "") for name in ("notify", "ret", "envid"))
    return Draft(
        content, envelope.get("sender") or "", [recipients] if isinstance(recipients, str) else recipients, envelope.get("key"), envelope.get("due"),
        envelope.get("expires_at"), envelope.get("priority") or "normal", envelope.get("tag"), envelope.get("route"),
        Dsn(notify, ret, envid) if notify or ret or envid else None, suppressed=suppressed,
    )  # fmt: skip


#: What a draft in SQL may say. Files of the engine's machine are not among it.
WORDS = ("to", "cc", "bcc", "subject", "text", "html", "sender", "reply_to", "headers", "key", "at", "expires", "priority", "tag", "relay")


def _composed(words: Mapping[str, Any], compose: Compose) -> Draft:
    unknown = sorted(set(words) - set(WORDS))
    if unknown:
        raise Refused(f"a draft has no word {unknown[0]!r}; it has {', '.join(WORDS)}", code="bad-argument")
    try:
        return compose({name: value for name, value in words.items() if value is not None})
    except (ConfigError, TypeError, ValueError) as problem:
        raise problem if isinstance(problem, Refused) else Refused(str(problem), code="bad-argument") from None


def store_id(store: Store) -> str:
    """The store's own name in claims; made once."""
    while True:
        found = store.read(store.verbs.note_get("store", "id"))
        if found:
            return str(found[0])
        store.run(store.verbs.note_put("store", "id", uuid.uuid4().hex, 0))


class TakeOver:
    """All sources of one store. ``open_source`` opens one by its URL; ``compose`` makes a draft of the words of ``send``."""

    def __init__(self, door: Door, urls: Sequence[str], open_source: Callable[[str], Source], compose: Compose) -> None:
        self._door = door
        self._urls = urls
        self._open = open_source
        self._compose = compose
        self._sources: dict[str, Source] = {}
        self._inside: dict[str, bool] = {}
        self._troubles: dict[str, str] = {}
        self._rest_until: dict[str, float] = {}
        self._me = ""
        self._guard = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    # -- life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Look on in a thread of its own."""
        thread = threading.Thread(target=self._run, name="outmail-takeover", daemon=True)
        self._thread = thread if started(thread) else None

    def stop(self) -> None:
        """One batch may be under way: it is finished first."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(30)
        with self._guard:
            for source in self._sources.values():
                with suppress(Trouble):
                    source.close()
            self._sources.clear()

    def all(self) -> int:
        """Take over what is there now, also where there was trouble a moment ago; returns how many rows."""
        count = 0
        self._rest_until.clear()
        while not self._over.is_set() and (taken := self.look()):
            count += taken
        return count

    def _run(self) -> None:
        while not self._over.is_set():
            if not self.look():
                self._over.wait(PAUSE)

    # -- work -------------------------------------------------------------------------------------------------------

    def look(self) -> int:
        """One batch of each source; returns how many rows were taken over."""
        with self._guard:
            return sum(self._guarded(url) for url in self._urls)

    def _guarded(self, url: str) -> int:
        now = self._door.clock.monotonic()
        if self._over.is_set() or now < self._rest_until.get(url, 0.0):
            return 0
        try:
            count = self._step(url)
        except (Trouble, NotStored, ConfigError) as problem:
            if isinstance(problem, Trouble) and problem.kind in ("busy", "conflict"):
                return 0  # somebody writes for long; nothing is wrong
            self._complain(url, str(problem))
        except Exception:
            log.exception("a bug of outmail while mail was taken over; it stays where it is")
            self._complain(url, "internal error")
        else:
            if self._troubles.pop(url, None):
                log.info("%s is readable again", self._sources[url].name)
            return count
        self._rest_until[url] = now + TROUBLE_PAUSE
        if (source := self._sources.pop(url, None)) is not None:
            with suppress(Trouble):
                source.close()
        return 0

    def _complain(self, url: str, text: str) -> None:
        if self._troubles.get(url) != text:
            self._troubles[url] = text
            log.error("mail cannot be taken over: %s; trying again", text)

    def _step(self, url: str) -> int:
        self._me = self._me or store_id(self._door.store)
        source = self._sources.get(url)
        if source is None:
            source = self._sources[url] = self._open(url)
            self._inside[url] = source.inside(self._door.store)
        if self._inside[url]:
            return self._step_inside()
        numbers = source.claim(self._me)
        if not numbers:
            return 0
        self._door.fail("T1")
        rows = source.rows(numbers)
        self._door.keep([self._message(found) for found in rows], again=True)
        self._door.fail("T2")
        source.done([found.n for found in rows])
        return len(rows)

    def _step_inside(self) -> int:
        """The table is in the store's own database: one transaction moves the rows."""

        def move() -> Verb[int]:
            messages = [self._message(found) for found in (yield from take(self._me))]
            if messages:
                yield from self._door.store.verbs.add(messages, again=True)
            self._door.fail("T2")
            return len(messages)

        try:
            count = self._door.store.run(move())
        except Trouble as problem:
            raise missing_table(problem, self._door.store.url) from None
        if count:
            self._door.wake()
        return count

    def _check_route(self, route: str | None) -> None:
        """Who may write a row may not thereby run a program or write a file here: such relays must be configured."""
        for name in (route or "").split(","):
            if name and name not in self._door.terms.routes.relays and not name.startswith(NETWORK):
                raise Refused(f"the relay {name!r} is not configured where the mail is sent from", code="bad-argument")

    def _message(self, found: Row) -> Message:
        draft = Draft(bytes(found.content or found.envelope.encode()), "", (), id=found.id)
        try:
            draft = drafted(found, self._compose)
            self._check_route(draft.route)
            return self._door.complete(draft)
        except Refused as refusal:
            log.error("a message that was left in a database cannot be sent: %s (%s)", refusal, found.id)
            return self._unfit(found, draft, refusal)
        except Exception as bug:
            log.exception("a bug of outmail: a message that was left in a database cannot be read (%s)", found.id)
            return self._unfit(found, draft, Refused(f"internal error: {bug!r}", code="bad-content"))

    def _unfit(self, found: Row, draft: Draft, refusal: Refused) -> Message:
        draft.content = draft.content or found.envelope.encode()
        return self._door.unfit(refusal, draft)
