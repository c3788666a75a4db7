"""Fuzz target: the server's side of a dialogue: any bytes in any portions; replies are lines, buffers are
bounded.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from collections.abc import Callable

from tests.fuzz.harness import run

SEEDS = [
    (
        b"EHLO x\r\nMAIL FROM:<a@b.example> SIZE=10 BODY=8BITMIME\r\nRCPT TO:<c@d.example> "
        b"NOTIFY=NEVER\r\nDATA\r\nSubject: x\r\n\r\n..\r\n.\r\nQUIT\r\n"
    ),
    (
        b'LHLO x\r\nMAIL FROM:<> RET=HDRS ENVID=a+2B\r\nRCPT TO:<"a b"@[127.0.0.1]> '
        b"ORCPT=rfc822;a@b\r\nRSET\r\nNOOP\r\nVRFY x\r\n"
    ),
    b"EHLO x\r\nAUTH PLAIN AGEAYg==\r\nAUTH LOGIN\r\nYQ==\r\nYg==\r\nSTARTTLS\r\nHELP\r\n",
]


def make() -> Callable[[bytes], None]:
    from outmail.model import Reply
    from outmail.smtp import server

    class Everybody:
        def mail(self, session: server.Server, sender: str) -> None: ...
        def rcpt(self, session: server.Server, address: str) -> None: ...

    def target(data: bytes) -> None:
        if not data:
            return
        session = server.Server(
            server.ServerSettings("h", lmtp=bool(data[0] & 1), size=4000), Everybody(), tls=bool(data[0] & 4)
        )
        size = data[0] % 50 + 1
        for start in range(1, len(data), size):
            session.feed(data[start : start + size])
            while session.requests:
                request = session.requests.popleft()
                if isinstance(request, server.Deliver):
                    assert all(
                        "@" in address or address.lower() == "postmaster" for address in request.recipients
                    )
                    session.answer(
                        [Reply(250, "ok")] * (len(request.recipients) if session.settings.lmtp else 1)
                    )
                elif isinstance(request, server.Verify):
                    session.authenticated(None)
                elif isinstance(request, server.StartTls):
                    session.encrypted()
            out = session.outgoing()
            assert not out or out.endswith(b"\r\n")
            assert len(session._buffer) < 20_000

    return target


if __name__ == "__main__":
    run("server", SEEDS, ["outmail.smtp.server"], make)
