"""The lines of mailqueue-runner's logs."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path

import pytest

from outmail.compat.mailqueue import delivery_log, ini
from outmail.compat.mailqueue.delivery_log import DeliveryEvent, format_delay, format_logfmt
from outmail.errors import ConfigError


def test_fields_stand_in_their_order_and_quoted_where_they_must() -> None:
    event = DeliveryEvent("sent", "a@x.test", "1@x.test", from_addr="b@x.test", smtp='250 "ok"\n')
    assert format_logfmt(event) == (
        'status=sent      to=a@x.test msgid=1@x.test from=b@x.test smtp="250 \\"ok\\"\\n"'
    )
    assert event.as_dict()["from"] == "b@x.test" and "error" not in event.as_dict()
    assert format_logfmt(DeliveryEvent("failed", "\x1b[1m")).endswith('to="\\x1b[1m"')


@pytest.mark.parametrize(
    "seconds, told", [(42, "42s"), (600, "10m"), (7500, "2h05m"), (97_200, "1d3h"), (-5, "0s")]
)
def test_a_delay_is_short(seconds: int, told: str) -> None:
    assert format_delay(timedelta(seconds=seconds)) == told


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = ini.parse(f"[mqrunner]\ndelivery_log = {tmp_path}/file/d.log\n", "c.ini")
    [problem] = delivery_log.open_logs(found)
    assert "nothing is logged there" in problem


def test_a_logging_configuration_is_used_or_named(tmp_path: Path) -> None:
    path = tmp_path / "log.ini"
    found = ini.parse(f"[mqrunner]\nlogging_conf = {path}\n", "c.ini")
    with pytest.raises(ConfigError, match=r"line 2: logging_conf: .*No such file"):
        delivery_log.open_logs(found)
    path.write_text(
        "[loggers]\nkeys=root,d\n[handlers]\nkeys=f\n[formatters]\nkeys=\n[logger_root]\nhandlers=\n"
        "[logger_d]\nqualname=mailqueue.delivery_log\nhandlers=f\nlevel=INFO\n"
        f"[handler_f]\nclass=FileHandler\nargs=('{tmp_path}/d.log',)\n"
    )
    logger = logging.getLogger(delivery_log.DELIVERY)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        assert delivery_log.open_logs(found) == []
        delivery_log.write(DeliveryEvent("sent", "a@x.test"), queued=False)
        assert "to=a@x.test" in (tmp_path / "d.log").read_text()
    finally:
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)
            handler.close()
        root.handlers[:], root.level = before
