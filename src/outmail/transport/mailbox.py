"""Final delivery into Maildirs and mboxes that this user may write.

Promises: a Maildir file appears only complete and synced; an mbox is locked (dot lock and fcntl), appended to whole, and cut back
when the write fails; every recipient has its own outcome; Return-Path and Delivered-To are put in front; lines end in LF.
A message that bears our own Delivered-To for the user is a loop and is refused.
Fails: as outcomes: trouble with a file is deferred. Does not: create home folders, run programs, or change user.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from outmail.held import sync_folder
from outmail.mime import splice
from outmail.model import Delivery, Outcome, Reply
from outmail.policy.route import Relay
from outmail.transport import Awaited, Feed
from outmail.transport.local import maildir_host
from outmail.worker import Worker

LOCK_PATIENCE = 10.0
#: A dot lock older than this belonged to somebody who is gone.
STALE_LOCK = 300.0


class Looping(Exception):
    """The message has been delivered to this user before."""


class MailboxTransport:
    """``mailbox:/var/mail/{user}`` (mbox) or ``mailbox:/home/{user}/Maildir/`` (a trailing slash: Maildir)."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self._worker = Worker("mailbox")

    async def session(self, feed: Feed) -> None:
        """Deliver until the feed has no more."""
        feed.healthy()
        awaited = Awaited(feed)
        while (delivery := await awaited.take()) is not None:
            delivery.host = "mailbox"
            if await awaited.dot(delivery, delivery.recipients):
                await self._worker.run(partial(self._all, delivery))  # locks and disks may take their time: not in the loop's
            else:
                delivery.all(Outcome("deferred", "destination", "dot", Reply(0, "the delivery could not be put on record, so it did not happen")))
            feed.done(delivery)

    def _all(self, delivery: Delivery) -> None:
        for recipient in delivery.recipients:
            if recipient.outcome is None:
                recipient.outcome = attempt(self.relay.path, delivery.sender, recipient.address, delivery.content)


def attempt(template: str, sender: str, address: str, content: bytes) -> Outcome:
    """One delivery as an outcome."""
    try:
        where = deliver(template, sender, address, content)
    except Looping:
        return Outcome("refused", "recipient", "local", Reply(554, f"mail for {address} goes round in a circle", "5.4.6"))
    except OSError as problem:
        return Outcome("deferred", "recipient", "local", Reply(451, f"the mailbox of {address}: {problem.strerror or problem}", "4.2.0"))
    return Outcome("delivered", "recipient", "local", Reply(250, f"delivered to {where}", "2.0.0"))


def deliver(template: str, sender: str, address: str, content: bytes) -> str:
    """Write the message into the user's mailbox; returns its path. Raises OSError or `Looping`."""
    user = address.rpartition("@")[0]
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", user):
        raise PermissionError(1, f"{user!r} cannot be part of a path")
    mark = b"delivered-to: " + address.lower().encode()
    if any(field.lower().split(b"\r\n", 1)[0].strip() == mark for name, field in splice.fields(content) if name == "delivered-to"):
        raise Looping
    whole = f"Return-Path: <{sender}>\nDelivered-To: {address}\n".encode() + content.replace(b"\r\n", b"\n")
    path = template.replace("{user}", user)
    if path.endswith("/"):
        to_maildir(Path(path), whole)
    else:
        to_mbox(Path(path), sender, whole)
    return path


def to_maildir(folder: Path, content: bytes) -> None:
    """tmp, fsync, rename to new, fsync of the folder."""
    for name in ("tmp", "new", "cur"):
        (folder / name).mkdir(mode=0o700, parents=name == "tmp", exist_ok=True)
    name = f"{time.time_ns() // 10**9}.P{os.getpid()}Q{os.urandom(6).hex()}.{maildir_host()}"
    temporary = folder / "tmp" / name
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, folder / "new" / name)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(folder / "new")


def to_mbox(path: Path, sender: str, content: bytes) -> None:
    """Append under both locks; what could not be written whole is cut off again."""
    stamp = time.strftime("%a %b %d %H:%M:%S %Y", time.gmtime())
    quoted = re.sub(rb"(?m)^(>*From )", rb">\1", content)
    entry = f"From {sender or 'MAILER-DAEMON'} {stamp}\n".encode() + quoted + (b"\n" if quoted.endswith(b"\n") else b"\n\n")
    with _dot_locked(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(fd)
            size = os.fstat(fd).st_size
            try:
                os.lseek(fd, size, os.SEEK_SET)
                view = memoryview(entry)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)


def _lock(fd: int) -> None:
    import fcntl

    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            if time.monotonic() >= deadline:
                raise TimeoutError(11, "another program holds its lock") from None
            time.sleep(0.02)


@contextlib.contextmanager
def _dot_locked(path: Path) -> Iterator[None]:
    """``<mbox>.lock``, as mail readers do; where the folder is not ours to write, the fcntl lock alone has to do."""
    lock = Path(f"{path}.lock")
    deadline = time.monotonic() + LOCK_PATIENCE
    held = False
    while not held:
        try:
            os.close(os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            held = True
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - lock.stat().st_mtime > STALE_LOCK:
                    lock.unlink()
                    continue
            if time.monotonic() >= deadline:
                raise TimeoutError(11, f"another program holds {lock}") from None
            time.sleep(0.02)
        except PermissionError:
            break
    try:
        yield
    finally:
        if held:
            with contextlib.suppress(FileNotFoundError):
                lock.unlink()
