"""The standing comparison tells a difference without a reason, and a reason without a difference."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.interop import compare
from tests.interop.peers import PEERS, Peer


def judged(tmp_path: Path, differs: dict[str, str], *found: tuple[str, str], ended: str = "") -> compare.Row:
    results = tmp_path / "peer.jsonl"
    results.write_text(
        "".join(json.dumps({"test": t, "outcome": o, "detail": "E  x != y"}) + "\n" for t, o in found)
    )
    row = compare.Row(Peer("peer", "1", "tests", (), differs=differs))
    compare.judge(row, results, ended)
    return row


def test_a_difference_has_a_reason_or_is_told(tmp_path: Path) -> None:
    row = judged(
        tmp_path, {"one$": "RFC 1"}, ("a::one", "failed"), ("a::two", "failed"), ("a::three", "passed")
    )
    assert row.differs == [("a::one", "RFC 1")]
    assert row.unexplained == [("a::two", "E  x != y")]
    assert "UNEXPLAINED peer: a::two" in compare.reasons([row]) and "RFC 1" in compare.reasons([row])
    assert compare.table([row]).splitlines()[1].split()[-5:] == ["3", "1", "2", "0", "0"]


def test_a_reason_without_a_difference_is_told(tmp_path: Path) -> None:
    row = judged(tmp_path, {"one$": "RFC 1"}, ("a::one", "passed"))
    assert row.unexplained == [("one$", "differs no more: take the reason out of the table")]


@pytest.mark.parametrize("found", [[], [("a", "skipped"), ("b", "left-out")]])
def test_a_suite_of_which_nothing_ran_is_told(tmp_path: Path, found: list[tuple[str, str]]) -> None:
    assert "no test ran" in judged(tmp_path, {}, *found).unexplained[0][1]


def test_a_suite_that_broke_off_is_told_once(tmp_path: Path) -> None:
    row = judged(tmp_path, {"one$": "RFC 1"}, ("a::two", "passed"), ended="status 4")
    assert row.unexplained == [("peer", "status 4")]


@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: str(peer.name))
def test_every_reason_names_its_source(peer: Peer) -> None:
    for pattern, reason in peer.differs.items():
        re.compile(pattern)
        assert re.search(r"RFC \d{4}|changelog|README|comment in Django's test", reason), reason
    assert all("==" in package or package in ("pytest", "pytest-mock") for package in peer.packages[:1])


def test_an_unknown_peer_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["compare.py", "nobody"])
    with pytest.raises(SystemExit) as ended:
        compare.main()
    assert ended.value.code == 2 and "no peer is named 'nobody'" in capsys.readouterr().err


def test_a_peer_that_cannot_be_had_fails_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Peer("future", "1", "tests", (), python=(3, 99))
    monkeypatch.setattr(compare, "PEERS", {"future": absent})
    monkeypatch.setattr("sys.argv", ["compare.py", "--folder", str(tmp_path)])
    assert compare.main() == 69
    assert "future is not here: needs Python 3.99" in capsys.readouterr().out
