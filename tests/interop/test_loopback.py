"""The round trip with Debian's Postfix between: out of a queue, and home by a pipe alias or to our own
server.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from outmail.outbox.outbox import Outbox
from tests import programs
from tests.pgserver import free_port
from tests.waiting import until

POSTFIX = programs.found("postfix")
SOURCE = Path(__file__).parents[2] / "src"
SITE = next(path for path in sys.path if path.endswith("site-packages"))
pytestmark = [programs.needs("postfix", "postfix"), programs.as_root("Postfix is started as root only")]

MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/data/log
maillog_file_prefixes = /tmp
mail_owner = postfix
myhostname = localhost
mydestination = loop.test
alias_maps = texthash:{folder}/aliases
local_recipient_maps =
recipient_delimiter = +
transport_maps = texthash:{folder}/transport
smtpd_recipient_restrictions = check_recipient_access texthash:{folder}/refused
relay_domains = home.test
virtual_mailbox_domains = example.test
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = static:box/
virtual_uid_maps = static:{nobody}
virtual_gid_maps = static:{nogroup}
virtual_minimum_uid = 1
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
"""
MASTER = """
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
error unix - - n - - error
local unix - n n - - local
smtp unix - - n - - smtp
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
proxymap unix - - n - - proxymap
postlog unix-dgram n - n - 1 postlogd
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where another user than root can look, too."""
    made = Path("/tmp") / f"outmail-loopback-{os.getpid()}"
    shutil.rmtree(made, ignore_errors=True)
    for name in ("conf", "queue", "data", "mail", "store"):
        (made / name).mkdir(parents=True)
    os.chown(made / "data", pwd.getpwnam("postfix").pw_uid, -1)
    for name in ("mail", "store"):
        shutil.chown(made / name, "nobody", "nogroup")
    yield made
    shutil.rmtree(made, ignore_errors=True)


class Postfix:
    """One that runs in a folder. ``homeward``: the port that mail for home.test goes to."""

    def __init__(self, folder: Path, command: str, homeward: int) -> None:
        self.folder, self.port = folder, free_port()
        (folder / "aliases").write_text(f'loop "|{command}"\n')
        (folder / "refused").write_text("no@example.test REJECT\n")
        (folder / "transport").write_text(f"home.test smtp:[127.0.0.1]:{homeward}\n")
        nobody = pwd.getpwnam("nobody")
        words = {"folder": folder, "nobody": nobody.pw_uid, "nogroup": nobody.pw_gid}
        (folder / "conf" / "main.cf").write_text(MAIN.format(**words))
        (folder / "conf" / "master.cf").write_text(MASTER.format(port=self.port))

    def __enter__(self) -> Postfix:
        self._control("start")
        until(self._listens, 20)
        return self

    def __exit__(self, *_: object) -> None:
        self._control("stop")

    def _control(self, word: str) -> None:
        assert POSTFIX
        words = [POSTFIX, "-c", str(self.folder / "conf"), word]
        subprocess.run(words, capture_output=True, timeout=60, check=False)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def log(self) -> str:
        return (self.folder / "data" / "log").read_text()


def python_for_nobody() -> str:
    """A Python that user nobody may start, and that has what outmail needs."""
    env = {"PYTHONPATH": f"{SOURCE}:{SITE}", "HOME": "/nonexistent"}
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            words = [python, "-c", "import outmail, apsw; apsw.Error"]
            subprocess.run(words, env=env, user="nobody", check=True, capture_output=True, timeout=60)
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip("user nobody can start no Python that has apsw")


def test_by_an_alias_that_pipes_into_the_command(folder: Path) -> None:
    python = python_for_nobody()
    script = folder / "outmail"
    script.write_text(
        f"#!/bin/sh\nexport PYTHONPATH={SOURCE}:{SITE} HOME=/nonexistent\n"
        f'exec {python} -m outmail "$@" --config {folder}/c.toml\n'
    )
    script.chmod(0o755)
    with Postfix(folder, f"{script} loopback", 1) as postfix:
        (folder / "c.toml").write_text(
            f'store = "{folder}/store/q.db"\nfrom = "me@x.test"\nrelay = "smtp://127.0.0.1:{postfix.port}"\n'
            '[loopback]\naddress = "loop@loop.test"\n'
        )

        def outmail(*words: str) -> str:
            done = subprocess.run(
                [script, *words],
                user="nobody",
                group="nogroup",
                input=b"hello",
                capture_output=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.decode()

        id = outmail("send", "-s", "s", "a@example.test", "b@example.test").strip()
        outmail("run", "--once")
        until(lambda: outmail("events").count(" seen ") == 2, 30)
        assert f"seen {id}/1 a@example.test" in outmail("events")
        stats = outmail("loopback", "stats")
        assert "1 sent in the last 7 days, 1 home" in stats and "ever: 1 home" in stats, postfix.log()


def test_by_our_own_receiving_server(folder: Path) -> None:
    homeward = free_port()
    with Postfix(folder, "false", homeward) as postfix:
        (folder / "users").write_text("postmaster: alice\n")
        (folder / "c.toml").write_text(
            f'store = "{folder}/q.db"\nfrom = "me@x.test"\nrelay = "smtp://127.0.0.1:{postfix.port}"\n'
            '[loopback]\naddress = "loop@home.test"\n'
            f'[receive]\nsmtp = ["127.0.0.1:{homeward}"]\nusers = ["alice"]\naliases = "{folder}/users"\n'
            f'mailboxes = "{folder}/mail/{{user}}/"\n'
        )
        with open(folder / "log", "wb") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", "outmail", "receive", "--config", str(folder / "c.toml")], stderr=log
            )
        try:
            with Outbox(config=str(folder / "c.toml"), deliver="never") as box:
                assert box.wait(box.send("no@example.test", "s", "t").id, 30).status == "failed"
                until(lambda: "lost connection after DATA" in postfix.log())
                id = box.send("a@example.test", "s", "t").id
                until(lambda: "seen" in [e.event for e in box.events() if e.id == id], 30)
                (copy,) = box.queue.copies(id)
                assert copy.recipients == (1,) and copy.hops and "localhost" in copy.hops[-1][0]
                until(lambda: "to=<loop+" in postfix.log())  # Postfix tells of it after it
                assert postfix.log().count("to=<loop+") == 1  # the refused mail's copy was not sent
                assert len(list(box.find())) == 2  # no copy was taken for mail
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0, (folder / "log").read_text()
