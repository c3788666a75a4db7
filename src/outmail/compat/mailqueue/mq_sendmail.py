"""``mq-sendmail``: a message on stdin is on disk when it ends, and on its way.

With an ini file of mailqueue-runner the message goes into the queue directory (``queue_dir``, else one of the
caller's own) in mailqueue-runner's format, and an ``mq-run`` in the background sends it at once; what cannot
be sent waits for the next ``mq-run``. Without an ini file it is outmail's `sendmail`.
Promises: status 0 only when the message is on disk; Bcc fields never leave. Until then neither a database,
nor an event loop, nor the email package is loaded.
Fails: as sysexits with a line on stderr: 64 usage, 65 the message or an address, 75 not stored, 77 not
allowed, 78 configuration. Does not: wait for the server, but with -v.
"""

from __future__ import annotations

import os
import sys
import time

from outmail.compat.mailqueue import ini as inis
from outmail.compat.mailqueue import spool
from outmail.errors import ConfigError, NotStored
from outmail.mime import handed_in
from outmail.system import circle, rights, streams
from outmail.system.exits import EX_CONFIG, EX_DATAERR, EX_NOPERM, EX_TEMPFAIL, EX_USAGE
from outmail.system.user import login
from outmail.unix import flags
from outmail.unix import main as unix
from outmail.unix.telling import tell

TYPE_CHECKING = False  # as in typing, without the price of importing it

if TYPE_CHECKING:
    from collections.abc import Sequence

_SET = ("date", "from", "msgid", "to")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

HELP = """\
usage: mq-sendmail [-t] [-f SENDER] [RECIPIENT ...] < message

  --aliases=FILE        aliases(5) for bare names; else /etc/aliases
  -C, --config=CFG      the ini file of mailqueue-runner
  -f, --from=ADDRESS    the envelope's sender; else `from` of the ini file
  -t, --read-recipients the recipients of To, Cc and Bcc, too
  --set-date-header  --set-from-header  --set-msgid-header  --set-to-header
                        add this field where it is missing
  -v, --verbose         wait for the server, and show the dialogue
Every other flag of sendmail(1) is understood or ignored: see outmail's docs/unix.md.
"""


class Asked:
    """What mailqueue-runner's own options say; ``rest``: the other words."""

    def __init__(self) -> None:
        self.config: str | None = None
        self.aliases: str | None = None
        self.headers: set[str] = set()
        self.rest: list[str] = []
        self.values: dict[str, str] = {}
        self.verbose = False


def main(argv: list[str] | None = None) -> int:
    """The entry point of mq-sendmail; returns the exit status."""
    return guarded("mq-sendmail", _sendmail, sys.argv[1:] if argv is None else argv)


def guarded(name: str, command: object, words: list[str]) -> int:
    streams.complete()
    if circle.is_closed():
        return EX_TEMPFAIL
    try:
        return command(words)  # type: ignore[operator,no-any-return]
    except flags.UsageError as problem:
        return tell(name, str(problem), EX_USAGE)
    except ConfigError as problem:
        return tell(name, f"{problem}" + (f" ({problem.hint})" if problem.hint else ""), EX_CONFIG)
    except NotStored as problem:
        return tell(name, f"not stored: {problem} ({problem.hint})", EX_NOPERM)
    except PermissionError as problem:
        return tell(name, f"not stored: {problem.filename}: {problem.strerror}", EX_NOPERM)
    except OSError as problem:
        return tell(name, f"not stored: {problem.strerror}", EX_TEMPFAIL)
    except ValueError as problem:
        return tell(name, str(problem), EX_DATAERR)
    except KeyboardInterrupt:
        return 130


def _sendmail(words: list[str]) -> int:
    asked = own_words(words, {"aliases": "aliases"}, _SET)
    call = flags.parse(asked.rest)
    if call.mode == "help":
        print(HELP, end="")
        return 0
    ini = ini_of(call.config)
    if ini is None or call.mode != "send":
        call.config = None
        without_ini("mq-sendmail", asked)
        return unix.sendmail(call)
    message = handed_in.read(sys.stdin.buffer.read())
    names = unix.wanted(call, message)
    if not names:
        raise flags.UsageError("no recipient address is in the message (To, Cc, Bcc)")
    aliases = Aliases("mq-sendmail", asked.aliases)
    sender = sender_of(call.sender, ini, aliases)
    recipients = aliases.all(names)
    message.without_bcc()
    _complete(message, asked.headers, sender, recipients)
    return keep("mq-sendmail", ini, sender, recipients, message.content, verbose=call.verbose)


def ini_of(named: str | None) -> inis.Ini | None:
    """The named ini file, or the one that is found; None where there is none. Raises `ConfigError`."""
    path = inis.find(named)
    return inis.read(path, named=bool(named)) if path else None


def without_ini(name: str, asked: Asked) -> None:
    """Say what does not count where there is no ini file."""
    if asked.aliases or asked.headers:
        tell(name, "without an ini file --aliases and --set-… do not count: see docs/unix.md", 0)


# -- words ---------------------------------------------------------------------------------------------------


def own_words(words: Sequence[str], named: dict[str, str], headers: Sequence[str]) -> Asked:
    """Take the long options of ours out of the words."""
    asked = Asked()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            asked.rest += [word, *rest]
            break
        name, equals, value = word[2:].partition("=") if word.startswith("--") else ("", "", "")
        if name.startswith("set-") and name[4:].removesuffix("-header") in headers:
            asked.headers.add(name[4:].removesuffix("-header"))
        elif name in named:
            if not equals and not rest:
                raise flags.UsageError(f"--{name} needs a value")
            value = value if equals else rest.pop(0)
            if name == "aliases":
                asked.aliases = value
            else:
                asked.values[named[name]] = value
        else:
            asked.rest.append(word)
    return asked


class Aliases:
    """Bare names → addresses. The file is read when a bare name comes. ``program``: whose lines on stderr say
    what is wrong with it.
    """

    def __init__(self, program: str, path: str | None) -> None:
        self._program, self._path = program, path
        self._names: dict[str, tuple[str, ...]] | None = None

    def all(self, names: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(target for name in names for target in self.of(name)))

    def of(self, name: str) -> list[str]:
        """Those who get mail for a name; itself where no alias knows it."""
        if "@" in name or not name:
            return [name]
        from outmail.policy.aliases import AliasError, Directory

        everybody = Directory(frozenset(("localhost",)), self._read(), lambda user: True, _no_file)
        try:
            return everybody.expand(name) or [name]
        except AliasError as problem:
            tell(self._program, f"the alias {name} stays as it is: {problem}", 0)
            return [name]

    def _read(self) -> dict[str, tuple[str, ...]]:
        """A file that was named must be good; mail goes on without a bad /etc/aliases."""
        if self._names is None:
            from outmail.policy.aliases import AliasError, parse

            self._names = {}
            path = self._path or "/etc/aliases"
            try:
                with open(path, encoding="utf-8") as file:
                    self._names = parse(file.read(), path)
            except (AliasError, OSError, UnicodeDecodeError) as problem:
                why = f"{path} cannot be used: {getattr(problem, 'strerror', None) or problem}"
                if self._path is not None:
                    raise ConfigError(why) from None
                if not isinstance(problem, FileNotFoundError):
                    tell(self._program, why, 0)
        return self._names


def _no_file(path: str) -> str:
    from outmail.policy.aliases import AliasError

    raise AliasError(f":include: {path} is read by the receiving server only")


def sender_of(given: str | None, ini: inis.Ini, aliases: Aliases) -> str:
    """The envelope's sender: as given, else `from`, else this user. An alias counts if it names somebody."""
    if given == "":
        return ""
    name = given or ini.text("from") or login(os.getuid()) or f"uid-{os.getuid()}"
    unix.check(name)
    return aliases.of(name)[0]


# -- the message ---------------------------------------------------------------------------------------------


def _complete(message: handed_in.HandedIn, wanted: set[str], sender: str, recipients: Sequence[str]) -> None:
    """Put the fields that were asked for, and are missing, in front."""
    domain = sender.rpartition("@")[2] or "localhost"
    values = {
        "date": ("Date", _date()),
        "from": ("From", sender),
        "msgid": ("Message-ID", f"<{os.urandom(12).hex()}@{domain}>"),
        "to": ("To", ",\r\n ".join(recipients)),
    }
    extra = [
        (name.lower(), f"{name}: {value}\r\n".encode("utf-8", "surrogateescape"))
        for key, (name, value) in values.items()
        if key in wanted and value and not message.has(name.lower())
    ]
    message.fields[:0] = extra


def _date() -> str:
    """RFC 5322, in UTC."""
    t = time.gmtime()
    return (
        f"{_DAYS[t.tm_wday]}, {t.tm_mday:02d} {_MONTHS[t.tm_mon - 1]} {t.tm_year} "
        f"{t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} +0000"
    )


def keep(
    program: str, ini: inis.Ini, sender: str, recipients: Sequence[str], content: bytes, *, verbose: bool
) -> int:
    """Put it into the queue directory, and set an ``mq-run`` going."""
    content = content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    folder = ini.place("queue_dir") or spool.own_folder()
    data = spool.packed(spool.Envelope(sender, recipients, _date()), content)
    rights.as_owner(folder, lambda: spool.put(folder, data))
    words = [sys.executable, "-P", "-m", "outmail.compat.mailqueue.run"]
    words += ["-C", ini.path, "-v" if verbose else "--background", "--", folder]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        _start(words, environment, wait=verbose)
    except OSError as problem:
        tell(program, f"the message is stored; mq-run could not be started: {problem.strerror}", 0)
    return 0


def _start(words: list[str], environment: dict[str, str], *, wait: bool) -> None:
    if wait:
        os.waitpid(os.posix_spawn(sys.executable, words, environment), 0)
        return
    nowhere = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    os.posix_spawn(sys.executable, words, environment, file_actions=nowhere, setsid=True)


if __name__ == "__main__":
    sys.exit(main())
