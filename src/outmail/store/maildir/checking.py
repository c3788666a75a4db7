"""Comparing the index of a spool with one that was made anew from its files."""

from __future__ import annotations

import os

from outmail.store.maildir.index import Index
from outmail.store.maildir.lines import TABLES


def differences(index: Index, made: str) -> list[str]:
    """What the index has and the files do not say, or the other way round, in sentences."""
    problems = []
    index.execute("ATTACH ? AS files", (made,))
    try:
        for table in (*TABLES, "content"):
            names = ", ".join(name for name, _ in index.columns(table))
            for one, other, text in (
                ("main", "files", "in the index are not in the files"),
                ("files", "main", "in the files are not in the index"),
            ):
                (count,) = index.execute(
                    f"SELECT count(*) FROM (SELECT {names} FROM {one}.{table} EXCEPT SELECT {names} "
                    f"FROM {other}.{table})"
                )[0]
                if count:
                    home = os.path.dirname(os.path.dirname(made))
                    problems.append(
                        f"{count} rows of the table {table} {text}; the files are right: stop outmail, "
                        f"remove {home}/index.sqlite, and it is made anew"
                    )
    finally:
        index.execute("DETACH files")
    return problems
