"""What `outmail --version` says about the machine."""

from __future__ import annotations

import sys
import sysconfig
from importlib import resources
from pathlib import Path

import pytest

import outmail
from outmail.cli import main, version
from outmail.store.sqlite import drivers


def test_the_first_line_is_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    first, *facts = capsys.readouterr().out.splitlines()
    assert first == f"outmail {outmail.__version__}"
    said = dict(line.split(maxsplit=1) for line in facts)
    assert (
        said["Python"].startswith(".".join(map(str, sys.version_info[:3])))
        and sys.executable in said["Python"]
    )
    assert set(said) - {"commit"} == {"Python", "SQLite", "psycopg", "uvloop", "system"}
    assert max(map(len, facts)) < 160


def test_the_version_of_sqlite_is_that_of_the_store() -> None:
    import apsw

    assert drivers.versions() == f"{apsw.sqlite_lib_version()} (apsw {apsw.apsw_version()})"


def test_a_library_that_cannot_be_loaded_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apsw", None)
    assert drivers.versions().startswith("apsw cannot be loaded: import of apsw halted")


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"psycopg": "3.2.2", "psycopg-binary": "3.2.1"}
    monkeypatch.setattr(version, "_version", lambda name: found.get(name, ""))
    assert version._package("psycopg", "psycopg-binary", "psycopg-c") == "3.2.2 (psycopg-binary 3.2.1)"
    assert version._package("uvloop") == "not installed"


def test_a_package_that_nobody_has() -> None:
    assert version._package("a-package-that-does-not-exist") == "not installed"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("'--enable-optimizations' '--with-lto'", "built with --enable-optimizations"),
        ("'--prefix=/usr'", "built without --enable-optimizations"),
        (None, "built without --enable-optimizations"),
    ],
)
def test_how_python_was_built(given: str | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: given if name == "CONFIG_ARGS" else None)
    monkeypatch.delattr(sys, "gettotalrefcount", raising=False)
    assert version._build() == said


def test_the_commit_that_the_build_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    assert version.commit() == "" and "commit" not in "".join(version.lines())
    (tmp_path / "COMMIT").write_text("0123abcd\n")
    assert version.commit() == "0123abcd" and "commit    0123abcd" in version.lines()
