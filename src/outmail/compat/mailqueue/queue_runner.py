"""mailqueue-runner's queue as an object of a program: a message in a file, a transport that writes files, and
one pass over the directory.

Promises: a file is complete before it has its name, and is never replaced by another one's; what failed is
written anew beside it and takes its place in one step, so a kill never leaves half a file. A broken file is
set aside and does not end the pass.
Fails: OSError, ValueError. Does not: keep a state for each recipient: `mq-run` does (`run`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import time
from collections.abc import Sequence
from typing import Any

from outmail.compat.foreign_queue import set_aside
from outmail.compat.mailqueue import spool
from outmail.compat.mailqueue.app_helpers import init_app, init_smtp_mailer
from outmail.compat.mailqueue.maildir_utils import LockedFile, find_messages, lock_file, move_message
from outmail.compat.mailqueue.message_handler import BaseMsg, MessageHandler
from outmail.compat.mailqueue.message_utils import (
    MsgInfo,
    SendResult,
    parse_message_envelope,
    serialize_message_with_queue_data,
)
from outmail.compat.mailqueue.plugins import registry
from outmail.system import rights
from outmail.system.lockfile import same_file

STALE_TIMEOUT_s = spool.STALE


def enqueue_message(
    msg: Any,
    queue_path: str | os.PathLike[str],
    sender: str | bytes,
    recipients: Sequence[str | bytes],
    return_msg: bool = False,
    in_progress: bool = False,
    **queue_args: Any,
) -> Any:
    """Store a message; returns the path of its file, or with ``return_msg`` the message. ``in_progress``: it
    is stored for safety only, and the caller sends it now.
    """
    data = serialize_message_with_queue_data(msg, sender, recipients, **queue_args)
    part = "cur" if in_progress else "new"
    path = os.path.join(queue_path, part, spool.put(os.fspath(queue_path), data, part))
    return MaildirBackedMsg(path, fp=lock_file(path)) if return_msg else path


class MaildirBackend:
    """A transport that stores."""

    def __init__(self, queue_path: str | os.PathLike[str]) -> None:
        self.queue_path = queue_path

    def send(self, from_addr: str, to_addrs: Sequence[str], message: Any) -> SendResult:
        enqueue_message(message, self.queue_path, from_addr, to_addrs)
        return SendResult(True, queued=True, transport="maildir")


class MaildirBackedMsg(BaseMsg):
    """A message in a file of the queue. ``fp``: the locked file, while it is being sent."""

    is_in_queue = True

    def __init__(self, file_path: str | os.PathLike[str], fp: LockedFile | None = None) -> None:
        super().__init__()
        self.file_path, self.fp = os.fspath(file_path), fp

    @property
    def path(self) -> str:
        return self.file_path

    @property
    def msg(self) -> MsgInfo:
        if self._msg is None:
            if self.fp is not None:
                self.fp.seek(0)
                self._msg = parse_message_envelope(self.fp.fp)
            else:
                with open(self.file_path, "rb") as file:
                    self._msg = parse_message_envelope(file)
        return self._msg

    def start_delivery(self) -> bool | None:
        place = self.fp.name if self.fp is not None else self.file_path
        self.waited_in_queue = os.path.basename(os.path.dirname(place)) == "new"
        self._msg = self._to = self._from = None
        self.fp = move_message(self.fp or self.file_path, "cur")
        return True if self.fp is not None else None

    def delivery_successful(self) -> None:
        self._end()

    def delivery_failed(self, discard: bool = False) -> None:
        if discard:
            self._end()
            return
        assert self.fp is not None
        if same_file(self.fp.name, self.fp.fp.fileno()):
            self._rewrite()
            move_message(self.fp, "new", open_file=False)
        self.fp.close()
        self.fp = self._msg = None

    def _end(self) -> None:
        assert self.fp is not None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.fp.name)
        self.fp.close()
        self.fp = None

    def _rewrite(self) -> None:
        """The same file with the new envelope, in one step."""
        assert self.fp is not None
        data = serialize_message_with_queue_data(
            self.msg_bytes,
            self.from_addr or "",
            self.to_addrs or (),
            queue_date=self.queue_date,
            last=self.last_delivery_attempt,
            retries=self.retries,
        )
        folder, name = os.path.split(self.fp.name)
        half = os.path.join(os.path.dirname(folder), "tmp", f"{name}.{os.urandom(4).hex()}")
        with open(half, "xb", opener=_private) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh = lock_file(half)
        assert fresh is not None, "nobody knows this name"
        os.rename(half, self.fp.name)
        fresh.name, old = self.fp.name, self.fp
        self.fp = fresh
        old.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def is_stale_msg(msg_path: str) -> bool:
    """True for a file that nobody has touched for `STALE_TIMEOUT_s` seconds."""
    status = os.stat(msg_path)
    return max(status.st_mtime, status.st_ctime) + STALE_TIMEOUT_s < time.time()


def unblock_stale_messages(queue_basedir: str | os.PathLike[str], log: Any) -> None:
    """Files that a killed program has left in ``cur`` wait again."""
    for path in find_messages(queue_basedir, log, "cur"):
        with contextlib.suppress(FileNotFoundError):
            if is_stale_msg(path) and move_message(path, "new", open_file=False):
                log.warning(
                    "%s was left by a program that was killed: it waits again", os.path.basename(path)
                )


def assemble_queue_with_new_messages(
    queue_basedir: str | os.PathLike[str], log: Any = None
) -> queue.Queue[str]:
    """The paths of the files that wait."""
    found: queue.Queue[str] = queue.Queue()
    for path in find_messages(queue_basedir, log):
        found.put(path)
    return found


def send_all_queued_messages(
    queue_dir: str | os.PathLike[str],
    mailer: Any = None,
    plugins: Any = None,
    mh: MessageHandler | None = None,
) -> None:
    """Give each file that waits to ``mailer``, or to the handler ``mh``, once. Raises `NotStored` when
    root would do so in another user's directory.
    """
    if (mailer is None) == (mh is None):
        raise ValueError("send_all_queued_messages() needs either mailer= or mh=")
    rights.refuse(os.fspath(queue_dir), "run this program as {user}")
    log = logging.getLogger("mailqueue.sending")
    handler = mh or MessageHandler([mailer], plugins=plugins, app="mq-run")
    unblock_stale_messages(queue_dir, log)
    for path in find_messages(queue_dir, log):
        try:
            handler.send_message(MaildirBackedMsg(path))
        except (FileNotFoundError, ValueError) as problem:
            _broken(os.fspath(queue_dir), path, problem, log)


def _broken(queue_dir: str, path: str, problem: Exception, log: Any) -> None:
    if isinstance(problem, FileNotFoundError):
        return  # somebody else has sent it
    name = os.path.basename(path)
    place = set_aside(queue_dir, os.path.join("cur", name)) or set_aside(queue_dir, os.path.join("new", name))
    log.error("%s: %s: set aside as %s", path, problem, place)


def one_shot_queue_run(
    queue_dir: str | os.PathLike[str],
    config_path: Any = None,
    options: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """`send_all_queued_messages` with an ini file, or with ``settings``, where ``mh`` may be a handler."""
    settings = init_app(config_path, options=options, settings=settings)
    mh = settings.get("mh")
    mailer = None if mh else init_smtp_mailer(settings)
    send_all_queued_messages(queue_dir, mailer, plugins=registry, mh=mh)
    if settings.get("plugin_loader") is not None:
        settings["plugin_loader"].terminate_all_activated_plugins()
