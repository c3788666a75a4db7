"""`NotificationManager` with the public methods of exoskeleton's: start, milestone, finish and aborted mails
from two dictionaries.

What stays: the keys of ``mail_settings`` and ``mail_behavior``, their defaults, the wording of the subjects.
What is better: everything is checked before the first mail; without ``mail_settings`` nothing is mailed and
nothing crashes; a mail server that is down costs the job nothing; each milestone is mailed once; a remaining
time that nobody knows is said so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outmail.compat.bote import Mailer, checked
from outmail.errors import Error
from outmail.policy.progress import Marks, remaining_in_words
from outmail.reports.mail import BODY_LIMIT, one_line, safe
from outmail.reports.post import guarded

BEHAVIOR = ("send_start_msg", "send_finish_msg", "milestone_num")


class NotificationManager:
    """``NotificationManager(project_name, mail_settings, mail_behavior)``; sends the start mail unless told
    not to.
    """

    def __init__(
        self,
        project_name: str,
        mail_settings: Mapping[str, Any] | None = None,
        mail_behavior: Mapping[str, Any] | None = None,
        *,
        store: str | None = None,
        strict: bool = False,
    ) -> None:
        self.project_name = project_name
        self.strict = strict
        behavior = checked_behavior(mail_behavior)
        self.send_start_msg: bool = behavior["send_start_msg"]
        self.send_finish_msg: bool = behavior["send_finish_msg"]
        self.milestone: int | None = behavior["milestone_num"]
        self._marks = Marks(step=self.milestone) if self.milestone else None
        if mail_settings:
            checked(mail_settings)
        self.mailer = Mailer(mail_settings, store=store) if mail_settings else None
        if self.send_start_msg:
            self.send_msg_start()

    def send_msg_start(self) -> None:
        """The bot has started."""
        self._send(
            f"Project {self.project_name} just started.",
            "The bot has just started. This mail also shows that sending mail works.",
        )

    def send_msg_milestone(
        self,
        processed: int,
        remaining: int | None = None,
        time_to_finish_seconds: float | None = None,
        **_: Any,
    ) -> bool:
        """A mail for each ``milestone_num`` items, once; True when this call reached one. Negative seconds
        mean unknown.
        """
        if self._marks is None or not self._marks.reached(processed, 0.0):
            return False
        known = time_to_finish_seconds is not None and time_to_finish_seconds >= 0 and processed > 0
        seconds = float(time_to_finish_seconds or 0.0)
        lines = [f"{processed} processed."]
        if remaining is not None:
            lines.append(f"{remaining} tasks remaining.")
        lines.append(
            f"Estimated time to complete the queue: "
            f"{remaining_in_words((seconds, seconds) if known else None)}."
        )
        self._send(f"Project {self.project_name} Milestone: {processed} processed", "\n".join(lines))
        return True

    def send_msg_finish(self, permanent_errors: int = 0) -> None:
        """The queue is empty and the bot stopped; only if ``send_finish_msg`` asks for it."""
        if self.send_finish_msg:
            self._send(
                f"{self.project_name}: queue empty / bot stopped",
                f"The queue is empty. The bot stopped as configured. {permanent_errors} errors occurred.",
            )

    def send_msg_abort_lost_db(self) -> None:
        """The connection to the database was lost."""
        self._send(
            f"Project {self.project_name} ABORTED",
            "The bot lost contact to the database and could not restore it. It has stopped.",
        )

    def send_custom_msg(self, subject: str, body: str) -> None:
        """Any mail; nothing without ``mail_settings``."""
        self._send(subject, body)

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
        """Deliver what can be delivered in a few seconds."""
        if self.mailer is not None:
            try:
                self.mailer.close()
            except Error:
                if self.strict:
                    raise


def checked_behavior(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """``mail_behavior`` with its defaults; ValueError with a sentence, before any mail."""
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
    number = given.get("milestone_num")
    if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 0):
        raise ValueError(
            f"mail_behavior: milestone_num must be a whole number of items, or None, not {number!r}"
        )
    return {**found, "milestone_num": number or None}
