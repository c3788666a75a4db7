"""The command. `main` parses the arguments, calls one function of the command's module, and turns errors into
sentences and exit statuses. Only that module, and what it uses, is loaded.

stdout is data, stderr is for people. Exit statuses (sysexits): 0 done, 64 usage, 65 refused, 66 not found, 69
permanently failed, 70 a bug of outmail or quarantined, 75 not stored but may work later, 77 not stored
because a permission is missing, 78 configuration.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from outmail.cli.exits import EX_SOFTWARE, EX_TEMPFAIL, EX_USAGE, status_of, told
from outmail.errors import Error
from outmail.system import circle, streams
from outmail.unix import NAMES

_HOMES = {
    "sending": ("send",),
    "trial": ("test",),
    "running": ("run", "receive"),
    "queue": ("queue",),
    "looking": ("show", "log", "events", "explain", "config"),
    "why": ("why",),
    "storage": ("store", "move"),
    "reporting": ("jobs", "digest"),
    "loopback": ("loopback",),
    "certify": ("certify",),
    "demo": ("demo",),
    "init": ("init",),
    "manual": ("man",),
    "completion": ("completion",),
}
_WHERE = {command: home for home, commands in _HOMES.items() for command in commands}


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit status. 141: nobody reads what we print any more (``| head``)."""
    streams.complete()
    try:
        return _run(argv)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None and (name := os.path.basename(sys.argv[0])) in NAMES:
        words = [name, *words]
    if circle.is_closed():
        return EX_TEMPFAIL
    if words[:1] and words[0] in NAMES:
        from outmail.unix.main import main as as_on_unix

        return as_on_unix(words[0], words[1:])
    if words[:1] == ["watch"]:
        from outmail.cli import watch

        return watch.main(words[1:])
    if words[:1] == ["completion"] and len(words) > 2:
        from outmail.cli import completion

        return completion.answer(words[1], words[2:])
    from outmail.cli.arguments import parser, place

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # an ASCII terminal shows escapes for other characters
            stream.reconfigure(errors="backslashreplace")
    top = parser()
    arguments, rest = top.parse_known_args(words)
    if rest:
        place(top, arguments, rest)
    if arguments.version:
        from outmail.cli import version

        print(*version.lines(), sep="\n")
        return 0
    if not arguments.command:
        top.print_help(sys.stderr)
        return EX_USAGE
    try:
        from importlib import import_module

        home = import_module(f"outmail.cli.{_WHERE[arguments.run]}")
        return int(getattr(home, arguments.run)(arguments))
    except Error as problem:
        return _told(problem, getattr(arguments, "json", False))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        raise
    except Exception as problem:
        return _unexpected(problem, getattr(arguments, "json", False))


def _unexpected(problem: Exception, as_json: bool) -> int:
    """Trouble with the store where no message was involved, or a bug of ours, which is shown completely."""
    from outmail.accept.acceptance import not_stored
    from outmail.store import StoreError

    if isinstance(problem, StoreError):
        return _told(not_stored(problem, "the store cannot be used"), as_json)
    import traceback

    traceback.print_exception(problem)
    print("outmail: this is a bug of outmail; please report it with the lines above", file=sys.stderr)
    return EX_SOFTWARE


def _told(problem: Error, as_json: bool) -> int:
    if as_json:
        import json

        streams.say(
            json.dumps({"error": {"code": problem.code, "message": str(problem), "hint": problem.hint}})
        )
        return status_of(problem)
    return told("outmail", problem)


if __name__ == "__main__":
    sys.exit(main())
