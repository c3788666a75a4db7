"""Small files beside the store, for programs that must not load all of outmail just to know whether there is
something to report.

``attention.<job>`` exists at least as long as there is something to report about a job: it is made before the
state is stored, and removed after. ``late.<job>`` contains the interval that is registered in the store.
``run.<id>`` says what is running, and its lock says that it is alive. ``watch.jsonl`` contains runs that are
not in the store yet, one line each, appended under a lock.
Does not: import slow modules.
"""

from __future__ import annotations

import os
import re

#: How many bytes a mark may have; a watched command's arguments fit in.
_LONGEST = 1_000_000
#: The ending for the name of a file that cannot be read.
UNREADABLE = ".unreadable"


def set_aside(path: str) -> str:
    """Rename a file, out of the way of the next run. Returns a sentence about it. If it cannot be renamed, it
    stays.
    """
    try:
        os.replace(path, path + UNREADABLE)
    except OSError as problem:
        return f"{path} cannot be read, and not be renamed: {problem.strerror}"
    return f"{path} cannot be read: it is kept as {os.path.basename(path)}{UNREADABLE}"


def slug(name: str) -> str:
    """A job's name as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:100]


def attention(spool: str, name: str) -> str:
    return os.path.join(spool, f"attention.{slug(name)}")


def late(spool: str, name: str) -> str:
    return os.path.join(spool, f"late.{slug(name)}")


def runs(spool: str) -> str:
    return os.path.join(spool, "watch.jsonl")


def read(path: str) -> str:
    """The text of a mark, "" when there is none."""
    try:
        # a pipe in the place of the file must not make us wait
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, _LONGEST).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    finally:
        os.close(fd)


def others(spool: str, name: str, *, id: str = "", pid: int = 0) -> list[str]:
    """Other runs of a job that are running now, in words: all except one run, or except those of one
    process.
    """
    import json
    import time

    from outmail.reports import liveness

    found = []
    for _, path in liveness.living(spool, id):
        try:
            run = json.loads(read(path))
            if run["job"] == name and run["pid"] != pid:
                began = time.strftime("%H:%M:%S", time.localtime(run["started_at"] / 1000))
                found.append(f"process {run['pid']}, since {began}")
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue  # it ended at this moment, or is not ours
    return found


def put(path: str, text: str = "") -> None:
    """Make or replace a mark; its content is complete at any moment."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


def drop(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def append(path: str, line: str) -> None:
    """Append one whole line, for whoever folds the lines into the store."""
    import fcntl

    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, (line + "\n").encode())
    finally:
        os.close(fd)
