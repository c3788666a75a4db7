"""What sendmail does beside sending: list (-bp), flush (-q), SMTP on stdin (-bs), verify (-bv), aliases
(-bi).

Fails: as exit statuses, with a line on stderr. Does not: start a service.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from outmail.cli.common import configured, is_there
from outmail.cli.exits import told
from outmail.clock import Clock
from outmail.config import Config, load
from outmail.errors import ConfigError, Error, Refused
from outmail.model import keyed_id
from outmail.outbox.queue import Queue
from outmail.policy.aliases import AliasError, parse
from outmail.smtp.syntax import AddressError, parse_mailbox
from outmail.system import dropbox, rights
from outmail.system.exits import EX_NOUSER
from outmail.system.user import is_user, login
from outmail.unix import flag_help
from outmail.unix.flags import Call
from outmail.unix.keeping import drop_folder
from outmail.unix.mailq import Left, listed
from outmail.unix.telling import tell
from outmail.wiring import here, is_postgres, store_path

#: Milliseconds after which a service's last sign of life is old.
SILENT = 60_000


def run(call: Call) -> int:
    """The mode that the flags ask for; returns the exit status."""
    try:
        return _MODES[call.mode](call)
    except Error as problem:
        return told("sendmail", problem)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _config(call: Call) -> Config:
    return configured(call.config, call.store, call.relay)


def _queue_of(call: Call) -> Config:
    """The configuration with the queue in which the caller's mail is: the service's, where sendmail leaves it
    in the service's drop folder. There root goes on with the rights of the queue's owner.
    """
    config = _config(call)
    if drop_folder(call):
        config = load(call.config, through=False)
        if not is_postgres(config.store):
            _become_owner(*store_path(config.store))
    elif config.through:
        note = f"this is your own queue; {config.through} takes from it, and has a queue of its own"
        tell("sendmail", note, 0)
    return config


def _become_owner(path: str, library: str) -> None:
    """``library``: "" when the path is a folder itself."""
    folder = os.path.dirname(os.path.abspath(path)) if library else path
    try:
        owner = os.stat(folder).st_uid
    except OSError:
        return  # it is not there, or closed to us, which is told later
    if os.geteuid() != 0:
        return
    rights.become_owner(folder)  # which also refuses a folder of root's in which others may write
    if owner != 0:
        for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
            os.environ.pop(name, None)
        os.environ["HOME"] = folder


def _list(call: Call) -> int:
    config = _queue_of(call)
    folder = drop_folder(call)
    left = _left(folder) if folder else []
    with contextlib.ExitStack() as stack:
        queue = stack.enter_context(Queue.open(config)) if is_there(config.store) else None
        for line in listed(queue, left):
            sys.stdout.write(line)
    return 0


def _left(folder: str) -> list[Left]:
    try:
        found = dropbox.left(folder)
    except OSError as problem:
        why = f"{folder}: {problem.strerror}; what the service has not taken from there yet is not listed"
        tell("sendmail", why, 0)
        return []
    return [
        Left(keyed_id(dropbox.key_of(uid, name)), size, at, login(uid) or f"userid {uid}")
        for name, uid, size, at in found
    ]


def _flush(call: Call) -> int:
    """Everything that waits is due now; where no service works, this process does, once."""
    config = _queue_of(call)
    if not is_there(config.store):
        return 0
    with Queue.open(config) as queue:
        queue.retry(call.only or "state:queued")
        seen = queue.service()
    if seen and Clock().now() - seen["at"] < SILENT:
        return 0
    words = [sys.executable, "-P", "-m", "outmail", "run", "--once"]
    words += ["--transcript", call.traffic] if call.traffic else []
    for flag, value in (("--config", call.config), ("--store", call.store), ("--relay", call.relay)):
        words += [flag, value] if value else []
    sys.stdout.flush()
    os.execv(sys.executable, words)


def _verify(call: Call) -> int:
    """Where mail for these addresses would go; nothing is sent. Status 67 when a bare name is neither an
    alias nor a user here: its mail would go to that name at the origin, and hardly to anybody.
    """
    config = _config(call)
    place = here(config)
    sender = call.sender or config.sender
    if not call.recipients:
        raise Refused("-bv needs addresses", code="no-recipient")
    status = 0
    for name in call.recipients:
        user = name.lower().partition("+")[0]  # what follows belongs to the address only
        if "@" not in name and not place.is_alias(name) and not is_user(user):
            tell("sendmail", f"{name}: no user and no alias of this machine has this name", 0)
            status = EX_NOUSER
        for target in place.targets(name):
            try:
                address = str(parse_mailbox(target))
            except AddressError as problem:
                raise Refused(str(problem), code="bad-address") from None
            print(f"{name} -> {address} by {config.routes.choose(sender, address, None)}")
    return status


def _aliases(call: Call) -> int:
    """Aliases are read where they are: there is nothing to build, but what is wrong can be told."""
    path = _config(call).aliases
    try:
        with open(path, encoding="utf-8") as file:
            count = len(parse(file.read(), path))
    except FileNotFoundError:
        print(f"{path} does not exist: no name is aliased")
        return 0
    except (AliasError, OSError, UnicodeDecodeError) as problem:
        raise ConfigError(str(problem)) from None
    print(f"{path}: {count} aliases; they are read with each message")
    return 0


def _smtp(call: Call) -> int:
    from outmail.unix.smtp import session

    return session(call)


def _help(call: Call) -> int:
    print(flag_help.sendmail(), end="")
    return 0


def _version(call: Call) -> int:
    from outmail import __version__

    print(f"sendmail of outmail {__version__}")
    return 0


_MODES: dict[str, Callable[[Call], int]] = {
    "list": _list,
    "flush": _flush,
    "verify": _verify,
    "aliases": _aliases,
    "smtp": _smtp,
    "help": _help,
    "version": _version,
}
