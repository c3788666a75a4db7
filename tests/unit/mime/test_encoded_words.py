"""Encoded words in an envelope become text that can be stored, or are refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outmail.mime.encoded_words import decoded

#: Charsets of Python that are none of mail, and words that are none.
ODD = [
    r"=?unicode_escape?q?=5Cud800?=@x.test",
    r"=?raw_unicode_escape?q?=5Cud800?=",
    "=?utf-7?q?+2AA-?= <a@x.test>",
    "=?rot13?q?a?=",
    "=?zlib?q?a?=",
    "=?undefined?q?a?=",
    "=?x\udcff?q?a?=",
    "=?nonsense?q?a?=",
    "=?\0?q?a?=",
]


def test_words_are_decoded() -> None:
    assert decoded("=?utf-8?q?J=C3=BCrgen?= <a@x.test>") == "Jürgen <a@x.test>"
    assert decoded("\udcff@x.test") == "\udcff@x.test"


@pytest.mark.parametrize("text", ODD)
def test_what_is_no_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be decoded"):
        decoded(text)


_CHARSETS = [
    "utf-8",
    "utf-7",
    "utf-16",
    "utf-32",
    "unicode_escape",
    "raw_unicode_escape",
    "punycode",
    "idna",
    "x\xff",
]
_WORDS = st.builds(
    "=?{}?{}?{}?=".format,
    st.sampled_from(_CHARSETS),
    st.sampled_from(["q", "b", "Q", "x"]),
    st.text("=5CudD80+AaFf09-\\", max_size=16),
)


@given(
    st.lists(st.one_of(_WORDS, st.sampled_from([" ", ",", "<a@x.test>", "ü", "\udcff", "\0"])), max_size=4)
)
@settings(max_examples=200, deadline=None)
def test_whatever_comes_back_can_be_stored(parts: list[str]) -> None:
    text = "".join(parts)
    try:
        found = decoded(text)
    except ValueError as problem:
        assert str(problem) == "has an envelope that cannot be decoded"
    else:
        found.encode("utf-8", "surrogateescape")
