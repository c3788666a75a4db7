"""The names of this machine.

Promises: they come from the operating system and from files, never from the network or DNS, so nobody waits
for them; a bounded part of each file is read, and a file that is missing, or cannot be read, is passed over.
`socket` is not loaded: that takes 2 ms of every program's start.
Fails: never; a machine without a name is "localhost". Does not: judge whether a name is a domain.
"""

from __future__ import annotations

import os

MAILNAME = "/etc/mailname"
HOSTS = "/etc/hosts"
_MOST = 1 << 20


def hostname() -> str:
    """As `socket.gethostname()` says it; "localhost" where the system has no name."""
    name = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return name or "localhost"


def full_name() -> str:
    """The host's name, with its domain where the name itself or hosts(5) says it."""
    name = hostname()
    if "." in name:
        return name
    known = (word for words in _lines(HOSTS) for word in words[1:] if name in words[1:])
    return next((word for word in known if word.startswith(f"{name}.")), name)


def mail_name() -> str:
    """The domain of this machine's mail, as Debian's mail programs read it from mailname(5); "" for none."""
    return next((words[0] for words in _lines(MAILNAME)), "")


def _lines(path: str) -> list[list[str]]:
    """The words of each line that has some, without comments."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(_MOST)
    except OSError:
        return []
    return [words for line in text.splitlines() if (words := line.partition("#")[0].split())]
