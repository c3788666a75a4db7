"""``outmail watch [options] -- CMD``: run a command as if it ran alone, and mail when there is something to
report.

Why it is fast: options by getopt, the child by fork and exec, and a run with nothing to report only appends
one line to a file beside the store. All other code of outmail is loaded only when a mail may be due. The line
is moved into the store by the next run that opens it, by `outmail jobs`, or by the service.
Promises: the exit status is the command's own (128+n on a signal, 124 on its time-out, 126/127 as in the
shell). Its streams pass through unchanged, byte for byte and at once. Signals reach it. A success is silent.
When outmail itself fails, it says so on stderr and still returns the command's status. Fails: 64 for wrong
options, before anything runs.
Does not: use a shell, or change the command's environment.
"""

from __future__ import annotations

import getopt
import os
import re
import sys
from typing import Any

from outmail.reports import liveness, spoolfiles
from outmail.system import place
from outmail.system.exits import EX_TEMPFAIL, EX_USAGE
from outmail.system.host import hostname
from outmail.system.lockfile import LockFile

#: option → (default, the name of its value or "", what it does). A test compares the table in docs/reports.md
#: with this one.
OPTIONS: dict[str, tuple[Any, str, str]] = {
    "name": ("", "NAME", "the job's name (default: the command's)"),
    "to": ((), "ADDRESS", "who is told (several times possible; default: `to` of the configuration)"),
    "after": ("1", "N", "mail after N failures in a row"),
    "remind": ("", "SPAN", "while it goes on failing, again every so often (1d)"),
    "no-recovered": (False, "", "no mail when it has recovered"),
    "on": ("fail", "WHEN", "when to mail: fail, always, change (of the output or the outcome), never"),
    "on-stderr": (False, "", "output on stderr counts as a failure"),
    "ok-codes": ("0", "CODES", "exit statuses that are success (0,24)"),
    "grep-fail": ("", "REGEX", "output that matches this regular expression counts as a failure"),
    "timeout": ("", "SPAN", "end the command after so long (2h), with status 124"),
    "kill-after": ("10s", "SPAN", "after the time-out's SIGTERM, SIGKILL after so long"),
    "lock": ("", "HOW", "if the last run is still going: skip or wait"),
    "late": (
        "",
        "SPAN",
        "mail when it has not run for so long (26h); needs `outmail run`, or `run --once` from cron",
    ),
    "tail": ("200", "N", "lines of output in the mail"),
    "attach": (False, "", "attach the whole output (up to 10 MB)"),
    "longer-than": ("", "SPAN", "mail also on success when it took longer than this"),
    "start": (False, "", "mail when it starts"),
    "quiet": (False, "", "hold the output back on success"),
    "no-output": (False, "", "no output in mails (it may hold secrets)"),
    "explain": (False, "", "say the policy in words and run nothing"),
    "config": ("", "FILE", "configuration file"),
    "store": ("", "STORE", "the queue: a path or a URL"),
    "relay": ("", "RELAY", "the name of a configured relay, or a URL"),
    "help": (False, "", "this help"),
}


class Options(dict[str, Any]):
    """Checked options; numbers and times (in milliseconds) are attributes with the options' names."""

    def __getattr__(self, name: str) -> Any:
        return self[name.replace("_", "-")]


class Usage(Exception):
    """Wrong options: status 64."""


def main(argv: list[str]) -> int:
    """``argv``: the words after ``watch``."""
    try:
        options, command = parse(argv)
        if options.help:
            sys.stdout.write(_help())
            return 0
        if options.explain:
            from outmail.reports.watch import explain

            print(explain(options))
            return 0
        if not command:
            raise Usage("no command: write outmail watch [options] -- COMMAND ARGUMENTS")
    except Usage as problem:
        print(f"outmail watch: {problem}", file=sys.stderr)
        return EX_USAGE
    options["name"] = _named(options.name or os.path.basename(command[0]))
    return _watch(options, command)


def parse(argv: list[str]) -> tuple[Options, list[str]]:
    """Options and the command after ``--``; raises `Usage`."""
    try:
        found, command = getopt.getopt(
            argv, "h", [name + ("=" if takes else "") for name, (_, takes, _) in OPTIONS.items()]
        )
    except getopt.GetoptError as problem:
        raise Usage(f"{problem}; see outmail watch --help") from None
    options = Options({name: default for name, (default, _, _) in OPTIONS.items()})
    for flag, value in found:
        name = "help" if flag == "-h" else flag[2:]
        options[name] = (*options[name], value) if name == "to" else value if OPTIONS[name][1] else True
    for name in ("remind", "timeout", "kill-after", "late", "longer-than"):
        options[name] = _span(name, options[name]) if options[name] else 0
    for name in ("after", "tail"):
        options[name] = _number(name, options[name], 1 if name == "after" else 0)
    options["ok-codes"] = tuple(_number("ok-codes", code, 0) for code in options["ok-codes"].split(","))
    for name, known in (("on", ("fail", "always", "change", "never")), ("lock", ("", "skip", "wait"))):
        if options[name] not in known:
            raise Usage(f"--{name} {options[name]!r}: known are {', '.join(filter(None, known))}")
    try:
        re.compile(options["grep-fail"])
    except re.error as problem:
        raise Usage(f"--grep-fail: {problem}") from None
    return options, command


def _number(name: str, text: str, least: int) -> int:
    if not text.strip().isdecimal() or int(text) < least:
        raise Usage(f"--{name} {text!r}: a whole number of at least {least}")
    return int(text)


def _named(name: str) -> str:
    """A job's name as the store keeps it (`mail.named`). Only an unusual name needs an import."""
    if name.isprintable() and len(name) <= 200:
        return name
    from outmail.reports.mail import named

    return named(name)


_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


def _span(name: str, text: str) -> int:
    """As `clock.parse_span`, but without importing it, because this must be fast."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", text)
    if not parts or "".join(a + b for a, b in parts) != text.replace(" ", ""):
        raise Usage(f"--{name} {text!r}: write a number with its unit, such as 90s, 15m, 2h or 1d")
    return int(sum(float(number) * _UNITS[unit] for number, unit in parts))


def _help() -> str:
    import textwrap

    lines = [
        "usage: outmail watch [options] -- COMMAND [ARGUMENTS]",
        "",
        "Run a command and mail when it fails; the command's exit status is returned.",
        "",
    ]
    for name, (default, takes, what) in OPTIONS.items():
        head = f"  --{name} {takes}".ljust(21)
        text = what.replace("`", "") + (f" [{default}]" if default and takes else "")
        lines += textwrap.wrap(text, 78, initial_indent=head, subsequent_indent=" " * 21)
    return "\n".join(lines) + "\n"


# -- running -------------------------------------------------------------------------------------------------


def _watch(options: Options, command: list[str]) -> int:
    from outmail.cli import child

    spool = _spool(options)
    lock = None
    if options.lock:
        lock = child.locked(spool, options.name, options.lock == "wait") if spool else None
        if lock is None and spool:
            if sys.stderr.isatty():
                print(f"outmail watch: {options.name} is still running; skipped", file=sys.stderr)
            return EX_TEMPFAIL
    if options.start:
        _heavy(options, lambda report, box: report.started(box, options, command))
    life = _alive(spool, options, command) if spool else None
    result = child.run(command, options)
    if lock is not None:
        os.close(lock)
    _tell(options, command, result, spool)
    if life is not None:
        life.end()
    return result.status


def _tell(options: Options, command: list[str], result: Any, spool: str) -> None:
    if spool and _nothing_to_say(options, result, spool):
        try:
            _note(spool, options, result)
        except OSError as problem:
            print(f"outmail watch: the run could not be recorded: {problem}", file=sys.stderr)
        return
    _heavy(options, lambda report, box: report.ended(box, options, command, result), command, result)


def _alive(spool: str, options: Options, command: list[str]) -> LockFile | None:
    """A locked file that says what is running. If we are killed, the next run or the service reports it."""
    import json
    import time

    began = int(time.time() * 1000)
    said = {
        "job": options.name,
        "kind": "watch",
        "pid": os.getpid(),
        "host": hostname().partition(".")[0],
        "started_at": began,
        "to": list(options.to),
        "command": command,
    }
    try:
        return liveness.alive(spool, f"{began}-{os.getpid()}", json.dumps(said).encode())
    except OSError:
        return None  # the command runs all the same; if it dies, only --late notices


def _heavy(options: Options, action: Any, command: list[str] | None = None, result: Any = None) -> None:
    """Run ``action`` with all of outmail loaded. A failure is printed and does not change the command's
    result. What should be said about ``result`` and was not stored is sent without the store.
    """
    try:
        from outmail.cli.common import configured
        from outmail.outbox.default import with_engine_if_needed
        from outmail.reports import watch as report

        with with_engine_if_needed(configured(options.config or None, options.store, options.relay)) as box:
            action(report, box)
    except BaseException as problem:
        hint = getattr(problem, "hint", "")
        why = f"{problem or type(problem).__name__}" + (f" ({hint})" if hint else "")
        if result is not None and not result.told:
            _past_the_store(options, command or [], result, why)
        else:
            print(f"outmail watch: the report failed: {why}", file=sys.stderr)


def _past_the_store(options: Options, command: list[str], result: Any, why: str) -> None:
    try:
        from outmail.cli.common import configured
        from outmail.errors import ConfigError
        from outmail.outbox.default import direct
        from outmail.reports import watch as report

        try:
            box = direct(configured(options.config or None, options.store, options.relay))
        except ConfigError as problem:  # it is unknown who may be told
            report.headline_only(options, result, why, str(problem))
        else:
            report.past_the_store(box, options, command, result, why)
    except BaseException as problem:
        print(f"outmail watch: the report failed: {why}; and {problem!r}", file=sys.stderr)


def _nothing_to_say(options: Options, result: Any, spool: str) -> bool:
    """True for a plain success of a job that is not known to have failed before."""
    if (
        options.on not in ("fail", "never")
        or result.failed
        or (options["longer-than"] and result.duration_ms > options["longer-than"])
    ):
        return False
    if os.path.exists(spoolfiles.attention(spool, options.name)):
        return False
    return spoolfiles.read(spoolfiles.late(spool, options.name)) == (
        str(options.late) if options.late else ""
    )


def _note(spool: str, options: Options, result: Any) -> None:
    import json

    line = {
        "job": options.name,
        "at": result.began_ms,
        "duration_ms": result.duration_ms,
        "status": result.status,
        "pid": os.getpid(),
    }
    spoolfiles.append(spoolfiles.runs(spool), json.dumps(line))


def _spool(options: Options) -> str:
    """The folder beside the store, found without checking the configuration; "" where only that can tell."""
    store = options.store or os.environ.get("OUTMAIL_STORE", "")
    if not store:
        import tomllib

        from outmail.system import trust

        try:
            file = trust.configuration(options.config, os.environ)
            if file is not None and file.found and file.doubt:
                return ""
            if file is not None:
                store = tomllib.loads(file.content.decode("utf-8")).get("store", "")
                store = place.beside(store, file.path) if isinstance(store, str) else ""
        except (OSError, ValueError):
            return ""
    found = place.parts(store or place.default_store(os.environ))
    return os.path.realpath(found[1].rstrip("/")) + ".spool" if found is not None else ""
