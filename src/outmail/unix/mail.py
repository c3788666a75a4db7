"""``mail`` and ``mailx``: a text on stdin becomes a message, as scripts call POSIX mailx, BSD mail,
bsd-mailx and s-nail.

``-s`` subject, ``-c`` and ``-b`` copies, ``-r`` sender, ``-a`` and ``-A`` a file, or with "Name: value" a
field, ``-q`` a file in front of the text, ``-E`` sends nothing when there is no text. Behind ``--`` come
addresses, or where there are some already, flags of sendmail.
Promises: those of sendmail. Fails: as sendmail; 64 for what would read a mailbox.
Does not: read mail, or ask for anything.
"""

from __future__ import annotations

import os

from outmail.cli.common import configured, stdin_bytes
from outmail.cli.exits import told
from outmail.clock import Clock
from outmail.errors import Error, Refused
from outmail.intake import api
from outmail.mime.mailboxes import addresses
from outmail.system.user import login
from outmail.unix import flags
from outmail.unix.keeping import deposit

#: Letters with a value that count; with a value that are ignored; that would read a mailbox. Others are
#: ignored.
_COUNT, _IGNORED, _READING = "sabcrqA", "SCMTX", "fuHIe"
#: GNU mailutils' long options → letters.
_LONG = {"subject": "s", "append": "a", "attach": "A", "cc": "c", "bcc": "b", "return-address": "r"}
#: As every command has them.
_WHERE = ("config", "store", "relay")


class Words:
    """What the command line says. ``call``: the flags of sendmail behind ``--``."""

    def __init__(self) -> None:
        self.values: dict[str, list[str]] = {letter: [] for letter in _COUNT}
        self.to: list[str] = []
        self.only_with_text = False
        self.help = False
        self.where: dict[str, str] = {}
        self.call = flags.Call()


def main(words: list[str]) -> int:
    """Compose the message and keep it; returns the exit status."""
    asked = parsed(words)
    if asked.help:
        from outmail.unix import flag_help

        print(flag_help.mail(), end="")
        return 0
    try:
        text = _text(asked)
        if asked.only_with_text and not text.strip():
            return 0
        return deposit(asked.call, *_composed(asked, text))
    except Error as problem:
        return told("mail", problem)


def parsed(words: list[str]) -> Words:
    """Raises `flags.UsageError`."""
    made = Words()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            _behind(made, rest)
            break
        if word == "--help":
            made.help = True
            return made
        if word.startswith("--"):
            _long(made, word[2:], rest)
        elif word.startswith("-") and len(word) > 1:
            _letters(made, word[1:], rest)
        else:
            made.to.append(word)
    if not (made.to or made.values["c"] or made.values["b"]):
        raise flags.UsageError("no recipient: name one behind the flags (mail --help shows them)")
    for name, value in made.where.items():
        setattr(made.call, name, value)
    return made


def _long(made: Words, word: str, rest: list[str]) -> None:
    name, equals, value = word.partition("=")
    if name not in _LONG and name not in _WHERE:
        raise flags.UsageError(f"--{name} is no option of mail (mail --help shows them)")
    if not equals and not rest:
        raise flags.UsageError(f"--{name} needs a value")
    value = value if equals else rest.pop(0)
    if name in _WHERE:
        made.where[name] = value
    else:
        made.values[_LONG[name]].append(value)


def _letters(made: Words, letters: str, rest: list[str]) -> None:
    for at, letter in enumerate(letters, 1):
        if letter in _READING:
            raise flags.UsageError(f"-{letter} is for reading mail; outmail only sends it")
        if letter == "E":
            made.only_with_text = True
        elif letter in _COUNT + _IGNORED:
            if at == len(letters) and not rest:
                raise flags.UsageError(f"-{letter} needs a value")
            made.values.setdefault(letter, []).append(letters[at:] or rest.pop(0))
            return


def _behind(made: Words, rest: list[str]) -> None:
    if not made.to:
        made.to = rest
        return
    made.call = flags.parse([*rest, "--", *made.to])
    made.to = made.call.recipients


def _text(asked: Words) -> str:
    parts = [_file(path) for path in asked.values["q"]]
    return b"".join([*parts, stdin_bytes()]).decode("utf-8", "replace")


def _file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as problem:
        raise Refused(f"{path} cannot be read: {problem.strerror}", code="bad-attachment") from None


def _composed(asked: Words, text: str) -> tuple[bytes, list[str]]:
    """(message, recipients)."""
    config = configured(asked.call.config, asked.call.store, None)
    fields, files = _fields_and_files([*asked.values["a"], *asked.values["A"]])
    call = asked.call
    if asked.values["r"]:
        call.sender = asked.values["r"][-1]
    sender = call.sender or config.sender or login(os.getuid())
    draft = api.composed(
        Clock().now(),
        config.hostname,
        config.origin,
        to=_people(asked.to),
        subject=" ".join(asked.values["s"][-1:]),
        text=text,
        cc=_people(asked.values["c"]),
        bcc=_people(asked.values["b"]),
        sender=sender,
        headers=fields,
        attachments=files,
    )
    names = [name for words in (asked.to, asked.values["c"], asked.values["b"]) for name in _plain(words)]
    return draft.content, names


def _fields_and_files(values: list[str]) -> tuple[dict[str, str], list[str]]:
    """``-a``: an existing file is attached (s-nail), "Name: value" is a field (bsd-mailx, mailutils)."""
    fields: dict[str, str] = {}
    files: list[str] = []
    for value in values:
        name, colon, rest = value.partition(":")
        if not os.path.exists(value) and colon and name and " " not in name:
            fields[name] = rest.strip()
        else:
            files.append(value)
    return fields, files


def _people(words: list[str]) -> list[str]:
    """Each as ``address`` or ``Name <address>``."""
    found: list[str] = []
    for word in words:
        names = addresses(word)
        found += [word] if len(names) == 1 and word.rstrip().endswith(">") else names or [word]
    return found


def _plain(words: list[str]) -> list[str]:
    """The addresses alone: bare names are aliased later."""
    return [name for word in words for name in addresses(word) or [word]]
