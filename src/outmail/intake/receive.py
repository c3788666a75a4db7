"""The policy of the receiving server: whose mail is accepted, and where it goes.

Promises: relaying is refused at RCPT (550 5.7.1), an unknown user at RCPT (550 5.1.1). Aliases are expanded
when the mail comes in; each target is a recipient of its own in the queue. Over LMTP a plain user's mailbox
is written before the answer, and every recipient gets its own answer. A message that has our own Delivered-To
is refused as a loop. No mail is accepted first and bounced later because a user does not exist.
Fails: as replies. Does not: write mailboxes (`transport.mailbox` does), or know where the queue is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

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
    """Accepts mail for local domains only, unless the client may relay (``networks``)."""

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
        #: LMTP deliveries that are running.
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
            line.listener.throttle.say(logging.ERROR, "aliases", "%s: %s", address, problem)
            return Reply(451, "The aliases are in disorder: come back later", "4.3.5")

    # taking
    # --------------------------------------------------------------------------------------------------------

    def targets(self, address: str) -> list[str]:
        """The addresses to which the mail of an accepted recipient goes."""
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
        """SMTP: one message in the queue for all targets. LMTP: an answer for each recipient."""
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
            listener.throttle.say(logging.ERROR, "aliases", "%s", problem)
            then([Reply(451, "The aliases are in disorder: come back later", "4.3.5")] * times)
            return
        if not lmtp:
            # a user who was removed after RCPT stays a recipient, so that its failure is recorded
            reached = [target for address, found in targets.items() for target in found or [address]]
            unique = list(dict.fromkeys(reached))
            listener.door.accept(
                Draft(content, request.sender, unique, id=id, normal=True, trace=trace),
                lambda answer: then([reply_for(answer)]),
            )
            return
        copies = Copies([targets[address] for address in request.recipients], self._is_mailbox)
        self._each(listener, request.sender, trace + content, copies, then)

    def _each(
        self,
        listener: Listener,
        sender: str,
        content: bytes,
        copies: Copies,
        then: Callable[[Sequence[Reply]], None],
    ) -> None:
        awaited = len(copies.alone) + bool(copies.queued)
        answers: dict[str, Reply] = {}

        def answered(what: str, reply: Reply) -> None:
            answers[what] = reply
            if len(answers) == awaited:
                then(copies.replies(answers))

        if not awaited:
            then(copies.replies(answers))
        if copies.queued:
            listener.door.accept(
                Draft(content, sender, list(copies.queued), normal=True),
                lambda answer: answered(QUEUE, reply_for(answer)),
            )
        for target in copies.alone:
            self._write(sender, target, content, partial(answered, target))

    def _is_mailbox(self, found: Sequence[str]) -> bool:
        """True when the target is one plain user, whose mailbox is written before the answer."""
        return self._mailboxes is not None and len(found) == 1 and found[0].endswith(f"@{self._domain}")

    def _write(self, sender: str, target: str, content: bytes, then: Callable[[Reply], None]) -> None:
        assert self._mailboxes is not None
        writing = asyncio.ensure_future(self._mailboxes.attempt(sender, target, content))
        self._writing.add(writing)
        writing.add_done_callback(lambda done: self._written(done, then))

    def _written(self, writing: asyncio.Future[Outcome], then: Callable[[Reply], None]) -> None:
        self._writing.discard(writing)
        if writing.cancelled():
            return  # the service has ended: nobody waits for an answer
        problem = writing.exception()
        if problem is None:
            then(writing.result().reply)
        else:
            log.error("a delivery failed because of a bug of outmail", exc_info=problem)
            then(Reply(451, "Internal error: come back later", "4.3.0"))


#: The key, in `replies`, of the answer about the message in the queue.
QUEUE = ""


class Copies:
    """Who gets a copy of a message that came by LMTP: each target once, whichever recipients lead to it.

    ``found``: the targets of each recipient. ``alone``: users who are recipients themselves; their mailboxes
    are written before the answer. ``queued``: all other targets, which get one message in the queue.
    """

    def __init__(self, found: Sequence[Sequence[str]], is_mailbox: Callable[[Sequence[str]], bool]) -> None:
        self._found = found
        self.alone = dict.fromkeys(targets[0] for targets in found if is_mailbox(targets))
        self.queued = dict.fromkeys(
            target for targets in found for target in targets if target not in self.alone
        )

    def replies(self, answers: Mapping[str, Reply]) -> list[Reply]:
        """The reply for each recipient. ``answers`` has one reply for each of ``alone``, and one for
        `QUEUE`.
        """
        return [self._reply(targets, answers) for targets in self._found]

    def _reply(self, targets: Sequence[str], answers: Mapping[str, Reply]) -> Reply:
        if not targets:
            return UNKNOWN  # it was removed after RCPT
        if any(target in self.queued for target in targets):
            return answers[QUEUE]
        if len(targets) == 1:
            return answers[targets[0]]
        # not the worst reply of the members: the client tries each failed one again anyway, and would send to
        # the others twice
        return Reply(250, "delivered to its members as recipients", "2.0.0")


class Everything:
    """``--catch``: accept every sender and recipient, and deliver nothing."""

    def mail(self, session: protocol.Server, sender: str) -> Reply | None:
        return FULL if session.peer.listener.full else None

    def rcpt(self, session: protocol.Server, address: str) -> Reply | None:
        return FULL if session.peer.listener.full else None


def _no_loop(content: bytes, targets: set[str]) -> None:
    """Raise `Refused` when the message was delivered here before. The length of the header has been
    checked.
    """
    if splice.delivered_to(content) & targets:
        raise Refused("the message has been delivered here before: a loop", code="loop")
