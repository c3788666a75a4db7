"""`outmail receive`: local users get their mail, nobody is relayed for, and nothing is lost or doubled."""

from __future__ import annotations

import mailbox
import os
import re
import signal
import smtplib
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trustme

from outmail import Outbox
from outmail.config import from_toml
from outmail.testing import Sink
from outmail.transport.mailbox import to_mbox
from tests import starts
from tests.waiting import until

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
BODY = b"From: a@far.test\r\nSubject: s\r\n\r\nhello\r\nFrom here on\r\n"


class Server:
    def __init__(self, folder: Path, *words: str, toml: str = "") -> None:
        (folder / "c.toml").write_text(toml)
        self.log = folder / "receive.log"
        with open(self.log, "wb") as log:
            self.process = starts.service(
                ("receive", "--config", str(folder / "c.toml"), *words),
                stderr=log,
                cwd=folder,
                env=dict(os.environ),
            )
        wanted = len(re.findall(r"(?m)^(?:smtp|lmtp) = ", toml)) or 1
        until(lambda: self.log.read_text().count("listening: ") >= wanted or self.process.poll() is not None)
        assert self.port, self.log.read_text()

    @property
    def port(self) -> int:
        found = re.search(r"listening: smtp 127\.0\.0\.1:(\d+)", self.log.read_text())
        return int(found[1]) if found else 0

    def client(self) -> smtplib.SMTP:
        return smtplib.SMTP("127.0.0.1", self.port, timeout=10)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def begin(*words: str, toml: str = "") -> Server:
        made.append(Server(tmp_path, *words, toml=toml))
        return made[-1]

    yield begin
    for server in made:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0, server.log.read_text()


def settings(tmp_path: Path, boxes: str, relay: str = "smtp://127.0.0.1:1", extra: str = "") -> str:
    (tmp_path / "mail").mkdir(exist_ok=True)
    (tmp_path / "aliases").write_text("postmaster: alice\nteam: alice, bob, eve@far.test\nalice+news: bob\n")
    return (
        f'store = "{tmp_path}/q.db"\nhostname = "here.test"\nrelay = "{relay}"\n[receive]\nsmtp = '
        f'["127.0.0.1:0"]\nlmtp = ["unix:{tmp_path}/lmtp"]\nusers = ["alice", "bob"]\n'
        f'aliases = "{tmp_path}/aliases"\nmailboxes = "{boxes}"\n{extra}\n'
    )


def test_maildirs_aliases_and_what_is_not_local(
    start: Callable[..., Server], tmp_path: Path, sink: Sink
) -> None:
    server = start(toml=settings(tmp_path, f"{tmp_path}/mail/{{user}}/", sink.url))
    with server.client() as client:
        assert (
            client.sendmail("a@far.test", ["TEAM@here.test", "Alice@localhost", "alice+news@here.test"], BODY)
            == {}
        )
    boxes = {name: tmp_path / "mail" / name / "new" for name in ("alice", "bob")}
    until(
        lambda: (
            all(box.exists() and len(list(box.iterdir())) == 1 for box in boxes.values())
            and len(sink.messages) == 1
        )
    )
    got = next(boxes["bob"].iterdir()).read_bytes()
    assert (
        got.startswith(b"Return-Path: <a@far.test>\nDelivered-To: bob@here.test\nReceived: from ")
        and got.endswith(b"hello\nFrom here on\n")
        and b"\r" not in got
    )
    assert sink.messages[0].recipients == ("eve@far.test",)


def test_mboxes_for_several_users_at_once(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start(toml=settings(tmp_path, f"{tmp_path}/mail/{{user}}"))

    def send() -> None:
        with server.client() as client:
            for _ in range(5):
                client.sendmail("a@far.test", ["alice@here.test", "bob@here.test"], BODY)

    def has_twenty(file: Path) -> bool:
        return file.exists() and file.read_bytes().count(b"\nDelivered-To:") == 20

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("alice", "bob"):
        file = tmp_path / "mail" / name
        until(partial(has_twenty, file))
        read = mailbox.mbox(file)
        assert len(read) == 20 and all(">From here on" in message.get_payload() for message in read)
    until(lambda: not list((tmp_path / "mail").glob("*.lock")))


def test_relaying_and_unknown_users_are_refused_at_rcpt(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start(toml=settings(tmp_path, f"{tmp_path}/mail/{{user}}/"))
    with server.client() as client:
        client.ehlo()
        client.mail("a@far.test")
        said = [
            client.rcpt(address)
            for address in (
                "x@far.test",
                "carol@here.test",
                "alice@HERE.test",
                "postmaster",
                "../etc@here.test",
            )
        ]
    assert (
        [code for code, _ in said] == [550, 550, 250, 250, 501]
        and said[0][1].startswith(b"5.7.1")
        and said[1][1].startswith(b"5.1.1")
    )


def test_one_mailbox_not_writable_holds_up_nobody(
    start: Callable[..., Server], tmp_path: Path, outmail: Run
) -> None:
    (tmp_path / "mail").mkdir()
    (tmp_path / "mail" / "bob").write_text("a file where a folder should be")
    server = start(toml=settings(tmp_path, f"{tmp_path}/mail/{{user}}/"))
    with server.client() as client:
        client.sendmail("a@far.test", ["alice@here.test", "bob@here.test"], BODY)
    until(
        lambda: (
            (tmp_path / "mail" / "alice" / "new").exists()
            and len(list((tmp_path / "mail" / "alice" / "new").iterdir())) == 1
        )
    )
    store = ("--store", str(tmp_path / "q.db"))
    until(lambda: b"bob@here.test via local: deferred" in outmail("queue", "list", *store).stdout)
    with smtplib.LMTP(str(tmp_path / "lmtp")) as client:
        client.ehlo()
        client.mail("a@far.test")
        client.rcpt("alice@here.test")
        client.rcpt("bob@here.test")
        client.data(BODY)
        assert client.getreply()[0] == 451, "the second answer is the second recipient's"
    assert len(list((tmp_path / "mail" / "alice" / "new").iterdir())) == 2
    (tmp_path / "mail" / "bob").unlink()
    outmail("queue", "retry", "ALL", *store)
    until(
        lambda: (
            (tmp_path / "mail" / "bob" / "new").exists()
            and len(list((tmp_path / "mail" / "bob" / "new").iterdir())) == 1
        )
    )
    assert len(list((tmp_path / "mail" / "alice" / "new").iterdir())) == 2


def test_loops_are_refused(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start(toml=settings(tmp_path, f"{tmp_path}/mail/{{user}}/"))
    with server.client() as client:
        for content in (b"Delivered-To: alice@here.test\r\n" + BODY, b"Received: x\r\n" * 60 + BODY):
            with pytest.raises(smtplib.SMTPDataError) as caught:
                client.sendmail("a@far.test", "alice@here.test", content)
            assert caught.value.smtp_code == 554 and b"5.4.6" in caught.value.smtp_error


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("line", [b"a:\r\n", b"Received:\r\n", b"Delivered-To: x\r\n"])
def test_a_header_without_end_is_refused_at_once(
    start: Callable[..., Server], tmp_path: Path, line: bytes, lmtp: bool
) -> None:
    """Nobody else is kept waiting for it: it is never walked."""
    server = start(toml=settings(tmp_path, f"{tmp_path}/mail/{{user}}/"))
    with smtplib.LMTP(str(tmp_path / "lmtp")) if lmtp else server.client() as client:
        client.ehlo()
        client.mail("a@far.test")
        client.rcpt("alice@here.test")
        client.docmd("DATA")
        before = cpu(server.process.pid)
        client.sock.sendall(line * (30_000_000 // len(line)) + b"\r\n.\r\n")  # type: ignore[union-attr]
        assert client.getreply() == (552, b"5.3.4 the header block has more than 1000000 bytes")
        assert cpu(server.process.pid) - before < 3, "seconds; walking it takes more than five"


def test_lmtp_writes_once_for_who_is_named_thrice_and_answers_each(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    start(toml=settings(tmp_path, f"{tmp_path}/mail/{{user}}/"))
    with smtplib.LMTP(str(tmp_path / "lmtp")) as client:
        client.ehlo()
        client.mail("a@far.test")
        for address in (
            "alice@here.test",
            "bob@here.test",
            "alice@here.test",
            "Alice@HERE.test",
            "postmaster@here.test",
        ):
            assert client.rcpt(address)[0] == 250
        said = [client.data(BODY), *(client.getreply() for _ in range(4))]
    assert [code for code, _ in said] == [250] * 5 and [b"/bob/" in text for _, text in said] == [
        False,
        True,
        False,
        False,
        False,
    ]
    assert [len(list((tmp_path / "mail" / name / "new").iterdir())) for name in ("alice", "bob")] == [1, 1]


def test_lmtp_gives_a_member_who_is_a_recipient_too_one_copy(
    start: Callable[..., Server], tmp_path: Path, sink: Sink
) -> None:
    start(toml=settings(tmp_path, f"{tmp_path}/mail/{{user}}/", sink.url))
    boxes = {name: tmp_path / "mail" / name / "new" for name in ("alice", "bob")}
    with smtplib.LMTP(str(tmp_path / "lmtp")) as client:
        client.ehlo()
        client.mail("a@far.test")
        for address, code in (("team", 250), ("alice", 250), ("nobody", 550), ("POSTMASTER", 250)):
            assert client.rcpt(f"{address}@here.test")[0] == code
        said = [client.data(BODY), *(client.getreply() for _ in range(2))]
    assert [code for code, _ in said] == [250] * 3
    # what is queued is delivered in one go: when all of it is there, so is what was too much
    until(
        lambda: len(sink.messages) == 1 and boxes["bob"].exists() and len(list(boxes["bob"].iterdir())) == 1
    )
    with Outbox(tmp_path / "q.db", deliver="never") as box:
        (status,) = box.find()
        until(lambda: box.status(status.id).settled)
    assert [r.address for r in status.recipients] == ["bob@here.test", "eve@far.test"]
    assert len(list(boxes["alice"].iterdir())) == 1


def test_bare_names_of_local_clients_are_users_here(start: Callable[..., Server], tmp_path: Path) -> None:
    """The first domain of the server, whatever the origin of mail that goes out."""
    server = start(
        toml=settings(tmp_path, f"{tmp_path}/mail/{{user}}/", extra='domains = ["here.test"]')
        + '[accept]\norigin = "elsewhere.test"\n'
    )
    with server.client() as client:
        client.ehlo("me")
        assert client.docmd("MAIL FROM:root")[0] == 250
        assert [client.docmd(f"RCPT TO:<{name}>")[0] for name in ("Alice", "nobody", "postmaster")] == [
            250,
            550,
            250,
        ]
        assert client.data(BODY)[0] == 250
    box = tmp_path / "mail" / "alice" / "new"
    until(lambda: box.exists() and len(list(box.iterdir())) == 1)
    (got,) = box.iterdir()
    assert got.read_bytes().startswith(b"Return-Path: <root@here.test>\nDelivered-To: alice@here.test\n")


def test_lmtp_holds_the_content_once_for_all_its_recipients(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    names = [f"u{i}" for i in range(30)]
    server = start(
        toml=settings(tmp_path, f"{tmp_path}/mail/{{user}}/").replace(
            '"alice", "bob"', '"alice", "bob", ' + ", ".join(f'"{name}"' for name in names)
        )
    )
    with smtplib.LMTP(str(tmp_path / "lmtp")) as client:
        client.ehlo()
        client.mail("a@far.test")
        for name in names:
            assert client.rcpt(f"{name}@here.test")[0] == 250
        assert client.data(BODY + (b"x" * 70 + b"\r\n") * 150_000)[0] == 250
        assert all(client.getreply()[0] == 250 for _ in names[1:])
    (peak,) = re.findall(r"VmHWM:\s*(\d+)", Path(f"/proc/{server.process.pid}/status").read_text())
    assert int(peak) < 220_000, "KB; thirty times 11 MB are more"


def cpu(pid: int) -> float:
    """Seconds that a process has used."""
    used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(used[11]) + int(used[12])) / os.sysconf("SC_CLK_TCK")


def test_catch_keeps_everything_and_delivers_nothing(
    start: Callable[..., Server], tmp_path: Path, outmail: Run
) -> None:
    store = ("--store", str(tmp_path / "catch.db"))
    meant = outmail("send", "real@x.test", "--from", "me@x.test", *store).stdout.decode().strip()
    server = start("--catch", "--listen", "127.0.0.1:0", *store)
    with server.client() as client:
        client.sendmail("anyone@x.test", ["whoever@y.test"], b"Subject: caught\n\nlone\nline feeds\n")
    assert f"kept in {store[1]}" in server.log.read_text()
    until(lambda: b"caught" in outmail("queue", "list", "ALL", *store).stdout)
    id = outmail("queue", "list", "subject:caught", "--ids", *store).stdout.decode().strip()
    assert b"lone\r\nline feeds" in outmail("show", id, "--raw", *store).stdout
    until(lambda: b'"delivered"' in outmail("show", id, "--json", *store).stdout)
    # Mail that is meant to go out has another route, which the catching engine does not know.
    assert b'"queued"' in outmail("show", meant, "--json", *store).stdout
    assert b'"delivered"' not in outmail("show", meant, "--json", *store).stdout
    assert outmail("queue", "purge", "ALL", *store).returncode == 0 and outmail(
        "queue", "list", "ALL", "--ids", *store
    ).stdout.decode().split() == [meant]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('mailboxes = "/x/{user}/"', "postmaster"),
        ("", "mailboxes is not set"),
        ('mailboxes = "/x"', "{user}"),
        ('mailboxes = "/x/{user}"\naliases = "/none"', "No such file"),
    ],
)
def test_what_cannot_work_does_not_start(outmail: Run, tmp_path: Path, change: str, words: str) -> None:
    (tmp_path / "outmail.toml").write_text(f'store = "q.db"\n[receive]\nusers = ["alice"]\n{change}')
    done = outmail("receive")
    assert done.returncode == 78 and words in done.stderr.decode() and done.stderr.count(b"\n") == 1, (
        done.stderr
    )


def test_the_receiving_server_offers_starttls(
    start: Callable[..., Server], tmp_path: Path, outmail: Run
) -> None:
    ca = trustme.CA()
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "tls.pem"))
    trusting = ssl.create_default_context()
    ca.configure_trust(trusting)
    toml = settings(tmp_path, f"{tmp_path}/{{user}}/Maildir/", extra=f'certificate = "{tmp_path}/tls.pem"')
    (tmp_path / "alice").mkdir()
    with start(toml=toml).client() as client:
        client.starttls(context=trusting)
        client.sendmail("a@far.test", ["alice@here.test"], BODY)
    until(lambda: len(list((tmp_path / "alice/Maildir/new").glob("*"))) == 1)
    (delivered,) = (tmp_path / "alice/Maildir/new").glob("*")
    assert b"with ESMTPS id" in delivered.read_bytes()
    (tmp_path / "bad.toml").write_text(toml.replace("tls.pem", "nowhere.pem"))
    refused = outmail("receive", "--config", str(tmp_path / "bad.toml"))
    assert refused.returncode == 78 and b"[receive] certificate" in refused.stderr


def test_an_mbox_write_that_fails_is_cut_off_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "box"
    to_mbox(str(path), "a@x.test", b"Subject: one\n\nx\n")
    before, inode, write = path.read_bytes(), path.stat().st_ino, os.write

    def full(fd: int, data: bytes) -> int:
        if os.fstat(fd).st_ino != inode:
            return write(fd, data)
        if len(data) > 40:
            return write(fd, data[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        to_mbox(str(path), "a@x.test", b"Subject: two\n\nx\n")
    monkeypatch.undo()
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["box"]


def test_a_locked_mailbox_is_451_by_lmtp_and_holds_up_nobody(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "mail").mkdir()
    (tmp_path / "mail" / "alice.lock").write_text("somebody")
    server = start(toml=settings(tmp_path, f"{tmp_path}/mail/{{user}}"))
    until(lambda: "listening: lmtp" in server.log.read_text())
    clients = [smtplib.LMTP(str(tmp_path / "lmtp")) for _ in range(6)]
    for client, name in zip(clients, ["alice"] * 5 + ["bob"]):
        client.ehlo()
        client.mail("a@far.test")
        client.rcpt(f"{name}@here.test")
        client.putcmd("data")
        client.getreply()
        client.send(BODY + b".\r\n")
    began = time.monotonic()
    assert clients[-1].getreply()[0] == 250 and time.monotonic() - began < 8, (
        "five times two seconds, one after the other"
    )
    answers = [client.getreply() for client in clients[:-1]]
    assert all(code == 451 and b"alice.lock" in text for code, text in answers)
    for client in clients:
        client.close()


def test_killed_while_delivering_loses_nothing(tmp_path: Path) -> None:
    toml = settings(tmp_path, f"{tmp_path}/mail/{{user}}/")
    accepted = 0
    for _ in range(3):
        server = Server(tmp_path, toml=toml)
        try:
            with server.client() as client:
                for _ in range(15):
                    client.sendmail("a@far.test", ["alice@here.test"], BODY)
                    accepted += 1
        finally:
            server.process.kill()
            server.process.wait(30)
    last = Server(tmp_path, toml=toml)
    box = Outbox(tmp_path / "q.db", config=from_toml("", "t", {}), deliver="never")
    until(lambda: not next(iter(box.find("-state:delivered")), None), 30)
    last.process.send_signal(signal.SIGTERM)
    assert last.process.wait(60) == 0
    files = list((tmp_path / "mail" / "alice" / "new").iterdir())
    uncertain = sum(r.uncertain for status in box.find() for r in status.recipients)
    assert accepted <= len(files) <= accepted + uncertain + 3
    box.close()
