"""Files that outmail trusts (configuration, passwords, users, templates): who could have written them, and
who can read them?

Why: a configuration names programs to run and servers that get passwords. A configuration in the current
folder may come from somebody else: think of root working in a user's folder, or of anybody in /tmp.
Rule: a file is trusted when only this user and root could have written it. The file belongs to one of the
two, and nobody else may write it. If the file was *found*, not named, its folder must also belong to one of
the two and not be writable by others, unless it is sticky (/tmp), where others cannot replace our file. A
group counts as nobody else when it is the user's private group: it has the user's name and no other member.
Promises: the opened file is checked (fstat), not its name, so nobody can exchange it between check and use.
For a symbolic link the target, the folders of both, and in a sticky folder the owner of the link are checked.
A found file is not read before it is trusted, and a FIFO blocks nobody. A file that exists but cannot be seen
or read is an error; it is never skipped. On systems without Unix owners (Windows) everything is trusted.
Fails: OSError for what cannot be opened. Does not: refuse anything; the caller decides what to do about a
doubt.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from typing import NamedTuple

from outmail.system.user import login

_OWNERS = hasattr(os, "geteuid")

#: The file with the users of this machine, and how much of it is read.
PASSWD = "/etc/passwd"
_PASSWD_BYTES = 1 << 20
#: Folders in which only root writes, on every system.
_SYSTEM = ("/etc/", "/usr/")


class Document(NamedTuple):
    """The bytes of a file. ``doubt`` says, as a clause, why others may have written them; "" when only this
    user and root could.
    """

    path: str
    content: bytes = b""
    doubt: str = ""
    #: True when the file was found, not named.
    found: bool = False


def read(path: str) -> Document:
    """A file that was named: its folder does not matter."""
    with open(path, "rb") as file:
        return Document(path, file.read(), _doubt(os.fstat(file.fileno()), "it", path))


def read_found(path: str) -> Document:
    """A file that was found: when there is a doubt, nothing of it is read."""
    if not _OWNERS:
        return Document(path, read(path).content, found=True)
    try:
        return _found(path, os.path.realpath(path))
    except OSError as problem:
        raise OSError(problem.errno, problem.strerror, path) from None


def _found(path: str, target: str) -> Document:
    folder = os.open(os.path.dirname(target), getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)
    try:
        fd = os.open(os.path.basename(target), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            doubt = _doubt(status, "it", target) if stat.S_ISREG(status.st_mode) else "it is no regular file"
            doubt = (
                doubt
                or _doubt(os.fstat(folder), "its folder", target)
                or _doubt_of_name(os.path.abspath(path))
            )
            return Document(path, b"" if doubt else file.read(), doubt, found=True)
    finally:
        os.close(folder)


def _doubt_of_name(path: str) -> str:
    """Why others may have decided which file the name means: in a sticky folder everybody can make a link,
    but not replace ours.
    """
    folder = os.stat(os.path.dirname(path))
    doubt = _doubt(folder, "its folder", path)
    link = os.lstat(path)
    if not doubt and folder.st_mode & stat.S_ISVTX and stat.S_ISLNK(link.st_mode):
        doubt = _doubt_of_owner(link.st_uid, "the link", path)
    return doubt


def configuration(named: str, env: Mapping[str, str]) -> Document | None:
    """The configuration file: the named one, or the first one found; None when there is none. Raises
    OSError.
    """
    named = named or env.get("OUTMAIL_CONFIG", "")
    if named:
        return read(named)
    user = env.get("XDG_CONFIG_HOME") or os.path.join(env.get("HOME") or os.path.expanduser("~"), ".config")
    for path in ("outmail.toml", os.path.join(user, "outmail", "config.toml"), "/etc/outmail/config.toml"):
        if _is_there(path):
            return read_found(path)
    return None


def _is_there(path: str) -> bool:
    """False only when the file certainly does not exist. A file that cannot be seen may be a configuration
    that holds mail back.
    """
    try:
        os.lstat(path)
    except OSError as problem:
        if problem.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise
    return True


def readable_by_all(path: str) -> bool:
    """True for a file that every user of this machine may read, judged by its own mode."""
    try:
        return _OWNERS and bool(os.stat(path).st_mode & stat.S_IROTH)
    except OSError:
        return False  # whoever reads the file reports the error


def warn_if_open(path: str, what: str) -> None:
    """Warn about a secret that everybody on the machine can read; do not refuse it."""
    if readable_by_all(path):
        import logging  # imported here because `outmail watch` uses this module and must start quickly

        logging.getLogger("outmail").warning(
            "%s %s can be read by every user of this machine: chmod o= %s", what, path, path
        )


def doubt(path: str) -> str:
    """Why somebody else may write what is at a path, as a clause; "" when only this user and root may. A
    group without members is nobody: Debian's /usr/local may belong to such a one, staff. The folders above
    are not looked at. Raises OSError.
    """
    status = os.stat(path)
    if _OWNERS and not status.st_mode & stat.S_IWOTH and _has_nobody(status.st_gid):
        return _doubt_of_owner(status.st_uid, "it", path)
    return _doubt(status, "it", path)


def _has_nobody(gid: int) -> bool:
    """True for a group without members, which is no user's primary group either."""
    import grp

    try:
        return not grp.getgrgid(gid).gr_mem and not _others_with(gid, "")
    except KeyError:
        return False


def _doubt(status: os.stat_result, what: str, path: str) -> str:
    """Why somebody else may write there, as a clause about ``what``."""
    if not _OWNERS:
        return ""
    if doubt := _doubt_of_owner(status.st_uid, what, path):
        return doubt
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return ""
    if status.st_mode & stat.S_IWOTH:
        return f"everybody may write {what}"
    if status.st_mode & stat.S_IWGRP and not _private(status):
        return f"{what} may be written by the group {_group(status.st_gid)}"
    return ""


def _doubt_of_owner(uid: int, what: str, path: str) -> str:
    if uid in (os.geteuid(), 0) or _unseen_root(uid, path):
        return ""
    return f"{what} belongs to {_user(uid)}, not to {_user(os.geteuid())}" + (
        " or root" if os.geteuid() else ""
    )


def _unseen_root(uid: int, path: str) -> bool:
    """True for root's files in a user namespace without root. There they seem to belong to the overflow user,
    and so do the files of every stranger. So this holds only in folders that only root can write.
    """
    if not os.path.abspath(path).startswith(_SYSTEM):
        return False
    try:
        with open("/proc/sys/kernel/overflowuid") as overflow, open("/proc/self/uid_map") as mapped:
            return uid == int(overflow.read()) and not any(int(line.split()[0]) == 0 for line in mapped)
    except (OSError, ValueError, IndexError):
        return False


def _private(status: os.stat_result) -> bool:
    """True when the group is this user's private one: it has the user's name and no other member. In a
    container it may have no entry at all.
    """
    import grp
    import pwd

    uid, gid = os.geteuid(), status.st_gid
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return status.st_uid == uid and gid == os.getegid()
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return False
    return (
        user.pw_gid == gid
        and group.gr_name == user.pw_name
        and {user.pw_name}.issuperset(group.gr_mem)
        and not _others_with(gid, user.pw_name)
    )


def _others_with(gid: int, name: str) -> bool:
    """True when the group is the primary group of another user of this machine. Users in a directory service
    are not asked for, because there may be many.
    """
    try:
        with open(PASSWD, "rb") as file:
            entries = [line.split(b":") for line in file.read(_PASSWD_BYTES).splitlines()]
    except OSError:
        return False
    return any(
        len(entry) > 3 and entry[3] == b"%d" % gid and entry[0] != os.fsencode(name) for entry in entries
    )


def _user(uid: int) -> str:
    return login(uid) or f"user {uid}"


def _group(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
