"""For tests, ours and yours: a scripted SMTP sink, a fake clock, captured outboxes. Public and stable.

>>> from outmail.testing import Sink
>>> with Sink("RCPT bad@*: 550 5.1.1 unknown\\nDOT: drop 1/100") as sink:  # doctest: +SKIP
...     ...  # send to smtp://127.0.0.1:{sink.port}
...     sink.wait_for(3, timeout=5)
"""

from outmail.testing.clock import FakeClock
from outmail.testing.sink import Received, Rule, Sink

__all__ = ["FakeClock", "Received", "Rule", "Sink"]
