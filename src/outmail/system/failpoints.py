"""Failpoints for tests: with ``OUTMAIL_FAIL=POINT:ACTION[:N]`` the process dies when it passes the point for
the N-th time.

Points: C1…C5 of the crash table (docs/flow.md); T1 (rows are claimed in an application's database) and T2
(they are in the store and not yet deleted there); M1 (a batch is in the new store and not yet removed from
the old one). ACTION is ``kill`` (SIGKILL to itself) or ``exit`` (``os._exit(70)``). Without the variable,
passing a point costs one call.
"""

from __future__ import annotations

import os
import signal

from outmail.errors import ConfigError

_point, _action, _left = "", "", 0


def arm(text: str) -> None:
    """Read the text of the variable. Raises ConfigError when it is malformed."""
    global _point, _action, _left
    point, _, rest = text.partition(":")
    action, _, n = rest.partition(":")
    if point not in ("C1", "C2", "C3", "C4", "C5", "T1", "T2", "M1") or action not in ("kill", "exit"):
        raise ConfigError(
            f"OUTMAIL_FAIL={text!r}: write POINT:ACTION[:N] with C1…C5, T1, T2 or M1 and kill or exit"
        )
    _point, _action, _left = point, action, int(n or 1)


def hit(point: str) -> None:
    """A failpoint is passed."""
    global _left
    if point != _point:
        return
    _left -= 1
    if _left == 0:
        if _action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(70)


if os.environ.get("OUTMAIL_FAIL"):
    arm(os.environ["OUTMAIL_FAIL"])
