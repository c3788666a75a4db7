"""``outmail jobs`` in words: how a job stands, as a person reads it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from outmail.clock import DAY, HOUR, MINUTE
from outmail.outbox.outbox import Outbox
from outmail.policy.incident import Incident
from outmail.reports import state
from tests.cli.conftest import Command

MakeBox = Callable[..., Outbox]
S = ("--store", "q.db")
#: What a minute that is told may take to be told.
HALF = MINUTE // 2


@pytest.fixture
def box(make_box: MakeBox) -> Outbox:
    return make_box(deliver="never")


def test_show_tells_state_failures_interval_usual_length_and_last_output(
    command: Command, box: Outbox
) -> None:
    now = box.clock.now()
    standing = Incident(
        failures=2, since=now - HOUR, alerted_at=now - HOUR, muted_until=now + 2 * HOUR + HALF
    )
    document = {
        "kind": "watch",
        "last": {"at": now - 5 * MINUTE - HALF, "state": "failed"},
        "incident": standing.dump(),
        "late": {"every_ms": DAY, "seen_at": now},
    }
    state.remember(box, "job", "nightly", document)
    for n, length in enumerate((4000, 90_000, 5000)):
        run = {
            "job": "nightly",
            "started_at": now - DAY + n,
            "duration_ms": length,
            "state": "finished",
            "status": 0,
        }
        state.remember(
            box, "run", f"nightly/{n}", {**run, "output": "first\nlast \x1b[31mline" if n == 2 else ""}
        )
    told = command("jobs", "show", "nightly", *S)
    assert told.status == 0
    head, standing_told, expected, usual, *output = told.out.splitlines()
    assert head == "nightly: failed 5m ago"
    assert standing_told.startswith("  2 failures in a row, told, muted for 2h, since ")
    assert expected == "  expected at least every 1d"
    assert usual.startswith("  3 runs kept, usually 5") and usual[-3:].strip("▁▂▃▄▅▆▇█") == ""
    assert output == ["  last output:", "    first", "    last \\x1b[31mline"]


def test_show_of_a_job_that_has_not_run_yet(command: Command, box: Outbox) -> None:
    state.remember(box, "job", "new", {"kind": "job"})
    told = command("jobs", "show", "new", *S)
    assert (told.status, told.out) == (0, "new: no run yet\n")
