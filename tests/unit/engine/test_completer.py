"""What is in hand: final dots are on record before they are sent, outcomes are written or kept."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from outmail.engine import completer as module
from outmail.engine.completer import Completer
from outmail.engine.settings import EngineSettings
from outmail.model import Delivery, Outcome, Reply
from outmail.store import StoreError
from outmail.system.throttle import Throttle
from outmail.testing import FakeClock
from tests.unit.engine.fakes import NOW, Calls, FakeCommits, FakeLoop, Lease, Spoken, delivery

OK = Outcome("delivered", "recipient", "dot", Reply(250, "ok"))
FULL = StoreError("full", "the disk is full")


class Scene:
    def __init__(self, **settings: Any) -> None:
        self.loop, self.commits = FakeLoop(), FakeCommits()
        self.recorded: list[str] = []
        self.over: list[str] = []
        self.trouble: Exception | None = None
        self.owner = Lease()
        self.engine = Calls(owner=self.owner, ours=lambda d: d.owner == self.owner.id and not self.owner.lost)
        store = SimpleNamespace(verbs=Spoken(), dots=self.record, settled=self.forget)
        self.hop: Any = SimpleNamespace(out=0, queue=[], drop=list)
        self.counts = dict.fromkeys(
            ("delivered", "deferred", "refused", "unknown", "expired", "quarantined"), 0
        )
        ages = SimpleNamespace(now=lambda: None, too_old=lambda delivery, now: False)
        throttle = Throttle(logging.getLogger("outmail.engine"))
        clock, set_so = FakeClock(NOW), EngineSettings(**settings)
        words: Any = (self.engine, store, self.commits, self.loop, clock, set_so, ages, throttle, self.counts)
        self.completer = Completer(*words)

    def record(self, owner: Any, dots: Any) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.recorded += [delivery.id for delivery, _ in dots]

    def forget(self, owner: Any, deliveries: Any) -> None:
        self.over += [delivery.id for delivery in deliveries]

    def taken(self, number: int = 1, **words: Any) -> Delivery:
        made = delivery(number, **words)
        self.completer.add(self.hop, made)
        return made

    def asks(self, made: Delivery) -> list[bool]:
        """A session asks for a final dot; the answers come into the list."""
        answers: list[bool] = []
        self.completer.dot(made, made.recipients, answers.append)
        return answers

    def finish(self, made: Delivery, outcome: Outcome = OK) -> None:
        made.all(outcome)
        self.completer.finished(self.hop, made)

    def in_hand(self) -> tuple[int, int, int]:
        return self.completer.out, self.completer.bytes, self.hop.out


def test_final_dots_of_a_turn_are_on_record_before_any_is_allowed() -> None:
    scene = Scene()
    first, second = scene.taken(1), scene.taken(2)
    answers = scene.asks(first), scene.asks(second)
    assert answers == ([], []) and not scene.recorded
    scene.loop.advance()
    assert answers == ([True], [True]) and scene.recorded == ["m1", "m2"]
    assert all(recipient.dotted for recipient in first.recipients)


@pytest.mark.parametrize("trouble", [OSError("no space"), FULL], ids=["no file", "no store"])
def test_without_a_record_there_is_no_dot(trouble: Exception) -> None:
    scene = Scene()
    scene.trouble = trouble
    made = scene.taken()
    answers = scene.asks(made)
    scene.loop.advance()
    assert answers == [False] and not any(recipient.dotted for recipient in made.recipients)


def test_what_others_may_have_taken_gets_no_dot() -> None:
    scene = Scene()
    made = scene.taken()
    answers = scene.asks(made)
    scene.owner.lost = True
    scene.loop.advance()
    assert answers == [False] and not scene.recorded


def test_final_dots_wait_while_a_settle_batch_is_unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_BATCH", 2)
    scene = Scene()
    for number in (1, 2):
        scene.finish(scene.taken(number))
    answers = scene.asks(scene.taken(3))
    scene.loop.advance(60)
    assert answers == []
    scene.completer.contribute()
    scene.commits.answer(FULL)
    assert answers == [] and "failed" in scene.engine.heard
    scene.completer.contribute()
    scene.commits.answer(2)
    assert answers == [True] and scene.over == ["m1", "m2"]


def test_outcomes_that_the_store_did_not_take_are_written_later_in_their_order() -> None:
    scene = Scene()
    scene.finish(scene.taken(1))
    scene.completer.contribute()
    scene.finish(scene.taken(2))
    scene.commits.answer(FULL)
    assert not scene.completer.idle
    scene.completer.contribute()
    (((name, owner, items), _),) = scene.commits.asks
    assert (name, owner, [item.delivery.id for item in items]) == ("settle", 7, ["m1", "m2"])


def test_one_outcome_that_cannot_be_written_does_not_keep_back_the_others() -> None:
    scene = Scene()
    for number in (1, 2, 3):
        scene.finish(scene.taken(number))
    scene.completer.contribute()
    scene.commits.answer(ValueError("a bug"))
    assert scene.commits.asked() == ["settle"] * 3
    asks, scene.commits.asks = scene.commits.asks, []
    for n, (_, then) in enumerate(asks):
        then(ValueError("a bug") if n == 1 else 1)
    assert scene.over == ["m1", "m3"] and scene.completer._unsettled == 0


def test_what_was_taken_in_is_let_go_once() -> None:
    scene = Scene()
    one, two, three = scene.taken(1, to=3), scene.taken(2), scene.taken(3)
    assert scene.in_hand() == (5, 30, 5)
    scene.finish(one)
    scene.completer.give_back(scene.hop, two)
    scene.completer.expired(scene.hop, three)
    assert scene.in_hand() == (0, 0, 0)
    assert (scene.counts["delivered"], scene.counts["expired"]) == (3, 1)
    scene.completer.contribute()
    assert scene.commits.asked() == ["settle", "give_back"]


def test_a_session_that_ends_gives_back_what_it_had_not_sent_and_doubts_what_it_had() -> None:
    scene = Scene()
    sent, unsent = scene.taken(1), scene.taken(2)
    sent.recipients[0].dotted = True
    feed: Any = SimpleNamespace(flying={sent, unsent}, hop=scene.hop)
    scene.completer.abandoned(feed)
    assert sent.recipients[0].outcome is not None and sent.recipients[0].outcome.kind == "unknown"
    scene.completer.contribute()
    written = {verb[0]: verb[2] for verb, _ in scene.commits.asks}
    assert [item.delivery for item in written["settle"]] == [sent] and written["give_back"] == [unsent]


def test_after_a_lost_lease_only_what_was_sent_is_still_written() -> None:
    scene = Scene()
    sent, unsent = scene.taken(1), scene.taken(2)
    sent.recipients[0].dotted = True
    scene.owner.lost = True
    scene.finish(sent)
    scene.finish(unsent)
    scene.completer.contribute()
    (((_, _, items), _),) = scene.commits.asks
    assert [item.delivery for item in items] == [sent] and scene.in_hand() == (0, 0, 0)


def test_a_suspect_is_written_at_once_and_harmless_after_a_while() -> None:
    scene = Scene()
    suspect = delivery()
    suspect.recipients[0].losses = 1
    scene.completer.add(scene.hop, suspect)
    scene.completer.begin(suspect)
    assert scene.completer.suspect is suspect and scene.owner.begun == [suspect]
    scene.loop.advance(module.HARMLESS)
    assert scene.owner.harmless_ones == [suspect]
    scene.finish(suspect)
    assert scene.completer.suspect is None and scene.commits.soonest == [0.0]
    assert scene.engine.heard == ["stir"]


def test_nobody_outside_only_to_is_sent_to() -> None:
    scene = Scene(only_to=("me@x.test",))
    made = scene.taken(to=2)
    assert not scene.completer.safe(scene.hop, made)
    assert scene.counts["refused"] == 2 and scene.in_hand() == (0, 0, 0)


def test_a_lease_that_was_lost_is_undone_and_tried_again_when_that_fails() -> None:
    scene = Scene()
    scene.completer.lost.append((7, 3))
    scene.completer.contribute()
    assert scene.commits.asks[0][0][:3] == ("unlease", 7, [3]) and not scene.completer.lost
    scene.commits.answer(FULL)
    assert scene.completer.lost == [(7, 3)]


def test_what_the_store_did_not_take_back_is_given_back_again(caplog: pytest.LogCaptureFixture) -> None:
    """But for what a bug kept: that waits for the end of the engine."""
    scene = Scene()
    made, other = scene.taken(1), scene.taken(2)
    scene.completer._returned([made], FULL)
    assert scene.completer._returns == [made] and "failed" in scene.engine.heard
    scene.completer._returned([other], ZeroDivisionError("a bug"))
    assert scene.completer._returns == [made] and "because of a bug" in caplog.text
    scene.completer._returned([made], 1)
    assert scene.over == [made.id]


def test_a_quarantine_that_could_not_be_written_gives_the_mail_back() -> None:
    scene = Scene()
    made = delivery(1)
    scene.completer.quarantine(made)
    scene.commits.answer(FULL)
    assert scene.completer._returns == [made] and scene.engine.heard == ["failed"]
