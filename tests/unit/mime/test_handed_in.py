"""Messages as programs give them to sendmail."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outmail.mime.handed_in import Unreadable, read


def test_header_and_text_are_told_apart() -> None:
    message = read(b"To: a@x.test\nSubject: s\n folded\n\ntext\n")
    assert message.fields == [("to", b"To: a@x.test\n"), ("subject", b"Subject: s\n folded\n")]
    assert message.text == b"text\n"
    assert message.content == b"To: a@x.test\nSubject: s\n folded\n\ntext\n"


def test_without_a_header_everything_is_text() -> None:
    assert read(b"hello world\n").content == b"\nhello world\n"


def test_nothing_is_an_empty_message() -> None:
    assert read(b"").content == b"\n"


def test_a_header_that_ends_without_an_empty_line_gets_one() -> None:
    assert read(b"To: a@x.test\nthis is text\n").content == b"To: a@x.test\n\nthis is text\n"


def test_the_line_of_a_mailbox_file_in_front_is_left_out() -> None:
    assert read(b"From me Mon Nov 2 10:00:00 2026\nTo: a@x.test\n\nt\n").content == b"To: a@x.test\n\nt\n"


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_lone_dot_ends_the_message_only_where_it_is_asked_to(ending: bytes) -> None:
    raw = ending.join([b"To: a@x.test", b"", b".one", b".", b"two", b""])
    assert read(raw, dots=True).text == b".one" + ending
    assert read(raw, dots=False).text == ending.join([b".one", b".", b"two", b""])


@pytest.mark.parametrize("raw", [b".\nmore", b"."])
def test_a_lone_dot_in_the_first_line_leaves_nothing(raw: bytes) -> None:
    assert read(raw, dots=True).content == b"\n"


def test_what_no_server_may_pass_on_is_named() -> None:
    with pytest.raises(Unreadable, match="NUL"):
        read(b"a: b\n\n\0")


def test_a_carriage_return_ends_a_line_of_the_text_and_begins_no_field() -> None:
    progress = b"Subject: s\n\n10 %\r20 %\rdone\r\r\nend\r"
    assert read(progress).content == b"Subject: s\n\n10 %\n20 %\ndone\nend\n"
    injected = read(b"Subject: hello\rBcc: victim@x.test\r\n more\r\nTo: a@x.test\n\n")
    assert injected.recipients() == ["a@x.test"]
    assert injected.content == b"Subject: hello Bcc: victim@x.test\n more\r\nTo: a@x.test\n\n"


def test_recipients_are_those_of_to_cc_and_bcc_as_written() -> None:
    message = read(
        b'To: "A, b" <a@x.test>, root\nCC: c@x.test\nbcc: d@x.test,\n e@x.test\nFrom: f@x.test\n\n'
    )
    assert message.recipients() == ["a@x.test", "root", "c@x.test", "d@x.test", "e@x.test"]


def test_resent_fields_count_alone() -> None:
    assert read(b"To: a@x.test\nResent-To: b@x.test\nResent-Bcc: c@x.test\n\n").recipients() == [
        "b@x.test",
        "c@x.test",
    ]


def test_bcc_fields_are_cut_whole_and_nothing_else() -> None:
    message = read(
        b"To: a@x.test\nBcc: b@x.test,\n c@x.test\nResent-BCC: d@x.test\nX-Bcc-not: e\n\nBcc: text\n"
    )
    message.without_bcc()
    assert message.content == b"To: a@x.test\nX-Bcc-not: e\n\nBcc: text\n"


def test_addresses_change_where_they_stand_and_every_other_byte_stays() -> None:
    raw = (
        'From: "Root, the" <root> (me)\nTo: Jürgen <j@x.test>,\n  John\nX-To: root\n'
        "Resent-Sender: John\n\nroot\n"
    )
    message = read(raw.encode("latin-1"))
    message.rewrite(lambda name, address: address if "@" in address else f"{address}@{name}.test")
    changed = raw.replace("<root>", "<root@from.test>").replace("\n  John", "\n  John@to.test")
    assert message.content == changed.replace("Sender: John", "Sender: John@sender.test").encode("latin-1")


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_named_and_none_are_lost(raw: bytes) -> None:
    try:
        message = read(raw)
    except Unreadable:
        assert b"\0" in raw
        return
    assert set(raw.split()) - set(raw[:6].split()) <= set(message.content.split()) or raw.startswith(b"From ")


@given(st.lists(st.sampled_from(["To: a@x.test", "X: y", " more", "", "text", "."]), max_size=8))
def test_reading_twice_changes_nothing(lines: list[str]) -> None:
    once = read("\n".join(lines).encode()).content
    assert read(once).content == once
