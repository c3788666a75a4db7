"""A PostgreSQL queue at full load for half an hour, beside a million finished rows and an idle transaction
that holds its snapshot.

Run: python tests/campaigns/steady.py --minutes 30. A program keeps some thousands of messages waiting, one
`outmail run` drains them into smtp-sink (Debian's package postfix). Prints each minute's rate; the fall-off
is the last fifth beside the first. Writes soak-steady.json beside the caller. Exit status 0 only if the
engine ended in order and nothing was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import psycopg
from bench import lab

from outmail import Outbox
from tests import pgserver

CONTENT = b"From: a@x.test\r\nSubject: steady\r\n\r\n" + b"".join(
    os.urandom(32).hex().encode() + b"\r\n" for _ in range(58)
)
FINISHED = """
INSERT INTO outmail.message
    (seq, id, sender, message_id, subject, size, sha256, needs, priority, accepted_at, expires_at)
SELECT nextval('outmail.message_seq'), lpad(i::text, 26, '0'), 'a@x.test', '<' || i || '@x>', 'done',
    4000, ''::bytea, 0, 1, %(now)s, %(now)s + 1000
FROM generate_series(%(first)s, %(last)s) i;
"""
RECIPIENTS = """
INSERT INTO outmail.recipient
    (message, n, address, destination, priority, state, expires_at, finished_at, attempts, attempt)
SELECT seq, 1, 'b@x.test', 'default', 1, 'delivered', accepted_at + 1000, accepted_at + 10, 1, NULL
FROM outmail.message WHERE subject = 'done';
"""


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--minutes", type=float, default=30.0)
    arguments.add_argument("--finished", type=int, default=1_000_000)
    arguments.add_argument("--server", default=max(pgserver.installed(), key=int))
    options = arguments.parse_args()
    server = pgserver.PgServer(pgserver.installed()[options.server]).start()
    sink = lab.SinkProcess()
    try:
        with tempfile.TemporaryDirectory(prefix="outmail-steady-") as folder:
            os.environ["XDG_STATE_HOME"] = folder
            result = steady(Path(folder), server, sink, options.minutes, options.finished)
    finally:
        sink.close()
        server.remove()
    result |= {
        "server": options.server,
        "machine": platform.platform(),
        "python": platform.python_version(),
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
    }
    print(json.dumps(result, indent=1))
    if options.minutes >= 10:
        Path("soak-steady.json").write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["bad"] else 0


def steady(
    folder: Path, server: pgserver.PgServer, sink: lab.SinkProcess, minutes: float, finished: int
) -> dict[str, Any]:
    url = server.create("steady")
    box = Outbox(url, deliver="never")
    with psycopg.connect(url, autocommit=True) as db:
        now = int(time.time() * 1000)
        for first in range(1, finished + 1, 100_000):
            db.execute(FINISHED, {"now": now, "first": first, "last": min(finished, first + 99_999)})
        db.execute(RECIPIENTS)
        db.execute("ANALYZE")
    print(f"{finished} finished messages are there", flush=True)
    with psycopg.connect(url) as stranger:
        stranger.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        stranger.execute("SELECT count(*) FROM outmail.note")  # its snapshot stands until the end
        (folder / "o.toml").write_text(f'store = "{url}"\nrelay = "smtp://127.0.0.1:{sink.port}"\n')
        with open(folder / "log", "wb") as log:
            engine = subprocess.Popen(
                [sys.executable, "-m", "outmail", "run", "--config", str(folder / "o.toml")], stderr=log
            )
        submitted, rates = 0, []
        minute, before = time.monotonic(), 0
        end = minute + minutes * 60
        while time.monotonic() < end:
            if submitted - sink.count < 4000:
                submitted += len(
                    box.submit_many(
                        {"content": CONTENT, "sender": "a@x.test", "recipients": "b@x.test"}
                        for _ in range(500)
                    )
                )
            else:
                time.sleep(0.02)
            if time.monotonic() - minute >= 60:
                rates.append((sink.count - before) / (time.monotonic() - minute))
                minute, before = time.monotonic(), sink.count
                dead = server_dead_rows(url)
                print(
                    f"{len(rates)} min: {rates[-1]:,.0f}/s, {dead:,} dead rows in recipient_live", flush=True
                )
        sink.wait(submitted, 120)
        stranger.rollback()
    engine.terminate()
    status = engine.wait(90)
    box.close()
    fifth = max(1, len(rates) // 5)
    early, late = statistics.mean(rates[:fifth]), statistics.mean(rates[-fifth:])
    bad = {"lost": submitted - sink.count} if sink.count < submitted else {"exit": status} if status else {}
    return {
        "minutes": minutes,
        "finished": finished,
        "messages": submitted,
        "rates": [round(rate) for rate in rates],
        "first": round(early),
        "last": round(late),
        "fall-off": round(late / early, 2),
        "bad": bad,
    }


def server_dead_rows(url: str) -> int:
    with psycopg.connect(url) as db:
        row = db.execute(
            "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'recipient_live'"
        ).fetchone()
        return int(row[0]) if row else 0


if __name__ == "__main__":
    sys.exit(main())
