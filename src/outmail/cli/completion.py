"""Completion for bash, zsh and fish: the scripts, and what could stand at the cursor.

A script of a few lines asks ``outmail completion SHELL WORD…`` whenever TAB is pressed; so all shells
complete the same, from the tree of `arguments` itself, and always what the installed version knows. The last
WORD is the one at the cursor, up to the cursor. bash gives its line as one WORD, because it would cut words
at colons. The answer's first line says what kind of words these are (`Answer.kind`), the others are words,
for zsh and fish with a tab and what they mean. A word that ends in : or = goes on.
Promises: no store is made, no file of another user is opened, no network is used; what cannot be known now is
left out, and nothing is complained about. Does not: know a job's name.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from outmail.cli.arguments import commands, parser, summaries
from outmail.cli.queue_help import FILTERS, VERBS
from outmail.lifecycle import STATES
from outmail.unix import NAMES

#: So many ids are offered.
MOST = 50
#: Names of values → what the shell completes itself.
_SHELLS_OWN = {
    "FILE": "files",
    "PEM": "files",
    "STORE": "files",
    "DIR": "folders",
    "FROM": "files",
    "PATH": "files",
    "TO": "files",
}
_FLAGS = {"is": ("live", "deferred", "uncertain"), "was": ("uncertain",)}

Word = tuple[str, str]


class Answer(NamedTuple):
    """What could stand at the cursor. ``kind``: words, or what the shell knows itself: files, folders or
    commands.
    """

    kind: str
    words: list[Word]


def completion(arguments: argparse.Namespace) -> int:
    """Print the script for a shell."""
    from outmail.cli import completion_scripts

    print(completion_scripts.SCRIPTS[arguments.shell], end="")
    return 0


def answer(shell: str, words: list[str]) -> int:
    """Print what could stand at the cursor."""
    cut = 0
    if shell == "bash":
        line, *breaks = words
        words = split(line)[1:] or [""]
        cut = _cut(words[-1], breaks[0] if breaks else "")
    quiet = io.StringIO()
    with contextlib.redirect_stderr(quiet):
        try:
            found = complete(words[:-1], words[-1])
        except (Exception, SystemExit):  # a shell has no place for a complaint
            found = Answer("words", [])
    print(found.kind)
    for word, what in sorted(set(found.words)):
        print(word[cut:] if shell == "bash" else f"{word}\t{what}")
    return 0


def split(line: str) -> list[str]:
    """A line up to the cursor → its words, of which the last is the one at the cursor, perhaps empty."""
    if (len(line) - len(line.rstrip("\\"))) % 2:
        line = line[:-1]  # what it quotes is not typed yet
    for closing in ("", '"', "'"):
        try:
            words = shlex.split(line + closing)
        except ValueError:
            continue
        return [*words, ""] if not closing and line[-1:].isspace() and not line.endswith("\\ ") else words
    return line.split(" ")


def _cut(word: str, breaks: str) -> int:
    """How much of a word bash regards as words of their own."""
    return max((word.rfind(one) + 1 for one in breaks if one in ":="), default=0)


def complete(before: Sequence[str], word: str) -> Answer:
    """``before``: the words behind ``outmail``; ``word``: the one at the cursor."""
    top = parser()
    if not before:
        names = [*summaries(top).items(), *((name, "as on Unix") for name in NAMES)]
        return _words([*names, *_options(top)] if word.startswith("-") else names, word)
    name, *rest = before
    if name in NAMES:
        return _unix(name, rest, word)
    if name == "watch":
        return _watch(rest, word)
    if name not in commands(top):
        return Answer("words", [])
    return _command(name, commands(top)[name], rest, word)


def _words(words: Iterable[Word], word: str) -> Answer:
    return Answer("words", [(one, what) for one, what in words if one.startswith(word)])


def _options(command: argparse.ArgumentParser) -> list[Word]:
    return [
        (name, action.help or "")
        for action in command._actions
        for name in action.option_strings
        if name.startswith("--") or len(action.option_strings) == 1
    ]


# -- the commands of argparse --------------------------------------------------------------------------------


def _command(name: str, command: argparse.ArgumentParser, rest: Sequence[str], word: str) -> Answer:
    given, operands, waiting = _read(command, rest)
    known = command._option_string_actions
    if waiting:
        return _value(known[waiting], given, word)
    option, equals, value = word.partition("=")
    if equals and option in known:
        found = _value(known[option], given, value)
        return found._replace(words=[(f"{option}={one}", what) for one, what in found.words])
    if name == "queue" and operands:
        return _selection(operands, given, word, _options(command))
    if word.startswith("-"):
        return _words(_options(command), word)
    places = [action for action in command._actions if not action.option_strings]
    for action in places:
        if not operands or action.nargs in ("+", "*"):
            return _value(action, given, word)
        operands = operands[1:]
    return Answer("words", [])


def _read(command: argparse.ArgumentParser, rest: Sequence[str]) -> tuple[dict[str, str], list[str], str]:
    """(options given, operands given, the option whose value is next)."""
    given: dict[str, str] = {}
    operands: list[str] = []
    waiting = ""
    for one in rest:
        option, equals, value = one.partition("=")
        action = command._option_string_actions.get(option)
        if waiting:
            given[waiting], waiting = one, ""
        elif action is None:
            operands.append(one)
        elif equals:
            given[option] = value
        elif action.nargs != 0:
            waiting = option
    return given, operands, waiting


def _value(action: argparse.Action, given: dict[str, str], word: str) -> Answer:
    """The value of an option, or an operand."""
    metavar = str(action.metavar)
    if metavar in _SHELLS_OWN:
        return Answer(_SHELLS_OWN[metavar], [])
    if action.choices is not None:
        texts = (
            {verb: what.partition(". ")[0] for verb, (_, what, _) in VERBS.items()}
            if metavar == "VERB"
            else {}
        )
        return _words(((str(one), texts.get(str(one), "")) for one in action.choices), word)
    if metavar in _KNOWN:
        return _words(_KNOWN[metavar](given, word), word)
    return Answer("words", [])


def _selection(operands: Sequence[str], given: dict[str, str], word: str, options: list[Word]) -> Answer:
    """Ids, words of a filter, ALL, and for reroute a relay."""
    verb, *_ = operands
    if word.startswith("--") or word == "-":
        return _words(options, word)
    if verb == "stats":
        return Answer("words", [])
    minus = "-" if word.startswith("-") else ""
    bare = word.removeprefix("-")
    field, colon, value = bare.partition(":")
    if colon:
        values = _field_values(field, given)
        return Answer(
            "words", [(f"{minus}{field}:{one}", what) for one, what in values if one.startswith(value)]
        )
    found = [(f"{minus}{one}:", what) for one, what in _fields() if one.startswith(bare)]
    if not minus:
        found += _words([("ALL", "everything on record")], word).words
        found += _words(_relays(given, word), word).words if verb == "reroute" and operands[1:] else []
        found += _ids(given, word) if word else []
    return Answer("words", found)


def _fields() -> list[Word]:
    """The words before the colon, and what they match."""
    found: dict[str, str] = {}
    for words, what in FILTERS:
        for one in words.split(", "):
            if ":" in one:
                found.setdefault(one.partition(":")[0], what)
    return list(found.items())


def _field_values(field: str, given: dict[str, str]) -> list[Word]:
    if field == "state":
        return [(state, "") for state in STATES]
    if field == "route":
        return _relays(given, "")
    return [(flag, "") for flag in _FLAGS.get(field, ())]


# -- what is known here --------------------------------------------------------------------------------------


def _namespace(given: dict[str, str]) -> argparse.Namespace:
    return argparse.Namespace(
        config=given.get("--config"), store=given.get("--store"), relay=given.get("--relay")
    )


def _relays(given: dict[str, str], _: str) -> list[Word]:
    """The relays of the configuration."""
    from outmail.cli.common import config_of

    routes = config_of(_namespace({**given, "--relay": ""})).routes
    return [(name, relay.url) for name, relay in routes.relays.items()]


def _ids(given: dict[str, str], word: str) -> list[Word]:
    """Messages of this user's SQLite store: those whose ids begin so; or those that wait."""
    from outmail.cli.common import config_of
    from outmail.outbox.queue import Queue
    from outmail.wiring import is_postgres, store_path

    config = config_of(_namespace(given))
    if is_postgres(config.store) or not _is_mine(store_path(config.store)[0]):
        return []
    with Queue.open(config) as queue:
        if word:
            return [(id, "") for id in queue.ids_beginning(word, MOST)]
        return [(one.id, one.address) for one in islice(queue.unfinished(), MOST)]


def _is_mine(path: str) -> bool:
    try:
        return os.stat(path).st_uid == os.geteuid()
    except OSError:
        return False


def _codes(_: dict[str, str], __: str) -> list[Word]:
    from outmail.cli.explanations import CODES

    return [(code, what) for code, what in CODES.items()]


def _pages(_: dict[str, str], __: str) -> list[Word]:
    from outmail.cli.manual import names

    return [(name, "") for name in names()]


def _providers(_: dict[str, str], __: str) -> list[Word]:
    """What `outmail init --provider` takes; behind a colon stands a region."""
    from outmail.policy.providers import PROVIDERS

    return [(one.key + ":" * ("{region}" in one.host), one.name) for one in PROVIDERS]


_KNOWN: dict[str, Callable[[dict[str, str], str], list[Word]]] = {
    "RELAY": _relays,
    "ID": _ids,
    "ID|ADDRESS": _ids,
    "CODE": _codes,
    "PAGE": _pages,
    "PROVIDER": _providers,
}


# -- commands that read their words themselves ---------------------------------------------------------------


def _watch(rest: Sequence[str], word: str) -> Answer:
    from outmail.cli.watch import OPTIONS

    if "--" in rest:
        return Answer("commands", []) if rest[-1] == "--" else Answer("files", [])
    last = rest[-1].removeprefix("--") if rest else ""
    takes = OPTIONS[last][1] if last in OPTIONS else ""
    if takes in _SHELLS_OWN:
        return Answer(_SHELLS_OWN[takes], [])
    if takes == "RELAY":
        return _words(_relays(dict(zip(rest[::2], rest[1::2])), word), word)
    if takes:
        values = {"on": ("fail", "always", "change", "never"), "lock": ("skip", "wait")}
        return _words(((one, "") for one in values.get(last, ())), word)
    return _words(
        [("--", "the command follows"), *((f"--{name}", one[2]) for name, one in OPTIONS.items())], word
    )


def _unix(name: str, rest: Sequence[str], word: str) -> Answer:
    from outmail.unix import flag_help

    flags = {"sendmail": flag_help.SENDMAIL, "mail": flag_help.MAIL, "mailx": flag_help.MAIL}.get(name, ())
    if name != "sendmail" and rest and rest[-1] in ("-a", "-A", "-q"):
        return Answer("files", [])
    if rest and rest[-1] == "-C":
        return Answer("files", [])
    if not word.startswith("-"):
        return Answer("words", [])
    found = [(one.partition(" ")[0], what) for names, what in flags for one in names.split(", ")]
    return _words([("--help", "all flags"), *found], word)
