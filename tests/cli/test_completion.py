"""TAB in real shells, with the scripts that the package installs."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from outmail.cli.completion_scripts import SCRIPTS
from tests.programs import needs
from tests.waiting import PATIENCE


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the scripts, a configuration, and the command ``outmail`` in bin."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "outmail"
    source = Path(__file__).parents[2] / "src"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={source} exec {sys.executable} -m outmail "$@"\n')
    command.chmod(0o755)
    for shell, script in SCRIPTS.items():
        (tmp_path / f"outmail.{shell}").write_text(script)
    (tmp_path / "outmail.toml").write_text('relays.backup.url = "null:"\n')
    (tmp_path / "with blank.eml").write_text("x")
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OUTMAIL_")}
    home = {
        "HOME": str(place),
        "XDG_CONFIG_HOME": str(place),
        "XDG_DATA_HOME": str(place),
        "ZDOTDIR": str(place),
        "OUTMAIL_STORE": str(place / "none.db"),
    }
    return {**kept, **home, "PATH": f"{place}/bin:{os.environ['PATH']}", "TERM": "dumb", "LC_ALL": "C.UTF-8"}


def run(place: Path, *words: str) -> str:
    done = subprocess.run(
        words, cwd=place, env=environment(place), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


#: What is typed → what is there after TAB.
TYPED = {
    "outmail queue rer": "outmail queue reroute ",
    "outmail send --pri": "outmail send --priority ",
    "outmail send --priority=h": "outmail send --priority=high ",
    "outmail queue list state:f": "outmail queue list state:failed ",
    "outmail queue list -sub": "outmail queue list -subject:",
    "outmail send --relay ba": "outmail send --relay backup ",
    "outmail init --provider ses": "outmail init --provider ses:",
    "outmail send -a with": "outmail send -a with\\ blank.eml ",
}


@needs("bash", "bash")
def test_bash_offers_what_outmail_knows(place: Path) -> None:
    """As bash calls the function: words are cut at colons and equals signs."""
    script = """
        source outmail.bash; complete -p outmail
        for line in "outmail qu" "outmail queue list state:f" "outmail send --priority=h" "bin/outmail man m"
        do
            COMP_LINE=$line COMP_POINT=${#line} COMP_WORDS=($line) COMP_CWORD=1 COMPREPLY=()
            _outmail "${line%% *}"; echo "${COMPREPLY[*]}"
        done"""
    assert run(place, "bash", "--norc", "-c", script).splitlines() == [
        "complete -F _outmail outmail",
        "queue",
        "failed",
        "high",
        "mail mailq",
    ]


@needs("fish", "fish")
def test_fish_offers_what_outmail_knows_and_what_it_means(place: Path) -> None:
    def offered(line: str) -> list[str]:
        return run(
            place, "fish", "--no-config", "-c", f"source outmail.fish; complete -C '{line}'"
        ).splitlines()

    assert offered("outmail queue rer")[0].startswith("reroute\tSend what waits or is held through another")
    assert offered("outmail queue list state:f") == ["state:failed"]
    assert offered("outmail send --relay ba") == ["backup\tnull:"]
    assert offered("outmail send --priority=h") == ["--priority=high"]
    assert [line.partition("\t")[0] for line in offered("outmail send -a with")] == ["with blank.eml"]
    assert offered("outmail send --subject ") == []
    assert offered("outmail init --provider fast") == ["fastmail\tFastmail"]


@pytest.fixture
def terminal(place: Path, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    shell = Terminal(place, *request.param)
    yield shell
    shell.close()


class Terminal:
    """A shell in which somebody types."""

    def __init__(self, place: Path, *words: str) -> None:
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.chdir(place)
            os.execvpe(words[0], list(words), environment(place))

    def type(self, text: str, wanted: str) -> str:
        """Type, and wait until the screen ends with ``wanted``; what it says since."""
        os.write(self.fd, text.encode())
        said, deadline = "", time.monotonic() + PATIENCE
        while not said.replace("\x07", "").endswith(wanted):
            left = deadline - time.monotonic()
            assert left > 0, f"{wanted!r} did not come: {said!r}"
            if select.select([self.fd], [], [], left)[0]:
                said += os.read(self.fd, 4096).decode(errors="replace")
        return said

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


BASH = ("bash", "--norc", "--noprofile", "-i")
ZSH = ("zsh", "-f", "-i")


@pytest.mark.parametrize(
    "terminal",
    [
        pytest.param(BASH, marks=needs("bash", "bash"), id="bash"),
        pytest.param(ZSH, marks=needs("zsh", "zsh"), id="zsh"),
    ],
    indirect=True,
)
def test_tab_on_a_terminal(terminal: Terminal, request: pytest.FixtureRequest) -> None:
    zsh = "zsh" in request.node.name
    start = "autoload -U compinit; compinit -u -D; unset zle_bracketed_paste" if zsh else "true"
    script = f"source outmail.{'zsh' if zsh else 'bash'}"
    terminal.type(f"{start}; {script}; PS1='the pro''mpt> '\n", "the prompt> ")
    for typed, wanted in TYPED.items():
        terminal.type(f"{typed}\t", wanted)
        terminal.type("\x15", "")
