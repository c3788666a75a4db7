"""``mq-run [CONFIG] [QUEUE]``: send what waits in a queue directory of mailqueue-runner.

The files are taken into a store that lies in the directory itself (``QUEUE/outmail.db``), and an engine works
on it once, so each recipient has a state of its own, a schedule and a story: ``outmail queue list --store
QUEUE/outmail.db``.
Promises: those of `drain`, also beside programs that write into the directory and beside mailqueue-runner's
own ``mq-run``. Root's run works as the directory's owner, once the configuration is read.
Fails: as sysexits with a line on stderr: 64 usage, 66 no such directory, 69 a recipient failed for good, 70
something was set aside, 75 mail still waits, 77 not allowed, 78 configuration. Does not: run on after that.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from contextlib import closing
from dataclasses import replace

from outmail.cli.exits import EX_NOINPUT
from outmail.compat.drain import drain
from outmail.compat.foreign_queue import Taken, absent
from outmail.compat.mailqueue import ini as inis
from outmail.compat.mailqueue import spool
from outmail.compat.mailqueue.delivery_log import SMTP, Observer, open_logs
from outmail.compat.mailqueue.plugins import active as active_plugins
from outmail.compat.mailqueue.plugins import registry
from outmail.compat.mailqueue.run_signals import Attempt, attempt_of
from outmail.compat.mailqueue.run_signals import tell as tell_plugins
from outmail.compat.mailqueue.settings import advise, config_of
from outmail.compat.programs import STATUSES, Parser, Usage, ended, teller
from outmail.config import Config
from outmail.errors import ConfigError
from outmail.outbox.outbox import Outbox
from outmail.system import rights
from outmail.system.lockfile import take_lock

tell = teller("mq-run")

#: The file that is locked while a run works in the background.
_BACKGROUND = "outmail.db.mq-run"


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit status."""
    return ended("mq-run", lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: list[str]) -> int:
    words = parser().parse_args(argv)
    ini, folder = asked(words)
    if why := absent(folder):
        tell(why)
        return EX_NOINPUT
    if not words.verbose:  # what matters of them is told at the end
        logging.getLogger("outmail").setLevel(logging.ERROR)
    if not words.background:
        advise(ini, tell)
    config = config_of(ini, folder, tell=tell)
    rights.become_owner(folder)
    if words.background:
        return _in_background(ini, config, folder)
    return run(ini, config, folder, verbose=words.verbose)


def parser() -> Parser:
    """The options of mq-run."""
    made = Parser(
        prog="mq-run",
        description="Send what waits in a queue directory of mailqueue-runner.",
        epilog=STATUSES,
    )
    made.add_argument("places", nargs="*", metavar="CONFIG QUEUE", help="either may be left out")
    made.add_argument("-C", "--config", metavar="CFG", help="the ini file, instead of the first word")
    made.add_argument("-v", "--verbose", action="store_true", help="show the dialogue with the server")
    made.add_argument("--background", action="store_true", help=argparse.SUPPRESS)
    return made


def configured(named: str | None) -> inis.Ini:
    """The named ini file, or the one that is found. Raises `ConfigError`."""
    path = inis.find(named)
    if path is None:
        raise ConfigError(
            "no configuration: neither ~/.mailqueue-runner.conf nor /etc/mailqueue-runner.conf exists",
            hint="name an ini file with -C",
        )
    return inis.read(path, named=bool(named))


def places(config: str | None, words: list[str]) -> tuple[str | None, str | None]:
    """(ini file, queue directory) of ``CONFIG QUEUE``, ``QUEUE`` or ``CONFIG``. Raises `Usage`."""
    if len(words) > (1 if config else 2):
        raise Usage(f"too many words: {' '.join(words)}; write CONFIG QUEUE")
    if len(words) == 2:
        return words[0], words[1]
    if words and not config and os.path.isfile(words[0]):
        if owner := rights.stranger(words[0]):
            raise Usage(f"{words[0]} is a file of {owner}'s; if it is the ini file, name it with -C")
        return words[0], None
    return config, words[0] if words else None


def asked(words: argparse.Namespace) -> tuple[inis.Ini, str]:
    """The settings and the queue directory that the words mean. Raises `Usage` and `ConfigError`."""
    config, folder = places(words.config, words.places)
    ini = configured(config)
    folder = folder or ini.place("queue_dir") or _own_folder()
    if not folder:
        raise Usage("no queue directory: name it, or set queue_dir in the ini file")
    return ini, os.path.abspath(folder)


def _own_folder() -> str:
    """Where `mq-sendmail` leaves mail without a ``queue_dir``, if there is such a directory."""
    folder = spool.own_folder()
    return folder if os.path.isdir(folder) else ""


def run(ini: inis.Ini, config: Config, folder: str, *, verbose: bool = False) -> int:
    """Take in what waits, and try once what is due; returns the exit status."""
    for problem in open_logs(ini):
        tell(problem)
    if verbose:
        _show_dialogue()
    if verbose:
        config = replace(config, transcripts="all")
    observer = Observer(config.routes.relays["default"], verbose=verbose)
    loader = active_plugins(ini.text("plugins", "*"))
    attempts: list[Attempt] = []
    if loader is not None:
        observer.heard = lambda item, people, reply, sent: attempts.append(
            attempt_of(item, people, reply, sent=sent)
        )
    with closing(Outbox(config=config, deliver="never")) as box:

        def plugins() -> None:
            if loader is not None:
                tell_plugins(registry, box, attempts, observer.host)
                loader.terminate_all_activated_plugins()

        done = drain(spool.Mailqueue(folder), box, tell, observer, plugins)
    for line in _details(done.taken) if verbose else ():
        tell(line)
    return done.status


def _details(taken: Taken) -> list[str]:
    """For people who look on."""
    lines = [f"{path} is in somebody else's hands" for path in taken.busy]
    return [*lines, f"{len(taken.ids)} taken in, {len(taken.busy)} left, {len(taken.aside)} set aside"]


def _show_dialogue() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger(SMTP)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False


def _in_background(ini: inis.Ini, config: Config, folder: str) -> int:
    """For `mq-sendmail`: one run at a time. A file that arrives while it works is seen by the look after it
    has let go of its lock. Another user's directory is left to its owner's `mq-run`, who could not open a
    store of ours there; root has become that owner.
    """
    status = 0
    if os.stat(folder).st_uid != os.geteuid():
        return status
    while True:
        fd = os.open(os.path.join(folder, _BACKGROUND), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not take_lock(fd):
                return status
            before = set(spool.Mailqueue(folder).waiting())
            status = run(ini, config, folder)
        finally:
            os.close(fd)
        if not set(spool.Mailqueue(folder).waiting()) - before:
            return status


if __name__ == "__main__":
    sys.exit(main())
