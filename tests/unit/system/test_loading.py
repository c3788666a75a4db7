"""A fork waits for a module that is being loaded, and the child can load what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from outmail.system.loading import loading

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def test_a_fork_waits_for_a_thread_that_loads() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def load() -> None:
        with loading:
            inside.set()
            go_on.wait(20)

    thread = threading.Thread(target=load)
    thread.start()
    assert inside.wait(20)
    threading.Timer(0.2, go_on.set).start()
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        with loading:
            os._exit(0 if go_on.is_set() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 and time.monotonic() - began > 0.15
    thread.join(20)
    with loading:
        pass


#: Loading a module takes a moment, so that the fork comes in the middle of it.
SLOW = """
import os, sys, threading, time
class Slow:
    seen = threading.Event()
    def find_spec(self, name, path=None, target=None):
        if name in {slow!r}:
            self.seen.set()
            time.sleep(0.3)
sys.meta_path.insert(0, Slow())
{begin}
thread = threading.Thread(target=work)
thread.start()
assert Slow.seen.wait(20)
if (child := os.fork()) == 0:
    work()
    os._exit(0)
thread.join(20)
deadline = time.monotonic() + 20
while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
    time.sleep(0.02)
if not ended[0]:
    os.kill(child, 9)
os._exit(0 if ended[0] and ended[1] == 0 else 1)
"""
SEND = """
from outmail import Outbox
box = Outbox("q.db", deliver="never")
def work():
    box.send("a@x.test", "s", "t", "<p>x</p>", sender="b@x.test")
"""
LOG = """
import logging
from outmail import DigestHandler
log = logging.getLogger("app")
log.addHandler(DigestHandler(to="a@x.test", name="x"))
def work():
    log.error("one")
"""
OPEN = """
from outmail import Outbox
def work():
    Outbox(f"{os.getpid()}.db", relay="null:").send("a@x.test", "s", "t", sender="b@x.test")
"""


@pytest.mark.parametrize(
    ("begin", "slow"),
    [
        (SEND, ["email.generator", "email.message"]),
        (OPEN, ["outmail.engine.completer", "asyncio"]),
        (LOG, ["email.generator", "outmail.system.lockfile", "random", "json.encoder"]),
    ],
    ids=["send", "open", "log"],
)
def test_a_child_forked_in_the_middle_of_a_first_use_does_not_hang(
    begin: str, slow: list[str], tmp_path: Path
) -> None:
    code = SLOW.format(slow=slow, begin=begin)
    if begin is LOG:  # everything is loaded with the handler: nothing is left that a record could wait for
        code = code.replace("assert Slow.seen.wait(20)", "time.sleep(0.02)")
    environment = {**os.environ, "HOME": str(tmp_path), "OUTMAIL_STORE": str(tmp_path / "q.db")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, env=environment, timeout=90
    )
    assert done.returncode == 0
