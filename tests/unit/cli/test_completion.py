"""What is offered when TAB is pressed, without a shell."""

from __future__ import annotations

from pathlib import Path

import pytest

from outmail import Outbox
from outmail.cli import main
from outmail.cli.arguments import commands, parser
from outmail.cli.completion import complete, split
from outmail.lifecycle import STATES
from outmail.unix import NAMES


@pytest.fixture(autouse=True)
def nobodys_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("OUTMAIL_CONFIG", "OUTMAIL_RELAY", "OUTMAIL_TO", "OUTMAIL_FROM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OUTMAIL_STORE", str(tmp_path / "none.db"))  # root's own is the machine's
    monkeypatch.chdir(tmp_path)


def offered(line: str) -> list[str]:
    """The words for a line; a line that ends in a blank begins a new word."""
    *before, word = split(f"outmail {line}")[1:]
    return [one for one, _ in complete(before, word).words]


def kind(line: str) -> str:
    *before, word = split(f"outmail {line}")[1:]
    return complete(before, word).kind


def test_commands_and_those_of_unix() -> None:
    assert set(offered("")) == {*commands(parser()), *NAMES}
    assert offered("qu") == ["queue"]
    assert offered("--v") == ["--version"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("queue re", ["release", "retry", "requeue", "reroute"]),
        ("queue list state:", [f"state:{state}" for state in STATES]),
        ("queue list tag:x state:f", ["state:failed"]),
        ("queue list -is:d", ["-is:deferred"]),
        ("queue list was:", ["was:uncertain"]),
        ("queue hold A", ["ALL"]),
        ("queue stats ", []),
        ("queue stats --by ", ["relay", "domain", "reason"]),
        ("queue --dry-run hold --js", ["--json", "--jsonl"]),
        ("queue list --id", ["--ids"]),
        ("send --priority ", ["high", "normal", "low"]),
        ("send --priority=l", ["--priority=low"]),
        ("send -s hello a@x.test --pr", ["--priority"]),
        ("send ", []),
        ("store ", ["upgrade", "check", "backup", "ddl"]),
        ("explain bad-c", ["bad-certificate", "bad-content"]),
        ("man out", ["outmail", "outmail.toml"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("init --provider post", ["posteo", "postmark"]),
        ("init --provider=se", ["--provider=seznam", "--provider=ses:", "--provider=sendgrid"]),
        ("watch --on ", ["fail", "always", "change", "never"]),
        ("watch --no", ["--no-recovered", "--no-output"]),
        ("sendmail -b", ["-bm", "-bp", "-bs", "-bv", "-bi", "-bd", "-bl", "-bh", "-bH", "-bt"]),
        ("sendmail root", []),
        ("no-such-command --", []),
        ("send --relay ", ["default"]),
    ],
)
def test_words(line: str, words: list[str]) -> None:
    assert offered(line) == words


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("send --attach ", "files"),
        ("queue list --store ", "files"),
        ("demo --keep ", "folders"),
        ("store backup ", "files"),
        ("watch --config ", "files"),
        ("watch --after 3 -- ", "commands"),
        ("watch -- tar ", "files"),
        ("mail -a ", "files"),
        ("send ", "words"),
    ],
)
def test_what_the_shell_itself_completes(line: str, what: str) -> None:
    assert kind(line) == what


def test_relays_of_the_configuration(tmp_path: Path) -> None:
    tmp_path.joinpath("c.toml").write_text('relays.backup.url = "null:"\nrelays.bulk.url = "null:"\n')
    assert offered("send --config c.toml --relay b") == ["backup", "bulk"]
    assert offered("queue --config c.toml reroute ALL back") == ["backup"]
    assert offered("queue --config=c.toml list route:bu") == ["route:bulk"]
    assert offered("watch --config c.toml --relay bu") == ["bulk"]


def test_ids_of_messages(tmp_path: Path) -> None:
    with Outbox(str(tmp_path / "q.db"), deliver="never") as box:
        ids = [box.send("a@x.test", "s", "t", sender="me@x.test").id for _ in range(3)]
    where = f"--store {tmp_path}/q.db"
    assert sorted(offered(f"show {where} ")) == sorted(ids)
    assert offered(f"log {where} {ids[0][:25]}") == [one for one in ids if one.startswith(ids[0][:25])]
    assert set(ids) <= set(offered(f"queue {where} hold {ids[0][:1]}"))
    assert set(offered(f"run {where} --only ")) == set(ids)


def test_a_queue_that_is_not_there_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash", f"outmail show --store {tmp_path}/no.db "]) == 0
    assert main(["completion", "zsh", "log", ""]) == 0
    assert capsys.readouterr() == ("words\nwords\n", "") and list(tmp_path.iterdir()) == []


def test_a_broken_configuration_is_no_news(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.joinpath("outmail.toml").write_text("nonsense = [")
    assert main(["completion", "fish", "send", "--relay", ""]) == 0
    assert capsys.readouterr() == ("words\n", "")


def test_bash_gets_what_stands_behind_its_word_breaks(capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash", "outmail queue list state:se", " \t\n\"'><=;|&(:"])
    main(["completion", "bash", "outmail queue list state:se", " \t"])
    main(["completion", "bash", "outmail send --priority=h", "="])
    assert capsys.readouterr().out.split() == ["words", "sending", "words", "state:sending", "words", "high"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("outmail ", ["outmail", ""]),
        ("outmail  send 'a b", ["outmail", "send", "a b"]),
        ('outmail send "a b" ', ["outmail", "send", "a b", ""]),
        ("outmail a\\ ", ["outmail", "a "]),
        ("outmail x\\", ["outmail", "x"]),
    ],
)
def test_a_line_becomes_words(line: str, words: list[str]) -> None:
    assert split(line) == words
