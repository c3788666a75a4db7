"""A folder in which everybody may leave a file for one service."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from outmail.intake.drop import PER_USER
from outmail.system import dropbox

MOST = 1_000_000


@pytest.fixture
def folder(tmp_path: Path) -> str:
    tmp_path.chmod(0o3777)
    return str(tmp_path)


def waiting(folder: str, uid: int = os.getuid()) -> list[str]:
    with dropbox.Folder(folder) as box:
        return box.waiting(PER_USER).get(uid, [])


def take(folder: str, name: str, most: int = MOST) -> tuple[int, bytes]:
    with dropbox.Folder(folder) as box:
        return box.take(name, most)


def name_of(number: int) -> str:
    return f"{number:012x}-{os.urandom(12).hex()}"


def test_a_file_is_there_whole_under_a_name_of_its_own(folder: str) -> None:
    name = dropbox.put(folder, b"text")
    assert waiting(folder) == [name]
    assert take(folder, name, MOST) == (os.getuid(), b"text")
    with dropbox.Folder(folder) as box:
        box.remove(name)
        box.remove(name)
    assert waiting(folder) == []


def test_the_group_may_read_it_whatever_the_umask_and_others_may_not(folder: str) -> None:
    before = os.umask(0o777)
    try:
        name = dropbox.put(folder, b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(f"{folder}/{name}").st_mode) == 0o640


def test_a_disk_that_is_full_leaves_nothing_behind(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="space"):
        dropbox.put(folder, b"text")
    assert os.listdir(folder) == []


def test_what_is_written_in_parts_is_written_whole(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    name = dropbox.put(folder, b"0123456789")
    assert take(folder, name, MOST)[1] == b"0123456789"


def test_the_oldest_of_each_user_come_first(folder: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make files of several users")
    for number in range(250):
        Path(folder, name_of(number)).touch()
    late = Path(folder, name_of(999))
    late.touch()
    os.chown(late, 65534, 65534)
    assert waiting(folder, 65534) == [late.name]
    assert [int(name[:12], 16) for name in waiting(folder)] == list(range(PER_USER))


@pytest.mark.parametrize(
    "name", ["x\ny", "..", "0" * 37, "a" * 12 + "-" + "G" * 24, ".hidden", "0" * 12 + "-" + "0" * 25]
)
def test_a_name_that_we_do_not_give_is_passed_over(folder: str, name: str) -> None:
    if name != "..":
        Path(folder, name).write_bytes(b"")
    assert not dropbox.is_name(name) and waiting(folder) == []


def test_links_pipes_folders_and_second_names_are_never_read(
    folder: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = tmp_path_factory.mktemp("secret") / "file"
    secret.write_text("secret")
    symlink, hardlink, pipe, deep, long = (name_of(i) for i in range(5))
    os.symlink(secret, f"{folder}/{symlink}")
    os.link(secret, f"{folder}/{hardlink}")
    os.mkfifo(f"{folder}/{pipe}")
    os.mkdir(f"{folder}/{deep}")
    Path(folder, long).write_bytes(b"x" * 11)
    for name in (symlink, hardlink, pipe, deep, long):
        with pytest.raises(dropbox.Strange):
            take(folder, name, 10)


def test_what_is_gone_is_gone(folder: str) -> None:
    with pytest.raises(FileNotFoundError):
        take(folder, name_of(1), MOST)


def test_what_a_killed_process_left_half_written_is_removed_a_day_later(folder: str) -> None:
    now = time.time_ns() // 1_000_000
    old, young = (f"{name_of(at)}.half" for at in (now - dropbox.STALE - 1000, now))
    for name in (old, young):
        Path(folder, name).touch()
    assert waiting(folder) == []
    assert os.listdir(folder) == [young]


def test_a_date_in_the_future_counts_as_now(folder: str) -> None:
    """The owner of a file sets its date, and mailq prints it."""
    name = dropbox.put(folder, b"text")
    before = time.time_ns() // 1_000_000
    os.utime(os.path.join(folder, name), (2**33, 2**33))
    ((found, uid, size, at),) = dropbox.left(folder)
    assert (found, uid, size) == (name, os.geteuid(), 4) and before <= at < 2**33 * 1000
    os.utime(os.path.join(folder, name), (-5, -5))
    assert dropbox.left(folder)[0][3] == 0
