"""Questions: what is asked again, what is an error, and what nobody is asked."""

from __future__ import annotations

import io
import sys

import pytest

from outmail.cli.asking import Asker, Missing


class Keyboard(io.StringIO):
    """A terminal at which these lines are typed."""

    def isatty(self) -> bool:
        return True


def at_terminal(monkeypatch: pytest.MonkeyPatch, *lines: str) -> Asker:
    monkeypatch.setattr(sys, "stdin", Keyboard("".join(f"{line}\n" for line in lines)))
    return Asker(yes=False)


CHOICES = [("systemd", "a service"), ("cron", "cron"), ("none", "nothing")]


def even(text: str) -> str:
    if not text.isdecimal() or int(text) % 2:
        raise ValueError(f"{text} is not even")
    return text


def test_a_wrong_answer_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert at_terminal(monkeypatch, "3", "x", " 4 ").text("A number:", "--n", "", even) == "4"
    told = capsys.readouterr()
    assert told.err.count("A number:") == 3 and "3 is not even" in told.err and not told.out


def test_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Missing, match="--n"):
        at_terminal(monkeypatch, "1", "3", "5", "6").text("A number:", "--n", "", even)


def test_enter_takes_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asker = at_terminal(monkeypatch, "", "", "", "cron", "No", "y")
    assert asker.text("?", "--x", "d") == "d"
    assert asker.choice("What?", "--service", CHOICES, "systemd") == "systemd"
    assert asker.agrees("Go?", "--yes") is True
    assert asker.choice("What?", "--service", CHOICES, "systemd") == "cron"
    assert asker.agrees("Go?", "--yes") is False
    assert asker.agrees("Go?", "--yes", default=False) is True


def test_the_end_of_the_input_is_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        at_terminal(monkeypatch).text("?", "--x")


@pytest.mark.parametrize("yes", [True, False])
def test_without_a_person_the_option_is_named(monkeypatch: pytest.MonkeyPatch, yes: bool) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard("geheim\n") if yes else io.StringIO("geheim\n"))
    asker = Asker(yes=yes)
    for ask in (asker.text, asker.secret):
        with pytest.raises(Missing, match="--x is missing"):
            ask("?", "--x")
    assert sys.stdin.read() == "geheim\n"


def test_with_yes_the_defaults_are_the_answers() -> None:
    asker = Asker(yes=True)
    assert asker.text("?", "--x", "d") == "d" and asker.agrees("?", "--x")
    assert not asker.agrees("?", "--x", default=False)
    assert asker.choice("?", "--x", CHOICES, "none") == "none"
