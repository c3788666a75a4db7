"""Walks over the table: an illegal event raises and changes nothing, the mark is never cleared."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outmail import lifecycle as life

EVENTS = {
    "lease": lambda s, f: life.lease(s),
    "delivered": lambda s, f: life.delivered(s),
    "refused": lambda s, f: life.refused(s, "550"),
    "deferred": lambda s, f: life.deferred(s, "451"),
    "unknown": lambda s, f: life.unknown(s, "lost", hold=f),
    "returned": lambda s, f: life.returned(s),
    "lost": lambda s, f: life.lost(s, dot=f, begun=f, hold=False),
    "confirm": lambda s, f: life.confirm(s),
    "expired": lambda s, f: life.expired(s, "old"),
    "due": lambda s, f: life.due(s),
    "suppress": lambda s, f: life.suppress(s, "safety"),
    "hold": lambda s, f: life.hold(s),
    "release": lambda s, f: life.release(s),
    "cancel": lambda s, f: life.cancel(s),
    "reroute": lambda s, f: life.reroute(s, "b" if f else "a"),
    "superseded": lambda s, f: life.superseded(s),
    "quarantine": lambda s, f: life.quarantine(s),
    "requeue": lambda s, f: life.requeue(s),
}


def test_every_arrow_has_its_function() -> None:
    assert set(EVENTS) == set(life.ARROWS)


@given(st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), st.booleans()), max_size=40))
def test_walks(steps: list[tuple[str, bool]]) -> None:
    now = life.Standing()
    for event, flag in steps:
        allowed = life.ARROWS[event].get(now.state, ())
        try:
            after = EVENTS[event](now, flag)
        except life.Illegal:
            assert not allowed or event in ("confirm", "release", "hold", "reroute", "superseded")
            continue
        assert after.state in allowed
        assert after.uncertain or not now.uncertain
        assert after.wish is None or after.state == life.SENDING
        if event == "confirm":
            assert now.uncertain
        now = after


def test_three_engines_die_then_it_is_poison() -> None:
    now = life.Standing()
    for losses in (1, 2):
        now = life.lost(life.lease(now), dot=False, begun=True, hold=False)
        assert (now.state, now.losses) == ("queued", losses)
    now = life.lost(life.lease(now), dot=False, begun=True, hold=False)
    assert (now.state, now.reason) == ("held", "poison")


def test_what_was_not_begun_is_not_suspected_and_a_suspicion_stays() -> None:
    now = life.Standing()
    for _ in range(5):
        now = life.lost(life.lease(now), dot=True, begun=False, hold=False)
    assert now.state == "queued" and now.uncertain and not now.losses
    suspect = life.Standing(losses=2)
    assert life.lost(life.lease(suspect), dot=False, begun=False, hold=False).losses == 2


def test_a_wish_is_honoured_on_the_way_back() -> None:
    sending = life.lease(life.Standing())
    assert life.deferred(life.hold(sending), "451").state == "held"
    assert life.lost(life.cancel(sending), dot=False, begun=True, hold=False).state == "cancelled"
    assert life.delivered(life.cancel(sending)).state == "delivered"


def test_confirm_needs_the_mark() -> None:
    with pytest.raises(life.Illegal):
        life.confirm(life.Standing())


def test_the_docs_show_the_table() -> None:
    docs = Path(__file__).parents[2] / "docs" / "flow.md"
    assert life.diagram() in docs.read_text()


@pytest.mark.parametrize("schema", ["sqlite-1.sql", "postgresql-1.sql"])
def test_the_sql_knows_the_same_states(schema: str) -> None:
    sql = (Path(life.__file__).parent / "store" / "sql" / schema).read_text()
    assert "CHECK (state IN (" + ", ".join(f"'{state}'" for state in life.STATES) + "))" in sql


def test_a_wish_to_cancel_is_not_weakened_to_a_hold() -> None:
    sending = life.cancel(life.lease(life.Standing()))
    with pytest.raises(life.Illegal):
        life.hold(sending)
    assert life.cancel(life.hold(life.lease(life.Standing()))).wish == "cancel"


def test_a_new_route_is_taken_by_the_next_lease_and_what_delivered_is_on_record() -> None:
    sending = life.lease(life.Standing(route="a"))
    wished = life.reroute(sending, "b")
    assert (wished.state, wished.route) == ("sending", "b")
    assert life.deferred(wished, "451").route == "b"
    assert life.delivered(wished, "a").route == "a"
    assert life.reroute(life.hold(sending), "b").wish == "hold"


def test_a_route_is_not_changed_twice_nor_where_it_does_not_matter_any_more() -> None:
    for standing in (
        life.Standing(route="b"),
        life.cancel(life.lease(life.Standing(route="a"))),
        life.cancel(life.Standing(route="a")),
    ):
        with pytest.raises(life.Illegal):
            life.reroute(standing, "b")


def test_another_route_forgives_nothing() -> None:
    waiting = life.Standing(reason="451", uncertain=True, losses=2, route="a")
    assert life.reroute(waiting, "b") == life.Standing(uncertain=True, losses=2, route="b")
    held = life.Standing("held", "poison", losses=3, route="a")
    assert life.reroute(held, "b") == life.Standing("held", "poison", losses=3, route="b")
