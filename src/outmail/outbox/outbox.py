"""The library's face: `Outbox` and `AsyncOutbox`.

Promises: sending is a local durable write: no network in the calling thread; thread-safe; usable after a
fork; with an engine in the program (``deliver``), whatever was accepted is delivered within the program's
life or within ``exit_wait`` of its end, and what is left is told in one line on stderr with the command that
sends it.
Fails: `Refused`, `NotStored`, `ConfigError`, `NotFound`; never because a relay is down.
Does not: start anything after the program's exit has begun.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from outmail.accept.acceptance import Door, Draft, Terms, When
from outmail.clock import Clock, as_datetime
from outmail.config import Config, load, relay_in_code
from outmail.errors import ConfigError, Refused
from outmail.intake import api
from outmail.model import Attempt, Dsn, Event, Receipt, Status, keyed_id
from outmail.outbox.queue import Queue, opened
from outmail.policy.route import Relay, Routes, parse_relay
from outmail.reports import door as reports_door
from outmail.store import Store, forks
from outmail.system import failpoints
from outmail.system.threads import Worker, started
from outmail.transactional.insert import Rows, caller
from outmail.transactional.poller import TakeOver, written
from outmail.wiring import build_engine, open_source, spool_of

log = logging.getLogger("outmail")

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def local_sender(hostname: str = "") -> str:
    """user@host, for whoever names no sender."""
    import getpass

    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "outmail"
    return f"{user}@{hostname or socket.gethostname() or 'localhost'}"


class _EngineThread:
    """An engine in a daemon thread of the program; at the program's end, where no thread can be started any
    more, in whoever calls `drain`.
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.failure: BaseException | None = None
        thread = threading.Thread(target=self._run, args=(engine.run,), name="outmail-engine", daemon=True)
        self._thread = thread if started(thread) else None

    def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            asyncio.run(work())
        except KeyboardInterrupt:
            pass  # whoever waits at the end has had enough
        except BaseException as problem:
            self.failure = problem
            log.exception("the engine ended by a bug of outmail; mail stays queued")

    def drain(self, seconds: float) -> None:
        """Wait until there is nothing left that can be tried now."""
        deadline = time.monotonic() + seconds
        if self._thread is None:
            self._run(partial(self._briefly, deadline))
        while (
            self._thread is not None
            and self._thread.is_alive()
            and time.monotonic() < deadline
            and not self.engine.quiet()
        ):
            time.sleep(0.005)

    async def _briefly(self, deadline: float) -> None:
        life = asyncio.ensure_future(self.engine.run())
        while not life.done() and time.monotonic() < deadline and not self.engine.quiet():
            await asyncio.sleep(0.005)
        self.engine.stop()
        await life

    def end(self) -> None:
        self.engine.stop()
        if self._thread is not None:
            self._thread.join(timeout=2.0)


class Outbox:
    """A door to a queue, and where a relay was given in code, an engine that empties it.

    ``store``: path or URL (default: the configuration's); ``relay``: a configured name or a URL, the route of
    what this Outbox sends; ``config``: a path or a `Config`; ``deliver``: "auto" (an engine in this program
    when a relay was given), "thread" or "never"; ``exit_wait``: seconds to deliver at the end.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        *,
        relay: str | None = None,
        config: str | Config | None = None,
        deliver: Literal["auto", "thread", "never"] = "auto",
        exit_wait: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        if deliver not in ("auto", "thread", "never"):
            raise ConfigError(f"deliver={deliver!r}: it is 'auto', 'thread' or 'never'")
        self._config = config if isinstance(config, Config) else load(config)
        self._clock = clock or Clock()
        self._exit_wait = exit_wait
        self._route, self._routes = _route(relay, self._config)
        self._threaded = deliver == "thread" or (deliver == "auto" and relay is not None)
        self._store = opened(os.fspath(store) if store is not None else self._config.store)
        #: Reading and changing: what `status`, `find`, `hold` and the like do.
        self.queue = Queue(self._store, self._routes, self._clock, self._wake)
        self._door = Door(
            self._store, _terms(self._config, self._routes), self._clock, self._wake, failpoints.hit
        )
        self._engine: _EngineThread | None = None
        self._takeover: TakeOver | None = None
        self._pid = os.getpid()
        self._begin_anew()
        forks.in_child(self, Outbox._begin_anew)
        self._closed = False
        self._listeners: list[tuple[str, Callable[[Event], Any]]] = []
        self._watcher: threading.Thread | None = None
        if self._threaded:
            self._start()
        _boxes.add(self)

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
    ) -> Receipt:
        """Compose and store one message. With ``using``, a connection or session of yours, it is stored in
        your transaction.

        Addresses are text, ``(name, address)`` or several of them; attachments a path or ``(name, bytes[,
        type])``; ``at`` (not before) and ``expires`` are aware datetimes, timedeltas or "2h"/"5d"; with
        ``key`` the same key stores one message only. Returns when the message is on disk. Raises `Refused`,
        `NotStored`, `ConfigError`.
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
        return self._accept([self._composed(words)], using)[0]

    def send_many(self, items: Iterable[dict[str, Any]]) -> list[Receipt]:
        """Many messages in one transaction, all or none; `Refused.index` names the first bad one."""
        items, using = _one_using(items)
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
    ) -> Receipt:
        """Store a complete message (bytes, a message of the email package, or a binary file) for an explicit
        envelope, bytes unchanged.

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
        return self._accept([self._complete(words)], using)[0]

    def submit_many(self, items: Iterable[dict[str, Any]]) -> list[Receipt]:
        """Many complete messages in one transaction, all or none."""
        items, using = _one_using(items)
        return self._accept(_indexed(items, self._complete), using)

    def _composed(self, words: dict[str, Any]) -> Draft:
        self._learn(words.get("relay"))
        return self._draft(self._named(words))

    def _drafted(self, words: dict[str, Any]) -> Draft:
        """The words of ``send`` from a row of somebody's database: nothing is learned from them, neither
        relays nor passwords.
        """
        return self._draft(self._named(words, parse_relay))

    def _draft(self, words: dict[str, Any]) -> Draft:
        words.setdefault("sender", None)
        words["sender"] = words["sender"] or self._config.sender or None
        return _call(api.composed, "send", self._clock.now(), self._config.hostname, **words)  # type: ignore[no-any-return]

    def _complete(self, words: dict[str, Any]) -> Draft:
        self._learn(words.get("relay"))
        return _call(api.complete, "submit", self._clock.now(), **self._named(words))  # type: ignore[no-any-return]

    def _named(self, words: dict[str, Any], read: Callable[[str], Relay] = relay_in_code) -> dict[str, Any]:
        words = dict(words)
        relay = words.pop("relay", None)
        words["route"] = _route(relay, self._config, read)[0] if relay is not None else self._route
        return words

    def _learn(self, relay: Any) -> None:
        """A relay named in code, for the engine of this program: it knows then what a stored name alone would
        not tell (`Routes.resolve`).
        """
        if relay is None or not self._threaded:
            return
        name, routes = _route(relay, self._config)
        if name is None or self._routes.resolve(name):
            return
        with self._starting:
            self._routes = self.queue.routes = self._routes.with_relays([routes.relays[name]])
            if self._engine is not None and self._pid == os.getpid():
                self._engine.engine.routes = self._engine.engine.routes.with_relays([routes.relays[name]])

    def _accept(self, drafts: list[Draft], using: Any = None) -> list[Receipt]:
        self._check_alive()
        if using is None:
            return self._door.accept(drafts)
        there = caller(using)
        if there.awaited:
            raise ConfigError("using= was given an asynchronous connection: send with an AsyncOutbox")
        messages, now = self._door.completed(drafts), self._clock.now()
        there.write([written(message, draft, now) for message, draft in zip(messages, drafts)])
        return [
            Receipt(message.id, message.message_id, as_datetime(now), durable=False) for message in messages
        ]

    # -- for reports (`reports.door.ReportDoor`) -------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def store(self) -> Store:
        return self._store

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def report_to(self) -> tuple[str, ...]:
        return self._config.to

    @property
    def report_templates(self) -> str:
        return self._config.templates

    @property
    def spool(self) -> str:
        return self._store.spool

    def message_id(self, key: str) -> str:
        return f"<{keyed_id(key)}@{self._report_sender().rpartition('@')[2]}>"

    def _report_sender(self) -> str:
        return self._config.sender or local_sender(self._config.hostname)

    def report(
        self, words: dict[str, Any] | None, *, supersede: str | None = None, when: When | None = None
    ) -> Receipt | None:
        """`send` for reports; see `reports.door`."""
        self._check_alive()
        drafts = []
        if words is not None:
            words = dict(words)
            words["sender"] = (words.pop("author", ""), self._report_sender())
            drafts = [self._composed(words)]
        receipts = self._door.accept(drafts, supersede=supersede, when=when)
        return receipts[0] if receipts else None

    # -- asking ----------------------------------------------------------------------------------------------

    def status(self, id: str) -> Status:
        """Where a message stands; raises `NotFound`."""
        return self.queue.status(id)

    def find(self, filter: str = "", **words: str) -> Iterator[Status]:
        """Messages with a matching recipient, oldest first. ``find(state="queued", to="*@x.org")`` is the
        same as text.
        """
        return self.queue.find(filter, **words)

    def content(self, id: str) -> bytes:
        """The bytes of the next DATA before dot-stuffing; raises `NotFound` also when retention has taken
        them.
        """
        return self.queue.content(id)

    def attempts(self, id: str) -> list[Attempt]:
        """Every try, oldest first, with its transcript as far as kept."""
        return self.queue.attempts(id)

    def wait(self, id: str, timeout: float) -> Status:
        """The status once every recipient is final or held, or the present one when ``timeout`` seconds are
        over.
        """
        return self.queue.wait(id, timeout)

    def events(self, after: int = 0) -> Iterator[Event]:
        """Facts in the order of commit, behind the cursor ``after``, up to now."""
        return self.queue.events(after)

    def on(self, event: str) -> Callable[[Callable[[Event], Any]], Callable[[Event], Any]]:
        """A decorator: call the function for each such event from now on, in a thread of its own. "*" means
        all.
        """
        from outmail.lifecycle import ARROWS

        if event not in (*ARROWS, "accepted", "*"):
            raise ConfigError(f"no event is named {event!r}; they are accepted, {', '.join(ARROWS)}")

        def register(listener: Callable[[Event], Any]) -> Callable[[Event], Any]:
            self._listeners.append((event, listener))
            if self._watcher is None:
                cursor = self.queue.last_cursor()
                self._watcher = threading.Thread(
                    target=_watch, args=(weakref.ref(self), cursor), name="outmail-events", daemon=True
                )
                self._watcher.start()
            return listener

        return register

    # -- changing --------------------------------------------------------------------------------------------

    def cancel(self, what: str) -> int:
        """End waiting recipients; returns how many changed, wishes for those being sent included."""
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
        """Failed or cancelled recipients begin anew; those whose content is gone stay as they are."""
        return self.queue.requeue(what)

    # -- life ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Deliver what can be delivered within ``exit_wait``, tell what is left, close."""
        if self._closed:
            return
        self._closed = True
        if self._engine is not None and self._pid == os.getpid():
            if self._takeover is not None:
                self._takeover.all()
                self._takeover.stop()
            self._engine.drain(self._exit_wait)
            self._engine.end()
            self._tell_rest()
        self._store.close()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin_anew(self) -> None:
        self._starting = threading.Lock()

    def _start(self) -> None:
        with self._starting:
            if self._engine is not None and self._pid == os.getpid():
                return  # another thread of a forked child was first
            self._engine = _EngineThread(build_engine(self._store, self._config, self._routes, self._clock))
            self._takeover = self._take_over("stdlib", self._engine.engine)
            if self._takeover is not None:
                self._takeover.start()
            self._pid = os.getpid()

    def _take_over(self, library: str, engine: Any) -> TakeOver | None:
        """What empties the tables of ``[[outbox]]`` into this queue beside an engine; ``library`` opens the
        SQLite files among them.
        """
        if not self._config.outboxes:
            return None
        door = replace(self._door, wake=engine.wake)
        return TakeOver(
            door,
            self._config.outboxes,
            partial(open_source, library=library),
            self._drafted,
            lambda: str(engine.name),
        )

    def _check_alive(self) -> None:
        if self._closed:
            raise ConfigError("this Outbox is closed")
        if self._threaded and self._pid != os.getpid():
            self._start()  # we are a forked child: the engine's thread stayed behind

    def _wake(self) -> None:
        if self._engine is not None and self._pid == os.getpid():
            self._engine.engine.wake()

    def _tell_rest(self) -> None:
        """One line on stderr about what could not be delivered in this program's life."""
        try:
            left = [
                r
                for status in self.find("state:queued")
                for r in status.recipients
                if r.state == "queued" and self._routes.resolve(r.route)
            ]
        except Exception:
            log.exception("outmail could not look what is left in the queue")
            return
        if left:
            reasons = sorted({r.reason for r in left if r.reason})[:2]
            why = f" ({'; '.join(reasons)})" if reasons else ""
            command = f"outmail run --once --store {self._store.url}"
            if self._route is not None and not self._config.routes.resolve(self._route):
                command += f" --relay {self._route}"  # nobody else would know it
            print(
                f"outmail: {len(left)} recipient{'s' if len(left) > 1 else ''} still queued{why}; to go out "
                f"with the next run, or by: {command}",
                file=sys.stderr,
            )


def _terms(config: Config, routes: Routes) -> Terms:
    return Terms(
        routes,
        config.message_size,
        config.recipients,
        config.only_to,
        config.redirect_to,
        config.retry.expire,
        config.hostname or "localhost",
    )


def _route(
    relay: str | None, config: Config, read: Callable[[str], Relay] = relay_in_code
) -> tuple[str | None, Routes]:
    """(forced route name or None, routes) for ``relay=``: a configured name, or a URL named by itself, which
    ``read`` makes a relay of.
    """
    routes = config.routes
    if relay is None:
        return None, routes
    if not isinstance(relay, str):
        raise ConfigError(f"relay must be a configured name or a URL, not {relay!r}")
    if relay in routes.relays:
        return relay, routes
    if ":" not in relay:
        raise ConfigError(
            f"no relay is named {relay!r}; known are {', '.join(routes.relays)}",
            hint="or give a URL such as smtp://localhost:25",
        )
    made = read(relay)
    return made.name, routes.with_relays([made])


def _call(function: Any, name: str, *args: Any, **words: Any) -> Any:
    try:
        return function(*args, **words)
    except TypeError as problem:
        if "unexpected keyword" in str(problem) or "missing" in str(problem):
            raise TypeError(str(problem).replace(function.__name__, name)) from None
        raise


def _one_using(items: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], Any]:
    """Items without their ``using``, and what it was: one and the same for all."""
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


def _watch(box: weakref.ref[Outbox], cursor: int) -> None:
    """The listeners' thread: ends with its Outbox."""
    while (outbox := box()) is not None and not outbox._closed:
        try:
            for event in list(outbox.events(cursor)):
                cursor = event.cursor
                for name, listener in list(outbox._listeners):
                    if name in (event.event, "*"):
                        _tell(listener, event)
        except Exception:
            if outbox._closed:
                return
            log.exception("outmail could not read events; trying again")
        del outbox
        time.sleep(0.05)


def _tell(listener: Callable[[Event], Any], event: Event) -> None:
    try:
        listener(event)
    except Exception:
        log.exception("a listener for outmail's events raised")


_boxes: weakref.WeakSet[Outbox] = weakref.WeakSet()


def _close_all() -> None:
    try:
        reports_door.closing()
    except Exception:
        log.exception("the last reports could not be made")
    for box in list(_boxes):
        try:
            box.close()
        except Exception:
            log.exception("closing an Outbox at exit failed; its mail stays queued")


atexit.register(_close_all)


class AsyncOutbox:
    """`Outbox` with every call awaited; concurrent sends share commits."""

    def __init__(self, *args: Any, **words: Any) -> None:
        self._box = Outbox(*args, **words)
        self._workers = Worker("outbox", 4)

    async def send(self, *args: Any, using: Any = None, **words: Any) -> Receipt:
        return await self._with(using, partial(self._box.send, *args, **words))  # type: ignore[no-any-return]

    async def send_many(self, items: Iterable[dict[str, Any]]) -> list[Receipt]:
        return await self._many(items, self._box.send_many)

    async def submit(self, content: Any, *, using: Any = None, **words: Any) -> Receipt:
        return await self._with(using, partial(self._box.submit, content, **words))  # type: ignore[no-any-return]

    async def submit_many(self, items: Iterable[dict[str, Any]]) -> list[Receipt]:
        return await self._many(items, self._box.submit_many)

    async def _many(
        self, items: Iterable[dict[str, Any]], call: Callable[..., list[Receipt]]
    ) -> list[Receipt]:
        found, using = _one_using(items)
        return await self._with(using, lambda **words: call([{**item, **words} for item in found]))  # type: ignore[no-any-return]

    async def _with(self, using: Any, call: Callable[..., Any]) -> Any:
        """The call on a thread; what it would write on the caller's connection is written here, where that
        belongs.
        """
        if using is None:
            return await self._workers.run(call)
        there, rows = caller(using), Rows()
        answer = await self._workers.run(partial(call, using=rows))
        writing = there.write(rows)
        if writing is not None:
            await writing
        return answer

    async def status(self, id: str) -> Status:
        return await self._workers.run(partial(self._box.status, id))

    async def find(self, filter: str = "", **words: str) -> AsyncIterator[Status]:
        for status in await self._workers.run(lambda: list(self._box.find(filter, **words))):
            yield status

    async def content(self, id: str) -> bytes:
        return await self._workers.run(partial(self._box.content, id))

    async def attempts(self, id: str) -> list[Attempt]:
        return await self._workers.run(partial(self._box.attempts, id))

    async def wait(self, id: str, timeout: float) -> Status:
        deadline = time.monotonic() + timeout
        while not (status := await self.status(id)).settled and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return status

    async def events(self, after: int = 0) -> AsyncIterator[Event]:
        for event in await self._workers.run(lambda: list(self._box.events(after))):
            yield event

    def on(self, event: str) -> Callable[[Callable[[Event], Any]], Callable[[Event], Any]]:
        return self._box.on(event)

    async def cancel(self, what: str) -> int:
        return await self._workers.run(partial(self._box.cancel, what))

    async def hold(self, what: str) -> int:
        return await self._workers.run(partial(self._box.hold, what))

    async def release(self, what: str) -> int:
        return await self._workers.run(partial(self._box.release, what))

    async def retry(self, what: str) -> int:
        return await self._workers.run(partial(self._box.retry, what))

    async def requeue(self, what: str) -> int:
        return await self._workers.run(partial(self._box.requeue, what))

    @property
    def closed(self) -> bool:
        return self._box.closed

    async def close(self) -> None:
        await self._workers.run(self._box.close)
        self._workers.close()

    async def __aenter__(self) -> AsyncOutbox:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


# -- the default Outbox of reports ---------------------------------------------------------------------------

_default: Outbox | None = None
_default_guard = threading.Lock()
#: A service that gave its last sign of life longer ago than this is no longer relied on.
_SERVICE_MS = 90_000


def default_outbox() -> Outbox:
    """What reports use that were given none: the configured store, and an engine here unless a service serves
    its route.
    """
    global _default
    with _default_guard:
        if _default is None or _default._closed:
            _default = with_engine_if_needed(load())
        return _default


def with_engine_if_needed(config: Config, **words: Any) -> Outbox:
    """An Outbox that delivers by itself, unless a live service has published the route ``default``."""
    box = Outbox(config=config, deliver="never", **words)
    seen = box.queue.service()
    if not seen or box._clock.now() - seen["at"] > _SERVICE_MS or "default" not in seen["routes"]:
        box._threaded = True
        box._start()
    return box


def default_spool() -> str:
    """Its spool folder, from the configuration alone."""
    return spool_of(load().store)


reports_door.register(default_outbox, default_spool)
