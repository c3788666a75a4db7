"""Django: an e-mail backend that stores mail in the running transaction, a command, an admin list, system
checks.

Put ``"outmail.contrib.django"`` into INSTALLED_APPS and ``"outmail.contrib.django.EmailBackend"`` into
EMAIL_BACKEND (Django 5.2) or MAILERS (6.1 and later). ``manage.py migrate`` creates the table, ``manage.py
outmail run`` delivers. See docs/django.md.
Promises: importing this package does not import Django's models. Does not: need Django unless it is used.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "EmailBackend":
        from outmail.contrib.django.backend import EmailBackend

        return EmailBackend
    raise AttributeError(name)
