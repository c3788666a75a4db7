"""What a dead engine leaves behind: files that cannot be read, and whom its death makes suspect."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outmail import Outbox
from outmail.clock import Clock
from outmail.engine import completer
from outmail.store.sqlite.store import SqliteStore
from outmail.store.verbs.delivery import BEGUN, HARMLESS
from outmail.testing import Sink
from outmail.testing.conformance import NOW, add, message, standing
from outmail.wiring import build_engine
from tests.waiting import stays, until, until_in_loop

MakeBox = Callable[..., Outbox]
Run = Callable[..., subprocess.CompletedProcess[bytes]]


def _directory(path: Path) -> None:
    path.mkdir()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _symlink(path: Path) -> None:
    path.symlink_to("nowhere")


def _forbidden(path: Path) -> None:
    path.write_bytes(b"EACCES")


def _broken(path: Path) -> None:
    path.write_bytes(b"EIO")


@pytest.mark.parametrize("make", [_directory, _fifo, _symlink, _forbidden, _broken])
def test_a_file_that_cannot_be_looked_at_is_named_once_and_stops_nobody(
    tmp_path: Path, make: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(str(tmp_path / "q.db"))
    first, second = message(), message()
    add(store, first, second)
    odd, dead = store.register(NOW), store.register(NOW)
    for one in (odd, dead):
        store.run(store.verbs.lease(one.id, 1, {"default": 1}, NOW))
        one.file.abandon()
    os.unlink(odd.file.path)
    make(Path(odd.file.path))
    if make in (_forbidden, _broken):
        number, real = getattr(errno, Path(odd.file.path).read_text()), os.open

        def refusing(path: Any, *words: Any, **more: Any) -> int:
            if path == odd.file.path:
                raise OSError(number, os.strerror(number), path)
            return real(path, *words, **more)

        monkeypatch.setattr(os, "open", refusing)
    with caplog.at_level(logging.WARNING, "outmail"):
        assert [found["leases"] for found in store.reclaim(NOW, hold=False)] == [1]
        for _ in range(3):
            assert store.reclaim(NOW, hold=False) == []
    assert standing(store, first.id).state == "sending" and standing(store, second.id).state == "queued"
    assert len([r for r in caplog.records if odd.file.path in r.getMessage()]) == 1
    store.close()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"outmail",
        b"\0" * 64,
        b"some words of somebody else, written over it, long enough for three",
        os.urandom(1600),
        None,
    ],
)
def test_of_a_record_that_is_none_everything_counts_as_sent(tmp_path: Path, content: bytes | None) -> None:
    store = SqliteStore(str(tmp_path / "q.db"))
    one = message()
    add(store, one)
    dead = store.register(NOW)
    (delivery,) = store.run(store.verbs.lease(dead.id, 1, {"default": 1}, NOW))
    dead.begin(delivery)
    store.dots(dead, [(delivery, delivery.recipients)])
    whole = Path(dead.file.path).read_bytes()
    dead.file.abandon()
    Path(dead.file.path).write_bytes(whole[:-5] if content is None else content)
    assert [(found["leases"], found["uncertain"]) for found in store.reclaim(NOW, hold=False)] == [(1, 1)]
    store.close()


def test_a_folder_that_cannot_be_looked_into_is_no_proof_of_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(str(tmp_path / "q.db"))
    one = message()
    add(store, one)
    alive = store.register(NOW)
    store.run(store.verbs.lease(alive.id, 1, {"default": 1}, NOW))

    def refusing(path: Any, *words: Any, **more: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr(os, "lstat", refusing)
    assert store.reclaim(NOW, hold=False) == [] and standing(store, one.id).state == "sending"
    monkeypatch.undo()
    alive.file.abandon()
    store.close()


# -- suspicion -----------------------------------------------------------------------------------------------


def test_engines_killed_from_outside_make_no_poison(sink: Sink, make_box: MakeBox, outmail: Run) -> None:
    """They die with their hands full, before anything has begun."""
    box = make_box(deliver="never")
    ids = [
        r.id for r in box.send_many([{"to": f"u{i}@x.test", "subject": "s", "text": "t"} for i in range(30)])
    ]
    for _ in range(4):
        outmail("run", "--once", "--store", "q.db", "--relay", sink.url, OUTMAIL_FAIL="C3:kill")
        box.retry("is:live")
    assert not sink.messages
    outmail("run", "--once", "--store", "q.db", "--relay", sink.url)
    assert [box.status(id).status for id in ids] == ["delivered"] * 30 and len(sink.messages) == 30


def test_a_message_that_kills_engines_is_held_after_three(
    sink: Sink, make_box: MakeBox, outmail: Run
) -> None:
    box = make_box(deliver="never")
    bad = box.send("bad@x.test", "s", "t").id
    for _ in range(3):
        assert (
            outmail(
                "run", "--once", "--store", "q.db", "--relay", sink.url, OUTMAIL_FAIL="C4:kill"
            ).returncode
            == -signal.SIGKILL
        )
        box.store.reclaim(Clock().now(), hold=False)
        box.retry(bad)
    good = box.send("good@x.test", "s", "t").id
    outmail("run", "--once", "--store", "q.db", "--relay", sink.url)
    assert (box.status(bad).recipients[0].state, box.status(bad).recipients[0].reason) == ("held", "poison")
    assert box.status(good).status == "delivered"


def test_a_suspect_that_waits_for_its_answer_is_not_blamed(
    sink: Sink, make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completer, "HARMLESS", 0.05)
    sink.script("DOT: delay 1")
    box = make_box(toml=f'relay = "{sink.url}"', deliver="never")
    box.send("a@x.test", "s", "t")
    store: Any = box.store
    dead = store.register(Clock().now())
    (delivery,) = store.run(store.verbs.lease(dead.id, 1, {"default": 1}, Clock().now()))
    dead.begin(delivery)
    dead.file.abandon()
    engine = build_engine(store, box.config, box.routes, Clock())

    async def scene() -> None:
        running = asyncio.ensure_future(engine.run())
        seen: set[int] = set()

        def both() -> bool:
            seen.update(n for _, n, _ in (engine.owner.file._live if engine.owner else ()))
            return {BEGUN, HARMLESS} <= seen

        await until_in_loop(both)
        engine.stop()
        await running

    asyncio.run(scene())
    assert [s.status for s in box.find()] == ["delivered"]


# -- signals -------------------------------------------------------------------------------------------------


def test_sighup_is_no_reason_to_end(sink: Sink, make_box: MakeBox, tmp_path: Path) -> None:
    box = make_box(deliver="never", toml=f'relay = "{sink.url}"\n')
    service = subprocess.Popen(
        [sys.executable, "-m", "outmail", "run", "--store", str(tmp_path / "q.db"), "--relay", sink.url]
    )
    try:
        box.send("a@x.test", "s", "t")
        until(lambda: sink.count == 1)
        service.send_signal(signal.SIGHUP)
        stays(lambda: service.poll() is None, 0.2)
        box.send("b@x.test", "s", "t")
        until(lambda: sink.count == 2)
        service.terminate()
        assert service.wait(30) == 0
    finally:
        service.kill()
        service.wait(10)
