"""LMTP: whom several recipients of a message lead to gets one copy, and every recipient an answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from outmail.intake.receive import QUEUE, UNKNOWN, Copies
from outmail.model import Reply

OK = Reply(250, "queued", "2.0.0")
LATER = Reply(451, "later", "4.3.0")
WRITTEN = Reply(250, "written", "2.0.0")


def copies(*found: Sequence[str]) -> Copies:
    """Users are single letters."""
    return Copies(found, lambda targets: len(targets) == 1 and len(targets[0]) == 1)


@pytest.mark.parametrize(
    ("found", "alone", "queued"),
    [
        ([["a", "b"], ["a"]], ["a"], ["b"]),
        ([["a"], ["a", "b"]], ["a"], ["b"]),
        ([["a", "b"], ["b", "a", "c"]], [], ["a", "b", "c"]),
        ([["a", "b"], ["a"], ["b"]], ["a", "b"], []),
        ([["a"], ["a"], ["far@x"]], ["a"], ["far@x"]),
        ([["far@x"], ["a", "far@x"]], [], ["far@x", "a"]),
        ([[]], [], []),
    ],
)
def test_each_target_once(found: list[list[str]], alone: list[str], queued: list[str]) -> None:
    made = copies(*found)
    assert (list(made.alone), list(made.queued)) == (alone, queued)


def codes(made: Copies, answers: dict[str, Reply]) -> list[int]:
    return [reply.code for reply in made.replies(answers)]


def test_a_member_that_is_tried_again_does_not_bring_the_list_again() -> None:
    """451 for the list would reach the other members twice."""
    team = copies(["a", "b"], ["a"])
    assert codes(team, {QUEUE: OK, "a": LATER}) == [250, 451]
    assert codes(team, {QUEUE: LATER, "a": WRITTEN}) == [451, 250]
    everybody = copies(["a", "b"], ["a"], ["b"], ["c", "far@x"])
    assert codes(everybody, {"a": LATER, "b": WRITTEN, QUEUE: LATER}) == [250, 451, 250, 451]


def test_one_who_is_gone_since_rcpt_is_unknown() -> None:
    assert copies([], ["a"]).replies({"a": WRITTEN}) == [UNKNOWN, WRITTEN]
