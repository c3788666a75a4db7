"""What the command says to people who mistype: which option, what was meant, and what is possible."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

import outmail
from outmail.cli import main
from outmail.config import load
from outmail.errors import ConfigError, Refused
from outmail.outbox.outbox import Outbox

Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Said]:
    """said(words…) → (status, stdout, stderr) of the command, run in tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    (tmp_path / "empty").write_bytes(b"")
    stdin = open(tmp_path / "empty")
    monkeypatch.setattr("sys.stdin", stdin)

    def run(*words: str) -> tuple[int, str, str]:
        try:
            status = main(list(words))
        except SystemExit as end:
            status = int(end.code or 0)
        told = capsys.readouterr()
        return status, told.out.strip(), told.err.strip()

    yield run
    stdin.close()
    monkeypatch.undo()
    time.tzset()


SEND = ("send", "--store", "q.db", "-f", "me@x.test", "a@x.test")


@pytest.mark.parametrize(
    ("text", "due"),
    [("2099-12-24", "2099-12-24T00:00:00+01:00"), ("2099-07-01 18:00", "2099-07-01T18:00:00+02:00")],
)
def test_at_takes_local_time_and_says_what_it_understood(
    said: Said, tmp_path: Path, text: str, due: str
) -> None:
    status, id, told = said(*SEND, "--at", text)
    assert status == 0 and told.startswith("outmail: --at: ") and told.endswith(("CET", "CEST"))
    with Outbox(tmp_path / "q.db", deliver="never") as box:
        next_try = box.status(id).recipients[0].next_try_at
    assert next_try == int(datetime.fromisoformat(due).timestamp() * 1000)


def test_at_takes_a_time_alone_and_a_named_day(said: Said, tmp_path: Path) -> None:
    now = time.time() * 1000
    _, first, _ = said(*SEND, "--at", "18:00")
    _, second, _ = said(*SEND, "--at", "tomorrow 9:00", "--expires", "friday 9am")
    with Outbox(tmp_path / "q.db", deliver="never") as box:
        soon, later = (box.status(id).recipients[0].next_try_at for id in (first, second))
    assert soon is not None and later is not None
    assert 0 < soon - now <= 25 * 3_600_000 and 0 < later - now <= 34 * 3_600_000


@pytest.mark.parametrize("option", ["--at", "--expires"])
def test_a_wrong_time_names_the_option_and_examples(said: Said, option: str) -> None:
    for text, why in (("soon", ""), ("25:00", "there is no time 25:00"), ("2026-02-30", "there is no day")):
        status, out, told = said(*SEND, option, text)
        assert (status, out) == (65, "") and told.startswith(f"outmail: {option} {text!r} is no time")
        assert why in told and "tomorrow 9:00" in told


def test_the_library_names_the_argument_too(make_box: Callable[..., Outbox]) -> None:
    with pytest.raises(Refused, match=r"^at: .*not a span"):
        make_box().send("a@x.test", at="soon")
    with pytest.raises(ConfigError, match=r"^every='ten': write a count"):
        outmail.job("crawl", every="ten")


@pytest.mark.parametrize(
    ("words", "status", "hint"),
    [
        ((*SEND, "--subjct", "x"), 64, "unknown option --subjct; did you mean --subject?"),
        ((*SEND, "--prioritty=low"), 64, "did you mean --priority?"),
        (("sned", "a@x.test"), 64, "'sned' is no COMMAND; did you mean send?"),
        (("queue", "lsit"), 64, "did you mean list?"),
        (("jobs", "ls", "--jsno"), 64, "did you mean --json?"),
        (("send", "--priority", "hihg", "a@x.test"), 64, "did you mean high?"),
        (("--verison",), 64, "did you mean --version?"),
    ],
)
def test_a_typo_gets_the_nearest(said: Said, words: tuple[str, ...], status: int, hint: str) -> None:
    found, out, told = said(*words)
    assert (found, out) == (status, "") and hint in told, told


def test_a_relay_nobody_configured_gets_the_list(said: Said, tmp_path: Path) -> None:
    (tmp_path / "outmail.toml").write_text(
        'store = "q.db"\n[relay]\nurl = "null:"\n[relays.backup]\nurl = "null:"\n'
    )
    (tmp_path / "outmail.toml").chmod(0o600)
    for words in (("run", "--once", "--relay", "bakcup"), (*SEND, "--relay", "bakcup")):
        status, _, told = said(*words)
        assert status == 78 and "no relay is named 'bakcup'; did you mean 'backup'?" in told
        assert "configured are backup, default" in told


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('store = "q.db"\nfrom = me@x.test\n', 'from = me@x.test; text stands in quotes: from = "…"'),
        ("[relay\nurl = 'null:'", "line 1"),
        ("[relay]\npassword = geheim\n", "password = "),
        ("[reports]\ntemplates = 'nowhere'\n", "nowhere is no folder that can be seen"),
    ],
)
def test_a_broken_configuration_shows_the_line(said: Said, tmp_path: Path, toml: str, words: str) -> None:
    (tmp_path / "c.toml").write_text(toml)
    status, _, told = said("config", "--config", "c.toml")
    assert status == 78 and told.startswith("outmail: c.toml: ") and words in told, told
    assert "geheim" not in told and told.count("\n") == 0


@pytest.mark.parametrize(
    "toml",
    [
        '[relay]\nurl = "smtp://me:geheim@x.test"\n',
        '[relay]\nurl = "smtp://me@x.test"\npassword = "geheim"\n',
        'store = "postgresql://me:geheim@x.test/mail"\n',
        '[[outbox]]\nurl = "postgresql://me:geheim@x.test/shop"\n',
    ],
)
def test_a_password_that_everybody_may_read_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, toml: str
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(toml)
    path.chmod(0o644)
    load(str(path), {})
    assert f"chmod o= {path}" in caplog.text and "geheim" not in caplog.text
    caplog.clear()
    path.chmod(0o600)
    load(str(path), {})
    path.chmod(0o644)
    path.write_text('[relay]\nurl = "smtp://me@x.test"\npassword_file = "/etc/outmail/password"\n')
    load(str(path), {})
    assert not caplog.text
