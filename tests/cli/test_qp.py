"""``qp``, called as people call it, on a directory that the real repoze.sendmail has filled."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from repoze.sendmail.queue import ConsoleApp

from outmail.compat.drain import store_of
from outmail.compat.repoze import maildir, qp
from outmail.compat.repoze.maildir import REJECTED
from outmail.outbox.outbox import Outbox
from outmail.testing import Sink
from tests.unit.compat.test_repoze import fill, left
from tests.waiting import until

ROOT = Path(__file__).parents[2]
Call = Callable[..., tuple[int, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "queue"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """call(words…) → (status, stderr). No ``etc/qp.ini`` is found."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))

    def run(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        try:
            status = qp.main([str(word) for word in words])
        except SystemExit as end:
            status = int(end.code or 0)
        told = capsys.readouterr()
        assert "geheim" not in told.out + told.err
        return status, told.err

    return run


def at(sink: Sink) -> tuple[str, str, str, str]:
    return "--hostname", "127.0.0.1", "--port", str(sink.port)


def test_the_name_is_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["qp"] == "outmail.compat.repoze.qp:main"


def test_the_directory_is_emptied_into_the_server(folder: Path, sink: Sink, call: Call) -> None:
    fill(folder, "one", "two")
    assert call(*at(sink), folder) == (0, "")
    assert [m.recipients for m in sink.messages] == [("a@x.test", "b@x.test")] * 2 and left(folder) == []
    assert sink.messages[0].sender == "me@x.test" and b"X-Actually" not in sink.messages[0].content
    assert call(*at(sink), folder) == (0, "") and len(sink.messages) == 2


def test_each_recipient_has_its_own_end(folder: Path, sink: Sink, call: Call) -> None:
    sink.script("RCPT b@*: 550 5.1.1 nobody here\nRCPT c@*: 451 4.7.1 later")
    fill(folder, "s", to=("a@x.test", "b@x.test", "c@x.test"))
    status, told = call(*at(sink), folder)
    assert status == 69 and "1 × 550 5.1.1 nobody here" in told and "the next try is due in" in told
    assert left(folder) == [] and [m.recipients for m in sink.messages] == [("a@x.test",)]
    with Outbox(store_of(str(folder)), deliver="never") as box:
        [status_now] = box.find()
        assert [r.state for r in status_now.recipients] == ["delivered", "failed", "queued"]
    assert call(*at(sink), folder)[0] == 75  # its time has not come


def test_a_server_that_is_down_is_tried_again_by_each_run(folder: Path, sink: Sink, call: Call) -> None:
    fill(folder, "s")
    status, told = call("--hostname", "127.0.0.1", "--port", "1", folder)
    assert status == 75 and "refused" in told and left(folder) == []
    assert call(*at(sink), folder) == (0, "") and len(sink.messages) == 1


def test_what_is_broken_and_what_was_rejected_is_named(folder: Path, sink: Sink, call: Call) -> None:
    [name] = fill(folder, "s")
    (folder / f"new/{REJECTED}{name}").write_bytes((folder / "new" / name).read_bytes())
    (folder / "new/half").write_bytes(b"Subject: s\n")
    status, told = call(*at(sink), folder)
    assert status == 70 and len(sink.messages) == 1
    assert "new/half has no recipient" in told and "set-aside/half" in told
    assert "1 in" in told and f"new/{REJECTED}{name}" in told and "rename it" in told
    assert left(folder) == [f"{REJECTED}{name}"]


def test_import_takes_the_mail_into_a_queue_of_outmails(folder: Path, call: Call, tmp_path: Path) -> None:
    fill(folder, "s")
    status, told = call("--import", "--store", tmp_path / "q.db", folder)
    assert (status, told) == (0, "qp: 1 message taken in\n") and left(folder) == []
    with Outbox(tmp_path / "q.db", deliver="never") as box:
        assert [status.subject for status in box.find()] == ["s"]
    assert not (folder / "outmail.db").exists()
    assert call("--store", tmp_path / "q.db", folder)[0] == 78


def test_a_directory_that_may_not_be_read(
    folder: Path, sink: Sink, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, "s")

    def closed(queue: maildir.RepozeQueue, part: str) -> list[str]:
        raise PermissionError(13, "Permission denied", f"{queue.folder}/{part}")

    monkeypatch.setattr(maildir.RepozeQueue, "_names", closed)
    for words in (at(sink), ("--import", "--store", f"{folder}/q.db")):
        status, told = call(*words, folder)
        assert status == 77 and told == f"qp: {folder}/new: Permission denied: what waits there stays there\n"


INI = """[app:qp]
hostname = 127.0.0.1
port = {port}
username = me
password = ge%%heim%
queue_path = {queue}
force_tls = False
no_tls = yes
ssl = None
debug_smtp = 1
"""


def test_the_ini_file_says_all_that_the_options_do(folder: Path, call: Call, tmp_path: Path) -> None:
    fill(folder, "s")
    ini = tmp_path / "qp.ini"
    with Sink(users={"me": "ge%heim%"}) as sink:
        ini.write_text(INI.format(port=sink.port, queue=folder))
        status, told = call("--config", ini)
        assert status == 75, told  # %% beside a lone % is taken as it stands
    ini.write_text(INI.format(port=1, queue=folder).replace("ge%%heim%", "ge%%heim"))
    assert qp.read(str(ini)) == qp.Settings(
        "127.0.0.1", 1, "me", "ge%heim", no_tls=True, queue_path=str(folder), debug_smtp=True
    )
    with Sink(users={"me": "ge%heim"}) as sink:
        status, told = call("--config", ini, "--port", sink.port)
        assert status == 0 and sink.messages[0].user == "me"
        assert "send: MAIL FROM:<me@x.test>" in told and "reply: 354" in told and "ge%heim" not in told


def test_the_ini_file_beside_python_is_found(tmp_path: Path, call: Call) -> None:
    for place in (tmp_path / "bin/etc", tmp_path / "etc"):  # repoze.sendmail 4.5 and 4.4
        place.mkdir()
        (place / "qp.ini").write_text(f"[app:qp]\nqueue_path = {place}/none\n")
        assert call() == (66, f"qp: there is no queue directory {place}/none\n")
    status, told = call(tmp_path)
    assert status == 66 and "is no queue directory" in told and not (tmp_path / "outmail.db").exists()


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ((), 64, "name it"),
        (("--nonsense", "q"), 64, "--nonsense"),
        (("--port", "x", "q"), 64, "port"),
        (("a", "b"), 64, "unrecognized"),
        (("nowhere",), 66, "nowhere"),
        (("--username", "me", "q"), 78, "belong together"),
        (("--password", "geheim", "q"), 78, "belong together"),
        (("--force-tls", "--no-tls", "q"), 78, "exclude each other"),
        (("--config", "none.ini", "q"), 78, "none.ini: No such file"),
        (("--config", "other.ini", "q"), 78, "no section [app:qp]"),
        (("--config", "broken.ini", "q"), 78, "broken.ini"),
        (("--config", "port.ini", "q"), 78, "port = 99999 is no port"),
        (("--hostname", "a b", "q"), 78, "hostname"),
    ],
)
def test_words_and_files_that_cannot_be_meant(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Call,
    words: tuple[str, ...],
    status: int,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q").mkdir()
    (tmp_path / "other.ini").write_text("[app:other]\n")
    (tmp_path / "broken.ini").write_text("hostname = x\n")
    (tmp_path / "port.ini").write_text("[app:qp]\nport = 99999\n")
    found = call(*words)
    assert found[0] == status and told in found[1] and "Traceback" not in found[1]


@pytest.mark.parametrize(
    ("words", "tls", "verify"),
    [
        ((), "opportunistic", False),
        (("--force-tls",), "required", True),
        (("--ssl",), "implicit", True),
        (("--no-tls",), "none", True),
    ],
)
def test_kinds_of_tls(words: tuple[str, ...], tls: str, verify: bool) -> None:
    settings = qp.asked(qp.parser().parse_args(["--hostname", "mail.example.org", *words, "q"]))
    relay = qp.relay_of(settings)
    assert (relay.tls, relay.verify) == (tls, verify)
    assert relay.port == (465 if tls == "implicit" else 25)


def test_starttls_is_used_where_it_is_offered(folder: Path, call: Call) -> None:
    authority = trustme.CA()
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("other.test").configure_cert(context)
    fill(folder, "s")
    with Sink(tls=context) as sink:
        assert call(*at(sink), folder) == (0, "") and sink.messages[0].encrypted


def test_the_options_are_those_of_the_real_one() -> None:
    known = {option for action in qp.parser()._actions for option in action.option_strings}
    real = {word for word in ConsoleApp._usage.split() if word.startswith("--")} | {"--ssl"}
    assert real <= known


def test_a_program_writes_and_the_real_qp_runs_meanwhile(folder: Path, tmp_path: Path) -> None:
    """Nothing is lost, and nothing sent twice. The campaign ``qp`` does this for minutes, with kills."""
    folder.mkdir()
    for part in ("new", "cur", "tmp"):
        (folder / part).mkdir()
    with Sink() as sink:
        stop, environment = tmp_path / "stop", {**os.environ, "OUTMAIL_DROP": ""}
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], env=environment)
        runners = [
            subprocess.Popen(
                [sys.executable, "-c", RUNNER.format(module=module), str(stop), str(sink.port), str(folder)],
                env=environment,
                stderr=subprocess.DEVNULL,
            )
            for module in ("outmail.compat.repoze.qp", "repoze.sendmail.queue")
        ]
        try:
            assert writer.wait(60) == 0
            until(lambda: len(sink.messages) >= WRITTEN, 60)
        finally:
            stop.touch()
            for process in (writer, *runners):
                process.wait(60)
        subjects = sorted(
            line for m in sink.messages for line in m.content.splitlines() if line.startswith(b"Subject")
        )
    assert subjects == sorted(b"Subject: %d" % n for n in range(WRITTEN))


WRITTEN = 60
WRITER = f"""
import sys, time, transaction
from email.mime.text import MIMEText
from repoze.sendmail.delivery import QueuedMailDelivery
delivery = QueuedMailDelivery(sys.argv[1])
for n in range({WRITTEN}):
    message = MIMEText("t")
    message["Subject"] = str(n)
    delivery.send("me@x.test", ["a@x.test"], message)
    transaction.commit()
"""
#: Runs a `qp` again and again, until there is a file.
RUNNER = """
import os, subprocess, sys
while not os.path.exists(sys.argv[1]):
    subprocess.run([sys.executable, "-m", "{module}", "--hostname", "127.0.0.1", "--port", *sys.argv[2:]])
"""
