"""A message on its way to the service: words and bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outmail.intake.deposit import ENVELOPE, LONGEST, MOST_LINES, Deposit, unpacked

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


@pytest.mark.parametrize("recipients", [[""] * (MOST_LINES - 5), ["x" * 9988] * (ENVELOPE // 9999 - 1)])
def test_an_envelope_that_is_packed_is_unpacked_and_one_more_is_refused(recipients: list[str]) -> None:
    """Otherwise its program would be told that the message is safe."""
    assert unpacked(Deposit(b"", recipients).packed()).recipients == recipients
    recipients = [*recipients, *recipients[:2]]
    with pytest.raises(ValueError, match="send it in parts"):
        Deposit(b"", recipients).packed()


@pytest.mark.parametrize("line", [b"\xff" * 100_000, b"\x1b]0;evil\x07 x", "\u202e x".encode()])
def test_what_is_wrong_is_told_in_short_and_printable(line: bytes) -> None:
    with pytest.raises(ValueError) as found:
        unpacked(b"outmail deposit 1\n" + line + b"\n\ntext")
    assert str(found.value).isprintable() and len(str(found.value)) < 400


@pytest.mark.parametrize("word", ["name", "sender", "envid", "recipient"])
def test_a_word_is_bounded_on_both_ways(word: str) -> None:
    line = f"{word} {'x' * (LONGEST + 1)}".encode()
    with pytest.raises(ValueError, match="more than 10000 characters"):
        unpacked(b"outmail deposit 1\n" + line + b"\n\ntext")
    unpacked(b"outmail deposit 1\n" + line[:-1] + b"\n\ntext")
    long = "x" * (LONGEST + 1)
    made = Deposit(b"", [long]) if word == "recipient" else Deposit(b"", ["a"], **{word: long})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sendmail takes 10000"):
        made.packed()
