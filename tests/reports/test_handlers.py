"""Logging handlers of others, by changing an import: as their users configure them, with any record."""

from __future__ import annotations

import logging
import logging.config
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outmail.compat import relays
from outmail.compat.handlers import BufferingSMTPHandler, BufferSMTPHandler, SMTPHandler
from outmail.outbox.outbox import Outbox
from outmail.reports.digest import DigestHandler
from outmail.testing import Sink
from tests.records import odd_record

from .conftest import Mails, text


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "q.db")


def record(words: str, *args: Any, name: str = "app", level: int = 40) -> logging.LogRecord:
    return logging.LogRecord(name, level, "f", 1, words, args, None)


def test_smtp_handler(sink: Sink, store: str, mails: Mails) -> None:
    handler = SMTPHandler(
        ("127.0.0.1", sink.port), "bot@x.test", ["me@x.test", "you@x.test"], "It failed", store=store
    )
    handler.handle(record("one %s", "record"))
    handler.handle(record("our own", name="outmail.engine"))
    handler._outbox().close()
    (mail,) = mails.wait(1)
    assert "one record" in text(mail) and str(mail["to"]) == "me@x.test, you@x.test"
    handler.handle(record("after the end"))  # opens the Outbox anew
    handler._outbox().close()
    assert "after the end" in text(mails.wait(2)[1])


def test_smtp_handler_bears_the_attributes_of_the_standard_one(sink: Sink, store: str, mails: Mails) -> None:
    arguments: dict[str, Any] = {
        "mailhost": ["127.0.0.1", 2525],
        "fromaddr": "bot@x.test",
        "toaddrs": "me@x.test",
        "subject": "s",
        "credentials": ("u", "p"),
        "secure": (),
        "timeout": 3.0,
    }
    theirs, ours = logging.handlers.SMTPHandler(**arguments), SMTPHandler(**arguments, store=store)
    assert vars(ours).keys() >= vars(theirs).keys()
    for name in vars(theirs).keys() - {"lock"}:
        assert getattr(ours, name) == getattr(theirs, name), name
    bare = SMTPHandler("localhost", "a@x.test", ["b@x.test"], "s", store=store)
    assert (bare.mailhost, bare.mailport, bare.username, bare.secure) == ("localhost", None, None, None)
    ours.username = ours.secure = None  # what a subclass or a program changes counts from then on
    ours.mailport, ours.subject, ours.toaddrs = sink.port, "changed", ["A <a@x.test>, b@x.test"]
    ours.handle(record("x"))
    ours._outbox().close()
    (mail,) = mails.wait(1)
    assert (mail["subject"], str(mail["to"])) == ("changed", "A <a@x.test>, b@x.test")
    assert sink.messages[0].recipients == ("a@x.test", "b@x.test")


@pytest.mark.parametrize(
    ("words", "url"),
    [
        ({"mailhost": "localhost"}, "smtp+plain://localhost:25"),
        ({"mailhost": ("m.example", 465)}, "smtps://m.example:465"),
        ({"mailhost": "m.example", "credentials": ("u@x", "p")}, "smtp://u%40x:p@m.example:587"),
        ({"mailhost": ["m.example", 25], "credentials": ["u", "p"], "secure": ()}, "smtp://u:p@m.example:25"),
    ],
)
def test_the_server_of_the_arguments(
    words: dict[str, Any], url: str, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("outmail.compat.handlers.outbox", lambda relay, store: asked.append(relay))
    SMTPHandler(fromaddr="a@x.test", toaddrs="b@x.test", subject="s", store=store, **words)
    assert asked == [url]


def test_a_client_certificate_is_not_forgotten_in_silence(store: str) -> None:
    with pytest.warns(UserWarning, match="certificate"):
        SMTPHandler("localhost", "a@x.test", "b@x.test", "s", ("u", "p"), ("key.pem",), store=store)


def test_configured_by_a_dictionary(sink: Sink, store: str, mails: Mails) -> None:
    words = {"mailhost": ["127.0.0.1", sink.port], "fromaddr": "bot@x.test", "subject": "S", "store": store}
    rooms = "outmail.compat.handlers."
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {
                "one": {"class": rooms + "SMTPHandler", "toaddrs": ["one@x.test"], "level": "ERROR", **words},
                "many": {
                    "class": rooms + "BufferingSMTPHandler",
                    "toaddrs": ["many@x.test"],
                    "capacity": 2,
                    **words,
                },
            },
            "loggers": {"configured": {"handlers": ["one", "many"], "propagate": False}},
        }
    )
    logger = logging.getLogger("configured")
    try:
        for words_ in ("first", "second"):
            logger.error(words_)
        found = {(str(mail["to"]), text(mail).count("\n")) for mail in mails.wait(3)}
        assert found == {("one@x.test", 1), ("many@x.test", 2)}
    finally:
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()


def test_sajips_recipe(sink: Sink, store: str, mails: Mails) -> None:
    """The five arguments of the recipe, and the sixth of the package buffering-smtp-handler."""
    handler = BufferingSMTPHandler("127.0.0.1", "bot@x.test", ["me@x.test"], "Log", 3, store=store)
    assert (handler.mailhost, handler.mailport, handler.capacity) == ("127.0.0.1", None, 3)
    handler.mailport = sink.port
    for i in range(4):
        handler.handle(record("grün %d", i))
    handler.handle(record("odd %d", "x"))
    handler.close()
    other = BufferingSMTPHandler(
        ("127.0.0.1", sink.port), "bot@x.test", ["me@x.test"], "Log", 9, "<%(message)s>", store=store
    )
    other.handle(record("formatted"))
    other.close()
    other._outbox().close()
    first, second, third = mails.wait(3)
    assert "ERROR grün 2" in text(first) and "grün 3" in text(second) and "do not fit" in text(second)
    assert text(third).strip() == "<formatted>"


def test_what_cannot_be_queued_stays_in_the_buffer(
    sink: Sink, store: str, mails: Mails, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = BufferingSMTPHandler(("127.0.0.1", sink.port), "no address", "me@x.test", "Log", 1, store=store)
    handler.handle(record("kept"))
    assert "no address" in capsys.readouterr().err
    handler.fromaddr = "bot@x.test"
    handler.close()
    handler._outbox().close()
    assert "kept" in text(mails.wait(1)[0])


def element(**texts: str) -> Any:
    """An element of lxml's objectify as far as poca uses it: its own text, and children as attributes."""
    return SimpleNamespace(**{name: Child(value) for name, value in texts.items()})


class Child:
    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text

    def __int__(self) -> int:
        return int(self.text)


def test_pocas_handler_over_three_runs(sink: Sink, store: str, mails: Mails, tmp_path: Path) -> None:
    email = element(
        only_errors="yes",
        threshold="3",
        host=f"127.0.0.1:{sink.port}",
        starttls="no",
        password="",
        fromaddr="poca@x.test",
        toaddr="me@x.test",
    )
    found = []
    for run in range(4):
        handler = BufferSMTPHandler(email, SimpleNamespace(db_dir=str(tmp_path / "db")), store=store)
        handler.setLevel(logging.ERROR)
        logger = logging.Logger("POCA_SUMMARY", logging.INFO)
        logger.addHandler(handler)
        logger.info("FEED. Downloaded: not an error")
        if run < 3:
            logger.error("FEED. Failed: %d", run)
        handler.close()
        found.append(handler.outcome.success)
    assert found == [None, None, True, True] or found == [None, None, True, None]
    handler._box.close()
    (mail,) = mails.wait(1)
    assert mail["subject"] == "POCA log" and "poca@x.test" in str(mail["from"]) and mail["to"] == "me@x.test"
    assert all(f"Failed: {run}" in text(mail) for run in range(3)) and "Downloaded" not in text(mail)


def test_poca_learns_that_nothing_was_stored(store: str, tmp_path: Path) -> None:
    email = element(
        threshold="1", host="localhost", starttls="no", password="", fromaddr="p@x.test", toaddr="m@x"
    )
    handler = BufferSMTPHandler(email, SimpleNamespace(db_dir="db"), store=store)
    handler.handle(record("failed"))
    handler._box.close()
    handler.close()
    assert handler.outcome.success is False and "closed" in handler.outcome.msg


def test_poca_with_starttls_logs_in_as_the_sender(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def opened(relay: str, store: str, **_: Any) -> Outbox:
        asked.append(relay)
        return Outbox(store, deliver="never")

    monkeypatch.setattr("outmail.compat.handlers.outbox", opened)
    email = element(
        threshold="1",
        host="m.example",
        starttls="yes",
        password="p w",
        fromaddr="poca@x.test",
        toaddr="m@x.test",
    )
    BufferSMTPHandler(email, SimpleNamespace(db_dir="db"), store=store).close()
    assert asked == ["smtp://poca%40x.test:p%20w@m.example:587"]


@pytest.fixture(scope="module")
def odd_handlers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All handlers on one store that nobody empties."""
    store = str(tmp_path_factory.mktemp("odd") / "q.db")
    with Outbox(store, deliver="never") as box:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("outmail.compat.handlers.outbox", lambda *_, **__: box)
            server = ("localhost", "bot@x.test", "me@x.test", "odd")
            poca = element(
                threshold="1", host="h", starttls="no", password="", fromaddr="p@x.test", toaddr="m@x.test"
            )
            made = (
                SMTPHandler(*server),
                BufferingSMTPHandler(*server, 2),
                BufferSMTPHandler(poca, SimpleNamespace(db_dir="odd")),
                DigestHandler("me@x.test", name="odd", outbox=box),
            )
            yield made
            for handler in made:
                handler.close()
            assert made[2].outcome.success


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_record_raises_from_any_handler(odd_handlers: Any, data: st.DataObject) -> None:
    made = odd_record(lambda below: data.draw(st.integers(0, below - 1)))
    for handler in odd_handlers:
        handler.handle(made)
        handler.handleError = None  # nobody calls it: it reads attributes that a record may lack
    assert len(odd_handlers[1].buffer) < 2, "a full buffer was not stored"


def test_a_record_without_a_name(odd_handlers: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for handler in odd_handlers:
        handler.handle(logging.makeLogRecord({"msg": "x"}))
        handler.flush()
    assert capsys.readouterr().err == ""


def test_outboxes_are_shared_and_opened_anew(store: str) -> None:
    first = relays.outbox("smtp+plain://localhost:25", store)
    assert relays.outbox("smtp+plain://localhost:25", store) is first
    first.close()
    second = relays.outbox("smtp+plain://localhost:25", store)
    assert second is not first
    second.close()
