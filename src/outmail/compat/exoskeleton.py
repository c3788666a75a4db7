"""`NotificationManager` of exoskeleton 2.1: start, milestone, finish and abort mails of a bot.

Inside exoskeleton: ``exoskeleton.notification_manager.NotificationManager = NotificationManager`` before the
bot is made. Without exoskeleton: the numbers are given to the calls.
The same as in exoskeleton: the arguments and methods, the keys of ``mail_settings`` and ``mail_behavior``,
their defaults, the subjects. Better: everything is checked before the first mail. Without ``mail_settings``
nothing is mailed and nothing crashes. A mail server or a database that is down does not stop the job. Each
milestone is mailed once. An unknown remaining time is called unknown.
Fails: ValueError and the exceptions of `outmail.compat.bote` from the constructor. Does not: import
exoskeleton.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from outmail.compat.bote.mailer import Mailer
from outmail.errors import Error
from outmail.policy.progress import Marks, remaining_in_words
from outmail.reports.mail import BODY_LIMIT, one_line, safe
from outmail.reports.post import guarded

BEHAVIOR = ("send_start_msg", "send_finish_msg", "milestone_num")
Found = TypeVar("Found")


class NotificationManager:
    """``NotificationManager(project_name, mail_settings, mail_behavior, time, stats, milestone)``; sends the
    start mail unless told not to. ``store``: where the queue is. With ``strict`` a mail that cannot be stored
    raises.
    """

    def __init__(
        self,
        project_name: str,
        mail_settings: Mapping[str, Any] | None = None,
        mail_behavior: Mapping[str, Any] | None = None,
        time_manager_object: Any = None,
        stats_manager_object: Any = None,
        milestone: int | None = None,
        *,
        store: str | None = None,
        strict: bool = False,
    ) -> None:
        self.project_name = project_name
        self.time, self.stats, self.strict = time_manager_object, stats_manager_object, strict
        behavior = checked_behavior(mail_behavior)
        self.send_start_msg: bool = behavior["send_start_msg"]
        self.send_finish_msg: bool = behavior["send_finish_msg"]
        self.milestone = checked_milestone(milestone) or behavior["milestone_num"]
        self._marks = Marks(step=self.milestone) if self.milestone else None
        self.mailer = Mailer(mail_settings, store=store) if mail_settings else None
        self.send_mails = self.mailer is not None
        if self.send_start_msg:
            self.send_msg_start()

    def send_msg_start(self) -> None:
        """The bot has started. The constructor calls this."""
        self._send(
            f"Project {self.project_name} just started.",
            "The bot has just started. This mail also shows that sending mail works.",
        )

    def send_msg_milestone(
        self,
        processed: int | None = None,
        remaining: int | None = None,
        time_to_finish_seconds: float | None = None,
        **_: Any,
    ) -> bool:
        """Send one mail for each ``milestone_num`` items. True when this call reached a milestone. Without
        ``processed`` the numbers come from exoskeleton's objects. Negative seconds mean unknown.
        """
        if self._marks is None:
            return False
        asked = processed is None
        done = self._asked(lambda: int(self.stats.get_processed_counter())) if asked else processed
        if done is None or not self._marks.reached(done, 0.0):
            return False
        if asked:
            remaining = self._asked(self._remaining)
            if remaining is not None:
                time_to_finish_seconds = self._asked(
                    lambda: float(self.time.estimate_remaining_time(done, remaining))
                )
        seconds = time_to_finish_seconds
        known = seconds is not None and seconds >= 0 and done > 0
        lines = [f"{done} processed."]
        if remaining is not None:
            lines.append(f"{remaining} tasks remaining.")
        lines.append(
            f"Estimated time to complete the queue: "
            f"{remaining_in_words((float(seconds or 0), float(seconds or 0)) if known else None)}."
        )
        self._send(f"Project {self.project_name} Milestone: {done} processed", "\n".join(lines))
        return True

    def send_msg_finish(self, permanent_errors: int | None = None) -> None:
        """The queue is empty and the bot has stopped. Only if ``send_finish_msg`` is set."""
        if not (self.send_mails and self.send_finish_msg):
            return
        errors = permanent_errors
        if errors is None and self.stats is not None:
            errors = self._asked(lambda: int(self.stats.num_tasks_w_permanent_errors()))
        said = "How many errors occurred is not known." if errors is None else f"{errors} errors occurred."
        self._send(
            f"{self.project_name}: queue empty / bot stopped",
            f"The queue is empty. The bot stopped as configured. {said}",
        )

    def send_msg_abort_lost_db(self) -> None:
        """The connection to the database was lost."""
        self._send(
            f"Project {self.project_name} ABORTED",
            "The bot lost contact to the database and could not restore it. It has stopped.",
        )

    def send_custom_msg(self, subject: str, body: str) -> None:
        """Send any mail; nothing without ``mail_settings``."""
        self._send(subject, body)

    def _remaining(self) -> int:
        stats = self.stats.queue_stats()
        return int(stats["tasks_without_error"]) + int(stats["tasks_with_temp_errors"])

    def _asked(self, question: Callable[[], Found]) -> Found | None:
        """The answer of exoskeleton's object; None where it has none (its database is gone)."""
        found: Found | None = guarded(question, "a number for a report is not known")
        return found

    def _send(self, subject: str, body: str) -> None:
        if self.mailer is None:
            return
        mailer = self.mailer
        subject, body = one_line(subject, 500), safe(body, BODY_LIMIT)
        if self.strict:
            mailer.send_mail(subject, body)
        else:
            guarded(lambda: mailer.send_mail(subject, body))

    def close(self) -> None:
        """Deliver for a few seconds; the rest stays queued."""
        if self.mailer is not None:
            try:
                self.mailer.close()
            except Error:
                if self.strict:
                    raise


def checked_behavior(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """``mail_behavior`` with its defaults. Raises ValueError with a sentence, before any mail."""
    given = given or {}
    if not isinstance(given, Mapping):
        raise ValueError("mail_behavior must be a dictionary")
    for key in given:
        if key not in BEHAVIOR:
            raise ValueError(f"mail_behavior: unknown key {key!r}; known are {', '.join(BEHAVIOR)}")
    found = {
        "send_start_msg": given.get("send_start_msg", True),
        "send_finish_msg": given.get("send_finish_msg", False),
    }
    for key, value in found.items():
        if not isinstance(value, bool):
            raise ValueError(f"mail_behavior: {key} must be True or False, not {value!r}")
    return {**found, "milestone_num": checked_milestone(given.get("milestone_num"))}


def checked_milestone(number: Any) -> int | None:
    """After how many items a mail is sent; None for never."""
    if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 0):
        raise ValueError(
            f"mail_behavior: milestone_num must be a whole number of items, or None, not {number!r}"
        )
    return number or None
