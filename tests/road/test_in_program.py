"""Behaviour 81 and DESIGN §4: the engine inside a program, and what happens at its exit, on every Python
found.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from outmail.errors import ConfigError, NotFound, NotStored, Refused
from outmail.outbox.aio import AsyncOutbox
from outmail.outbox.outbox import Outbox
from outmail.outbox.queue import Queue
from outmail.reports.door import ReportDoor
from outmail.testing import Sink
from tests.waiting import stays, until

MakeBox = Callable[..., Outbox]
LAST_LINE = """
import asyncio.base_events, sys
def never(*a, **k): raise AssertionError("the default executor was used")
asyncio.base_events.BaseEventLoop.run_in_executor = never
import outmail
box = outmail.Outbox(sys.argv[1], relay=f"smtp://localhost:{sys.argv[2]}", exit_wait=float(sys.argv[3]))
box.send("a@x.test", "the last line", "of a script", sender="me@x.test")
"""
#: The same when no thread can be started any more: CPython 3.12 and later refuse.
LAST_BREATH = """
import atexit, outmail.outbox, sys
def at_the_end():
    box = outmail.Outbox(sys.argv[1], relay=f"smtp://localhost:{sys.argv[2]}", exit_wait=float(sys.argv[3]))
    box.send("a@x.test", "the last line", "of a script", sender="me@x.test")
atexit.register(at_the_end)
"""


def _pythons() -> list[str]:
    found = [sys.executable]
    for minor in (12, 13):
        candidates = [shutil.which(f"python3.{minor}") or ""]
        candidates += map(str, sorted((Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*/bin/python3")))
        found += [c for c in candidates if c and os.access(c, os.X_OK)][-1:]
    return found


@pytest.mark.parametrize(
    "python",
    _pythons(),
    ids=lambda path: Path(path).parent.parent.name if "pyenv" in path else Path(path).name,
)
@pytest.mark.parametrize("script", [LAST_LINE, LAST_BREATH], ids=["last line", "last breath"])
def test_the_last_line_of_a_script_sends_its_mail(
    sink: Sink, tmp_path: Path, python: str, script: str
) -> None:
    # sqlite+stdlib, because another Python need not have apsw installed; localhost, because names need the
    # resolver.
    source, here = str(Path(__file__).parents[2] / "src"), python == sys.executable
    store = str(tmp_path / "q.db") if here else f"sqlite+stdlib:{tmp_path}/q.db"
    done = subprocess.run(
        [python, "-c", script, store, str(sink.port), "5"],
        env={**os.environ, "PYTHONPATH": source, "HOME": str(tmp_path)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(sink.messages) == 1


def test_what_is_left_is_told_with_the_command_that_sends_it(
    sink: Sink, tmp_path: Path, outmail: Callable[..., subprocess.CompletedProcess[bytes]]
) -> None:
    sink.script("RCPT: 451 4.7.1 greylisted x1")
    done = subprocess.run(
        [sys.executable, "-c", LAST_LINE, str(tmp_path / "q.db"), str(sink.port), "30"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    words = done.stderr.decode()
    assert "1 recipient still queued (451 4.7.1 greylisted)" in words and words.count("\n") == 1
    command = words.strip().rpartition("by: ")[2].split()
    outmail("queue", "retry", "ALL", "--store", str(tmp_path / "q.db"))
    assert outmail(*command[1:]).returncode == 0 and len(sink.messages) == 1


def test_what_is_scheduled_is_not_told_as_left(
    make_box: MakeBox, sink: Sink, capsys: pytest.CaptureFixture[str]
) -> None:
    with make_box(sink.url) as box:
        box.send("a@x.test", "s", "t", at="40h")
        box.send("b@x.test", "s", "t", at="26h30m")
    words = capsys.readouterr().err
    assert (
        words.startswith("outmail: 2 recipients are scheduled, the first in 1d2h; ") and "queued" not in words
    )


def test_the_end_of_a_program_does_not_read_a_long_queue(
    make_box: MakeBox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outmail.outbox.rest.LOOK", 3)
    relay, looked = "smtp://127.0.0.1:1", count()
    known, explained = make_box(relay, deliver="never"), Queue._explained
    known.send_many({"to": f"u{i}@x.test", "subject": "s", "text": "t"} for i in range(20))
    monkeypatch.setattr(Queue, "_explained", lambda *of: next(looked) < 0 or explained(*of))
    with make_box(relay, exit_wait=0):
        pass
    assert "more than 3 recipients still queued" in capsys.readouterr().err and next(looked) < 10


def test_a_dead_relay_costs_the_program_nothing(make_box: MakeBox) -> None:
    box = make_box("smtp://127.0.0.1:1")
    id = box.send("a@x.test", "s", "t").id
    box.wait(id, 0.5)
    assert box.status(id).status == "queued" and "refused" in box.status(id).recipients[0].reason.lower()


def test_deliver_says_who_runs_the_engine(sink: Sink, make_box: MakeBox) -> None:
    for words, running in (
        ({"relay": sink.url}, True),
        ({}, False),
        ({"deliver": "thread"}, True),
        ({"relay": sink.url, "deliver": "never"}, False),
    ):
        assert (make_box(**words)._engine is not None) is running
    with pytest.raises(ConfigError):
        make_box(deliver="perhaps")


def test_another_programs_url_is_left_alone(
    sink: Sink, make_box: MakeBox, outmail: Callable[..., subprocess.CompletedProcess[bytes]]
) -> None:
    box = make_box(sink.url.replace("//", "//somebody@"), deliver="never")
    id = box.send("a@x.test", "s", "t").id
    assert outmail("run", "--once", "--store", "q.db").returncode == 0
    assert box.status(id).status == "queued" and box.status(id).recipients[0].attempts == 0


def test_a_forked_child_sends_too(sink: Sink, make_box: MakeBox) -> None:
    box = make_box(sink.url)
    box.send("parent@x.test", "s", "t")
    sink.wait_for(1)
    pid = os.fork()
    if pid == 0:
        try:
            id = box.send("child@x.test", "s", "t").id
            os._exit(0 if box.wait(id, 10).status == "delivered" else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert {m.recipients[0] for m in sink.wait_for(2)} == {"parent@x.test", "child@x.test"}


def test_async_has_the_same_names(sink: Sink, tmp_path: Path) -> None:
    async def story() -> None:
        async with AsyncOutbox(tmp_path / "q.db", relay=sink.url) as box:
            receipts = await asyncio.gather(
                *(box.send(f"u{i}@x.test", "s", "t", sender="me@x.test") for i in range(20))
            )
            assert (await box.wait(receipts[-1].id, 10)).status == "delivered"
            assert (
                len([s async for s in box.find()]) == 20
                and (await box.attempts(receipts[-1].id))[0].outcome == "delivered"
            )
            assert await box.cancel("state:queued") >= 0 and b"Subject: s" in await box.content(
                receipts[0].id
            )

    asyncio.run(story())
    internal = {"deliver_here", "take_over", "adopt", "prepared", *dir(ReportDoor)}
    public = {name for name in dir(Outbox) if not name.startswith("_")} - internal
    assert public <= set(dir(AsyncOutbox))


def test_listeners_hear_events(sink: Sink, make_box: MakeBox) -> None:
    import threading

    box, heard = make_box(sink.url), threading.Event()

    @box.on("delivered")
    def _(event: object) -> None:
        heard.set()

    box.send("a@x.test", "s", "t")
    assert heard.wait(10)
    with pytest.raises(ConfigError):
        box.on("eaten")


def test_errors_are_values_of_five_classes(make_box: MakeBox, tmp_path: Path) -> None:
    box = make_box(deliver="never")
    for call in (lambda: box.status("0" * 26), lambda: box.content("0" * 26), lambda: box.cancel("0" * 26)):
        with pytest.raises(NotFound):
            call()
    for bad in ("", "  ", "colour:red"):
        with pytest.raises(Refused):
            box.cancel(bad)
    with pytest.raises(NotStored) as caught:
        make_box(store=str(tmp_path / "none" / "q.db"))
    assert "folder" in str(caught.value)
    with pytest.raises(ConfigError, match="no sender"):
        Outbox(tmp_path / "s.db", deliver="never").send("a@x.test")
    with pytest.raises(TypeError, match="send"):
        box.send("a@x.test", colour="red")  # type: ignore[call-arg]
    for words in (
        {"to": 5},
        {"to": [b"a@x.test"]},
        {"to": "a@x.test", "text": b"x"},
        {"to": "a@x.test", "attachments": ["/nowhere"]},
        {"to": "a@x.test", "priority": "top"},
        {"to": "a@x.test", "at": "soon"},
        {"to": "a@x.test", "key": ""},
        {"to": "a@x.test", "tag": "a\nb"},
        {"to": "a@x.test", "headers": {"A\n": "b"}},
        {"to": "a@x.test", "expires": "0s"},
    ):
        with pytest.raises(Refused):
            box.send(**words)
    assert not list(box.find())


def test_pytest_fixtures_are_public(outbox: Outbox, mail_sink: Sink) -> None:
    outbox.send("a@x.test", "s", "t")
    assert len(list(outbox.find())) == 1 and mail_sink.port


#: What Windows does not have, and what it does not allow.
WINDOWS = """
import os, sys
for name in ("fcntl", "pwd", "grp", "resource", "termios"):
    sys.modules[name] = None
for name in (
    "O_CLOEXEC", "O_NONBLOCK", "O_NOFOLLOW", "O_DIRECTORY", "O_PATH", "geteuid", "getuid", "getegid",
    "getgid", "uname", "fork", "register_at_fork", "statvfs", "fchmod", "pread", "pwrite", "link",
):
    if hasattr(os, name):
        delattr(os, name)
os.environ["COMPUTERNAME"] = "DESK"

def unopened(function):
    def called(path, *more, **words):
        target = os.path.realpath(path)
        for fd in os.listdir("/proc/self/fd"):
            try:
                held = os.readlink(f"/proc/self/fd/{fd}")
            except OSError:
                continue
            if held == target:
                raise PermissionError(13, "the file is in use by this process", path)
        return function(path, *more, **words)
    return called

os.rename, os.replace, os.unlink, os.remove = map(unopened, (os.rename, os.replace, os.unlink, os.remove))
opened = os.open

def no_folders(path, *more, **words):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return opened(path, *more, **words)

os.open = no_folders
"""


def test_producers_need_no_posix(tmp_path: Path) -> None:
    """Stored there, it is read here."""
    code = f"""{WINDOWS}
import outmail, outmail.testing
with outmail.Outbox({str(tmp_path / "q.db")!r}, deliver="never") as box:
    short = box.send("a@x.test", "short", "text", sender=("Me", "me@x.test"), attachments=[("a.bin", b"1")])
    long = box.submit(b"A: b\\r\\n\\r\\n" + b"x" * 3_000_000, sender="me", recipients=["root", "b@x.test"])
    many = box.send_many([{{"to": "c@x.test", "sender": "me@x.test", "key": "k"}}] * 2)
    assert short.durable and long.durable and many[1].duplicate
    print(short.id, long.id)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, check=False, text=True
    )
    assert done.returncode == 0, done.stderr
    short, long = done.stdout.split()
    with Outbox(tmp_path / "q.db", deliver="never") as box:
        assert b"Subject: short\r\n" in box.content(short) and len(list(box.find())) == 3
        assert len(box.content(long)) > 3_000_000
        status = box.status(long)
        assert (status.sender, status.recipients[0].address) == ("me@DESK", "root@DESK")
    assert not list(tmp_path.glob("q.db.upload*"))


def test_importing_costs_little() -> None:
    code = "import sys; before = set(sys.modules); import outmail; print(len(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert int(done.stdout) <= 3


@pytest.mark.parametrize("step", ["CONNECT", "DOT"])
def test_the_end_waits_no_longer_than_exit_wait(make_box: Callable[..., Outbox], step: str) -> None:
    """Also for a relay that never answers; what it may have taken is marked."""
    with Sink(f"{step}: hang") as sink:
        box = make_box(relay=sink.url, exit_wait=1.0)
        id = box.send("a@x.test", "s", "t").id
        until(lambda: box.status(id).recipients[0].state == "sending")
        until(lambda: step == "CONNECT" or "DATA" in sink.commands)
        stays(lambda: box.status(id).recipients[0].state == "sending", 0.3)  # it is at that step
        began = time.monotonic()
        box.close()
        assert time.monotonic() - began < 20
    with make_box(deliver="never") as later:
        (recipient,) = later.status(id).recipients
        assert recipient.state == "queued" and recipient.uncertain is (step == "DOT")
