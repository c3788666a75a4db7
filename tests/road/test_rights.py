"""Root runs the programs for queue directories on a directory of another user, who has put links into it."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outmail.compat.mailqueue import spool
from outmail.errors import NotStored
from outmail.outbox.outbox import Outbox
from outmail.system import rights
from outmail.system.lockfile import try_lock
from outmail.testing import Sink
from tests.users import PATHS, everybodys_python, needs_root
from tests.waiting import until

pytestmark = needs_root
USER = pwd.getpwnam("nobody")
SENDMAIL = "outmail.compat.mailqueue.mq_sendmail"
RUN, QP = "outmail.compat.mailqueue.run", "outmail.compat.repoze.qp"
REPOZE = b"X-Actually-From: me@x.test\nX-Actually-To: a@x.test\nSubject: s\n\ntext\n"
MAILQUEUE = spool.packed(spool.Envelope("me@x.test", ["a@x.test"]), b"Subject: s\r\n\r\ntext\r\n")


class Place:
    """A folder that everybody may enter: ``queue`` is nobody's, ``etc`` root's."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.queue, self.etc = folder, folder / "queue", folder / "etc"
        folder.chmod(0o755)
        self.etc.mkdir(mode=0o755)
        (self.etc / "shadow").write_bytes(MAILQUEUE)  # what an entry looks like is known to everybody
        (self.etc / "shadow").chmod(0o600)
        (self.etc / "empty").touch(0o644)
        self.ini = folder / "mq.ini"
        self.serve(9)
        for part in ("", "tmp", "cur", "new"):
            (self.queue / part).mkdir()
        self.give()

    def serve(self, port: int) -> None:
        self.ini.write_text(
            f"[mqrunner]\nsmtp_hostname = 127.0.0.1\nsmtp_port = {port}\nqueue_dir = {self.queue}\n"
            "from = me@x.test\n"
        )
        self.ini.chmod(0o600)  # only root can read it

    def link(self, name: str, target: str) -> None:
        if (self.queue / name).is_dir():
            shutil.rmtree(self.queue / name)
        (self.queue / name).symlink_to(self.etc / target)
        self.give()

    def entry(self, name: str, content: bytes) -> None:
        (self.queue / "new" / name).write_bytes(content)
        self.give()

    def give(self) -> None:
        for place in (self.queue, *self.queue.rglob("*")):
            os.chown(place, USER.pw_uid, USER.pw_gid, follow_symlinks=False)

    def run(self, module: str, *words: object, given: bytes = b"", **env: str) -> tuple[int, str]:
        """(status, stderr) of a program that root runs."""
        base = {"PATH": os.environ["PATH"], "PYTHONPATH": PATHS, "PYTHONDONTWRITEBYTECODE": "1"}
        base |= {
            "HOME": str(self.etc),
            "XDG_CONFIG_HOME": str(self.etc),
            "OUTMAIL_DROP": "",
            "XDG_DATA_HOME": str(self.etc),
        }
        done = subprocess.run(
            [everybodys_python(), "-P", "-m", module, *map(str, words)],
            input=given, capture_output=True, timeout=60, cwd=self.folder, env=base | env,
        )  # fmt: skip
        return done.returncode, done.stderr.decode()

    def roots(self) -> dict[str, tuple[int, int, bytes]]:
        """What is in root's folder: owner, mode, content."""
        return {
            place.name: (place.stat().st_uid, stat.S_IMODE(place.stat().st_mode), place.read_bytes())
            for place in self.etc.iterdir()
        }


@pytest.fixture
def place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="outmail-rights-"))
    yield Place(folder)
    shutil.rmtree(folder)


def asked(module: str, place: Place, *more: str) -> tuple[object, ...]:
    return (*more, place.ini, place.queue) if module == RUN else (*more, place.queue)


LINKS = [
    *((RUN, name) for name in ("new", "set-aside", "taking", "outmail.db", "outmail.db.mq-run")),
    *((QP, name) for name in ("new", "set-aside", "outmail.db")),
]


@pytest.mark.parametrize("module, name", LINKS)
def test_a_link_leads_a_run_of_roots_nowhere(place: Place, module: str, name: str) -> None:
    place.entry("evil.sh", b"echo code\n")
    place.link(name, {"outmail.db": "empty", "outmail.db.mq-run": "none"}.get(name, ""))
    more = ("--background",) if name.endswith("mq-run") else ()
    before = place.roots()
    place.run(module, *asked(module, place, *more), OUTMAIL_RELAY="null:")
    assert place.roots() == before


@pytest.mark.parametrize("module, content", [(RUN, MAILQUEUE), (QP, REPOZE)])
def test_a_run_of_roots_is_its_owners(place: Place, module: str, content: bytes) -> None:
    """The ini file can be read by root alone."""
    place.entry("1.good", content)
    place.entry("2.junk", b"")
    with Sink() as sink:
        place.serve(sink.port)
        more = () if module == RUN else ("--hostname", "127.0.0.1", "--port", str(sink.port))
        status, told = place.run(module, *asked(module, place, *more))
        assert status == 70 and "2.junk" in told, told
        assert [m.recipients for m in sink.messages] == [("a@x.test",)]
    assert {place.lstat().st_uid for place in (place.queue, *place.queue.rglob("*"))} == {USER.pw_uid}
    assert (place.queue / "set-aside/2.junk").exists() and (place.queue / "outmail.db").exists()


def test_mail_that_root_hands_in_is_the_owners_and_goes_out(place: Place) -> None:
    with Sink() as sink:
        place.serve(sink.port)
        words = ("-C", place.ini, "a@x.test")
        assert place.run("outmail.compat.mailqueue.mq_sendmail", *words, given=b"Subject: s\n\nt\n") == (
            0,
            "",
        )
        until(lambda: len(sink.messages) == 1)
        until(lambda: is_idle(place))
    assert os.listdir(place.queue / "new") == os.listdir(place.queue / "taking") == []
    assert {place.lstat().st_uid for place in (place.queue, *place.queue.rglob("*"))} == {USER.pw_uid}


def is_idle(place: Place) -> bool:
    """The run in the background is over."""
    with open(place.queue / "outmail.db.mq-run", "rb") as file:
        return try_lock(file.fileno())


@pytest.mark.parametrize("name", ["new", "tmp"])
def test_mail_that_root_hands_in_follows_no_link(place: Place, name: str) -> None:
    place.link(name, "")
    before = place.roots()
    status, told = place.run(SENDMAIL, "-C", place.ini, "a@x.test", given=b"Subject: s\n\nt\n")
    assert status == 77 and told.startswith("mq-sendmail: not stored: ") and place.roots() == before


@pytest.mark.parametrize("words", ["outmail move mailqueue:{q} {e}/q.db", "outmail move repoze:{q} {e}/q.db"])
def test_root_does_not_move_mail_out_of_it(place: Place, words: str) -> None:
    module, *rest = words.format(q=place.queue, e=place.etc).split()
    refused(place, *place.run(module, *rest, OUTMAIL_RELAY="null:"))


def test_root_does_not_import_it(place: Place) -> None:
    refused(place, *place.run(QP, "--import", "--store", f"{place.etc}/q.db", place.queue))


def refused(place: Place, status: int, told: str) -> None:
    assert status == 77 and f"{place.queue} belongs to nobody" in told and "su -s /bin/sh nobody -c" in told
    assert not (place.queue / "taking").exists() and not (place.etc / "q.db").exists()


def test_programs_of_roots_refuse_it(place: Place) -> None:
    from outmail.compat.mailqueue.queue_runner import send_all_queued_messages
    from outmail.compat.repoze import QueuedMailDelivery

    queue = str(place.queue)
    calls: list[Callable[[], Any]] = [
        lambda: spool.put(queue, b"x"),
        lambda: send_all_queued_messages(queue, mailer=object()),
        lambda: QueuedMailDelivery(queue),
    ]
    for call in calls:
        with pytest.raises(NotStored, match="belongs to nobody"):
            call()
    assert sorted(os.listdir(queue)) == ["cur", "new", "tmp"] and os.listdir(place.queue / "new") == []


def test_a_directory_whose_name_others_may_change_is_refused(place: Place) -> None:
    """A link; a folder of root's in one of nobody's; a folder of root's into which others may write."""
    (place.folder / "link").symlink_to(place.queue)
    (place.queue / "roots").mkdir()
    (place.folder / "loose").mkdir()
    (place.folder / "loose").chmod(0o777)
    (place.queue / "way").symlink_to(place.etc)
    (place.etc / "queue").mkdir()
    (place.folder / "hop").symlink_to(place.queue / "way")
    for name, why in (
        ("link", "is a link"),
        ("queue/roots", "others may put another directory in its place"),
        ("loose", "others may write into it"),
        ("hop/queue", "others may put another directory in its place"),
    ):
        status, told = place.run(RUN, place.ini, place.folder / name)
        assert status == 77 and why in told
        with pytest.raises(NotStored, match=why):
            rights.refuse(str(place.folder / name), "")


def test_a_directory_that_is_missing_is_made_for_whom_its_folder_belongs_to(place: Place) -> None:
    folder = place.queue / "a/b"
    rights.as_owner(str(folder), lambda: os.makedirs(folder))
    assert folder.stat().st_uid == USER.pw_uid and os.geteuid() == 0
    with pytest.raises(ZeroDivisionError):
        rights.as_owner(str(folder), lambda: 1 // 0)
    assert (os.geteuid(), os.getegid()) == (0, 0)


def test_a_queue_that_has_become_a_file_is_not_roots_configuration(place: Place) -> None:
    shutil.rmtree(place.queue)
    place.queue.write_text("[mqrunner]\nlogging_config = evil\n")
    place.give()
    status, told = place.run(RUN, place.queue)
    assert status == 64 and "is a file of nobody's" in told and "-C" in told


def test_in_roots_own_directory_root_stays_root(place: Place) -> None:
    assert rights.as_owner(str(place.etc), os.geteuid) == 0
    rights.refuse(str(place.etc), "")
    rights.become_owner(str(place.etc))
    assert os.geteuid() == 0
    with Outbox(place.etc / "q.db", deliver="never") as box:
        assert list(box.find()) == []
