"""Replies, whole and byte by byte, and what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outmail.smtp.reply import ProtocolError, ReplyReader

REPLIES = b"220 hi\r\n250-one\r\n250-SIZE 10\r\n250 2.1.0 last\r\n354\r\n550 5.1.1 no\nsuch"


def test_replies_whole_and_byte_by_byte() -> None:
    whole, single = ReplyReader(), ReplyReader()
    whole.feed(REPLIES)
    for i in range(len(REPLIES)):
        single.feed(REPLIES[i : i + 1])
    for reader in (whole, single):
        codes = []
        while got := reader.pop():
            codes.append((got[0].code, got[0].enhanced))
        assert codes == [(220, ""), (250, ""), (354, ""), (550, "5.1.1")]
        assert reader.buffered


@pytest.mark.parametrize(
    "data", [b"hello\r\n", b"250-a\r\n550 b\r\n", b"99 x\r\n", b"600 x\r\n", b"x" * 5000, b"250-x\r\n" * 100]
)
def test_what_is_no_smtp_is_said(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        ReplyReader().feed(data)


@given(st.binary(max_size=300))
def test_the_reader_never_breaks_otherwise(data: bytes) -> None:
    try:
        ReplyReader().feed(data)
    except ProtocolError:
        pass
