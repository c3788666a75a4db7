"""Standard streams that the caller has closed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("sendmail a@x.test <&-", 74, "sendmail: the message cannot be read: Bad file descriptor"),
        ("sendmail -bs <&-", 74, "sendmail: stdin cannot be read: Bad file descriptor"),
        ("mail -s s a@x.test <&-", 65, "mail: stdin cannot be read: Bad file descriptor"),
        ("send -f me@x.test a@x.test <&-", 65, "outmail: stdin cannot be read: Bad file descriptor"),
        ("mailq </dev/null >&-", 0, ""),
        ("sendmail -v -f me@x.test a@x.test </dev/null >&- 2>&-", 0, ""),
    ],
)
def test_a_closed_stream_is_no_bug_and_no_empty_message(
    tmp_path: Path, words: str, status: int, said: str
) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("OUTMAIL_")}
    env |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "OUTMAIL_STORE": str(tmp_path / "q.db")}
    line = f"{shlex.quote(sys.executable)} -m outmail {words}"
    done = subprocess.run(
        ["sh", "-c", line], cwd=tmp_path, env=env, stderr=subprocess.PIPE, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.decode().strip()) == (status, said)
    assert (tmp_path / "q.db").exists() or "-v" not in words
