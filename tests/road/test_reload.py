"""SIGHUP: a service goes on with another configuration, while mail and connections are in flight."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from outmail.config import Config, from_toml, load
from outmail.intake.deposit import Deposit
from outmail.outbox.outbox import Outbox
from outmail.service.serving import EXCHANGED, FIXED, changes, fixed
from outmail.system import dropbox
from outmail.testing import Sink
from tests.road.test_listen import BODY, Service
from tests.waiting import listens, until

Start = Callable[[str], Service]

LISTEN = '[listen]\nsmtp = ["127.0.0.1:0"]\n'
#: Nobody listens there: port 1 of the loopback address.
DEAD = 'relay = "smtp://127.0.0.1:1"\n'


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[Service] = []

    def make(toml: str) -> Service:
        running.append(Service(tmp_path, toml))
        return running[-1]

    yield make
    for service in running:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait(30)


def relay(sink: Sink) -> str:
    return f'relay = "{sink.url}"\n'


def write(service: Service, toml: str) -> None:
    path = service.folder / "service.toml"
    path.with_suffix(".new").write_text(
        f'store = "{service.folder}/q.db"\nhostname = "mx.outmail.test"\n{toml}'
    )
    os.replace(path.with_suffix(".new"), path)


def reload(service: Service, toml: str, *, says: str = "was read again") -> None:
    """Another configuration and SIGHUP; returns when the service has said what became of it."""
    write(service, toml)
    before = service.log.read_text().count(says)
    service.process.send_signal(signal.SIGHUP)
    until(lambda: service.log.read_text().count(says) > before or service.process.poll() is not None)
    assert service.process.poll() is None, service.log.read_text()


def hand_in(service: Service, subject: str, to: str = "b@x.test") -> None:
    with smtplib.SMTP("127.0.0.1", service.ports["smtp"], timeout=30) as client:
        assert client.sendmail("a@x.test", [to], f"Subject: {subject}\r\n\r\n".encode()) == {}


def subjects(sink: Sink) -> list[str]:
    found = (re.search(rb"Subject: (\S+)", one.content) for one in sink.messages)
    return sorted(match[1].decode() for match in found if match)


def states(folder: Path) -> list[str]:
    with Outbox(folder / "q.db", config=from_toml("", "test", {}), deliver="never") as box:
        return sorted(status.status for status in box.find())


def test_another_relay_gets_what_waits_and_an_open_connection_goes_on(start: Start, sink: Sink) -> None:
    service = start(DEAD + LISTEN)
    with smtplib.SMTP("127.0.0.1", service.ports["smtp"], timeout=30) as standing:
        standing.sendmail("a@x.test", ["b@x.test"], b"Subject: before\r\n\r\n")
        until(lambda: "is paused" in service.log.read_text() or "deferred" in service.log.read_text())
        reload(service, relay(sink) + LISTEN)
        standing.sendmail("a@x.test", ["b@x.test"], b"Subject: after\r\n\r\n")
        with Outbox(service.folder / "q.db", config=from_toml("", "test", {}), deliver="never") as box:
            box.retry("state:queued")
        sink.wait_for(2, 30)
    assert subjects(sink) == ["after", "before"]
    assert "changed are relays and routes" in service.log.read_text() and service.stop() == 0


@pytest.mark.parametrize(
    "wrong, words",
    [
        ("relay = nonsense\n", "line 3"),
        ('rely = "null:"\n', "did you mean 'relay'"),
        ('[relay]\nurl = "smtp://me@127.0.0.1:1"\npassword_file = "/nonexistent"\n', "password_file"),
        ('[listen]\nsmtp = ["127.0.0.1:0"]\ncertificate = "/nonexistent"\n', "certificate"),
        ('[listen]\nlmtp = ["127.0.0.1:0", "unix:/nonexistent/path"]\n', "cannot be listened on"),
        ('[accept]\ndrop = "/nonexistent"\n', "drop"),
        ('loop = "uvloop"\n', "loop was asyncio and would be uvloop: that needs a restart"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_and_the_old_one_stays(
    start: Start, sink: Sink, wrong: str, words: str
) -> None:
    service = start(relay(sink) + LISTEN)
    port = service.ports["smtp"]
    reload(service, wrong, says="stays in force")
    [line] = [line for line in service.log.read_text().splitlines() if "stays in force" in line]
    assert "ERROR" in line and "the new configuration is refused: " in line and words in line
    assert service.ports == {"smtp": port}
    hand_in(service, "still")
    sink.wait_for(1, 30)
    reload(service, relay(sink) + LISTEN)
    assert "it says the same as before" in service.log.read_text() and service.stop() == 0


def test_another_store_needs_a_restart(start: Start, sink: Sink, tmp_path: Path) -> None:
    service = start(relay(sink) + LISTEN)
    (tmp_path / "service.toml").write_text(f'store = "{tmp_path}/other.db"\n{DEAD}{LISTEN}')
    service.process.send_signal(signal.SIGHUP)
    until(lambda: "stays in force" in service.log.read_text())
    assert f"store was {tmp_path}/q.db and would be {tmp_path}/other.db: that needs a restart" in (
        service.log.read_text()
    )
    hand_in(service, "one")
    sink.wait_for(1, 30)
    assert not (tmp_path / "other.db").exists() and service.stop() == 0


def test_addresses_come_and_go_and_a_connection_in_data_is_answered(
    start: Start, sink: Sink, tmp_path: Path
) -> None:
    service = start(relay(sink) + LISTEN)
    old = service.ports["smtp"]
    with smtplib.SMTP("127.0.0.1", old, timeout=30) as writing:
        writing.ehlo()
        assert writing.mail("a@x.test")[0] == writing.rcpt("b@x.test")[0] == 250
        assert writing.docmd("DATA")[0] == 354
        writing.send(b"Subject: half\r\n\r\nand ")
        reload(service, f'{relay(sink)}[listen]\nlmtp = ["127.0.0.1:0", "unix:{tmp_path}/new"]\n')
        assert not listens(old) and f"no longer listening: smtp 127.0.0.1:{old}" in service.log.read_text()
        writing.send(b"the rest\r\n.\r\n")
        assert writing.getreply()[0] == 250
    sink.wait_for(1, 30)
    with smtplib.LMTP("127.0.0.1", service.ports["lmtp"], timeout=30) as client:
        client.sendmail("a@x.test", ["b@x.test"], BODY)
    with smtplib.LMTP(f"{tmp_path}/new", timeout=30) as client:
        client.sendmail("a@x.test", ["b@x.test"], BODY)
    sink.wait_for(3, 30)
    reload(service, f'{relay(sink)}[listen]\nsmtp = ["unix:{tmp_path}/new"]\n')
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(30)
        plain.connect(f"{tmp_path}/new")
        greeting = plain.recv(1000)
    assert b"ESMTP" in greeting and service.stop() == 0


def test_a_dialogue_that_has_begun_ends_as_it_began(start: Start, tmp_path: Path) -> None:
    with Sink("DOT: delay 1.0") as slow, Sink() as other:
        service = start(relay(slow) + LISTEN)
        hand_in(service, "one")
        until(lambda: "DATA" in slow.commands)  # what is only leased would be taken back
        reload(service, relay(other) + LISTEN)
        hand_in(service, "two")
        other.wait_for(1, 30)
        slow.wait_for(1, 30)
        until(lambda: states(tmp_path) == ["delivered", "delivered"])
        assert subjects(slow) == ["one"] and subjects(other) == ["two"] and service.stop() == 0


def test_what_may_not_be_sent_any_more_is_not_although_it_was_in_hand(start: Start, tmp_path: Path) -> None:
    """A rate of one in ten seconds: the second message is leased and waits for its turn."""
    with Sink() as sink:
        paced = f'[relay]\nurl = "{sink.url}"\nrate = 0.1\n'
        service = start(paced + LISTEN)
        for n in range(3):
            hand_in(service, str(n))
        sink.wait_for(1, 30)
        until(lambda: "sending" in states(tmp_path))
        reload(service, paced + LISTEN + '[safety]\nonly_to = ["*@nobody.test"]\n')
        until(lambda: states(tmp_path) == ["delivered", "failed", "failed"])
        assert len(sink.messages) == 1 and service.stop() == 0


def test_many_signals_and_those_that_come_during_the_start(sink: Sink, tmp_path: Path) -> None:
    config = tmp_path / "service.toml"
    config.write_text(f'store = "{tmp_path}/q.db"\n{relay(sink)}{LISTEN}')
    log = tmp_path / "service.log"
    with open(log, "ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "outmail", "run", "--config", str(config)], stderr=out
        )
    try:
        until(lambda: _handles(process.pid, signal.SIGHUP), pause=0.001)
        for _ in range(50):
            process.send_signal(signal.SIGHUP)
        until(lambda: "was read again" in log.read_text() or process.poll() is not None)
        for _ in range(50):
            process.send_signal(signal.SIGHUP)
        with smtplib.SMTP("127.0.0.1", _port(log), timeout=30) as client:
            client.sendmail("a@x.test", ["b@x.test"], BODY)
        sink.wait_for(1, 30)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait(30)


def _port(log: Path) -> int:
    """Where it listens; 0 while it does not."""
    found = re.search(r"listening: smtp 127\.0\.0\.1:(\d+)", log.read_text())
    return int(found[1]) if found else 0


def _handles(pid: int, number: int) -> bool:
    """True when the process has a handler for the signal (proc(5), SigCgt)."""
    found = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    return bool(found and int(found[1], 16) >> (number - 1) & 1)


def test_a_drop_folder_and_an_application_database_come_and_go(
    start: Start, sink: Sink, tmp_path: Path
) -> None:
    folder = tmp_path / "drop"
    folder.mkdir()
    folder.chmod(0o3777)
    dropbox.put(str(folder), Deposit(b"Subject: dropped\n\n", ["x@y.test"]).packed())
    dropped = f'[accept]\ndrop = "{folder}"\n'
    service = start(relay(sink) + LISTEN)
    reload(service, relay(sink) + LISTEN + dropped)
    sink.wait_for(1, 30)
    reload(service, relay(sink) + LISTEN + dropped + f'[[outbox]]\nurl = "{tmp_path}/app.db"\n')
    import sqlite3

    ddl = Path(__file__).parents[2] / "src/outmail/store/sql/outbox-sqlite.sql"
    application = sqlite3.connect(tmp_path / "app.db")
    application.executescript(ddl.read_text())
    application.execute(
        "INSERT INTO outmail_outbox (id, added_at, content, envelope) VALUES (?, 1, ?, ?)",
        ("0" * 26, b"Subject: rowed\r\n\r\n", '{"recipients": ["x@y.test"]}'),
    )
    application.commit()
    application.close()
    sink.wait_for(2, 30)
    reload(service, relay(sink) + LISTEN)
    dropbox.put(str(folder), Deposit(b"Subject: left\n\n", ["x@y.test"]).packed())
    hand_in(service, "handed-in")
    sink.wait_for(3, 30)
    assert subjects(sink) == ["dropped", "handed-in", "rowed"] and service.stop() == 0
    assert len(os.listdir(folder)) == 1


def test_the_service_manager_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hearing:
        hearing.bind(str(tmp_path / "notify"))
        hearing.settimeout(30)
        config = tmp_path / "outmail.toml"
        good = f'store = "{tmp_path}/q.db"\nrelay = "null:"\n'
        config.write_text(good)
        with subprocess.Popen(
            [sys.executable, "-m", "outmail", "run", "--config", str(config)],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
            stderr=subprocess.DEVNULL,
        ) as service:
            assert hearing.recv(2000) == b"READY=1\nSTATUS=delivering"
            service.send_signal(signal.SIGHUP)
            assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", hearing.recv(2000))
            assert hearing.recv(2000) == b"READY=1\nSTATUS=delivering"
            config.write_text("nonsense")
            service.send_signal(signal.SIGHUP)
            assert hearing.recv(2000).startswith(b"RELOADING=1\n")
            said = hearing.recv(2000)
            assert said.startswith(b"READY=1\nSTATUS=delivering; the new configuration is refused: ")
            assert said.count(b"\n") == 1
            service.send_signal(signal.SIGTERM)
            assert hearing.recv(2000) == b"STOPPING=1" and service.wait(30) == 0


def test_the_receiving_server_reads_its_users_again(tmp_path: Path) -> None:
    (tmp_path / "mail").mkdir()
    config, log = tmp_path / "outmail.toml", tmp_path / "log"
    rest = (
        f'store = "{tmp_path}/q.db"\n[receive]\nsmtp = ["127.0.0.1:0"]\n'
        f'mailboxes = "{tmp_path}/mail/{{user}}/"\ndomains = ["x.test"]\n'
        f'aliases = "{tmp_path}/aliases"\nusers = '
    )
    (tmp_path / "aliases").write_text("postmaster: ann\n")
    config.write_text(f'{rest}["ann"]\n')
    with open(log, "ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "outmail", "receive", "--config", str(config)], stderr=out
        )
    try:
        port = until(lambda: _port(log))
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.ehlo()
            client.mail("a@y.test")
            assert client.rcpt("bob@x.test")[0] == 550
            config.write_text(f'{rest}["ann", "bob"]\n')
            process.send_signal(signal.SIGHUP)
            until(lambda: "changed are [receive]" in log.read_text())
            assert client.rcpt("bob@x.test")[0] == 550  # it has begun under the old rules
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.ehlo()
            client.mail("a@y.test")
            assert client.rcpt("bob@x.test")[0] == 250
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait(30)


def test_it_is_decided_for_each_setting_whether_a_running_service_takes_it() -> None:
    assert {one.name for one in fields(Config)} == {*FIXED, *EXCHANGED}
    assert not set(FIXED) & set(EXCHANGED)


def test_what_has_changed_is_said_without_passwords() -> None:
    before = from_toml('store = "postgresql://me:geheim@h/a"\n', "f", {})
    after = from_toml('store = "postgresql://me:geheim@h/b"\nto = "a@x.test"\n[limits]\nqueue = 5\n', "f", {})
    assert "geheim" not in fixed(before, after) and fixed(before, after).startswith("store was postgresql://")
    assert changes(before, after) == ["to", "[limits]"] and fixed(after, after) == ""


def test_a_file_that_is_gone_for_a_moment_does_not_mean_the_defaults(tmp_path: Path) -> None:
    config = tmp_path / "config" / "outmail" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'store = "{tmp_path}/q.db"\n[safety]\nonly_to = ["*@x.test"]\n')
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "OUTMAIL_STORE": str(tmp_path / "q.db")}
    before = load(env=env)
    config.unlink()
    after = load(env=env)
    if after.source != "defaults":
        pytest.skip("this machine has a configuration of its own")
    assert fixed(before, after) == (
        f"the configuration's file was {config} and would be defaults: that needs a restart"
    )


def test_reloads_leave_neither_threads_nor_descriptors_behind(
    start: Start, sink: Sink, tmp_path: Path
) -> None:
    for name in ("drop-0", "drop-1"):
        (tmp_path / name).mkdir(mode=0o3777)

    def toml(number: int) -> str:
        return (
            f'[relay]\nurl = "{sink.url}"\nconcurrency = {number + 1}\n'
            f'[listen]\nsmtp = ["127.0.0.1:0"]\nlmtp = ["unix:{tmp_path}/lmtp-{number % 2}"]\n'
            f'[accept]\ndrop = "{tmp_path}/drop-{number % 2}"\n'
        )

    service = start(toml(0))
    hand_in(service, "first")
    sink.wait_for(1, 30)
    reload(service, toml(1))
    before = _threads_and_files(service.process.pid)
    for number in range(2, 22):
        reload(service, toml(number))
    hand_in(service, "last")
    sink.wait_for(2, 30)
    # replaced listeners end with their last connection, sessions with retired next hops when they are idle
    until(lambda: sum(_threads_and_files(service.process.pid)) <= sum(before) + 3)
    assert service.stop() == 0


def _threads_and_files(pid: int) -> tuple[int, int]:
    return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))


def test_connections_of_before_count_among_those_of_afterwards(start: Start, sink: Sink) -> None:
    service = start(relay(sink) + LISTEN)
    with smtplib.SMTP("127.0.0.1", service.ports["smtp"], timeout=30) as standing:
        reload(service, relay(sink) + LISTEN + "connections = 1\n")
        with pytest.raises(smtplib.SMTPConnectError, match="421"):
            smtplib.SMTP("127.0.0.1", service.ports["smtp"], timeout=30)
        assert standing.noop()[0] == 250

    def is_open() -> bool:
        try:
            smtplib.SMTP("127.0.0.1", service.ports["smtp"], timeout=30).close()
        except smtplib.SMTPConnectError:
            return False
        return True

    until(is_open)
    assert service.stop() == 0
