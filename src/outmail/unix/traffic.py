"""``sendmail -X FILE``: what comes in and goes out, line by line, at the end of a file.

Each line has the process's number, and ``<<<`` for what came in, ``>>>`` for what went out, ``===`` for what
became of it, as Sendmail writes them. The file can be read by its owner only, because mail is in it.
Promises: a file that cannot be written is named on stderr, and the mail goes on. Passwords of relays are
masked, as in every dialogue that is kept. Strangers have got words into the arguments that web programs give
to sendmail (CVE-2016-10033): so only a new file or an earlier one of ``-X`` is written, no link is followed,
no name begins with a dot, as those of a shell's files do, and no line begins what a web server would run.
Does not: write what a service sends later (`outmail log ID` does).
"""

from __future__ import annotations

import errno
import os
import re
import stat

from outmail.system.writing import write_all
from outmail.unix.telling import tell

#: How each of our lines begins.
_LINE = re.compile(rb"\d{5,10} (<<<|>>>|===) ")
#: What begins a program in a page of a web server: <?php, <%, <!--#exec.
_RUNS = re.compile(rb"<(?=[?%!])")
_DEVICES = ("/dev/stdout", "/dev/stderr", "/dev/null", "/dev/tty")

IN, OUT, FATE = "<<<", ">>>", "==="

TYPE_CHECKING = False  # as in typing, without the price of importing it

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outmail.model import Settled
    from outmail.unix.flags import Call


class Traffic:
    """``path``: the file; "" when nothing is written, or it cannot be."""

    def __init__(self, path: str) -> None:
        self.path = path
        #: By direction: the beginning of a line whose end has not come yet.
        self._begun: dict[str, bytes] = {}

    def say(self, direction: str, data: bytes) -> None:
        """The next bytes of a direction."""
        *lines, self._begun[direction] = (self._begun.get(direction, b"") + data).split(b"\n")
        self._write(direction, lines)

    def tell(self, text: str) -> None:
        """What became of it; ends the lines that have begun."""
        self.end()
        self.say(FATE, f"{text}\n".encode("utf-8", "surrogateescape"))

    def end(self) -> None:
        for direction, line in self._begun.items():
            self._write(direction, [line] if line else [])
        self._begun.clear()

    def dialogues(self, items: Sequence[Settled]) -> None:
        """Those of deliveries that an engine has settled."""
        for item in items:
            self.tell(f"{item.delivery.id} by {item.delivery.destination} ({item.delivery.host})")
            for _, side, line in item.delivery.transcript:
                self.say(OUT if side == "C" else IN, line + b"\n")

    def _write(self, direction: str, lines: Sequence[bytes]) -> None:
        if not self.path or not lines:
            return
        head = f"{os.getpid():05d} {direction} ".encode()
        try:
            with open(self.path, "ab", buffering=0, opener=_private) as file:
                text = b"".join(head + _RUNS.sub(rb"< ", line.rstrip(b"\r")) + b"\n" for line in lines)
                write_all(file.fileno(), text)
        except OSError as problem:
            tell("sendmail", f"-X: {self.path}: {problem.strerror}; the mail goes on", 0)
            self.path = ""


def tell_kept(call: Call, said: str) -> None:
    """Say where the message is, to those who want to know."""
    if call.verbose:
        tell("sendmail", said, 0)
    Traffic(call.traffic).tell(said)


def _private(path: str, flags: int) -> int:
    """A descriptor for a new file, an earlier one of ours, our own pipe or a device."""
    links = 0 if path in _DEVICES else os.O_NOFOLLOW
    if os.path.basename(path).startswith("."):
        raise OSError(errno.EPERM, "a file whose name begins with a dot may be run by a shell")
    try:
        fd = os.open(path, flags | os.O_EXCL | os.O_NONBLOCK | os.O_NOCTTY | links, 0o600)
    except FileExistsError:
        fd = os.open(path, flags & ~os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | links)
    if path not in _DEVICES and not _ours(path, os.fstat(fd)):
        os.close(fd)
        raise FileExistsError(errno.EEXIST, "it is there, and was not written by -X for you alone")
    return fd


def _ours(path: str, found: os.stat_result) -> bool:
    if found.st_uid != os.geteuid() or found.st_mode & 0o077 or found.st_nlink != 1:
        return False
    if not stat.S_ISREG(found.st_mode) or not found.st_size:
        return stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode)
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW)) as file:
        return os.path.samestat(os.fstat(file.fileno()), found) and _LINE.match(file.read(20)) is not None
