"""`[notify] failed`: operators hear of failed mail, at once, in few mails, and never of the notices."""

from __future__ import annotations

import email
import email.policy
import subprocess
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from outmail.errors import ConfigError
from outmail.model import Event
from outmail.outbox.outbox import Outbox
from outmail.reports import failures
from outmail.testing import FakeClock, Sink
from tests.waiting import until

MakeBox = Callable[..., Outbox]
TO = ("ops@outmail.test",)
SCRIPT = "RCPT bad*: 550 5.1.1 nobody of this name\n"


def _failed(box: Outbox, *names: str, **words: Any) -> None:
    for name in names:
        id = box.send(f"{name}@x.test", f"to {name}", "t", **words).id
        assert box.wait(id, 20).status == "failed"


def _notices(sink: Sink) -> list[EmailMessage]:
    return [
        email.message_from_bytes(m.content, policy=email.policy.default)
        for m in sink.messages
        if m.recipients == TO
    ]


def _text(mail: EmailMessage) -> str:
    body = mail.get_body(("plain",))
    assert body is not None
    return str(body.get_content())


def test_the_first_at_once_the_others_together_each_once(make_box: MakeBox, sink: Sink) -> None:
    sink.script(SCRIPT)
    clock = FakeClock()
    box = make_box(relay=sink.url, clock=clock)
    _failed(box, "bad0")
    failures.look(box, TO)  # what failed before it was first asked is not told
    _failed(box, "bad1")
    failures.look(box, TO)
    failures.look(box, TO)
    sink.wait_for(1)
    (first,) = _notices(sink)
    assert "✗ mail to bad1@x.test failed: 550 5.1.1" in first["subject"]
    assert "  bad1@x.test\n  550 5.1.1 nobody of this name\n  to bad1, from me@" in _text(first).replace(
        "\r", ""
    )
    assert first["Auto-Submitted"] == "auto-generated" and "bad0@" not in _text(first)
    assert "to bad1, from me@outmail.test" in " ".join(_text(first).split()) and "outmail why " in _text(
        first
    )
    _failed(box, "bad2", "bad3")
    failures.look(box, TO)
    assert len(_notices(sink)) == 1
    clock.advance("15m")
    failures.look(box, TO)
    until(lambda: len(_notices(sink)) == 2)
    assert _notices(sink)[1]["subject"].startswith("✗ 2 recipients failed")
    assert "bad2@x.test" in _text(_notices(sink)[1]) and "bad3@x.test" in _text(_notices(sink)[1])


def test_a_notice_that_fails_is_no_reason_for_another(make_box: MakeBox, sink: Sink) -> None:
    sink.script(SCRIPT + "RCPT ops@*: 550 5.1.1 nobody")
    clock = FakeClock()
    box = make_box(relay=sink.url, clock=clock)
    failures.look(box, TO)
    _failed(box, "bad")
    failures.look(box, TO)
    until(lambda: len(list(box.find("state:failed"))) == 2)
    clock.advance("150m")
    failures.look(box, TO)
    assert len(list(box.find(tag="report:notify"))) == 1


def test_many_failures_are_few_lines_and_safety_is_no_failure(make_box: MakeBox, sink: Sink) -> None:
    sink.script(SCRIPT)
    box = make_box(relay=sink.url, toml='[safety]\nonly_to = ["bad*", "ops@*"]\n')
    failures.look(box, TO)
    box.send("elsewhere@x.test", "held back", "t")
    failures.look(box, TO)
    assert not list(box.find(tag="report:notify"))
    ids = [receipt.id for receipt in box.send_many({"to": f"bad{n}@x.test"} for n in range(30))]
    assert all(box.wait(id, 20).status == "failed" for id in ids)
    failures.look(box, TO)
    sink.wait_for(1)
    text = _text(_notices(sink)[0])
    assert "30 recipients failed" in _notices(sink)[0]["subject"] and "And 10 more." in text
    assert text.count("outmail why ") == failures.MOST


def test_a_callback_hears_of_every_failure(make_box: MakeBox, sink: Sink) -> None:
    sink.script(SCRIPT)
    box = make_box(relay=sink.url)
    heard: list[Event] = []
    box.on("failed")(heard.append)
    _failed(box, "bad")
    box.wait(box.send("good@x.test").id, 20)
    until(lambda: heard)
    assert [(event.event, event.address, event.state) for event in heard] == [
        ("refused", "bad@x.test", "failed")
    ]
    with pytest.raises(ConfigError, match="failed and"):
        box.on("broken")


def test_cron_tells_of_it_with_its_next_run(
    outmail: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path, sink: Sink
) -> None:
    sink.script(SCRIPT)
    (tmp_path / "outmail.toml").write_text(
        f'store = "q.db"\nfrom = "me@outmail.test"\nrelay = "{sink.url}"\n[notify]\nfailed = ["{TO[0]}"]\n'
    )
    assert outmail("run", "--once").returncode == 0
    assert outmail("send", "bad@x.test").returncode == 0
    for _ in range(2):
        assert outmail("run", "--once").returncode == 0
    assert len(_notices(sink)) == 1
    (tmp_path / "outmail.toml").write_text('[notify]\nfailed = ["nobody"]\n')
    assert outmail("config").returncode == 78
