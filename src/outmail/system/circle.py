"""outmail that calls a sendmail program which is outmail: mail would go round in a circle.

Whoever starts such a program puts `MARK` into its environment; an outmail that sees it takes no message.
Loads little: `sendmail` starts in milliseconds.
"""

from __future__ import annotations

import os

from outmail.system import streams

MARK = "OUTMAIL_CALLS"


def is_closed() -> bool:
    """True when outmail has called us; then a line on stderr says so."""
    if not os.environ.get(MARK):
        return False
    streams.say(
        "outmail: this sendmail program is outmail, and outmail has called it: the mail would go round in a "
        "circle, so it is refused; give outmail a relay that is another program"
    )
    return True
