"""Haraka as the next hop: it refuses on purpose what is sent ahead behind the final dot. Runs where Haraka is
found.

``HARAKA`` is the path of its program (``npm install Haraka`` puts it into node_modules/Haraka/bin/haraka), or
``haraka`` is in the PATH. ``HARAKA_MESSAGES`` says how many go through it (400).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outmail.outbox.outbox import Outbox
from outmail.transport import smtp as transport
from tests.pgserver import free_port
from tests.waiting import listens, until

HARAKA = os.environ.get("HARAKA") or shutil.which("haraka")
COUNT = int(os.environ.get("HARAKA_MESSAGES", "400"))
PLUGIN = """
const fs = require('fs')
exports.register = function () {}
exports.hook_rcpt = (next) => next(OK)
exports.hook_queue = (next, connection) => {
    const t = connection.transaction
    fs.appendFileSync('FILE', t.rcpt_to.map((r) => r.address.replace(/[<>]/g, '') + '\\n').join(''))
    next(OK)
}
"""


@pytest.fixture
def haraka(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """(port, file with a line for each recipient it took)."""
    assert HARAKA
    folder, taken, port = tmp_path / "haraka", tmp_path / "taken", free_port()
    (folder / "config").mkdir(parents=True)
    (folder / "plugins").mkdir()
    taken.touch()
    (folder / "plugins" / "take.js").write_text(PLUGIN.replace("FILE", str(taken)))
    for name, text in (
        ("plugins", "take\n"),
        ("smtp.ini", f"listen=127.0.0.1:{port}\nnodes=0\n"),
        ("log.ini", "level=warn\n"),
        ("me", "haraka.test\n"),
    ):
        (folder / "config" / name).write_text(text)
    shutil.copy(Path(HARAKA).resolve().parents[1] / "config" / "connection.ini", folder / "config")
    with open(tmp_path / "haraka.log", "wb") as log:
        process = subprocess.Popen(["node", HARAKA, "-c", str(folder)], stdout=log, stderr=log)
    try:
        until(lambda: process.poll() is not None or listens(port))
        assert process.poll() is None, (tmp_path / "haraka.log").read_text()
        yield port, taken
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.skipif(
    not (HARAKA and shutil.which("node")), reason="Haraka is not found: set HARAKA, or put it into the PATH"
)
@pytest.mark.parametrize("each", [1, 1000], ids=["a-connection-each", "kept-connections"])
def test_haraka(
    make_box: Callable[..., Outbox], haraka: tuple[int, Path], each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "REUSE_MESSAGES", each)
    port, taken = haraka
    box = make_box(f"smtp://127.0.0.1:{port}")
    sent = box.send_many(
        {"to": [f"u{i}@x.test"], "subject": str(i), "text": ".dot\n" * (i % 40)} for i in range(COUNT)
    )
    began = time.monotonic()
    ends = Counter(box.wait(receipt.id, 40 + COUNT / 50).status for receipt in sent)
    print(f"{COUNT} messages in {time.monotonic() - began:.1f} s")
    assert ends == {"delivered": COUNT}
    assert Counter(Counter(taken.read_text().split()).values()) == {1: COUNT}
    assert not any(r.uncertain for status in box.find() for r in status.recipients)
    notes = box.store.read(box.store.verbs.note_list("ahead"))
    assert bool(notes) == (each > 1) and all(note["reply"].startswith("503") for note in notes.values())
