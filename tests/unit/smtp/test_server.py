"""The server's dialogue: what it says to good clients, confused ones and hostile ones. Whole and byte by
byte.
"""

from __future__ import annotations

import re
from base64 import b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outmail.model import Reply
from outmail.smtp.lines import has_bare, stuffed
from outmail.smtp.server import Close, Deliver, Server, ServerSettings, StartTls, Verify

OK = Reply(250, "queued", "2.0.0")


class Anyone:
    """Everybody but the address ``no@x.test``."""

    def mail(self, session: Server, sender: str) -> Reply | None:
        return Reply(550, "not you", "5.7.1") if sender == "no@x.test" else None

    def rcpt(self, session: Server, address: str) -> Reply | None:
        return Reply(550, "no such user", "5.1.1") if address == "no@x.test" else None


class Drive:
    """Feeds in any portions and answers requests."""

    def __init__(
        self, portion: int = 0, normalise: bool = False, local: bool = False, **words: object
    ) -> None:
        settings = ServerSettings(**words)  # type: ignore[arg-type]
        self.server = Server(settings, Anyone(), normalise=normalise, local=local)
        self.portion = portion
        self.got: list[Deliver] = []
        self.said = self.server.outgoing()
        self.ended = False

    def __call__(self, data: bytes) -> list[str]:
        before = len(self.said)
        step = self.portion or max(1, len(data))
        for start in range(0, len(data), step):
            self.server.feed(data[start : start + step])
            self._serve()
        return [
            line[:3]
            for line in self.said[before:].decode().split("\r\n")[:-1]
            if line[3:4] == " " or len(line) == 3
        ]

    def _serve(self) -> None:
        self.said += self.server.outgoing()
        while self.server.requests:
            request = self.server.requests.popleft()
            if isinstance(request, Deliver):
                self.got.append(request)
                self.server.answer([OK] * (len(request.recipients) if self.server.settings.lmtp else 1))
            elif isinstance(request, Verify):
                self.server.authenticated(request.user if request.password == "right" else None)
            elif isinstance(request, StartTls):
                self.server.encrypted()
            elif isinstance(request, Close):
                self.ended = True
            self.said += self.server.outgoing()


MESSAGE = (
    b"EHLO me\r\nMAIL FROM:<a@x.test> SIZE=20 BODY=8BITMIME\r\nRCPT TO:<b@x.test>\r\nRCPT "
    b"TO:<no@x.test>\r\nDATA\r\nSubject: s\r\n\r\n..dot\r\n\xff\r\n.\r\nQUIT\r\n"
)


@pytest.mark.parametrize("portion", [0, 1, 3, 7])
def test_a_pipelined_message(portion: int) -> None:
    drive = Drive(portion)
    assert drive(MESSAGE) == ["250", "250", "250", "550", "354", "250", "221"] and drive.ended
    (got,) = drive.got
    assert (got.sender, got.recipients, got.content) == (
        "a@x.test",
        ["b@x.test"],
        b"Subject: s\r\n\r\n.dot\r\n\xff\r\n",
    )


@pytest.mark.parametrize("portion", [0, 1])
def test_several_messages_and_clean_states(portion: int) -> None:
    drive = Drive(portion)
    one = b"MAIL FROM:<>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n.\r\n"
    assert drive(b"EHLO me\r\n" + one * 3) == ["250"] + ["250", "250", "354", "250"] * 3
    assert [got.content for got in drive.got] == [b""] * 3
    assert drive(b"RCPT TO:<b@x.test>\r\nDATA\r\n") == ["503", "503"], "nothing is left of the last message"


@pytest.mark.parametrize(
    ("commands", "codes"),
    [
        (b"MAIL FROM:<a@x.test>\r\n", ["503"]),
        (b"EHLO\r\n", ["501"]),
        (
            b"EHLO me\r\nEHLO me\r\nMAIL FROM:<a@x.test>\r\nMAIL FROM:<a@x.test>\r\n",
            ["250", "250", "250", "503"],
        ),
        (b"EHLO me\r\nMAIL FROM:a@x.test\r\n", ["250", "501"]),
        (b"EHLO me\r\nMAIL FROM:<a b@x.test>\r\n", ["250", "501"]),
        (b"EHLO me\r\nMAIL\r\n", ["250", "501"]),
        (b"EHLO me\r\nMAIL FROM:<no@x.test>\r\nRCPT TO:<b@x.test>\r\n", ["250", "550", "503"]),
        (b"EHLO me\r\nMAIL FROM:<a@x.test>\r\nDATA\r\n", ["250", "250", "554"]),
        (b"EHLO me\r\nMAIL FROM:<a@x.test> SIZE=999999999999\r\n", ["250", "552"]),
        (b"EHLO me\r\nMAIL FROM:<a@x.test> FOO=1\r\n", ["250", "555"]),
        (b"EHLO me\r\nMAIL FROM:<a@x.test> SIZE=1 SIZE=1\r\n", ["250", "501"]),
        (b"EHLO me\r\nMAIL FROM:<a@x.test> BODY=BINARYMIME\r\n", ["250", "555"]),
        (
            "EHLO me\r\nMAIL FROM:<ä@x.test>\r\nMAIL FROM:<ä@x.test> SMTPUTF8\r\n".encode(),
            ["250", "553", "250"],
        ),
        (b"EHLO me\r\nMAIL FROM:<\xff@x.test> SMTPUTF8\r\n", ["250", "501"]),
        (
            b"EHLO me\r\nMAIL FROM:<@r.test,@s.test:a@x.test>\r\nRCPT TO:<postmaster>\r\nRCPT TO:<>\r\n",
            ["250", "250", "250", "501"],
        ),
        (
            b"EHLO me\r\nMAIL FROM:<a@x.test> RET=HDRS ENVID=a+2Bb\r\nRCPT TO:<b@x.test> "
            b"NOTIFY=SUCCESS,DELAY ORCPT=rfc822;b@x.test\r\nRCPT TO:<c@x.test> NOTIFY=NEVER,DELAY\r\n",
            ["250", "250", "250", "555"],
        ),
        (b"NOOP\r\nRSET\r\nVRFY a\r\nHELP\r\nEXPN a\r\nWHAT\r\n", ["250", "250", "252", "214", "502", "500"]),
        (b"BDAT 5\r\nNOOP\r\n", ["421"]),
        (b"STARTTLS\r\n", ["502"]),
        (b"EHLO me\r\nAUTH PLAIN\r\n", ["250", "503"]),
        (b"LHLO me\r\n", ["500"]),
        (
            b"EHLO me\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA now\r\n",
            ["250", "250", "250", "501"],
        ),
        (b"GET / HTTP/1.1\r\n", ["421"]),
        (b"EHLO me\n", ["500"]),
        (b"EHLO m\re\r\n", ["500"]),
        (b"NOOP\0\r\n", ["500"]),
        (b"x" * 3000, ["421"]),
        (b"NOOP " + b"x" * 3000 + b"\r\n", ["421"]),
    ],
)
@pytest.mark.parametrize("portion", [0, 1])
def test_a_clear_reply_to_everything(commands: bytes, codes: list[str], portion: int) -> None:
    assert Drive(portion)(commands) == codes


@pytest.mark.parametrize(
    "ending", [b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\n", b"\r.\r\n", b"\r\n.\r", b"\r\n\0.\r\n"]
)
@pytest.mark.parametrize("portion", [0, 1])
def test_smuggling_sequences_end_nothing(ending: bytes, portion: int) -> None:
    smuggled = (
        b"MAIL FROM:<evil@x.test>\r\nRCPT TO:<victim@x.test>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\n"
    )
    drive = Drive(portion)
    codes = drive(
        b"EHLO me\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\nSubject: s\r\n\r\nbody"
        + ending
        + smuggled
    )
    assert not drive.got and codes == ["250", "250", "250", "354", "554"], codes
    assert drive(b"RCPT TO:<b@x.test>\r\n") == ["503"]
    mending = Drive(portion, normalise=True)
    codes = mending(
        b"EHLO me\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\nSubject: s\r\n\r\nbody"
        + ending
        + smuggled
    )
    if b"\0" in ending:
        assert codes[-1] == "554" and not mending.got
        return
    (got,) = mending.got
    assert (
        got.sender == "a@x.test" and b"MAIL FROM:<evil@x.test>" in got.content and not has_bare(got.content)
    )
    assert b"\r\n.\r\n" not in stuffed(got.content), "nor is there another end for the next server"


@pytest.mark.parametrize("portion", [0, 1, 5])
def test_mended_line_ends_alter_nothing_else(portion: int) -> None:
    """Dots are taken out behind line ends that were mended too; lone dots are nobody's content."""
    head = b"EHLO me\nMAIL FROM:<a@x.test>\nRCPT TO:<b@x.test>\r\nDATA\n"
    for sent, meant in (
        (
            b"Subject: s\n\n..one\n..\r\n...two\nlast\r\n.\r\n",
            b"Subject: s\r\n\r\n.one\r\n.\r\n..two\r\nlast\r\n",
        ),
        (b"Subject: s\r\n\r\na\n.\nb\n.\r\nc\r\n.\nd\r\n.\r\n", b"Subject: s\r\n\r\na\r\nb\r\nc\r\nd\r\n"),
        (b"Subject: s\r\n\r\na\rb\r\r\nc\r\n.\r\n", b"Subject: s\r\n\r\na b \r\nc\r\n"),
        (b".\nSubject: s\n\r\n.\r\n", b"Subject: s\r\n\r\n"),
    ):
        drive = Drive(portion, normalise=True)
        assert drive(head + sent) == ["250", "250", "250", "354", "250"]
        assert [got.content for got in drive.got] == [meant]


def test_the_limit_counts_what_is_stored() -> None:
    envelope = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n"
    drive = Drive(1000, normalise=True, size=10_000)
    drive(b"EHLO me\r\n")
    assert drive(envelope + b"S: s\n\n" + b"\n" * 6000 + b"\r\n.\r\n")[-1] == "552", (
        "each LF is two bytes once it is stored"
    )
    assert drive(envelope + b"S: s\r\n\r\n" + b"..\r\n" * 3000 + b".\r\n")[-1] == "250", (
        "a dot for the wire is not counted"
    )
    assert len(drive.got[0].content) == 9008


def test_too_long_content_is_refused_and_not_kept() -> None:
    drive = Drive(64_000, size=10_000)
    drive(b"EHLO me\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n")
    for _ in range(50):
        drive(b"x" * 64_000)
        assert drive.server.buffered < 140_000
    assert drive(b"\r\n.\r\nNOOP\r\n") == ["552", "250"] and not drive.got


def test_recipients_and_errors_are_bounded() -> None:
    drive = Drive(recipients=2)
    assert drive(b"EHLO me\r\nMAIL FROM:<a@x.test>\r\n" + b"RCPT TO:<b@x.test>\r\n" * 3)[-1] == "452"
    drive = Drive()
    assert drive(b"WHAT\r\n" * 100) == ["500"] * 20 + ["421"] and drive.ended


def test_starttls_and_auth() -> None:
    plain = b64encode(b"\0me\0right").decode()
    wrong = b64encode(b"\0me\0wrong").decode()
    drive = Drive(starttls=True, auth=True, require_auth=True, require_tls=True)
    assert drive(b"EHLO me\r\n") == ["250"] and b"STARTTLS" in drive.said and b"AUTH" not in drive.said
    assert drive(b"MAIL FROM:<a@x.test>\r\n") == ["530"]
    assert drive(f"AUTH PLAIN {plain}\r\n".encode()) == ["530"]
    assert drive(b"STARTTLS\r\n") == ["220"]
    assert drive(b"MAIL FROM:<a@x.test>\r\n") == ["503"], "EHLO again"
    assert (
        drive(b"EHLO me\r\nMAIL FROM:<a@x.test>\r\n") == ["250", "530"] and b"AUTH PLAIN LOGIN" in drive.said
    )
    assert drive(f"AUTH PLAIN {wrong}\r\nAUTH CRAM-MD5\r\nAUTH PLAIN\r\n*\r\nAUTH PLAIN !!\r\n".encode()) == [
        "535",
        "504",
        "334",
        "501",
        "501",
    ]
    assert drive(b"AUTH LOGIN\r\n" + b64encode(b"me") + b"\r\n" + b64encode(b"right") + b"\r\n") == [
        "334",
        "334",
        "235",
    ]
    assert drive(b"AUTH PLAIN x\r\nMAIL FROM:<a@x.test>\r\nSTARTTLS\r\n") == ["503", "250", "503"]


def test_bytes_behind_starttls_end_the_session() -> None:
    drive = Drive(starttls=True)
    assert drive(b"EHLO me\r\nSTARTTLS\r\nMAIL FROM:<a@x.test>\r\n") == ["250", "421"] and drive.ended


def test_lmtp_answers_for_each() -> None:
    drive = Drive(lmtp=True)
    assert drive(
        b"EHLO me\r\nLHLO me\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nRCPT "
        b"TO:<c@x.test>\r\nDATA\r\nSubject: s\r\n\r\n.\r\n"
    ) == ["500", "250", "250", "250", "250", "354", "250", "250"]
    assert drive(
        b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nRCPT TO:<c@x.test>\r\nDATA\r\na\nb\r\n.\r\n"
    )[-2:] == ["554", "554"]


PIECES = st.sampled_from(
    [
        b"EHLO me\r\n",
        b"HELO me\r\n",
        b"MAIL FROM:<a@x.test>\r\n",
        b"RCPT TO:<b@x.test>\r\n",
        b"RCPT TO:<no@x.test>\r\n",
        b"DATA\r\n",
        b".\r\n",
        b"\r\n.\r\n",
        b"text\r\n",
        b"..\r\n",
        b"RSET\r\n",
        b"NOOP\r\n",
        b"QUIT\r\n",
        b"\n.\n",
        b"\r",
        b"\n",
        b"AUTH PLAIN\r\n",
        b"*\r\n",
        b"STARTTLS\r\n",
        b"\0",
        b"\xff",
        b"x" * 700,
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(PIECES, st.binary(max_size=30)), max_size=25), st.integers(1, 40))
def test_whole_conversations_of_anything(pieces: list[bytes], portion: int) -> None:
    data = b"".join(pieces)
    whole, parts = Drive(0, size=1500), Drive(portion, size=1500)
    whole(data)
    parts(data)
    assert whole.said == parts.said and whole.got == parts.got and whole.ended == parts.ended
    assert all(re.fullmatch(r"[2-5]\d\d[ -].*", line) for line in whole.said.decode().split("\r\n")[:-1])
    for got in whole.got:
        assert got.recipients and got.content.count(b"\r\n") == got.content.count(b"\n") == got.content.count(
            b"\r"
        )


ENVELOPE = "EHLO me\r\nMAIL FROM:{}\r\nRCPT TO:{}\r\nDATA\r\nA: b\r\n\r\n.\r\n"


@pytest.mark.parametrize("portion", [0, 1])
@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize(
    ("sender", "recipient", "meant"),
    [
        ("<root>", "<John>", ("root@o.test", "John@o.test")),
        ("<>", "<Postmaster>", ("", "Postmaster@o.test")),
        ("<a@x.test>", "<@h.test:john>", ("a@x.test", "john@o.test")),
        ("a@x.test", "b@x.test", ("a@x.test", "b@x.test")),
        (" a@x.test SIZE=9 BODY=8BITMIME", "b@x.test NOTIFY=NEVER", ("a@x.test", "b@x.test")),
        ("root", "SRS0=a=b@x.test", ("root@o.test", "SRS0=a=b@x.test")),
    ],
)
def test_programs_of_this_machine_may_write_less(
    sender: str, recipient: str, meant: tuple[str, str], lmtp: bool, portion: int
) -> None:
    said = ENVELOPE.format(sender, recipient).encode().replace(b"EHLO", b"LHLO" if lmtp else b"EHLO")
    drive = Drive(portion, local=True, lmtp=lmtp, origin="o.test")
    assert drive(said) == ["250", "250", "250", "354", "250"]
    assert (drive.got[0].sender, drive.got[0].recipients) == (meant[0], [meant[1]])


@pytest.mark.parametrize(
    "path", ["root", "<root>", "<John>", "a@x.test", "a@x.test SIZE=9", "<@h.test:john>"]
)
def test_nobody_else_may_also_after_they_did(path: str) -> None:
    """What one session may is not remembered for another."""
    whole = f"EHLO me\r\nMAIL FROM:{path}\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:{path}\r\nRCPT TO:<b@x.test>\r\n"
    ours = f"EHLO me\r\nMAIL FROM:{path}\r\nRCPT TO:{path.partition(' ')[0]}\r\n".encode()
    for _ in range(2):
        assert Drive(local=True, origin="o.test")(ours) == ["250"] * 3
        assert Drive(local=False, origin="o.test")(whole.encode()) == ["250", "501", "250", "501", "250"]
    assert Drive(local=True, origin="")(b"EHLO me\r\nMAIL FROM:<root>\r\n") == ["250", "501"]
    assert (
        Drive(local=False, origin="o.test")(b"EHLO me\r\nMAIL FROM:<>\r\nRCPT TO:<postmaster>\r\n")
        == ["250"] * 3
    )


@pytest.mark.parametrize(
    "path",
    [
        "", "SIZE=9", " SIZE=9 BODY=7BIT", "a@x.test>", "<a@x.test", "a@x.test> <b@x.test", "a b@x.test",
        '"a b"@x.test',
        "a@x.test FOO=1", "a@x.test\x0b", "a\x01@x.test", "a@x.test\x00", "a,b@x.test", "a@b@x.test",
        "root..",         "John Smith",
        "<a@x.test>,<b@x.test>", "a@x.test;QUIT", "o@x.test\u2028RCPT",
    ],
)  # fmt: skip
def test_without_brackets_nothing_else_gets_in(path: str) -> None:
    drive = Drive(local=True, origin="o.test")
    codes = drive(f"EHLO me\r\nMAIL FROM:{path}\r\n".encode())
    assert codes[0] == "250" and codes[1] in ("500", "501", "553", "555") and not drive.server.begun


def test_refused_contents_are_errors_like_others() -> None:
    drive = Drive(max_errors=3)
    message = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\na\nb\r\n.\r\n"
    assert drive(b"EHLO me\r\n" + message * 4)[-5:] == ["250", "250", "354", "554", "421"] and drive.ended
