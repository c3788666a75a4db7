"""mailqueue-runner's own tests with `outmail.compat.mailqueue` in the place of ``schwarz.mailqueue``: only
the imports are exchanged. Its test helpers and its SMTP client stay its own.

``mq-sendmail`` and ``mq-mail`` leave the sending to a process in the background; the helpers wait for it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

THEIRS, OURS = "schwarz.mailqueue", "outmail.compat.mailqueue"
#: Where the programs leave the mail of an ini file without queue_dir.
DATA = tempfile.mkdtemp(prefix="outmail-adapter-")
WAITING = f'''

import fcntl as _fcntl, glob as _glob, time as _time

def _ended():
    """No run works in the background, here or there."""
    places = _glob.glob("{DATA}/outmail/mailqueue/outmail.db.mq-run")
    _time.sleep(0.3)
    for place in places:
        with open(place) as file:
            _fcntl.flock(file, _fcntl.LOCK_EX)

_plain = retrieve_sent_message

def retrieve_sent_message(mta):
    end = _time.monotonic() + 20
    while not mta.received_messages.qsize() and _time.monotonic() < end:
        _time.sleep(0.05)
    _ended()
    return _plain(mta)
'''


def exchanged(text: str) -> str:
    """Imports of helpers and of the client stay; all others are ours."""
    text = text.replace(THEIRS, OURS).replace("envelope, testutils", "envelope; from theirs import testutils")
    for kept in ("testutils", "smtpclient", "compat", "lib"):
        text = text.replace(f"{OURS}.{kept}", f"theirs.{kept}")
    return text


def main(source: Path) -> int:
    place = Path(tempfile.mkdtemp(prefix="outmail-adapter-tests-"))
    package = source / "schwarz" / "mailqueue"
    helpers = place / "theirs"
    helpers.mkdir()
    (helpers / "__init__.py").write_text("")
    for name in ("testutils.py", "smtpclient.py", "compat.py"):
        text = (package / name).read_text()
        text = text.replace("from .smtpclient", "from theirs.smtpclient")
        text = text.replace("from .compat", "from theirs.compat").replace("from .", f"from {OURS}.")
        text = text.replace(
            f"from {OURS}.message_utils import msg_as_bytes",
            f"from {THEIRS}.message_utils import msg_as_bytes",
        )
        if name == "testutils.py":
            text = exchanged(text) + WAITING
        (helpers / name).write_text(text)
    tests = place / "tests"
    tests.mkdir()
    for test in (source / "tests").iterdir():
        if test.suffix == ".py":
            (tests / test.name).write_text(exchanged(test.read_text()))
        elif test.is_file():
            (tests / test.name).write_bytes(test.read_bytes())
    lib = (package / "lib" / "tests" / "result_test.py").read_text()
    (tests / "result_test.py").write_text(lib.replace("from ..result", f"from {OURS}.message_utils"))
    sys.path.insert(0, str(place))
    os.environ["PYTHONPATH"] = os.pathsep.join((str(place), os.environ.get("PYTHONPATH", "")))
    os.environ |= {"XDG_DATA_HOME": DATA, "XDG_CONFIG_HOME": DATA, "HOME": DATA}
    os.chdir(place)
    config = ["-c", os.devnull, "--rootdir", str(place), "-o", "python_files=*_test.py"]
    return int(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "results", *config, str(tests)]))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
