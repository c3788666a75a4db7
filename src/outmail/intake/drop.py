"""The drop folder: what this machine's programs left for the service is taken into the queue.

A thread looks at the folder several times a second (`system.dropbox` says who may put what there,
`intake.deposit` what is in a file); with files it takes users in turns, so that nobody's flood delays
others.
Promises: a file is removed only when its message is on disk; killed anywhere, nothing is lost, and nothing
doubled while the store keeps the record (the key is made of owner and name); whose message it is says the
file's owner, whatever the content claims; a file that is no deposit is put aside as ``NAME.bad`` and named
once; a message that cannot be sent ends as failed, with the reason; a store in trouble leaves everything
where it is.
Fails: never into the program; it logs. Does not: deliver, or trust a name.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from outmail.accept.acceptance import Door, Draft
from outmail.errors import NotStored, Refused
from outmail.intake import deposit, local
from outmail.smtp.syntax import printable
from outmail.system import dropbox
from outmail.system.starting import started
from outmail.system.throttle import Throttle
from outmail.system.user import login

log = logging.getLogger("outmail.sendmail")

#: Seconds between looks, and after trouble.
PAUSE = 0.25
TROUBLE_PAUSE = 2.0
#: Nanoseconds in which two changes of a folder may bear one time.
FILE_CLOCK = 10**9
#: Bytes of a file beside its message.
_ENVELOPE = 8_000_000


class DropFolder:
    """``here`` is asked before each turn that has something to do: aliases may have changed."""

    def __init__(self, folder: str, door: Door, here: Callable[[], local.Here]) -> None:
        self.folder = folder
        self._door = door
        self._here = here
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._seldom = Throttle(log)
        #: When the folder was changed last, as far as everything in it was taken.
        self._clean: int | None = None
        #: Names that are in the queue and could not be removed.
        self._stuck: set[str] = set()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="outmail-drop", daemon=True)
        started(self._thread)

    def finish(self) -> None:
        """No further file. Does not wait."""
        self._over.set()

    def stop(self) -> None:
        """Returns when the present file is through."""
        self.finish()
        if self._thread is not None:
            self._thread.join(30)

    def _work(self) -> None:
        pause = PAUSE
        while not self._over.wait(pause):
            pause = self._look()

    def all(self) -> None:
        """Everything that waits now; what is in the way of it is logged."""
        self._look()

    def _look(self) -> float:
        """Take turns until nothing waits; returns the pause until the next look."""
        try:
            while self.turn() and not self._over.is_set():
                pass
            return PAUSE
        except NotStored as problem:
            self._seldom.say(logging.ERROR, "store", "what was dropped waits: %s", problem)
        except OSError as problem:
            self._seldom.say(
                logging.ERROR, "folder", "%s cannot be looked at: %s", self.folder, problem.strerror
            )
        except Exception:
            log.exception("the drop folder is looked at again in %g s", TROUBLE_PAUSE)
        return TROUBLE_PAUSE

    def turn(self) -> int:
        """Take what waits; returns how many messages that were. Raises `NotStored` and OSError; then nothing
        that was not stored is gone.
        """
        changed = os.stat(self.folder).st_mtime_ns
        if changed == self._clean:
            return 0
        names = [name for name in dropbox.waiting(self.folder) if name not in self._stuck]
        here = self._here() if names else None
        for name in names:
            if self._over.is_set():
                return 0
            assert here is not None
            self._take(name, here)
        if not names and abs(time.time_ns() - changed) > FILE_CLOCK:
            self._clean = changed
        return len(names)

    def _take(self, name: str, here: local.Here) -> None:
        try:
            uid, data = dropbox.take(self.folder, name, self._door.terms.message_size + _ENVELOPE)
            found = deposit.unpacked(data)
        except FileNotFoundError:
            return
        except (dropbox.Strange, ValueError) as problem:
            self._put_aside(name, str(problem))
            return
        found.user = login(uid)
        self._keep(found, here, uid, f"drop:{uid}:{name}")
        try:
            dropbox.remove(self.folder, name)
        except OSError as problem:
            self._stuck.add(name)
            self._seldom.say(
                logging.ERROR,
                "remove",
                "%s/%s is in the queue and cannot be removed: %s",
                self.folder,
                name,
                problem.strerror,
            )

    def _keep(self, found: deposit.Deposit, here: local.Here, uid: int, key: str) -> None:
        door = self._door
        try:
            door.accept([local.draft(found, here, uid=uid, now=door.clock.now(), key=key)])
        except Refused as refusal:
            log.error("a message of userid %d cannot be sent: %s", uid, refusal)
            sender = found.sender or found.user
            door.keep(
                [door.unfit(refusal, Draft(found.content, here.address(sender), found.recipients, key))]
            )

    def _put_aside(self, name: str, why: str) -> None:
        self._seldom.say(
            logging.ERROR, "strange", "%s/%s %s: it is put aside", self.folder, printable(name), why
        )
        try:
            os.rename(f"{self.folder}/{name}", f"{self.folder}/{name}.bad")
        except OSError:
            self._stuck.add(name)
