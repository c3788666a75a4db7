"""The campaigns against bad disks in small form, and that they find what they look for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CAMPAIGNS = Path(__file__).parents[1] / "campaigns"


def run(name: str, *options: str, cwd: Path) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, str(CAMPAIGNS / f"{name}.py"), *options]
    done = subprocess.run(command, capture_output=True, cwd=cwd, timeout=110, check=False)
    text = done.stdout.decode()
    assert "{" in text, done.stderr.decode()[-3000:]
    return done.returncode, json.loads(text[text.index("{") :])


def test_power_cuts_lose_nothing(tmp_path: Path) -> None:
    code, result = run("powercut", "--cuts", "12", "--seed", "7", cwd=tmp_path)
    assert code == 0 and result["cuts"] == 12 and result["accepted before a cut"] > 100, result


@pytest.mark.parametrize("without", ["fsync", "synchronous"])
def test_without_flushes_power_cuts_lose_mail(tmp_path: Path, without: str) -> None:
    code, result = run("powercut", "--cuts", "4", "--seed", "7", "--without", without, cwd=tmp_path)
    assert code == 1 and any("was accepted and is not there" in one for one in result["bad"]), result


def test_faults_of_the_disk_lose_nothing(tmp_path: Path) -> None:
    code, result = run("faults", "--cuts", "3", "--seed", "7", cwd=tmp_path)
    assert code == 0 and result["accepted"] > 10, result


def test_a_store_that_takes_failed_commits_for_done_is_found_out(tmp_path: Path) -> None:
    code, result = run("faults", "--cuts", "3", "--seed", "7", "--broken", cwd=tmp_path)
    assert code == 1 and any("was accepted and is not there" in one for one in result["bad"]), result
