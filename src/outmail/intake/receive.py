"""The receiving server's policy: whose mail is taken, and what becomes of it.

Promises: relaying is refused at RCPT (550 5.7.1), an unknown user at RCPT (550 5.1.1); aliases are expanded
when the mail comes in, each target is a recipient of its own in the queue; over LMTP a plain user's mailbox
is written before the answer, and every recipient has its own; a message that bears our own Delivered-To is
refused as a loop. Nothing is accepted and bounced later for want of a user.
Fails: as replies. Does not: write mailboxes (`transport.mailbox` does), or know where the queue is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from outmail.accept.acceptance import Draft
from outmail.errors import Refused
from outmail.intake.smtp import FULL, ClientConnection, Listener, reply_for, traced
from outmail.mime import splice
from outmail.model import Outcome, Reply, new_id
from outmail.policy.admission import Network, is_trusted
from outmail.policy.aliases import AliasError, Directory
from outmail.smtp import server as protocol
from outmail.transport import mailbox

log = logging.getLogger("outmail.receive")

NO_RELAY = Reply(550, "Relaying denied", "5.7.1")
UNKNOWN = Reply(550, "Nobody has this name here", "5.1.1")


class Receiver:
    """For local domains only, unless the client may relay (``networks``)."""

    def __init__(
        self,
        directory: Directory,
        domain: str,
        mailboxes: mailbox.Mailboxes | None,
        networks: tuple[Network, ...],
        gate: Callable[[], Reply | None],
    ) -> None:
        self._directory = directory
        self._domain = domain
        self._mailboxes = mailboxes
        #: Deliveries by LMTP under way.
        self._writing: set[asyncio.Future[Outcome]] = set()
        self._networks = networks
        self._gate = gate

    # protocol.Policy
    # -----------------------------------------------------------------------------------------------

    def mail(self, session: protocol.Server, sender: str) -> Reply | None:
        return self._gate()

    def rcpt(self, session: protocol.Server, address: str) -> Reply | None:
        local, _, domain = address.rpartition("@")
        line: ClientConnection = session.peer
        if line.listener.full:
            return FULL
        if not self._directory.is_local(domain):
            return (
                None
                if self._networks and line.client and is_trusted(line.client, self._networks)
                else NO_RELAY
            )
        try:
            return None if self._directory.expand(local) else UNKNOWN
        except (AliasError, OSError, UnicodeDecodeError) as problem:
            line.listener.seldom.say(logging.ERROR, "aliases", "%s: %s", address, problem)
            return Reply(451, "The aliases are in disorder: come back later", "4.3.5")

    # taking
    # --------------------------------------------------------------------------------------------------------

    def targets(self, address: str) -> list[str]:
        """An accepted recipient → the addresses its mail goes to."""
        local, _, domain = address.rpartition("@")
        if not self._directory.is_local(domain):
            return [address]
        return [
            target if "@" in target else f"{target}@{self._domain}"
            for target in self._directory.expand(local) or ()
        ]

    def take(
        self,
        listener: Listener,
        line: ClientConnection,
        session: protocol.Server,
        request: protocol.Deliver,
        then: Callable[[Sequence[Reply]], None],
    ) -> None:
        """SMTP: one message in the queue for all targets. LMTP: each recipient for itself."""
        lmtp = listener.settings.dialogue.lmtp
        times = len(request.recipients) if lmtp else 1
        clock = listener.door.door.clock
        id = new_id(clock.now())
        try:
            targets = {address: self.targets(address) for address in request.recipients}
            trace, content = traced(
                line, session, request.content, id, listener.settings.dialogue, clock.now()
            )
            _no_loop(content, {target.lower() for found in targets.values() for target in found})
        except Refused as refusal:
            then([reply_for(refusal)] * times)
            return
        except (AliasError, OSError, UnicodeDecodeError) as problem:
            listener.seldom.say(logging.ERROR, "aliases", "%s", problem)
            then([Reply(451, "The aliases are in disorder: come back later", "4.3.5")] * times)
            return
        if not lmtp:
            unique = list(dict.fromkeys(target for found in targets.values() for target in found))
            listener.door.accept(
                Draft(content, request.sender, unique, id=id, normal=True, trace=trace),
                lambda answer: then([reply_for(answer)]),
            )
            return
        whole = trace + content
        #: Recipients that mean the same are one delivery, and have the same answer.
        wanted = {tuple(found): found for found in targets.values()}
        answers: dict[tuple[str, ...], Reply] = {}

        def answered(found: tuple[str, ...], reply: Reply) -> None:
            answers[found] = reply
            if len(answers) == len(wanted):
                then([answers[tuple(targets[address])] for address in request.recipients])

        for key, found in wanted.items():
            self._by_lmtp(listener, request.sender, whole, found, lambda reply, key=key: answered(key, reply))  # type: ignore[misc]

    def _by_lmtp(
        self,
        listener: Listener,
        sender: str,
        content: bytes,
        targets: list[str],
        then: Callable[[Reply], None],
    ) -> None:
        """A plain user's mailbox at once; an alias with several targets, or one elsewhere, by the queue."""
        if len(targets) == 1 and targets[0].endswith(f"@{self._domain}") and self._mailboxes:
            writing = asyncio.ensure_future(self._mailboxes.attempt(sender, targets[0], content))
            self._writing.add(writing)
            writing.add_done_callback(lambda done: self._written(done, then))
        else:
            listener.door.accept(
                Draft(content, sender, targets, normal=True), lambda answer: then(reply_for(answer))
            )

    def _written(self, writing: asyncio.Future[Outcome], then: Callable[[Reply], None]) -> None:
        self._writing.discard(writing)
        if writing.cancelled():
            return  # the service has ended: nobody is there to be answered
        problem = writing.exception()
        if problem is None:
            then(writing.result().reply)
        else:
            log.error("a delivery failed by a bug of outmail", exc_info=problem)
            then(Reply(451, "Internal error: come back later", "4.3.0"))


class Everything:
    """``--catch``: every sender and recipient is welcome, and nothing is delivered."""

    def mail(self, session: protocol.Server, sender: str) -> Reply | None:
        return FULL if session.peer.listener.full else None

    def rcpt(self, session: protocol.Server, address: str) -> Reply | None:
        return FULL if session.peer.listener.full else None


def _no_loop(content: bytes, targets: set[str]) -> None:
    """The header's length has been checked."""
    if splice.delivered_to(content) & targets:
        raise Refused("the message has been delivered here before: a loop", code="loop")
