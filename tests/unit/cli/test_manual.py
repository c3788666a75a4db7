"""The manual pages: what they contain, and that the formatters have no complaint."""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

import pytest

from outmail.cli import main, manual, roff
from outmail.cli.arguments import commands, parser
from outmail.cli.queue_help import FILTERS, VERBS
from outmail.cli.watch import OPTIONS
from outmail.policy import settings
from outmail.system import exits
from outmail.unix import NAMES
from tests.programs import needs

PAGES = {path: text for path, text in manual.files().items() if not text.startswith(".so ")}
ROOT = Path(__file__).parents[3]


def plain(roff_text: str) -> str:
    """A page's text without its commands and fonts, on one line."""
    lines = [
        line for line in roff_text.splitlines() if not line.startswith((".TP", ".PP", ".nf", ".fi", ".in"))
    ]
    text = re.sub(r"\\f[BIR]|\\&", "", " ".join(lines))
    for escape, sign in {"\\-": "-", "\\(dq": '"', "\\(aq": "'", "\\(ti": "~", "\\e": "\\"}.items():
        text = text.replace(escape, sign)
    return text


def squeezed(text: str) -> str:
    return " ".join(text.replace("`", "").replace("…", "...").split())


def test_every_command_and_option_is_in_the_page() -> None:
    text = plain(manual.command())
    for name, command in commands(parser()).items():
        assert f".SS outmail {name} " in text
        for action in (one for one in command._actions if one.dest != "help"):
            assert squeezed(action.help or "") in text, (name, action.dest)
            assert all(option in text for option in action.option_strings)
    for name, (_, _, what) in OPTIONS.items():
        assert name in ("config", "store", "relay", "help") or (
            f"--{name}" in text and squeezed(what) in text
        )
    assert all(squeezed(what) in text for _, what, _ in VERBS.values())
    assert all(what in text for _, what in FILTERS)
    assert all(name in text for name in settings.VARIABLES)


def test_every_exit_status_is_in_the_page() -> None:
    known = {value for name, value in vars(exits).items() if name.startswith("EX_")}
    assert set(exits.MEANINGS) == known | {0}
    assert all(meaning in plain(manual.command()) for meaning in exits.MEANINGS.values())


def test_every_key_is_in_the_page_of_the_configuration() -> None:
    text = plain(manual.configuration())
    for table in settings.TABLES:
        assert f".SS {table.heading}" in text
        for one in table.settings:
            assert squeezed(one.text) in text and squeezed(one.default) in text, one.key


def test_the_urls_of_relays_are_those_of_the_documentation() -> None:
    docs = (ROOT / "docs" / "configuration.md").read_text()
    for row in settings.RELAY_URLS:
        assert "| " + " | ".join(row).rstrip() in docs, row
        assert squeezed(row[1]) in plain(manual.configuration())


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_a_command_of_unix(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["man", name]) == 0
    source = capsys.readouterr().out
    assert source == manual.sendmail() and f"outmail {name.removesuffix('x')}" in plain(source)


def test_a_page_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["man", "sendmial"]) == 66
    assert capsys.readouterr() == ("", "outmail: there is no page sendmial; did you mean sendmail?\n")


def test_links_lead_to_a_page() -> None:
    links = [text.split()[1] for text in manual.files().values() if text.startswith(".so ")]
    assert links and set(links) <= set(PAGES)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_ascii_and_the_same_each_time(path: str) -> None:
    assert PAGES[path].isascii() and PAGES[path] == manual.files()[path]


@needs("mandoc", "mandoc")
@pytest.mark.parametrize("path", PAGES)
def test_mandoc_has_no_complaint(path: str, tmp_path: Path) -> None:
    """But for the date: a page that is built from the same source is the same."""
    page = tmp_path / Path(path).name
    page.write_text(PAGES[path])
    done = subprocess.run(["mandoc", "-Tlint", page], capture_output=True, text=True, timeout=60, check=False)
    assert [line for line in done.stdout.splitlines() if "missing date" not in line] == []


@needs("groff", "groff-base")
@pytest.mark.parametrize("path", PAGES)
def test_groff_has_no_complaint(path: str) -> None:
    words = ["groff", "-man", "-ww", "-Tutf8"]
    done = subprocess.run(words, input=PAGES[path].encode(), capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"") and len(done.stdout) > 1000


@pytest.mark.parametrize(
    ("text", "made"),
    [
        (".TH begins like a command", "\\&.TH begins like a command"),
        ("it's a \\ and a - and ~", "it\\(aqs a \\e and a \\- and \\(ti"),
        ("`--to A` é → …", "\\fB\\-\\-to A\\fR \\[u00E9] \\[u2192] \\&..."),
    ],
)
def test_nothing_in_a_text_is_a_command(text: str, made: str) -> None:
    page = roff.Page("x", 1, ["x"], "y", "0")
    page.section("s")
    page.text(text)
    assert str(page).splitlines()[-1] == made


def test_the_usage_of_a_command() -> None:
    made = argparse.ArgumentParser(prog="outmail try")
    for words, given in (
        (("--to",), {"required": True, "metavar": "A"}),
        (("--free",), {"metavar": "B"}),
        (("one",), {"metavar": "ONE"}),
        (("more",), {"nargs": "*", "metavar": "MORE"}),
    ):
        made.add_argument(*words, **given)
    assert manual._usage(made) == "outmail try [OPTION ...] --to A ONE [MORE ...]"
