"""Fuzz target: any text: masking and escaping never fail, are linear, change nothing when done twice, and
hide what stands behind a name.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from collections.abc import Callable

from tests.fuzz.harness import run

SEEDS = [
    b"password: x\nAuthorization: Bearer abc",
    b"{'token': 'x'}",
    b"postgres://a:b@c/d?sig=e",
    b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
    b"curl -u a:b --password c",
    b"\x1b[31m \xc2\x9b",
]


def make() -> Callable[[bytes], None]:
    from outmail.policy import plain, secrets
    from outmail.reports import mail

    def target(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        secrets.masked(text)
        assert "QGeheimQ" not in secrets.masked(text + "\npassword: QGeheimQ\n")
        shown = plain.plain_line(text)
        assert (shown.encode() and plain.plain_line(shown) == shown) or not text
        plain.as_json(text).encode()
        report = mail.Report(
            "failed",
            text,
            text,
            [(text[:20], text)],
            [mail.Section(text[:30], text, text, [[text[:50]]])],
            [text],
        )
        for made in (mail.as_text(report), mail.as_html(report)):
            made.encode()
            assert not any(char in made for char in "\x1b\x9b\u202e\0")

    return target


if __name__ == "__main__":
    run("redaction", SEEDS, ["outmail.policy.secrets", "outmail.policy.plain", "outmail.reports.mail"], make)
