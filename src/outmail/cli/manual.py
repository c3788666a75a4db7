"""The manual pages outmail(1), outmail.toml(5) and outmail-sendmail(1), and the command ``outmail man``.

They are made from what the commands themselves use: the tree of `arguments`, the options of `watch`, the
tables of `queue_help` and `flag_help`, and the list of `settings`. The build of a package writes them
(`files`) into share/man. Their names begin with outmail, because a machine may have a sendmail(1) and a
mail(1) of another program, and a package must not hide them.
Promises: nothing here needs a package of others, a configuration or a store.
Fails: 66 for a page that does not exist. Does not: keep made pages anywhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from outmail import __version__
from outmail.cli.arguments import commands, nearest, parser, summaries
from outmail.cli.exits import EX_NOINPUT
from outmail.cli.queue_help import FILTERS, SELECTION, VERBS
from outmail.cli.roff import Page, bold, escaped, italic, term
from outmail.policy import settings
from outmail.system.exits import MEANINGS
from outmail.unix import flag_help

_EXAMPLES = (
    "outmail demo",
    'echo "Backup done" | outmail send -s backup you@example.org',
    "outmail run --once --store mail.db --relay smtp://localhost:25",
    "outmail queue list to:@example.org is:deferred",
    "outmail why you@example.org",
    "outmail watch --after 3 -- /usr/local/bin/backup",
)
_FILES = (
    ("/var/lib/outmail/queue.db", "root's queue, where neither --store nor the configuration names one"),
    ("$XDG_DATA_HOME/outmail/queue.db", "that of every other user (~/.local/share/outmail/queue.db)"),
    ("/var/spool/outmail/drop", "where sendmail leaves mail for the service"),
)
_ELSEWHERE = (
    ("NO_COLOR", "no colour on a terminal"),
    ("COLUMNS", "the width of tables and help"),
    ("XDG_CONFIG_HOME, XDG_DATA_HOME", "where a user's configuration and queue are"),
)
#: A page's name in the package → what it is called when somebody asks for it.
_LINKS = {"outmail-mailq": "mailq", "outmail-newaliases": "newaliases", "outmail-mail": "mail"}


def man(arguments: argparse.Namespace) -> int:
    """Show a page, or print its source where stdout is no terminal."""
    name = _known(arguments.page)
    if name is None:
        near = nearest(arguments.page, names())
        print(f"outmail: there is no page {arguments.page}{near}", file=sys.stderr)
        return EX_NOINPUT
    source = _PAGES[name]()
    if not sys.stdout.isatty():
        sys.stdout.write(source)
        return 0
    import shutil
    import subprocess

    for program in (["man", "-l", "-"], ["mandoc", "-l"]):
        if shutil.which(program[0]):
            return subprocess.run(program, input=source.encode(), check=False).returncode
    sys.stdout.write(source)
    return 0


def names() -> list[str]:
    """What pages may be called."""
    return [*_PAGES, *_LINKS.values()]


def _known(name: str) -> str | None:
    """``sendmail``, ``outmail-sendmail``, ``mailq``, ``outmail.toml.5`` … → one of `_PAGES`."""
    bare = name.lower().removesuffix(".1").removesuffix(".5").removeprefix("outmail-")
    if bare in ("mailx", *_LINKS.values()):
        return "sendmail"
    return bare if bare in _PAGES else None


def files() -> dict[str, str]:
    """The path of each file below share/man → its text."""
    links = {f"man1/{name}.1": ".so man1/outmail-sendmail.1\n" for name in _LINKS}
    pages = {
        "man1/outmail.1": command(),
        "man5/outmail.toml.5": configuration(),
        "man1/outmail-sendmail.1": sendmail(),
    }
    return {**pages, **links}


# -- outmail(1) ----------------------------------------------------------------------------------------------


def command() -> str:
    """outmail(1)."""
    top = parser()
    page = Page("outmail", 1, ["outmail"], "outgoing mail for programs", __version__)
    page.section("synopsis")
    page.words(["outmail COMMAND [OPTION ...]", "outmail --version"])
    page.section("description")
    page.text(
        "outmail takes a message from a program, keeps it safe in a queue on disk, gets "
        "it to a mail server (the relay), and records what became of it. `outmail send` "
        "only stores a message; an engine delivers it: `outmail run` as a service, "
        "`outmail run --once` from cron, or a thread in a program."
    )
    page.text("Data goes to stdout, words for people to stderr. `outmail demo` shows all, and sends nothing.")
    page.section("commands")
    for name in commands(top):
        _command(page, name, top)
    _common(page, top)
    page.section("selections")
    page.text(SELECTION)
    for words, what in FILTERS:
        page.item(bold(words), what)
    _statuses(page)
    _environment(page, _ELSEWHERE)
    page.section("files")
    for path in settings.FILES[2:]:
        page.item(bold(path.partition(" (")[0]), _configuration_file(path))
    for path, what in _FILES:
        page.item(bold(path), what)
    page.section("examples")
    page.sample(_EXAMPLES)
    _see(page, "outmail.toml(5)", "outmail-sendmail(1)")
    return str(page)


def _command(page: Page, name: str, top: argparse.ArgumentParser) -> None:
    if name == "watch":
        return _watch(page, summaries(top)[name])
    command = commands(top)[name]
    page.part(_usage(command))
    page.text(command.description or "")
    if name == "queue":
        for operands, what, examples in VERBS.values():
            verb = examples[0].partition(" ")[0]
            page.item(term(f"outmail queue {verb} {operands}"), what)
    for action in _own(command):
        page.item(_head(action), _help(action))


def _watch(page: Page, summary: str) -> None:
    from outmail.cli.watch import OPTIONS

    page.part("outmail watch [OPTION ...] -- COMMAND [ARGUMENT ...]")
    page.text(f"{summary[:1].upper()}{summary[1:]}. The command's own exit status is returned.")
    for name, (default, takes, what) in OPTIONS.items():
        if name not in ("config", "store", "relay", "help"):
            page.item(
                _option((f"--{name}",), takes), what + (f" (default: {default})" if default and takes else "")
            )


def _common(page: Page, top: argparse.ArgumentParser) -> None:
    """The options that (nearly) all commands take, once."""
    others = [name for name, one in commands(top).items() if not _takes_queue(one) and name != "watch"]
    page.section("common options")
    page.text(f"All commands but {', '.join(others)} take these:")
    for action in commands(top)["send"]._actions:
        if action.dest in _COMMON:
            page.item(_head(action), _help(action))
    page.text("All take `--help`; outmail itself takes `--version`.")


_COMMON = ("config", "store", "relay")


def _takes_queue(command: argparse.ArgumentParser) -> bool:
    return "--store" in command._option_string_actions


def _own(command: argparse.ArgumentParser) -> list[argparse.Action]:
    shared = _COMMON if _takes_queue(command) else ()
    return [one for one in command._actions if one.dest not in ("help", *shared)]


def _usage(command: argparse.ArgumentParser) -> str:
    """One line: what must be given, and the operands."""
    own = _own(command)
    needed = [f"{one.option_strings[0]} {one.metavar}" for one in own if one.option_strings and one.required]
    operands = [_operand(one) for one in own if not one.option_strings]
    return " ".join([command.prog, "[OPTION ...]", *needed, *operands])


def _operand(action: argparse.Action) -> str:
    name = action.metavar if isinstance(action.metavar, str) else action.dest
    many = {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} ..."}
    return many.get(str(action.nargs), name)


def _head(action: argparse.Action) -> str:
    if not action.option_strings:
        return italic(str(action.metavar or action.dest))
    if action.nargs == 0:
        return _option(tuple(action.option_strings), "")
    if isinstance(action.metavar, str):
        return _option(tuple(action.option_strings), action.metavar)
    return _option(tuple(action.option_strings), "|".join(map(str, action.choices or ())))


def _option(names: tuple[str, ...], value: str) -> str:
    shown = ", ".join(bold(name) for name in names)
    return f"{shown} {italic(value)}" if value else shown


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%")


def _statuses(page: Page) -> None:
    page.section("exit status")
    for status, meaning in MEANINGS.items():
        page.item(bold(str(status)), meaning)


def _environment(page: Page, more: tuple[tuple[str, str], ...] = ()) -> None:
    page.section("environment")
    for name, what in (*settings.VARIABLES.items(), *more):
        page.item(bold(name), what)


def _see(page: Page, *others: str) -> None:
    page.section("see also")
    page.text(", ".join(f"`{other.partition('(')[0]}`({other.partition('(')[2]}" for other in others))


def _configuration_file(path: str) -> str:
    _, _, where = path.partition(" (")
    return "a configuration" + (f" ({where}" if where else "")


# -- outmail.toml(5) -----------------------------------------------------------------------------------------


def configuration() -> str:
    """outmail.toml(5)."""
    page = Page("outmail.toml", 5, ["outmail.toml"], "configuration of outmail", __version__)
    page.section("description")
    page.text("The first of these that exists is read; without any, the defaults hold:")
    for path in settings.FILES:
        page.item("\\(bu", path)
    page.text(
        "It is a TOML file. An unknown key is an error, and an empty file is valid. A "
        "file that was found, not named, must belong to its user or to root, and nobody "
        "else may write it. Relative paths are relative to the file, those of `store` to "
        "the current folder. `outmail config` shows what is in force, and `outmail config"
        " --sample` prints a file with all keys."
    )
    page.section("keys")
    for setting in settings.TOP:
        _setting(page, setting)
    for table in settings.TABLES:
        page.part(table.heading)
        page.text(_sentence(table.text))
        for setting in table.settings:
            _setting(page, setting)
    page.section("relay urls")
    for urls, what, port in settings.RELAY_URLS:
        page.item(bold(urls.replace("`", "")), what + (f" (port {port})" if port else ""))
    _environment(page)
    _see(page, "outmail(1)", "outmail-sendmail(1)")
    return str(page)


def _setting(page: Page, setting: settings.Setting) -> None:
    if not (setting.text or setting.example):
        return
    head = bold(setting.key) + (f" = {escaped(setting.default)}" if setting.default else "")
    example = f"for example `{setting.example}`" if setting.example else ""
    page.item(head, "; ".join(filter(None, (setting.text, example))))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


# -- outmail-sendmail(1) -------------------------------------------------------------------------------------


def sendmail() -> str:
    """outmail-sendmail(1), which is about mailq, newaliases and mail, too."""
    names = ["outmail-sendmail", "outmail-mailq", "outmail-newaliases", "outmail-mail"]
    page = Page("outmail-sendmail", 1, names, "sendmail, mailq, newaliases and mail of outmail", __version__)
    page.section("synopsis")
    page.words(f"outmail {usage}" for usage in (*flag_help.SENDMAIL_USAGE, *flag_help.MAIL_USAGE))
    page.section("description")
    page.text(
        "These are the commands by which programs on Unix hand in mail. A link of the "
        "name `sendmail`, `mailq`, `newaliases`, `mail` or `mailx` to the command "
        "`outmail` is that command without the first word."
    )
    page.text(flag_help.SENDMAIL_TEXT)
    page.text(
        "`mailq` prints what waits, `newaliases` says what is wrong in the alias file. "
        f"For `mail`: {flag_help.MAIL_TEXT[:1].lower()}{flag_help.MAIL_TEXT[1:]}"
    )
    page.text(
        "With a service, mail goes into its drop folder, where there is one that it owns;"
        " the service need not run at that moment. Else it goes into the caller's own "
        "queue, which `outmail run` of that user delivers."
    )
    for title, flags in (("flags of sendmail", flag_help.SENDMAIL), ("flags of mail", flag_help.MAIL)):
        page.section(title)
        for words, what in flags:
            page.item(term(words), what)
    _statuses(page)
    page.section("files")
    page.item(
        bold("/var/spool/outmail/drop"), "the service's drop folder, unless [accept] drop names another"
    )
    page.item(bold("/etc/aliases"), "aliases of bare names, unless [accept] aliases names another file")
    page.item(bold("/etc/mailname"), "the domain of bare names, unless [accept] origin names one")
    _see(page, "outmail(1)", "outmail.toml(5)")
    return str(page)


_PAGES: dict[str, Callable[[], str]] = {
    "outmail": command,
    "outmail.toml": configuration,
    "sendmail": sendmail,
}
