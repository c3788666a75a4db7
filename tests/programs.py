"""Programs of the system that tests use. A test without its program is skipped by name, with the package to
install.

Where everything was installed (`.ci/run` sets OUTMAIL_ALL_PACKAGES), such a skip is a failure: see
`tests/conftest.py`.
"""

from __future__ import annotations

import os
import shutil

import pytest

#: What the reason of such a skip ends with.
INSTALL = "(Debian: apt install "


def found(name: str) -> str | None:
    """Where a program is, in the PATH or where Debian keeps those of root."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


def needs(name: str, package: str) -> pytest.MarkDecorator:
    """The test runs where the program is."""
    return pytest.mark.skipif(found(name) is None, reason=f"{name} is missing {INSTALL}{package})")


def as_root(why: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason=why)
