"""Fuzz target: the client's side of a dialogue: whatever a server says, every recipient gets an outcome, and
the password is nowhere in the transcript.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from collections.abc import Callable

from tests.fuzz.harness import run

SEEDS = [
    (
        b"220 h\r\n250-h\r\n250-PIPELINING\r\n250-AUTH PLAIN LOGIN CRAM-MD5\r\n250 SIZE 1000\r\n235 "
        b"ok\r\n250 "
        b"ok\r\n250 ok\r\n354 go\r\n250 ok\r\n221 bye\r\n"
    ),
    b"220 h\r\n250 h\r\n250 ok\r\n550 5.1.1 no\r\n503 no\r\n221 bye\r\n",
    b"421 no\r\n",
    b"220 h\r\n250 AUTH LOGIN\r\n334 VXNlcm5hbWU6\r\n334 UGFzc3dvcmQ6\r\n535 geheim-4711\r\n",
]


def make() -> Callable[[bytes], None]:
    from outmail.model import Delivery, Leased
    from outmail.smtp import client

    def target(data: bytes) -> None:
        if not data:
            return
        user = "me" if data[0] & 1 else ""
        session = client.Client(
            client.ClientSettings(
                "me.example",
                lmtp=bool(data[0] & 2),
                user=user,
                password="geheim-4711" if user else "",
                may_clear=True,
            )
        )
        mail = Delivery(
            1,
            "0" * 26,
            1,
            "default",
            "a@b.example",
            b"Subject: x\r\n\r\nx\r\n",
            b"",
            0,
            "<x@y>",
            0,
            10**15,
            [Leased(n, f"u{n}@c.example", 0, False, 0) for n in (1, 2)],
        )
        waiting, at, size = [mail], 1, data[0] % 90 + 1
        flow, trouble, done, dotted = session.dialogue(), None, False, False
        answer: Delivery | bool | None = None
        try:
            while True:
                request = flow.throw(trouble) if trouble else flow.send(answer)
                answer = trouble = None
                session.outgoing()
                if isinstance(request, client.Read):
                    if at >= len(data):
                        trouble = client.Broken("gone")
                    else:
                        try:
                            session.feed(data[at : at + size])
                        except client.ProtocolError as problem:
                            trouble = client.Broken(str(problem))
                        at += size
                elif isinstance(request, client.Take):
                    answer = waiting.pop() if waiting else None
                elif isinstance(request, client.Dot):
                    answer = dotted = True
                elif isinstance(request, client.Done):
                    done = True
        except (StopIteration, client.SessionFailed):
            pass
        assert waiting or (done and all(r.outcome is not None for r in mail.recipients))
        assert dotted or not any(r.outcome and r.outcome.kind in ("unknown",) for r in mail.recipients)
        lines = [line for _, _, line in [*session.greeting, *mail.transcript]]
        assert not any(b"geheim-4711" in line for line in lines), lines

    return target


if __name__ == "__main__":
    run("client", SEEDS, ["outmail.smtp.client"], make)
