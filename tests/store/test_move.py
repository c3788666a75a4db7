"""A queue moves between stores: everything comes along, nothing is lost or doubled, also when killed half way."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outmail.errors import ConfigError
from outmail.model import Filter
from outmail.ops.move import copied, move
from outmail.testing import Sink
from outmail.testing.conformance import NOW, add, lease, message, settle
from tests import pgserver
from tests.store.helpers import opened

PG = f"postgresql-{max(pgserver.installed(), key=int)}"


@pytest.fixture(params=[("apsw", PG), (PG, "apsw"), ("apsw", "stdlib")], ids=lambda pair: f"{pair[0]} to {pair[1]}".split("-")[0])
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
        message("a@x.test"), message("b@x.test"), message("c@x.test", "d@x.test"), message("e@x.test"), message(key="k"),
        message("f@x.test", content=b"A: b\r\n\r\n" + b"x\r\n" * 500_000), message("g@x.test", priority=0, due=NOW + 10**7),
    ]  # fmt: skip
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
        told[status.id] = (status.as_dict(), store.read(store.verbs.content(seq)), [a.as_dict() for a in store.read(store.verbs.attempts(seq))])
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
    assert new.read(new.verbs.note_get("job", "nightly"))[0] == {"runs": 3} and old.read(old.verbs.note_get("job", "nightly")) is None
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


@pytest.mark.parametrize("target", ["sqlite", "postgresql"])
def test_the_command_also_killed_half_way(tmp_path: Path, outmail: Any, sink: Sink, target: str) -> None:
    with contextlib.ExitStack() as stack:
        new = "new.db" if target == "sqlite" else stack.enter_context(pgserver.database(PG.partition("-")[2]))
        ids = [outmail("send", "-f", "me@x.test", f"u{i}@x.test", "--store", "old.db", stdin=b"hello").stdout.decode().strip() for i in range(3)]
        assert outmail("move", "old.db", new, OUTMAIL_FAIL="M1:kill").returncode == -signal.SIGKILL
        refused = outmail("run", "--once", "--store", "old.db", "--relay", sink.url)
        assert refused.returncode == 78 and b"being moved" in refused.stderr, refused.stderr
        done = outmail("move", "old.db", new)
        assert done.returncode == 0 and b"messages moved" in done.stderr
        assert outmail("run", "--once", "--store", new, "--relay", sink.url).returncode == 0
        assert sorted(m.recipients[0] for m in sink.messages) == [f"u{i}@x.test" for i in range(3)]
        assert outmail("show", ids[0], "--store", new).returncode == 0 and outmail("show", ids[0], "--store", "old.db").returncode == 66
        backup = outmail("store", "backup", "copy.db", "--store", new)
        assert backup.returncode == 0 and outmail("show", ids[0], "--store", "copy.db").returncode == 0
        assert outmail("move", "nowhere.db", new).returncode == 78
