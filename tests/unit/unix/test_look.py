"""What `outmail init --undo` opens of a queue in a folder that is not root's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from outmail.config import from_toml
from outmail.outbox.outbox import Outbox
from outmail.unix.look import look
from tests import programs

SERVICE = 12345


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder to which every user can go; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        (Path(name) / "lib").mkdir()
        yield Path(name) / "lib"


def queue(path: Path) -> Path:
    with Outbox(str(path), config=from_toml("", "test", {}), deliver="never") as box:
        box.send("you@x.test", "s", "t", sender="me@x.test")
    return path


def give(folder: Path) -> None:
    for path in (folder, *folder.iterdir()):
        os.chown(path, SERVICE, SERVICE, follow_symlinks=False)


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_a_link_in_the_place_of_the_queue_is_not_opened(tmp_path: Path, make: object) -> None:
    assert callable(make)
    victim, path = tmp_path / "victim", tmp_path / "queue.db"
    victim.write_bytes(b"")
    make(victim, path)
    assert "is a link" in look(str(path)).trouble
    assert victim.read_bytes() == b"" and sorted(os.listdir(tmp_path)) == ["queue.db", "victim"]


def test_a_queue_of_ones_own_is_looked_at(tmp_path: Path) -> None:
    seen = look(str(queue(tmp_path / "queue.db")))
    assert (seen.told, seen.works, seen.trouble) == ("1 queued", False, "")


@programs.as_root("owners are changed by root only")
def test_root_looks_as_the_owner_and_makes_no_file_of_its_own(folder: Path) -> None:
    path = queue(folder / "queue.db")
    give(folder)
    seen = look(str(path))
    assert (seen.told, seen.trouble) == ("1 queued", "")
    assert {one.lstat().st_uid for one in folder.iterdir()} == {SERVICE}


@programs.as_root("owners are changed by root only")
def test_root_writes_to_no_file_beside_the_queue(folder: Path) -> None:
    """SQLite opens QUEUE-wal by name, too."""
    path, victim = queue(folder / "queue.db"), folder.parent / "victim"
    victim.write_bytes(b"root's")
    victim.chmod(0o600)
    for end in ("-wal", "-shm"):
        Path(f"{path}{end}").unlink(missing_ok=True)
        Path(f"{path}{end}").symlink_to(victim)
    give(folder)
    look(str(path))
    assert victim.read_bytes() == b"root's" and victim.stat().st_uid == 0


@programs.as_root("owners are changed by root only")
def test_a_file_of_roots_in_the_services_folder_is_not_opened_by_root(folder: Path) -> None:
    path = folder / "queue.db"
    path.write_bytes(b"")
    path.chmod(0o600)
    os.chown(folder, SERVICE, SERVICE)
    assert look(str(path)).trouble and path.read_bytes() == b""
