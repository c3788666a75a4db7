"""Content as lines: dot-stuffing, and what may not be in content.

Promises: ``unstuffed(stuffed(content)) == content``. When there is nothing to do, the same object comes back.
Nobody can read another end of the message out of what `mended` returns.
Does not: find the end of content (the dialogues do), or check content that came in another way
(`mime.splice`).
"""

from __future__ import annotations

import re

_DOTTED = re.compile(rb"\n\.")


def stuffed(content: bytes) -> bytes:
    """CRLF-normal content with its dots doubled (RFC 5321 §4.5.2)."""
    if _DOTTED.search(content):
        content = content.replace(b"\r\n.", b"\r\n..")
    return b"." + content if content.startswith(b".") else content


def unstuffed(content: bytes) -> bytes:
    """The content that the other side meant: dots undoubled."""
    if _DOTTED.search(content):
        content = content.replace(b"\r\n.", b"\r\n")
    return content[1:] if content.startswith(b".") else content


def mended(content: bytes, most: int) -> bytes | None:
    """Content from the wire, dots still doubled, with CRLF line ends only; None when the content would be
    longer than ``most`` bytes.

    As in Postfix 3.9 (``smtpd_forbid_bare_newline = normalize`` and ``cleanup_replace_stray_cr_lf``) a bare
    LF ends a line and a bare CR becomes a space. A line of one dot can only come from an end of data that was
    not CRLF.CRLF; it is removed.
    """
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    if content.startswith(b".\n") or b"\n.\n" in content:
        # Neighbouring line feeds overlap, so one pass marks only every other one. No CR is left at this
        # point, so CR can be the mark.
        content = (
            (b"\n" + content)
            .replace(b"\n.\n", b"\n\r\n")
            .replace(b"\n.\n", b"\n\r\n")
            .replace(b"\r\n", b"")[1:]
        )
    if len(content) + content.count(b"\n") - content.count(b"\n.") - content.startswith(b".") > most:
        return None
    return content.replace(b"\n", b"\r\n")


def has_bare(content: bytes) -> bool:
    """True when a CR or an LF stands alone. (In an optimised CPython this takes a quarter of the time of
    counting them.)
    """
    rest = content.replace(b"\r\n", b"")
    return b"\r" in rest or b"\n" in rest
