"""Words for the service manager that started us (sd_notify(3)): ready, alive, reloading, stopping.

Promises: nothing is said, and nothing is waited for, where nobody has asked to be told ($NOTIFY_SOCKET); a
child of ours is not told to speak.
Fails: never; a manager that does not hear is named once in the log. Does not: need systemd, or its library.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

log = logging.getLogger("outmail")


class Manager:
    """Whom we tell; made once, at the start."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._address = env.get("NOTIFY_SOCKET", "")
        #: Seconds after which the manager takes us for hung; 0 where it does not look.
        self.patience = 0.0
        usec = env.get("WATCHDOG_USEC", "")
        if (
            self._address
            and usec.isdecimal()
            and env.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        ):
            self.patience = int(usec) / 1e6

    def ready(self, status: str) -> None:
        """We serve from now on."""
        self._tell(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        self._tell("WATCHDOG=1")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` ends that. Units of the type notify-reload want the
        time.
        """
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def _tell(self, text: str) -> None:
        if not self._address:
            return
        path = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(text.encode(), path)
        except OSError as problem:
            log.warning(
                "the service manager cannot be told anything at %s: %s", self._address, problem.strerror
            )
            self._address = ""
