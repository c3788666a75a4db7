"""Fuzz target: whatever parses foreign MIME (for now: encoded words of a subject, messages of the email
package that are submitted).
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from collections.abc import Callable

from tests.fuzz.harness import run

SEEDS = [
    (
        b"Subject: =?utf-8?b?w7w=?=\r\nContent-Type: multipart/report; "
        b"boundary=x\r\n\r\n--x\r\nContent-Type: "
        b"message/delivery-status\r\n\r\nFinal-Recipient: rfc822; a@b\r\nAction: failed\r\nStatus: "
        b"5.1.1\r\n\r\n--x--\r\n"
    ),
    b"From: =?x?q?=00?=\r\n\r\n",
]


def make() -> Callable[[bytes], None]:
    import email
    import email.policy

    from outmail.errors import Refused
    from outmail.intake import api
    from outmail.mime import splice

    def target(data: bytes) -> None:
        splice.readable(data)
        try:
            message = email.message_from_bytes(
                data, policy=email.policy.compat32 if len(data) % 2 else email.policy.SMTP
            )
        except Exception:
            return  # the email package's own affair: nobody has given us a message yet
        try:
            draft = api.complete(0, "h.example", message, sender="a@b.example", recipients="c@d.example")
        except Refused:
            return
        assert isinstance(draft.content, bytes)

    return target


if __name__ == "__main__":
    run("mime", SEEDS, ["outmail.intake.api", "outmail.mime.splice"], make)
