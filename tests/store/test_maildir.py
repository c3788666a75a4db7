"""The Maildir spool: what is on disk, and what becomes of it when processes are killed, disks are full, files
are damaged or foreign, and folders are copied.
"""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outmail import Outbox
from outmail.cli import main
from outmail.model import Filter
from outmail.store import StoreError
from outmail.store.maildir import files as spoolfiles
from outmail.store.maildir import log as logs
from outmail.store.maildir import state as states
from outmail.store.maildir import store as stores
from outmail.store.maildir.lines import TABLES, Change
from outmail.store.maildir.reading import MaildirReading
from outmail.store.maildir.store import MaildirStore
from outmail.system.lockfile import write_once
from outmail.testing import Sink
from outmail.testing.conformance import NOW, add, lease, message, purged, settle, standing
from tests.campaigns import spoolcuts
from tests.waiting import until

LONG = b"A: b\r\n\r\n" + b"x" * 998 + b"\r\n" + b"0123456789abcde\r\n" * 80_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MaildirStore]:
    made = MaildirStore(str(tmp_path / "sp"))
    yield made
    made.close()


def again(store: MaildirStore) -> MaildirStore:
    """The same spool, opened after the machine was started anew."""
    store.close()
    root = Path(store.url[len("maildir:") :])
    for name in root.glob("index.sqlite*"):
        name.unlink()
    return MaildirStore(str(root))


def root_of(store: MaildirStore) -> Path:
    return Path(store.url[len("maildir:") :])


def names(store: MaildirStore, folder: str) -> set[str]:
    return {path.name for path in (root_of(store) / folder).iterdir()}


def content(store: MaildirStore, id: str) -> Any:
    seq = store.read(store.verbs.seq_of(id))
    return None if seq is None else store.read(store.verbs.content(seq))


def test_a_message_is_a_file_one_sees_with_ls_and_reads_with_cat(store: MaildirStore) -> None:
    one, two = message(), message("b@x.test")
    add(store, one, two)
    assert names(store, "queue") == {f"{m.id}.{kind}" for m in (one, two) for kind in ("eml", "journal")}
    assert (root_of(store) / "queue" / f"{one.id}.eml").read_bytes() == one.content
    owner = store.register(NOW)
    settle(store, owner, lease(store, owner, 1)[0], "delivered", "delivered")
    assert names(store, "done") == {f"{one.id}.eml", f"{one.id}.journal"}
    assert names(store, "queue") == {f"{two.id}.eml", f"{two.id}.journal"} and names(store, "tmp") == set()
    journal = (root_of(store) / "done" / f"{one.id}.journal").read_text()
    assert [state in journal for state in ("queued", "sending", "delivered")] == [True] * 3
    owner.close()


def test_nobody_else_may_look_into_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = MaildirStore(str(tmp_path / "sp"))
        add(store, message(), message(content=LONG))
        store.close()
    finally:
        os.umask(before)
    for folder, _, files in os.walk(tmp_path / "sp"):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        for name in files:
            assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) & 0o77 == 0, name


def exit_at(place: Any, name: str, call: int = 1, *, after: bool = False) -> None:
    """End this process at a call of a function, as SIGKILL would."""
    real, count = getattr(place, name), iter(range(1, 1000))

    def ends(*arguments: Any, **words: Any) -> Any:
        last = next(count) == call
        if last and not after:
            os._exit(9)
        answer = real(*arguments, **words)
        if last:
            os._exit(9)
        return answer

    setattr(place, name, ends)


def torn(self: Any, commit: Any) -> int:
    """`Log.append`, killed in the middle."""
    os.write(self.fd, commit.line()[:-20])
    os._exit(9)


#: Where a commit is killed, and whether it has happened.
POINTS: dict[str, tuple[Callable[[], None], bool]] = {
    "before its contents": (lambda: exit_at(spoolfiles.Files, "write_contents"), False),
    "after its contents": (lambda: exit_at(spoolfiles.Files, "write_contents", after=True), False),
    "before its line": (lambda: exit_at(logs.Log, "append"), False),
    "inside its line": (lambda: setattr(logs.Log, "append", torn), False),
    "after its line": (lambda: exit_at(logs.Log, "append", after=True), True),
    "between journals": (lambda: exit_at(spoolfiles.Files, "_append", 2), True),
    "before a content has its name": (lambda: exit_at(spoolfiles.Files, "_settle"), True),
    "before the index": (lambda: exit_at(spoolfiles.Files, "land", after=True), True),
    "before a checkpoint": (lambda: exit_at(stores.MaildirStore, "_checkpoint"), True),
    "before journals are flushed": (lambda: exit_at(spoolfiles.Files, "flush_journals"), True),
    "before a journal is short": (lambda: exit_at(spoolfiles, "replace", 1), True),
    "before the state is written": (lambda: exit_at(states, "save"), True),
    "before the new log": (lambda: exit_at(logs, "begin"), True),
    "after the new log": (lambda: exit_at(logs, "begin", after=True), True),
}


@pytest.mark.parametrize("boot", ["same boot", "next boot"])
@pytest.mark.parametrize("point", POINTS)
def test_a_commit_that_is_killed_happened_whole_or_not(
    store: MaildirStore, point: str, boot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, done = message("old@x.test"), message("done@x.test")
    add(store, done)
    owner = store.register(NOW)
    settle(store, owner, lease(store, owner)[0], "delivered", "delivered")
    add(store, old)
    new = [message(f"{i}@x.test", content=b"A: %d\r\n\r\n" % i) for i in range(3)]
    kill, happened = POINTS[point]
    monkeypatch.setattr(stores, "LOG_SIZE", 0)
    child = os.fork()
    if not child:
        try:
            kill()
            store.run(store.verbs.add(new, supersede=old.id))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.undo()
    if boot == "next boot":
        owner.file.abandon()
        store = again(store)
    add(store, message("next@x.test"))
    assert store.check() == []
    assert [content(store, one.id) for one in new] == [one.content if happened else None for one in new]
    assert standing(store, old.id).state == ("cancelled" if happened else "queued")
    assert standing(store, done.id).state == "delivered" and content(store, done.id) == done.content
    assert [name for name in names(store, "tmp") if boot == "next boot"] == []
    again(store).close()


@pytest.mark.parametrize("without", [None, "sync"])
def test_a_power_cut_loses_nothing_that_was_acknowledged(
    without: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spoolfiles, "FLUSHERS", 1)  # threads would make other cuts each time
    monkeypatch.setattr(spoolcuts, "STEPS", 12)
    monkeypatch.setattr(spoolcuts, "CUTS", 6)
    result = spoolcuts.campaign(random.Random(20), 0, cuts=25 if without else 6, without=without)
    assert bool(result["bad"]) == bool(without), result  # without flushes the same cuts find losses


def test_everything_comes_back_from_the_files(store: MaildirStore) -> None:
    made = [message(), message(), message("a@x.test", "b@x.test", key="k"), message(content=LONG), message()]
    add(store, *made)
    store.run(store.verbs.note_put("job", "a", {"n": 1}))
    owner = store.register(NOW)
    first, second, *_ = lease(store, owner, 3)
    settle(store, owner, first, "delivered", "delivered")
    settle(store, owner, second, "deferred", due=NOW + 5)
    store.run(store.verbs.change(Filter(ids=((made[2].id, 2),)), "hold", NOW))
    purged(store, "bodies", NOW + 1)
    purged(store, "records", NOW + 1)
    found = _everything(store)
    other = again(store)
    assert _everything(other) == found and content(other, made[3].id) == LONG
    new = other.register(NOW)
    assert new.id == owner.id + 1  # the number of an engine is never used again
    other.close()


def _everything(store: MaildirStore) -> Any:
    return {
        table: sorted(store._reader.execute(f"SELECT * FROM {table}"), key=repr)
        for table in (*TABLES, "content")
    }


def test_an_index_that_goes_away_is_made_anew_while_the_spool_is_open(store: MaildirStore) -> None:
    one, two = message(), message()
    add(store, one)
    for name in root_of(store).glob("index.sqlite*"):
        name.unlink()
    assert content(store, one.id) == one.content
    for name in root_of(store).glob("index.sqlite*"):
        name.unlink()
    add(store, two)
    assert content(store, two.id) == two.content and store.check() == []


def test_a_copy_of_the_folder_is_a_spool_of_its_own(store: MaildirStore, tmp_path: Path) -> None:
    one = message()
    add(store, one)
    shutil.copytree(root_of(store), tmp_path / "copy")
    (tmp_path / "copy" / "index.sqlite").write_bytes(b"half of it")
    copy = MaildirStore(str(tmp_path / "copy"))
    assert content(copy, one.id) == one.content and copy.check() == []
    copy.close()


def test_a_shorter_log_or_another_one_is_noticed(store: MaildirStore) -> None:
    one, two = message(), message()
    add(store, one)
    before = (root_of(store) / "log.jsonl").read_bytes()
    add(store, two)
    (root_of(store) / "log.jsonl").write_bytes(before)
    add(store, message())
    assert content(store, two.id) == two.content and store.check() == []  # the journals have it


def test_a_damaged_journal_holds_its_message_and_no_other(store: MaildirStore, caplog: Any) -> None:
    one, two = message(), message()
    add(store, one, two)
    owner = store.register(NOW)
    store.run(store.verbs.give_back(owner.id, lease(store, owner), NOW))
    owner.close()
    store._checkpoint(store._number + 1)
    path = root_of(store) / "queue" / f"{one.id}.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1][:9] + b"?" + lines[1][10:], *lines[2:]]))
    other = again(store)
    assert (standing(other, one.id).state, standing(other, two.id).state) == ("held", "queued")
    assert standing(other, one.id).reason.startswith("corrupt") and one.id in caplog.text
    assert [e.event for e in other.read(other.verbs.events_after(0))][-1] == "quarantine"
    assert any("are kept in" in text for text in other.check())
    other.run(other.verbs.change(Filter(ids=((one.id, None),)), "release", NOW))
    other = again(other)
    assert standing(other, one.id).state == "queued" and content(other, one.id) == one.content
    other.close()


def test_what_is_not_ours_is_named_and_left_alone(store: MaildirStore, caplog: Any) -> None:
    one = message()
    add(store, one)
    queue = root_of(store) / "queue"
    (queue / "notes.txt").write_text("mine")
    (queue / "folder.journal").mkdir()
    (queue / "empty.journal").write_bytes(b"")
    (queue / "alone.eml").write_bytes(b"A: b\r\n\r\n")
    (queue / "link.eml").symlink_to("/etc/passwd")
    other = again(store)
    assert content(other, one.id) == one.content
    problems = "\n".join(other.check())
    for name in ("notes.txt", "folder.journal", "alone.eml", "link.eml"):
        assert (queue / name).exists() or (queue / name).is_symlink()
        assert name in problems or "3 files" in problems
    assert not (queue / "empty.journal").exists() and (root_of(other) / "broken" / "empty.journal").exists()
    assert "empty.journal" in caplog.text
    other.close()


def test_a_folder_of_other_things_is_refused_and_not_touched(tmp_path: Path) -> None:
    for name in ("new", "cur", "tmp"):
        (tmp_path / "Maildir" / name).mkdir(parents=True)
    with pytest.raises(StoreError, match="holds other things"):
        MaildirStore(str(tmp_path / "Maildir"))
    assert sorted(os.listdir(tmp_path / "Maildir")) == ["cur", "new", "tmp"]
    with pytest.raises(StoreError, match="does not exist"):
        MaildirStore(str(tmp_path / "nowhere" / "sp"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is no folder"):
        MaildirStore(str(tmp_path / "file"))


def test_without_file_locks_there_is_no_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "can_lock", lambda: False)
    with pytest.raises(StoreError, match="needs file locks"):
        MaildirStore(str(tmp_path / "sp"))
    assert not (tmp_path / "sp").exists()


def test_a_spool_of_a_later_version_is_refused(store: MaildirStore) -> None:
    store.close()
    (root_of(store) / "spool").write_text("outmail spool 2\n")
    with pytest.raises(StoreError, match="upgrade outmail") as raised:
        MaildirStore(str(root_of(store)))
    assert raised.value.kind == "schema"


def test_folders_on_two_file_systems_are_refused(store: MaildirStore, tmp_path: Path) -> None:
    store.close()
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("there is no second file system: /dev/shm")
    (root_of(store) / "done").rmdir()
    (root_of(store) / "done").symlink_to("/dev/shm")
    with pytest.raises(StoreError, match="another file system"):
        MaildirStore(str(root_of(store)))


def fails(*arguments: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["write_contents", "sync_tmp", "the flush of the log"])
def test_a_full_disk_is_said_and_nothing_stored(
    store: MaildirStore, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = message(), message()
    with monkeypatch.context() as patch:
        if what == "the flush of the log":  # the line is taken back, which needs a flush as well
            calls = iter([fails, os.fsync, os.fsync])
            patch.setattr(logs, "sync", lambda fd: next(calls)(fd))
        else:
            patch.setattr(spoolfiles.Files, what, fails)
        with pytest.raises(StoreError) as raised:
            add(store, one)
        assert raised.value.kind == "full"
    add(store, two)
    assert content(store, one.id) is None and content(store, two.id) == two.content
    assert store.check() == []


def test_a_disk_that_is_full_after_the_commit_only_delays_the_journals(
    store: MaildirStore, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    one = message()
    with monkeypatch.context() as patch:
        patch.setattr(spoolfiles.Files, "_append", fails)
        add(store, one)
        assert "not yet in the journals" in caplog.text
        with pytest.raises(StoreError) as raised:
            add(store, message())
        assert raised.value.kind == "full"
    assert store.changed()
    assert content(store, one.id) == one.content and store.check() == []


def test_an_engine_hears_of_what_another_process_adds(store: MaildirStore) -> None:
    store.changed()
    assert not store.changed()
    code = (
        "import sys\nfrom outmail.store.maildir.store import MaildirStore\n"
        "from outmail.testing.conformance import add, message\n"
        "s = MaildirStore(sys.argv[1])\nadd(s, message('p@x.test'))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(root_of(store))], check=True, timeout=60)
    assert store.changed() and not store.changed()
    assert [one.recipients[0].address for one in store.read(store.verbs.find(Filter(), NOW))[0]] == [
        "p@x.test"
    ]


def test_an_engine_hears_of_a_commit_whose_process_died_right_after_it(store: MaildirStore) -> None:
    one = message()
    store.changed()
    child = os.fork()
    if not child:
        exit_at(spoolfiles.Files, "land")
        add(store, one)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert store.changed() and content(store, one.id) == one.content


def test_processes_and_threads_share_one_spool(store: MaildirStore) -> None:
    code = (
        "import sys, threading\nfrom outmail.store.maildir.store import MaildirStore\n"
        "from outmail.testing.conformance import add, message\n"
        "s = MaildirStore(sys.argv[1])\n"
        "work = lambda: [add(s, message()) for _ in range(5)]\n"
        "threads = [threading.Thread(target=work) for _ in range(3)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, str(root_of(store))]) for _ in range(2)]
    for _ in range(5):
        add(store, message())
    assert [other.wait(60) for other in others] == [0, 0]
    assert len(store.read(store.verbs.find(Filter(), NOW))[0]) == 35 and store.check() == []


def test_checkpoints_make_the_log_short_and_closed_journals_one_line(
    store: MaildirStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "LOG_SIZE", 3000)
    store = again(store)
    one, two = message(), message(content=LONG)
    add(store, one, two)
    owner = store.register(NOW)
    for delivery in lease(store, owner):
        settle(store, owner, delivery, "delivered", "delivered")
    for _ in range(6):
        add(store, message())
    assert (root_of(store) / "log.jsonl").stat().st_size < 6000
    assert (root_of(store) / "done" / f"{one.id}.journal").read_bytes().count(b"\n") == 1
    other = again(store)
    assert other.check() == [] and content(other, two.id) == LONG
    assert standing(other, two.id).attempts == 1
    other.close()


def test_what_cannot_be_written_can_be_read(store: MaildirStore) -> None:
    one, two = message(), message()
    add(store, one)
    store._checkpoint(store._number + 1)
    add(store, two)
    reading = MaildirReading(str(root_of(store)), StoreError("readonly", "the file system is read-only", 30))
    assert [content(reading, m.id) for m in (one, two)] == [one.content, two.content]
    with pytest.raises(StoreError, match="opened for reading only") as raised:
        add(reading, message())
    assert raised.value.kind == "readonly"
    reading.close()


def test_a_removed_spool_is_said(store: MaildirStore) -> None:
    add(store, message())
    shutil.rmtree(root_of(store))
    with pytest.raises(StoreError, match="removed or replaced"):
        add(store, message())


def test_pieces_of_a_writer_that_died_are_swept(store: MaildirStore) -> None:
    child = os.fork()
    if not child:
        store.uploading("dead")
        store.run(store.verbs.add_chunks("dead", 0, [b"x" * 1000], NOW))
        os._exit(0)
    os.waitpid(child, 0)
    assert names(store, "tmp") == {"upload.dead"}
    until(lambda: store.sweep_uploads() == 1, 10)
    assert names(store, "tmp") == set()


def test_the_command_works_on_a_spool(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    outmail: Callable[..., subprocess.CompletedProcess[bytes]],
) -> None:
    place = f"maildir:{tmp_path}/sp"

    def said(*words: str, status: int = 0) -> str:
        assert main([*words, "--store", place] if words[0] != "move" else words) == status, words
        captured = capsys.readouterr()
        return captured.out + captured.err

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Subject: s\r\n\r\nhello\r\n")))
    with Sink("DOT: 451 4.7.1 later 1/1") as sink:
        config = ("--config", str(tmp_path / "c.toml"))
        (tmp_path / "c.toml").write_text(f'from = "me@x.test"\nrelay = "{sink.url}"\n')
        id = said("send", "--raw", "a@x.test", *config).split()[0]
        assert outmail("run", "--once", "--store", place, *config).returncode == 0
    assert "a@x.test" in said("queue", "list") and "4.7.1" in said("why", id)
    assert "451" in said("log", id) and "accepted" in said("events")
    said("queue", "hold", id)
    assert "held" in said("queue", "list", "ALL") and "held" in said("queue", "stats")
    assert "hello" in said("show", "--raw", id) and "no problem found" in said("store", "check")
    said("store", "upgrade")
    said("store", "backup", str(tmp_path / "copy.db"))
    assert "1 messages moved" in said("move", place, str(tmp_path / "q.db"))
    assert names_below(tmp_path / "sp" / "queue") == names_below(tmp_path / "sp" / "done") == set()
    assert "1 messages moved" in said("move", str(tmp_path / "copy.db"), place)
    said("queue", "cancel", id)
    assert names_below(tmp_path / "sp" / "done") == {f"{id}.eml", f"{id}.journal"}
    said("queue", "purge", id)
    assert names_below(tmp_path / "sp" / "done") == set()


def names_below(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -- logs that are lost or damaged ---------------------------------------------------------------------------


def checkpointed(store: MaildirStore) -> Any:
    """A message whose commit is in no log any more."""
    kept = message("kept@x.test")
    add(store, kept)
    store._due = 0
    store.run(store.verbs.note_put("job", "j", {"n": 1}))
    assert len((root_of(store) / "log.jsonl").read_bytes().splitlines()) == 1
    return kept


def lose_log(root: Path, how: str) -> None:
    log = root / "log.jsonl"
    if how == "missing":
        log.unlink()
    elif how == "empty":
        os.truncate(log, 0)
    else:
        log.write_bytes(log.read_bytes().replace(b'"after"', b'"aXter"', 1))


@pytest.mark.parametrize(
    ("how", "opened"),
    [("missing", False), ("empty", False), ("damaged head", False), ("missing", True), ("empty", True)],
)
def test_a_log_that_is_lost_takes_no_mail_with_it(
    store: MaildirStore, how: str, opened: bool, caplog: Any
) -> None:
    kept, recent = checkpointed(store), message("recent@x.test")
    add(store, recent)
    if not opened:
        store.close()
    lose_log(root_of(store), how)
    used = store if opened else MaildirStore(str(root_of(store)))
    later = message("later@x.test")
    add(used, later)
    owner = used.register(NOW)
    for delivery in lease(used, owner, 5, NOW + 1000):
        settle(used, owner, delivery, "deferred", "deferred", due=NOW, now=NOW + 1000)
    owner.close()
    assert "log.jsonl" in caplog.text and "begun" in caplog.text
    anew = again(used)
    assert [content(anew, one.id) for one in (kept, recent, later)] == [
        one.content for one in (kept, recent, later)
    ]
    assert {standing(anew, one.id, 0).state for one in (kept, recent, later)} == {"queued"}
    assert [text for text in anew.check() if "broken" not in text] == []
    anew.close()


def test_a_journal_keeps_lines_that_the_log_has_lost() -> None:
    def line(number: int) -> bytes:
        return spoolfiles.journal_line(number, Change())

    def missing(have: list[int], after: int, expected: list[int]) -> tuple[int, list[int]]:
        journal = spoolfiles.Journal(b"".join(map(line, have)))
        end, lacks = journal.missing(after, [(number, Change()) for number in expected])
        assert all(len(line(number)) == len(line(have[0])) for number in have)
        return end // len(line(have[0])), [number for number, _ in lacks]

    assert missing([50], 0, [10]) == (1, [10])  # the numbers began again
    assert missing([15, 16, 17], 14, [15, 17]) == (3, [])  # the log has lost 16
    assert missing([15, 16], 14, [15]) == (2, [])  # the log has lost its end
    assert missing([15, 17], 14, [15, 16, 17]) == (0, [15, 16, 17])  # the journal has lost 16


def test_a_line_that_could_not_be_taken_back_keeps_its_content(
    store: MaildirStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = message(key="k")
    with monkeypatch.context() as patch:
        patch.setattr(logs, "sync", fails)
        patch.setattr(os, "ftruncate", fails)
        with pytest.raises(StoreError):
            add(store, sent)
    answer = store.run(store.verbs.add([message(key="k")]))
    assert answer[0][3] and content(store, answer[0][0]) == sent.content
    assert store.check() == []


def test_what_another_process_could_not_flush_is_flushed_before_it_is_told(
    store: MaildirStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(root_of(store))
    sent = message(key="k")
    pid = os.fork()
    if pid == 0:
        exit_at(logs, "sync")
        MaildirStore(root).run(store.verbs.add([sent]))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    flushed: list[int] = []

    def noted(fd: int) -> None:
        flushed.append(os.fstat(fd).st_ino)
        spoolfiles.sync(fd)

    monkeypatch.setattr(logs, "sync", noted)
    assert store.run(store.verbs.add([message(key="k")]))[0][3]
    assert os.stat(os.path.join(root, "log.jsonl")).st_ino in flushed


def test_folders_are_on_disk_before_mail_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(stores, "sync_folder", lambda path: flushed.append(os.path.realpath(path)))
    root = tmp_path / "sp"

    def named(path: str, *rest: Any) -> None:
        assert str(tmp_path) in flushed  # or the name of the spool may go, and its parent is never flushed
        write_once(path, *rest)

    monkeypatch.setattr(stores, "write_once", named)
    MaildirStore(str(root)).close()
    (root / "tmp").rmdir()
    flushed.clear()
    MaildirStore(str(root)).close()
    assert str(root) in flushed


@pytest.mark.parametrize("kind", ["eml", "journal"])
@pytest.mark.parametrize("long", [False, True])
def test_a_file_that_cannot_be_read_stops_its_message_and_no_other(
    store: MaildirStore, kind: str, long: bool, caplog: Any
) -> None:
    bad, good = message("bad@x.test", content=LONG if long else message().content), message("good@x.test")
    add(store, bad, good)
    path = root_of(store) / "queue" / f"{bad.id}.{kind}"
    path.rename(f"{root_of(store)}.elsewhere")
    path.symlink_to(f"{root_of(store)}.elsewhere")  # as unreadable as a bad sector
    if kind == "journal":
        logs.begin(spoolfiles.Files(str(root_of(store))), store._current())
        store = again(store)
    owner = store.register(NOW)
    leased = {delivery.id: delivery for delivery in lease(store, owner, 5, NOW + 1000)}
    assert leased[good.id].content == good.content
    if kind == "eml":
        assert not leased[bad.id].content and f"{bad.id} cannot be read" in caplog.text
    else:
        assert bad.id not in leased and bad.id in caplog.text
    owner.close()
    store.close()


def test_a_journal_on_a_bad_sector_stops_its_message_and_no_other(
    store: MaildirStore, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    bad, good = message("bad@x.test"), message("good@x.test")
    add(store, bad, good)
    inode = (root_of(store) / "queue" / f"{bad.id}.journal").stat().st_ino
    real = os.read

    def read(fd: int, size: int) -> bytes:
        if os.fstat(fd).st_ino == inode:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, size)

    monkeypatch.setattr(os, "read", read)
    anew = again(store)
    assert content(anew, good.id) == good.content and standing(anew, good.id, 0).state == "queued"
    assert "journal cannot be read" in caplog.text
    assert standing(anew, bad.id, 0).state == "queued"  # the log has all of it
    assert names(anew, "broken") == {f"{bad.id}.journal"} and f"{bad.id}.eml" in names(anew, "queue")
    anew.close()


def test_an_engine_ends_though_one_content_cannot_be_read(store: MaildirStore, tmp_path: Path) -> None:
    with Outbox(store.url, deliver="never") as box:
        bad, good = (
            box.send(f"{name}@x.test", "Hello", "text", sender="me@x.test").id for name in ("bad", "good")
        )
    path = root_of(store) / "queue" / f"{bad}.eml"
    path.unlink()
    path.symlink_to("/dev/null")
    subprocess.run(
        [sys.executable, "-m", "outmail", "run", "--once", "--store", store.url,
         "--relay", f"file:{tmp_path}/b"],
        env={**os.environ, "HOME": str(tmp_path)}, timeout=60, capture_output=True,
    )  # fmt: skip
    assert standing(store, bad, 0).state == "held"
    assert standing(store, good, 0).state == "delivered"


def test_what_an_engine_had_whose_record_is_lost_is_taken_back(store: MaildirStore) -> None:
    sent = message()
    add(store, sent)
    owner = store.register(NOW)
    lease(store, owner, 5, NOW + 1000)
    store._due = 0
    store.run(store.verbs.note_put("job", "j", {"n": 1}))
    owner.close()
    state = root_of(store) / "state.jsonl"
    state.write_bytes(b"".join(one for one in state.read_bytes().splitlines(True) if b'"owner' not in one))
    anew = again(store)
    assert [text for text in anew.check() if "their record is lost: 1" in text]
    assert [found["uncertain"] for found in anew.reclaim(NOW + 2000, hold=False)] == [1]
    found = standing(anew, sent.id, 0)
    assert (found.state, found.uncertain) == ("queued", True)
    assert anew.register(NOW + 3000).id == owner.id + 1
    assert anew.check() == []
    anew = again(anew)
    assert anew.check() == [] and standing(anew, sent.id, 0) == found
    anew.close()
