"""Tokens nobody else can make or read, and the choice of what gets a copy."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outmail.clock import DAY, MINUTE
from outmail.policy import loopback
from outmail.policy.loopback import LENGTH, MOST_TRIED, Loopback, Token, mint, parse_sample, read

KEY, OTHER = b"k" * 32, b"o" * 32
NOW = 1_800_000_000_000
TOKEN = Token(77, 3, 12, 1, NOW // MINUTE)
SETTINGS = Loopback("loop@example.org")

tokens = st.builds(
    Token,
    st.integers(1, (1 << 56) - 1),
    st.integers(1, (1 << 32) - 1),
    st.integers(1, (1 << 32) - 1),
    st.integers(1, 255),
    st.integers(26_297_280, 26_297_280 + (1 << 24) - 1),
)


@given(tokens, st.binary(min_size=32, max_size=32))
def test_a_token_says_what_was_said_and_fits_into_a_local_part(token: Token, key: bytes) -> None:
    word = mint(key, token)
    assert re.fullmatch(f"[a-z2-7]{{{LENGTH}}}", word)
    assert read(key, word) == token == read(key, word.upper())


@given(st.integers(0, LENGTH - 1), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_one_changed_letter_is_no_token(at: int, letter: str) -> None:
    word = mint(KEY, TOKEN)
    changed = word[:at] + letter + word[at + 1 :]
    assert (read(KEY, changed) == TOKEN) == (changed == word)


@given(st.text(max_size=80))
def test_whatever_is_written_there_nothing_raises(text: str) -> None:
    assert read(KEY, text) is None
    assert SETTINGS.words([text]) == []


def test_a_token_of_another_key_is_nothing() -> None:
    assert read(OTHER, mint(KEY, TOKEN)) is None


def test_a_token_tells_nothing_of_the_next() -> None:
    words = [mint(KEY, TOKEN._replace(message=n)) for n in range(1, 201)]
    assert all(len({word[at] for word in words}) > 12 for at in range(LENGTH))


def test_a_token_is_believed_for_a_week_and_not_from_the_future() -> None:
    assert not TOKEN.expired(NOW) and not TOKEN.expired(NOW + 7 * DAY)
    assert TOKEN.expired(NOW + 7 * DAY + MINUTE) and TOKEN.expired(NOW - 2 * DAY)


def test_tokens_are_found_where_they_are_addresses_of_ours() -> None:
    word = mint(KEY, TOKEN)
    ours = SETTINGS.to(word)
    assert SETTINGS.words([f"for <{ours.upper()}>; Mon"]) == [word]
    for text in (f"x{ours}", f"{ours}.evil.test", ours.replace("example.org", "example.com"), f"loop+{word}"):
        assert SETTINGS.words([text]) == [], text
    assert SETTINGS.is_ours("LOOP+x@Example.org") and not SETTINGS.is_ours("loops@example.org")


def test_fakes_by_the_thousand_are_not_all_tried() -> None:
    many = [SETTINGS.to(mint(OTHER, TOKEN._replace(message=n))) for n in range(1, 1001)]
    assert len(SETTINGS.words([" ".join(many)])) == MOST_TRIED


def test_a_share_is_the_same_choice_each_time() -> None:
    some = Loopback("loop@example.org", share=0.25)
    chosen = [id for id in (f"{n:026d}" for n in range(4000)) if some.wants(id, None)]
    assert 800 < len(chosen) < 1200 and all(some.wants(id, "x") for id in chosen)
    tagged = Loopback("loop@example.org", share=0.0, tag="order")
    assert tagged.wants("a", "order") and not tagged.wants("a", None) and tagged.wants("a", loopback.CANARY)


def test_sample() -> None:
    assert [parse_sample(value) for value in (1, 0.01, "tag:order")] == [
        (1.0, ""),
        (0.01, ""),
        (0.0, "order"),
    ]
    for wrong in (2, -0.1, "order", "tag:"):
        with pytest.raises(ValueError, match="sample"):
            parse_sample(wrong)


def test_statistics_by_route() -> None:
    hops = '[["a", 0], ["slow", 5000], ["c", 5001]]'
    copies = [("r", 0, n, 0, hops) for n in range(1, 101)] + [
        ("r", 5, None, 1, None),
        ("q", 7, None, 0, None),
    ]
    found = loopback.statistics(copies, {"home": 100}, NOW)
    q, r = found["routes"]
    assert (r["sent"], r["home"], r["missing"], r["missing_since"]) == (101, 100, 1, 5)
    assert (r["p50_ms"], r["p90_ms"], r["p99_ms"], r["slow_hop"]) == (50, 90, 99, "slow")
    assert (q["away"], q["missing"], q["p50_ms"]) == (1, 0, None)
