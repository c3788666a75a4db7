"""A message on its way to the service: words and bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outmail.intake.deposit import Deposit, unpacked

_WORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), max_size=30)


@given(st.binary(), st.lists(_WORD), _WORD, st.none() | _WORD, _WORD, _WORD, st.booleans())
def test_what_is_packed_comes_back(
    content: bytes, recipients: list[str], user: str, sender: str | None, name: str, envid: str, as_is: bool
) -> None:
    made = Deposit(content, recipients, user=user, sender=sender, name=name, envid=envid, as_is=as_is)
    assert vars(unpacked(made.packed())) == vars(made)


@pytest.mark.parametrize("word", ["a\nrecipient b@x.test", "a\r", "\0"])
def test_a_word_adds_no_line_of_its_own(word: str) -> None:
    for made in (Deposit(b"", [word]), Deposit(b"", ["a"], name=word), Deposit(b"", ["a"], sender=word)):
        with pytest.raises(ValueError):
            made.packed()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"outmail deposit 1\n",
        b"outmail deposit 2\nrecipient a\n\ntext",
        b"outmail deposit 1\nowner root\n\ntext",
        b"outmail deposit 1\nuser a\nuser b\n\ntext",
    ],
)
def test_what_was_not_packed_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        unpacked(data)
