"""Delivery into Maildirs and mboxes that this user may write.

Promises: a Maildir file appears only when it is complete and on disk. An mbox gets the whole entry or nothing
(`mbox`). Every recipient has its own outcome. Return-Path and Delivered-To are put in front; lines end with
LF. When a mailbox is locked, one delivery waits for it in the loop, for at most two seconds, and holds up no
other mailbox; then this delivery and the next ones to the mailbox are deferred. A message that has our own
Delivered-To for the user is refused as a loop.
Fails: as outcomes. A file problem defers; the outcome is unknown when the mail is there but may not be on
disk.
Does not: create home folders, run programs, or change its user.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable
from functools import partial

from outmail.mime import splice
from outmail.model import Delivery, Leased, Outcome, Reply
from outmail.policy.route import Relay
from outmail.system.threads import CallThread
from outmail.transport import Awaited, Feed, mbox, places
from outmail.transport.dotlock import Locked

#: Seconds that a delivery waits for a locked mailbox, and between two tries.
LOCK_PATIENCE = 2.0
LOOK = 0.05

_FROM = re.compile(rb"(?m)^(?=>*From )")
#: How many bytes are quoted at a time; then the rest of their last line follows.
_PIECE = 65536

#: Makes a blocking call on a thread.
Run = Callable[[Callable[[], str]], Awaitable[str]]


class Looping(Exception):
    """The message has been delivered to this user before."""


class MailboxTransport:
    """``mailbox:/var/mail/{user}`` (mbox) or ``mailbox:/home/{user}/Maildir/`` (a trailing slash:
    Maildir).
    """

    def __init__(self, relay: Relay) -> None:
        self._mailboxes = Mailboxes(relay.path, CallThread("mailbox").run)

    async def session(self, feed: Feed) -> None:
        """Deliver until the feed has no more."""
        feed.healthy()
        awaited = Awaited(feed)
        while (delivery := await awaited.take()) is not None:
            delivery.host = "mailbox"
            if await awaited.dot(delivery, delivery.recipients):
                waiting = [r for r in delivery.recipients if r.outcome is None]
                await asyncio.gather(*(self._one(delivery, recipient) for recipient in waiting))
            else:
                delivery.all(
                    Outcome(
                        "deferred",
                        "destination",
                        "dot",
                        Reply(0, "the delivery could not be recorded before it was made, so it was not made"),
                    )
                )
            feed.done(delivery)

    async def _one(self, delivery: Delivery, recipient: Leased) -> None:
        recipient.outcome = await self._mailboxes.attempt(
            delivery.sender, recipient.address, delivery.content
        )


class Mailboxes:
    """All mailboxes of one template."""

    def __init__(self, template: str, run: Run) -> None:
        self._template = template
        self._run = run
        #: Addresses for whose locked mailbox a delivery waits.
        self._waited: set[str] = set()

    async def attempt(self, sender: str, address: str, content: bytes) -> Outcome:
        """Deliver to one address. Returns an outcome. The thread never waits for a lock."""
        try:
            where = await self._patiently(address, partial(deliver, self._template, sender, address, content))
        except Looping:
            return Outcome(
                "refused",
                "recipient",
                "local",
                Reply(554, f"mail for {address} goes round in a circle", "5.4.6"),
            )
        except OSError as problem:
            return Outcome(
                "unknown" if isinstance(problem, places.Unsettled) else "deferred",
                "recipient",
                "local",
                Reply(451, f"the mailbox of {address}: {problem.strerror or problem}", "4.2.0"),
            )
        return Outcome("delivered", "recipient", "local", Reply(250, f"delivered to {where}", "2.0.0"))

    async def _patiently(self, address: str, delivering: Callable[[], str]) -> str:
        try:
            return await self._run(delivering)
        except Locked:
            if address in self._waited:
                raise
        self._waited.add(address)
        try:
            loop = asyncio.get_running_loop()
            deadline = loop.time() + LOCK_PATIENCE
            while True:
                await asyncio.sleep(LOOK)
                try:
                    return await self._run(delivering)
                except Locked:
                    if loop.time() >= deadline:
                        raise
        finally:
            self._waited.discard(address)


def deliver(template: str, sender: str, address: str, content: bytes) -> str:
    """Write the message into the user's mailbox. Returns its path. Raises OSError (`Locked` at once) or
    `Looping`.
    """
    user = address.rpartition("@")[0]
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", user, re.ASCII):
        raise PermissionError(1, f"{user!r} cannot be part of a path")
    if address.lower() in splice.delivered_to(content):
        raise Looping
    whole = f"Return-Path: <{sender}>\nDelivered-To: {address}\n".encode() + content.replace(b"\r\n", b"\n")
    path = template.replace("{user}", user)
    owner = places.Owner(user if "{user}" in template else "")
    if path.endswith("/"):
        to_maildir(path.rstrip("/"), whole, owner, _fixed(template.rstrip("/")))
    else:
        to_mbox(path, sender, whole, owner, _fixed(template))
    return path


def _quoted(content: bytes) -> bytes:
    """Put a ``>`` before each From line. In pieces, because a regular expression lets no other thread run,
    and a message may consist only of such lines.
    """
    if b"From " not in content:
        return content
    pieces, start = [], 0
    while start < len(content):
        end = content.find(b"\n", start + _PIECE) + 1 or len(content)
        pieces.append(_FROM.sub(b">", content[start:end]))
        start = end
    return b"".join(pieces)


def _fixed(template: str) -> int:
    """How many parts of the path come from the administrator alone: all before the user's name, and not the
    last one.
    """
    parts = places.parts(template)
    return next((i for i, part in enumerate(parts) if "{user}" in part), len(parts) - 1)


def to_maildir(
    path: str, content: bytes, owner: places.Owner = places.OURS, fixed: int | None = None
) -> None:
    """Write into tmp, fsync, link into new, fsync the folder."""
    root = places.open_folder(path, owner, linked=fixed, make=True, above=False)
    try:
        with places.MaildirFile(root, path, content, owner) as file:
            file.appear()
    finally:
        os.close(root)


def to_mbox(
    path: str, sender: str, content: bytes, owner: places.Owner = places.OURS, fixed: int | None = None
) -> None:
    """Append an entry: From line, content with its From lines quoted, blank line."""
    stamp = time.strftime("%a %b %d %H:%M:%S %Y", time.gmtime())
    quoted = _quoted(content)
    entry = (
        f"From {sender or 'MAILER-DAEMON'} {stamp}\n".encode()
        + quoted
        + (b"\n" if quoted.endswith(b"\n") else b"\n\n")
    )
    above, _, name = path.rpartition("/")
    folder = places.open_folder(above, owner, linked=len(places.parts(above)) if fixed is None else fixed)
    try:
        mbox.append(folder, name, path, entry, owner)
    finally:
        os.close(folder)
