"""Look into the queue, dump one message exactly as it will be sent, then send just that one by its id.

Usage: rows_dump_one.py STORE RELAY
"""

import subprocess
import sys

import outmail

store, relay = sys.argv[1:3]
command = [sys.executable, "-m", "outmail"]
with outmail.Outbox(store, deliver="never") as box:
    first, second = (
        box.send(f"{name}@example.org", "Notice", ".starts with a dot\n", sender="me@example.org").id
        for name in ("one", "two")
    )
    dump = subprocess.run(
        [*command, "show", first, "--raw", "--store", store], capture_output=True, check=True
    ).stdout
    assert dump == box.content(first)
    sys.stdout.write(dump.decode())
    subprocess.run([*command, "run", "--only", first, "--store", store, "--relay", relay], check=True)
    print(box.status(first).status, box.status(second).status)
