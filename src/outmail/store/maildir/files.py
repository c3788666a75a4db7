"""The files of a spool, and how each is written so that it survives a kill and a power cut.

    spool             names the format; made once, never written again: its identity is the spool's
    queue/ID.eml      the content of a message that somebody is still to get, byte for byte
    queue/ID.journal  what became of it: one line for each commit that changed it
    done/…            the same of messages that everybody got, or never will
    tmp/              content that no commit has taken yet
    log.jsonl         the commits since the last checkpoint; a commit is its line here, flushed
    state.jsonl       what belongs to no message (notes, engines), as of the last checkpoint
    broken/           files that were set aside because they are damaged

Order of a commit: content is flushed in ``tmp``, then ``tmp`` itself; then the line in the log is flushed:
that is the commit. Only then are journals written and contents renamed, without a flush: whoever finds a log
does that again. A checkpoint flushes them, and begins a new log.
Promises: a name in ``queue`` or ``done`` means a committed message. Folders have the mode 0700, files 0600.
Fails: `OSError`. Does not: lock (`store`), or know what rows mean.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import quote, unquote

from outmail.store.maildir.lines import Change, Commit, Part, Rows, line, part_of, read
from outmail.system.lockfile import sync_folder
from outmail.system.starting import started
from outmail.system.writing import write_all

log = logging.getLogger("outmail")

QUEUE, DONE, TMP, BROKEN = "queue", "done", "tmp", "broken"
FOLDERS = (QUEUE, DONE, TMP, BROKEN)
LOG, STATE, FORMAT, INDEX = "log.jsonl", "state.jsonl", "spool", "index.sqlite"
EML, JOURNAL = ".eml", ".journal"
#: So many files are flushed at the same time, and so many are open for that.
FLUSHERS, OPEN = 8, 64
#: A journal longer than this is written anew at a checkpoint, as what is left of it.
LONG = 32 * 1024
#: A bad sector, or a symbolic link, a folder or somebody else's file in the place of ours.
_OF_ONE_FILE = {errno.EIO, errno.ELOOP, errno.EISDIR, errno.EACCES, errno.EPERM}
#: The beginning of the names of long contents that are written before their message.
UPLOAD = "upload."


def name_of(id: str) -> str:
    """The name of a message's files."""
    return id if id.isascii() and id.isalnum() else quote(id, safe="")


class Journal:
    """A journal as it was found. ``torn``: where its last line begins, when that is not whole. ``damaged``:
    how many other lines cannot be read.
    """

    def __init__(self, data: bytes = b"") -> None:
        self.parts: list[tuple[int, Part]] = []
        self.damaged = 0
        self.torn: int | None = None
        self.size = len(data)
        #: For each part where its line ends, whether it stands for all before it, and how many lines before
        #: that cannot be read.
        self._ends: list[tuple[int, bool, int]] = []
        at = 0
        for one in split(data):
            value = read(one)
            at += len(one)
            if value is not None and isinstance(value.get("commit"), int):
                self.parts.append((value["commit"], part_of(value)))
                self._ends.append((at, value.get("whole") is True, self.damaged))
            elif at == len(data):
                self.torn = at - len(one)
            else:
                self.damaged += 1

    @property
    def last(self) -> int:
        """The number of the last commit in it; 0 when there is none."""
        return self.parts[-1][0] if self.parts else 0

    def missing(
        self, after: int, expected: Sequence[tuple[int, Change]]
    ) -> tuple[int, list[tuple[int, Change]]]:
        """What it lacks of the changes that a log has, as (where it must be cut, lines to be written there).
        Lines of commits up to ``after`` are on disk, and such as stand for all before them; what comes
        behind those may have been lost in any order. A whole line that the log does not have is never cut
        away: the log may have lost it.
        """
        known = {number for number, _ in expected}
        sure, least = 0, after
        for i, ((number, _), (_, whole, _)) in enumerate(zip(self.parts, self._ends), 1):
            if number <= after or whole or number not in known:
                sure = i
            if whole:
                least = max(least, number)
        end, _, damaged = self._ends[sure - 1] if sure else (0, False, 0)
        there = {number for number, _ in self.parts[:sure]}
        wanted = [one for one in expected if one[0] > least and one[0] not in there]
        have = [number for number, _ in self.parts[sure:]]
        whole = self.damaged == damaged and have == [number for number, _ in wanted[: len(have)]]
        if not whole:
            return end, wanted
        return self._ends[-1][0] if self._ends else 0, wanted[len(have) :]

    def rows(self) -> Rows:
        """What is left of it; no rows when its lines make no sense."""
        rows = Rows()
        try:
            for _, part in self.parts:
                rows.apply(part)
        except (KeyError, TypeError, AttributeError):
            return Rows()
        return rows


def split(data: bytes) -> list[bytes]:
    """Lines with their ends; the last one may have none."""
    *whole, rest = data.split(b"\n")
    return [one + b"\n" for one in whole] + ([rest] if rest else [])


class Files:
    """The files of the spool in the folder ``root``."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.log = os.path.join(root, LOG)
        self.state = os.path.join(root, STATE)
        self.format = os.path.join(root, FORMAT)

    def path(self, folder: str, name: str) -> str:
        return f"{self.root}/{folder}/{name}"

    # -- contents --------------------------------------------------------------------------------------------

    def content(self, id: str) -> bytes | None:
        """The content of a committed message, or None."""
        return self._found(id, lambda fd: _whole(fd))

    def piece(self, id: str | None, upload: str, at: int, size: int) -> bytes | None:
        """A piece of a long content: of a message, or, before there is one, of its upload."""
        if id is not None:
            found = self._found(id, lambda fd: os.pread(fd, size, at))
            if found is not None:
                return found
        try:
            fd = os.open(self.path(TMP, UPLOAD + upload), os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            return os.pread(fd, size, at)
        finally:
            os.close(fd)

    def _found(self, id: str, reading: Callable[[int], bytes]) -> bytes | None:
        """Read a content. It may be on its way from one folder to the other, so the first is asked twice."""
        for folder in (QUEUE, DONE, QUEUE):
            try:
                fd = os.open(self.path(folder, name_of(id) + EML), os.O_RDONLY | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            try:
                return reading(fd)
            finally:
                os.close(fd)
        return None

    def write_contents(self, contents: Iterable[tuple[str, bytes]]) -> None:
        """Write files into ``tmp``; they are on disk when this returns, but for their names."""
        flush_each(self._written(name, content) for name, content in contents)

    def _written(self, name: str, content: bytes) -> int:
        fd = os.open(self.path(TMP, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            write_all(fd, content)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def write_pieces(self, upload: str, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Write pieces, as (offset, bytes), of a long content whose message comes later."""
        fd = os.open(self.path(TMP, UPLOAD + upload), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            for at, piece in pieces:
                write_all(fd, piece, at)
            flush([fd])
        finally:
            os.close(fd)

    def sync_tmp(self) -> None:
        sync_folder(self.path(TMP, ""))

    # -- after the commit ------------------------------------------------------------------------------------

    def land(self, commit: Commit) -> None:
        """Bring the files to what a commit says. Nothing was left undone before it."""
        for seq, id in commit.removed:
            self._forget(seq, id)
        for id, change in commit.messages.items():
            name = name_of(id)
            here = self._append(name, [(commit.number, change)], QUEUE if change.live else DONE)
            self._settle(name, change.live, change.content, here=here)

    def complete(self, commits: Sequence[Commit], after: int) -> list[str]:
        """Bring the files to what all these commits say, whatever of it was done before. ``after``: up to
        this commit the journals are on disk. Returns the ids that they are about.
        """
        changes: dict[str, list[tuple[int, Change]]] = {}
        removed: list[tuple[int, str]] = []
        for commit in commits:
            for seq, id in commit.removed:
                removed.append((seq, id))
                changes.pop(id, None)
            for id, change in commit.messages.items():
                changes.setdefault(id, []).append((commit.number, change))
        for seq, id in removed:
            self._forget(seq, id, again=id in changes)
        for id in {id for _, id in removed} & changes.keys():
            self._choose(id, changes[id])
        for id, found in changes.items():
            self._complete_one(name_of(id), found, after)
        return list(changes)

    def _complete_one(self, name: str, changes: Sequence[tuple[int, Change]], after: int) -> None:
        try:
            journal, path = self._only_journal(name)
        except OSError as problem:
            if not of_one_file(problem):
                raise
            self._set_unreadable_aside(name, problem)
            journal, path = self._only_journal(name)
        live = changes[-1][1].live
        end, missing = journal.missing(after, changes)
        if end < journal.size:
            os.truncate(path, end)
        if missing:
            self._append(name, missing, QUEUE if live else DONE)
        contents = [change.content for _, change in changes if change.content != ""]
        self._settle(name, live, contents[-1] if contents else "", here=False)

    def _set_unreadable_aside(self, name: str, problem: OSError) -> None:
        """A journal that cannot be read makes room for what the log has; nothing of either is lost."""
        for folder in (QUEUE, DONE):
            try:
                self.journal(name, (folder,))
            except OSError:
                kept = self.set_aside(self.path(folder, name + JOURNAL))
                log.error("a journal cannot be read: %s; it is kept as %s", problem, kept)

    def journal(self, name: str, folders: Sequence[str] = (QUEUE, DONE, QUEUE)) -> tuple[Journal, str]:
        """A message's journal and where it is. An empty one when there is none."""
        for folder in folders:
            path = self.path(folder, name + JOURNAL)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            try:
                return Journal(_whole(fd)), path
            finally:
                os.close(fd)
        return Journal(), path

    def _only_journal(self, name: str) -> tuple[Journal, str]:
        """A message's journal and where it is. Of two, which a file system may leave after a power cut that
        does not keep the order of names, the one that knows more; the other one goes.
        """
        here, there = (self.journal(name, (folder,)) for folder in (QUEUE, DONE))
        if here[0].size and there[0].size:
            more, less = (here, there) if here[0].last >= there[0].last else (there, here)
            unlink(less[1])
            return more
        return here if here[0].size else there

    def _append(self, name: str, changes: Sequence[tuple[int, Part]], folder: str) -> bool:
        """Write lines to a journal, which is made in ``folder`` if there is none. True when it is there."""
        data = b"".join([journal_line(number, change) for number, change in changes])
        fd, here = self._open_journal(name, folder)
        try:
            size = os.fstat(fd).st_size
            try:
                write_all(fd, data)
            except OSError:
                os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)
        return here

    def _open_journal(self, name: str, folder: str) -> tuple[int, bool]:
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW
        for place in (folder, DONE if folder == QUEUE else QUEUE):
            try:
                return os.open(self.path(place, name + JOURNAL), flags), place == folder
            except FileNotFoundError:
                pass
        return os.open(self.path(folder, name + JOURNAL), flags | os.O_CREAT, 0o600), True

    def _settle(self, name: str, live: bool, content: str | None, *, here: bool) -> None:
        """Content and journal lie in the folder where they belong. With ``here`` the journal does."""
        mine, other = (QUEUE, DONE) if live else (DONE, QUEUE)
        if not here:
            for suffix in (EML, JOURNAL):
                _rename(self.path(other, name + suffix), self.path(mine, name + suffix))
        if content is None:
            unlink(self.path(mine, name + EML))
        elif content:
            _rename(self.path(TMP, content), self.path(mine, name + EML))

    def _forget(self, seq: int, id: str, *, again: bool = False) -> None:
        """The files of a message that is removed. With ``again`` a later message has the same id: only what
        is surely of this one goes.
        """
        name = name_of(id)
        for folder in (QUEUE, DONE):
            journal, path = self.journal(name, (folder,))
            message = journal.rows().message
            if not again:
                unlink(self.path(folder, name + EML))
            if (message is None and not again) or (message is not None and message["seq"] == seq):
                unlink(path)

    def _choose(self, id: str, changes: Sequence[tuple[int, Change]]) -> None:
        """Of a message that has the id of a removed one, only its own content may stay."""
        rows = [row for _, change in changes for row in change.set.get("message", ())]
        for folder in (QUEUE, DONE) if rows else ():
            path = self.path(folder, name_of(id) + EML)
            try:
                with open(path, "rb") as file:
                    ours = hashlib.file_digest(file, "sha256").hexdigest() == rows[-1]["sha256"]
            except FileNotFoundError:
                continue
            if not ours:
                unlink(path)

    # -- checkpoints -----------------------------------------------------------------------------------------

    def flush_journals(self, ids: Iterable[str]) -> None:
        """Journals of these messages are on disk when this returns, and those that are closed or long are as
        short as can be.
        """
        flush_each(fd for id in ids if (fd := self._ready(name_of(id))) is not None)
        for folder in FOLDERS:
            sync_folder(self.path(folder, ""))

    def _ready(self, name: str) -> int | None:
        journal, path = self.journal(name)
        closed = os.path.basename(os.path.dirname(path)) == DONE
        short = len(journal.parts) < 2 or not (closed or journal.size > LONG)
        if not short and not journal.damaged and journal.rows().message is not None:
            self.compact(name, journal, path)
            return None
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None

    def compact(self, name: str, journal: Journal, path: str) -> None:
        """Write what is left of a journal as one line, flush it, and give it the journal's name."""
        self.write_journal(name, path, journal.last, journal.rows().part())

    def write_journal(self, name: str, path: str, number: int, part: Part) -> None:
        """A journal of one line, which stands for all before it; flushed."""
        value = {"commit": number, "whole": True, **Part.value(part)}
        replace(path, self.path(TMP, name + JOURNAL), [line(value)])

    def keep_aside(self, path: str) -> str:
        """Give a damaged file a second name in ``broken``. Returns it."""
        base = os.path.basename(path)
        for n in range(1, 1_000_000):
            target = self.path(BROKEN, base if n == 1 else f"{base}.{n}")
            try:
                os.link(path, target, follow_symlinks=False)
            except FileExistsError:
                continue
            return target
        raise FileExistsError(path)

    def set_aside(self, path: str) -> str:
        """Move a file into ``broken``. Returns where it is now."""
        target = self.keep_aside(path)
        os.unlink(path)
        return target

    def ids(self, folder: str) -> tuple[dict[str, set[str]], list[str]]:
        """The messages with files in a folder, as {id: suffixes}, and names that are not ours."""
        found: dict[str, set[str]] = {}
        foreign = []
        with os.scandir(self.path(folder, "")) as entries:
            for entry in entries:
                stem, suffix = os.path.splitext(entry.name)
                id = unquote(stem)
                ours = suffix in (EML, JOURNAL) and id and name_of(id) == stem
                if ours and entry.is_file(follow_symlinks=False):
                    found.setdefault(id, set()).add(suffix)
                else:
                    foreign.append(entry.name)
        return found, sorted(foreign)

    def last(self) -> int:
        """The number of the last commit that any journal tells of; 0 when there is none."""
        last = 0
        for folder in (QUEUE, DONE):
            for id, suffixes in self.ids(folder)[0].items():
                try:
                    last = max(
                        last, self.journal(name_of(id), (folder,))[0].last if JOURNAL in suffixes else 0
                    )
                except OSError as problem:
                    if not of_one_file(problem):
                        raise
        return last

    def sweep(self) -> None:
        """Remove what commits have left in ``tmp`` that never happened. Pieces of long contents stay."""
        with os.scandir(self.path(TMP, "")) as entries:
            for entry in entries:
                if not entry.name.startswith(UPLOAD) and entry.is_file(follow_symlinks=False):
                    unlink(entry.path)


def of_one_file(problem: OSError) -> bool:
    """True when reading failed for a reason that lies in the one file, so that others can be used."""
    return problem.errno in _OF_ONE_FILE


def journal_line(number: int, part: Part) -> bytes:
    return line({"commit": number, **Part.value(part)})


def replace(path: str, temporary: str, lines: Iterable[bytes]) -> None:
    """A file is as before, or has these lines, also after a power cut. The caller flushes its folder."""
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        write_all(fd, b"".join(lines))
        flush([fd])
    finally:
        os.close(fd)
    os.rename(temporary, path)


def flush_each(fds: Iterable[int]) -> None:
    """The content of these files is on disk when this returns, and they are closed, some at a time."""
    waiting: list[int] = []
    try:
        for fd in fds:
            waiting.append(fd)
            if len(waiting) >= OPEN:
                flush(waiting)
                _close(waiting)
        flush(waiting)
    finally:
        _close(waiting)


def flush(fds: Sequence[int]) -> None:
    """The content of these files is on disk when this returns. Several at the same time: a disk takes as long
    for eight as for one.
    """
    share = [fds[i::FLUSHERS] for i in range(FLUSHERS)] if len(fds) > 2 else [fds]
    troubles: list[BaseException] = []

    def work(mine: Sequence[int]) -> None:
        try:
            for fd in mine:
                sync(fd)
        except BaseException as problem:
            troubles.append(problem)

    threads = []
    for mine in share[1:]:
        thread = threading.Thread(target=work, args=(mine,), name="outmail-flush", daemon=True)
        if mine and started(thread):
            threads.append(thread)
        else:
            work(mine)
    work(share[0])
    for thread in threads:
        thread.join()
    if troubles:
        raise troubles[0]


def sync(fd: int) -> None:
    """fsync, on macOS down to the disk itself."""
    full = _full()
    if full is None:
        os.fsync(fd)
    else:
        import fcntl

        fcntl.fcntl(fd, full)


def _full() -> int | None:
    import fcntl

    return getattr(fcntl, "F_FULLFSYNC", None)


def unlink(*paths: str) -> None:
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def _rename(path: str, target: str) -> None:
    try:
        os.rename(path, target)
    except FileNotFoundError:
        pass


def _whole(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    data = os.read(fd, size + 1)
    while len(data) < size:
        more = os.read(fd, size + 1 - len(data))
        if not more:
            break
        data += more
    return data


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
