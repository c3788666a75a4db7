"""The command line for argparse: commands, options and arguments, and what the help says of them.

Promises: wrong words end with 64 and a sentence that says what would be right. Does not: run anything
(`cli.main`), load what only some commands need, or parse the command line of `outmail watch`, which must
start quickly (`watch`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from outmail.cli.exits import EX_USAGE
from outmail.cli.queue_help import VERBS, VerbHelp

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction["_Parser"]
    _Common = list["_Parser"]


class _Help(argparse.HelpFormatter):
    """argparse's own formatter, made once for each argument. It asks for the terminal's width without
    `shutil`, which would load the compressors for archives.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    """``shutil.get_terminal_size().columns``."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return 80


class _Parser(argparse.ArgumentParser):
    """argparse with the exit statuses of sysexits."""

    def __init__(self, *arguments: Any, **words: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": _Help, **words})

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """argparse's own check, with the nearest possible value."""
        if action.choices is None or value in action.choices:
            return
        what = action.metavar if isinstance(action.metavar, str) else action.dest
        known = [str(choice) for choice in action.choices]
        raise argparse.ArgumentError(
            None, f"{value!r} is no {what}{nearest(str(value), known)}; known are {', '.join(known)}"
        )

    def unknown(self, words: list[str]) -> None:
        """Complain about words that are no option of this command."""
        option = next((word.partition("=")[0] for word in words if word.startswith("-")), "")
        if not option:
            self.error(f"unexpected: {' '.join(words)}")
        self.error(f"unknown option {option}{nearest(option, self._option_string_actions)}")

    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}\n")


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean …?``, or nothing."""
    import difflib

    near = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _common() -> _Parser:
    common = _Parser(add_help=False)
    where = common.add_argument_group("which queue, which relay")
    where.add_argument(
        "--config", metavar="FILE", help="the configuration (default: see outmail man outmail.toml)"
    )
    where.add_argument("--store", metavar="STORE", help="the queue: a path or a URL")
    where.add_argument("--relay", metavar="RELAY", help="the name of a configured relay, or a URL")
    return common


def _envelope(parser: argparse.ArgumentParser) -> None:
    """The options of a message's envelope and schedule."""
    parser.add_argument("recipients", nargs="+", metavar="RCPT", help="the address of a recipient")
    parser.add_argument(
        "-f",
        "--from",
        dest="sender",
        metavar="ADDRESS",
        help="the sender (default: from of the configuration, or user@host)",
    )
    parser.add_argument("--cc", action="append", default=[], metavar="ADDRESS", help="one more recipient")
    parser.add_argument(
        "--bcc", action="append", default=[], metavar="ADDRESS", help="one more, whom the others do not see"
    )
    parser.add_argument("--key", metavar="KEY", help="idempotency key: the same key stores one message only")
    parser.add_argument(
        "--at", metavar="TIME", help="not before: 2h, 18:00, tomorrow 9:00, 2026-12-24 (local time)"
    )
    parser.add_argument("--expires", metavar="TIME", help="give up after: 1d, or a time as for --at")
    parser.add_argument(
        "--priority",
        default="normal",
        choices=("high", "normal", "low"),
        help="what is sent first when much waits (default: normal)",
    )
    parser.add_argument("--tag", metavar="TAG", help="a word to find it by (tag:TAG) and to choose its route")
    parser.add_argument(
        "--wait",
        type=float,
        metavar="SECONDS",
        help="deliver it here, for at most so long: status 0 all delivered, 69 some failed, 75 still queued",
    )
    parser.add_argument("--json", action="store_true", help="the receipt, or an error, as JSON")


def _init(parser: argparse.ArgumentParser) -> None:
    """The options of `outmail init`."""
    for option, metavar, text in (
        ("--email", "A", "your address: the sender of this machine's mail, and who gets its reports"),
        ("--provider", "PROVIDER", "gmail, fastmail, ses:eu-central-1 …, instead of looking for the server"),
        ("--relay", "URL", "the server: smtps://HOST or smtp://HOST (STARTTLS), instead of looking for it"),
        ("--login", "USER", "the user name there (default: as the provider wants it)"),
        ("--password-file", "FILE", "read the password from a file"),
        ("--from", "A", "the sender, if it is not --email"),
        ("--to", "A", "who gets the test message (default: --email)"),
        ("--ca", "FILE", "the certificate of the authority that signed the server's"),
        ("--config", "PATH", "where the configuration is written"),
        ("--root", "DIR", "set up the root file system below DIR, which is not running"),
    ):
        parser.add_argument(option, metavar=metavar, help=text, dest={"--from": "sender"}.get(option))
    parser.add_argument("--password-stdin", action="store_true", help="read the password from stdin")
    whole = parser.add_mutually_exclusive_group()
    whole.add_argument("--system", action="store_true", help="for the whole machine (default for root)")
    whole.add_argument("--user", action="store_true", help="for this account only (default for others)")
    parser.add_argument(
        "--service", choices=("systemd", "timer", "cron", "none"), help="what sends the mail that waits"
    )
    parser.add_argument(
        "--sendmail", action=argparse.BooleanOptionalAction, help="outmail is this machine's sendmail, too"
    )
    parser.add_argument("--no-test", action="store_true", help="no test message")
    parser.add_argument("--no-lookup", action="store_true", help="do not ask the network for the server")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be done")
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    parser.add_argument("--undo", action="store_true", help="take back what init did, and only that")
    parser.add_argument(
        "--delete-mail", action="store_true", help="--undo: also a queue with mail that is not delivered"
    )


def _add_demo(sub: _Commands) -> None:
    demo = sub.add_parser("demo", help="the whole road on this machine; nothing leaves it")
    demo.add_argument(
        "--messages", type=int, default=240, metavar="N", help="how many messages (at least 200)"
    )
    demo.add_argument("--keep", metavar="DIR", help="keep the queue and the logs in DIR")
    demo.set_defaults(run="demo")


def _add_init(sub: _Commands) -> None:
    init = sub.add_parser(
        "init",
        help="set up outgoing mail: asks for address and password and tests them; --undo takes it back",
        description="What is not given as an option is asked for. Nothing is changed before the plan is "
        "shown and a test message has arrived. Passwords come from the terminal, --password-file, "
        "--password-stdin or $OUTMAIL_PASSWORD.",
    )
    _init(init)
    init.set_defaults(run="init")


def _add_send(sub: _Commands, common: _Common) -> None:
    send = sub.add_parser(
        "send",
        parents=common,
        help="store a message; the text is on stdin; prints the id",
        description="The text on stdin becomes a message, which is stored; an engine (outmail run) delivers "
        "it. The id of the message is printed.",
    )
    send.add_argument("-s", "--subject", default="", metavar="TEXT", help="the subject")
    send.add_argument("-a", "--attach", action="append", default=[], metavar="FILE", help="attach a file")
    send.add_argument("--html", metavar="FILE", help="an HTML version of the text")
    send.add_argument(
        "-H", "--header", action="append", default=[], metavar="'NAME: VALUE'", help="one more header field"
    )
    send.add_argument("--raw", action="store_true", help="stdin is a complete message (as for submit)")
    _envelope(send)
    send.set_defaults(run="send")


def _add_submit(sub: _Commands, common: _Common) -> None:
    submit = sub.add_parser(
        "submit",
        parents=common,
        help="store a complete message from stdin, bytes unchanged; prints the id",
        description="The complete message on stdin is stored, bytes unchanged; an engine (outmail run) "
        "delivers it. The id is printed. Recipients are those of the command line: the header is not read "
        "for them. -f '<>' is the null sender.",
    )
    _envelope(submit)
    submit.set_defaults(run="send", raw=True)


def _add_run(sub: _Commands, common: _Common) -> None:
    run = sub.add_parser(
        "run",
        parents=common,
        help="the engine: deliver what waits, until SIGTERM",
        description="Deliver what waits, and listen where [listen] of the configuration says, until SIGTERM.",
    )
    run.add_argument(
        "--once", action="store_true", help="one attempt for everything due now, then end (for cron)"
    )
    run.add_argument(
        "--strict",
        action="store_true",
        help="with --once: status 70 if mail was quarantined, else 69 if some failed, else 75 if some waits",
    )
    run.add_argument("--only", metavar="ID", help="this message now; implies --once")
    run.add_argument(
        "--transcript", metavar="FILE", help="append the dialogues to a file, unless none may be kept"
    )
    run.set_defaults(run="run")


def _add_receive(sub: _Commands, common: _Common) -> None:
    receive = sub.add_parser(
        "receive",
        parents=common,
        help="a local mail server: users, aliases, mailboxes; --catch: keep everything, deliver nothing",
    )
    receive.add_argument(
        "--catch", action="store_true", help="keep everything, deliver nothing, in a store of its own"
    )
    receive.add_argument(
        "--listen", action="append", default=[], metavar="HOST:PORT", help="where, instead of [receive] smtp"
    )
    receive.set_defaults(run="receive")


def _add_queue(sub: _Commands, common: _Common) -> None:
    queue = sub.add_parser(
        "queue",
        parents=common,
        add_help=False,
        help="list and change what is in the queue",
        description="List and change what is in the queue.",
    )
    queue.add_argument("-h", "--help", action=VerbHelp, nargs=0, help="this, or help for the verb before it")
    queue.add_argument("verb", choices=tuple(VERBS), metavar="VERB", help=f"one of {', '.join(VERBS)}")
    queue.add_argument(
        "selection",
        nargs="*",
        metavar="ID|FILTER|-|ALL",
        help="which mail: see below; for reroute, the relay is the last word",
    )
    queue.add_argument("--dry-run", action="store_true", help="say how many, change nothing")
    queue.add_argument("--ids", action="store_true", help="list: ids only")
    queue.add_argument("--utc", action="store_true", help=f"list: {_UTC}")
    queue.add_argument("--by", choices=("relay", "domain", "reason"), help="stats: only by this")
    for option, status in (("--warn", 1), ("--crit", 2)):
        queue.add_argument(
            option,
            action="append",
            default=[],
            metavar="AGE|COUNT",
            help=f"stats: exit status {status} when more wait, or the oldest for longer: 500, 2h",
        )
    queue.add_argument("--json", action="store_true", help="as one JSON document")
    queue.add_argument("--jsonl", action="store_true", help="as JSON, a message a line")
    queue.set_defaults(run="queue")


def _add_show(sub: _Commands, common: _Common) -> None:
    show = sub.add_parser("show", parents=common, help="one message: where every recipient stands")
    show.add_argument("id", metavar="ID", help=_ID)
    form = show.add_mutually_exclusive_group()
    form.add_argument("--text", action="store_true", help="the message as its reader sees it")
    form.add_argument("--raw", action="store_true", help="the message as a server gets it, byte for byte")
    form.add_argument("--json", action="store_true", help="as JSON")
    show.add_argument("--utc", action="store_true", help=_UTC)
    show.set_defaults(run="show")


def _add_log(sub: _Commands, common: _Common) -> None:
    log = sub.add_parser(
        "log", parents=common, help="every attempt of a message, and the SMTP dialogue of those that failed"
    )
    log.add_argument("id", metavar="ID", help=_ID)
    log.add_argument("--jsonl", action="store_true", help="as JSON, an attempt a line")
    log.add_argument("--utc", action="store_true", help=_UTC)
    log.set_defaults(run="log")


def _add_events(sub: _Commands, common: _Common) -> None:
    events = sub.add_parser("events", parents=common, help="what happened, in order")
    events.add_argument(
        "--follow", action="store_true", help="go on with what happens from now on (or --after, --since)"
    )
    events.add_argument(
        "--after", type=int, metavar="CURSOR", help="behind this one: the number at the beginning of a line"
    )
    events.add_argument("--since", metavar="TIME", help="since then: 2h (ago), 18:00, 2026-11-28")
    events.add_argument("--utc", action="store_true", help=_UTC)
    events.add_argument("--jsonl", action="store_true", help="as JSON, an event a line")
    events.set_defaults(run="events")


def _add_why(sub: _Commands, common: _Common) -> None:
    why = sub.add_parser("why", parents=common, help="the story of a message or an address, in sentences")
    why.add_argument("what", metavar="ID|ADDRESS", help="a message's id, or a recipient's address")
    why.add_argument("--utc", action="store_true", help=_UTC)
    why.set_defaults(run="why")


def _add_explain(sub: _Commands) -> None:
    explain = sub.add_parser(
        "explain", help="what an error code, an SMTP code or a server's reply means, and what to do"
    )
    explain.add_argument(
        "code", nargs="+", metavar="CODE", help="such as bad-address, 550, 5.1.1, or a whole reply"
    )
    explain.set_defaults(run="explain")


def _add_test(sub: _Commands, common: _Common) -> None:
    test = sub.add_parser("test", parents=common, help="send a test message now, showing the dialogue")
    test.add_argument("--to", required=True, metavar="ADDRESS", help="who gets the test message")
    test.add_argument("-f", "--from", dest="sender", metavar="ADDRESS", help="the sender")
    test.set_defaults(run="test")


def _add_store(sub: _Commands, common: _Common) -> None:
    store = sub.add_parser("store", parents=common, help="look after the store")
    store.add_argument(
        "verb",
        choices=("upgrade", "check", "backup", "ddl"),
        metavar="VERB",
        help="upgrade: bring it to the schema of this version; check: look for damage; backup: copy it to "
        "FILE while it is used; ddl: print the SQL of the table outmail_outbox",
    )
    store.add_argument("file", nargs="?", metavar="FILE", help="backup: a file that does not exist yet")
    store.add_argument(
        "--dialect", choices=("sqlite", "postgresql"), default="sqlite", help="ddl: for which database"
    )
    store.add_argument(
        "--free",
        metavar="STORE",
        help="check: give back what a vanished store claimed in [[outbox]] databases",
    )
    store.set_defaults(run="store")


def _add_move(sub: _Commands, common: _Common) -> None:
    move = sub.add_parser(
        "move",
        parents=common,
        help="move a queue to another store while its mail waits; killed, it goes on where it was",
    )
    move.add_argument(
        "old",
        metavar="FROM",
        help="the store that is emptied: a path or a URL; or mailqueue:/path or repoze:/path, a queue of "
        "mailqueue-runner or repoze.sendmail",
    )
    move.add_argument("new", metavar="TO", nargs="?", help="the store that gets the mail")
    move.add_argument(
        "--abandon",
        action="store_true",
        help="give up a move that was begun: what has arrived stays in TO, the rest in FROM",
    )
    move.set_defaults(run="move")


def _add_loopback(sub: _Commands, common: _Common) -> None:
    loopback = sub.add_parser(
        "loopback",
        parents=common,
        help="record a loopback copy that came home (the mail on stdin), or tell how copies fare",
    )
    loopback.add_argument(
        "verb",
        nargs="?",
        choices=("stats",),
        metavar="stats",
        help="times by route, and what is missing; status 2 when copies are missing",
    )
    loopback.add_argument("--json", action="store_true", help="stats as JSON")
    loopback.add_argument(
        "--assign",
        metavar="ID",
        help="give a message that was not tried yet a Message-ID by which its copy is known; prints it",
    )
    loopback.set_defaults(run="loopback")


def _add_certify(sub: _Commands, common: _Common) -> None:
    certify = sub.add_parser(
        "certify",
        parents=common,
        help="a signed statement of what is on record about a message, on stdout; or check one",
    )
    certify.add_argument("id", nargs="?", metavar="ID", help=_ID)
    certify.add_argument(
        "--verify", metavar="FILE", help="check a certificate, offline; 65 when it does not hold"
    )
    certify.add_argument(
        "--key", metavar="PEM", help="--verify: the signer's public key (default: this store's)"
    )
    certify.set_defaults(run="certify")


def _add_jobs(sub: _Commands, common: _Common) -> None:
    jobs = sub.add_parser("jobs", parents=common, help="jobs and watched commands: how they stand")
    jobs.add_argument(
        "verb",
        choices=("ls", "show", "history", "mute", "reset"),
        metavar="VERB",
        help="ls: all jobs; show: one of them; history: its runs; mute: no mails for a while; reset: forget "
        "its failures",
    )
    jobs.add_argument("name", nargs="?", metavar="NAME", help="the job's name")
    jobs.add_argument("span", nargs="?", metavar="SPAN", help="mute: for how long (8h); 0s ends it")
    jobs.add_argument("--json", action="store_true", help="as JSON")
    jobs.set_defaults(run="jobs")


def _add_digest(sub: _Commands, common: _Common) -> None:
    digest = sub.add_parser("digest", parents=common, help="log records that wait for a mail")
    digest.add_argument(
        "verb",
        choices=("ls", "show", "send", "drop", "mute"),
        metavar="VERB",
        help="ls: all handlers; show: what waits in one; send: mail it now; drop: forget it; mute: no mails "
        "for a while",
    )
    digest.add_argument("name", nargs="?", metavar="NAME", help="the handler's name")
    digest.add_argument("key", nargs="?", metavar="KEY", help="mute: this key only")
    digest.add_argument("span", nargs="?", metavar="SPAN", help="mute: for how long (8h); 0s ends it")
    digest.add_argument("--json", action="store_true", help="as JSON")
    digest.set_defaults(run="digest")


def _add_config(sub: _Commands, common: _Common) -> None:
    config = sub.add_parser("config", parents=common, help="the configuration in force")
    config.add_argument("--json", action="store_true", help="as JSON")
    config.add_argument(
        "--hash", action="store_true", help="hash a password from stdin for [listen] users_file"
    )
    config.add_argument(
        "--sample", action="store_true", help="a configuration file with all keys and their defaults"
    )
    config.set_defaults(run="config")


def _add_man(sub: _Commands) -> None:
    man = sub.add_parser(
        "man",
        help="show a manual page",
        description="Show a manual page. Where stdout is no terminal, its source is printed (for man -l).",
    )
    man.add_argument(
        "page",
        nargs="?",
        default="outmail",
        metavar="PAGE",
        help="outmail (the default), outmail.toml, sendmail, mailq, newaliases or mail",
    )
    man.set_defaults(run="man")


def _add_completion(sub: _Commands) -> None:
    completion = sub.add_parser(
        "completion",
        help="print the script by which a shell completes commands, options and values",
        epilog='bash: eval "$(outmail completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc,'
        " behind compinit; fish: outmail completion fish > "
        "~/.config/fish/completions/outmail.fish",
    )
    completion.add_argument(
        "shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish"
    )
    completion.set_defaults(run="completion")


def parser() -> _Parser:
    """The whole command line."""
    top = _Parser(
        prog="outmail",
        description="Outgoing mail for programs: accept, keep safe, deliver, prove.",
        epilog="outmail COMMAND --help explains a command, outmail man all of them. Called as "
        "sendmail, mailq, newaliases or mail (by a link of that name, or as the first "
        "word: outmail sendmail -t) it is that command of Unix.",
    )
    top.add_argument("--version", action="store_true", help="the version, and what it runs on")
    sub = top.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=_Parser)
    common = [_common()]
    _add_demo(sub)
    _add_init(sub)
    _add_send(sub, common)
    _add_submit(sub, common)
    _add_run(sub, common)
    _add_receive(sub, common)
    _add_queue(sub, common)
    _add_show(sub, common)
    _add_log(sub, common)
    _add_events(sub, common)
    _add_why(sub, common)
    _add_explain(sub)
    _add_test(sub, common)
    _add_store(sub, common)
    _add_move(sub, common)
    sub.add_parser("watch", add_help=False, help="run a command and mail when it fails")
    _add_loopback(sub, common)
    _add_certify(sub, common)
    _add_jobs(sub, common)
    _add_digest(sub, common)
    _add_config(sub, common)
    _add_man(sub)
    _add_completion(sub)

    lines = summaries(top)
    for name, made in sub.choices.items():
        made.set_defaults(parser=made)
        text = lines[name]
        made.description = made.description or f"{text[:1].upper()}{text[1:]}."
    return top


def commands(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Name → parser, in the order of the help."""
    return dict(_sub(top).choices)


def summaries(top: argparse.ArgumentParser) -> dict[str, str]:
    """Name → its line in the list of commands."""
    return {listed.dest: listed.help or "" for listed in _sub(top)._choices_actions}


def _sub(top: argparse.ArgumentParser) -> Any:
    return next(action for action in top._actions if isinstance(action, argparse._SubParsersAction))


_UTC = "times in UTC, not in local time"
_ID = "the message's id, or its beginning"


def place(top: _Parser, arguments: argparse.Namespace, rest: list[str]) -> None:
    """Put operands behind options into their place, and negated filter words (-to:x), which argparse takes
    for options.
    """
    words = [word for word in rest if not word.startswith("-") or ":" in word or word == "-"]
    if words == rest and arguments.command == "queue":
        arguments.selection += rest
    elif words == rest and arguments.command in ("jobs", "digest"):
        for word in rest:
            slot = next(
                (
                    name
                    for name in ("name", "key", "span")
                    if hasattr(arguments, name) and getattr(arguments, name) is None
                ),
                None,
            )
            if slot is None:
                arguments.parser.unknown([word])
            setattr(arguments, slot or "", word)
    elif words == rest and arguments.command == "store" and len(rest) == 1 and arguments.file is None:
        arguments.file = rest[0]
    else:
        (arguments.parser if arguments.command else top).unknown(rest)
