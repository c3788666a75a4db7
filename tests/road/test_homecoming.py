"""Copies that are fetched: from a Maildir, an mbox, and an IMAP server that may be away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outmail.errors import ConfigError
from outmail.outbox.outbox import Outbox
from outmail.returns import imap
from outmail.returns.arrivals import Arrivals
from outmail.returns.watching import Maildir, Mbox, Watcher, entries
from outmail.service.prepared import watchers
from outmail.testing import Sink
from outmail.wiring import arrivals_of
from tests.imapserver import ImapServer
from tests.waiting import until

LOOP = '[loopback]\naddress = "loop@example.org"\n'
MakeBox = Callable[..., Outbox]


@pytest.fixture
def box(sink: Sink, make_box: MakeBox, each_store: str) -> Outbox:
    return make_box(sink.url, LOOP, each_store)


@pytest.fixture
def arrivals(box: Outbox) -> Arrivals:
    found: Arrivals = arrivals_of(box.store, box.config)
    return found


def copy(box: Outbox, sink: Sink) -> bytes:
    """A message is delivered; its copy as a mailbox has it."""
    before = len(sink.messages)
    box.wait(box.send("a@x.test", "s", "t").id, 10)
    message = sink.wait_for(before + 1)[before]
    return f"Delivered-To: {message.recipients[-1]}\r\n".encode() + message.content


def counts(box: Outbox) -> dict[str, int]:
    found: dict[str, int] = box.queue.loopback_stats(10**9)["counts"]
    return found


def test_a_maildir(box: Outbox, sink: Sink, arrivals: Arrivals, tmp_path: Path) -> None:
    for name in ("new", "cur", "tmp"):
        (tmp_path / "M" / name).mkdir(parents=True)
    watch = Maildir(str(tmp_path / "M"), arrivals)
    new = tmp_path / "M" / "new"
    (new / "1.a").write_bytes(copy(box, sink))
    (new / "2.b").write_bytes(b"Subject: else\n\n")
    os.mkfifo(new / "3.c")
    (new / "4.d").symlink_to("/etc/passwd")
    (new / ".hidden").write_bytes(copy(box, sink))
    assert watch.look() == 2 and counts(box) == {"home": 1, "foreign": 1}
    assert sorted(os.listdir(new.parent / "cur")) == ["1.a:2,S", "2.b:2,S"] and watch.look() == 0


def test_an_mbox_is_read_on_where_it_was_left(
    box: Outbox, sink: Sink, arrivals: Arrivals, tmp_path: Path
) -> None:
    path = tmp_path / "loop"

    def append(*mails: bytes) -> None:
        with open(path, "ab") as file:
            for mail in mails:
                file.write(b"From x Mon Nov  2 10:00:00 2026\n" + mail.replace(b"\r\n", b"\n") + b"\n")

    def looks() -> int:
        return sum(Mbox.look(watch) for _ in range(2))

    watch = Mbox(str(path), arrivals, box.store)
    append(copy(box, sink), copy(box, sink))
    assert watch.look() == 1  # the last one may be half
    assert watch.look() == 1 and counts(box) == {"home": 2}
    append(b"Subject: else\n\n>From here on\n")
    assert looks() == 1 and counts(box) == {"home": 2, "foreign": 1}
    watch = Mbox(str(path), arrivals, box.store)
    assert looks() == 0
    path.write_bytes(b"")  # somebody has emptied it
    append(copy(box, sink))
    assert looks() == 1 and counts(box)["home"] == 3
    path.write_bytes(path.read_bytes() * 2)
    assert looks() == 1 and counts(box)["duplicate"] == 1


def test_entries_of_an_mbox() -> None:
    data = b"From a\nA: b\n\nx\n\nFrom b\nFrom c\n\n\n"
    assert entries(data, last=False) == ([data[:16]], 16)
    assert entries(data, last=True) == ([data[:16], data[16:]], len(data))
    assert entries(b"", last=True) == ([], 0) and entries(b"garbage", last=False) == ([], 0)


@pytest.fixture
def server() -> Iterator[ImapServer]:
    made = ImapServer()
    yield made
    made.close()


def mailbox(server: ImapServer, arrivals: Arrivals, password: str = "geheim") -> imap.Mailbox:
    return imap.Mailbox(
        imap.ImapUrl("127.0.0.1", server.port, "loop", tls=False, password=password), arrivals
    )


def test_imap_takes_what_is_unseen_by_its_header(
    box: Outbox, sink: Sink, arrivals: Arrivals, server: ImapServer
) -> None:
    server.add(copy(box, sink))
    server.add(b"Subject: else\r\n\r\n" + b"x" * 100_000)
    watch = mailbox(server, arrivals)
    assert watch.look() == 2 and watch.look() == 0 and server.seen == {1, 2}
    assert counts(box) == {"home": 1, "foreign": 1}
    assert all("PEEK[HEADER]" in line for line in server.fetched)
    watch.close()


def test_imap_waits_by_idle(box: Outbox, sink: Sink, arrivals: Arrivals, server: ImapServer) -> None:
    watcher = Watcher(mailbox(server, arrivals), "imap")
    watcher.start()
    try:
        until(server.idling.is_set)
        server.add(copy(box, sink))
        until(lambda: counts(box) == {"home": 1})
    finally:
        watcher.stop()
    assert server.logins == 1


def test_imap_without_idle(arrivals: Arrivals) -> None:
    server = ImapServer(idle=False)
    watch = mailbox(server, arrivals)
    assert watch.look() == 0 and watch.wait(5) is False
    watch.close()
    server.close()


def test_a_server_that_is_away_or_out_of_order_is_an_error_and_the_next_look_goes_on(
    box: Outbox, sink: Sink, arrivals: Arrivals, server: ImapServer
) -> None:
    server.broken = True
    watch = mailbox(server, arrivals)
    with pytest.raises(OSError):
        watch.look()
    server.broken = False
    server.add(copy(box, sink))
    assert watch.look() == 1 and counts(box) == {"home": 1}
    watch.close()
    with pytest.raises(OSError, match="who are you"):
        mailbox(server, arrivals, "wrong").look()
    server.close()
    with pytest.raises(OSError):
        mailbox(server, arrivals).look()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("pop://x@h", "no mailbox"),
        ("imaps://h/INBOX", "no mailbox"),
        ("imaps://u:p@h", "does not belong"),
        ('imaps://u@h/a"b', "quotation"),
    ],
)
def test_urls_that_are_none(url: str, words: str, make_box: MakeBox) -> None:
    with pytest.raises(ValueError, match=words):
        imap.parse(url)
    with pytest.raises(ConfigError, match=words):
        box = make_box(toml=f"{LOOP}imap = '{url}'\n", deliver="never")
        watchers(box, box.config, None)


def test_a_url() -> None:
    assert imap.parse("imaps://me%40x.test@h/Loop%20back") == imap.ImapUrl("h", 993, "me@x.test", "Loop back")
    assert imap.parse("imap://u@h:1143").port == 1143 and not imap.parse("imap://u@h").tls


def test_the_service_looks_at_all_of_them_by_configuration_alone(
    sink: Sink, server: ImapServer, tmp_path: Path
) -> None:
    for name in ("new", "cur", "tmp"):
        (tmp_path / "M" / name).mkdir(parents=True)
    (tmp_path / "password").write_text("geheim\n")
    (tmp_path / "password").chmod(0o600)
    (tmp_path / "c.toml").write_text(
        f'from = "me@x.test"\nstore = "{tmp_path}/q.db"\nrelay = "{sink.url}"\n{LOOP}'
        f'imap = "imap://loop@127.0.0.1:{server.port}"\npassword_file = "password"\n'
        'maildir = "M"\nmbox = "none"\n'
    )
    with open(tmp_path / "log", "wb") as log:
        service = subprocess.Popen(
            [sys.executable, "-m", "outmail", "run", "--config", str(tmp_path / "c.toml")], stderr=log
        )
    try:
        with Outbox(config=str(tmp_path / "c.toml"), deliver="never") as box:
            box.send_many([{"to": f"{n}@x.test", "subject": "s", "text": "t"} for n in range(2)])
            first, second = sink.wait_for(2, 30)
            until(server.idling.is_set)
            for message, put in ((first, server.add), (second, (tmp_path / "M" / "new" / "1").write_bytes)):
                put(f"Delivered-To: {message.recipients[-1]}\r\n".encode() + message.content)
            until(lambda: counts(box) == {"home": 2}, 20)
    finally:
        service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0, (tmp_path / "log").read_text()
    assert "none" in (tmp_path / "log").read_text() and "Traceback" not in (tmp_path / "log").read_text()
