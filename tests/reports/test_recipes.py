"""Beside structlog, loguru and tqdm, as the docs say."""

from __future__ import annotations

import io
import logging
import sys

import loguru
import pytest
import structlog

import outmail
from outmail import DigestHandler, Outbox

from .conftest import Mails, text


def test_structlog(box: Outbox, mails: Mails) -> None:
    handler = DigestHandler(outbox=box, name="feeds", after_runs=1)
    root = logging.getLogger()
    root.addHandler(handler)
    structlog.configure(
        processors=[structlog.stdlib.render_to_log_kwargs], logger_factory=structlog.stdlib.LoggerFactory()
    )
    try:
        with handler.run():
            structlog.get_logger("feeds").error("feed failed", key="daily-news")
    finally:
        structlog.reset_defaults()
        root.removeHandler(handler)
        handler.close()
    (mail,) = mails.wait(1)
    assert "daily-news" in str(mail["subject"]) and "feed failed" in text(mail)


def test_loguru(box: Outbox, mails: Mails) -> None:
    handler = DigestHandler(outbox=box, name="feeds")
    number = loguru.logger.add(handler, format="{message}")
    try:
        with handler.run():
            loguru.logger.bind(key="daily-news").error("feed failed")
            try:
                1 / 0  # noqa: B018
            except ZeroDivisionError:
                loguru.logger.exception("odd")
    finally:
        loguru.logger.remove(number)
        handler.close()
    (mail,) = mails.wait(1)
    assert "daily-news" in str(mail["subject"]) and "ZeroDivisionError" in text(mail)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("with_tqdm", [True, False])
def test_a_live_bar_on_a_terminal(box: Outbox, monkeypatch: pytest.MonkeyPatch, with_tqdm: bool) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    if not with_tqdm:
        for name in ("tqdm", "tqdm.auto"):
            monkeypatch.setitem(sys.modules, name, None)
    with outmail.job("crawl", total=10, outbox=box, finish=False) as job:
        for _ in job.iter(range(10)):
            pass
        job.set_description("page 7")
        job.set_postfix(loss=0.1)
    assert "crawl" in screen.getvalue() and (
        "10/10" in screen.getvalue() if with_tqdm else "10 of 10 (100 %)" in screen.getvalue()
    )
