"""Content as lines: what a dialogue does to it on the wire, and what may not be in it.

Promises: ``unstuffed(stuffed(content)) == content``; where nothing is to be done, the same object comes back;
what `mended` gives back can be stuffed by nobody into another end of the message.
Does not: find the end of content (the dialogues do), or look at content that came by another way
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
    """What the other side meant."""
    if _DOTTED.search(content):
        content = content.replace(b"\r\n.", b"\r\n")
    return content[1:] if content.startswith(b".") else content


def mended(content: bytes, most: int) -> bytes | None:
    """Content as it came over the wire, dots still doubled, with CRLF line ends only; None when it would mean
    more than ``most`` bytes.

    As Postfix 3.9 does it (``smtpd_forbid_bare_newline = normalize`` and ``cleanup_replace_stray_cr_lf``): a
    bare LF ends a line, a bare CR becomes a space. A line of one dot can only come from an end of data that
    was not CRLF.CRLF: it is left out.
    """
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    if content.startswith(b".\n") or b"\n.\n" in content:
        # Neighbours share a line feed, so one pass marks every other one; no CR is left, so it can be the
        # mark.
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
    """True when a CR or an LF stands alone. (Where CPython was built with optimisation, a quarter of the time
    of counting them.)
    """
    rest = content.replace(b"\r\n", b"")
    return b"\r" in rest or b"\n" in rest
