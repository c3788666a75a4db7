"""What a listener gives one client: time, memory, connections, guesses, lines of the log. And addresses as
long as their path may be.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import smtplib
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest

from outmail import Outbox
from outmail.intake import logins
from outmail.intake import smtp as intake
from outmail.policy.admission import neighbourhood
from outmail.smtp.server import ServerSettings
from outmail.testing import Sink
from tests.road.test_listen import BODY, Start, listening, start, toml  # noqa: F401 - fixtures
from tests.waiting import until_in_loop

LONG = "btv1==0123456789=" + "v" * 150 + "=example.org@x.test"


def test_local_parts_as_long_as_the_path_allows_go_in_and_out(
    start: Start, sink: Sink, make_box: Callable[..., Outbox], tmp_path: Any
) -> None:
    """VERP, SRS and reply tokens do not fit into 64 octets."""
    service = start(toml(sink, f'smtp = ["127.0.0.1:0"]\nlmtp = ["unix:{tmp_path}/lmtp"]'))
    with smtplib.SMTP("127.0.0.1", service.ports["smtp"], timeout=20) as client:
        assert client.sendmail(LONG, [LONG], BODY) == {}
    with smtplib.LMTP(f"{tmp_path}/lmtp") as client:
        assert client.sendmail(LONG, [LONG], BODY) == {}
    box = make_box(relay=sink.url, store=str(tmp_path / "own.db"), exit_wait=20)
    box.send(LONG, "subject", "text", sender=LONG)
    assert [(got.sender, got.recipients) for got in sink.wait_for(3, 30)] == [(LONG, (LONG,))] * 3


def settings(**words: Any) -> Any:
    return intake.ListenerSettings(**words)


async def opened(port: int, *lines: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that has said these lines and heard the answer to the last one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.readline()
    for line in lines:
        writer.write(line.encode() + b"\r\n")
        while (await reader.readline())[3:4] == b"-":
            pass
    return reader, writer


class Hand:
    """The listener's clock, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def move(self, listener: Any, seconds: float) -> None:
        """So many seconds later the listener looks at its clients."""
        self.now += seconds
        for line in list(listener.lines):
            line.check(self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Hand:
    hand = Hand()
    monkeypatch.setattr(intake, "monotonic", lambda: hand.now)
    return hand


def test_a_command_that_drips_is_not_waited_for(listening: Callable[..., None], clock: Hand) -> None:
    async def scene(port: int, listener: Any) -> None:
        clients = [await opened(port), await opened(port, "EHLO me")]  # one drips, one is silent
        for count in (1, 2, 3):
            assert all(not reader.at_eof() for reader, _ in clients)
            clients[0][1].write(b"x")
            await until_in_loop(lambda count=count: sum(line.buffered for line in listener.lines) >= count)  # type: ignore[misc]
            clock.move(listener, 0.6)
        for reader, writer in clients:
            assert await reader.read() == b"421 4.4.2 Idle too long\r\n"
            writer.close()

    listening(settings(idle=1.5), scene)


@pytest.mark.parametrize("within", [False, True])
def test_a_session_has_a_length(
    listening: Callable[..., None], monkeypatch: pytest.MonkeyPatch, clock: Hand, within: bool
) -> None:
    """Whatever keeps it busy; within a message a little longer."""
    monkeypatch.setattr(intake, "LONGEST", 30.0)

    async def scene(port: int, listener: Any) -> None:
        reader, writer = await opened(port, "EHLO me", *(["MAIL FROM:<a@x.test>"] if within else []))
        for _ in range(13 if within else 10):
            writer.write(b"RCPT TO:<a@x.test>\r\n" if within else b"NOOP\r\n")
            assert (await reader.readline()).startswith(b"250 ")
            clock.move(listener, 3.0)
        clock.move(listener, 3.0)
        assert await reader.read() == b"421 4.3.2 This session has lasted long enough: connect again\r\n"
        writer.close()

    listening(settings(idle=10.0), scene)


def test_a_slow_but_honest_client_is_waited_for(
    listening: Callable[..., None], monkeypatch: pytest.MonkeyPatch, clock: Hand
) -> None:
    """A block in its time is enough, however long the whole takes."""
    monkeypatch.setattr(intake, "BLOCK", 500)
    monkeypatch.setattr(intake, "CONTENT", 2.0)

    async def scene(port: int, listener: Any) -> None:
        reader, writer = await opened(port, "EHLO me", "MAIL FROM:<a@x.test>", "RCPT TO:<b@x.test>", "DATA")
        (line,) = listener.lines
        for count in range(1, 31):
            writer.write(b"Subject: " + b"x" * 80 + b"\r\n")
            await until_in_loop(lambda count=count: line._session.received >= 91 * count)  # type: ignore[misc]
            clock.move(listener, 0.3)
        writer.write(b"\r\n.\r\n")
        assert (await reader.readline()).startswith(b"250 ")
        writer.close()

    listening(settings(idle=2.0), scene)


def test_clients_that_drip_are_sent_away(
    listening: Callable[..., None], monkeypatch: pytest.MonkeyPatch, clock: Hand
) -> None:
    """A byte now and then keeps a line from being idle; it does not keep a message from being late."""
    monkeypatch.setattr(intake, "CONTENT", 1.5)

    async def scene(port: int, listener: Any) -> None:
        reader, writer = await opened(port, "EHLO me", "MAIL FROM:<a@x.test>", "RCPT TO:<b@x.test>", "DATA")
        (line,) = listener.lines
        for count in range(1, 5):
            assert not reader.at_eof()
            writer.write(b"x")
            await until_in_loop(lambda count=count: line._session.received >= count)  # type: ignore[misc]
            clock.move(listener, 0.6)
        assert await reader.read() == b"421 4.4.2 The message comes too slowly\r\n"
        writer.close()
        await until_in_loop(lambda: not listener.lines)

    listening(settings(idle=1.0), scene)


def test_envelopes_count_as_memory(listening: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "IN_FLIGHT", 1_000_000)

    async def scene(port: int, listener: Any) -> None:
        small = await opened(port, "EHLO me", "MAIL FROM:<a@x.test>")
        large = await opened(port, "EHLO me", "MAIL FROM:<a@x.test>")
        large[1].write(b"".join(b"RCPT TO:<u%d@x.test>\r\n" % n for n in range(4000)))
        said = await large[0].read()
        assert said.endswith(b"421 4.3.1 Too much mail in flight: come back later\r\n")
        for command in ("RCPT TO:<b@x.test>", "RSET", "MAIL FROM:<a@x.test>"):
            small[1].write(command.encode() + b"\r\n")
            assert (await small[0].readline())[:9] == (b"250 2.0.0" if command == "RSET" else b"452 4.3.1")
        await until_in_loop(lambda: not listener.full)
        small[1].write(b"MAIL FROM:<a@x.test>\r\n")
        assert (await small[0].readline())[:3] == b"250"
        for _, writer in (small, large):
            writer.close()

    listening(settings(), scene)


def test_the_budget_is_one_for_all_listeners(
    listening: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "IN_FLIGHT", 1_000_000)

    async def scene(port: int, listener: Any) -> None:
        another = intake.Listener(listener.door, settings())
        other = int((await another.listen("127.0.0.1:0")).rpartition(":")[2])
        here = await opened(port, "EHLO me")
        there = await opened(other, "EHLO me", "MAIL FROM:<a@x.test>")
        there[1].write(b"".join(b"RCPT TO:<u%d@x.test>\r\n" % n for n in range(4000)))
        assert (await there[0].read()).endswith(b"421 4.3.1 Too much mail in flight: come back later\r\n")
        assert not here[0].at_eof(), "the largest is sent away, wherever it came in"
        here[1].write(b"NOOP\r\n")
        assert (await here[0].readline())[:3] == b"250"
        for _, writer in (here, there):
            writer.close()
        await another.close()

    listening(settings(), scene)


@pytest.mark.parametrize("implicit", [False, True])
def test_one_address_has_its_share_of_the_connections(
    listening: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    implicit: bool,
) -> None:
    monkeypatch.setattr(intake, "is_trusted", lambda client, networks: False)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if implicit else None

    async def scene(port: int, listener: Any) -> None:
        lines = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        await until_in_loop(lambda: len(listener.lines) + len(listener.shaking) == 3)
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.suppress(ConnectionError):
                assert (await reader.read()) == (
                    b"" if implicit else b"421 4.7.0 Too many connections from your address\r\n"
                )
            writer.close()
        assert sum("too many connections" in record.message for record in caplog.records) == 1
        lines.pop()[1].close()
        await until_in_loop(lambda: listener.clients["127.0.0.1"] == 2)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if not implicit:
            assert (await reader.readline())[:3] == b"220"
        for _, line in (*lines, (reader, writer)):
            line.close()
        await until_in_loop(lambda: not listener.clients)

    listening(settings(per_client=3, tls=context, implicit_tls=implicit), scene)
    assert settings(connections=1000).most_of_one == 250 and settings(per_client=0).most_of_one == 1000


def test_those_of_this_machine_may_take_all(listening: Callable[..., None]) -> None:
    async def scene(port: int, listener: Any) -> None:
        for _, writer in [await opened(port, "EHLO me") for _ in range(9)]:
            writer.close()

    listening(settings(per_client=3), scene)


def test_what_a_client_is_counted_by() -> None:
    assert neighbourhood("192.0.2.7") == "192.0.2.7" and neighbourhood("::ffff:192.0.2.7") == "192.0.2.7"
    assert (
        neighbourhood("2001:db8:0:1:2::3")
        == neighbourhood("2001:db8:0:1::9%eth0")
        != neighbourhood("2001:db8:0:2::3")
    )


def test_guesses_of_one_client_delay_another_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of one client, the newest is first, and those too many are told."""
    looked: list[str] = []
    gate = threading.Event()

    def verified(password: str, stored: str) -> bool:
        gate.wait(10)
        looked.append(password)
        return password == "right"

    monkeypatch.setattr(logins, "verified", verified)

    async def scene() -> None:
        door = logins.Logins()
        answers: dict[str, bool | None] = {}
        for n in range(150):
            door.ask("192.0.2.1", f"guess{n}", "", functools.partial(answers.__setitem__, f"guess{n}"))
        door.ask("192.0.2.2", "right", "", functools.partial(answers.__setitem__, "right"))
        gate.set()
        await until_in_loop(lambda: len(answers) == 151)
        door.close()
        assert answers["right"] is True and looked.index("right") <= 2
        assert looked[:2] == ["guess0", "guess149"] and len(looked) <= logins.MOST_WAITING + 2
        assert sum(answer is None for answer in answers.values()) == 151 - len(looked)

    asyncio.run(scene())


def test_wrong_passwords_end_the_session_and_are_one_line_of_the_log(
    listening: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    login = b"AUTH PLAIN " + b64encode(b"\0me\0wrong") + b"\r\n"

    async def scene(port: int, listener: Any) -> None:
        for _ in range(3):
            reader, writer = await opened(port, "EHLO me")
            writer.write(login * 9)
            said = (await reader.read()).splitlines()
            assert [line[:3] for line in said] == [b"535"] * 3 + [b"421"]
            writer.close()

    listening(
        settings(dialogue=ServerSettings(auth=True, auth_clear=True), users={"me": logins.hashed("right")}),
        scene,
    )
    assert sum("authentication failed" in record.message for record in caplog.records) == 1


def test_a_complaint_is_made_once_a_minute_with_a_count(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from outmail.system import throttle

    now = [100.0]
    monkeypatch.setattr(throttle, "monotonic", lambda: now[0])
    complaints = throttle.Throttle(logging.getLogger("outmail.test"))

    def lines() -> list[str]:
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    for n in range(100):
        complaints.say(logging.WARNING, "a", "from %s", n)
    complaints.say(logging.WARNING, "b", "another")
    complaints.tell()
    assert lines() == ["from 0", "another"]
    now[0] += 61
    complaints.say(logging.WARNING, "a", "from %s", 100)
    assert lines() == ["from 100 (and 99 more like this)"]
    complaints.say(logging.WARNING, "a", "from %s", 101)
    now[0] += 61
    complaints.tell()
    complaints.tell()
    assert lines() == ["1 more like this in the last 61 s: from 101"]
