"""The only door: mail from every intake is checked, completed and stored here.

Promises: "accepted" is said only after the commit. A message that is refused is refused before anything is
stored, with a code and a sentence. The bytes are normalised once (`mime.splice`). Only Date and Message-ID
are prepended, where they are missing, and only once, so every attempt sends the same ones. A Message-ID is
replaced only where the configuration asks for it (`Terms.renames`); the old one is kept in an event.
Fails: `Refused` for the message, `NotStored` for the store. Does not: compose messages (`mime.compose`),
deliver, or read files.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

from outmail.accept.batcher import Batcher
from outmail.clock import END, Clock, as_datetime
from outmail.errors import NotStored, Refused
from outmail.mime import headers, splice
from outmail.model import (
    NEEDS_8BIT,
    NEEDS_UTF8,
    PRIORITIES,
    Dsn,
    Message,
    Receipt,
    Recipient,
    keyed_id,
    new_id,
)
from outmail.policy.loopback import Loopback
from outmail.policy.plain import plain_line
from outmail.policy.route import Routes, allowed
from outmail.smtp.syntax import (
    AddressError,
    parse_mailbox,
    printable,
    valid_key,
    valid_notify,
    valid_original,
)
from outmail.store import Missing, Store, StoreError, Upload, Uploads, Verb
from outmail.store.verbs.rows import LONG, PIECE

log = logging.getLogger("outmail")

#: How often a long content is written, when its pieces vanish before its message is stored.
TRIES = 3
_waiting = attrgetter("waiting")
#: A condition that is checked inside the transaction.
When = Callable[[], Verb[bool]]


@dataclass(frozen=True, slots=True)
class Terms:
    """What acceptance is bound by: limits, routes, safety. ``renames`` selects mail whose Message-ID is
    replaced by one that is known when it comes home.
    """

    routes: Routes
    message_size: int = 50_000_000
    recipients: int = 10_000
    only_to: tuple[str, ...] = ()
    redirect_to: str = ""
    expire: int = 5 * 86_400_000
    hostname: str = "localhost"
    renames: Loopback | None = None


@dataclass(slots=True)
class Draft:
    """A complete message that is to be accepted. ``route`` forces a route, by its name. ``due`` and
    ``expires_at`` are instants.
    """

    content: bytes
    sender: str
    recipients: Sequence[str]
    key: str | None = None
    due: int | None = None
    expires_at: int | None = None
    priority: str = "normal"
    tag: str | None = None
    route: str | None = None
    dsn: Dsn | None = None
    id: str | None = None
    #: True when the SMTP dialogue has checked the content: all line ends are CRLF, also the last one, and
    #: there is no NUL.
    normal: bool = False
    #: Header fields to put in front of all others (Received).
    trace: bytes = b""
    #: What is known of the header. The composer of a message knows it, and it need not be read again.
    head: splice.Head | None = None
    #: Recipients that are suppressed already, with the reason.
    suppressed: Mapping[str, str] = field(default_factory=dict)


class _TakenBack(Exception):
    """Ends a transaction that is not meant to be committed."""


@dataclass(slots=True)
class Door:
    """Acceptance into one store. ``wake`` is called after each commit; ``fail`` is called at each
    failpoint.
    """

    store: Store
    terms: Terms
    clock: Clock = field(default_factory=Clock)
    wake: Callable[[], None] = lambda: None
    fail: Callable[[str], None] = lambda point: None
    _batchers: list[Batcher] = field(init=False)

    def __post_init__(self) -> None:
        self._batchers = [Batcher(remote=self.store.blocking) for _ in range(self.store.writers)]

    def accept(
        self, drafts: Iterable[Draft], *, supersede: str | None = None, when: When | None = None
    ) -> list[Receipt]:
        """Store all drafts or none. `Refused.index` names the bad one.

        In the same transaction ``when`` is asked first: if it says False, nothing is stored and the answer is
        empty. What still waits of the message ``supersede`` is cancelled.
        """
        messages = self.completed(drafts)
        if not messages and when is None:
            return []
        return self.keep(messages, supersede, when)

    def completed(self, drafts: Iterable[Draft]) -> list[Message]:
        """`complete` for several drafts; `Refused.index` names the bad one."""
        messages = []
        for index, draft in enumerate(drafts):
            try:
                messages.append(self.complete(draft))
            except Refused as refusal:
                refusal.index = index
                raise
        return messages

    def complete(self, draft: Draft) -> Message:
        """Check a draft and turn it into a message. Raises `Refused`."""
        return message_of(draft, self.terms, self.clock.now())

    def keep(
        self,
        messages: Sequence[Message],
        supersede: str | None = None,
        when: When | None = None,
        *,
        again: bool = False,
    ) -> list[Receipt]:
        """Commit. When this returns, the messages are on disk. With ``again`` messages that are known already
        are skipped.
        """
        try:
            added = self._kept(messages, supersede, when, again)
        except StoreError as problem:
            raise not_stored(problem) from None
        self.fail("C2")
        self.wake()
        self.store.announce()
        return [receipt(one) for one in added]

    def rehearse(self, messages: Sequence[Message]) -> None:
        """Write the messages in a transaction that is rolled back. Raises `NotStored` where `keep` would now.
        Of long contents only the record is written.
        """
        short = [m if len(m.content) <= LONG else replace(m, content=b"") for m in messages]
        try:
            self.store.run(self._taken_back(short))
        except _TakenBack:
            pass
        except StoreError as problem:
            raise not_stored(problem, "the message would not be stored") from None

    def _taken_back(self, messages: Sequence[Message]) -> Verb[None]:
        yield from self.store.verbs.add(messages, [], None, None, again=True)
        raise _TakenBack

    def _kept(
        self, messages: Sequence[Message], supersede: str | None, when: When | None, again: bool
    ) -> Sequence[Any]:
        """What `verbs.add` answers, when everything is on disk. Long contents are written before their
        messages, and again when they have vanished until then.
        """
        for _ in range(TRIES):
            claims: dict[int, Upload] = {}
            try:
                uploads = [
                    self._upload(message, i, claims) if len(message.content) > LONG else None
                    for i, message in enumerate(messages)
                ]
                added = self._stored(messages, uploads, supersede, when, again)
                for i, one in enumerate(added):
                    # the pieces of a duplicate are not needed: they are swept
                    if i in claims and not one[3]:
                        claims[i].end()
                return added
            except Missing as problem:
                log.warning("a long message is written again: %s", problem)
            finally:
                for claim in claims.values():
                    claim.abandon()
        raise NotStored(
            "the message was not stored: each time its content was removed before the message was complete",
            hint="try again",
            code="store-missing",
        )

    def _stored(
        self,
        messages: Sequence[Message],
        uploads: Uploads,
        supersede: str | None,
        when: When | None,
        again: bool,
    ) -> Sequence[Any]:
        if supersede is not None or when is not None:
            return self.store.run(self._add(messages, uploads, supersede, when))
        batcher = min(self._batchers, key=_waiting)
        return batcher.keep(self._batch, messages, uploads, again)

    def _batch(self, messages: Sequence[Message], uploads: Uploads, again: bool) -> Sequence[Any]:
        """One transaction of a batcher."""
        return self.store.run(self._add(messages, uploads, None, None, again=again, alone=True))

    def _add(
        self,
        messages: Sequence[Message],
        uploads: Uploads,
        supersede: str | None,
        when: When | None,
        taken: dict[str, tuple[int, int]] | None = None,
        *,
        again: bool = False,
        alone: bool = False,
    ) -> Any:
        if when is not None and not (yield from when()):
            return []
        result = (
            (yield from self.store.verbs.add(messages, uploads, supersede, taken, again=again, alone=alone))
            if messages
            else []
        )
        self.fail("C1")
        return result

    def unfit(self, refusal: Refused, draft: Draft) -> Message:
        """Make a failed message, with the reason, of an outbox row that cannot be sent: its caller is gone
        and cannot be told otherwise.
        """
        now = self.clock.now()
        id = draft.id or new_id(now)
        people = [_shown(address) for address in draft.recipients[: self.terms.recipients]] or ["(none)"]
        route = draft.route if draft.route and draft.route in self.terms.routes.relays else "default"
        recipients = tuple(
            Recipient(address, route, f"refused: {plain_line(str(refusal)[:500])}")
            for address in dict.fromkeys(people)
        )
        message_id = f"<{id}@{self.terms.hostname}>"
        return Message(
            id,
            draft.content,
            _shown(draft.sender),
            recipients,
            message_id,
            "",
            hashlib.sha256(draft.content).digest(),
            0,
            now,
            now,
            now + self.terms.expire,
            key=draft.key if _nameable(draft.key) else None,
        )

    def _upload(self, message: Message, i: int, claims: dict[int, Upload]) -> str:
        """Write a long content in pieces, so that no other program waits long for the write lock. Returns the
        name of the pieces; the claim on them is ``claims[i]``.
        """
        upload = os.urandom(12).hex()
        claims[i] = self.store.uploading(upload)
        for start in range(0, len(message.content), 4 * PIECE):
            part = message.content[start : start + 4 * PIECE]
            pieces = [part[i : i + PIECE] for i in range(0, len(part), PIECE)]
            self.store.run(self.store.verbs.add_chunks(upload, start // PIECE, pieces, message.accepted_at))
        return upload


def message_of(draft: Draft, terms: Terms, now: int) -> Message:
    """Check a draft and turn it into a message, to be stored or handed over at once. Raises `Refused`."""
    try:
        content = draft.content if draft.normal else splice.normalised(draft.content)
        if len(content) > terms.message_size:
            size = f"the message has {len(content)} bytes with CRLF line ends"
            raise Refused(
                f"{size}; the limit is {terms.message_size} ([limits] message_size)", code="too-large"
            )
        head = draft.head or splice.look(content, headless=bool(draft.trace))
    except splice.ContentError as problem:
        raise Refused(str(problem), code=problem.code) from None
    if draft.priority not in PRIORITIES:
        raise Refused(
            f"priority {printable(str(draft.priority))} does not exist: it is high, normal or low",
            code="bad-argument",
        )
    for name, value in (("key", draft.key), ("tag", draft.tag)):
        if value is not None and not _nameable(value):
            raise Refused(
                f"{name} must be text of 1 to 255 characters without control characters, not "
                f"{printable(str(value))}",
                code="bad-argument",
            )
    if draft.dsn is not None and not _asks_well(draft.dsn):
        raise Refused(
            "dsn: notify is never, or some of success, failure, delay; ret is full or hdrs; envid is at "
            "most 100 printable characters",
            code="bad-argument",
        )
    sender = _address(draft.sender) if draft.sender else ""
    id = draft.id or (keyed_id(draft.key) if draft.key else new_id(now))
    own = f"<{id}@{sender.rpartition('@')[2] or terms.hostname}>"
    message_id, replaced = head.message_id or own, ""
    if head.has_message_id and _is_renamed(terms, draft, id, head):
        content = splice.cut(content, "message-id")
        head = replace(head, has_message_id=False)
        message_id, replaced = own, head.message_id or "unreadable"
    content = draft.trace + _completed(content, head, message_id, now)
    recipients, content = _recipients(draft, sender, content, terms)
    expires_at = draft.expires_at if draft.expires_at is not None else max(now, draft.due or 0) + terms.expire
    if not all(0 <= time < END for time in (draft.due or 0, expires_at)):
        raise Refused("at and expires lie between 1970 and the year 9999", code="bad-argument")
    if expires_at <= max(now, draft.due or 0):
        raise Refused("the message would expire before its first attempt", code="bad-argument")
    needs = (NEEDS_8BIT if not content.isascii() else 0) | (NEEDS_UTF8 if not sender.isascii() else 0)
    return Message(
        id,
        content,
        sender,
        recipients,
        message_id,
        head.subject,
        hashlib.sha256(content).digest(),
        needs,
        now,
        draft.due or now,
        expires_at,
        PRIORITIES.index(draft.priority),
        draft.key,
        draft.tag,
        draft.dsn,
        replaced,
    )


def _is_renamed(terms: Terms, draft: Draft, id: str, head: splice.Head) -> bool:
    """True for mail that gets another Message-ID than it came with."""
    return (
        terms.renames is not None
        and terms.renames.wants(id, draft.tag)
        and not head.message_id.startswith(f"<{id}@")
    )


def _recipients(
    draft: Draft, sender: str, content: bytes, terms: Terms
) -> tuple[tuple[Recipient, ...], bytes]:
    """Parse the recipients, remove doubles, choose their routes, and apply ``[safety]``."""
    unique: dict[tuple[str, str], str] = {}
    for text in draft.recipients:
        local, _, domain = _address(text).rpartition("@")
        unique.setdefault((local, domain.lower()), f"{local}@{domain}")
    if not unique:
        raise Refused("the message has no recipient", code="no-recipient")
    if len(unique) > terms.recipients:
        raise Refused(
            f"the message has {len(unique)} recipients; the limit is {terms.recipients} ([limits] "
            f"recipients)",
            code="too-many-recipients",
        )
    if terms.redirect_to:
        field = headers.unstructured("X-Outmail-Redirected", ", ".join(unique.values())[:900])
        target = _address(terms.redirect_to)
        return (Recipient(target, _route(draft, sender, target, terms)),), field + content
    people = []
    for address in unique.values():
        suppressed = draft.suppressed.get(address, "") or (
            "" if allowed(terms.only_to, address) else "safety"
        )
        people.append(Recipient(address, _route(draft, sender, address, terms), suppressed))
    return tuple(people), content


def _route(draft: Draft, sender: str, address: str, terms: Terms) -> str:
    return draft.route or terms.routes.choose(sender, address, draft.tag)


def receipt(added: Any) -> Receipt:
    """The receipt for what `verbs.add` answered about one message."""
    id, message_id, at, duplicate, _ = added
    return Receipt(id, message_id, as_datetime(at), True, duplicate)


def _completed(content: bytes, head: splice.Head, message_id: str, now: int) -> bytes:
    extra = b""
    if not head.dated:
        extra += headers.unstructured("Date", headers.date(now))
    if not head.has_message_id:
        extra += headers.unstructured("Message-ID", message_id)
    return extra + content if extra else content


def _nameable(value: object) -> bool:
    """True for text that may be a key or a tag."""
    return isinstance(value, str) and 0 < len(value) <= 255 and valid_key(value)


def _asks_well(dsn: Dsn) -> bool:
    """True when the requests for notifications can be sent in SMTP commands."""
    asked = [(dsn.notify, ""), *dsn.each.values()]
    if not all(
        isinstance(text, str) for text in (dsn.ret, dsn.envid, *(text for pair in asked for text in pair))
    ):
        return False
    return (
        dsn.ret.lower() in ("", "full", "hdrs")
        and len(dsn.envid) <= 100
        and valid_key(dsn.envid)
        and all(
            (not notify or valid_notify(notify)) and (not original or valid_original(original))
            for notify, original in asked
        )
    )


def _shown(address: object) -> str:
    """An address as it is, anything else printable."""
    try:
        return _address(address)  # type: ignore[arg-type]
    except Refused:
        return printable(str(address))[:254]


def _address(text: str) -> str:
    if not isinstance(text, str):
        raise Refused(f"an address must be text, not {type(text).__name__}", code="bad-address")
    try:
        mailbox = parse_mailbox(text)
    except AddressError as problem:
        raise Refused(str(problem), code="bad-address") from None
    return f"{mailbox.local}@{mailbox.domain}"


_HINTS = {
    "busy": "it is busy, or another program holds its write lock; try again",
    "full": "the disk is full; free space and try again",
    "readonly": "the file or file system is read-only",
    "forbidden": "check that the folder exists and that you may write there",
    "io": "the disk or the database's server did not answer; try again",
    "conflict": "another program wrote the same at this moment; try again",
    "corrupt": "the file is damaged or no outmail store: run `outmail store check`",
}


def not_stored(problem: StoreError, what: str = "the message was not stored") -> NotStored:
    """The store's error as the exception for the caller."""
    return NotStored(
        f"{what}: {problem}",
        hint=problem.hint or _HINTS.get(problem.kind, ""),
        errno=problem.errno,
        code=f"store-{problem.kind}",
    )
