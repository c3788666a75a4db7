"""Where a store lies that is a file or a folder: what its URL says, and where it is when nobody names one.

`outmail watch` notes its runs beside the store without reading the rest of the configuration: it has to find
the same place. Loads nothing that is slow.
Promises: every part of outmail reads these URLs here. Fails: never. Does not: look at the disk, or know the
URLs of servers.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # as in typing, without the price of importing it

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What stands before the colon; ``sqlite+…`` names the library.
KINDS = ("sqlite", "sqlite+apsw", "sqlite+stdlib", "maildir")


def parts(url: str) -> tuple[str, str] | None:
    """(kind, path) of a store that is a file or a folder; the kind of a bare path is "". None for the URL of
    a server, and for what is no store.
    """
    kind, colon, path = url.partition(":")
    if not colon or kind not in KINDS:
        return None if colon and "/" not in kind and path.startswith("//") else ("", url)
    return kind, "/" + path.lstrip("/") if path.startswith("//") else path


def beside(url: str, file: str) -> str:
    """The same with a relative path made absolute, relative to the folder of a file that names it."""
    kind, path = parts(url) or ("", "")
    if not path or os.path.isabs(path):
        return url
    path = os.path.join(os.path.dirname(os.path.abspath(file)), path)
    return f"{kind}:{path}" if kind else path


def default_store(env: Mapping[str, str]) -> str:
    """``/var/lib/outmail/queue.db`` for root, else a file in the user's data folder."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return "/var/lib/outmail/queue.db"
    return user_store(env)


def user_store(env: Mapping[str, str]) -> str:
    """``queue.db`` in the user's data folder; root has one, too."""
    data = env.get("XDG_DATA_HOME") or os.path.join(
        env.get("HOME") or os.path.expanduser("~"), ".local", "share"
    )
    return os.path.join(data, "outmail", "queue.db")
