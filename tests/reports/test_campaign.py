"""The campaign of jobs in small form."""

from __future__ import annotations

from pathlib import Path

import pytest

from outmail.testing import Sink
from tests.campaigns import reports


@pytest.mark.parametrize("seed", [3])
def test_every_end_is_told_once_and_truly(tmp_path: Path, sink: Sink, seed: int) -> None:
    ways, problems = reports.one_round(tmp_path, sink, seed, 4)
    assert not problems and sum(ways.values()) >= 4, problems


def test_what_is_told_twice_or_falsely_is_found() -> None:
    truth = {"done": 5, "end": "finished", "watched": True, "seconds": 1.0}
    told = {"state": "finished", "done": 5, "rate": None}
    judged = [
        list(reports._judged(truth, found, logged, ""))
        for found, logged in (([told], []), ([told, told], []), ([], []), ([told], ["x"]))
    ]
    assert [bool(problems) for problems in judged] == [False, True, True, True]
    for false in ({"state": "dead"}, {"done": 6}, {"done": 4}, {"rate": 50.0}):
        assert list(reports._judged(truth, [{**told, **false}], [], ""))
