"""The help of every command, as a new user reads it."""

from __future__ import annotations

import pytest

from outmail.cli import watch
from outmail.cli.arguments import commands, parser
from outmail.cli.queue_help import FILTERS, VERBS
from outmail.policy import selection

NAMES = [name for name in commands(parser()) if name != "watch"]


def shown(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What --help prints on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [["--help"], *([name, "--help"] for name in NAMES), *(["queue", verb, "--help"] for verb in VERBS)],
    ids=" ".join,
)
def test_help_fits_80_columns(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(words, capsys, monkeypatch)
    assert text.startswith("usage: outmail") and max(map(len, text.splitlines())) < 80


def test_the_help_of_watch_fits_80_columns() -> None:
    assert max(map(len, watch._help().splitlines())) < 80


@pytest.mark.parametrize("name", NAMES)
def test_every_command_and_each_of_its_words_is_explained(name: str) -> None:
    command = commands(parser())[name]
    assert command.description and command.description.endswith(".")
    assert not [action.dest for action in command._actions if not action.help]


def test_every_word_of_a_filter_is_explained() -> None:
    explained = {word.partition(":")[0] for words, _ in FILTERS for word in words.split(", ") if ":" in word}
    assert explained == set(selection._FIELDS)
    flags = {word for words, _ in FILTERS for word in words.split(", ") if word.startswith(("is:", "was:"))}
    assert flags == {f"{field}:{flag}" for field, known in selection._FLAGS.items() for flag in known}


def test_help_for_all_verbs_of_the_queue(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(["queue", "--help"], capsys, monkeypatch)
    assert all(f"\n  {verb} " in text for verb in VERBS) and "is:deferred" in text
    assert "is:deferred" not in shown(["queue", "stats", "--help"], capsys, monkeypatch)


def test_a_command_without_a_description_gets_its_line_in_the_list() -> None:
    assert commands(parser())["why"].description == "The story of a message or an address, in sentences."
