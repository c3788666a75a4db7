"""The real podcast client poca, with outmail's BufferSMTPHandler in the place of its own, into outmail's
listener: a feed that fails in three runs, and a threshold of two.
"""

from __future__ import annotations

import email
import email.policy
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from live import Live, until
from results import check

live = Live()
folder = Path(tempfile.mkdtemp(prefix="outmail-live-"))
PROGRAM = """
import runpy, sys
import poca.loggers
from outmail.compat.handlers import BufferSMTPHandler
poca.loggers.BufferSMTPHandler = BufferSMTPHandler
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
SETTINGS = f"""<poca><settings><base_dir>{folder}/media</base_dir><email>
<only_errors>yes</only_errors><threshold>2</threshold><host>127.0.0.1:{live.port}</host>
<fromaddr>poca@example.com</fromaddr><toaddr>me@example.com</toaddr></email></settings>
<subscriptions><subscription><title>Feed</title><url>http://127.0.0.1:1/feed</url></subscription></subscriptions>
</poca>"""
(folder / "poca.xml").write_text(SETTINGS)


def run() -> int:
    """One run of poca; how many mails came in all."""
    script = Path(sys.executable).with_name("poca")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(script), "--quiet", "--email", "--config", str(folder)],
        env={**os.environ, "OUTMAIL_STORE": str(folder / "q.db")},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return len(live.received())


def three_runs() -> None:
    assert run() == 0, "one failure is fewer than the threshold"
    run()
    until(live.received)
    assert run() == 1, "the third failure begins anew"
    (mail,) = live.received()
    assert (mail.sender, mail.recipients) == ("poca@example.com", ["me@example.com"])
    message: Any = email.message_from_bytes(mail.content, policy=email.policy.default)
    text = " ".join(message.get_body(("plain",)).get_content().split())
    assert message["subject"] == "POCA log" and "2 errors" in text and "FEED" in text, text


try:
    check("three runs, threshold 2", three_runs)
finally:
    live.stop()
