"""The application's entry in Django's registry."""

from __future__ import annotations

from django.apps import AppConfig


class OutmailConfig(AppConfig):
    name = "outmail.contrib.django"
    label = "outmail"
    verbose_name = "Outgoing mail"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from outmail.contrib.django import checks  # noqa: F401
