"""``outmail store`` and ``outmail move``: maintenance of the store itself.

Promises: ``check`` ends with 65 when it has found damage; ``move`` may be killed and called again. Fails:
`NotFound` (66) where there is no queue, `StoreError`; 64 for missing words. Does not: repair.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

from outmail.accept.acceptance import not_stored
from outmail.cli import foreign
from outmail.cli.common import config_of, is_there, queue_of
from outmail.cli.exits import EX_DATAERR, EX_USAGE
from outmail.clock import Clock, human_span
from outmail.errors import ConfigError, NotFound, NotStored
from outmail.ops.move import abandon, copied, under_way
from outmail.ops.move import move as moved
from outmail.outbox.queue import Queue
from outmail.store import Store, StoreError, shown, store_id
from outmail.system import failpoints
from outmail.transactional.insert import outbox_ddl
from outmail.wiring import is_queue, open_source, open_store, sqlite_copy, store_path


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
    with queue_of(arguments) as queue:  # opening upgrades
        if arguments.verb == "backup":
            _backup(queue.store, arguments.file)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    """Look before opening, because opening would turn an empty file into a store."""
    place = config_of(arguments).store
    if not is_there(place):
        raise NotFound(f"there is no queue at {place}")
    if is_queue(place):
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
        config = config_of(arguments)
        with Queue.open(config) as queue:
            return [*queue.store.check(), *_foreign_claims(queue.store, config.outboxes, arguments.free)]
    except (StoreError, NotStored) as problem:
        if getattr(problem, "kind", "") == "corrupt" or getattr(problem, "code", "") == "store-corrupt":
            return [str(problem)]
        raise


def _backup(store: Store, file: str) -> None:
    """Copy the live queue into a new file. A copy of a PostgreSQL store is a SQLite file; `outmail move`
    brings it back.
    """
    from outmail.ops.backup import leftovers, whole

    for left in leftovers(file):
        print(
            f"outmail: {left} belongs to a backup that was killed or is still running; delete it if none "
            f"is running",
            file=sys.stderr,
        )
    with whole(file) as temporary:
        if store.backup(temporary):
            return
        with sqlite_copy(temporary) as target, _progress("backup") as tell:
            copied(store, target, Clock().now(), tell)


def move(arguments: argparse.Namespace) -> int:
    """FROM TO, or --abandon FROM [TO]."""
    if arguments.new is None and not arguments.abandon:
        print("outmail: move needs FROM and TO", file=sys.stderr)
        return EX_USAGE
    if (queue := foreign.named(arguments.old)) is not None and not arguments.abandon:
        return foreign.move(queue, arguments)
    if not is_there(arguments.old):
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
                f"outmail: log records are still in {old.spool}; the next program that uses {old.url} "
                f"mails them",
                file=sys.stderr,
            )
    return 0


def _abandon(old: Store, place: str | None) -> int:
    """Give a move up. The new store must be asked, because what it has must not stay in the old one."""
    way = under_way(old)
    place = place or (way.to if way else None)
    if way is None or place is None:
        raise NotFound(f"{old.url} is not being moved")
    if "…" in place:
        raise ConfigError(
            f"the password of {place} is not noted", hint="name it whole: outmail move --abandon FROM TO"
        )
    if not is_there(place):
        _, left = abandon(old, None)
        print(
            f"the move is given up: {left} messages stay in {old.url}; {place} is gone, with all that had "
            f"arrived there",
            file=sys.stderr,
        )
        return 0
    try:
        new = open_store(place)
    except StoreError as problem:
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
    """A progress bar on a terminal; nothing elsewhere."""
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


def _foreign_claims(store: Store, outboxes: Sequence[str], free: str | None) -> list[str]:
    """Rows in applications' databases that another store has claimed. Claims of the store ``free`` are
    released.
    """
    found = []
    for url in outboxes:
        try:
            source = open_source(url, "apsw")
            claims = source.claims()
            freed = [source.free(claim.claimant) for claim in claims if free in (claim.store, claim.claimant)]
            if freed:
                print(
                    f"{source.name}: {sum(freed)} messages claimed by {free} are free again", file=sys.stderr
                )
        except StoreError as problem:
            found.append(str(problem))
            continue
        me = store_id(store)
        for other in sorted({claim.store for claim in claims} - {me, free}):
            theirs = [claim for claim in claims if claim.store == other and claim.claimant != free]
            age = Clock().now() - min((claim.oldest for claim in theirs), default=Clock().now())
            if age > 60_000:
                found.append(
                    f"{source.name}: {sum(claim.rows for claim in theirs)} messages are claimed by the store "
                    f"{other}, the oldest for {human_span(age)}; "
                    f"when that store is gone for good: outmail store check --free {other}"
                )
        source.close()
    return found
