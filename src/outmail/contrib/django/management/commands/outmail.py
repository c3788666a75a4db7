"""``manage.py outmail …``: the command `outmail` with the queue, the relay and the database of Django's
settings.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from django.core.management.base import BaseCommand

from outmail.cli import main
from outmail.contrib.django import queue


class Command(BaseCommand):
    help = "outmail's commands with Django's settings: run, queue list, show ID, log ID, why ID, …"
    requires_system_checks: list[str] = []

    def run_from_argv(self, argv: list[str]) -> None:
        """Everything after the name is outmail's own."""
        sys.exit(main(argv[2:]) if not self.prepare() else 78)

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("words", nargs="*", help="outmail's own arguments")

    def handle(self, *args: Any, **options: Any) -> None:
        self.prepare()
        status = main(options["words"])
        if status:
            sys.exit(status)

    def prepare(self) -> int:
        """Turn the settings into outmail's environment variables. Variables that are set already win."""
        found = queue.options()
        values = {
            "OUTMAIL_STORE": found.get("store"),
            "OUTMAIL_RELAY": found.get("relay"),
            "OUTMAIL_CONFIG": found.get("config"),
            "OUTMAIL_OUTBOX": queue.database_url(),
        }
        for name, value in values.items():
            if value:
                os.environ.setdefault(name, str(value))
        return 0
