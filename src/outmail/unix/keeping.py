"""Where sendmail puts a message: into the service's drop folder where there is one that takes it, else into
the caller's own queue.

Promises: status 0 only when the message is on disk. Up to the drop folder little is loaded.
Fails: as exit statuses with a line on stderr. Does not: check the message.
"""

from __future__ import annotations

import os

from outmail.intake.deposit import Deposit
from outmail.system import dropbox
from outmail.system.exits import EX_DATAERR, EX_TEMPFAIL
from outmail.system.user import login
from outmail.unix.telling import tell

TYPE_CHECKING = False  # as in typing, without the price of importing it

if TYPE_CHECKING:
    from outmail.unix.flags import Call

#: Bytes from which on it is worth to look how many the service takes.
LARGE = 1_000_000
#: Whoever sets one of these means a queue of their own.
_OWN = ("OUTMAIL_STORE", "OUTMAIL_CONFIG", "OUTMAIL_RELAY")


def deposit(call: Call, content: bytes, recipients: list[str]) -> int:
    """Put a checked message where it is safe; returns the exit status."""
    return keep(call, made_of(call, content, recipients))


def made_of(call: Call, content: bytes, recipients: list[str]) -> Deposit:
    return Deposit(
        content,
        recipients,
        user=login(os.getuid()),
        sender=call.sender,
        name=" ".join(call.name.split()),
        notify=call.notify,
        ret=call.ret,
        envid=call.envid,
        as_is=call.gateway,
    )


def keep(call: Call, made: Deposit) -> int:
    """Put it where it is safe; returns the exit status."""
    folder = drop_folder(call)
    if folder and len(made.content) > LARGE and (most := _limit()) < len(made.content):
        return tell("sendmail", f"the message has {len(made.content)} bytes; the limit is {most}", EX_DATAERR)
    if not folder:
        from outmail.unix import own

        return own.store(call, made)
    try:
        name = dropbox.put(folder, made.packed())
    except ValueError as problem:
        return tell("sendmail", str(problem), EX_DATAERR)
    except OSError as problem:
        return tell("sendmail", f"{folder} does not take the message: {problem.strerror}", EX_TEMPFAIL)
    if call.verbose or call.traffic:
        from outmail.model import keyed_id
        from outmail.unix.traffic import tell_kept

        id = keyed_id(dropbox.key_of(os.getuid(), name))
        tell_kept(call, f"{id} is on disk, in {folder}; the service takes it from there")
    return 0


def _limit() -> int:
    """Bytes that the service takes, as far as this user may know: where the configuration is closed to us,
    what it is by default.
    """
    from outmail.config import Config, load
    from outmail.errors import ConfigError
    from outmail.policy.route import Routes

    try:
        return load(through=False).message_size
    except ConfigError:
        return Config("", Routes({})).message_size


def drop_folder(call: Call) -> str:
    """The service's drop folder, or the one that $OUTMAIL_DROP names; "" where there is none, or where the
    caller names a queue of their own.
    """
    folder = os.environ.get("OUTMAIL_DROP", dropbox.FOLDER)
    if (
        os.getuid() != os.geteuid()
    ):  # a program with its owner's rights: its caller's environment says nothing
        folder = dropbox.FOLDER
    own = call.config or call.store or call.relay or any(map(os.environ.get, _OWN))
    return folder if folder and not own and dropbox.is_open(folder) else ""
