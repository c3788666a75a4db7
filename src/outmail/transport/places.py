"""Where mail is written: folders and files opened so that nobody can lead the writing elsewhere.

Promises: a folder is entered part by part, by descriptor; a symbolic link is followed only among the parts
that the administrator wrote, and only when it belongs to root or to us; a folder that everybody may write and
that is not sticky is not entered, and below a sticky one only what belongs to root, to us, or to the
mailbox's user. A file that is appended to is a regular one with one name and one of these owners. A new file
gets its name whole and on disk, and never takes a name that something else has.
Fails: `OSError`; as `Unsafe` with a sentence for the administrator. Does not: guard against root, or against
whoever is us.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import stat
import time
from dataclasses import dataclass


def _flags(*names: str) -> int:
    """Those that this system has: the module can be imported where no mail can be written."""
    return sum(getattr(os, name, 0) for name in names)


_ENTER = _flags("O_RDONLY", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC")
#: A folder on the way need not be readable, where the system has a word for that.
_PASS = _ENTER | _flags("O_PATH")
_UNNAMED = _flags("O_TMPFILE")
_FILE = _flags("O_RDWR", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC")
_MANY_LINKS = 40
#: What `outmail.model.new_id` makes.
_OWN_ID = re.compile(r"[0-9a-v]{26}", re.ASCII)


class Unsafe(PermissionError):
    """Mail could end up elsewhere; the text is a whole sentence."""

    def __init__(self, sentence: str) -> None:
        super().__init__(errno.EPERM, sentence)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose files these may be: ours, and of the account that the mailbox is named for. What root makes is
    given to that account.
    """

    user: str = ""

    def owns(self, uid: int) -> bool:
        return uid == os.geteuid() or (bool(self.user) and uid == self._account()[0])

    def give(self, fd: int) -> None:
        """For a file or folder that was made a moment ago."""
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


def open_folder(path: str, owner: Owner = OURS, *, linked: int | None = None, make: bool = False) -> int:
    """The folder as a descriptor. Among its first ``linked`` parts (all but the last) links may stand;
    ``make`` makes what is missing.
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
                    make=make,
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
    """One folder further, never by a link. ``where`` is its path, for people."""
    made = False
    while True:
        try:
            fd = os.open(name, _PASS if passing and not made else _ENTER, dir_fd=above)
            break
        except FileNotFoundError:
            if not make or made:
                raise
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
    """The target of a link that may be followed; None for what is no link."""
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
    fd = os.open(".", _ENTER, dir_fd=above)  # `above` may be one that was only passed
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
    """A better word for why something could not be opened."""
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
    """A regular file to append to, and whether it was made now."""
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
    """A new file, whole and on disk, that has no name yet (or, where the system needs one, a name that says
    it is temporary).
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
        name = f".outmail-{os.getpid()}-{os.urandom(6).hex()}.tmp"
        self.fd = os.open(name, _FILE | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._folder)
        self._name = name

    def appear(self, folder: int, name: str) -> None:
        """Give it its name; FileExistsError when something has it. The caller syncs the folder."""
        if self._name:
            os.link(self._name, name, src_dir_fd=self._folder, dst_dir_fd=folder, follow_symlinks=False)
        else:
            os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=folder, follow_symlinks=True)

    def close(self) -> None:
        """Without a name it is gone."""
        name, self._name = self._name, ""
        if name:
            os.unlink(name, dir_fd=self._folder)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Unseen:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


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
    """The name of a message's file: its id when that is one of ours, else made from its hash."""
    safe = (
        id
        if _OWN_ID.fullmatch(id)
        else "other-" + hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    )
    return f"{safe}-{int(n)}.eml"


def maildir_name() -> str:
    """A name nobody else makes: https://cr.yp.to/proto/maildir.html."""
    host = socket.gethostname().replace("/", "\\057").replace(":", "\\072")
    return f"{time.time_ns() // 10**9}.P{os.getpid()}Q{os.urandom(8).hex()}.{host}"


class MaildirFile:
    """A message on disk in the Maildir's tmp, that is about to appear in new."""

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
        """In ``new``, on disk; returns the name."""
        name = maildir_name()
        self._file.appear(self._folders[1], name)
        os.fsync(self._folders[1])
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
