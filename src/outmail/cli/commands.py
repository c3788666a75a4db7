"""What each command does: arguments in, `Outbox` calls, words out."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from outmail import service
from outmail.accept.acceptance import not_stored
from outmail.cli import EX_DATAERR, EX_NOINPUT, EX_SOFTWARE, EX_TEMPFAIL, EX_UNAVAILABLE, EX_USAGE
from outmail.cli.explanations import CODES
from outmail.clock import Clock, human_span, rfc3339
from outmail.config import Config, default_store, load, relay_in_code
from outmail.errors import ConfigError, NotFound, NotStored, Refused
from outmail.model import Filter, Status, Term, is_id
from outmail.ops import delivery_log
from outmail.ops.move import abandon, copied, under_way
from outmail.ops.move import move as moved
from outmail.outbox.outbox import Outbox, local_sender
from outmail.policy import selection
from outmail.policy.pace import may_send_ahead
from outmail.policy.plain import as_json, plain, plain_line
from outmail.policy.veil import known
from outmail.store import Store, Trouble, shown, store_id
from outmail.system import failpoints
from outmail.transactional.insert import outbox_ddl
from outmail.wiring import build_engine, is_postgres, open_source, open_store, route_of, store_path


def _config(arguments: argparse.Namespace, *, replace_default: bool = True) -> Config:
    """The configuration; ``--relay`` replaces the relay `default` for this process (but for `send`)."""
    return configured(arguments.config, arguments.store, arguments.relay if replace_default else None)


def configured(file: str | None, store: str | None, relay: str | None) -> Config:
    """The configuration of ``--config``, with ``--store`` and ``--relay`` in their places."""
    config = load(file)
    if store:
        config = replace(config, store=store)
    if relay:
        routes = config.routes
        found = routes.relays.get(relay) or relay_in_code(relay, name="default")
        config = replace(config, routes=routes.with_relays([replace(found, name="default")]))
    return config


def _box(arguments: argparse.Namespace) -> Outbox:
    return Outbox(config=_config(arguments), deliver="never")


def _sender(config: Config, given: str | None) -> str:
    """``-f``, else the configured ``from``, else user@host."""
    return given or config.sender or local_sender(config.hostname)


# -- send ----------------------------------------------------------------------------------------------------


def send(arguments: argparse.Namespace) -> int:
    """Store one message; with --wait deliver it here."""
    config = _config(arguments, replace_default=False)
    box = Outbox(config=config, relay=arguments.relay, deliver="never")
    body = sys.stdin.buffer.read()
    common = {
        "key": arguments.key,
        "at": arguments.at,
        "expires": arguments.expires,
        "priority": arguments.priority,
        "tag": arguments.tag,
    }
    sender = _sender(config, arguments.sender)
    if arguments.raw:
        receipt = box.submit(
            body, sender=sender, recipients=[*arguments.recipients, *arguments.cc, *arguments.bcc], **common
        )
    else:
        receipt = box.send(
            arguments.recipients,
            arguments.subject,
            _text(body),
            _html(arguments.html),
            cc=arguments.cc,
            bcc=arguments.bcc,
            sender=sender,
            headers=_headers(arguments.header),
            attachments=arguments.attach,
            **common,
        )
    print(
        as_json({"id": receipt.id, "message_id": receipt.message_id, "duplicate": receipt.duplicate})
        if arguments.json
        else receipt.id,
        flush=True,
    )
    if arguments.wait is None:
        _warn_unknown(config, arguments.relay)
        _warn_idle(box)
        return 0
    return _deliver_here(box, config, arguments.relay, receipt.id, arguments.wait)


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        return body.decode("latin-1")


def _html(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise Refused(
            f"the HTML file {path} cannot be read: {getattr(problem, 'strerror', None) or problem}",
            code="bad-attachment",
        ) from None


def _headers(lines: list[str]) -> dict[str, str]:
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise Refused(f"-H {line!r}: write 'Name: value'", code="bad-header")
        headers[name.strip()] = value.strip()
    return headers


def _deliver_here(box: Outbox, config: Config, relay: str | None, id: str, seconds: float) -> int:
    engine = build_engine(box.store, config, route_of(relay, config)[1], Clock())
    deadline = time.monotonic() + seconds

    async def work() -> Status:
        running = asyncio.ensure_future(engine.run())
        while not (status := box.status(id)).settled and time.monotonic() < deadline and not running.done():
            await asyncio.sleep(0.02)
        engine.stop()
        await running
        return box.status(id) if not status.settled else status

    status = asyncio.run(work())
    states = {r.state for r in status.recipients}
    for recipient in status.recipients:
        if recipient.state != "delivered":
            print(plain_line(f"outmail: {recipient.address}: {_in_words(recipient)}"), file=sys.stderr)
    return 0 if states == {"delivered"} else EX_UNAVAILABLE if "failed" in states else EX_TEMPFAIL


def _warn_unknown(config: Config, relay: str | None) -> None:
    """Say when no engine with this configuration will take the message: what a relay in a store may do by its
    name alone is little.
    """
    name = route_of(relay, config)[0]
    if name is not None and not config.routes.resolve(name):
        print(
            f"outmail: the message waits until an engine knows {name}: put it into [relays], or deliver here "
            f"with --wait",
            file=sys.stderr,
        )


def _warn_idle(box: Outbox) -> None:
    """Say when mail waits and nobody has worked on this store for a minute."""
    last = box.queue.last_engine()
    now = Clock().now()
    due = box.queue.next_due()
    if any(moment <= now - 60_000 for moment in due.values()) and (not last or now - last["at"] > 60_000):
        since = f"for {human_span(now - last['at'])}" if last else "yet"
        print(
            f"outmail: mail is due and no engine has run {since}: start `outmail run`, or `outmail run "
            f"--once` from cron",
            file=sys.stderr,
        )


class _Lines(logging.Formatter):
    """A service's log: no known password, and nothing that a terminal obeys."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(known.over(super().format(record)))


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


# -- run -----------------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> int:
    """The engine, as a service or once."""
    config = _config(arguments)
    _log_to_stderr()
    box = Outbox(config=config, deliver="never")
    if arguments.only:
        head = arguments.only.partition("/")[0]
        if not is_id(arguments.only):
            raise NotFound(f"{arguments.only!r} is not a message id")
        box.retry(arguments.only)
        arguments.only = head
    once = arguments.once or bool(arguments.only)
    engine = build_engine(
        box.store,
        config,
        config.routes,
        Clock(),
        arguments.only,
        service=not once,
        observe=delivery_log.Batched(sys.stderr),
    )
    before = _due_now(box) if arguments.strict else 0

    work = service.once(box, engine) if once else service.serve(box, engine)
    if config.loop == "uvloop":
        _uvloop().run(work)
    else:
        asyncio.run(work)
    box.close()
    counts = engine.counts
    if not arguments.strict:
        return 0
    if counts["quarantined"]:
        return EX_SOFTWARE
    if counts["refused"] or counts["expired"]:
        return EX_UNAVAILABLE
    return EX_TEMPFAIL if before > counts["delivered"] else 0


def _due_now(box: Outbox) -> int:
    now = rfc3339(Clock().now()) or ""
    return sum(
        1
        for s in box.find("state:queued")
        for r in s.recipients
        if r.state == "queued" and (rfc3339(r.next_try_at) or "") <= now
    )


def _uvloop() -> Any:
    try:
        import uvloop  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise ConfigError('loop = "uvloop" needs the package: pip install "outmail[speed]"') from None
    return uvloop


def receive(arguments: argparse.Namespace) -> int:
    """The local receiving server; with --catch the development mailbox."""
    config = _config(arguments)
    if arguments.catch and not arguments.store:
        config = replace(
            config,
            store=os.environ.get("OUTMAIL_STORE")
            or os.path.join(os.path.dirname(default_store(os.environ)), "catch.db"),
        )
        os.makedirs(os.path.dirname(config.store) or ".", mode=0o700, exist_ok=True)
    if arguments.listen:
        config = replace(config, receive=replace(config.receive, smtp=tuple(arguments.listen)))
    config = service.receiving(config, catch=arguments.catch)
    if not arguments.catch:
        service.directory(config)
    _log_to_stderr()
    box = Outbox(config=config, deliver="never")
    engine = build_engine(box.store, config, config.routes, Clock(), observe=delivery_log.Batched(sys.stderr))
    asyncio.run(service.receive(box, engine, catch=arguments.catch))
    box.close()
    return 0


# -- queue ---------------------------------------------------------------------------------------------------


def queue(arguments: argparse.Namespace) -> int:
    """List, count, change."""
    box = _box(arguments)
    if arguments.verb == "list":
        return _list(box, arguments)
    if arguments.verb == "stats":
        return _stats(box, arguments)
    if not arguments.selection:
        print(
            f"outmail: queue {arguments.verb} needs a selection: ids, a filter, - for ids on stdin, or ALL",
            file=sys.stderr,
        )
        return EX_USAGE
    selected = _selections(arguments.selection, Clock().now())
    if arguments.dry_run:
        count = sum(1 for one in selected for s in box.queue.matching(one) for _ in s.recipients)
        print(f"{_count(count, 'recipient')} of matching messages; nothing was changed", file=sys.stderr)
        return 0
    if arguments.verb == "purge":
        count = sum(box.queue.purge(one) for one in selected)
        print(f"{_count(count, 'message')} forgotten", file=sys.stderr)
        return 0
    change = getattr(box.queue, arguments.verb)
    count = sum(change(one) for one in selected)
    print(f"{_count(count, 'recipient')} changed", file=sys.stderr)
    if not count and arguments.verb == "requeue":
        print(
            "outmail: only failed or cancelled recipients whose content is still kept can be queued again",
            file=sys.stderr,
        )
    return 0


def _selections(words: list[str], now: int) -> list[Filter]:
    """Ids and filter words of a command line → filters: ids are or-ed, the other words make one filter."""
    if words == ["ALL"]:
        return [Filter()]
    if words == ["-"]:
        words = sys.stdin.buffer.read().decode("utf-8", "replace").split()
    ids = tuple(pair for word in words if is_id(word) for pair in selection.select(word, now).ids)
    rest = [word for word in words if not is_id(word)]
    terms = tuple(term for word in rest for term in selection.parse(shlex.quote(word), now).terms)
    return [Filter(terms, ids)]


def _list(box: Outbox, arguments: argparse.Namespace) -> int:
    words = arguments.selection
    selected = _selections(words, Clock().now())[0] if words else Filter((Term("is", "live"),))
    found = 0
    for status in box.queue.matching(selected):
        found += 1
        if arguments.ids:
            print(status.id)
        elif arguments.json or arguments.jsonl:
            print(as_json(status.as_dict()))
        else:
            _print_message(status)
    if not (arguments.ids or arguments.json or arguments.jsonl):
        print(_count(found, "message") + ("" if words else " not finished"), file=sys.stderr)
        _tell_owners(box)
        _warn_idle(box)
    return 0


def _print_message(status: Status) -> None:
    age = human_span(Clock().now() - status.accepted_at)
    print(
        f"{status.id}  {age:>6}  {status.size:>9}  {plain_line(status.sender or '<>')}  "
        f"{plain_line(status.subject[:50])}"
    )
    for r in status.recipients:
        print(plain_line(f"    {r.address}: {_in_words(r)}"))


def _in_words(r: Any) -> str:
    state = "deferred" if r.state == "queued" and r.attempts else r.state
    parts = [state + (" (uncertain: it may have arrived)" if r.uncertain else "")]
    if r.reason:
        parts.append(r.reason)
    if r.state == "queued" and r.next_try_at and r.attempts:
        parts.append(f"next try {rfc3339(r.next_try_at)}")
    if r.attempts:
        parts.append(_count(r.attempts, "attempt"))
    return "; ".join(parts)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _tell_owners(box: Outbox) -> None:
    now = Clock().now()
    for engine in box.queue.engines():
        if engine.oldest is not None and now - engine.oldest > 15 * 60_000:
            print(
                f"outmail: engine {engine.id} (pid {engine.pid}) has held {engine.leases} recipients for "
                f"up to {human_span(now - engine.oldest)}",
                file=sys.stderr,
            )
    for hop, note in box.queue.paused_hops().items():
        print(
            f"outmail: {hop} is paused since {rfc3339(note['since'])}: {plain_line(str(note['trouble']))}",
            file=sys.stderr,
        )
    _tell_ahead(box)


def _tell_ahead(box: Outbox) -> None:
    """Next hops that get one message after the other, because they refuse what is sent ahead."""
    now = Clock().now()
    for url, note in box.queue.ahead_notes().items():
        if not may_send_ahead(note, now):
            since, until = rfc3339(note["since"]), rfc3339(note["until"])
            print(
                f"outmail: nothing is sent ahead to {url} since {since}, and again from {until}: "
                f"{plain_line(str(note['reply']))}",
                file=sys.stderr,
            )


def _stats(box: Outbox, arguments: argparse.Namespace) -> int:
    stats = box.queue.stats()
    if arguments.json or arguments.jsonl:
        print(as_json(stats))
        return 0
    for row in stats["routes"]:
        age = human_span(Clock().now() - row["oldest_at"])
        print(
            f"{plain_line(row['route']):<40} {row['state']:<9} {row['recipients']:>9}  oldest {age}"
            + (f"  uncertain {row['uncertain']}" if row["uncertain"] else "")
        )
    print(
        "  ".join(f"{state} {count}" for state, count in sorted(stats["states"].items()))
        or "the queue is empty"
    )
    return 0


# -- looking -------------------------------------------------------------------------------------------------


def show(arguments: argparse.Namespace) -> int:
    """One message."""
    box = _box(arguments)
    if arguments.raw:
        sys.stdout.buffer.write(box.content(arguments.id))
        sys.stdout.buffer.flush()
        return 0
    status = box.status(arguments.id)
    if arguments.json:
        print(as_json(status.as_dict()))
        return 0
    print(
        f"id         {status.id}\nmessage-id {plain_line(status.message_id)}\nfrom       "
        f"{plain_line(status.sender or '<>')}\nsubject    {plain_line(status.subject)}"
    )
    print(
        f"size       {status.size} bytes, sha256 {status.sha256}\naccepted   {rfc3339(status.accepted_at)}, "
        f"expires {rfc3339(status.expires_at)}"
    )
    for name in ("key", "tag"):
        if getattr(status, name):
            print(plain_line(f"{name:<10} {getattr(status, name)}"))
    for r in status.recipients:
        print(plain_line(f"  {r.n}. {r.address} via {r.route}: {_in_words(r)}"))
    return 0


def log(arguments: argparse.Namespace) -> int:
    """Every attempt."""
    for attempt in _box(arguments).attempts(arguments.id):
        if arguments.jsonl:
            print(as_json(attempt.as_dict()))
            continue
        print(
            plain_line(
                f"{rfc3339(attempt.at)} {attempt.outcome} recipients "
                f"{','.join(map(str, attempt.recipients))} via {attempt.host or attempt.route}"
                f" in {attempt.duration_ms} ms: {attempt.reply}"
            )
        )
        for line in attempt.transcript:
            print(
                f"  {line['ms']:>6} {line['dir']}: "
                + "\n            ".join(map(plain_line, line["line"].split("\n")))
            )
    return 0


def events(arguments: argparse.Namespace) -> int:
    """What happened."""
    box = _box(arguments)
    after = arguments.after
    while True:
        for event in box.events(after):
            after = event.cursor
            if arguments.jsonl:
                print(as_json(event.as_dict()), flush=True)
            else:
                who = f"{event.id}/{event.n} {event.address}" if event.n else event.id
                print(
                    plain_line(
                        f"{event.cursor} {rfc3339(event.at)} {event.event} {who}"
                        + (f" {event.reason}" if event.reason else "")
                    ),
                    flush=True,
                )
        if not arguments.follow:
            return 0
        time.sleep(0.2)


def why(arguments: argparse.Namespace) -> int:
    """The story in sentences."""
    box = _box(arguments)
    if is_id(arguments.what):
        stories = [box.status(arguments.what)]
    else:
        stories = list(box.find(to=arguments.what))
    if not stories:
        raise NotFound(f"no message to {arguments.what} is in the queue's records")
    for status in stories:
        print(
            plain_line(
                f"{status.id} “{status.subject}” from {status.sender or '<>'}, accepted "
                f"{rfc3339(status.accepted_at)}"
            )
        )
        for r in status.recipients:
            print(plain_line(f"  {r.address}: {_in_words(r)}"))
        for attempt in box.attempts(status.id):
            print(
                plain_line(
                    f"    {rfc3339(attempt.at)} {attempt.host or attempt.route}: {attempt.outcome}; "
                    f"{attempt.reply}"
                )
            )
    _tell_owners(box)
    return 0


def explain(arguments: argparse.Namespace) -> int:
    """What a code means."""
    text = CODES.get(arguments.code)
    if text is None:
        print(f"outmail: no code {arguments.code!r}; known are {', '.join(sorted(CODES))}", file=sys.stderr)
        return EX_NOINPUT
    print(text)
    return 0


def test(arguments: argparse.Namespace) -> int:
    """A test message with its dialogue; stored only for the time it takes."""
    import tempfile

    config = replace(_config(arguments), transcripts="all")
    sender = _sender(config, arguments.sender)
    with tempfile.TemporaryDirectory(prefix="outmail-test-") as folder:
        box = Outbox(
            os.path.join(folder, "test.db"),
            config=replace(config, only_to=(), redirect_to=""),
            deliver="never",
        )
        receipt = box.send(
            arguments.to,
            "outmail test",
            "This is a test message of outmail: this relay takes mail.\n",
            sender=sender,
        )
        engine = build_engine(box.store, config, config.routes, Clock())
        asyncio.run(engine.run(once=True))
        for attempt in box.attempts(receipt.id):
            print(f"via {attempt.host or attempt.route}", file=sys.stderr)
            for line in attempt.transcript:
                print(plain_line(f"{line['ms']:>6} {line['dir']}: {line['line']}"), file=sys.stderr)
        status = box.status(receipt.id)
        box.close()
    if is_postgres(config.store) or os.path.exists(store_path(config.store)[0]):
        try:
            with closing(_box(arguments)) as box:
                _tell_ahead(box)
        except (ConfigError, Trouble) as problem:  # the test itself needs no store
            print(f"outmail: what is known of this relay cannot be read: {problem}", file=sys.stderr)
    recipient = status.recipients[0]
    if recipient.state == "delivered":
        print(plain_line(f"{recipient.address}: accepted by the relay: {recipient.reply}"))
        return 0
    print(
        plain_line(
            f"{recipient.address}: {recipient.state}: "
            f"{recipient.reason or 'not tried: no relay is known for this address'}"
        ),
        file=sys.stderr,
    )
    print(_advice(recipient.reason), file=sys.stderr)
    return EX_UNAVAILABLE if recipient.state == "failed" else EX_TEMPFAIL


def _advice(reason: str) -> str:
    for mark, advice in _ADVICE:
        if mark in reason:
            return advice
    return "The relay's own words above say why."


_ADVICE = (
    (
        "certificate",
        "The relay's certificate is not trusted: give its CA as `ca`, or pin it with `fingerprint`, in the "
        "relay's table.",
    ),
    (
        "STARTTLS",
        "The relay offers no encryption: use smtps:// if it has that, or smtp+plain:// if the line is safe.",
    ),
    ("refused", "Nobody listens there: check host and port, and that the server runs."),
    (
        "no connection",
        "No answer: a firewall, or your provider blocks this port; 587 and 465 are rarely blocked.",
    ),
    ("Name or service", "The host name is unknown: check its spelling and the machine's DNS."),
    ("535", "The relay does not accept user name or password."),
    ("451", "The relay asks to try again later (often greylisting): the queue would do so."),
)


# -- upkeep --------------------------------------------------------------------------------------------------


def store(arguments: argparse.Namespace) -> int:
    """upgrade, check, backup, ddl."""
    if arguments.verb == "ddl":
        print(outbox_ddl(arguments.dialect), end="")
        return 0
    if arguments.verb == "backup" and not arguments.file:
        print("outmail: store backup needs a FILE", file=sys.stderr)
        return EX_USAGE
    if arguments.verb == "check":
        return _check(arguments)
    box = _box(arguments)  # opening upgrades
    if arguments.verb == "backup":
        _backup(box, arguments.file)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    """It looks before it opens: opening would make a store of an empty file."""
    from outmail.store.sqlite.store import is_store

    place = _config(arguments).store
    if not _is_there(place):
        raise NotFound(f"there is no queue at {place}")
    if is_postgres(place) or is_store(store_path(place)[0]):
        problems = _problems(arguments)
    else:
        problems = [f"{store_path(place)[0]} is no outmail store"]
    for problem in problems:
        print(problem)
    print(
        f"{shown(place)}: {'no problem found' if not problems else f'{len(problems)} problems'}",
        file=sys.stderr,
    )
    return EX_DATAERR if problems else 0


def _problems(arguments: argparse.Namespace) -> list[str]:
    try:
        box = _box(arguments)
        return [*box.store.check(), *_foreign_claims(box, arguments.free)]
    except (Trouble, NotStored) as problem:
        if getattr(problem, "kind", "") == "corrupt" or getattr(problem, "code", "") == "store-corrupt":
            return [str(problem)]
        raise


def _backup(box: Outbox, file: str) -> None:
    """A copy of the live queue in a new file; of a PostgreSQL store as a SQLite file, which `outmail move`
    brings back.
    """
    from outmail.ops.backup import leftovers, whole
    from outmail.store.sqlite.store import SqliteStore

    for left in leftovers(file):
        print(
            f"outmail: {left} is of a backup that was killed, or is still under way; delete it when none is",
            file=sys.stderr,
        )
    with whole(file) as temporary:
        if box.store.backup(temporary):
            return
        with closing(SqliteStore(temporary)) as target, _progress("backup") as tell:
            copied(box.store, target, Clock().now(), tell)
            target.flush()


def move(arguments: argparse.Namespace) -> int:
    """FROM TO, or --abandon FROM [TO]."""
    if arguments.new is None and not arguments.abandon:
        print("outmail: move needs FROM and TO", file=sys.stderr)
        return EX_USAGE
    if not _is_there(arguments.old):
        raise ConfigError(f"there is no queue at {arguments.old}")
    with closing(open_store(arguments.old)) as old:
        if arguments.abandon:
            return _abandon(old, arguments.new)
        with closing(open_store(arguments.new)) as new:
            with _progress("move") as tell:
                count = moved(old, new, Clock().now(), tell, failpoints.hit)
            print(f"{count} messages moved from {old.url} to {new.url}", file=sys.stderr)
        if os.path.isdir(old.spool) and os.listdir(old.spool):
            print(
                f"outmail: log records still lie in {old.spool}; they are mailed by whoever uses {old.url} "
                f"next",
                file=sys.stderr,
            )
    return 0


def _is_there(url: str) -> bool:
    return is_postgres(url) or os.path.exists(store_path(url)[0])


def _abandon(old: Store, place: str | None) -> int:
    """The new store, too, has a say: what it has must not stay in the old one."""
    way = under_way(old)
    place = place or (way.to if way else None)
    if way is None or place is None:
        raise NotFound(f"{old.url} is not being moved")
    if "…" in place:
        raise ConfigError(
            f"the password of {place} is not noted", hint="name it whole: outmail move --abandon FROM TO"
        )
    if not _is_there(place):
        _, left = abandon(old, None)
        print(
            f"the move is given up: {left} messages stay in {old.url}; {place} is gone, with all that had "
            f"arrived there",
            file=sys.stderr,
        )
        return 0
    try:
        new = open_store(place)
    except Trouble as problem:
        raise not_stored(
            problem, f"the move is not given up, because {place} cannot say what has arrived there"
        ) from None
    with closing(new):
        arrived, left = abandon(old, new)
    print(
        f"the move is given up: {arrived} messages had arrived in {new.url} and stay there, {left} stay in "
        f"{old.url}",
        file=sys.stderr,
    )
    return 0


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing else where."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    width = 30

    def tell(done: int, total: int) -> None:
        full = width * done // total if total else width
        print(
            f"\r{name} [{'#' * full}{'.' * (width - full)}] {done}/{total}",
            end="",
            file=sys.stderr,
            flush=True,
        )

    yield tell
    print(file=sys.stderr)


def _foreign_claims(box: Outbox, free: str | None) -> list[str]:
    """Rows in applications' databases that another store has claimed; those of the store ``free`` are made
    claimable again.
    """
    found = []
    for url in box.config.outboxes:
        try:
            source = open_source(url, "apsw")
            claims = source.claims()
            freed = [source.free(claim.claimant) for claim in claims if free in (claim.store, claim.claimant)]
            if freed:
                print(
                    f"{source.name}: {sum(freed)} messages claimed by {free} are free again", file=sys.stderr
                )
        except Trouble as problem:
            found.append(str(problem))
            continue
        me = store_id(box.store)
        for store in sorted({claim.store for claim in claims} - {me, free}):
            theirs = [claim for claim in claims if claim.store == store and claim.claimant != free]
            age = Clock().now() - min((claim.oldest for claim in theirs), default=Clock().now())
            if age > 60_000:
                found.append(
                    f"{source.name}: {sum(claim.rows for claim in theirs)} messages are claimed by the store "
                    f"{store}, the oldest for {human_span(age)}; "
                    f"when that store is gone for good: outmail store check --free {store}"
                )
        source.close()
    return found


def config(arguments: argparse.Namespace) -> int:
    """The configuration in force, without passwords; or with --hash, a password from stdin hashed for
    [listen] users_file.
    """
    if arguments.hash:
        from outmail.intake.logins import hashed

        print(hashed(sys.stdin.readline().rstrip("\r\n")))
        return 0
    found = _config(arguments).as_dict()
    if arguments.json:
        print(as_json(found))
    else:
        for key, value in found.items():
            print(f"{key:<12} {value if isinstance(value, str) else as_json(value)}")
    return 0
