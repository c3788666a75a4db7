"""What a listener gives one client: time, memory, connections, guesses, lines of the log. And addresses as long as their path may be."""

from __future__ import annotations

import smtplib
from collections.abc import Callable
from typing import Any

from outmail import Outbox
from outmail.testing import Sink
from tests.road.test_listen import BODY, Start, listening, start, toml  # noqa: F401 - fixtures

LONG = "btv1==0123456789=" + "v" * 150 + "=example.org@x.test"


def test_local_parts_as_long_as_the_path_allows_go_in_and_out(start: Start, sink: Sink, make_box: Callable[..., Outbox], tmp_path: Any) -> None:  # noqa: F811
    """VERP, SRS and reply tokens do not fit into 64 octets."""
    service = start(toml(sink, f'smtp = ["127.0.0.1:0"]\nlmtp = ["unix:{tmp_path}/lmtp"]'))
    with smtplib.SMTP("127.0.0.1", service.ports["smtp"], timeout=20) as client:
        assert client.sendmail(LONG, [LONG], BODY) == {}
    with smtplib.LMTP(f"{tmp_path}/lmtp") as client:
        assert client.sendmail(LONG, [LONG], BODY) == {}
    box = make_box(relay=sink.url, store=str(tmp_path / "own.db"), exit_wait=20)
    box.send(LONG, "subject", "text", sender=LONG)
    assert [(got.sender, got.recipients) for got in sink.wait_for(3, 30)] == [(LONG, (LONG,))] * 3
