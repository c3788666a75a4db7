"""The SQL files beside this module: schemas of a store, and the outbox table for other people's databases.

Promises: only a program that reads one pays for the import that reading takes; it works from wherever the
package was imported.
Fails: `OSError` for a name that is not there. Does not: run anything.
"""

from __future__ import annotations


def sql(name: str) -> str:
    """The text of ``store/sql/<name>.sql``."""
    # importlib.resources would import tempfile, shutil and more, many times as slow as this
    import pkgutil

    text = pkgutil.get_data("outmail.store", f"sql/{name}.sql")
    assert text is not None  # only a loader that cannot read files gives none
    return text.decode("utf-8")
