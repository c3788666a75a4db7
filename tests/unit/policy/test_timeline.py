"""What happened, in the order of time, in sentences."""

from __future__ import annotations

from outmail.model import Attempt, RecipientStatus, Reply, Status
from outmail.policy.timeline import Copied, Happened, timeline

AT = 1_800_000_000_000


def person(n: int, state: str, **words: object) -> RecipientStatus:
    given = {
        "uncertain": False,
        "reason": "",
        "attempts": 1,
        "next_try_at": None,
        "route": "r",
        "reply": None,
    }
    return RecipientStatus(n, f"{'abcdef'[n - 1]}@x.test", state, **{**given, **words})  # type: ignore[arg-type]


def test_it_is_told_in_the_order_of_time_with_what_comes_next() -> None:
    people = (
        person(1, "delivered", uncertain=True),
        person(2, "queued", reason="451 later", next_try_at=AT + 60_000),
        person(3, "held", reason="operator"),
        person(4, "failed", reason="550 no"),
        person(5, "sending"),
    )
    status = Status("i" * 26, "<m@x>", "me@x.test", "s", 9, "", None, None, "normal", AT, AT + 10**6, people)
    attempts = [
        Attempt(AT + 20, (2, 4), "r", "mx", 5, "deferred", Reply(451, "later", "4.7.1"), ()),
        Attempt(AT + 10, (1,), "r", "mx", 5, "unknown", Reply(0, "connection lost"), ()),
        Attempt(AT + 30, (5,), "r", "", 0, "returned", Reply(0, "shutdown"), ()),
    ]
    events = [
        Happened(AT, "accepted", None, "queued", ""),
        Happened(AT + 15, "confirm", 1, "delivered", "confirmed"),
        Happened(AT + 40, "hold", 3, "held", "operator"),
        Happened(AT + 41, "expired", 4, "failed", "too old"),
        Happened(AT + 42, "reroute", 2, "queued", "", "backup"),
    ]
    copies = [
        Copied(
            (1,),
            AT + 9,
            AT + 14,
            (("relay", None), ("mx", AT), ("mx2", AT + 1000), ("home", AT + 9000)),
            False,
        ),
        Copied((2,), AT + 21, None, (), True),
        Copied((3,), AT + 21, None, (), False),
    ]
    lines = timeline(status, attempts, events, copies, AT + 50, str, "by ESMTP from h")
    told = [line.partition("  ")[2] for line in lines[:8]]
    assert told == [
        "accepted from me@x.test, by ESMTP from h, for 5 recipients",
        "a@x.test: no answer to the final dot: it may have been taken or not by mx (r): connection lost",
        "a@x.test: the loopback copy came home after 5 ms, through relay → mx → mx2 → home (8s later)",
        "a@x.test is delivered after all: there is evidence that the server had taken it",
        told[4],
        "b@x.test: a loopback copy was sent along, and has not come home in time",
        "e@x.test: handed back untried (shutdown)",
        "c@x.test was held by an operator",
    ]
    assert told[4].startswith("b@x.test, d@x.test: put off by mx (r); it said: 451 4.7.1 later. That means: ")
    assert lines[8].endswith("d@x.test was given up: too old") and len(lines) == 15
    assert lines[9].endswith("b@x.test was given the route backup by an operator")
    ends = lines[10:]
    assert "arrived twice" in ends[0] and f"Next try at {AT + 60_000}; given up at {AT + 10**6}." in ends[1]
    assert "outmail queue release" in ends[2] and "requeue" in ends[3] and "sending it" in ends[4]
