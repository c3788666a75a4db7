"""Local ways out: sendmail pipe, Maildir, files, nothing."""

from __future__ import annotations

import mailbox
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from outmail.outbox.outbox import Outbox

MakeBox = Callable[..., Outbox]


def program(tmp_path: Path, status: int) -> Path:
    path = tmp_path / "sendmail"
    path.write_text(
        f'#!/bin/sh\necho "$@" > "{tmp_path}/args"\ncat > "{tmp_path}/stdin"\necho "some words" >&2\nexit '
        f"{status}\n"
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("status", "state"),
    [(0, "delivered"), (75, "queued"), (69, "queued"), (67, "failed"), (65, "failed"), (99, "queued")],
)
def test_exit_status_is_read_as_sysexits(make_box: MakeBox, tmp_path: Path, status: int, state: str) -> None:
    box = make_box(f"sendmail:{program(tmp_path, status)}")
    id = box.send(["a@x.test", "b@x.test"], "s", ".dot\n").id
    box.wait(id, 1.0)
    assert box.status(id).status == state
    assert (tmp_path / "args").read_text().split() == [
        "-i",
        "-f",
        "me@outmail.test",
        "--",
        "a@x.test",
        "b@x.test",
    ]
    assert (tmp_path / "stdin").read_bytes() == box.content(id).replace(b"\r\n", b"\n")
    if status:
        assert "some words" in box.status(id).recipients[0].reason


def test_a_missing_program_is_a_pause_not_a_failure(make_box: MakeBox) -> None:
    box = make_box("sendmail:/nowhere/sendmail")
    id = box.send("a@x.test", "s", "t").id
    box.wait(id, 0.4)
    assert box.status(id).status == "queued" and "No such file" in box.status(id).recipients[0].reason


def test_maildir_files_appear_whole(make_box: MakeBox, tmp_path: Path) -> None:
    box = make_box(f"maildir:{tmp_path}/m")
    id = box.send("a@x.test", "s", "t").id
    assert box.wait(id, 5).status == "delivered"
    (name,) = os.listdir(tmp_path / "m" / "new")
    assert (tmp_path / "m" / "new" / name).read_bytes() == box.content(id) and not os.listdir(
        tmp_path / "m" / "tmp"
    )
    assert (
        stat.S_IMODE((tmp_path / "m" / "new" / name).stat().st_mode) == 0o600
        and len(mailbox.Maildir(tmp_path / "m")) == 1
    )


def test_files_and_nothing(make_box: MakeBox, tmp_path: Path) -> None:
    box = make_box(f"file:{tmp_path}/out")
    id = box.send("a@x.test", "s", "t").id
    assert box.wait(id, 5).status == "delivered"
    assert (tmp_path / "out" / f"{id}-1.eml").read_bytes() == box.content(id)
    id = box.send("a@x.test", "s", "t", relay="null:").id
    assert box.wait(id, 5).status == "delivered"


def test_a_folder_that_cannot_be_written_is_deferred(make_box: MakeBox, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    box = make_box(f"maildir:{tmp_path}/file/m")
    id = box.send("a@x.test", "s", "t").id
    box.wait(id, 0.4)
    assert box.status(id).status == "queued" and "Not a directory" in box.status(id).recipients[0].reason
