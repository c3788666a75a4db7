"""Behaviours 37–39: TLS is verified by default, and nothing is sent before it."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from outmail.outbox.outbox import Outbox
from outmail.testing import Rule, Sink
from tests.waiting import until

MakeBox = Callable[..., Outbox]


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
    from outmail.policy.route import parse_relay

    assert parse_relay("smtp://mail.example.org:465").tls == "implicit"
