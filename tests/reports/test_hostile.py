"""Whatever a text, a record, a note or a file holds: the report goes out, and nothing odd reaches a reader's
screen.
"""

from __future__ import annotations

import email
import email.policy
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import outmail
from outmail import DigestHandler, Outbox, cli
from outmail.compat import relays
from outmail.compat.exoskeleton import NotificationManager
from outmail.compat.handlers import BufferingSMTPHandler, SMTPHandler
from outmail.reports import job_mails, jobs, post, spoolfiles, state, watch, watchdog
from outmail.testing import Sink

from .conftest import page, text

ODD = [
    "\0",
    "\x1b",
    "\x85",
    "\x9b",
    "\u202e",
    "\u2066",
    "\u200f",
    "\ufeff",
    "\udc80",
    "\ud83d",
    "\u2028",
    "\x7f",
]
NASTY = "a" + "".join(ODD) + "b\r\nBcc: x@y\n" + "\x1b[31mred\x1b[0m password: geheim "
ANY = st.text(alphabet=st.characters(), max_size=60)
FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def quiet(make_box: Callable[..., Outbox]) -> Outbox:
    return make_box(toml='to = ["me@x.test"]', deliver="never")


def newest(box: Outbox) -> Any:
    ids = [status.id for status in box.find()]
    return email.message_from_bytes(box.content(ids[-1]), policy=email.policy.default)


def clean(mail: Any) -> None:
    """No part of the mail holds a character that a reader's screen would obey, or the secret."""
    for shown in (str(mail["subject"]), text(mail), page(mail)):
        assert not any(char in shown for char in ODD)
        assert "geheim" not in shown
    assert mail["bcc"] is None


def options(**words: Any) -> Any:
    return _Options(
        {
            "name": "crawl",
            "to": (),
            "after": 1,
            "remind": 0,
            "no-recovered": False,
            "on": "always",
            "late": 0,
            "tail": 20,
            "no-output": False,
            "attach": False,
            "longer-than": 0,
            **words,
        }
    )


class _Options(dict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        return self[name.replace("_", "-")]


def result(output: str = "", reason: str = "exit status 1") -> SimpleNamespace:
    raw = output.encode("utf-8", "surrogatepass")
    return SimpleNamespace(
        failed=True,
        reason=reason,
        output=raw,
        cut=0,
        began_ms=int(time.time() * 1000),
        duration_ms=5,
        status=1,
        peak_kb=1,
        cpu=0.1,
    )


def a_job(box: Outbox, words: str, number: str = "") -> None:
    job = jobs.Job((words if words.strip() else "x") + number, outbox=box, strict=True, bar=False, tail=0)
    job.start()
    job.note(words)
    job.table([[words, words], [words]], words)
    job.update(1, field=words)
    job.metric(words, 1.0)
    job.fail(ValueError(words))


def a_watch(box: Outbox, words: str, number: str = "") -> None:
    from outmail.cli.watch import _named

    watch.ended(
        box, options(name=_named((words or "x") + number)), ["sh", words], result(words, words or "failed")
    )


def a_digest(box: Outbox, words: str, number: str = "") -> None:
    handler = DigestHandler(outbox=box, name=(words or "x") + number, at_most=10_000)
    logger = logging.Logger(words or "app")
    logger.addHandler(handler)
    with handler.run():
        try:
            raise KeyError(words)
        except KeyError:
            logger.exception(words, extra={"key": words})
        handler.ok(words)
    handler.close()
    assert handler._spool is None or not os.path.exists(handler._spool.path), "everything was folded"


def a_decorated_call(box: Outbox, words: str, number: str = "") -> None:
    @outmail.notify(
        on="finish", name=(words if words.strip() else "x") + number, result=str, outbox=box, strict=True
    )
    def work() -> str:
        return words

    work()


REPORTS = {"job": a_job, "watch": a_watch, "digest": a_digest, "decorator": a_decorated_call}


@pytest.mark.parametrize("kind", REPORTS)
def test_a_report_with_odd_characters_goes_out_and_shows_them(quiet: Outbox, kind: str) -> None:
    REPORTS[kind](quiet, NASTY)
    mail = newest(quiet)
    clean(mail)
    assert "\\x1b" in text(mail) or "\\udc80" in text(mail)


@pytest.mark.parametrize("kind", REPORTS)
def test_any_text_goes_out(quiet: Outbox, kind: str) -> None:
    numbers = map(str, itertools.count())  # a second failure under the same name is no news

    @given(ANY)
    @FEW
    def check(words: str) -> None:
        before = (
            quiet.stats()["states"].get("queued", 0) if hasattr(quiet, "stats") else len(list(quiet.find()))
        )
        REPORTS[kind](quiet, words, next(numbers))
        after = (
            quiet.stats()["states"].get("queued", 0) if hasattr(quiet, "stats") else len(list(quiet.find()))
        )
        assert after > before

    check()
    clean(newest(quiet))


class _Bad:
    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __str__


VALUES = st.one_of(
    ANY,
    st.none(),
    st.integers(),
    st.floats(),
    st.lists(ANY, max_size=2),
    st.builds(_Bad),
    st.just((1, 2, 3)),
    st.just((ValueError, ValueError("x"), None)),
    st.binary(max_size=4),
)
ATTRIBUTES = (
    "msg",
    "args",
    "name",
    "levelno",
    "levelname",
    "created",
    "exc_info",
    "exc_text",
    "stack_info",
    "key",
    "extra",
    "lineno",
    "pathname",
    "msecs",
    "thread",
)


def _handlers(box: Outbox, sink: Sink, folder: Path) -> Iterator[logging.Handler]:
    yield DigestHandler(outbox=box, name="any")
    yield SMTPHandler(("127.0.0.1", sink.port), "a@x.test", "b@x.test", "s\udc80", store=str(folder / "h.db"))
    yield BufferingSMTPHandler(
        ("127.0.0.1", sink.port), "a@x.test", "b@x.test", "s\x00", 3, store=str(folder / "h.db")
    )
    yield job_mails.Tail(5)


def test_no_record_makes_a_handler_raise(
    quiet: Outbox,
    sink: Sink,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handlers = list(_handlers(quiet, sink, tmp_path))
    plain = logging.makeLogRecord({"msg": "x"})
    for handler in handlers:
        handler.emit(plain)

    @given(st.dictionaries(st.sampled_from(ATTRIBUTES), VALUES, max_size=5))
    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    def check(attributes: dict[str, Any]) -> None:
        record = logging.makeLogRecord(attributes)
        for handler in handlers:
            handler.emit(record)

    check()
    assert isinstance(handlers[-1], job_mails.Tail)
    handlers[-1].text()
    for handler in handlers[:3]:
        handler.flush()
        handler.close()
    mails = list(quiet.find())  # what they did not send waits for the next one
    assert mails or state.read(quiet, "digest", "any")["pending"]["total"] > 10
    for id in [status.id for status in quiet.find()]:
        quiet.content(id)
    for box in list(relays._boxes.open.values()):
        box.close()


def test_one_bad_record_does_not_stop_the_handler_for_good(quiet: Outbox) -> None:
    """A surrogate in a record made every later folding fail."""
    a_digest(quiet, "\ud800\0\x9b")
    a_digest(quiet, "plain words")
    assert "plain words" in text(newest(quiet))


def test_the_exoskeleton_manager_reports_any_name(tmp_path: Path, sink: Sink) -> None:
    manager = NotificationManager(
        NASTY,
        {"server": "127.0.0.1", "server_port": sink.port, "recipient": "a@x.test", "sender": "b@x.test"},
        store=str(tmp_path / "e.db"),
        strict=True,
    )
    manager.send_custom_msg("s\udc80\0", "b\x1b[31m")
    manager.close()
    assert sink.wait_for(2, 10) is None or len(sink.messages) == 2


# -- notes and files that cannot be read ---------------------------------------------------------------------


GARBAGE = [
    "[1, 2]",
    '"text"',
    "7",
    '{"incident": 5}',
    '{"incident": {"failures": "many"}, "last": 3}',
    "not json",
    "[" * 100_000,
    '{"pending": {"groups": 7}}',
    '{"pending": {"odd": 1}, "incidents": [1]}',
]


def _put_raw(box: Outbox, kind: str, key: str, value: str) -> None:
    def verb() -> Any:
        yield "DELETE FROM note WHERE kind = ? AND key = ?", (kind, key)
        yield "INSERT INTO note (kind, key, value, version) VALUES (?,?,?,1)", (kind, key, value)

    box.store.run(verb())


@pytest.mark.parametrize("value", GARBAGE, ids=range(len(GARBAGE)))
@pytest.mark.parametrize(("kind", "report"), [("job", a_job), ("digest", a_digest)])
def test_a_note_that_cannot_be_read_is_set_aside(
    quiet: Outbox,
    kind: str,
    report: Callable[[Outbox, str], None],
    value: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _put_raw(quiet, kind, "crawl", value)
    _put_raw(quiet, "run", "odd", value)
    report(quiet, "crawl")
    assert len(list(quiet.find())) == 1
    assert "incident" in state.read(quiet, kind, "crawl") or "pending" in state.read(quiet, kind, "crawl")
    watchdog.look(quiet)
    assert cli.main(["jobs", "ls", "--store", quiet.store.url]) == 0


@pytest.mark.parametrize("make", ["garbage", "pipe", "folder", "wrong", "deep"])
@pytest.mark.parametrize(
    "name", ["digest.crawl.1-a.jsonl", "run.1-a", "watch.jsonl", "late.crawl", "attention.crawl"]
)
def test_a_file_that_cannot_be_read_is_out_of_the_way(
    quiet: Outbox, name: str, make: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(quiet.spool)
    folder.mkdir(exist_ok=True)
    path = folder / name
    if make == "pipe":
        os.mkfifo(path)
    elif make == "folder":
        path.mkdir()
    else:
        path.write_bytes(
            {
                "garbage": b"\0\xff\n{\n",
                "wrong": b'["ok"]\n{"job": 5}\n[1,2,3,4,5,6,7,8,9,10,11]\n',
                "deep": b"[" * 100_000 + b"\n",
            }[make]
        )
    done: list[bool] = []

    def work() -> None:
        a_digest(quiet, "crawl")
        watch.ended(quiet, options(), ["true"], result())
        watchdog.look(quiet)
        spoolfiles.read(str(path))
        done.append(True)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert done, "it waits, or it failed"
    assert len(list(quiet.find())) >= 2
    if name.startswith("digest") or (name == "watch.jsonl" and make in ("pipe", "folder")):
        assert (
            Path(str(path) + spoolfiles.UNREADABLE).exists() and "cannot be read" in capsys.readouterr().err
        )


# -- looking commands ----------------------------------------------------------------------------------------


def _looked(box: Outbox, id: str, capsys: pytest.CaptureFixture[str]) -> Iterator[tuple[list[str], str]]:
    where = ["--store", box.store.url]
    capsys.readouterr()
    for words in (
        ["show", id],
        ["log", id],
        ["why", id],
        ["queue", "list", "ALL"][:2],
        ["queue", "list", "tag:t"],
        ["events"],
        ["queue", "stats"],
        ["show", id, "--json"],
        ["log", id, "--jsonl"],
        ["events", "--jsonl"],
        ["queue", "list", "--json"],
        ["jobs", "ls"],
        ["jobs", "ls", "--json"],
    ):
        status = cli.main(
            [*words[:2], *where, *words[2:]]
            if words[0] in ("queue", "jobs")
            else [words[0], *where, *words[1:]]
        )
        assert status == 0, words
        told = capsys.readouterr()
        yield words, told.out + told.err


def test_looking_commands_print_a_relays_words_as_text(
    make_box: Callable[..., Outbox], capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "no\x1b]0;owned\x07 \x9b31m \u202egnp.exe\u2066 \ufeff"
    with Sink(f"RCPT: 550 5.1.1 {evil}") as sink:
        box = make_box(relay=sink.url)
        id = box.submit(
            f"Subject: {evil}\r\nMessage-ID: <\x1b[2J@x>\r\n\r\n".encode(),
            sender="a@x.test",
            recipients="b@x.test",
            tag="t",
        ).id
        assert box.wait(id, 10)
        for words, shown in _looked(box, id, capsys):
            assert not any(char in shown for char in ODD), words
            if "--json" in words or "--jsonl" in words:
                for line in filter(None, shown.splitlines()):
                    json.loads(line)
    assert any("gnp.exe" in str(attempt.as_dict()) for attempt in box.attempts(id)), "the data are whole"


def test_looking_commands_take_any_words(quiet: Outbox, capsys: pytest.CaptureFixture[str]) -> None:
    @given(st.text(alphabet=st.characters(exclude_characters="\0\r\n"), max_size=40))
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    def check(words: str) -> None:
        raw = words.encode("utf-8", "surrogatepass")
        id = quiet.submit(
            b"Subject: " + raw + b"\r\nMessage-ID: <" + raw + b">\r\n\r\n",
            sender="a@x.test",
            recipients="b@x.test",
            tag="t",
        ).id
        for command, shown in _looked(quiet, id, capsys):
            assert not any(char in shown for char in ODD if char != "\x85"), command
            break

    check()
    for command, shown in _looked(quiet, next(iter(quiet.find())).id, capsys):
        assert not any(char in shown for char in ODD), command


def test_the_password_that_a_server_repeats_is_masked() -> None:
    """In the transcript and in the reply, which becomes the reason in the database and in the log."""
    import base64

    from outmail.smtp import client

    password = "Geheim-4711"
    said = base64.b64encode(f"\0me\0{password}".encode()).decode()
    session = client.Client(client.ClientSettings("h", user="me", password=password, may_clear=True))
    flow = session.dialogue()
    with pytest.raises(client.SessionFailed) as told:
        request = next(flow)
        for line in ("220 h", "250-h\r\n250 AUTH PLAIN", f"535 5.7.8 wrong password {password} in {said}"):
            assert isinstance(request, client.Read)
            session.feed(f"{line}\r\n".encode())
            request = flow.send(None)
    story = str(told.value.outcome) + str(session.greeting)
    assert "wrong password **** in ****" in story and "AUTH PLAIN ****" in story
    assert password not in story and said not in story


def test_a_configured_password_is_masked_in_reports_and_in_what_is_said(
    quiet: Outbox, make_box: Callable[..., Outbox], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_box("smtps://me:Kn0wn-elsewhere@isp.example:465", store=str(tmp_path / "other.db"), deliver="never")
    a_job(quiet, "the server said Kn0wn-elsewhere to us")
    assert "said **** to us" in text(newest(quiet)) and "Kn0wn" not in page(newest(quiet))
    post.tell("it was Kn0wn-elsewhere\x1b[31m")
    assert capsys.readouterr().err.endswith("it was ****\\x1b[31m\n")
