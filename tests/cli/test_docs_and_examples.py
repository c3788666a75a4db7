"""Docs cannot drift: commands, settings and error codes appear; snippets and examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from outmail.cli.explanations import CODES
from outmail.policy import settings
from outmail.testing import Sink

ROOT = Path(__file__).parents[2]


def test_the_reference_of_the_configuration_is_the_list_of_settings() -> None:
    """Wrong: paste what `outmail config --sample` prints into the page."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    sample = re.search(r"```toml\n(.*?)```", text, re.S)
    assert sample and sample[1] == settings.sample()
    assert not [name for name in settings.VARIABLES if name not in text]


def test_every_command_is_in_the_readme_or_changelog() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "CHANGELOG.md").read_text()
    for command in (
        "demo",
        "send",
        "run",
        "queue",
        "show",
        "log",
        "events",
        "why",
        "explain",
        "test",
        "store",
        "config",
        "watch",
        "jobs",
        "digest",
    ):
        assert re.search(rf"\b{command}\b", text), command


def test_every_refusal_code_is_explained() -> None:
    source = "".join(path.read_text() for path in (ROOT / "src" / "outmail").rglob("*.py"))
    assert set(re.findall(r'code="([a-z-]+)"', source)) <= set(CODES) | {"refused", "not-stored"}


def test_the_readmes_python_runs(sink: Sink, tmp_path: Path) -> None:
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert snippet
    code = snippet[1].replace("smtp://localhost:25", sink.url)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == (b"delivered\n", 0), done.stderr


def test_links_in_the_docs_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


EXAMPLES = {
    "queue_and_cron": 3,
    "rows_dump_one": 1,
    "progress_from_dictionaries": 4,
    "log_over_three_runs": 1,
    "receive_and_send_on": 1,
    "shop_flask": 2,
    "shop_fastapi": 2,
}


def _example(name: str, sink: Sink, tmp_path: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), str(tmp_path / "q.db"), sink.url],
        capture_output=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str, sink: Sink, tmp_path: Path) -> None:
    done = _example(name, sink, tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"delivered" in done.stdout and len(sink.messages) == EXAMPLES[name]
    assert f"`{name}.py`" in (ROOT / "examples" / "README.md").read_text()


@pytest.mark.parametrize("name", ["progress_from_dictionaries", "log_over_three_runs"])
def test_a_server_that_greylists_is_told_with_the_command_that_sends_the_rest(
    name: str, tmp_path: Path
) -> None:
    with Sink("RCPT: 451 4.7.1 greylisted, try again x8") as sink:
        done = _example(name, sink, tmp_path)
        assert done.returncode == 0 and not sink.messages
        told = re.search(
            rb"still queued \((451 4\.7\.1 greylisted[^)]*)\); to go out with the next run, or by: outmail "
            rb"(run --once --store \S+)",
            done.stderr,
        )
        assert told, done.stderr
        sink.rules.clear()
        store = told[2].split()[-1].decode()
        outmail = [sys.executable, "-m", "outmail"]
        subprocess.run(
            [*outmail, "queue", "retry", "ALL", "--store", store], check=True, timeout=60, capture_output=True
        )
        subprocess.run([*outmail, *told[2].decode().split()], check=True, timeout=60, capture_output=True)
        assert len(sink.messages) == EXAMPLES[name]


def test_the_demo_holds() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "outmail", "demo"], capture_output=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    assert done.stdout.count(b"ok  ") == 4
