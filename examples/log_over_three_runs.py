"""A log that is buffered over runs: four errors, five, and one more make one mail of ten.

Run: python log_over_three_runs.py STORE RELAY
"""

import logging
import sys

import outmail

store, relay = sys.argv[1:3]
box = outmail.Outbox(store, relay=relay)
log = logging.getLogger("poca")

for errors in (4, 5, 1):  # three runs of a program, one after the other
    handler = outmail.DigestHandler("me@example.org", name="poca", outbox=box, only_errors=True, threshold=10)
    log.addHandler(handler)
    with handler.run():
        for number in range(errors):
            log.error("feed %d could not be fetched", number)
    log.removeHandler(handler)
    handler.close()
    print(f"{errors} errors:", sum(1 for _ in box.find()), "mail(s)")

box.close()
print("delivered, or queued and told above")
