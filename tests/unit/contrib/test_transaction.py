"""Mail in transactions of the package `transaction`: commits, aborts, savepoints, a store in trouble."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import transaction
from transaction.interfaces import TransactionFailedError

from outmail import NotStored, Refused
from outmail.contrib.transaction import MailDataManager, TransactionMail
from outmail.outbox.outbox import Outbox
from outmail.store import StoreError
from outmail.testing import Sink
from tests import pgserver

MakeBox = Callable[..., Outbox]
VERSION = max(pgserver.installed(), key=int)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest) -> Iterator[str | None]:
    if request.param == "sqlite":
        yield None
    else:
        with pgserver.database(VERSION) as url:
            yield url


@pytest.fixture
def box(place: str | None, make_box: MakeBox) -> Outbox:
    return make_box(store=place, deliver="never")


@pytest.fixture
def manager() -> Any:
    return transaction.TransactionManager(explicit=False)


@pytest.fixture
def mail(box: Outbox, manager: Any) -> TransactionMail:
    return TransactionMail(box, manager=manager)


def subjects(box: Outbox) -> list[str]:
    return [status.subject for status in box.find()]


class Other:
    """Another data manager, which notes when it is asked, and may fail then."""

    def __init__(self, key: str, fails: str = "") -> None:
        self.key, self.fails = key, fails
        self.asked: list[str] = []

    def sortKey(self) -> str:
        return self.key

    def __getattr__(self, name: str) -> Callable[[Any], None]:
        if name not in ("abort", "tpc_begin", "commit", "tpc_vote", "tpc_finish", "tpc_abort"):
            raise AttributeError(name)

        def asked(_: Any) -> None:
            self.asked.append(name)
            if name == self.fails:
                raise RuntimeError(name)

        return asked


def test_mail_is_there_when_the_transaction_has_committed(box: Outbox, mail: TransactionMail) -> None:
    first = mail.send("a@x.test", "first", "t")
    second = mail.submit(b"Subject: second\r\n\r\nt\r\n", sender=None, recipients=["b@x.test"])
    assert not first.durable and subjects(box) == []
    mail.manager.commit()
    assert subjects(box) == ["first", "second"]
    assert [status.id for status in box.find()] == [first.id, second.id]
    assert first.message_id.encode() in box.content(first.id)
    mail.manager.commit()
    assert subjects(box) == ["first", "second"]


def test_nothing_is_left_of_an_abort(box: Outbox, mail: TransactionMail) -> None:
    mail.send("a@x.test", "gone", "t")
    mail.manager.abort()
    mail.manager.commit()
    mail.send("a@x.test", "kept", "t")
    mail.manager.commit()
    assert subjects(box) == ["kept"]


def test_a_savepoint_takes_along_what_came_after_it(box: Outbox, mail: TransactionMail) -> None:
    before = mail.manager.savepoint()
    mail.send("a@x.test", "one", "t")
    middle = mail.manager.savepoint()
    mail.send("a@x.test", "two", "t")
    middle.rollback()
    mail.send("a@x.test", "three", "t")
    middle.rollback()
    mail.send("a@x.test", "four", "t")
    mail.manager.commit()
    assert subjects(box) == ["one", "four"]
    before = mail.manager.savepoint()
    mail.send("a@x.test", "five", "t")
    before.rollback()
    mail.send("a@x.test", "six", "t")
    before.rollback()
    mail.send("a@x.test", "seven", "t")
    mail.manager.commit()
    assert subjects(box) == ["one", "four", "seven"]


def test_a_doomed_transaction_sends_nothing(box: Outbox, mail: TransactionMail) -> None:
    mail.manager.doom()
    mail.send("a@x.test", "doomed", "t")
    with pytest.raises(transaction.interfaces.DoomedTransaction):
        mail.manager.commit()
    mail.manager.abort()
    assert subjects(box) == []


@pytest.mark.parametrize("fails", ["tpc_begin", "commit", "tpc_vote"])
@pytest.mark.parametrize("key", ["a", "~sqlalchemy:1"])
def test_another_resource_that_fails_takes_the_mail_along(
    make_box: MakeBox, manager: Any, fails: str, key: str
) -> None:
    box = make_box(deliver="never")
    mail = TransactionMail(box, manager=manager)
    manager.get().join(Other(key, fails))
    mail.send("a@x.test", "s", "t")
    with pytest.raises(RuntimeError, match=fails):
        manager.commit()
    with pytest.raises(TransactionFailedError):
        mail.send("a@x.test", "late", "t")
    manager.abort()
    assert subjects(box) == []


def test_the_vote_is_before_that_of_a_resource_that_commits_in_its_own(
    make_box: MakeBox, manager: Any
) -> None:
    box = make_box(deliver="never")
    last = Other("~sqlalchemy:1")
    manager.get().join(last)
    TransactionMail(box, manager=manager).send("a@x.test", "s", "t")
    box.close()  # the vote finds that the store is closed
    with pytest.raises(NotStored):
        manager.commit()
    assert "tpc_vote" not in last.asked and "tpc_abort" in last.asked
    manager.abort()


def test_a_store_that_refuses_ends_the_transaction_in_the_vote(
    make_box: MakeBox, manager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = make_box(deliver="never")
    mail = TransactionMail(box, manager=manager)
    other = Other("~last")
    manager.get().join(other)
    mail.send("a@x.test", "s", "t")

    def full(self: Any, verb: Any, wait: float = 30.0) -> Any:
        verb.close()
        raise StoreError("full", "database or disk is full")

    monkeypatch.setattr(type(box.store), "run", full)
    with pytest.raises(NotStored, match="would not be stored: database or disk is full"):
        manager.commit()
    assert "tpc_finish" not in other.asked
    manager.abort()
    monkeypatch.undo()
    assert subjects(box) == []


def test_the_vote_leaves_nothing_behind(box: Outbox, mail: TransactionMail) -> None:
    mail.send("a@x.test", "short", "t", key="k")
    mail.send("a@x.test", "long", "x" * 70 + ("\n" + "y" * 70) * 20_000)
    mails = next(iter(mail.manager.get()._resources))
    assert isinstance(mails, MailDataManager)
    mails.tpc_vote(None)
    assert subjects(box) == [] and not list(box.events())
    mail.manager.commit()
    assert subjects(box) == ["short", "long"] and len([e for e in box.events() if e.event == "accepted"]) == 2
    mail.send("a@x.test", "again", "t", key="k")
    mail.manager.commit()
    assert subjects(box) == ["short", "long"]


def test_what_is_wrong_with_a_message_raises_at_once_and_spoils_nothing(
    box: Outbox, mail: TransactionMail
) -> None:
    mail.send("a@x.test", "good", "t")
    with pytest.raises(Refused):
        mail.send("no address", "bad", "t")
    with pytest.raises(TypeError):
        mail.send("a@x.test", "s", "t", sbject="x")
    mail.manager.commit()
    assert subjects(box) == ["good"]


def test_each_thread_and_each_transaction_has_its_own_mail(make_box: MakeBox) -> None:
    box = make_box(deliver="never")
    managers = [transaction.TransactionManager(), transaction.TransactionManager()]
    mails = [TransactionMail(box, manager=one) for one in managers]
    for number, mail in enumerate(mails):
        mail.send("a@x.test", f"of {number}", "t")
    managers[1].abort()
    managers[0].commit()
    assert subjects(box) == ["of 0"]


def test_an_engine_sends_within_a_second_of_the_commit(make_box: MakeBox, sink: Sink, manager: Any) -> None:
    mail = TransactionMail(make_box(relay=sink.url), manager=manager)
    with manager:
        mail.send("a@x.test", "s", "t")
    assert sink.wait_for(1, 10)
