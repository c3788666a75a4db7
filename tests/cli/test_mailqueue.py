"""mq-run, mq-send-test, mq-sendmail and mq-mail, called as people call them."""

from __future__ import annotations

import errno
import io
import logging
import os
import shlex
import signal
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from outmail.compat.foreign_queue import take_in
from outmail.compat.mailqueue import ini as inis
from outmail.compat.mailqueue import run, spool
from outmail.compat.mailqueue.settings import config_of
from outmail.outbox.outbox import Outbox
from outmail.testing import Sink
from tests.waiting import until

SCRIPTS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
CONTENT = b"Subject: s\r\nMessage-ID: <1@x.test>\r\nDate: Sat, 28 Nov 2026 10:00:00 +0000\r\n\r\ntext\r\n"
MESSAGE = b"Subject: hi\nTo: root\nBcc: hidden@x.test\n\ntext\n"


class Place:
    """A home with a queue directory, an ini file, and the programs as an installation makes them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.queue, self.ini = folder, folder / "queue", folder / "config.ini"
        (folder / "bin").mkdir()
        for name, target in SCRIPTS.items():
            module, _, function = target.partition(":")
            script = folder / "bin" / name
            script.write_text(
                f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
            )
            script.chmod(0o755)
        spool.make(str(self.queue))

    def serve(self, port: int, *more: str) -> None:
        lines = ["[mqrunner]", "smtp_hostname = 127.0.0.1", f"smtp_port = {port}", *more]
        self.ini.write_text("\n".join(lines) + "\n")

    def put(self, *people: str, content: bytes = CONTENT) -> None:
        spool.put(str(self.queue), spool.packed(spool.Envelope("me@x.test", people), content))

    def shell(self, line: str, given: bytes = b"", **env: str) -> Any:
        """A command line, as it stands in a document."""
        line = line.replace("/path/to", str(self.folder))
        home = {"HOME": str(self.folder), "OUTMAIL_DROP": "", "XDG_DATA_HOME": f"{self.folder}/data"}
        home |= {"XDG_CONFIG_HOME": f"{self.folder}/c"}
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("OUTMAIL_", "XDG_"))}
        return subprocess.run(
            line, shell=True, input=given, capture_output=True, timeout=60,
            cwd=self.folder, env={**clean, **home, "PATH": path, **env},
        )  # fmt: skip

    def states(self) -> dict[str, str]:
        with Outbox(self.queue / "outmail.db", deliver="never") as box:
            return {r.address: r.state for status in box.find() for r in status.recipients}

    def waiting(self) -> list[str]:
        return os.listdir(self.queue / "new")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_seeds_two_commands(place: Place) -> None:
    with Sink() as sink:
        place.serve(sink.port)
        place.put("a@x.test", "b@x.test")
        done = place.shell("mq-run /path/to/config.ini /path/to/queue")
        assert (done.returncode, done.stderr) == (0, b"") and place.waiting() == []
        done = place.shell("mq-send-test /path/to/config.ini /path/to/queue --to=recipient@site.example")
        assert done.returncode == 0 and b"accepted by the relay" in done.stdout
        first, second = sink.messages
    assert (first.sender, first.recipients, first.content) == ("me@x.test", ("a@x.test", "b@x.test"), CONTENT)
    assert second.recipients == ("recipient@site.example",) and second.sender == "recipient@site.example"


def test_the_words_of_the_later_version_and_the_settings_file(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.serve(25, f"queue_dir = {place.queue}")
    monkeypatch.setenv("HOME", str(place.folder))
    config, queue = str(place.ini), str(place.queue)
    for words in (["-C", config, queue], [f"--config={config}"], [config], [config, queue]):
        ini, folder = run.asked(run.parser().parse_args(words))
        assert (ini.path, folder) == (config, queue)
    own = place.ini.rename(place.folder / ".mailqueue-runner.conf")
    for words in ([], [queue]):
        ini, folder = run.asked(run.parser().parse_args(words))
        assert (ini.path, folder) == (str(own), queue)


def test_each_recipient_has_its_own_end(place: Place) -> None:
    """mailqueue-runner sends to nobody where one is refused."""
    with Sink("RCPT no@*: 550 5.1.1 unknown\nRCPT later@*: 451 4.2.1 busy") as sink:
        place.serve(sink.port, f"delivery_log = {place.folder}/d.log")
        place.put("a@x.test", "no@x.test", "later@x.test")
        done = place.shell("mq-run config.ini queue")
        assert done.returncode == 69 and b"5.1.1 unknown" in done.stderr
        assert all(line.startswith(b"mq-run: ") for line in done.stderr.splitlines())
        assert place.states() == {"a@x.test": "delivered", "no@x.test": "failed", "later@x.test": "queued"}
        done = place.shell("mq-run config.ini queue")  # put off by the server: not before its time
        assert done.returncode == 75 and len(sink.messages) == 1
    lines = (place.folder / "d.log").read_text().splitlines()
    assert [line.split("status=")[1].split()[0] for line in lines] == ["sent", "failed", "deferred"]
    assert all(" app=mq-run " in line and " attempts=1 " in line for line in lines)


def test_a_server_that_was_down_is_tried_by_the_next_run(place: Place) -> None:
    with Sink() as sink:
        port = sink.port
    place.serve(port)
    place.put("a@x.test")
    done = place.shell("mq-run config.ini queue")
    assert done.returncode == 75 and b"Connection refused" in done.stderr and b"next try" in done.stderr
    with Sink() as sink:
        place.serve(sink.port)  # the server of the ini file counts, whatever it was when the mail came in
        assert place.shell("mq-run config.ini queue").returncode == 0
        assert len(sink.messages) == 1


def test_a_held_recipient_waits_and_is_told(place: Place) -> None:
    with Sink() as sink:
        place.serve(sink.port)
        place.put("a@x.test")
        with Outbox(place.queue / "outmail.db", deliver="never") as box:
            take_in(spool.Mailqueue(str(place.queue)), box.door, "x.test")
            assert box.hold("state:queued") == 1
        done = place.shell("mq-run config.ini queue")
        assert done.returncode == 75 and b"1 recipient is held" in done.stderr and not sink.messages
        command = done.stderr.decode().split("why; ")[1].split(" lets them")[0]
        assert place.shell(command).returncode == 0
        assert place.shell("mq-run config.ini queue").returncode == 0 and len(sink.messages) == 1


def test_a_broken_file_is_named_and_the_others_go_out(place: Place) -> None:
    with Sink() as sink:
        place.serve(sink.port)
        place.put("a@x.test")
        (place.queue / "new" / "1.broken").write_bytes(b"Return-path: <a@x.test>\r\nEnvel")
        done = place.shell("mq-run config.ini queue")
        assert done.returncode == 70 and b"1.broken" in done.stderr and b"set-aside" in done.stderr
        assert len(sink.messages) == 1 and place.shell("mq-run config.ini queue").returncode == 0


@pytest.mark.parametrize("point", ["C2", "C4"])
def test_killed_at_any_point_it_loses_nothing_and_doubles_only_what_it_says(place: Place, point: str) -> None:
    with Sink() as sink:
        place.serve(sink.port)
        for number in range(3):
            place.put(f"{number}@x.test")
        killed = place.shell("mq-run config.ini queue", OUTMAIL_FAIL=f"{point}:kill")
        assert killed.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
        assert place.shell("mq-run config.ini queue").returncode == 0
        got = [message.recipients[0] for message in sink.messages]
    with Outbox(place.queue / "outmail.db", deliver="never") as box:
        marked = [r.address for s in box.find("was:uncertain") for r in s.recipients]
        assert len(list(box.find())) == 3
    assert set(got) == {"0@x.test", "1@x.test", "2@x.test"}
    assert all(got.count(address) == 1 or address in marked for address in got)


@pytest.mark.parametrize(
    "line, status, told",
    [
        ("mq-run", 78, "no configuration"),
        ("mq-run none.ini queue", 78, "none.ini cannot be read"),
        ("mq-run config.ini nowhere", 66, "no queue directory"),
        ("mq-run config.ini bin", 66, "bin is no queue directory: new, cur and tmp are not in it"),
        ("mq-run config.ini queue more", 64, "too many words"),
        ("mq-run config.ini", 64, "set queue_dir"),
        ("mq-run --nonsense", 64, "--nonsense"),
        ("mq-send-test config.ini", 64, "--to"),
        ("mq-send-test config.ini --to='a b@x.test'", 65, "a b@x.test"),
        ("mq-sendmail -C config.ini", 64, "no recipient"),
        ("mq-sendmail -C none.ini a@x.test", 78, "cannot be read"),
        ("mq-sendmail -C config.ini 'a b@x.test'", 65, "a b@x.test"),
        ("mq-sendmail -C config.ini --aliases=none root", 78, "none cannot be used"),
        ("mq-mail -C config.ini", 64, "no recipient"),
        ("mq-mail -C config.ini -z a@x.test", 64, "-z"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_a_status(
    place: Place,
    line: str,
    status: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place.serve(9)
    name, *words = shlex.split(line)
    for variable in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(place.folder / "home"))
    monkeypatch.chdir(place.folder)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(MESSAGE)))
    monkeypatch.setattr(logging.getLogger("outmail"), "level", logging.NOTSET)
    module, _, function = SCRIPTS[name].partition(":")
    try:
        found = getattr(import_module(module), function)(words)
    except SystemExit as ended:
        found = ended.code
    said = capsys.readouterr().err
    assert found == status and told in said and said.count("\n") == 1 and place.waiting() == []
    assert not (place.folder / "bin" / "outmail.db").exists()


def test_a_wrong_setting_is_named_with_its_line(place: Place) -> None:
    place.serve(25, "smtp_tls = maybe")
    done = place.shell("mq-run config.ini queue")
    assert done.returncode == 78 and b"config.ini, line 4: smtp_tls" in done.stderr


def test_a_test_message_tells_a_refusal_and_can_be_quiet(place: Place) -> None:
    with Sink("RCPT: 550 5.7.1 no") as sink:
        place.serve(sink.port)
        done = place.shell("mq-send-test -C config.ini --to=a@x.test --from=b@x.test")
        assert done.returncode == 69 and b"5.7.1 no" in done.stderr
        done = place.shell("mq-send-test -C config.ini --to=a@x.test --quiet")
        assert (done.returncode, done.stdout, done.stderr) == (69, b"", b"")


@pytest.mark.parametrize("aliased", [True, False])
def test_cron_calls_mq_sendmail(place: Place, aliased: bool) -> None:
    (place.folder / "al").write_text("root: ops@x.test\n" if aliased else "nobody: ops@x.test\n")
    with Sink() as sink:
        place.serve(sink.port, f"queue_dir = {place.queue}", "from = robot@x.test")
        flags = "-FCronDaemon -i -odi -oem -oi -t -f root"
        done = place.shell(f"mq-sendmail -C config.ini --aliases=al {flags}", given=MESSAGE)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        until(lambda: sink.messages)
        [message] = sink.messages
    assert message.sender == "ops@x.test" if aliased else message.sender.startswith("root@")
    assert message.recipients[1] == "hidden@x.test" and b"hidden" not in message.content
    assert b"\r\nTo: root\r\n" in message.content and message.content.endswith(b"\r\n\r\ntext\r\n")


def test_fields_are_added_on_request(place: Place) -> None:
    place.serve(9, f"queue_dir = {place.queue}", "from = robot@x.test")
    flags = "--set-date-header --set-from-header --set-msgid-header --set-to-header"
    assert (
        place.shell(f"mq-sendmail -C config.ini {flags} a@x.test", given=b"Subject: s\n\nx\n").returncode == 0
    )
    until(lambda: place.states() == {"a@x.test": "queued"})
    with Outbox(place.queue / "outmail.db", deliver="never") as box:
        [status] = box.find()
        content = box.content(status.id)
    assert b"\r\nFrom: robot@x.test\r\n" in content and b"\r\nTo: a@x.test\r\n" in content
    assert content.startswith(b"Date: ") and content.count(b"\r\nMessage-ID: <") == 1


def test_mq_mail_composes_and_waits_with_v(place: Place) -> None:
    (place.folder / "al").write_text("dbuser: db@x.test\nroot: ops@x.test\n")
    with Sink() as sink:
        place.serve(sink.port)
        line = "mq-mail -C config.ini --aliases=al -v -Ssendwait -s 'Grüße' -r dbuser root"
        done = place.shell(line, given="körper\n".encode())
        assert done.returncode == 0 and b"DATA" in done.stderr
        [message] = sink.messages
    assert (message.sender, message.recipients) == ("db@x.test", ("ops@x.test",))
    assert b"\r\nSubject: =?utf-8?" in message.content and b"\r\nTo: ops@x.test\r\n" in message.content


def test_without_an_ini_file_they_are_outmails_own(place: Place) -> None:
    store = place.folder / "q.db"
    env = {"OUTMAIL_STORE": str(store), "OUTMAIL_RELAY": "null:"}
    done = place.shell("mq-sendmail -i --aliases=none a@x.test", given=MESSAGE, **env)
    assert done.returncode == 0 and done.stderr.startswith(b"mq-sendmail: without an ini file --aliases")
    assert place.shell("mq-mail -s hi b@x.test", given=b"text", **env).returncode == 0
    with Outbox(store, deliver="never") as box:
        assert [r.address for s in box.find() for r in s.recipients] == ["a@x.test", "b@x.test"]


def test_mq_sendmail_loads_little(place: Place) -> None:
    place.serve(9, f"queue_dir = {place.queue}")
    program = (
        "import sys; from outmail.compat.mailqueue import mq_sendmail;"
        "mq_sendmail._start = lambda *words, **more: None; mq_sendmail.main(['-C', sys.argv[1], 'a@x.test']);"
        "print(sorted({'apsw', 'sqlite3', 'asyncio', 'email', 'logging', 'configparser'} & set(sys.modules)))"
    )
    words = [sys.executable, "-c", program, str(place.ini)]
    done = subprocess.run(words, input=MESSAGE, capture_output=True, timeout=60)
    assert done.stdout == b"[]\n" and len(place.waiting()) == 1


def test_many_at_once_share_one_background_run(place: Place) -> None:
    with Sink() as sink:
        place.serve(sink.port, f"queue_dir = {place.queue}", "from = me@x.test")
        many = " & ".join(f"mq-sendmail -C config.ini {n}@x.test <msg" for n in range(8)) + " & wait"
        (place.folder / "msg").write_bytes(MESSAGE)
        assert place.shell(many).returncode == 0
        until(lambda: len(sink.messages) == 8)
    assert place.waiting() == []


def test_a_queue_comes_into_another_store_while_it_is_in_use(place: Place) -> None:
    place.put("a@x.test")
    (place.queue / "new" / "1.broken").write_bytes(b"junk")
    done = place.shell("outmail move mailqueue:/path/to/queue q.db", OUTMAIL_RELAY="null:")
    assert done.returncode == 70 and b"1 message moved" in done.stderr and b"1.broken" in done.stderr
    place.put("b@x.test")
    done = place.shell("outmail move mailqueue:queue q.db")
    assert done.returncode == 0 and b"1 message moved" in done.stderr and place.waiting() == []
    with Outbox(place.folder / "q.db", deliver="never") as box:
        assert [r.address for s in box.find() for r in s.recipients] == ["a@x.test", "b@x.test"]
    assert place.shell("outmail move mailqueue:/nowhere q.db").returncode == 66
    assert place.shell("outmail move mailqueue:bin q.db").returncode == 66


class Plugins:
    """Stands for PuzzlePluginSystem: a loader, and a registry with one plugin."""

    def __init__(self, answer: str | None) -> None:
        self.answer, self.heard, self.ended = answer, list[tuple[Any, ...]](), False

    def call_plugins(self, signal: str, signal_kwargs: dict[str, Any]) -> list[tuple[Any, Any]]:
        msg, result = signal_kwargs["msg"], signal_kwargs["send_result"]
        self.heard.append((signal, tuple(msg.to_addrs), msg.retries, bool(result), msg.msg_id))
        return [(self, self.answer)]

    def terminate_all_activated_plugins(self) -> None:
        self.ended = True


@pytest.mark.parametrize("answer, state", [("discard", "cancelled"), (None, "queued")])
def test_plugins_hear_of_each_attempt_and_may_discard(
    place: Place, monkeypatch: pytest.MonkeyPatch, answer: str | None, state: str
) -> None:
    plugins = Plugins(answer)
    monkeypatch.setattr(run, "registry", plugins)
    monkeypatch.setattr(run, "active_plugins", lambda enabled: plugins)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place.folder))
    monkeypatch.chdir(place.folder)
    with Sink("RCPT later@*: 451 4.2.1 busy") as sink:
        place.serve(sink.port)
        place.put("a@x.test", "later@x.test")
        ini = inis.read(str(place.ini))
        status = run.run(ini, config_of(ini, str(place.queue)), str(place.queue))
    assert sorted(plugins.heard) == [
        ("mq:delivery_failed", ("later@x.test",), 1, False, "1@x.test"),
        ("mq:delivery_successful", ("a@x.test",), 0, True, "1@x.test"),
    ]
    assert plugins.ended and status == (0 if answer else 75)
    assert place.states() == {"a@x.test": "delivered", "later@x.test": state}


@pytest.mark.parametrize("number, status", [(errno.EACCES, 77), (errno.EROFS, 77), (errno.EIO, 75)])
def test_a_directory_that_cannot_be_used_is_one_line(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    status: int,
) -> None:
    place.serve(9)
    place.put("a@x.test")

    def fails(queue: spool.Mailqueue) -> list[str]:
        raise OSError(number, os.strerror(number), queue.folder)

    monkeypatch.setattr(spool.Mailqueue, "waiting", fails)
    monkeypatch.setattr(logging.getLogger("outmail"), "level", logging.NOTSET)
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(place.folder))
    assert run.main([str(place.ini), str(place.queue)]) == status
    assert os.strerror(number) in capsys.readouterr().err and len(place.waiting()) == 1


def test_a_queue_of_repoze_sendmail_comes_in_the_same_way(place: Place) -> None:
    entry = b"X-Actually-To: a@x.test\nX-Actually-From: me@x.test\nSubject: s\n\ntext\n"
    (place.queue / "new" / "1.h").write_bytes(entry)
    done = place.shell("outmail move repoze:queue q.db", OUTMAIL_RELAY="null:")
    assert done.returncode == 0 and b"1 message moved" in done.stderr and place.waiting() == []
    with Outbox(place.folder / "q.db", deliver="never") as box:
        [status] = box.find()
    assert (status.sender, [r.address for r in status.recipients]) == ("me@x.test", ["a@x.test"])
