"""The interface, line by line: names, parameters, JSON members and words that users' scripts rely on.

What is promised and not built yet stands in `LATER`; docs/knownissues.md must name it, and the command must
say 64 or 78.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import outmail
from outmail import config, lifecycle
from outmail.cli.arguments import parser
from outmail.outbox.aio import AsyncOutbox
from outmail.outbox.outbox import Outbox
from outmail.outbox.queue import Queue
from outmail.policy import selection
from outmail.testing import FakeClock, Sink

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
ROOT = Path(__file__).parents[2]

SEND = (
    "to subject text html cc bcc sender reply_to headers attachments inline key at expires priority tag "
    "relay using wait"
).split()
SUBMIT = "content sender recipients key at expires priority tag relay using wait".split()
VERBS = (
    "status find content attempts cancel hold release retry requeue wait on events send submit send_many "
    "submit_many close"
).split()
QUEUE = ("status find content attempts events hold release cancel retry requeue reroute purge stats").split()

COMMANDS = {
    "demo": "",
    "send": "-f -s --cc --bcc -a --html -H --key --at --expires --priority --tag --relay --raw --wait --json",
    "run": "--once --strict --only",
    "queue": "--dry-run --ids --json --jsonl", "show": "--raw --json", "log": "--jsonl",
    "events": "--follow --after --jsonl", "why": "", "explain": "",
    "test": "--to", "store": "--dialect", "move": "", "config": "--json", "loopback": "--json --assign",
    "certify": "--verify",
}  # fmt: skip
LATER = ("init",)


def names(function: object) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]  # type: ignore[arg-type]


def test_the_library() -> None:
    assert names(Outbox.__init__)[:5] == ["store", "relay", "config", "deliver", "exit_wait"]
    assert inspect.signature(Outbox.__init__).parameters["exit_wait"].default == 5.0
    assert names(Outbox.send) == SEND
    assert [name for name in names(Outbox.submit) if name != "dsn"] == SUBMIT
    for verb in VERBS:
        assert callable(getattr(Outbox, verb)) and callable(getattr(AsyncOutbox, verb)), verb
    assert list(inspect.signature(Outbox.wait).parameters) == ["self", "id", "timeout"]
    for verb in QUEUE:
        assert callable(getattr(Queue, verb)), verb
    assert names(Queue.reroute) == ["what", "relay"]


def test_errors() -> None:
    assert issubclass(outmail.Refused, (outmail.Error, ValueError)) and issubclass(
        outmail.Refused, ValueError
    )
    assert issubclass(outmail.NotStored, outmail.Error) and issubclass(outmail.NotStored, OSError)
    assert issubclass(outmail.ConfigError, outmail.Error) and issubclass(outmail.NotFound, outmail.Error)
    refusal = outmail.Refused("x")
    assert refusal.code == "refused" and refusal.index is None


@pytest.fixture
def used(make_box: Callable[..., Outbox], sink: Sink) -> Iterator[tuple[Outbox, outmail.Receipt]]:
    box = make_box(relay=sink.url)
    receipt = box.send(["a@x.test", "b@x.test"], "s", "t", key="k", tag="t")
    box.wait(receipt.id, 10)
    yield box, receipt


def test_receipts_and_ids(used: tuple[Outbox, outmail.Receipt]) -> None:
    box, receipt = used
    assert re.fullmatch("[0-9a-v]{26}", receipt.id) and receipt.durable and not receipt.duplicate
    assert receipt.accepted_at.utcoffset() == timedelta(0)
    again = box.send("c@x.test", "other", "t", key="k")
    assert (again.id, again.duplicate) == (receipt.id, True)
    first, second = box.send("a@x.test", "1", "").id, box.send("a@x.test", "2", "").id
    assert first < second or box.status(first).accepted_at == box.status(second).accepted_at
    assert box.status(f"{receipt.id}/2").recipients[1].n == 2
    with pytest.raises(outmail.Refused):
        box.cancel("")
    with pytest.raises(outmail.Refused) as caught:
        box.send_many([{"to": "a@x.test"}, {"to": "no address"}])
    assert caught.value.index == 1 and caught.value.code == "bad-address"


def test_json_members(used: tuple[Outbox, outmail.Receipt]) -> None:
    box, receipt = used
    status = box.status(receipt.id).as_dict()
    assert set(status) >= set(
        "v id message_id sender subject size sha256 key tag priority accepted_at expires_at status "
        "recipients".split()
    )
    assert set(status["recipients"][0]) >= set(
        "n address state uncertain reason attempts next_try_at route reply".split()
    )
    assert set(status["recipients"][0]["reply"]) == {"code", "enhanced", "text"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", status["accepted_at"])
    event = next(iter(box.events())).as_dict()
    assert (
        set(event) >= set("v cursor at event id n address state uncertain reason attempts reply".split())
        and event["event"] == "accepted"
    )
    attempt = box.attempts(receipt.id)[0].as_dict()
    assert set(attempt) >= set("v at recipients route host duration_ms outcome reply transcript".split())
    assert set(attempt["transcript"][0]) == {"ms", "dir", "line"}
    assert status["v"] == event["v"] == attempt["v"] == 1


def test_words() -> None:
    assert set(lifecycle.STATES) == set("queued sending held failed cancelled delivered".split())
    for word in (
        "state:queued to:a from:a subject:a tag:a key:a code:451 route:default before:1h after:1h "
        "larger:1MB is:uncertain was:uncertain is:deferred -to:a"
    ).split():
        selection.parse(word, 0)
    for name, code in (("demo", 0), ("nonsense", 64)):
        try:
            parser().parse_args([name])
            assert code == 0
        except SystemExit as end:
            assert end.code == code


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str) -> None:
    sub = next(action for action in parser()._actions if action.dest == "command").choices[command]  # type: ignore[index]
    options = {option for action in sub._actions for option in action.option_strings}
    assert set(COMMANDS[command].split()) <= options
    if command not in ("demo", "explain"):
        assert {"--config", "--store", "--relay"} <= options


def test_queue_and_store_verbs() -> None:
    subs: Any = next(action for action in parser()._actions if action.dest == "command").choices
    verb = {
        name: next(a for a in subs[name]._actions if a.dest == "verb").choices for name in ("queue", "store")
    }
    assert set(verb["queue"]) == set("list stats hold release retry requeue reroute cancel purge".split())
    assert set(verb["store"]) == set("upgrade check backup ddl".split())


def test_what_is_later_is_named(outmail: Run) -> None:
    page = (ROOT / "docs" / "knownissues.md").read_text()
    for command in LATER:
        assert f"`{command}`" in page or f"`outmail {command}`" in page, command
        assert outmail(command).returncode == 64


def test_the_interfaces_own_configuration_is_valid() -> None:
    text = """
store = "sqlite:///var/lib/outmail/queue.db"
from = "robot@example.org"
to = ["me@example.org"]
[relay]
url = "smtp://user@smtp.example.org:587"
password_file = "/etc/outmail/password"
[relays.backup]
url = "smtps://user@backup.example.org"
[[route]]
from = "*@example.com"
to = "*"
tag = "*"
relays = ["default", "backup"]
[retry]
schedule = "1m, 5m*2, 15m, 1h*3, 4h…"
expire = "5d"
soft_bounce = false
on_uncertain = "retry"
[listen]
smtp = []
lmtp = []
submission = []
[limits]
message_size = "50MB"
recipients = 10000
[safety]
only_to = []
redirect_to = ""
[retention]
bodies = "7d"
records = "90d"
transcripts = "30d"
"""
    made = config.from_toml(text, "interface", {})
    assert made.routes.choose("a@example.com", "b@x.test", None) == "default,backup"
    assert made.store == "sqlite:///var/lib/outmail/queue.db" and made.message_size == 50_000_000
    shown = json.dumps(made.as_dict())
    assert "password" not in shown


def test_for_tests() -> None:
    with Sink("RCPT bad@*: 550 5.1.1 no") as sink:
        assert sink.port and sink.messages == [] and callable(sink.wait_for)
    assert FakeClock().now()
