"""The flags of sendmail(1), as programs use them: argument words → `Call`. Pure, and loads nothing.

Every flag of the common sendmails (Sendmail, Postfix, Exim, msmtp, nullmailer, dma, OpenSMTPD) is understood
or ignored: a mail never fails for a flag. What each does stands in docs/unix.md, a line a flag.
Promises: letters may be joined (``-ti``), an argument may follow its letter at once or as the next word,
options may stand behind addresses, and ``--`` ends them.
Fails: `UsageError`, for what nobody can mean. Does not: read anything, or check addresses.
"""

from __future__ import annotations

#: Letters that take the rest of their word, or the next word. Those that outmail ignores are here too: their
#: argument must not be taken for an address.
_WITH_ARGUMENT = "aABCFLNORVXfhpr"
#: Letters that take the rest of their word, which may be empty.
_WITH_REST = "bdeoqP"
#: ``--name VALUE`` and ``--name=VALUE``: ours, and msmtp's.
_LONG = {
    "config": "config",
    "file": "config",
    "store": "store",
    "relay": "relay",
    "account": "relay",
    "from": "f",
}

NOTIFY = frozenset(("never", "success", "failure", "delay"))


class UsageError(ValueError):
    """The words contradict each other, or ask for what this sendmail is not."""


class Call:
    """What was asked for. Attributes have the defaults of a plain ``sendmail ADDRESS``."""

    def __init__(self) -> None:
        #: send, list (-bp), flush (-q), smtp (-bs), verify (-bv), aliases (-bi), help, version
        self.mode = "send"
        self.recipients: list[str] = []
        #: -t: the recipients of the header too
        self.from_header = False
        #: False with -i: a lone dot ends the message
        self.dots = True
        #: -f, -r: the envelope's sender; "" is the null sender, None means: not given
        self.sender: str | None = None
        #: -F: the full name of the author, where there is no From field
        self.name = ""
        #: -N, -R, -V
        self.notify = ""
        self.ret = ""
        self.envid = ""
        #: -q with an id, a site or a sender
        self.only = ""
        self.verbose = False
        #: -X: the file that gets what comes in and goes out
        self.traffic = ""
        #: -G: from another machine; nothing is qualified
        self.gateway = False
        self.config: str | None = None
        self.store: str | None = None
        self.relay: str | None = None
        #: Flags nobody knows, and what others say that changes nothing: for -v.
        self.unknown: list[str] = []
        self.notes: list[str] = []


def parse(words: list[str]) -> Call:
    """Argument words without the name of the program → what was asked for."""
    call = Call()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            call.recipients += rest
            break
        if word.startswith("--"):
            _long(call, word[2:], rest)
        elif word.startswith("-") and len(word) > 1:
            _letters(call, word[1:], rest)
        else:
            call.recipients.append(word)
    _consistent(call)
    return call


def _long(call: Call, word: str, rest: list[str]) -> None:
    name, equals, value = word.partition("=")
    if name in ("help", "version"):
        call.mode = name
    elif name == "read-recipients":
        call.from_header = True
    elif name in _LONG:
        if not equals and not rest:
            raise UsageError(f"--{name} needs a value")
        value = value if equals else rest.pop(0)
        if _LONG[name] == "f":
            _value(call, "f", value)
        else:
            setattr(call, _LONG[name], value)
    else:
        call.unknown.append(f"--{name}")


def _letters(call: Call, letters: str, rest: list[str]) -> None:
    """One word of joined letters."""
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter in _WITH_REST:
            _value(call, letter, letters)
            return
        if letter in _WITH_ARGUMENT:
            if not letters and not rest:
                raise UsageError(f"-{letter} needs a value")
            _value(call, letter, letters or rest.pop(0))
            return
        _plain(call, letter)


def _plain(call: Call, letter: str) -> None:
    if letter == "t":
        call.from_header = True
    elif letter == "i":
        call.dots = False
    elif letter == "v":
        call.verbose = True
    elif letter == "G":
        call.gateway = True
    elif letter == "I":
        call.mode = "aliases"
    elif letter not in "cmnUxSsDTJE":  # of old, or of one sendmail only
        call.unknown.append(f"-{letter}")


def _value(call: Call, letter: str, value: str) -> None:
    if letter in "fr":
        call.sender = value[1:-1] if value.startswith("<") and value.endswith(">") else value
    elif letter == "F":
        call.name = value
    elif letter == "b":
        _mode(call, value[:1] or "m")
    elif letter == "o":
        call.dots = call.dots and value != "i"
        if value == "di":
            call.notes.append("-odi: the message is stored, and its first attempt is not waited for")
    elif letter == "X":
        _traffic(call, value)
    elif letter == "q":
        call.mode, call.only = "flush", _only(value)
    elif letter == "N":
        call.notify = _notify(value)
    elif letter == "R":
        call.ret = _ret(value)
    elif letter == "V":
        call.envid = value
    elif letter == "C":
        call.config = value
    elif letter == "a":
        call.relay = value
    elif letter == "P":
        raise UsageError("-P prints msmtp's settings; outmail's are shown by `outmail config`")


def _traffic(call: Call, value: str) -> None:
    """``-X FILE``; but ``-XV``, ``-XV+=`` is Postfix's, with delimiters for VERP."""
    if value == "V" or (len(value) == 3 and value[0] == "V" and not value[1:].isalnum()):
        call.notes.append("-XV: a return address for each recipient (VERP) is not made")
    else:
        call.traffic = value


def _mode(call: Call, mode: str) -> None:
    known = {"m": "send", "p": "list", "s": "smtp", "v": "verify", "i": "aliases"}
    if mode in known:
        call.mode = known[mode]
    elif mode in "dl":
        raise UsageError("the service is started by `outmail run`, not by sendmail -bd")
    elif mode in "hHt":
        raise UsageError(f"-b{mode} does not exist here: see `outmail why` and `outmail test`")
    elif mode != "q":
        call.unknown.append(f"-b{mode}")


def _only(value: str) -> str:
    """``-qIid``, ``-qRsite``, ``-qSsender`` → a filter; an interval such as 15m means: now."""
    kind, rest = value[:1], value[1:]
    return {"I": rest, "R": f"to:{rest}", "S": f"from:{rest}"}.get(kind, "") if rest else ""


def _notify(value: str) -> str:
    words = value.lower().split(",")
    if not set(words) <= NOTIFY or len(set(words)) < len(words) or ("never" in words and len(words) > 1):
        raise UsageError(
            f"-N {value!r}: it is never, or some of success, failure and delay, joined by commas"
        )
    return ",".join(words)


def _ret(value: str) -> str:
    if value.lower() not in ("full", "hdrs"):
        raise UsageError(f"-R {value!r}: it is full or hdrs")
    return value.lower()


def _consistent(call: Call) -> None:
    if call.mode == "verify" and (call.from_header or call.notify or call.ret):
        raise UsageError("-bv verifies addresses; it does not go with -t, -N or -R")
    if call.mode == "send" and not call.recipients and not call.from_header:
        raise UsageError("no recipient: name one, or read them from the header with -t")
