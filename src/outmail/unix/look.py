"""What is in the queue that `outmail init --undo` is to remove?

Why a module of its own: root must not open a database that lies in another user's folder. SQLite writes to
what it opens, and that user may have put a link to a file of root's in its place. So `look` starts this
module as a program, which becomes the owner, looks, and prints what it has seen as JSON.
Promises: a file is opened only if it is a regular file with one name. Nothing is left open.
Fails: never; `Seen.trouble` says, as a clause, why nothing is known. Does not: remove anything.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass

from outmail.config import from_toml
from outmail.errors import Error
from outmail.outbox.queue import Queue
from outmail.policy.setup import toml

#: Recipients in these states need their queue no more.
_OVER = ("delivered", "cancelled")
#: Seconds for the look as another user.
_PATIENCE = 90


@dataclass
class Seen:
    """What is in a queue: recipients by state. ``trouble``: why that is not known; ``works``: an engine uses
    it.
    """

    states: Counter[str]
    works: bool = False
    trouble: str = ""

    @property
    def told(self) -> str:
        """``2 delivered, 1 queued``."""
        return ", ".join(f"{n} {state}" for state, n in sorted(self.states.items())) or "empty"

    @property
    def is_over(self) -> bool:
        """True when all of its mail is delivered, or nobody wants it any more."""
        return not self.trouble and all(state in _OVER for state in self.states)

    def reason(self, *, delete_mail: bool) -> str:
        """Why it must stay; "" when it may go."""
        if self.works:
            return "an engine works on it: end that outmail run first, then take back again"
        if delete_mail:
            return ""
        if self.trouble:
            return f"what it holds is not known ({self.trouble}); --delete-mail removes it"
        if self.is_over:
            return ""
        return f"it holds mail that is not delivered: {self.told}; --delete-mail removes it"


def look(path: str) -> Seen:
    """What is in the queue at a path."""
    try:
        found, folder = os.lstat(path), os.stat(os.path.dirname(path))
    except OSError as problem:
        return _trouble(str(problem.strerror))
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        return _trouble("it is a link, or no regular file: somebody has put it there")
    owner = folder if folder.st_uid else found
    return _own(path) if os.geteuid() or not owner.st_uid else _as(owner.st_uid, owner.st_gid, path)


def _own(path: str) -> Seen:
    try:
        with Queue.open(from_toml(f"store = {toml(path)}", "init --undo", {})) as queue:
            states = {state: int(n) for state, n in queue.stats()["states"].items() if n}
            return Seen(Counter(states), bool(queue.living()))
    except Error as problem:
        return _trouble(str(problem))


def _as(uid: int, gid: int, path: str) -> Seen:
    """The look of the user whose it is. What that user's process says is believed of the queue only."""
    words = [sys.executable, "-I", "-m", "outmail.unix.look", path, str(uid), str(gid)]
    try:
        done = subprocess.run(
            words, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False
        )
        said = json.loads(done.stdout)
        states = {name: int(n) for name, n in said["states"].items() if name.isidentifier()}
        return Seen(Counter(states), bool(said["works"]), _plain(said["trouble"]))
    except (OSError, subprocess.SubprocessError) as problem:
        return _trouble(f"it could not be looked at as user {uid}, whose it is: {problem}")
    except (ValueError, KeyError, TypeError, AttributeError):
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return _trouble(f"user {uid}, whose it is, could not look at it: {last}")


def _trouble(why: str) -> Seen:
    return Seen(Counter(), trouble=_plain(why))


def _plain(text: str) -> str:
    """Without what could move a terminal's cursor."""
    return "".join(one if one.isprintable() else "?" for one in text)


def _become(uid: int, gid: int) -> None:
    """Be another user, for good. Before that, all modules are loaded by a look at an empty queue: the user
    may not be able to read this installation.
    """
    with tempfile.TemporaryDirectory() as folder:
        _own(os.path.join(folder, "queue.db"))
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


if __name__ == "__main__":
    _become(int(sys.argv[2]), int(sys.argv[3]))
    seen = _own(sys.argv[1])
    print(json.dumps({"states": seen.states, "works": seen.works, "trouble": seen.trouble}))
