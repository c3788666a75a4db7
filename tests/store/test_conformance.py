"""What every store must do. One suite for all back-ends; today SQLite by both of its libraries."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outmail import lifecycle as life
from outmail.errors import ConfigError
from outmail.lifecycle import Standing
from outmail.model import Delivery, Filter, Message, Outcome, Recipient, Reply, Settled, Term, Verdict, new_id
from outmail.store import Trouble
from outmail.store.sqlite import SqliteStore

NOW = 1_800_000_000_000


@pytest.fixture(params=["apsw", "stdlib"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(str(tmp_path / "q.db"), request.param)
    yield made
    made.close()


def message(*to: str, destination: str = "default", priority: int = 1, now: int = NOW, due: int | None = None, content: bytes = b"A: b\r\n\r\n", key: str | None = None, expires: int = 10**9) -> Message:
    import hashlib

    id = new_id(now) if key is None else __import__("outmail.model", fromlist=["keyed_id"]).keyed_id(key)
    people = tuple(Recipient(address, destination) for address in to or ("a@x.test",))
    return Message(id, content, "me@x.test", people, f"<{id}@x>", "subject", hashlib.sha256(content).digest(), 0, now, due or now, now + expires, priority, key)


def add(store: SqliteStore, *messages: Message) -> Any:
    return [one[:4] for one in store.run(store.verbs.add(list(messages)))]


def lease(store: SqliteStore, owner: Any, n: int = 10, now: int = NOW, number: int = 1, destination: str = "default") -> list[Delivery]:
    return store.run(store.verbs.lease(owner.id, number, {destination: n}, now))


def settle(store: SqliteStore, owner: Any, delivery: Delivery, event: str, kind: str = "deferred", due: int = NOW, now: int = NOW) -> int:
    outcome = Outcome(kind, "recipient", "dot", Reply(250, "text"))  # type: ignore[arg-type]
    for r in delivery.recipients:
        r.outcome = outcome
    item = Settled(delivery, tuple((r, Verdict(event, due, "why")) for r in delivery.recipients), now, 5, True)
    return store.run(store.verbs.settle(owner.id, [item]))


def standing(store: SqliteStore, id: str, n: int = 1) -> Any:
    seq = store.read(store.verbs.seq_of(id))
    return store.read(store.verbs.statuses([seq]))[0].recipients[n - 1]


def test_what_is_added_is_whole_and_found(store: SqliteStore) -> None:
    one = message("a@x.test", "b@x.test")
    assert add(store, one) == [(one.id, one.message_id, NOW, False)]
    seq = store.read(store.verbs.seq_of(one.id))
    assert store.read(store.verbs.content(seq)) == one.content
    assert [e.event for e in store.read(store.verbs.events_after(0))] == ["accepted"]


def test_a_key_is_one_message_also_inside_one_batch(store: SqliteStore) -> None:
    first, second = message(key="k"), message(key="k", now=NOW + 5)
    assert [row[3] for row in add(store, first, second)] == [False, True]
    assert add(store, message(key="k", now=NOW + 9))[0] == (first.id, first.message_id, NOW, True)
    assert len(store.read(store.verbs.find(Filter(), NOW))[0]) == 1


def test_lease_takes_older_first_and_never_twice(store: SqliteStore) -> None:
    made = [message(now=NOW + i) for i in range(5)]
    add(store, *reversed(made))
    owner = store.register(NOW)
    assert [d.id for d in lease(store, owner, 3, NOW + 10)] == [m.id for m in made[:3]]
    assert [d.id for d in lease(store, owner, 9, NOW + 10)] == [m.id for m in made[3:]]
    assert lease(store, owner, 9, NOW + 10) == []


def test_lease_leaves_other_destinations_and_the_future_alone(store: SqliteStore) -> None:
    add(store, message(destination="other"), message(due=NOW + 1000))
    owner = store.register(NOW)
    assert lease(store, owner) == []
    assert store.read(store.verbs.next_due(NOW)) == {"default": NOW + 1000, "other": NOW}


def test_a_settle_needs_the_lease(store: SqliteStore) -> None:
    add(store, message())
    owner, other = store.register(NOW), store.register(NOW)
    (delivery,) = lease(store, owner)
    assert settle(store, other, delivery, "deferred") == 0
    assert settle(store, owner, delivery, "delivered", "delivered") == 1
    assert settle(store, owner, delivery, "deferred") == 0


def test_a_late_delivered_confirms_only_the_uncertain(store: SqliteStore) -> None:
    certain, marked = message(), message()
    add(store, certain, marked)
    owner = store.register(NOW)
    first, second = lease(store, owner)
    store.run(store.verbs.reclaim(owner.id, {(second.seq, 1, 1)}, NOW, rebooted=False, hold=False))
    assert settle(store, owner, first, "delivered", "delivered") == 0
    assert settle(store, owner, second, "delivered", "delivered") == 1
    assert standing(store, certain.id).state == "queued" and standing(store, marked.id).state == "delivered"
    assert [e.event for e in store.read(store.verbs.events_after(0))][-1] == "confirm"


def test_one_bad_verb_spoils_only_itself(store: SqliteStore) -> None:
    def bad() -> Any:
        yield "INSERT INTO message (seq) VALUES (77)", ()

    good = message()
    answers = store.commit([store.verbs.add([good]), bad(), store.verbs.add([message()])])
    assert isinstance(answers[1], Trouble) and len(store.read(store.verbs.find(Filter(), NOW))[0]) == 2


def test_returned_counts_no_attempt(store: SqliteStore) -> None:
    one = message()
    add(store, one)
    owner = store.register(NOW)
    store.run(store.verbs.give_back(owner.id, lease(store, owner), NOW))
    assert (standing(store, one.id).state, standing(store, one.id).attempts) == ("queued", 0)


def test_a_dead_owners_work_is_taken_a_live_ones_never(store: SqliteStore, tmp_path: Path) -> None:
    add(store, message(), message())
    alive = store.register(NOW)
    lease(store, alive, 1)
    code = f"""
import os
from outmail.store.sqlite import SqliteStore
s = SqliteStore({store.path!r})
o = s.register(0)
d = s.run(s.verbs.lease(o.id, 1, {{'default': 1}}, {NOW}))
s.dots(o, [(d[0], d[0].recipients)])
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60) if store.library == "apsw" else None
    found = store.reclaim(NOW, hold=False)
    if store.library == "apsw":
        assert [(f["leases"], f["uncertain"]) for f in found] == [(1, 1)]
    counts = store.read(store.verbs.stats(NOW))["states"]
    assert counts.get("sending") == 1
    assert store.reclaim(NOW, hold=False) == []


def test_the_dot_record_survives_its_compaction(store: SqliteStore) -> None:
    from outmail.store.owner import OwnerFile

    file = OwnerFile(store.path, "00")
    file.note([(1, 1, 1)])
    for i in range(80_000):
        file.note([(i, 2, i)])
        file.forget([(i, 2, i)])
    file.note([(9, 9, 9)])
    data = Path(file.path).read_bytes()
    import struct

    assert {(1, 1, 1), (9, 9, 9)} <= set(struct.Struct("<QII").iter_unpack(data))
    file.forget([(1, 1, 1)])
    for i in range(40_000):
        file.note([(i, 3, i)])
        file.forget([(i, 3, i)])
    assert Path(file.path).stat().st_size < 1_200_000
    assert (9, 9, 9) in set(struct.Struct("<QII").iter_unpack(Path(file.path).read_bytes()))
    file.close()


def test_suspects_go_alone_and_the_third_loss_is_poison(store: SqliteStore) -> None:
    bad = message("bad@x.test")
    add(store, bad)
    now = NOW
    for losses in (1, 2, 3):
        owner = store.register(now)
        deliveries = lease(store, owner, 10, now, losses)
        assert [d.id for d in deliveries] == [bad.id]
        store.run(store.verbs.reclaim(owner.id, set(), now, rebooted=False, hold=False))
        now += 61_000
    assert (standing(store, bad.id).state, standing(store, bad.id).reason) == ("held", "poison")


def test_age_ends_waiting_and_clocks_that_jumped_do_not_hold_mail(store: SqliteStore) -> None:
    old, stuck, scheduled = message(expires=1000), message(now=NOW + 40 * 86_400_000), message(due=NOW + 30 * 86_400_000, expires=10**12)
    add(store, old, stuck, scheduled)
    assert store.run(store.verbs.expire(NOW + 2000)) == 1 and standing(store, old.id).state == "failed"
    assert store.run(store.verbs.clamp(NOW, 86_400_000)) == 1
    assert standing(store, stuck.id).next_try_at == NOW and standing(store, scheduled.id).next_try_at == NOW + 30 * 86_400_000


def test_wishes_are_honoured_on_the_way_back(store: SqliteStore) -> None:
    held, gone = message(), message()
    add(store, held, gone)
    owner = store.register(NOW)
    deliveries = lease(store, owner)
    assert store.run(store.verbs.change(Filter(ids=((held.id, None),)), "hold", NOW))[0] == 1
    assert store.run(store.verbs.change(Filter(ids=((gone.id, 1),)), "cancel", NOW))[0] == 1
    for delivery in deliveries:
        settle(store, owner, delivery, "deferred")
    assert standing(store, held.id).state == "held" and standing(store, gone.id).state == "cancelled"


def test_retention_takes_bodies_then_records_and_gives_space_back(store: SqliteStore) -> None:
    made = [message(content=b"A: b\r\n\r\n" + os.urandom(3000).hex().encode()) for _ in range(300)]
    add(store, *made)
    owner = store.register(NOW)
    for delivery in lease(store, owner, 299):
        settle(store, owner, delivery, "delivered", "delivered")
    words = {"bodies": 1000, "records": 10_000, "transcripts": 1000}
    after: int | None = 0
    while after is not None:
        _, after = store.run(store.verbs.purge(NOW + 5000, after=after, **words))
    assert store.read(store.verbs.content(1)) is None and store.read(store.verbs.content(300)) is not None
    before = Path(store.path).stat().st_size
    for _ in range(5):
        store.give_space_back()
    store._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert Path(store.path).stat().st_size < before or store._writer.execute("PRAGMA freelist_count")[0][0] <= 256
    store.run(store.verbs.change(Filter(terms=(Term("state", "delivered"),)), "requeue", NOW))
    assert store.run(store.verbs.change(Filter(), "requeue", NOW))[0] == 0
    after = 0
    while after is not None:
        _, after = store.run(store.verbs.purge(NOW + 50_000, after=after, **words))
    left = [s.id for s in store.read(store.verbs.find(Filter(), NOW))[0]]
    assert made[-1].id in left and len(left) <= 3  # the newest message, and whose event and attempt are the newest
    assert store.check() == []


def test_notes_are_compared_and_set(store: SqliteStore) -> None:
    verbs = store.verbs
    assert store.run(verbs.note_put("job", "a", {"n": 1}, 0)) and not store.run(verbs.note_put("job", "a", {"n": 2}, 0))
    value, version = store.read(verbs.note_get("job", "a"))
    assert value == {"n": 1} and store.run(verbs.note_put("job", "a", {"n": 2}, version)) and not store.run(verbs.note_put("job", "a", {}, version))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["lease", "delivered", "refused", "deferred", "unknown", "returned", "lost", "hold", "release", "cancel", "due", "requeue", "confirm", "expired", "quarantine"]), max_size=25))
def test_the_store_walks_as_the_lifecycle(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    """Random walks: the store's row and the pure function agree after every event, legal or not."""
    store = SqliteStore(str(tmp_path_factory.mktemp("walk") / "q.db"))
    one = message(expires=10**15)
    add(store, one)
    owner, now, model, number, held = store.register(NOW), NOW, Standing(), 0, None
    for step in steps:
        now += 120_000
        number += 1
        if step == "lease":
            got = lease(store, owner, 1, now, number)
            assert bool(got) == (model.state == "queued")
            held = got[0] if got else held
        elif held is not None and step in ("delivered", "refused", "deferred", "unknown"):
            settle(store, owner, held, step, step, now, now)
        elif held is not None and step == "returned":
            store.run(store.verbs.give_back(owner.id, [held], now))
        elif held is not None and step == "quarantine" and model.state == "sending":
            store.run(store.verbs.quarantine(owner.id, held, now, "test"))
        elif step == "lost":
            store.run(store.verbs.reclaim(owner.id, set(), now, rebooted=False, hold=False))
        elif step in ("hold", "release", "cancel", "due", "requeue", "confirm"):
            store.run(store.verbs.change(Filter(ids=((one.id, None),)), step, now))
        else:
            continue
        late = step == "delivered" and model.state != "sending"
        call = {
            "lease": life.lease, "delivered": life.confirm if late else life.delivered, "refused": lambda s: life.refused(s, "why"),
            "deferred": lambda s: life.deferred(s, "why"), "unknown": lambda s: life.unknown(s, "why", hold=False), "returned": life.returned,
            "lost": lambda s: life.lost(s, dot=False, rebooted=False, hold=False), "hold": life.hold, "release": life.release, "cancel": life.cancel,
            "due": life.due, "requeue": life.requeue, "confirm": life.confirm, "quarantine": life.quarantine,
        }[step]  # fmt: skip
        try:
            model = call(model)  # type: ignore[operator]
        except life.Illegal:
            pass
        row = standing(store, one.id)
        assert (row.state, row.uncertain) == (model.state, model.uncertain), step
    store.close()


def test_threads_share_commits_and_lose_nothing(store: SqliteStore) -> None:
    def work() -> None:
        for _ in range(25):
            add(store, message())

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(store.read(store.verbs.find(Filter(), NOW))[0]) == 150


def _produce(path: str, count: int) -> None:
    made = SqliteStore(path)
    for i in range(count):
        add(made, message(key=f"shared-{i}"))
        add(made, message())
    made.close()


def test_processes_share_a_file_without_a_busy_error(tmp_path: Path) -> None:
    path = str(tmp_path / "q.db")
    SqliteStore(path).close()
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_produce, args=(path, 30)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(90)
    assert [worker.exitcode for worker in workers] == [0] * 4
    store = SqliteStore(path)
    assert len(store.read(store.verbs.find(Filter(), NOW))[0]) == 30 + 4 * 30
    store.close()


def test_a_forked_child_has_its_own_connection(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "q.db"))
    owner = store.register(NOW)
    add(store, message())
    pid = os.fork()
    if pid == 0:
        try:
            add(store, message())
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    add(store, message())
    assert len(store.read(store.verbs.find(Filter(), NOW))[0]) == 3
    assert store.reclaim(NOW, hold=False) == [] and owner.id
    store.close()


def test_two_libraries_on_one_file_are_refused(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "q.db"))
    with pytest.raises(ConfigError, match="lose commits"):
        SqliteStore(store.path, "stdlib")
    store.close()
    SqliteStore(store.path, "stdlib").close()


def test_a_foreign_lock_is_waited_for_or_said(store: SqliteStore) -> None:
    code = f"import sqlite3,time; c=sqlite3.connect({store.path!r}); c.execute('BEGIN IMMEDIATE'); print(flush=True); time.sleep(1.0); c.rollback()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as foreign:
        assert foreign.stdout
        foreign.stdout.readline()
        with pytest.raises(Trouble) as caught:
            store.commit([store.verbs.add([message()])], wait=0)
        assert caught.value.kind == "busy"
        began = time.monotonic()
        store.read(store.verbs.next_due(NOW))
        assert time.monotonic() - began < 0.5
        add(store, message())
    assert len(store.read(store.verbs.find(Filter(), NOW))[0]) == 1


def test_a_full_disk_is_said_and_leaves_nothing_half(store: SqliteStore) -> None:
    add(store, message())
    store._writer.execute(f"PRAGMA max_page_count = {store._writer.execute('PRAGMA page_count')[0][0] + 2}")
    with pytest.raises(Trouble) as caught:
        add(store, message(content=b"A: b\r\n\r\n" + b"x" * 50_000))
    assert caught.value.kind == "full"
    store._writer.execute("PRAGMA max_page_count = 1000000")
    add(store, message())
    assert len(store.read(store.verbs.find(Filter(), NOW))[0]) == 2 and store.check() == []


def test_a_later_schema_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "later.db"
    SqliteStore(str(path)).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(Trouble, match="later outmail"):
        SqliteStore(str(path))
    (tmp_path / "text.db").write_text("this is no database, " * 100)
    with pytest.raises(Trouble) as caught:
        SqliteStore(str(tmp_path / "text.db"))
    assert caught.value.kind == "corrupt"
    with pytest.raises(Trouble, match="folder"):
        SqliteStore(str(tmp_path / "missing" / "q.db"))


def test_hot_queries_use_the_small_indexes(store: SqliteStore) -> None:
    from outmail.store import verbs

    for sql, index in ((verbs._READY, "recipient_ready"), ("SELECT min(destination) FROM recipient WHERE state = 'queued' AND losses = 0", "recipient_ready"),
                       ("SELECT message, n FROM recipient WHERE state IN ('queued', 'held') AND expires_at <= ? LIMIT ?", "recipient_expiry"),
                       ("SELECT message FROM recipient WHERE state = 'sending' AND owner = ?", "recipient_leased")):  # fmt: skip
        plan = str(store._reader.execute("EXPLAIN QUERY PLAN " + sql, (1,) * sql.count("?")))
        assert index in plan and "SCAN" not in plan.replace(f"SCAN recipient USING COVERING INDEX {index}", ""), plan


def test_the_database_is_private(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "q.db"))
    assert Path(store.path).stat().st_mode & 0o077 == 0
    store.close()




def test_engines_come_while_others_tidy_up(tmp_path: Path) -> None:
    """Whoever looks for dead engines may lock a file in the moment between its making and its locking."""
    import threading

    from outmail.store.owner import OwnerFile, dead_files

    path, over, dead = str(tmp_path / "q.db"), threading.Event(), []

    def tidy() -> None:
        while not over.is_set():
            for found in dead_files(path):
                dead.append(found.uuid)
                found.remove()

    threads = [threading.Thread(target=tidy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for i in range(300):
            file = OwnerFile(path, f"{i:032x}")
            file.note([(1, 1, i)])
            file.close()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert dead == [] and not list(tmp_path.glob("q.db.engine*"))
