"""The names of this machine's users. Loads nothing: `sendmail` starts in milliseconds."""

from __future__ import annotations


def login(uid: int) -> str:
    """The name as the system knows it, whatever the environment says; "" for a number without one."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def is_user(name: str) -> bool:
    """True when the system knows this login name."""
    import pwd

    try:
        pwd.getpwnam(name)
    except (KeyError, ValueError):  # ValueError: a NUL
        return False
    return True
