"""Queue directories of other programs are taken in once, whatever happens; written here as mailqueue-runner
writes them.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outmail.cli.foreign import move
from outmail.compat.drain import store_of
from outmail.compat.foreign_queue import ASIDE, take_in
from outmail.compat.mailqueue import spool
from outmail.compat.mailqueue.spool import Mailqueue
from outmail.compat.repoze.maildir import RepozeQueue
from outmail.outbox.outbox import Outbox

CONTENT = b"Subject: s\r\nMessage-ID: <1@x.test>\r\nDate: Sat, 28 Nov 2026 10:00:00 +0000\r\n\r\ntext\r\n"


def entry(to: str = "a@x.test,b@x.test", sender: str = "<me@x.test>", content: bytes = CONTENT) -> bytes:
    return (
        f"Return-path: {sender}\r\nEnvelope-to: {to}\r\nX-Queue-Date: Sat, 28 Nov 2026 10:00:00 +0000\r\n"
        f"X-Retries: 2\r\nX-Queue-Meta-End: end\r\n"
    ).encode() + content


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    spool.make(str(tmp_path / "queue"))
    return tmp_path / "queue"


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "q.db", deliver="never") as box:
        yield box


def names(folder: Path, part: str) -> list[str]:
    return sorted(path.name for path in (folder / part).iterdir()) if (folder / part).is_dir() else []


def test_an_entry_comes_in_as_it_is_and_is_gone(folder: Path, box: Outbox) -> None:
    (folder / "new/1.M1P1Q1.host").write_bytes(entry())
    taken = take_in(Mailqueue(str(folder)), box.door, "x.test")
    [status] = box.find()
    assert taken.ids == [status.id] and names(folder, "new") == []
    assert (status.sender, [r.address for r in status.recipients]) == ("me@x.test", ["a@x.test", "b@x.test"])
    assert status.tag == "mailqueue-runner" and box.content(status.id) == CONTENT


def test_the_oldest_comes_first(folder: Path, box: Outbox) -> None:
    for at, name in enumerate(("9.M5P1Q1.h", "10.M9P1Q1.h", "10.M10P1Q1.h", "odd")):
        (folder / "new" / name).write_bytes(entry(to=f"{at}@x.test"))
    take_in(Mailqueue(str(folder)), box.door, "x.test")
    assert [s.recipients[0].address[0] for s in box.find()] == ["3", "0", "1", "2"]


def test_an_entry_that_comes_again_is_known(folder: Path, box: Outbox) -> None:
    """A kill between the commit and the removal leaves it where it was; mailqueue-runner may have counted
    another attempt meanwhile.
    """
    (folder / "new/1.h").write_bytes(entry())
    take_in(Mailqueue(str(folder)), box.door, "x.test")
    (folder / "new/1.h").write_bytes(entry().replace(b"Retries: 2", b"Retries: 3"))
    taken = take_in(Mailqueue(str(folder)), box.door, "x.test")
    assert (taken.ids, taken.known) == ([], ["new/1.h"]) and names(folder, "new") == []
    assert len(list(box.find())) == 1
    (folder / "new/2.h").write_bytes(entry())  # the same mail, written twice by its program, is two mails
    assert len(take_in(Mailqueue(str(folder)), box.door, "x.test").ids) == 1


@pytest.mark.parametrize("point", ["C1", "C2"])
def test_a_kill_at_any_point_loses_and_doubles_nothing(folder: Path, tmp_path: Path, point: str) -> None:
    for number in range(3):
        (folder / f"new/{number}.h").write_bytes(entry())
    program = (
        "import sys; from outmail.outbox.outbox import Outbox; from outmail.compat.foreign_queue import *;"
        "from outmail.compat.mailqueue.spool import Mailqueue\n"
        "with Outbox(sys.argv[2], deliver='never') as box:"
        " take_in(Mailqueue(sys.argv[1]), box.door, 'x.test')"
    )
    words = [sys.executable, "-c", program, str(folder), str(tmp_path / "q.db")]
    killed = subprocess.run(words, env={**os.environ, "OUTMAIL_FAIL": f"{point}:kill:2"}, timeout=60)
    assert killed.returncode == -9 and names(folder, "new")
    assert names(folder, "taking") == ["1.h"]  # its own program would not send it now
    subprocess.run(words, check=True, timeout=60)
    with Outbox(tmp_path / "q.db", deliver="never") as box:
        assert len(list(box.find())) == 3 and names(folder, "new") == names(folder, "taking") == []


def test_what_a_killed_run_has_stored_is_not_stored_elsewhere(
    folder: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "new/1.h").write_bytes(entry())
    with monkeypatch.context() as patched, Outbox(store_of(str(folder)), deliver="never") as first:
        patched.setattr(spool.Claimed, "remove", lambda self: None)  # killed before it
        assert len(take_in(Mailqueue(str(folder)), first.door, "x.test").ids) == 1
    (folder / "new/2.h").write_bytes(entry())
    arguments = argparse.Namespace(new=str(folder.parent / "q.db"), config=None, store=None, relay="null:")
    assert move(Mailqueue(str(folder)), arguments) == 0
    assert len(list(box.find())) == 1 and names(folder, "taking") == names(folder, "new") == []


def test_what_somebody_has_locked_is_theirs(folder: Path, box: Outbox) -> None:
    (folder / "new/1.h").write_bytes(entry())
    with open(folder / "new/1.h", "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert take_in(Mailqueue(str(folder)), box.door, "x.test").busy == ["new/1.h"]
        assert names(folder, "new") == ["1.h"]
    assert len(take_in(Mailqueue(str(folder)), box.door, "x.test").ids) == 1


def test_what_is_fresh_in_progress_is_left_and_what_is_stale_is_taken(
    folder: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "cur/1.h").write_bytes(entry())
    assert take_in(Mailqueue(str(folder)), box.door, "x.test").ids == []
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 31 * 60)
    assert len(take_in(Mailqueue(str(folder)), box.door, "x.test").ids) == 1 and names(folder, "cur") == []


def test_a_move_that_was_cut_off_gives_one_mail(
    folder: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is moved by a link and the removal of the old name; a kill in between leaves both."""
    (folder / "new/1.h").write_bytes(entry())
    os.link(folder / "new/1.h", folder / "cur/1.h")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 31 * 60)
    taken = take_in(Mailqueue(str(folder)), box.door, "x.test")
    assert (len(taken.ids), len(taken.known)) == (1, 1) and len(list(box.find())) == 1


PIECES = [
    b"Return-path: <a@x.test>\r\n", b"Envelope-to: ", b"b@x.test,", b"=?utf-8?q?=FF?=", b"=?utf-8?b?!!?=",
    b"\r\n", b"\n", b" ", b":", b"X-Retries: 1\n", b"X-Queue-Meta-End: end\r\n", b"Subject: s\r\n\r\nx",
]  # fmt: skip
BROKEN = {
    "half": (entry()[:60], "not whole"),
    "empty": (b"", "not whole"),
    "foreign": (b"From: a@x.test\r\n\r\ntext\r\n", "does not begin with the envelope"),
    "nobody": (entry(to=""), "no recipient"),
    "no sender": (b"Envelope-to: a@x.test\r\nX-Queue-Meta-End: end\r\n" + CONTENT, "no field Return-Path"),
    "headless": (entry(content=b"just text\r\n"), "is not accepted"),
    "retries": (entry().replace(b"Retries: 2", b"Retries: x"), "no number"),
}


#: Values that made more than one line of an error.
ODD = [
    rb"=?unicode_escape?q?=5Cud800?=@x.test",
    rb"=?raw_unicode_escape?q?=5Cud800?=",
    b"=?utf-7?q?+2AA-?= <a@x.test>",
    b"=?x\xff?q?a?=",
]


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("kind", [Mailqueue, RepozeQueue])
def test_an_envelope_that_no_store_can_hold_is_set_aside(
    folder: Path, box: Outbox, kind: type[Mailqueue | RepozeQueue], value: bytes
) -> None:
    good = (
        entry()
        if kind is Mailqueue
        else b"X-Actually-From: me@x.test\r\nX-Actually-To: a@x.test\r\n" + CONTENT
    )
    (folder / "new/1.h").write_bytes(good.replace(b"me@x.test", value))
    (folder / "new/2.h").write_bytes(good.replace(b"a@x.test", value))
    (folder / "new/3.h").write_bytes(good)
    taken = take_in(kind(str(folder)), box.door, "x.test")
    assert len(taken.ids) == 1 and [one.name for one in taken.aside] == ["new/1.h", "new/2.h"]
    assert names(folder, ASIDE) == ["1.h", "2.h"] and names(folder, "new") == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EPERM])
@pytest.mark.parametrize("step", ["claim", "read"])
def test_a_file_in_trouble_stays_and_the_others_come_in(
    folder: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    for name in ("1.h", "2.h"):
        (folder / "new" / name).write_bytes(entry())
    owner: type = Mailqueue if step == "claim" else spool.Claimed
    name = "_takes" if step == "claim" else "read"
    real = getattr(owner, name)

    def fails(self: Any, argument: Any) -> Any:
        if "1.h" in f"{argument} {getattr(self, 'path', '')}":
            raise OSError(number, os.strerror(number))
        return real(self, argument)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fails)
        taken = take_in(Mailqueue(str(folder)), box.door, "x.test")
    [line] = taken.sentences(str(folder))
    assert len(taken.ids) == 1 and taken.status == 75 and os.strerror(number) in line and "stays" in line
    assert names(folder, ASIDE) == []
    assert len(take_in(Mailqueue(str(folder)), box.door, "x.test").ids) == 1


@pytest.mark.parametrize("kind", [Mailqueue, RepozeQueue])
def test_a_file_system_without_locks_is_told(
    folder: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch, kind: type[Mailqueue | RepozeQueue]
) -> None:
    (folder / "new/1.h").write_bytes(entry())

    def fails(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fails)
    taken = take_in(kind(str(folder)), box.door, "x.test")
    [line] = taken.sentences(str(folder))
    assert taken.status == 75 and "No locks available" in line and names(folder, "new") == ["1.h"]


@pytest.mark.parametrize("kind", [Mailqueue, RepozeQueue])
def test_a_file_is_locked_open_for_writing(
    folder: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch, kind: type[Mailqueue | RepozeQueue]
) -> None:
    """NFS locks no other one."""
    (folder / "new/1.h").write_bytes(entry())
    real, modes = fcntl.flock, list[int]()

    def noted(fd: int, how: int) -> None:
        if stat.S_ISREG(os.fstat(fd).st_mode) and os.path.samestat(os.fstat(fd), there):
            modes.append(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE)
        real(fd, how)

    there = os.stat(folder / "new/1.h")
    monkeypatch.setattr(fcntl, "flock", noted)
    take_in(kind(str(folder)), box.door, "x.test")
    assert modes == [os.O_RDWR]


def test_what_somebody_else_has_waits(folder: Path, box: Outbox) -> None:
    (folder / "new/1.h").write_bytes(entry())
    with open(folder / "new/1.h", "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert take_in(Mailqueue(str(folder)), box.door, "x.test").status == 75


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_entry_is_set_aside_and_the_others_come_in(folder: Path, box: Outbox, what: str) -> None:
    data, why = BROKEN[what]
    (folder / "new/1.h").write_bytes(data)
    (folder / "new/2.h").write_bytes(entry())
    taken = take_in(Mailqueue(str(folder)), box.door, "x.test")
    assert len(taken.ids) == 1 and names(folder, "new") == []
    [aside] = taken.aside
    assert aside.name == "new/1.h" and why in aside.why
    assert (folder / ASIDE / "1.h").read_bytes() == data
    [line] = taken.sentences(str(folder))
    assert "1.h" in line and why in line and "set-aside" in line
    (folder / "new/1.h").write_bytes(data)
    take_in(Mailqueue(str(folder)), box.door, "x.test")
    assert len(names(folder, ASIDE)) == 2  # an older file of that name stays


def test_links_pipes_and_folders_are_set_aside_unread(folder: Path, box: Outbox, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(entry())
    os.symlink(tmp_path / "elsewhere", folder / "new/link")
    os.mkfifo(folder / "new/pipe")
    os.mkdir(folder / "new/folder")
    taken = take_in(Mailqueue(str(folder)), box.door, "x.test")
    assert names(folder, ASIDE) == ["folder", "link", "pipe"] and len(taken.aside) == 3
    assert (tmp_path / "elsewhere").exists() and not list(box.find())


def test_half_written_and_dot_files_are_never_taken(
    folder: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tmp/1.h").write_bytes(entry())
    (folder / "new/.nfs1").write_bytes(entry())
    taken = take_in(Mailqueue(str(folder)), box.door, "x.test")
    assert (taken.ids, taken.aside) == ([], []) and names(folder, "tmp") == ["1.h"]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 37 * 3600)
    taken = take_in(Mailqueue(str(folder)), box.door, "x.test")
    assert taken.ids == [] and "half written" in taken.aside[0].why and names(folder, ASIDE) == ["1.h"]


def test_a_bare_carriage_return_is_a_line_end_as_in_mailqueue_runner(folder: Path, box: Outbox) -> None:
    (folder / "new/1.h").write_bytes(entry(content=CONTENT + b"one\rtwo\r\n"))
    [id] = take_in(Mailqueue(str(folder)), box.door, "x.test").ids
    assert box.content(id) == CONTENT + b"one\r\ntwo\r\n"


def test_one_bad_address_does_not_keep_the_mail_from_the_others(folder: Path, box: Outbox) -> None:
    (folder / "new/1.h").write_bytes(entry(to="a@x.test, b b@x.test,root"))
    take_in(Mailqueue(str(folder)), box.door, "x.test")
    states = {r.address: r.state for status in box.find() for r in status.recipients}
    assert states == {"a@x.test": "queued", "root@x.test": "queued", "'b b@x.test'": "failed"}


def test_encoded_envelopes_are_read() -> None:
    """repoze.sendmail encodes the values."""
    data = entry(sender="<=?utf-8?q?foo=40x=2Etest?=>", to="=?utf-8?q?a=40x=2Etest?=")
    found, _ = spool.unpacked(data)
    assert (found.sender, found.recipients) == ("foo@x.test", ("a@x.test",))


def test_a_bounce_has_the_null_sender(folder: Path, box: Outbox) -> None:
    (folder / "new/1.h").write_bytes(entry(sender="<>"))
    take_in(Mailqueue(str(folder)), box.door, "x.test")
    assert [status.sender for status in box.find()] == [""]


def test_what_is_put_comes_back_the_same() -> None:
    envelope = spool.Envelope("me@x.test", ["a@x.test", "ü@x.test"], "then", "last", 3)
    found, content = spool.unpacked(spool.packed(envelope, CONTENT))
    assert vars(found) == vars(envelope) and content == CONTENT
    with pytest.raises(ValueError, match="line break"):
        spool.packed(spool.Envelope("me@x.test\r\nEnvelope-to: b@x.test", ["a@x.test"]), CONTENT)
    with pytest.raises(ValueError, match="comma"):
        spool.packed(spool.Envelope("me@x.test", ['"a,b"@x.test']), CONTENT)


def test_a_directory_that_is_missing_is_an_error(tmp_path: Path, box: Outbox) -> None:
    with pytest.raises(FileNotFoundError):
        take_in(Mailqueue(str(tmp_path / "none")), box.door, "x.test")


def test_while_a_run_has_a_file_another_one_of_that_name_waits(folder: Path, box: Outbox) -> None:
    (folder / "taking").mkdir()
    (folder / "taking/1.h").write_bytes(entry())
    (folder / "new/1.h").write_bytes(entry(to="c@x.test"))
    with open(folder / "taking/1.h", "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert len(take_in(Mailqueue(str(folder)), box.door, "x.test").busy) == 2
    assert len(take_in(Mailqueue(str(folder)), box.door, "x.test").ids) == 2
    assert names(folder, "new") == names(folder, "taking") == []


@given(st.lists(st.sampled_from([*PIECES, b"\x00", b"\xff"]), max_size=12).map(b"".join))
@settings(max_examples=300, deadline=None)
def test_whatever_a_file_holds_is_an_envelope_or_named(data: bytes) -> None:
    try:
        envelope, content = spool.unpacked(data)
    except ValueError as problem:
        assert str(problem)
    else:
        assert data.endswith(content) and all("\n" not in one for one in envelope.recipients)
