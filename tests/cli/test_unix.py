"""sendmail, mailq, newaliases and mail, called as programs call them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from outmail.outbox.outbox import Outbox
from outmail.unix.smtp import _LineEnds
from tests import starts

MESSAGE = b"To: a@x.test\nSubject: hi\n\ntext\n"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "q.db"


def call(name: str, *words: str, store: Path, given: bytes = b"", **env: str) -> Any:
    """One of the commands, with a configuration of its own and no drop folder."""
    config = store.with_name("outmail.toml")
    if not config.exists():
        config.write_text(
            f'store = "{store}"\nrelay = "null:"\n[accept]\norigin = "x.test"\naliases = "{store}.aliases"\n'
        )
    env = {**os.environ, "OUTMAIL_CONFIG": str(config), "OUTMAIL_DROP": "", **env}
    return starts.outmail((name, *words), stdin=given, cwd=Path.cwd(), env=env, timeout=60)


def only(store: Path) -> tuple[Any, str]:
    """The one message of the queue: where it stands, and its bytes."""
    with Outbox(store, deliver="never") as box:
        [status] = box.find()
        return status, box.content(status.id).decode()


def people(status: Any) -> list[str]:
    return [r.address for r in status.recipients]


def test_recipients_of_the_header_get_it_and_nobody_sees_a_bcc(store: Path) -> None:
    given = b"To: a@x.test\nCc: b@x.test\nBcc: not-seen@x.test,\n d@x.test\nSubject: s\n\ntext\n"
    assert call("sendmail", "-t", store=store, given=given).returncode == 0
    status, content = only(store)
    assert people(status) == ["a@x.test", "b@x.test", "not-seen@x.test", "d@x.test"]
    assert "\nbcc:" not in content.lower() and "not-seen@" not in content


def test_header_and_command_line_are_joined_without_doubles(store: Path) -> None:
    given = b"To: a@X.test, A@x.test\n\n"
    assert call("sendmail", "-t", "a@x.TEST", "b@x.test", store=store, given=given).returncode == 0
    assert people(only(store)[0]) == ["a@x.TEST", "b@x.test", "A@x.test"]


def test_display_names_with_commas_and_encoded_words_hide_no_address(store: Path) -> None:
    given = b'To: "Doe, Jane" <jane@x.test>, =?utf-8?q?J=C3=BCrgen=2C_x=40y?= <j@x.test>\n\n'
    assert call("sendmail", "-t", store=store, given=given).returncode == 0
    assert people(only(store)[0]) == ["jane@x.test", "j@x.test"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_of_dots_and_ends_of_all_kinds_arrive_as_one_message(store: Path, end: bytes) -> None:
    lines = [b"To: a@x.test", b"", b".", b"..", b".x", b"", b"."]
    assert call("sendmail", "-t", "-i", store=store, given=end.join(lines)).returncode == 0
    assert only(store)[1].endswith("\r\n\r\n.\r\n..\r\n.x\r\n\r\n.\r\n")


def test_without_i_a_lone_dot_ends_the_input(store: Path) -> None:
    """The program may go on holding its end of the pipe."""
    config = store.with_name("outmail.toml")
    config.write_text(f'store = "{store}"\n')
    env = {**os.environ, "OUTMAIL_CONFIG": str(config), "OUTMAIL_DROP": ""}
    words = [sys.executable, "-m", "outmail", "sendmail", "a@x.test"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, env=env) as process:
        assert process.stdin is not None
        process.stdin.write(b"one\n.\n")
        process.stdin.flush()
        assert process.wait(60) == 0
    assert only(store)[1].endswith("\r\n\r\none\r\n")


def test_cron_is_served_and_bare_names_are_qualified_in_envelope_and_header(store: Path) -> None:
    given = b"From: root (Cron Daemon)\nTo: root\nSubject: Cron <root@h> true\n\nout\n"
    words = ["-FCronDaemon", "-i", "-odi", "-oem", "-oi", "-t", "-f", "root"]
    assert call("sendmail", *words, store=store, given=given).returncode == 0
    status, content = only(store)
    assert (status.sender, people(status)) == ("root@x.test", ["root@x.test"])
    assert "\r\nFrom: root@x.test (Cron Daemon)\r\nTo: root@x.test\r\n" in content


def test_a_name_with_aliases_goes_to_them(store: Path) -> None:
    Path(f"{store}.aliases").write_text(
        "root: admin, Far <far@y.test>\n".replace("Far <far@y.test>", "far@y.test")
    )
    assert call("sendmail", "root", store=store, given=b"text").returncode == 0
    assert people(only(store)[0]) == ["admin@x.test", "far@y.test"]


def test_an_author_is_written_where_there_is_none(store: Path) -> None:
    assert (
        call(
            "sendmail", "-F", "A, Name", "-f", "me@y.test", "a@x.test", store=store, given=b"text"
        ).returncode
        == 0
    )
    status, content = only(store)
    assert status.sender == "me@y.test" and '\r\nFrom: "A, Name" <me@y.test>\r\n' in content
    assert content.endswith("\r\n\r\ntext\r\n")


def test_flags_of_old_do_no_harm_and_two_dashes_protect_addresses(store: Path) -> None:
    words = ["-Am", "-B8BITMIME", "-oem", "-om", "-O", "Timeout=5", "-L", "tag", "-Z", "--", "-odd@x.test"]
    done = call("sendmail", *words, store=store, given=MESSAGE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert people(only(store)[0]) == ["-odd@x.test"]


@pytest.mark.parametrize(
    ("words", "given", "status", "says"),
    [
        ([], b"", 64, "no recipient"),
        (["-t"], b"Subject: s\n\n", 64, "names no recipient"),
        (["not an address@@"], MESSAGE, 65, "not an address"),
        (["-t"], b"To: John Doe\n\n", 65, "John Doe"),
        (["a@x.test"], b"a: b\n\nx\0", 65, "NUL"),
        (["-f", "a b", "a@x.test"], MESSAGE, 65, "a b"),
        (["-bd"], b"", 64, "outmail run"),
        (["-C", "/nowhere.toml", "a@x.test"], MESSAGE, 78, "/nowhere.toml"),
        (["--store", "/dev/null/q.db", "a@x.test"], MESSAGE, 75, "not"),
    ],
)
def test_what_cannot_be_is_one_line_and_a_status(
    store: Path, words: list[str], given: bytes, status: int, says: str
) -> None:
    done = call("sendmail", *words, store=store, given=given)
    assert done.returncode == status and says in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1 and not store.exists()


def test_smtp_on_stdin(store: Path) -> None:
    given = (
        b"EHLO me\r\nMAIL FROM:<me@x.test>\r\nRCPT TO:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n"
        b'Subject: s\r\n\r\n..dot\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<""@@>\r\nQUIT\r\n'
    )
    done = call("sendmail", "-bs", store=store, given=given)
    codes = [line[:3] for line in done.stdout.decode().splitlines() if line[3:4] == " "]
    assert done.returncode == 0 and codes == [
        "220",
        "250",
        "250",
        "250",
        "250",
        "354",
        "250",
        "250",
        "501",
        "221",
    ]
    status, content = only(store)
    assert people(status) == ["a@x.test", "b@x.test"] and content.endswith("\r\n\r\n.dot\r\n")


def test_smtp_on_stdin_by_a_script_that_writes_line_feeds_alone(store: Path) -> None:
    given = b"EHLO x\nMAIL FROM:<me@y.test>\nRCPT TO:<a@x.test>\nDATA\nSubject: s\n\n..dot\n.\nQUIT\n"
    done = call("sendmail", "-bs", store=store, given=given)
    assert done.returncode == 0 and done.stdout.endswith(b"\r\n221 2.0.0 Bye\r\n")
    assert only(store)[1].endswith("\r\n\r\n.dot\r\n")


@pytest.mark.parametrize("given", [b"EHLO x\na\r\nb\n\r\n\n", b"EHLO x\r\na\nb\r\n.\n"])
def test_line_ends_of_a_session_do_not_depend_on_how_it_is_cut(given: bytes) -> None:
    whole = _LineEnds().complete(given)
    assert whole == (given if b"x\r\n" in given else given.replace(b"\r", b"").replace(b"\n", b"\r\n"))
    for cut in range(len(given)):
        ends = _LineEnds()
        assert ends.complete(given[:cut]) + ends.complete(given[cut:]) == whole


def test_an_empty_queue_says_so_exactly(store: Path) -> None:
    assert call("mailq", store=store).stdout == b"Mail queue is empty\n"
    call("sendmail", "a@x.test", store=store, given=MESSAGE)
    call("sendmail", "-q", store=store)
    assert call("mailq", store=store).stdout == b"Mail queue is empty\n"


def test_a_try_runs_nothing_of_the_folder_that_it_is_called_in(store: Path) -> None:
    """Root types ``sendmail -q`` in a folder of somebody else."""
    call("sendmail", "a@x.test", store=store, given=MESSAGE)
    trap = store.with_name("outmail")
    trap.mkdir()
    (trap / "__init__.py").write_text("")
    (trap / "__main__.py").write_text("print('caught')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "outmail", "sendmail", "-q"],
        capture_output=True,
        cwd=store.parent,
        env={**os.environ, "OUTMAIL_CONFIG": str(store.with_name("outmail.toml")), "OUTMAIL_DROP": ""},
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, b"")
    assert only(store)[0].status == "delivered"


def test_what_waits_is_listed_in_the_look_that_monitors_know(store: Path) -> None:
    call("sendmail", "-f", "me@x.test", "a@x.test", "b@x.test", store=store, given=b"x" * 3000)
    call("sendmail", "-f", "", "c@x.test", store=store, given=MESSAGE)
    with Outbox(store, deliver="never") as box:
        first, second = (s.id for s in box.find())
        box.hold(second)
    lines = call("sendmail", "-bp", store=store).stdout.decode().splitlines()
    assert lines[0].startswith("-Queue ID-") and lines[-1] == "-- 3 Kbytes in 2 Requests."
    assert lines[1].startswith(f"{first} ") and lines[1].endswith(" me@x.test")
    assert [line.strip() for line in lines[2:4]] == ["a@x.test", "b@x.test"]
    assert lines[5].startswith(f"{second}!") and lines[5].endswith(" MAILER-DAEMON")
    assert lines[6].strip() == "(operator)"


def test_mail_makes_a_message_of_a_text(store: Path, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("lines")
    words = ["-s", "Grüße", "-c", "c@x.test", "-b", "root", "-a", "X-Tag: y", "-A", str(tmp_path / "log.txt")]
    done = call("mail", *words, "-r", "me@y.test", "John <john>", store=store, given="Übel\n".encode())
    assert done.returncode == 0, done.stderr
    status, content = only(store)
    assert (status.subject, status.sender) == ("Grüße", "me@y.test")
    assert people(status) == ["john@x.test", "c@x.test", "root@x.test"]
    assert "X-Tag: y\r\n" in content and "log.txt" in content and "To: John <john@x.test>\r\n" in content


def test_mailx_sends_nothing_without_text_when_told_so(store: Path) -> None:
    assert call("mailx", "-E", "-s", "s", "a@x.test", store=store).returncode == 0
    assert not store.exists()


def test_mail_takes_flags_of_sendmail_behind_the_addresses(store: Path) -> None:
    assert call("mail", "-s", "s", "a@x.test", "--", "-f", "me@y.test", store=store).returncode == 0
    assert only(store)[0].sender == "me@y.test"


def test_mail_knows_long_options_too(store: Path) -> None:
    """Those of every command here, and GNU mailutils'."""
    other = store.with_name("other.db")
    words = ["--subject=s", "--cc", "c@x.test", "--store", str(other), "--relay=null:", "a@x.test"]
    assert call("mail", *words, "--", "-f", "me@y.test", store=store).returncode == 0
    status, _ = only(other)
    assert (status.subject, status.sender, people(status)) == ("s", "me@y.test", ["a@x.test", "c@x.test"])
    assert {r.route for r in status.recipients} == {"null:"}
    assert b"--subjct is no option" in call("mail", "--subjct=s", "a@x.test", store=store).stderr


@pytest.mark.parametrize("words", [[], ["-f", "mbox"], ["-s"], ["--store"], ["--odd", "a@x.test"]])
def test_mail_without_a_meaning_is_a_usage_error(store: Path, words: list[str]) -> None:
    assert call("mail", *words, store=store).returncode == 64


def test_newaliases_says_what_is_wrong(store: Path) -> None:
    assert call("newaliases", store=store).returncode == 0
    Path(f"{store}.aliases").write_text("root: a\nroot: b\n")
    done = call("newaliases", store=store)
    assert done.returncode == 78 and b"line 2" in done.stderr


def test_a_relay_that_is_our_own_sendmail_does_not_go_round_in_a_circle(store: Path, tmp_path: Path) -> None:
    program = tmp_path / "sendmail"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m outmail sendmail "$@"\n')
    program.chmod(0o755)
    assert call("sendmail", "a@x.test", store=store, given=MESSAGE).returncode == 0
    words = ["run", "--once", "--store", str(store), "--relay", f"sendmail:{program}"]
    subprocess.run([sys.executable, "-m", "outmail", *words], capture_output=True, timeout=60, check=True)
    [recipient] = only(store)[0].recipients
    assert (recipient.state, recipient.attempts) == ("queued", 1) and "circle" in recipient.reason


def test_a_relay_that_is_named_is_the_route(store: Path) -> None:
    words = ["-a", "smtp://relay.test:2525", "a@x.test"]
    assert call("sendmail", *words, store=store, given=MESSAGE).returncode == 0
    assert only(store)[0].recipients[0].route == "smtp://relay.test:2525"


def test_verifying_says_where_mail_would_go(store: Path) -> None:
    assert call("sendmail", "-bv", "root", store=store).stdout == b"root -> root@x.test by default\n"


def test_a_drop_folder_is_all_that_is_needed(store: Path, tmp_path: Path) -> None:
    """Neither a database, nor an event loop, nor `re`, nor the email package is loaded."""
    folder = tmp_path / "drop"
    folder.mkdir(mode=0o3777)
    code = (
        "import sys; from outmail.unix.main import main; "
        "status = main('sendmail', ['-t', '-i', 'c@x.test']); "
        "print(status, *sorted(set(sys.modules) & {'re', 'apsw', 'asyncio', 'email', 'dataclasses', "
        "'logging', 'collections.abc', 'outmail.store', 'outmail.config'}))"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("OUTMAIL_")}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {SRC!r}); {code}"],
        input=MESSAGE,
        capture_output=True,
        env={**env, "OUTMAIL_DROP": str(folder)},
        timeout=60,
    )
    assert done.stdout == b"0\n", (done.stdout, done.stderr)
    [name] = os.listdir(folder)
    assert b"recipient c@x.test\nrecipient a@x.test\n\nTo: a@x.test\n" in (folder / name).read_bytes()


def test_q_tries_now_what_waits_all_of_it_or_what_is_named(store: Path) -> None:
    """Without a service the process itself tries once."""
    with Outbox(store, deliver="never") as box:
        words: dict[str, Any] = {"sender": "me@x.test", "at": "2h"}
        one, *_ = [box.submit(b"A: b\r\n\r\n", recipients=f"{to}@x.test", **words).id for to in "abcd"]

    def waiting() -> str:
        with Outbox(store, deliver="never") as box:
            return "".join(r.address[0] for s in box.find("state:queued") for r in s.recipients)

    assert waiting() == "abcd"
    for flag, left in ((f"-qI{one}", "bcd"), ("-qRc@x.test", "bd"), ("-q15m", "")):
        assert call("sendmail", flag, store=store).returncode == 0
        assert waiting() == left, flag


def test_fifty_at_once_lose_nothing(tmp_path: Path) -> None:
    """By the drop folder, each a process of its own."""
    folder = tmp_path / "drop"
    folder.mkdir(mode=0o3777)
    code = f"import sys; sys.path.insert(0, {SRC!r}); from outmail.unix.main import main; "
    words = [sys.executable, "-I", "-S", "-c", f"{code}sys.exit(main('sendmail', ['-t', '-i']))"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("OUTMAIL_")}
    started = []
    for number in range(50):
        process = subprocess.Popen(words, stdin=subprocess.PIPE, env={**env, "OUTMAIL_DROP": str(folder)})
        assert process.stdin is not None
        process.stdin.write(f"To: a@x.test\nSubject: number-{number}\n\n".encode())
        process.stdin.close()
        started.append(process)
    assert [process.wait(60) for process in started] == [0] * 50
    kept = [path.read_bytes() for path in folder.iterdir()]
    found = sorted(int(data.split(b"number-")[1].split(b"\n")[0]) for data in kept)
    assert found == list(range(50))


SRC = str(Path(__file__).parents[2] / "src")


def test_a_subject_may_look_like_an_option(store: Path) -> None:
    done = call("mail", "-s", "--help", "a@x.test", store=store, given=b"alarm\n")
    assert (done.returncode, done.stdout) == (0, b"") and "Subject: --help\r\n" in only(store)[1]


def test_what_nobody_can_be_told_changes_no_status(store: Path) -> None:
    """75 is passing trouble; a program that hears 1 gives up."""
    env = {**os.environ, "OUTMAIL_CALLS": "1", "HOME": str(store.parent), "PYTHONUNBUFFERED": ""}
    words = [sys.executable, "-m", "outmail", "sendmail", "-t"]
    with open("/dev/full", "wb") as full:
        for more, status in (([], 75), (["-C", str(store.parent / "none.toml")], 78)):
            done = subprocess.run([*words, *more], env=env, input=MESSAGE, stderr=full, timeout=60)
            assert done.returncode == status
            env.pop("OUTMAIL_CALLS", None)
