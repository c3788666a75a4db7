"""`outmail.compat.mailqueue` as programs use it. (mailqueue-runner's own tests run in `make interop`.)"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import ssl
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
import trustme

from outmail.compat import mailqueue
from outmail.compat.mailqueue import (
    DebugMailer,
    MaildirBackedMsg,
    MaildirBackend,
    MessageHandler,
    MQAction,
    MQSignal,
    SendResult,
    SMTPMailer,
    aliases_parser,
    enqueue_message,
    init_smtp_mailer,
    lock_file,
    queue_runner,
    send_all_queued_messages,
    spool,
)
from outmail.compat.mailqueue.cli import one_shot_queue_run_main
from outmail.compat.mailqueue.maildir_utils import find_messages, move_message
from outmail.smtp.client import Client, ClientSettings, SessionFailed
from outmail.testing import Sink

CONTENT = b"Subject: s\r\nMessage-ID: <1@x.test>\r\n\r\ntext\r\n"
WORDS: dict[str, Any] = {"sender": "me@x.test", "recipients": ("a@x.test", "b@x.test", "c@x.test")}


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    mailqueue.create_maildir_directories(tmp_path / "queue")
    return tmp_path / "queue"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path))


class Plugins:
    """Stands for a registry of PuzzlePluginSystem."""

    def __init__(self, answer: Callable[[Any], str | None]) -> None:
        self.answer, self.signals = answer, [""]

    def call_plugins(self, signal: str, signal_kwargs: dict[str, Any]) -> list[tuple[Any, Any]]:
        self.signals.append(signal)
        return [(self, self.answer(signal_kwargs["msg"]))]


def files(queue: Path) -> list[str]:
    return sorted(str(path.relative_to(queue)) for path in queue.rglob("*") if path.is_file())


def test_send_now_and_queue_for_those_who_did_not_get_it(queue: Path) -> None:
    """mailqueue-runner sends to nobody where one is refused, and queues it for all."""
    with Sink("RCPT b@*: 451 4.2.1 later") as sink:
        handler = MessageHandler([SMTPMailer("127.0.0.1", port=sink.port), MaildirBackend(queue)])
        result = handler.send_message(CONTENT, **WORDS)
        assert result is not None and result and result.queued
        [message] = sink.messages
    assert message.recipients == ("a@x.test", "c@x.test") and message.content == CONTENT
    [path] = find_messages(queue)
    assert MaildirBackedMsg(path).to_addrs == ("b@x.test",)


def test_a_queued_message_keeps_only_those_who_did_not_get_it(queue: Path) -> None:
    enqueue_message(CONTENT, queue, "me@x.test", WORDS["recipients"])
    with Sink("RCPT b@*: 451 4.2.1 later x1") as sink:
        mailer = SMTPMailer("127.0.0.1", port=sink.port)
        send_all_queued_messages(queue, mailer)
        [path] = find_messages(queue)
        again = MaildirBackedMsg(path)
        assert (again.to_addrs, again.retries) == (("b@x.test",), 1) and again.last_delivery_attempt
        send_all_queued_messages(queue, mailer)
        assert [m.recipients for m in sink.messages] == [("a@x.test", "c@x.test"), ("b@x.test",)]
    assert files(queue) == []


def test_a_move_that_was_cut_off_is_finished(queue: Path) -> None:
    path = enqueue_message(CONTENT, queue, "me@x.test", ["a@x.test"])
    os.link(path, queue / "cur" / os.path.basename(path))
    with Sink() as sink:
        send_all_queued_messages(queue, SMTPMailer("127.0.0.1", port=sink.port))
        assert len(sink.messages) == 1 and files(queue) == []


def test_another_file_of_that_name_is_never_replaced(queue: Path) -> None:
    path = enqueue_message(CONTENT, queue, "me@x.test", ["a@x.test"])
    (queue / "cur" / os.path.basename(path)).write_bytes(b"other")
    assert move_message(path, "cur") is None and len(files(queue)) == 2


@pytest.mark.parametrize(
    "date",
    [
        "Mon, 01 Jan 99999999999999999999 00:00:00 +0000",
        "Mon, 01 Jan 2024 99999999999999999999:00:00 +0000",
        "Mon, 01 Jan 2024 00:00:00 +99999999999999999999",
        "yesterday",
    ],
)
def test_a_file_with_an_impossible_date_is_set_aside(queue: Path, date: str) -> None:
    packed = spool.packed(spool.Envelope("me@x.test", ["b@x.test"], date), CONTENT)
    (queue / "new" / "1.M1P1").write_bytes(packed)
    enqueue_message(CONTENT, queue, "me@x.test", ["a@x.test"])
    with Sink() as sink:
        send_all_queued_messages(queue, SMTPMailer("127.0.0.1", port=sink.port))
        assert [message.recipients for message in sink.messages] == [("a@x.test",)]
    assert files(queue) == ["set-aside/1.M1P1"]


def test_a_date_without_a_zone_is_utc(queue: Path) -> None:
    packed = spool.packed(
        spool.Envelope("me@x.test", ["b@x.test"], "Mon, 01 Jan 2024 00:00:00 -0000"), CONTENT
    )
    (queue / "new" / "1.M1P1").write_bytes(packed)
    with Sink() as sink:
        send_all_queued_messages(queue, SMTPMailer("127.0.0.1", port=sink.port))
        assert len(sink.messages) == 1


def test_a_file_system_without_locks_is_an_error(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = enqueue_message(CONTENT, queue, "me@x.test", ["a@x.test"])

    def fails(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(OSError, match="No locks available"):
        lock_file(path)


def test_a_server_that_is_down_is_a_falsy_result_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    with Sink() as sink:
        port = sink.port
    mailer = SMTPMailer("127.0.0.1", port=port, smtp_log=logging.getLogger("t"))
    result = mailer.send("me@x.test", ["a@x.test"], CONTENT)
    assert not result and "refused" in result.error and result.smtp_response is None
    assert "refused" in caplog.text
    assert not mailer.send("me@x.test", ["no address"], CONTENT)


def test_it_works_inside_a_running_loop() -> None:
    async def program(port: int) -> SendResult:
        return SMTPMailer("127.0.0.1", port=port).send("me@x.test", "a@x.test", CONTENT)

    with Sink() as sink:
        result = asyncio.run(program(sink.port))
        assert result and result.smtp_response.code == 250 and len(sink.messages) == 1


def test_passwords_are_not_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "t")
    with Sink(users={"me": "geheim99"}) as sink:
        words = {"username": "me", "password": "geheim99", "smtp_log": logging.getLogger("t")}
        assert SMTPMailer("127.0.0.1", port=sink.port, **words).send("me@x.test", "a@x.test", CONTENT)
    assert "MAIL FROM" in caplog.text and "geheim99" not in caplog.text


@pytest.fixture(scope="module")
def certified() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(made)
    return made


def test_opportunistic_tls_is_used_where_it_is_offered(certified: ssl.SSLContext) -> None:
    """Its certificate is not verified: without TLS there would be none."""
    for tls, encrypted in ((certified, True), (None, False)):
        with Sink(tls=tls) as sink:
            mailer = SMTPMailer("127.0.0.1", port=sink.port, tls_verify=False)
            assert mailer.send("me@x.test", "a@x.test", CONTENT)
            assert [message.encrypted for message in sink.messages] == [encrypted]


def test_required_tls_sends_nothing_without_it_nor_to_a_stranger(certified: ssl.SSLContext) -> None:
    for tls, told in ((certified, "not trusted"), (None, "STARTTLS")):
        with Sink(tls=tls) as sink:
            mailer = SMTPMailer("127.0.0.1", port=sink.port, tls=mailqueue.TLSMode.STARTTLS)
            result = mailer.send("me@x.test", "a@x.test", CONTENT)
            assert not result and told in result.error and not sink.messages


def test_a_password_never_goes_out_in_clear_to_another_machine() -> None:
    settings = ClientSettings(opportunistic=True, user="me", password="secret")
    client = Client(settings)
    flow = client.dialogue()
    with pytest.raises(SessionFailed, match="without TLS"):
        next(flow)
        for answer in (b"220 h.test\r\n", b"250-h.test\r\n250 AUTH PLAIN\r\n"):
            client.feed(answer)
            flow.send(None)
    assert b"AUTH" not in b"".join(client.outgoing())


def test_outmails_safety_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "outmail.toml"
    own.write_text('[safety]\nonly_to = ["*@y.test"]\n')
    monkeypatch.setenv("OUTMAIL_CONFIG", str(own))
    with Sink() as sink:
        result = SMTPMailer("127.0.0.1", port=sink.port).send("me@x.test", "a@x.test", CONTENT)
        assert not result and "only_to" in result.error and not sink.messages


def test_a_plugin_hears_and_may_discard(queue: Path) -> None:
    plugins = Plugins(lambda msg: MQAction.DISCARD if msg.retries > 1 else None)
    enqueue_message(CONTENT, queue, "me@x.test", ["a@x.test"])
    handler = MessageHandler([DebugMailer(simulate_failed_sending=True)], plugins=plugins)
    send_all_queued_messages(queue, mh=handler)
    assert len(files(queue)) == 1
    send_all_queued_messages(queue, mh=handler)
    assert files(queue) == [] and plugins.signals[1:] == [MQSignal.delivery_failed] * 2
    handler = MessageHandler([DebugMailer()], plugins=plugins)
    assert handler.send_message(EmailMessage(), sender="me@x.test", recipient="a@x.test")
    assert plugins.signals[-1] == MQSignal.delivery_successful


def test_a_locked_file_is_left_alone(queue: Path) -> None:
    path = enqueue_message(CONTENT, queue, "me@x.test", ["a@x.test"])
    held = lock_file(path)
    assert held is not None and lock_file(path) is None
    mailer = DebugMailer()
    send_all_queued_messages(queue, mailer)
    assert not mailer.sent_mails
    held.close()
    send_all_queued_messages(queue, mailer)
    assert len(mailer.sent_mails) == 1


def test_stored_before_it_is_sent(queue: Path) -> None:
    seen: list[list[str]] = []

    def sent(*words: Any) -> bool:
        seen.append(files(queue))
        return True

    msg = enqueue_message(CONTENT, queue, "me@x.test", ["a@x.test"], in_progress=True, return_msg=True)
    assert MessageHandler([DebugMailer(send_callback=sent)]).send_message(msg)
    assert len(seen[0]) == 1 and seen[0][0].startswith("cur/") and files(queue) == []


def test_a_broken_file_ends_no_run(queue: Path, caplog: pytest.LogCaptureFixture) -> None:
    (queue / "new/1.broken").write_bytes(b"Return-path: <a@x.test>\r\n")
    enqueue_message(CONTENT, queue, "me@x.test", ["a@x.test"])
    mailer = DebugMailer()
    send_all_queued_messages(queue, mailer)
    assert len(mailer.sent_mails) == 1 and files(queue) == ["set-aside/1.broken"]
    assert "1.broken" in caplog.text


def test_a_failed_message_is_never_half_written(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it is written anew, the old file is still whole."""
    enqueue_message(CONTENT, queue, "me@x.test", ["a@x.test"])

    def killed(*words: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        send_all_queued_messages(queue, DebugMailer(simulate_failed_sending=True))
    [name] = [name for name in files(queue) if name.startswith("cur/")]
    assert (queue / name).read_bytes().endswith(CONTENT)


def test_stale_files_wait_again(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enqueue_message(CONTENT, queue, "me@x.test", ["a@x.test"], in_progress=True)
    mailer = DebugMailer()
    send_all_queued_messages(queue, mailer)
    assert not mailer.sent_mails
    monkeypatch.setattr(queue_runner, "STALE_TIMEOUT_s", -60)
    send_all_queued_messages(queue, mailer)
    assert len(mailer.sent_mails) == 1


@pytest.mark.parametrize(
    "words, error",
    [
        ({"sender": "a@x.test"}, ValueError),
        ({"recipient": "a@x.test"}, ValueError),
        ({"sender": "a@x.test", "recipient": "b@x.test", "recipients": ["c@x.test"]}, ValueError),
        ({"sender": "a@x.test", "recipient": "b@x.test", "subject": "s"}, TypeError),
    ],
)
def test_wrong_arguments_are_refused(words: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        MessageHandler([DebugMailer()]).send_message(CONTENT, **words)


def test_settings_of_a_program(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "mailqueue")
    assert init_smtp_mailer({"smtp_hostname": "h.test", "smtp_timeout": "5"}).connect_timeout == 5
    assert "smtp_tls is not set" in caplog.text
    for settings, status in (({}, 30), ({"smtp_hostname": "h.test", "smtp_tls": "x"}, 31)):
        with pytest.raises(SystemExit) as ended:
            init_smtp_mailer(settings)
        assert ended.value.code == status


def test_a_circle_of_aliases_ends() -> None:
    with pytest.raises(ValueError, match="circle"):
        aliases_parser.lookup_address("a", {"a": ["b"], "b": ["a"]})


def test_programs_are_functions_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert one_shot_queue_run_main(["mq-run", "-C", str(tmp_path / "none")], return_rc_code=True) == 78
    with pytest.raises(SystemExit) as ended:
        one_shot_queue_run_main(["mq-run", "-C", str(tmp_path / "none")])
    assert ended.value.code == 78 and "cannot be read" in capsys.readouterr().err
    logging.getLogger("outmail").setLevel(logging.NOTSET)


def test_every_public_name_is_there() -> None:
    assert all(getattr(mailqueue, name, None) is not None for name in mailqueue.__all__ if name != "registry")
    with pytest.raises(AttributeError):
        _ = mailqueue.unheard_of
