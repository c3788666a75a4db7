"""Files that outmail believes: configuration, passwords, users, templates. Who may have written them, and who may read them?

Why: a configuration names programs to run and servers that get passwords. One that lies in the folder where somebody happens to be was
perhaps put there by somebody else: think of root in a user's folder, or of anybody in /tmp.
Rule: what counts is written by this user and root alone. A file's owner is one of the two, and nobody else may write it; the folder of a
file that was found, not named, belongs to one of the two, and nobody else may write there, unless it is sticky (/tmp), where others cannot
replace a file of ours. A group counts as nobody else when it is the private one of this user or root: same name, no other members.
Promises: what is judged is the open file (fstat), not its name, so nothing can be exchanged between look and use; of a symbolic link the
target counts, and the folders of both; a file that was found is not read before it is believed, and a FIFO holds nobody up.
Where there are no owners as on Unix (Windows) everything is believed.
Fails: OSError for what cannot be opened. Does not: refuse anything; whoever asks decides what a doubt means.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import NamedTuple

_OWNERS = hasattr(os, "geteuid")


class Document(NamedTuple):
    """A file's bytes. ``doubt``: why others may have written them, as a clause; "" when only this user and root may have."""

    path: str
    content: bytes = b""
    doubt: str = ""
    #: It was looked for, not named.
    found: bool = False


def read(path: str) -> Document:
    """A file that was named: its folder does not matter."""
    with open(path, "rb") as file:
        return Document(path, file.read(), _doubt(os.fstat(file.fileno()), "it"))


def read_found(path: str) -> Document:
    """A file that was looked for: where there is a doubt, nothing of it is read."""
    if not _OWNERS:
        return Document(path, read(path).content, found=True)
    try:
        return _found(path, os.path.realpath(path))
    except OSError as problem:
        raise OSError(problem.errno, problem.strerror, path) from None


def _found(path: str, target: str) -> Document:
    folder = os.open(os.path.dirname(target), getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = os.open(os.path.basename(target), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            doubt = _doubt(status, "it") if stat.S_ISREG(status.st_mode) else "it is no regular file"
            doubt = doubt or _doubt(os.fstat(folder), "its folder") or _doubt(os.stat(os.path.dirname(os.path.abspath(path))), "its folder")
            return Document(path, b"" if doubt else file.read(), doubt, found=True)
    finally:
        os.close(folder)


def configuration(named: str, env: Mapping[str, str]) -> Document | None:
    """The configuration's file: the one named, or the first one found; None when there is none. Raises OSError."""
    named = named or env.get("OUTMAIL_CONFIG", "")
    if named:
        return read(named)
    user = env.get("XDG_CONFIG_HOME") or os.path.join(env.get("HOME") or os.path.expanduser("~"), ".config")
    for path in ("outmail.toml", os.path.join(user, "outmail", "config.toml"), "/etc/outmail/config.toml"):
        if os.path.exists(path):
            return read_found(path)
    return None


def readable_by_all(path: str) -> bool:
    """True for a file that every user of this machine may read, as far as its own mode says."""
    try:
        return _OWNERS and bool(os.stat(path).st_mode & stat.S_IROTH)
    except OSError:
        return False  # whoever reads it says so


def _doubt(status: os.stat_result, what: str) -> str:
    """Why somebody else may write there, as a clause about ``what``."""
    if not _OWNERS:
        return ""
    if status.st_uid not in (os.geteuid(), 0):
        return f"{what} belongs to {_user(status.st_uid)}, not to {_user(os.geteuid())}" + (" or root" if os.geteuid() else "")
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return ""
    if status.st_mode & stat.S_IWOTH:
        return f"everybody may write {what}"
    if status.st_mode & stat.S_IWGRP and not _private(status.st_gid):
        return f"{what} may be written by the group {_group(status.st_gid)}"
    return ""


def _private(gid: int) -> bool:
    """True for the group that this user or root has for itself."""
    import grp

    names = {_user(uid) for uid in (os.geteuid(), 0)}
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name in names and names.issuperset(group.gr_mem)


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _group(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
