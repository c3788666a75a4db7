"""What a program leaves at its end goes out by a process of its own (``deliver="detached"``)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outmail.config import from_toml
from outmail.errors import ConfigError
from outmail.outbox import detached
from outmail.outbox.aio import AsyncOutbox
from outmail.outbox.outbox import Outbox
from outmail.outbox.queue import Queue, opened
from outmail.testing import Sink
from tests.road.test_in_program import _pythons
from tests.waiting import until

MakeBox = Callable[..., Outbox]
SCRIPT = """
import outmail, sys
store, url, toml = sys.argv[1:]
from outmail.config import from_toml
config = from_toml(toml, "t", {})
box = outmail.Outbox(store, relay=url, config=config, deliver="detached", exit_wait=0)
box.send("a@x.test", "left behind", "text", sender="me@x.test")
"""
QUICK = '[retry]\nschedule = "200ms…"\n'


@pytest.fixture(autouse=True)
def no_worker_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    for worker in _workers(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def _script(folder: Path, url: str, python: str = sys.executable) -> subprocess.CompletedProcess[bytes]:
    source, here = str(Path(__file__).parents[2] / "src"), python == sys.executable
    store = "q.db" if here else "sqlite+stdlib:q.db"
    return subprocess.run(
        [python, "-c", SCRIPT, store, url, QUICK],
        env={**os.environ, "PYTHONPATH": source},
        cwd=folder,
        capture_output=True,
        timeout=60,
        check=False,
    )


def _workers(folder: Path) -> list[int]:
    """Processes that deliver for the store in this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and entry.joinpath("cwd").readlink() == folder:
                words = entry.joinpath("cmdline").read_bytes().split(b"\0")
                found += [int(entry.name)] if b"outmail.outbox.detached" in words else []
        except OSError:
            continue
    return found


def _delivered(folder: Path) -> bool:
    with Queue(opened(str(folder / "q.db")), from_toml("", "t", {}).routes) as queue:
        return all(status.status == "delivered" for status in queue.find())


@pytest.mark.parametrize("python", _pythons())
def test_a_script_ends_at_once_and_its_mail_goes_out(tmp_path: Path, python: str) -> None:
    with Sink("DOT: delay 2.0") as sink:
        done = _script(tmp_path, sink.url, python)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"") and not sink.messages
        assert len(sink.wait_for(1)) == 1
        until(lambda: not _workers(tmp_path))
        assert _delivered(tmp_path)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs /proc")
def test_it_tries_again_and_a_second_program_starts_no_second_one(tmp_path: Path) -> None:
    with Sink("RCPT: 451 4.7.1 greylisted") as sink:
        assert _script(tmp_path, sink.url).returncode == 0
        until(lambda: any("RCPT" in command for command in sink.commands))
        first = _workers(tmp_path)
        assert _script(tmp_path, sink.url).returncode == 0
        assert len(first) == 1 and os.getsid(first[0]) == first[0] != os.getsid(0)
        until(lambda: _workers(tmp_path) == first)
        sink.rules.clear()
        sink.wait_for(2)
        until(lambda: not _workers(tmp_path))


def test_sigterm_ends_it_in_order(tmp_path: Path) -> None:
    with Sink("RCPT: 451 4.7.1 greylisted") as sink:
        assert _script(tmp_path, sink.url).returncode == 0
        until(lambda: any("RCPT" in command for command in sink.commands))
        (worker,) = _workers(tmp_path)
        os.kill(worker, signal.SIGTERM)
        until(lambda: not _workers(tmp_path))
    assert not _delivered(tmp_path)


def test_it_ends_when_its_time_is_over(make_box: MakeBox, tmp_path: Path) -> None:
    box = make_box(relay="smtp://127.0.0.1:1", deliver="never", toml=QUICK)
    box.send("a@x.test", "s", "t")
    mark = tmp_path / "mark"
    mark.touch()
    detached.work(str(tmp_path / "q.db"), str(mark), box.config, box.routes, life=1.0)
    # Earlier than that by less than a wait for the next try, which it does not begin.
    assert time.time() >= mark.stat().st_mtime + 0.5 and next(box.find()).status == "queued"


def test_what_is_not_due_in_its_time_is_not_waited_for(make_box: MakeBox, tmp_path: Path) -> None:
    box = make_box(relay="null:", deliver="never")
    box.send("a@x.test", "s", "t", at="1d")
    (tmp_path / "mark").touch()
    detached.work(str(tmp_path / "q.db"), str(tmp_path / "mark"), box.config, box.routes)
    assert next(box.find()).status == "queued"


def test_nothing_left_starts_nothing(make_box: MakeBox, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detached, "hand_over", lambda *_: pytest.fail("nothing is left"))
    box = make_box(relay=sink.url, deliver="detached", exit_wait=10)
    box.send("a@x.test", "s", "t")
    box.close()
    assert len(sink.messages) == 1


def test_a_process_that_cannot_be_started_is_said_with_the_command(
    make_box: MakeBox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    box = make_box(relay="smtp://127.0.0.1:1", deliver="detached", exit_wait=0)
    box.send("a@x.test", "s", "t")
    box.close()
    told = capsys.readouterr().err
    assert "no process could be started" in told and "outmail run --once" in told


def test_the_password_is_in_no_argument_and_no_environment(
    make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def run(words: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        seen.append((words, options))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(subprocess, "run", run)
    box = make_box(relay="smtp+plain://me:geheim@127.0.0.1:1", deliver="detached", exit_wait=0)
    box.send("a@x.test", "s", "t")
    box.close()
    ((words, options),) = seen
    assert "geheim" not in repr(words) + repr(options["env"]) and b"geheim" in options["input"]  # type: ignore[operator]


# -- wait= ---------------------------------------------------------------------------------------------------


def test_send_waits_for_the_end_of_the_story(make_box: MakeBox) -> None:
    with Sink("DOT: delay 0.3\nRCPT later@*: 451 later") as sink:
        box = make_box(relay=sink.url)
        assert box.status(box.send("a@x.test", wait=10).id).status == "delivered"
        began = time.monotonic()
        assert box.status(box.send("later@x.test", wait=0.3).id).status == "queued"
        assert 0.3 <= time.monotonic() - began < 20
        content = b"Subject: s\r\n\r\nt\r\n"
        receipt = box.submit(content, sender="me@x.test", recipients="a@x.test", wait=10)
        assert box.status(receipt.id).status == "delivered"


def test_wait_and_using_exclude_each_other(make_box: MakeBox) -> None:
    box = make_box()
    with pytest.raises(ConfigError, match="before your transaction is committed"):
        box.send("a@x.test", using=object(), wait=1)


def test_an_async_outbox_waits_in_the_loop(tmp_path: Path, sink: Sink) -> None:
    config = from_toml('from = "me@x.test"', "t", {})

    async def story() -> None:
        async with AsyncOutbox(tmp_path / "q.db", relay=sink.url, config=config) as box:
            receipt = await box.send("a@x.test", wait=10)
            assert (await box.status(receipt.id)).status == "delivered"
            with pytest.raises(ConfigError):
                await box.send("a@x.test", using=object(), wait=1)

    asyncio.run(story())
