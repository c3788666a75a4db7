"""Servers that refuse what is sent ahead behind the final dot: nothing fails for it, nothing doubles, and it
is not done again.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from outmail.clock import DAY, HOUR
from outmail.model import Reply
from outmail.outbox.outbox import Outbox
from outmail.policy.pace import ahead_note, may_send_ahead
from tests.moody import Moody

MakeBox = Callable[..., Outbox]


@pytest.fixture
def moody() -> Iterator[Callable[..., Moody]]:
    running: list[Moody] = []

    def start(*words: Any, **named: Any) -> Moody:
        running.append(Moody(*words, **named).start())
        return running[-1]

    yield start
    for server in running:
        server.close()


def carry(box: Outbox, server: Moody, count: int = 120) -> list[Any]:
    """Send so many at once, wait for all of them, look that each came once; their statuses."""
    sent = box.send_many({"to": [f"u{i}@x.test"], "subject": str(i), "text": "t\n"} for i in range(count))
    statuses = [box.wait(receipt.id, 60) for receipt in sent]
    assert Counter(status.status for status in statuses) == {"delivered": count}, [
        r.reason for s in statuses for r in s.recipients if r.reason
    ][:5]
    assert Counter(server.got.values()) == {1: count}
    assert not any(r.uncertain for status in statuses for r in status.recipients)
    return statuses


def notes(box: Outbox) -> dict[str, Any]:
    return box.store.read(box.store.verbs.note_list("ahead"))


@pytest.mark.parametrize("after", [0, 3], ids=["at-once", "later"])
@pytest.mark.parametrize(
    "reply", ["503 Bad sequence of commands - pipelined after end of DATA", "500 what?", "502 no"]
)
def test_a_server_that_refuses_what_is_sent_ahead(
    moody: Callable[..., Moody], make_box: MakeBox, reply: str, after: int
) -> None:
    server = moody(ahead=reply, after=after)
    box = make_box(server.url)
    statuses = carry(box, server)
    assert {r.attempts for status in statuses for r in status.recipients} == {1}, (
        "what was refused for coming early cost no attempt"
    )
    (url,), (note,) = notes(box), notes(box).values()
    assert (
        url == server.url and note["reply"].startswith(reply[:3]) and note["until"] - note["since"] == 7 * DAY
    )
    before = server.refused
    server.got.clear()
    carry(box, server, 30)
    assert before <= 20 and server.refused == before, "once it is known, nothing is sent ahead any more"


@pytest.mark.parametrize("reply", ["550 5.5.0 pipelining violation", "554 5.5.1 sent too early"])
def test_a_server_that_refuses_senders_sent_ahead_for_good(
    moody: Callable[..., Moody], make_box: MakeBox, reply: str
) -> None:
    """They are asked again in their own turn, and that settles both: the mail, and whether anything is sent
    ahead.
    """
    server = moody(ahead=reply)
    box = make_box(server.url)
    statuses = carry(box, server)
    assert {r.attempts for status in statuses for r in status.recipients} == {1}
    (note,) = notes(box).values()
    assert note["reply"] == reply and note["until"] - note["since"] == 7 * DAY


def test_421_to_what_is_sent_ahead_counts_as_hanging_up(
    moody: Callable[..., Moody], make_box: MakeBox
) -> None:
    server = moody(ahead="421 4.7.0 you talk too early")
    box = make_box(server.url)
    statuses = carry(box, server)
    assert {r.attempts for status in statuses for r in status.recipients} == {1}
    (note,) = notes(box).values()
    assert note["reply"].startswith("421") and note["until"] - note["since"] == HOUR


@pytest.mark.parametrize("pipelining", [True, False])
def test_a_server_that_says_421_after_some_messages(
    moody: Callable[..., Moody], make_box: MakeBox, pipelining: bool
) -> None:
    """The number of messages in a connection is limited there: that costs no attempt, and nothing is switched
    off.
    """
    server = moody(enough=4)
    box = make_box(
        toml=f'[relay]\nurl = "{server.url}"\npipelining = {str(pipelining).lower()}\n', deliver="thread"
    )
    statuses = carry(box, server, 60)
    assert {r.attempts for status in statuses for r in status.recipients} == {1} and not notes(box)
    assert server.sessions >= 15


def test_a_server_that_announces_how_many_messages_a_connection_has(
    moody: Callable[..., Moody], make_box: MakeBox
) -> None:
    server = moody(enough=4, limits="MAILMAX=4")
    box = make_box(server.url)
    statuses = carry(box, server, 60)
    assert {r.attempts for status in statuses for r in status.recipients} == {1} and server.sessions >= 15
    assert (
        not any(r.reason for status in statuses for r in status.recipients)
        and server.refused == server.overrun == 0
    )


def test_a_single_run_carries_all_of_it(
    moody: Callable[..., Moody],
    make_box: MakeBox,
    outmail: Callable[..., subprocess.CompletedProcess[bytes]],
    tmp_path: Any,
) -> None:
    """What was refused for coming early is due in the same run: cron's next one may be far."""
    server = moody(ahead="503 early")
    (tmp_path / "outmail.toml").write_text(
        f'from = "me@x.test"\nstore = "{tmp_path}/q.db"\nrelay = "{server.url}"\n'
    )
    make_box(deliver="never").send_many(
        {"to": [f"u{i}@x.test"], "subject": str(i), "text": "t\n"} for i in range(100)
    )
    assert outmail("run", "--once", "--config", "outmail.toml").returncode == 0
    assert server.refused and Counter(server.got.values()) == {1: 100}


def test_a_long_envelope_is_not_sent_ahead(moody: Callable[..., Moody], make_box: MakeBox) -> None:
    """It would gain little, and Haraka hangs up when more than 8 KB come before their turn."""
    server = moody(ahead="hang-up")
    box = make_box(toml=f'[relay]\nurl = "{server.url}"\nconcurrency = 1\n', deliver="never")
    sent = box.send_many(
        {"to": [f"{'x' * 50}{n}.{i}@{'y' * 60}.test" for n in range(50)], "subject": str(i), "text": "t"}
        for i in range(5)
    )
    box.close()
    with make_box(toml=f'[relay]\nurl = "{server.url}"\nconcurrency = 1\n', deliver="thread") as box:
        assert [box.wait(receipt.id, 30).status for receipt in sent] == ["delivered"] * 5
    assert Counter(server.got.values()) == {1: 250} and not server.refused


def test_a_server_that_refuses_it_only_now_and_then(moody: Callable[..., Moody], make_box: MakeBox) -> None:
    server = moody(ahead="503 not now", odds=0.1)
    box = make_box(server.url)
    carry(box, server, 300)
    assert server.refused and notes(box)


def test_a_server_that_loses_count(moody: Callable[..., Moody], make_box: MakeBox) -> None:
    """It throws a part of the flight away, and half a command with it; or refuses MAIL and takes what
    follows.
    """
    for mood in ({"ahead": "503 early", "cut": 7}, {"ahead": "550 5.7.1 early", "takes_the_rest": True}):
        server = moody(**mood)
        carry(make_box(server.url, store=f"{id(server)}.db"), server)


def test_a_server_that_hangs_up_over_it(moody: Callable[..., Moody], make_box: MakeBox) -> None:
    """Without a word, once the dot is answered: guessed, so it is tried again after an hour."""
    server = moody(ahead="close")
    box = make_box(server.url)
    statuses = carry(box, server)
    assert {r.attempts for status in statuses for r in status.recipients} == {1}
    (note,) = notes(box).values()
    assert note["until"] - note["since"] == HOUR


def test_a_server_that_never_answers_it(moody: Callable[..., Moody], make_box: MakeBox) -> None:
    server = moody(ahead="silence")
    box = make_box(toml=f'[relay]\nurl = "{server.url}"\ntimeout = 0.3\n', deliver="thread")
    carry(box, server, 60)
    assert notes(box)


def test_a_server_that_closes_after_some_messages_is_still_sent_ahead_to(
    moody: Callable[..., Moody], make_box: MakeBox
) -> None:
    server = moody(messages=10)
    box = make_box(server.url)
    statuses = carry(box, server)
    assert {r.attempts for status in statuses for r in status.recipients} == {1} and not notes(box)


def test_a_refusal_for_its_own_sake_counts_as_always(moody: Callable[..., Moody], make_box: MakeBox) -> None:
    """Behind a refused sender or recipients, 503 to the rest of the flight is right; with nothing sent ahead,
    503 is a refusal like others.
    """
    server = moody(
        senders={"bad@x.test": "550 5.7.1 not you"}, recipients={"no@x.test": "503 5.5.1 not here"}
    )
    box = make_box(server.url)
    wanted = []
    for i in range(60):
        sender = "bad@x.test" if i % 3 == 1 else "me@x.test"
        wanted.append(
            (box.send(f"u{i}@x.test", str(i), "t", sender=sender).id, "failed" if i % 3 == 1 else "delivered")
        )
    assert [(id, box.wait(id, 30).status) for id, _ in wanted] == wanted
    assert not notes(box)
    id = box.send("no@x.test", "s", "t").id
    assert box.wait(id, 30).recipients[0].reason == "503 5.5.1 not here"


def test_other_engines_and_people_are_told(
    moody: Callable[..., Moody],
    make_box: MakeBox,
    outmail: Callable[..., subprocess.CompletedProcess[bytes]],
    tmp_path: Any,
) -> None:
    server = moody(ahead="503 early")
    (tmp_path / "outmail.toml").write_text(
        f'from = "me@x.test"\nstore = "{tmp_path}/q.db"\nrelay = "{server.url}"\n'
    )
    box = make_box(server.url)
    carry(box, server)
    box.close()
    shown = outmail("queue", "list", "--config", "outmail.toml").stderr.decode()
    assert f"{server.url} gets one message after the other from 20" in shown and "503 early" in shown, shown
    tested = outmail("test", "--config", "outmail.toml", "--to", "a@x.test")
    assert (
        tested.returncode == 0 and f"{server.url} gets one message after the other" in tested.stderr.decode()
    )
    refused = server.refused
    server.got.clear()
    carry(make_box(server.url), server)
    assert server.refused == refused, "the note is read before the first lease"


def test_it_is_tried_again_after_a_week() -> None:
    said, broke_off = (
        ahead_note(Reply(503, "early"), 1000),
        ahead_note(Reply(0, "connection closed by the relay"), 1000),
    )
    assert (
        not may_send_ahead(said, 1000)
        and not may_send_ahead(said, 999 + 7 * DAY)
        and may_send_ahead(said, 1000 + 7 * DAY)
    )
    assert not may_send_ahead(broke_off, 999 + HOUR) and may_send_ahead(broke_off, 1000 + HOUR)
    assert may_send_ahead(None, 0) and may_send_ahead(said, 999), (
        "a note from the future of a clock that jumped is none"
    )
