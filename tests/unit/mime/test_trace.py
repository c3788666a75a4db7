"""The way of a message, as its header tells it; and mail that wants to harm its reader."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from outmail.mime import trace
from outmail.mime.trace import HOPS, MOST, Hop

MAIL = b"""Return-Path: <me@x.test>\r
Delivered-To: loop+abc@example.org\r
Received: from relay.test (relay.test [192.0.2.1])\r
\tby home.test (Postfix) with ESMTP id 4F\r
\tfor <loop+abc@example.org>; Mon, 2 Nov 2026 10:00:09 +0000 (UTC)\r
Received: from [127.0.0.1] by relay.test with ESMTP; Mon, 2 Nov 2026 11:00:02 +0100\r
Message-ID: <1@x.test>\r
Subject: s\r
\r
Received: by body.test; Mon, 2 Nov 2026 10:00:00 +0000\r
"""


def test_hops_are_told_in_the_order_of_travel_with_the_slow_one() -> None:
    for mail in (MAIL, MAIL.replace(b"\r\n", b"\n")):
        found = trace.read(mail)
        assert [hop.name for hop in found.hops] == ["relay.test", "home.test"]
        assert found.slowest() == (1, 7000) and found.message_id == "<1@x.test>" and not found.bounce
        assert any("loop+abc@example.org" in text for text in found.texts)


def test_what_says_it_is_a_bounce_is_one() -> None:
    for field in (
        b"Return-Path: <>\r\n",
        b"Content-Type: multipart/report; boundary=x\r\n",
        b"Auto-Submitted: auto-replied\r\n",
    ):
        assert trace.read(field + MAIL.partition(b"\r\n")[2]).bounce


def test_dates_that_are_none() -> None:
    for date in (b"", b"; yesterday", b"; 99 Foo 99999999999999 99:99:99 +9999999999", b"; " + b"1" * 3000):
        (hop,) = trace.read(b"Received: by a.test" + date + b"\n\n").hops
        assert hop == Hop("a.test", None)
    assert trace.read(b"").slowest() is None


@given(st.binary(max_size=2000))
def test_nothing_raises(mail: bytes) -> None:
    trace.read(mail)
    trace.read(MAIL[:300] + mail)


def test_a_huge_header_and_a_deep_body_cost_no_more_than_what_is_looked_at() -> None:
    deep = b"".join(
        b"--%d\r\nContent-Type: multipart/mixed; boundary=%d\r\n\r\n" % (n, n) for n in range(1000)
    )
    began = time.process_time()
    for mail in (
        MAIL + deep,
        MAIL + b"x" * 50_000_000,
        b"A: b\r\n" * 100_000 + MAIL,
        b"Received: " + b"by " * (MOST // 3),
        b"Received: by a\r\n" * 20_000,
        b"\xff\xfe:" * 100_000,
        b"A:" + b"\n " * 200_000,
    ):
        assert len(trace.head_of(mail)) <= MOST and len(trace.read(mail).hops) <= HOPS
    assert time.process_time() - began < 2
