"""Fuzz target: foreign content: what look, fields and cut make of it, and composing with any words."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from collections.abc import Callable

from tests.fuzz.harness import run

SEEDS = [
    b"Subject: =?utf-8?q?=C3=BC?= =?iso-8859-1?b?/A==?=\r\nMessage-ID: <a@b>\r\nBcc: x@y\r\n z@y\r\n\r\nbody",
    b"a : b\n\nc",
    b"Date: x\r\n\t\r\n\r\n",
    'Grüße <a@b>; "x"'.encode(),
]


def make() -> Callable[[bytes], None]:
    from outmail.mime import compose, headers, splice
    from outmail.smtp.syntax import Mailbox

    def target(data: bytes) -> None:
        try:
            content = splice.normalised(data)
            head = splice.look(content, headless=True)
            assert len(head.subject) <= 500 and "\n" not in head.subject
        except splice.ContentError:
            pass
        else:
            assert sum(len(field) for _, field in splice.fields(content)) <= splice.head_end(content)
            rest = splice.cut(content, "bcc")
            assert not any(name == "bcc" for name, _ in splice.fields(rest)) and len(rest) <= len(content)
        text = data.decode("utf-8", "surrogateescape" if len(data) % 2 else "replace")
        half = len(text) // 2
        parts = compose.Parts(
            (text[:half], Mailbox("a", "b.example")),
            [("", Mailbox("c", "d.example"))],
            subject=text[half:],
            text=text,
            headers={"X-A": text[:60]},
            message_id="<a@b.example>",
        )
        try:
            made = compose.compose(parts)
        except ValueError:
            return
        names = [name for name, _ in splice.fields(made)]
        assert names.count("subject") == names.count("from") == 1 and "bcc" not in names
        assert headers.LINE and max(map(len, made.split(b"\r\n"))) <= headers.HARD_LINE

    return target


if __name__ == "__main__":
    run("headers", SEEDS, ["outmail.mime.compose", "outmail.mime.splice"], make)
