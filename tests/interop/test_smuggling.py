"""No message can be smuggled through us into another server: whatever looks like an end of data, one message
goes in and one comes out.

What is tried are the sequences of the SMTP smuggling attacks of December 2023 and their neighbours, behind
each other with a whole envelope in between. aiosmtpd always; Postfix, Exim and OpenSMTPD where Debian's
packages are installed and we are root.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shutil
import smtplib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from outmail.accept.aio import AsyncAcceptance
from outmail.clock import Clock
from outmail.intake import smtp as intake
from outmail.outbox.outbox import Outbox
from outmail.wiring import build_engine
from tests import programs
from tests.interop.test_servers import POSTFIX, Keep, certificate, postfix  # noqa: F401  (fixtures)
from tests.pgserver import free_port
from tests.waiting import listens, stays, until, until_in_loop

MakeBox = Callable[..., Outbox]
ENDINGS = (
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\r.\n", b"\n.\r", b"\n\r\n.\n",
    b"\r\r\n.\r\r\n", b"\n\r.\r\n", b"\n..\r\n", b"\r\n..\n", b"\r\n.\r\r\n",
)  # fmt: skip
ENVELOPE = (
    b"MAIL FROM:<evil@example.test>\r\nRCPT TO:<a@example.test>\r\nDATA\r\nSubject: "
    b"smuggled\r\n\r\nyou have won\r\n"
)
EXIM = programs.found("exim4")
OPENSMTPD = programs.found("smtpd") if programs.found("smtpctl") else None


def content(number: int, ending: bytes) -> bytes:
    return (
        b"From: me@example.test\r\nSubject: number %d\r\n\r\nbefore" % number
        + ending
        + ENVELOPE
        + b"after"
        + ending
        + ENVELOPE
        + b"end\r\n"
    )


def through_us(make_box: MakeBox, port: int, messages: list[bytes], *, normalise: bool | None) -> list[str]:
    """Hand each in by SMTP from this machine, wait until all that was taken is delivered; the answers to the
    contents.
    """
    box = make_box(toml=f'[relay]\nurl = "smtp://127.0.0.1:{port}"\n', deliver="never")
    engine = build_engine(box.store, box.config, box.routes, Clock())
    said: list[str] = []

    def client(at: int) -> None:
        for message in messages:
            with smtplib.SMTP("127.0.0.1", at, timeout=20, local_hostname="me.test") as line:
                line.ehlo()
                for command in ("MAIL FROM:<me@example.test>", "RCPT TO:<a@example.test>", "DATA"):
                    line.docmd(command)
                line.send(message + b".\r\n")
                said.append(f"{line.getreply()[0]}")

    async def whole() -> None:
        running = asyncio.ensure_future(engine.run())
        await engine.ready()
        listener = intake.Listener(
            AsyncAcceptance(box.door, engine.commits, engine.handover),
            intake.ListenerSettings(normalise=normalise),
        )
        try:
            await asyncio.to_thread(client, int((await listener.listen("127.0.0.1:0")).rpartition(":")[2]))
            await until_in_loop(lambda: all(status.settled for status in box.find()))
        finally:
            await listener.close()
            engine.stop()
            await running

    asyncio.run(whole())
    assert {status.status for status in box.find()} <= {"delivered"}
    return said


def arrived(count: int, look: Callable[[], list[bytes]]) -> list[bytes]:
    """What is there once it is as much as expected, and a moment later: more would be a smuggled one."""
    until(lambda: len(look()) >= count)
    stays(lambda: len(look()) == count, 0.5)
    return look()


@contextmanager
def aiosmtpd(folder: Path) -> Iterator[tuple[int, Callable[[], list[bytes]]]]:
    keep = Keep()
    controller = Controller(keep, hostname="127.0.0.1", port=free_port())
    controller.start()
    try:
        yield controller.port, lambda: [got for _, got in keep.got]
    finally:
        controller.stop()


@contextmanager
def exim(folder: Path) -> Iterator[tuple[int, Callable[[], list[bytes]]]]:
    assert EXIM
    port, user = free_port(), pwd.getpwnam("Debian-exim")
    place = Path(f"/tmp/outmail-exim-{os.getpid()}")
    for name in ("spool", "mail"):
        (place / name).mkdir(parents=True, exist_ok=True)
        os.chown(place / name, user.pw_uid, user.pw_gid)
    (place / "conf").write_text(f"""
spool_directory = {place}/spool
log_file_path = {place}/spool/log-%s
primary_hostname = exim.test
acl_smtp_rcpt = accept
acl_smtp_data = accept
host_lookup =
rfc1413_hosts =
begin routers
all:
  driver = accept
  transport = box
begin transports
box:
  driver = appendfile
  directory = {place}/mail
  maildir_format
  user = Debian-exim
  delivery_date_add = false
""")
    process = subprocess.Popen(
        [EXIM, "-bdf", "-q30m", "-oX", f"127.0.0.1.{port}", "-oP", f"{place}/pid", "-C", f"{place}/conf"]
    )
    try:
        _until_open(port, process)
        yield port, lambda: [path.read_bytes() for path in (place / "mail").glob("new/*")]
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def opensmtpd(folder: Path) -> Iterator[tuple[int, Callable[[], list[bytes]]]]:
    assert OPENSMTPD
    port, place = free_port(), Path(f"/tmp/outmail-opensmtpd-{os.getpid()}")
    (place / "mail").mkdir(parents=True)
    nobody = pwd.getpwnam("nobody")
    os.chown(place / "mail", nobody.pw_uid, nobody.pw_gid)
    (place / "conf").write_text(f"""
listen on 127.0.0.1 port {port}
table people {{ "@" = nobody }}
action box maildir "{place}/mail" virtual <people>
match from any for any action box
""")
    process = subprocess.Popen(
        [OPENSMTPD, "-d", "-f", f"{place}/conf"], stderr=open(folder / "smtpd.log", "wb")
    )
    try:
        _until_open(port, process)
        yield port, lambda: [path.read_bytes() for path in (place / "mail").glob("new/*")]
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(place, ignore_errors=True)


def _until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    until(lambda: process.poll() is not None or listens(port))
    assert process.poll() is None, "the server has ended"


def check(make_box: MakeBox, port: int, look: Callable[[], list[bytes]]) -> None:
    messages = [content(number, ending) for number, ending in enumerate(ENDINGS)]
    refused = [
        b"\n" in ending.replace(b"\r\n", b"") or b"\r" in ending.replace(b"\r\n", b"") for ending in ENDINGS
    ]
    said = through_us(make_box, port, messages, normalise=False)
    assert said == ["554" if bare else "250" for bare in refused]
    whole = refused.count(False)
    assert through_us(make_box, port, messages, normalise=None) == ["250"] * len(ENDINGS)
    files = arrived(len(ENDINGS) + whole, look)
    assert len(files) == len(ENDINGS) + whole
    heads = b"".join(file.partition(b"before")[0] for file in files)
    numbers = [int(number) for number in re.findall(rb"(?m)^Subject: number (\d+)", heads)]
    assert len(numbers) == len(files) and set(numbers) == set(range(len(ENDINGS)))
    for file in files:
        assert file.count(b"MAIL FROM:<evil@example.test>") == 2 and file.rstrip().endswith(b"end")


def test_aiosmtpd(make_box: MakeBox, tmp_path: Path) -> None:
    with aiosmtpd(tmp_path) as (port, look):
        check(make_box, port, look)


@programs.needs("postfix", "postfix")
@programs.as_root("Postfix is started as root only")
def test_postfix(make_box: MakeBox, postfix: Any) -> None:
    port, maildir = postfix
    check(make_box, port, lambda: [path.read_bytes() for path in maildir.glob("*")])


@pytest.mark.skipif(EXIM is None, reason="Exim is not installed; on Debian it cannot be beside Postfix")
@programs.as_root("Exim is started as root only")
def test_exim(make_box: MakeBox, tmp_path: Path) -> None:
    with exim(tmp_path) as (port, look):
        check(make_box, port, look)


@pytest.mark.skipif(
    OPENSMTPD is None, reason="OpenSMTPD is not installed; on Debian it cannot be beside Postfix"
)
@programs.as_root("OpenSMTPD is started as root only")
def test_opensmtpd(make_box: MakeBox, tmp_path: Path) -> None:
    with opensmtpd(tmp_path) as (port, look):
        check(make_box, port, look)
