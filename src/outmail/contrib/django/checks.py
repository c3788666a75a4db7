"""System checks: ``manage.py check`` says what would go wrong with the first mail."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Warning, register

from outmail import ConfigError
from outmail.config import load
from outmail.contrib.django import anymail, queue

BACKENDS = ("outmail.contrib.django.EmailBackend", "outmail.contrib.django.backend.EmailBackend")


@register("outmail")
def settings_make_sense(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """E001: a setting is wrong. E002: outmail cannot empty this database. W001: nothing uses the backend.
    W002 and I001: django-anymail settings and message attributes that are ignored.
    """
    found: list[CheckMessage] = []
    mailers = getattr(settings, "MAILERS", {}) or {}
    used = [mailer.get("OPTIONS", {}) for mailer in mailers.values() if mailer.get("BACKEND") in BACKENDS]
    if not mailers and getattr(settings, "EMAIL_BACKEND", "") in BACKENDS:
        used.append({})
    for own in used or [{}]:
        try:
            load(
                queue.options({name: value for name, value in own.items() if name != "fail_silently"}).get(
                    "config"
                )
            )
        except ConfigError as problem:
            found.append(Error(str(problem), hint=problem.hint or None, id="outmail.E001"))
            continue
        try:
            queue.database_url(own)
        except ConfigError as problem:
            found.append(Error(str(problem), hint=problem.hint or None, id="outmail.E002"))
    if not used and apps.is_installed("outmail.contrib.django"):
        found.append(
            Warning(
                "outmail is installed, but no mailer uses it",
                hint=f"EMAIL_BACKEND = {BACKENDS[0]!r}",
                id="outmail.W001",
            )
        )
    return found + (_of_anymail() if used else [])


def _of_anymail() -> list[CheckMessage]:
    found: list[CheckMessage] = []
    given = getattr(settings, "ANYMAIL", None) or {}
    defaults = sorted(name for name in (*given, *dir(settings)) if name.endswith("SEND_DEFAULTS"))
    if defaults:
        found.append(
            Warning(
                f"outmail does not read {', '.join(defaults)}",
                hint="set the attributes on the messages, or remove the setting",
                id="outmail.W002",
            )
        )
    if defaults or given or apps.is_installed("anymail"):
        found.append(
            Info(
                f"of django-anymail's message attributes, outmail ignores {', '.join(anymail.IGNORED)} and "
                f"refuses {', '.join(anymail.REFUSED)}",
                hint='SILENCED_SYSTEM_CHECKS = ["outmail.I001"]',
                id="outmail.I001",
            )
        )
    return found
