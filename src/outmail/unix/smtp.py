"""``sendmail -bs``: SMTP on stdin and stdout, as Symfony Mailer and others speak it to a sendmail.

Promises: each message that is answered 250 is on disk, as with ``sendmail -t``; bare line feeds are taken
for line ends, as the listener takes them from this machine's programs, and where the first command ends with
one, also around the final dot: nobody's mail can be smuggled in on stdin. At the end of input the session is
over.
Fails: as replies of the dialogue. Does not: offer TLS or logins, or listen.
"""

from __future__ import annotations

import os

from outmail.cli.common import configured
from outmail.errors import Error, NotStored
from outmail.intake.deposit import Deposit
from outmail.intake.smtp import reply_for
from outmail.model import Reply
from outmail.smtp import server as protocol
from outmail.system import dropbox
from outmail.system.exits import EX_IOERR
from outmail.system.user import login
from outmail.system.writing import write_all
from outmail.unix import own
from outmail.unix.flags import Call
from outmail.unix.keeping import drop_folder
from outmail.unix.telling import tell
from outmail.unix.traffic import IN, OUT, Traffic

_BLOCK = 65536


class _Anybody:
    """Whoever may start a program here may send."""

    def mail(self, session: protocol.Server, sender: str) -> Reply | None:
        return None

    def rcpt(self, session: protocol.Server, address: str) -> Reply | None:
        return None


def session(call: Call) -> int:
    """One session, to its end; returns the exit status."""
    config = configured(call.config, call.store, None)
    settings = protocol.ServerSettings(
        config.hostname, size=config.message_size, recipients=config.recipients, origin=config.origin
    )
    server = protocol.Server(settings, _Anybody(), normalise=True, local=True)
    traffic, ends = Traffic(call.traffic), _LineEnds()
    while True:
        data = server.outgoing()
        traffic.say(OUT, data)
        write_all(1, data)
        try:
            data = b"" if server.closed else os.read(0, _BLOCK)
        except OSError as problem:
            return tell("sendmail", f"stdin cannot be read: {problem.strerror}", EX_IOERR)
        if not data:
            traffic.end()
            return 0
        traffic.say(IN, data)
        server.feed(ends.complete(data))
        while server.requests:
            request = server.requests.popleft()
            if isinstance(request, protocol.Deliver):
                server.answer([_kept(call, request)])


class _LineEnds:
    """A program whose first line ends with a line feed alone ends all of them so: it gets CRLF."""

    def __init__(self) -> None:
        self._alone: bool | None = None
        self._last = b""

    def complete(self, data: bytes) -> bytes:
        if self._alone is None and b"\n" in data:
            line = self._last + data[: data.index(b"\n")]
            self._alone = not line.endswith(b"\r")
        before, self._last = self._last, data[-1:]
        if not self._alone:
            return data
        if before == b"\r" and data[:1] == b"\n":
            return b"\n" + data[1:].replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        return data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def _kept(call: Call, request: protocol.Deliver) -> Reply:
    """The message is where it is safe, or why it is not."""
    deposit = Deposit(
        request.content,
        request.recipients,
        user=login(os.getuid()),
        sender=request.sender,
        notify=request.notify[0] if len(set(request.notify)) == 1 else "",
        ret=request.ret,
        envid=request.envid,
        as_is=True,
    )
    try:
        if folder := drop_folder(call):
            return reply_for(dropbox.put(folder, deposit.packed()))
        return reply_for(own.kept(call, deposit))
    except OSError as problem:
        return reply_for(NotStored(str(problem), errno=problem.errno))
    except Error as problem:
        return reply_for(problem)
