"""The PostgreSQL store: one database for any number of hosts.

Promises: what `commit` returned is committed (what that survives is the server's affair:
``synchronous_commit``). No transaction is open while mail is sent over the network. Nothing is kept in a
session, so PgBouncer may stand between (``?pgbouncer=1``: no prepared statements). Threads that ask at the
same moment share one commit. A broken connection is replaced at the next call; with several hosts in the URL,
by one to the host that accepts writes. When a connection breaks during a call, the caller is told that the
call may have happened.
Leases: they go by the server's clock and are renewed every 30 s. An engine that has not renewed for 90 s (it
was stopped, asleep or cut off) begins nothing and records no final dots until it has renewed. An engine whose
row is gone has lost all its leases and registers again. The record of final dots is a file on the engine's
own host. So a killed engine's work is taken back at once and exactly on its own host; on other hosts after
the end of the lease, and then everything that it had leased becomes uncertain.
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

SCHEMA = 3
R = TypeVar("R")
#: Seconds between two polls for mail from other hosts.
POLL = 0.3
#: Seconds between two searches for leases whose owner is not registered.
WALK = 60.0
#: How many seconds an upgrade waits for a locked table. Others that need the table wait behind it.
UPGRADE_WAIT = 5
#: Seconds after which events get cursors even if nobody reads events.
NUMBERING = 10.0
#: The advisory lock for upgrades of the schema.
_UPGRADE = 0x6F75746D


def schema_step(n: int) -> str:
    """The statements that turn schema ``n`` - 1 into ``n``. The version before keeps working after each: new
    columns and tables have defaults, and a column is dropped one schema version after its last user.
    """
    return schemas.sql(f"postgresql-{n}")


class LeasedOwner(Owner):
    """An engine's registration on PostgreSQL: its row, its lease, which must be renewed, and its file on this
    host.
    """

    def __init__(
        self, store: PostgresStore, id: int, file: OwnerFile, row: tuple[Any, ...], began: float
    ) -> None:
        super().__init__(store, id, file)
        self.row = row
        #: When the last successful renewal began, by a clock that goes on while this process is stopped.
        self.renewed = began
        self._owners = store._owners

    def stands(self) -> bool:
        """True while the lease cannot have ended."""
        return not self.lost and elapsed() - self.renewed <= pgsql.CONFIDENCE

    def close(self) -> None:
        self._owners.discard(self)
        super().close()


class _Claimless:
    def end(self) -> None:
        pass

    abandon = end


class PostgresStore:
    """A queue in the schema ``outmail`` of a PostgreSQL database. ``base`` is a path on this host, for the
    spool and the files of engines.
    """

    blocking = True
    #: How many connections for writing are made when threads write at the same moment.
    writers = 2

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
        self._writers = [
            SharedConnection(self.url, self._conninfo, prepare=self._prepare) for _ in range(self.writers)
        ]
        self._reader = Connection(self._conninfo, prepare=self._prepare, whole=True)

    def _begin_anew(self) -> None:
        """In a forked child. Connections are made when they are needed."""
        self._leaked += [self._writers, self._reader]  # closing these here would end the parent's sessions
        self._connect()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("closed", f"{self.url} is closed")

    def _upgrade(self) -> None:
        """Bring the database to this version's schema: one transaction for each step, one program at a
        time.
        """
        try:
            db = self._writers[0].connection.open()
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
        """Close the connections. Running calls finish first."""
        if self._pid != os.getpid() or self._closed:
            return
        self._closed = True
        if self._hints is not None:
            self._hints.close()
        for writer in self._writers:
            writer.close()
        with self._read_lock:
            self._reader.drop()

    # -- writing ---------------------------------------------------------------------------------------------

    def _writer(self) -> SharedConnection:
        """A free connection, or the one with the fewest waiting threads."""
        self._check_open()
        return min(self._writers, key=lambda writer: writer.waiting)

    def run(self, verb: Verb[R], wait: float = 30.0) -> R:
        """One verb, committed when this returns."""
        return self._writer().run(verb, wait)

    def commit(self, verbs: Sequence[Verb[Any]], wait: float = 30.0) -> list[Any]:
        """Several verbs in one transaction."""
        return self._writer().commit(verbs, wait)

    def begin(self, verbs: Sequence[Verb[Any]]) -> Callable[[], list[Any]]:
        """Everything is done by the returned function."""
        return lambda: self.commit(verbs)

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, verb: Verb[R]) -> R:
        """A verb that writes nothing, on one snapshot. (Reading events also gives them their cursors.)"""
        self._check_open()
        library = psycopg()
        with self._read_lock:
            for last in (False, True):
                try:
                    db = self._reader.open()
                    db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                    break
                except library.Error as problem:
                    # an idle connection that was cut: try once more with a new one
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
        """True every `POLL` seconds: mail from other hosts is found by polling."""
        now = time.monotonic()
        if now - self._looked < POLL:
            return False
        self._looked = now
        return True

    def announce(self) -> None:
        """Send a hint to engines on other hosts, unless the connection is busy."""
        if self._hints is not None and self._pid == os.getpid():
            self._writers[0].if_free(self._hints.tell)

    def follow(self, wake: Callable[[], None]) -> None:
        """Listen to hints from other hosts."""
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
        """Record final dots, unless others may have taken the lease. The clock is read last, because the
        process may be stopped at any line before.
        """
        owner.note(notes)
        if not owner.stands():
            raise StoreError("io", f"the lease has not been renewed for {pgsql.CONFIDENCE:.0f} s")

    def settled(self, owner: LeasedOwner, deliveries: Iterable[Delivery]) -> None:
        owner.forget(deliveries)

    def time(self) -> int | None:
        """The server's time."""
        return int(self.read(_row("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"))[0])

    def reclaim(self, now: int, *, hold: bool, within: int = 0) -> list[dict[str, Any]]:
        """Renew our own leases, take back the work of dead engines, give cursors to events."""
        self._renew()
        found = self._reclaim_here(now, hold, within)
        walk = time.monotonic() - self._walked > WALK
        self._walked = time.monotonic() if walk else self._walked
        own = {owner.id for owner in self._owners}
        for id in self.read(pgsql.silent_owners(orphans=walk)):
            if id not in own:
                found.append(self.run(pgsql.reclaim(id, None, now, hold=hold, within=within, sure=False)))
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

    def _reclaim_here(self, now: int, hold: bool, within: int) -> list[dict[str, Any]]:
        """Take back the work of engines on this host whose file nobody has locked."""
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
                                row[0],
                                dead.notes() if row[3] == boot_id() else None,
                                now,
                                hold=hold,
                                within=within,
                            )
                        )
                    )
            except BaseException:
                dead.close()
                raise
            dead.remove()
        return found

    def identity(self, sql: str) -> tuple[Any, ...]:
        """One row that says which database this is (`reader.IDENTITY`)."""
        return tuple(self.read(_row(sql)))

    # -- long content ----------------------------------------------------------------------------------------

    def uploading(self, upload: str) -> Upload:
        """Nothing to hold: each piece carries the server's time."""
        return _Claimless()

    def sweep_uploads(self) -> int:
        """Remove old pieces, by the server's clock and long after the last one, because their writer may be
        on any host. Pieces that were removed too early are written again (`Missing`).
        """
        return sum(self.run(self.verbs.drop_upload(upload)) for upload in self.read(pgsql.old_uploads()))

    # -- upkeep ----------------------------------------------------------------------------------------------

    def drop_history(self, now: int, records: int) -> bool:
        """Drop whole periods."""
        if time.monotonic() - self._turned > partitions.STEP:
            self._turned = time.monotonic()
            self._turn_periods(now, records)
        return self.run(partitions.sweep())

    def kept(self, records: int) -> int:
        """Row by row goes only what outlives its period by far."""
        return records + 2 * partitions.length(records)

    def give_space_back(self) -> None:
        """Nothing: autovacuum does it."""

    def _turn_periods(self, now: int, records: int) -> None:
        try:
            self.commit([partitions.advance(records)])
            if time.monotonic() - self._dropped > partitions.LOOK:
                self._dropped = time.monotonic()
                while self.commit([partitions.drop(now, records)])[0] is not None:
                    pass
        except StoreError as problem:
            if problem.kind in ("busy", "conflict"):
                log.info("a partition of the history is in use; it is created or dropped later: %s", problem)
            elif str(problem) != self._told:
                # a role that does not own the tables, say: then everything is deleted row by row, later
                self._told = str(problem)
                log.warning("finished mail is not kept in partitions, and is deleted row by row: %s", problem)

    def check(self) -> list[str]:
        """What is wrong with the queue, in sentences; an empty list is good news."""
        problems = []
        for sql, text in _CHECKS:
            count = self.read(_row(sql))[0]
            if count:
                problems.append(f"{count} {text}")
        return problems

    def backup(self, target: str) -> bool:
        """False: this takes more than one step."""
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
