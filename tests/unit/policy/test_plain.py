"""Odd characters become visible, and nothing else changes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outmail.policy.plain import as_json, plain, plain_line, plain_value

ODD = [
    "\0",
    "\x07",
    "\x1b",
    "\x7f",
    "\x85",
    "\x9b",
    "\u061c",
    "\u200e",
    "\u200f",
    "\u202a",
    "\u202e",
    "\u2066",
    "\u2069",
    "\u2028",
    "\ufeff",
    "\udc80",
    "\ud83d",
]


@pytest.mark.parametrize("char", ODD)
def test_an_odd_character_is_shown_as_its_escape(char: str) -> None:
    escape = f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"
    assert plain(f"a{char}b") == plain_line(f"a{char}b") == f"a{escape}b"
    assert char not in as_json({"a": char}) and json.loads(as_json({"a": char})) == {"a": char}


def test_lines_and_tabs_stay_in_a_text_and_not_in_a_line() -> None:
    assert plain("a\tb\nc") == "a\tb\nc"
    assert plain_line("a\tb\nc\r") == r"a\tb\nc\r"


def test_normal_text_comes_back_as_it_is() -> None:
    text = "Grüße, 世界 👋 a b"
    assert plain(text) is text and plain_line(text) is text
    assert as_json(text) == json.dumps(text, ensure_ascii=False)


@given(st.text(alphabet=st.characters()))
@settings(max_examples=300, deadline=None)
def test_any_text_can_be_encoded_and_printed_then(text: str) -> None:
    plain_line(text).encode()
    assert not any(char in plain_line(text) for char in ODD)
    assert plain_line(plain_line(text)) == plain_line(text)
    assert json.loads(as_json([text])) == [text] or any("\ud800" <= char <= "\udfff" for char in text)
    as_json([text]).encode()


def test_a_value_is_made_plain_to_its_leaves() -> None:
    assert plain_value({"a\0": ["\udc80", 1, None, {"b": ("\x1b",)}]}) == {
        "a\\x00": ["\\udc80", 1, None, {"b": ["\\x1b"]}]
    }
