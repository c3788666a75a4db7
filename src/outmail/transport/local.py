"""Handing over on this machine: a program's stdin (sendmail), a Maildir, a folder of .eml files, or nothing.

Promises: files appear under their name only whole and on disk (write, fsync, link or rename, fsync of the folder); the
final dot's place is taken by the moment before stdin is closed or the file gets its name. A sendmail program's exit
status is read as sysexits: EX_TEMPFAIL and what an administrator can mend is deferred, the rest is refused.
Does not: lock mailboxes, or run as another user. Calls that block run one at a time in the engine's turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from pathlib import Path

from outmail.held import sync_folder
from outmail.model import Delivery, Outcome, Reply
from outmail.policy.route import Relay
from outmail.transport import Awaited, Feed

_LATER = {69: "service unavailable", 70: "internal error", 71: "system error", 72: "system file missing", 73: "cannot create output",
          74: "input/output error", 75: "temporary failure", 77: "permission denied", 78: "configuration error"}  # fmt: skip
_NEVER = {64: "wrong usage", 65: "data error", 66: "no input", 67: "no such user", 68: "no such host", 76: "protocol error"}


class LocalTransport:
    """One of ``sendmail:``, ``maildir:``, ``file:``, ``null:``."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self._deliver = {"sendmail": self._pipe, "maildir": self._maildir, "file": self._file, "null": self._null}[relay.scheme]

    async def session(self, feed: Feed) -> None:
        """Deliver until the feed has no more."""
        feed.healthy()
        awaited = Awaited(feed)
        while (delivery := await awaited.take()) is not None:
            delivery.host, delivery.started = self.relay.scheme, asyncio.get_running_loop().time()
            await self._deliver(delivery, awaited)
            feed.done(delivery)

    async def _null(self, delivery: Delivery, feed: Awaited) -> None:
        if await _dot(delivery, feed):
            delivery.all(_said("delivered", Reply(250, "taken by null:", "2.0.0")))

    async def _maildir(self, delivery: Delivery, feed: Awaited) -> None:
        root = Path(self.relay.path)
        await self._write(delivery, feed, root / "tmp", root / "new", _maildir_name(delivery))

    async def _file(self, delivery: Delivery, feed: Awaited) -> None:
        folder = Path(self.relay.path)
        await self._write(delivery, feed, folder, folder, f"{delivery.id}-{delivery.recipients[0].n}.eml", hidden=True)

    async def _write(self, delivery: Delivery, feed: Awaited, tmp: Path, target: Path, name: str, hidden: bool = False) -> None:
        temporary = tmp / ("." + name if hidden else name)
        try:
            for folder in {tmp, target, target.parent / "cur" if not hidden else target}:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_durably(temporary, delivery.content)
            if not await _dot(delivery, feed):
                temporary.unlink()
                return
            os.replace(temporary, target / name)
            sync_folder(target)
        except OSError as problem:
            with contextlib.suppress(OSError):
                temporary.unlink()
            delivery.all(Outcome("deferred", "destination", "local", Reply(0, f"{target}: {problem.strerror or problem}")))
        delivery.all(_said("delivered", Reply(250, f"written as {name}", "2.0.0")))

    async def _pipe(self, delivery: Delivery, feed: Awaited) -> None:
        arguments = [self.relay.path, "-i", "-f", delivery.sender or "<>", "--", *(r.address for r in delivery.recipients)]
        try:
            process = await asyncio.create_subprocess_exec(
                *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
            )
        except OSError as problem:
            delivery.all(Outcome("deferred", "destination", "connect", Reply(0, f"{self.relay.path}: {problem.strerror}"), fault=True))
            return
        dotted = False
        try:
            async with asyncio.timeout(self.relay.dot_timeout):
                assert process.stdin and process.stderr
                errors = asyncio.ensure_future(process.stderr.read(4096))
                with contextlib.suppress(ConnectionError):
                    process.stdin.write(delivery.content.replace(b"\r\n", b"\n"))
                    await process.stdin.drain()
                dotted = await _dot(delivery, feed)
                if not dotted:
                    process.kill()
                with contextlib.suppress(ConnectionError):
                    process.stdin.close()
                words = (await errors).decode("utf-8", "replace").strip()
                status = await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            kind = "unknown" if dotted else "deferred"
            delivery.all(Outcome(kind, "message", "dot", Reply(0, f"{self.relay.path} did not end in time")))  # type: ignore[arg-type]
            return
        delivery.all(_by_status(status, words))


def _by_status(status: int, words: str) -> Outcome:
    if status == 0:
        return _said("delivered", Reply(250, "taken by the sendmail program", "2.0.0"))
    if status < 0:
        return Outcome("unknown", "message", "dot", Reply(0, f"the sendmail program was killed by signal {-status}"))
    meaning = _NEVER.get(status) or _LATER.get(status) or "unknown status"
    kind = "refused" if status in _NEVER else "deferred"
    text = f"exit status {status} ({meaning})" + (f": {words}" if words else "")
    return Outcome(kind, "message", "local", Reply(550 if kind == "refused" else 450, " ".join(text.split())[:500]))  # type: ignore[arg-type]


async def _dot(delivery: Delivery, feed: Awaited) -> bool:
    if await feed.dot(delivery, delivery.recipients):
        return True
    delivery.all(Outcome("deferred", "destination", "dot", Reply(0, "the hand-over could not be put on record, so it did not happen")))
    return False


def _said(kind: str, reply: Reply) -> Outcome:
    return Outcome(kind, "message", "local", reply)  # type: ignore[arg-type]


def _maildir_name(delivery: Delivery) -> str:
    return f"{time.time_ns() // 10**9}.M{delivery.seq}R{delivery.recipients[0].n}P{os.getpid()}Q{os.urandom(4).hex()}.{maildir_host()}"


def maildir_host() -> str:
    """This machine's name as it may stand in the name of a Maildir file."""
    return socket.gethostname().replace("/", "\\057").replace(":", "\\072")


def _write_durably(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb", closefd=True) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
