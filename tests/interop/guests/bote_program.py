"""One program that sends with bote: bote itself into outmail's listener, and outmail.compat.bote in its
place. The mails have to be alike, and so has what is refused.
"""

from __future__ import annotations

import email
import email.policy
import importlib.metadata
import logging
import smtplib
import tempfile
from typing import Any

import bote as theirs
from live import Live, until
from results import check

from outmail.compat import bote as ours

logging.disable(logging.CRITICAL)
live = Live()
store = tempfile.mkdtemp(prefix="outmail-live-") + "/q.db"
if importlib.metadata.version("bote").startswith("1."):
    smtplib.SMTP.default_port = live.port  # 1.2 ignores the port where it does not encrypt
SETTINGS: dict[str, Any] = {
    "server": "127.0.0.1",
    "server_port": live.port,
    "recipient": {"default": "default@example.com", "admin": "admin@example.com"},
    "sender": "robot@example.com",
    "wrap_width": 40,
}
PUBLIC = [name for name in dir(theirs) if not name.startswith("_")] + ["__version__", "__author__"]


def mailers() -> list[Any]:
    return [theirs.Mailer(SETTINGS), ours.Mailer(SETTINGS, store=store)]


def sent(mailer: Any, work: Any) -> Any:
    """(sender, recipients, subject, text) of the one mail."""
    live.forget()
    work(mailer)
    until(live.received)
    (mail,) = live.received()
    message: Any = email.message_from_bytes(mail.given, policy=email.policy.default)
    text = message.get_body(("plain",)).get_content().replace("\r\n", "\n")
    return mail.sender, mail.recipients, message["subject"], message["from"], message["to"], text.rstrip()


def alike(work: Any) -> None:
    one, other = (sent(mailer, work) for mailer in mailers())
    assert one == other, f"{one} is not {other}"


def refused(make: Any) -> tuple[str, ...]:
    """The exception's bases by name, or how it went well."""
    try:
        make()
    except Exception as problem:
        return tuple(kind.__name__ for kind in type(problem).__mro__)
    return ()


def same_refusal(change: dict[str, Any]) -> None:
    settings = {**SETTINGS, **change}
    settings = {name: value for name, value in settings.items() if value is not ...}
    theirs_, ours_ = (
        refused(lambda: theirs.Mailer(settings)),
        refused(lambda: ours.Mailer(settings, store=store)),
    )
    assert bool(theirs_) == bool(ours_) and set(theirs_) <= set(ours_), f"{theirs_} is not {ours_}"


def surface() -> None:
    missing = [name for name in PUBLIC if not hasattr(ours, name) and name != "mailer"]
    assert not missing, missing
    one, other = mailers()
    lacking = [name for name in vars(one) if name != "context" and not hasattr(other, name)]
    assert not lacking, lacking
    different = {
        name: (value, getattr(other, name))
        for name, value in vars(one).items()
        if name != "context" and getattr(other, name) != value
    }
    assert not different, different


def hierarchy() -> None:
    for name in (
        "BoteException",
        "UnencryptedRemoteConnection",
        "NotAnEmail",
        "MissingSubject",
        "MissingMailContent",
    ):
        one, other = (tuple(k.__name__ for k in getattr(m.err, name).__mro__) for m in (theirs, ours))
        assert one == other, f"{name}: {one} is not {other}"


REMOTE = {"server": "smtp.example.com", "server_port": 587}
CHANGES: dict[str, dict[str, Any]] = {
    "remote, encryption left out": REMOTE,
    "remote, encryption off": {**REMOTE, "encryption": "off"},
    "remote, starttls": {**REMOTE, "encryption": "starttls"},
    "remote without a port": {"server": "smtp.example.com", "server_port": ..., "encryption": "ssl"},
    "unknown encryption": {"encryption": "tls"},
    "port is text": {"server_port": "25"},
    "port too large": {"server_port": 70000},
    "user without passphrase": {"username": "u"},
    "user and passphrase": {"username": "u", "passphrase": "p"},
    "no recipient": {"recipient": ...},
    "no sender": {"sender": ...},
    "recipient is a number": {"recipient": 5},
    "recipient is empty": {"recipient": {}},
    "recipient without default": {"recipient": {"boss": "b@example.com"}},
    "recipient is no address": {"recipient": "nobody"},
    "one of the recipients is no address": {"recipient": {"default": "nobody"}},
    "sender is no address": {"sender": "nobody"},
    "sender without a top-level domain": {"sender": "dev@localhost"},
    "unknown key": {"colour": "red"},
    "width is text": {"wrap_width": "80"},
}
MAILS: dict[str, Any] = {
    "a mail": lambda mailer: mailer.send_mail("Subject", "Text"),
    "by keyword": lambda mailer: mailer.send_mail(message_subject="Subject", message_text="Text"),
    "wrapped": lambda mailer: mailer.send_mail("Subject", "word " * 30 + "\n\n\nlast line"),
    "not ASCII": lambda mailer: mailer.send_mail("Größe ✓", "Tür\n.dot\n"),
    "to another": lambda mailer: mailer.send_mail("Subject", "Text", overwrite_recipient="x@example.com"),
    "to the admin": lambda mailer: mailer.send_mail_to_admin("Subject", "Text"),
    "a long word": lambda mailer: mailer.send_mail("Subject", "https://example.com/" + "x" * 60),
}
BAD: dict[str, tuple[Any, ...]] = {
    "no subject": ("", "text"),
    "subject None": (None, "text"),
    "no text": ("subject", ""),
    "text None": ("subject", None),
    "to no address": ("subject", "text", "nobody"),
}


def same_mail_refusal(words: tuple[Any, ...]) -> None:
    one, other = (refused(lambda mailer=mailer: mailer.send_mail(*words)) for mailer in mailers())
    assert one and one == other, f"{one} is not {other}"


try:
    check("the public names and attributes", surface)
    check("the hierarchy of exceptions", hierarchy)
    for name, change in CHANGES.items():
        check(f"settings: {name}", lambda change=change: same_refusal(change))
    for name, work in MAILS.items():
        check(f"mail: {name}", lambda work=work: alike(work))
    for name, words in BAD.items():
        check(f"refused: {name}", lambda words=words: same_mail_refusal(words))
finally:
    live.stop()
