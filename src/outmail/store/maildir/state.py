"""What belongs to a spool and to none of its messages: notes, engines, and numbers that must not be used
again. ``state.jsonl`` has it as of the last checkpoint, one row a line; the log has what changed since.

Fails: `OSError`. Does not: lock.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from outmail.store.maildir.files import TMP, Files, replace, split
from outmail.store.maildir.lines import Commit, Rows, line, read


class State:
    """The rows, and the highest number that an engine ever had."""

    def __init__(self) -> None:
        self.rows = Rows()
        self.owners = 0
        #: Lines that cannot be read.
        self.damaged = 0

    def follow(self, commits: Iterable[Commit]) -> None:
        """Do what these commits say."""
        for commit in commits:
            self.rows.apply(commit.spool)
        self.owners = max([self.owners, *(key[0] for key in self.rows.tables.get("owner", {}))])
        for commit in commits:
            for row in commit.spool.set.get("owner", ()):
                self.owners = max(self.owners, row["id"])


def load(files: Files) -> State:
    """As it was written last."""
    state = State()
    try:
        with open(files.state, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return state
    for one in split(data):
        value = read(one)
        if value is None:
            state.damaged += 1
        elif "owners" in value:
            state.owners = value["owners"]
        else:
            for table, row in value.items():
                state.rows.put(table, row)
    return state


def save(files: Files, state: State) -> None:
    """Write it; the caller flushes the folder."""
    lines = [line({"owners": state.owners}), *(line({table: row}) for table, row in state.rows.rows())]
    replace(files.state, os.path.join(files.root, TMP, "state"), lines)
