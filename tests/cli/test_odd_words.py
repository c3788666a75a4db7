"""Whatever stands on the command line, the answer is a sentence and an exit status of sysexits, never a
traceback.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from outmail.cli import main
from outmail.outbox.outbox import Outbox

STATUSES = {0, 64, 65, 66, 69, 75, 77, 78}
VERBS = st.sampled_from([
    ["send"], ["show"], ["log"], ["why"], ["events"], ["explain"], ["move"], ["jobs", "show"],
    ["jobs", "list"], ["digest", "show"], ["config", "check"], ["config", "show"],
    *(["store", verb] for verb in ("check", "ddl", "backup")),
    *(["queue", verb] for verb in ("list", "stats", "hold", "release", "retry", "requeue", "cancel",
    "purge")),
])  # fmt: skip
WORDS = st.sampled_from([
    "", "-", "x", "b@x.test", "ALL", "state:queued", "state:", "larger:" + "9" * 400,
    "before:99999999999999999999d", "-1", "null:", "smtp://127.0.0.1:1", "smtp://", "q.db",
    "nope/q.db", "/proc/1/mem", "m.eml", "bad.toml", "\udcff", "a\nb", "ü@ü.test", "high", "%", "'",
    "postgresql://x@127.0.0.1:1/y", "sqlite+stdlib:q.db",
    "-f", "-s", "--cc", "-a", "--html", "-H", "--key", "--at", "--expires", "--priority", "--tag", "--relay",
    "--store", "--config", "--json", "--jsonl", "--limit", "--after", "--free", "-h",
])  # fmt: skip


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VERBS, st.lists(WORDS, max_size=4))
@example(["move"], ["bad.toml", "x"])
@example(["move"], ["/proc/1/mem", "x"])
@example(["move"], ["postgresql://x@127.0.0.1:1/y", "x"])
@example(["log"], ["\udcff"])
@example(["queue", "list"], ["\udcff"])
@example(["jobs", "show"], ["\udcff"])
@example(["queue", "list"], ["larger:" + "9" * 400])
def test_odd_words_are_answered_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: list[str], words: list[str]
) -> None:
    for name, value in {
        "OUTMAIL_STORE": str(tmp_path / "q.db"),
        "OUTMAIL_FROM": "me@x.test",
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    if not (tmp_path / "bad.toml").exists():
        (tmp_path / "m.eml").write_text("Subject: x\n\nhi\n")
        (tmp_path / "bad.toml").write_text("x = [")
        with Outbox(tmp_path / "q.db", deliver="never") as box:
            box.send("b@x.test", "s", sender="a@x.test")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace") for _ in range(2))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Subject: x\n\n\xff\n")))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    try:
        status = main([*verb, *words])
    except SystemExit as ending:
        status = int(ending.code or 0)
    err.flush()
    said = err.buffer.getvalue().decode()
    assert status in STATUSES and "Traceback" not in said, said
    assert status == 0 or said.strip(), "silent"
