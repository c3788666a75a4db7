"""Log records become few mails, and none is lost."""

from __future__ import annotations

import json
import logging
import logging.config
import logging.handlers
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import outmail
from outmail import ConfigError, DigestHandler, Outbox
from outmail.policy.digest import MAX_GROUPS, Gathered, Line
from outmail.reports import state
from outmail.reports.post import host, poster
from outmail.testing import Sink
from tests.waiting import until

from .conftest import Mails, page, text

MakeBox = Callable[..., Outbox]
Handlers = Callable[..., DigestHandler]
log = logging.getLogger("app")


@pytest.fixture
def handler(box: Outbox) -> Iterator[Handlers]:
    made: list[DigestHandler] = []

    def make(**words: Any) -> DigestHandler:
        one = DigestHandler(**{"outbox": box, "name": "feeds", **words})
        log.addHandler(one)
        log.setLevel(logging.DEBUG)
        made.append(one)
        return one

    yield make
    for one in made:
        log.removeHandler(one)
        one.close()


def a_run(make: Handlers, work: Callable[[DigestHandler], None], **words: Any) -> None:
    """As a program's run: a handler of its own, closed at the end."""
    one = make(**words)
    try:
        with one.run():
            work(one)
    finally:
        log.removeHandler(one)
        one.close()


def errors(count: int, **extra: str) -> Callable[[DigestHandler], None]:
    def work(one: DigestHandler) -> None:
        for _ in range(count):
            log.error("it failed", extra=extra or None)

    return work


def test_one_mail_a_run_with_groups_and_traceback(handler: Handlers, mails: Mails) -> None:
    def work(one: DigestHandler) -> None:
        for i in range(30):
            log.warning("slow feed %d", i)
        for i in range(3):
            log.error("feed %s failed", i)
        try:
            os.environ["NO_SUCH_FEED"]
        except KeyError:
            log.exception("no such feed, token=geheim")
        one.handle(logging.LogRecord("app", 20, "f", 1, "odd %d %d", ("one",), None))
        one.handle(logging.LogRecord("app", 20, "f", 1, object, (), None))

    a_run(handler, work)
    (mail,) = mails.wait(1)
    assert (
        str(mail["subject"]).startswith(f"[{host()}] feeds: 4 errors")
        and mail["auto-submitted"] == "auto-generated"
    )
    said = text(mail)
    assert (
        "feed 0 failed" in said
        and "KeyError" in said
        and "→" in said
        and "arguments that do not fit" in said
        and "geheim" not in said + page(mail)
    )
    assert all(len(line) <= 78 for line in said.partition("Traceback")[0].splitlines())


def test_nothing_worth_a_mail_sends_nothing(handler: Handlers, mails: Mails, box: Outbox) -> None:
    a_run(handler, lambda one: log.warning("only a warning"))
    a_run(handler, lambda one: None)
    assert not mails.sink.messages and state.read(box, "digest", "feeds")["pending"]["total"] == 1


def test_four_and_five_and_one_make_one_mail_of_ten(handler: Handlers, mails: Mails) -> None:
    for count in (4, 5):
        a_run(handler, errors(count), min_records=10)
    assert not mails.sink.messages
    a_run(handler, errors(1), min_records=10)
    (mail,) = mails.wait(1)
    assert "10 errors" in str(mail["subject"])


def test_a_key_ten_runs_in_a_row_and_others_now_and_then(handler: Handlers, mails: Mails) -> None:
    """Ten logging runs: one key fails in each, others now and then; the expected list of mails."""
    for i in range(12):

        def work(one: DigestHandler, i: int = i) -> None:
            if i < 10:
                log.error("feed failed", extra={"key": "bad"})
            log.error("feed failed", extra={"key": f"other{i}"})
            one.ok("fine")

        a_run(handler, work, after_runs=10)
    alert, recovered = mails.wait(2)
    assert str(alert["subject"]) == f"✗ feeds: bad failed, 10 runs in a row [{host()}]"
    assert recovered["in-reply-to"] == alert["message-id"] and "bad works again after 10 failed runs" in text(
        recovered
    )


def test_ok_resets_and_a_run_that_died_does_not(handler: Handlers, mails: Mails, box: Outbox) -> None:
    def failures() -> int:
        return int(state.read(box, "digest", "feeds")["incidents"].get("k", {}).get("failures", 0))

    fail = errors(1, key="k")
    for _ in range(2):
        a_run(handler, fail, after_runs=3)
    assert failures() == 2
    with pytest.raises(RuntimeError):
        a_run(handler, lambda one: (_ for _ in ()).throw(RuntimeError("died before the feed")), after_runs=3)
    assert failures() == 2
    a_run(handler, lambda one: one.ok("k"), after_runs=3)
    assert failures() == 0
    for _ in range(2):
        a_run(handler, fail, after_runs=3)
    a_run(handler, lambda one: None, after_runs=3)
    assert failures() == 0 and not mails.sink.messages


def test_reminders_and_mutes(
    handler: Handlers, mails: Mails, box: Outbox, outmail: Callable[..., subprocess.CompletedProcess[bytes]]
) -> None:
    for _ in range(3):
        a_run(handler, errors(1, key="k"), after_runs=2, remind="1ms")
    assert len(mails.wait(2)) == 2
    store = ("--store", box.store.url)
    assert outmail("digest", "mute", "feeds", "k", "1h", *store).returncode == 0
    a_run(handler, errors(1, key="k"), after_runs=2, remind="1ms")
    assert len(mails.wait(2)) == 2


def test_the_first_alert_goes_soon_and_the_rest_is_held_to_a_rate(
    handler: Handlers, mails: Mails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outmail.reports.digest.GATHER", 0.0)
    one = handler(at_most="2/h", max_delay="1s")

    def one_more() -> bool:
        log.error("storm")
        return bool(mails.sink.messages)

    until(one_more)
    for _ in range(3):
        log.error("storm")
        one.flush()
    assert len(mails.wait(2)) == 2
    with one.run():
        log.error("storm")
    assert len(mails.wait(2)) == 2


def test_what_was_held_back_is_counted(handler: Handlers, box: Outbox, mails: Mails) -> None:
    for _ in range(4):
        a_run(handler, errors(1), at_most=1)
    assert (
        state.read(box, "digest", "feeds")["held"] == 3
        and state.read(box, "digest", "feeds")["pending"]["total"] == 3
    )
    document = state.read(box, "digest", "feeds")
    state.remember(box, "digest", "feeds", {**document, "mails": []})
    a_run(handler, errors(1), at_most=1)
    assert "3 times" in text(mails.wait(2)[1]) and "4 errors" in str(mails.wait(2)[1]["subject"])


def test_twenty_thousand_records(handler: Handlers, mails: Mails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outmail.reports.digest.GATHER", 3600.0)

    def work(one: DigestHandler) -> None:
        for i in range(20_000):
            log.error("record %d", i)

    a_run(handler, work)
    (mail,) = mails.wait(1)
    said = text(mail)
    assert (
        "20,000" in said
        and "record 0\r" in said
        and "record 19999" in said
        and "lines left out" in said
        and len(said) < 120_000
    )
    a_run(handler, errors(1))
    assert "1 error" in str(mails.wait(2)[1]["subject"])


def test_the_spool_is_bounded_and_says_what_it_left_out(handler: Handlers, mails: Mails) -> None:
    def work(one: DigestHandler) -> None:
        for _ in range(1000):
            log.error("x" * 500)

    a_run(handler, work, spool_limit=50_000)
    assert "1,000" in text(mails.wait(1)[0])


def test_a_killed_program_loses_nothing(
    sink: Sink, mails: Mails, tmp_path: Path, handler: Handlers, box: Outbox
) -> None:
    code = (
        "import logging, os, outmail\nbox = outmail.Outbox('q.db', deliver='never')\n"
        "logging.getLogger().addHandler(outmail.DigestHandler(outbox=box, name='feeds'))\n"
        "for i in range(7): logging.error('before the end %d', i)\nos.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, timeout=60)
    a_run(handler, lambda one: None)
    (mail,) = mails.wait(1)
    assert "7 errors" in str(mail["subject"]) and "before the end 6" in text(mail)


def test_process_start_to_exit_is_a_run(sink: Sink, mails: Mails, tmp_path: Path) -> None:
    code = (
        "import logging, logging.config, outmail\nlogging.config.dictConfig({'version': 1, 'handlers': "
        "{'mail': {'class': 'outmail.DigestHandler', 'to': ['me@x.test'], 'name': 'prog'}}, 'root': "
        "{'handlers': ['mail']}})\nlogging.error('at the end')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
        env={
            **os.environ,
            "OUTMAIL_STORE": str(tmp_path / "q.db"),
            "OUTMAIL_RELAY": sink.url,
            "OUTMAIL_FROM": "r@x.test",
        },
    )
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    assert mails.subjects(1) == [f"[{host()}] prog: 1 error"]
    assert not list((tmp_path / "q.db.spool").glob("digest*"))


def test_two_runs_at_once_lose_nothing(make_box: MakeBox, sink: Sink) -> None:
    box = make_box(relay=sink.url, toml='to = ["me@x.test"]', deliver="never")

    def run(number: int) -> None:
        one = DigestHandler(outbox=box, name="shared", min_records=10_000)
        for i in range(50):
            one.handle(logging.LogRecord("app", 40, "f", 1, "run %d line %d", (number, i), None))
            if i % 10 == 0:
                one.flush()
        one.close()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state.read(box, "digest", "shared")["pending"]["total"] == 200


def test_the_store_away_keeps_the_records(
    handler: Handlers,
    box: Outbox,
    mails: Mails,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise outmail.NotStored("the disk is full")

    monkeypatch.setattr(type(box), "report", away)
    a_run(handler, errors(3))
    assert "disk is full" in capsys.readouterr().err
    monkeypatch.undo()
    a_run(handler, errors(1))
    assert "4 errors" in mails.subjects(1)[0]


def test_never_raises_and_never_feeds_itself(
    make_box: MakeBox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = make_box(deliver="never")
    one = DigestHandler(outbox=box, name="x")
    one.handle(logging.LogRecord("outmail.engine", 50, "f", 1, "our own", (), None))
    assert one._spool is None
    one._limit = -1
    one.handle(logging.LogRecord("app", 50, "f", 1, "x", (), None))
    one.close()
    one.handle(logging.LogRecord("app", 50, "f", 1, "after close", (), None))

    class Nowhere:
        spool = "/proc/nowhere/spool"

    lost = DigestHandler(outbox=Nowhere(), name="y")  # type: ignore[arg-type]
    lost.handle(logging.LogRecord("app", 50, "f", 1, "x", (), None))
    lost.handle(logging.LogRecord("app", 50, "f", 1, "x", (), None))
    assert capsys.readouterr().err.count("cannot be kept") == 1
    lost._closed = True
    poster().untick(lost._tick)


def test_queue_handler_and_forks(handler: Handlers, mails: Mails) -> None:
    one = handler()
    records: queue.SimpleQueue[Any] = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(records, one)
    listener.start()
    through = logging.getLogger("queued")
    through.addHandler(logging.handlers.QueueHandler(records))
    through.propagate = False
    through.error("by a queue")
    listener.stop()
    pid = os.fork()
    if not pid:
        log.error("in the child")
        os._exit(0)
    os.waitpid(pid, 0)
    with one.run():
        pass
    assert "2 errors" in mails.subjects(1)[0]


@pytest.mark.parametrize(
    "words",
    [
        {"min_records": 0},
        {"after_runs": "x"},
        {"max_delay": "soon"},
        {"at_most": "often"},
        {"trigger_level": "LOUD"},
        {"remind": "5"},
    ],
)
def test_wrong_options_raise_at_configuration(words: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="DigestHandler"):
        DigestHandler(**words)


def test_the_predecessors_options(handler: Handlers, mails: Mails) -> None:
    def work(one: DigestHandler) -> None:
        log.error("one")
        log.info("not me")

    a_run(handler, work, only_errors=True, threshold=2)
    assert not mails.sink.messages
    a_run(handler, errors(1), only_errors=True, threshold=2)
    assert "2 errors" in mails.subjects(1)[0]
    a_run(handler, lambda one: log.info("a line"), threshold=1)
    assert "1 notice" in mails.subjects(2)[1]


def test_the_command(
    handler: Handlers, mails: Mails, box: Outbox, outmail: Callable[..., subprocess.CompletedProcess[bytes]]
) -> None:
    a_run(handler, errors(3), min_records=10)
    store = ("--store", box.store.url)
    assert outmail("digest", "ls", *store).stdout.startswith(b"feeds")
    assert b"it failed" in outmail("digest", "show", "feeds", *store).stdout
    assert json.loads(outmail("digest", "show", "feeds", "--json", *store).stdout)["records"] == 3
    assert (
        outmail("digest", "show", "nobody", *store).returncode == 66
        and outmail("digest", "send", *store).returncode == 64
    )
    assert b"queued" in outmail("digest", "send", "feeds", *store, OUTMAIL_TO="me@x.test").stderr
    outmail("run", "--once", *store, "--relay", mails.sink.url)
    assert "3 errors" in mails.subjects(1)[0]
    a_run(handler, errors(2), min_records=10)
    assert outmail("digest", "drop", "feeds", *store).stderr == b"2 records dropped\n"


def test_gathering_is_bounded_and_counts_exactly() -> None:
    gathered = Gathered(head_size=5, tail_size=3)
    for i in range(MAX_GROUPS + 500):
        gathered.add(
            Line(float(i * 60), 40, "l", f"kind {i}", f"kind {i}"), f"{'t':<15}kind {i}", counts=True
        )
    assert (
        len(gathered.groups) == MAX_GROUPS
        and gathered.others == 500
        and gathered.total == gathered.counted == MAX_GROUPS + 500
    )
    assert len(gathered.head) == 5 and len(gathered.tail) == 3 and gathered.omitted == gathered.total - 8
    one = Gathered()
    for i in range(100_000):
        one.add(Line(float(i), 40, "l", "same", "same"), f"{'t':<15}same", counts=True)
    (group,) = one.groups.values()
    assert (
        group.count == sum(group.times.values()) == 100_000
        and len(group.times) <= 60
        and len(one.head) == 1
        and "× 100000" in one.head[0]
    )
    again = Gathered.load(json.loads(json.dumps(one.dump())), 100, 20)
    assert again.dump() == one.dump()


def test_every_kind_of_mail_has_its_pictures() -> None:
    from outmail.reports.mail import _TONE

    folder = Path(__file__).parents[2] / "docs" / "img" / "mails"
    names = {path.stem for path in folder.glob("*.txt")}
    assert set(_TONE) - {"reminder"} <= names and "watch-reminder" in names
    for name in names:
        assert all((folder / f"{name}-{kind}.png").exists() for kind in ("light", "dark", "375"))
        assert all(
            len(line) <= 78
            for line in (folder / f"{name}.txt").read_text().splitlines()
            # Log records, and what a server has said, stay whole.
            if not re.match(r"Subject:|From:|\d\d-\d\d \d\d:|  \d\d\d \d\.\d", line)
        )
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000
