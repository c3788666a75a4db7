"""Eight producer processes and an engine on one SQLite file for a minute: no busy error, p99 of submit below
250 ms.

Run: python tests/campaigns/producers.py [--seconds 60]. Writes soak-producers.json; exit status 0 only if
both hold and everything accepted arrived. The small form, which asserts counts and no times, is part of `make
test`.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from outmail.outbox.outbox import Outbox
from outmail.testing import Sink

PRODUCER = """
import json, sys, time
from outmail import Outbox

box, end, times, errors = (
    Outbox(sys.argv[1], relay=sys.argv[2], deliver="never"),
    time.time() + float(sys.argv[3]),
    [],
    [],
)
while time.time() < end:
    began = time.perf_counter()
    try:
        box.submit(
            b"From: a@x.test\\r\\nSubject: s\\r\\n\\r\\n" + b"x" * 4000 + b"\\r\\n",
            sender="a@x.test",
            recipients="b@x.test",
        )
        times.append(time.perf_counter() - began)
    except Exception as problem:
        errors.append(repr(problem))
    time.sleep(0.005)
print(json.dumps([times, errors]))
"""


def campaign(folder: Path, seconds: float, producers: int = 8) -> dict[str, object]:
    """Run it; the result has ``errors``, ``p99_ms``, ``submitted`` and ``delivered``."""
    store = folder / "q.db"
    with Sink(keep=False) as sink:
        box = Outbox(store, relay=sink.url, deliver="thread", exit_wait=60)
        running = [
            subprocess.Popen(
                [sys.executable, "-c", PRODUCER, str(store), sink.url, str(seconds)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(producers)
        ]
        answers = [json.loads(process.communicate(timeout=seconds + 60)[0]) for process in running]
        times = sorted(t for found, _ in answers for t in found)
        deadline = time.monotonic() + 60
        while sink.count < len(times) and time.monotonic() < deadline:
            time.sleep(0.05)
        box.close()
        return {
            "submitted": len(times),
            "delivered": sink.count,
            "errors": [error for _, found in answers for error in found][:5],
            "p50_ms": round(times[len(times) // 2] * 1000, 1),
            "p99_ms": round(times[len(times) * 99 // 100] * 1000, 1),
        }


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seconds", type=float, default=60)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="outmail-producers-") as folder:
        result = campaign(Path(folder), options.seconds)
    result |= {
        "seconds": options.seconds,
        "machine": platform.platform(),
        "python": platform.python_version(),
    }
    print(json.dumps(result, indent=1))
    Path("soak-producers.json").write_text(json.dumps(result, indent=1) + "\n")
    return (
        0
        if not result["errors"]
        and result["submitted"] == result["delivered"]
        and float(str(result["p99_ms"])) < 250
        else 1
    )


if __name__ == "__main__":
    sys.exit(main())
