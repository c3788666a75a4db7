"""The help for sendmail and mail names what they know, and docs/unix.md says the same."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

from outmail.unix import flag_help, flags, mail

PAGE = (Path(__file__).parents[3] / "docs" / "unix.md").read_text()


def letters(table: tuple[tuple[str, str], ...]) -> set[str]:
    """The first letters of all flags in a table."""
    return {one for names, _ in table for one in re.findall(r"(?<![\w-])-(\w)", names)}


def unknown() -> set[str]:
    """Letters that `flags` reports as unknown, or that nobody may use."""
    found = set()
    for letter in string.ascii_letters:
        try:
            found |= {name[1:] for name in flags.parse([f"-{letter}", "x", "a@x.test"]).unknown}
        except flags.UsageError:
            pass
    return found


def test_every_letter_that_sendmail_knows_is_in_the_help() -> None:
    assert letters(flag_help.SENDMAIL) == set(string.ascii_letters) - unknown()


def test_every_letter_of_mail_that_does_something_is_in_the_help() -> None:
    assert letters(flag_help.MAIL) == set(mail._COUNT) | set(mail._READING) | {"E"}


@pytest.mark.parametrize("flags_of", [flag_help.SENDMAIL, flag_help.MAIL], ids=["sendmail", "mail"])
def test_the_page_has_the_same_table(flags_of: tuple[tuple[str, str], ...]) -> None:
    assert flag_help.table(flags_of) in PAGE


@pytest.mark.parametrize("text", [flag_help.sendmail(), flag_help.mail()], ids=["sendmail", "mail"])
def test_the_help_fits_a_terminal(text: str) -> None:
    assert text.startswith("usage: ") and max(map(len, text.splitlines())) < 80


def test_a_flag_that_fills_the_column_does_not_touch_its_text() -> None:
    assert flag_help._lines((("-a FILE, -b FILE", "x"), ("-c", "y"))) == [
        "  -a FILE, -b FILE",
        " " * 18 + "x",
        f"  {'-c':<16}y",
    ]
