"""A store that refuses loses no report: straight to the relay, else the sendmail program, else syslog."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import outmail
from outmail import Outbox
from outmail.reports import lastresort, liveness
from outmail.reports.post import poster
from outmail.store import StoreError
from outmail.system import circle
from outmail.testing import Sink
from tests.waiting import until

from .conftest import Mails, text

MakeBox = Callable[..., Outbox]
TOML = 'to = ["me@x.test"]\nrelay = "{}"'


@pytest.fixture
def syslog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = str(tmp_path / "log")
    monkeypatch.setattr(lastresort, "SYSLOG", ("/nowhere/log", path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(10)
        yield sock


def refuse(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the disk is full."""

    def run(verb: object, wait: float = 0.0) -> None:
        raise StoreError("full", "database or disk is full", 28)

    monkeypatch.setattr(box.store, "run", run)


def a_program(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_the_end_goes_straight_to_the_relay(
    box: Outbox, mails: Mails, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError), outmail.job("crawl", total=9, outbox=box, after_failures=3) as job:
        job.update(4)
        job.wait()
        refuse(box, monkeypatch)
        raise ValueError("no such feed")
    (mail,) = mails.wait(1)
    assert str(mail["subject"]).startswith("✗ crawl failed: ValueError: no such feed")
    assert "44 %: 4 of 9" in text(mail) and mail["message-id"] == box.message_id(f"report:{job.id}:failed")
    said = capsys.readouterr().err
    assert "disk is full; it went straight to the relay" in said and said.count("\n") == 1
    assert not list(liveness.living(box.spool)) and not os.path.exists(f"{box.spool}/run.{job.id}")


def test_a_refusal_is_told_at_the_start(
    box: Outbox, mails: Mails, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse(box, monkeypatch)
    with outmail.job("crawl", outbox=box) as job:
        job.wait()
        assert "reports of crawl cannot be stored: database or disk is full" in capsys.readouterr().err
    assert "FINISHED" in text(mails.wait(1)[0])


def test_a_relay_that_is_known_to_refuse_is_told_at_the_start(
    make_box: MakeBox, capsys: pytest.CaptureFixture[str]
) -> None:
    with Sink("MAIL: 451 4.7.1 come back later") as sink:
        box = make_box(relay=sink.url, toml='to = ["me@x.test"]')
        box.send("a@x.test", "s", "t")
        until(lambda: any(r.attempts for status in box.find() for r in status.recipients))
        with outmail.job("crawl", outbox=box, finish=False) as job:
            job.wait()
            said = capsys.readouterr().err
            assert "reports of crawl may have to wait: the relay has deferred mail since" in said
            assert "come back later" in said


def test_else_the_sendmail_program_takes_it_whole(
    make_box: MakeBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = a_program(tmp_path / "sendmail", f'printf "%s " "$@" > {tmp_path}/words; cat > {tmp_path}/mail')
    monkeypatch.setattr(lastresort, "PROGRAMS", (str(tmp_path / "none"), program))
    box = make_box(toml=TOML.format("smtp://127.0.0.1:1"), deliver="never")
    with outmail.job("crawl", outbox=box, tail=0) as job:
        job.wait()
        job.note("x" * 300_000)
        refuse(box, monkeypatch)
    assert (tmp_path / "words").read_text() == "-i -f me@outmail.test -- me@x.test "
    mail = (tmp_path / "mail").read_bytes()
    assert b"X-Outmail-State: finished\n" in mail and b"\r" not in mail and mail.endswith(b"--\n")
    said = capsys.readouterr().err
    assert "Connection refused" in said and "so it was given to the sendmail program" in said


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("exec python3 -m outmail sendmail", "is outmail itself"),
        ("cat > /dev/null; exit 75", "ended with status 75"),
        ("exit 1", "ended with status 1"),
        ("exec sleep 60", "did not end in time"),
    ],
)
def test_else_its_headline_goes_to_syslog(
    make_box: MakeBox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    syslog: socket.socket,
    body: str,
    why: str,
) -> None:
    monkeypatch.setattr(lastresort, "PROGRAMS", (a_program(tmp_path / "sendmail", body),))
    box = make_box(toml=TOML.format("smtp://127.0.0.1:1"), deliver="never", exit_wait=0.5)
    with pytest.raises(ValueError), outmail.job("crawl", outbox=box) as job:
        job.wait()
        refuse(box, monkeypatch)
        raise ValueError("password=geheim")
    line = syslog.recv(10_000).decode()
    assert re.fullmatch(
        rf"<19>outmail\[{os.getpid()}\]: FAILED: crawl ended by ValueError: password=\*+\.", line
    )
    said = capsys.readouterr().err
    assert why in said and "its headline went to syslog" in said and "geheim" not in said


def test_else_it_is_told_on_stderr(
    make_box: MakeBox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    box = make_box(toml=TOML.format("smtp://127.0.0.1:1"), deliver="never")
    with pytest.raises(SystemExit), outmail.job("crawl", outbox=box) as job:
        job.wait()
        refuse(box, monkeypatch)
        raise SystemExit(3)
    assert "so it is told only here: STOPPED: crawl was ended by exit status 3" in capsys.readouterr().err


def test_a_store_that_does_not_answer_is_passed_by_within_exit_wait(
    make_box: MakeBox, sink: Sink, mails: Mails, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what the store would have taken later is not told a second time."""
    box = make_box(toml=TOML.format(sink.url), deliver="never", exit_wait=1.0)
    with outmail.job("crawl", outbox=box) as job:
        job.wait()
        gate = threading.Event()
        thread = threading.Thread(target=lambda: box.store.run(_holding(gate)))
        thread.start()
        began = time.monotonic()
        job.finish()
    assert time.monotonic() - began < 20
    assert "did not answer within 1 s; it went straight to the relay" in capsys.readouterr().err
    gate.set()
    thread.join(10)
    assert poster().drain(10) and "FINISHED" in text(mails.wait(1)[0])
    assert not list(box.find()), "the store has none beside it"


def _holding(gate: threading.Event):  # type: ignore[no-untyped-def]
    """A transaction that holds the write lock until the gate opens."""
    gate.wait(30)
    return
    yield


def test_safety_holds_here_too(
    make_box: MakeBox, sink: Sink, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = TOML.format(sink.url) + '\n[safety]\nonly_to = ["*@nowhere.test"]'
    box = make_box(toml=toml, deliver="never")
    with outmail.job("crawl", outbox=box) as job:
        job.wait()
        refuse(box, monkeypatch)
    assert not sink.messages and "[safety] lets nobody have it" in capsys.readouterr().err


# -- watched commands ----------------------------------------------------------------------------------------


def watch(tmp_path: Path, script: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "outmail", "watch", *words, "--", "sh", "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
        env={**os.environ, "OUTMAIL_TO": "me@x.test", "OUTMAIL_FROM": "robot@x.test", **env},
    )


def test_watch_tells_a_failure_without_a_store(sink: Sink, mails: Mails, tmp_path: Path) -> None:
    done = watch(
        tmp_path,
        "echo odd; exit 3",
        "--name",
        "backup",
        OUTMAIL_STORE="/proc/no/q.db",
        OUTMAIL_RELAY=sink.url,
    )
    assert done.returncode == 3 and "it went straight to the relay" in done.stderr
    (mail,) = mails.wait(1)
    assert str(mail["subject"]).startswith("✗ backup failed: exit status 3") and "odd" in text(mail)
    done = watch(tmp_path, "true", OUTMAIL_STORE="/proc/no/q.db", OUTMAIL_RELAY=sink.url)
    assert done.returncode == 0 and len(sink.messages) == 1


def test_a_configuration_that_cannot_be_read_sends_nothing(tmp_path: Path, sink: Sink) -> None:
    (tmp_path / "outmail.toml").write_text("nonsense")
    done = watch(
        tmp_path, "exit 4", "--name", "x", OUTMAIL_RELAY=sink.url, OUTMAIL_STORE=str(tmp_path / "q.db")
    )
    assert done.returncode == 4 and "the report of x was not stored" in done.stderr and not sink.messages


def test_outmail_as_the_sendmail_program_of_outmail_refuses(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "outmail", "send", "me@x.test"],
        input=b"x",
        capture_output=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
        env={**os.environ, circle.MARK: "1", "OUTMAIL_STORE": str(tmp_path / "q.db")},
    )
    assert done.returncode == 75 and b"circle" in done.stderr and not (tmp_path / "q.db").exists()
