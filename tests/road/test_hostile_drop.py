"""The drop folder is open to everybody: what users leave there, change, link, exchange harms nobody else."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outmail.config import from_toml
from outmail.intake import drop
from outmail.intake.deposit import MOST_LINES, Deposit
from outmail.intake.drop import DropFolder
from outmail.intake.local import Here
from outmail.outbox.outbox import Outbox
from outmail.policy.aliases import Directory
from outmail.system import dropbox
from outmail.system.throttle import Throttle
from tests import programs

HERE = Here("host.x.test", "x.test")
SRC = str(Path(__file__).parents[2] / "src")
several_users = programs.as_root("only root can act as several users")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "drop"
    made.mkdir()
    made.chmod(0o3777)
    return made


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "q.db", config=from_toml("", "test", {}), deliver="never") as made:
        yield made


def taker(folder: Path, box: Outbox, here: Callable[[], Here] = lambda: HERE) -> DropFolder:
    return DropFolder(str(folder), box.door, here)


def put(folder: Path, subject: str, to: str = "a@x.test") -> str:
    content = f"Subject: {subject}\n\ntext\n".encode()
    return dropbox.put(str(folder), Deposit(content, [to], sender="me@x.test").packed())


def name_of(number: int) -> str:
    """A name as `dropbox.put` gives it; the lowest is the oldest."""
    return f"{number:012x}-{number:024x}"


def bad(name: str, uid: int = os.getuid()) -> str:
    """What a file is called when it was put aside."""
    return f"{name}.{uid}.bad"


def subjects(box: Outbox) -> list[str]:
    return sorted(status.subject for status in box.find())


def ages(path: Path, seconds: float) -> None:
    """Its names were changed last so long ago (or in the future)."""
    then = time.time_ns() - int(seconds * 1e9)
    os.utime(path, ns=(then, then))


# -- files of every kind -------------------------------------------------------------------------------------


def test_no_kind_of_file_but_a_regular_one_is_opened(
    folder: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    os.symlink("/etc/passwd", folder / name_of(1))
    os.symlink("nowhere", folder / name_of(2))
    os.symlink(name_of(3), folder / name_of(3))
    os.mkfifo(folder / name_of(4))
    (folder / name_of(5)).mkdir()
    unix = socket.socket(socket.AF_UNIX)
    before = os.getcwd()
    os.chdir(folder)  # the path of a socket has at most 107 bytes
    try:
        unix.bind(name_of(6))
    finally:
        os.chdir(before)
        unix.close()
    opened: list[str] = []
    real = os.open

    def noting(path: Any, *words: Any, **named: Any) -> int:
        opened.append(str(path))
        return real(path, *words, **named)

    monkeypatch.setattr(os, "open", noting)
    put(folder, "good")
    assert taker(folder, box).turn() == 7
    assert not {name_of(number) for number in range(1, 7)} & set(opened)
    assert sorted(os.listdir(folder)) == [bad(name_of(number)) for number in range(1, 7)]
    assert subjects(box) == ["good"] and "it is put aside" in caplog.text


@programs.as_root("only root makes devices")
def test_a_device_is_not_opened(folder: Path, box: Outbox) -> None:
    try:
        os.mknod(folder / name_of(1), 0o20666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("this container makes no devices")
    put(folder, "good")
    taker(folder, box).turn()
    assert os.listdir(folder) == [bad(name_of(1))] and subjects(box) == ["good"]


def test_a_second_name_keeps_both_from_being_sent_and_is_named(
    folder: Path, box: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    name = put(folder, "linked")
    os.link(folder / name, folder / name_of(1))
    put(folder, "good")
    taker(folder, box).turn()
    assert subjects(box) == ["good"] and "has a second name" in caplog.text
    assert sorted(os.listdir(folder)) == sorted([bad(name), bad(name_of(1))])


@several_users
def test_a_file_that_was_moved_here_is_not_of_whom_it_belongs_to(folder: Path, box: Outbox) -> None:
    """A user may move another's file out of a folder that both may write."""
    elsewhere = folder.parent / "file"
    elsewhere.write_bytes(Deposit(b"Subject: moved\n\n", ["a@x.test"]).packed())
    os.chown(elsewhere, 12345, 12345)
    os.rename(elsewhere, folder / name_of(1))
    put(folder, "good")
    taker(folder, box).turn()
    assert subjects(box) == ["good"] and os.listdir(folder) == [bad(name_of(1), 12345)]


def test_a_file_of_a_terabyte_of_nothing_costs_nothing(folder: Path, box: Outbox) -> None:
    with open(folder / name_of(1), "wb") as file:
        try:
            file.truncate(1 << 40)
        except OSError:
            pytest.skip("this file system has no files of a terabyte")
    put(folder, "good")
    taker(folder, box).turn()
    assert subjects(box) == ["good"] and os.listdir(folder) == [bad(name_of(1))]


def test_a_message_that_is_too_large_ends_as_failed_and_its_file_stays(tmp_path: Path, folder: Path) -> None:
    """Its program was told that it is safe."""
    config = from_toml("[limits]\nmessage_size = 1000\n", "test", {})
    with Outbox(tmp_path / "q.db", config=config, deliver="never") as box:
        long = Deposit(b"Subject: long\n\n" + b"x" * 9_000_000, ["a@x.test"], sender="me@x.test").packed()
        name = dropbox.put(str(folder), long)
        taker(folder, box).turn()
        [status] = box.find()
        assert status.status == "failed" and status.recipients[0].address == "a@x.test"
        assert "9000" in status.recipients[0].reason and bad(name) in status.recipients[0].reason
    assert (folder / bad(name)).read_bytes() == long


def test_an_envelope_without_an_end_is_not_taken_apart(folder: Path, box: Outbox) -> None:
    lines = b"recipient \n" * (MOST_LINES + 1)
    (folder / name_of(1)).write_bytes(b"outmail deposit 1\n" + lines + b"\ntext")
    (folder / name_of(2)).write_bytes(b"outmail deposit 1\n" + lines)
    put(folder, "good")
    taker(folder, box).turn()
    assert subjects(box) == ["good"] and len(os.listdir(folder)) == 2


@pytest.mark.parametrize("size", [8_100_000, 7_900_000])
def test_a_line_without_an_end_gets_neither_into_memory_nor_into_the_log(
    folder: Path, box: Outbox, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    (folder / name_of(1)).write_bytes(b"outmail deposit 1\n" + b"\xff" * size + b"\n\nSubject: no\n\n")
    put(folder, "good")
    tracemalloc.start()
    try:
        taker(folder, box).turn()
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert subjects(box) == ["good"] and bad(name_of(1)) in os.listdir(folder)
    assert most < 70_000_000
    assert "deposit" in caplog.text and len(caplog.text) < 2000


def test_what_is_left_out_of_the_log_is_not_formatted(caplog: pytest.LogCaptureFixture) -> None:
    class Costly:
        times = 0

        def __str__(self) -> str:
            Costly.times += 1
            return "text"

    throttle = Throttle(logging.getLogger("outmail.test"))
    for _ in range(5):
        throttle.say(logging.ERROR, "kind", "%s", Costly())
    caplog.records[0].getMessage()
    once = Costly.times
    for _ in range(5):
        throttle.say(logging.ERROR, "kind", "%s", Costly())
    assert len(caplog.records) == 1 and Costly.times == once


def test_what_cannot_be_sent_is_logged_in_short_and_not_once_for_each_file(
    folder: Path, box: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(20):
        put(folder, str(number), to=f"{number} \x1b]0;{'x' * 9000}")
    taker(folder, box).all()
    assert len(list(box.find("state:failed"))) == 20
    assert caplog.text.count("cannot be sent") == 1
    assert len(caplog.text) < 2000 and "\x1b" not in caplog.text


def test_names_that_are_aliased_in_a_circle_make_one_short_line(
    folder: Path, box: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    circle = Here("h", "x.test", {"a": ("b",), "b": ("a",)})
    names = [f"a+{number}\x1b]0;evil\r" for number in range(50)] + ["b"]
    dropbox.put(
        str(folder),
        b"outmail deposit 1\n" + b"".join(b"recipient %s\n" % n.encode() for n in names) + b"\n\n",
    )
    with caplog.at_level(logging.WARNING, "outmail.sendmail"):
        taker(folder, box, lambda: circle).turn()
    [line] = [record.getMessage() for record in caplog.records if "aliases" in record.getMessage()]
    assert line.endswith("(and 1 more like this)") and line.isprintable() and len(line) < 900


@pytest.fixture
def expanded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names whose aliases were looked up."""
    found: list[str] = []
    real = Directory.expand

    def noting(self: Directory, local: str) -> list[str] | None:
        found.append(local)
        return real(self, local)

    monkeypatch.setattr(Directory, "expand", noting)
    return found


@pytest.mark.parametrize(
    "names",
    [["all"] * 20_000, [f"all+{number}" for number in range(9000)], ["aLL", "ALL", "all", "All"] * 5000],
)
def test_an_alias_is_expanded_once_for_a_message(
    folder: Path, box: Outbox, expanded: list[str], names: list[str]
) -> None:
    people = [f"u{number}@y.test" for number in range(30)]
    dropbox.put(str(folder), Deposit(b"Subject: list\n\n", names, sender="me@x.test").packed())
    taker(folder, box, lambda: Here("h", "x.test", {"all": tuple(people)})).turn()
    [status] = box.find()
    assert [r.address for r in status.recipients] == people and expanded == names[:1]


@pytest.mark.parametrize("way", ["many", "aliases"])
def test_too_many_recipients_are_not_looked_up(
    tmp_path: Path, folder: Path, expanded: list[str], way: str
) -> None:
    lists = {f"l{n}": tuple(f"u{n}-{m}@y.test" for m in range(10)) for n in range(50)}
    names = [f"a{number}" for number in range(51)] if way == "many" else [*lists]
    dropbox.put(str(folder), Deposit(b"Subject: many\n\n", names, sender="me@x.test").packed())
    config = from_toml("[limits]\nrecipients = 50\n", "test", {})
    with Outbox(tmp_path / "q.db", config=config, deliver="never") as box:
        taker(folder, box, lambda: Here("h", "x.test", lists)).turn()
        [status] = box.find()
    assert status.status == "failed" and "more than 50 recipients" in status.recipients[0].reason
    assert len(expanded) == (0 if way == "many" else 6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(("user", "sender", "name", "notify", "ret", "envid", "recipient", "as-is", "x")),
            st.one_of(
                st.text(max_size=20), st.sampled_from(("a@x.test", "root", "never", "full", "<>", "@"))
            ),
        ),
        max_size=6,
    ),
    st.binary(max_size=60),
)
def test_whatever_stands_in_a_deposit_it_is_sent_or_failed_or_put_aside(
    folder: Path, box: Outbox, words: list[tuple[str, str]], content: bytes
) -> None:
    for old in folder.iterdir():
        old.unlink()
    before = len(list(box.find()))
    lines = "".join(f"{word} {value}\n" for word, value in words).encode("utf-8", "surrogatepass")
    name = dropbox.put(str(folder), b"outmail deposit 1\n" + lines + b"\n" + content)
    assert taker(folder, box).turn() == 1
    aside = os.listdir(folder) == [bad(name)]
    assert aside or os.listdir(folder) == []
    assert len(list(box.find())) - before == (not aside)


# -- names and floods ----------------------------------------------------------------------------------------


def test_strange_names_are_passed_over_and_do_not_get_into_the_log(
    folder: Path, box: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    strange = [
        b"x" * 255,
        b"a\nb",
        b"\xff\xfe",
        b"\x1b[2J",
        b"-rf",
        b".half",
        b"..half",
        b"a" * 12 + b"-" + b"B" * 24,
    ]
    for name in strange:
        Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(b"")
    put(folder, "good")
    assert taker(folder, box).turn() == 1
    assert subjects(box) == ["good"] and len(os.listdir(folder)) == len(strange)
    assert caplog.text == ""


@several_users
def test_a_flood_of_one_user_does_not_delay_another(
    folder: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Deposit(b"Subject: flood\n\n", ["a@x.test"]).packed()
    for number in range(300):
        (folder / name_of(number)).write_bytes(data)
        os.chown(folder / name_of(number), 12345, folder.stat().st_gid)
    put(folder, "mine")
    monkeypatch.setattr(drop, "TURN", 60.0)
    one = taker(folder, box)
    assert one.turn() == drop.PER_USER + 1 and "mine" in subjects(box)
    one.all()
    assert os.listdir(folder) == [] and len(subjects(box)) == 301


class Slow(DropFolder):
    """Each file of the users in ``slow`` takes so many seconds, by a clock that is not the machine's."""

    def __init__(self, *words: Any, slow: dict[int, float], clock: list[float]) -> None:
        super().__init__(*words)
        self.slow = slow
        self.clock = clock
        self.order: list[int] = []

    def _take(self, folder: dropbox.Folder, name: str, here: Here) -> bool:
        uid = os.stat(os.path.join(folder.path, name)).st_uid
        self.order.append(uid)
        self.clock[0] += self.slow.get(uid, 1 / 128)
        folder.remove(name)
        return True


@several_users
def test_a_file_that_takes_long_is_followed_by_those_of_others_who_came_meanwhile(
    folder: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(uid: int, *numbers: int) -> None:
        for number in numbers:
            (folder / name_of(number)).write_bytes(b"")
            os.chown(folder / name_of(number), uid, folder.stat().st_gid)

    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    one = Slow(str(folder), box.door, lambda: HERE, slow={12345: 2.0, 12347: 2.0}, clock=clock)
    leave(12345, *range(10))
    assert one.turn() == 1
    leave(12346, *range(10, 15))
    assert (one.turn(), one.turn()) == (2, 5)
    assert one.order == [12345, 12346, 12345, *4 * [12346], 12345]
    one.order.clear()
    leave(12347, *range(20, 25))
    for _ in range(4):
        assert one.turn() == 1
    assert one.order[:2] == [12347, 12345] and sorted(one.order) == [12345, 12345, 12347, 12347]


@pytest.mark.parametrize(
    ("spent", "waiting", "shares"),
    [
        ({}, [1, 2], {1: 0.0, 2: 0.0}),
        ({1: 9.0, 2: 7.0}, [1, 2, 3], {3: 7.0, 1: 9.0, 2: 7.0}),
        ({1: 9.0}, [2], {2: 0.0}),
    ],
)
def test_who_comes_later_comes_first_and_has_saved_nothing_up(
    spent: dict[int, float], waiting: list[int], shares: dict[int, float]
) -> None:
    assert list(drop.shares(spent, waiting).items()) == list(shares.items())


def test_where_listing_takes_long_more_is_taken_at_once_and_the_pauses_are_longer(
    folder: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million files take seconds to list."""
    asked: list[int] = []

    def slow(self: Any, most: int) -> dict[int, list[str]]:
        asked.append(most)
        now[0] += 3.0
        return {1: ["0" * 12 + "-" + "0" * 24]}  # it is gone already

    now = [100.0]
    monkeypatch.setattr(dropbox.Folder, "waiting", slow)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    one = taker(folder, box)
    for _ in range(8):
        one.turn()
    assert asked == [100, 200, 400, 800, 1600, 2000, 2000, 2000]
    assert one._listing == 3.0


def test_what_cannot_be_put_aside_is_not_tried_again_and_again(
    folder: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*words: Any, **named: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (folder / name_of(1)).write_bytes(b"junk")
    monkeypatch.setattr(os, "rename", fails)
    one = taker(folder, box)
    assert one.turn() == 1 and one.turn() == 0
    assert "cannot be put aside (Input/output error)" in caplog.text


@pytest.mark.parametrize("there", ["file", "folder"])
def test_what_was_put_aside_before_is_not_replaced(folder: Path, box: Outbox, there: str) -> None:
    """Neither a file, nor does a folder of that name keep anything from being put aside."""
    if there == "file":
        (folder / bad(name_of(1))).write_bytes(b"the only copy")
    else:
        (folder / bad(name_of(1))).mkdir()
    (folder / name_of(1)).write_bytes(b"junk")
    taker(folder, box).turn()
    [other] = set(os.listdir(folder)) - {bad(name_of(1))}
    assert other.startswith(f"{name_of(1)}.{os.getuid()}.") and other.endswith(".bad")
    assert (folder / other).read_bytes() == b"junk"
    assert there == "folder" or (folder / bad(name_of(1))).read_bytes() == b"the only copy"


@several_users
def test_a_user_replaces_no_file_that_was_put_aside_for_another(folder: Path, box: Outbox) -> None:
    for uid in (12345, 12346):
        (folder / name_of(1)).write_bytes(b"junk of %d" % uid)
        os.chown(folder / name_of(1), uid, folder.stat().st_gid)
        taker(folder, box).turn()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        bad(name_of(1), uid): b"junk of %d" % uid for uid in (12345, 12346)
    }


# -- files that change ---------------------------------------------------------------------------------------


def test_a_file_that_vanishes_or_gets_another_name_stops_nothing(folder: Path, box: Outbox) -> None:
    gone, moved = put(folder, "gone"), put(folder, "moved")
    put(folder, "good")

    def after_the_listing() -> Here:
        (folder / gone).unlink(missing_ok=True)
        if (folder / moved).exists():
            os.rename(folder / moved, folder / name_of(7))
        return HERE

    one = taker(folder, box, after_the_listing)
    one.turn()
    assert subjects(box) == ["good"]
    one.turn()
    assert subjects(box) == ["good", "moved"] and os.listdir(folder) == []


@pytest.mark.parametrize("size", [0, 30, 200_000_000])
def test_a_file_that_its_owner_changes_afterwards_harms_nobody_else(
    folder: Path, box: Outbox, size: int
) -> None:
    changed = put(folder, "changed")

    def after_the_listing() -> Here:
        if (folder / changed).exists():
            os.truncate(folder / changed, size)
        return HERE

    put(folder, "good")
    taker(folder, box, after_the_listing).turn()
    assert "good" in subjects(box) and not set(os.listdir(folder)) - {bad(changed)}


def test_what_its_owner_writes_after_it_was_taken_changes_nothing(
    folder: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the service dies before the file is removed, and takes it again."""
    name = put(folder, "first")
    with open(folder / name, "r+b") as held:
        with monkeypatch.context() as killed:
            killed.setattr(dropbox.Folder, "remove", lambda *words: None)
            taker(folder, box).turn()
        held.write(Deposit(b"Subject: other\n\n", ["b@x.test"]).packed())
        held.flush()
        taker(folder, box).turn()
    assert subjects(box) == ["first"] and os.listdir(folder) == []


def test_a_folder_that_is_exchanged_during_a_turn_is_not_followed(folder: Path, box: Outbox) -> None:
    name = put(folder, "good")
    trap, away = folder.parent / "trap", folder.parent / "away"
    trap.mkdir(mode=0o3777)
    (trap / name).write_bytes(b"somebody's file")

    def after_the_listing() -> Here:
        os.rename(folder, away)
        os.symlink(trap, folder)
        return HERE

    taker(folder, box, after_the_listing).turn()
    assert subjects(box) == ["good"] and os.listdir(away) == []
    assert (trap / name).read_bytes() == b"somebody's file"


@several_users
def test_a_folder_of_somebody_else_is_not_looked_at(folder: Path, box: Outbox) -> None:
    put(folder, "not ours")
    os.chown(folder, 12345, 12345)
    with pytest.raises(PermissionError, match="belongs to userid 12345"):
        taker(folder, box).turn()
    assert subjects(box) == []


# -- clocks and disks ----------------------------------------------------------------------------------------


def test_a_clock_in_the_future_hides_nothing(folder: Path, box: Outbox) -> None:
    one = taker(folder, box)
    ages(folder, -3600)
    assert one.turn() == one.turn() == 0
    put(folder, "good")
    assert one.turn() == 1


def test_a_file_server_whose_clock_stands_still_delays_and_does_not_hide(
    folder: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = taker(folder, box)
    ages(folder, 60)
    before = folder.stat().st_mtime_ns
    assert one.turn() == 0
    put(folder, "good")
    os.utime(folder, ns=(before, before))
    assert one.turn() == 0
    late = time.monotonic() + drop.UNCHANGED
    monkeypatch.setattr(time, "monotonic", lambda: late)
    assert one.turn() == 1


def _failing(number: int, only: str) -> Callable[..., int]:
    real = os.open

    def fails(path: Any, *words: Any, **named: Any) -> int:
        if path == only:
            raise OSError(number, os.strerror(number))
        return real(path, *words, **named)

    return fails


def test_a_process_without_descriptors_puts_no_mail_aside(
    folder: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = put(folder, "good")
    with monkeypatch.context() as crowded:
        crowded.setattr(os, "open", _failing(errno.EMFILE, name))
        with pytest.raises(OSError, match="open files"):
            taker(folder, box).turn()
    assert os.listdir(folder) == [name]
    taker(folder, box).turn()
    assert subjects(box) == ["good"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_file_on_a_bad_sector_waits_and_others_do_not(
    folder: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    name = put(folder, "bad")
    put(folder, "good")
    with monkeypatch.context() as bad_day:
        bad_day.setattr(os, "open", _failing(number, name))
        assert taker(folder, box).turn() == 1
    assert subjects(box) == ["good"] and os.listdir(folder) == [name]
    taker(folder, box).turn()
    assert subjects(box) == ["bad", "good"]


def test_a_folder_whose_names_cannot_be_flushed_takes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(dropbox, "_sync", broken)
    with pytest.raises(OSError, match="Input/output"):
        put(folder, "never")
    assert os.listdir(folder) == []


def test_what_the_service_has_taken_meanwhile_was_taken(
    folder: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        taker(folder, box).turn()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(dropbox, "_sync", broken)
    put(folder, "taken")
    assert subjects(box) == ["taken"]


# -- sendmail itself -----------------------------------------------------------------------------------------


def sendmail(
    folder: Path, *, before: str = "", given: bytes = b"text", most: int = 0, config: str = ""
) -> Any:
    code = (
        f"import os, sys; sys.path.insert(0, {SRC!r}); from outmail.unix.main import main; {before}\n"
        "sys.exit(main('sendmail', ['-i', 'a@x.test']))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OUTMAIL_")}
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        input=given,
        capture_output=True,
        env={**kept, "OUTMAIL_DROP": str(folder), "HOME": str(folder.parent), "XDG_CONFIG_HOME": config},
        timeout=60,
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))) if most else None,
    )


@pytest.mark.parametrize("where", ["os.fsync", "os.rename"])
def test_a_sendmail_that_is_killed_leaves_half_a_file_that_nobody_takes(
    folder: Path, box: Outbox, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = sendmail(folder, before=f"{where} = lambda *words: os.kill(os.getpid(), 9)")
    assert done.returncode == -signal.SIGKILL
    [half] = os.listdir(folder)
    assert half.endswith(".half")
    one = taker(folder, box)
    assert one.turn() == 0 and os.listdir(folder) == [half]
    tomorrow = time.time_ns() + (dropbox.STALE + 60_000) * 1_000_000
    monkeypatch.setattr(time, "time_ns", lambda: tomorrow)
    put(folder, "good")
    one.turn()
    assert os.listdir(folder) == [] and subjects(box) == ["good"]


def test_a_disk_that_takes_no_more_is_75_and_leaves_nothing(folder: Path) -> None:
    done = sendmail(folder, given=b"x" * 100_000, most=50_000)
    assert done.returncode == 75 and b"does not take the message: " in done.stderr
    assert os.listdir(folder) == []


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_every_umask_leaves_a_file_for_the_service_and_nobody_else(folder: Path, umask: int) -> None:
    assert sendmail(folder, before=f"os.umask({umask})").returncode == 0
    [path] = folder.iterdir()
    assert path.stat().st_mode & 0o7777 == 0o640


def test_a_message_that_the_service_will_not_take_is_refused_at_once(folder: Path) -> None:
    config = folder.parent / ".config" / "outmail" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("[limits]\nmessage_size = 1500000\n")
    for directory in (folder.parent / ".config", config.parent):
        directory.chmod(0o700)
    home = str(folder.parent / ".config")
    before = f"os.chdir({str(folder.parent)!r})"
    done = sendmail(folder, before=before, given=b"x" * 1_600_000, config=home)
    assert done.returncode == 65 and b"the limit is 1500000" in done.stderr and os.listdir(folder) == []
    assert sendmail(folder, before=before, given=b"x" * 1_400_000, config=home).returncode == 0


# -- several users -------------------------------------------------------------------------------------------


@pytest.fixture
def shared() -> Iterator[Path]:
    """A drop folder of the user 12345 that every user may reach."""
    made = Path(tempfile.mkdtemp(prefix="outmail-drop-", dir="/tmp"))
    made.chmod(0o755)
    folder = made / "drop"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    folder.chmod(0o3777)
    yield folder
    shutil.rmtree(made)


def as_user(uid: int, work: Callable[[], object]) -> str:
    """What a process of that user makes of it: the result, or the exception's name."""
    out, into = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            try:
                said = repr(work())
            except BaseException as problem:
                said = type(problem).__name__
            os.write(into, said.encode()[:4000])
        finally:
            os._exit(0)
    os.close(into)
    with open(out, "rb") as reading:
        said = reading.read().decode()
    os.waitpid(child, 0)
    return said


@several_users
def test_other_users_neither_read_nor_remove_nor_rename_nor_list_what_one_has_left(shared: Path) -> None:
    name = as_user(20001, lambda: dropbox.put(str(shared), b"secret")).strip("'")
    path = shared / name
    assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o7777) == (20001, 12345, 0o640)
    for deed in (
        lambda: path.read_bytes(),
        lambda: path.unlink(),
        lambda: os.rename(path, shared / name_of(1)),
        lambda: path.write_bytes(b"mine"),
        lambda: os.chmod(path, 0o666),
        lambda: dropbox.Folder(str(shared)),
    ):
        assert as_user(20002, deed) == "PermissionError"
    with_group = as_user(12345, lambda: dropbox.Folder(str(shared)).take(name, 1000))
    assert with_group == "(20001, b'secret')"
    assert as_user(12345, lambda: dropbox.Folder(str(shared)).remove(name)) == "None"
    assert os.listdir(shared) == []


@several_users
def test_a_file_that_its_owner_has_closed_to_the_service_is_put_aside(shared: Path) -> None:
    name = as_user(20001, lambda: dropbox.put(str(shared), b"secret")).strip("'")
    os.chmod(shared / name, 0)
    assert as_user(12345, lambda: dropbox.Folder(str(shared)).take(name, 1000)) == "Strange"
    assert as_user(12345, lambda: dropbox.Folder(str(shared)).put_aside(name)) == repr(bad(name, 20001))


@pytest.mark.parametrize(("mode", "good"), [(0o3777, True), (0o1777, False), (0o777, False), (0o3733, False)])
def test_a_folder_with_another_mode_is_named(folder: Path, mode: int, good: bool) -> None:
    folder.chmod(mode)
    assert (drop._doubt(str(folder)) == "" or "hardlinks" in drop._doubt(str(folder))) is good
    assert good or f"chmod 3777 {folder}" in drop._doubt(str(folder))


@pytest.mark.parametrize(("setting", "warned"), [("0\n", True), ("1\n", False)])
def test_a_kernel_that_lets_users_link_others_files_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, warned: bool
) -> None:
    (tmp_path / "setting").write_text(setting)
    monkeypatch.setattr(drop, "HARDLINKS", str(tmp_path / "setting"))
    assert bool(drop._doubt(str(folder))) is warned
