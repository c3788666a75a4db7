"""The server's side of an SMTP or LMTP session, without I/O.

How to drive it: `feed` bytes in, take replies from `outgoing` and requests from `requests`, and answer the
requests. `Deliver`: a whole message; call `answer`. `Verify`: credentials; call `authenticated`. `StartTls`:
do the handshake, then call `encrypted`. `Close`: hang up. While a request is open, nothing more is read from
the buffer, so replies keep their order with any pipelining.

Promises
  - Only CRLF.CRLF ends content. A client whose line ends are replaced (``normalise``) may end lines with a
    bare LF. For all others content with a bare CR or LF is refused, and a command that does not end in CRLF
    ends the session.
  - Lines, recipients, content, errors and buffers are bounded. After a refused message the state is clean.
  - It advertises only what it honours. There is no AUTH in clear off loopback; bytes behind STARTTLS end the
    session.
  - LMTP answers once for each recipient (RFC 2033), SMTP once for the message.
Fails: never by raising: any input gets a reply or ends the session. Does not: connect, keep time, know who
may send or receive (the given policy does), or store.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from outmail.model import Reply
from outmail.smtp.lines import has_bare, mended, unstuffed
from outmail.smtp.syntax import AddressError, parse_mailbox, qualified, valid_notify, valid_original

MAX_LINE = 2048
MAX_AUTH_LINE = 12_288
MAX_ERRORS = 20
#: How many wrong passwords end a session.
MAX_GUESSES = 3
#: How many bytes of memory a recipient takes besides its address and its parameters.
RECIPIENT = 500


class Policy(Protocol):
    """Decides who may send and receive. None means yes; a Reply (4xx or 5xx) means no."""

    def mail(self, session: Server, sender: str) -> Reply | None: ...
    def rcpt(self, session: Server, address: str) -> Reply | None: ...


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What is offered and what is bounded. ``auth`` needs TLS unless ``auth_clear``. ``origin``: the domain
    that bare names of local clients get; "" refuses bare names.
    """

    hostname: str = "localhost"
    origin: str = ""
    lmtp: bool = False
    size: int = 50_000_000
    recipients: int = 10_000
    starttls: bool = False
    require_tls: bool = False
    auth: bool = False
    auth_clear: bool = False
    require_auth: bool = False
    max_errors: int = MAX_ERRORS


@dataclass(slots=True)
class Deliver:
    """A whole message: CRLF line ends, dots undoubled."""

    sender: str
    recipients: list[str]
    content: bytes
    notify: list[str] = field(default_factory=list)
    originals: list[str] = field(default_factory=list)
    ret: str = ""
    envid: str = ""
    smtputf8: bool = False


@dataclass(slots=True)
class Verify:
    """Are these credentials good?"""

    user: str
    password: str = field(repr=False)


@dataclass(slots=True)
class StartTls:
    """Do the TLS handshake, after `outgoing` has been sent."""


@dataclass(slots=True)
class Close:
    """Hang up, after `outgoing` has been sent."""


Request = Deliver | Verify | StartTls | Close

_PATH = re.compile(rb'<((?:"(?:[^"\\\r\n]|\\.)*"|[^<>"\s])*)>(?:[ \t]++(.*))?')
#: What scripts write instead: no brackets.
_UNBRACKETED = re.compile(rb'([^<>"\s]+)(?:[ \t]++(.*))?')
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~]+))?")
_XTEXT = re.compile(r"\+([0-9A-F]{2})")
_OK = b"250 2.1.0 Ok\r\n"
_RCPT_OK = b"250 2.1.5 Ok\r\n"
_TOO_LONG = Reply(421, "Line too long", "4.5.2")
_HTTP = frozenset((b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT"))
#: Known, and not implemented (RFC 5321 §4.2.4).
_NOT_HERE = frozenset((b"EXPN", b"TURN", b"ETRN", b"ATRN", b"SEND", b"SOML", b"SAML"))
#: The commands that are answered where TLS is required and not in place yet (RFC 3207 §4). All others get
#: 530.
_BEFORE_TLS = frozenset((b"EHLO", b"LHLO", b"NOOP", b"STARTTLS", b"QUIT", b"HELP")) | _HTTP


class Server:
    """One session. ``peer`` is the object that drives it, for the policy. ``user`` is set after
    authentication. With ``normalise`` bare line ends are replaced. A ``local`` client is a program of this
    machine: it may write bare names (where there is an origin), and paths without brackets.
    """

    def __init__(
        self,
        settings: ServerSettings,
        policy: Policy,
        peer: Any = None,
        *,
        tls: bool = False,
        normalise: bool = False,
        local: bool = False,
    ) -> None:
        self.settings = settings
        self.policy = policy
        self.peer = peer
        self.tls = tls
        self.normalise = normalise
        self.local = local
        self._origin = settings.origin if local else ""
        self.user = ""
        self.helo = ""
        self.extended = False
        self.requests: deque[Request] = deque()
        self.errors = 0
        self.messages = 0
        self._buffer = bytearray()
        self._scanned = 0
        self._out: list[bytes] = []
        #: True while a request is open.
        self.waiting = False
        #: True when the last reply is in `outgoing`.
        self.closed = False
        self._login: list[bytes] | None = None
        self._mechanism = ""
        #: True while content is expected, not a command.
        self.collecting = False
        self._discarding = False
        self._received = 0
        self._guesses = 0
        #: How many bytes the envelope takes.
        self._held = 0
        #: How many bytes of content are read from the wire at most: a third more than the size limit, for
        #: lines that begin with doubled dots.
        self._most = settings.size + settings.size // 3 + 1024
        self._envelope: Deliver | None = None
        self._reply(Reply(220, f"{settings.hostname} {'LMTP' if settings.lmtp else 'ESMTP'} outmail"))

    # -- the seam to the shell -------------------------------------------------------------------------------

    @property
    def buffered(self) -> int:
        """How many bytes are held for this session: buffered input and envelope."""
        return len(self._buffer) + self._held

    @property
    def received(self) -> int:
        """How many bytes of the present content have arrived."""
        return self._received + len(self._buffer)

    @property
    def begun(self) -> bool:
        """True inside a message."""
        return self._envelope is not None

    def outgoing(self) -> bytes:
        """Bytes for the client since the last call."""
        if not self._out:
            return b""
        out, self._out = b"".join(self._out), []
        return out

    def feed(self, data: bytes) -> None:
        """Bytes from the client."""
        if self.closed:
            return
        if self._buffer or self.waiting or self._login is not None or not self._whole(data):
            self._buffer += data
            self._run()

    def answer(self, replies: Sequence[Reply]) -> None:
        """The answer to `Deliver`: one reply, or with LMTP one for each recipient."""
        for reply in replies:
            self._reply(reply)
        self.messages += 1
        self._reset()
        self._resume()

    def authenticated(self, user: str | None, *, looked: bool = True) -> None:
        """The answer to `Verify`: the user's name, or None. ``looked`` is False when the password was not
        checked, because too many wait.
        """
        if user:
            self.user = user
            self._reply(Reply(235, "Authentication succeeded", "2.7.0"))
        elif looked:
            self._guesses += 1
            self._error(Reply(535, "Authentication failed", "5.7.8"))
            if self._guesses >= MAX_GUESSES and not self.closed:
                self._fatal(Reply(421, "Too many wrong passwords", "4.7.0"))
        else:
            self._error(Reply(454, "Too many log in at once: try again", "4.7.0"))
        self._resume()

    def encrypted(self) -> None:
        """The answer to `StartTls`: the connection is encrypted, and the session begins again (RFC 3207
        §4.2).
        """
        # Bytes in the buffer came after the handshake: nothing was read between the request and the
        # handshake.
        self.tls = True
        self.helo, self.extended, self.user = "", False, ""
        self._reset()
        self._resume()

    def refuse(self, reply: Reply) -> None:
        """End the session with a last reply (421: busy, idle too long, shutting down)."""
        if not self.closed:
            self._reply(reply)
            self._close()

    # -- reading ---------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        self.waiting = False
        self._run()

    def _run(self) -> None:
        while not self.waiting and not self.closed:
            if self.collecting:
                if not self._data():
                    return
                continue
            line = self._line()
            if line is None:
                return
            if self._login is not None:
                self._auth_line(line)
            else:
                self._command(line)

    def _whole(self, data: bytes) -> bool:
        """The common case, without a copy: ``data`` is exactly one command, or exactly one content."""
        if self.collecting:
            if (
                self._received
                or data.find(b"\r\n.\r\n") != len(data) - 5
                or len(data) < 5
                or data.startswith(b".\r\n")
            ):
                return False
            self.collecting = False
            self._complete(data[:-3])
        else:
            if data.find(b"\n") != len(data) - 1 or not 1 < len(data) <= MAX_LINE:
                return False
            line = self._checked(data)
            if line is not None:
                self._command(line)
        return True

    def _line(self) -> bytes | None:
        limit = MAX_LINE if self._login is None else MAX_AUTH_LINE
        end = self._buffer.find(b"\n", self._scanned)
        if end < 0:
            self._scanned = len(self._buffer)
            if self._scanned > limit:
                self._fatal(_TOO_LONG)
            return None
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        self._scanned = 0
        if len(line) > limit:
            self._fatal(_TOO_LONG)
            return None
        return self._checked(line)

    def _checked(self, line: bytes) -> bytes | None:
        """A line without its CRLF. None ends the session."""
        proper = line.endswith(b"\r\n")
        text = line[:-2] if proper else line[:-1]
        if not (proper or self.normalise) or b"\r" in text or b"\0" in text:
            self._fatal(Reply(500, "Lines end with CRLF and hold neither CR nor NUL", "5.5.2"))
            return None
        return text

    def _data(self) -> bool:
        """Read content up to CRLF.CRLF. True when it is complete. Each byte is looked at once."""
        buffer = self._buffer
        if not self._received and not self._discarding and buffer.startswith(b".\r\n"):
            end, skip = 0, 3
        else:
            end = buffer.find(b"\r\n.\r\n", max(0, self._scanned - 4))
            skip = 5
        if end < 0:
            self._scanned = len(buffer)
            if self._scanned > self._most:
                self._discarding = True
            if self._discarding and self._scanned > 8:  # keep what may be the beginning of the end mark
                self._received += self._scanned - 4
                del buffer[: self._scanned - 4]
                self._scanned = 4
            return False
        content = bytes(buffer[: end + 2]) if skip == 5 else b""
        del buffer[: end + skip]
        self._scanned = 0
        self.collecting = False
        self._complete(content)
        return True

    def _complete(self, content: bytes) -> None:
        envelope = self._envelope
        assert envelope is not None
        discarded, self._discarding, self._received = self._discarding, False, 0
        if not discarded and has_bare(content):
            if not self.normalise:
                self._refuse_content(Reply(554, "The message holds a bare CR or LF", "5.6.0"))
                return
            whole = mended(content, self.settings.size)
            discarded, content = whole is None, whole or b""
        content = unstuffed(content)
        if discarded or len(content) > self.settings.size:
            self._refuse_content(
                Reply(552, f"The message is longer than {self.settings.size} bytes", "5.3.4")
            )
            return
        if b"\0" in content:
            self._refuse_content(Reply(554, "The message holds a NUL", "5.6.0"))
            return
        envelope.content = content
        self.waiting = True
        self.requests.append(envelope)

    def _refuse_content(self, reply: Reply) -> None:
        envelope = self._envelope
        times = len(envelope.recipients) if self.settings.lmtp and envelope else 1
        for _ in range(times):
            self._reply(reply)
        self._reset()
        self._count_error()

    # -- commands --------------------------------------------------------------------------------------------

    def _command(self, line: bytes) -> None:
        head = line[:10].upper()
        if self.settings.require_tls and not self.tls and line.partition(b" ")[0].upper() not in _BEFORE_TLS:
            self._error(Reply(530, "Say STARTTLS first", "5.7.0"))
        elif head == b"MAIL FROM:":
            self._mail(line[10:].strip(b" \t"))
        elif head[:8] == b"RCPT TO:":
            self._rcpt(line[8:].strip(b" \t"))
        else:
            verb, _, rest = line.partition(b" ")
            handler = _COMMANDS.get(verb.upper())
            if handler is None:
                self._unknown(verb)
            else:
                handler(self, rest.strip(b" \t"))

    def _unknown(self, verb: bytes) -> None:
        if verb.upper() in _HTTP:
            self._fatal(Reply(421, "This is a mail server", "4.7.0"))
        elif verb.upper() in (b"MAIL", b"RCPT"):
            self._error(Reply(501, "Write MAIL FROM:<address> and RCPT TO:<address>", "5.5.4"))
        elif verb.upper() == b"BDAT":
            self._fatal(Reply(421, "CHUNKING is not offered: what follows is no command", "4.7.0"))
        elif verb.upper() in _NOT_HERE:
            self._error(Reply(502, "Command not implemented", "5.5.1"))
        else:
            self._error(Reply(500, "Command not known", "5.5.1"))

    def _helo(self, rest: bytes, *, extended: bool) -> None:
        name = rest.decode("ascii", "replace")
        if not rest or not all(32 < ord(c) < 127 for c in name) or len(name) > 255:
            self._error(Reply(501, "Say your host name", "5.5.4"))
            return
        self._reset()
        self.helo, self.extended = name, extended
        if not extended:
            self._reply(Reply(250, self.settings.hostname))
            return
        words = [
            self.settings.hostname,
            "PIPELINING",
            f"SIZE {self.settings.size}",
            "8BITMIME",
            "SMTPUTF8",
            "DSN",
            "ENHANCEDSTATUSCODES",
        ]
        if self.settings.starttls and not self.tls:
            words.append("STARTTLS")
        if self._may_auth():
            words.append("AUTH PLAIN LOGIN")
        lines = [f"250-{word}" for word in words[:-1]] + [f"250 {words[-1]}"]
        self._out.append(("\r\n".join(lines) + "\r\n").encode())

    def _ehlo(self, rest: bytes) -> None:
        if self.settings.lmtp:
            self._error(Reply(500, "This is LMTP: say LHLO", "5.5.1"))
        else:
            self._helo(rest, extended=True)

    def _old_helo(self, rest: bytes) -> None:
        if self.settings.lmtp:
            self._error(Reply(500, "This is LMTP: say LHLO", "5.5.1"))
        else:
            self._helo(rest, extended=False)

    def _lhlo(self, rest: bytes) -> None:
        if self.settings.lmtp:
            self._helo(rest, extended=True)
        else:
            self._error(Reply(500, "This is SMTP: say EHLO", "5.5.1"))

    def _mail(self, rest: bytes) -> None:
        if not self.helo:
            self._error(Reply(503, "Say EHLO first", "5.5.1"))
            return
        if self.settings.require_auth and not self.user:
            self._error(Reply(530, "Authenticate first", "5.7.0"))
            return
        if self._envelope is not None:
            self._error(Reply(503, "A message has begun already", "5.5.1"))
            return
        path, parameters = _path(rest, self.local)
        if parameters is None:
            self._error(Reply(501, "Write MAIL FROM:<address>", "5.5.4"))
            return
        envelope = Deliver("", [], b"")
        problem = self._mail_parameters(envelope, parameters) or self._sender(envelope, path)
        problem = problem or self.policy.mail(self, envelope.sender)
        if problem is not None:
            self._error(problem)
            return
        self._envelope = envelope
        self._out.append(_OK)

    def _sender(self, envelope: Deliver, path: bytes) -> Reply | None:
        if not path:
            return None
        address, problem = _address(path, envelope.smtputf8, self.settings.hostname, self._origin)
        envelope.sender = address
        return problem

    def _mail_parameters(self, envelope: Deliver, parameters: Mapping[str, str]) -> Reply | None:
        for name, value in parameters.items():
            if name == "SIZE" and value.isdecimal() and len(value) < 20:
                if int(value) > self.settings.size:
                    return Reply(552, f"The message is longer than {self.settings.size} bytes", "5.3.4")
            elif name == "BODY" and value.upper() in ("7BIT", "8BITMIME"):
                continue
            elif name == "SMTPUTF8" and not value:
                envelope.smtputf8 = True
            elif name == "RET" and value.upper() in ("FULL", "HDRS"):
                envelope.ret = value.lower()
            elif name == "ENVID" and value:
                envelope.envid = _XTEXT.sub(lambda m: chr(int(m[1], 16)), value)
                if any(not 32 <= ord(c) < 127 for c in envelope.envid) or len(value) > 100:
                    return Reply(501, "ENVID is malformed", "5.5.4")
            elif name == "AUTH" and value:
                continue
            else:
                return Reply(555, f"The parameter {name} is not known or has a wrong value", "5.5.4")
        return None

    def _rcpt(self, rest: bytes) -> None:
        envelope = self._envelope
        if envelope is None:
            self._error(Reply(503, "Say MAIL first", "5.5.1"))
            return
        path, parameters = _path(rest, self.local)
        if parameters is None or not path:
            self._error(Reply(501, "Write RCPT TO:<address>", "5.5.4"))
            return
        if len(envelope.recipients) >= self.settings.recipients:
            self._reply(Reply(452, "Too many recipients", "4.5.3"))
            return
        notify = original = ""
        for name, value in parameters.items():
            if name == "NOTIFY" and valid_notify(value):
                notify = value.lower()
            elif name == "ORCPT" and valid_original(value):
                original = value
            else:
                self._error(Reply(555, f"The parameter {name} is not known or has a wrong value", "5.5.4"))
                return
        address, problem = _address(path, envelope.smtputf8, self.settings.hostname, self._origin)
        problem = problem or self.policy.rcpt(self, address)
        if problem is not None:
            self._error(problem)
            return
        envelope.recipients.append(address)
        envelope.notify.append(notify)
        envelope.originals.append(original)
        self._held += RECIPIENT + len(address) + len(original)
        self._out.append(_RCPT_OK)

    def _data_command(self, rest: bytes) -> None:
        if rest:
            self._error(Reply(501, "DATA takes no argument", "5.5.4"))
        elif self._envelope is None:
            self._error(Reply(503, "Say MAIL first", "5.5.1"))
        elif not self._envelope.recipients:
            self._error(Reply(503 if self.settings.lmtp else 554, "No valid recipients", "5.5.1"))
        else:
            self.collecting = True
            self._received = self._scanned = 0
            self._out.append(b"354 End with CRLF.CRLF\r\n")

    def _rset(self, rest: bytes) -> None:
        if rest:
            self._error(Reply(501, "RSET takes no argument", "5.5.4"))
            return
        self._reset()
        self._reply(Reply(250, "Ok", "2.0.0"))

    def _noop(self, rest: bytes) -> None:
        self._reply(Reply(250, "Ok", "2.0.0"))

    def _vrfy(self, rest: bytes) -> None:
        if rest:
            self._reply(Reply(252, "Send the message and see", "2.5.0"))
        else:
            self._error(Reply(501, "Write VRFY and a name", "5.5.4"))

    def _help(self, rest: bytes) -> None:
        self._reply(Reply(214, "RFC 5321", "2.0.0"))

    def _quit(self, rest: bytes) -> None:
        if rest:
            self._error(Reply(501, "QUIT takes no argument", "5.5.4"))
            return
        self._reply(Reply(221, "Bye", "2.0.0"))
        self._close()

    def _starttls(self, rest: bytes) -> None:
        if not self.settings.starttls:
            self._error(Reply(502, "STARTTLS is not offered here", "5.5.1"))
        elif self.tls:
            self._error(Reply(503, "The line is encrypted already", "5.5.1"))
        elif rest:
            self._error(Reply(501, "STARTTLS takes no argument", "5.5.4"))
        elif self._buffer:
            self._fatal(Reply(421, "Commands came behind STARTTLS before the handshake", "4.7.0"))
        else:
            self._reply(Reply(220, "Ready to start TLS", "2.0.0"))
            self.waiting = True
            self.requests.append(StartTls())

    # -- authentication --------------------------------------------------------------------------------------

    def _may_auth(self) -> bool:
        return self.settings.auth and (self.tls or self.settings.auth_clear)

    def _auth(self, rest: bytes) -> None:
        words = rest.split(b" ")
        self._mechanism = words[0].upper().decode("ascii", "replace")
        if not rest:
            self._error(Reply(501, "Write AUTH and a mechanism", "5.5.4"))
        elif not self.settings.auth or not self.extended:
            self._error(Reply(503, "AUTH is not possible here", "5.5.1"))
        elif not self._may_auth():
            self._error(Reply(538, "Say STARTTLS first", "5.7.11"))
        elif self.user or self._envelope is not None:
            self._error(Reply(503, "AUTH is not possible now", "5.5.1"))
        elif self._mechanism not in ("PLAIN", "LOGIN") or len(words) > 2:
            self._error(Reply(504, "Known are PLAIN and LOGIN", "5.5.4"))
        else:
            self._login = []
            if len(words) == 2:
                self._auth_line(b"" if words[1] == b"=" else words[1])
            else:
                self._reply(Reply(334, "VXNlcm5hbWU6" if self._mechanism == "LOGIN" else ""))

    def _auth_line(self, line: bytes) -> None:
        assert self._login is not None
        answers = self._login
        if line == b"*":
            self._login = None
            self._error(Reply(501, "Cancelled", "5.7.0"))
            return
        try:
            answers.append(b64decode(line, validate=True))
        except binascii.Error:
            self._login = None
            self._error(Reply(501, "That is not base64", "5.5.2"))
            return
        if self._mechanism == "LOGIN" and len(answers) == 1:
            self._reply(Reply(334, "UGFzc3dvcmQ6"))
            return
        self._login = None
        parts = answers[0].split(b"\0") if self._mechanism == "PLAIN" else [b"", *answers]
        try:
            user, password = parts[1].decode(), parts[2].decode()
        except (IndexError, UnicodeDecodeError):
            user = password = ""
        if len(parts) != 3 or not user or (parts[0] and parts[0] != parts[1]):
            self._error(Reply(535, "Authentication failed", "5.7.8"))
            return
        self.waiting = True
        self.requests.append(Verify(user, password))

    # -- small parts -----------------------------------------------------------------------------------------

    def _reply(self, reply: Reply) -> None:
        text = f"{reply.enhanced} {reply.text}" if reply.enhanced else reply.text
        self._out.append(f"{reply.code} {text}\r\n".encode())

    def _error(self, reply: Reply) -> None:
        self._reply(reply)
        self._count_error()

    def _count_error(self) -> None:
        self.errors += 1
        if self.errors >= self.settings.max_errors:
            self._fatal(Reply(421, "Too many errors", "4.7.0"))

    def _fatal(self, reply: Reply) -> None:
        self._reply(reply)
        self._close()

    def _close(self) -> None:
        self.closed = True
        self._buffer.clear()
        self._envelope = None
        self._held = 0
        self.requests.append(Close())

    def _reset(self) -> None:
        self._envelope = None
        self.collecting = self._discarding = False
        self._received = self._held = 0


_COMMANDS = {
    b"EHLO": Server._ehlo, b"HELO": Server._old_helo, b"LHLO": Server._lhlo, b"DATA": Server._data_command,
    b"RSET": Server._rset, b"NOOP": Server._noop,
    b"VRFY": Server._vrfy, b"HELP": Server._help, b"QUIT": Server._quit, b"STARTTLS": Server._starttls,
    b"AUTH": Server._auth,
}  # fmt: skip


@lru_cache(1024)
def _path(rest: bytes, local: bool) -> tuple[bytes, Mapping[str, str] | None]:
    """``<address> PARAMETER=value …`` → (address, parameters, or None when they are malformed). ``local``
    clients may leave out the brackets. Cached, because clients repeat themselves.
    """
    match = _PATH.fullmatch(rest)
    if match is None and local:
        match = _UNBRACKETED.fullmatch(rest)
        if match is not None and b"=" in match[1] and b"@" not in match[1]:
            return b"", None  # a parameter behind an address that is missing
    return (match[1], _parameters(match[2])) if match else (b"", None)


def _parameters(raw: bytes | None) -> dict[str, str] | None:
    """ESMTP parameters, with names in capitals; None when they are malformed."""
    found: dict[str, str] = {}
    if not raw:
        return found
    try:
        words = raw.decode("ascii").split()
    except UnicodeDecodeError:
        return None
    for word in words:
        match = _PARAMETER.fullmatch(word)
        if match is None or match[1].upper() in found:
            return None
        found[match[1].upper()] = match[2] or ""
    return found


@lru_cache(1024)
def _address(path: bytes, utf8: bool, hostname: str, origin: str) -> tuple[str, Reply | None]:
    """A path → (address, problem). Source routes are cut off (RFC 5321 §4.1.2). A bare name gets the
    ``origin``, where there is one; a bare postmaster is local in any case (§4.5.1).
    """
    try:
        text = path.decode("utf-8")
    except UnicodeDecodeError:
        return "", Reply(501, "The address is not UTF-8", "5.5.2")
    if text.startswith("@") and ":" in text:
        text = text.partition(":")[2]
    text = qualified(text, origin or (hostname if text.lower() == "postmaster" else ""))
    if not text.isascii() and not utf8:
        return "", Reply(553, "The address needs SMTPUTF8", "5.6.7")
    try:
        return str(parse_mailbox(text)), None
    except AddressError as problem:
        return "", Reply(501, str(problem).encode("ascii", "backslashreplace").decode(), "5.1.3")


__all__ = ["Close", "Deliver", "Policy", "Request", "Server", "ServerSettings", "StartTls", "Verify"]
