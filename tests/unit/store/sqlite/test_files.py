"""Why a store's file cannot be opened is said in a sentence, with its kind."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from outmail.store import StoreError
from outmail.store.sqlite import files


def why(path: object) -> StoreError:
    with pytest.raises(StoreError) as caught:
        files.create(str(path))
    return caught.value


def test_what_is_no_file_or_no_name_or_has_no_folder(tmp_path: Path) -> None:
    assert why(tmp_path).kind == "forbidden" and "it is no file" in str(why(tmp_path))
    assert "takes no such file name" in str(why(f"{tmp_path}/half \ud800"))
    assert "create it, or choose another store" in str(why(tmp_path / "absent" / "q.db"))
    (tmp_path / "file").touch()
    assert "Not a directory" in str(why(tmp_path / "file" / "q.db"))


@pytest.mark.parametrize(("flags", "kind"), [(os.ST_RDONLY, "readonly"), (0, "forbidden")])
def test_a_file_that_we_may_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int, kind: str
) -> None:
    (tmp_path / "q.db").touch()
    files.create(str(tmp_path / "q.db"))
    monkeypatch.setattr(os, "access", lambda *words, **named: False)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=flags))
    assert why(tmp_path / "q.db").kind == kind


def test_a_system_that_does_not_say_is_neither_full_nor_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Any) -> Any:
        raise OSError("not here")

    (tmp_path / "q.db").touch()
    monkeypatch.setattr(os, "access", lambda *words, **named: False)
    monkeypatch.setattr(os, "statvfs", refuse)
    assert why(tmp_path / "q.db").kind == "forbidden" and not files.is_full(str(tmp_path / "q.db"))
