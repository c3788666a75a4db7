"""Other users of this machine, for tests that run as root: an interpreter that they may run."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

#: Where outmail and what it needs are, for another interpreter.
PATHS = os.pathsep.join(
    [str(Path(__file__).parents[1] / "src"), *(path for path in sys.path if path.endswith("site-packages"))]
)
NOBODY: dict[str, Any] = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}


@cache
def everybodys_python() -> str:
    """An interpreter that other users may run, with outmail and what it needs; "" for none."""
    if os.geteuid() != 0:
        return ""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": PATHS, "PYTHONDONTWRITEBYTECODE": "1"}
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            words = [python, "-c", "import outmail.outbox.outbox, apsw; apsw.Error"]
            subprocess.run(words, env=env, check=True, timeout=60, cwd="/", capture_output=True, **NOBODY)
        except (OSError, subprocess.SubprocessError):
            continue
        return python
    return ""


needs_root = pytest.mark.skipif(
    not everybodys_python(),
    reason="needs root, and an interpreter that other users may run, to act as other users",
)
