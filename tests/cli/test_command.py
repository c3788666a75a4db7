"""The command as scripts call it: ids on stdout, words on stderr, sysexits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from outmail import Outbox
from outmail.testing import Sink

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
S = ("--store", "q.db")


def send(outmail: Run, *arguments: str, body: bytes = b"hello\n") -> str:
    done = outmail("send", *S, "-f", "me@x.test", *arguments, stdin=body)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def test_send_prints_the_id_and_nothing_else(outmail: Run) -> None:
    done = outmail("send", *S, "-f", "me@x.test", "-s", "grüße", "a@x.test", stdin="tschüß\n".encode())
    assert (done.returncode, done.stderr, len(done.stdout)) == (0, b"", 27)


def test_all_words_of_send(outmail: Run, tmp_path: Path, sink: Sink) -> None:
    (tmp_path / "file.bin").write_bytes(b"\0\1")
    (tmp_path / "page.html").write_text("<b>x</b>")
    id = send(
        outmail,
        "-s",
        "S",
        "--cc",
        "c@x.test",
        "--bcc",
        "un-seen@x.test",
        "-a",
        "file.bin",
        "--html",
        "page.html",
        "-H",
        "X-A: b",
        "--key",
        "k",
        "--expires",
        "1d",
        "--priority",
        "high",
        "--tag",
        "t",
        "--relay",
        sink.url,
        "--wait",
        "10",
        "a@x.test",
    )
    content = sink.messages[0].content
    assert (
        b"X-A: b\r\n" in content
        and b"file.bin" in content
        and b"text/html" in content
        and b"un-seen@x.test" not in content
    )
    shown = json.loads(outmail("show", *S, id, "--json").stdout)
    assert (shown["key"], shown["tag"], shown["priority"], shown["status"]) == ("k", "t", "high", "delivered")
    assert send(outmail, "--key", "k", "a@x.test") == id


@pytest.mark.parametrize(("script", "code"), [("", 0), ("RCPT: 550 no", 69), ("RCPT: 451 later", 75)])
def test_wait_says_how_it_went(outmail: Run, sink: Sink, script: str, code: int) -> None:
    sink.script(script)
    done = outmail(
        "send", *S, "-f", "me@x.test", "--relay", sink.url, "--wait", "1.5", "a@x.test", stdin=b"x"
    )
    assert done.returncode == code, done.stderr


def test_raw_keeps_the_bytes(outmail: Run) -> None:
    content = (
        b"From: x@y.test\r\nDate: Thu, 01 Jan 1970 00:00:00 +0000\r\nMessage-ID: <a@b>\r\n\r\n.\r\nbody\r\n"
    )
    id = send(outmail, "--raw", "a@x.test", body=content)
    assert outmail("show", *S, id, "--raw").stdout == content


def test_the_command_qualifies_what_it_composes_and_the_envelope_of_what_comes_whole(
    outmail: Run, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text('[accept]\norigin = "o.test"\n')
    words = ("--config", "c.toml", "--store", "q.db", "-f", "root", "john")
    sent = outmail("send", *words, stdin=b"hello\n")
    whole = b"From: root\r\n\r\nx\r\n"
    given = [outmail(*name, *words, stdin=whole) for name in (("submit",), ("send", "--raw"))]
    assert [done.returncode for done in (sent, *given)] == [0, 0, 0], (sent.stderr, given)
    content = outmail("show", "--store", "q.db", sent.stdout.decode().strip(), "--raw").stdout
    assert b"From: root@o.test\r\nTo: john@o.test\r\n" in content
    for done in given:
        id = done.stdout.decode().strip()
        shown = json.loads(outmail("show", "--store", "q.db", id, "--json").stdout)
        assert (shown["sender"], shown["recipients"][0]["address"]) == ("root@o.test", "john@o.test")
        assert outmail("show", "--store", "q.db", id, "--raw").stdout.endswith(whole)


def test_submit_is_the_name_of_send_raw(outmail: Run, sink: Sink) -> None:
    content = b"Date: Thu, 01 Jan 1970 00:00:00 +0000\r\nMessage-ID: <a@b>\r\n\r\nbody\r\n"
    words = [
        *S, "-f", "me@x.test", "--cc", "c@x.test", "--bcc", "b@x.test", "--key", "k", "--tag", "t",
        "--expires", "1d", "--priority", "low", "--relay", sink.url, "--wait", "10", "--json", "a@x.test",
    ]  # fmt: skip
    done = outmail("submit", *words, stdin=content)
    again = outmail("send", "--raw", *words, stdin=content)
    told, retold = json.loads(done.stdout), json.loads(again.stdout)
    assert (done.returncode, again.returncode) == (0, 0), done.stderr
    assert told["id"] == retold["id"] and not told["duplicate"] and retold["duplicate"]
    (got,) = sink.messages
    assert got.content == content and got.recipients == ("a@x.test", "c@x.test", "b@x.test")


def test_a_complete_message_may_have_no_sender(outmail: Run) -> None:
    for words, code in ((("submit",), 0), (("send", "--raw"), 0), (("send",), 65)):
        done = outmail(*words, *S, "-f", "<>", "a@x.test", stdin=b"A: b\r\n\r\n")
        assert done.returncode == code, done.stderr
        if not code:
            shown = outmail("show", *S, done.stdout.decode().strip(), "--json")
            assert json.loads(shown.stdout)["sender"] == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("send", *S, "-f", "me@x.test", "broken@"), 65),
        (("submit", *S, "-f", "me@x.test", "broken@"), 65),
        (("submit", *S), 64),
        (("submit", *S, "-s", "a subject", "a@x.test"), 64),
        (("send", *S), 64),
        (("frobnicate",), 64),
        ((), 64),
        (("show", *S, "0" * 26), 66),
        (("send", "--store", "none/q.db", "-f", "me@x.test", "a@x.test"), 75),
        (("send", "--config", "none.toml", "a@x.test"), 78),
        (("queue", "cancel", *S), 64),
        (("queue", "list", *S, "colour:red"), 65),
        (("run", *S, "--only", "0" * 26), 66),
        (("store", "backup", *S), 64),
        (("send", *S, "-f", "me@x.test", "-H", "nocolon", "a@x.test"), 65),
        (("send", *S, "-f", "me@x.test", "--at", "soon", "a@x.test"), 65),
        (("explain", "bad-address"), 0),
        (("explain", "nonsense"), 66),
        (("demo", "--messages", "3"), 64),
        (("send", *S, "--relay", "what", "a@x.test"), 78),
        (("send", "--store", "postgresql://x/?nonsense=1", "a@x.test"), 78),
        (("send", "--store", "postgresql://127.0.0.1:1/x", "a@x.test"), 75),
        (("send", "--store", "maildir:", "a@x.test"), 78),
    ],
)
def test_exit_codes_and_one_sentence(
    outmail: Run, tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    Outbox(tmp_path / "q.db", deliver="never").close()
    done = outmail(*arguments)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr and (code == 0 or done.stderr)


def test_errors_as_json(outmail: Run) -> None:
    done = outmail("send", *S, "-f", "me@x.test", "--json", "broken@")
    assert json.loads(done.stderr)["error"]["code"] == "bad-address"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_77(outmail: Run, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert outmail("send", "--store", "locked/q.db", "-f", "me@x.test", "a@x.test").returncode == 77


def test_forbidden_is_77_and_passing_trouble_75() -> None:
    import errno

    from outmail.cli import _told
    from outmail.errors import NotStored

    codes = {errno.EACCES: 77, errno.EPERM: 77, errno.EROFS: 77, errno.ENOSPC: 75, None: 75}
    assert {number: _told(NotStored("x", errno=number), False) for number in codes} == codes


def test_once_strict_and_only(outmail: Run, sink: Sink) -> None:
    sink.script("RCPT bad@*: 550 no\nRCPT slow@*: 451 later")
    good, slow = send(outmail, "a@x.test"), send(outmail, "slow@x.test")
    assert outmail("run", *S, "--relay", sink.url, "--only", good).returncode == 0
    assert [m.recipients for m in sink.messages] == [("a@x.test",)]
    assert outmail("run", *S, "--relay", sink.url, "--once", "--strict").returncode == 75
    assert outmail("run", *S, "--relay", sink.url, "--once", "--strict").returncode == 0
    send(outmail, "bad@x.test")
    assert outmail("run", *S, "--relay", sink.url, "--once", "--strict").returncode == 69
    assert json.loads(outmail("show", *S, slow, "--json").stdout)["recipients"][0]["attempts"] == 1
    log = outmail("run", *S, "--relay", sink.url, "--only", slow).stderr.decode()
    assert "status=deferred" in log and "to=slow@x.test" in log and "attempts=2" in log and "code=451" in log


def test_once_with_the_server_down_ends_and_says_why(outmail: Run) -> None:
    ids = [send(outmail, "a@x.test") for _ in range(4)]
    done = outmail("run", *S, "--relay", "smtp://127.0.0.1:1", "--once", timeout=30)
    assert done.returncode == 0 and b"refused" in done.stderr
    assert {json.loads(outmail("show", *S, id, "--json").stdout)["status"] for id in ids} == {"queued"}
    assert b"Connection refused" in outmail("queue", "list", *S).stdout


def test_queue_verbs(outmail: Run) -> None:
    first, second = send(outmail, "-s", "one", "a@x.test"), send(outmail, "-s", "two", "b@x.test")
    assert outmail("queue", "list", *S, "--ids", "to:b@x.test").stdout.decode().split() == [second]
    assert outmail("queue", "cancel", *S, "--dry-run", "ALL").returncode == 0
    assert b"1 recipient changed" in outmail("queue", "hold", *S, first).stderr
    assert outmail("queue", "list", *S, "--ids", "state:held").stdout.decode().split() == [first]
    assert b"1 rec" in outmail("queue", "release", *S, "state:held").stderr
    assert b"2 rec" in outmail("queue", "cancel", *S, "-", stdin=f"{first} {second}".encode()).stderr
    assert b"2 rec" in outmail("queue", "requeue", *S, "state:cancelled").stderr
    assert b"1 rec" in outmail("queue", "retry", *S, first).stderr
    stats = json.loads(outmail("queue", "stats", *S, "--json").stdout)
    assert stats["states"] == {"queued": 2}
    outmail("queue", "cancel", *S, "ALL")
    assert b"forgotten" in outmail("queue", "purge", *S, "ALL").stderr
    assert [
        json.loads(line)["v"] for line in outmail("queue", "list", *S, "ALL", "--jsonl").stdout.splitlines()
    ] == []


def test_show_log_events_why(outmail: Run, sink: Sink) -> None:
    sink.script("RCPT: 550 5.1.1 nobody here")
    id = send(outmail, "-s", "story", "a@x.test")
    outmail("run", *S, "--relay", sink.url, "--once")
    assert "nobody here" in outmail("show", *S, id).stdout.decode()
    attempt = json.loads(outmail("log", *S, id, "--jsonl").stdout)
    assert set(attempt) == {
        "v",
        "at",
        "recipients",
        "route",
        "host",
        "duration_ms",
        "outcome",
        "reply",
        "transcript",
    }
    assert {"ms", "dir", "line"} == set(attempt["transcript"][0]) and "RCPT TO" in outmail(
        "log", *S, id
    ).stdout.decode()
    events = [json.loads(line) for line in outmail("events", *S, "--jsonl").stdout.splitlines()]
    assert [e["event"] for e in events] == ["accepted", "refused"]
    assert set(events[1]) == {
        "v",
        "cursor",
        "at",
        "event",
        "id",
        "n",
        "address",
        "state",
        "uncertain",
        "reason",
        "attempts",
        "reply",
        "route",
    }
    assert outmail("events", *S, "--after", str(events[0]["cursor"])).stdout.count(b"\n") == 1
    for what in (id, "a@x.test"):
        assert "nobody here" in outmail("why", *S, what).stdout.decode()


def test_test_shows_the_dialogue_and_advises(outmail: Run, sink: Sink) -> None:
    done = outmail("test", *S, "--to", "a@x.test", "-f", "me@x.test", "--relay", sink.url)
    assert done.returncode == 0 and b"MAIL FROM" in done.stderr and b"accepted by the relay" in done.stdout
    done = outmail("test", *S, "--to", "a@x.test", "-f", "me@x.test", "--relay", "smtp://127.0.0.1:1")
    assert done.returncode == 75 and b"nobody listens on this port" in done.stderr


def test_store_and_config(outmail: Run, tmp_path: Path) -> None:
    send(outmail, "a@x.test")
    assert outmail("store", "check", *S).returncode == 0
    assert (
        outmail("store", "backup", *S, "copy.db").returncode == 0
        and outmail("store", "check", "--store", "copy.db").returncode == 0
    )
    assert outmail("store", "backup", *S, "copy.db").returncode == 65
    assert b"outmail_outbox" in outmail("store", "ddl").stdout
    shown = json.loads(outmail("config", "--json", "--relay", "smtp://u:geheim@h.example").stdout)
    assert shown["relays"]["default"] == "smtp://u@h.example:587" and "geheim" not in json.dumps(shown)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("colour = 1", "unknown key 'colour'"),
        ("stor = 'x'", "did you mean 'store'"),
        ("store = 5", "must be text"),
        ("relays = ['here']", "must be a table"),
        ("[retry]\nschedule = 'soon'", "not a span"),
        ("[retry]\non_uncertain = 'verify'", "needs loopback"),
        ("[relay]\nurl = 'http://x'", "not a relay"),
        ("[relay]\nurl = 'null:'\nurll = 1", "did you mean 'url'"),
        ("[[route]]\nrelays = ['defualt']", "did you mean 'default'"),
        ("x = ", "Invalid value"),
        ("from = 'some body'", "has no @"),
        ("[accept]\norigin = 'a b'", "is no domain"),
        ("[accept]\norigins = 'a.test'", "did you mean 'origin'"),
        ("[limits]\nmessage_size = '50 potatoes'", "not a size"),
        ("[limits]\nrecipients = true", "whole number"),
        ("[retention]\nbodies = '7'", "span of time"),
        ("[relay]\nurl = 'smtp://x'\nfingerprint = 'ab'", "SHA-256"),
    ],
)
def test_wrong_configuration_is_one_line_and_78(outmail: Run, tmp_path: Path, toml: str, words: str) -> None:
    (tmp_path / "c.toml").write_text(toml)
    done = outmail("config", "--config", "c.toml")
    assert done.returncode == 78 and words in done.stderr.decode() and done.stderr.count(b"\n") == 1, (
        done.stderr
    )


def test_an_empty_configuration_and_the_environment(outmail: Run, tmp_path: Path) -> None:
    (tmp_path / "outmail.toml").write_text("")
    shown = json.loads(
        outmail(
            "config",
            "--json",
            OUTMAIL_STORE="env.db",
            OUTMAIL_RELAY="null:",
            OUTMAIL_FROM="e@x.test",
            OUTMAIL_TO="t@x.test",
        ).stdout
    )
    assert (shown["source"], shown["store"], shown["relays"]["default"], shown["from"], shown["to"]) == (
        "outmail.toml",
        "env.db",
        "null:",
        "e@x.test",
        ["t@x.test"],
    )


def test_every_command_has_help(outmail: Run) -> None:
    for command in (
        "demo",
        "send",
        "run",
        "queue",
        "show",
        "log",
        "events",
        "why",
        "explain",
        "test",
        "store",
        "config",
    ):
        done = outmail(command, "--help")
        assert done.returncode == 0 and b"usage: outmail" in done.stdout


def test_mail_nobody_sends_is_said(outmail: Run, tmp_path: Path) -> None:
    import time

    from outmail.config import from_toml
    from outmail.outbox.outbox import Outbox
    from outmail.testing import FakeClock

    with Outbox(
        tmp_path / "q.db",
        config=from_toml("", "t", {}),
        deliver="never",
        clock=FakeClock(int(time.time() * 1000) - 120_000),
    ) as box:
        box.send("a@x.test", "s", "t", sender="me@x.test")
    assert b"no engine has run" in outmail("send", *S, "-f", "me@x.test", "a@x.test", stdin=b"x").stderr


def test_passwords_are_read_by_engines_only(outmail: Run, tmp_path: Path) -> None:
    (tmp_path / "outmail.toml").write_text(
        "store = 'q.db'\n[relay]\nurl = 'smtp://me@x.test'\npassword_file = '/none'"
    )
    assert outmail("send", "-f", "a@x.test", "b@x.test").returncode == 0
    assert outmail("queue", "list").returncode == 0
    done = outmail("run", "--once")
    assert done.returncode == 78 and b"No such file" in done.stderr and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["queue", "list", "--help"]])
def test_a_reader_who_has_gone_is_no_bug(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-u", "-m", "outmail", *words],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    finally:
        os.close(writing)
    assert done.returncode in (0, 141) and done.stderr == b""  # argparse passes over it and says 0
