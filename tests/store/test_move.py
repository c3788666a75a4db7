"""A queue moves between stores: everything comes along, nothing is lost or doubled, also when killed half
way.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outmail.errors import ConfigError, NotFound
from outmail.model import Filter
from outmail.ops import move as moving
from outmail.ops.move import abandon, copied, move, under_way
from outmail.testing import Sink
from outmail.testing.conformance import NOW, add, lease, message, settle
from tests import pgserver
from tests.store.helpers import opened

PG = f"postgresql-{max(pgserver.installed(), key=int)}"


@pytest.fixture(
    params=[("apsw", PG), (PG, "apsw"), ("apsw", "stdlib"), ("apsw", "maildir"), ("maildir", PG)],
    ids=lambda pair: f"{pair[0]} to {pair[1]}".split("-")[0],
)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    with contextlib.ExitStack() as stack:
        made = []
        for name, kind in zip(("old", "new"), request.param):
            (tmp_path / name).mkdir()
            made.append(stack.enter_context(opened(kind, tmp_path / name)))
        yield made[0], made[1]


def filled(store: Any) -> list[Any]:
    """Delivered, deferred, held, cancelled, keyed, long, of two recipients; and a job's note."""
    made = [
        message("a@x.test"),
        message("b@x.test"),
        message("c@x.test", "d@x.test"),
        message("e@x.test"),
        message(key="k"),
        message("f@x.test", content=b"A: b\r\n\r\n" + b"x\r\n" * 500_000),
        message("g@x.test", priority=0, due=NOW + 10**7),
    ]
    add(store, *made)
    owner = store.register(NOW)
    for delivery, event in zip(lease(store, owner, 2), ("delivered", "deferred")):
        settle(store, owner, delivery, event, event, NOW + 5)
    owner.close()
    store.run(store.verbs.change(Filter(ids=((made[2].id, 1),)), "hold", NOW))
    store.run(store.verbs.change(Filter(ids=((made[3].id, None),)), "cancel", NOW))
    store.run(store.verbs.note_put("job", "nightly", {"runs": 3}))
    return made


def everything(store: Any) -> dict[str, Any]:
    """What a store says of each message, without the store's own numbers."""
    found, _ = store.read(store.verbs.find(Filter(), NOW))
    told: dict[str, Any] = {}
    for status in found:
        seq = store.read(store.verbs.seq_of(status.id))
        told[status.id] = (
            status.as_dict(),
            store.read(store.verbs.content(seq)),
            [a.as_dict() for a in store.read(store.verbs.attempts(seq))],
        )
    for event in store.read(store.verbs.events_after(0)):
        if event.id in told:
            told.setdefault(f"events of {event.id}", []).append({**event.as_dict(), "cursor": 0})
    return told


def test_everything_comes_along(pair: tuple[Any, Any]) -> None:
    old, new = pair
    made = filled(old)
    before = everything(old)
    seen: list[tuple[int, int]] = []
    assert move(old, new, NOW, lambda done, total: seen.append((done, total))) == len(made)
    assert everything(new) == before and everything(old) == {} and seen[-1] == (7, 7)
    assert (
        new.read(new.verbs.note_get("job", "nightly"))[0] == {"runs": 3}
        and old.read(old.verbs.note_get("job", "nightly")) is None
    )
    assert add(new, message(key="k"))[0][3] is True
    assert old.check() == [] == new.check()
    assert len(add(old, message())) == 1  # the old one is an empty queue again


def test_held_mail_that_came_along_is_found_when_it_is_released(pair: tuple[Any, Any]) -> None:
    old, new = pair
    held = message(destination="elsewhere")
    add(old, held)
    old.run(old.verbs.change(Filter(ids=((held.id, None),)), "hold", NOW))
    move(old, new, NOW)
    assert new.read(new.verbs.next_due(NOW)) == {}
    new.run(new.verbs.change(Filter(ids=((held.id, None),)), "release", NOW))
    assert new.read(new.verbs.next_due(NOW)) == {"elsewhere": NOW}


def test_a_move_that_was_stopped_goes_on(pair: tuple[Any, Any]) -> None:
    old, new = pair
    filled(old)
    before = everything(old)

    class Killed(BaseException):
        pass

    def die(point: str) -> None:
        raise Killed

    with pytest.raises(Killed):
        move(old, new, NOW, fail=die)
    assert old.read(old.verbs.note_get("store", "moving"))
    move(old, new, NOW)
    assert everything(new) == before and everything(old) == {}


def test_an_engine_that_works_is_not_moved_away_from(pair: tuple[Any, Any]) -> None:
    old, new = pair
    add(old, message())
    owner = old.register(NOW)
    with pytest.raises(ConfigError, match="stop it first"):
        move(old, new, NOW)
    owner.close()
    assert move(old, new, NOW) == 1


def test_a_copy_is_one_moment_and_changes_nothing(pair: tuple[Any, Any]) -> None:
    old, new = pair
    filled(old)
    owner = old.register(NOW)
    sending = lease(old, owner, 1, NOW + 10)
    before = everything(old)
    copied(old, new, NOW)
    after = everything(new)
    assert everything(old) == before and set(after) == set(before)
    copy = after[sending[0].id][0]["recipients"][sending[0].recipients[0].n - 1]
    assert copy["state"] == "queued" and copy["uncertain"]
    owner.close()


# -- one move at a time --------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def die(point: str) -> None:
    raise Killed


def many(store: Any, count: int = 250) -> list[str]:
    made = [message(f"u{i}@x.test") for i in range(count)]
    add(store, *made)
    return sorted(one.id for one in made)


def ids_in(store: Any) -> list[str]:
    found, after = [], 0
    while after is not None:
        page, after = store.read(store.verbs.find(Filter(), NOW, after))
        found += [status.id for status in page]
    return sorted(found)


def forget_all(store: Any) -> None:
    """As purge does with what is finished."""
    store.run(store.verbs.forget_messages([store.read(store.verbs.seq_of(id)) for id in ids_in(store)]))


def test_a_second_target_is_refused_while_the_first_is_not_finished(
    pair: tuple[Any, Any], tmp_path: Path
) -> None:
    old, new = pair
    ids = many(old)
    (tmp_path / "third").mkdir()
    with opened("apsw", tmp_path / "third") as third:

        def meanwhile(point: str) -> None:
            with pytest.raises(ConfigError, match="already being moved") as refused:
                move(old, third, NOW)
            assert "outmail move --abandon" in (refused.value.hint or "") and new.url in (
                refused.value.hint or ""
            )

        assert move(old, new, NOW, fail=meanwhile) == len(ids)
        assert ids_in(third) == [] and ids_in(new) == ids and ids_in(old) == []
        assert move(new, third, NOW) == len(ids)  # the note is gone with the move


def test_two_at_once_to_the_same_target_share_the_work(pair: tuple[Any, Any]) -> None:
    """The second begins and ends while the first stands between the commit in the new store and forgetting in
    the old one.
    """
    old, new = pair
    ids = many(old)
    counts: list[Any] = []

    def meanwhile(point: str) -> None:
        if not counts:
            counts.append(0)
            counts.append(move(old, new, NOW))
            forget_all(new)  # delivered and purged meanwhile: still nothing comes twice

    with contextlib.suppress(ConfigError):
        counts.append(move(old, new, NOW, fail=meanwhile))
    assert sum(counts) == len(ids) and ids_in(new) == [] and ids_in(old) == []


def test_a_batch_that_was_read_before_another_brought_it_comes_once(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = pair
    ids, real = many(old, 150), old.read
    again: list[Any] = []

    def read(verb: Any) -> Any:
        found = real(verb)
        if verb.__name__ == "_waiting" and not again:
            again.append(1)
            assert move(old, new, NOW) == len(ids)
            forget_all(new)
        return found

    monkeypatch.setattr(old, "read", read)
    assert move(old, new, NOW) == 0
    assert ids_in(new) == [] and ids_in(old) == []


def test_what_had_arrived_before_a_kill_does_not_come_again_however_late_it_goes_on(
    pair: tuple[Any, Any],
) -> None:
    old, new = pair
    ids = many(old)
    with pytest.raises(Killed):
        move(old, new, NOW, fail=die)
    first = ids_in(new)
    assert len(first) == 100 and len(ids_in(old)) == 250
    forget_all(new)  # all of it delivered, and its records purged
    assert move(old, new, NOW) == 150
    assert sorted(first + ids_in(new)) == ids and ids_in(old) == []


def test_a_move_can_be_given_up(pair: tuple[Any, Any]) -> None:
    old, new = pair
    ids = many(old)
    with pytest.raises(Killed):
        move(old, new, NOW, fail=die)
    assert abandon(old, new) == (100, 150)
    assert sorted(ids_in(old) + ids_in(new)) == ids and under_way(old) is None
    with pytest.raises(NotFound):
        abandon(old, new)
    assert move(old, new, NOW) == 150 and ids_in(new) == ids


def test_a_move_that_is_given_up_under_way_stops(pair: tuple[Any, Any]) -> None:
    old, new = pair
    ids, told = many(old), []
    with pytest.raises(ConfigError, match="ended this move"):
        move(old, new, NOW, fail=lambda point: told.append(abandon(old, new)))
    assert told == [(100, 150)] and sorted(ids_in(old) + ids_in(new)) == ids


def test_the_end_of_a_move_ends_no_later_one(pair: tuple[Any, Any]) -> None:
    old, new = pair
    many(old, 1)
    with pytest.raises(Killed):
        move(old, new, NOW, fail=die)
    first = under_way(old)
    assert first is not None
    abandon(old, new)
    many(old, 1)
    with pytest.raises(Killed):
        move(old, new, NOW, fail=die)
    old.run(moving._let_go(old, first))
    assert under_way(old) is not None


def test_a_move_given_up_without_its_target_keeps_what_is_left(pair: tuple[Any, Any]) -> None:
    old, new = pair
    many(old)
    with pytest.raises(Killed):
        move(old, new, NOW, fail=die)
    assert abandon(old, None) == (0, 250)


def test_one_database_by_two_names_is_not_moved_onto_itself(tmp_path: Path) -> None:
    with pgserver.database(PG.partition("-")[2]) as url:
        from outmail.store.postgres.store import PostgresStore

        one, other = (
            PostgresStore(place, str(tmp_path / "q"))
            for place in (url, url + ("&" if "?" in url else "?") + "connect_timeout=9")
        )
        ids = many(one, 3)
        with pytest.raises(ConfigError, match="onto itself"):
            move(one, other, NOW)
        assert ids_in(one) == ids and under_way(one) is None
        one.close()
        other.close()


def test_two_commands_at_once(tmp_path: Path, outmail: Any) -> None:
    from outmail.store.sqlite.store import SqliteStore

    old = SqliteStore(str(tmp_path / "old.db"))
    ids = many(old, 1500)
    command = [sys.executable, "-m", "outmail", "move", "old.db", "new.db"]
    both = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert {process.returncode for process in both} <= {0, 78}, said
    new = SqliteStore(str(tmp_path / "new.db"))
    assert ids_in(new) == ids and ids_in(old) == []
    old.close()
    new.close()


def test_the_command_gives_up(tmp_path: Path, outmail: Any) -> None:
    for i in range(2):
        outmail("send", "-f", "me@x.test", f"u{i}@x.test", "--store", "old.db", stdin=b"hello")
    assert outmail("move", "--abandon", "old.db").returncode == 66
    assert outmail("move", "old.db").returncode == 64
    assert outmail("move", "old.db", "new.db", OUTMAIL_FAIL="M1:kill").returncode == -signal.SIGKILL
    refused = outmail("move", "old.db", "third.db")
    assert (
        refused.returncode == 78
        and b"outmail move --abandon" in refused.stderr
        and b"new.db" in refused.stderr
    )
    given_up = outmail("move", "--abandon", "old.db")
    assert (
        given_up.returncode == 0
        and b"2 messages had arrived in" in given_up.stderr
        and b"0 stay in" in given_up.stderr
    )
    assert outmail("move", "new.db", "third.db", OUTMAIL_FAIL="M1:kill").returncode == -signal.SIGKILL
    os.unlink(tmp_path / "third.db")
    given_up = outmail("move", "--abandon", "new.db")
    assert given_up.returncode == 0 and b"2 messages stay" in given_up.stderr and b"gone" in given_up.stderr


@pytest.mark.parametrize("target", ["sqlite", "postgresql"])
def test_the_command_also_killed_half_way(tmp_path: Path, outmail: Any, sink: Sink, target: str) -> None:
    with contextlib.ExitStack() as stack:
        new = "new.db" if target == "sqlite" else stack.enter_context(pgserver.database(PG.partition("-")[2]))
        ids = [
            outmail("send", "-f", "me@x.test", f"u{i}@x.test", "--store", "old.db", stdin=b"hello")
            .stdout.decode()
            .strip()
            for i in range(3)
        ]
        assert outmail("move", "old.db", new, OUTMAIL_FAIL="M1:kill").returncode == -signal.SIGKILL
        refused = outmail("run", "--once", "--store", "old.db", "--relay", sink.url)
        assert refused.returncode == 78 and b"being moved" in refused.stderr, refused.stderr
        done = outmail("move", "old.db", new)
        assert done.returncode == 0 and b"messages moved" in done.stderr
        assert outmail("run", "--once", "--store", new, "--relay", sink.url).returncode == 0
        assert sorted(m.recipients[0] for m in sink.messages) == [f"u{i}@x.test" for i in range(3)]
        assert (
            outmail("show", ids[0], "--store", new).returncode == 0
            and outmail("show", ids[0], "--store", "old.db").returncode == 66
        )
        backup = outmail("store", "backup", "copy.db", "--store", new)
        assert backup.returncode == 0 and outmail("show", ids[0], "--store", "copy.db").returncode == 0
        assert outmail("move", "nowhere.db", new).returncode == 78


def test_there_and_back_and_there_again_brings_everything(pair: tuple[Any, Any]) -> None:
    one, two = pair
    made = filled(one)
    before = everything(one)
    for _ in range(2):
        assert move(one, two, NOW) == len(made) == len(everything(two).keys() & {m.id for m in made})
        assert move(two, one, NOW) == len(made)
    assert everything(one) == before and one.check() == [] == two.check()


def test_a_message_whose_record_is_gone_in_the_new_store_comes_there_again(pair: tuple[Any, Any]) -> None:
    """Also where an earlier version, or a dropped period, left the row of its id."""
    old, new = pair
    add(old, message(key="k"))
    add(new, message(key="k"))

    def forget() -> Any:
        yield "DELETE FROM recipient", ()

    new.run(forget())
    assert move(old, new, NOW) == 1 and len(ids_in(new)) == 1 and ids_in(old) == []


def test_giving_up_that_was_killed_is_to_be_given_again(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = pair
    made = many(old)
    with pytest.raises(Killed):
        move(old, new, NOW, fail=die)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(moving, "_forget", lambda *args: die(""))
        abandon(old, new)
    for _ in range(2):
        with pytest.raises(ConfigError, match="to give up the move") as refused:
            move(old, new, NOW)
        assert f"outmail move --abandon {old.url} {new.url}" in refused.value.hint
    abandon(old, new)
    assert sorted(ids_in(old) + ids_in(new)) == sorted(made)
    move(old, new, NOW)
    assert sorted(ids_in(new)) == sorted(made) and ids_in(old) == []


def test_mail_that_comes_before_the_end_of_a_move_comes_along(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = pair
    add(old, message())
    honest, late = moving._finish, message()

    def finish(*args: Any) -> Any:
        add(old, late)
        monkeypatch.setattr(moving, "_finish", honest)
        return honest(*args)

    monkeypatch.setattr(moving, "_finish", finish)
    assert move(old, new, NOW) == 2
    assert ids_in(old) == [] and late.id in ids_in(new) and under_way(old) is None


def test_a_note_that_both_stores_have_is_not_lost_and_it_says_so(
    pair: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    old, new = pair
    for store in pair:
        store.run(store.verbs.note_put("digest", "app", {"from": store.url}))
        store.run(store.verbs.note_put("digest", "same", {"n": 1}))
    with caplog.at_level(logging.WARNING, "outmail"):
        move(old, new, NOW)
    for store in pair:
        assert store.read(store.verbs.note_get("digest", "app"))[0] == {"from": store.url}
    assert old.read(old.verbs.note_get("digest", "same")) is None
    (said,) = [record.getMessage() for record in caplog.records if "its own note" in record.getMessage()]
    assert "digest/app" in said and "digest/same" not in caplog.text
