"""Root in another user's directory works with that user's rights.

A user decides what each name in a directory of theirs means: a file, a folder, or a link to a file of root's.
So whatever root wrote, moved or gave away there by name would let the user write root's files.
Promises: `become_owner` and `as_owner` act with the directory owner's user, group and groups (those of the
password database); `refuse` lets nobody go on who would have to. A directory is refused (`NotStored` with
EPERM) when its name may mean something else a moment later: it is a link, or a third user may change a
folder above it, or it is root's and others may write into it. For everybody but root nothing changes.
Fails: `NotStored`, OSError. Does not: look into the directory. Loads little: `mq-sendmail` starts in
milliseconds.
"""

from __future__ import annotations

import errno
import os
import stat

from outmail.errors import NotStored

TYPE_CHECKING = False  # as in typing, without the price of importing it

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Result = TypeVar("Result")

#: The group of an owner whom the password database does not know. A directory may have a group that its owner
#: is not in.
_NOGROUP = 65534
#: Folders and links on the way to a directory.
_LONGEST = 1000


def become_owner(folder: str) -> None:
    """From here on this process has the rights of the directory's owner, for good. Call it when everything
    that only root can read has been read.
    """
    owner = _owner(folder)
    if owner is None:
        return
    _become(folder, owner, os.setgid, os.setuid)
    for needed in (__file__, os.__file__):
        if not os.access(needed, os.R_OK):
            raise _refused(
                f"root works in {folder} as {_name(owner)}, who cannot read {needed}",
                "install outmail where every user may read it",
            )


def as_owner(folder: str, do: Callable[[], Result]) -> Result:
    """Call ``do`` with the rights of the directory's owner: of the folder in which it would be made, where it
    is missing. The whole process has them meanwhile, so this is for programs without other threads.
    """
    owner = _owner(folder)
    if owner is None:
        return do()
    groups, gid = os.getgroups(), os.getegid()
    _become(folder, owner, os.setegid, os.seteuid)
    try:
        return do()
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


def refuse(folder: str, instead: str) -> None:
    """Raises `NotStored` when this is root, and the directory another user's. ``instead``: what to do, where
    ``{user}`` is the owner.
    """
    owner = _owner(folder)
    if owner is not None:
        raise _refused(
            f"{folder} belongs to {_name(owner)}, who decides what each name in it means; root does not work "
            "there",
            instead.format(user=_name(owner)),
        )


def stranger(path: str) -> str:
    """For root: the name of the user to whom a file belongs that is not root's; else ""."""
    uid = os.stat(path).st_uid if hasattr(os, "geteuid") and os.geteuid() == 0 else 0
    return _name(uid) if uid else ""


def _owner(folder: str) -> int | None:
    """The other user whose rights are needed; None where this process keeps its own. Raises `NotStored`."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    folder = os.path.abspath(folder)
    place = folder
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    there = place == folder
    found = os.lstat(folder) if there else os.stat(place)
    if stat.S_ISLNK(found.st_mode):
        raise _refused(f"{folder} is a link, which others may change", "name the directory itself")
    if above := _doubtful(place if there else os.path.join(place, "new"), found.st_uid):
        raise _refused(
            f"{folder} belongs to {_name(found.st_uid)}, and others may put another directory in its place, "
            f"because they may change {above}",
            "move it to a folder that only its owner and root may change",
        )
    if found.st_uid != 0:
        return found.st_uid
    if there and (found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and found.st_gid)):
        raise _refused(
            f"{folder} belongs to root, and others may write into it",
            f"chmod go-w {folder}, or give it to the user whose mail it is",
        )
    return None


def _doubtful(path: str, owner: int) -> str:
    """The first folder or link on the way to ``path`` that a third user may change; "" for none."""
    trusted = {0, os.stat("/").st_uid, owner}
    for above in _way(path):
        found = os.lstat(above)
        loose = stat.S_ISDIR(found.st_mode) and found.st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH
        if found.st_uid not in trusted or (loose and owner == 0):
            return above
    return ""


def _way(path: str) -> list[str]:
    """Every folder and link that the kernel passes on its way to the last name of an absolute path."""
    at, found = "/", ["/"]
    rest = os.path.dirname(path).split("/")[::-1]
    while rest:
        part = rest.pop()
        if part == "..":
            at = os.path.dirname(at)
        if part in ("", ".", ".."):
            continue
        place = os.path.join(at, part)
        found.append(place)
        if not os.path.islink(place):
            at = place
            continue
        if len(found) > _LONGEST:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(place)
        at = "/" if target.startswith("/") else at
        rest += target.split("/")[::-1]
    return found


def _groups(uid: int) -> tuple[int, list[int]]:
    """(group, all groups) of a user."""
    import pwd

    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return _NOGROUP, [_NOGROUP]
    return user.pw_gid, os.getgrouplist(user.pw_name, user.pw_gid)


def _become(
    folder: str, owner: int, set_group: Callable[[int], None], set_user: Callable[[int], None]
) -> None:
    """A root without the right to become others (in a container, perhaps) does not go on as root."""
    gid, groups = _groups(owner)
    try:
        os.setgroups(groups)
        set_group(gid)
        set_user(owner)
    except OSError as problem:
        raise _refused(
            f"{folder} belongs to {_name(owner)}, whose rights root cannot take: {problem.strerror}",
            f"run this as {_name(owner)}",
        ) from None


def _name(uid: int) -> str:
    from outmail.system.user import login

    return login(uid) or f"user {uid}"


def _refused(why: str, instead: str) -> NotStored:
    return NotStored(why, hint=instead, errno=errno.EPERM)
