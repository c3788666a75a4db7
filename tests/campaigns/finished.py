"""Ten million finished messages change nothing: start-up, memory and rate beside an empty queue (BEHAVIOURS
73).

Run: python tests/campaigns/finished.py [--rows 10000000] [--dir DIR]. The rows are what retention leaves: no
bodies. Exit status 0 only if opening takes under 2 s, the engine stays under 200 MB and keeps 80 % of the
rate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import apsw

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench.run import CONFIG, drained_apart, sink_process

from outmail.outbox.outbox import Outbox

SPAN = (
    "WITH RECURSIVE span (value) AS (SELECT :first UNION ALL SELECT value + 1 FROM span WHERE value < :last) "
)
FILL = (
    "INSERT INTO message SELECT value, printf('%026d', value), 'me@x.test', printf('<%d@x.test>', value), "
    "'old', 4000, zeroblob(32), 0, 1, :at, :at + 432000000,"
    " NULL, NULL, NULL, NULL FROM span",
    "INSERT INTO recipient SELECT value, 1, printf('user%d@example.test', value), 'default', 1, 'delivered', "
    "NULL, :at + 432000000, 0, 0, 0, NULL, 1, '', value,"
    " NULL, NULL, NULL, :at FROM span",
    "INSERT INTO attempt SELECT value, value, :at, 'default', 'mx', 5, 'delivered', 250, '2.0.0', 'Ok', "
    "'[1]', NULL FROM span",
    "INSERT INTO event SELECT value, :at, 'delivered', value, 1, 'delivered', 0, '', 1, value FROM span",
)


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rows", type=int, default=10_000_000)
    arguments.add_argument("--dir")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="outmail-finished-", dir=options.dir) as name:
        folder = Path(name)
        path = folder / "f.db"
        Outbox(path, config=CONFIG, deliver="never").close()
        db = apsw.Connection(str(path))
        at = int(time.time() * 1000) - 3_600_000
        for first in range(1, options.rows, 500_000):
            with db:
                for sql in FILL:
                    db.execute(
                        SPAN + sql, {"first": first, "last": min(first + 499_999, options.rows), "at": at}
                    )
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
        began = time.perf_counter()
        Outbox(path, config=CONFIG, deliver="never").close()
        opening = time.perf_counter() - began
        ratios, memory = [], 0.0
        with sink_process() as port:
            for i in range(3):
                busy, used = drained_apart(path, port)
                empty, _ = drained_apart(folder / f"e{i}.db", port)
                ratios.append(busy / empty)
                memory = max(memory, used)
    result = {
        "rows": options.rows,
        "opening_s": round(opening, 3),
        "memory_mb": memory,
        "rate_beside_empty": round(statistics.median(ratios), 2),
    }
    print(json.dumps(result))
    return 0 if opening < 2 and memory < 200 and statistics.median(ratios) >= 0.8 else 1


if __name__ == "__main__":
    sys.exit(main())
