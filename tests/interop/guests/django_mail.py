"""Django's own tests of its mail: all that every e-mail backend has to pass, with outmail's; and those of
Django's SMTP backend, with outmail's listener in the place of the test server.

Arguments: the folder ``tests`` of Django's source.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import unittest
import warnings
from typing import Any

import results
from live import Live

sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")

import django  # noqa: E402
from django.conf import settings  # noqa: E402

STORE = tempfile.mkdtemp(prefix="outmail-live-") + "/q.db"
settings.configure(
    SECRET_KEY="x" * 50,
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["mail", "outmail.contrib.django"],
    USE_TZ=True,
    OUTMAIL={"store": STORE, "database": None},
)
django.setup()
from django.test.utils import setup_test_environment  # noqa: E402

setup_test_environment()
MODERN = django.VERSION >= (6, 1)
suite: Any = importlib.import_module("mail.test_backends" if MODERN else "mail.tests")
from outmail.contrib.django import queue  # noqa: E402
from outmail.contrib.django.backend import EmailBackend  # noqa: E402

live = Live()


def modern(content: bytes) -> Any:
    """As the test's own server reads it."""
    text = content.replace(b"\r\n", b"\n")
    return suite.message_from_bytes(text if MODERN else text.rstrip())


class _Ours:
    """What the tests of a backend ask of each."""

    email_backend = "outmail.contrib.django.EmailBackend"
    backend_class = EmailBackend

    def get_mailbox_content(self) -> list[Any]:
        box = queue.outbox()
        return [modern(box.content(status.id)) for status in box.find("-state:cancelled")]

    def flush_mailbox(self) -> None:
        queue.outbox().cancel("state:queued")

    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]
        self.flush_mailbox()


if MODERN:

    class OutmailBackendTests(_Ours, suite.SharedEmailBackendTests, suite.SimpleTestCase):  # type: ignore[misc,name-defined]
        pass

else:

    class OutmailBackendTests(_Ours, suite.BaseEmailBackendTests, suite.SimpleTestCase):  # type: ignore[misc,name-defined,no-redef]
        pass


class Handler:
    """What the test's server heard."""

    @property
    def mailbox(self) -> list[Any]:
        return [modern(mail.given) for mail in live.received()]

    @property
    def smtp_envelopes(self) -> list[dict[str, Any]]:
        return [{"mail_from": mail.sender, "rcpt_tos": mail.recipients} for mail in live.received()]

    def flush_mailbox(self) -> None:
        live.forget()


class Controller:
    """Stands for aiosmtpd's."""

    def __init__(self, handler: Handler, hostname: str, port: int) -> None:
        self.hostname, self.port = "127.0.0.1", live.port

    def start(self) -> None:
        live.forget()

    def stop(self) -> None:
        pass


suite.SMTPHandler, suite.Controller = Handler, Controller
loader = unittest.TestLoader()
try:
    found = [loader.loadTestsFromTestCase(kind) for kind in (OutmailBackendTests, suite.SMTPBackendTests)]
    results.run(unittest.TestSuite(found))
finally:
    live.stop()
