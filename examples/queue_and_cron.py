"""A program queues mail; cron delivers it: the relay may be down, slow or greylisting meanwhile.

Usage: queue_and_cron.py STORE RELAY
"""

import subprocess
import sys

import outmail

store, relay = sys.argv[1:3]
with outmail.Outbox(store, deliver="never") as box:
    for n in range(3):
        box.send(
            f"customer-{n}@example.org",
            f"Invoice {n}",
            "Thank you.\n",
            sender="shop@example.org",
            key=f"invoice-{n}",
        )

# What a crontab line does every few minutes:
subprocess.run(
    [sys.executable, "-m", "outmail", "run", "--once", "--store", store, "--relay", relay], check=True
)

with outmail.Outbox(store, deliver="never") as box:
    for status in box.find():
        print(status.id, status.status, status.recipients[0].reply)
