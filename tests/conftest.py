"""Shared fixtures. Everything binds to free ports of the loopback address and lives in temporary folders."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from outmail.config import from_toml
from outmail.outbox.outbox import Outbox
from outmail.policy import veil
from outmail.reports import lastresort
from outmail.testing import Sink
from tests import pgserver, programs, starts

pytest.register_assert_rewrite("outmail.testing.conformance")

# A slow machine is no defect: how long one example takes is not looked at. Each run has the same examples;
# `make campaigns` looks for new ones (--hypothesis-profile random).
hypothesis.settings.register_profile("random", deadline=None)
hypothesis.settings.register_profile("outmail", deadline=None, derandomize=True)
hypothesis.settings.load_profile("outmail")


#: Where every package was installed that tests use, none may be skipped for the want of one.
ALL_PACKAGES = "OUTMAIL_ALL_PACKAGES" in os.environ
_missing: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if (
        ALL_PACKAGES
        and report.skipped
        and isinstance(report.longrepr, tuple)
        and programs.INSTALL in report.longrepr[2]
    ):
        _missing.append(f"{report.nodeid}: {report.longrepr[2]}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in _missing:
        terminalreporter.write_line(f"could have been run: {line}", red=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _missing and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("OUTMAIL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg-config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg-data"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg-state"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(autouse=True)
def no_report_leaves_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no relay takes goes neither to the machine's own mail system nor to its log."""
    monkeypatch.setattr(lastresort, "PROGRAMS", ())
    monkeypatch.setattr(lastresort, "SYSLOG", ())


@pytest.fixture(autouse=True)
def no_password_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test told the process is not masked in the next one."""
    for name, value in vars(veil.Veil()).items():
        monkeypatch.setattr(veil.known, name, value)


@pytest.fixture(autouse=True)
def outmails_log_is_open() -> None:
    """What one test does to the logging of the process does not silence the next one's."""
    logging.disable(logging.NOTSET)
    for name in ("outmail", "outmail.engine", "outmail.delivery", "outmail.mailbox"):
        logger = logging.getLogger(name)
        logger.disabled, logger.propagate = False, True
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as running:
        yield running


@pytest.fixture(params=["sqlite", *pgserver.versions()[-1:]])
def each_store(request: pytest.FixtureRequest, tmp_path: Path, boxes: list[Outbox]) -> Iterator[str]:
    """An empty store: first on SQLite, then on the newest PostgreSQL that is there."""
    if request.param == "sqlite":
        yield str(tmp_path / "q.db")
        return
    with pgserver.database(request.param) as url:
        yield url
        closed(boxes)  # before the database is emptied for the next test


@pytest.fixture
def boxes() -> Iterator[list[Outbox]]:
    """Whatever `make_box` has made and is still open."""
    made: list[Outbox] = []
    yield made
    closed(made)


def closed(boxes: list[Outbox]) -> None:
    while boxes:
        boxes.pop().close()


@pytest.fixture
def make_box(tmp_path: Path, boxes: list[Outbox]) -> Callable[..., Outbox]:
    """make_box(relay=…, toml=…) → an Outbox on tmp_path/q.db."""

    def make(relay: str | None = None, toml: str = "", store: str | None = None, **words: Any) -> Outbox:
        config = from_toml('from = "me@outmail.test"\n' + toml, "test", {})
        box = Outbox(store or tmp_path / "q.db", config=config, relay=relay, **{"exit_wait": 0.2, **words})
        boxes.append(box)
        return box

    return make


@pytest.fixture
def outmail(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run the command in tmp_path."""

    def run(
        *arguments: str, stdin: bytes = b"", timeout: float = 60, **env: str
    ) -> subprocess.CompletedProcess[bytes]:
        return starts.outmail(
            arguments, stdin=stdin, cwd=tmp_path, env={**os.environ, **env}, timeout=timeout
        )

    return run
