"""Loopback copies on the road: one more RCPT, never at the expense of anybody; and what they prove (7, 13,
45, 46).
"""

from __future__ import annotations

import re
import signal
import smtplib
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outmail.clock import DAY, MINUTE
from outmail.config import from_toml
from outmail.errors import ConfigError
from outmail.outbox.outbox import Outbox
from outmail.policy.loopback import Token, mint, read
from outmail.returns.key import signing_key
from outmail.testing import Sink
from outmail.testing.sink import Received, Rule
from outmail.wiring import arrivals_of
from tests.waiting import until

LOOP = '[loopback]\naddress = "loop@example.org"\n[retry]\nschedule = "100ms…"\n'
VERIFY = LOOP + 'on_uncertain = "verify"\n'
MakeBox = Callable[..., Outbox]
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def people(message: Received) -> tuple[str, ...]:
    """The recipients that are no copies."""
    return tuple(to for to in message.recipients if not to.startswith("loop+"))


def copies(sink: Sink) -> list[str]:
    return [to for message in sink.messages for to in message.recipients if to.startswith("loop+")]


def feed(sink: Sink, box: Outbox) -> None:
    """Copies that the sink takes come home at once, as by its own delivery."""
    arrivals = arrivals_of(box.store, box.config)

    def home(message: Received) -> None:
        for to in message.recipients:
            if to.startswith("loop+"):
                received = b"Received: by sink.test; Mon, 2 Nov 2026 10:00:00 +0000\r\n"
                arrivals.take(received + message.content, [to], message.sender)

    sink.on_message = home


def events(box: Outbox, id: str) -> list[str]:
    return [event.event for event in box.events() if event.id == id]


@pytest.fixture(params=["pipelining", "plain", "lmtp"])
def relay(request: pytest.FixtureRequest) -> Iterator[Sink]:
    words: dict[str, Any] = {"extensions": ("8BITMIME",)} if request.param == "plain" else {}
    with Sink(lmtp=request.param == "lmtp", **words) as running:
        yield running


def test_a_copy_is_one_more_rcpt_and_no_recipient(relay: Sink, make_box: MakeBox) -> None:
    box = make_box(relay.url, LOOP)
    feed(relay, box)
    id = box.send(["a@x.test", "b@x.test"], "s", "t").id
    assert box.wait(id, 10).status == "delivered"
    (message,) = relay.messages
    assert people(message) == ("a@x.test", "b@x.test") and len(message.recipients) == 3
    assert len(box.status(id).recipients) == 2 and not any(
        "loop" in r.address for r in box.status(id).recipients
    )
    until(lambda: events(box, id).count("seen") == 2)
    (copy,) = box.queue.copies(id)
    assert copy.recipients == (1, 2) and copy.outcome == "delivered" and copy.hops[-1][0] == "sink.test"


def test_off_there_is_none(sink: Sink, make_box: MakeBox) -> None:
    box = make_box(sink.url)
    id = box.send("a@x.test", "s", "t").id
    assert box.wait(id, 10).status == "delivered" and sink.messages[0].recipients == ("a@x.test",)
    assert not Path(f"{box.store.spool.removesuffix('.spool')}.loopback.key").exists()


def test_the_key_is_its_owners_alone(sink: Sink, make_box: MakeBox) -> None:
    box = make_box(sink.url, LOOP)
    (key,) = Path(box.store.spool).parent.glob("*.loopback.key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and key.stat().st_size == 32
    key.chmod(0o640)
    with pytest.raises(ConfigError, match="others may read it"):
        arrivals_of(box.store, box.config)


def test_the_transcript_has_no_token(sink: Sink, make_box: MakeBox) -> None:
    sink.script("RCPT loop+*: 250 2.1.5 <you> ok\nRCPT no@*: 550 5.1.1 no")
    box = make_box(sink.url, LOOP)
    id = box.send(["a@x.test", "no@x.test"], "s", "t").id
    box.wait(id, 10)
    lines = [line["line"] for attempt in box.attempts(id) for line in attempt.transcript]
    assert any("loopback copy" in line for line in lines)
    (word,) = copies(sink)
    assert not any(word in line for line in lines)


@pytest.mark.parametrize(
    "script",
    [
        "RCPT loop+*: 550 5.1.1 no such user",
        "RCPT loop+*: 452 4.5.3 too many recipients",
        "RCPT loop+*: 451 4.7.1 greylisted",
        "RCPT loop+*: 354 what",
        "RCPT loop+*: 421 4.7.0 go away",
        "RCPT loop+*: drop",
        "RCPT loop+*: 550 5.1.1 no\nRCPT bad*: 550 5.1.1 no",
    ],
)
def test_a_copy_that_is_refused_harms_nobody(relay: Sink, make_box: MakeBox, script: str) -> None:
    relay.script(script)
    box = make_box(relay.url, LOOP)
    ids = [box.send([f"a{n}@x.test", f"b{n}@x.test"], "s", "t").id for n in range(3)]
    for id in ids:
        status = box.wait(id, 10)
        assert status.status == "delivered" and not any(r.uncertain for r in status.recipients)
        assert {r.attempts for r in status.recipients} == {1}
    taken = [to for message in relay.messages for to in message.recipients]
    assert sorted(taken) == sorted(f"{who}{n}@x.test" for who in "ab" for n in range(3))
    assert box.queue.loopback_stats(10**9)["counts"]["refused"] >= 1


@pytest.mark.parametrize("toml", [LOOP, VERIFY], ids=["retry", "verify"])
@pytest.mark.parametrize(
    "answer",
    ["550 5.1.1 no", "451 4.2.0 later", "421 4.3.2 closing", "503 5.5.1 what", "half", "250 2.0.0 ok"],
)
def test_lmtp_the_copys_answer_to_the_dot_decides_about_nobody(
    make_box: MakeBox, answer: str, toml: str
) -> None:
    with Sink(
        f"DOT loop+*: {answer}\nDOT no*: 550 5.2.2 full\nDOT wait*: 451 4.2.0 busy x3", lmtp=True
    ) as sink:
        box = make_box(sink.url, toml)
        three = [[f"{who}{n}@x.test" for who in ("a", "no", "wait")] for n in range(3)]
        for id in [box.send(people, "s", "t").id for people in three]:
            taken, refused, later = box.wait(id, 10).recipients
            assert (taken.state, taken.attempts) == ("delivered", 1)
            assert (refused.state, refused.attempts, refused.reason) == ("failed", 1, "550 5.2.2 full")
            assert (later.state, later.attempts) == ("delivered", 2)
            assert not any(r.uncertain for r in (taken, refused, later))


@pytest.mark.parametrize("answer", ["550 5.1.1 no", "451 4.2.0 later"])
def test_lmtp_a_copy_that_was_taken_saves_nobody(make_box: MakeBox, answer: str) -> None:
    with Sink(f"DOT a@*: {answer}", lmtp=True) as sink:
        box = make_box(sink.url, VERIFY.replace("100ms…", "100ms"))
        feed(sink, box)
        id = box.send("a@x.test", "s", "t").id
        assert box.wait(id, 10).status == "failed" and "confirm" not in events(box, id)


@pytest.mark.parametrize("step", ["DATA", "DOT"])
def test_a_transaction_that_the_copy_spoils_goes_again_without_it(
    sink: Sink, make_box: MakeBox, step: str
) -> None:
    sink.script(f"{step}: 554 5.7.1 no x1")
    box = make_box(sink.url, LOOP)
    id = box.send(["a@x.test", "b@x.test"], "s", "t").id
    status = box.wait(id, 10)
    assert status.status == "delivered" and {r.attempts for r in status.recipients} == {1}
    (message,) = sink.messages
    assert message.recipients == ("a@x.test", "b@x.test")


class WithCopy(Rule):
    """A rule that fits transactions with a copy only. ``sink`` is the one it is of."""

    sink: Sink

    def fits(self, step: str, subject: str, chance: Any) -> bool:
        lasts = [line for line in self.sink.commands if line.startswith("RCPT")][-1:]
        return super().fits(step, subject, chance) and "loop+" in lasts[0]


@pytest.mark.parametrize("answer", ["554 5.7.1 no", "451 4.7.1 later"])
def test_what_the_copy_spoils_goes_without_it_by_a_later_engine(
    sink: Sink, make_box: MakeBox, outmail: Run, tmp_path: Path, each_store: str, answer: str
) -> None:
    rule = WithCopy("DOT", "*", answer)
    rule.sink = sink
    sink.script([rule])
    (tmp_path / "c.toml").write_text(
        f'from = "me@x.test"\nstore = "{each_store}"\nrelay = "{sink.url}"\n{LOOP}'.replace("100ms…", "1ms…")
    )
    box = make_box(toml=LOOP, store=each_store, deliver="never")
    id = box.send("a@x.test", "s", "t").id
    for _ in range(2):  # each is a process of its own, as by cron
        assert outmail("run", "--once", "--config", "c.toml").returncode == 0
    assert box.status(id).status == "delivered" and [m.recipients for m in sink.messages] == [("a@x.test",)]


def test_what_is_refused_without_a_copy_too_is_refused(sink: Sink, make_box: MakeBox) -> None:
    sink.script("DOT: 554 5.7.1 spam")
    box = make_box(sink.url, LOOP)
    id = box.send("a@x.test", "s", "t").id
    status = box.wait(id, 10)
    assert status.status == "failed" and status.recipients[0].attempts == 1 and not sink.messages
    assert status.recipients[0].reason == "554 5.7.1 spam"


def test_a_deferred_transaction_comes_again_without_a_copy(sink: Sink, make_box: MakeBox) -> None:
    sink.script("DOT: 451 4.7.1 later x1")
    box = make_box(sink.url, LOOP)
    id = box.send("a@x.test", "s", "t").id
    assert box.wait(id, 10).recipients[0].attempts == 2 and sink.messages[0].recipients == ("a@x.test",)


def test_a_copy_is_never_sent_alone_and_costs_one_session(relay: Sink, make_box: MakeBox) -> None:
    relay.script("RCPT no*: 550 5.1.1 no")
    box = make_box(toml=f'{LOOP}[relay]\nurl = "{relay.url}"\nconcurrency = 1\n', deliver="thread")
    ids = [box.send(f"{who}@x.test", "s", "t").id for who in ("no1", "a", "no2", "b", "no3", "no4", "c")]
    states = [box.wait(id, 10) for id in ids]
    assert [state.status for state in states] == [
        "delivered" if "no" not in state.recipients[0].address else "failed" for state in states
    ]
    assert all(r.attempts == 1 and not r.uncertain for state in states for r in state.recipients)
    assert sorted(people(message)[0][0] for message in relay.messages) == ["a", "b", "c"]
    assert all(message.content and len(message.recipients) == 2 for message in relay.messages)
    assert relay.connections == (2 if "PIPELINING" in relay.extensions else 1)
    assert box.queue.loopback_stats(10**9)["counts"] == {}


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_relay_that_takes_few_recipients_gets_no_more(make_box: MakeBox, most: int) -> None:
    with Sink(extensions=("PIPELINING", f"LIMITS RCPTMAX={most}")) as sink:
        box = make_box(sink.url, LOOP)
        id = box.send([f"u{n}@x.test" for n in range(5)], "s", "t").id
        assert box.wait(id, 10).status == "delivered"
        assert all(len(message.recipients) <= most for message in sink.messages)
        assert sorted(to for message in sink.messages for to in people(message)) == [
            f"u{n}@x.test" for n in range(5)
        ]
        assert bool(copies(sink)) == (most > 1)


def test_the_sample_chooses_by_tag(sink: Sink, make_box: MakeBox) -> None:
    box = make_box(sink.url, LOOP.replace("[retry]", 'sample = "tag:order"\n[retry]'))
    ids = [box.send("a@x.test", "s", "t", tag=tag).id for tag in ("order", "news", None)]
    for id in ids:
        box.wait(id, 10)
    assert len(copies(sink)) == 1 and [len(box.queue.copies(id)) for id in ids] == [1, 0, 0]


# -- verify --------------------------------------------------------------------------------------------------


def test_verify_a_lost_answer_is_confirmed_by_the_copy_and_not_sent_again(
    sink: Sink, make_box: MakeBox, each_store: str
) -> None:
    sink.script("DOT: take-and-drop x1")
    box = make_box(sink.url, VERIFY, each_store)
    feed(sink, box)
    id = box.send(["a@x.test", "b@x.test"], "s", "t").id
    status = box.wait(id, 10)
    assert status.status == "delivered" and all(r.uncertain for r in status.recipients)
    assert {r.reason for r in status.recipients} == {"confirmed"} and len(sink.messages) == 1
    assert events(box, id).count("confirm") == 2


def test_verify_without_a_copy_at_home_tries_again_after_its_time(
    sink: Sink, make_box: MakeBox, each_store: str
) -> None:
    sink.script("DOT: take-and-drop x1")
    box = make_box(sink.url, VERIFY.replace("[retry]", 'within = "700ms"\n[retry]'), each_store)
    id = box.send("a@x.test", "s", "t").id
    until(lambda: "unknown" in events(box, id))
    (waiting,) = box.status(id).recipients
    assert waiting.state == "queued" and waiting.uncertain and "loopback copy" in waiting.reason
    assert box.wait(id, 10).status == "delivered"
    assert len(sink.messages) == 2 and sink.messages[1].at - sink.messages[0].at > 0.6


def test_verify_a_relay_that_takes_no_copies_is_tried_again_as_ever(
    sink: Sink, make_box: MakeBox, each_store: str
) -> None:
    sink.script("RCPT loop+*: 550 5.1.1 no\nDOT: take-and-drop x1")
    box = make_box(sink.url, VERIFY, each_store)
    id = box.send("a@x.test", "s", "t").id
    assert box.wait(id, 10).status == "delivered" and len(sink.messages) == 2


def test_verify_after_a_kill_the_copy_tells_and_nothing_is_doubled(
    sink: Sink, make_box: MakeBox, outmail: Run, tmp_path: Path, each_store: str
) -> None:
    (tmp_path / "c.toml").write_text(
        'from = "me@x.test"\n' + VERIFY.replace("[retry]", 'within = "5m"\n[retry]')
    )
    box = make_box(toml=VERIFY, store=each_store, deliver="never")
    first, second = box.send("a@x.test", "s", "t").id, box.send("b@x.test", "s", "t").id
    run = ("run", "--once", "--config", "c.toml", "--store", each_store, "--relay", sink.url)
    assert outmail(*run, OUTMAIL_FAIL="C4:kill").returncode == -signal.SIGKILL
    (message,) = [m for m in sink.messages if m.recipients[0] == "a@x.test"]
    assert outmail(*run).returncode == 0
    (waiting,) = box.status(first).recipients
    assert waiting.uncertain and waiting.state == "queued" and "loopback copy" in waiting.reason
    done = outmail(
        "loopback",
        *("--config", "c.toml", "--store", each_store),
        stdin=message.content,
        ORIGINAL_RECIPIENT=message.recipients[-1],
        SENDER="me@x.test",
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert box.status(first).status == "delivered" and box.status(second).recipients[0].state != "failed"
    outmail(*run)
    assert [m.recipients[0] for m in sink.messages].count("a@x.test") == 1


# -- the ways in ---------------------------------------------------------------------------------------------


@pytest.fixture
def sent(sink: Sink, make_box: MakeBox, tmp_path: Path, each_store: str) -> tuple[Outbox, str, Received]:
    """A message that was delivered with a copy, and the copy."""
    (tmp_path / "c.toml").write_text(f'store = "{each_store}"\n{LOOP}')
    box = make_box(sink.url, LOOP, each_store)
    id = box.send("a@x.test", "s", "t").id
    assert box.wait(id, 10).status == "delivered"
    return box, id, sink.messages[0]


def test_on_stdin_by_what_the_header_says(sent: tuple[Outbox, str, Received], outmail: Run) -> None:
    box, id, message = sent
    mail = b"Delivered-To: %s\n" % message.recipients[-1].upper().encode() + message.content.replace(
        b"\r\n", b"\n"
    )
    assert outmail("loopback", "--config", "c.toml", stdin=mail).returncode == 0
    assert "seen" in events(box, id)
    told = outmail("loopback", "stats", "--config", "c.toml").stdout.decode()
    assert "1 sent" in told and "1 home" in told and "1 home" in told


@pytest.mark.parametrize(
    ("mail", "word"),
    [
        (b"Subject: hello\n\n", "foreign"),
        (b"To: loop+%s@example.org\n\n" % (b"a" * 48), "foreign"),
        (b"Delivered-To: loop+%s@example.org\n\n" % (b"a" * 48), "forged"),
        (b"", "foreign"),
        (b"\xff\xfe\x00" * 1000, "foreign"),
        (
            b"".join(b"Delivered-To: loop+%s%03d@example.org\n" % (b"b" * 45, n) for n in range(1000)),
            "forged",
        ),
        (b"Delivered-To: loop+%s@example.org\n" % (b"c" * 48) * 5000 + b"\n" + b"x" * 20_000_000, "forged"),
    ],
)
def test_whatever_comes_is_counted(sent: tuple[Outbox, str, Received], mail: bytes, word: str) -> None:
    box, id, _ = sent
    assert arrivals_of(box.store, box.config).take(mail) == word
    assert box.queue.loopback_stats(10**9)["counts"] == {word: 1} and "seen" not in events(box, id)


def test_whatever_comes_the_exit_status_is_0(sent: tuple[Outbox, str, Received], outmail: Run) -> None:
    box = sent[0]
    nested = b"".join(b"Content-Type: multipart/mixed; boundary=%d\n\n--%d\n" % (n, n) for n in range(1000))
    for mail in (b"", b"Delivered-To: loop+%s@example.org\n" % (b"c" * 48) + nested + b"x" * 50_000_000):
        done = outmail("loopback", "--config", "c.toml", stdin=mail)
        assert done.returncode == 0 and done.stderr.endswith(b": only counted\n")
    assert box.queue.loopback_stats(10**9)["counts"] == {"forged": 1, "foreign": 1}


def test_thousands_of_tokens_and_only_the_one_that_is_ours_counts(sent: tuple[Outbox, str, Received]) -> None:
    box, id, message = sent
    arrivals, now = arrivals_of(box.store, box.config), box.clock.now()
    most = 200 if box.store.blocking else 1000
    key, (copy,) = signing_key(box.store), message.recipients[1:]
    token = read(key, copy.partition("+")[2].partition("@")[0])
    assert token
    minute = now // MINUTE

    def to(signer: bytes, said: Token) -> str:
        return box.config.loopback.to(mint(signer, said))

    def mail() -> Iterator[str]:
        for n in range(most):
            yield to(bytes([n % 256]) * 32, token)  # of another installation
            yield copy[: 5 + n % 48] + ("a" if copy[5 + n % 48] != "a" else "b") + copy[6 + n % 48 :]
            yield to(key, token._replace(minute=minute - 8 * DAY // MINUTE - n))  # too old
            yield to(key, token._replace(minute=minute + 2 * DAY // MINUTE + n))  # from the future
            yield to(key, token._replace(message=token.message + 1 + n))
            yield copy if n % 2 else copy.upper().replace("LOOP", "loop")  # again and again

    def everything() -> Any:
        for address in mail():
            yield from arrivals.verb(message.content, [address], message.sender)

    box.store.run(everything())
    assert box.queue.loopback_stats(10**9)["counts"] == {
        "forged": 2 * most,
        "expired": 2 * most,
        "unknown": most,
        "home": 1,
        "duplicate": most - 1,
    }
    assert events(box, id).count("seen") == 1 and len(box.queue.copies(id)) == 1


def test_a_bounce_of_the_copy_and_a_second_one_are_counted(
    sent: tuple[Outbox, str, Received], outmail: Run
) -> None:
    box, id, message = sent
    to = message.recipients[-1]
    bounce = b"Return-Path: <>\nDelivered-To: %s\nMessage-ID: <other@mx>\n\n" % to.encode()
    for mail in (bounce, message.content, message.content):
        assert outmail("loopback", "--config", "c.toml", stdin=mail, RECIPIENT=to).returncode == 0
    assert box.queue.loopback_stats(10**9)["counts"] == {"bounced": 1, "duplicate": 1, "home": 1}
    assert events(box, id).count("seen") == 1


def test_without_an_address_or_a_store_it_says_so(outmail: Run, tmp_path: Path) -> None:
    assert outmail("loopback", "--store", f"{tmp_path}/q.db", stdin=b"x").returncode == 78
    (tmp_path / "c.toml").write_text(f'store = "{tmp_path}/none/q.db"\n{LOOP}')
    assert outmail("loopback", "--config", "c.toml", stdin=b"x").returncode in (75, 77)


@pytest.mark.parametrize("kind", ["smtp", "lmtp"])
def test_our_own_listener_takes_copies_by_configuration_alone(tmp_path: Path, sink: Sink, kind: str) -> None:
    (tmp_path / "c.toml").write_text(
        f'from = "me@x.test"\nstore = "{tmp_path}/q.db"\nrelay = "{sink.url}"\n{LOOP}'
        f'[listen]\n{kind} = ["127.0.0.1:0"]\n'
    )
    with open(tmp_path / "log", "wb") as log:
        service = subprocess.Popen(
            [sys.executable, "-m", "outmail", "run", "--config", str(tmp_path / "c.toml")], stderr=log
        )
    try:

        def text() -> str:
            return (tmp_path / "log").read_text()

        until(lambda: f"listening: {kind} 127.0.0.1:" in text())
        port = int(text().partition(f"listening: {kind} 127.0.0.1:")[2].split()[0])
        with Outbox(config=str(tmp_path / "c.toml"), deliver="never") as box:
            id = box.send("a@x.test", "s", "t").id
            (message,) = sink.wait_for(1)
            with (smtplib.SMTP if kind == "smtp" else smtplib.LMTP)("127.0.0.1", port, timeout=10) as client:
                client.sendmail("me@x.test", [message.recipients[-1], "b@x.test"], message.content)
                if kind == "lmtp":  # an answer for each recipient
                    assert client.getreply()[0] == 250
            until(lambda: "seen" in events(box, id))
            assert [people(m) for m in sink.wait_for(2)] == [("a@x.test",), ("b@x.test",)]
            assert not any(r.address.startswith("loop+") for s in box.find() for r in s.recipients)
    finally:
        service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0


def test_a_missing_copy_is_an_alarm_that_a_late_one_clears(
    sent: tuple[Outbox, str, Received], outmail: Run
) -> None:
    box, _, message = sent
    box.store.run(box.store.verbs.miss(box.clock.now() + 1))
    told = outmail("loopback", "stats", "--config", "c.toml")
    assert told.returncode == 2
    assert re.search(rb"1 MISSING, the oldest sent \d+-\d\d-\d\d \d\d:\d\d:\d\d [A-Z]", told.stdout)
    outmail("loopback", "--config", "c.toml", stdin=message.content, RECIPIENT=message.recipients[-1])
    told = outmail("loopback", "stats", "--config", "c.toml", "--json")
    assert told.returncode == 0 and b'"missing": 0' in told.stdout


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('[loopback]\naddress = ""', "address is missing"),
        ('[loopback]\naddress = "loop"', "address"),
        ('[loopback]\naddress = "loop+x@example.org"', "without a plus"),
        ('[loopback]\naddress = "averylongname000@example.org"', "at most 15"),
        ('[loopback]\naddress = "l@example.org"\nsample = 7', "from 0 to 1"),
        ('[loopback]\naddress = "l@example.org"\nwithin = "0s"', "longer"),
        ('[retry]\non_uncertain = "verify"', "needs loopback"),
    ],
)
def test_wrong_settings_are_said_at_once(toml: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_toml(toml, "test", {})


def test_no_copy_leaves_a_test_machine(make_box: MakeBox, sink: Sink) -> None:
    with pytest.raises(ConfigError, match="only_to"):
        make_box(sink.url, '[safety]\nonly_to = ["*@x.test"]\n' + LOOP)
