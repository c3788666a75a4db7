"""A manual page in the language of man(7), which groff and mandoc read.

Promises: ASCII only, lines shorter than 80 characters where a word allows it, and the same bytes for the same
text: no date, no name of the machine. Text is plain; `backquotes` surround what is typed, and become bold.
Does not: know what the pages say (`manual` does), or show them.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

_SPECIAL = {
    "\\": "\\e",
    "-": "\\-",
    "'": "\\(aq",
    "`": "\\(ga",
    "^": "\\(ha",
    "~": "\\(ti",
    '"': "\\(dq",
    "…": "\\&...",
}


def escaped(text: str) -> str:
    """Text in which nothing is a command."""
    return "".join(
        _SPECIAL.get(one) or (one if " " <= one <= "~" else f"\\[u{ord(one):04X}]") for one in text
    )


def bold(text: str) -> str:
    return f"\\fB{escaped(text)}\\fR"


def italic(text: str) -> str:
    return f"\\fI{escaped(text)}\\fR"


def marked(text: str) -> str:
    """Plain text, with what stands between backquotes in bold."""
    parts = text.split("`")
    return "".join(bold(part) if at % 2 else escaped(part) for at, part in enumerate(parts) if part)


def term(words: str) -> str:
    """Words of a command line: options and literal words in bold, NAMES of values in italics."""
    return "".join(_word(word) for word in re.split(r"([\s,|\[\]]+)", words) if word)


def _word(word: str) -> str:
    name, equals, value = word.partition("=")
    if re.fullmatch(r"[\s,|\[\]]+|\.\.\.", word):
        return escaped(word)
    if equals and value.isupper():
        return bold(name + equals) + italic(value)
    return italic(word) if re.fullmatch(r"'?[A-Z][A-Z:.'-]*", word) else bold(word)


class Page:
    """One page. ``names``: those for its NAME line; ``what``: a phrase without a full stop."""

    def __init__(self, title: str, section: int, names: Iterable[str], what: str, version: str) -> None:
        self._lines = [
            f'.TH {escaped(title.upper())} {section} "" "outmail {version}" "outmail"',
            ".nh",
            ".ad l",
            ".SH NAME",
        ]
        self._flow(f"{', '.join(escaped(name) for name in names)} \\- {escaped(what)}")

    def section(self, title: str) -> None:
        self._lines.append(f".SH {escaped(title.upper())}")

    def part(self, title: str) -> None:
        self._lines.append(f".SS {escaped(title)}")

    def text(self, text: str) -> None:
        """A paragraph of `marked` text."""
        self._paragraph()
        self._flow(marked(text))

    def words(self, lines: Iterable[str]) -> None:
        """Command lines as `term`, each on a line of its own."""
        for line in lines:
            self._paragraph()
            self._flow(term(line))

    def item(self, head: str, text: str) -> None:
        """``head`` is roff; the text is `marked`."""
        self._lines += [".TP", head]
        self._flow(marked(text) if text else "\\&")

    def sample(self, lines: Iterable[str]) -> None:
        """Lines as they are, indented."""
        self._paragraph()
        self._lines += [".in +4n", ".nf", *(_guarded(escaped(line)) for line in lines), ".fi", ".in"]

    def _paragraph(self) -> None:
        """A new one, unless a heading has just begun it."""
        if not self._lines[-1].startswith((".SH", ".SS")):
            self._lines.append(".PP")

    def _flow(self, roff: str) -> None:
        lines = textwrap.wrap(roff, 79, break_long_words=False, break_on_hyphens=False)
        self._lines += map(_guarded, lines)

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"


def _guarded(line: str) -> str:
    """A line of text that begins like a command does not become one."""
    return f"\\&{line}" if line[:1] in (".", "'") or not line else line
