"""The drop folder: what sendmail leaves is taken into the queue, whatever else lies there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from outmail.config import from_toml
from outmail.errors import NotStored
from outmail.intake.deposit import Deposit
from outmail.intake.drop import DropFolder
from outmail.intake.local import Here
from outmail.outbox.outbox import Outbox
from outmail.system import dropbox

HERE = Here("host.x.test", "x.test", {"root": ("admin", "far@y.test")})
CONTENT = b"Subject: hi\nBcc: b@y.test\nTo: root\n\ntext\n"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    made = tmp_path / "drop"
    made.mkdir()
    made.chmod(0o3777)
    return str(made)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "q.db", config=from_toml("", "test", {}), deliver="never") as made:
        yield made


def put(folder: str, recipients: list[str] | None = None, **words: str) -> str:
    return dropbox.put(folder, Deposit(CONTENT, recipients or ["root"], **words).packed())  # type: ignore[arg-type]


def test_a_deposit_becomes_a_message_of_its_owner(folder: str, box: Outbox) -> None:
    put(folder, user="somebody-else", name="Me")
    assert DropFolder(folder, box.door, lambda: HERE).turn() == 1
    assert os.listdir(folder) == []
    [status] = box.find()
    assert status.sender == "root@x.test" if os.getuid() == 0 else "@x.test" in status.sender
    assert [r.address for r in status.recipients] == ["admin@x.test", "far@y.test"]
    content = box.content(status.id).decode()
    assert content.startswith(f"Received: by host.x.test (outmail, from userid {os.getuid()})\r\n")
    assert "\r\nTo: root@x.test\r\nFrom: Me <" in content and "Bcc" not in content
    assert content.endswith("\r\n\r\ntext\r\n")


def test_an_engine_that_was_killed_between_queue_and_folder_doubles_nothing(
    folder: str, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder)
    with monkeypatch.context() as killed:
        killed.setattr(dropbox.Folder, "remove", lambda *words: None)
        DropFolder(folder, box.door, lambda: HERE).turn()
    assert len(os.listdir(folder)) == 1
    DropFolder(folder, box.door, lambda: HERE).turn()
    assert os.listdir(folder) == [] and len(list(box.find())) == 1


def test_a_store_in_trouble_leaves_everything_where_it_is(
    folder: str, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder)

    def full(*words: object, **named: object) -> None:
        raise NotStored("the disk is full")

    with monkeypatch.context() as bad_day:
        bad_day.setattr(type(box.door), "keep", full)
        with pytest.raises(NotStored):
            DropFolder(folder, box.door, lambda: HERE).turn()
    assert len(os.listdir(folder)) == 1
    assert DropFolder(folder, box.door, lambda: HERE).turn() == 1


def test_what_cannot_be_sent_ends_as_failed_with_the_reason_and_stops_nothing(
    folder: str, box: Outbox
) -> None:
    put(folder, ["no address at all"])
    put(folder, ["good@y.test"])
    DropFolder(folder, box.door, lambda: HERE).turn()
    assert os.listdir(folder) == []
    found = {s.recipients[0].state: s.recipients[0] for s in box.find()}
    assert found["queued"].address == "good@y.test"
    assert found["failed"].reason.startswith("refused: ")


def test_what_is_no_deposit_is_put_aside_and_stops_nothing(
    folder: str, box: Outbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "secret").write_text("secret")
    link, pipe, junk = (f"{i:012x}-{'0' * 24}" for i in range(3))
    os.symlink(tmp_path / "secret", f"{folder}/{link}")
    os.mkfifo(f"{folder}/{pipe}")
    Path(folder, junk).write_bytes(b"junk")
    Path(folder, "a\nname").write_bytes(b"junk")
    put(folder)
    DropFolder(folder, box.door, lambda: HERE).turn()
    assert sorted(os.listdir(folder)) == sorted(
        [*(f"{name}.{os.getuid()}.bad" for name in (link, pipe, junk)), "a\nname"]
    )
    assert len(list(box.find())) == 1
    assert "put aside" in caplog.text and "\na\nname" not in caplog.text


def test_a_name_without_aliases_and_an_address_go_where_they_say(folder: str, box: Outbox) -> None:
    put(folder, ["john", "a@y.test", "JOHN@x.test"], sender="")
    DropFolder(folder, box.door, lambda: HERE).turn()
    [status] = box.find()
    assert status.sender == ""
    assert [r.address for r in status.recipients] == ["john@x.test", "a@y.test", "JOHN@x.test"]


def test_aliases_that_go_round_in_a_circle_leave_the_name_as_it_is(folder: str, box: Outbox) -> None:
    round_and_round = Here("h", "x.test", {"a": ("b",), "b": ("a",)})
    put(folder, ["a"])
    DropFolder(folder, box.door, lambda: round_and_round).turn()
    assert [r.address for s in box.find() for r in s.recipients] == ["a@x.test"]


def test_authors_of_this_machine_are_masqueraded_and_others_are_not(folder: str, box: Outbox) -> None:
    mask = Here("host.x.test", "x.test", masquerade="robot@z.test")
    content = b"From: Cron <root@host.x.test>\nReply-To: me@y.test\nTo: root\n\n"
    dropbox.put(folder, Deposit(content, ["root"], sender="root").packed())
    DropFolder(folder, box.door, lambda: mask).turn()
    [status] = box.find()
    assert status.sender == "robot@z.test" and status.recipients[0].address == "root@x.test"
    assert b"From: Cron <robot@z.test>\r\nReply-To: me@y.test\r\nTo: root@x.test\r\n" in box.content(
        status.id
    )


def test_the_thread_takes_what_comes_and_ends(folder: str, box: Outbox) -> None:
    from tests.waiting import until

    taker = DropFolder(folder, box.door, lambda: HERE)
    taker.start()
    try:
        for _ in range(3):
            put(folder)
            until(lambda: os.listdir(folder) == [])
    finally:
        taker.stop()
    assert len(list(box.find())) == 3
