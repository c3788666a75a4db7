"""The server's side for `dialogue_grammar`: random command streams, and a model that knows the answers.

The generator writes commands and knows what each of them means. The model, a second description of the same
rules that reads no bytes, says which replies are due. The stream is cut anywhere and fed. The replies, and
the messages that are handed on, must be those of the model, one by one.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from outmail.model import Reply
from outmail.smtp.server import Close, Deliver, Server, ServerSettings, StartTls, Verify
from tests.fuzz.grammar import Desync, replies_of

ORIGIN = "origin.test"
HOST = "server.test"


@dataclass(frozen=True)
class Path:
    """An address as it is written, and what it means: `mailbox`, or the code that refuses it.

    ``shaped``: between brackets it looks like a path; ``plain``: without brackets it does.
    """

    text: bytes
    mailbox: str = ""
    code: int = 0
    utf8: bool = False
    bare: bool = False
    shaped: bool = True
    plain: bool = True


LONG = "l" * 200 + "@x.test"
PATHS = [
    Path(b"a@x.test", "a@x.test"),
    Path(b"b.c+d@y.test", "b.c+d@y.test"),
    Path(b"no@x.test", "no@x.test"),
    Path(b"later@x.test", "later@x.test"),
    Path(LONG.encode(), LONG),
    Path(b"SRS0=ab=cd=x.test=u@y.test", "SRS0=ab=cd=x.test=u@y.test"),
    Path(b'"q r"@x.test', '"q r"@x.test', plain=False),
    Path(b'"q>r@"@x.test', '"q>r@"@x.test', plain=False),
    Path(b"u@[127.0.0.1]", "u@[127.0.0.1]"),
    Path(b"@a.test,@b.test:c@x.test", "c@x.test"),
    Path("ü@x.test".encode(), "ü@x.test", utf8=True),
    Path("a@bücher.test".encode(), "a@xn--bcher-kva.test", utf8=True),
    Path(b"root", "root@" + ORIGIN, bare=True),
    Path(b"John", "John@" + ORIGIN, bare=True),
    Path(b"a@", code=501),
    Path(b"@x.test", code=501),
    Path(b"a@x..test", code=501),
    Path(b"a@-x.test", code=501),
    Path(b"a..b@x.test", code=501),
    Path(b"a\x01b@x.test", code=501),
    Path(b"\xff@x.test", code=501),
    Path(b"x" * 260 + b"@x.test", code=501),
    Path(b"a b@x.test", code=501, shaped=False, plain=False),
    Path(b"a>b@x.test", code=501, shaped=False, plain=False),
]
NULL = Path(b"", "")
GOOD = PATHS[:6]

#: Parameter → code that refuses it, 0 for none. 501 is said before the address is looked at.
MAIL_WORDS = [
    (b"SIZE=10", 0), (b"size=9", 0), (b"BODY=8BITMIME", 0), (b"body=7bit", 0), (b"SMTPUTF8", 0),
    (b"RET=FULL", 0), (b"ENVID=ab+2Bc", 0), (b"AUTH=<>", 0),
    (b"SIZE=99999999", 552), (b"SIZE=x", 555), (b"FOO=1", 555), (b"BODY=9BIT", 555), (b"SMTPUTF8=1", 555),
    (b"ENVID=+0A", 501), (b"X=", -501), (b"=1", -501), (b"\xfc=1", -501),
]  # fmt: skip
RCPT_WORDS = [
    (b"NOTIFY=NEVER", 0), (b"notify=success,DELAY", 0), (b"ORCPT=rfc822;a@x.test", 0),
    (b"NOTIFY=NEVER,DELAY", 555), (b"ORCPT=a@x.test", 555), (b"BODY=7BIT", 555), (b"Y=", -501),
]  # fmt: skip
JUNK = [
    b"", b".", b"..", b"Subject: not a command", b"x y z", b"\xff\xfe", b"MAILFROM:<a@x.test>",
    b"EHLO\tme", b"DATA\t", b"250 OK", b"*", b"AUTH\tPLAIN",
]  # fmt: skip
HALF = [
    b"MAIL",
    b"RCPT",
    b"MAIL FROM",
    b"MAIL FROM <a@x.test>",
    b"RCPT TO <a@x.test>",
    b"mail x",
    b"RCPT FROM:<a@x>",
]
KNOWN_ONLY = [b"EXPN x", b"TURN", b"ETRN x", b"SEND FROM:<a@x.test>", b"saml", b"SOML"]
BEFORE_TLS = (b"EHLO", b"LHLO", b"NOOP", b"STARTTLS", b"QUIT", b"HELP", b"GET", b"POST")
SMUGGLED = (
    b"\n.\r\n",
    b"\r\n.\n",
    b"\n.\n",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r.\r",
    b"\r\r\n.\r\n\n",
    b"\r\n.\r\r\n",
)
INNER = b"MAIL FROM:<smuggled@x.test>\r\nRCPT TO:<smuggled@x.test>\r\nDATA\r\nsmuggled\r\n"


class Anyone:
    """Says no to the addresses that begin with ``no``, later to those with ``later``."""

    def mail(self, session: Server, sender: str) -> Reply | None:
        return verdict(sender)

    def rcpt(self, session: Server, address: str) -> Reply | None:
        return verdict(address)


def verdict(address: str) -> Reply | None:
    if address.startswith("no@"):
        return Reply(550, "no", "5.7.1")
    return Reply(450, "later", "4.7.1") if address.startswith("later@") else None


@dataclass(frozen=True)
class Login:
    """What is asked of the shell, and what it answers."""

    user: str
    password: str
    good: bool
    looked: bool


@dataclass
class Model:
    """What a session has come to, and all that is due from it."""

    settings: ServerSettings
    local: bool
    normalise: bool
    tls: bool
    chance: Random
    helo: bool = False
    extended: bool = False
    user: str = ""
    envelope: Deliver | None = None
    errors: int = 0
    guesses: int = 0
    closed: bool = False
    #: The codes that each reply may have.
    due: list[tuple[int, ...]] = field(default_factory=list)
    delivered: list[Deliver] = field(default_factory=list)
    #: What the shell is to answer to each `Deliver` and `Verify`.
    answers: deque[Any] = field(default_factory=deque)

    def say(self, *codes: int) -> None:
        self.due.append(codes)

    def error(self, *codes: int) -> None:
        self.say(*codes)
        self.errors += 1
        if self.errors >= self.settings.max_errors:
            self.fatal(421)

    def fatal(self, *codes: int) -> None:
        self.say(*codes)
        self.closed = True

    def may_auth(self) -> bool:
        return self.settings.auth and (self.tls or self.settings.auth_clear)


class Talk:
    """One random session: the bytes, where they may and must be cut, and the model of it."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        flip = chance.random
        lmtp = flip() < 0.3
        starttls = flip() < 0.4
        self.settings = ServerSettings(
            HOST,
            ORIGIN if flip() < 0.7 else "",
            lmtp=lmtp,
            size=chance.choice((60, 300, 4000)),
            recipients=chance.choice((1, 3, 10)),
            starttls=starttls,
            require_tls=starttls and flip() < 0.3,
            auth=flip() < 0.5,
            auth_clear=flip() < 0.6,
            require_auth=flip() < 0.1,
            max_errors=chance.choice((3, 8, 20, 20)),
        )
        self.model = Model(self.settings, flip() < 0.5, flip() < 0.4, flip() < 0.2, chance, due=[(220,)])
        self.stream = bytearray()
        #: Where each unit ends, and how many replies are due by then.
        self.ends: list[int] = [0]
        self.counts: list[int] = [1]
        #: Positions where the stream is cut for certain, or never; and where the shell hangs up.
        self.cuts: set[int] = set()
        self.whole: set[int] = set()
        self.refused_at = -1
        self.tls_begins = self.model.tls

    def write(self) -> None:
        for _ in range(self.chance.randrange(4, 40)):
            self.unit()
            self.ends.append(len(self.stream))
            self.counts.append(len(self.model.due))
            if self.model.closed:
                if self.chance.random() < 0.5:
                    self.stream += INNER  # nobody is there to read it
                return
        if self.chance.random() < 0.1:
            self.cuts.add(len(self.stream))
            self.refused_at = len(self.stream)
            self.model.fatal(421)
            self.stream += INNER

    # -- choosing --------------------------------------------------------------------------------------------

    def unit(self) -> None:
        """The next command: mostly the one that fits."""
        model, dice = self.model, self.chance.random()
        if dice < 0.12:
            self.chance.choice(_ODD)(self)
        elif not model.helo:
            self.helo()
        elif model.settings.require_tls and not model.tls and dice < 0.8:
            self.starttls()
        elif model.envelope is None:
            self.chance.choice(_IDLE)(self)
        elif dice < 0.55 and len(model.envelope.recipients) < 12:
            self.rcpt()
        elif dice < 0.9:
            self.data()
        else:
            self.chance.choice(_IDLE)(self)

    def line(self, text: bytes) -> bool:
        """Write a command line; False when something about the line itself was answered."""
        model, dice = self.model, self.chance.random()
        if dice < 0.985:
            self.stream += text + b"\r\n"
            return True
        if dice < 0.99:
            self.stream += text + b"\n"
            if model.normalise:
                return True
            model.fatal(500)
        elif dice < 0.995:
            at = self.chance.randrange(len(text) + 1)
            self.stream += text[:at] + self.chance.choice((b"\r", b"\0")) + text[at:] + b"\r\n"
            model.fatal(500)
        else:
            self.stream += text + b" " + b"x" * 13_000 + b"\r\n"
            model.fatal(421)
        return False

    def command(self, text: bytes) -> bool:
        """A command line that gets its own answer; False when it has one already."""
        model = self.model
        if self.chance.random() < 0.2:
            verb, space, rest = text.partition(b" ")
            text = (verb.lower() if self.chance.random() < 0.5 else verb.title()) + space + rest
        if not self.line(text):
            return False
        if model.settings.require_tls and not model.tls and text.partition(b" ")[0].upper() not in BEFORE_TLS:
            model.error(530)
            return False
        return True

    # -- commands --------------------------------------------------------------------------------------------

    def helo(self) -> None:
        model, settings = self.model, self.settings
        right = b"LHLO" if settings.lmtp else self.chance.choice((b"EHLO", b"EHLO", b"EHLO", b"HELO"))
        verb = right if self.chance.random() < 0.95 else self.chance.choice((b"EHLO", b"HELO", b"LHLO"))
        name = (
            b"me.test"
            if self.chance.random() < 0.93
            else self.chance.choice((b"", b"a b", b"\xfc", b"h" * 256))
        )
        if not self.command(verb + b" " + name):
            return
        if (verb == b"LHLO") != settings.lmtp:
            model.error(500)
        elif name != b"me.test":
            model.error(501)
        else:
            model.helo, model.extended, model.envelope = True, verb != b"HELO", None
            model.say(250)

    def path(self, null: bool) -> tuple[Path, bytes, bool]:
        """An address, how it is written, and whether that has the shape of a path."""
        dice = self.chance.random()
        found = NULL if dice < 0.05 and null else self.chance.choice(GOOD if dice < 0.75 else PATHS)
        if found.text and self.chance.random() < 0.1:
            return found, found.text, found.plain and self.model.local
        return found, b"<" + found.text + b">", found.shaped

    def words(self, known: list[tuple[bytes, int]]) -> tuple[bytes, list[tuple[bytes, int]]]:
        chosen = [self.chance.choice(known)] if self.chance.random() < 0.3 else []
        if chosen and self.chance.random() < 0.3:
            chosen.append(self.chance.choice(known))
        return b"".join(b" " + word for word, _ in chosen), chosen

    def parameters(self, words: list[tuple[bytes, int]]) -> int:
        """The code that refuses them; 0 for none. Negative: said before anything else."""
        names = [word.partition(b"=")[0].upper() for word, _ in words]
        if any(code == -501 for _, code in words) or len(set(names)) < len(names):
            return -501
        return next((code for _, code in words if code), 0)

    def address(self, found: Path, utf8: bool) -> tuple[str, int]:
        """What it means here, or the code that refuses it."""
        if found.code:
            return "", found.code
        if found.utf8 and not utf8:
            return "", 553
        if found.bare and not (self.model.local and self.settings.origin):
            return "", 501
        return found.mailbox, 0

    def mail(self) -> None:
        model = self.model
        found, written, shaped = self.path(null=True)
        tail, words = self.words(MAIL_WORDS)
        space = b" " if self.chance.random() < 0.1 else b""
        if not self.command(b"MAIL FROM:" + space + written + tail):
            return
        refused = self.parameters(words)
        utf8 = any(word == b"SMTPUTF8" for word, _ in words)
        mailbox, problem = self.address(found, utf8)
        if not model.helo:
            model.error(503)
        elif model.settings.require_auth and not model.user:
            model.error(530)
        elif model.envelope is not None:
            model.error(503)
        elif not shaped or refused == -501:
            model.error(501)
        elif refused or problem:
            model.error(refused or problem)
        elif (no := verdict(mailbox)) is not None:
            model.error(no.code)
        else:
            model.envelope = Deliver(mailbox, [], b"", smtputf8=utf8)
            for word, _ in words:
                if word == b"RET=FULL":
                    model.envelope.ret = "full"
                elif word.startswith(b"ENVID"):
                    model.envelope.envid = "ab+c"
            model.say(250)

    def rcpt(self) -> None:
        model = self.model
        found, written, shaped = self.path(null=False)
        tail, words = self.words(RCPT_WORDS)
        if not self.command(b"RCPT TO:" + written + tail):
            return
        envelope, refused = model.envelope, self.parameters(words)
        if envelope is None:
            model.error(503)
            return
        mailbox, problem = self.address(found, envelope.smtputf8)
        if not shaped or refused == -501:
            model.error(501)
        elif len(envelope.recipients) >= model.settings.recipients:
            model.say(452)
        elif refused or problem:
            model.error(refused or problem)
        elif (no := verdict(mailbox)) is not None:
            model.error(no.code)
        else:
            envelope.recipients.append(mailbox)
            given = [word.partition(b"=") for word, _ in words]
            notify = [value.decode().lower() for name, _, value in given if name.upper() == b"NOTIFY"]
            original = [value.decode() for name, _, value in given if name == b"ORCPT"]
            envelope.notify.append(notify[0] if notify else "")
            envelope.originals.append(original[0] if original else "")
            model.say(250)

    def data(self) -> None:
        model = self.model
        wrong = self.chance.random() < 0.03
        if not self.command(b"DATA x" if wrong else b"DATA"):
            return
        if wrong:
            model.error(501)
        elif model.envelope is None:
            model.error(503)
        elif not model.envelope.recipients:
            model.error(503 if model.settings.lmtp else 554)
        else:
            model.say(354)
            self.content(model.envelope)

    # -- content ---------------------------------------------------------------------------------------------

    def content(self, envelope: Deliver) -> None:
        raw = self.body()
        lines = raw.split(b"\r\n")
        wire = b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines)
        if not raw:
            wire = b""
        bare = False
        if self.chance.random() < 0.15:  # what some servers take for the end
            at = self.chance.randrange(len(wire) + 1)
            wire = _without_end(wire[:at] + self.chance.choice(SMUGGLED) + INNER + wire[at:])
            bare = True
        self.stream += wire + (b".\r\n" if not wire or wire.endswith(b"\r\n") else b"\r\n.\r\n")
        if wire and not wire.endswith(b"\r\n"):
            wire += b"\r\n"
        self.judge(envelope, wire, bare or _is_bare(wire))

    def judge(self, envelope: Deliver, wire: bytes, bare: bool) -> None:
        """What becomes of the content. Where two rules refuse it, either may be named."""
        model, size = self.model, self.settings.size
        meant = _meant(wire) if bare else _unstuffed(wire)
        codes: set[int] = set()
        if bare and not model.normalise:
            codes.add(554)
        if len(meant) > size or (bare and len(wire) > size):
            codes.add(552)
        if b"\0" in wire and (len(meant) <= size or not bare):
            codes.add(554)
        certain = (bare and not model.normalise) or len(meant) > size or b"\0" in wire
        model.envelope = None
        if certain:
            model.errors += 1
            for _ in range(len(envelope.recipients) if model.settings.lmtp else 1):
                model.say(*codes)
            if model.errors >= model.settings.max_errors:
                model.fatal(421)
            return
        self.deliver(replace(envelope, content=meant))

    def deliver(self, message: Deliver) -> None:
        model = self.model
        count = len(message.recipients) if model.settings.lmtp else 1
        replies = [self.chance.choice(ANSWERS) for _ in range(count)]
        model.delivered.append(message)
        model.answers.append(replies)
        for reply in replies:
            model.say(reply.code)

    def body(self) -> bytes:
        chance, size = self.chance, self.settings.size
        dice = chance.random()
        if dice < 0.05:
            return b""
        if dice < 0.08:  # longer than it may be, in dots or not
            return (b".\r\n" if chance.random() < 0.5 else b"x\r\n") * (size + chance.randrange(2500))
        if dice < 0.12:  # at the edge
            return b"y" * max(0, size - 2 + chance.randrange(-1, 2)) + b"\r\n"
        lines = [chance.choice(LINES) for _ in range(chance.randrange(1, 6))]
        return b"\r\n".join(lines) + b"\r\n"

    # -- the rest --------------------------------------------------------------------------------------------

    def simple(self, text: bytes, code: int, *, error: bool = False) -> None:
        if self.command(text):
            (self.model.error if error else self.model.say)(code)

    def rset(self) -> None:
        wrong = self.chance.random() < 0.2
        if self.command(b"RSET x" if wrong else b"RSET"):
            if wrong:
                self.model.error(501)
            else:
                self.model.envelope = None
                self.model.say(250)

    def noop(self) -> None:
        self.simple(self.chance.choice((b"NOOP", b"NOOP x y", b"NOOP ")), 250)

    def help(self) -> None:
        self.simple(self.chance.choice((b"HELP", b"HELP MAIL")), 214)

    def vrfy(self) -> None:
        if self.chance.random() < 0.5:
            self.simple(b"VRFY a", 252)
        else:
            self.simple(b"VRFY", 501, error=True)

    def quit(self) -> None:
        if self.chance.random() < 0.5:
            self.simple(b"QUIT x", 501, error=True)
        elif self.command(b"QUIT"):
            self.model.fatal(221)

    def junk(self) -> None:
        dice = self.chance.random()
        if dice < 0.7:
            self.simple(self.chance.choice(JUNK), 500, error=True)
        elif dice < 0.85:
            self.simple(self.chance.choice(HALF), 501, error=True)
        elif dice < 0.95:
            self.simple(self.chance.choice(KNOWN_ONLY), 502, error=True)
        elif dice < 0.98:
            if self.command(self.chance.choice((b"GET / HTTP/1.1", b"POST /"))):
                self.model.fatal(421)
        elif self.command(b"BDAT 20 LAST"):
            self.model.fatal(421)
            self.stream += INNER

    def starttls(self) -> None:
        model = self.model
        wrong = self.chance.random() < 0.1
        if not self.command(b"STARTTLS x" if wrong else b"STARTTLS"):
            return
        if not model.settings.starttls:
            model.error(502)
        elif model.tls:
            model.error(503)
        elif wrong:
            model.error(501)
        elif self.chance.random() < 0.15:  # somebody in the line sends more before the handshake
            self.whole.add(len(self.stream))
            self.stream += INNER
            model.fatal(421)
        else:
            self.cuts.add(len(self.stream))
            model.say(220)
            model.tls, model.helo, model.extended, model.user, model.envelope = True, False, False, "", None

    def auth(self) -> None:
        model, chance = self.model, self.chance
        dice = chance.random()
        if dice < 0.1:
            text, code = chance.choice(((b"AUTH", 501), (b"AUTH CRAM-MD5", 504), (b"AUTH PLAIN a b", 504)))
        else:
            text, code = chance.choice((b"AUTH PLAIN", b"AUTH LOGIN", b"AUTH plain")), 0
        first = b""
        if not code and chance.random() < 0.5:
            first = self.secret(b"PLAIN" in text.upper())
            text += b" " + first
        if not self.command(text):
            return
        if code == 501:
            model.error(501)
        elif not model.settings.auth or not model.extended:
            model.error(503)
        elif not model.may_auth():
            model.error(538)
        elif model.user or model.envelope is not None:
            model.error(503)
        elif code:
            model.error(code)
        else:
            self.login(b"PLAIN" in text.upper(), first)

    def secret(self, plain: bool) -> bytes:
        """Something to answer with, and it is known by its bytes what it is worth."""
        if self.chance.random() < 0.2:
            return self.chance.choice((b"*", b"!!!!", b"MAIL", b"abc"))
        return self.chance.choice(PLAIN if plain else (USER, GOOD_WORD, BAD_WORD))

    def login(self, plain: bool, first: bytes) -> None:
        """The lines of the exchange; what the next line is depends on what the last one was."""
        model, given = self.model, []
        line = first
        while True:
            if not line:
                model.say(334)
                line = self.secret(plain)
                dice = self.chance.random()
                if dice < 0.01:
                    self.stream += b"A" * 13_000 + b"\r\n"
                    model.fatal(421)
                    return
                self.stream += line + b"\r\n"
            if line in (b"*", b"!!!!", b"abc"):
                model.error(501)
                return
            given.append(line)
            if plain or len(given) == 2:
                break
            line = b""
        if not plain:
            self.verify(b64decode(given[0]), b64decode(given[1]))
        elif given[0] in PLAIN[:3]:
            self.verify(*b64decode(given[0]).split(b"\0")[1:])
        else:
            model.error(535)

    def verify(self, user: bytes, password: bytes) -> None:
        model, good = self.model, password == b"right"
        looked = self.chance.random() < 0.9
        model.answers.append(Login(user.decode(), password.decode(), good, looked))
        if not looked:
            model.error(454)
            return
        if good:
            model.user = "me"
            model.say(235)
            return
        model.guesses += 1
        model.error(535)
        if model.guesses >= 3 and not model.closed:
            model.fatal(421)


_ODD = (Talk.junk, Talk.junk, Talk.rset, Talk.noop, Talk.help, Talk.vrfy, Talk.quit, Talk.starttls, Talk.auth,
        Talk.mail, Talk.rcpt, Talk.data, Talk.helo)  # fmt: skip
_IDLE = (Talk.mail,) * 8 + (Talk.auth, Talk.noop, Talk.rset, Talk.starttls, Talk.helo)
LINES = (
    b"Subject: x", b"", b".", b"..", b".a", b"MAIL FROM:<inner@x.test>", b"QUIT", b"DATA", b"\xff\xfe",
    b"a\0b", b"x" * 70, b"RSET", b"220 h", b"STARTTLS", *(b"text",) * 12,
)  # fmt: skip
ANSWERS = (Reply(250, "queued", "2.0.0"),) * 6 + (
    Reply(451, "later", "4.3.0"),
    Reply(554, "no", "5.6.0"),
    Reply(452, "full", "4.3.1"),
)
#: The right words, two wrong ones, and what is refused at once.
PLAIN = tuple(
    b64encode(words)
    for words in (
        b"\0me\0right", b"\0me\0wrong", b"me\0me\0wrong", b"\0\0x", b"x\0me\0right", b"none", b"\0\xff\0x",
    )
)  # fmt: skip
USER, GOOD_WORD, BAD_WORD = b64encode(b"me"), b64encode(b"right"), b64encode(b"wrong")


def _is_bare(wire: bytes) -> bool:
    rest = wire.replace(b"\r\n", b"")
    return b"\r" in rest or b"\n" in rest


def _without_end(wire: bytes) -> bytes:
    """No real end of content inside: that would be one, and no attack."""
    while b"\r\n.\r\n" in wire or wire.startswith(b".\r\n"):
        wire = wire.replace(b"\r\n.\r\n", b"\r\n,\r\n")
        wire = b"," + wire[1:] if wire.startswith(b".\r\n") else wire
    return wire


def _unstuffed(wire: bytes) -> bytes:
    return b"\r\n".join(line[1:] if line.startswith(b".") else line for line in wire.split(b"\r\n"))


def _meant(wire: bytes) -> bytes:
    """Line ends mended: a bare LF ends a line, a bare CR is a space, a line of one dot is none."""
    text = wire.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    lines = [line for line in text.split(b"\n") if line != b"."]
    return b"\r\n".join(line[1:] if line.startswith(b".") else line for line in lines)


# -- playing it ----------------------------------------------------------------------------------------------


class Play:
    """The real server, fed in portions, as the shell drives it."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        model = talk.model
        self.server = Server(
            talk.settings, Anyone(), tls=talk.tls_begins, normalise=model.normalise, local=model.local
        )
        self.answers = model.answers
        #: How many replies came.
        self.said = 0
        self.got: list[Deliver] = []
        self.open: list[Deliver | Verify] = []
        self.over = False
        self.hear()

    def run(self) -> None:
        talk, chance = self.talk, self.talk.chance
        for at, end in portions(talk, chance):
            if self.open and (at in talk.cuts or chance.random() < 0.7):
                self.answer()
            if at == talk.refused_at:
                self.refuse()
            self.server.feed(bytes(talk.stream[at:end]))
            self.collect()
            if not self.open and not 0 <= talk.refused_at < end:
                self.check_pace(end)
        self.answer()
        if len(talk.stream) == talk.refused_at:
            self.refuse()
        self.check_end()

    def hear(self) -> None:
        """Replies come whole, and in the order of the commands."""
        out = self.server.outgoing()
        if not out:
            return
        due, talk = self.talk.model.due, self.talk
        for code in replies_of(out):
            if self.said >= len(due) or code not in due[self.said]:
                k = bisect_right(talk.counts, self.said)
                command = bytes(talk.stream[talk.ends[k - 1] : talk.ends[k]]) if k < len(talk.ends) else b""
                wanted = due[self.said] if self.said < len(due) else "none"
                raise Desync(f"reply {self.said} is {code}, and due is {wanted}: {command[:300]!r}")
            self.said += 1

    def collect(self) -> None:
        """Replies and requests, as the shell takes them."""
        self.hear()
        while self.server.requests:
            request = self.server.requests.popleft()
            if isinstance(request, Close):
                self.over = True
            elif isinstance(request, StartTls):
                self.server.encrypted()
                self.hear()
            else:
                self.open.append(request)

    def answer(self) -> None:
        """What is stored, or looked up, is ready."""
        while self.open:
            request = self.open.pop()
            if not self.answers:
                raise Desync(f"nobody asked for {request!r}")
            given = self.answers.popleft()
            if self.server.closed:
                return
            if isinstance(request, Deliver) and isinstance(given, list):
                self.got.append(request)
                self.server.answer(given)
            elif isinstance(given, Login) and request == Verify(given.user, given.password):
                good = given.good and given.looked
                self.server.authenticated("me" if good else None, looked=given.looked)
            else:
                raise Desync(f"{request!r} instead of {given!r}")
            self.collect()

    def refuse(self) -> None:
        """The shell hangs up (idle, shutting down)."""
        if not self.server.closed:
            self.server.refuse(Reply(421, "shutting down", "4.3.2"))
            self.collect()

    def check_pace(self, fed: int) -> None:
        """Whatever was fed whole has its replies, and nothing that was not."""
        talk = self.talk
        k = bisect_right(talk.ends, fed) - 1
        most = talk.counts[min(k + 1, len(talk.counts) - 1)]
        if not talk.counts[k] <= self.said <= most:
            raise Desync(f"{self.said} replies to {k} commands, not {talk.counts[k]} to {most}")

    def check_end(self) -> None:
        model = self.talk.model
        if self.said != len(model.due):
            raise Desync(f"{self.said} replies, not {len(model.due)}")
        if self.got != model.delivered:
            raise Desync(f"handed on: {self.got}, not {model.delivered}")
        if self.over != model.closed or self.server.closed != model.closed:
            raise Desync(f"closed: {self.over}, not {model.closed}")
        if self.server.outgoing():
            raise Desync("something is said after the end")


def portions(talk: Talk, chance: Random) -> list[tuple[int, int]]:
    """The stream in pieces of any length."""
    total = len(talk.stream)
    if total < 2000:
        longest = chance.choice((1, 4, 20, 80, 300, 5000, 5000))
    else:
        longest = chance.choice((400, 9000, 100_000))
    found, at = [], 0
    must = sorted(talk.cuts)
    while at < total:
        end = at + 1 + int(chance.random() * longest)
        while must and must[0] <= at:
            must.pop(0)
        end = min(end, total, must[0] if must else total)
        while end in talk.whole and end < total:
            end += 1
        found.append((at, end))
        at = end
    return found


def session(chance: Random) -> int:
    """One session; returns how many commands it had. Raises `Desync`."""
    talk = Talk(chance)
    talk.write()
    try:
        Play(talk).run()
    except Desync as problem:
        raise Desync(
            f"{problem}\n{talk.settings} local={talk.model.local} normalise={talk.model.normalise}\n"
            f"{bytes(talk.stream)!r}"
        ) from None
    return len(talk.ends)
