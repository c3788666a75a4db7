"""Behaviours 13–17, 71, 80 and DESIGN's crash table: stop at C1…C5, restart, assert."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from outmail.outbox.outbox import Outbox
from outmail.testing import Sink
from tests.waiting import until, until_in_loop

MakeBox = Callable[..., Outbox]
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]

PRODUCE = """
import sys, outmail
box = outmail.Outbox(sys.argv[1], deliver="never")
print(box.send("a@x.test", "s", "t", sender="me@x.test", key="order-1").id, flush=True)
"""


def produce(tmp_path: Path, fail: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", PRODUCE, str(tmp_path / "q.db")],
        env={**os.environ, "OUTMAIL_FAIL": fail} if fail else dict(os.environ),
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_c1_before_the_commit_nothing_is_stored(tmp_path: Path, make_box: MakeBox) -> None:
    assert produce(tmp_path, "C1:kill").returncode == -signal.SIGKILL
    assert not list(make_box(deliver="never").find())
    assert produce(tmp_path, "").returncode == 0


def test_c2_after_the_commit_a_key_makes_it_one_mail(tmp_path: Path, make_box: MakeBox) -> None:
    assert produce(tmp_path, "C2:kill").returncode == -signal.SIGKILL
    again = produce(tmp_path, "")
    assert [s.id for s in make_box(deliver="never").find()] == [again.stdout.decode().strip()]


@pytest.mark.parametrize("action", ["kill", "exit"])
def test_c3_leased_but_no_dot_is_sent_once_and_unmarked(
    sink: Sink, make_box: MakeBox, outmail: Run, action: str
) -> None:
    box = make_box(deliver="never")
    id = box.send("a@x.test", "s", "t").id
    outmail("run", "--once", "--store", "q.db", "--relay", sink.url, OUTMAIL_FAIL=f"C3:{action}")
    assert box.status(id).status == "sending"
    outmail("run", "--once", "--store", "q.db", "--relay", sink.url)
    assert (
        box.status(id).status == "delivered"
        and len(sink.messages) == 1
        and not box.status(id).recipients[0].uncertain
    )


def test_c4_dot_sent_but_not_settled_is_marked_and_sent_again(
    sink: Sink, make_box: MakeBox, outmail: Run
) -> None:
    box = make_box(deliver="never")
    id = box.send("a@x.test", "s", "t").id
    outmail("run", "--once", "--store", "q.db", "--relay", sink.url, OUTMAIL_FAIL="C4:kill")
    outmail("run", "--once", "--store", "q.db", "--relay", sink.url)
    recipient = box.status(id).recipients[0]
    assert recipient.state == "delivered" and recipient.uncertain and len(sink.messages) == 2
    assert sink.messages[0].content == sink.messages[1].content


def test_c5_settled_is_never_sent_again(sink: Sink, make_box: MakeBox, outmail: Run) -> None:
    box = make_box(deliver="never")
    id = box.send("a@x.test", "s", "t").id
    outmail("run", "--once", "--store", "q.db", "--relay", sink.url, OUTMAIL_FAIL="C5:kill")
    outmail("run", "--once", "--store", "q.db", "--relay", sink.url)
    assert box.status(id).status == "delivered" and len(sink.messages) == 1
    assert [e.event for e in box.events()] == ["accepted", "delivered"]


def test_the_pid_in_a_dead_engines_record_may_be_anybodys(
    sink: Sink, make_box: MakeBox, outmail: Run
) -> None:
    box = make_box(deliver="never")
    id = box.send("a@x.test", "s", "t").id
    outmail("run", "--once", "--store", "q.db", "--relay", sink.url, OUTMAIL_FAIL="C3:kill")
    box.store.commit([_set_pid(os.getpid())])
    outmail("run", "--once", "--store", "q.db", "--relay", sink.url)
    assert box.status(id).status == "delivered"


def _set_pid(pid: int):  # type: ignore[no-untyped-def]
    yield "UPDATE owner SET pid = ?", (pid,)


def test_corrupt_content_is_quarantined_and_the_others_go_out(
    sink: Sink, make_box: MakeBox, outmail: Run
) -> None:
    box = make_box(deliver="never")
    bad, missing, good = (box.send("a@x.test", f"s{i}", "t").id for i in range(3))
    box.store.commit([_spoil(box.queue.seq(bad), box.queue.seq(missing))])
    done = outmail("run", "--once", "--strict", "--store", "q.db", "--relay", sink.url)
    assert done.returncode == 70
    assert [box.status(id).status for id in (bad, missing, good)] == ["held", "held", "delivered"]
    assert "corrupt" in box.status(bad).recipients[0].reason and len(sink.messages) == 1


def _spoil(bad: int, missing: int):  # type: ignore[no-untyped-def]
    yield "UPDATE body SET content = substr(content, 1, 20) WHERE seq = ?", (bad,)
    yield "DELETE FROM body WHERE seq = ?", (missing,)


def test_a_row_deleted_while_being_sent_harms_nothing(sink: Sink, make_box: MakeBox) -> None:
    sink.script("DATA: delay 0.3 x1")
    box = make_box(sink.url)
    gone = box.send("a@x.test", "s", "t").id
    until(lambda: "DATA" in sink.commands)
    box.store.run(_delete(box.queue.seq(gone)))
    other = box.send("b@x.test", "s", "t").id
    assert box.wait(other, 10).status == "delivered"


def _delete(seq: int):  # type: ignore[no-untyped-def]
    for table, column in (("recipient", "message"), ("body", "seq"), ("message", "seq")):
        yield f"DELETE FROM {table} WHERE {column} = ?", (seq,)


def test_two_engines_share_a_queue_without_a_double(sink: Sink, make_box: MakeBox, tmp_path: Path) -> None:
    box = make_box(deliver="never", toml=f'relay = "{sink.url}"\n')
    box.send_many([{"to": f"u{i}@x.test", "subject": "s", "text": "t"} for i in range(400)])
    command = [
        sys.executable,
        "-m",
        "outmail",
        "run",
        "--once",
        "--store",
        str(tmp_path / "q.db"),
        "--relay",
        sink.url,
    ]
    engines = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [engine.wait(60) for engine in engines] == [0, 0]
    got = [m.recipients[0] for m in sink.messages]
    assert len(got) == len(set(got)) == 400


def test_sigterm_finishes_the_dialogue_and_returns_the_rest(
    sink: Sink, make_box: MakeBox, tmp_path: Path
) -> None:
    sink.script("DOT: delay 0.5")
    box = make_box(deliver="never")
    ids = [box.send(f"u{i}@x.test", "s", "t").id for i in range(40)]
    engine = subprocess.Popen(
        [sys.executable, "-m", "outmail", "run", "--store", str(tmp_path / "q.db"), "--relay", sink.url],
        stderr=subprocess.PIPE,
    )
    until(lambda: "DATA" in sink.commands)
    engine.send_signal(signal.SIGTERM)
    assert engine.wait(30) == 0, engine.communicate()
    states = [box.status(id).status for id in ids]
    assert set(states) == {"delivered", "queued"} and states.count("delivered") == len(sink.messages)
    assert not any(box.status(id).recipients[0].uncertain for id in ids)


def test_a_dot_without_an_answer_at_shutdown_is_uncertain(
    sink: Sink, make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    from outmail.clock import Clock
    from outmail.engine import engine as module
    from outmail.wiring import build_engine

    monkeypatch.setattr(module, "PATIENCE", 0.2)
    sink.script("DOT: hang")
    box = make_box(deliver="never", toml=f'relay = "{sink.url}"\n')
    id = box.send("a@x.test", "s", "t").id
    engine = build_engine(box.store, box.config, box.routes, Clock())

    async def story() -> None:
        running = asyncio.ensure_future(engine.run())
        await until_in_loop(
            lambda: any(
                r.dotted
                for hop in engine.hops.values()
                for feed in hop.feeds
                for d in feed.flying
                for r in d.recipients
            )
        )
        engine.stop()
        await running

    asyncio.run(story())
    recipient = box.status(id).recipients[0]
    assert recipient.state == "queued" and recipient.uncertain


def test_a_small_kill_campaign() -> None:
    script = Path(__file__).parents[1] / "campaigns" / "kills.py"
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "6", "--messages", "240", "--seed", "1"],
        capture_output=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
