"""One program that sends with repoze.sendmail in transactions: the package itself into outmail's listener,
and outmail.compat.repoze in its place; its queue is emptied by its own `qp` and by outmail's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any

import transaction
from live import Live, until
from repoze.sendmail import delivery
from repoze.sendmail.mailer import SMTPMailer
from results import check

from outmail.compat import repoze as ours

live = Live()
folder = Path(tempfile.mkdtemp(prefix="outmail-live-"))
PEOPLE = ["a@example.com", "b@example.com"]
THEIRS_QP, OURS_QP = "repoze.sendmail.queue", "outmail.compat.repoze.qp"


def message(subject: str) -> Message:
    made = Message()
    made["Subject"], made["To"] = subject, "Zo\xe9 <a@example.com>"
    made.set_payload(".dot\n\xe4\n", "utf-8")
    return made


def qp(module: str, queue: Path) -> None:
    words = ["--hostname", "127.0.0.1", "--port", str(live.port), str(queue)]
    subprocess.run([sys.executable, "-m", module, *words], check=True, timeout=60)


def arrives(subject: str) -> None:
    until(live.received)
    (mail,) = live.received()
    assert (mail.sender, mail.recipients) == ("me@example.com", PEOPLE), mail
    assert f"Subject: {subject}".encode() in mail.content and b"<a@example.com>" in mail.content
    assert b"X-Actually" not in mail.content


def direct(deliveries: Any, mailer: Any) -> None:
    live.forget()
    sends = deliveries.DirectMailDelivery(mailer)
    sends.send("me@example.com", PEOPLE, message("direct"))
    assert not live.received()
    transaction.commit()
    arrives("direct")


def queued(deliveries: Any, program: str) -> None:
    live.forget()
    queue = folder / f"{deliveries.__name__}-{program}"
    deliveries.QueuedMailDelivery(str(queue)).send("me@example.com", PEOPLE, message("queued"))
    transaction.commit()
    qp(program, queue)
    arrives("queued")
    assert not [path for path in (queue / "new").iterdir() if path.name[0] != "."]


def undone(deliveries: Any) -> None:
    """An abort, and a savepoint that is rolled back."""
    live.forget()
    queue = folder / f"{deliveries.__name__}-undone"
    sends = deliveries.QueuedMailDelivery(str(queue))
    sends.send("me@example.com", PEOPLE, message("aborted"))
    transaction.abort()
    before = transaction.savepoint()
    sends.send("me@example.com", PEOPLE, message("rolled back"))
    before.rollback()
    sends.send("me@example.com", PEOPLE, message("kept"))
    transaction.commit()
    qp(OURS_QP, queue)
    arrives("kept")


TESTS: dict[str, Callable[[], None]] = {
    "direct": lambda: direct(delivery, SMTPMailer("127.0.0.1", live.port)),
    "direct_ours": lambda: direct(ours, ours.SMTPMailer("127.0.0.1", live.port, store=f"{folder}/q.db")),
    "queued": lambda: queued(delivery, THEIRS_QP),
    "queued_and_our_qp": lambda: queued(delivery, OURS_QP),
    "queued_ours": lambda: queued(ours, OURS_QP),
    "undone": lambda: undone(delivery),
    "undone_ours": lambda: undone(ours),
}
try:
    for name, test in TESTS.items():
        check(name, test)
finally:
    live.stop()
