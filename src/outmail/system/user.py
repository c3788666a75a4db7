"""The name of a user of this machine. Loads nothing: `sendmail` starts in milliseconds."""

from __future__ import annotations


def login(uid: int) -> str:
    """The name as the system knows it, whatever the environment says; "" for a number without one."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""
