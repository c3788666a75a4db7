"""Takes back what `outmail init` did: exactly the entries of its manifest, in reverse.

Promises: what was changed since stays, and is named. Mail that is not delivered stays, with its queue and the
queue's user, until it is told to go (``--delete-mail``). A step that fails is named, stays in the manifest,
and does not stop the others, so undo can be called again. What is not in the manifest is not touched.
What others could have put in the place of our files is not followed: folders are held open (`setup.held`),
and a queue is read as its owner (`unix.look`).
Fails: never; `Undone` says what stays and why. Does not: ask.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from outmail.policy.setup import DROP
from outmail.system import dropbox
from outmail.unix.look import look
from outmail.unix.manifest import Entry, Manifest, is_noted, read, remove_half
from outmail.unix.setup import Failure, Place, crontab, given, held, quietly_removed, rewrite, write_crontab


@dataclass
class Undone:
    """Sentences: what was ``done``, what ``stays`` and why, what has ``failed``."""

    done: list[str] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class Undoer:
    """Takes back a manifest at a place."""

    def __init__(self, place: Place, manifest: Manifest, *, delete_mail: bool = False) -> None:
        self.place, self.manifest, self._delete_mail = place, manifest, delete_mail
        self.result = Undone()

    def waits(self) -> list[str]:
        """Sentences about mail that would stay behind, or be removed with ``delete_mail``."""
        told = []
        for entry in self.manifest.entries:
            if entry["kind"] == "queue" and os.path.lexists(path := self.place.at(entry["path"])):
                found = look(path)
                if not found.is_over:
                    told.append(f"{path}: {found.trouble}" if found.trouble else f"{path} holds {found.told}")
            for path in entry["paths"] if entry["kind"] == "folder" else ():
                if mails := _dropped(path):
                    told.append(f"{_count(mails)} of this machine's programs in {path}")
        return told

    def all(self) -> Undone:
        """Everything, users of the files before the files, and the folders last."""
        for kinds, undo in self._order():
            for entry in reversed([one for one in self.manifest.entries if one["kind"] in kinds]):
                self._one(entry, undo)
        self._manifests_own_folders()
        return self.result

    def _order(self) -> list[tuple[tuple[str, ...], Callable[[Entry], bool]]]:
        return [
            (("name",), self._name),
            (("cron",), self._cron),
            (("line",), self._line),
            (("command",), self._command),
            (("file",), self._file),
            (("late",), self._command),
            (("queue",), self._queue),
            (("given",), self._given),
            (("folder",), self._folder),
            (("user",), self._user),
        ]

    def _one(self, entry: Entry, undo: Callable[[Entry], bool]) -> None:
        """Take one entry back; it is forgotten when that is through."""
        try:
            if entry["kind"] in ("file", "name", "line"):
                remove_half(self.place.at(entry["path"]))
            through = undo(entry)
        except Failure as problem:
            self.result.failed.append(str(problem))
        except OSError as problem:
            self.result.failed.append(f"{problem.filename}: {problem.strerror}")
        else:
            if through:
                self.manifest.forget(entry)
                self.manifest.save()

    # -- each answers whether there is nothing more to do ----------------------------------------------------

    def _name(self, entry: Entry) -> bool:
        path, aside = self.place.at(entry["path"]), self.place.at(entry["aside"])
        found = read(path)
        ours = found is not None and is_noted(found, entry["written"])
        if found is not None and not ours and os.path.lexists(aside):
            self.result.stays.append(f"{path} was changed since; what was there before is {aside}")
            return True
        if ours:
            os.unlink(path)
        if entry["diverted"]:
            self._undivert(entry)
        elif os.path.lexists(aside):
            os.rename(aside, path)
        self.result.done.append(f"{path} is what it was")
        return True

    def _undivert(self, entry: Entry) -> None:
        if self.place.run(["dpkg-divert", "--list", entry["path"]]) != b"":
            self.place.run(["dpkg-divert", "--quiet", "--local", "--rename", "--remove", entry["path"]])

    def _cron(self, entry: Entry) -> bool:
        lines = crontab(self.place)
        if entry["line"] not in lines:
            self.result.stays.append("your crontab: the line of outmail was changed or removed since")
            return True
        lines.remove(entry["line"])
        write_crontab(self.place, lines)
        self.result.done.append("the line in your crontab is gone")
        return True

    def _line(self, entry: Entry) -> bool:
        path, line = self.place.target(entry["path"]), entry["line"].encode() + b"\n"
        lines = (read(path) or b"").splitlines(keepends=True)
        if line not in lines:
            self.result.stays.append(f"{path}: the line of outmail was changed or removed since")
            return True
        was_last = lines[-1] == line
        lines.remove(line)
        content = b"".join(lines)
        if entry["made"] and not lines:
            os.unlink(path)
        else:
            rewrite(self.place, path, content if entry["ended"] or not was_last else content[:-1])
        self.result.done.append(f"the line in {path} is gone")
        return True

    def _command(self, entry: Entry) -> bool:
        self.place.run(entry["undo"])
        self.result.done.append(f"ran {' '.join(entry['undo'])}")
        return True

    def _file(self, entry: Entry) -> bool:
        path, copy = self.place.at(entry["path"]), entry["copy"]
        found = read(path)
        if copy and found is not None and found == read(copy):
            os.unlink(copy)  # the set-up ended before it wrote its own
            return True
        if copy and not os.path.lexists(copy):
            return True  # the set-up ended before it had touched the file
        if found is not None and not is_noted(found, entry["written"]):
            before = f"; what was there before is {copy}" if copy else ""
            self.result.stays.append(f"{path} was changed since: it is yours now{before}")
            return True
        if copy and os.path.lexists(copy):
            os.replace(copy, path)
            self.result.done.append(f"{path} is what it was")
        elif found is not None:
            os.unlink(path)
            self.result.done.append(f"removed {path}")
        return True

    def _queue(self, entry: Entry) -> bool:
        path = self.place.at(entry["path"])
        if os.path.lexists(path):
            found = look(path)
            reason = found.reason(delete_mail=self._delete_mail)
            if reason:
                self.result.stays.append(f"the queue {path}: {reason}")
                return False
            _remove_queue(path)
            self.result.done.append(f"removed the queue {path} ({found.told})")
        for folder in reversed(entry["folders"]):
            quietly_removed(folder)
        return True

    def _given(self, entry: Entry) -> bool:
        """Back to whom they belonged; files that have come since go with the folder. The folder is first, so
        that its user can exchange nothing any more.
        """
        path = self.place.at(entry["path"])
        was = {name: (uid, gid) for name, uid, gid in entry["was"]}
        if os.path.lexists(path):
            with held(path) as fd:
                os.fchown(fd, *was["."])
                kept = [n for n in sorted(os.listdir(fd)) if not given(fd, n, *was.get(n, was["."]))]
            self.result.stays += [
                f"{path}/{name} belongs to whom it does: it has a second name" for name in kept
            ]
        self.result.done.append(f"{path} belongs to whom it belonged")
        return True

    def _folder(self, entry: Entry) -> bool:
        for path in reversed(entry["paths"]):
            if _holds(path, self.manifest.path):
                return False  # the manifest's own, which goes last
            self.place.at(path.removeprefix(self.place.root))
            if os.path.islink(path):
                raise Failure(f"{path} is a symbolic link now: find out who made it, and remove it")
            if self._delete_mail and path == self.place.at(DROP):
                _empty(path)
            if quietly_removed(path):
                self.result.done.append(f"removed {path}")
            elif os.path.isdir(path):
                self.result.stays.append(_full(path))
                return False
        return True

    def _user(self, entry: Entry) -> bool:
        if any(one["kind"] in ("queue", "folder") and not self._is_own(one) for one in self.manifest.entries):
            self.result.stays.append(f"the user {entry['name']}, who owns what stays")
            return False
        if self.place.account(entry["name"]) is not None:
            self.place.run(["userdel", entry["name"]])
            self.result.done.append(f"removed the user {entry['name']}")
        return True

    def _is_own(self, entry: Entry) -> bool:
        return entry["kind"] == "folder" and any(_holds(path, self.manifest.path) for path in entry["paths"])

    def _manifests_own_folders(self) -> None:
        """When nothing else is left to take back, the manifest goes, and then the folders it was in."""
        own = [entry for entry in self.manifest.entries if self._is_own(entry)]
        if len(own) != len(self.manifest.entries):
            return
        self.manifest.entries = []
        self.manifest.save()
        for path in [path for entry in own for path in reversed(entry["paths"])]:
            if quietly_removed(path):
                self.result.done.append(f"removed {path}")
            elif os.path.isdir(path):
                self.result.stays.append(_full(path))


def _holds(folder: str, path: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def _dropped(folder: str) -> list[str]:
    """The names of messages in a drop folder."""
    try:
        with held(folder) as fd:
            return [name for name in os.listdir(fd) if dropbox.is_name(name)]
    except (FileNotFoundError, Failure):
        return []


def _empty(folder: str) -> None:
    """Remove all that lies in a drop folder, where every user could put something, and follow nothing."""
    if not os.path.lexists(folder):
        return
    with held(folder) as fd:
        for name in os.listdir(fd):
            if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=fd)
                continue
            try:
                shutil.rmtree(name, dir_fd=fd)
            except RecursionError:
                raise Failure(
                    f"too many folders lie in one another in {folder}: remove them by rm -r"
                ) from None


def _count(mails: list[str]) -> str:
    return f"{len(mails)} message" + ("" if len(mails) == 1 else "s")


def _full(folder: str) -> str:
    """Why a folder stays."""
    if mails := _dropped(folder):
        return f"{folder}: it holds {_count(mails)} of this machine's programs; --delete-mail removes them"
    names = sorted(os.listdir(folder))
    more = ", …" if len(names) > 3 else ""
    return f"{folder}: it holds {', '.join(names[:3])}{more}"


def _remove_queue(path: str) -> None:
    """Remove the files of a SQLite queue: its own, and those that lie beside it."""
    folder, name = os.path.split(path)
    with held(os.path.realpath(folder)) as fd:
        for one in os.listdir(fd):
            ours = one == name or one.startswith((f"{name}-", f"{name}."))
            if ours and not stat.S_ISDIR(os.stat(one, dir_fd=fd, follow_symlinks=False).st_mode):
                os.unlink(one, dir_fd=fd)
