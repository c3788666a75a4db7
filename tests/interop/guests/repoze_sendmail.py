"""repoze.sendmail: a queue that a transaction fills, and its program `qp` that empties it into outmail."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from email.message import Message
from pathlib import Path

import transaction
from live import Live
from repoze.sendmail.delivery import DirectMailDelivery, QueuedMailDelivery
from repoze.sendmail.mailer import SMTPMailer
from results import check

live = Live()
folder = tempfile.mkdtemp(prefix="outmail-live-") + "/queue"
PEOPLE = ["a@example.com", "b@example.com"]


def message(subject: str) -> Message:
    made = Message()
    made["Subject"], made["To"] = subject, "a@example.com"
    made.set_payload(".dot\n\xe4\n", "utf-8")
    return made


def direct() -> None:
    live.forget()
    delivery = DirectMailDelivery(SMTPMailer("127.0.0.1", live.port))
    delivery.send("me@example.com", PEOPLE, message("direct"))
    assert not live.received()
    transaction.commit()
    (mail,) = live.received()
    assert mail.recipients == PEOPLE and b"Subject: direct" in mail.content


def queued() -> None:
    live.forget()
    QueuedMailDelivery(folder).send("me@example.com", PEOPLE, message("queued"))
    transaction.commit()
    qp = Path(sys.executable).with_name("qp")
    subprocess.run([qp, "--hostname", "127.0.0.1", "--port", str(live.port), folder], check=True, timeout=60)
    (mail,) = live.received()
    assert (mail.sender, mail.recipients) == ("me@example.com", PEOPLE) and b"Subject: queued" in mail.content
    assert not list((Path(folder) / "new").iterdir())


def aborted() -> None:
    live.forget()
    QueuedMailDelivery(folder).send("me@example.com", PEOPLE, message("aborted"))
    transaction.abort()
    assert not live.received() and not list((Path(folder) / "new").iterdir())


try:
    for test in (direct, queued, aborted):
        check(test.__name__, test)
finally:
    live.stop()
