"""``outmail --version``: the version on a line of its own, and below it what outmail runs on, for reports of
defects.

Promises: the first line is ``outmail X.Y.Z``, for scripts. A package that is not installed, or is broken, is
said so and is no error. Does not: open a store, or ask anybody.
"""

from __future__ import annotations

import platform
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata, resources

from outmail import __version__
from outmail.store.sqlite import drivers


def lines() -> Iterator[str]:
    """What is printed."""
    yield f"outmail {__version__}"
    for name, fact in (
        ("commit", commit()),
        ("Python", f"{platform.python_version()}, {_build()}, {sys.executable}"),
        ("SQLite", drivers.versions()),
        ("psycopg", _package("psycopg", "psycopg-binary", "psycopg-c")),
        ("uvloop", _package("uvloop")),
        ("system", platform.platform()),
    ):
        if fact:
            yield f"{name:<9} {fact}"


def commit() -> str:
    """The commit from which the package was built, which the build notes; "" where nobody knows."""
    try:
        return resources.files("outmail").joinpath("COMMIT").read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def _build() -> str:
    """How Python was configured, as it remembers it. (Debian optimises in a way that is not remembered.)"""
    if hasattr(sys, "gettotalrefcount"):
        return "debug build"
    option = "--enable-optimizations"
    given = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    return f"built {'with' if option in given else 'without'} {option}"


def _package(name: str, *parts: str) -> str:
    """``3.2.2 (psycopg-binary 3.2.2)``."""
    found = {one: _version(one) for one in (name, *parts)}
    more = ", ".join(f"{one} {found[one]}" for one in parts if found[one])
    return (found[name] + (f" ({more})" if more else "")) if found[name] else "not installed"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
