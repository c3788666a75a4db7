"""The predecessors' interfaces work as documented there, without their faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outmail.compat import bote
from outmail.compat.exoskeleton import NotificationManager
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
    assert silent.send_msg_milestone(1)
    silent.send_custom_msg("s", "b")
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
    manager.mailer._outbox()._exit_wait = 0.2  # type: ignore[union-attr]
    manager.close()
    assert "2 recipients still queued" in capsys.readouterr().err


class Stats:
    """The methods of exoskeleton's StatisticsManager that its NotificationManager calls."""

    def __init__(self) -> None:
        self.processed = 0
        self.gone = False

    def get_processed_counter(self) -> int:
        return self.processed

    def queue_stats(self) -> dict[str, int]:
        if self.gone:
            raise ConnectionError("the database is gone")
        return {"tasks_without_error": 5, "tasks_with_temp_errors": 2, "tasks_with_permanent_errors": 1}

    def num_tasks_w_permanent_errors(self) -> int:
        return self.queue_stats()["tasks_with_permanent_errors"]


class Time:
    def estimate_remaining_time(self, done: int, waiting: int) -> int:
        return 60 * waiting


def test_exoskeletons_own_call(settings: dict[str, Any], store: str, mails: Mails) -> None:
    """The positional arguments, and methods without any, as exoskeleton 2.1 calls them."""
    stats = Stats()
    behavior = {"send_finish_msg": True, "milestone_num": 2}
    manager = NotificationManager("Bot", settings, behavior, Time(), stats, 2, store=store)
    for stats.processed in (1, 2, 2, 3, 4):
        stats.gone = stats.processed == 4
        manager.send_msg_milestone()
    manager.send_msg_finish()
    stats.gone = False
    manager.send_msg_finish()
    manager.send_msg_abort_lost_db()
    manager.send_custom_msg("custom", "text")
    manager.close()
    bodies = {(str(mail["subject"]), text(mail).replace("\r\n", "\n")) for mail in mails.wait(7)}
    assert {subject for subject, _ in bodies} == {
        "Project Bot just started.",
        "Project Bot Milestone: 2 processed",
        "Project Bot Milestone: 4 processed",
        "Bot: queue empty / bot stopped",
        "Project Bot ABORTED",
        "custom",
    }
    words = " ".join(" ".join(body for _, body in sorted(bodies)).split())
    assert "7 tasks remaining" in words and "7 min" in words and "1 errors occurred" in words
    assert "not known yet" in words and "How many errors occurred is not known" in words


def test_exoskeleton_without_settings_crashes_nowhere() -> None:
    manager = NotificationManager("Bot", {}, {}, Time(), Stats(), 1)
    manager.stats.processed = 1
    assert manager.send_msg_milestone() and not manager.send_mails
    manager.send_msg_finish()
    manager.send_msg_abort_lost_db()


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
    ("change", "kind", "words"),
    [
        ({"server": "mail.example.org"}, bote.UnencryptedRemoteConnection, "encryption='starttls'"),
        (
            {"server": "mail.example.org", "server_port": 25, "encryption": "off"},
            bote.err.UnencryptedRemoteConnection,
            "not local",
        ),
        ({"server": "mail.example.org", "encryption": "starttls"}, ValueError, "Provide a port"),
        ({"username": "u"}, ValueError, "provided together"),
        ({"username": "u", "passphrase": "  "}, ValueError, "provided together"),
        ({"encryption": "tls"}, ValueError, "off, ssl or starttls"),
        ({"server_port": 70000}, ValueError, "0 to 65535"),
        ({"sender": "nobody"}, bote.NotAnEmail, "sender is not a valid email!"),
        ({"recipient": "nobody"}, bote.NotAnEmail, "recipient is not a valid email!"),
        ({"recipient": {"default": "a@x.test", "admin": 5}}, bote.NotAnEmail, "'admin' is 5"),
        ({"recipient": {}}, ValueError, "is empty"),
        ({"colour": 1}, ValueError, "unknown key"),
        ({"mail_admin": "a@x.test"}, ValueError, "mean the same"),
        ({"timeout": 0}, ValueError, "positive"),
        ({"timeout": float("nan")}, ValueError, "positive"),
    ],
)
def test_wrong_settings_say_what_to_write(change: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        bote.Mailer({**BOTH, **change})


@pytest.mark.parametrize("missing", ["recipient", "sender"])
def test_a_missing_setting_is_named(missing: str) -> None:
    with pytest.raises(ValueError, match=f"{missing} is missing"):
        bote.Mailer({key: value for key, value in BOTH.items() if key != missing})


@pytest.mark.parametrize("kind", [TypeError, ValueError])
@pytest.mark.parametrize(
    "change",
    [
        {"server_port": "25"},
        {"server_port": True},
        {"wrap_width": True},
        {"timeout": "soon"},
        {"server": 5},
        {"recipient": 1},
        {"username": 1, "passphrase": 2},
    ],
)
def test_wrong_types_are_what_either_version_raises(change: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        bote.Mailer({**BOTH, **change})


def test_the_hierarchy_of_exceptions_is_botes() -> None:
    for name in ("UnencryptedRemoteConnection", "NotAnEmail"):
        assert getattr(bote.err, name).__mro__[1:3] == (bote.err.BoteException, Exception)
    for name in ("MissingSubject", "MissingMailContent"):
        assert issubclass(getattr(bote, name), bote.BoteException) and issubclass(
            getattr(bote, name), ValueError
        )


def test_attributes_have_the_defaults_of_bote_and_may_be_changed(
    settings: dict[str, Any], store: str, mails: Mails, caplog: pytest.LogCaptureFixture
) -> None:
    mailer = bote.Mailer(BOTH, store=store)
    assert (
        vars(mailer).items()
        >= {
            "server": "localhost",
            "is_local": True,
            "encryption": "off",
            "server_port": None,
            "username": None,
            "passphrase": None,
            "recipient": "me@x.test",
            "default_recipient": "me@x.test",
            "sender": "bot@x.test",
            "wrap_width": 80,
            "timeout": 60.0,
        }.items()
    )
    with pytest.raises(AttributeError, match=r"\[relay\] ca"):
        mailer.context  # noqa: B018
    assert not caplog.records
    mailer = bote.Mailer({**settings, "recipient": {"boss": "b@x.test"}, "wrap_width": 5000}, store=store)
    assert "No default key" in caplog.text and caplog.records[0].name == "bote.mailer"
    assert (mailer.default_recipient, mailer.wrap_width) == ("", 80)
    mailer.recipient = {"admin": "changed@x.test"}
    mailer.send_mail_to_admin("s", "t")
    mailer.close()
    assert mails.wait(1)[0]["to"] == "changed@x.test"


@pytest.mark.parametrize(
    ("change", "url"),
    [
        ({}, "smtp+plain://localhost:25"),
        ({"username": "u", "passphrase": "p"}, "smtp+plain://localhost:25"),
        ({"encryption": "starttls"}, "smtp://localhost:25"),
        ({"encryption": "ssl", "server_port": 0}, "smtps://localhost:465"),
        (
            {
                "server": "m.example",
                "server_port": 587,
                "encryption": "starttls",
                "username": " u@x ",
                "passphrase": "p w",
            },
            "smtp://u%40x:p%20w@m.example:587",
        ),
        ({"server": "::1"}, "smtp+plain://[::1]:25"),
    ],
)
def test_settings_become_a_relay(change: dict[str, Any], url: str, store: str) -> None:
    assert bote.Mailer({**BOTH, **change}, store=store).relay() == url


def test_old_names_of_settings(store: str) -> None:
    with pytest.warns(DeprecationWarning, match="old name of"):
        mailer = bote.Mailer({"mail_admin": "a@x.test", "mail_sender": "b@x.test"}, store=store)
    assert mailer.sender == "b@x.test"


def test_mailer(settings: dict[str, Any], store: str, mails: Mails) -> None:
    mailer = bote.Mailer(
        {**settings, "recipient": {"default": "d@x.test", "admin": "a@x.test"}, "wrap_width": 40}, store=store
    )
    address = "https://example.org/" + "x" * 60
    mailer.send_mail("  Subject ", f"  {'word ' * 20}\n\n{address}  ")
    mailer.send_mail_to_admin("S", "B")
    mailer.send_mail(message_subject="S", message_text="B", overwrite_recipient="other@x.test")
    for subject, body, kind in (
        ("", "b", bote.MissingSubject),
        (None, "b", bote.MissingSubject),
        ("s", " ", bote.MissingMailContent),
        ("s", None, bote.MissingMailContent),
        ("a\nBcc: x@x.test", "b", ValueError),
    ):
        with pytest.raises(kind):
            mailer.send_mail(subject, body)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Recipient is not valid"):
        mailer.send_mail("s", "b", "admin")
    mailer.close()
    first, second, third = mails.wait(3)
    assert [str(mail["to"]) for mail in (first, second, third)] == ["d@x.test", "a@x.test", "other@x.test"]
    assert (
        address in text(first)
        and max(len(line) for line in text(first).split("\r\n") if "http" not in line) <= 40
    )
