"""What is said of a next hop that gets nothing for a while: what is in force, and no longer."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from outmail.outbox.outbox import Outbox
from outmail.testing import Sink
from tests.waiting import until

MakeBox = Callable[..., Outbox]
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def told(box: Outbox) -> list[tuple[str, str | None]]:
    return [(event.event, event.route) for event in box.events() if event.id is None]


def test_a_pause_ends_with_its_engine_and_with_the_first_success(
    outmail: Run, make_box: MakeBox, sink: Sink, tmp_path: Path
) -> None:
    settings = tmp_path / "outmail.toml"
    settings.write_text('relay = "smtp://localhost:1"\n[retry]\nschedule = "1s…"\n')
    box = make_box(deliver="never")
    for n in range(6):
        box.send(f"a{n}@x.test", "s", "t")
    for _ in range(2):
        outmail("run", "--once", "--store", "q.db")
        box.retry("state:queued")
    assert told(box) == [("paused", "default")]
    listed = outmail("queue", "list", "--store", "q.db")
    assert b"takes nothing" not in listed.stderr and b"refused" in listed.stdout
    story = outmail("why", "a5@x.test", "--store", "q.db").stdout
    assert b"took nothing when it was tried last" in story and b"nobody listens on this port" in story
    settings.write_text(f'relay = "{sink.url}"\n')
    assert outmail("run", "--once", "--store", "q.db").returncode == 0
    assert told(box) == [("paused", "default"), ("resumed", "default")]
    assert next(event for event in box.events() if event.event == "resumed").as_dict()["id"] is None


def test_a_pause_is_shown_while_it_lasts_and_at_the_url_that_it_is_about(make_box: MakeBox) -> None:
    box = make_box(toml='relay = "smtp://localhost:1"', deliver="thread", exit_wait=0)
    for n in range(6):
        box.send(f"a{n}@x.test", "s", "t")
    until(lambda: box.queue.paused_hops())
    note = box.queue.paused_hops()["default"]
    assert "refused" in note["trouble"] and note["url"] == "smtp://localhost:1"
    elsewhere = make_box(toml='relay = "smtp://localhost:2"', deliver="never")
    assert elsewhere.queue.paused_hops() == {}
    box.close()
    assert elsewhere.queue.paused_hops() == make_box(deliver="never").queue.paused_hops() == {}
