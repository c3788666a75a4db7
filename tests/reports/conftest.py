"""Reports go to a sink and are read back as mails."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Callable, Iterator
from email.message import EmailMessage

import pytest

from outmail import Outbox
from outmail.reports import post
from outmail.testing import Sink


@pytest.fixture(autouse=True)
def told_afresh() -> None:
    post._told.clear()


@pytest.fixture
def box(sink: Sink, make_box: Callable[..., Outbox]) -> Iterator[Outbox]:
    yield make_box(relay=sink.url, toml=f'to = ["me@x.test"]\nrelay = "{sink.url}"')


class Mails:
    """What the sink has taken, in order."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink

    def wait(self, count: int) -> list[EmailMessage]:
        self.sink.wait_for(count, 10)
        found = [email.message_from_bytes(m.content, policy=email.policy.default) for m in self.sink.messages]
        assert len(found) == count, [str(mail["subject"]) for mail in found]
        return found

    def subjects(self, count: int) -> list[str]:
        return [str(mail["subject"]) for mail in self.wait(count)]


@pytest.fixture
def mails(sink: Sink) -> Mails:
    return Mails(sink)


def text(mail: EmailMessage) -> str:
    part = mail.get_body(("plain",))
    assert part is not None
    return str(part.get_content())


def page(mail: EmailMessage) -> str:
    part = mail.get_body(("html",))
    assert part is not None
    return str(part.get_content())
