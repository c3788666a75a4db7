"""`Outbox`, the main class of the library.

Promises: sending is a local durable write, without network in the calling thread. It is thread-safe and
usable after a fork. With an engine in the program (``deliver``) accepted mail is delivered while the program
runs or within ``exit_wait`` seconds of its end; what is left is reported in one line on stderr, with the
command that sends it. Code that needs an event loop (the engine, `AsyncOutbox`) is loaded on first use.
Fails: `Refused`, `NotStored`, `ConfigError`, `NotFound`; never because a relay is down.
Does not: start anything after the program's exit has begun.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from outmail.accept.acceptance import Door, Draft, When
from outmail.clock import Clock, as_datetime
from outmail.config import Config, load, relay_in_code
from outmail.errors import ConfigError, NotStored, Refused
from outmail.intake import api
from outmail.model import Attempt, Dsn, Event, Message, Receipt, Status
from outmail.outbox import ending
from outmail.outbox.direct import Direct, terms
from outmail.outbox.listeners import Listener, Listeners
from outmail.outbox.queue import Queue, opened
from outmail.outbox.rest import rest  # here: a dataclass made at exit hides an unhandled Ctrl-C
from outmail.outbox.stranded import stranded
from outmail.policy.route import Relay, parse_relay
from outmail.store import forks
from outmail.system import failpoints
from outmail.system.loading import loading
from outmail.wiring import absolute, build_engine, open_source, route_of

if TYPE_CHECKING:
    from outmail.outbox.thread import EngineThread
    from outmail.transactional.poller import TakeOver

log = logging.getLogger("outmail")

_NOTHING: Mapping[str, Any] = MappingProxyType({})
#: Seconds of ``exit_wait`` that are kept for the engine's end; half of them it has in any case.
ENDING = 1.0
WAIT_WITH_USING = "wait= with using=: nothing is sent before your transaction is committed"


class Outbox:
    """A queue to put mail into, and, when a relay was given in code, an engine that empties it.

    ``store``: a path or URL (default: the configuration's). ``relay``: a configured name or a URL, the route
    of what this Outbox sends. ``config``: a path or a `Config`. ``deliver``: "auto" (an engine in this
    program when a relay was given), "thread" or "never". ``exit_wait``: seconds to deliver at the program's
    end.

    ``store``, ``config``, ``routes``, ``door``, ``clock``, `take_over` and `deliver_here` are for the
    package, not for users.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        *,
        relay: str | None = None,
        config: str | Config | None = None,
        deliver: Literal["auto", "thread", "never", "detached"] = "auto",
        exit_wait: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        if deliver not in ("auto", "thread", "never", "detached"):
            raise ConfigError(f"deliver={deliver!r}: it is 'auto', 'thread', 'never' or 'detached'")
        self.config = config if isinstance(config, Config) else load(config)
        self.clock = clock or Clock()
        self._exit_wait = exit_wait
        self._route, self.routes = route_of(relay, self.config)
        self._detached = deliver == "detached"
        here = relay is not None or bool(self.config.through)
        self._threaded = deliver == "thread" or self._detached or (deliver == "auto" and here)
        place = os.fspath(store) if store is not None else self.config.store
        self.store = opened(place)
        #: The program may go to another folder.
        self._place = absolute(place)
        #: Reads and changes the queue, for `status`, `find`, `hold` and so on.
        self.queue = Queue(self.store, self.routes, self.clock, self._wake)
        self.door = Door(self.store, terms(self.config, self.routes), self.clock, self._wake, failpoints.hit)
        self._engine: EngineThread | None = None
        self._takeover: TakeOver | None = None
        self._pid = os.getpid()
        self._begin_anew()
        forks.in_child(self, Outbox._begin_anew)
        self._closed = False
        self._listeners = Listeners(self.queue)
        if self._threaded:
            self._start()
        ending.boxes.add(self)

    # -- sending ---------------------------------------------------------------------------------------------

    def send(
        self,
        to: api.Addresses = (),
        subject: str = "",
        text: str | None = None,
        html: str | None = None,
        *,
        cc: api.Addresses = (),
        bcc: api.Addresses = (),
        sender: api.Address | None = None,
        reply_to: api.Addresses = (),
        headers: Mapping[str, str] = _NOTHING,
        attachments: Iterable[api.File] = (),
        inline: Mapping[str, api.File] = _NOTHING,
        key: str | None = None,
        at: api.When | None = None,
        expires: api.When | None = None,
        priority: str = "normal",
        tag: str | None = None,
        relay: str | None = None,
        using: Any = None,
        wait: float | None = None,
    ) -> Receipt:
        """Compose and store one message. With ``using``, your own connection or session, it is stored in your
        transaction.

        Addresses are text, ``(name, address)`` or several of them. Attachments are a path or ``(name, bytes[,
        type])``. ``at`` (not before) and ``expires`` are aware datetimes, timedeltas or "2h"/"5d". With
        ``key``, only one message is stored for the same key. Returns when the message is on disk. Raises
        `Refused`, `NotStored`, `ConfigError`.
        """
        words = {
            "to": to,
            "subject": subject,
            "text": text,
            "html": html,
            "cc": cc,
            "bcc": bcc,
            "sender": sender,
            "reply_to": reply_to,
            "headers": headers,
            "attachments": attachments,
            "inline": inline,
            "key": key,
            "at": at,
            "expires": expires,
            "priority": priority,
            "tag": tag,
            "relay": relay,
        }
        if using is not None and wait is not None:
            raise ConfigError(WAIT_WITH_USING)
        return self._awaited(self._accept([self._composed(words)], using)[0], wait)

    def send_many(self, items: Iterable[dict[str, Any]]) -> list[Receipt]:
        """Store many messages in one transaction, all or none. `Refused.index` names the first bad one."""
        items, using = one_using(items)
        return self._accept(_indexed(items, self._composed), using)

    def submit(
        self,
        content: api.Content,
        *,
        sender: str | None,
        recipients: str | Iterable[str],
        key: str | None = None,
        at: api.When | None = None,
        expires: api.When | None = None,
        priority: str = "normal",
        tag: str | None = None,
        relay: str | None = None,
        using: Any = None,
        dsn: Dsn | None = None,
        wait: float | None = None,
    ) -> Receipt:
        """Store a complete message (bytes, a message of the email package, or a binary file) for the given
        envelope. Its bytes are not changed.

        ``sender`` None is the null sender of bounces. Raises as `send` does.
        """
        words = {
            "content": content,
            "sender": sender,
            "recipients": recipients,
            "key": key,
            "at": at,
            "expires": expires,
            "priority": priority,
            "tag": tag,
            "relay": relay,
            "dsn": dsn,
        }
        if using is not None and wait is not None:
            raise ConfigError(WAIT_WITH_USING)
        return self._awaited(self._accept([self._complete(words)], using)[0], wait)

    def submit_many(self, items: Iterable[dict[str, Any]]) -> list[Receipt]:
        """Store many complete messages in one transaction, all or none."""
        items, using = one_using(items)
        return self._accept(_indexed(items, self._complete), using)

    def prepared(self, words: dict[str, Any]) -> Message:
        """The arguments of `submit` (with ``content``) or `send`, checked and completed; nothing is stored.
        For `contrib.transaction`. Raises as `send` does.
        """
        self._check_alive()
        return self.door.complete(self._complete(words) if "content" in words else self._composed(words))

    def _composed(self, words: dict[str, Any]) -> Draft:
        self._learn(words.get("relay"))
        return self._draft(self._named(words), self.config.origin)

    def _drafted(self, words: dict[str, Any]) -> Draft:
        """The draft for the arguments of ``send`` that somebody has written into a row of a database. Neither
        relays nor passwords are learned from them, and addresses without a domain are refused, because the
        row may have been written on another machine.
        """
        return self._draft(self._named(words, parse_relay), "")

    def _draft(self, words: dict[str, Any], origin: str) -> Draft:
        words.setdefault("sender", None)
        words["sender"] = words["sender"] or self.config.sender or None
        return _call(api.composed, "send", self.clock.now(), self.config.hostname, origin, **words)  # type: ignore[no-any-return]

    def _complete(self, words: dict[str, Any]) -> Draft:
        self._learn(words.get("relay"))
        return _call(  # type: ignore[no-any-return]
            api.complete, "submit", self.clock.now(), self.config.origin, **self._named(words)
        )

    def _named(self, words: dict[str, Any], read: Callable[[str], Relay] = relay_in_code) -> dict[str, Any]:
        words = dict(words)
        relay = words.pop("relay", None)
        words["route"] = route_of(relay, self.config, read)[0] if relay is not None else self._route
        return words

    def _learn(self, relay: Any) -> None:
        """Tell this program's engine about a relay that was given in code; a stored name alone would not be
        enough (`Routes.resolve`).
        """
        if relay is None or not self._threaded:
            return
        name, routes = route_of(relay, self.config)
        if name is None or self.routes.resolve(name):
            return
        with self._starting:
            self.routes = self.queue.routes = self.routes.with_relays([routes.relays[name]])
            if self._engine is not None and self._pid == os.getpid():
                self._engine.engine.routes = self._engine.engine.routes.with_relays([routes.relays[name]])

    def _accept(self, drafts: list[Draft], using: Any = None) -> list[Receipt]:
        self._check_alive()
        if using is None:
            return self.door.accept(drafts)
        with loading:
            from outmail.transactional.insert import caller
            from outmail.transactional.poller import written

        there = caller(using)
        if there.awaited:
            raise ConfigError("using= was given an asynchronous connection: send with an AsyncOutbox")
        messages, now = self.door.completed(drafts), self.clock.now()
        there.write([written(message, draft, now) for message, draft in zip(messages, drafts)])
        return [
            Receipt(message.id, message.message_id, as_datetime(now), durable=False) for message in messages
        ]

    def _awaited(self, receipt: Receipt, seconds: float | None) -> Receipt:
        if seconds is not None:
            self.queue.wait(receipt.id, seconds)
        return receipt

    # -- for reports (`reports.door.ReportDoor`) -------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def report_to(self) -> tuple[str, ...]:
        return self.config.to

    @property
    def report_templates(self) -> str:
        return self.config.templates

    @property
    def spool(self) -> str:
        return self.store.spool

    def message_id(self, key: str) -> str:
        return self._direct.message_id(key)

    @property
    def exit_wait(self) -> float:
        return self._exit_wait

    @property
    def _direct(self) -> Direct:
        return Direct(self.config, self.routes, self.clock, self._route, self._exit_wait)

    def compose(self, words: dict[str, Any]) -> Message:
        return self._direct.compose(words)

    def hand_over(self, message: Message, seconds: float) -> dict[str, str]:
        return self._direct.hand_over(message, seconds)

    def relay_trouble(self) -> str:
        with loading:
            from outmail.reports.mail import local_time

        route = self._route or "default"
        paused = self.queue.paused_hops()
        relays = self.routes.resolve(route)
        if relays and all(relay.name in paused for relay in relays):
            note = paused[relays[0].name]
            return f"{relays[0].url} is paused since {local_time(int(note['since']))}: {note['trouble']}"
        for status in self.find("is:deferred", route=route):
            for r in status.recipients:
                if r.state == "queued" and r.attempts and r.route == route:
                    return f"has deferred mail since {local_time(status.accepted_at)}: {r.reason}"
        return ""

    def report(
        self, words: dict[str, Any] | None, *, supersede: str | None = None, when: When | None = None
    ) -> Receipt | None:
        """`send` for reports; see `reports.door`."""
        self._check_alive()
        drafts = []
        if words is not None:
            words = dict(words)
            words["sender"] = (words.pop("author", ""), self._direct.sender)
            drafts = [self._composed(words)]
        receipts = self.door.accept(drafts, supersede=supersede, when=when)
        return receipts[0] if receipts else None

    # -- asking ----------------------------------------------------------------------------------------------

    def status(self, id: str) -> Status:
        """The state of a message and its recipients. Raises `NotFound`."""
        return self.queue.status(id)

    def find(self, filter: str = "", **words: str) -> Iterator[Status]:
        """Messages with a matching recipient, oldest first. ``find(state="queued", to="*@x.org")`` does the
        same as filter text.
        """
        return self.queue.find(filter, **words)

    def content(self, id: str) -> bytes:
        """The bytes of the next DATA, before dot-stuffing. Raises `NotFound`, also when retention has removed
        them.
        """
        return self.queue.content(id)

    def attempts(self, id: str) -> list[Attempt]:
        """All attempts, oldest first, with their transcripts as far as they were kept."""
        return self.queue.attempts(id)

    def wait(self, id: str, timeout: float) -> Status:
        """The status when every recipient is final or held, or the present one after ``timeout`` seconds."""
        return self.queue.wait(id, timeout)

    def events(self, after: int = 0) -> Iterator[Event]:
        """Events after the cursor ``after``, in the order of commits, up to now."""
        return self.queue.events(after)

    def on(self, event: str) -> Callable[[Listener], Listener]:
        """A decorator: call the function for each such event from now on, on a thread of its own. "*" means
        all events.
        """
        return self._listeners.on(event)

    # -- changing --------------------------------------------------------------------------------------------

    def cancel(self, what: str) -> int:
        """Cancel waiting recipients. Returns how many changed; recipients that are being sent count, too (as
        a wish).
        """
        return self.queue.cancel(what)

    def hold(self, what: str) -> int:
        """Stop recipients until `release`."""
        return self.queue.hold(what)

    def release(self, what: str) -> int:
        """Let held recipients go on."""
        return self.queue.release(what)

    def retry(self, what: str) -> int:
        """Make queued recipients due now."""
        return self.queue.retry(what)

    def requeue(self, what: str) -> int:
        """Queue failed or cancelled recipients again, with new attempts and a new age. Without content
        nothing changes.
        """
        return self.queue.requeue(what)

    # -- life ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Deliver for at most ``exit_wait`` seconds, report what is left, close."""
        if self._closed:
            return
        self._closed = True
        self._listeners.close()
        if self._engine is not None and self._pid == os.getpid():
            if self._takeover is not None:
                self._takeover.all()
                self._takeover.stop()
            deadline = time.monotonic() + self._exit_wait
            self._engine.drain(self._exit_wait - min(ENDING, self._exit_wait / 2))
            self._engine.end(max(ENDING / 2, deadline - time.monotonic()))
            if not self._detached or not self._detach():
                self._tell_rest()
        self.store.close()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def adopt(self, config: Config) -> None:
        """Go on with another configuration, on the same store; for a service, whose `Outbox` has no relay of
        its own.
        """
        self.config = config
        self.routes = self.queue.routes = config.routes
        self.door.terms = terms(config, config.routes)

    def deliver_here(self) -> None:
        """From now on run an engine in this program, too."""
        self._threaded = True
        self._start()

    def _begin_anew(self) -> None:
        self._starting = threading.Lock()

    def _start(self) -> None:
        with self._starting:
            if self._engine is not None and self._pid == os.getpid():
                return  # another thread of a forked child was faster
            with loading:
                from outmail.outbox.thread import EngineThread

            self._engine = EngineThread(build_engine(self.store, self.config, self.routes, self.clock))
            self._takeover = self.take_over("stdlib", self._engine.engine)
            if self._takeover is not None:
                self._takeover.start()
            self._pid = os.getpid()

    def take_over(self, library: str, engine: Any) -> TakeOver | None:
        """The object that moves rows of ``[[outbox]]`` tables into this queue, to run beside an engine.
        ``library`` opens the SQLite files among them.
        """
        if not self.config.outboxes:
            return None
        with loading:
            from outmail.transactional.poller import TakeOver

        return TakeOver(
            self.door,
            self.config.outboxes,
            partial(open_source, library=library),
            self._drafted,
            lambda: str(engine.name),
        )

    def _check_alive(self) -> None:
        if self._closed:
            raise ConfigError("this Outbox is closed")
        if self._threaded and self._pid != os.getpid():
            self._start()  # this is a forked child; the engine's thread exists only in the parent

    def _wake(self) -> None:
        if self._engine is not None and self._pid == os.getpid():
            self._engine.engine.wake()

    def _detach(self) -> bool:
        """Leave the rest to a process of its own, where there is a rest and no service that sends it. False
        when that did not work.
        """
        left = [route for route in self.queue.next_due() if self.routes.resolve(route)]
        if all(map(self.queue.is_served, left)):
            return True
        with loading:
            from outmail.outbox.detached import hand_over

        problem = hand_over(self._place, self.store.spool, self.config, self.routes)
        if problem:
            print(f"outmail: mail cannot be sent after the program's end: {problem}", file=sys.stderr)
        return not problem

    def _tell_rest(self) -> None:
        """Report on stderr what could not be delivered while the program ran."""
        try:
            left = rest(self.queue, self.routes)
        except Exception:
            log.exception("outmail could not look what is left in the queue")
            return
        self._tell_stranded()
        command = f"outmail run --once --store {self.store.url}"
        if self._route is not None and not self.config.routes.resolve(self._route):
            command += f" --relay {self._route}"  # no configuration knows it
        for sentence in left.sentences(command):
            print(f"outmail: {sentence}", file=sys.stderr)

    def _tell_stranded(self) -> None:
        """What waits for relays that only this program knows: no run will deliver it by itself."""
        routes = self.config.routes
        own = set(self.routes.relays) - set(routes.relays)
        target = self._route if self._route and routes.resolve(self._route) else routes.fallback
        try:
            for one in stranded(Queue(self.store, routes, self.clock)) if own else ():
                if not own.isdisjoint(one.route.split(",")):
                    other = target if target != one.route else routes.fallback
                    print(f"outmail: {one.sentence(other, '--store', self.store.url)}", file=sys.stderr)
        except NotStored as problem:
            log.error("outmail could not look what waits for other routes: %s", problem)


def _call(function: Any, name: str, *args: Any, **words: Any) -> Any:
    try:
        return function(*args, **words)
    except TypeError as problem:
        if "unexpected keyword" in str(problem) or "missing" in str(problem):
            raise TypeError(str(problem).replace(function.__name__, name)) from None
        raise


def one_using(items: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], Any]:
    """The items without their ``using``, and its value, which must be the same for all."""
    found = [dict(item) for item in items]
    given = [item.pop("using", None) for item in found]
    if any(one is not given[0] for one in given):
        raise ConfigError("using= differs between the items: one transaction has one connection")
    return found, given[0] if given else None


def _indexed(items: Iterable[dict[str, Any]], make: Callable[[dict[str, Any]], Draft]) -> list[Draft]:
    drafts = []
    for index, item in enumerate(items):
        try:
            drafts.append(make(item))
        except Refused as refusal:
            refusal.index = index
            raise
    return drafts
