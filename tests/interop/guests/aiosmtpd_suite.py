"""aiosmtpd's own tests with outmail's listener in the place of its controller, as a plugin of pytest.

Left out: tests that give the server a handler, options or a subclass of its own, or look into it. Replies are
compared by their codes: their texts are free (RFC 5321, section 4.2).
"""

from __future__ import annotations

from typing import Any

import aiosmtpd.controller
import pytest
from aiosmtpd.testing.statuscodes import StatusCode
from live import Live

#: Options of the test's server that outmail's listener has, too.
ALIKE = {"decode_data": [True, False], "enable_SMTPUTF8": [True]}
#: Fixtures of a server without any options.
PLAIN = {"plain_controller", "nodecode_controller", "decoding_controller"}
_live: list[Live] = []


def live() -> Live:
    if not _live:
        _live.append(Live())
    return _live[0]


class Controller:
    """Stands for aiosmtpd's."""

    def __init__(self, handler: Any, *_: Any, **options: Any) -> None:
        self.handler = handler
        self.hostname, self.port = "127.0.0.1", live().port
        live().forget()

    def __getattr__(self, name: str) -> Any:
        pytest.skip(f"left out: the test looks into the server ({name})")

    def start(self) -> None:
        pass

    def stop(self, no_assert: bool = False) -> None:
        pass


def _same_code(expected: StatusCode, got: Any) -> bool:
    return bool(got[0] == expected.code)


aiosmtpd.controller.Controller = Controller
StatusCode.__eq__ = _same_code
StatusCode.__hash__ = lambda code: hash(code.code)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen, rest = [], []
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        options = item.get_closest_marker("controller_data")
        others = options is not None and any(
            value not in ALIKE.get(name, []) for name, value in options.kwargs.items()
        )
        others = others or item.name == "test_data_354"  # it ends the server in the middle of a message
        own = others or item.get_closest_marker("handler_data")
        inside = names & {"mocker", "monkeypatch", "caplog"}
        (chosen if names & PLAIN and not own and not inside else rest).append(item)
    items[:] = chosen
    config.hook.pytest_deselected(items=rest)


def pytest_unconfigure() -> None:
    for one in _live:
        one.stop()
