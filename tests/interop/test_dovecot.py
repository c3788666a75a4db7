"""Loopback copies in a mailbox of Debian's Dovecot: IDLE, away and back, expunged, long, no such folder."""

from __future__ import annotations

import grp
import imaplib
import logging
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from outmail.outbox.outbox import Outbox
from outmail.returns import imap, watching
from outmail.returns.arrivals import Arrivals
from outmail.testing import Sink
from outmail.wiring import arrivals_of
from tests import programs
from tests.pgserver import free_port
from tests.waiting import until

DOVECOT = programs.found("dovecot")
pytestmark = programs.needs("dovecot", "dovecot-imapd")

CONFIG = """
base_dir = {folder}/run
state_dir = {folder}/run
instance_name = {name}
log_path = {folder}/log
protocols = imap
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
default_internal_user = {internal}
default_internal_group = {group}
default_login_user = {login}
first_valid_uid = 1
mail_location = maildir:{folder}/Mail
passdb {{
  driver = static
  args = password=geheim
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={folder}
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service anvil {{
  chroot =
}}
"""


class Dovecot:
    """One that runs in a folder of its own, with one mailbox of everybody."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        root = os.geteuid() == 0
        owner = pwd.getpwnam("nobody") if root else pwd.getpwuid(os.geteuid())
        self.new = folder / "Mail" / "new"
        for path in (self.new, folder / "Mail" / "cur", folder / "Mail" / "tmp"):
            path.mkdir(parents=True)
        for path in (folder / "Mail", *(folder / "Mail").iterdir(), folder):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        words = {
            "folder": folder,
            "name": folder.name,
            "port": self.port,
            "uid": owner.pw_uid,
            "gid": owner.pw_gid,
            "internal": "dovecot" if root else owner.pw_name,
            "group": "dovecot" if root else grp.getgrgid(owner.pw_gid).gr_name,
            "login": "dovenull" if root else owner.pw_name,
        }
        (folder / "conf").write_text(CONFIG.format(**words))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert DOVECOT
        self.process = subprocess.Popen([DOVECOT, "-F", "-c", str(self.folder / "conf")])
        until(self._listens, 20)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None

    def add(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)
        (self.folder / name).chmod(0o644)
        os.rename(self.folder / name, self.new / name)

    def session(self) -> imaplib.IMAP4:
        """Another program's, in the same mailbox."""
        made = imaplib.IMAP4("127.0.0.1", self.port, timeout=30)
        made.login("other", "geheim")
        made.select("INBOX")
        return made

    def url(self, folder: str = "INBOX") -> imap.ImapUrl:
        return imap.ImapUrl("127.0.0.1", self.port, "loop", folder, tls=False, password="geheim")

    def _listens(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as line:
                return line.recv(4) == b"* OK"
        except OSError:
            return False


@pytest.fixture
def dovecot() -> Iterator[Dovecot]:
    folder = Path(tempfile.mkdtemp(prefix="outmail-imap-", dir="/tmp"))
    folder.chmod(0o755)
    made = Dovecot(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def box(sink: Sink, make_box: Callable[..., Outbox]) -> Outbox:
    return make_box(sink.url, '[loopback]\naddress = "loop@example.org"\n')


@pytest.fixture
def arrivals(box: Outbox) -> Arrivals:
    made: Arrivals = arrivals_of(box.store, box.config)
    return made


def copies(box: Outbox, sink: Sink, count: int) -> list[bytes]:
    """Copies of as many messages, as a mailbox has them."""
    for receipt in box.send_many([{"to": f"{n}@x.test", "subject": "s", "text": "t"} for n in range(count)]):
        box.wait(receipt.id, 10)
    return [b"Delivered-To: %s\r\n%s" % (m.recipients[-1].encode(), m.content) for m in sink.wait_for(count)]


def counts(box: Outbox) -> dict[str, int]:
    found: dict[str, int] = box.queue.loopback_stats(10**9)["counts"]
    return found


def test_long_mail_flags_and_a_folder_that_is_not_there(
    dovecot: Dovecot, box: Outbox, sink: Sink, arrivals: Arrivals
) -> None:
    first, second = copies(box, sink, 2)
    dovecot.add("1", first + b"x" * 70 * 700_000)
    dovecot.add("2", b"Subject: else\r\n\r\n")
    dovecot.add("3", second)
    watch = imap.Mailbox(dovecot.url(), arrivals)
    assert watch.look() == 3 and watch.look() == 0
    assert counts(box) == {"foreign": 1, "home": 2}
    with dovecot.session() as other:
        assert other.search(None, "SEEN")[1] == [b"1 2 3"]
    watch.close()
    with pytest.raises(OSError, match=r"doesn't exist"):
        imap.Mailbox(dovecot.url("None"), arrivals).look()
    with pytest.raises(OSError, match=r"[Aa]uthentication failed"):
        imap.Mailbox(replace(dovecot.url(), password="wrong"), arrivals).look()


def test_idle_and_mail_that_others_remove(
    dovecot: Dovecot, box: Outbox, sink: Sink, arrivals: Arrivals, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = copies(box, sink, 3)
    watch = imap.Mailbox(dovecot.url(), arrivals)
    taken: list[bytes] = []
    take = arrivals.take

    def removed_meanwhile(content: bytes) -> str:
        if not taken:  # the second mail was found, and goes before it is fetched
            with dovecot.session() as other:
                other.store("2", "+FLAGS", "(\\Deleted)")
                other.expunge()
        taken.append(content)
        return take(content)

    waits, wait = threading.Event(), watch.wait

    def waiting(seconds: float) -> bool:
        waits.set()
        return wait(seconds)

    monkeypatch.setattr(watch, "wait", waiting)
    monkeypatch.setattr(arrivals, "take", removed_meanwhile)
    dovecot.add("1", first)
    dovecot.add("2", second)
    watcher = watching.Watcher(watch, "imap")
    watcher.start()
    try:
        until(waits.is_set, 20)
        assert counts(box) == {"home": 1}
        with dovecot.session() as other:
            other.store("1", "+FLAGS", "(\\Deleted)")
            other.expunge()
        dovecot.add("3", third)
        until(lambda: counts(box) == {"home": 2}, 20)
    finally:
        watcher.stop()
    assert len(taken) == 2


def test_away_and_back(
    dovecot: Dovecot,
    box: Outbox,
    sink: Sink,
    arrivals: Arrivals,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(watching, "PAUSE", 0.2)
    first, second = copies(box, sink, 2)
    watcher = watching.Watcher(imap.Mailbox(dovecot.url(), arrivals), "imap")
    with caplog.at_level(logging.WARNING, "outmail.loopback"):
        watcher.start()
        try:
            dovecot.add("1", first)
            until(lambda: counts(box) == {"home": 1}, 20)
            dovecot.stop()
            until(lambda: "cannot be fetched from imap" in caplog.text, 20)
            dovecot.add("2", second)
            dovecot.start()
            until(lambda: counts(box) == {"home": 2}, 20)
        finally:
            watcher.stop()


def test_a_server_without_tls_gets_no_password(dovecot: Dovecot, arrivals: Arrivals) -> None:
    with pytest.raises(OSError, match=r"SSL|TLS"):
        imap.Mailbox(replace(dovecot.url(), tls=True), arrivals).look()
    assert "Login" not in (dovecot.folder / "log").read_text()
