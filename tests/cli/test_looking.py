"""``outmail show``, ``log``, ``events``, ``why`` and ``explain``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from outmail.cli import main
from outmail.outbox.outbox import Outbox
from outmail.testing import Sink
from tests.cli.conftest import Command
from tests.waiting import until

MakeBox = Callable[..., Outbox]
S = ("--store", "q.db")


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()


def test_times_are_local_for_people_and_utc_on_request_and_in_json(
    command: Command, make_box: MakeBox
) -> None:
    id = make_box(deliver="never").send("a@x.test", "s", "t").id
    for words in (("show", id), ("why", id), ("events",)):
        assert " CET" in command(*words, *S).out and " UTC" in command(*words, *S, "--utc").out, words
    shown = json.loads(command("show", *S, id, "--json").out)
    assert shown["accepted_at"].endswith("Z")


def test_attempts_name_their_recipients(command: Command, make_box: MakeBox, sink: Sink) -> None:
    sink.script("RCPT b@*: 550 5.1.1 nobody here")
    box = make_box(relay=sink.url)
    id = box.send(["a@x.test", "b@x.test"], "s", "t").id
    box.wait(id, 10)
    lines = command("log", *S, id).out.splitlines()
    assert any("delivered a@x.test via" in line for line in lines)
    assert any("refused b@x.test via" in line and "nobody here" in line for line in lines)


def test_events_since_and_from_now_on(
    command: Command, make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = make_box(deliver="never")
    box.send("a@x.test", "s", "t")
    assert command("events", *S, "--since", "1h").out.count("accepted") == 1
    assert command("events", *S, "--since", "0s").out == ""
    assert command("events", *S, "--since", "when").status == 65
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            raise KeyboardInterrupt
        box.send("later@x.test", "s", "t")

    monkeypatch.setattr(time, "sleep", sleep)
    followed = command("events", *S, "--follow", "--jsonl")
    assert followed.status == 130 and followed.out.count('"accepted"') == 1


def test_events_of_next_hops_and_new_routes_say_which(
    command: Command, make_box: MakeBox, sink: Sink
) -> None:
    box = make_box(deliver="never")
    id = box.send("a@x.test", "s", "t").id
    box.queue.reroute(id, sink.url)
    store = box.store
    store.run(
        store.verbs.pause_hop("default", "smtp://localhost:25", "Connection refused", "e", box.clock.now())
    )
    lines = command("events", *S).out.splitlines()
    assert f"reroute {id}/1 a@x.test to {sink.url}" in lines[1]
    assert lines[2].endswith("paused default Connection refused")


def test_why_tells_what_it_means_and_what_to_do(command: Command, make_box: MakeBox, sink: Sink) -> None:
    sink.script(
        "RCPT grey*: 451 4.7.1 Greylisted\nRCPT bad*: 550 5.1.1 User unknown in virtual mailbox table"
    )
    box = make_box(relay=sink.url)
    id = box.send(["grey@x.test", "bad@x.test", "good@x.test"], "s", "t").id
    until(lambda: all(r.attempts for r in box.status(id).recipients))
    told = command("why", *S, id).out
    for words in ("greylisting", f"outmail queue retry {id}/1", "no such mailbox", f"queue requeue {id}/2"):
        assert words in told, told
    assert "It was delivered." in told.partition("good@x.test")[2]


def test_why_tells_of_a_relay_that_takes_nothing(command: Command, make_box: MakeBox, tmp_path: Path) -> None:
    relay = 'relay = "smtp://localhost:1"\n'
    (tmp_path / "outmail.toml").write_text(relay)
    box = make_box(toml=relay, deliver="thread", exit_wait=0)
    ids = [box.send(f"a{n}@x.test", "s", "t").id for n in range(6)]
    until(lambda: box.queue.paused_hops())
    told = command("why", *S, ids[0]).err
    assert "takes nothing since" in told and "nobody listens on this port" in told
    assert "recipients wait for it" in told


def test_why_finds_mail_that_was_redirected(command: Command, make_box: MakeBox, tmp_path: Path) -> None:
    safety = '[safety]\nredirect_to = "test@x.test"\n'
    (tmp_path / "outmail.toml").write_text(safety)
    box = make_box(toml=safety, deliver="never")
    id = box.send(["Anna@example.org", "berta@example.org"], "s", "t").id
    box.send("carla@example.org", "s", "t")
    told = command("why", *S, "anna@example.org")
    assert id in told.out and told.out.count("“s”") == 1
    assert command("why", *S, "nobody@example.org").status == 66


def test_explain(command: Command) -> None:
    for words, expected in (
        (("bad-address",), "RFC 5321"),
        (("5.1.1",), "no such mailbox"),
        (("450",), "greylisting"),
        (("550 5.7.26 unauthenticated - gsmtp",), "Gmail says so"),
        (("554", "5.7.1", "Relay", "access", "denied"), "user name"),
        (("4.9.9",), "another try may succeed"),
    ):
        done = command("explain", *words)
        assert done.status == (66 if words == ("4.9.9",) else 0)
        assert expected in done.out or done.status, words
    wrong = command("explain", "bad-adress")
    assert wrong.status == 66 and "did you mean bad-address?" in wrong.err


def test_a_queue_that_is_not_there_is_not_made_by_a_look(command: Command, tmp_path: Path) -> None:
    for words in (("queue", "list"), ("queue", "cancel", "ALL"), ("why", "a@x.test"), ("events",)):
        told = command(*words, *S)
        assert told.status == 66 and "there is no queue at q.db" in told.err, words
    told = command("queue", "stats", *S, "--warn", "1")
    assert told.status == 3 and told.out.startswith("UNKNOWN: there is no queue at q.db")
    assert not (tmp_path / "q.db").exists()


@pytest.mark.parametrize("url", ["mail.db", "sqlite:mail.db"])
def test_a_relative_store_is_beside_its_configuration(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """Cron and a shell start in different folders."""
    (tmp_path / "etc").mkdir(mode=0o755)
    (tmp_path / "etc" / "config.toml").write_text(f'store = "{url}"\nfrom = "me@x.test"\n')
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        assert command("send", "--config", "../etc/config.toml", "-s", "s", "a@x.test").status == 0
    assert command("queue", "list", "--config", "../etc/config.toml").out.count("a@x.test") == 2
    assert (tmp_path / "etc" / "mail.db").exists() and not (tmp_path / "a" / "mail.db").exists()
    assert main(["watch", "--config", "../etc/config.toml", "--name", "w", "--", "true"]) == 0
    assert (tmp_path / "etc" / "mail.db.spool" / "watch.jsonl").exists()
    assert not (tmp_path / "b" / "mail.db.spool").exists()


def test_show_as_its_reader_sees_it(command: Command, make_box: MakeBox) -> None:
    id = (
        make_box(deliver="never")
        .send("a@x.test", "grüße", "füße\n\x1b[2J", attachments=[("a.csv", b"12")])
        .id
    )
    lines = command("show", *S, id, "--text").out.splitlines()
    assert "Subject: grüße" in lines and "füße" in lines
    assert lines[-1] == "[attachment: a.csv, text/csv, 2 bytes]" and not any("\x1b" in line for line in lines)
