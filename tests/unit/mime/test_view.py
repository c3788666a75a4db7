"""What people who look after a queue are shown of a message, whatever its bytes are."""

from __future__ import annotations

from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outmail.mime import view as module
from outmail.mime.view import Part, sealed, shown_fields, view


def test_text_html_attachments_and_inline_images() -> None:
    message = EmailMessage()
    message.set_content("grüße\n")
    message.add_alternative('<p>grüße <img src="cid:logo"><img src="cid:none"></p>', subtype="html")
    (html,) = [part for part in message.walk() if part.get_content_type() == "text/html"]
    html.add_related(b"\x89PNG", "image", "png", cid="<logo>")
    message.add_attachment(b"a,b\n", "text", "csv", filename="ä.csv")
    seen = view(message.as_bytes())
    assert (
        seen.text == "grüße\n" and "data:image/png;base64,iVBORw==" in seen.html and "cid:none" in seen.html
    )
    assert seen.attachments[-1] == Part("ä.csv", "text/csv", 4)


def test_the_fields_that_mail_programs_show() -> None:
    subjects = b"SUBJECT: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n \x1b[2J\r\nSubject: 2\r\n"
    content = b"X-A: b\r\n" + subjects + b"From: a@x.test\r\n\r\nTo: b\r\n"
    assert shown_fields(content) == [("From", "a@x.test"), ("Subject", "grüße  [2J")]
    assert shown_fields(b"") == [] == shown_fields(b"no header at all")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"Subject: s\r\n\r\nplain\r\nlines\r\n", "plain\nlines"),
        (b"Content-Type: text/plain; charset=nonsense\r\n\r\n\xe4\r\n", "ä"),
        (b"Content-Type: text/plain; charset=utf-8\r\n\r\n\xe4\r\n", "�"),
        (b"Content-Type: text/plain\r\nContent-Transfer-Encoding: base64\r\n\r\nZ3J1\r\n", "gru"),
        (b"Content-Type: multipart/mixed; boundary=x\r\n\r\nno boundary at all\r\n", ""),
        (b"", ""),
    ],
)
def test_odd_messages_are_shown_as_far_as_they_go(content: bytes, text: str) -> None:
    assert view(content).text.strip() == text


def test_what_is_too_large_or_too_deep_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    nested = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(3000)
    )
    assert view(nested).text in ("", "(this message is nested too deeply to be shown)")
    monkeypatch.setattr(module, "MOST", 10)
    assert "is not shown" in view(b"Subject: long\r\n\r\n").text


@given(st.binary(max_size=200))
def test_any_bytes_give_a_view(content: bytes) -> None:
    view(b"Content-Type: " + content + b"\r\n\r\n" + content)
    view(content)


def test_sealed_html_begins_with_its_policy() -> None:
    made = sealed('<html><head><meta http-equiv="refresh" content="0;url=https://x.test"></head></html>')
    assert made.index("default-src 'none'") < made.index("<html>") and 'target="_blank"' in made
