"""Fixtures for users' tests: ``mail_sink`` (a running `Sink`) and ``outbox`` (stores in a temporary place,
sends nothing).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from outmail.outbox.outbox import Outbox
    from outmail.testing.sink import Sink


@pytest.fixture
def mail_sink() -> Iterator[Sink]:
    """An SMTP server that takes everything; ``mail_sink.messages``, ``mail_sink.url``,
    ``mail_sink.script(…)``.
    """
    from outmail.testing.sink import Sink

    with Sink() as sink:
        yield sink


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    """An `Outbox` that captures: everything is stored as in production, nothing is sent."""
    from outmail.config import from_toml
    from outmail.outbox.outbox import Outbox

    config = from_toml('from = "test@outmail.test"', "the outbox fixture", {})
    with Outbox(tmp_path / "outbox.db", config=config, deliver="never") as box:
        yield box
