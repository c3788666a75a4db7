"""mailqueue-runner's own tests with outmail's listener in the place of its test server: a plugin of pytest.

Left out: tests that give the test server a policy or users, and those without a server.
"""

from __future__ import annotations

import email
from types import SimpleNamespace
from typing import Any

import pytest
import schwarz.mailqueue.testutils as theirs
from live import Live

_live: list[Live] = []


class Server:
    """Stands for `SMTPTestServer`."""

    def __init__(self, *words: Any, **options: Any) -> None:
        if words or options:
            pytest.skip("left out: the test server is told what to answer")
        if not _live:
            _live.append(Live())
        self.hostname, self.port = "127.0.0.1", _live[0].port
        self.received_messages = self
        self._taken = 0

    def start(self) -> None:
        _live[0].forget()

    def stop(self) -> None:
        pass

    def qsize(self) -> int:
        return len(_live[0].received()) - self._taken

    def empty(self) -> bool:
        return not self.qsize()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        mail = _live[0].received()[self._taken]
        self._taken += 1
        return SimpleNamespace(
            smtp_from=mail.sender,
            smtp_to=tuple(mail.recipients),
            username=None,
            msg_bytes=mail.given,
            msg=email.message_from_bytes(mail.given),
        )


theirs.SMTPTestServer = Server


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen, rest = [], []
    for item in items:
        served = "SMTPTestServer" in vars(item.module) and "ctx" in item.fixturenames  # type: ignore[attr-defined]
        (chosen if served else rest).append(item)
    items[:] = chosen
    config.hook.pytest_deselected(items=rest)


def pytest_unconfigure() -> None:
    for one in _live:
        one.stop()
