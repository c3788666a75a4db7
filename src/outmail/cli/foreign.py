"""``outmail move mailqueue:/path TO``: mail in a queue directory of another program comes into a store.

Promises: those of `foreign_queue.take_in`, also while the other program goes on using the directory; the same
command again takes what has come meanwhile. Routes and limits are those of the configuration.
Fails: 66 no such directory, 70 when something was set aside, 75 when a file stays, 77 when root names another
user's directory; else as errors of ours. Does not: deliver.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from outmail.cli.common import config_of, counted
from outmail.compat.drain import known_beside
from outmail.compat.foreign_queue import INSTEAD, ForeignQueue, absent, take_in
from outmail.compat.mailqueue.spool import Mailqueue
from outmail.compat.repoze.maildir import RepozeQueue
from outmail.errors import NotFound
from outmail.outbox.outbox import Outbox
from outmail.system import rights

#: The programs whose directories are known, by the scheme of FROM.
PROGRAMS: dict[str, Callable[[str], ForeignQueue]] = {"mailqueue": Mailqueue, "repoze": RepozeQueue}


def named(place: str) -> ForeignQueue | None:
    """The queue directory that FROM names; None for a store of ours. Raises `NotFound`."""
    scheme, _, folder = place.partition(":")
    if scheme not in PROGRAMS:
        return None
    folder = os.path.abspath(folder.removeprefix("//"))
    if why := absent(folder):
        raise NotFound(why)
    return PROGRAMS[scheme](folder)


def move(queue: ForeignQueue, arguments: argparse.Namespace) -> int:
    """Take in what waits; returns the exit status."""
    rights.refuse(queue.folder, INSTEAD)
    config = config_of(arguments)
    with (
        Outbox(arguments.new, config=config, deliver="never") as box,
        known_beside(queue.folder, box) as elsewhere,
    ):
        taken = take_in(queue, box.door, config.origin, elsewhere=elsewhere)
        store = box.store.url
    for line in taken.sentences(queue.folder):
        print(f"outmail: {line}", file=sys.stderr)
    busy = f"; {counted(len(taken.busy), 'file')} in somebody else's hands" if taken.busy else ""
    print(f"{counted(len(taken.ids), 'message')} moved from {queue.folder} to {store}{busy}", file=sys.stderr)
    return taken.status
