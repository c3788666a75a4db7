"""A queue directory of another program: its mail is taken into a store of ours, also while that program goes
on using the directory.

A program's own part (`ForeignQueue`) knows which files are entries, how the program locks them and what is in
them. `take_in` is the same for all: claim an entry, read it, store it, remove it.
Whoever calls it has the rights of the directory's owner (`outmail.system.rights`): names in it may be links.
Promises: an entry is removed only when its message is on disk. Killed at any point, nothing is lost, and
nothing is doubled while the store keeps the record: the key is made of the entry's name, envelope and
content, so an entry that is taken in again is known. An entry that somebody else has claimed is left to them.
What cannot be read or accepted is set aside, whole, and named with the reason; all others are taken in.
Fails: `NotStored` (the entry stays where it is), OSError when the directory cannot be looked at. Does not:
deliver, write into queues of others, or break a lock.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from outmail.accept.acceptance import Door, Draft
from outmail.errors import Refused
from outmail.model import keyed_id
from outmail.policy.plain import plain_line
from outmail.smtp.syntax import AddressError, parse_mailbox, qualified
from outmail.system.exits import EX_SOFTWARE, EX_TEMPFAIL
from outmail.system.lockfile import take_lock

#: The folder in a queue directory for what could not be taken in.
ASIDE = "set-aside"
#: What root does instead of importing mail from another user's directory.
INSTEAD = "run this as {user}, with a queue of that user's: su -s /bin/sh {user} -c '…'"
#: Bytes of an entry beside its message.
ENVELOPE = 8_000_000


def absent(folder: str) -> str:
    """Why there is no queue here, as a sentence; "" where there is one, or an empty directory."""
    if not os.path.isdir(folder):
        return f"there is no queue directory {folder}"
    try:
        names = os.listdir(folder)
    except OSError:
        return ""  # whoever works there is told so
    if not names or not {"new", "cur", "tmp"}.isdisjoint(names):
        return ""
    return f"{folder} is no queue directory: new, cur and tmp are not in it"


class Strange(Exception):
    """This is no entry that the program has made. The text is a clause: "has no recipient". ``stays``: it may
    be a good one that cannot be read or claimed now.
    """

    def __init__(self, why: str, *, stays: bool = False) -> None:
        super().__init__(why)
        self.stays = stays


class Letter(NamedTuple):
    """What an entry says: an envelope, and the message as it is."""

    sender: str
    recipients: Sequence[str]
    content: bytes


class Entry(Protocol):
    """An entry that is ours: its program does not touch it until `leave`, and not even after a kill of ours,
    as far as its rules allow that.
    """

    @property
    def path(self) -> str:
        """Where it is now, below the directory: claiming may have moved it."""

    def read(self, most: int) -> Letter:
        """Raises `Strange`, also for more than ``most`` bytes, and OSError."""

    def remove(self) -> None:
        """Its message is safe: remove the file. Raises OSError."""

    def leave(self) -> None:
        """Let go of it, whatever became of it. A second call does nothing."""


class ForeignQueue(Protocol):
    """A queue directory of another program."""

    @property
    def program(self) -> str:
        """Its name; it becomes the tag of all its messages."""

    @property
    def folder(self) -> str:
        """The directory."""

    def waiting(self) -> Iterable[str]:
        """Paths below `folder` of the entries that may be taken, the oldest first. Half-written files and
        other programs' dot files are not among them. Raises OSError.
        """

    def claim(self, path: str) -> Entry | None:
        """Lock an entry as the program does. None: it is gone, or somebody else's. Raises `Strange`, and
        OSError for an entry that stays where it is.
        """


@dataclass(frozen=True, slots=True)
class Aside:
    """What was set aside: its name, the reason, and where it is now ("" when it could not be moved)."""

    name: str
    why: str
    path: str


@dataclass(slots=True)
class Taken:
    """What `take_in` did. ``known``: entries that were in the store before. ``busy``: somebody else's.
    ``stuck``: entries that are stored and could not be removed, with the reason.
    """

    ids: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    aside: list[Aside] = field(default_factory=list)
    stuck: list[tuple[str, str]] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The exit status: 70 set aside, 75 some stay where they are, 0 all are taken in."""
        if any(one.path for one in self.aside):
            return EX_SOFTWARE
        return EX_TEMPFAIL if self.aside or self.busy or self.stuck else 0

    def sentences(self, folder: str) -> list[str]:
        """What people must know, a line each."""
        lines = [
            f"{folder}/{one.name} {one.why}: "
            + (f"set aside as {one.path}" if one.path else "it stays, and is tried again")
            for one in self.aside
        ]
        lines += [f"{folder}/{name} was taken in before: removed" for name in self.known]
        lines += [f"{folder}/{name} is stored and cannot be removed: {why}" for name, why in self.stuck]
        return [plain_line(line) for line in lines]


def take_in(
    queue: ForeignQueue,
    door: Door,
    origin: str,
    stop: Callable[[], bool] = lambda: False,
    taken: Taken | None = None,
    elsewhere: Callable[[str], bool] = lambda id: False,
) -> Taken:
    """Take in all entries that wait now. ``origin``: the domain of bare names. ``stop`` is asked before each
    entry. ``taken`` is filled as it goes, so it also tells what was done before an error. What ``elsewhere``
    knows by its id is in another store already: it is not stored again.
    """
    taken = Taken() if taken is None else taken
    for path in queue.waiting():
        if stop():
            break
        try:
            entry = _claimed(queue, path)
            if entry is None:
                if os.path.lexists(os.path.join(queue.folder, path)):
                    taken.busy.append(path)
                continue
            try:
                _take(path, entry, queue, door, origin, taken, elsewhere)
            finally:
                entry.leave()
        except Strange as problem:
            place = "" if problem.stays else set_aside(queue.folder, path)
            taken.aside.append(Aside(path, str(problem), place))
    return taken


def locked(place: str) -> int | None:
    """Open an entry's file and lock it by `flock`; None when it is gone, or somebody else holds it. It is
    opened for writing where that is allowed, as NFS locks no other file. Raises `Strange` and OSError.
    """
    try:
        fd = _opened(place)
    except FileNotFoundError:
        return None
    except OSError as problem:
        closed = problem.errno in (errno.EACCES, errno.EPERM)
        raise Strange(f"cannot be opened ({problem.strerror})", stays=closed) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Strange("is not a regular file")
        if take_lock(fd):
            mine, fd = fd, -1
            return mine
        return None
    finally:
        if fd >= 0:
            os.close(fd)


def content_of(fd: int, most: int) -> bytes:
    """All of a file that we hold. Raises `Strange` for more than ``most`` bytes, and OSError."""
    size = os.fstat(fd).st_size
    if size > most:
        raise Strange(f"has {size} bytes, more than {most}")
    with open(fd, "rb", closefd=False) as file:
        return file.read(most)


def _opened(place: str) -> int:
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(place, os.O_RDWR | flags)
    except OSError as problem:
        if problem.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR):
            raise
    return os.open(place, os.O_RDONLY | flags)


def _claimed(queue: ForeignQueue, path: str) -> Entry | None:
    """`ForeignQueue.claim`, where trouble with one file is no trouble with the others."""
    try:
        return queue.claim(path)
    except OSError as problem:
        raise Strange(f"cannot be claimed ({problem.strerror or problem})", stays=True) from None


def _letter(entry: Entry, most: int) -> Letter:
    """`Entry.read`, where trouble with one file is no trouble with the others."""
    try:
        return entry.read(most)
    except OSError as problem:
        raise Strange(f"cannot be read ({problem.strerror or problem})", stays=True) from None


def _take(
    path: str,
    entry: Entry,
    queue: ForeignQueue,
    door: Door,
    origin: str,
    taken: Taken,
    elsewhere: Callable[[str], bool],
) -> None:
    """Store an entry, then remove it. One that is not accepted is set aside before it is let go."""
    try:
        letter = _letter(entry, door.terms.message_size + ENVELOPE)
        key = key_of(queue.program, path, letter)
        known, id = True, keyed_id(key)
        if not elsewhere(id):
            known, id = keep(letter, key, queue.program, door, origin)
    except (Refused, Strange) as problem:
        if isinstance(problem, Strange) and problem.stays:
            raise
        why = f"is not accepted: {problem}" if isinstance(problem, Refused) else str(problem)
        taken.aside.append(Aside(path, why, set_aside(queue.folder, entry.path)))
        return
    (taken.known if known else taken.ids).append(path if known else id)
    try:
        entry.remove()
    except OSError as problem:
        taken.stuck.append((path, problem.strerror or str(problem)))


def key_of(program: str, path: str, letter: Letter) -> str:
    """The same for the same entry, wherever it stands in its queue."""
    sum = hashlib.sha256(os.fsencode(os.path.basename(path)))
    for text in (letter.sender, *letter.recipients, ""):
        sum.update(b"\0" + text.encode("utf-8", "surrogateescape"))
    sum.update(letter.content)
    return f"{program}:{sum.hexdigest()}"


def keep(letter: Letter, key: str, tag: str, door: Door, origin: str) -> tuple[bool, str]:
    """Store a letter; returns (was known, id). Recipients that are no addresses do not keep it from the
    others: they are stored as failed. Raises `Refused` when nobody can get it, and `NotStored`.
    """
    good, bad = _sorted(letter.recipients, origin)
    if not good:
        raise Refused(bad[0][1] if bad else "it has no recipient", code="no-recipient")
    sender = qualified(letter.sender, origin) if letter.sender else ""
    draft = Draft(letter.content, sender, good, key, tag=tag)
    messages = door.completed([draft])
    for number, (address, why) in enumerate(bad, 1):
        own = f"{key}:{number}"
        draft = Draft(letter.content, sender, [address], own, id=keyed_id(own))
        messages.append(door.unfit(Refused(why, code="bad-address"), draft))
    receipt = door.keep(messages, again=True)[0]
    return receipt.duplicate, receipt.id


def _sorted(recipients: Sequence[str], origin: str) -> tuple[list[str], list[tuple[str, str]]]:
    """(addresses, those that are none with the reason)."""
    good: list[str] = []
    bad: list[tuple[str, str]] = []
    for text in recipients:
        try:
            good.append(str(parse_mailbox(qualified(text, origin))))
        except AddressError as problem:
            bad.append((text, str(problem)))
    return good, bad


def set_aside(folder: str, path: str) -> str:
    """Move a file out of the queue, under a name of its own; returns its new path, or "" when that failed."""
    aside = os.path.join(folder, ASIDE)
    target = os.path.join(aside, os.path.basename(path))
    try:
        os.makedirs(aside, mode=0o700, exist_ok=True)
        while os.path.lexists(target):
            target = os.path.join(aside, f"{os.path.basename(path)}.{os.urandom(4).hex()}")
        os.rename(os.path.join(folder, path), target)
    except OSError:
        return ""
    return target
