"""Jobs report by mail, and never harm the program."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path
from typing import Any

import pytest

import outmail
from outmail import ConfigError, Outbox
from outmail.reports import state, watchdog
from outmail.reports.post import host, poster
from outmail.testing import Sink
from tests.waiting import until

from .conftest import Mails, page, text

MakeBox = Callable[..., Outbox]


def test_a_job_in_mails(box: Outbox, mails: Mails) -> None:
    with outmail.job("crawl", total=100, every="50%", outbox=box, start=True, min_interval="") as job:
        for _ in range(100):
            job.update()
            if job.done == 50:
                mails.wait(2)
        job.note("all well")
        job.metric("loss", 0.5)
        job.table([("a", "b"), (1, 2)], "Numbers")
    start, half, end = mails.wait(3)
    assert len({str(mail["subject"]) for mail in (start, half, end)}) == 1 and str(
        start["subject"]
    ).startswith(f"[{host()}] crawl 20")
    assert text(start).startswith(f"STARTED: crawl on {host()}, 100 items to do.")
    assert "50 %: 50 of 100" in text(half)
    assert (
        text(end).startswith("FINISHED: crawl took")
        and "all well" in text(end)
        and "Numbers" in text(end)
        and "loss" in text(end)
    )
    root = start["references"]
    for mail in (start, half, end):
        assert (
            mail["auto-submitted"] == "auto-generated"
            and mail["references"] == root
            and mail["x-outmail-job"] == "crawl"
            and len(str(mail["subject"])) <= 60
        )
        assert "jobs.outmail.localhost" in mail["list-id"] and "crawl" in str(mail["from"])
        assert "<table" in page(mail) and "://" not in page(mail)
        assert all(len(line) <= 78 for line in text(mail).splitlines())


def test_a_failure_breaks_out_and_recovery_answers_it(box: Outbox, mails: Mails) -> None:
    def run(fail: bool) -> None:
        with outmail.job("feed", outbox=box, finish=False):
            if fail:
                raise ValueError("no such feed, password=geheim")

    for fail in (True, True, False, False):
        try:
            run(fail)
        except ValueError:
            pass
    alert, recovered = mails.wait(2)
    assert (
        str(alert["subject"]).startswith("✗ feed failed: ValueError: no such feed")
        and alert["importance"] == "high"
    )
    assert (
        "→" in text(alert)
        and "raise ValueError" in text(alert)
        and "geheim" not in text(alert) + page(alert) + str(alert["subject"])
    )
    assert str(recovered["subject"]) == f"✓ feed works again [{host()}]"
    assert recovered["in-reply-to"] == alert["message-id"] and text(recovered).startswith(
        "RECOVERED: feed works again"
    )


def test_after_n_failures_in_a_row(box: Outbox, mails: Mails) -> None:
    @outmail.notify(on="fail", name="flaky", outbox=box, after_failures=3)
    def flaky() -> None:
        raise RuntimeError("x")

    for _ in range(5):
        with pytest.raises(RuntimeError):
            flaky()
    assert mails.subjects(1) == [f"✗ flaky failed, 3 in a row: RuntimeError: x [{host()}]"]


def test_the_program_is_never_harmed(make_box: MakeBox, capsys: pytest.CaptureFixture[str]) -> None:
    box = make_box(toml='to = ["me@x.test"]', deliver="never")
    box.close()  # every report will fail
    with outmail.job("broken", total=3, every=1, outbox=box, start=True, min_interval="") as job:
        for i in job.iter(range(3)):
            job.note(str(i))
    assert job.state == "finished"
    assert "closed" in capsys.readouterr().err

    @outmail.notify(outbox=box)
    def precious() -> int:
        return 42

    assert precious() == 42
    with pytest.raises(outmail.Error), outmail.job("strict", outbox=box, strict=True):
        pass


@pytest.mark.parametrize("steps", [[float("inf"), -1, float("inf")], [float("nan"), 1], [10**30, -5]])
def test_odd_numbers_do_no_harm(box: Outbox, steps: list[float]) -> None:
    with outmail.job("odd", to="me@x.test", outbox=box) as job:
        for step in steps:
            job.update(step)  # type: ignore[arg-type]


def test_no_recipient_is_one_line(make_box: MakeBox, capsys: pytest.CaptureFixture[str]) -> None:
    box = make_box(deliver="never")
    for _ in range(2):
        with outmail.job("mute", outbox=box, start=True):
            pass
    assert capsys.readouterr().err.count("no recipient") == 1 and not list(box.find())


@pytest.mark.parametrize(
    "options",
    [
        {"every": "soon"},
        {"every": "10%"},
        {"start": "maybe"},
        {"total": -1},
        {"total": "5"},
        {"min_interval": "5"},
        {"after_failures": 0},
        {"stall": "x"},
    ],
)
def test_wrong_options_raise_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        outmail.job("x", **options)
    with pytest.raises(ConfigError):
        outmail.notify(on="never")
    with pytest.raises(ConfigError):
        outmail.notify(after_failures=0)(lambda: None)


def test_waiting_milestones_are_replaced_and_the_last_word_is_sent(make_box: MakeBox) -> None:
    box = make_box(toml='to = ["me@x.test"]', deliver="never")
    with outmail.job("long", total=10, every=1, outbox=box, min_interval="") as job:
        for _ in range(10):
            job.update()
            job.wait()
        assert [s.status for s in box.find()].count("queued") == 1
    left = [s for s in box.find() if s.status == "queued"]
    assert (len(left) == 1 and b"FINISHED: long" in box.content(left[0].id)) or len(left) == 1


def test_progress_mails_keep_their_distance(box: Outbox, mails: Mails) -> None:
    with outmail.job("fast", total=1000, every=10, outbox=box, min_interval="1h") as job:
        for _ in job.iter(range(1000)):
            if job.done == 15:
                mails.wait(1)
    first, last = mails.wait(2)
    assert "10 of 1,000" in text(first) and "FINISHED" in text(last)


def test_track_counts_and_breaks(box: Outbox, mails: Mails) -> None:
    assert list(outmail.track([1, 2, 3], "all", outbox=box)) == [1, 2, 3]
    for x in outmail.track(range(10), "some", outbox=box):
        if x == 4:
            break
    first, second = mails.wait(2)
    assert "3 of 3" in text(first) and "at 4 of 10" in text(second)
    iterator = outmail.track(iter([1]), "unknown", outbox=box, finish=False)
    assert next(iterator) == 1 and next(iterator, None) is None


def test_notify_keeps_what_it_wraps(box: Outbox, mails: Mails) -> None:
    @outmail.notify(outbox=box, on="finish", result=repr)
    async def fetch(n: int) -> int:
        return n * 2

    @outmail.notify(outbox=box, on="finish")
    def numbers(n: int) -> Generator[Any, Any, str]:
        got = yield n
        yield got
        return "end"

    @outmail.notify(outbox=box, on="finish")
    async def letters() -> AsyncIterator[str]:
        yield "a"

    assert asyncio.run(fetch(21)) == 42
    generator = numbers(1)
    assert next(generator) == 1 and generator.send("sent") == "sent"
    with pytest.raises(StopIteration) as stop:
        next(generator)
    assert stop.value.value == "end"

    async def gather() -> list[str]:
        return [letter async for letter in letters()]

    assert asyncio.run(gather()) == ["a"]
    assert "42" in text(mails.wait(3)[0])


def test_stalled_and_start_by_time(box: Outbox, mails: Mails) -> None:
    with outmail.job("slow", outbox=box, start="auto", quiet_under="1s", stall="1s", finish=False) as job:
        mails.sink.wait_for(2)
        job.wait()
    started, stalled = mails.wait(2)
    assert "STARTED" in text(started) and "has not moved" in text(stalled)


def test_log_lines_go_with_a_failure(box: Outbox, mails: Mails) -> None:
    log = logging.getLogger("app")
    with pytest.raises(KeyError), outmail.job("logged", outbox=box, tail=2):
        for i in range(5):
            log.warning("line %d", i)
        raise KeyError("x")
    (mail,) = mails.wait(1)
    assert "app: line 4" in text(mail) and "app: line 2" not in text(mail)


def test_threads_count_together(box: Outbox) -> None:
    with outmail.job("threads", outbox=box, finish=False) as job:

        def work() -> None:
            for _ in range(5000):
                job.update()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert job.done == 20_000


def test_children_and_other_ranks_are_quiet(
    box: Outbox, mails: Mails, monkeypatch: pytest.MonkeyPatch
) -> None:
    with outmail.job("parent", total=2, every=1, outbox=box, min_interval="") as job:
        pid = os.fork()
        if not pid:
            job.update(2)
            job.close(ValueError("in the child"))
            os._exit(0)
        os.waitpid(pid, 0)
    monkeypatch.setenv("RANK", "3")
    with outmail.job("rank", outbox=box, start=True) as job:
        job.update()
    assert job.state == "quiet"
    assert len(mails.wait(1)) == 1


SCRIPT = """
import os, signal, sys, time, outmail
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell may have left it ignored
box = outmail.Outbox("q.db", relay=sys.argv[1])
{body}
"""


def run(tmp_path: Path, sink: Sink, body: str, **words: object) -> subprocess.Popen[bytes]:
    code = SCRIPT.format(body=body)
    return subprocess.Popen(
        [sys.executable, "-c", code, sink.url],
        cwd=tmp_path,
        env={**os.environ, "OUTMAIL_TO": "me@x.test"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, -2, "Ctrl-C")]
)
def test_signals_stop_a_job_with_a_word(
    sink: Sink, mails: Mails, tmp_path: Path, number: int, status: int, word: str
) -> None:
    process = run(
        tmp_path,
        sink,
        "with outmail.job('long', outbox=box) as job:\n    job.update(3)\n    print('up', flush=True)\n    "
        "time.sleep(60)",
    )
    assert process.stdout and process.stdout.readline() == b"up\n"
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode in (status, 130)
    (mail,) = mails.wait(1)
    assert str(mail["subject"]).startswith(f"■ long stopped: {word}")
    assert re.search(r"Done +3\b", text(mail))


def test_an_exception_that_ends_the_program_is_told_by_track_too(
    sink: Sink, mails: Mails, tmp_path: Path
) -> None:
    process = run(
        tmp_path,
        sink,
        "for x in outmail.track(range(9), 'loop', outbox=box):\n    if x == 5: raise ValueError('at five')",
    )
    process.communicate(timeout=30)
    assert process.returncode == 1
    (mail,) = mails.wait(1)
    assert str(mail["subject"]).startswith("✗ loop failed: ValueError: at five")
    assert "at five" in text(mail)


def test_a_killed_job_is_told_dead_by_the_next_run_once(sink: Sink, mails: Mails, tmp_path: Path) -> None:
    process = run(
        tmp_path,
        sink,
        "with outmail.job('victim', outbox=box) as job:\n    job.update(7)\n    job.wait()\n    print('up', "
        "flush=True)\n    time.sleep(60)",
    )
    assert process.stdout and process.stdout.readline() == b"up\n"
    process.kill()
    process.communicate(timeout=30)
    for _ in range(2):
        run(
            tmp_path, sink, "with outmail.job('victim', outbox=box, finish=False) as job:\n    job.wait()"
        ).communicate(timeout=30)
    dead, recovered = mails.wait(2)
    assert str(dead["subject"]).startswith("✗ victim died: process ") and "ended without a word" in text(dead)
    assert recovered["in-reply-to"] == dead["message-id"] and "RECOVERED" in text(recovered)


def test_the_living_are_not_declared_dead(box: Outbox, mails: Mails) -> None:
    with outmail.job("alive", outbox=box, finish=False) as job:
        job.wait()
        watchdog.look(box)
        assert state.read(box, "run", job.id)["state"] == "running"
    watchdog.look(box)
    assert state.read(box, "run", job.id)["state"] == "finished"
    assert poster().drain(5) and not mails.sink.messages


def test_no_place_for_a_store(tmp_path: Path) -> None:
    code = "import outmail\nwith outmail.job('x') as job:\n    job.update()\nprint('ran on')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
        env={
            **os.environ,
            "OUTMAIL_STORE": "/proc/nowhere/q.db",
            "OUTMAIL_TO": "me@x.test",
            "OUTMAIL_RELAY": "null:",
        },
    )
    assert done.returncode == 0 and done.stdout == b"ran on\n", done.stderr
    start, end = done.stderr.decode().splitlines()
    assert "reports of x cannot be stored" in start and end.endswith("it went straight to the relay")


def test_templates_can_be_replaced(box: Outbox, mails: Mails, tmp_path: Path) -> None:
    (tmp_path / "finished.txt").write_text("ours: $headline")
    with outmail.job("own", outbox=box, templates=str(tmp_path)):
        pass
    (mail,) = mails.wait(1)
    assert text(mail).startswith("ours: own took") and "<table" in page(mail)


def test_a_job_through_a_relay_restart(make_box: MakeBox) -> None:
    """The expected list of mails, in one thread: what waited is coalesced into the last word."""
    with Sink() as first:
        port = first.port
        box = make_box(relay=first.url, toml=f'to = ["me@x.test"]\nrelay = "{first.url}"')
        job = outmail.job("long", total=40, every=10, outbox=box, start=True, min_interval="").start()
        first.wait_for(1, 10)
    for _ in range(40):
        job.update()
        job.wait()
    job.close()
    with Sink(port=port) as second:
        until(lambda: box.retry("state:queued") is not None and second.messages)
        mails = [*Mails(first).wait(1), *Mails(second).wait(1)]
    assert (
        len({str(mail["subject"]) for mail in mails}) == 1
        and len({str(mail["references"]) for mail in mails}) == 1
    )
    assert "STARTED" in text(mails[0]) and "FINISHED" in text(mails[1]) and "40 of 40" in text(mails[1])


# -- without `with`, and in several processes ----------------------------------------------------------------


def test_the_first_update_starts_a_job(box: Outbox, mails: Mails) -> None:
    job = outmail.job("plain", total=2, outbox=box)
    assert job.state == "new" and "'plain' new: 0 of 2" in repr(job)
    job.update()
    assert job.state == "running" and job.done == 1
    job.update()
    job.finish()
    assert "2 of 2" in text(mails.wait(1)[0])
    assert re.fullmatch(r"<Job 'plain' finished: 2 of 2 \(100 %\), .*run [0-9a-v]{26}>", repr(job))


def test_threads_start_a_job_once(box: Outbox, mails: Mails) -> None:
    job = outmail.job("together", outbox=box)
    gate = threading.Barrier(8)

    def work() -> None:
        gate.wait(10)
        job.update()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    job.finish()
    assert job.done == 8 and len(mails.wait(1)) == 1


def _work(job: outmail.Job, n: int) -> int:
    for _ in range(n):
        job.update()
    job.note("not told")
    return os.getpid()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_count_in_the_parent(box: Outbox, mails: Mails, method: str) -> None:
    import concurrent.futures
    import multiprocessing

    with outmail.job("pool", total=60, outbox=box) as job:
        context = multiprocessing.get_context(method)
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            pids = [pool.submit(_work, job, 15) for _ in range(4)]
            assert os.getpid() not in {future.result(30) for future in pids}
        until(lambda: job.done == 60)
    assert "60 of 60" in text(mails.wait(1)[0])
    assert not [name for name in os.listdir(box.spool) if name.startswith("count.")]


def test_a_fork_counts_in_the_parent_even_when_it_is_killed(box: Outbox, mails: Mails) -> None:
    with outmail.job("forked", outbox=box) as job:
        job.update(2)
        pid = os.fork()
        if not pid:
            job.update(5)
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
    assert job.done == 7 and re.search(r"Done +7\b", text(mails.wait(1)[0]))


def test_a_job_that_is_not_started_says_so_to_workers(
    box: Outbox, mails: Mails, capfd: pytest.CaptureFixture[str]
) -> None:
    job = outmail.job("early", outbox=box)
    with pytest.raises(ConfigError, match="start it before"):
        pickle.dumps(job)
    pid = os.fork()
    if not pid:
        job.update()
        os._exit(0 if job.state == "new" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert "made in another process" in capfd.readouterr().err


def test_a_pickled_job_is_itself_in_its_own_process(box: Outbox) -> None:
    with outmail.job("self", outbox=box, finish=False) as job:
        assert pickle.loads(pickle.dumps(job)) is job


def test_two_runs_at_once_mention_each_other(box: Outbox, mails: Mails) -> None:
    with outmail.job("twice", outbox=box, start=True, finish=False) as first:
        mails.wait(1)
        with outmail.job("twice", outbox=box, start=True) as second:
            mails.wait(2)
            first.milestone("half")
            mails.wait(3)
    assert first.state == second.state == "finished"
    alone, *both = [text(mail) for mail in mails.wait(4)]
    assert "At the same time" not in alone
    assert all("twice is also run by process" in said for said in both)


# -- what DEAD mails know ------------------------------------------------------------------------------------


def test_a_killed_job_is_told_with_its_last_numbers(
    sink: Sink, mails: Mails, tmp_path: Path, make_box: Callable[..., Outbox]
) -> None:
    """What a mail had said, and what was done since, is not forgotten."""
    body = (
        "job = outmail.job('victim', total=1000, outbox=box, every=700, min_interval='').start()\n"
        "job.update(700)\njob.wait()\nprint('told', flush=True)\njob.update(33)\n"
        "import json; path = box.spool + '/run.' + job.id\n"
        "while json.load(open(path))['done'] != 733: time.sleep(0.05)\n"
        "print('noted', flush=True)\ntime.sleep(60)"
    )
    process = run(tmp_path, sink, body)
    assert process.stdout and [process.stdout.readline(), process.stdout.readline()] == [
        b"told\n",
        b"noted\n",
    ]
    process.kill()
    process.communicate(timeout=30)
    run(tmp_path, sink, "with outmail.job('victim', outbox=box, finish=False): pass").communicate(timeout=30)
    told, dead, _ = mails.wait(3)
    assert "700 of 1,000" in text(told) and "73 %: 733 of 1,000" in text(dead)
    kept = state.runs(make_box(deliver="never"), "victim")
    assert ("dead", 733) in [(run["state"], run["done"]) for run in kept.values()]
