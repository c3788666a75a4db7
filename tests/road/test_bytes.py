"""Behaviours 20, 36–41, 43: the bytes delivered are the bytes accepted; secrets stay secret; lines stay
safe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from outmail.errors import ConfigError, Refused
from outmail.intake import api
from outmail.mime import splice
from outmail.model import Dsn
from outmail.outbox.outbox import Outbox
from outmail.testing import Sink

MakeBox = Callable[..., Outbox]
COMPLETE = (
    b"DKIM-Signature: v=1;  a=x;\r\n\tb=abc\r\nX:a\r\nSubject:  odd   spacing  \r\nDate: Thu, 01 Jan 1970 "
    b"00:00:00 +0000\r\n"
    b"Message-ID: <own@x.test>\r\nBcc: kept@x.test\r\n\r\n.\r\n..\r\n.x\r\nFrom me\r\n"
    + b"y" * 3000
    + b"\r\n\xff\xfe 8-bit\r\n"
)


def test_a_complete_message_goes_out_bit_for_bit(sink: Sink, make_box: MakeBox) -> None:
    box = make_box(sink.url)
    id = box.submit(COMPLETE, sender="me@x.test", recipients=["a@x.test"]).id
    box.wait(id, 10)
    assert sink.messages[0].content == COMPLETE == box.content(id)
    status = box.status(id)
    assert (status.size, status.sha256, status.message_id) == (
        len(COMPLETE),
        hashlib.sha256(COMPLETE).hexdigest(),
        "<own@x.test>",
    )
    assert "BODY=8BITMIME" in sink.messages[0].mail_parameters


def test_missing_fields_are_prepended_and_nothing_else_changes(sink: Sink, make_box: MakeBox) -> None:
    box = make_box(sink.url)
    id = box.submit(b"Subject: x\n\nbody without end", sender=None, recipients=["a@x.test"]).id
    box.wait(id, 10)
    content = sink.messages[0].content
    assert (
        content.startswith(b"Date: ")
        and content.endswith(b"Subject: x\r\n\r\nbody without end\r\n")
        and sink.messages[0].sender == ""
    )


def test_bcc_reaches_the_envelope_only(sink: Sink, make_box: MakeBox) -> None:
    box = make_box(sink.url)
    box.wait(box.send("a@x.test", "s", "t", cc="c@x.test", bcc=["un-seen@x.test"]).id, 10)
    assert (
        sink.messages[0].recipients == ("a@x.test", "c@x.test", "un-seen@x.test")
        and b"un-seen@x.test" not in sink.messages[0].content
    )


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "bad-content"),
        (b"no header\r\n", "bad-content"),
        (b"\r\nbody", "bad-content"),
        (b"From me@x.test Mon Jan  1\nFrom: a@x.test\n\nbody\n", "bad-content"),
        (b"A: b\r\n\r\nx\ry", "bad-content"),
        (b"A: b\n\n\0", "bad-content"),
    ],
)
def test_what_is_no_message_is_refused_before_anything_is_stored(
    make_box: MakeBox, content: bytes, code: str
) -> None:
    box = make_box(deliver="never")
    with pytest.raises(Refused) as caught:
        box.submit(content, sender="me@x.test", recipients=["a@x.test"])
    assert caught.value.code == code and not list(box.find())


def test_send_raw_refuses_a_mailbox_line(outmail: Any) -> None:
    done = outmail(
        "send",
        "--raw",
        "--store",
        "q.db",
        "--from",
        "me@x.test",
        "a@x.test",
        stdin=b"From me@x.test Mon Jan  1\nSubject: s\n\nbody\n",
    )
    assert (
        done.returncode == 65
        and b"does not begin with a header field but with 'From me@x.test" in done.stderr
    )


def test_limits_are_refused_before_anything_is_stored(make_box: MakeBox) -> None:
    box = make_box(deliver="never", toml='[limits]\nmessage_size = "1kB"\nrecipients = 2\n')
    for words, code in (
        ({"content": b"A: b\r\n\r\n" + b"x" * 2000, "recipients": ["a@x.test"]}, "too-large"),
        # each LF is two bytes once it is stored
        ({"content": b"A: b\n\n" + b"\n" * 600, "recipients": ["a@x.test"]}, "too-large"),
        (
            {"content": b"A: b\r\n\r\n", "recipients": [f"{i}@x.test" for i in range(3)]},
            "too-many-recipients",
        ),
        ({"content": b"A: b\r\n\r\n", "recipients": []}, "no-recipient"),
        ({"content": b"A: b\r\n\r\n", "recipients": ["a@x.test\r\nDATA"]}, "bad-address"),
    ):
        with pytest.raises(Refused) as caught:
            box.submit(sender="me@x.test", **words)
        assert caught.value.code == code
    assert not list(box.find())


def test_send_many_is_all_or_none_and_names_the_bad_one(make_box: MakeBox) -> None:
    box = make_box(deliver="never")
    good = {"to": "a@x.test", "subject": "s", "text": "t"}
    with pytest.raises(Refused) as caught:
        box.send_many([good, good, {**good, "to": "broken@"}])
    assert caught.value.index == 2 and not list(box.find())
    assert len(box.send_many([good, good])) == 2


def test_non_ascii_addresses_need_smtputf8_and_domains_do_not(make_box: MakeBox, tmp_path: Path) -> None:
    with Sink(extensions=("PIPELINING", "8BITMIME")) as plain, Sink() as utf8:
        box = make_box(plain.url)
        id = box.send(["jürgen@x.test", "a@faß.de"], "s", "t").id
        box.wait(id, 10)
        first, second = box.status(id).recipients
        assert first.state == "failed" and first.reply and first.reply.enhanced == "5.6.7"
        assert (second.state, second.address) == ("delivered", "a@xn--fa-hia.de")
        other = make_box(utf8.url, store=str(tmp_path / "u.db"))
        id = other.send("jürgen@x.test", "s", "t").id
        assert other.wait(id, 10).status == "delivered" and "SMTPUTF8" in utf8.messages[0].mail_parameters


def test_8bit_mail_to_a_7bit_relay_fails_with_5_6_3(make_box: MakeBox) -> None:
    with Sink(extensions=()) as sink:
        box = make_box(sink.url)
        id = box.submit(COMPLETE, sender="me@x.test", recipients=["a@x.test"]).id
        reply = box.wait(id, 10).recipients[0].reply
        assert reply and reply.enhanced == "5.6.3" and not sink.messages
        ours = box.send("a@x.test", "grüße", "grüße").id
        assert box.wait(ours, 10).status == "delivered"


def test_a_relay_without_pipelining_and_one_with_a_size_limit(make_box: MakeBox) -> None:
    with Sink("RCPT bad@*: 550 no", extensions=("SIZE 2000", "8BITMIME")) as sink:
        box = make_box(sink.url)
        ids = [box.send([f"a{i}@x.test", "bad@x.test"], "s", "t").id for i in range(3)]
        big = box.send("a@x.test", "s", "x\n" * 2000).id
        assert {box.wait(id, 10).recipients[0].state for id in ids} == {"delivered"}
        reply = box.wait(big, 10).recipients[0].reply
        assert box.status(big).status == "failed" and reply and reply.enhanced == "5.3.4"


def test_dsn_parameters_reach_the_relay(sink: Sink, make_box: MakeBox) -> None:
    box = make_box(sink.url)
    id = box.submit(
        b"A: b\r\n\r\n",
        sender="me@x.test",
        recipients=["a+b@x.test"],
        dsn=Dsn("success,failure", "hdrs", "env=1"),
    ).id
    box.wait(id, 10)
    assert "RET=HDRS ENVID=env+3D1" in sink.messages[0].mail_parameters
    assert sink.messages[0].rcpt_parameters == ("NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;a+2Bb@x.test",)


def test_lmtp_answers_per_recipient(make_box: MakeBox) -> None:
    with Sink("DOT full@*: 452 4.2.2 mailbox full", lmtp=True) as sink:
        box = make_box(sink.url)
        id = box.send(["a@x.test", "full@x.test", "c@x.test"], "s", "t").id
        box.wait(id, 1)
        assert [r.state for r in box.status(id).recipients] == ["delivered", "queued", "delivered"]


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_credentials_work_and_never_show(make_box: MakeBox, mechanism: str, tmp_path: Path) -> None:
    from base64 import b64encode

    with Sink("DOT: 554 no", users={"me": "geheim"}, auth=mechanism) as sink:
        box = make_box(sink.url.replace("//", "//me:geheim@"), 'transcripts = "all"\n')
        id = box.send("a@x.test", "s", "t").id
        box.wait(id, 10)
        assert sink.commands and box.status(id).status == "failed"
        everything = (
            str([a.as_dict() for a in box.attempts(id)])
            + str(box.status(id).as_dict())
            + (tmp_path / "q.db-wal").read_bytes().decode("latin-1")
        )
        for secret in ("geheim", b64encode(b"geheim").decode(), b64encode(b"\0me\0geheim").decode()):
            assert secret not in everything


def test_a_large_message_and_ten_thousand_recipients(sink: Sink, make_box: MakeBox) -> None:
    box = make_box(sink.url)
    content = b"Subject: big\r\n\r\n" + (b"x" * 76 + b"\r\n") * 60_000
    big = box.submit(content, sender="me@x.test", recipients=["a@x.test"]).id
    many = box.submit(
        b"Subject: many\r\n\r\n", sender="me@x.test", recipients=[f"u{i}@x.test" for i in range(10_000)]
    ).id
    assert box.wait(big, 30).status == "delivered" and box.wait(many, 60).status == "delivered"
    assert sum(len(m.recipients) for m in sink.messages) == 10_001 and len(sink.messages) <= 110
    assert max(sink.messages, key=lambda m: len(m.content)).content.endswith(content)


def test_a_message_of_the_email_package_keeps_long_fields_and_smuggles_none(make_box: MakeBox) -> None:
    import email
    import email.policy
    from email.message import EmailMessage, Message

    box = make_box(deliver="never")
    source = (
        b"From: a@x.test\r\nReferences: "
        + b" ".join(b"<%040d@long.example>" % i for i in range(8))
        + b"\r\nSubject: s\r\n\r\nb\r\n"
    )
    parsed = email.message_from_bytes(source, policy=email.policy.default)
    kept = box.content(box.submit(parsed, sender="a@x.test", recipients="b@x.test").id)
    assert kept.endswith(source)
    old = Message()
    old["From"] = "a@x.test"
    old["Subject"] = "x\r\nBcc: evil@x.test"
    old.set_payload("t")
    with pytest.raises(Refused, match=r"line break|cannot turn"):
        box.submit(old, sender="a@x.test", recipients="b@x.test")
    new = EmailMessage()
    new["Subject"] = "fine"
    new.set_content("grüße")
    assert box.submit(new, sender="a@x.test", recipients="b@x.test").durable


@pytest.mark.parametrize(
    "dsn",
    [
        Dsn("never\r\nRSET"),
        Dsn("success,success"),
        Dsn(ret="full\r\n"),
        Dsn(envid="a\r\nb"),
        Dsn(each={"a@x.test": ("", "rfc822;a b")}),
        Dsn(7),  # type: ignore[arg-type]
    ],
)
def test_what_is_asked_of_notifications_cannot_become_commands(
    sink: Sink, make_box: MakeBox, dsn: Dsn
) -> None:
    with pytest.raises(Refused, match="dsn"):
        make_box(sink.url).submit(b"A: b\r\n\r\n", sender="me@x.test", recipients=["a@x.test"], dsn=dsn)


@given(
    st.text(
        st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\u2028\u2029\ufeff"), max_size=600
    )
)
@example("=?utf-8?q?x?=")
@example("tab\tinside")
@example("  spaces around ")
def test_what_is_known_of_a_composed_head_is_what_it_says(subject: str) -> None:
    """Acceptance does not read back what was composed a moment before: both ways must agree."""
    draft = api.composed(
        1_700_000_000_000, "host.test", "", to=["b@x.test"], subject=subject, text="hi", sender="a@x.test"
    )
    assert draft.normal and splice.normalised(draft.content) == draft.content
    read = splice.look(draft.content)
    known = draft.head
    assert known is not None and (read.message_id, read.dated, read.has_message_id) == (
        known.message_id,
        known.dated,
        known.has_message_id,
    )
    assert read.subject.split() == known.subject.split()


_ODD: list[object] = [
    None,
    True,
    0,
    -1,
    1.5,
    10**30,
    b"x",
    "",
    "b@x.test",
    "Ann <a@x.test>",
    "\ud800",
    "a\0b",
    "a\r\nBcc: x@y.test",
    "=?utf-8?q?x?=",
    "x" * 2000,
    "high",
    "2h",
    "9" * 400 + "d",
    "null:",
    ("n", "b@x.test"),
    ("n\r\nX: y", "b@x.test"),
    ("a.txt", b"x"),
    ("a\r\n.txt", b"x"),
    ("a.txt", b"x", "text/plain\r\nX: y"),
    ("\ud800.txt", b"x"),
    ("m.eml", b"x", "message/rfc822"),
]
_leaf = st.sampled_from(_ODD)
_odd = st.recursive(
    _leaf,
    lambda i: (
        st.lists(i, max_size=3)
        | st.tuples(i, i)
        | st.dictionaries(st.sampled_from(["X-A", "Bcc", "a b", "logo", "\ud800"]), i, max_size=2)
    ),
    max_leaves=4,
)
_SEND = (
    "to",
    "subject",
    "text",
    "html",
    "cc",
    "bcc",
    "sender",
    "reply_to",
    "headers",
    "attachments",
    "inline",
    "key",
    "at",
    "expires",
    "priority",
    "tag",
    "relay",
)
_SUBMIT = ("content", "sender", "recipients", "key", "at", "expires", "priority", "tag", "relay", "dsn")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(_SEND), _odd), min_size=1, max_size=2),
    st.lists(st.tuples(st.sampled_from(_SUBMIT), _odd), min_size=1, max_size=2),
)
@example([("attachments", [None])], [("dsn", [])])
@example([("inline", ["x"])], [("recipients", 5)])
@example([("attachments", ["\ud800"])], [("content", "text")])
@example([("subject", None)], [("due", 10**30)])
def test_whatever_a_program_gives_is_stored_well_or_refused(
    make_box: MakeBox, send: list[tuple[str, object]], submit: list[tuple[str, object]]
) -> None:
    """Refused, ConfigError, or TypeError for what has the wrong type or name; else a message that can be read
    back, with no field that nobody asked for.
    """
    box = _boxes[0] if _boxes else make_box(deliver="never")
    _boxes[:] = [box]
    good: list[tuple[Callable[..., Any], dict[str, object]]] = [
        (box.send, {"to": "b@x.test", "sender": "a@x.test", "subject": "s", "text": "t"} | dict(send)),
        (
            box.submit,
            {"content": b"A: b\r\n\r\nx\r\n", "sender": "a@x.test", "recipients": ["b@x.test"]}
            | dict(submit),
        ),
    ]
    for call, words in good:
        stored_well_or_refused(box, call, words)


def test_each_odd_word_in_each_place(make_box: MakeBox) -> None:
    """All of them, once: chance finds a pair in two hundred seldom."""
    box = make_box(deliver="never")
    for word in _ODD:
        for value in (word, [word], {"X-A": word}, {word: "x"} if isinstance(word, str) else word):
            for name in _SEND:
                stored_well_or_refused(
                    box,
                    box.send,
                    {"to": "b@x.test", "sender": "a@x.test", "subject": "s", "text": "t", name: value},
                )
            for name in _SUBMIT:
                stored_well_or_refused(
                    box,
                    box.submit,
                    {
                        "content": b"A: b\r\n\r\nx\r\n",
                        "sender": "a@x.test",
                        "recipients": ["b@x.test"],
                        name: value,
                    },
                )


def stored_well_or_refused(box: Outbox, call: Callable[..., Any], words: dict[str, object]) -> None:
    try:
        id = call(**words).id
    except (Refused, ConfigError, TypeError):
        return
    except Exception as problem:
        raise AssertionError(f"{call.__name__} of {words}") from problem
    assert box.status(id).recipients
    content = box.content(id)
    if call == box.send:
        names = [
            line.partition(b":")[0].lower()
            for line in content.partition(b"\r\n\r\n")[0].split(b"\r\n")
            if line[:1] not in b" \t"
        ]
        assert b"bcc" not in names and b"x" not in names and max(map(len, content.split(b"\r\n"))) <= 998


_boxes: list[Outbox] = []
