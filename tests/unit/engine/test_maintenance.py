"""What is done from time to time: when, and what follows from its answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from outmail.engine import maintenance as module
from outmail.engine.maintenance import Maintenance
from outmail.engine.settings import EngineSettings
from outmail.model import Reply
from outmail.policy.pace import Pace
from outmail.policy.route import Routes
from outmail.testing import FakeClock
from tests.unit.engine.fakes import NOW, Calls, FakeCommits, FakeLoop, Lease, Spoken, relay


def hop(**settings: Any) -> Any:
    made = relay(**settings)
    return SimpleNamespace(relay=made, pace=Pace(ceiling=made.concurrency, rate=made.rate), ahead=True)


class Scene:
    def __init__(self, retention: dict[str, int] | None = None) -> None:
        self.loop, self.commits, self.clock = FakeLoop(), FakeCommits(), FakeClock(NOW)
        self.hop = hop(concurrency=8)
        self.engine: Any = Calls(
            owner=Lease(), hops={"relay": self.hop}, engines=1, hungry=False, routes=Routes({})
        )
        store = SimpleNamespace(verbs=Spoken(), kept=lambda records: records)
        words: Any = (
            self.engine,
            store,
            self.commits,
            self.loop,
            self.clock,
            EngineSettings(retention=retention),
        )
        self.maintenance = Maintenance(*words)

    def answer(self) -> None:
        """What is under way has ended, and found nothing to do."""
        self.maintenance._reclaimed(([], 1, {}, []))
        self.maintenance._swept(None)
        self.maintenance._retained(False)


AGES = {"bodies": 1, "transcripts": 1, "records": 1}


def test_each_work_has_its_own_pause() -> None:
    scene = Scene(AGES)
    scene.maintenance.look()
    assert scene.commits.called() == ["_reclaim", "_sweep", "_retain"]
    scene.answer()
    scene.maintenance.look()
    assert scene.commits.called() == []
    scene.loop.advance(module.RECLAIM)
    scene.maintenance.look()
    assert scene.commits.called() == ["_reclaim"]
    scene.answer()
    scene.loop.advance(module.UPKEEP)
    scene.maintenance.look()
    assert scene.commits.called() == ["_reclaim", "_sweep", "_retain"]


def test_a_work_that_takes_longer_than_its_pause_is_not_begun_twice() -> None:
    """Else works pile up where a database is far away."""
    scene = Scene(AGES)
    scene.maintenance.look()
    scene.commits.called()
    scene.engine.routes = Routes({"relay": scene.hop.relay})
    scene.loop.advance(10 * module.UPKEEP)
    scene.maintenance.look()
    assert scene.commits.called() == []
    scene.answer()
    scene.maintenance.look()
    assert scene.commits.called() == ["_sweep"]  # the new routes


def test_after_a_bug_nothing_is_due_for_a_while() -> None:
    scene = Scene(AGES)
    scene.maintenance.postpone(5.0)
    scene.loop.advance(4.9)
    scene.maintenance.look()
    assert not scene.commits.called()
    scene.loop.advance(0.2)
    scene.maintenance.look()
    assert scene.commits.called() == ["_reclaim", "_sweep", "_retain"]


def test_what_is_under_way_is_not_postponed() -> None:
    scene = Scene(AGES)
    scene.maintenance.look()
    scene.commits.called()
    scene.maintenance.postpone(5.0)
    scene.loop.advance(5.1)
    scene.maintenance.look()
    assert scene.commits.called() == []


def test_a_sweep_that_failed_is_tried_again_sooner() -> None:
    scene = Scene()
    scene.maintenance.look()
    scene.commits.called()
    scene.maintenance._swept(RuntimeError("statement time-out"))
    assert scene.engine.heard == ["complain", "look_again"]
    scene.loop.advance(module.UPKEEP_AGAIN)
    scene.maintenance.look()
    assert "_sweep" in scene.commits.called()


def test_retention_that_is_behind_takes_shorter_pauses_and_rests_when_it_is_through() -> None:
    scene = Scene(AGES)
    pauses = []
    for more in [True] * module.PATIENT_TURNS + [False]:
        scene.maintenance._retained(more)
        pauses.append(round(scene.maintenance._retain_at - scene.loop.time(), 6))
    assert pauses[0] == module.RETAIN and pauses[-2] == module.RETAIN / 5
    assert pauses[-1] == max(module.UPKEEP, (module.PATIENT_TURNS + 1) * module.RETAIN / 5)


def test_a_lost_lease_is_seen_with_the_next_look_for_dead_engines() -> None:
    scene = Scene()
    scene.engine.owner.lost = True
    scene.maintenance._reclaimed(RuntimeError("no connection"))
    assert scene.engine.heard == ["begin_anew", "failed"]


def test_engines_share_the_limits_of_next_hops() -> None:
    scene = Scene()
    scene.maintenance._reclaimed(([], 4, {}, []))
    assert scene.engine.engines == 4 and scene.hop.pace.ceiling == 2
    scene.maintenance._reclaimed(([], 1, {}, []))
    assert scene.hop.pace.ceiling == 8 and not scene.engine.heard


def test_what_dead_engines_held_is_named_and_looked_for(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    scene.maintenance._reclaimed(([{"leases": 3, "uncertain": 1}], 1, {}, []))
    assert scene.engine.heard == ["look_again"] and "took back 3 recipients" in caplog.text


def test_a_next_hop_that_refuses_what_is_sent_ahead_is_noted_once() -> None:
    scene = Scene()
    for _ in range(2):
        scene.maintenance.refuses_ahead(scene.hop, Reply(503, "in turn"))
    assert scene.commits.asked() == ["note_put"] and not scene.hop.ahead
    assert not scene.maintenance.may_send_ahead(scene.hop.relay)


def test_what_another_engine_learned_of_a_next_hop_counts_here() -> None:
    other, scene = Scene(), Scene()
    other.maintenance.refuses_ahead(other.hop, Reply(503, "in turn"))
    ((_, _, url, note), _) = other.commits.asks[0]
    scene.maintenance._reclaimed(([], 1, {url: note}, []))
    assert not scene.hop.ahead and not scene.commits.asks


def test_a_next_hop_that_answers_ends_what_any_engine_has_noted_of_it() -> None:
    scene = Scene()
    scene.maintenance.answers(scene.hop)
    assert not scene.commits.asks
    ways: list[Callable[[], None]] = [
        lambda: scene.maintenance.paused(scene.hop, "refused"),
        lambda: scene.maintenance._reclaimed(([], 1, {}, [scene.hop.relay.name])),
    ]
    for noted in ways:
        noted()
        scene.maintenance.answers(scene.hop)
        scene.maintenance.answers(scene.hop)
    assert scene.commits.asked() == ["pause_hop", "resume_hop", "resume_hop"]


def test_a_note_about_a_paused_next_hop_is_kept_fresh() -> None:
    scene = Scene()
    scene.maintenance._swept(None)
    assert not scene.commits.asks
    scene.hop.pace.fault(scene.loop.time(), "expired", fatal=True)
    scene.maintenance._swept(None)
    ((name, *words), _) = scene.commits.asks[0]
    assert name == "pause_hop" and words == [
        scene.hop.relay.name,
        scene.hop.relay.url,
        "expired",
        "engine7",
        NOW,
    ]


def test_routes_that_were_added_are_published_at_once() -> None:
    scene = Scene()
    scene.maintenance.look()
    scene.commits.called()
    scene.answer()
    scene.engine.routes = Routes({"relay": scene.hop.relay})
    scene.maintenance.look()
    scene.maintenance.look()
    assert scene.commits.called() == ["_sweep"]


def test_what_is_too_old_is_looked_for_once_a_second() -> None:
    scene = Scene()
    scene.maintenance.expire()
    assert scene.commits.asked() == ["expire"]
    assert scene.maintenance.expire_at == scene.loop.time() + module.EXPIRE


def test_an_engine_that_ends_while_it_begins_takes_the_late_answer() -> None:
    scene = Scene()

    async def story() -> None:
        scene.maintenance._loop = asyncio.get_running_loop()
        beginning = asyncio.ensure_future(scene.maintenance.begin())
        await asyncio.sleep(0)
        ((_, then),) = scene.commits.calls
        beginning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await beginning
        then(RuntimeError("too late"))

    asyncio.run(story())
