"""What root makes in somebody's directory is theirs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from outmail.compat.mailqueue import spool
from outmail.system.owned import folder_of_owner, to_owner


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_root_gives_it_to_the_owner_of_the_directory(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    name = spool.put(str(tmp_path), b"x")
    for place in ("new", "tmp", f"new/{name}"):
        assert os.stat(tmp_path / place).st_uid == 65534


def test_in_ones_own_directory_nothing_changes(tmp_path: Path) -> None:
    folder_of_owner(str(tmp_path), "new")
    (tmp_path / "new/file").write_text("")
    to_owner(str(tmp_path), str(tmp_path / "new/file"))
    folder_of_owner(str(tmp_path), "new")
    assert os.stat(tmp_path / "new/file").st_uid == os.geteuid()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
