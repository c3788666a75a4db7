"""Content over 1 MB is written in pieces ahead of its message: a receipt is given for what is whole, and what
is left over is swept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from glob import glob
from pathlib import Path
from typing import Any

import pytest

from outmail.accept.acceptance import TRIES, Door, Draft, Terms
from outmail.accept.aio import AsyncAcceptance
from outmail.clock import MINUTE
from outmail.engine.retention import Retention
from outmail.errors import NotStored
from outmail.ops.move import move
from outmail.policy.route import Routes
from outmail.store import Missing
from outmail.store.commit_loop import Committer
from outmail.store.sqlite.store import SqliteStore
from outmail.testing import FakeClock
from outmail.testing.conformance import NOW, add, message
from tests.store.helpers import KINDS, opened
from tests.waiting import until

CONTENT = b"From: me@x.test\r\nSubject: long\r\n\r\n" + b"x" * 70 + b"\r\n" + b"line\r\n" * 300_000
AGES = {"bodies": 7 * 86_400_000, "transcripts": 30 * 86_400_000, "records": 90 * 86_400_000}


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    with opened(request.param, tmp_path) as made:
        yield made


def door(store: Any) -> Door:
    return Door(store, Terms(Routes({}, ())), FakeClock(NOW))


def draft(**words: Any) -> Draft:
    return Draft(CONTENT, "me@x.test", ["you@x.test"], **words)


def pieces(store: Any) -> int:
    def count() -> Any:
        return (yield "SELECT count(*) FROM chunk", ())[0][0]

    return int(store.read(count()))


def content_of(store: Any, id: str) -> bytes:
    return bytes(store.read(store.verbs.content(store.read(store.verbs.seq_of(id)))))


def sweeping(
    monkeypatch: pytest.MonkeyPatch, store: Any, times: int = 1, what: str = "DELETE FROM chunk"
) -> list[int]:
    """Each message's pieces, or some of them, are gone when the message itself comes, so many times."""
    real, left, swept = store.verbs.add, [times], []

    def add_after_a_sweep(*args: Any, **words: Any) -> Any:
        if left[0]:
            left[0] -= 1
            swept.append(1)

            def sweep() -> Any:
                yield what, ()

            yield from sweep()
        return (yield from real(*args, **words))

    monkeypatch.setattr(store.verbs, "add", add_after_a_sweep)
    return swept


@pytest.mark.parametrize(
    "what",
    [
        "DELETE FROM chunk",
        "DELETE FROM chunk WHERE n = 3",
        "UPDATE chunk SET content = substr(content, 2) WHERE n = 3",
    ],
)
def test_a_receipt_is_for_whole_content(store: Any, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    swept = sweeping(monkeypatch, store, what=what)
    given = door(store).accept([draft()])[0]
    assert swept and content_of(store, given.id).endswith(CONTENT) and given.durable


def test_pieces_that_vanish_each_time_are_not_stored_and_it_says_so(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeping(monkeypatch, store, times=TRIES)
    with pytest.raises(NotStored, match="was not stored"):
        door(store).accept([draft()])
    assert store.read(store.verbs.last_cursor()) == 0


def test_with_a_condition_too(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def yes() -> Any:
        return True
        yield

    sweeping(monkeypatch, store)
    given = door(store).accept([draft()], when=yes)[0]
    assert content_of(store, given.id).endswith(CONTENT)


def test_from_a_loop_as_smtp_takes_it(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    sweeping(monkeypatch, store)

    async def take() -> Any:
        commits, heard = Committer(store, asyncio.get_running_loop()), asyncio.Future[Any]()
        AsyncAcceptance(door(store), commits).accept(draft(), heard.set_result)
        answer = await asyncio.wait_for(heard, 30)
        commits.close()
        return answer

    assert content_of(store, asyncio.run(take())).endswith(CONTENT)


def test_several_of_which_one_is_long_and_one_known(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = door(store).accept([draft(key="k")])[0]
    sweeping(monkeypatch, store, what="DELETE FROM chunk WHERE upload NOT IN (SELECT upload FROM message)")
    again, short, long = door(store).accept(
        [draft(key="k"), Draft(b"Subject: short\r\n\r\n", "me@x.test", ["a@x.test"]), draft()]
    )
    assert again.duplicate and again.id == first.id
    assert (
        content_of(store, first.id).endswith(CONTENT)
        and content_of(store, long.id).endswith(CONTENT)
        and content_of(store, short.id)
    )


def test_whoever_is_uploading_is_not_swept_whatever_the_clock_says(store: Any) -> None:
    retention = Retention(store, AGES)
    claim = store.uploading("aa")
    store.run(store.verbs.add_chunks("aa", 0, [b"1", b"2"], NOW))
    for now in (NOW + 400 * 86_400_000, NOW - 400 * 86_400_000, 0):
        while retention.turn(now, 1.0):
            pass
    assert pieces(store) == 2
    claim.end()


def test_pieces_whose_message_came_stay(store: Any) -> None:
    given = door(store).accept([draft()])[0]
    store.sweep_uploads()
    while Retention(store, AGES).turn(NOW + 120 * MINUTE, 1.0):
        pass
    assert content_of(store, given.id).endswith(CONTENT)


def test_what_a_killed_program_has_uploaded_is_swept_at_once(tmp_path: Path) -> None:
    """Also before an hour is over, and also where only single runs pass by."""
    with opened("apsw", tmp_path) as store:
        program = (
            "import os, signal, sys\nfrom outmail import Outbox\nfrom outmail.store import verbs\nreal = "
            "verbs.add\n"
            "verbs.add = lambda *a, **w: os.kill(os.getpid(), signal.SIGKILL)\n"
            f"Outbox({str(tmp_path / 'q.db')!r}).send('a@x.test', sender='me@x.test', text='line\\n' * "
            f"300_000)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL and pieces(store) > 3, done.stderr
        Retention(store, AGES).turn(NOW, 1.0)
        assert pieces(store) == 0 and glob(f"{tmp_path}/q.db.upload*") == []


def test_a_kill_between_the_commit_and_the_end_of_the_claim_costs_nothing(tmp_path: Path) -> None:
    with opened("apsw", tmp_path) as store:
        one = message(content=CONTENT)
        claim = store.uploading("aa")
        size = 256 * 1024
        store.run(
            store.verbs.add_chunks(
                "aa", 0, [CONTENT[i : i + size] for i in range(0, len(CONTENT), size)], NOW
            )
        )
        store.run(store.verbs.add([one], ["aa"]))
        claim.abandon()
        assert (
            store.sweep_uploads() == 0
            and content_of(store, one.id) == CONTENT
            and glob(f"{tmp_path}/q.db.upload*") == []
        )


def test_an_upload_that_failed_is_swept(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **words: Any) -> Any:
        raise ZeroDivisionError
        yield

    monkeypatch.setattr(store.verbs, "add", broken)
    with pytest.raises(ZeroDivisionError):
        door(store).accept([draft()])
    if store.blocking:
        assert pieces(store) and store.sweep_uploads() == 0  # not before its hour, by the server's clock

        def age() -> Any:
            yield "UPDATE chunk SET added_at = added_at - 3700000", ()

        store.run(age())
    assert store.sweep_uploads() > 3 and pieces(store) == 0


def test_no_file_is_left_behind(tmp_path: Path) -> None:
    with opened("apsw", tmp_path) as store:
        door(store).accept([draft()])
        assert [name for name in os.listdir(tmp_path) if "upload" in name] == []


@pytest.mark.parametrize("missing", [True, False])
def test_add_checks_in_its_own_transaction(store: Any, missing: bool) -> None:
    one = message(content=CONTENT)
    size = 256 * 1024
    parts = [CONTENT[i : i + size] for i in range(0, len(CONTENT), size)]
    store.run(store.verbs.add_chunks("aa", 0, parts[: len(parts) - missing], NOW))
    call: Callable[[], Any] = lambda: store.run(store.verbs.add([one], ["aa"]))  # noqa: E731
    if missing:
        with pytest.raises(Missing):
            call()
        assert store.read(store.verbs.seq_of(one.id)) is None
    else:
        call()
        assert content_of(store, one.id) == CONTENT


def test_a_move_takes_long_content_whole_while_others_sweep(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    with opened("apsw", tmp_path / "old") as old, opened("stdlib", tmp_path / "new") as new:
        one = message(content=CONTENT)
        add(old, one)
        given = door(old).accept([draft()])[0]
        move(old, new, NOW, fail=lambda point: new.sweep_uploads())
        new.sweep_uploads()
        assert content_of(new, given.id).endswith(CONTENT) and content_of(new, one.id) == CONTENT


def test_a_sweep_waits_for_a_message_that_is_being_stored(store: Any) -> None:
    """On a server the two may run at the same moment."""
    one = message(content=CONTENT)
    size = 256 * 1024
    store.run(
        store.verbs.add_chunks("aa", 0, [CONTENT[i : i + size] for i in range(0, len(CONTENT), size)], NOW)
    )
    checked, go_on = threading.Event(), threading.Event()

    def slowly() -> Any:
        added = yield from store.verbs.add([one], ["aa"])
        checked.set()
        go_on.wait(30)
        return added

    adding = threading.Thread(target=lambda: store.commit([slowly()]))
    adding.start()
    assert checked.wait(30)
    sweeping = threading.Thread(target=lambda: store.run(store.verbs.drop_upload("aa")))
    sweeping.start()
    sweeping.join(0.3)
    assert sweeping.is_alive()
    go_on.set()
    adding.join(30)
    sweeping.join(30)
    assert content_of(store, one.id) == CONTENT


def lines(letter: bytes, size: int = 1_500_000) -> bytes:
    return b"Subject: long\r\nDate: now\r\nMessage-ID: <a@x.test>\r\n\r\n" + (letter * 70 + b"\r\n") * (
        size // 72
    )


def whole(store: Any, id: str) -> bool:
    """The bytes are those whose hash was stored."""
    found = store.read(store.verbs.statuses([store.read(store.verbs.seq_of(id))]))[0]
    return bool(hashlib.sha256(content_of(store, id)).hexdigest() == found.sha256)


def aged(store: Any) -> None:
    if store.blocking:

        def age() -> Any:
            yield "UPDATE chunk SET added_at = added_at - 3700000", ()

        store.run(age())


def unnamed(store: Any) -> int:
    """Pieces that no message has."""

    def count() -> Any:
        return (
            yield (
                "SELECT count(*) FROM chunk WHERE NOT EXISTS (SELECT 1 FROM message m WHERE m.upload = "
                "chunk.upload)",
                (),
            )
        )[0][0]

    return int(store.read(count()))


@pytest.mark.parametrize(
    "sizes", [(1_500_000, 1_500_000), (1_500_000, 1_900_000), (1_000, 1_500_000), (1_500_000, 1_000)]
)
@pytest.mark.parametrize("more", [0, 40])
def test_of_two_with_one_key_in_one_call_the_first_keeps_its_own_content(
    store: Any, sizes: tuple[int, int], more: int
) -> None:
    """``more``: few and many are added in two ways."""
    two = [
        Draft(lines(letter, size), "me@x.test", ["you@x.test"], key="k")
        for letter, size in zip((b"a", b"b"), sizes)
    ]
    first, second, *_ = door(store).accept(
        two + [Draft(lines(b"c", 100), "me@x.test", ["you@x.test"]) for _ in range(more)]
    )
    assert (first.duplicate, second.duplicate, first.id) == (False, True, second.id)
    assert content_of(store, first.id) == two[0].content and whole(store, first.id)
    aged(store)
    store.sweep_uploads()
    assert unnamed(store) == 0 and content_of(store, first.id) == two[0].content


@pytest.mark.parametrize("letters", [b"aa", b"ab"])
def test_of_two_with_one_key_from_two_threads_the_first_keeps_its_own_content(
    store: Any, letters: bytes
) -> None:
    mine = door(store)
    mine._batchers = mine._batchers[:1]
    leader, heard = mine._batchers[0].leader, []
    drafts = [Draft(lines(bytes([letter])), "me@x.test", ["you@x.test"], key="k") for letter in letters]
    threads = [
        threading.Thread(target=lambda draft=draft: heard.append((draft, mine.accept([draft])[0])))
        for draft in drafts
    ]
    with leader.lock:  # somebody is committing: both come behind, as one
        for thread in threads:
            thread.start()
        until(lambda: len(leader.calls) == 2)
    for thread in threads:
        thread.join(30)
    ((stored, first),) = [one for one in heard if not one[1].duplicate]
    assert len(heard) == 2 and content_of(store, first.id) == stored.content and whole(store, first.id)
    aged(store)
    assert store.sweep_uploads() > 3
    assert unnamed(store) == 0 and content_of(store, first.id) == stored.content


def test_pieces_of_what_a_condition_kept_out_are_swept(store: Any) -> None:
    def no() -> Any:
        return False
        yield

    assert door(store).accept([draft()], when=no) == []
    aged(store)
    assert store.sweep_uploads() > 3 and pieces(store) == 0


@pytest.fixture(params=["apsw", "stdlib"])
def file_store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    with opened(request.param, tmp_path) as made:
        yield made


def test_a_backup_has_no_pieces_of_what_was_being_uploaded(file_store: Any, tmp_path: Path) -> None:
    given = door(file_store).accept([draft()])[0]
    claim = file_store.uploading("aa")
    file_store.run(file_store.verbs.add_chunks("aa", 0, [b"1", b"2"], NOW))
    file_store.backup(str(tmp_path / "copy.db"))
    with contextlib.closing(SqliteStore(str(tmp_path / "copy.db"), file_store.library)) as copy:
        assert unnamed(copy) == 0 and content_of(copy, given.id).endswith(CONTENT) and copy.check() == []
    assert unnamed(file_store) == 2
    claim.end()


def test_pieces_whose_file_is_lost_are_swept_seldom(file_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = door(file_store).accept([draft()])[0]
    claim = file_store.uploading("aa")
    for upload in ("aa", "bb"):
        file_store.run(file_store.verbs.add_chunks(upload, 0, [b"1", b"2"], NOW))
    assert file_store.sweep_uploads() == 0  # no hour is over
    monkeypatch.setattr("outmail.store.sqlite.store.WALK", 0.0)
    assert file_store.sweep_uploads() == 2 and unnamed(file_store) == 2  # one has a file
    claim.end()
    assert file_store.sweep_uploads() == 2 and unnamed(file_store) == 0
    assert content_of(file_store, given.id).endswith(CONTENT)


def test_a_message_that_comes_while_lost_pieces_are_looked_for_keeps_its_own(
    file_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outmail.store.sqlite.store.WALK", 0.0)
    one = message(content=CONTENT)
    claim = file_store.uploading("aa")
    size = 256 * 1024
    file_store.run(
        file_store.verbs.add_chunks(
            "aa", 0, [CONTENT[i : i + size] for i in range(0, len(CONTENT), size)], NOW
        )
    )
    honest = file_store.read

    def read(verb: Any) -> Any:
        found = honest(verb)
        if found == ["aa"]:
            file_store.run(file_store.verbs.add([one], ["aa"]))
            claim.end()
        return found

    monkeypatch.setattr(file_store, "read", read)
    assert file_store.sweep_uploads() == 0
    assert claim.fd == -1 and content_of(file_store, one.id) == CONTENT
