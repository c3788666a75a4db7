"""Each flag of the common sendmails, and each kind of input, as `sendmail` treats it in the end: what lies in
the drop folder, or what is said and with which status.

The rows follow the flags of Sendmail, Postfix, Exim, msmtp, nullmailer, dma and OpenSMTPD.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from email import message_from_bytes
from email.policy import default
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from outmail.config import from_toml
from outmail.intake import local
from outmail.intake.deposit import Deposit, unpacked
from outmail.model import keyed_id
from outmail.outbox.outbox import Outbox
from outmail.system import dropbox
from outmail.testing import Sink
from outmail.unix import flag_help, mailq
from outmail.unix import main as unix

MESSAGE = b"To: h@x.test\nSubject: s\n\ntext\n"
#: What a deposit has when nothing was asked for.
PLAIN: dict[str, Any] = {"sender": None, "name": "", "notify": "", "ret": "", "envid": "", "as_is": False}


class Outcome(SimpleNamespace):
    """``status``, ``out``, ``err``, and ``kept``: the deposit, or None."""

    status: int
    out: str
    err: str
    kept: Deposit | None


Call = Callable[..., Outcome]


@pytest.fixture
def sendmail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    folder = tmp_path / "drop"
    folder.mkdir()
    folder.chmod(0o3777)
    home = tmp_path / "home" / "outmail"
    home.mkdir(parents=True)
    (home / "config.toml").write_text(
        f'store = "{tmp_path}/q.db"\nrelay = "null:"\n'
        f'[accept]\norigin = "x.test"\naliases = "{tmp_path}/aliases"\n'
    )
    for name in [name for name in os.environ if name.startswith("OUTMAIL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OUTMAIL_DROP", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def call(*words: str, given: bytes = MESSAGE, name: str = "sendmail") -> Outcome:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=BytesIO(given)))
        status = unix.main(name, list(words))
        out, err = capsys.readouterr()
        left = [path.read_bytes() for path in folder.iterdir()]
        for path in folder.iterdir():
            path.unlink()
        assert len(left) <= 1
        return Outcome(status=status, out=out, err=err, kept=unpacked(left[0]) if left else None)

    return call


#: Words, and what is not as in a plain call with the recipient a@x.test.
KEPT: list[tuple[str, dict[str, Any]]] = [
    ("a@x.test", {}),
    # -t: joined with the command line
    ("-t a@x.test", {"recipients": ["a@x.test", "h@x.test"]}),
    ("-t", {"recipients": ["h@x.test"]}),
    ("-ti", {"recipients": ["h@x.test"]}),
    ("-i a@x.test", {}),
    ("-oi a@x.test", {}),
    ("-f me@x.test a@x.test", {"sender": "me@x.test"}),
    ("-fme@x.test a@x.test", {"sender": "me@x.test"}),
    ("-r me@x.test a@x.test", {"sender": "me@x.test"}),
    ("-rme@x.test a@x.test", {"sender": "me@x.test"}),
    ("-f <> a@x.test", {"sender": ""}),
    ("-F Name a@x.test", {"name": "Name"}),
    ("-FName a@x.test", {"name": "Name"}),
    ("-bm a@x.test", {}),
    ("-bq a@x.test", {}),
    *[(f"-od{mode} a@x.test", {}) for mode in ("b", "i", "f", "q", "qs")],
    *[(f"-B {body} a@x.test", {}) for body in ("7BIT", "8BITMIME", "odd")],
    ("-B8BITMIME a@x.test", {}),
    ("-N never a@x.test", {"notify": "never"}),
    ("-Nsuccess,failure,delay a@x.test", {"notify": "success,failure,delay"}),
    ("-R full a@x.test", {"ret": "full"}),
    ("-Rhdrs a@x.test", {"ret": "hdrs"}),
    ("-V envid a@x.test", {"envid": "envid"}),
    *[(f"-oe{mode} a@x.test", {}) for mode in "mpqwe"],
    *[(f"-e{mode} a@x.test", {}) for mode in ("m", "p", "q", "w", "e", "")],
    ("-O k=v a@x.test", {}),
    ("-om -o7 -o8 -oAaliases -oQ/queue a@x.test", {}),
    ("-Am a@x.test", {}),
    ("-Ac a@x.test", {}),
    ("-S a@x.test", {}),
    ("-d0.1 a@x.test", {}),
    ("-d a@x.test", {}),
    ("-D a@x.test", {}),
    ("-G a@x.test", {"as_is": True}),
    ("-h 5 a@x.test", {}),
    ("-h5 a@x.test", {}),
    ("-L tag a@x.test", {}),
    ("-m a@x.test", {}),
    ("-n a@x.test", {}),
    ("-U a@x.test", {}),
    ("-p SMTP:host a@x.test", {}),
    ("-c a@x.test", {}),
    ("-x a@x.test", {}),
    ("-E a@x.test", {}),
    ("-J a@x.test", {}),
    ("-T a@x.test", {}),
    ("-s a@x.test", {}),
    ("-X log a@x.test", {}),
    ("-XV a@x.test", {}),
    ("-Z a@x.test", {}),
    ("-9 a@x.test", {}),
    ("--unknown a@x.test", {}),
    ("-- a@x.test", {}),
    ("-i -- -odd@x.test", {"recipients": ["-odd@x.test"]}),
    # real callers: cronie, Debian's cron, ISC cron, PHP, PHPMailer, git
    ("-FCronDaemon -i -odi -oem -oi -t -f root",
     {"name": "CronDaemon", "sender": "root", "recipients": ["h@x.test"]}),
    ("-i -FCronDaemon -B8BITMIME -oem root", {"name": "CronDaemon", "recipients": ["root"]}),
    ("-FCronDaemon -odi -oem -oi -t", {"name": "CronDaemon", "recipients": ["h@x.test"]}),
    ("-t -i", {"recipients": ["h@x.test"]}),
    ("-oi -fme@x.test -t", {"sender": "me@x.test", "recipients": ["h@x.test"]}),
    ("-i -f s@x.test a@x.test b@x.test", {"sender": "s@x.test", "recipients": ["a@x.test", "b@x.test"]}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "differs"), KEPT, ids=[words for words, _ in KEPT])
def test_the_message_is_kept_and_nothing_is_said(sendmail: Call, words: str, differs: dict[str, Any]) -> None:
    done = sendmail(*words.split())
    assert (done.status, done.out, done.err) == (0, "", "")
    assert done.kept is not None and done.kept.content == MESSAGE
    wanted = {**PLAIN, "recipients": ["a@x.test"], **differs}
    assert {name: getattr(done.kept, name) for name in wanted} == wanted


def test_there_is_a_row_for_every_letter() -> None:
    rows = " ".join([words for words, _ in KEPT] + [words for words, *_ in SAID])
    letters = {word[1] for word in rows.split() if word[0] == "-" and len(word) > 1}
    known = {
        name[1]
        for names, _ in flag_help.SENDMAIL
        for name in names.replace(",", "").split()
        if name[0] == "-"
    }
    assert not known - letters - {"-", "v"}  # -v has a test of its own


def test_an_empty_word_is_the_null_sender(sendmail: Call) -> None:
    done = sendmail("-f", "", "a@x.test")
    assert done.kept is not None and done.kept.sender == ""


#: Words, status, and what is said.
SAID = [
    ("-bp", 0, "Mail queue is empty\n"),
    ("-bv root a@y.test", 0, "root -> root@x.test by default\na@y.test -> a@y.test by default\n"),
    ("-bi", 0, "does not exist: no name is aliased"),
    ("-I", 0, "does not exist: no name is aliased"),
    ("-q", 0, ""),
    ("-q15m", 0, ""),
    ("-qIabcdef", 0, ""),
    ("-qRx.test", 0, ""),
    ("-qSme", 0, ""),
    ("-bd", 64, "outmail run"),
    ("-bl", 64, "outmail run"),
    ("-bh", 64, "outmail why"),
    ("-bH", 64, "outmail why"),
    ("-bt", 64, "outmail why"),
    ("-P", 64, "outmail config"),
    ("-bv -t", 64, "-bv verifies addresses"),
    ("-bv -N never a@x.test", 64, "-bv verifies addresses"),
    ("-N sometimes a@x.test", 64, "it is never, or"),
    ("-R some a@x.test", 64, "it is full or hdrs"),
    ("-f", 64, "-f needs a value"),
    ("", 64, "no recipient"),
    ("-i", 64, "no recipient"),
    ("-C /nonexistent/file a@x.test", 78, "/nonexistent/file"),
    ("-a nobody a@x.test", 78, "no relay is named 'nobody'"),
    ("a@@x.test", 65, "a@@x.test"),
    ("-f b@@x.test a@x.test", 65, "b@@x.test"),
]


@pytest.mark.parametrize(("words", "status", "says"), SAID, ids=[words for words, *_ in SAID])
def test_what_is_no_message_is_answered(sendmail: Call, words: str, status: int, says: str) -> None:
    done = sendmail(*words.split())
    assert done.status == status and done.kept is None
    assert says in (done.err if status else done.out) and not (done.out if status else done.err)
    assert not status or done.err.count("\n") == 1


def test_mailq_knows_what_the_service_has_not_taken_yet(sendmail: Call, tmp_path: Path) -> None:
    """Nobody must be told that the queue is empty because the service is down."""
    name = dropbox.put(str(tmp_path / "drop"), Deposit(MESSAGE, ["a@x.test"], user="me").packed())
    id = keyed_id(dropbox.key_of(os.geteuid(), name))
    head, message, why, _, last = sendmail("-bp").out.splitlines()
    assert head.startswith("-Queue ID-") and message.startswith(f"{id} ")
    assert "not taken it yet" in why and last == "-- 1 Kbytes in 1 Request."
    sendmail("--store", "q.db", "a@x.test")
    with Outbox("q.db", config=from_toml("", "test", {}), deliver="never") as box:
        [status] = box.find()
        seen = list(mailq.listed(box.queue, [mailq.Left(status.id, 9, 0, "me")]))  # it is taken meanwhile
    assert len(seen) == 3 and seen[-1].endswith("in 1 Request.\n")


def test_a_name_that_nobody_here_has(sendmail: Call, tmp_path: Path) -> None:
    (tmp_path / "aliases").write_text("Ops: root\n")
    assert sendmail("-bv", "root", "OPS", "ops+tag", "nobody-here@x.test").status == 0
    done = sendmail("-bv", "nobody-here", "root")
    assert (
        done.status == 67
        and done.err == "sendmail: nobody-here: no user and no alias of this machine has this name\n"
    )
    assert (
        done.out.splitlines()[0] == "nobody-here -> nobody-here@x.test by default"
        and "\nroot -> " in done.out
    )
    assert sendmail("nobody-here").status == 0  # its mail goes to the origin


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("J\udcf6rg M", "J\xf6rg M"),
        ("J\xf6rg", "J\xf6rg"),
        ("a\nBcc: b@x.test", "a Bcc: b@x.test"),
        ("\x1b", ""),
    ],
)
def test_no_mail_fails_for_the_authors_name(sendmail: Call, name: str, written: str) -> None:
    done = sendmail("-F", name, "-f", "me@x.test", "a@x.test")
    assert done.status == 0 and done.kept is not None
    draft = local.draft(done.kept, local.Here("h.x.test", "x.test"), uid=0, now=1_800_000_000_000, most=9)
    found = message_from_bytes(draft.content, policy=default)
    assert found["From"].addresses[0].display_name == written and found["Bcc"] is None


def test_called_by_other_names(sendmail: Call) -> None:
    assert sendmail(name="mailq").out == "Mail queue is empty\n"
    assert "no name is aliased" in sendmail(name="newaliases").out


def test_verbose_says_the_id_and_what_changes_nothing(sendmail: Call) -> None:
    done = sendmail("-v", "-Z", "-odi", "-XV+=", "-t", "a@x.test")
    assert done.status == 0 and done.kept is not None
    ignored, odi, verp, joined, kept = done.err.splitlines()
    assert ignored == "sendmail: ignored: -Z" and "not waited for" in odi and "VERP" in verp
    assert "recipients too" in joined and kept.split()[1].isalnum() and len(kept.split()[1]) == 26
    assert list(Path().glob("V*")) == []


def test_a_person_is_told_that_recipients_are_joined(sendmail: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exim takes those of the command line away. A program hears nothing: its output may be mailed."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "are recipients too" in sendmail("-t", "a@x.test").err
    assert sendmail("-t").err == sendmail("a@x.test").err == ""


def test_traffic_is_written_down(sendmail: Call) -> None:
    log = Path("log")
    done = sendmail("-X", "log", "-t", given=b"To: h@x.test\r\n\r\ntext")
    assert (done.status, done.out, done.err) == (0, "", "") and done.kept is not None
    sendmail("-Xlog", "a@@x.test")
    *came, fate, second, third, _, last = [line[6:] for line in log.read_text().splitlines()]
    assert came == ["<<< To: h@x.test", "<<< ", "<<< text"] and " is on disk, in " in fate
    assert (second, third, last) == ("<<< To: h@x.test", "<<< Subject: s", "<<< text")
    assert log.stat().st_mode & 0o777 == 0o600


def test_traffic_that_cannot_be_written_down_stops_no_mail(sendmail: Call, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in ("missing/log", "pipe"):
        done = sendmail("-X", file, "a@x.test")
        assert done.status == 0 and done.kept is not None
        assert done.err.startswith(f"sendmail: -X: {file}: ") and done.err.count("\n") == 1


def test_traffic_is_no_program_and_goes_into_no_other_file(sendmail: Call, tmp_path: Path) -> None:
    """A stranger may have got ``-X`` into the arguments (CVE-2016-10033)."""
    sendmail("-X", "new.php", "a@x.test", given=b"Subject: <?php x(); ?>\n\n<% y %><!--#exec z--><?= <b>\n")
    text = Path("new.php").read_text()
    assert "< ?php" in text and "<b>" in text
    assert not any(word in text for word in ("<?", "<%", "<!"))
    Path("page").write_text("mine\n")
    Path("open").write_text("12345 <<< mine\n")
    Path("link").symlink_to("target")
    Path("twin").write_text("12345 <<< mine\n")
    os.chmod("twin", 0o600)
    os.link("twin", "twin2")
    Path("empty").touch(0o666)
    os.chmod("empty", 0o666)
    for file in ("page", "open", "link", "twin", "empty", ".bash_profile"):
        done = sendmail("-X", file, "a@x.test")
        assert done.status == 0 and done.kept is not None
        assert done.err.startswith(f"sendmail: -X: {file}: ") and done.err.count("\n") == 1
    assert Path("page").read_text() == "mine\n" and Path("empty").read_text() == ""
    assert not Path("target").exists() and not Path(".bash_profile").exists()
    assert Path("open").read_text() == Path("twin").read_text() == "12345 <<< mine\n"


def test_a_line_that_nobody_can_be_told_changes_no_status(sendmail: Call, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "outmail", "sendmail", "-v", "-X", "none/x", "--store", "q.db", "a@x.test"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(words, cwd=tmp_path, env=env, stderr=full, input=b"Subject: s\n\n", timeout=60)
    assert done.returncode == 0


def test_traffic_of_a_session_and_of_a_run(tmp_path: Path) -> None:
    """Also the dialogues of what was sent."""
    log, given = tmp_path / "log", b"MAIL FROM:<me@x.test>\r\nRCPT TO:<a@x.test>\r\nDATA\r\n\r\n.\r\nQUIT\r\n"
    with Sink() as sink:
        env = {name: value for name, value in os.environ.items() if not name.startswith("OUTMAIL_")}
        env |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "OUTMAIL_RELAY": sink.url}
        for mode in ("-bs", "-q"):
            words = [sys.executable, "-m", "outmail", "sendmail", mode, "-X", "log", "--store", "q.db"]
            done = subprocess.run(
                words, cwd=tmp_path, env=env, input=b"EHLO x\r\n" + given, capture_output=True, timeout=60
            )
            assert done.returncode == 0, done.stderr
        assert len(sink.messages) == 1
    lines = [line[6:] for line in log.read_text().splitlines()]
    assert lines.index("<<< EHLO x") < lines.index(">>> 221 2.0.0 Bye") < lines.index("<<< 354 go ahead")
    assert [line[:23] for line in lines].count(">>> MAIL FROM:<me@x.tes") == 1


# -- what comes on stdin -------------------------------------------------------------------------------------

BIG = b"Subject: s\n\n" + b"x" * 76 + b"\n"
LONG = b"x" * 100_000
#: Input, and the text that is sent; a str is the reason for 65. A header that is there is "Subject: s".
INPUT: dict[str, tuple[bytes, bytes | str]] = {
    "no header": (b"just\ntext\n", b"just\r\ntext\r\n"),
    "one line that is no field": (b"no colon here", b"no colon here\r\n"),
    "an empty line first": (b"\ntext: not a field\n", b"text: not a field\r\n"),
    "nothing": (b"", b""),
    "one line end": (b"\n", b""),
    "a header alone": (b"Subject: s", b""),
    "the line of a mailbox": (b"From a@b Mon Jan  1\nSubject: s\n\nFrom here\n", b"From here\r\n"),
    "8-bit": ("Subject: s\nX: Grüße\n\nä\n".encode(), "ä\r\n".encode()),
    "8-bit that is no UTF-8": (b"Subject: s\n\n\xe4\xff\n", b"\xe4\xff\r\n"),
    "no line end at the end": (b"Subject: s\n\ntext", b"text\r\n"),
    "CRLF": (b"Subject: s\r\n\r\ntext\r\n", b"text\r\n"),
    "LF and CRLF": (b"Subject: s\n\r\na\r\nb\n", b"a\r\nb\r\n"),
    "dots": (b"Subject: s\n\n.\n..\n.\r\n.x\n", b".\r\n..\r\n.\r\n.x\r\n"),
    "a long line": (b"Subject: s\n\n" + LONG, LONG + b"\r\n"),
    "ten million bytes": (BIG + LONG * 100, b"x" * 76 + b"\r\n" + LONG * 100 + b"\r\n"),
    "a NUL": (b"Subject: s\n\na\0b\n", "NUL byte"),
    "a carriage return inside a line": (b"Subject: s\n\na\rb\n", b"a\r\nb\r\n"),
    "a carriage return at the end": (b"Subject: s\n\na\r", b"a\r\n"),
    "two carriage returns in a line end": (b"Subject: s\r\r\n\r\r\na\r\r\n", b"a\r\n"),
    "a hundred million bytes": (BIG + LONG * 1000, "the limit is 50000000"),
}


@pytest.mark.parametrize("what", INPUT)
def test_input_is_sent_faithfully_or_refused_with_a_sentence(
    sendmail: Call, what: str, tmp_path: Path
) -> None:
    given, becomes = INPUT[what]
    done = sendmail("-i", "-f", "me@x.test", "a@x.test", given=given)
    if isinstance(becomes, str):
        assert done.status == 65 and done.kept is None
        assert becomes in done.err and done.err.count("\n") == 1 and done.err.endswith("\n")
        return
    assert done.status == 0 and done.kept is not None
    draft = local.draft(done.kept, local.Here("h.x.test", "x.test"), uid=0, now=1_800_000_000_000, most=9)
    with Outbox(tmp_path / "sent.db", config=from_toml("", "test", {}), deliver="never") as box:
        [receipt] = box.door.accept([draft])
        head, _, text = box.content(receipt.id).partition(b"\r\n\r\n")
    assert text == becomes and b"\r\nFrom: me@x.test" in head
    assert (b"Subject: s" in given) is (b"\r\nSubject: s" in head)
