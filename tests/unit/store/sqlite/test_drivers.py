"""The libraries take the same statements."""

from __future__ import annotations

from pathlib import Path

import pytest

from outmail.store.sqlite.drivers import Apsw, Stdlib, _with_names


def test_numbers_are_given_as_sqlite_counts() -> None:
    assert _with_names("SELECT ?, ?") == ""
    assert _with_names("SELECT ?2, '?', ?, ?1, 'it''s ?'") == "SELECT :p2, '?', :p3, :p1, 'it''s ?'"


@pytest.mark.parametrize("library", [Apsw, Stdlib])
@pytest.mark.filterwarnings("error")
def test_parameters_with_and_without_numbers(library: type[Apsw | Stdlib], tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    db = library(str(tmp_path / "a.db"))
    assert db.execute("SELECT ?2 || '?' || ?1 || ? || ?1", ("a", "b", "c")) == [("b?aca",)]
    db.execute("CREATE TABLE t (x, y)", ())
    db.many("INSERT INTO t VALUES (?2, ?1)", [(1, 2), (3, 4)])
    assert db.many("UPDATE t SET x = ?1 WHERE y = ? RETURNING x", [(7, 1)]) == [(7,)]
    assert db.execute("SELECT x, y FROM t ORDER BY y", ()) == [(7, 1), (4, 3)]
    assert db.execute("SELECT ?1, ?4", (1, 2, 3, 4)) == [(1, 4)]  # nobody uses the others
    db.close()
