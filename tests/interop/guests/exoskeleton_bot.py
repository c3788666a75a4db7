"""The real bot framework exoskeleton, with outmail's NotificationManager in the place of its own, into
outmail's listener. Its database is replaced where it calls pymysql; the pages come from a server here.
"""

from __future__ import annotations

import email
import email.policy
import logging
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import exoskeleton
import pymysql
from exoskeleton import database_schema_check, notification_manager
from live import Live
from results import check

from outmail.compat import exoskeleton as ours

logging.disable(logging.CRITICAL)
live = Live()
SCHEMA = database_schema_check.DatabaseSchemaCheck
PAGES = 5


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        self.wfile.write(b"a page")

    def log_message(self, *_: Any) -> None:
        pass


pages = HTTPServer(("127.0.0.1", 0), Pages)
threading.Thread(target=pages.serve_forever, daemon=True).start()


class Database:
    """What the bot asks of MariaDB: a queue of pages, and counts."""

    def __init__(self, broken_after: int) -> None:
        self.left, self.broken_after, self.rows = PAGES, broken_after, [(0,)]

    def cursor(self) -> Database:
        return self

    def close(self) -> None:
        pass

    def execute(self, statement: str, words: Any = ()) -> int:
        if statement.startswith("SHOW TABLES"):
            self.rows = [(name,) for name in SCHEMA.TABLES]
        elif "exo_schema_version" in statement:
            self.rows = [("2.0.0",)]
        elif "next_queue_object_SP" in statement:
            self._next()
        elif "num_tasks_in_queue_without_error" in statement:
            self.rows = [(self.left,)]
        else:
            self.rows = [(0,)]
        return 1

    def callproc(self, name: str, words: Any = ()) -> None:
        if "check_all" in name:
            names = SCHEMA.PROCEDURES if "procedures" in name else SCHEMA.FUNCTIONS
            self.rows = [(one,) for one in names]

    def fetchone(self) -> Any:
        return self.rows[0] if self.rows else None

    def fetchall(self) -> Any:
        return self.rows

    def _next(self) -> None:
        if self.left <= self.broken_after:
            raise pymysql.err.OperationalError(2013, "Lost connection to MySQL server during query")
        self.rows = []
        if self.left:
            url = f"http://127.0.0.1:{pages.server_port}/{self.left}"
            self.rows = [(f"id-{self.left}", 2, url, "hash", 0)]
            self.left -= 1


def run(settings: dict[str, Any], behavior: dict[str, Any], broken_after: int = -1) -> list[str]:
    """The subjects of the mails of one run of the bot."""
    live.forget()
    store = tempfile.mkdtemp(prefix="outmail-live-") + "/q.db"
    made: list[ours.NotificationManager] = []

    class Manager(ours.NotificationManager):
        def __init__(self, *words: Any, **more: Any) -> None:
            super().__init__(*words, **more, store=store)
            made.append(self)

    notification_manager.NotificationManager = Manager
    pymysql.connect = lambda **_: Database(broken_after)
    time.sleep = lambda _: None  # the pauses between two pages
    try:
        bot = exoskeleton.Exoskeleton(
            {"database": "d", "username": "u", "passphrase": "p"},
            tempfile.gettempdir(),
            project_name="Bot",
            bot_behavior={"stop_if_queue_empty": True, "wait_min": 1, "wait_max": 2},
            mail_settings=settings,
            mail_behavior=behavior,
        )
        bot.process_queue()
    except ConnectionError:
        assert broken_after >= 0
    finally:
        time.sleep = real_sleep
        for manager in made:
            manager.close()
    return sorted(
        str(email.message_from_bytes(mail.content, policy=email.policy.default)["subject"])
        for mail in live.received()
    )


real_sleep = time.sleep
SETTINGS = {
    "server": "127.0.0.1",
    "server_port": live.port,
    "recipient": "me@example.com",
    "sender": "bot@example.com",
}
EVERYTHING = {"send_start_msg": True, "send_finish_msg": True, "milestone_num": 2}
START, FINISH = "Project Bot just started.", "Bot: queue empty / bot stopped"
MILESTONES = [f"Project Bot Milestone: {n} processed" for n in (2, 4)]


def expect(found: list[str], *wanted: str) -> None:
    assert found == sorted(wanted), found


def down() -> None:
    """The bot goes on while nobody takes its mail."""
    expect(run({**SETTINGS, "server_port": 1}, EVERYTHING))


try:
    check(
        "start, milestones and finish", lambda: expect(run(SETTINGS, EVERYTHING), START, FINISH, *MILESTONES)
    )
    check("start only, the default", lambda: expect(run(SETTINGS, {}), START))
    check("without mail settings", lambda: expect(run({}, EVERYTHING)))
    check(
        "the database is lost",
        lambda: expect(
            run(SETTINGS, EVERYTHING, broken_after=2), START, MILESTONES[0], "Project Bot ABORTED"
        ),
    )
    check("the mail server is down", down)
finally:
    pages.shutdown()
    live.stop()
