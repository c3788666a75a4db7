"""Behaviours 37–39: TLS is verified by default, and nothing is sent before it."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from outmail.cli import main
from outmail.outbox.outbox import Outbox
from outmail.policy.route import parse_relay
from outmail.testing import Rule, Sink
from outmail.transport.probe import Distrust
from tests import pgserver
from tests.waiting import until

MakeBox = Callable[..., Outbox]
VERSION = max(pgserver.installed(), key=int)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, str, str]:
    """(server context for localhost, CA file, fingerprint)."""
    ca = trustme.CA()
    cert = ca.issue_cert("localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    cert.configure_cert(context)
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    der = ssl.PEM_cert_to_DER_cert(cert.cert_chain_pems[0].bytes().decode())
    return context, str(path), hashlib.sha256(der).hexdigest()


def relay(sink: Sink, scheme: str, **settings: object) -> str:
    lines = [f'[relay]\nurl = "{scheme}://me:pw@localhost:{sink.port}"\ntimeout = 5']
    for key, value in settings.items():
        lines.append(f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("trust", ["ca", "fingerprint", "verify"])
def test_trusted(
    make_box: MakeBox, authority: tuple[ssl.SSLContext, str, str], implicit: bool, trust: str
) -> None:
    context, ca, fingerprint = authority
    with Sink(tls=context, implicit_tls=implicit, users={"me": "pw"}) as sink:
        settings: dict[str, object] = (
            {"ca": ca}
            if trust == "ca"
            else {"fingerprint": fingerprint}
            if trust == "fingerprint"
            else {"verify": False}
        )
        if not implicit:
            settings["tls"] = "required"
        box = make_box(toml=relay(sink, "smtps" if implicit else "smtp", **settings), deliver="thread")
        id = box.send("a@x.test", "s", "t").id
        assert box.wait(id, 10).status == "delivered"
        assert sink.messages[0].encrypted and sink.messages[0].user == "me"


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("wrong", ["unknown-ca", "wrong-name", "wrong-pin"])
def test_not_trusted(
    make_box: MakeBox, authority: tuple[ssl.SSLContext, str, str], implicit: bool, wrong: str
) -> None:
    context, ca, _ = authority
    with Sink(tls=context, implicit_tls=implicit, users={"me": "pw"}) as sink:
        settings = {"unknown-ca": {}, "wrong-name": {"ca": ca}, "wrong-pin": {"fingerprint": "0" * 64}}[wrong]
        toml = relay(
            sink, "smtps" if implicit else "smtp", **settings, **({} if implicit else {"tls": "required"})
        )
        if wrong == "wrong-name":
            toml = toml.replace("localhost", "127.0.0.1")
        box = make_box(toml=toml, deliver="thread")
        id = box.send("a@x.test", "s", "t").id
        until(lambda: box.status(id).recipients[0].attempts and box.status(id).status == "queued")
        status = box.status(id).recipients[0]
        assert status.state == "queued" and ("certificate" in status.reason) and not sink.messages
        assert not any(command.startswith(("AUTH", "MAIL")) for command in sink.commands)


def test_starttls_required_and_not_offered_sends_nothing(make_box: MakeBox) -> None:
    with Sink(users={"me": "pw"}) as sink:
        box = make_box(toml=relay(sink, "smtp", tls="required"), deliver="thread")
        id = box.send("a@x.test", "s", "t").id
        box.wait(id, 0.5)
        assert "STARTTLS" in box.status(id).recipients[0].reason
        assert all(command.startswith("EHLO") for command in sink.commands)


def test_bytes_before_the_handshake_abort_it(
    make_box: MakeBox, authority: tuple[ssl.SSLContext, str, str]
) -> None:
    context, ca, _ = authority
    with Sink([Rule("STARTTLS", "*", "220 go\r\n250 injected")], tls=context) as sink:
        box = make_box(toml=relay(sink, "smtp", tls="required", ca=ca), deliver="thread")
        id = box.send("a@x.test", "s", "t").id
        box.wait(id, 0.5)
        assert "before the TLS handshake" in box.status(id).recipients[0].reason and not sink.messages


def test_no_credentials_in_clear_off_loopback() -> None:
    from outmail.smtp.client import Client, ClientSettings, SessionFailed

    client = Client(ClientSettings(user="me", password="pw"))
    flow = client.dialogue()
    flow.send(None)
    client.feed(b"220 x\r\n")
    flow.send(None)
    client.feed(b"250-x\r\n250 AUTH PLAIN\r\n")
    with pytest.raises(SessionFailed, match="without TLS"):
        flow.send(None)
    assert b"AUTH" not in b"".join(client.outgoing())


def test_the_door_of_465_is_tls_without_saying(make_box: MakeBox, tmp_path: Path) -> None:
    assert parse_relay("smtp://mail.example.org:465").tls == "implicit"


def _expired(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made = authority.issue_cert("localhost", not_after=datetime(2025, 11, 24, tzinfo=UTC))
    made.configure_cert(context)
    return context


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest) -> Iterator[str | None]:
    if request.param == "sqlite":
        yield None
        return
    with pgserver.database(VERSION) as url:
        yield url


@pytest.mark.parametrize("implicit", [True, False])
def test_the_day_on_which_a_certificate_expired_is_told(
    store: str | None, make_box: MakeBox, tmp_path: Path, implicit: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = trustme.CA(organization_name="Example CA")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with Sink(tls=_expired(authority), implicit_tls=implicit, users={"me": "pw"}) as sink:
        words = {"ca": str(tmp_path / "ca.pem"), **({} if implicit else {"tls": "required"})}
        toml = relay(sink, "smtps" if implicit else "smtp", **words)
        box = make_box(toml=toml, store=store, deliver="thread")
        id = box.send("a@x.test", "s", "t").id
        note = until(lambda: box.queue.paused_hops())["default"]
        assert "(valid until 24 Nov 2025, for localhost by Example CA" in note["trouble"]
        seen = sink.connections
        box.retry(id)
        until(lambda: box.status(id).recipients[0].attempts > 1)
        # The certificate is looked at once, not at each attempt. (Without a handshake nothing is counted.)
        assert sink.connections == seen + (not implicit)
        (tmp_path / "c.toml").write_text(toml)
        (tmp_path / "c.toml").chmod(0o600)
        assert (
            main(
                [
                    "why",
                    "a@x.test",
                    "--config",
                    str(tmp_path / "c.toml"),
                    "--store",
                    store or str(tmp_path / "q.db"),
                ]
            )
            == 0
        )
        told = capsys.readouterr()
        assert "its certificate expired on 24 Nov 2025. Ask its operator to renew it." in told.out + told.err
        assert not sink.messages and not any(line.startswith(("AUTH", "MAIL")) for line in sink.commands)


def test_a_server_that_is_gone_when_its_certificate_is_looked_at(
    authority: tuple[ssl.SSLContext, str, str],
) -> None:
    async def said() -> str:
        relay = parse_relay("smtps://localhost:465")
        return await Distrust(relay, "h").words("certificate has expired", (socket.AF_INET, ("127.0.0.1", 1)))

    assert asyncio.run(said()) == "certificate has expired"
