"""Walks over the table: an illegal event raises and changes nothing, the mark is never cleared."""

import re
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


def _checks(sql: str) -> list[str]:
    """The expression of each CHECK constraint."""
    found = []
    for rest in re.sub(r"--[^\n]*", "", sql).split("CHECK (")[1:]:
        depth = 1
        for at, letter in enumerate(rest):
            depth += {"(": 1, ")": -1}.get(letter, 0)
            if depth == 0:
                found.append(rest[:at])
                break
    return found


SCHEMAS = sorted((Path(life.__file__).parent / "store" / "sql").glob("*.sql"))


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda path: str(path.name))
def test_the_checks_of_every_schema_say_what_the_lifecycle_says(schema: Path) -> None:
    """A table of recipients knows these states, and an owner while one is sent; there are no others."""
    sql = schema.read_text()
    states = ", ".join(f"'{state}'" for state in life.STATES)
    wanted = [f"state IN ({states})", f"(state = '{life.SENDING}') = (owner IS NOT NULL)"]
    assert _checks(sql) == (wanted if re.search(r"CREATE TABLE (outmail\.)?recipient\b", sql) else [])


def test_a_schema_with_recipients_is_among_them() -> None:
    owns = {path.name for path in SCHEMAS if _checks(path.read_text())}
    assert owns == {"sqlite-1.sql", "postgresql-1.sql"}


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
