"""Programs that call sendmail, as they are: each believes that outmail is the machine's sendmail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from outmail.outbox.outbox import Outbox
from tests import programs


class Machine:
    """A folder with a program ``sendmail`` that is ours, and the queue it fills."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "q.db"
        config = folder / "outmail.toml"
        config.write_text(
            f'store = "{self.store}"\n[accept]\norigin = "x.test"\naliases = "{folder}/aliases"\n'
        )
        self.sendmail = folder / "sendmail"
        self.sendmail.write_text(
            f'#!/bin/sh\nOUTMAIL_CONFIG={config} exec {sys.executable} -m outmail sendmail "$@"\n'
        )
        self.sendmail.chmod(0o755)

    def run(self, words: Sequence[str], given: str = "", **env: str) -> str:
        done = subprocess.run(
            words,
            input=given.encode(),
            capture_output=True,
            cwd=self.folder,
            env={**os.environ, "HOME": str(self.folder), "OUTMAIL_DROP": "", **env},
            timeout=60,
        )
        said = (done.stdout + done.stderr).decode()
        assert done.returncode == 0, said
        return said

    def only(self) -> tuple[Any, str]:
        """The one message: where it stands, and its bytes."""
        with Outbox(self.store, deliver="never") as box:
            [status] = box.find()
            return status, box.content(status.id).decode()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def people(status: Any) -> list[str]:
    return [r.address for r in status.recipients]


@programs.needs("php", "php-cli")
def test_php_mail(machine: Machine) -> None:
    code = (
        "exit(mail('A B <a@x.test>', 'Subject', \"one\\n.\\ntwo\", "
        "\"From: web@y.test\\r\\nBcc: b@x.test\", '-fbounce@y.test') ? 0 : 1);"
    )
    machine.run(["php", "-d", f"sendmail_path={machine.sendmail} -t -i", "-r", code])
    status, content = machine.only()
    assert (status.sender, people(status)) == ("bounce@y.test", ["a@x.test", "b@x.test"])
    assert content.endswith("\r\n\r\none\r\n.\r\ntwo\r\n") and "Bcc" not in content


@programs.needs("s-nail", "s-nail")
def test_s_nail(machine: Machine) -> None:
    words = ["s-nail", "-n", "-S", f"mta={machine.sendmail}", "-S", "sendwait", "-r", "me@y.test", "-s", "hi"]
    machine.run([*words, "-c", "c@x.test", "a@x.test"], "text\n")
    status, content = machine.only()
    assert (status.sender, status.subject) == ("me@y.test", "hi")
    assert people(status) == ["a@x.test", "c@x.test"] and content.endswith("\r\n\r\ntext\r\n")


@programs.needs("bsd-mailx", "bsd-mailx")
def test_bsd_mailx(machine: Machine) -> None:
    (machine.folder / "mailrc").write_text(f"set sendmail={machine.sendmail}\nset sendwait\n")
    machine.run(["bsd-mailx", "-n", "-s", "hi", "root"], "text\n", MAILRC=str(machine.folder / "mailrc"))
    status, content = machine.only()
    assert (status.subject, people(status)) == ("hi", ["root@x.test"])
    assert "\r\nTo: root@x.test\r\n" in content


@pytest.mark.skipif(
    not os.path.exists("/usr/share/perl5/MIME/Lite.pm"),
    reason=f"MIME::Lite is missing {programs.INSTALL}libmime-lite-perl)",
)
def test_mime_lite_of_perl(machine: Machine) -> None:
    code = (
        "use MIME::Lite; my $m = MIME::Lite->new(From => 'me@y.test', To => 'a@x.test', Bcc => 'b@x.test', "
        "Subject => 'hi', Data => \"text\\n\"); "
        f"$m->send('sendmail', '{machine.sendmail} -t -oi -oem') or die;"
    )
    machine.run(["perl", "-e", code])
    status, content = machine.only()
    assert people(status) == ["a@x.test", "b@x.test"] and "Bcc" not in content


@pytest.mark.skipif(
    not os.path.exists("/usr/lib/git-core/git-send-email"),
    reason=f"git send-email is missing {programs.INSTALL}git-email)",
)
def test_git_send_email(machine: Machine) -> None:
    who = ["-c", "user.name=Me", "-c", "user.email=me@y.test"]
    machine.run(["git", "init", "-q"])
    machine.run(["git", *who, "commit", "-q", "--allow-empty", "-m", "first"])
    (machine.folder / "file").write_text("text\n")
    machine.run(["git", "add", "file"])
    machine.run(["git", *who, "commit", "-q", "-m", "Änderung"])
    machine.run(["git", "format-patch", "-q", "-1"])
    [patch] = machine.folder.glob("*.patch")
    words = ["send-email", f"--sendmail-cmd={machine.sendmail}", "--to=a@x.test", "--cc=c@x.test", "--quiet"]
    machine.run(["git", *who, *words, "--confirm=never", patch.name])
    status, content = machine.only()
    assert set(people(status)) == {"a@x.test", "c@x.test", "me@y.test"}
    assert status.subject == "[PATCH] Änderung" and "\r\n+text\r\n" in content


def test_a_shell_script_with_mailq(machine: Machine) -> None:
    config = {"OUTMAIL_CONFIG": str(machine.folder / "outmail.toml")}
    mailq = f"{sys.executable} -m outmail mailq | tail -1"
    assert machine.run(["sh", "-c", mailq], **config) == "Mail queue is empty\n"
    machine.run([str(machine.sendmail), "a@x.test"], "text\n")
    assert machine.run(["sh", "-c", mailq], **config) == "-- 1 Kbytes in 1 Request.\n"
