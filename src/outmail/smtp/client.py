"""The client's side of an SMTP or LMTP session, as a generator without I/O.

How to drive it: ``dialogue()`` yields requests and is resumed with their answers. `Read`: send what
`outgoing` returns, then give at least one more portion of bytes to `feed`. `StartTls`. `Take`: the next
delivery, or None. `Dot`: may the final dot be sent? `Done`: every recipient of the delivery has its outcome.
`AheadRefused`: send no envelope early to this server any more. `CopyTrouble`: the server does not take the
loopback copy as it was sent. I/O errors are thrown in as `Broken`.

Promises
  - With PIPELINING, MAIL, RCPT and DATA are sent together, and the envelope of the next message is sent
    *ahead*: right behind the final dot of this one (RFC 2920 §3.1). So a message costs one round trip. Two
    cursors are kept: what was sent, and what was answered.
  - Some servers refuse what is sent ahead, always or now and then. A 503, 500, 502 or 421 to it says nothing
    about the message: the session ends, the message is charged no attempt (scope ``session``), and
    `AheadRefused` is yielded. With ``ahead`` False nothing is sent ahead, and every reply has its usual
    meaning. Another 5xx to a MAIL that was sent ahead, to a server that has never accepted one: MAIL is sent
    again in its own turn, and that answer counts.
  - Every recipient gets exactly one outcome, by the first digit of its own reply. Unexpected codes are no
    error.
  - No final dot is sent without permission (`Dot`). A reply lost after the dot is the outcome *unknown*,
    before the dot *deferred*.
  - 421 at any point, a malformed reply, a reply to nothing, or any `Broken` ends the session; nothing more is
    sent on it. A reply that came before its command was sent answers nothing: if it were accepted, each
    following reply would be taken for the answer to the wrong command.
  - When TLS is required, nothing is sent in clear, not even credentials. Bytes that arrive before the
    handshake end the session.
  - A loopback copy (`Delivery.copies`) is one more RCPT, the last one. It is no recipient: the answer to it
    decides nothing about recipients. When a transaction with a copy is refused as a whole, that says nothing
    about the recipients either: it is sent again without the copy, and is charged no attempt. A session that
    ends because of the copy charges no attempt either.
  - Where the server refuses all recipients, the copy is not sent alone, not even empty. If DATA was sent
    together with RCPT and is granted then, only closing the connection delivers nothing. With
    `Copies.asks_first`, DATA waits for the answers to RCPT.
  - The transcript is kept with the delivery. Secrets are masked in it, also those that the server repeats. Of
    the content only the size is noted. ``greeting`` is the part before the first delivery, with remarks of
    `transport.smtp` about the connection.
Fails: `SessionFailed` has the outcome that ended the session; deliveries in hand were `Done` before.
Does not: connect, keep time, verify certificates (`transport.smtp` does), or try again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from typing import Any, Literal

from outmail.model import NEEDS_8BIT, NEEDS_UTF8, Copies, Delivery, Dsn, Leased, Outcome, Reply
from outmail.policy.loopback import APART
from outmail.policy.veil import Veil
from outmail.smtp import auth
from outmail.smtp.lines import stuffed
from outmail.smtp.reply import ProtocolError, ReplyReader, read

MAX_RECIPIENTS = 100
#: Characters of an original recipient (RFC 3461). As xtext an address can have three times its length.
MAX_ORIGINAL = 500
#: A longer envelope is not sent ahead. That would gain little, and servers buffer only a limited amount.
AHEAD_BYTES = 4096
#: How many bytes an envelope that was sent ahead can have.
_AHEAD_MOST = 32 * 1024
#: Replies to a command that came early, or of which the server has lost a part.
_OUT_OF_TURN = (503, 500, 502)


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What the dialogue must know of the relay. ``may_clear`` allows AUTH without TLS (on loopback, or by
    configuration). ``opportunistic``: STARTTLS where it is offered, else in clear.
    """

    hostname: str = "localhost"
    lmtp: bool = False
    encrypted: bool = False
    starttls: bool = False
    opportunistic: bool = False
    user: str = ""
    password: str = field(default="", repr=False)
    may_clear: bool = False
    pipelining: bool = True


@dataclass(frozen=True, slots=True)
class Read:
    """Send what is outgoing, then feed more bytes. ``stage`` names the step, for time-outs and people."""

    stage: str


@dataclass(frozen=True, slots=True)
class StartTls:
    """Do the TLS handshake now; resume when the connection is encrypted."""


@dataclass(frozen=True, slots=True)
class Take:
    """Give the next delivery, or None. With ``wait`` there is nothing else to do, so it may take a while."""

    wait: bool


@dataclass(slots=True)
class Dot:
    """May the final dot be sent for these recipients? True only when it is recorded."""

    delivery: Delivery
    recipients: list[Leased]


@dataclass(slots=True)
class Done:
    """Every recipient of this delivery has its outcome."""

    delivery: Delivery


@dataclass(slots=True)
class AheadRefused:
    """The server refuses what is sent ahead. ``reply`` is what it said."""

    reply: Reply


@dataclass(slots=True)
class CopyTrouble:
    """The server does not take the loopback copy of this delivery as it was sent; ``reply`` is what it said.
    ``kind``: it "refused" the copy; it refused the transaction "together" with the copy; it took the copy
    "alone".
    """

    delivery: Delivery
    reply: Reply
    kind: Literal["refused", "together", "alone"]


Request = Read | StartTls | Take | Dot | Done | AheadRefused | CopyTrouble
Flow = Generator[Request, Any, Any]


class Broken(Exception):
    """Thrown into the dialogue: the connection is lost, or too slow (``late``). The text is for people.
    ``withheld``: at least this many of the last outgoing bytes were not sent.
    """

    def __init__(self, text: str, *, late: bool = False, withheld: int = 0) -> None:
        super().__init__(text)
        self.late = late
        self.withheld = withheld


class SessionFailed(Exception):
    """The session cannot go on. ``outcome`` says why, with scope ``destination``."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(str(outcome.reply))
        self.outcome = outcome


class _Closing(Exception):
    """The server said 421, or refused RSET: the session is of no more use."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply


class _OutOfTurn(_Closing):
    """The server refused a command because it was sent ahead."""


class _CopyAlone(_Closing):
    """The server waits for content, and the loopback copy is the only recipient."""


@dataclass(slots=True)
class _Transaction:
    delivery: Delivery
    recipients: list[Leased]
    last: bool
    accepted: list[Leased] = field(default_factory=list)
    #: Its envelope was sent ahead and is not answered yet.
    ahead: bool = False
    dotted: bool = False
    #: The final dot has all its answers.
    answered: bool = False
    done: bool = False
    #: The reply to its MAIL that was sent ahead; MAIL is sent again in its own turn.
    early: Reply | None = None
    #: The loopback copy's address and its number among those of the delivery; 0 for none.
    copy: str = ""
    part: int = 0
    #: DATA waits for the answers to RCPT.
    asks_first: bool = False
    #: The answer to the copy's RCPT is being waited for; and the server took it.
    copying: bool = False
    copied: bool = False


_NOTHING_ASKED = Dsn()
#: In the place of the loopback copy's address in a transcript.
_VEILED = b"the loopback copy"
_WAIT, _NOWAIT = Take(True), Take(False)
_READS = {
    stage: Read(stage)
    for stage in ("banner", "ehlo", "tls", "auth", "mail", "rcpt", "data", "dot", "rset", "quit")
}


@lru_cache(512)
def by_digit(reply: Reply, scope: str, stage: str) -> Outcome:
    """The outcome that a reply means: 2xx delivered, 5xx refused, anything else deferred."""
    first = reply.code // 100
    kind = "delivered" if first == 2 else "refused" if first == 5 else "deferred"
    return Outcome(kind, scope, stage, reply)  # type: ignore[arg-type]


def _to_rcpt(reply: Reply) -> Outcome:
    """As `by_digit`, but 552 to RCPT is temporary (RFC 5321 §4.5.3.1.10)."""
    outcome = by_digit(reply, "recipient", "rcpt")
    return replace(outcome, kind="deferred") if reply.code == 552 else outcome


def _too_many(reply: Reply) -> bool:
    """True when the server takes no more recipients in this transaction. (Enhanced codes of other subjects
    are about the mailbox.)
    """
    return reply.code in (452, 552) and reply.enhanced[2:] in ("", "5.3")


def xtext(value: str) -> str:
    """xtext of RFC 3461 §4: printable ASCII except ``+`` and ``=`` stays, the rest becomes +HH."""
    return "".join(
        c if "!" <= c <= "~" and c not in "+=" else "".join(f"+{b:02X}" for b in c.encode()) for c in value
    )


class Client:
    """One session. Whoever drives it sets ``now`` (milliseconds since the session began, for the transcript)
    and ``ahead`` (whether the next envelope may be sent ahead).
    """

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self.now = 0
        self.ahead = True
        self.stage = "banner"
        self.extensions: dict[str, str] = {}
        self.encrypted = settings.encrypted
        self.pipelining = False
        self.greeting: list[tuple[int, str, bytes]] = []
        self.transactions = 0
        #: How many final dots had their answers awaited.
        self.finals = 0
        #: How many replies are still to come for what was sent. The first one is the banner.
        self._due = 1
        self._reader = ReplyReader()
        self._out: list[bytes] = []
        self._script = self.greeting
        self._dirty = False
        #: True when the server has accepted an envelope that was sent ahead.
        self._took_ahead = False
        self._most_recipients = MAX_RECIPIENTS
        self._most_mails = 0
        self._backlog: Iterator[_Transaction] = iter(())
        self._veil: Veil | None = None

    # -- the seam to the shell -------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Bytes from the server. Raises `ProtocolError`; throw that into the dialogue as `Broken`."""
        self._reader.feed(data)
        # for STARTTLS, `_starttls` checks this itself
        if len(self._reader.ready) > self._due and self.stage != "tls":
            self._check_unasked()

    def remark(self, text: str) -> None:
        """What the shell has to say of the line, for the transcript."""
        self._note("C", f"({text})".encode())

    @property
    def heard(self) -> bool:
        """True when a whole reply has arrived: the dialogue can go on."""
        return bool(self._reader.ready)

    @property
    def hearing(self) -> bool:
        """True when a part of a reply has arrived."""
        return self._reader.buffered

    def _check_unasked(self) -> None:
        """Raise if a reply has come that answers nothing. Only 421 may come at any time (RFC 5321 §3.8).
        Replies that were asked for stay.
        """
        ready = self._reader.ready
        unasked = ready[self._due][0]
        closing = unasked.code == 421
        while len(ready) > self._due + closing:
            ready.pop()
        if not closing:
            raise ProtocolError(f"the relay sent a reply to nothing: {unasked}")

    def outgoing(self) -> list[bytes]:
        """Bytes for the server since the last call, in order."""
        out, self._out = self._out, []
        return out

    def dialogue(self) -> Flow:
        """The whole session: greeting, deliveries until `Take` gives None, QUIT."""
        try:
            yield from self._greet()
        except _Closing as closing:
            raise SessionFailed(self._fault(closing.reply)) from None
        except Broken as broken:
            raise SessionFailed(self._fault(Reply(0, str(broken)))) from None
        yield from self._deliveries()
        yield from self._quit()

    # -- greeting --------------------------------------------------------------------------------------------

    def _greet(self) -> Flow:
        reply = yield from self._read("banner")
        self._require(reply, "banner")
        yield from self._ehlo()
        if not self.encrypted and (
            self.settings.starttls or (self.settings.opportunistic and "STARTTLS" in self.extensions)
        ):
            yield from self._starttls()
        if self.settings.user:
            yield from self._auth()
        self.pipelining = self.settings.pipelining and "PIPELINING" in self.extensions

    def _ehlo(self) -> Flow:
        verb = "LHLO" if self.settings.lmtp else "EHLO"
        reply, lines = yield from self._ask(f"{verb} {self.settings.hostname}", "ehlo")
        if (
            reply.code // 100 == 5
            and not self.settings.lmtp
            and not self.settings.starttls
            and not self.settings.user
        ):
            reply, lines = yield from self._ask(f"HELO {self.settings.hostname}", "ehlo")
            lines = lines[:1]
        self._require(reply, "ehlo")
        self.extensions = _extensions(lines[1:])
        self._most_recipients = min(MAX_RECIPIENTS, self._limit("RCPTMAX") or MAX_RECIPIENTS)
        self._most_mails = self._limit("MAILMAX")

    def _starttls(self) -> Flow:
        if "STARTTLS" not in self.extensions:
            raise SessionFailed(
                self._fatal("tls", "the relay does not offer STARTTLS, and TLS is required: nothing was sent")
            )
        reply, _ = yield from self._ask("STARTTLS", "tls")
        self._require(reply, "tls")
        if self._reader.buffered:
            raise SessionFailed(
                self._fatal(
                    "tls",
                    "bytes arrived before the TLS handshake: somebody may be tampering with the connection",
                )
            )
        yield StartTls()
        self.encrypted = True
        yield from self._ehlo()

    def _auth(self) -> Flow:
        safe = self.encrypted or self.settings.may_clear
        if not safe:
            raise SessionFailed(
                self._fatal(
                    "auth", "no credentials are sent without TLS: use smtps://, or allow it explicitly"
                )
            )
        offered = frozenset(self.extensions.get("AUTH", "").upper().split())
        mechanism = auth.choose(offered, safe=self.encrypted)
        if mechanism is None:
            raise SessionFailed(
                self._fatal(
                    "auth",
                    f"no common way to authenticate; the relay offers {' '.join(sorted(offered)) or 'none'}",
                )
            )
        self._veil = Veil()
        self._veil.add_login(self.settings.user, self.settings.password)
        first = auth.initial(mechanism, self.settings.user, self.settings.password)
        reply, lines = yield from self._ask(f"AUTH {mechanism}", "auth", secret=first, spaced=True)
        step = 0
        while reply.code == 334 and step < 4:
            try:
                response = auth.answer(
                    mechanism,
                    step,
                    lines[0][4:].decode("ascii", "replace"),
                    self.settings.user,
                    self.settings.password,
                )
            except ValueError as problem:
                raise SessionFailed(self._fatal("auth", str(problem))) from None
            reply, lines = yield from self._ask("", "auth", secret=response)
            step += 1
        if reply.code // 100 != 2:
            raise SessionFailed(Outcome("deferred", "destination", "auth", reply, fault=True))

    # -- deliveries ------------------------------------------------------------------------------------------

    def _deliveries(self) -> Flow:
        previous: _Transaction | None = None
        while True:
            current: _Transaction | None = None
            if self._most_mails and self.transactions >= self._most_mails:
                if previous is not None:
                    yield from self._guarded(self._final(previous), previous, None)
                yield from self._leave_the_rest()
                return
            if previous is None or (self.pipelining and self.ahead):
                current = yield from self._next(wait=previous is None)
                if current is None and previous is None:
                    return
            commands = self._commands(current) if current is not None else []
            if previous is not None and (current is None or _is_long(commands)):
                yield from self._guarded(self._final(previous), previous, None)
                previous = None
            if current is None:
                continue
            current.ahead = previous is not None
            yield from self._guarded(self._envelope(current, commands, previous), previous, current)
            previous = None
            if current.accepted:
                yield from self._content(current)
                previous = current
            elif current.early is None and current.last:
                yield Done(current.delivery)

    def _leave_the_rest(self) -> Flow:
        """The server takes no more messages in this session. The rest of the delivery in hand goes into
        another one, and is charged no attempt.
        """
        rest = next(self._backlog, None)
        if rest is not None:
            rest.delivery.all(
                Outcome(
                    "deferred",
                    "session",
                    "mail",
                    Reply(0, f"the relay takes {self._most_mails} messages in a connection"),
                )
            )
            yield Done(rest.delivery)

    def _next(self, wait: bool) -> Flow:
        """The next transaction: some recipients of the delivery in hand, or of a new one that the server can
        take.
        """
        while True:
            piece = next(self._backlog, None)
            if piece is not None:
                return piece
            delivery = yield _WAIT if wait else _NOWAIT
            if delivery is None:
                return None
            delivery.transcript = []
            self._gate(delivery)
            open_ = [r for r in delivery.recipients if r.outcome is None]
            if not open_:
                yield Done(delivery)
                continue
            size = self._most_recipients
            if delivery.copies is not None:
                size = self._beside_copy(delivery.copies)
            self._backlog = _slices(delivery, open_, size)

    def _beside_copy(self, copies: Copies) -> int:
        """How many recipients a transaction may have that has a copy, too."""
        if self._most_recipients == 1:
            copies.refused = Reply(0, "the relay takes one recipient in a transaction")
            return 1
        return self._most_recipients - 1

    def _guarded(self, flow: Flow, previous: _Transaction | None, current: _Transaction | None) -> Flow:
        """Run a part of the dialogue. If the session ends in it, all recipients in hand get outcomes
        first.
        """
        trouble: _Closing | Broken
        withheld = 0
        try:
            return (yield from flow)
        except _Closing as closing:
            trouble, reply = closing, closing.reply
        except Broken as broken:
            trouble, reply = broken, Reply(0, str(broken))
            withheld = broken.withheld + sum(map(len, self._out))
        ahead = current is not None and current.ahead
        if previous is not None and not previous.answered and withheld > (_AHEAD_MOST if ahead else 0):
            previous.dotted = False  # its final dot has not left this process
        early = current is not None and current.early is not None
        worn = isinstance(trouble, _Closing) and (
            self.stage == "rset" or (self.stage == "mail" and self.finals > 0)
        )
        copying = current is not None and current.copying
        free = ahead or early or worn or copying or isinstance(trouble, _CopyAlone)
        outcome = Outcome("deferred", "session" if free else "destination", self.stage, reply)
        if current is not None and previous is not None and ahead:
            for recipient in current.recipients:
                recipient.outcome = None  # whatever was said in between does not count
            if self._blames_ahead(trouble, previous):
                yield AheadRefused(reply)
        if early:  # it was refused when sent ahead, and could not be sent again in its turn
            yield AheadRefused(reply)
        if current is not None and copying and not isinstance(trouble, _OutOfTurn):
            yield self._copy_refused(current, reply)
        if current is not None and isinstance(trouble, _CopyAlone):
            yield CopyTrouble(current.delivery, reply, "alone")
        if previous is not None and not previous.done:
            yield from self._abandon(
                previous,
                reply,
                outcome if previous.dotted else Outcome("deferred", "destination", "dot", reply),
            )
        if current is not None and (previous is None or current.delivery is not previous.delivery):
            yield from self._abandon(current, reply, outcome)
        raise SessionFailed(outcome)

    def _blames_ahead(self, trouble: _Closing | Broken, previous: _Transaction) -> bool:
        """Did the session end because something was sent ahead? It did if that was refused or never answered,
        or if the server has never accepted any.

        421 to the final dot is about that message. 421 to MAIL, from a server that has accepted MAIL ahead
        before, is about the length of the session.
        """
        if isinstance(trouble, _OutOfTurn):
            return True
        if isinstance(trouble, _Closing):
            return previous.answered and not self._took_ahead
        return not self._took_ahead or (previous.answered and trouble.late)

    def _abandon(self, transaction: _Transaction, reply: Reply, outcome: Outcome) -> Flow:
        if transaction.dotted:
            unknown = Outcome("unknown", "message", "dot", reply)
            for recipient in transaction.accepted:
                recipient.outcome = recipient.outcome or unknown
        transaction.delivery.transcript.append((self.now, "S", f"({reply})".encode()))
        transaction.delivery.all(outcome)
        yield Done(transaction.delivery)

    def _envelope(self, current: _Transaction, commands: list[str], previous: _Transaction | None) -> Flow:
        """Send MAIL, RCPT and DATA and read the answers. Fills ``accepted`` when the content may follow."""
        self.transactions += 1
        script = current.delivery.transcript
        reset = self._dirty
        self._dirty = True
        asks = not self.pipelining or (current.copy != "" and current.asks_first)
        if self.pipelining:
            if reset:
                self._send("RSET", script)
            for command in commands:
                self._send(command, script)
            if current.copy:
                self._send_copy(current)
            if not asks:
                self._send("DATA", script)
            if previous is not None:
                yield from self._final(previous, True)
        self._script = script
        if reset:
            if not self.pipelining:
                self._send("RSET", script)
            answer = yield from self._read("rset", current.ahead)
            if answer.code // 100 != 2:  # the old transaction may still be open at the server
                self.stage = "rset"
                raise _Closing(answer)
        if not self.pipelining:
            self._send(commands[0], script)
        mail = yield from self._read("mail", current.ahead)
        again = current.ahead and not self._took_ahead and mail.code // 100 == 5
        if current.early is not None and mail.code // 100 == 2:
            yield AheadRefused(current.early)
        if mail.code // 100 != 2:
            outcome = by_digit(mail, "message", "mail")
            for recipient in current.recipients:
                recipient.outcome = outcome
            if not self.pipelining:
                return
        surplus: list[Leased] = []
        for i, recipient in enumerate(current.recipients, 1):
            if not self.pipelining:
                self._send(commands[i], script)
            # After a refused MAIL, 503 is the correct answer to RCPT; it is also the correct answer to DATA
            # when no recipient was accepted.
            reply = yield from self._read("rcpt", current.ahead and mail.code // 100 == 2)
            if reply.code // 100 == 2:
                current.accepted.append(recipient)
            elif recipient.outcome is None:
                recipient.outcome = _to_rcpt(reply)
                if _too_many(reply):
                    surplus.append(recipient)
        if current.copy:
            yield from self._copy(current, mail)
        if surplus and current.accepted and mail.code // 100 == 2:
            self._take_up_again(current, surplus)
        refused = mail if mail.code // 100 != 2 and current.accepted else None
        if mail.code // 100 != 2:
            current.accepted.clear()
        if asks and current.accepted:
            self._ahead_taken(current)
            self._send("DATA", script)
        if not asks or current.accepted:
            yield from self._data(current, refused)
        current.early = None
        if again:
            self._ask_again(current, mail)
        else:
            self._ahead_taken(current)

    def _ahead_taken(self, current: _Transaction) -> None:
        """What was sent ahead of this transaction has all its answers."""
        self._took_ahead = self._took_ahead or current.ahead
        current.ahead = False

    def _copy(self, current: _Transaction, mail: Reply) -> Flow:
        """The answer to the loopback copy's RCPT. Without PIPELINING it is asked only where somebody else was
        accepted.
        """
        taken = mail.code // 100 == 2
        if not self.pipelining:
            if not current.accepted:
                return
            self._send_copy(current)
        current.copying = True
        reply = yield from self._read("rcpt", current.ahead and taken)
        current.copying = False
        at, way, line = self._script[-1]
        self._script[-1] = at, way, line.replace(current.copy.encode(), _VEILED)
        current.copied = reply.code // 100 == 2
        if taken and not current.copied:
            yield self._copy_refused(current, reply)

    def _send_copy(self, current: _Transaction) -> None:
        """Nobody who reads the transcript can use the token: it is not in there. And nobody is told that the
        copy could not be delivered.
        """
        never = " NOTIFY=NEVER" if "DSN" in self.extensions else ""
        self._out.append(f"RCPT TO:<{current.copy}>{never}\r\n".encode())
        self._due += 1
        current.delivery.transcript.append((self.now, "C", b"RCPT TO:<%s>" % _VEILED))

    def _copy_refused(
        self, current: _Transaction, reply: Reply, kind: Literal["refused", "together"] = "refused"
    ) -> CopyTrouble:
        if current.delivery.copies is not None:
            current.delivery.copies.refused = reply
        return CopyTrouble(current.delivery, reply, kind)

    def _refused_together(self, current: _Transaction, outcome: Outcome) -> Flow:
        """A transaction with a copy was refused as a whole: was it because of the copy? It goes again without
        one; what is refused for good then, is. Returns the outcome that its recipients have.
        """
        yield self._copy_refused(current, outcome.reply, "together")
        if outcome.kind != "refused":
            return outcome
        reply = outcome.reply
        why = f"refused together with the loopback copy, so it is tried without one: {reply.text}"
        return Outcome("deferred", "session", outcome.stage, Reply(reply.code, why, reply.enhanced))

    def _ask_again(self, current: _Transaction, mail: Reply) -> None:
        """MAIL was refused by a server that has never accepted one ahead. Some servers answer everything that
        comes early with 550 or 554.
        """
        for recipient in current.recipients:
            recipient.outcome = None
        current.early = mail
        again = _Transaction(current.delivery, current.recipients, current.last, early=mail)
        self._backlog = chain((again,), self._backlog)

    def _take_up_again(self, current: _Transaction, surplus: list[Leased]) -> None:
        """Recipients for whom the server had no room go into the next transactions of the same session; each
        of these takes at least one.
        """
        for recipient in surplus:
            recipient.outcome = None
        self._backlog = chain(
            _slices(current.delivery, surplus, len(current.accepted), last=current.last), self._backlog
        )
        current.last = False

    def _data(self, current: _Transaction, refused: Reply | None) -> Flow:
        """``refused`` is the answer to MAIL, when recipients were accepted all the same."""
        reply = yield from self._read("data", current.ahead and bool(current.accepted))
        if reply.code // 100 == 3:
            self.stage = "data"
            if refused is not None and current.ahead:
                raise _OutOfTurn(refused)
            if refused is not None:
                raise Broken(
                    "the relay refused the sender but accepted recipients and DATA: nothing was sent"
                )
            if current.copied and not current.accepted:
                self._ahead_taken(current)
                raise _CopyAlone(
                    Reply(
                        0,
                        "the relay refused all recipients and accepted the loopback copy: nothing was sent,"
                        " and the session ended",
                    )
                )
            if not current.accepted:
                # RFC 2920 §3.1: DATA was accepted although no recipient was. End it with an empty message.
                self._send(".", current.delivery.transcript)
                yield from self._read("data")
            return
        outcome = by_digit(reply, "message", "data")
        if outcome.kind == "delivered":
            outcome = Outcome("deferred", "message", "data", reply)
        if current.copied and current.accepted:
            outcome = yield from self._refused_together(current, outcome)
        for recipient in current.accepted:
            recipient.outcome = outcome
        current.accepted.clear()

    def _content(self, current: _Transaction) -> Flow:
        """Send content and final dot, after the dot is recorded."""
        if current.copied:
            for recipient in current.accepted:
                recipient.copy = current.part
        why = "the final dot could not be recorded, so it was not sent"
        try:
            granted = yield Dot(current.delivery, current.accepted)
        except Broken as broken:  # while waiting for permission
            granted, why = False, str(broken)
        if not granted:
            outcome = Outcome("deferred", "destination", "dot", Reply(0, why))
            current.delivery.all(outcome)
            yield Done(current.delivery)
            raise SessionFailed(outcome)
        current.dotted = True
        self._dirty = False
        content = current.delivery.content
        self._out.append(stuffed(content))
        self._out.append(b".\r\n")
        self._due += len(current.accepted) + current.copied if self.settings.lmtp else 1
        current.delivery.transcript.append(
            (self.now, "C", b"(%d bytes of content and the final dot)" % len(content))
        )

    def _final(self, transaction: _Transaction, ahead: bool = False) -> Flow:
        """Read the answer to the final dot: one, or with LMTP one for each accepted recipient (RFC 2033
        §4.2).

        ``ahead``: the next envelope was sent behind the dot.
        """
        self._script = transaction.delivery.transcript
        self.finals += 1
        ends: _Closing | None = None
        for i, recipient in enumerate(transaction.accepted):
            if not i or self.settings.lmtp:
                try:
                    reply = yield from self._read("dot", ahead)
                    outcome = by_digit(reply, "recipient" if i else "message", "dot")
                except _Closing as closing:
                    # with LMTP this answers one recipient; the others have answers of their own
                    ends = closing
                    early = isinstance(closing, _OutOfTurn)
                    outcome = Outcome("deferred", "session" if early else "message", "dot", closing.reply)
                if transaction.copied and not self.settings.lmtp and outcome.kind != "delivered":
                    outcome = yield from self._refused_together(transaction, outcome)
            recipient.outcome = outcome
        if transaction.copied and self.settings.lmtp and ends is None:
            ends = yield from self._copys_own(transaction, ahead)
        if ends is not None:
            raise ends
        transaction.answered = True
        if transaction.last:
            transaction.done = True
            yield Done(transaction.delivery)

    def _copys_own(self, transaction: _Transaction, ahead: bool) -> Flow:
        """LMTP: the copy's own answer to the final dot. Returns what ends the session, or None."""
        ends: _Closing | None = None
        try:
            reply = yield from self._read("dot", ahead)
        except _Closing as closing:
            ends, reply = closing, closing.reply
        if reply.code // 100 != 2:
            if transaction.delivery.copies is not None:
                transaction.delivery.copies.sent.pop(transaction.part, None)
            yield self._copy_refused(transaction, reply)
        return ends

    def _quit(self) -> Flow:
        self._script = self.greeting
        self._send("QUIT", self.greeting)
        try:
            yield from self._read("quit")
        except (Broken, _Closing):
            pass  # everything was answered before; how the server ends the session changes nothing

    # -- small parts -----------------------------------------------------------------------------------------

    def _commands(self, current: _Transaction) -> list[str]:
        """MAIL and RCPT, with the parameters that the server offers and the message needs."""
        delivery, offered = current.delivery, self.extensions
        if delivery.copies is not None and delivery.copies.refused is None:
            delivery.copies.made += 1
            apart = self.settings.lmtp or delivery.copies.by_id
            current.part = delivery.copies.made | (APART if apart else 0)
            current.copy = delivery.copies.address(current.part)
            current.asks_first = delivery.copies.asks_first()
        words = [f"MAIL FROM:<{delivery.sender}>"]
        if "SIZE" in offered:
            words.append(f"SIZE={len(delivery.content)}")
        if delivery.needs & NEEDS_8BIT and "8BITMIME" in offered:
            words.append("BODY=8BITMIME")
        if "SMTPUTF8" in offered and (
            delivery.needs & NEEDS_UTF8 or not "".join([r.address for r in current.recipients]).isascii()
        ):
            words.append("SMTPUTF8")
        dsn = delivery.dsn if "DSN" in offered else None
        if dsn and dsn.ret:
            words.append(f"RET={dsn.ret.upper()}")
        if dsn and dsn.envid:
            words.append(f"ENVID={xtext(dsn.envid)}")
        dsn = dsn or _NOTHING_ASKED
        return [
            " ".join(words),
            *[_rcpt(r.address, *dsn.each.get(r.address, (dsn.notify, ""))) for r in current.recipients],
        ]

    def _gate(self, delivery: Delivery) -> None:
        """Refuse here what this server cannot take, with the code that it would have used."""
        offered = self.extensions
        limit = offered.get("SIZE", "")
        refusal = None
        if limit.isdecimal() and 0 < int(limit) < len(delivery.content):
            refusal = Reply(
                552, f"the message has {len(delivery.content)} bytes, the relay takes {limit}", "5.3.4"
            )
        elif delivery.needs & NEEDS_8BIT and "8BITMIME" not in offered:
            refusal = Reply(554, "the message is 8-bit and the relay takes 7-bit mail only", "5.6.3")
        elif delivery.needs & NEEDS_UTF8 and "SMTPUTF8" not in offered:
            refusal = Reply(550, "the sender needs SMTPUTF8, which the relay does not offer", "5.6.7")
        if refusal is not None:
            delivery.all(Outcome("refused", "message", "mail", refusal))
        elif "SMTPUTF8" not in offered:
            for recipient in delivery.recipients:
                if not recipient.address.isascii():
                    reply = Reply(550, "the address needs SMTPUTF8, which the relay does not offer", "5.6.7")
                    recipient.outcome = Outcome("refused", "recipient", "rcpt", reply)

    def _limit(self, wanted: str) -> int:
        """A number from the server's LIMITS (RFC 9422), or 0."""
        for word in self.extensions.get("LIMITS", "").upper().split():
            name, _, value = word.partition("=")
            if name == wanted and value.isdecimal():
                return int(value)
        return 0

    def _ask(self, command: str, stage: str, *, secret: bytes | None = None, spaced: bool = False) -> Flow:
        if secret is None:
            self._send(command, self._script)
        else:
            self._out.append(command.encode() + (b" " if spaced else b"") + secret + b"\r\n")
            self._due += 1
            if self._veil is not None:
                self._veil.add_said(secret)
            self._note("C", (command + " ****").strip().encode())
        return (yield from self._read_lines(stage))

    def _send(self, command: str, script: list[tuple[int, str, bytes]]) -> None:
        line = command.encode()
        self._out.append(line + b"\r\n")
        self._due += 1
        script.append((self.now, "C", line))

    def _read(self, stage: str, ahead: bool = False) -> Flow:
        """The next reply. ``ahead``: it answers what was sent ahead, or fails to do so because of that."""
        got = self._reader.pop()
        while got is None:
            self.stage = stage
            yield _READS[stage]
            got = self._reader.pop()
        self._due -= 1
        reply, lines = got
        if self._veil is not None and (hidden := [self._veil.over_bytes(line) for line in lines]) != lines:
            reply, lines = read(*hidden), hidden
        self._script.append((self.now, "S", lines[0] if len(lines) == 1 else b"\n".join(lines)))
        if reply.code == 421:
            self.stage = stage
            raise _Closing(reply)
        if ahead and reply.code in _OUT_OF_TURN:
            self.stage = stage
            raise _OutOfTurn(reply)
        return reply

    def _read_lines(self, stage: str) -> Flow:
        reply = yield from self._read(stage)
        return reply, self._script[-1][2].split(b"\n")

    def _require(self, reply: Reply, stage: str) -> None:
        if reply.code // 100 != 2:
            raise SessionFailed(Outcome("deferred", "destination", stage, reply, fault=True))

    def _fault(self, reply: Reply) -> Outcome:
        return Outcome("deferred", "destination", self.stage, reply, fault=True)

    def _fatal(self, stage: str, text: str) -> Outcome:
        return Outcome("deferred", "destination", stage, Reply(0, text), fault=True)

    def _note(self, direction: str, line: bytes) -> None:
        self._script.append((self.now, direction, line))


def _is_long(commands: list[str]) -> bool:
    """True when the envelope is too long to be sent ahead."""
    return len(commands) > 8 and sum(map(len, commands)) > AHEAD_BYTES


def _extensions(lines: list[bytes]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        word, _, rest = line[4:].decode("ascii", "replace").partition(" ")
        if word.upper().startswith("AUTH="):  # an old spelling that is still in use
            word, rest = "AUTH", word[5:] + " " + rest
        name = word.upper()
        found[name] = f"{found[name]} {rest}".strip() if name == "AUTH" and name in found else rest.strip()
    return found


def _rcpt(address: str, notify: str, original: str) -> str:
    """RCPT with the requests for notifications. The original recipient is the one that the client named, else
    the recipient itself; one that is longer than servers must take is left out.
    """
    if notify and not original and address.isascii():
        original = f"rfc822;{xtext(address)}"
    if len(original) > MAX_ORIGINAL:
        original = ""
    return (
        f"RCPT TO:<{address}>"
        + (f" NOTIFY={notify.upper()}" if notify else "")
        + (f" ORCPT={original}" if original else "")
    )


def _slices(
    delivery: Delivery, recipients: list[Leased], size: int, *, last: bool = True
) -> Iterator[_Transaction]:
    """``last``: these are the last recipients of the delivery."""
    if len(recipients) <= size:
        return iter((_Transaction(delivery, recipients, last),))
    starts = range(0, len(recipients), size)
    return iter(
        [
            _Transaction(delivery, recipients[start : start + size], last and start + size >= len(recipients))
            for start in starts
        ]
    )


__all__ = [
    "AheadRefused",
    "Broken",
    "Client",
    "ClientSettings",
    "CopyTrouble",
    "Done",
    "Dot",
    "ProtocolError",
    "Read",
    "SessionFailed",
    "StartTls",
    "Take",
    "stuffed",
]
