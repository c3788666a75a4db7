"""One queue for several users of a machine: the service owns it, the others hand over by its socket."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outmail.config import from_toml, load
from outmail.intake.smtp import account
from outmail.testing import Sink
from tests.users import PATHS, everybodys_python, needs_root
from tests.waiting import until


class Machine:
    """A folder that every user may enter, with the shared configuration and a folder for the service."""

    def __init__(self, folder: Path, relay: str) -> None:
        self.folder = folder
        folder.chmod(0o755)
        self.daemon, self.nobody = pwd.getpwnam("daemon"), pwd.getpwnam("nobody")
        for name, user in (("service", self.daemon), ("nobody", self.nobody)):
            (folder / name).mkdir(mode=0o700)
            os.chown(folder / name, user.pw_uid, user.pw_gid)
        (folder / "root").mkdir(mode=0o700)
        (folder / "run").mkdir(mode=0o755)
        os.chown(folder / "run", self.daemon.pw_uid, self.daemon.pw_gid)
        self.socket = folder / "run" / "submit"
        self.write(relay)

    def write(self, relay: str, more: str = "") -> None:
        (self.folder / "config.toml").write_text(
            f'store = "{self.folder}/service/queue.db"\nfrom = "robot@here.test"\nrelay = "{relay}"\n'
            f'[listen]\nlmtp = ["unix:{self.socket}"]\n{more}'
        )
        (self.folder / "config.toml").chmod(0o644)

    def words(self, name: str, *words: str) -> dict[str, Any]:
        """How a user of this machine runs the command."""
        user = pwd.getpwnam(name)
        return {
            "args": [everybodys_python(), "-m", "outmail", *words],
            "env": {
                "PATH": os.environ["PATH"],
                "PYTHONPATH": PATHS,
                "PYTHONDONTWRITEBYTECODE": "1",
                "HOME": str(self.folder / ("service" if name == "daemon" else name)),
                "OUTMAIL_CONFIG": str(self.folder / "config.toml"),
            },
            "cwd": "/",
            "user": user.pw_uid,
            "group": user.pw_gid,
            "extra_groups": [],
        }

    def outmail(self, name: str, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            **self.words(name, *words), input=stdin, capture_output=True, timeout=60, check=False
        )


@pytest.fixture
def machine(sink: Sink) -> Iterator[Machine]:
    folder = Path(tempfile.mkdtemp(prefix="outmail-users-"))
    yield Machine(folder, sink.url)
    shutil.rmtree(folder)


@pytest.fixture
def service(machine: Machine) -> Iterator[subprocess.Popen[bytes]]:
    words = machine.words("daemon", "run")
    process: subprocess.Popen[bytes] = subprocess.Popen(**words, stderr=subprocess.PIPE)
    until(machine.socket.exists)
    yield process
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


@needs_root
def test_root_and_a_web_user_share_the_services_queue(
    machine: Machine, service: subprocess.Popen[bytes], sink: Sink
) -> None:
    for name in ("root", "nobody"):
        done = machine.outmail(name, "send", "-s", f"from {name}", "you@x.test", stdin=b"hello\n")
        assert done.returncode == 0 and not done.stderr, done.stderr
        id = done.stdout.decode().strip()
        shown = json.loads(machine.outmail(name, "show", id, "--json").stdout)
        assert shown["status"] == "delivered"
        assert shown["recipients"][0]["reply"]["text"].startswith("queued as ")
    done = machine.outmail("nobody", "sendmail", "-i", "you@x.test", stdin=b"Subject: s\n\nhello\n")
    assert done.returncode == 0 and not done.stderr, done.stderr
    sink.wait_for(3)
    contents = b"".join(message.content for message in sink.messages)
    assert b"(user root)" in contents and b"(user nobody)" in contents
    # nobody but the service has a hand in its store
    owners = {path.stat().st_uid for path in (machine.folder / "service").rglob("*")}
    assert owners == {machine.daemon.pw_uid}
    assert machine.outmail(
        "nobody", "queue", "list", "--store", f"{machine.folder}/service/queue.db"
    ).returncode
    told = machine.outmail("nobody", "queue", "list").stderr
    assert b"your own queue" in told


@needs_root
def test_mailq_shows_the_services_queue_where_sendmail_leaves_mail_for_it(machine: Machine) -> None:
    """Nobody is told that the queue is empty who cannot look into it."""
    drop = machine.folder / "drop"
    drop.mkdir()
    os.chown(drop, machine.daemon.pw_uid, machine.daemon.pw_gid)
    drop.chmod(0o3777)
    etc = machine.folder / "etc" / "outmail"
    etc.mkdir(parents=True)
    shutil.copy(machine.folder / "config.toml", etc)
    hold = machine.outmail("daemon", "send", "waits@x.test", "--at", "9h", stdin=b"x")
    assert hold.returncode == 0, hold.stderr

    def called(name: str, *words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        how = machine.words(name, "sendmail", *words)
        del how["env"]["OUTMAIL_CONFIG"]
        how["env"] |= {"XDG_CONFIG_HOME": str(etc.parent), "OUTMAIL_DROP": str(drop)}
        return subprocess.run(**how, input=given, capture_output=True, timeout=60, check=False)

    for name in ("root", "daemon"):
        done = called(name, "-bp")
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert b"waits@x.test" in done.stdout and done.stdout.endswith(b"in 1 Request.\n")
    id = called("nobody", "-v", "a@x.test", given=b"x").stderr.split()[1]
    done = called("root", "-bp")  # nobody has taken it yet
    assert done.stdout.endswith(b"in 2 Requests.\n") and b"has not taken it yet" in done.stdout
    assert id + b" " in done.stdout and b" nobody\n" in done.stdout
    for words in ("-bp", "-q"):
        done = called("nobody", words)
        assert (done.returncode, done.stdout) == (77, b"") and b"is closed to you" in done.stderr
    assert called("root", "-qRnobody@").returncode == 0
    owners = {path.stat().st_uid for path in (machine.folder / "service").rglob("*")}
    assert owners == {machine.daemon.pw_uid}
    told = machine.outmail("nobody", "queue", "list", "--store", f"{machine.folder}/service/queue.db")
    assert told.returncode == 77 and b"is closed to you" in told.stderr
    # The service's user puts a link to a file of root's in the queue's place.
    mine, roots = machine.folder / "mine", machine.folder / "roots"
    shutil.move(machine.folder / "service", mine)
    roots.touch(0o600)
    (mine / "queue.db").unlink()
    (mine / "queue.db").symlink_to(roots)
    (machine.folder / "service").symlink_to(mine)
    os.lchown(machine.folder / "service", machine.daemon.pw_uid, machine.daemon.pw_gid)
    for words in ("-bp", "-q"):
        done = called("root", words)
        assert done.returncode and b"is a link" in done.stderr and done.stderr.count(b"\n") == 1, done.stderr
    assert roots.read_bytes() == b""


@needs_root
def test_while_the_service_is_down_mail_waits_in_the_users_own_queue(machine: Machine, sink: Sink) -> None:
    done = machine.outmail("nobody", "send", "you@x.test", stdin=b"hello\n")
    assert done.returncode == 0 and b"waits in your own queue" in done.stderr
    words = machine.words("daemon", "run")
    process: subprocess.Popen[bytes] = subprocess.Popen(**words, stderr=subprocess.PIPE)
    until(machine.socket.exists)
    assert machine.outmail("nobody", "queue", "retry", "ALL").returncode == 0
    assert machine.outmail("nobody", "run", "--once").returncode == 0
    sink.wait_for(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


@needs_root
def test_only_listed_accounts_may_use_the_socket(machine: Machine, sink: Sink) -> None:
    machine.write(sink.url, 'accounts = ["root"]\n')
    process: subprocess.Popen[bytes] = subprocess.Popen(
        **machine.words("daemon", "run"), stderr=subprocess.PIPE
    )
    until(machine.socket.exists)
    assert machine.outmail("root", "send", "you@x.test", stdin=b"hello\n").stderr == b""
    refused = machine.outmail("nobody", "send", "you@x.test", stdin=b"hello\n")
    assert b"The user nobody may not send by this socket" in refused.stderr
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


@needs_root
def test_a_home_that_cannot_be_made_is_a_sentence_and_77(machine: Machine) -> None:
    words = machine.words("nobody", "send", "you@x.test")
    words["env"]["HOME"] = "/proc/nowhere"
    done = subprocess.run(**words, input=b"x", capture_output=True, timeout=60, check=False)
    assert done.returncode in (75, 77) and b"XDG_DATA_HOME" in done.stderr and b"Traceback" not in done.stderr


def test_the_owner_of_a_store_and_explicit_stores_go_no_detour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f'store = "{tmp_path}/q.db"\n[listen]\nlmtp = ["unix:/run/x"]\n')
    assert not load(str(path), {}).through
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr("outmail.system.trust._doubt", lambda *_: "")
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = load(str(path), {"HOME": "/home/me"})
    assert (found.through, found.store) == ("/run/x", "/home/me/.local/share/outmail/queue.db")
    assert found.routes.relays["default"].url == "lmtp:/run/x" and not found.listen.lmtp
    assert not load(str(path), {"OUTMAIL_STORE": "mine.db"}).through
    assert not load(str(path), {}, through=False).through


def test_whoever_connects_by_a_unix_socket_is_known() -> None:
    import socket

    one, other = socket.socketpair()
    with one, other, socket.socket() as line:
        assert account(one) == pwd.getpwuid(os.geteuid()).pw_name and account(line) == ""
    assert account(one) == "" and account(None) == ""


def test_the_pages_configuration_is_the_one_that_is_tried_here(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "users.md").read_text()
    sample = page.partition("```toml\n")[2].partition("```")[0]
    config = from_toml(sample, "users.md", {})
    assert config.listen.lmtp == ("unix:/run/outmail/submit",) and config.store == "/var/lib/outmail/queue.db"
