"""Composing and splicing: the bytes decide."""

import email
import email.policy
from base64 import b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outmail.mime import headers, splice
from outmail.mime.compose import Attachment, Parts, compose
from outmail.smtp.syntax import parse_mailbox

ME = ("", parse_mailbox("me@x.test"))


def build(**words: object) -> bytes:
    return compose(Parts(**{"sender": ME, "to": [ME], "message_id": "<a@x.test>", **words}))  # type: ignore[arg-type]


def read(content: bytes) -> email.message.EmailMessage:
    return email.message_from_bytes(content, policy=email.policy.default)


def test_long_display_names_keep_their_quotes() -> None:
    name = "Wagner, Doe and a very long list of other partners of the firm, Inc."
    got = read(build(to=[(name, parse_mailbox("a@x.test"))]))["to"].addresses
    assert [(a.display_name, a.addr_spec) for a in got] == [(name, "a@x.test")]


def test_structured_tokens_are_never_encoded() -> None:
    references = " ".join(f"<{i:04d}.long-message-id@a-rather-long-host-name.example.org>" for i in range(30))
    content = build(headers={"References": references, "List-Unsubscribe": f"<https://x.test/{'u' * 300}>"})
    assert b"=?" not in content and read(content)["References"].split() == references.split()
    with pytest.raises(ValueError):
        build(headers={"References": "<ü@x>"})


@pytest.mark.parametrize("bad", ["a\nBcc: x@y", "a\r\nX: y", "a\0b", "a\x1bb", "a\u2028b"])
def test_line_breaks_in_headers_are_refused(bad: str) -> None:
    for words in (
        {"subject": bad},
        {"headers": {"X-A": bad}},
        {"to": [(bad, ME[1])]},
        {"attachments": [Attachment(bad, b"")]},
    ):
        with pytest.raises(ValueError):
            build(**words)
    for name in ("A B", "A:", "Ä", "", "Subject", "Bcc", "Content-Type"):
        with pytest.raises(ValueError):
            build(headers={name: "x"})


@settings(max_examples=150, deadline=None)
@given(
    st.text(
        st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp"), blacklist_characters="\ufeff"),
        max_size=200,
    )
)
def test_any_subject_reads_back(subject: str) -> None:
    content = build(subject=subject)
    assert content.isascii() and max(map(len, content.split(b"\r\n"))) <= 998
    field = next(whole for name, whole in splice.fields(content) if name == "subject")
    assert all(len(word) <= 75 for word in field.decode().split() if word.startswith("=?"))
    assert (
        splice.look(content).subject == splice.short(subject.strip(" \t"))
        or "  " in subject
        or "\xa0" in subject
        or "=?" in subject
    )


def test_text_html_files_and_inline_parts() -> None:
    message = read(
        build(
            text="Grüße\n.dot\n" + "x" * 2000,
            html="<img src=cid:logo>",
            attachments=[Attachment('naïve "file".pdf', b"\x00\xff"), Attachment("m.eml", b"a: b")],
            inline={"logo": Attachment("l.png", b"png")},
        )
    )
    body = message.get_body(("plain",))
    assert body is not None and body.get_content().replace("\r", "").startswith("Grüße\n.dot\n")
    files = {part.get_filename(): part.get_content() for part in message.iter_attachments()}
    assert files['naïve "file".pdf'] == b"\x00\xff" and "m.eml" in files
    assert any(part["Content-ID"] == "<logo>" for part in message.walk())


def test_plain_text_stays_plain() -> None:
    assert build(text="one\r\ntwo\rthree\n").endswith(b"\r\n\r\none\r\ntwo\r\nthree\r\n")


def test_normalising() -> None:
    assert splice.normalised(b"A: b\n\nx\r\ny") == b"A: b\r\n\r\nx\r\ny\r\n"
    whole = b"A: b\r\n\r\nx\r\n"
    assert splice.normalised(whole) is whole
    for bad in (b"A: b\r\n\r\nx\ry\r\n", b"A: b\r\n\r\n\0\r\n"):
        with pytest.raises(splice.ContentError):
            splice.normalised(bad)


def test_fields_are_cut_whole() -> None:
    content = b"Bcc: a@x,\r\n b@x\r\nTo: c@x\r\nbcc : d@x\r\n\r\nBcc: body\r\n"
    assert splice.cut(content, "bcc") == b"To: c@x\r\n\r\nBcc: body\r\n"
    head = splice.look(
        b"Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n =?utf-8?q?_x?=\r\nMessage-ID: <a@b>\r\n\r\n"
    )
    assert (head.subject, head.message_id, head.dated) == ("grüße x", "<a@b>", False)
    with pytest.raises(splice.ContentError):
        splice.look(b"From someone Mon\r\nSubject: x\r\n\r\n")


def test_date_is_not_the_locales() -> None:
    assert headers.date(0) == "Thu, 01 Jan 1970 00:00:00 +0000"


@pytest.mark.parametrize("mark", ["\x1b[31m", "\x9b31m", "\u202e", "\u2066", "\u2028", "\x85"])
def test_a_subject_for_lists_holds_nothing_that_a_terminal_obeys(mark: str) -> None:
    encoded = b"=?utf-8?b?" + b64encode(f"a{mark}b".encode()) + b"?="
    for subject in (encoded, f"a{mark}b".encode()):
        found = splice.look(b"Subject: " + subject + b"\r\n\r\n").subject
        assert mark[0] not in found and found.startswith("a ") and found.endswith("b")
    assert splice.short("family \U0001f469\u200d\U0001f467 ä") == "family \U0001f469\u200d\U0001f467 ä"
