"""repoze.sendmail's queue directory is taken in once, beside the program itself. The real package writes the
files and locks them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from email.message import EmailMessage, Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path
from typing import Any

import pytest
import transaction
from repoze.sendmail.delivery import QueuedMailDelivery as RealDelivery
from repoze.sendmail.queue import QueueProcessor

from outmail.compat import repoze
from outmail.compat.drain import store_of
from outmail.compat.foreign_queue import ASIDE, Strange, Taken, take_in
from outmail.compat.repoze.maildir import REJECTED, SENDING, RepozeQueue, letter_of
from outmail.outbox.outbox import Outbox
from outmail.testing import Sink
from tests.waiting import until

MakeBox = Callable[..., Outbox]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "queue"


@pytest.fixture
def box(make_box: MakeBox) -> Outbox:
    return make_box(deliver="never")


def fill(folder: Path, *subjects: str, to: tuple[str, ...] = ("a@x.test", "b@x.test")) -> list[str]:
    """Leave mail there with the real package; returns the names, in this order."""
    names: list[str] = []
    for subject in subjects:
        manager = transaction.TransactionManager()
        message = MIMEText("Grüße\n.dot\n", "plain", "utf-8")
        message["Subject"], message["From"], message["To"] = subject, "me@x.test", "Zoé <a@x.test>"
        message["Bcc"] = "b-hidden@x.test"
        delivery = RealDelivery(str(folder), transaction_manager=manager)
        managed = delivery.createDataManager("me@x.test", to, message)
        managed.join_transaction()
        manager.commit()
        [name] = {path.name for path in (folder / "new").iterdir() if path.name[0] != "."} - set(names)
        names.append(name)
    return names


def taken(folder: Path, box: Outbox) -> Taken:
    return take_in(RepozeQueue(str(folder)), box.door, "x.test")


def left(folder: Path, part: str = "new") -> list[str]:
    return sorted(path.name for path in (folder / part).iterdir())


def old(path: Path) -> None:
    os.utime(path, (time.time() - 3 * 3600 - 60,) * 2)


class Mailer:
    """For the real `qp`: keeps what it sends; ``meanwhile`` is called in the middle."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.sent: list[str] = []
        self.meanwhile = meanwhile

    def send(self, sender: str, recipients: Any, message: Message) -> None:
        self.sent.append(str(message["Subject"]))
        self.meanwhile()


def test_mail_comes_in_with_its_envelope_and_without_the_fields_for_it(folder: Path, box: Outbox) -> None:
    fill(folder, "first", "zweite Größe", to=("a@x.test", *(f"many-{n}@x.test" for n in range(40))))
    assert len(taken(folder, box).ids) == 2 and left(folder) == []
    first, second = box.find()
    assert (first.subject, second.subject, first.tag) == ("first", "zweite Größe", "repoze.sendmail")
    assert first.sender == "me@x.test" and len(first.recipients) == 41
    content = box.content(first.id)
    assert b"X-Actually" not in content and b"hidden" not in content
    assert b"From: me@x.test\r\n" in content and b"\r\n\r\nR3LDvMOfZQouZG90Cg==\r\n" in content


def test_the_oldest_comes_first_and_cur_is_read_too(folder: Path, box: Outbox) -> None:
    one, two, three = fill(folder, "one", "two", "three")
    os.rename(folder / "new" / two, folder / "cur" / f"{two}:2,S")
    for age, path in enumerate((folder / "new" / three, folder / "cur" / f"{two}:2,S", folder / "new" / one)):
        os.utime(path, (1_000_000 + age,) * 2)
    taken(folder, box)
    assert [status.subject for status in box.find()] == ["three", "two", "one"]
    assert left(folder) == left(folder, "cur") == []


def test_an_entry_that_comes_again_is_known(folder: Path, box: Outbox) -> None:
    [name] = fill(folder, "s")
    data = (folder / "new" / name).read_bytes()
    taken(folder, box)
    (folder / "new" / name).write_bytes(data)
    again = taken(folder, box)
    assert again.known == [f"new/{name}"] and len(list(box.find())) == 1 and left(folder) == []


def test_what_qp_is_sending_is_left_to_it_and_what_it_forgot_is_taken_after_three_hours(
    folder: Path, box: Outbox
) -> None:
    [name] = fill(folder, "s")
    seen: list[Taken] = []
    mailer = Mailer(lambda: seen.append(taken(folder, box)))
    QueueProcessor(mailer, str(folder)).send_messages()
    assert mailer.sent == ["s"] and seen[0].busy == [f"new/{name}"] and left(folder) == []
    [name] = fill(folder, "forgotten")
    os.link(folder / "new" / name, folder / "new" / f"{SENDING}{name}")  # qp failed, or was killed
    assert taken(folder, box).busy == [f"new/{name}"]
    old(folder / "new" / name)
    assert len(taken(folder, box).ids) == 1 and left(folder) == []


def test_qp_leaves_alone_what_we_have_claimed(folder: Path) -> None:
    [name] = fill(folder, "s")
    queue = RepozeQueue(str(folder))
    mailer = Mailer()
    with_us = queue.claim(f"new/{name}")
    assert with_us is not None and queue.claim(f"new/{name}") is None
    QueueProcessor(mailer, str(folder)).send_messages()
    old(folder / "new" / f"{SENDING}{name}")
    QueueProcessor(mailer, str(folder)).send_messages()
    assert mailer.sent == [] and name in left(folder)
    with_us.leave()
    with_us.leave()
    assert left(folder) == [name]
    QueueProcessor(mailer, str(folder)).send_messages()
    assert mailer.sent == ["s"]


def test_what_is_stored_and_cannot_be_removed_is_not_sent_by_qp(
    folder: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    [name] = fill(folder, "s")
    real = os.unlink

    def fails(path: Any, **words: Any) -> None:
        if os.path.basename(path) == name:
            raise PermissionError(errno.EPERM, "Operation not permitted", path)
        real(path, **words)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", fails)
        found = taken(folder, box)
    assert found.stuck == [(f"new/{name}", "Operation not permitted")] and found.status == 75
    mailer = Mailer()
    QueueProcessor(mailer, str(folder)).send_messages()
    assert mailer.sent == [] and len(found.ids) == 1
    assert taken(folder, box).known == [f"new/{name}"] and left(folder) == []


def test_a_process_of_ours_that_died_holds_nobody_up(folder: Path, box: Outbox) -> None:
    gone, here = fill(folder, "gone", "here")
    for name in (gone, here):
        (folder / "new" / f"{SENDING}{name}").mkdir()
    (folder / "new" / gone).unlink()
    assert len(taken(folder, box).ids) == 1 and left(folder) == []


def test_a_process_of_ours_that_lives_is_left_alone(folder: Path, box: Outbox) -> None:
    [name] = fill(folder, "s")
    with open(folder / "new" / name, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / "new" / f"{SENDING}{name}").mkdir()
        assert taken(folder, box).busy == [f"new/{name}"]


def test_names_with_a_dot_and_half_written_files_are_never_taken(folder: Path, box: Outbox) -> None:
    [name] = fill(folder, "s")
    data = (folder / "new" / name).read_bytes()
    for left_over in (f"{SENDING}old", f"{REJECTED}{name}", ".hidden"):
        (folder / "new" / left_over).write_bytes(data)
    (folder / "tmp/half").write_bytes(data[:40])
    assert len(taken(folder, box).ids) == 1
    assert left(folder) == [".hidden", f"{REJECTED}{name}", f"{SENDING}old"] and left(folder, "tmp") == [
        "half"
    ]
    assert RepozeQueue(str(folder)).rejected() == [f"new/{REJECTED}{name}"]


MAIL = b"Subject: s\nX-Actually-From: me@x.test\nX-Actually-To: a@x.test\n\nt\n"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no message of repoze.sendmail"),
        (b"\n" * 9, "no message of repoze.sendmail"),
        (b"Subject: s\n\nt\n", "no recipient"),
        (MAIL.replace(b"To: a@x.test", b"To: "), "no recipient"),
        (MAIL.replace(b"Subject", b"X-Actually-To: spy@x.test\nSubject"), "X-Actually-To twice"),
        (MAIL.replace(b"me@x.test", b"me@x.test, you@x.test"), "several addresses"),
        (MAIL.replace(b"a@x.test", b"=?nonsense?q?a=40x?="), "cannot be decoded"),
        (MAIL.replace(b"t\n", b"nul \0\n"), "NUL"),
        (b"not a field\n" + MAIL, "no message of repoze.sendmail"),
    ],
)
def test_what_is_broken_is_set_aside_and_the_others_come_in(
    folder: Path, box: Outbox, data: bytes, why: str
) -> None:
    fill(folder, "good")
    (folder / "new/0").write_bytes(data)
    found = taken(folder, box)
    [aside] = found.aside
    assert len(found.ids) == 1 and why in aside.why and aside.name == "new/0"
    assert left(folder) == [] and (folder / ASIDE / "0").read_bytes() == data
    assert why in found.sentences(str(folder))[0]


def test_links_and_folders_are_no_mail(folder: Path, box: Outbox, tmp_path: Path) -> None:
    fill(folder, "good")
    (tmp_path / "secret").write_bytes(MAIL)
    os.symlink(tmp_path / "secret", folder / "new/link")
    (folder / "new/folder").mkdir()
    os.mkfifo(folder / "new/pipe")
    found = taken(folder, box)
    assert sorted(one.name for one in found.aside) == ["new/folder", "new/link", "new/pipe"]
    assert [status.subject for status in box.find()] == ["good"] and (tmp_path / "secret").exists()


def test_addresses_as_programs_write_them() -> None:
    letter = letter_of(
        MAIL.replace(b"me@x.test", b"Me <me@x.test>").replace(b"a@x.test", b'"Doe, J." <j@x.test>,b@x.test')
    )
    assert (letter.sender, list(letter.recipients)) == ("me@x.test", ["j@x.test", "b@x.test"])
    assert letter.content == b"Subject: s\r\n\r\nt\r\n"
    assert letter_of(MAIL.replace(b"me@x.test", b"")).sender == ""
    assert letter_of(MAIL.replace(b"t\n", b"a\rb\r\nc\n")).content.endswith(b"\r\n\r\na\r\nb\r\nc\r\n")
    with pytest.raises(Strange, match="NUL"):
        letter_of(MAIL + b"\0")


def test_a_directory_that_is_not_there(tmp_path: Path, box: Outbox) -> None:
    with pytest.raises(FileNotFoundError):
        taken(tmp_path / "nowhere", box)


# -- deliveries ----------------------------------------------------------------------------------------------


@pytest.fixture
def manager() -> Iterator[Any]:
    made = transaction.TransactionManager()
    yield made
    made.abort()


def old_kind() -> Message:
    message = Message()
    message["From"], message["To"] = "Zoé <zoe@x.test>", "Jürgen <j@x.test>, plain@x.test"
    message["Subject"], message["Bcc"] = "Grüße", "hidden@x.test"
    message.set_payload("Ein Gruß\n.dot\n")
    return message


def test_a_queued_delivery_waits_in_the_directory_for_qp(folder: Path, manager: Any) -> None:
    delivery = repoze.QueuedMailDelivery(str(folder), transaction_manager=manager)
    message = old_kind()
    message_id = delivery.send("zoe@x.test", ["j@x.test", "Plain <plain@x.test>"], message)
    assert message["Message-Id"] == message_id and message["Bcc"] == "hidden@x.test"
    again = repoze.QueuedMailDelivery(folder, transaction_manager=manager)
    again.send("zoe@x.test", ["rolled-back@x.test"], old_kind())
    with Outbox(store_of(str(folder)), deliver="never") as box:
        assert not list(box.find())
        manager.commit()
        first, second = box.find()
        content = box.content(first.id)
    assert [r.address for r in first.recipients] == ["j@x.test", "plain@x.test"]
    assert first.message_id == message_id and second.subject == first.subject == "Grüße"
    assert b"<zoe@x.test>\r\n" in content and b"<j@x.test>, plain@x.test\r\n" in content
    assert content.isascii() and b"hidden" not in content and content.count(b"Message-ID") == 1
    assert stat.S_IMODE((folder / "new").stat().st_mode) == 0o700


def test_a_direct_delivery_sends_after_the_commit(sink: Sink, manager: Any, tmp_path: Path) -> None:
    mailer = repoze.SMTPMailer("127.0.0.1", str(sink.port), store=str(tmp_path / "direct.db"))
    delivery = repoze.DirectMailDelivery(mailer, transaction_manager=manager)
    modern = EmailMessage()
    modern["Subject"] = "modern"
    modern.set_content("Grüße\n")
    delivery.send("me@x.test", "a@x.test", modern)
    manager.abort()
    delivery.send("me@x.test", ("a@x.test",), modern)
    assert not sink.messages
    manager.commit()
    mailer.send(
        "", ["b@x.test"], MIMEMultipart("mixed", None, [MIMEText("x"), MIMEText("Größe", "plain", "utf-8")])
    )
    until(lambda: len(sink.messages) == 2)
    assert sorted(m.recipients for m in sink.messages) == [("a@x.test",), ("b@x.test",)]
    mailer.outbox.close()


def test_what_no_delivery_takes(folder: Path, manager: Any) -> None:
    delivery = repoze.QueuedMailDelivery(str(folder), transaction_manager=manager)
    with pytest.raises(ValueError, match=r"must be email\.message\.Message"):
        delivery.send("me@x.test", ["a@x.test"], "Subject: s\n\nt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no recipient"):
        delivery.send("me@x.test", [], old_kind())
    assert repoze.SendmailMailer().sendmail_app == "/usr/sbin/sendmail"
