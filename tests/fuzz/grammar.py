"""What both sides of `dialogue_grammar` share."""

from __future__ import annotations

import re

_LINE = re.compile(rb"([2-5]\d\d)([ -])(?:([245])\.\d+\.\d+ )?[^\r\n\0]*")


class Desync(Exception):
    """Somebody's idea of the dialogue is not what it was."""


def replies_of(said: bytes) -> list[int]:
    """The code of each whole reply; raises `Desync` for what is none."""
    *lines, rest = said.split(b"\r\n")
    if rest:
        raise Desync(f"a line without end: {rest[:80]!r}")
    codes, begun = [], b""
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None or (begun and match[1] != begun) or (match[3] and match[3] != match[1][:1]):
            raise Desync(f"no reply: {line[:80]!r}")
        begun = match[1] if match[2] == b"-" else b""
        if not begun:
            codes.append(int(match[1]))
    if begun:
        raise Desync("a reply without end")
    return codes
