"""`outmail test` against real TLS servers: every step is shown, and each trouble has its own advice."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from outmail.cli import main, trial
from outmail.testing import Sink
from outmail.transport import probe

Try = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(organization_name="Example CA")


def _server(authority: trustme.CA, *names: str, until: datetime | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names, not_after=until).configure_cert(context)
    return context


@pytest.fixture
def attempt(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Try:
    """attempt(url, more lines of [relay]) → (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial, "SILENT", 0.2)
    monkeypatch.setattr(probe, "PATIENCE", 0.5)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    def run(url: str, *settings: str, top: str = "", to: str = "a@x.test") -> tuple[int, str, str]:
        text = "\n".join([top, "[relay]", f'url = "{url}"', 'password = "geheim"', "timeout = 5", *settings])
        (tmp_path / "c.toml").write_text(text)
        (tmp_path / "c.toml").chmod(0o600)
        status = main(["test", "--config", "c.toml", "--to", to, "-f", "me@x.test"])
        told = capsys.readouterr()
        assert "geheim" not in told.out + told.err
        return status, told.out, told.err

    return run


CA = 'ca = "ca.pem"'
STARTTLS = 'tls = "required"'


def _steps(told: str) -> list[str]:
    return [line.split()[1] for line in told.splitlines() if line.startswith("  ok ")]


@pytest.mark.parametrize("implicit", [True, False])
def test_success_shows_every_step_and_what_became_of_the_message(
    authority: trustme.CA, attempt: Try, tmp_path: Path, implicit: bool
) -> None:
    until = datetime(2099, 2, 3, tzinfo=UTC)
    context = _server(authority, "localhost", until=until)
    script = "DOT: 250 2.0.0 Ok: queued as 4XYZ"
    with Sink(script, tls=context, implicit_tls=implicit, users={"me": "geheim"}) as sink:
        url = f"{'smtps' if implicit else 'smtp'}://me@localhost:{sink.port}"
        status, out, told = attempt(url, CA, *(() if implicit else (STARTTLS,)))
        assert status == 0 and "accepted by the relay: 250 2.0.0 Ok" in out
        assert set(_steps(told)) == {"connect", "greeting", "EHLO", "TLS", "AUTH", "message"}
        assert f"to 127.0.0.1, port {sink.port}" in told
        assert "certificate for localhost by Example CA, valid until 3 Feb 2099" in told
        assert "PLAIN: 235" in told and "AUTH PLAIN ****" in told
        assert "its queue id there is 4XYZ" in told and "never in the queue" in told
        assert len(sink.messages) == 1 and sink.messages[0].encrypted
    assert not list(tmp_path.rglob("*.db"))


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        ("expired", "Relay localhost: its certificate expired on 24 Nov 2025. Ask its operator to renew it."),
        ("authority", "nobody whom this machine trusts has signed its certificate (it is by Example CA"),
        ("name", "its certificate is for mail.other.test, smtp.other.test, not for the host"),
        ("pin", "its certificate is not the one pinned"),
    ],
)
def test_each_trouble_with_a_certificate_has_its_own_advice(
    authority: trustme.CA, attempt: Try, implicit: bool, wrong: str, advice: str
) -> None:
    names = ("mail.other.test", "smtp.other.test") if wrong == "name" else ("localhost",)
    until = datetime(2025, 11, 24, tzinfo=UTC) if wrong == "expired" else None
    trust = {"authority": "", "pin": f'fingerprint = "{"0" * 64}"'}.get(wrong, CA)
    with Sink(
        tls=_server(authority, *names, until=until), implicit_tls=implicit, users={"me": "geheim"}
    ) as sink:
        url = f"{'smtps' if implicit else 'smtp'}://me@localhost:{sink.port}"
        status, out, told = attempt(url, trust, *(() if implicit else (STARTTLS,)))
        assert (status, out) == (75, "") and advice in told, told
        assert "FAILED TLS" in told and _steps(told)[0] == "connect"
        assert "dropped" in told and not sink.messages
        assert not any(command.startswith(("AUTH", "MAIL")) for command in sink.commands)


def test_smtps_at_a_port_for_starttls(authority: trustme.CA, attempt: Try) -> None:
    with Sink(tls=_server(authority, "localhost")) as sink:
        status, _, told = attempt(f"smtps://localhost:{sink.port}", CA)
        assert status == 75 and f"Use smtp://localhost:{sink.port}" in told and "STARTTLS" in told
    with Sink() as sink:
        status, _, told = attempt(f"smtps://localhost:{sink.port}", CA)
        assert status == 75 and f"Use smtp+plain://localhost:{sink.port}" in told


def test_starttls_at_a_port_for_smtps(authority: trustme.CA, attempt: Try) -> None:
    with Sink(tls=_server(authority, "localhost"), implicit_tls=True) as sink:
        status, _, told = attempt(f"smtp://me@localhost:{sink.port}", CA, STARTTLS)
        assert status == 75 and f"Use smtps://me@localhost:{sink.port}" in told
        assert "TLS from the first byte" in told and "no greeting" in told


def test_a_slow_greeting_is_waited_for(attempt: Try) -> None:
    with Sink("CONNECT: delay 1.2") as sink:
        status, out, _ = attempt(f"smtp://localhost:{sink.port}")
        assert status == 0 and "accepted" in out


@pytest.mark.parametrize(
    ("script", "status", "advice"),
    [
        ("MAIL: 553 5.7.1 not your address", 69, "does not accept the sender"),
        ("RCPT: 550 5.7.1 Relaying denied", 69, "does not send to strangers"),
        ("RCPT: 451 4.7.1 greylisted", 75, "(greylisting). Mail in the queue is tried again after some"),
        ("CONNECT: 554 no", 75, "does not serve this client at all"),
        ("RCPT: 450 4.9.9 odd", 75, "cannot take mail at the moment"),
    ],
)
def test_a_refusal_is_explained_and_the_message_thrown_away(
    attempt: Try, script: str, status: int, advice: str
) -> None:
    with Sink(script) as sink:
        found, _, told = attempt(f"smtp://localhost:{sink.port}")
        assert found == status and advice in told and "dropped" in told and "FAILED" in told


def test_a_lost_answer_is_not_called_a_failure(attempt: Try) -> None:
    with Sink("DOT: take-and-drop") as sink:
        status, _, told = attempt(f"smtp://localhost:{sink.port}")
        assert status == 75 and "may have the message" in told
        assert "uncertain. No answer came: connection closed by the relay." in told


def test_wrong_password_and_no_server(attempt: Try) -> None:
    with Sink(users={"me": "other"}) as sink:
        status, _, told = attempt(f"smtp://me@localhost:{sink.port}")
        assert status == 75 and "User name or password is wrong" in told
    status, _, told = attempt("smtp://127.0.0.1:1")
    assert status == 75 and "nobody listens on this port" in told and "dialogue" not in told


def test_the_next_relay_of_the_route_is_tried_too(attempt: Try) -> None:
    with Sink() as sink:
        route = f'[relays.backup]\nurl = "{sink.url}"\n[[route]]\nrelays = ["default", "backup"]\n'
        status, _, told = attempt("smtp://127.0.0.1:1", "", route)
        assert status == 0 and "relay default" in told and "relay backup" in told


def test_safety_holds(attempt: Try) -> None:
    with Sink() as sink:
        status, _, told = attempt(sink.url, top='[safety]\nonly_to = ["*@staging.test"]\n')
        assert status == 65 and "only_to does not allow mail to a@x.test" in told and not sink.connections
        status, _, told = attempt(sink.url, top='[safety]\nredirect_to = "dev@staging.test"\n')
        assert status == 0 and sink.messages[0].recipients == ("dev@staging.test",)
