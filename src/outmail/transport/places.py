"""Opens the folders and files that mail is written to, so that nobody can redirect the writing.

Promises: a path is entered folder by folder, by descriptors. A symbolic link is followed only in the part of
the path that the administrator wrote, and only if it belongs to root or to us. A folder that everybody may
write is not entered unless it is sticky; below a sticky folder, only folders of root, of us or of the
mailbox's user are entered. A file is appended to only if it is a regular file with one name and one of these
owners. A new file gets its name when it is whole and on disk, and never replaces another file. Without hard
links it gets its name by renaming. Only where the file system cannot rename without replacing either, a file
that somebody else creates under the same name at that moment is lost (nobody does: these names are made for
one message).
Fails: `OSError`, and nothing is there. `Unsettled`: the mail is there but may not be on disk. `Unsafe`: the
place is not safe; the text is a sentence for the administrator. Errors while clearing up are only logged.
Does not: protect against root, or against other processes of our own user.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import stat
import time
from dataclasses import dataclass

from outmail.system.host import hostname
from outmail.system.writing import write_all

log = logging.getLogger("outmail.files")


def _flags(*names: str) -> int:
    """The flags that this system has. The module can be imported where no mail can be written."""
    return sum(getattr(os, name, 0) for name in names)


_ENTER = _flags("O_RDONLY", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC")
#: A folder on the path need not be readable, where the system has O_PATH.
_PASS = _ENTER | _flags("O_PATH")
_UNNAMED = _flags("O_TMPFILE")
_FILE = _flags("O_RDWR", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC")
_MANY_LINKS = 40
#: What `outmail.model.new_id` makes.
_OWN_ID = re.compile(r"[0-9a-v]{26}", re.ASCII)


#: Errors of link() where there are no hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_TEMPORARY = re.compile(r"\.outmail-(\d{1,10})-[0-9a-f]{12}\.tmp", re.ASCII)
#: Seconds after which a temporary file of a process that is gone is a leftover.
_DAY = 86400.0
#: Problems with clearing up that have been logged, and folders that have been searched for leftovers.
_told: set[tuple[str, int | None]] = set()
_tidied: set[tuple[int, int]] = set()


class Unsettled(OSError):
    """The mail is there, but it is not known whether it is on disk."""


class Unsafe(PermissionError):
    """Mail could end up in another place. The text is a whole sentence."""

    def __init__(self, sentence: str) -> None:
        super().__init__(errno.EPERM, sentence)


@dataclass(frozen=True, slots=True)
class Owner:
    """The users to whom these files may belong: we, and the account that the mailbox is named for. What root
    creates is given to that account.
    """

    user: str = ""

    def owns(self, uid: int) -> bool:
        return uid == os.geteuid() or (bool(self.user) and uid == self._account()[0])

    def give(self, fd: int) -> None:
        """Give a new file or folder to the account."""
        if self.user and os.geteuid() == 0 and self._account()[0] > 0:
            os.fchown(fd, *self._account())

    def _account(self) -> tuple[int, int]:
        import pwd

        try:
            found = pwd.getpwnam(self.user)
        except KeyError:
            return -1, -1
        return found.pw_uid, found.pw_gid


OURS = Owner()


# -- folders -------------------------------------------------------------------------------------------------


def open_folder(
    path: str, owner: Owner = OURS, *, linked: int | None = None, make: bool = False, above: bool = True
) -> int:
    """Open the folder and return its descriptor. Among its first ``linked`` parts (default: all but the last)
    symbolic links are allowed. ``make`` creates missing folders; without ``above`` only the last one.
    """
    wanted = parts(path)
    linked = len(wanted) - 1 if linked is None else linked
    ahead = [(part, i < linked) for i, part in enumerate(wanted)][::-1]
    fd, here, links = os.open("/", _ENTER), "/", 0
    try:
        while ahead:
            part, may_link = ahead.pop()
            target = _link(fd, part, os.path.join(here, part), may_link)
            if target is None:
                deeper = enter(
                    fd,
                    part,
                    os.path.join(here, part),
                    owner,
                    make=make and (above or not ahead),
                    give=not may_link,
                    passing=bool(ahead),
                )
                os.close(fd)
                fd, here = deeper, os.path.join(here, part)
                continue
            links += 1
            if links > _MANY_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            ahead += [(part, True) for part in parts(target)[::-1]]
            if target.startswith("/"):
                os.close(fd)
                fd, here = os.open("/", _ENTER), "/"
    except BaseException:
        os.close(fd)
        raise
    return fd


def enter(
    above: int,
    name: str,
    where: str,
    owner: Owner,
    *,
    make: bool = False,
    give: bool = True,
    passing: bool = False,
) -> int:
    """Enter one more folder, never through a link. ``where`` is its path, for people."""
    made = False
    while True:
        try:
            fd = os.open(name, _PASS if passing and not made else _ENTER, dir_fd=above)
            break
        except FileNotFoundError:
            if not make or made:
                raise FileNotFoundError(
                    errno.ENOENT, f"the folder {where} does not exist: make it, or see whether it is mounted"
                ) from None
            made = _made(above, name)
        except OSError as problem:
            raise _what_is_it(above, name, where, problem) from None
    try:
        if made and give:
            owner.give(fd)
        _check_folder(os.fstat(above), os.fstat(fd), where, owner)
    except BaseException:
        os.close(fd)
        raise
    return fd


def parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _link(above: int, name: str, where: str, allowed: bool) -> str | None:
    """The target of a link that may be followed; None when it is no link."""
    try:
        found = os.stat(name, dir_fd=above, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISLNK(found.st_mode):
        return None
    if not allowed or found.st_uid not in (0, os.geteuid()):
        raise Unsafe(
            f"{where} is a symbolic link, and mail is not written through it: configure the folder it "
            "means, or put a folder there"
        )
    return os.readlink(name, dir_fd=above)


def _made(above: int, name: str) -> bool:
    try:
        os.mkdir(name, 0o700, dir_fd=above)
    except FileExistsError:
        return False
    fd = os.open(".", _ENTER, dir_fd=above)  # a copy that can be read; `above` may be an O_PATH descriptor
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return True


def _check_folder(above: os.stat_result, found: os.stat_result, where: str, owner: Owner) -> None:
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        raise Unsafe(
            f"everybody may write {where} (mode {stat.S_IMODE(found.st_mode):o}), so mail is not safe "
            f"there: chmod o-w {where}"
        )
    if above.st_mode & stat.S_IWOTH and found.st_uid != 0 and not owner.owns(found.st_uid):
        raise Unsafe(
            f"{where} lies where everybody may make folders, and uid {found.st_uid} made it: remove it, or "
            "use another folder"
        )


def _what_is_it(above: int, name: str, where: str, problem: OSError) -> OSError:
    """A better description of why something could not be opened."""
    try:
        mode = os.stat(name, dir_fd=above, follow_symlinks=False).st_mode
    except OSError:
        return problem
    if stat.S_ISLNK(mode):
        return Unsafe(
            f"{where} is a symbolic link, and mail is not written through it: put what it means in its place"
        )
    return problem


# -- files that are appended to ------------------------------------------------------------------------------


def open_file(folder: int, name: str, where: str, owner: Owner) -> tuple[int, bool]:
    """Open a regular file to append to. Also returns whether it was created now."""
    while True:
        try:
            fd, made = os.open(name, _FILE, dir_fd=folder), False
        except FileNotFoundError:
            try:
                fd, made = os.open(name, _FILE | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder), True
            except FileExistsError:
                continue
        except OSError as problem:
            raise _what_is_it(folder, name, where, problem) from None
        try:
            if made:
                owner.give(fd)
            _check_file(os.fstat(fd), where, owner)
        except BaseException:
            os.close(fd)
            raise
        return fd, made


def _check_file(found: os.stat_result, where: str, owner: Owner) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Unsafe(f"{where} is not a regular file, so no mail is written into it: remove it")
    if found.st_nlink > 1:
        raise Unsafe(
            f"{where} is the same file as another one ({found.st_nlink} hard links), so no mail is written "
            "into it: make it a file of its own"
        )
    if not owner.owns(found.st_uid):
        whose = f"outmail (uid {os.geteuid()})" + (f" nor {owner.user}" if owner.user else "")
        raise Unsafe(
            f"{where} belongs to uid {found.st_uid}, neither to {whose}: chown it to the one who gets the "
            "mail"
        )


def names(folder: int, name: str, fd: int) -> bool:
    """True when the name still means this open file."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    held = os.fstat(fd)
    return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)


# -- new files -----------------------------------------------------------------------------------------------


class Unseen:
    """A new file, whole and on disk, that has no name yet (or, where the system needs one, a temporary
    name).
    """

    def __init__(self, folder: int, content: bytes, owner: Owner = OURS) -> None:
        self.fd, self._name, self._folder = -1, "", folder
        try:
            self._open()
            owner.give(self.fd)
            write_all(self.fd, content)
            os.fsync(self.fd)
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        if _UNNAMED and os.path.isdir("/proc/self/fd"):
            try:
                self.fd = os.open(".", _UNNAMED | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self._folder)
                return
            except OSError as problem:
                if problem.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                    raise
        _tidy(self._folder)
        name = f".outmail-{os.getpid()}-{os.urandom(6).hex()}.tmp"
        self.fd = os.open(name, _FILE | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._folder)
        self._name = name

    def appear(self, folder: int, name: str, *, contested: bool = False) -> None:
        """Give the file its name. FileExistsError when something else has that name. The caller syncs the
        folder. ``contested``: other programs make the same name.
        """
        try:
            if self._name:
                os.link(self._name, name, src_dir_fd=self._folder, dst_dir_fd=folder, follow_symlinks=False)
            else:
                os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=folder, follow_symlinks=True)
        except OSError as problem:
            if names(folder, name, self.fd):
                return  # it has worked: a network file system may ask twice or lose the answer
            if not self._name or problem.errno not in _NO_LINKS:
                raise
            _rename(self._folder, self._name, folder, name, contested=contested)
            self._name = ""

    def close(self) -> None:
        """A file that has got no name disappears."""
        name, self._name = self._name, ""
        if name:
            remove(self._folder, name)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Unseen:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sync_name(folder: int) -> None:
    """When this returns, a name that was made in the folder is on disk."""
    try:
        os.fsync(folder)
    except OSError as problem:
        raise Unsettled(
            problem.errno, f"it is written, but may not be on disk: {os.strerror(problem.errno or errno.EIO)}"
        ) from problem


def remove(folder: int, name: str) -> None:
    """Remove a file to clear up. A failure is logged once and does no harm."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass  # a network file system may ask twice
    except OSError as problem:
        stays(name, problem)


def stays(name: str, problem: OSError) -> None:
    key = (_TEMPORARY.sub("temporary", name), problem.errno)
    if key not in _told and len(_told) < 1000:
        _told.add(key)
        log.warning(
            "%s could not be removed (%s) and stays; this does not affect any mail", name, problem.strerror
        )


def _rename(source: int, old: str, target: int, new: str, *, contested: bool) -> None:
    """Rename without replacing: with the system's own call, or else by looking first, where nobody else makes
    that name.
    """
    import ctypes

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is not None:
        if call(source, os.fsencode(old), target, os.fsencode(new), 1) == 0:  # RENAME_NOREPLACE
            return
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(number, os.strerror(number))
    if contested:
        raise OSError(
            errno.EOPNOTSUPP, "the file system has neither hard links nor renaming without replacing"
        )
    if os.access(new, os.F_OK, dir_fd=target, follow_symlinks=False):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)


def _tidy(folder: int) -> None:
    """Remove temporary files that a killed process of ours left here; once for each folder."""
    found = os.fstat(folder)
    if (found.st_dev, found.st_ino) in _tidied or len(_tidied) > 100_000:
        return
    _tidied.add((found.st_dev, found.st_ino))
    try:
        names = os.listdir(folder)
    except OSError:
        return  # not readable: that is the administrator's decision
    for name in names:
        match = _TEMPORARY.fullmatch(name)
        if match and _is_leftover(folder, name, int(match[1])):
            remove(folder, name)


def _is_leftover(folder: int, name: str, pid: int) -> bool:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or time.time() - found.st_mtime < _DAY:
        return False
    if pid == os.getpid():
        return True  # no process of ours lasts a day
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        pass
    return False


def holds(folder: int, name: str, content: bytes) -> bool:
    """True when the name means a regular file with exactly this content."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        return stat.S_ISREG(found.st_mode) and found.st_size == len(content) and file.read() == content


# -- names ---------------------------------------------------------------------------------------------------


def file_name(id: str, n: int) -> str:
    """The name of a message's file: its id if that is one of ours, else made from a hash of the id."""
    safe = (
        id
        if _OWN_ID.fullmatch(id)
        else "other-" + hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    )
    return f"{safe}-{int(n)}.eml"


def maildir_name() -> str:
    """A name that nobody else makes: https://cr.yp.to/proto/maildir.html."""
    host = hostname().replace("/", "\\057").replace(":", "\\072")
    return f"{time.time_ns() // 10**9}.P{os.getpid()}Q{os.urandom(8).hex()}.{host}"


class MaildirFile:
    """A message on disk in the Maildir's tmp, to be moved to new."""

    def __init__(self, root: int, where: str, content: bytes, owner: Owner = OURS) -> None:
        self._folders: list[int] = []
        try:
            for name in ("tmp", "new", "cur"):
                self._folders.append(enter(root, name, os.path.join(where, name), owner, make=True))
            self._file = Unseen(self._folders[0], content, owner)
        except BaseException:
            self._close_folders()
            raise

    def appear(self) -> str:
        """Move it into ``new``, on disk. Returns the name."""
        name = maildir_name()
        self._file.appear(self._folders[1], name)
        sync_name(self._folders[1])
        return name

    def __enter__(self) -> MaildirFile:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._file.close()
        finally:
            self._close_folders()

    def _close_folders(self) -> None:
        while self._folders:
            os.close(self._folders.pop())
