"""The name of this machine.

Promises: it comes from the operating system and never from the network or DNS. `socket` is not loaded for it:
that takes 2 ms of every program's start.
Fails: never; a machine without a name is "localhost".
"""

from __future__ import annotations

import os


def hostname() -> str:
    """As `socket.gethostname()` says it; "localhost" where the system has no name."""
    name = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return name or "localhost"
