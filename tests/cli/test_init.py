"""`outmail init` as a person uses it at a terminal, against a server with STARTTLS and passwords."""

from __future__ import annotations

import os
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword

from outmail.policy.setup import Step
from outmail.testing import Sink
from outmail.unix.setup import Doer
from tests.cli.conftest import Command, Done
from tests.pgserver import free_port
from tests.terminals import Terminal

OUTMAIL = [sys.executable, "-m", "outmail"]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def relay(authority: trustme.CA, tmp_path: Path) -> Iterator[Sink]:
    """A submission server; its authority is in ca.pem."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    with Sink(tls=context, users={"me@x.test": "geheim", "other": "geheim"}) as sink:
        yield sink


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without XDG folders elsewhere."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    return folder


Call = Callable[..., Done]


@pytest.fixture
def call(home: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call outmail without a terminal; ``password``: $OUTMAIL_PASSWORD."""

    def run(*words: str, given: str = "", password: str = "") -> Done:
        monkeypatch.setenv("OUTMAIL_PASSWORD", password)
        return command(*words, stdin=given.encode())

    return run


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file and folder: mode and content."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


def at(relay: Sink, user: str = "") -> list[str]:
    return ["--relay", f"smtp://{user}localhost:{relay.port}", "--ca", "ca.pem", "--service", "none"]


def test_a_relay_is_set_up_used_and_taken_back_in_one_go(relay: Sink, home: Path, call: Call) -> None:
    before = tree(home)
    with Terminal([*OUTMAIL, "init", "--user", *at(relay)], str(home.parent)) as person:
        person.answer("Your e-mail address:", "nobody")
        person.expect("'nobody'")
        person.answer("Your e-mail address:", "me@x.test")
        person.answer("User name at this server", "me@x.test")
        person.answer("Password for me@x.test", "falsch")
        person.answer("Test it, and do this? [Y/n]", "")
        person.expect("FAILED AUTH")
        person.expect("User name or password is wrong")
        person.answer("Password for me@x.test, again", "geheim")
        person.expect("accepted by the relay")
        person.expect("outmail is set up")
        assert person.end() == 0
    assert "geheim" not in person.seen and "falsch" not in person.seen
    assert [message.user for message in relay.messages] == ["me@x.test"] and relay.messages[0].encrypted
    config = home / ".config/outmail/config.toml"
    assert 'password_file = "password"' in config.read_text() and "geheim" not in config.read_text()
    assert {stat.S_IMODE(path.stat().st_mode) for path in config.parent.iterdir()} == {0o600}

    sent = call("send", "--wait", "20", "-s", "hello", "you@x.test", given="It works.\n")
    assert sent.status == 0, sent.err
    assert relay.messages[1].sender == "me@x.test" and relay.messages[1].recipients == ("you@x.test",)

    with Terminal([*OUTMAIL, "init", "--user", "--undo"], str(home.parent)) as person:
        person.answer("Take back what outmail init did? [Y/n]", "y")
        person.expect("1 delivered")
        assert person.end() == 0
    assert tree(home) == before


def test_a_wrong_password_is_explained_and_leaves_nothing(relay: Sink, home: Path, call: Call) -> None:
    words = [
        "init",
        "--user",
        "--yes",
        "--email",
        "me@x.test",
        "--password-stdin",
        *at(relay, "me%40x.test@"),
    ]
    done = call(*words, given="falsch\n")
    assert done.status == 75 and not tree(home) and not relay.messages
    assert "FAILED AUTH" in done.err and "password for applications" in done.err
    assert "nothing was changed" in done.err and "falsch" not in done.err


def test_mail_that_waits_is_named_and_stays_until_it_may_go(relay: Sink, home: Path, call: Call) -> None:
    before = tree(home)
    words = ["init", "--user", "--yes", "--email", "me@x.test", *at(relay, "other@")]
    assert call(*words, password="geheim").status == 0
    assert call("send", "you@x.test", given="waits").status == 0
    done = call("init", "--user", "--undo", "--yes")
    assert done.status == 0 and "not delivered: 1 queued" in done.err and "--delete-mail" in done.err
    assert (home / ".local/share/outmail/queue.db").exists() and not (
        home / ".config/outmail/password"
    ).exists()
    done = call("init", "--user", "--undo", "--yes", "--delete-mail")
    assert done.status == 0 and "removed the queue" in done.err and tree(home) == before
    done = call("init", "--user", "--undo", "--yes")
    assert done.status == 0 and "nothing was set up here" in done.err


def test_what_was_there_comes_back_and_what_was_changed_stays(relay: Sink, home: Path, call: Call) -> None:
    folder = home / ".config/outmail"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('relay = "null:"\n')
    before = tree(home)
    words = ["init", "--user", "--yes", "--no-test", "--email", "me@x.test", *at(relay)]
    done = call(*words, "--login", "other", password="geheim")
    assert done.status == 0 and "what was there is" in done.err
    assert (folder / "config.toml.before-init").read_text() == 'relay = "null:"\n'
    assert call(*words, "--login", "me@x.test", password="geheim").status == 0
    assert call("init", "--user", "--undo", "--yes").status == 0
    assert tree(home) == before

    assert call(*words, password="").status == 0
    with open(folder / "config.toml", "a") as file:
        file.write("# mine\n")
    done = call("init", "--user", "--undo", "--yes")
    assert done.status == 0 and "was changed since" in done.err
    assert (folder / "config.toml").read_text().endswith("# mine\n")
    assert sorted(path.name for path in folder.iterdir()) == ["config.toml", "config.toml.before-init"]


def test_ctrl_c_half_way_leaves_nothing(relay: Sink, home: Path) -> None:
    with Terminal([*OUTMAIL, "init", "--user", *at(relay)], str(home.parent)) as person:
        person.answer("Your e-mail address:", "me@x.test")
        person.answer("User name", "me@x.test")
        person.expect("Password for me@x.test")
        person.type("\x03", end="")
        person.expect("Nothing was changed.")
        assert person.end() == 130
    assert not tree(home)


def test_ctrl_d_ends_it_too(home: Path) -> None:
    with Terminal([*OUTMAIL, "init", "--user"], str(home.parent)) as person:
        person.expect("Your e-mail address:")
        person.type("\x04", end="")
        assert person.end() == 130
    assert not tree(home)


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ([], 64, "--email is missing, and there is no terminal"),
        (["--yes"], 64, "--email is missing, and with --yes nothing is asked"),
        (["--email", "me"], 65, "'me'"),
        (["--email", "a b@x.test"], 65, "a b"),
        (
            ["--email", "me@gmail.com"],
            64,
            "--password-file, --password-stdin or $OUTMAIL_PASSWORD is missing",
        ),
        (["--email", "me@x.test", "--provider", "nobody"], 64, "'nobody'"),
        (["--email", "me@x.test", "--provider", "ses"], 64, "ses:eu-central-1"),
        (["--email", "me@x.test", "--provider", "postmark", "--yes"], 64, "--login is missing"),
        (["--email", "me@x.test", "--relay", "smtps://me:geheim@x.test"], 64, "no password in the URL"),
        (["--email", "me@x.test", "--relay", "smtp+plain://x.test"], 64, "smtps://HOST"),
        (["--email", "me@x.test", "--relay", "http://x.test"], 64, "is not a relay"),
        (["--email", "me@gmail.com", "--password-file", "/nowhere"], 65, "/nowhere"),
        (["--email", "me@gmail.com", "--password-file", "empty"], 65, "password is empty"),
        (["--sendmail", "--email", "me@x.test", "--relay", "smtp://h", "--yes"], 64, "--system"),
        (["--email", "me@x.test", "--no-lookup", "--yes"], 64, "--relay is missing"),
    ],
)
def test_bad_input_is_a_sentence_and_a_status(
    home: Path, call: Call, words: list[str], status: int, says: str
) -> None:
    (home.parent / "empty").write_text("")
    done = call("init", "--user", *words)
    assert done.status == status and says in done.err, done.err
    assert "Traceback" not in done.err and "geheim" not in done.err and not tree(home)


def test_dry_run_shows_and_does_nothing(relay: Sink, home: Path, call: Call) -> None:
    words = ["init", "--user", "--dry-run", "--email", "me@x.test", *at(relay, "other@")]
    assert call(*words).status == 0
    done = call(*words, password="geheim")
    assert done.status == 0 and "2. write " in done.err and 'from = "me@x.test"' in done.err
    assert "geheim" not in done.err + done.out and not tree(home) and not relay.connections


def test_a_folder_that_cannot_be_made_says_how_to_go_on(relay: Sink, home: Path, call: Call) -> None:
    (home / ".config").write_text("a file")
    before = tree(home)
    words = ["init", "--user", "--yes", "--no-test", "--email", "me@x.test", *at(relay)]
    done = call(*words)
    assert done.status in (70, 77) and ".config" in done.err and "init --undo" in done.err
    assert call("init", "--user", "--undo", "--yes").status == 0 and tree(home) == before


def test_a_configuration_elsewhere_is_named_in_what_is_called(relay: Sink, home: Path, call: Call) -> None:
    place = home / "my mail" / "outmail.toml"
    words = [
        "init",
        "--user",
        "--yes",
        "--no-test",
        "--email",
        "me@x.test",
        *at(relay),
        "--config",
        str(place),
    ]
    assert call(*words).status == 0 and place.exists()
    assert call("config", "--config", str(place)).status == 0
    assert call("init", "--user", "--undo", "--yes", "--config", str(place)).status == 0 and not tree(home)


def test_a_whole_machine_in_a_root_file_system_of_its_own(
    relay: Sink, home: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outmail.unix.setup.closed_to_others", lambda *_: "")  # the tests' own may be so
    monkeypatch.setattr("outmail.unix.setup.written_by_others", lambda: "")
    root = home / "root"
    for folder in ("etc/cron.d", "usr/sbin", "usr/bin"):
        (root / folder).mkdir(parents=True)
    (root / "etc/passwd").write_text(f"outmail:x:{os.getuid()}:{os.getgid()}::/:/bin/false\n")
    (root / "etc/group").write_text(f"outmail:x:{os.getgid()}:\n")
    (root / "usr/sbin/sendmail").write_text("another MTA")
    (root / "usr/bin/mailq").symlink_to("../sbin/sendmail")
    before = tree(root)
    words = ["--root", str(root), "--yes"]
    where = ["--relay", f"smtp://me%40x.test@localhost:{relay.port}", "--ca", "ca.pem"]
    done = call(
        "init", *words, "--email", "me@x.test", *where, "--service", "cron", "--sendmail", password="geheim"
    )
    assert done.status == 0 and len(relay.messages) == 1, done.err
    assert (root / "etc/aliases").read_text() == "root: me@x.test\n"
    assert "outmail run --once" in (root / "etc/cron.d/outmail").read_text().replace("-m outmail", "outmail")
    assert stat.S_IMODE((root / "etc/outmail/password").stat().st_mode) == 0o640

    drop = root / "var/spool/outmail/drop"
    sent = subprocess.run(
        [root / "usr/sbin/sendmail", "-t", "-i"],
        input=b"To: you@x.test\n\nhello\n",
        env={"OUTMAIL_DROP": str(drop)},
        timeout=60,
        check=False,
    )
    assert sent.returncode == 0 and len(list(drop.iterdir())) == 1
    done = call("init", *words, "--undo")
    assert done.status == 0 and "MAIL: 1 message" in done.err and len(list(drop.iterdir())) == 1
    done = call("init", *words, "--undo", "--delete-mail")
    assert done.status == 0 and tree(root) == before, done.err


def test_ctrl_c_between_the_steps_says_how_to_go_on_and_back(
    relay: Sink, home: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["init", "--user", "--yes", "--no-test", "--email", "me@x.test", *at(relay, "other@")]
    done_by = Doer.do

    def interrupted(doer: Doer, step: Step) -> str:
        if "configuration" in step.told:
            raise KeyboardInterrupt
        return done_by(doer, step)

    with monkeypatch.context() as patch:
        patch.setattr(Doer, "do", interrupted)
        done = call(*words, password="geheim")
    assert done.status == 130 and "To go on: outmail init" in done.err and "init --undo --user" in done.err
    assert (home / ".config/outmail/password").exists()
    done = call(*words, password="geheim")
    assert done.status == 0 and "It was set up before" in done.err
    assert call("init", "--undo", "--user", "--yes").status == 0 and not tree(home)


def test_another_kind_of_server_is_set_up_too(
    authority: trustme.CA, home: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiosmtpd, with STARTTLS and passwords: written by others."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(home.parent / "ca.pem")

    def known(
        server: object, session: object, envelope: object, mechanism: str, login: LoginPassword
    ) -> AuthResult:
        right = (login.login, login.password) == (b"me@x.test", b"geheim")
        return AuthResult(success=right, handled=False)

    class Box:
        async def handle_DATA(self, server: object, session: object, envelope: Envelope) -> str:
            taken.append(envelope)
            return "250 2.0.0 Ok: queued as 4711"

    taken: list[Envelope] = []
    port = free_port()
    server = Controller(
        Box(),
        "127.0.0.1",
        port,
        tls_context=context,
        require_starttls=True,
        auth_required=True,
        authenticator=known,
    )
    server.start()
    try:
        words = ["init", "--user", "--yes", "--email", "me@x.test", "--ca", "ca.pem", "--service", "none"]
        words += ["--relay", f"smtp://me%40x.test@localhost:{port}"]
        done = call(*words, password="falsch")
        assert done.status != 0 and "password" in done.err and not tree(home)
        done = call(*words, password="geheim")
        assert done.status == 0 and "queue id there is 4711" in done.err, done.err
        assert [envelope.rcpt_tos for envelope in taken] == [["me@x.test"]]
    finally:
        server.stop()


def test_a_login_or_password_that_is_not_utf_8_is_a_sentence(
    home: Path, call: Call, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "init",
        "--user",
        "--yes",
        "--no-test",
        "--no-lookup",
        "--service",
        "none",
        "--email",
        "me@x.test",
    ]
    words += ["--relay", "smtps://mx.x.test"]
    before = tree(home)
    for done in (
        call(*words, "--login", "u\udcff", password="p"),
        call(*words, "--login", "u", password="p\udcff"),
        command(*words, "--login", "u", "--password-stdin", stdin=b"\xff\xfe\n"),
    ):
        assert done.status == 65 and "is not UTF-8" in done.err and "Traceback" not in done.err
    assert tree(home) == before


def test_a_dry_run_asks_for_no_password(home: Path) -> None:
    words = ["--user", "--dry-run", "--service", "none", "--email", "me@x.test"]
    with Terminal([*OUTMAIL, "init", *words, "--relay", "smtps://u@mx.x.test"], str(home.parent)) as person:
        person.expect("password_file")
        assert person.end() == 0
    assert "Password" not in person.seen and not tree(home)
