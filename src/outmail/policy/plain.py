r"""Text from outside, made safe to show: characters that a terminal or a mail reader would obey become
visible escapes.

These are control characters (C0 except tab and line feed, DEL, C1), line and paragraph separators, the byte
order mark, the marks and overrides of writing direction (CVE-2021-42574), and surrogates, which no encoding
can represent. They are shown as ``\x1b``, ``\u202e``, ``\udc80``.
Promises: pure, linear in the text. The result can be encoded, stored and printed. Normal text is returned as
the same object.
Does not: hide secrets (`secrets`), or cut (the caller decides how much to show).
"""

from __future__ import annotations

import json
import re
from typing import Any

_MARKS = r"\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff"
_ODD = re.compile(rf"[\x00-\x08\x0b-\x1f{_MARKS}]")
_ODD_IN_A_LINE = re.compile(rf"[\x00-\x1f{_MARKS}]")
_ODD_IN_JSON = re.compile(rf"[{_MARKS}]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def plain(text: str) -> str:
    """Text of several lines: tabs and line feeds stay."""
    return text if text.isprintable() else _ODD.sub(_escape, text)


def plain_line(text: str) -> str:
    """Text that must stay in one line."""
    return text if text.isprintable() else _ODD_IN_A_LINE.sub(_escape, text)


def plain_value(value: Any) -> Any:
    """A JSON value with every text in it made plain."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plain_line(str(key)): plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    return value


def as_json(value: Any) -> str:
    """JSON for people and programs: the data are complete, and odd characters are JSON's own escapes."""
    return _ODD_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    return _SHORT.get(char) or (f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}")
