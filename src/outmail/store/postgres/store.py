"""The PostgreSQL store: one database, any number of hosts.

Promises: what `commit` returned was committed (``synchronous_commit`` is the server's affair); a transaction
is never open while the network of mail is used; no state is kept in a session, so PgBouncer may stand between
(``?pgbouncer=1``: no prepared statements); threads that ask at the same moment share one commit; a connection
that broke is made anew with the next call, with several hosts in the URL on the one that takes writes; when
it breaks while a call is under way, the caller is told that the call may have happened. Engines hold leases
by the server's clock, renewed every 30 s; one that has not renewed for 90 s, stopped or asleep or cut off,
begins nothing and puts no more dots on record until it has; one whose row is gone has lost all it held, and
registers anew. The record is a local file: an engine killed is taken back at once and exactly on its own
host, elsewhere after the lease, and then everything it had leased counts as uncertain.
Fails: `StoreError`. Does not: create databases or roles, or tune the server.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from outmail.clock import elapsed
from outmail.model import Delivery, Leased
from outmail.store import StoreError, Upload, Verb, forks, schemas, shown
from outmail.store.owner import Owner, OwnerFile, dead_files
from outmail.store.postgres import partitions
from outmail.store.postgres import verbs as pgsql
from outmail.store.postgres.connection import Connection, SharedConnection, drive, psycopg, trouble
from outmail.store.postgres.notify import Hints
from outmail.store.postgres.url import asked, conninfo_of
from outmail.store.postgres.watermark import Watermark
from outmail.store.verbs.upkeep import CHECKS
from outmail.system.host import hostname
from outmail.system.lockfile import boot_id

log = logging.getLogger("outmail")

SCHEMA = 1
R = TypeVar("R")
#: Seconds between looks for other hosts' mail.
POLL = 0.3
#: Seconds between looks for leases of owners that nobody knows.
WALK = 60.0
#: An upgrade waits so many seconds for a table: whoever comes behind it waits too.
UPGRADE_WAIT = 5
#: Seconds between giving cursors to events that nobody asked for.
NUMBERING = 10.0
#: The advisory lock of schema upgrades.
_UPGRADE = 0x6F75746D


def schema_step(n: int) -> str:
    """The statements that make schema ``n`` of the one before. Each leaves the version before it working:
    columns and tables come with defaults, and are dropped one schema after their last user.
    """
    return schemas.sql(f"postgresql-{n}")


class LeasedOwner(Owner):
    """An engine's registration that must be renewed: its row, its lease, and its file on this host."""

    def __init__(
        self, store: PostgresStore, id: int, file: OwnerFile, row: tuple[Any, ...], began: float
    ) -> None:
        super().__init__(store, id, file)
        self.row = row
        #: When the last renewal began that the server confirmed, by a clock that goes on while this process
        #: is stopped.
        self.renewed = began
        self._owners = store._owners

    def stands(self) -> bool:
        """True while the lease cannot be over."""
        return not self.lost and elapsed() - self.renewed <= pgsql.CONFIDENCE

    def close(self) -> None:
        self._owners.discard(self)
        super().close()


class _Claimless:
    def end(self) -> None:
        pass

    abandon = end


class PostgresStore:
    """A queue in the schema ``outmail`` of a PostgreSQL database. ``base`` is a path on this host for spool
    and engines' files.
    """

    blocking = True
    #: Connections that write, made when threads ask at the same moment.
    lanes = 2

    def __init__(self, url: str, base: str) -> None:
        conninfo, self._prepare = conninfo_of(url)
        self._hints = (
            Hints(lambda: psycopg().connect(conninfo, autocommit=True)) if asked(url, "notify") else None
        )
        self.url = shown(url)
        self.spool = f"{base}.spool"
        self._base = base
        self._conninfo = conninfo
        self._leaked: list[Any] = []
        self._looked = self._numbered = self._walked = 0.0
        self._turned = self._dropped = -partitions.LOOK
        self._told = ""
        self._closed = False
        self.verbs = pgsql.PostgresVerbs(Watermark())
        self._connect()
        forks.in_child(self, PostgresStore._begin_anew)
        self._upgrade()

    def _connect(self) -> None:
        self._pid = os.getpid()
        self._owners: set[LeasedOwner] = set()
        self._read_lock = threading.Lock()
        self._lanes = [
            SharedConnection(self.url, self._conninfo, prepare=self._prepare) for _ in range(self.lanes)
        ]
        self._reader = Connection(self._conninfo, prepare=self._prepare, whole=True)

    def _begin_anew(self) -> None:
        """In a forked child. Connections are made when they are needed."""
        self._leaked += [self._lanes, self._reader]  # closing them here would end the parent's sessions
        self._connect()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("closed", f"{self.url} is closed")

    def _upgrade(self) -> None:
        """Bring the database to this version's schema: one transaction a step, one upgrader at a time."""
        try:
            db = self._lanes[0].connection.open()
            exists = db.execute("SELECT to_regclass('outmail.version') IS NOT NULL").fetchone()[0]
            found = db.execute("SELECT max(n) FROM outmail.version").fetchone()[0] if exists else -1
            if found > SCHEMA + 1:
                raise StoreError(
                    "schema",
                    f"{self.url} has schema {found}, made by a later outmail; this one works with up to "
                    f"{SCHEMA + 1}: upgrade outmail",
                )
            if found >= SCHEMA:
                return
            with db.transaction():
                db.execute("SELECT pg_advisory_xact_lock(%s, 0)", (_UPGRADE,))
                db.execute(f"SET LOCAL lock_timeout = '{UPGRADE_WAIT}s'")
                if not exists:
                    db.execute("CREATE SCHEMA IF NOT EXISTS outmail")
                made = db.execute("SELECT to_regclass('outmail.version') IS NOT NULL").fetchone()[0]
                found = db.execute("SELECT max(n) FROM outmail.version").fetchone()[0] if made else 0
                for step in range(found + 1, SCHEMA + 1):
                    db.execute(schema_step(step))
                    db.execute("UPDATE outmail.version SET n = %s", (step,))
        except psycopg().Error as problem:
            raise trouble(problem) from None

    def close(self) -> None:
        """Close the connections. Calls that are under way finish first."""
        if self._pid != os.getpid() or self._closed:
            return
        self._closed = True
        if self._hints is not None:
            self._hints.close()
        for lane in self._lanes:
            lane.close()
        with self._read_lock:
            self._reader.drop()

    # -- writing ---------------------------------------------------------------------------------------------

    def _lane(self) -> SharedConnection:
        """A free one, or one where few wait."""
        self._check_open()
        return min(self._lanes, key=lambda lane: lane.waiting)

    def run(self, verb: Verb[R], wait: float = 30.0) -> R:
        """One verb, committed when this returns."""
        return self._lane().run(verb, wait)

    def commit(self, verbs: Sequence[Verb[Any]], wait: float = 30.0) -> list[Any]:
        """Several verbs in one transaction."""
        return self._lane().commit(verbs, wait)

    def begin(self, verbs: Sequence[Verb[Any]]) -> Callable[[], list[Any]]:
        """All of it is later."""
        return lambda: self.commit(verbs)

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, verb: Verb[R]) -> R:
        """A verb from one snapshot. (Reading events also gives them their cursors.)"""
        self._check_open()
        library = psycopg()
        with self._read_lock:
            for last in (False, True):
                try:
                    db = self._reader.open()
                    db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                    break
                except library.Error as problem:
                    # an idle connection that was cut: once more with a fresh one
                    self._reader.drop()
                    if last:
                        raise trouble(problem) from None
            try:
                answer = drive(db, verb)
                db.execute("COMMIT")
                return answer  # type: ignore[no-any-return]
            except library.Error as problem:
                self._reader.drop()
                raise trouble(problem) from None
            except BaseException:
                self._reader.drop()
                raise

    def changed(self) -> bool:
        """True from time to time: other hosts' mail is found by looking."""
        now = time.monotonic()
        if now - self._looked < POLL:
            return False
        self._looked = now
        return True

    def announce(self) -> None:
        """A hint for engines on other hosts, unless the connection is busy: then others tell."""
        if self._hints is not None and self._pid == os.getpid():
            self._lanes[0].if_free(self._hints.tell)

    def follow(self, wake: Callable[[], None]) -> None:
        """Hear the hints of other hosts."""
        if self._hints is not None:
            self._hints.listen(wake)

    # -- engines ---------------------------------------------------------------------------------------------

    def register(self, now: int) -> LeasedOwner:
        """Become an engine of this store."""
        name, began = os.urandom(16).hex(), elapsed()
        row = (name, os.getpid(), hostname(), boot_id(), now)
        try:
            os.makedirs(os.path.dirname(self._base), mode=0o700, exist_ok=True)
            file = OwnerFile(self._base, name)
        except OSError as problem:
            raise StoreError(
                "forbidden", f"{self._base} cannot be written: {problem.strerror}", problem.errno
            ) from None
        try:
            number = self.run(self.verbs.register(*row))
        except BaseException:
            file.close()
            raise
        owner = LeasedOwner(self, number, file, row, began)
        self._owners.add(owner)
        return owner

    def dots(self, owner: LeasedOwner, notes: Iterable[tuple[Delivery, Sequence[Leased]]]) -> None:
        """Put final dots on record, unless the lease may be in others' hands. The look at the clock comes
        last: the process may be stopped in any line before.
        """
        owner.note(notes)
        if not owner.stands():
            raise StoreError("io", f"the lease has not been renewed for {pgsql.CONFIDENCE:.0f} s")

    def settled(self, owner: LeasedOwner, deliveries: Iterable[Delivery]) -> None:
        owner.forget(deliveries)

    def time(self) -> int | None:
        """The server's."""
        return int(self.read(_row("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"))[0])

    def reclaim(self, now: int, *, hold: bool) -> list[dict[str, Any]]:
        """Renew our own leases, take back the work of dead engines, number events."""
        self._renew()
        found = self._reclaim_here(now, hold)
        walk = time.monotonic() - self._walked > WALK
        self._walked = time.monotonic() if walk else self._walked
        own = {owner.id for owner in self._owners}
        for id in self.read(pgsql.silent_owners(orphans=walk)):
            if id not in own:
                found.append(self.run(pgsql.reclaim(id, None, now, hold=hold, sure=False)))
        if time.monotonic() - self._numbered > NUMBERING:
            self._numbered = time.monotonic()
            while self.run(self.verbs.number_events()):
                pass
        return [item for item in found if item["leases"]]

    def _renew(self) -> None:
        for owner in list(self._owners):
            began = elapsed()
            if began - owner.renewed < pgsql.RENEWAL:
                continue
            if self.run(pgsql.renew(owner.id)):
                owner.renewed = began
            else:
                owner.lost = True
                self._owners.discard(owner)

    def _reclaim_here(self, now: int, hold: bool) -> list[dict[str, Any]]:
        """Engines of this host whose file nobody holds."""
        found = []
        known: dict[str, Any] | None = None
        for dead in dead_files(self._base):
            known = known if known is not None else {row[1]: row for row in self.read(self.verbs.owners())}
            row = known.get(dead.uuid)
            try:
                if row is not None:
                    found.append(
                        self.run(
                            pgsql.reclaim(
                                row[0], dead.notes() if row[3] == boot_id() else None, now, hold=hold
                            )
                        )
                    )
            except BaseException:
                dead.close()
                raise
            dead.remove()
        return found

    def identity(self, sql: str) -> tuple[Any, ...]:
        """One row that says which database this is (`source.IDENTITY`)."""
        return tuple(self.read(_row(sql)))

    # -- long content ----------------------------------------------------------------------------------------

    def uploading(self, upload: str) -> Upload:
        """Nothing: each piece carries the server's time."""
        return _Claimless()

    def sweep_uploads(self) -> int:
        """By the server's clock, long after the last piece: its writer may be on any host. What goes too
        early is written again (`Missing`).
        """
        return sum(self.run(self.verbs.drop_upload(upload)) for upload in self.read(pgsql.old_uploads()))

    # -- upkeep ----------------------------------------------------------------------------------------------

    def drop_history(self, now: int, records: int) -> bool:
        """By periods."""
        if time.monotonic() - self._turned > partitions.STEP:
            self._turned = time.monotonic()
            self._turn_periods(now, records)
        return self.run(partitions.sweep())

    def kept(self, records: int) -> int:
        """By row goes only what outlives its period by far."""
        return records + 2 * partitions.length(records)

    def give_space_back(self) -> None:
        """Autovacuum does."""

    def _turn_periods(self, now: int, records: int) -> None:
        try:
            self.commit([partitions.advance(records)])
            if time.monotonic() - self._dropped > partitions.LOOK:
                self._dropped = time.monotonic()
                while self.commit([partitions.drop(now, records)])[0] is not None:
                    pass
        except StoreError as problem:
            if problem.kind in ("busy", "conflict"):
                log.info("a period of history is in use, it is opened or dropped later: %s", problem)
            elif str(problem) != self._told:
                # a role that owns nothing, say: then everything goes by row, later
                self._told = str(problem)
                log.warning("history is not kept in periods: %s", problem)

    def check(self) -> list[str]:
        """What is wrong with the queue, in sentences; an empty list is good news."""
        problems = []
        for sql, text in _CHECKS:
            count = self.read(_row(sql))[0]
            if count:
                problems.append(f"{count} {text}")
        return problems

    def backup(self, target: str) -> bool:
        """No file can be made of it in one step."""
        return False


_CHECKS = (
    *CHECKS,
    (
        "SELECT count(*) FROM (SELECT 1 FROM recipient GROUP BY message, n HAVING count(*) > 1) d",
        "recipients that are there twice",
    ),
)


def _row(sql: str) -> Verb[Any]:
    rows = yield sql, ()
    return rows[0]
