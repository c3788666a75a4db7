"""Behaviours 1–12: every recipient gets its own word, and its own story."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from outmail.outbox.outbox import Outbox
from outmail.testing import Sink
from tests.waiting import until

FAST = '[retry]\nschedule = "100ms…"\n'
MakeBox = Callable[..., Outbox]


def send(box: Outbox, *to: str, **words: Any) -> str:
    return box.send(list(to), "subject", "text\n.dot\n", **words).id


def states(box: Outbox, id: str) -> dict[str, str]:
    return {r.address: r.state for r in box.status(id).recipients}


def settle(box: Outbox, id: str, timeout: float = 10) -> dict[str, str]:
    box.wait(id, timeout)
    return states(box, id)


def test_one_of_three_is_refused_the_others_are_delivered_once(sink: Sink, make_box: MakeBox) -> None:
    sink.script("RCPT bad@*: 550 5.1.1 nobody")
    box = make_box(sink.url)
    id = send(box, "a@x.test", "bad@x.test", "c@x.test")
    assert settle(box, id) == {"a@x.test": "delivered", "bad@x.test": "failed", "c@x.test": "delivered"}
    refused = box.status(id).recipients[1]
    assert refused.reply and (refused.reply.code, refused.reply.enhanced, refused.reply.text) == (
        550,
        "5.1.1",
        "nobody",
    )
    assert [m.recipients for m in sink.messages] == [("a@x.test", "c@x.test")]


def test_one_of_three_is_deferred_and_retried_alone(sink: Sink, make_box: MakeBox) -> None:
    sink.script("RCPT slow@*: 451 4.7.1 greylisted x2")
    box = make_box(sink.url, FAST)
    id = send(box, "a@x.test", "slow@x.test", "c@x.test")
    assert set(settle(box, id).values()) == {"delivered"}
    assert [m.recipients for m in sink.messages] == [("a@x.test", "c@x.test"), ("slow@x.test",)]
    assert box.status(id).recipients[1].attempts == 3
    assert [a.outcome for a in box.attempts(id)].count("deferred") == 2


def test_all_refused_fails_at_once(sink: Sink, make_box: MakeBox) -> None:
    sink.script("RCPT: 550 5.1.1 nobody")
    box = make_box(sink.url)
    id = send(box, "a@x.test", "b@x.test")
    assert set(settle(box, id).values()) == {"failed"} and not sink.messages
    assert "RSET" not in sink.commands[-1:]


def test_refused_after_data_fails_all_and_deferred_retries_all(sink: Sink, make_box: MakeBox) -> None:
    sink.script("DOT: 451 4.3.0 later x1\nDOT: 554 5.6.0 spam x1")
    box = make_box(sink.url, FAST)
    id = send(box, "a@x.test", "b@x.test")
    assert set(settle(box, id).values()) == {"failed"}
    assert [a.reply.code for a in box.attempts(id)] == [451, 554]


def test_a_lost_goodbye_changes_nothing(sink: Sink, make_box: MakeBox) -> None:
    sink.script("QUIT: drop")
    with make_box(sink.url) as box:
        id = send(box, "a@x.test")
        assert settle(box, id) == {"a@x.test": "delivered"}
    assert len(sink.messages) == 1


def test_no_answer_to_the_final_dot_is_uncertain_and_keeps_the_message_id(
    sink: Sink, make_box: MakeBox
) -> None:
    sink.script("DOT: take-and-drop x1")
    box = make_box(sink.url, FAST)
    id = send(box, "a@x.test")
    assert settle(box, id) == {"a@x.test": "delivered"}
    assert box.status(id).recipients[0].uncertain
    first, second = sink.messages
    assert first.content == second.content and box.status(id).message_id.encode() in first.content
    assert [e.event for e in box.events()] == ["accepted", "unknown", "delivered"]
    assert [s.id for s in box.find("was:uncertain")] == [id] and not list(box.find("is:uncertain"))


def test_on_uncertain_hold_waits_for_a_person(sink: Sink, make_box: MakeBox) -> None:
    sink.script("DOT: take-and-drop x1")
    box = make_box(sink.url, FAST + 'on_uncertain = "hold"\n')
    id = send(box, "a@x.test")
    assert settle(box, id) == {"a@x.test": "held"} and box.status(id).recipients[0].reason == "uncertain"
    assert box.release(id) == 1
    assert settle(box, id) == {"a@x.test": "delivered"} and len(sink.messages) == 2


@pytest.mark.parametrize("step", ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "DOT"])
def test_421_anywhere_keeps_the_message(sink: Sink, make_box: MakeBox, step: str) -> None:
    sink.script(f"{step}: 421 4.3.2 closing x1")
    box = make_box(sink.url, FAST)
    id = send(box, "a@x.test")
    assert settle(box, id) == {"a@x.test": "delivered"}
    assert len(sink.messages) == 1 and not box.status(id).recipients[0].uncertain


@pytest.mark.parametrize("step", ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("action", ["drop", "half"])
def test_a_connection_lost_before_the_dot_is_a_plain_retry(
    sink: Sink, make_box: MakeBox, step: str, action: str
) -> None:
    sink.script(f"{step}: {action} x1")
    box = make_box(sink.url, FAST)
    id = send(box, "a@x.test")
    assert settle(box, id) == {"a@x.test": "delivered"} and not box.status(id).recipients[0].uncertain
    assert len(sink.messages) == 1


def test_a_refused_sender_is_that_messages_affair(sink: Sink, make_box: MakeBox) -> None:
    sink.script("MAIL bad@*: 550 5.7.1 not you")
    box = make_box(sink.url)
    bad = send(box, "a@x.test", "b@x.test", sender="bad@outmail.test")
    good = send(box, "a@x.test")
    assert set(settle(box, bad).values()) == {"failed"} and settle(box, good) == {"a@x.test": "delivered"}


def test_wrong_credentials_pause_the_relay_with_one_error(
    make_box: MakeBox, caplog: pytest.LogCaptureFixture
) -> None:
    with Sink(users={"me": "right"}) as sink:
        box = make_box(sink.url.replace("//", "//me:geheim@"))
        ids = [send(box, f"u{i}@x.test") for i in range(5)]
        box.wait(ids[0], 0.6)
        assert {state for id in ids for state in states(box, id).values()} == {"queued"}
        assert sum("is paused" in r.message for r in caplog.records) == 1
        assert sum(1 for id in ids for a in box.attempts(id) if a.outcome != "returned") <= 3
        story = str([a.as_dict() for id in ids for a in box.attempts(id)])
        assert "geheim" not in story and "AUTH PLAIN ****" in story and "535 5.7.8" in story


def test_attempts_used_up_is_visible_and_can_be_requeued(sink: Sink, make_box: MakeBox) -> None:
    sink.script("RCPT: 451 4.7.1 later x2")
    box = make_box(sink.url, '[retry]\nschedule = "50ms"\n')
    id = send(box, "a@x.test")
    assert settle(box, id) == {"a@x.test": "failed"}
    assert "attempts used up" in box.status(id).recipients[0].reason
    assert box.requeue("state:failed") == 1
    assert settle(box, id) == {"a@x.test": "delivered"}


def test_a_server_that_never_answers_costs_one_step(sink: Sink, make_box: MakeBox) -> None:
    sink.script("MAIL stuck@*: hang")
    port = sink.port
    box = make_box(toml=f'[relay]\nurl = "smtp://127.0.0.1:{port}"\ntimeout = 0.3\n' + FAST, deliver="thread")
    stuck = send(box, "a@x.test", sender="stuck@outmail.test")
    good = send(box, "a@x.test")
    assert settle(box, good) == {"a@x.test": "delivered"}
    until(lambda: box.attempts(stuck) and states(box, stuck) == {"a@x.test": "queued"})
    assert "no answer within" in box.attempts(stuck)[0].reply.text


def test_high_overtakes_and_nobody_starves(make_box: MakeBox, sink: Sink) -> None:
    box = make_box(deliver="never", toml=f'relay = "{sink.url}"\n')
    low = [send(box, f"low{i}@x.test", priority="low") for i in range(3)]
    high = [send(box, f"high{i}@x.test", priority="high") for i in range(3)]
    verbs = box.store.verbs
    owner = box.store.register(0)
    leased = box.store.run(verbs.lease(owner.id, 1, {"default": 3}, box.clock.now()))
    assert [d.id for d in leased] == high
    leased = box.store.run(verbs.lease(owner.id, 2, {"default": 3}, box.clock.now()))
    assert [d.id for d in leased] == low
    owner.close()


def test_what_is_too_old_is_not_sent_any_more(make_box: MakeBox, sink: Sink) -> None:
    """A code that is good for a moment: when its second try is due, it is not."""
    sink.script("RCPT: 451 4.7.1 greylisted x1")
    box = make_box(sink.url, '[retry]\nschedule = "1500ms…"\n')
    id = send(box, "a@x.test", expires="300ms")
    assert box.wait(id, 10).recipients[0].reason.startswith("too old") and not sink.messages


def test_at_and_expires(make_box: MakeBox, sink: Sink) -> None:
    box = make_box(sink.url)
    later = send(box, "a@x.test", at="1h")
    soon = send(box, "a@x.test", at="200ms", expires="1h")
    assert settle(box, soon) == {"a@x.test": "delivered"} and states(box, later) == {"a@x.test": "queued"}
    assert box.cancel(later) == 1 and states(box, later) == {"a@x.test": "cancelled"}


def test_fallback_relays_and_routes_by_pattern(make_box: MakeBox, sink: Sink) -> None:
    box = make_box(
        toml=f"""relay = "smtp://127.0.0.1:1"
        [relays.backup]
        url = "{sink.url}"
        [[route]]
        to = "*@b.test"
        relays = ["default", "backup"]
        """
        + FAST,
        deliver="thread",
    )
    id = send(box, "a@b.test")
    assert (
        settle(box, id, 15) == {"a@b.test": "delivered"}
        and box.status(id).recipients[0].route == "default,backup"
    )


def test_a_rate_limit_delays_and_loses_nothing(make_box: MakeBox, sink: Sink) -> None:
    box = make_box(toml=f'[relay]\nurl = "{sink.url}"\nrate = 40\nconcurrency = 2\n', deliver="thread")
    for _ in range(2):  # the second round finds sessions that wait
        ids = [send(box, f"u{i}@x.test") for i in range(45)]
        assert {state for id in ids for state in settle(box, id).values()} == {"delivered"}
    assert len(sink.messages) == 90


def test_safety_suppresses_and_redirects(make_box: MakeBox, sink: Sink, tmp_path: Any) -> None:
    box = make_box(sink.url, '[safety]\nonly_to = ["*@ok.test"]\n')
    id = send(box, "a@ok.test", "b@evil.test")
    assert settle(box, id) == {"a@ok.test": "delivered", "b@evil.test": "failed"}
    assert box.status(id).recipients[1].reason == "safety"
    other = make_box(sink.url, '[safety]\nredirect_to = "all@ok.test"\n', store=tmp_path / "r.db")
    id = send(other, "a@x.test", "b@x.test")
    assert settle(other, id) == {"all@ok.test": "delivered"}
    assert sink.messages[-1].content.startswith(b"X-Outmail-Redirected: a@x.test, b@x.test\r\n")
