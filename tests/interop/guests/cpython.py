"""CPython's own tests of smtplib, with outmail's listener in the place of the test server; and of
`logging.handlers.SMTPHandler`: the standard one against the listener, and outmail's against the test server.
"""

from __future__ import annotations

import importlib
import logging.handlers
import sys
import tempfile
import threading
import unittest
import warnings
from typing import Any

import results
from live import Live, until

warnings.simplefilter("ignore")
suite: Any = importlib.import_module("test.test_smtplib")
log: Any = importlib.import_module("test.test_logging")
suite.HOST = "127.0.0.1"
live = Live()


class Server:
    """Stands for `smtpd.DebuggingServer` and the simulated servers."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.socket = self
        live.forget()

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", live.port)

    def add_feature(self, feature: str) -> None:
        raise NotImplementedError("a feature is simulated")

    @property
    def _addresses(self) -> dict[str, Any]:
        mail = live.received()[-1]
        return {"from": mail.sender, "tos": mail.recipients}

    @property
    def last_mailfrom(self) -> str:
        return live.received()[-1].sender

    @property
    def last_rcpttos(self) -> list[str]:
        return live.received()[-1].recipients

    @property
    def last_message(self) -> bytes:
        return live.received()[-1].given.replace(b"\r\n", b"\n").removesuffix(b"\n")

    @property
    def last_mail_options(self) -> list[str]:
        raise unittest.SkipTest("left out: the listener does not say which options MAIL had")


def serving(server: Any, ready: threading.Event, done: threading.Event) -> None:
    """As long as the test's client talks; then what came is printed as the test server prints it."""
    ready.set()
    done.wait(30)
    for mail in live.received():
        lines = mail.given.decode("utf-8", "backslashreplace").replace("\r\n", "\n").rstrip("\n").split("\n")
        head = lines.index("") if "" in lines else 0
        lines[head:head] = ["X-Peer: 127.0.0.1"]
        if sys.stdout is not sys.__stdout__:
            print(suite.MSG_BEGIN, end="")
            print("\n".join(lines))
            print(suite.MSG_END, end="")
        suite.smtpd.DEBUGSTREAM.write(f"sender: {mail.sender}\nrecips: {mail.recipients!r}\n")
    ready.set()


suite.smtpd.DebuggingServer = suite.SimSMTPServer = suite.SimSMTPUTF8Server = Server
suite.debugging_server = serving
log.SMTPHandlerTest.TIMEOUT = 10.0
#: Tests that tell the simulated server what to answer, or ask for what only it knows.
SIMULATED = ("AUTH", "auth_", "421", "_rest_from", "QUIT_failure", "quit_resets", "EHLO", "VRFY", "EXPN")
NOT_SUPPORTED = ("smtputf8_NotSupported", "without_SMTPUTF8", "if_no_smtputf8")


def left_out(name: str) -> bool:
    kind, _, test = name.partition(".")
    return kind == "SMTPSimTests" and any(word in test for word in (*SIMULATED, *NOT_SUPPORTED))


class StandardHandlerTest(log.SMTPHandlerTest):  # type: ignore[misc,name-defined]
    """The standard handler talks to the listener; the test's server only hears what came."""

    def test_basic(self) -> None:
        real = log.TestSMTPServer

        class Ours:
            def __init__(self, addr: Any, handler: Any, *_: Any) -> None:
                self.port, self.handler = live.port, handler
                live.forget()

            def start(self) -> None:
                threading.Thread(target=self.watch, daemon=True).start()

            def watch(self) -> None:
                until(live.received, 10)
                (mail,) = live.received()
                text = mail.given.decode().replace("\r\n", "\n").rstrip("\n")
                self.handler(("127.0.0.1", 0), mail.sender, mail.recipients, text)

            def stop(self) -> None:
                pass

        log.TestSMTPServer = Ours
        try:
            super().test_basic()
        finally:
            log.TestSMTPServer = real


class OurHandlerTest(log.SMTPHandlerTest):  # type: ignore[misc,name-defined]
    """outmail's handler in the place of the standard one, which talks to the test's own server."""

    def test_basic(self) -> None:
        from outmail.compat import handlers

        real = logging.handlers.SMTPHandler
        store = tempfile.mkdtemp(prefix="outmail-live-") + "/q.db"

        class Ours(handlers.SMTPHandler):
            def __init__(self, *words: Any, **more: Any) -> None:
                super().__init__(*words, **more, store=store)

        logging.handlers.SMTPHandler = Ours  # type: ignore[assignment,misc]
        try:
            super().test_basic()
        finally:
            logging.handlers.SMTPHandler = real  # type: ignore[misc]


loader = unittest.TestLoader()
kinds = (
    suite.DebuggingServerTests,
    suite.SMTPSimTests,
    suite.SMTPUTF8SimTests,
    StandardHandlerTest,
    OurHandlerTest,
)
try:
    results.run(unittest.TestSuite(loader.loadTestsFromTestCase(kind) for kind in kinds), left_out)
finally:
    live.stop()
