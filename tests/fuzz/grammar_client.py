"""The client's side for `dialogue_grammar`: a scripted server that keeps a ledger of what it granted.

The server reads commands by a grammar of its own and answers at random: refusals, replies in several lines,
cut anywhere, 421, hanging up, garbage, replies to nothing, bytes behind STARTTLS. In the end each
recipient's outcome must be what the ledger says. Delivered: a 2xx to its final dot was said and heard.
Uncertain: the final dot went out, and no answer came back. Deferred or refused: nothing was granted. Nobody
is granted twice. In some sessions our own server takes the scripted server's place.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections import defaultdict
from random import Random
from typing import Any

from outmail.model import NEEDS_8BIT, NEEDS_UTF8, Copies, Delivery, Dsn, Leased, Reply
from outmail.smtp.client import (
    AheadRefused,
    Broken,
    Client,
    ClientSettings,
    CopyTrouble,
    Done,
    Dot,
    ProtocolError,
    Read,
    SessionFailed,
    StartTls,
    Take,
)
from outmail.smtp.server import Close, Deliver, Server, ServerSettings, Verify
from outmail.smtp.server import StartTls as ServerStartTls
from tests.fuzz.grammar import Desync

PASSWORD = "geheim-4711"
_ADDRESS = rb"(?:\"[^\"]+\"|[^<>\"\s\x00-\x1f]+)@[^<>\s\x00-\x1f]+"
_WORDS = rb"((?: [A-Z0-9]+(?:=[!-<>-~]+)?)*)"
_MAIL = re.compile(rb"MAIL FROM:<(|" + _ADDRESS + rb")>" + _WORDS)
_RCPT = re.compile(rb"RCPT TO:<(" + _ADDRESS + rb")>" + _WORDS)
_HELO = re.compile(rb"(EHLO|LHLO|HELO) me\.test")
_AUTH = re.compile(rb"AUTH (PLAIN|LOGIN|CRAM-MD5)(?: ([A-Za-z0-9+/=]+))?")

#: What a reply may be, by its stage: mostly right.
GOOD = {
    "banner": 220, "helo": 250, "tls": 220, "auth": 235, "mail": 250, "rcpt": 250, "data": 354, "dot": 250,
    "rset": 250, "quit": 221,
}  # fmt: skip
BAD = {
    "banner": (554, 421, 450, 250),
    "helo": (500, 502, 421, 550),
    "tls": (454, 502, 421, 250),
    "auth": (535, 454, 334, 421, 504),
    "mail": (550, 451, 421, 503, 552, 251, 530, 500),
    "rcpt": (550, 451, 452, 552, 421, 503, 251, 354),
    "data": (554, 451, 421, 503, 250),
    "dot": (554, 451, 452, 421, 552, 503, 251, 354, 550),
    "rset": (500, 421, 451),
    "quit": (421, 500),
}


def is_copy(address: str) -> bool:
    """True for the loopback copy's address: no recipient, and its token is a secret."""
    return address.startswith("loop+")


def meant(delivery: Delivery, recipients: list[str]) -> set[str]:
    """Whom this delivery may be sent to: its recipients, and one copy of its own."""
    copies = [address for address in recipients if is_copy(address)]
    if copies and (copies != recipients[-1:] or not copies[0].startswith(f"loop+{delivery.seq}.")):
        raise Desync(f"the copy of another, or not the last: {recipients}")
    return {r.address for r in delivery.recipients}.union(copies)


class Ledger:
    """Who was granted what, and up to which byte that had been said."""

    def __init__(self) -> None:
        #: (delivery, address) → (code, end in the stream of replies) of each answer to a final dot.
        self.dots: dict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
        #: Those whose final dot came.
        self.dotted: set[tuple[int, str]] = set()
        self.refused: set[tuple[int, str]] = set()
        self.commands = 0


class Scripted:
    """A server of its own mind. ``take`` gives what it says; ``closed``: it has hung up."""

    def __init__(self, chance: Random, lmtp: bool, by_content: dict[bytes, Delivery]) -> None:
        self.chance, self.lmtp, self.by_content = chance, lmtp, by_content
        self.ledger = Ledger()
        self.closed = self.lied = False
        #: It has thrown away what it owes an answer to.
        self.mute = False
        self.tls = False
        self.trouble = chance.choice((0.0, 0.02, 0.1, 0.3))
        self.extensions = self.offered()
        self.ahead = chance.choice(("fine", "fine", "fine", "refused", "dropped"))
        self._in = bytearray()
        self._out = bytearray()
        self._said = 0
        self._data = False
        self._login = 0
        self._envelope: tuple[str, list[str]] | None = None
        self.secret_clear = False
        self.answer("banner")

    def offered(self) -> list[str]:
        flip = self.chance.random
        found = (
            ["PIPELINING"] * (flip() < 0.8) + ["8BITMIME"] * (flip() < 0.8) + ["SMTPUTF8"] * (flip() < 0.7)
        )
        found += ["DSN"] * (flip() < 0.7) + [f"SIZE {self.chance.choice((0, 40, 100_000))}"] * (flip() < 0.7)
        found += ["STARTTLS"] * (flip() < 0.8) + ["ENHANCEDSTATUSCODES", "HELP", "X-ODD = 1"]
        found += [
            f"AUTH {self.chance.choice(('PLAIN LOGIN', 'LOGIN', 'CRAM-MD5', 'PLAIN', 'XOAUTH2', ''))}"
        ] * (flip() < 0.8)
        found += ["LIMITS RCPTMAX=2"] * (flip() < 0.1) + ["LIMITS MAILMAX=2"] * (flip() < 0.1)
        self.chance.shuffle(found)
        return found

    # -- saying ----------------------------------------------------------------------------------------------

    def take(self) -> bytes:
        out = bytes(self._out)
        self._out.clear()
        return out

    def say(self, code: int, lines: list[str] | None = None) -> int:
        """Returns where the reply ends in all that is said."""
        chance = self.chance
        if lines is None:
            enhanced = f"{code // 100}.0.{chance.randrange(9)} " if chance.random() < 0.5 else ""
            lines = [enhanced + "said"] * chance.choice((1, 1, 1, 1, 2, 4))
        end = "\r\n" if chance.random() < 0.97 else "\n"
        for line in lines[:-1]:
            self._put(f"{code}-{line}{end}".encode())
        self._put(
            (f"{code} {lines[-1]}" if chance.random() < 0.97 or len(lines) > 1 else f"{code}").encode()
            + end.encode()
        )
        if code == 421:
            self.closed = True
        return self._said

    def _put(self, data: bytes) -> None:
        self._out += data
        self._said += len(data)

    def answer(self, stage: str) -> int:
        """The code that was said; 0 when nothing was."""
        chance = self.chance
        if chance.random() >= self.trouble:
            self.say(GOOD[stage])
            return GOOD[stage]
        dice = chance.random()
        if dice < 0.8:
            code = chance.choice(BAD[stage])
            self.say(code)
            return code
        if dice < 0.9:  # gone, perhaps in the middle of a reply
            self._put(str(GOOD[stage]).encode()[: chance.randrange(4)])
            self.closed = True
        else:
            self.lie()
        return 0

    def lie(self) -> None:
        """What no client could make sense of."""
        self._put(
            self.chance.choice(
                (
                    b"nonsense\r\n",
                    b"999 x\r\n",
                    b"25 ok\r\n",
                    b"250-a\r\n251 b\r\n",
                    b"\xff\xfe\r\n",
                    b"x" * 3000,
                    b"100 go on\r\n",
                )
            )
        )
        self.closed = self.lied = True

    # -- hearing ---------------------------------------------------------------------------------------------

    def consume(self, data: bytes) -> None:
        if self.closed:
            return
        self._in += data
        while self._in and not self.closed:
            if self._data:
                if not self.content():
                    return
                continue
            line, found, _ = bytes(self._in).partition(b"\r\n")
            if not found:
                return
            del self._in[: len(line) + 2]
            self.ledger.commands += 1
            if b"\r" in line or b"\n" in line:
                raise Desync(f"a bare line end in a command: {line!r}")
            self.command(line)

    def command(self, line: bytes) -> None:
        if self._login:
            self.credentials(line)
        elif line == b"DATA":
            self.alone(line)
            self.data()
        elif line == b"RSET":
            self._envelope = None
            if self.answer("rset") // 100 != 2:
                self.closed = self.closed or self.chance.random() < 0.3
        elif line == b"QUIT":
            self.alone(line)
            self.answer("quit")
            self.closed = True
        elif line == b"STARTTLS":
            self.alone(line)
            self.starttls()
        elif match := _MAIL.fullmatch(line):
            self.mail(match[1].decode(), match[2])
        elif match := _RCPT.fullmatch(line):
            self.rcpt(match[1].decode(), match[2])
        elif match := _HELO.fullmatch(line):
            self.alone(line)
            self.helo(match[1])
        elif match := _AUTH.fullmatch(line):
            self.alone(line)
            self.login(match[1], match[2])
        else:
            raise Desync(f"this was sent as a command: {line[:200]!r}")

    def alone(self, line: bytes) -> None:
        if self._in:
            raise Desync(f"more was sent behind {line!r} before its answer: {bytes(self._in)[:100]!r}")

    def helo(self, verb: bytes) -> None:
        if (verb == b"LHLO") != self.lmtp:
            raise Desync(f"{verb!r} to the wrong kind of server")
        self._envelope = None
        if self.chance.random() < self.trouble:
            self.answer("helo")
            return
        extensions = [one for one in self.extensions if one != "STARTTLS" or not self.tls]
        self.pipelining = verb != b"HELO" and "PIPELINING" in extensions
        self.say(250, ["server.test", *(extensions if verb != b"HELO" else ())])

    def starttls(self) -> None:
        if self.answer("tls") == 220 and self.chance.random() < 0.15:
            self.say(250, ["somebody in the line"])
            self.closed = self.lied = True

    def handshake(self) -> None:
        """The shell shakes hands: only when nothing is unread on either side."""
        if self._out or self._in:
            raise Desync("a handshake with bytes in the line")
        self.tls, self._envelope = True, None

    def login(self, mechanism: bytes, initial: bytes | None) -> None:
        self._mechanism = mechanism
        if initial is not None:
            self.secret(initial)
            self.judge()
            return
        self._login = 1 if mechanism == b"CRAM-MD5" else 2
        self.say(
            334, [{b"CRAM-MD5": "PDEyMzRAc2VydmVyLnRlc3Q+", b"LOGIN": "VXNlcm5hbWU6"}.get(mechanism, "")]
        )

    def credentials(self, line: bytes) -> None:
        self.alone(line)
        self.secret(line)
        self._login -= 1
        if self._login:
            self.say(334, ["UGFzc3dvcmQ6"])
        else:
            self.judge()

    def judge(self) -> None:
        """334 asks for more."""
        self._login = int(self.answer("auth") == 334)

    def secret(self, line: bytes) -> None:
        b64decode(line, validate=True)
        if not self.tls:
            self.secret_clear = True

    def lockstep(self, line: str) -> None:
        if self._in and not self.pipelining:
            raise Desync(f"{line} and more was sent at once, and PIPELINING is not offered")

    def mail(self, sender: str, words: bytes) -> None:
        self.lockstep("MAIL")
        self.check_words(words)
        if self._envelope is not None:
            raise Desync("MAIL inside of a transaction")
        if self.answer("mail") // 100 == 2:
            self._envelope = (sender, [])

    def rcpt(self, address: str, words: bytes) -> None:
        self.lockstep("RCPT")
        self.check_words(words)
        if self._envelope is None and self.chance.random() < 0.9:
            self.say(503)
            return
        if self.answer("rcpt") // 100 == 2:
            if self._envelope is None:
                self._envelope = ("?", [])  # it takes recipients of a sender that it refused
            self._envelope[1].append(address)

    def check_words(self, words: bytes) -> None:
        names = [word.partition(b"=")[0].decode() for word in words.split()]
        known = {one.split()[0] for one in self.extensions}
        needed = {"SIZE": "SIZE", "BODY": "8BITMIME", "SMTPUTF8": "SMTPUTF8", "RET": "DSN", "ENVID": "DSN",
                  "NOTIFY": "DSN", "ORCPT": "DSN"}  # fmt: skip
        for name in names:
            if needed.get(name) not in known:
                raise Desync(f"{name} is not offered")
        if len(set(names)) < len(names):
            raise Desync(f"twice the same parameter: {words!r}")

    def data(self) -> None:
        envelope = self._envelope
        if (envelope is None or not envelope[1]) and self.chance.random() < 0.9:
            self.say(self.chance.choice((503, 554)))
            return
        if self.answer("data") == 354:
            self._data = True

    # -- content ---------------------------------------------------------------------------------------------

    def content(self) -> bool:
        if self._in.startswith(b".\r\n"):
            wire, skip = b"", 3
        else:
            end = self._in.find(b"\r\n.\r\n")
            if end < 0:
                return False
            wire, skip = bytes(self._in[: end + 2]), end + 5
        del self._in[:skip]
        self._data = False
        self.ledger.commands += 1
        text = b"\r\n".join(line[1:] if line.startswith(b".") else line for line in wire.split(b"\r\n"))
        sender, recipients = self._envelope or ("?", [])
        self._envelope = None
        if recipients and all(map(is_copy, recipients)):
            raise Desync("a copy without a recipient")
        if not recipients:  # DATA was granted all the same
            if text:
                raise Desync("content for nobody")
            self.answer("dot")
            return True
        delivery = self.by_content.get(text)
        if delivery is None:
            raise Desync(f"nobody's content: {text[:200]!r}")
        if sender != delivery.sender or not set(recipients) <= meant(delivery, recipients):
            raise Desync(f"the envelope of another: {sender} {recipients}")
        self.dots([(delivery.seq, address) for address in recipients])
        return True

    def dots(self, keys: list[tuple[int, str]]) -> None:
        ledger = self.ledger
        early = bool(self._in)
        ledger.dotted.update(keys)
        code = 0
        for i, key in enumerate(keys):
            if self.closed:
                return
            if not i or self.lmtp:
                code = self.answer("dot")
            if code:
                ledger.dots[key].append((code, self._said))
        if early and self.ahead != "fine":
            self.out_of_turn()

    def out_of_turn(self) -> None:
        """Servers that do not like what was sent behind the final dot."""
        if self.ahead == "dropped":
            self._in.clear()
            self.mute = True
            if self.chance.random() < 0.5:
                self.closed = True
            return
        while b"\r\n" in self._in and not self.closed:
            line = bytes(self._in).partition(b"\r\n")[0]
            del self._in[: len(line) + 2]
            self.ledger.commands += 1
            self.say(self.chance.choice((503, 503, 503, 421, 554)))

    def unasked(self) -> None:
        """A word that nobody asked for."""
        if self.closed:
            return
        if self.chance.random() < 0.5:
            self.say(421)
        else:
            self.say(250)
            self.closed = self.lied = True


class Ours:
    """Our own server in the place of the scripted one."""

    def __init__(self, chance: Random, lmtp: bool, by_content: dict[bytes, Delivery]) -> None:
        self.chance, self.lmtp, self.by_content = chance, lmtp, by_content
        self.ledger = Ledger()
        self.closed = self.lied = self.mute = False
        self.secret_clear = False
        self._said = 0
        self._out = bytearray()
        self._trouble = chance.choice((0.0, 0.05, 0.3))
        settings = ServerSettings(
            "server.test", lmtp=lmtp, size=chance.choice((40, 100_000)), recipients=chance.choice((1, 2, 50)),
            starttls=chance.random() < 0.7, auth=chance.random() < 0.8, auth_clear=True,
        )  # fmt: skip
        self.server = Server(settings, self)
        self._shaking = False
        self.hear()

    def mail(self, session: Server, sender: str) -> Reply | None:
        return self.no()

    def rcpt(self, session: Server, address: str) -> Reply | None:
        return self.no()

    def no(self) -> Reply | None:
        if self.chance.random() >= self._trouble:
            return None
        return self.chance.choice(
            (Reply(550, "no", "5.7.1"), Reply(451, "later", "4.3.0"), Reply(452, "full", "4.3.1"))
        )

    def hear(self) -> None:
        out = self.server.outgoing()
        self._out += out
        self._said += len(out)
        self.ledger.commands += out.count(b"\n")

    def take(self) -> bytes:
        out = bytes(self._out)
        self._out.clear()
        return out

    def consume(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            end = at + 1 + int(self.chance.random() * self.chance.choice((3, 60, 5000)))
            self.server.feed(data[at:end])
            at = end
            self.work()

    def work(self) -> None:
        self.hear()
        while self.server.requests:
            request = self.server.requests.popleft()
            if isinstance(request, Deliver):
                self.store(request)
            elif isinstance(request, Verify):
                if (request.user, request.password) != ("me", PASSWORD):
                    raise Desync(f"other credentials: {request}")
                self.server.authenticated("me" if self.chance.random() < 0.9 else None)
            elif isinstance(request, ServerStartTls):
                self._shaking = True
            elif isinstance(request, Close):
                self.closed = True
            self.hear()

    def store(self, request: Deliver) -> None:
        delivery = self.by_content.get(request.content)
        if delivery is None:
            raise Desync(f"nobody's content: {request.content[:200]!r}")
        if request.sender != delivery.sender or not set(request.recipients) <= meant(
            delivery, request.recipients
        ):
            raise Desync(f"the envelope of another: {request}")
        keys = [(delivery.seq, address) for address in request.recipients]
        self.ledger.dotted.update(keys)
        count = len(keys) if self.lmtp else 1
        replies = [
            Reply(250, "queued", "2.0.0")
            if self.chance.random() >= self._trouble
            else self.chance.choice((Reply(451, "later", "4.3.0"), Reply(554, "no", "5.6.0")))
            for _ in range(count)
        ]
        end = self._said
        for i, key in enumerate(keys):
            reply = replies[i if self.lmtp else 0]
            if not i or self.lmtp:
                end += len(f"{reply.code} {reply.enhanced} {reply.text}\r\n")
            self.ledger.dots[key].append((reply.code, end))
        self.server.answer(replies)

    def handshake(self) -> None:
        if not self._shaking:
            raise Desync("a handshake that the server does not know of")
        self._shaking = False
        self.server.encrypted()
        self.work()

    def unasked(self) -> None:
        if not self.server.closed:
            self.server.refuse(Reply(421, "shutting down", "4.3.2"))
            self.work()


class Drive:
    """The real client against one of them, driven as the shell drives it."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        flip = chance.random
        lmtp = flip() < 0.3
        self.settings = ClientSettings(
            "me.test", lmtp=lmtp, starttls=flip() < 0.3, user="me" if flip() < 0.3 else "", password=PASSWORD,
            may_clear=flip() < 0.6, pipelining=flip() < 0.9,
        )  # fmt: skip
        self.deliveries = [self.delivery(n) for n in range(chance.randrange(1, 7))]
        self.waiting = list(reversed(self.deliveries))
        by_content = {one.content: one for one in self.deliveries}
        kind = Scripted if flip() < 0.8 else Ours
        self.peer: Scripted | Ours = kind(chance, lmtp, by_content)
        self.client = Client(self.settings)
        self.client.ahead = flip() < 0.8
        #: Bytes of the server that are on their way, and how many have come.
        self.line = bytearray()
        self.heard = 0
        self.lost: Broken | None = None
        self.taken: list[Delivery] = []
        self.done: list[Delivery] = []
        self.granted: set[int] = set()
        self.breaks = chance.choice((0.0, 0.0, 0.02, 0.1))
        self.step = chance.choice((1, 5, 40, 4000, 4000))
        self.shook = False
        #: The line broke before the end of a content that nothing was sent behind.
        self.cut_dot = False

    def delivery(self, n: int) -> Delivery:
        chance = self.chance
        body = b"".join(chance.choice(BODY) for _ in range(chance.randrange(5)))
        needs = (NEEDS_8BIT if not body.isascii() else 0) | (
            NEEDS_UTF8 if (utf8 := chance.random() < 0.05) else 0
        )
        people = [
            Leased(i, chance.choice(NAMES).format(i) + f"@d{n}.test", 0, False, 0)
            for i in range(1, chance.choice((1, 1, 2, 3, 5, 12)) + 1)
        ]
        dsn = chance.choice(
            (
                None,
                None,
                Dsn("failure", "hdrs", "a+b=c"),
                Dsn("never"),
                Dsn(each={people[0].address: ("delay", "rfc822;x@y")}),
            )
        )
        sender = f"{'ü' if utf8 else 's'}{n}@s.test" if chance.random() < 0.9 or utf8 else ""
        asks_first = (lambda: True) if chance.random() < 0.5 else (lambda: False)
        copies = (
            Copies(f"loop+{n}.{{}}@loop.test".format, chance.random() < 0.3, asks_first)
            if chance.random() < 0.3
            else None
        )
        content = b"X-Token: %d\r\n\r\n" % n + body
        return Delivery(
            n,
            f"{n:026}",
            1,
            "r",
            sender,
            content,
            b"",
            needs,
            f"<{n}@x>",
            0,
            10**15,
            people,
            dsn=dsn,
            copies=copies,
        )

    # -- driving ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        flow = self.client.dialogue()
        answer: Any = None
        trouble: Broken | None = None
        try:
            while True:
                request = flow.throw(trouble) if trouble is not None else flow.send(answer)
                answer = trouble = None
                if isinstance(request, Read):
                    trouble = self.read()
                elif isinstance(request, Take):
                    answer = self.take(request.wait)
                    if answer is None and request.wait and self.lost is not None:
                        break
                elif isinstance(request, Dot):
                    answer = self.dot(request)
                    if answer is None:
                        trouble = Broken("lost while it waited")
                elif isinstance(request, Done):
                    self.finish(request.delivery)
                elif isinstance(request, AheadRefused):
                    self.client.ahead = False
                elif isinstance(request, CopyTrouble):
                    if request.delivery not in self.taken or request.delivery in self.done:
                        raise Desync("a copy of nothing in hand")
                elif isinstance(request, StartTls) and not self.shake():
                    break
        except (StopIteration, SessionFailed):
            pass
        finally:
            flow.close()
        self.check()

    def pull(self) -> None:
        self.line += self.peer.take()

    def read(self) -> Broken | None:
        """Send what is outgoing, and wait for a whole reply."""
        client, chance = self.client, self.chance
        out = b"".join(client.outgoing())
        if self.lost is not None:
            self.peer.consume(out)
            return self.lost
        if chance.random() < self.breaks:
            kept = chance.randrange(len(out) + 1) if chance.random() < 0.7 else len(out)
            self.peer.consume(out[:kept])
            self.cut_dot = kept < len(out) and out.endswith((b"\r\n.\r\n", b"\n.\r\n"))
            self.lost = Broken("connection lost", withheld=len(out) - kept, late=chance.random() < 0.3)
            return self.lost
        self.peer.consume(out)
        self.pull()
        while not client.heard:
            if not self.line:
                if not self.peer.closed and not self.peer.mute:
                    raise Desync("both sides wait")
                self.lost = Broken("closed" if self.peer.closed else "late", late=not self.peer.closed)
                return self.lost
            trouble = self.feed()
            if trouble is not None:
                self.lost = trouble
                return None if client.heard else trouble
        return None

    def feed(self) -> Broken | None:
        size = 1 + int(self.chance.random() * self.step)
        portion = bytes(self.line[:size])
        del self.line[:size]
        self.heard += len(portion)
        try:
            self.client.feed(portion)
        except ProtocolError as problem:
            return Broken(str(problem))
        return None

    def take(self, wait: bool) -> Delivery | None:
        if wait and self.chance.random() < 0.01:
            self.peer.unasked()
            self.pull()
            while self.line and self.lost is None:
                self.lost = self.feed()
        if self.lost is not None or not self.waiting or self.chance.random() < 0.05:
            return None
        self.taken.append(self.waiting.pop())
        return self.taken[-1]

    def dot(self, request: Dot) -> bool | None:
        if self.chance.random() < 0.02:
            return self.chance.choice((False, None))
        if self.chance.random() < 0.01:
            self.peer.unasked()
            self.pull()
            while self.line and self.lost is None:
                self.lost = self.feed()
            if self.lost is not None:
                return None
        self.granted.update(id(r) for r in request.recipients)
        return True

    def shake(self) -> bool:
        """False when it fails: what came before is no handshake."""
        if self.shook or not self.settings.starttls:
            raise Desync("a handshake out of its turn")
        self.shook = True
        if self.client.hearing:
            raise Desync("a handshake although more had come")
        if self.line:
            return False
        self.peer.handshake()
        self.pull()
        return True

    def finish(self, delivery: Delivery) -> None:
        if delivery in self.done or delivery not in self.taken:
            raise Desync("done twice, or never taken")
        self.done.append(delivery)

    # -- the ledger ------------------------------------------------------------------------------------------

    def check(self) -> None:
        if len(self.done) != len(self.taken):
            raise Desync(f"{len(self.taken)} taken and {len(self.done)} done")
        if self.peer.secret_clear and not self.settings.may_clear:
            raise Desync("credentials in clear")
        for delivery in self.taken:
            for recipient in delivery.recipients:
                self.check_outcome(delivery, recipient)
        for secret in (PASSWORD.encode(), b"loop+"):
            if any(secret in line for one in self.taken for _, _, line in one.transcript):
                raise Desync(f"{secret!r} is in the transcript")

    def check_outcome(self, delivery: Delivery, recipient: Leased) -> None:
        ledger, outcome = self.peer.ledger, recipient.outcome
        key = (delivery.seq, recipient.address)
        if outcome is None:
            raise Desync(f"{key} has no outcome")
        said = ledger.dots.get(key, [])
        heard = [code for code, end in said if end <= self.heard]
        yes = [code for code, _ in said if code // 100 == 2]
        kind, where = outcome.kind, f"{key}: {outcome} and {said} of {self.heard}"
        if len(yes) > 1:
            raise Desync(f"granted twice: {where}")
        if kind == "delivered" and [code for code in heard if code // 100 == 2] != yes[:1]:
            raise Desync(f"delivered and never granted: {where}")
        if kind == "delivered" and not yes:
            raise Desync(f"delivered without a grant: {where}")
        if kind in ("deferred", "refused") and yes:
            raise Desync(f"granted: {where}")
        if kind in ("delivered", "unknown") and id(recipient) not in self.granted:
            raise Desync(f"a dot without permission: {where}")
        copies = delivery.copies if kind == "delivered" and recipient.copy else None
        if copies and (delivery.seq, copies.address(recipient.copy)) not in ledger.dotted:
            raise Desync(f"its copy was not sent with it: {where}")
        if kind == "unknown" and heard and not self.peer.lied:
            raise Desync(f"an answer was heard: {where}")
        if kind == "unknown" and self.cut_dot and key not in ledger.dotted:
            raise Desync(f"uncertain, and its final dot never left: {where}")


NAMES = ("a{}", "b{}", "u+v{}", "x=y{}", "ü{}", "l" * 100 + "{}", '"q r{}"', "a{}", "b{}", "c{}")
BODY = (
    b"text\r\n",
    b".\r\n",
    b"..\r\n",
    b".a\r\n",
    b"\r\n",
    b"MAIL FROM:<inner@x.test>\r\n",
    b"QUIT\r\n",
    b"\xff\r\n",
    b"x" * 200 + b"\r\n",
)


def session(chance: Random) -> int:
    """One session; returns how many commands and replies it had. Raises `Desync`."""
    drive = Drive(chance)
    try:
        drive.run()
    except Desync as problem:
        scripts = (drive.client.greeting, *(delivery.transcript for delivery in drive.taken))
        lines = "\n".join(f"{who}: {line[:120]!r}" for script in scripts for _, who, line in script)
        peer = f"{type(drive.peer).__name__} {vars(drive.peer).get('extensions')}"
        raise Desync(f"{problem}\n{drive.settings} {peer}\n{lines}") from None
    return drive.peer.ledger.commands
