"""The predecessors' interfaces work as documented there, without their faults."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outmail.compat.bote import Mailer, checked, relay_url
from outmail.compat.exoskeleton import NotificationManager
from outmail.compat.handlers import BufferingSMTPHandler, SMTPHandler
from outmail.testing import Sink

from .conftest import Mails, text

BOTH = {"recipient": "me@x.test", "sender": "bot@x.test"}


@pytest.fixture
def settings(sink: Sink) -> dict[str, Any]:
    return {"server": "127.0.0.1", "server_port": sink.port, **BOTH}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "q.db")


def test_the_seeds_settings_and_a_loop(settings: dict[str, Any], store: str, mails: Mails) -> None:
    manager = NotificationManager(
        "Bot", settings, {"send_start_msg": True, "send_finish_msg": True, "milestone_num": 3}, store=store
    )
    for done in range(1, 8):
        manager.send_msg_milestone(done, 7 - done, -1 if done < 6 else 90)
    manager.send_msg_finish(2)
    manager.close()
    found = sorted(
        mails.wait(4),
        key=lambda mail: (
            str(mail["subject"]).startswith("Bot"),
            str(mail["subject"]).startswith("Project Bot M"),
            str(mail["subject"]),
        ),
    )
    assert [str(mail["subject"]) for mail in found] == [
        "Project Bot just started.",
        "Project Bot Milestone: 3 processed",
        "Project Bot Milestone: 6 processed",
        "Bot: queue empty / bot stopped",
    ]
    assert (
        "not known yet" in text(found[1])
        and "2 min" in text(found[2])
        and found[0]["date"]
        and found[0]["message-id"]
    )


def test_defaults_and_no_settings(settings: dict[str, Any], store: str, mails: Mails) -> None:
    manager = NotificationManager("Bot", settings, store=store)
    manager.send_msg_milestone(1000)
    manager.send_msg_finish()
    manager.close()
    assert mails.subjects(1) == ["Project Bot just started."]
    silent = NotificationManager("Bot", None, {"milestone_num": 1})
    assert silent.send_msg_milestone(1) and silent.send_custom_msg("s", "b") is None
    silent.send_msg_abort_lost_db()
    silent.close()


def test_jumps_and_standing_still(settings: dict[str, Any], store: str, mails: Mails) -> None:
    manager = NotificationManager("B", settings, {"send_start_msg": False, "milestone_num": 100}, store=store)
    assert [manager.send_msg_milestone(n) for n in (90, 210, 210, 299, 300)] == [
        False,
        True,
        False,
        False,
        True,
    ]
    manager.close()
    assert len(mails.wait(2)) == 2


def test_a_server_that_is_down_costs_the_job_nothing(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    manager = NotificationManager(
        "B", {"server": "127.0.0.1", "server_port": 1, **BOTH}, {"milestone_num": 1}, store=store
    )
    assert manager.send_msg_milestone(1)
    manager.mailer._box._exit_wait = 0.2  # type: ignore[union-attr]
    manager.close()
    assert "2 recipients still queued" in capsys.readouterr().err


@pytest.mark.parametrize(
    "behavior",
    [
        {"send_start_msg": "yes"},
        {"send_finish_msg": 1},
        {"milestone_num": "ten"},
        {"milestone_num": -5},
        {"milestone_num": True},
        {"sned": 1},
        [1],
    ],
)
def test_wrong_behaviour_is_told_before_the_first_mail(
    settings: dict[str, Any], behavior: Any, sink: Sink, store: str
) -> None:
    with pytest.raises(ValueError):
        NotificationManager("B", settings, behavior, store=store)
    assert not sink.messages


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"server": "mail.example.org"}, "encryption='starttls'"),
        ({"server": "mail.example.org", "encryption": "starttls"}, "server_port is needed"),
        (
            {
                "server": "mail.example.org",
                "server_port": 25,
                "encryption": "off",
                "username": "u",
                "passphrase": "p",
            },
            "not sent to",
        ),
        ({"username": "u"}, "go together"),
        ({"encryption": "tls"}, "must be off, ssl or starttls"),
        ({"server_port": 70000}, "does not exist"),
        ({"sender": "nobody"}, "sender"),
        ({"recipient": {}}, "not empty"),
        ({"recipient": None}, "recipient is missing"),
        ({"colour": 1}, "unknown key"),
        ({"mail_admin": "a@x.test"}, "mean the same"),
        ({"timeout": 0}, "greater than zero"),
    ],
)
def test_wrong_settings_say_what_to_write(change: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        checked({**BOTH, **change})


@pytest.mark.parametrize(
    "change", [{"server_port": "25"}, {"wrap_width": True}, {"timeout": "soon"}, {"server": 5}]
)
def test_wrong_types(change: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        checked({**BOTH, **change})


def test_settings_become_a_relay() -> None:
    def url(**change: Any) -> str:
        return relay_url(checked({**BOTH, **change}))

    assert url() == "smtp+plain://localhost:25"
    assert (
        url(server="m.example", server_port=587, encryption="starttls", username="u@x", passphrase="p w")
        == "smtp://u%40x:p%20w@m.example:587"
    )
    assert url(server="m.example", server_port=465, encryption="ssl") == "smtps://m.example:465"
    assert url(server="m.example", server_port=25, encryption="off") == "smtp+plain://m.example:25"
    with pytest.warns(DeprecationWarning, match="old name of"):
        assert checked({"mail_admin": "a@x.test", "mail_sender": "b@x.test"})["sender"] == "b@x.test"


def test_mailer(settings: dict[str, Any], store: str, mails: Mails) -> None:
    mailer = Mailer(
        {**settings, "recipient": {"default": "d@x.test", "admin": "a@x.test"}, "wrap_width": 40}, store=store
    )
    address = "https://example.org/" + "x" * 60
    mailer.send_mail("  Subject ", f"  {'word ' * 20}\n\n{address}  ")
    mailer.send_mail_to_admin("S", "B")
    mailer.send_mail("S", "B", "other@x.test")
    for subject, body in (("", "b"), ("s", " "), ("a\nBcc: x@x.test", "b")):
        with pytest.raises(ValueError):
            mailer.send_mail(subject, body)
    mailer.close()
    first, second, third = mails.wait(3)
    assert [str(mail["to"]) for mail in (first, second, third)] == ["d@x.test", "a@x.test", "other@x.test"]
    assert (
        address in text(first)
        and max(len(line) for line in text(first).split("\r\n") if "http" not in line) <= 40
    )


def test_smtp_handler(sink: Sink, store: str, mails: Mails, capsys: pytest.CaptureFixture[str]) -> None:
    handler = SMTPHandler(
        ("127.0.0.1", sink.port), "bot@x.test", ["me@x.test", "you@x.test"], "It failed", store=store
    )
    handler.handle(logging.LogRecord("app", 40, "f", 1, "one %s", ("record",), None))
    handler.handle(logging.LogRecord("outmail.engine", 40, "f", 1, "our own", (), None))
    handler._box.close()
    (mail,) = mails.wait(1)
    assert "one record" in text(mail) and str(mail["to"]) == "me@x.test, you@x.test"
    handler.handle(logging.LogRecord("app", 40, "f", 1, "after the end", (), None))
    assert "closed" in capsys.readouterr().err


def test_buffering_smtp_handler(sink: Sink, store: str, mails: Mails) -> None:
    handler = BufferingSMTPHandler(("127.0.0.1", sink.port), "bot@x.test", "me@x.test", "Log", 3, store=store)
    for i in range(4):
        handler.handle(logging.LogRecord("app", 40, "f", 1, "grün %d", (i,), None))
    handler.handle(logging.LogRecord("app", 40, "f", 1, "odd %d", ("x",), None))
    handler.close()
    handler._box.close()
    first, second = mails.wait(2)
    assert "grün 2" in text(first) and "grün 3" in text(second) and "do not fit" in text(second)
