"""mailqueue-runner's two logs: one logfmt line for each attempt, on the loggers ``mailqueue.delivery_log``
and ``mailqueue.queue_log``, which its settings of these names send to files.

Promises: the fields and their order are those of mailqueue-runner 1.0.0, so whatever reads its logs reads
these. A log that cannot be written is told and does not stop the mail. Does not: know outmail's own log.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta

from outmail.compat.mailqueue.ini import Ini
from outmail.model import Leased, Reply, Settled
from outmail.policy.plain import plain_line
from outmail.policy.route import Relay

DELIVERY, QUEUE, SMTP = "mailqueue.delivery_log", "mailqueue.queue_log", "mailqueue.smtp"
_WIDTH = len("discarded")
_STATUS = {"delivered": "sent", "refused": "failed", "expired": "failed"}
_ESCAPED = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}


@dataclass(frozen=True)
class DeliveryEvent:
    """One attempt, in the order of the fields of a line. None: not in the line."""

    status: str
    to: str
    msgid: str | None = None
    via: str | None = None
    from_addr: str | None = None
    attempts: int | None = None
    delay: str | None = None
    app: str | None = None
    smtp: str | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, str | int]:
        """The fields that have a value, under the names of the log."""
        pairs = ((field.name.removesuffix("_addr"), getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in pairs if value is not None}


def format_logfmt(event: DeliveryEvent) -> str:
    """``status=sent      to=a@x.test …``: the status has a fixed width, so that lines are easy to compare."""
    words = [f"{name}={_quoted(str(value))}" for name, value in event.as_dict().items()]
    words[0] = f"status={_quoted(event.status).ljust(_WIDTH)}"
    return " ".join(words)


def _quoted(value: str) -> str:
    if value and all(letter.isprintable() and letter not in ' "=\\' for letter in value):
        return value
    return '"' + "".join(map(_letter, value)) + '"'


def _letter(letter: str) -> str:
    plain = letter >= " " and letter != "\x7f"
    return _ESCAPED.get(letter) or (letter if plain else f"\\x{ord(letter):02x}")


def format_delay(delay: timedelta) -> str:
    """42s, 10m, 2h05m, 1d3h."""
    seconds = max(0, int(delay.total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if days:
        return f"{days}d{hours % 24}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m" if minutes else f"{seconds}s"


def write(event: DeliveryEvent, *, queued: bool) -> None:
    """One line on the delivery log; with ``queued`` on the queue's log, too."""
    line, extra = format_logfmt(event), {"delivery": event.as_dict()}
    logging.getLogger(DELIVERY).info(line, extra=extra)
    if queued:
        logging.getLogger(QUEUE).info(line, extra=extra)


class _LocalTime(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return datetime.fromtimestamp(record.created).astimezone().isoformat(sep=" ", timespec="seconds")


def open_logs(ini: Ini) -> list[str]:
    """Send the logs where the settings say; returns what is in the way, as sentences. Raises `ConfigError`
    for a ``logging_config`` that cannot be used.
    """
    key = "logging_config" if ini.text("logging_config") else "logging_conf"
    if path := ini.place(key):
        import logging.config

        try:
            with open(path, encoding="utf-8") as file:
                logging.config.fileConfig(file, disable_existing_loggers=False)
        except Exception as problem:
            why = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
            raise ini.wrong(key, f"{path} is no logging configuration: {why}") from None
        return []
    problems = []
    for setting, name in (("delivery_log", DELIVERY), ("queue_log", QUEUE)):
        if place := ini.place(setting):
            problems += _opened(place, name)
    return problems


def _opened(path: str, name: str) -> list[str]:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as problem:
        return [f"{path} cannot be written, so nothing is logged there: {problem.strerror}"]
    handler.setFormatter(_LocalTime("%(asctime)s %(message)s"))
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return []


class Observer:
    """Writes what the engine settles. ``verbose`` gets the lines of the dialogue with the server."""

    def __init__(self, relay: Relay, *, verbose: bool = False) -> None:
        self.host = f"{relay.host}:{relay.port}"
        self._verbose = verbose
        #: Called for each line: (delivery, recipients, what the server said, whether it took the message).
        self.heard: Callable[[Settled, Sequence[Leased], Reply, bool], None] | None = None

    def __call__(self, items: Sequence[Settled]) -> None:
        for item in items:
            if self._verbose:
                self._show(item)
            groups: dict[str, list[Leased]] = {}
            for recipient, verdict in item.verdicts:
                groups.setdefault(_STATUS.get(verdict.event, "deferred"), []).append(recipient)
            for status, recipients in groups.items():
                self._tell(item, status, recipients)

    def _tell(self, item: Settled, status: str, recipients: Sequence[Leased]) -> None:
        delivery, outcome = item.delivery, recipients[0].outcome
        assert outcome is not None
        reply = outcome.reply
        if self.heard is not None:
            self.heard(item, recipients, reply, status == "sent")
        write(
            DeliveryEvent(
                status,
                ",".join(recipient.address for recipient in recipients),
                delivery.message_id.strip("<>"),
                f"smtp:{self.host}",
                delivery.sender or "<>",
                recipients[0].attempts + 1,
                format_delay(timedelta(milliseconds=item.at - delivery.accepted_at)),
                "mq-run",
                plain_line(str(reply)) if reply.code else None,
                None if reply.code else plain_line(reply.text),
            ),
            queued=True,
        )

    def _show(self, item: Settled) -> None:
        for _, direction, line in item.delivery.transcript:
            for part in line.decode("utf-8", "replace").split("\n"):
                logging.getLogger(SMTP).debug("%s: %s", direction, plain_line(part))
