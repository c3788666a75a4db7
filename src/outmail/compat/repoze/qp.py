"""``qp [OPTIONS] QUEUE``: send what waits in a queue directory of repoze.sendmail.

The files are taken into a store that lies in the directory itself (``QUEUE/outmail.db``), and an engine works
on it once, so each recipient has a state of its own, a schedule and a story: ``outmail queue list --store
QUEUE/outmail.db``. With ``--import`` they are taken into outmail's own queue instead, and its engine sends
them.
Promises: those of `drain`, also beside programs that write into the directory and beside repoze.sendmail's
own ``qp``. A configuration that works there works here. Root's run works as the directory's owner, once the
configuration is read; root does not import another user's directory.
Fails: as sysexits with a line on stderr: 64 usage, 66 no such directory, 69 a recipient failed for good, 70
something was set aside, 75 mail still waits, 77 not allowed, 78 configuration. Does not: run on after that.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from outmail.cli.exits import EX_NOINPUT
from outmail.compat.drain import config_for, drain, known_beside
from outmail.compat.foreign_queue import INSTEAD, absent, take_in
from outmail.compat.programs import STATUSES, Parser, Usage, ended, teller
from outmail.compat.relays import Encryption, relay_url
from outmail.compat.repoze.maildir import REJECTED, RepozeQueue
from outmail.config import Config
from outmail.errors import ConfigError
from outmail.model import Settled
from outmail.outbox.outbox import Outbox
from outmail.policy.plain import plain_line
from outmail.policy.route import Relay, is_loopback, parse_relay
from outmail.policy.veil import known
from outmail.system import rights

SECTION = "app:qp"

_tell = teller("qp")


@dataclass(frozen=True)
class Settings:
    """What the options and the ini file say, under repoze.sendmail's names."""

    hostname: str = "localhost"
    port: int | None = None
    username: str = ""
    password: str = ""
    ssl: bool = False
    force_tls: bool = False
    no_tls: bool = False
    queue_path: str = ""
    debug_smtp: bool = False


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit status."""
    return ended("qp", lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: list[str]) -> int:
    words = parser().parse_args(argv)
    settings = asked(words)
    if not settings.queue_path:
        raise Usage("no queue directory: name it, or set queue_path in the ini file")
    if why := absent(settings.queue_path):
        _tell(why)
        return EX_NOINPUT
    logging.getLogger("outmail").setLevel(logging.ERROR)  # what matters of it is told at the end
    queue = RepozeQueue(os.path.abspath(settings.queue_path))
    status = _imported(queue, words.store) if words.import_ else _sent(queue, settings)
    _tell_rejected(queue)
    return status


def parser() -> Parser:
    """The options of qp."""
    made = Parser(
        prog="qp",
        allow_abbrev=False,
        description="Send what waits in a queue directory of repoze.sendmail.",
        epilog=STATUSES,
    )
    made.add_argument(
        "queue_path", nargs="?", metavar="QUEUE", help="the Maildir; queue_path in the ini file"
    )
    made.add_argument("--hostname", help="the mail server (localhost)")
    made.add_argument("--port", type=int, help="its port (25; with --ssl 465)")
    made.add_argument("--username", help="to log in; with --password")
    made.add_argument("--password", help="every user of this machine can see it here: better in the ini file")
    made.add_argument("--ssl", action="store_const", const=True, help="TLS from the start")
    made.add_argument("--force-tls", action="store_const", const=True, help="require STARTTLS")
    made.add_argument("--no-tls", action="store_const", const=True, help="no TLS, even if it is offered")
    made.add_argument("--config", metavar="INI", help=f"an ini file with [{SECTION}]; options go before it")
    made.add_argument("--debug-smtp", action="store_const", const=True, help="show the dialogue on stderr")
    made.add_argument(
        "--import",
        dest="import_",
        action="store_true",
        help="take the mail into outmail's queue, whose engine sends it, and send nothing here",
    )
    made.add_argument("--store", metavar="S", help="with --import: this queue, not the configured one")
    return made


# -- settings ------------------------------------------------------------------------------------------------


def asked(words: argparse.Namespace) -> Settings:
    """What the options say, and the ini file about the rest. Raises `ConfigError`."""
    path = words.config or _found()
    given = {
        name: getattr(words, name)
        for name in Settings.__dataclass_fields__
        if getattr(words, name) is not None
    }
    settings = replace(read(path) if path else Settings(), **given)
    if bool(settings.username) != bool(settings.password):
        raise ConfigError("username and password belong together", hint="give both, or neither")
    if settings.force_tls and settings.no_tls:
        raise ConfigError("force_tls and no_tls exclude each other", hint="give one of them")
    if words.store and not words.import_:
        raise ConfigError("--store is for --import", hint="without it the store is QUEUE/outmail.db")
    return settings


def _found() -> str:
    """``etc/qp.ini`` beside the folder of the running Python (repoze.sendmail 4.4), or in it (4.5); ""."""
    bin = os.path.dirname(sys.executable)
    places = (os.path.join(os.path.dirname(bin), "etc", "qp.ini"), os.path.join(bin, "etc", "qp.ini"))
    return next((place for place in places if os.path.exists(place)), "")


def read(path: str) -> Settings:
    """The section ``[app:qp]`` of an ini file. Raises `ConfigError`."""
    from configparser import ConfigParser
    from configparser import Error as Unreadable

    ini = ConfigParser()
    try:
        with open(path, encoding="utf-8") as file:
            ini.read_file(file, path)
    except OSError as problem:
        raise ConfigError(f"{path}: {problem.strerror}", hint="name a readable ini file") from None
    except (Unreadable, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path}: {' '.join(str(problem).split())}") from None
    if not ini.has_section(SECTION):
        raise ConfigError(f"{path}: there is no section [{SECTION}]")

    def text(key: str) -> str:
        value = _interpolated(ini, key)
        return "" if value == "None" else value

    def yes(key: str) -> bool:  # as repoze.sendmail reads it
        return text(key).lower().startswith(("t", "y", "1"))

    port = text("port")
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(f"{path}: port = {port} is no port", hint="it is a number up to 65535")
    return Settings(
        text("hostname") or "localhost",
        int(port) if port else None,
        text("username"),
        text("password"),
        yes("ssl"),
        yes("force_tls"),
        yes("no_tls"),
        text("queue_path"),
        yes("debug_smtp"),
    )


def _interpolated(ini: Any, key: str) -> str:
    """``%%`` means %, and %(name)s another key. A lone % in a password, with which repoze.sendmail fails, is
    one.
    """
    from configparser import InterpolationError

    try:
        return str(ini.get(SECTION, key, fallback="")).strip()
    except InterpolationError:
        return str(ini.get(SECTION, key, raw=True)).strip()


def relay_of(settings: Settings) -> Relay:
    """The mail server. Without an option STARTTLS is used where it is offered, as repoze.sendmail does; where
    TLS is asked for, the certificate is verified, but not that of this machine.
    """
    encryption: Encryption = "ssl" if settings.ssl else "off" if settings.no_tls else "starttls"
    url = relay_url(settings.hostname, settings.port, encryption, settings.username, settings.password)
    try:
        relay = parse_relay(url, "default")
    except ValueError as problem:
        raise ConfigError(f"hostname = {settings.hostname}: {problem}") from None
    known.add_login(settings.username, settings.password, lasting=True)
    if settings.ssl or settings.force_tls:
        relay = replace(relay, tls="implicit" if settings.ssl else "required")
        return replace(relay, verify=not is_loopback(settings.hostname))
    return relay if settings.no_tls else replace(relay, tls="opportunistic", verify=False)


def config_of(settings: Settings) -> Config:
    """The configuration for the mail of the queue directory."""
    transcripts = {"transcripts": "all"} if settings.debug_smtp else {}
    return config_for(settings.queue_path, lambda: relay_of(settings), os.environ, **transcripts)


# -- work ----------------------------------------------------------------------------------------------------


def _sent(queue: RepozeQueue, settings: Settings) -> int:
    config = config_of(settings)
    rights.become_owner(queue.folder)
    with closing(Outbox(config=config, deliver="never")) as box:
        return drain(queue, box, _tell, _show if settings.debug_smtp else lambda items: None).status


def _imported(queue: RepozeQueue, store: str | None) -> int:
    """Take in what waits, into outmail's own queue."""
    rights.refuse(queue.folder, INSTEAD)
    with closing(Outbox(store, deliver="never")) as box, known_beside(queue.folder, box) as elsewhere:
        taken = take_in(queue, box.door, box.config.origin, elsewhere=elsewhere)
    for line in taken.sentences(queue.folder):
        _tell(line)
    count = len(taken.ids)
    _tell(
        f"{count} message{'' if count == 1 else 's'} taken in"
        + (f"; {len(taken.busy)} in use" if taken.busy else "")
    )
    return taken.status


def _tell_rejected(queue: RepozeQueue) -> None:
    if found := queue.rejected():
        _tell(
            f"{len(found)} in {queue.folder} were refused by a server before outmail came, and are not sent: "
            f"{', '.join(found[:3])}{', …' if len(found) > 3 else ''}; to send one, rename it without "
            f"{REJECTED}"
        )


def _show(items: Sequence[Settled]) -> None:
    """The dialogues, with passwords masked."""
    for item in items:
        for _, direction, line in item.delivery.transcript:
            for part in line.decode("utf-8", "replace").split("\n"):
                print(plain_line(f"{'send' if direction == 'C' else 'reply'}: {part}"), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
