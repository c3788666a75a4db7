"""aiosmtplib's own tests against outmail's listeners: fixtures that take the place of those which start its
test server. They are imported at the end of a copy of its ``tests/conftest.py``.

Left out: tests without a server, tests that tell the server what to answer (``smtpd_mocks``), or look into it
(``received_commands``).
"""

from __future__ import annotations

import email
import email.policy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from live import Live

from outmail.intake.logins import hashed

SERVERS = {"smtpd_server", "smtpd_server_port", "smtp_client"}
INSIDE = {
    "received_commands", "smtpd_responses", "smtpd_factory", "smtpd_controller", "smtpd_server_socket_path",
    "smtp_client_threaded", "unknown_client_tls_context",
}  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen, rest = [], []
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        options = item.get_closest_marker("smtpd_options")
        simulated = item.get_closest_marker("smtpd_mocks") or names & INSIDE
        tls_at_once = options is not None and options.kwargs.get("tls", False)
        (rest if simulated or not names & SERVERS or tls_at_once else chosen).append(item)
    items[:] = chosen
    config.hook.pytest_deselected(items=rest)


class Heard:
    """What the listener took, as the list of messages that the tests expect."""

    def __init__(self, live: Live) -> None:
        self.live = live

    def _all(self) -> list[Any]:
        found = []
        for mail in self.live.received():
            message = email.message_from_bytes(mail.given, policy=email.policy.default)
            message["X-MailFrom"], message["X-RcptTo"] = mail.sender, ", ".join(mail.recipients)
            found.append(message)
        return found

    def __len__(self) -> int:
        return len(self._all())

    def __getitem__(self, at: int) -> Any:
        return self._all()[at]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._all())


def _served(folder: Path, more: dict[str, str]) -> Iterator[Live]:
    users = folder / "users"
    users.write_text(f"test:{hashed('test')}\n")
    users.chmod(0o600)
    live = Live(users_file=f'"{users}"', **more)
    yield live
    live.stop()


@pytest.fixture(scope="session")
def with_tls(tmp_path_factory: pytest.TempPathFactory, valid_server_cert: Any) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    chain, key = folder / "chain.pem", folder / "key.pem"
    for pem in valid_server_cert.cert_chain_pems:
        pem.write_to_path(chain, append=True)
    valid_server_cert.private_key_pem.write_to_path(key)
    key.chmod(0o600)
    yield from _served(folder, {"certificate": f'"{chain}"', "key": f'"{key}"'})


@pytest.fixture(scope="session")
def without_tls() -> Iterator[Live]:
    live = Live()
    yield live
    live.stop()


@pytest.fixture
def live(request: pytest.FixtureRequest) -> Live:
    options = request.node.get_closest_marker("smtpd_options")
    plain = options is not None and not options.kwargs.get("starttls", True)
    found: Live = request.getfixturevalue("without_tls" if plain else "with_tls")
    found.forget()
    return found


@pytest.fixture
def received_messages(live: Live) -> Heard:
    return Heard(live)


@pytest.fixture
def smtpd_server_port(request: pytest.FixtureRequest, live: Live) -> int:
    return live.submission_port if "auth_username" in request.fixturenames else live.port


@pytest.fixture
def smtpd_server(smtpd_server_port: int) -> Any:
    socket = SimpleNamespace(getsockname=lambda: ("127.0.0.1", smtpd_server_port))
    return SimpleNamespace(sockets=[socket], close=lambda: None)
