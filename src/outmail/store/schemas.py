"""The SQL files in ``store/sql``: the schemas of a store, and the outbox table for applications' databases.

Promises: it works wherever the package was imported from, and only a program that reads a file pays for the
import that reading needs.
Fails: `OSError` for a name that does not exist. Does not: run SQL.
"""

from __future__ import annotations


def sql(name: str) -> str:
    """The text of ``store/sql/<name>.sql``."""
    # importlib.resources would import tempfile, shutil and more, and take many times as long
    import pkgutil

    text = pkgutil.get_data("outmail.store", f"sql/{name}.sql")
    assert text is not None  # None only for loaders that cannot read files
    return text.decode("utf-8")
