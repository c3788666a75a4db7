"""Delivery on this machine: to a program (`pipe`), into a Maildir, into a folder of .eml files, or nowhere.

Promises: a file gets its name only when it is complete and on disk (write, fsync, link, fsync of the folder).
Folders are entered as `places` says, and no existing file is replaced. Here the final dot means the moment
before the program is started, or before the file gets its name. A file of a `file:` relay has the name of its
message, so a second attempt finds the first file and changes nothing.
Does not: lock mailboxes, or run as another user. Blocking calls run one at a time, in the engine's loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

from outmail.model import Delivery, Outcome, Reply
from outmail.policy.route import Relay
from outmail.transport import Awaited, Feed, pipe, places

F = TypeVar("F")


class LocalTransport:
    """One of ``sendmail:``, ``maildir:``, ``file:``, ``null:``."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self._deliver = {
            "sendmail": self._pipe,
            "maildir": self._maildir,
            "file": self._file,
            "null": self._null,
        }[relay.scheme]

    async def session(self, feed: Feed) -> None:
        """Deliver until the feed has no more."""
        feed.healthy()
        awaited = Awaited(feed)
        while (delivery := await awaited.take()) is not None:
            delivery.host, delivery.started = self.relay.scheme, asyncio.get_running_loop().time()
            await self._deliver(delivery, awaited)
            feed.done(delivery)

    async def _pipe(self, delivery: Delivery, feed: Awaited) -> None:
        await pipe.hand_over(self.relay, delivery, feed)

    async def _null(self, delivery: Delivery, feed: Awaited) -> None:
        if await pipe.on_record(delivery, feed):
            delivery.all(_delivered("kept here and sent nowhere (null:)"))

    async def _maildir(self, delivery: Delivery, feed: Awaited) -> None:
        def prepared(folder: int) -> places.MaildirFile:
            return places.MaildirFile(folder, self.relay.path, delivery.content)

        await self._write(delivery, feed, prepared, lambda folder, file: file.appear())

    async def _file(self, delivery: Delivery, feed: Awaited) -> None:
        name = places.file_name(delivery.id, delivery.recipients[0].n)

        def appear(folder: int, file: places.Unseen) -> str:
            try:
                file.appear(folder, name)
            except FileExistsError:
                if not places.holds(folder, name, delivery.content):
                    raise places.Unsafe(
                        f"{self.relay.path}/{name} is there already and is something else: move it away"
                    ) from None
            places.sync_name(folder)
            return name

        await self._write(delivery, feed, lambda folder: places.Unseen(folder, delivery.content), appear)

    async def _write(
        self,
        delivery: Delivery,
        feed: Awaited,
        prepared: Callable[[int], AbstractContextManager[F]],
        appear: Callable[[int, F], str],
    ) -> None:
        """``prepared``: the complete file without its name; ``appear`` gives it the name."""
        with ExitStack() as stack:
            try:
                folder = places.open_folder(self.relay.path, make=True)
                stack.callback(os.close, folder)
                file = stack.enter_context(prepared(folder))
                if await pipe.on_record(delivery, feed):
                    delivery.all(_delivered(f"written as {appear(folder, file)}"))
            except places.Unsettled as problem:
                delivery.all(
                    Outcome("unknown", "message", "dot", Reply(0, f"{self.relay.path}: {problem.strerror}"))
                )
            except OSError as problem:
                text = (
                    str(problem.strerror)
                    if isinstance(problem, places.Unsafe)
                    else f"{self.relay.path}: {problem.strerror or problem}"
                )
                delivery.all(Outcome("deferred", "destination", "local", Reply(0, text)))


def _delivered(text: str) -> Outcome:
    return Outcome("delivered", "message", "local", Reply(250, text, "2.0.0"))
