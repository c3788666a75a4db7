"""What every store must do: a suite to run against a store of your own. Public; needs pytest and hypothesis.

>>> # tests/test_my_store.py
>>> import pytest
>>> from outmail.testing.conformance import *  # doctest: +SKIP
>>> @pytest.fixture  # doctest: +SKIP
... def store(tmp_path):
...     made = MyStore(tmp_path)  # empty, with the calls of outmail.store.Store
...     yield made
...     made.close()

In a conftest.py, ``pytest.register_assert_rewrite("outmail.testing.conformance")`` makes its failures tell
more. Stores whose verbs are not SQL leave `test_one_bad_verb_spoils_only_itself` out.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from outmail import lifecycle as life
from outmail.lifecycle import Standing
from outmail.model import (
    Copies,
    Delivery,
    Filter,
    Message,
    Outcome,
    Recipient,
    Reply,
    Settled,
    Term,
    Verdict,
    keyed_id,
    new_id,
)
from outmail.policy.loopback import Token
from outmail.store import Store, StoreError, Verb
from outmail.store.verbs.delivery import BEGUN, HARMLESS

NOW = 1_800_000_000_000


def message(
    *to: str,
    destination: str = "default",
    priority: int = 1,
    now: int = NOW,
    due: int | None = None,
    content: bytes = b"A: b\r\n\r\n",
    key: str | None = None,
    expires: int = 10**9,
) -> Message:
    id = new_id(now) if key is None else keyed_id(key)
    people = tuple(Recipient(address, destination) for address in to or ("a@x.test",))
    return Message(
        id,
        content,
        "me@x.test",
        people,
        f"<{id}@x>",
        "subject",
        hashlib.sha256(content).digest(),
        0,
        now,
        due or now,
        now + expires,
        priority,
        key,
    )


def add(store: Store, *messages: Message) -> Any:
    return [one[:4] for one in store.run(store.verbs.add(list(messages)))]


def lease(
    store: Store, owner: Any, n: int = 10, now: int = NOW, number: int = 1, destination: str = "default"
) -> list[Delivery]:
    return store.run(store.verbs.lease(owner.id, number, {destination: n}, now))


def settle(
    store: Store,
    owner: Any,
    delivery: Delivery,
    event: str,
    kind: str = "deferred",
    due: int = NOW,
    now: int = NOW,
    hold: bool = False,
) -> int:
    outcome = Outcome(kind, "recipient", "dot", Reply(250, "text"))  # type: ignore[arg-type]
    for r in delivery.recipients:
        r.outcome = outcome
    item = Settled(
        delivery, tuple((r, Verdict(event, due, "why")) for r in delivery.recipients), now, 5, True
    )
    return int(store.run(store.verbs.settle(owner.id, [item], hold_unknown=hold)))


def standing(store: Store, id: str, n: int = 1) -> Any:
    seq = store.read(store.verbs.seq_of(id))
    assert seq is not None
    return store.read(store.verbs.statuses([seq]))[0].recipients[n - 1]


def purged(store: Store, kind: str, before: int) -> None:
    at, more = 0, True
    while more:
        at, _, more = store.run(store.verbs.purge(kind, before, at))


def test_what_is_added_is_whole_and_found(store: Any) -> None:
    one = message("a@x.test", "b@x.test")
    assert add(store, one) == [(one.id, one.message_id, NOW, False)]
    seq = store.read(store.verbs.seq_of(one.id))
    assert store.read(store.verbs.content(seq)) == one.content
    assert [e.event for e in store.read(store.verbs.events_after(0))] == ["accepted"]


def test_a_key_is_one_message_also_inside_one_batch(store: Any) -> None:
    first, second = message(key="k"), message(key="k", now=NOW + 5)
    assert [row[3] for row in add(store, first, second)] == [False, True]
    assert add(store, message(key="k", now=NOW + 9))[0] == (first.id, first.message_id, NOW, True)
    assert len(store.read(store.verbs.find(Filter(), NOW))[0]) == 1


def test_lease_takes_older_first_and_never_twice(store: Any) -> None:
    made = [message(now=NOW + i) for i in range(5)]
    add(store, *reversed(made))
    owner = store.register(NOW)
    assert [d.id for d in lease(store, owner, 3, NOW + 10)] == [m.id for m in made[:3]]
    assert [d.id for d in lease(store, owner, 9, NOW + 10)] == [m.id for m in made[3:]]
    assert lease(store, owner, 9, NOW + 10) == []


def test_lease_leaves_other_destinations_and_the_future_alone(store: Any) -> None:
    add(store, message(destination="other"), message(due=NOW + 1000))
    owner = store.register(NOW)
    assert lease(store, owner) == []
    assert store.read(store.verbs.next_due(NOW)) == {"default": NOW + 1000, "other": NOW}


def test_a_settle_needs_the_lease(store: Any) -> None:
    add(store, message())
    owner, other = store.register(NOW), store.register(NOW)
    (delivery,) = lease(store, owner)
    assert settle(store, other, delivery, "deferred") == 0
    assert settle(store, owner, delivery, "delivered", "delivered") == 1
    assert settle(store, owner, delivery, "deferred") == 0


def test_a_late_delivered_confirms_only_the_uncertain(store: Any) -> None:
    certain, marked = message(), message()
    add(store, certain, marked)
    owner = store.register(NOW)
    first, second = lease(store, owner)
    store.run(store.verbs.reclaim(owner.id, {(second.seq, 1, 1)}, NOW, hold=False))
    assert settle(store, owner, first, "delivered", "delivered") == 0
    assert settle(store, owner, second, "delivered", "delivered") == 1
    assert standing(store, certain.id).state == "queued" and standing(store, marked.id).state == "delivered"
    assert [e.event for e in store.read(store.verbs.events_after(0))][-1] == "confirm"


def test_one_bad_verb_spoils_only_itself(store: Any) -> None:
    def bad() -> Any:
        yield "INSERT INTO message (seq) VALUES (77)", ()

    good = message()
    answers = store.commit([store.verbs.add([good]), bad(), store.verbs.add([message()])])
    assert isinstance(answers[1], StoreError) and len(store.read(store.verbs.find(Filter(), NOW))[0]) == 2


def test_a_verb_that_raises_leaves_nothing_behind(store: Any) -> None:
    def raises() -> Any:
        yield from store.verbs.add([message(), message()])
        yield from store.verbs.note_put("job", "a", {"n": 1})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.run(raises())
    with pytest.raises(ZeroDivisionError):
        store.commit([raises()])
    answers = store.commit([raises(), store.verbs.note_put("job", "b", {"n": 1})])
    assert isinstance(answers[0], ZeroDivisionError)
    assert (
        store.read(store.verbs.find(Filter(), NOW))[0] == []
        and store.read(store.verbs.note_get("job", "a")) is None
    )
    assert store.read(store.verbs.note_get("job", "b"))[0] == {"n": 1}


def test_returned_counts_no_attempt(store: Any) -> None:
    one = message()
    add(store, one)
    owner = store.register(NOW)
    store.run(store.verbs.give_back(owner.id, lease(store, owner), NOW))
    assert (standing(store, one.id).state, standing(store, one.id).attempts) == ("queued", 0)


def test_suspects_go_alone_and_the_third_loss_is_poison(store: Any) -> None:
    bad = message("bad@x.test")
    add(store, bad)
    now = NOW
    for losses in (1, 2, 3):
        owner = store.register(now)
        deliveries = lease(store, owner, 10, now, losses)
        assert [d.id for d in deliveries] == [bad.id]
        store.run(store.verbs.reclaim(owner.id, {(deliveries[0].seq, BEGUN, losses)}, now, hold=False))
        now += 61_000
    assert (standing(store, bad.id).state, standing(store, bad.id).reason) == ("held", "poison")


def test_only_what_was_begun_is_a_suspect_and_one_that_did_no_harm_is_not_blamed(store: Any) -> None:
    begun, waiting = message(), message()
    add(store, begun, waiting)
    owner = store.register(NOW)
    first, second = lease(store, owner, 10)
    store.run(store.verbs.reclaim(owner.id, {(first.seq, BEGUN, 1)}, NOW, hold=False))
    owner = store.register(NOW)
    (alone,) = (
        lease(store, owner, 1, NOW, 2, "nowhere")
        or store.run(store.verbs.lease(owner.id, 3, {"default": 1}, NOW))[1:]
    )
    assert (alone.id, [r.losses for r in alone.recipients]) == (begun.id, [1]) and second.recipients[
        0
    ].losses == 0
    for number in range(4, 9):  # whoever kills engines now, it is not this one
        record = {(alone.seq, BEGUN, alone.lease), (alone.seq, HARMLESS, alone.lease)}
        store.run(store.verbs.reclaim(owner.id, record, NOW, hold=False))
        owner = store.register(NOW)
        (alone,) = [
            d for d in store.run(store.verbs.lease(owner.id, number, {"default": 1}, NOW)) if d.id == begun.id
        ]
    assert alone.recipients[0].losses == 1


def test_nobody_has_more_time_left_than_a_whole_life(store: Any) -> None:
    day = 86_400_000
    short, ahead, planned = (
        message(expires=day),
        message(now=NOW + 100 * day, expires=5 * day),
        message(due=NOW + day, expires=6 * day),
    )
    add(store, short, ahead, planned)
    assert store.run(store.verbs.shorten(NOW, 5 * day)) == 1
    assert (
        store.run(store.verbs.expire(NOW + 5 * day - 1)) == 1 and standing(store, short.id).state == "failed"
    )
    assert store.run(store.verbs.expire(NOW + 5 * day)) == 1 and standing(store, ahead.id).state == "failed"
    assert standing(store, planned.id).state == "queued"


def test_too_old_is_not_said_of_a_span_that_is_spared(store: Any) -> None:
    add(store, *[message(expires=1000 * (i + 1)) for i in range(4)])
    assert store.run(store.verbs.expire(NOW + 3500, (NOW + 1000, NOW + 2000))) == 2
    assert store.run(store.verbs.expire(NOW + 3500)) == 1


def test_what_was_dated_by_a_clock_that_was_wrong_is_as_young_as_its_number(store: Any) -> None:
    before, wrong = message(expires=1000), message(now=1000, expires=5000)
    add(store, before)
    number = store.read(store.verbs.newest())
    add(store, wrong)
    assert store.run(store.verbs.expire(NOW + 2000, (0, 0), (number, 2000))) == 1
    assert standing(store, before.id).state == "failed" and standing(store, wrong.id).state == "queued"
    assert (
        store.run(store.verbs.expire(NOW + 5000 - 1)) == 0 and store.run(store.verbs.expire(NOW + 5000)) == 1
    )


def test_what_came_lately_is_as_young_as_its_number_whatever_becomes_of_it(store: Any) -> None:
    number = store.read(store.verbs.newest())
    wrong, right, behind = (
        message(now=1000, expires=50_000),
        message(expires=50_000),
        message(now=NOW - 40_000, expires=50_000),
    )
    add(store, wrong, right, behind)
    owner = store.register(NOW)
    (sending,) = lease(store, owner, 1)
    assert store.run(store.verbs.rejuvenate(NOW + 20_000, number, 1 << 62, 20_000)) == 2
    store.run(store.verbs.give_back(owner.id, [sending], NOW + 20_000))
    assert (
        store.run(store.verbs.expire(NOW + 49_999)) == 0 and store.run(store.verbs.expire(NOW + 50_000)) == 3
    )


def test_messages_dated_by_a_clock_that_was_set_are_looked_at_apart(store: Any) -> None:
    before = message(expires=1000)
    add(store, before)
    number = store.read(store.verbs.newest())
    later = message(expires=1000)
    add(store, later)
    assert store.run(store.verbs.expire(NOW + 5000, above=number, after=NOW)) == 1
    assert (standing(store, before.id).state, standing(store, later.id).state) == ("queued", "failed")


def test_after_a_clock_was_set_back_what_waits_is_due_as_long_from_now_as_it_was(store: Any) -> None:
    deferred, planned = message(due=NOW), message(due=NOW + 9_000)
    add(store, deferred, planned)
    owner = store.register(NOW)
    (first,) = lease(store, owner, 1)
    settle(store, owner, first, "deferred", "deferred", due=NOW + 60_000)
    assert store.run(store.verbs.earlier(50_000, NOW, "default")) == 2
    assert (
        standing(store, deferred.id).next_try_at == NOW + 10_000
        and standing(store, planned.id).next_try_at == NOW + 9_000
    )


def test_age_ends_waiting_and_clocks_that_jumped_do_not_hold_mail(store: Any) -> None:
    old, stuck, scheduled = (
        message(expires=1000),
        message(now=NOW + 40 * 86_400_000),
        message(due=NOW + 30 * 86_400_000, expires=10**12),
    )
    add(store, old, stuck, scheduled)
    assert store.run(store.verbs.expire(NOW + 2000)) == 1 and standing(store, old.id).state == "failed"
    assert store.run(store.verbs.clamp(NOW, 86_400_000)) == 1
    assert (
        standing(store, stuck.id).next_try_at == NOW
        and standing(store, scheduled.id).next_try_at == NOW + 30 * 86_400_000
    )


def test_wishes_are_honoured_on_the_way_back(store: Any) -> None:
    held, gone = message(), message()
    add(store, held, gone)
    owner = store.register(NOW)
    deliveries = lease(store, owner)
    assert store.run(store.verbs.change(Filter(ids=((held.id, None),)), "hold", NOW))[0] == 1
    assert store.run(store.verbs.change(Filter(ids=((gone.id, 1),)), "cancel", NOW))[0] == 1
    for delivery in deliveries:
        settle(store, owner, delivery, "deferred")
    assert standing(store, held.id).state == "held" and standing(store, gone.id).state == "cancelled"


def reroute(store: Store, id: str, route: str, now: int = NOW) -> int:
    return store.run(store.verbs.reroute(Filter(ids=((id, None),)), route, now))[0]


def test_what_waits_takes_another_route_at_once_but_not_before_its_time(store: Any) -> None:
    deferred, planned = message(), message(due=NOW + 5000)
    add(store, deferred, planned)
    owner = store.register(NOW)
    (first,) = lease(store, owner)
    settle(store, owner, first, "deferred", due=NOW + 3_600_000)
    assert reroute(store, deferred.id, "other") == reroute(store, planned.id, "other") == 1
    assert store.read(store.verbs.next_due(NOW)) == {"other": NOW}
    assert [d.id for d in lease(store, owner, 9, NOW, 2, "other")] == [deferred.id]
    assert [d.id for d in lease(store, owner, 9, NOW + 5000, 3, "other")] == [planned.id]


def test_another_route_twice_is_one_change_and_one_event(store: Any) -> None:
    one, held = message(), message()
    add(store, one, held)
    store.run(store.verbs.change(Filter(ids=((held.id, None),)), "hold", NOW))
    for changed in (1, 0):
        assert reroute(store, one.id, "other") == reroute(store, held.id, "other") == changed
    assert [e.event for e in store.read(store.verbs.events_after(0))].count("reroute") == 2
    assert (standing(store, held.id).state, standing(store, held.id).reason) == ("held", "operator")
    assert standing(store, held.id).route == "other"


def test_what_is_being_sent_takes_another_route_when_it_comes_back(store: Any) -> None:
    back, arrived, unanswered = message(), message(), message()
    add(store, back, arrived, unanswered)
    owner = store.register(NOW)
    deliveries = {d.id: d for d in lease(store, owner)}
    for one in (back, arrived, unanswered):
        assert reroute(store, one.id, "other") == 1 and standing(store, one.id).state == "sending"
    settle(store, owner, deliveries[back.id], "deferred", due=NOW + 3_600_000)
    settle(store, owner, deliveries[unanswered.id], "unknown", "unknown", due=NOW + 60_000)
    settle(store, owner, deliveries[arrived.id], "delivered", "delivered")
    assert (standing(store, arrived.id).route, standing(store, back.id).route) == ("default", "other")
    assert standing(store, back.id).next_try_at == NOW  # the old next hop's wish says nothing of the new one
    assert standing(store, unanswered.id).next_try_at == NOW + 60_000
    assert [d.id for d in lease(store, owner, 9, NOW, 2, "other")] == [back.id]


def test_a_lost_lease_comes_back_to_the_new_route_and_a_late_delivery_keeps_its_own(store: Any) -> None:
    lost, late = message(), message()
    add(store, lost, late)
    owner = store.register(NOW)
    deliveries = {d.id: d for d in lease(store, owner)}
    assert reroute(store, lost.id, "other") == reroute(store, late.id, "other") == 1
    store.run(store.verbs.reclaim(owner.id, {(deliveries[late.id].seq, 1, 1)}, NOW, hold=False))
    assert standing(store, lost.id).route == standing(store, late.id).route == "other"
    settle(store, owner, deliveries[late.id], "delivered", "delivered")
    assert (standing(store, late.id).state, standing(store, late.id).route) == ("delivered", "default")


def test_what_a_newer_message_replaces_says_so(store: Any) -> None:
    """Waiting, and on its way: neither is said to be an operator's doing."""
    waiting, sending, newer = message(), message(), message()
    add(store, sending)
    owner = store.register(NOW)
    (delivery,) = lease(store, owner)
    add(store, waiting)
    for old in (waiting, sending):
        store.run(store.verbs.add([newer], supersede=old.id, again=True))
        newer = message()
    assert standing(store, waiting.id).reason == life.REPLACED
    settle(store, owner, delivery, "deferred")
    assert [standing(store, one.id).state for one in (waiting, sending)] == ["cancelled"] * 2
    assert standing(store, sending.id).reason == life.REPLACED


def test_retention_takes_bodies_then_records(store: Any) -> None:
    made = [message(content=b"A: b\r\n\r\n" + os.urandom(3000).hex().encode()) for _ in range(300)]
    add(store, *made)
    owner = store.register(NOW)
    for delivery in lease(store, owner, 299):
        settle(store, owner, delivery, "delivered", "delivered")
    purged(store, "bodies", NOW + 4000)
    seqs = [store.read(store.verbs.seq_of(m.id)) for m in made]
    assert (
        store.read(store.verbs.content(seqs[0])) is None
        and store.read(store.verbs.content(seqs[-1])) is not None
    )
    store.run(store.verbs.change(Filter(terms=(Term("state", "delivered"),)), "requeue", NOW))
    assert store.run(store.verbs.change(Filter(), "requeue", NOW))[0] == 0
    purged(store, "records", NOW + 40_000)
    left = [s.id for s in store.read(store.verbs.find(Filter(), NOW))[0]]
    # the newest message, and whose event and attempt are the newest
    assert made[-1].id in left and len(left) <= 3
    assert store.check() == []


def test_notes_are_compared_and_set(store: Any) -> None:
    verbs = store.verbs
    assert store.run(verbs.note_put("job", "a", {"n": 1}, 0)) and not store.run(
        verbs.note_put("job", "a", {"n": 2}, 0)
    )
    value, version = store.read(verbs.note_get("job", "a"))
    assert (
        value == {"n": 1}
        and store.run(verbs.note_put("job", "a", {"n": 2}, version))
        and not store.run(verbs.note_put("job", "a", {}, version))
    )


def test_pauses_of_a_next_hop_and_their_ends_take_turns_whoever_tells_them(store: Any) -> None:
    verbs = store.verbs
    add(store, message())
    for now, url, engine in (
        (NOW, "smtp://a:25", "one"),
        (NOW + 5, "smtp://a:25", "two"),
        (NOW + 9, "smtp://b:25", "two"),
    ):
        store.run(verbs.pause_hop("default", url, "refused", engine, now))
    note, _ = store.read(verbs.note_get("hop", "default"))
    assert (note["since"], note["url"], note["engine"]) == (NOW + 9, "smtp://b:25", "two")
    for _ in range(2):
        store.run(verbs.resume_hop("default", NOW + 20))
    add(store, message())
    events = store.read(store.verbs.events_after(0))
    assert [e.event for e in events] == ["accepted", "paused", "paused", "resumed", "accepted"]
    told = [e for e in events if e.id is None]
    assert {(e.n, e.state, e.route) for e in told} == {(None, None, "default")} and told[
        0
    ].reason == "refused"


def test_a_pause_that_engines_forgot_is_forgotten(store: Any) -> None:
    week = 8 * 86_400_000
    for name, engine, now in (("old", "gone", NOW), ("held", "alive", NOW), ("young", "gone", NOW + week)):
        store.run(store.verbs.pause_hop(name, "smtp://a:25", "refused", engine, now))
    store.run(store.verbs.forget_hops({"alive"}, NOW + week))
    assert store.read(store.verbs.note_keys("hop")) == ["held", "young"]


def test_events_of_next_hops_are_kept_as_long_as_records(store: Any) -> None:
    def pause(now: int) -> None:
        store.run(store.verbs.pause_hop("default", "smtp://a:25", "refused", "one", now))
        store.run(store.verbs.resume_hop("default", now))

    owner = store.register(NOW)
    for now in (NOW, NOW + 20_000):
        pause(now)
        add(store, message(now=now))
        (delivery,) = lease(store, owner, 1, now, now)
        settle(store, owner, delivery, "delivered", "delivered", now=now)
    store.read(store.verbs.events_after(0))
    purged(store, "records", NOW + 10_000)
    purged(store, "records", NOW + 10_000)
    left = [(e.event, e.at) for e in store.read(store.verbs.events_after(0))]
    assert left == [(event, NOW + 20_000) for event in ("paused", "resumed", "accepted", "delivered")]


def test_events_since_a_moment_begin_there(store: Any) -> None:
    verbs = store.verbs
    add(store, message(now=NOW))
    add(store, message(now=NOW + 1000))
    first, second = store.read(verbs.events_after(0))
    since = [store.read(verbs.cursor_at(NOW + ms)) for ms in (0, 1, 1000, 1001)]
    assert since == [first.cursor - 1, second.cursor - 1, second.cursor - 1, second.cursor]


def test_what_waits_is_counted_by_relay_domain_and_reason(store: Any) -> None:
    verbs = store.verbs
    late, refused = (
        message("a@one.test", "b@ONE.test", now=NOW - 5000),
        message("c@two.test", destination="x"),
    )
    add(store, late, refused, message("d@two.test", due=NOW + 9000), message("e@two.test", due=NOW - 1))
    owner = store.register(NOW)
    (delivery,) = lease(store, owner, 1, NOW, 1, "x")
    settle(store, owner, delivery, "deferred", due=NOW + 60_000)
    store.run(verbs.change(Filter(ids=((late.id, 2),)), "hold", NOW))
    assert store.read(verbs.waiting("relay", NOW, 9)) == [("default", 3, NOW - 5000, 1), ("x", 1, NOW, 0)]
    assert store.read(verbs.waiting("domain", NOW, 1)) == [("one.test", 2, NOW - 5000, 1)]
    found = {which: n for which, n, *_ in store.read(verbs.waiting("reason", NOW, 9))}
    assert found == {"": 2, "operator": 1, "250": 1}


def test_ids_are_found_by_their_beginning(store: Any) -> None:
    one, other = message(), message(key="k")
    add(store, one, other)
    for made in (one, other):
        assert store.read(store.verbs.ids_beginning(made.id[:20])) == [made.id]
        assert store.read(store.verbs.ids_beginning(made.id)) == [made.id]
    assert store.read(store.verbs.ids_beginning("")) == sorted([one.id, other.id])
    assert len(store.read(store.verbs.ids_beginning("", 1))) == 1
    assert store.read(store.verbs.ids_beginning("vvvvvvvvvvvvvvvvvvvvvvvvvv")) == []


def test_failures_are_counted_since_a_moment(store: Any) -> None:
    add(store, message(expires=1000), message(expires=5000))
    for now in (NOW + 1000, NOW + 5000):
        store.run(store.verbs.expire(now))
    store.read(store.verbs.last_cursor())
    counts = [store.read(store.verbs.failed_since(NOW + ms)) for ms in (0, 1001, 5001)]
    assert counts == [2, 1, 0]
    assert store.read(store.verbs.failed_since(NOW, 1)) == 1


#: step → what `lifecycle` says of it.
_SAYS: dict[str, Callable[[Standing], Standing]] = {
    "lease": life.lease,
    "delivered": life.delivered,
    "refused": lambda s: life.refused(s, "why"),
    "deferred": lambda s: life.deferred(s, "why"),
    "unknown": lambda s: life.unknown(s, "why", hold=False),
    "unknown, hold": lambda s: life.unknown(s, "why", hold=True),
    "used up": lambda s: life.expired(s, "why"),
    "returned": life.returned,
    "lost": lambda s: life.lost(s, dot=False, begun=False, hold=False),
    "lost, begun": lambda s: life.lost(s, dot=False, begun=True, hold=False),
    "lost, dot": lambda s: life.lost(s, dot=True, begun=True, hold=False),
    "lost, dot, hold": lambda s: life.lost(s, dot=True, begun=False, hold=True),
    "hold": life.hold,
    "release": life.release,
    "cancel": life.cancel,
    "superseded": life.superseded,
    "due": life.due,
    "reroute, there": lambda s: life.reroute(s, f"{s.route.rstrip('+')}+"),
    "reroute, back": lambda s: life.reroute(s, s.route.rstrip("+")),
    "requeue": life.requeue,
    "confirm": life.confirm,
    "too old": lambda s: life.expired(s, "too old"),
    "quarantine": lambda s: life.quarantine(s, "corrupt: test"),
}
#: Steps that a store takes from fewer states than the lifecycle allows: by a lease, or by the age of what
#: waits.
_FROM: dict[str, tuple[str, ...]] = {
    "used up": ("sending",),
    "quarantine": ("sending",),
    "too old": ("queued", "held"),
}


def _said(now: Standing, step: str, took: str) -> Standing:
    """What the lifecycle makes of a step; a delivery reported after the lease was lost confirms one.
    ``took``: the route of the last lease.
    """
    if now.state not in _FROM.get(step, life.STATES):
        return now
    try:
        if step == "delivered":
            return (life.delivered if now.state == "sending" else life.confirm)(now, took)
        return _SAYS[step](now)
    except life.Illegal:
        return now


@dataclass
class _Walk:
    """One recipient on its way through a store: each step is what `_SAYS` tells of, where it is possible.
    An engine that was taken for dead leases nothing more, but may still report what it holds.
    """

    store: Store
    id: str
    destination: str
    owner: Any
    seq: int
    now: int = NOW
    number: int = 0
    held: Delivery | None = None
    holder: Any = None
    alive: bool = True

    def do(self, step: str) -> None:
        self.now += 120_000
        self.number += 1
        name, *words = step.split(", ")
        if name == "lease":
            if not self.alive:
                self.owner, self.alive = self.store.register(self.now), True
            room = {self.destination: 1, f"{self.destination}+": 1}
            got = self.store.run(self.store.verbs.lease(self.owner.id, self.number, room, self.now))
            if got:
                self.held, self.holder = got[0], self.owner
        elif name == "reroute":
            route = self.destination + ("+" if words == ["there"] else "")
            self.store.run(self.store.verbs.reroute(Filter(ids=((self.id, None),)), route, self.now))
        elif name == "lost":
            self._lose(*words)
        elif name == "too old":
            while self.store.run(self.store.verbs.expire(10**17)):
                pass
        elif name in ("hold", "release", "cancel", "superseded", "due", "requeue", "confirm"):
            self.store.run(self.store.verbs.change(Filter(ids=((self.id, None),)), name, self.now))
        elif self.held is None:
            return
        elif name == "returned":
            self.store.run(self.store.verbs.give_back(self.holder.id, [self.held], self.now))
        elif name == "quarantine":
            self.store.run(self.store.verbs.quarantine(self.holder.id, self.held, self.now, "test"))
        else:
            event = "expired" if name == "used up" else name
            kind = "deferred" if name == "used up" else name
            settle(self.store, self.holder, self.held, event, kind, self.now, self.now, hold="hold" in words)

    def _lose(self, *words: str) -> None:
        lease = self.held.lease if self.held is not None else 0
        noted = {(self.seq, 1, lease)} if "dot" in words else set()
        if "begun" in words or ("dot" in words and "hold" not in words):
            noted.add((self.seq, BEGUN, lease))
        self.store.run(self.store.verbs.reclaim(self.owner.id, noted, self.now, hold="hold" in words))
        self.alive = False

    def standing(self) -> Standing:
        """The whole of what the lifecycle owns, as the store has it."""
        sql = (
            "SELECT state, reason, uncertain, losses, wish, destination FROM recipient WHERE message = ? AND "
            "n = 1"
        )

        def verb() -> Verb[list[Any]]:
            return (yield sql, (self.seq,))

        state, reason, uncertain, losses, wish, route = self.store.read(verb())[0]
        return Standing(state, reason, bool(uncertain), losses, wish, route)


def _walked(store: Store, steps: list[str]) -> set[tuple[str, str, str]]:
    """A message walks; after every step its row and the pure functions agree in everything. Returns which
    arrows it went: event, from, to.
    """
    one = message(expires=10**15, destination=new_id(NOW))
    add(store, one)
    seq = store.read(store.verbs.seq_of(one.id))
    assert seq is not None
    walk = _Walk(store, one.id, one.recipients[0].destination, store.register(NOW), seq)
    model = Standing(route=walk.destination)
    assert walk.standing() == model
    went: set[tuple[str, str, str]] = set()
    for i, step in enumerate(steps):
        before = model
        if walk.held is not None or step != "delivered":
            model = _said(model, step, walk.held.destination if walk.held is not None else "")
        walk.do(step)
        assert walk.standing() == model, steps[: i + 1]
        went.add((_EVENTS.get(step, step.partition(",")[0]), before.state, model.state))
    return went


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(sorted(_SAYS)), max_size=30))
@example(["lease", "cancel", "unknown, hold"])
@example(["lost, dot", "lease"])
@example(["lease", "lost, dot", "lease", "used up"])
def test_the_store_walks_as_the_lifecycle(store: Any, steps: list[str]) -> None:
    """Random walks, of legal steps and others."""
    _walked(store, steps)


_EVENTS = {"used up": "expired", "too old": "expired"}
#: Together they go along every arrow.
_WALKS = """
    lease; delivered
    due; lease; hold; release; reroute, there; refused; requeue; lease; deferred; reroute, back; too old
    hold; reroute, there; release; hold; cancel; requeue; cancel
    lease; hold; deferred; superseded
    lease; cancel; deferred
    lease; unknown; lease; confirm
    lease; unknown; confirm
    lease; unknown, hold; confirm
    lease; cancel; unknown
    lease; returned; lease; hold; returned; too old
    lease; cancel; returned
    lease; lost; lease; lost, dot, hold
    lease; superseded; lost
    lease; lost, begun; lease; lost, begun; lease; lost, begun
    superseded
    lease; used up
    lease; quarantine
"""


def test_the_store_goes_along_every_arrow_of_the_lifecycle(store: Any) -> None:
    went = {
        arrow for line in _WALKS.split("\n") if line for arrow in _walked(store, line.strip().split("; "))
    }
    arrows = {
        (event, origin, target)
        for event, origins in life.ARROWS.items()
        for origin, targets in origins.items()
        for target in targets
    }
    # the first is no step of a stored recipient, see below; the content is read by who has leased it
    assert arrows - went == {("suppress", "queued", "failed"), ("quarantine", "queued", "held")}


def test_who_must_not_be_contacted_is_stored_as_failed(store: Any) -> None:
    one = message(destination="x")
    one.recipients[0].suppressed = "safety"
    add(store, one)
    seq = store.read(store.verbs.seq_of(one.id))
    assert seq is not None
    walk = _Walk(store, one.id, "x", None, seq)
    assert walk.standing() == life.suppress(Standing(route="x"), "safety")
    assert [e.event for e in store.read(store.verbs.events_after(0))] == ["accepted", "suppress"]


def copied(delivery: Delivery, part: int = 1, *people: int) -> Token:
    """A loopback copy was in the transaction of these recipients (all of them); returns its token."""
    delivery.copies = delivery.copies or Copies(str)
    delivery.copies.sent[part] = NOW
    for r in delivery.recipients:
        if not people or r.n in people:
            r.copy = part
    return Token(delivery.seq, delivery.owner, delivery.lease, part, NOW // 60_000)


def came_home(
    store: Store, token: Token, now: int = NOW + 5, message_id: str = "", bounce: bool = False
) -> str:
    return store.run(store.verbs.came_home(token, now, '[["mx", null]]', message_id, bounce))


def told(store: Store, id: str) -> list[tuple[str, int | None]]:
    return [(e.event, e.n) for e in store.read(store.verbs.events_after(0)) if e.id == id]


@pytest.mark.parametrize("first", ["settle", "home"])
def test_a_copy_is_seen_once_whichever_is_on_record_first(store: Any, first: str) -> None:
    one = message("a@x.test", "b@x.test")
    add(store, one)
    owner = store.register(NOW)
    (delivery,) = lease(store, owner)
    token = copied(delivery)
    if first == "home":
        assert came_home(store, token) == "home"
    settle(store, owner, delivery, "delivered", "delivered")
    if first == "settle":
        assert came_home(store, token) == "home"
    assert told(store, one.id)[-2:] == [("seen", 1), ("seen", 2)]
    assert came_home(store, token) == "duplicate" and len(told(store, one.id)) == 5
    (row,) = store.read(store.verbs.copies_of(delivery.seq))
    assert row[0] == one.id and row[4:7] == ("delivered", NOW, NOW + 5)
    assert store.read(store.verbs.loopback_counts()) == {"duplicate": 1, "home": 1}


@pytest.mark.parametrize("first", ["settle", "home"])
@pytest.mark.parametrize("hold", [False, True])
def test_a_copy_confirms_those_of_its_transaction_who_had_no_answer(
    store: Any, first: str, hold: bool
) -> None:
    one = message("a@x.test", "b@x.test", "c@x.test")
    add(store, one)
    owner = store.register(NOW)
    (delivery,) = lease(store, owner)
    token, other = copied(delivery, 1, 1, 2), copied(delivery, 2, 3)
    if first == "home":
        assert came_home(store, token) == "home"
    settle(store, owner, delivery, "unknown", "unknown", NOW + 600_000, hold=hold)
    if first == "settle":
        assert came_home(store, token) == "home"
    states = [standing(store, one.id, n).state for n in (1, 2, 3)]
    assert states == ["delivered", "delivered", "held" if hold else "queued"]
    assert came_home(store, other) == "home" and standing(store, one.id, 3).state == "delivered"
    assert [event for event, _ in told(store, one.id)].count("confirm") == 3
    assert all(standing(store, one.id, n).uncertain for n in (1, 2, 3))


@pytest.mark.parametrize("first", ["reclaim", "home"])
def test_a_copy_confirms_what_a_dead_engine_had_noted_with_it(store: Any, first: str) -> None:
    one = message("a@x.test", "b@x.test", "c@x.test")
    add(store, one)
    owner = store.register(NOW)
    (delivery,) = lease(store, owner)
    token = copied(delivery, 1, 1)
    noted = {(delivery.seq, 1 | 1 << 24, 1), (delivery.seq, 2 | 2 << 24, 1)}
    if first == "home":
        assert came_home(store, token) == "home"
    store.run(store.verbs.reclaim(owner.id, noted, NOW, hold=False, within=600_000))
    if first == "reclaim":
        waiting = standing(store, one.id, 1)
        assert (waiting.state, waiting.next_try_at, waiting.uncertain) == ("queued", NOW + 600_000, True)
        assert came_home(store, token) == "home"
    assert [standing(store, one.id, n).state for n in (1, 2, 3)] == ["delivered", "queued", "queued"]
    assert standing(store, one.id, 2).next_try_at == NOW + 600_000
    assert standing(store, one.id, 3).next_try_at == NOW and not standing(store, one.id, 3).uncertain


def test_without_a_record_a_copy_confirms_only_who_was_alone_and_only_as_it_was_sent(store: Any) -> None:
    alone, forged, two = message(), message(), message("a@x.test", "b@x.test")
    add(store, alone, forged, two)
    owner = store.register(NOW)
    tokens = [copied(delivery) for delivery in lease(store, owner)]
    store.run(store.verbs.reclaim(owner.id, None, NOW, hold=False, within=600_000))
    assert [
        came_home(store, token, NOW + 9, id) for token, id in zip(tokens, (alone.message_id, "<else>", ""))
    ] == ["home"] * 3
    assert standing(store, alone.id).state == "delivered"
    assert standing(store, forged.id).state == "queued" and standing(store, two.id).state == "queued"


def test_what_is_no_proof_marks_nothing(store: Any) -> None:
    one = message()
    add(store, one)
    owner = store.register(NOW)
    (delivery,) = lease(store, owner)
    token = copied(delivery)
    settle(store, owner, delivery, "unknown", "unknown", NOW + 600_000)
    assert came_home(store, token, bounce=True, message_id="<bounce@x>") == "bounced"
    assert came_home(store, token._replace(message=delivery.seq + 77)) == "unknown"
    assert came_home(store, token._replace(part=2)) == came_home(store, token._replace(lease=9)) == "home"
    assert standing(store, one.id).state == "queued"
    assert (
        came_home(store, token._replace(part=1 | 0x80)) == "home"
        and standing(store, one.id).state == "queued"
    )
    assert "seen" not in [event for event, _ in told(store, one.id)]


def test_copies_are_missed_until_they_come_and_forgotten_with_the_records(store: Any) -> None:
    add(store, message(), message())
    owner = store.register(NOW)
    tokens = []
    for delivery in lease(store, owner):
        tokens.append(copied(delivery))
        settle(store, owner, delivery, "delivered", "delivered")
    assert store.run(store.verbs.miss(NOW - 1)) == {}
    assert store.run(store.verbs.miss(NOW)) == {"default": 2} and store.run(store.verbs.miss(NOW)) == {}
    came_home(store, tokens[0])
    assert store.read(store.verbs.missing()) == {"default": (1, NOW)}
    assert [row[:4] for row in store.read(store.verbs.copies_since(NOW))] and store.run(
        store.verbs.forget_copies(NOW)
    ) == 2
    assert store.read(store.verbs.copies_since(0)) == []


def test_the_schema_takes_the_states_of_the_lifecycle_and_no_others(store: Any) -> None:
    """Its CHECK constraints, asked by writing past the verbs."""
    add(store, message())

    def put(state: str, owner: int | None) -> Verb[list[Any]]:
        return (yield "UPDATE recipient SET state = ?, owner = ?", (state, owner))

    for state in life.STATES:
        store.run(put(state, 1 if state == "sending" else None))
        with pytest.raises(StoreError):
            store.run(put(state, None if state == "sending" else 1))
    with pytest.raises(StoreError):
        store.run(put("deferred", None))


def test_threads_share_commits_and_lose_nothing(store: Any) -> None:
    def work() -> None:
        for _ in range(25):
            add(store, message())

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(store.read(store.verbs.find(Filter(), NOW))[0]) == 150


def test_a_forked_child_has_its_own_connection(store: Any) -> None:
    owner = store.register(NOW)
    add(store, message())
    pid = os.fork()
    if pid == 0:
        try:
            add(store, message())
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    add(store, message())
    assert len(store.read(store.verbs.find(Filter(), NOW))[0]) == 3
    assert store.reclaim(NOW, hold=False) == [] and owner.id
