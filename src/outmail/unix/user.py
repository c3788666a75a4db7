"""Who calls. Loads nothing: `sendmail` starts in milliseconds."""

from __future__ import annotations

import os


def login() -> str:
    """The user's name as the system knows it, whatever the environment says; "" for a number without one."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""
