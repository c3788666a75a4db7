"""The drop folder: what this machine's programs left for the service is taken into the queue.

A thread looks at the folder several times a second (`system.dropbox` says who may put what there,
`intake.deposit` what is in a file). The next file is always one of the user whose files have taken the least
time so far, and after a second of work the folder is listed again: nobody's flood delays others.
Promises: a file is removed only when its message is on disk; killed anywhere, nothing is lost, and nothing
doubled while the store keeps the record (the key is made of owner and name); whose message it is says the
file's owner, whatever the content claims; a file that is no deposit is put aside as ``NAME.UID.bad`` and
named in the log; a message that cannot be sent ends as failed, with the reason; a store in trouble leaves
everything where it is. A flood of one user delays others by the time of a listing and of one file. What is
logged of a file is short and printable.
Fails: never into the program; it logs. Does not: deliver, or trust a name.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping

from outmail.accept.acceptance import Door, Draft
from outmail.errors import NotStored, Refused
from outmail.intake import deposit, local
from outmail.policy.plain import plain_line
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
#: Seconds after which a folder is listed, even if it does not seem to have changed: a file server's clock may
#: be coarse, or cached.
UNCHANGED = 30.0
#: A pause is at least so many times as long as the listing took.
REST = 4
#: Seconds of work after which a turn ends; where the listing takes long, `REST` times as long as that.
TURN = 1.0
#: How many files of each user a turn takes: at first, and at most where the listing takes long.
PER_USER = 100
MOST_PER_USER = 2000


class DropFolder:
    """``here`` is asked before each turn that has something to do: aliases may have changed."""

    def __init__(self, folder: str, door: Door, here: Callable[[], local.Here]) -> None:
        self.folder = folder
        self._door = door
        self._here = here
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._throttle = Throttle(log)
        #: When the folder was changed last, as far as everything in it was taken; and until when that counts
        #: (monotonic seconds).
        self._clean: tuple[int, float] = (-1, 0.0)
        #: Seconds that the last listing took.
        self._listing = 0.0
        self._per_user = PER_USER
        #: Userid → seconds that its files have taken, as far as they compare with the others that wait.
        self._spent: dict[int, float] = {}
        #: Names that are in the queue, or no deposits, and could not be removed or put aside.
        self._stuck: set[str] = set()

    def start(self) -> None:
        if doubt := _doubt(self.folder):
            log.warning("%s", doubt)
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
            pause = max(self._look(), REST * self._listing)

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
            self._throttle.say(logging.ERROR, "store", "what was dropped waits: %s", problem)
        except OSError as problem:
            self._throttle.say(
                logging.ERROR, "folder", "%s cannot be looked at: %s", self.folder, problem.strerror
            )
        except Exception:
            log.exception("the drop folder is looked at again in %g s", TROUBLE_PAUSE)
        return TROUBLE_PAUSE

    def turn(self) -> int:
        """Take some of what waits; returns how many files that were. Raises `NotStored` and OSError; then
        nothing that was not stored is gone.
        """
        with dropbox.Folder(self.folder) as folder:
            changed, began = folder.changed(), time.monotonic()
            if changed == self._clean[0] and began < self._clean[1]:
                return 0
            waiting = {
                uid: [name for name in names if name not in self._stuck]
                for uid, names in folder.waiting(self._per_user).items()
            }
            self._listing = (listed := time.monotonic()) - began
            tried, taken = self._share(folder, waiting, listed + max(TURN, REST * self._listing))
        longer = REST * self._listing > time.monotonic() - listed
        self._per_user = min(MOST_PER_USER, 2 * self._per_user) if longer else PER_USER
        if not tried and abs(time.time_ns() - changed) > FILE_CLOCK:
            self._clean = changed, began + UNCHANGED
        return taken

    def _share(self, folder: dropbox.Folder, waiting: dict[int, list[str]], until: float) -> tuple[int, int]:
        """Take files of users in turns, by time; returns how many were tried, and how many are gone."""
        users = [uid for uid, names in waiting.items() if names]
        if not users:
            return 0, 0
        self._spent = spent = shares(self._spent, users)
        left = {uid: waiting[uid][::-1] for uid in spent}
        here = self._here()
        tried = taken = 0
        now = time.monotonic()
        while left and now < until and not self._over.is_set():
            uid = min(left, key=spent.__getitem__)
            taken += self._take(folder, left[uid].pop(), here)
            tried += 1
            if not left[uid]:
                del left[uid]
            began, now = now, time.monotonic()
            spent[uid] += now - began
        return tried, taken

    def _take(self, folder: dropbox.Folder, name: str, here: local.Here) -> bool:
        """False when it stays where it is."""
        try:
            uid, data = folder.take(name, self._door.terms.message_size + deposit.ENVELOPE)
            found = deposit.unpacked(data)
        except FileNotFoundError:
            return True
        except dropbox.Later as problem:
            self._throttle.say(
                logging.ERROR, "later", "%s/%s waits: it cannot be read (%s)", self.folder, name, problem
            )
            return False
        except dropbox.TooLarge as problem:
            self._tell(problem, name, here)
            return self._put_aside(folder, name, str(problem))
        except (dropbox.Strange, ValueError) as problem:
            return self._put_aside(folder, name, str(problem))
        found.user = login(uid)
        self._keep(found, here, uid, dropbox.key_of(uid, name))
        try:
            folder.remove(name)
        except OSError as problem:
            self._stuck.add(name)
            self._throttle.say(
                logging.ERROR,
                "remove",
                "%s/%s is in the queue and cannot be removed: %s",
                self.folder,
                name,
                problem.strerror,
            )
        return True

    def _keep(self, found: deposit.Deposit, here: local.Here, uid: int, key: str) -> None:
        try:
            now, most = self._door.clock.now(), self._door.terms.recipients
            self._door.accept([local.draft(found, here, uid=uid, now=now, most=most, key=key)])
        except Refused as refusal:
            self._fail(found, here, uid, key, refusal)

    def _fail(self, found: deposit.Deposit, here: local.Here, uid: int, key: str, refusal: Refused) -> None:
        why = plain_line(str(refusal)[:500])
        self._throttle.say(
            logging.ERROR, f"refused {uid}", "a message of userid %d cannot be sent: %s", uid, why
        )
        sender = found.sender or found.user
        draft = Draft(found.content, here.address(sender), found.recipients, key)
        self._door.keep([self._door.unfit(refusal, draft)])

    def _tell(self, problem: dropbox.TooLarge, name: str, here: local.Here) -> None:
        """Of a message that is too large the beginning is kept as a failed one: its program was told that it
        is safe.
        """
        try:
            found = deposit.unpacked(problem.prefix)
        except ValueError:
            return
        found.user = login(problem.uid)
        refusal = Refused(
            f"the file {problem}; here is its beginning, and the whole of it is "
            f"{self.folder}/{dropbox.aside(name, problem.uid)}",
            code="too-large",
        )
        self._fail(found, here, problem.uid, dropbox.key_of(problem.uid, name), refusal)

    def _put_aside(self, folder: dropbox.Folder, name: str, why: str) -> bool:
        try:
            what = f"it is put aside as {folder.put_aside(name)}"
        except FileNotFoundError:
            return True
        except OSError as problem:
            self._stuck.add(name)
            what = (
                f"it cannot be put aside ({problem.strerror}), and is passed over until the service restarts"
            )
        self._throttle.say(logging.ERROR, "strange", "%s/%s %s: %s", self.folder, name, why, what)
        return True


def shares(spent: Mapping[int, float], waiting: Collection[int]) -> dict[int, float]:
    """Userid → seconds that its files have taken, of the users who wait now. A user who was not there begins
    with the least that one of the others has, and stands before them: who has not waited saves nothing up,
    and comes first once.
    """
    least = min((spent[uid] for uid in waiting if uid in spent), default=0.0)
    return {uid: spent.get(uid, least) for uid in sorted(waiting, key=lambda uid: uid in spent)}


#: 0 where users may link each other's files.
HARDLINKS = "/proc/sys/fs/protected_hardlinks"


def _doubt(folder: str) -> str:
    """What makes the folder less safe than it should be; "" for nothing."""
    try:
        if doubt := dropbox.doubts(folder):
            return doubt
        with open(HARDLINKS, encoding="ascii") as file:
            if file.read().strip() == "0":
                return (
                    f"fs.protected_hardlinks is 0: users can link each other's files in {folder}, and keep "
                    f"them from being sent by that: sysctl fs.protected_hardlinks=1"
                )
    except OSError:
        pass  # whoever looks at the folder says so; other systems have no such file
    return ""
