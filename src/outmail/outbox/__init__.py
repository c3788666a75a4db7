"""The public classes: send, read, change.

Importing this package registers what is done at the program's end (`ending`), and tells reports where their
default Outbox is (`default`), which is loaded on first use.
"""

from __future__ import annotations

from outmail.outbox import ending as ending
from outmail.reports import door


def _default_outbox() -> door.ReportDoor:
    from outmail.outbox.default import default_outbox

    return default_outbox()


def _default_spool() -> str:
    from outmail.outbox.default import default_spool

    return default_spool()


def _default_direct() -> door.Unstored:
    from outmail.outbox.default import default_direct

    return default_direct()


door.register(_default_outbox, _default_spool, _default_direct)
