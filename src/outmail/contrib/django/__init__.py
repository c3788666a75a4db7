"""Django: an e-mail backend that queues in the running transaction, a command, an admin list, checks.

Put ``"outmail.contrib.django"`` into INSTALLED_APPS and ``"outmail.contrib.django.EmailBackend"`` into
EMAIL_BACKEND (Django 5.2) or MAILERS (6.1 and later); ``manage.py migrate`` makes the table, ``manage.py
outmail run`` delivers. See docs/django.md.
Promises: importing this package imports nothing of Django's models. Does not: need Django unless used.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "EmailBackend":
        from outmail.contrib.django.backend import EmailBackend

        return EmailBackend
    raise AttributeError(name)
