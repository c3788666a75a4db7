"""The service listens: foreign clients hand mail in over plain, STARTTLS and TLS; nobody else may; bad days
have a reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from outmail import Outbox
from outmail.config import from_toml
from outmail.intake.logins import hashed, verified
from outmail.testing import Sink
from tests import programs, starts
from tests.waiting import stays, until, until_in_loop

Start = Callable[..., "Service"]
BODY = b"From: a@x.test\r\nSubject: s\r\n\r\n..a dot\r\nb\r\n"


class Service:
    """`outmail run` in a process."""

    def __init__(self, folder: Path, toml: str, **env: str) -> None:
        self.folder = folder
        (folder / "service.toml").write_text(f'store = "{folder}/q.db"\nhostname = "mx.outmail.test"\n{toml}')
        self.log = folder / "service.log"
        with open(self.log, "ab") as log:
            self.process = starts.service(
                ("run", "--config", str(folder / "service.toml")),
                stderr=log,
                cwd=Path.cwd(),
                env={**os.environ, **env},
            )
        wanted = len(re.findall(r"(?m)^(?:smtp|submission|lmtp) = ", toml))
        until(lambda: self.log.read_text().count("listening: ") >= wanted or self.process.poll() is not None)
        assert self.ports, self.log.read_text()

    @property
    def ports(self) -> dict[str, int]:
        found = re.findall(r"listening: (\w+) 127\.0\.0\.1:(\d+)", self.log.read_text())
        return {kind: int(port) for kind, port in found}

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[Service] = []

    def make(toml: str, **env: str) -> Service:
        running.append(Service(tmp_path, toml, **env))
        return running[-1]

    yield make
    for service in running:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait(30)


def toml(sink: Sink, listen: str) -> str:
    return f'relay = "{sink.url}"\n[listen]\n{listen}\n'


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """(CA as PEM, settings of [listen])."""
    ca, folder = trustme.CA(), tmp_path
    made = ca.issue_cert("localhost", "127.0.0.1")
    made.private_key_pem.write_to_path(str(folder / "key.pem"))
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    (folder / "users").write_text(f"# who may send\nme:{hashed('geheim')}\n")
    return str(
        folder / "ca.pem"
    ), f'certificate = "{folder}/cert.pem"\nkey = "{folder}/key.pem"\nusers_file = "{folder}/users"'


def test_smtplib_hands_in_and_the_trace_is_there(start: Start, sink: Sink, tmp_path: Path) -> None:
    service = start(toml(sink, 'smtp = ["127.0.0.1:0"]'))
    with smtplib.SMTP("127.0.0.1", service.ports["smtp"], timeout=10) as client:
        assert client.sendmail("a@x.test", ["b@x.test", "c@x.test"], BODY) == {}
    (got,) = sink.wait_for(1)
    head, _, rest = got.content.partition(b"From: a@x.test")
    assert got.recipients == ("b@x.test", "c@x.test") and rest == BODY.removeprefix(b"From: a@x.test")
    assert (
        re.search(
            rb"Received: from \S+ \(\[127\.0\.0\.1\]\)\r\n\tby mx\.outmail\.test with ESMTP id "
            rb"[0-9a-v]{26};\r\n\t\w{3}, ",
            head,
        )
        and b"Message-ID" in head
    )
    assert service.stop() == 0
    box = Outbox(tmp_path / "q.db", config=from_toml("", "t", {}), deliver="never")
    assert [status.status for status in box.find()] == ["delivered"]
    box.close()


def test_aiosmtplib(start: Start, sink: Sink, tmp_path: Path, certificate: tuple[str, str]) -> None:
    import aiosmtplib

    ca, settings = certificate
    service = start(toml(sink, f'smtp = ["127.0.0.1:0"]\nsubmission = ["127.0.0.1:0"]\n{settings}'))
    port, submission = service.ports["smtp"], service.ports["submission"]
    context = ssl.create_default_context(cafile=ca)
    asyncio.run(
        aiosmtplib.send(
            BODY,
            sender="a@x.test",
            recipients=["b@x.test"],
            hostname="localhost",
            port=port,
            start_tls=True,
            tls_context=context,
        )
    )
    asyncio.run(
        aiosmtplib.send(
            BODY,
            sender="a@x.test",
            recipients=["b@x.test"],
            hostname="localhost",
            port=submission,
            start_tls=True,
            tls_context=context,
            username="me",
            password="geheim",
        )
    )
    with pytest.raises(aiosmtplib.SMTPAuthenticationError):
        asyncio.run(
            aiosmtplib.send(
                BODY,
                sender="a@x.test",
                recipients=["b@x.test"],
                hostname="localhost",
                port=submission,
                start_tls=True,
                tls_context=context,
                username="me",
                password="falsch",
            )
        )
    first, second = sink.wait_for(2)
    assert b"with ESMTPS id" in first.content and b"with ESMTPSA id" in second.content


@programs.needs("swaks", "swaks libnet-ssleay-perl")
@programs.needs("msmtp", "msmtp")
def test_swaks_and_msmtp(start: Start, sink: Sink, certificate: tuple[str, str]) -> None:
    ca, settings = certificate
    service = start(toml(sink, f'smtp = ["127.0.0.1:0"]\nsubmission = ["127.0.0.1:0"]\n{settings}'))
    port, submission = service.ports["smtp"], service.ports["submission"]
    common = [
        "--server",
        "127.0.0.1",
        "--from",
        "a@x.test",
        "--to",
        "b@x.test",
        "--body",
        "hello",
        "--timeout",
        "10",
    ]
    for words in (
        ["--port", str(port)],
        ["--port", str(port), "--tls"],
        ["--port", str(port), "--pipeline"],
        [
            "--port",
            str(submission),
            "--tls",
            "--auth",
            "PLAIN",
            "--auth-user",
            "me",
            "--auth-password",
            "geheim",
        ],
        [
            "--port",
            str(submission),
            "--tls",
            "--auth",
            "LOGIN",
            "--auth-user",
            "me",
            "--auth-password",
            "geheim",
        ],
    ):
        done = subprocess.run(["swaks", *common, *words], capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout.decode()
    for words in (["--tls=off"], ["--tls=on", f"--tls-trust-file={ca}"]):
        done = subprocess.run(
            [
                "msmtp",
                "--host=localhost",
                f"--port={port}",
                "--from=a@x.test",
                "--timeout=10",
                "--auth=off",
                *words,
                "b@x.test",
            ],
            input=BODY,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
    assert len(sink.wait_for(7)) == 7
    refused = subprocess.run(
        ["swaks", *common, "--port", str(submission), "--tls"], capture_output=True, timeout=60, check=False
    )
    assert refused.returncode != 0 and b"530 5.7.0" in refused.stdout


def test_lmtp_and_a_unix_socket(
    start: Start, sink: Sink, tmp_path: Path, make_box: Callable[..., Outbox]
) -> None:
    service = start(toml(sink, f'smtp = ["127.0.0.1:0"]\nlmtp = ["unix:{tmp_path}/lmtp"]'))
    box = make_box(relay=f"lmtp:{tmp_path}/lmtp", store=str(tmp_path / "first.db"))
    sent = box.submit(BODY, sender="a@x.test", recipients=["b@x.test", "c@x.test"])
    assert box.wait(sent.id, 10).status == "delivered"
    (got,) = sink.wait_for(1)
    assert b"with LMTP id" in got.content
    service.process.kill()
    service.process.wait(30)
    service.log.write_text("")
    # the stale socket of the killed one
    again = start(toml(sink, f'smtp = ["127.0.0.1:0"]\nlmtp = ["unix:{tmp_path}/lmtp"]'))
    with smtplib.LMTP(str(tmp_path / "lmtp")) as client:
        client.sendmail("a@x.test", ["b@x.test"], BODY)
    assert again.stop() == 0


def test_another_service_sends_through_it_by_pipelining(
    start: Start, sink: Sink, make_box: Callable[..., Outbox], tmp_path: Path
) -> None:
    service = start(toml(sink, 'smtp = ["127.0.0.1:0"]'))
    box = make_box(
        relay=f"smtp://127.0.0.1:{service.ports['smtp']}", store=str(tmp_path / "first.db"), exit_wait=20
    )
    box.send_many([{"to": f"u{i}@x.test", "subject": str(i), "text": "." * i} for i in range(200)])
    got = sink.wait_for(200, 30)
    assert len({message.recipients for message in got}) == 200


def test_each_recipients_notify_and_orcpt_are_passed_on(start: Start, sink: Sink) -> None:
    service = start(toml(sink, 'smtp = ["127.0.0.1:0"]'))
    with smtplib.SMTP("127.0.0.1", service.ports["smtp"], timeout=10) as client:
        client.ehlo()
        client.mail("a@x.test", ["RET=HDRS", "ENVID=e+2B1"])
        client.rcpt("one@x.test", ["NOTIFY=NEVER"])
        client.rcpt("two@x.test", ["NOTIFY=SUCCESS,DELAY", "ORCPT=rfc822;old+2Btwo@x.test"])
        client.rcpt("three@x.test")
        assert client.data(BODY)[0] == 250
    (got,) = sink.wait_for(1)
    assert got.mail_parameters.split()[-2:] == ["RET=HDRS", "ENVID=e+2B1"]
    assert got.rcpt_parameters == (
        "NOTIFY=NEVER ORCPT=rfc822;one@x.test",
        "NOTIFY=SUCCESS,DELAY ORCPT=rfc822;old+2Btwo@x.test",
        "",
    )


def test_what_is_refused_is_refused_with_a_reply(start: Start, sink: Sink) -> None:
    service = start(
        toml(sink, 'smtp = ["127.0.0.1:0"]\nrate = 3\nconnections = 5')
        + '[limits]\nmessage_size = "10KB"\nrecipients = 2\n'
    )
    port = service.ports["smtp"]
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        with pytest.raises(smtplib.SMTPSenderRefused) as caught:
            client.sendmail("a@x.test", "b@x.test", BODY + b"x" * 20_000)
        assert caught.value.smtp_code == 552
        client.docmd("MAIL FROM:<a@x.test>")
        assert [client.docmd(f"RCPT TO:<{n}@x.test>")[0] for n in "bcd"] == [250, 250, 452]
        client.docmd("RSET")
        assert [client.docmd("MAIL FROM:<a@x.test>")[0] + 0 * client.docmd("RSET")[0] for _ in range(3)] == [
            250,
            250,
            450,
        ]
    lines = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(6)]
    said = [line.recv(100)[:3] for line in lines]
    assert said == [b"220"] * 5 + [b"421"]
    for line in lines:
        line.close()


def _raw(port: int, content: bytes) -> bytes:
    """The reply to a content that is sent as it is."""
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        client.ehlo("me")
        for command in ("MAIL FROM:<a@x.test>", "RCPT TO:<b@x.test>", "DATA"):
            client.docmd(command)
        client.send(content + b".\r\n")
        code, text = client.getreply()
        return b"%d %s" % (code, text)


def test_a_first_line_that_is_no_header_field_is_refused(start: Start, sink: Sink, tmp_path: Path) -> None:
    """Date and Message-ID would go in front of it, and its own fields would become body."""
    service = start(toml(sink, f'smtp = ["127.0.0.1:0"]\nlmtp = ["unix:{tmp_path}/lmtp"]'))
    port = service.ports["smtp"]
    said = _raw(port, b"From me@x.test Mon Jan  1 10:00:00 2026\r\nFrom: a@x.test\r\n\r\nbody\r\n")
    assert (
        said.startswith(b"554 5.6.0 the message does not begin with a header field but with 'From me@x.test")
        and b"mailbox file" in said
    )
    assert _raw(port, b"hello\r\n").startswith(b"554 5.6.0 ") and _raw(
        port, b" folded: from nothing\r\n\r\n"
    ).startswith(b"554 5.6.0 ")
    with smtplib.LMTP(f"{tmp_path}/lmtp") as client, pytest.raises(smtplib.SMTPDataError) as caught:
        client.sendmail("a@x.test", ["b@x.test"], b"From me\r\n" + BODY)
    assert caught.value.smtp_code == 554 and b"5.6.0" in caught.value.smtp_error
    assert _raw(port, b"\r\nall of it is body\r\n").startswith(b"250 ") and _raw(port, b"").startswith(
        b"250 "
    )
    bodies = sorted(got.content.partition(b"\r\n\r\n") for got in sink.wait_for(2))
    assert [body for *_, body in bodies] in ([b"", b"all of it is body\r\n"], [b"all of it is body\r\n", b""])
    assert all(
        b"\r\nReceived: " in b"\r\n" + head and b"\r\nMessage-ID: " in b"\r\n" + head for head, *_ in bodies
    )
    assert service.stop() == 0


@pytest.mark.parametrize("name", [b"Received", b"received", b"RECEIVED", b"Received "])
def test_a_loop_is_seen_however_the_field_is_written(start: Start, sink: Sink, name: bytes) -> None:
    service = start(toml(sink, 'smtp = ["127.0.0.1:0"]'))
    trace = name + b": from a by b;\r\n\tThu, 01 Jan 1970 00:00:00 +0000\r\n"
    said = _raw(service.ports["smtp"], trace * 50 + BODY)
    assert said.startswith(b"554 5.4.6 ") and b"loop" in said
    assert _raw(service.ports["smtp"], trace * 49 + b"Received-SPF: none\r\n" + BODY).startswith(b"250 ")


def test_whose_line_ends_are_mended(
    listening: Callable[..., None], make_box: Callable[..., Outbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of this machine and of trusted networks, unless the configuration says everybody's or
    nobody's.
    """
    from outmail.intake import smtp as intake
    from outmail.policy.admission import networks
    from outmail.smtp.server import ServerSettings

    client = ["127.0.0.1"]
    monkeypatch.setattr(
        intake.ClientConnection,
        "connection_made",
        lambda self, transport, old=intake.ClientConnection.connection_made: old(
            self, _From(transport, client[0])
        ),
    )
    bare = (
        b"EHLO me\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\nSubject: "
        b"s\n\n..one\n.\r\ntwo\r\n.\r\nQUIT\r\n"
    )

    async def code(port: int) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(bare)
        lines = (await reader.read()).decode().splitlines()
        writer.close()
        return lines[-2][:9]

    monkeypatch.setattr(intake.RelayPolicy, "mail", lambda self, session, sender: None)

    async def scene(_: int, first: Any) -> None:
        for normalise, address, wanted in (
            (None, "127.0.0.1", "250 2.0.0"),
            (None, "", "250 2.0.0"),
            (None, "10.1.2.3", "250 2.0.0"),
            (None, "192.0.2.7", "554 5.6.0"),
            (False, "127.0.0.1", "554 5.6.0"),
            (True, "192.0.2.7", "250 2.0.0"),
        ):
            client[0] = address
            listener = intake.Listener(
                first.door,
                intake.ListenerSettings(ServerSettings(), networks(["10.0.0.0/8"]), normalise=normalise),
            )
            assert await code(int((await listener.listen("127.0.0.1:0")).rpartition(":")[2])) == wanted, (
                normalise,
                address,
            )
            await listener.close()

    listening(intake.ListenerSettings(), scene)
    box = make_box(deliver="never")
    assert [box.content(status.id).partition(b"Subject: ")[2] for status in box.find()] == [
        b"s\r\n\r\n.one\r\ntwo\r\n"
    ] * 4


def test_who_may_write_bare_names_and_no_brackets(
    listening: Callable[..., None], make_box: Callable[..., Outbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients of this machine and of trusted networks, and nobody else, even where everybody may relay."""
    from outmail.intake import smtp as intake
    from outmail.policy.admission import networks
    from outmail.smtp.server import ServerSettings

    client = [""]
    made: Any = intake.ClientConnection.connection_made
    monkeypatch.setattr(
        intake.ClientConnection,
        "connection_made",
        lambda self, transport: made(self, _From(transport, client[0])),
    )
    monkeypatch.setattr(intake.RelayPolicy, "mail", lambda self, session, sender: None)
    talk = (
        b"EHLO me\r\nMAIL FROM:root SIZE=9\r\nRCPT TO:<john>\r\nDATA\r\n"
        b"From: root\r\nTo: john\r\n\r\nx\r\n.\r\nQUIT\r\n"
    )

    async def codes(port: int) -> list[str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(talk)
        lines = (await reader.read()).decode().splitlines()
        writer.close()
        return [line[:3] for line in lines if line[3] == " "]

    async def scene(_: int, first: Any) -> None:
        listener = intake.Listener(
            first.door, intake.ListenerSettings(ServerSettings(origin="o.test"), networks(["10.0.0.0/8"]))
        )
        port = int((await listener.listen("127.0.0.1:0")).rpartition(":")[2])
        for address in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "", "10.1.2.3"):
            client[0] = address
            assert (await codes(port))[2:5] == ["250", "250", "354"], address
        for address in ("192.0.2.7", "2001:db8::1", "::ffff:192.0.2.7", "no address"):
            client[0] = address
            assert (await codes(port))[2:5] == ["501", "503", "503"], address
        await listener.close()

    listening(intake.ListenerSettings(), scene)
    box = make_box(deliver="never")
    stored = list(box.find())
    assert {(s.sender, s.recipients[0].address) for s in stored} == {("root@o.test", "john@o.test")}
    assert len(stored) == 6
    for status in stored:
        assert box.content(status.id).endswith(b"\r\nFrom: root\r\nTo: john\r\n\r\nx\r\n")


class _From:
    """A transport whose peer has another address."""

    def __init__(self, transport: Any, address: str) -> None:
        self._transport, self._address = transport, address

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def get_extra_info(self, name: str) -> Any:
        return (
            ((self._address, 1) if self._address else "")
            if name == "peername"
            else self._transport.get_extra_info(name)
        )


def test_a_disconnect_in_every_state_leaves_nothing(start: Start, sink: Sink, tmp_path: Path) -> None:
    service = start(toml(sink, 'smtp = ["127.0.0.1:0"]'))
    whole = b"EHLO me\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\nSubject: s\r\n\r\nhalf\r\n.\r"
    for cut in range(0, len(whole) + 1, 3):
        with socket.create_connection(("127.0.0.1", service.ports["smtp"]), 5) as line:
            line.sendall(whole[:cut])
    with smtplib.SMTP("127.0.0.1", service.ports["smtp"], timeout=10) as client:
        client.sendmail("a@x.test", "b@x.test", BODY)
    assert len(sink.wait_for(1)) == 1
    assert service.stop() == 0
    box = Outbox(tmp_path / "q.db", config=from_toml("", "t", {}), deliver="never")
    assert len(list(box.find())) == 1
    box.close()


def test_restarted_and_killed_under_load_no_client_loses_an_accepted_message(
    start: Start, sink: Sink, tmp_path: Path
) -> None:
    accepted: list[str] = []
    over = threading.Event()
    ports: list[int] = []

    def client(number: int) -> None:
        i = 0
        while not over.is_set():
            try:
                with smtplib.SMTP("127.0.0.1", ports[-1], timeout=5) as line:
                    for _ in range(10):
                        i += 1
                        name = f"{number}-{i}"
                        line.sendmail("a@x.test", "b@x.test", f"Subject: {name}\r\n\r\nx\r\n".encode())
                        accepted.append(name)
            except (OSError, smtplib.SMTPException):
                over.wait(0.02)

    service = start(toml(sink, 'smtp = ["127.0.0.1:0"]'))
    ports.append(service.ports["smtp"])
    threads = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()

    def some_more() -> None:
        before = len(accepted)
        until(lambda: len(accepted) > before + 12)

    for i in range(4):
        some_more()
        if i % 2:
            assert service.stop() == 0
        else:
            service.process.kill()
            service.process.wait(30)
        service.log.write_text("")
        service = start(toml(sink, 'smtp = ["127.0.0.1:0"]'))
        ports.append(service.ports["smtp"])
    some_more()
    over.set()
    for thread in threads:
        thread.join()
    box = Outbox(tmp_path / "q.db", config=from_toml("", "t", {}), deliver="never")
    until(lambda: next(iter(box.find("-state:delivered")), None) is None)
    subjects = [re.search(rb"Subject: (\S+)", message.content)[1].decode() for message in sink.messages]  # type: ignore[index]
    assert len(accepted) > 50 and set(accepted) <= set(subjects)
    doubles = {subject for subject in subjects if subjects.count(subject) > 1}
    for subject in doubles:
        marked = [
            r.uncertain for status in box.find() if status.subject == subject for r in status.recipients
        ]
        # or the client handed it in twice, having heard no answer
        assert any(marked) or len(marked) > 1, subject
    box.close()
    assert service.stop() == 0


def test_a_foreign_write_lock_keeps_live_clients_answered(start: Start, sink: Sink, tmp_path: Path) -> None:
    service = start(toml(sink, 'smtp = ["127.0.0.1:0"]'))
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "import sqlite3,sys,time\nd=sqlite3.connect(sys.argv[1])\nd.execute('BEGIN "
                "IMMEDIATE')\nprint('held',flush=True)\nsys.stdin.readline()\nd.rollback()"
            ),
            str(tmp_path / "q.db"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout and holder.stdout.readline() == b"held\n"
    with (
        smtplib.SMTP("127.0.0.1", service.ports["smtp"], timeout=20) as waiting,
        smtplib.SMTP("127.0.0.1", service.ports["smtp"], timeout=5) as other,
    ):
        answer: list[Any] = []
        sender = threading.Thread(
            target=lambda: answer.append(waiting.sendmail("a@x.test", "b@x.test", BODY))
        )
        sender.start()
        # commands that need no commit are answered meanwhile
        stays(lambda: other.noop()[0] == 250 and not answer, 0.3)
        holder.communicate(b"\n", timeout=10)
        sender.join(20)
        assert answer == [{}]


def test_memory_in_flight_is_bounded(
    tmp_path: Path, sink: Sink, make_box: Callable[..., Outbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest half messages are sent away, the others go on."""
    from outmail.accept.aio import AsyncAcceptance
    from outmail.clock import Clock
    from outmail.intake import smtp as intake
    from outmail.wiring import build_engine

    monkeypatch.setattr(intake, "IN_FLIGHT", 100_000)
    box = make_box(relay=sink.url, deliver="never")
    engine = build_engine(box.store, box.config, box.routes, Clock())

    async def scene() -> None:
        running = asyncio.ensure_future(engine.run())
        await engine.ready()
        listener = intake.Listener(
            AsyncAcceptance(box.door, engine.commits, engine.handover), intake.ListenerSettings()
        )
        port = int((await listener.listen("127.0.0.1:0")).rpartition(":")[2])
        begin = b"EHLO me\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\nSubject: s\r\n\r\n"
        large, small = (
            await asyncio.open_connection("127.0.0.1", port),
            await asyncio.open_connection("127.0.0.1", port),
        )
        large[1].write(begin + b"x" * 200_000)
        small[1].write(begin + b"x" * 2_000)
        async with asyncio.timeout(10):
            said = await large[0].read()
            assert said.endswith(b"421 4.3.1 Too much mail in flight: come back later\r\n")
            small[1].write(b"\r\n.\r\n")
            assert b"queued as" in await small[0].readuntil(b"queued as")
        small[1].close()
        await listener.close()
        engine.stop()
        await running

    asyncio.run(scene())


@pytest.fixture
def listening(tmp_path: Path, sink: Sink, make_box: Callable[..., Outbox]) -> Callable[..., None]:
    """listening(settings, scene): run the scene with a listener's port beside an engine, in one loop."""
    from outmail.accept.aio import AsyncAcceptance
    from outmail.clock import Clock
    from outmail.intake import smtp as intake
    from outmail.wiring import build_engine

    box = make_box(relay=sink.url, deliver="never")
    engine = build_engine(box.store, box.config, box.routes, Clock())

    def run(settings: Any, scene: Callable[[int, Any], Any]) -> None:
        async def whole() -> None:
            running = asyncio.ensure_future(engine.run())
            await engine.ready()
            listener = intake.Listener(AsyncAcceptance(box.door, engine.commits, engine.handover), settings)
            try:
                async with asyncio.timeout(30):
                    await scene(int((await listener.listen("127.0.0.1:0")).rpartition(":")[2]), listener)
            finally:
                await listener.close()
                engine.stop()
                await running

        asyncio.run(whole())

    return run


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("ending", ["garbage", "hang", "goodbye"])
def test_a_handshake_that_comes_to_nothing_leaves_nothing(
    listening: Callable[..., None],
    certificate: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    implicit: bool,
    ending: str,
) -> None:
    """Neither a line nor a descriptor; while it lasts it counts as a connection."""
    from outmail.intake import smtp as intake
    from outmail.smtp.server import ServerSettings

    monkeypatch.setattr(intake, "TLS_HANDSHAKE", 1.0)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    settings = intake.ListenerSettings(
        dialogue=ServerSettings(starttls=not implicit), tls=context, implicit_tls=implicit, connections=2
    )

    async def scene(port: int, listener: Any) -> None:
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        lines = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for reader, writer in lines:
            if not implicit:
                writer.write(b"EHLO me\r\n")
                await reader.readuntil(b"STARTTLS\r\n")
                writer.write(b"STARTTLS\r\n")
                await reader.readuntil(b"220 2.0.0 ")
        await until_in_loop(lambda: len(listener.lines) + len(listener.shaking) == 2)
        third, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await third.read()).startswith(b"" if implicit else b"421 4.7.0 Too many")
        writer.close()
        for _, writer in lines:
            if ending == "garbage":
                writer.write(b"MAIL FROM:<a@x.test>\r\n" * 3)
            elif ending == "goodbye":
                writer.close()
        for reader, writer in lines:
            if ending != "goodbye":
                with contextlib.suppress(ConnectionError):
                    await reader.read()
            writer.close()
        await until_in_loop(lambda: not (listener.lines or listener.shaking))
        await until_in_loop(lambda: not before or len(os.listdir("/proc/self/fd")) <= before)

    listening(settings, scene)


def test_a_deep_queue_and_a_slow_store_ask_clients_to_come_back(
    listening: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from outmail.intake import smtp as intake

    monkeypatch.setattr(intake, "COUNT_EVERY", 0.1)
    monkeypatch.setattr(intake, "SLOW_STORE", 0.3)

    async def ask(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"EHLO me\r\nMAIL FROM:<a@x.test>\r\nQUIT\r\n")
        said = await reader.read()
        writer.close()
        return said.splitlines()[-2]

    async def scene(port: int, listener: Any) -> None:
        with Outbox(tmp_path / "q.db", deliver="never") as box:
            box.send_many({"to": f"u{i}@x.test", "sender": "me@x.test", "at": "1h"} for i in range(11))
            while not (await ask(port)).startswith(b"452 4.3.1 Too much mail is waiting"):
                pass
            box.cancel("to:u0@x.test")
            while not (await ask(port)).startswith(b"250"):
                pass
        code = (
            f"import sqlite3; c=sqlite3.connect({str(tmp_path / 'q.db')!r}); c.execute('BEGIN "
            f"IMMEDIATE'); print(flush=True); input(); c.rollback()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE
        ) as holder:
            assert holder.stdout and holder.stdin
            holder.stdout.readline()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"EHLO me\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\nSubject: "
                b"s\r\n\r\nx\r\n.\r\n"
            )
            while not (said := await ask(port)).startswith(b"451 4.3.0 The store is slow"):
                assert said.startswith(b"250"), said
            holder.stdin.write(b"\n")
            holder.stdin.flush()
            await reader.readuntil(b"queued as")
            assert (await ask(port)).startswith(b"250")
            writer.close()

    listening(intake.ListenerSettings(deepest=10), scene)


def test_a_thousand_connections_are_held_and_the_next_is_told(start: Start, sink: Sink) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1400:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    port = start(toml(sink, 'smtp = ["127.0.0.1:0"]')).ports["smtp"]

    async def greeting(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            return await reader.readline()
        finally:
            writer.close()

    async def scene() -> None:
        lines = []
        async with asyncio.timeout(60):
            for _ in range(1000):
                lines.append(await asyncio.open_connection("127.0.0.1", port))
                assert (await lines[-1][0].readline()).startswith(b"220")
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert b"421 4.7.0 Too many connections" in await reader.read()
            writer.close()
            for reader, writer in lines[::100]:
                writer.write(b"EHLO me\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n")
                await reader.readuntil(b"354")
                writer.write(b"Subject: s\r\n\r\nx\r\n.\r\n")
                await reader.readuntil(b"queued as")
            lines[5][1].close()
            while b"421 4.7.0 Too many connections" in await greeting(port):
                pass
            for _, writer in lines:
                writer.close()

    asyncio.run(scene())
    sink.wait_for(10, timeout=20)


@programs.needs("postfix", "postfix")
@programs.as_root("Postfix is started as root only")
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "STARTTLS"])
def test_postfix_hands_its_mail_in(
    start: Start, sink: Sink, tmp_path: Path, certificate: tuple[str, str], encrypted: bool
) -> None:
    """Postfix as a client: pipelining, several recipients, DSN; whatever it accepted comes out."""
    from bench import lab

    listen = 'smtp = ["127.0.0.1:0"]' + (f"\n{certificate[1]}" if encrypted else "")
    service = start(toml(sink, listen))
    with lab.postfix(
        tmp_path, service.ports["smtp"], "smtp_tls_security_level = encrypt\n" if encrypted else ""
    ) as standing:
        with smtplib.SMTP("127.0.0.1", standing.port, timeout=20) as client:
            for i in range(30):
                client.sendmail(
                    "a@x.test", [f"u{i}@x.test", f"v{i}@x.test"], BODY, rcpt_options=["NOTIFY=FAILURE"]
                )
        sink.wait_for(30, timeout=40)
    assert service.stop() == 0
    got = sorted(address for m in sink.messages for address in m.recipients)
    assert got == sorted([f"u{i}@x.test" for i in range(30)] + [f"v{i}@x.test" for i in range(30)])
    how = b"with ESMTPS id" if encrypted else b"with ESMTP id"
    assert all(b"\r\n\r\n..a dot\r\n" in m.content and how in m.content for m in sink.messages)


def test_socket_activation(sink: Sink, tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen(10)
        (tmp_path / "c.toml").write_text(f'store = "{tmp_path}/q.db"\nrelay = "{sink.url}"')
        code = (
            "import "
            "os,sys\nos.dup2(int(sys.argv[1]),3)\nos.environ.update(LISTEN_FDS='1',LISTEN_FDNAMES='smtp',LISTEN_PID=str(os.getpid()))\n"
            "os.execv(sys.executable,[sys.executable,'-m','outmail','run','--config',sys.argv[2]])"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(bound.fileno()), str(tmp_path / "c.toml")],
            pass_fds=[bound.fileno(), 3] if bound.fileno() != 3 else [3],
            stderr=subprocess.DEVNULL,
        )
        with smtplib.SMTP("127.0.0.1", bound.getsockname()[1], timeout=20) as client:
            client.sendmail("a@x.test", "b@x.test", BODY)
        assert len(sink.wait_for(1)) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ('smtp = ["0.0.0.0:25"]', "open to other machines"),
        ('submission = ["0.0.0.0:587"]', "certificate"),
        ('submission = ["127.0.0.1:587"]', "users_file"),
        ('smtp = ["localhost"]', "is no address"),
        ('smtp = ["127.0.0.1:99999"]', "is no address"),
        ('networks = ["ten"]', "is not a network"),
        ('lmtp = ["192.0.2.1:24"]', "networks"),
        ("connections = 0", "at least 1"),
    ],
)
def test_wrong_listeners_are_told(listen: str, words: str) -> None:
    with pytest.raises(Exception, match=words):
        from_toml(f"[listen]\n{listen}", "t", {})


def test_files_that_cannot_be_read_are_78(
    outmail: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> None:
    for extra in ('certificate = "/none"', 'users_file = "/none"'):
        (tmp_path / "outmail.toml").write_text(f'store = "q.db"\n[listen]\nsmtp = ["127.0.0.1:0"]\n{extra}')
        done = outmail("run")
        assert done.returncode == 78 and b"No such file" in done.stderr, done.stderr


def test_passwords_are_hashed(outmail: Callable[..., subprocess.CompletedProcess[bytes]]) -> None:
    made = outmail("config", "--hash", stdin=b"geheim\n").stdout.decode().strip()
    assert (
        made.startswith("scrypt$")
        and verified("geheim", made)
        and not verified("Geheim", made)
        and not verified("", "")
        and not verified("x", "scrypt$!$!")
    )
