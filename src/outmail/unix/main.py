"""sendmail, mailq, newaliases and mail: one program that does what its name says.

``sendmail`` reads a message from stdin and is through when it is on disk: in the service's drop folder where
there is one that takes it, else in the caller's own queue.
Promises: status 0 only when the message is safe; 75 for whatever may pass by itself; nobody needs the
service to run, or rights beyond their own. Up to the drop folder neither a database, nor an event loop, nor
the email package, nor `re` is loaded.
Fails: as sysexits with a line on stderr: 64 usage, 65 the message or an address, 75 not stored, 77 not
allowed, 78 configuration; 67 only by -bv. Does not: deliver, or refuse names that this machine does not
know: their mail goes to NAME@ORIGIN.
"""

from __future__ import annotations

import sys

from outmail.mime import handed_in
from outmail.mime.mailboxes import addresses
from outmail.system import circle, streams
from outmail.system.exits import EX_DATAERR, EX_IOERR, EX_TEMPFAIL, EX_USAGE
from outmail.unix import flags
from outmail.unix.keeping import deposit
from outmail.unix.telling import tell

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+/=?^_`{|}~-")
_DOMAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


def main(name: str, words: list[str]) -> int:
    """``name``: sendmail, mailq, newaliases, mail or mailx; returns the exit status."""
    streams.complete()
    if circle.is_closed():
        return EX_TEMPFAIL
    try:
        if name == "mailq":
            words = ["-bp", *words]
        elif name == "newaliases":
            words = ["-bi", *words]
        elif name in ("mail", "mailx"):
            from outmail.unix import mail

            return mail.main(words)
        return sendmail(flags.parse(words))
    except flags.UsageError as problem:
        return tell(name, str(problem), EX_USAGE)
    except KeyboardInterrupt:
        return 130


def sendmail(call: flags.Call) -> int:
    if call.verbose:
        ignored = [f"ignored: {' '.join(call.unknown)}"] if call.unknown else []
        for note in (*ignored, *call.notes):
            tell("sendmail", note, 0)
    if call.mode != "send":
        from outmail.unix import modes

        return modes.run(call)
    try:
        raw = _stdin(call.dots)
        if call.traffic:
            _write_down(call, raw)
        message = handed_in.read(raw, dots=call.dots)
        recipients = wanted(call, message)
    except (handed_in.Unreadable, ValueError) as problem:
        return tell("sendmail", str(problem), EX_DATAERR)
    except OSError as problem:
        return tell("sendmail", f"the message cannot be read: {problem.strerror}", EX_IOERR)
    if not recipients:
        return tell("sendmail", "the header names no recipient (To, Cc, Bcc)", EX_USAGE)
    if call.from_header and call.recipients and (call.verbose or sys.stderr.isatty()):
        tell("sendmail", "with -t the addresses of the command line are recipients too", 0)
    message.without_bcc()
    return deposit(call, message.content, recipients)


def _write_down(call: flags.Call, raw: bytes) -> None:
    from outmail.unix.traffic import IN, Traffic

    traffic = Traffic(call.traffic)
    traffic.say(IN, raw)
    traffic.end()
    call.traffic = traffic.path


def _stdin(dots: bool) -> bytes:
    """Up to the end, or to a lone dot."""
    source = sys.stdin.buffer
    if not dots:
        return source.read()
    lines = []
    for line in source:
        lines.append(line)
        if line in (b".\n", b".\r\n"):
            break
    return b"".join(lines)


def wanted(call: flags.Call, message: handed_in.HandedIn) -> list[str]:
    """The recipients, each once; ValueError for what is no address."""
    named = [address for word in call.recipients for address in addresses(word) or [word]]
    if call.from_header:
        named += message.recipients()
    for address in (*named, *([call.sender] if call.sender else ())):
        check(address)
    once: dict[str, str] = {}
    for address in named:
        once.setdefault(_folded(address), address)
    return list(once.values())


def _folded(address: str) -> str:
    """The same for addresses that mean the same: the domain's case does not count."""
    local, at, domain = address.rpartition("@")
    return local + at + domain.lower() if at else address


def check(address: str) -> None:
    """Raises ValueError for what is neither a bare name nor an address. The usual ones are known at a
    glance; for others the parser is loaded.
    """
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = address, "x"
    if (
        len(address) <= 254
        and all(part and _LETTERS.issuperset(part) for part in local.split("."))
        and all(
            part and len(part) < 64 and _DOMAIN.issuperset(part) and part[0] != "-" != part[-1]
            for part in domain.split(".")
        )
        and "xn--" not in domain
    ):
        return
    from outmail.smtp.syntax import parse_mailbox

    parse_mailbox(address if at else f"{address}@localhost")
