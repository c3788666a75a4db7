"""The units for systemd: they mean something, they are closed, and the service speaks as they say."""

from __future__ import annotations

import configparser
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from outmail.policy import setup as planning
from outmail.unix import setup
from tests import programs

UNITS = Path(__file__).parents[2] / "src/outmail/unix/units"


@pytest.mark.parametrize("name", sorted(path.name for path in UNITS.glob("outmail*")))
@programs.needs("systemd-analyze", "systemd")
def test_systemd_understands_each_unit(name: str, tmp_path: Path) -> None:
    for unit in UNITS.glob("outmail*"):
        text = (
            unit.read_text()
            .replace("@OUTMAIL@", sys.executable)
            .replace("Documentation=man:outmail(1)\n", "")
        )
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = [line for line in done.stderr.splitlines() if str(tmp_path) in line or name in line]
    assert not said


@pytest.mark.parametrize(("service", "name"), [("systemd", "outmail"), ("timer", "outmail-once")])
@programs.needs("systemd-analyze", "systemd")
def test_a_machines_service_is_closed_to_all_it_does_not_need(
    tmp_path: Path, service: planning.Service, name: str
) -> None:
    """As `outmail init` writes it."""
    wanted = planning.Wanted("system", planning.CONFIG, "", service=service, unit_texts=setup.unit_texts())
    steps = planning.plan(replace(wanted, command=(sys.executable,)), planning.Machine(systemd=True))
    [text] = [
        s.text for s in steps if isinstance(s, planning.WriteFile) and s.path.endswith(f"/{name}.service")
    ]
    unit = tmp_path / f"{name}.service"
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = re.search(r"exposure level for [a-z-]+.service: ([0-9.]+)", done.stdout)
    assert found and float(found[1]) <= 2.0


@programs.needs("systemd-sysusers", "systemd")
def test_the_user_can_be_made(tmp_path: Path) -> None:
    words = ["systemd-sysusers", "--dry-run", f"--root={tmp_path}", str(UNITS / "sysusers.conf")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "outmail" in done.stdout + done.stderr, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@programs.needs("systemd-tmpfiles", "systemd")
def test_the_drop_folder_is_made_as_init_makes_it(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("outmail:x:12345:12345::/:/bin/false\n")
    (tmp_path / "etc/group").write_text("outmail:x:12345:\n")
    words = ["systemd-tmpfiles", "--create", f"--root={tmp_path}", str(UNITS / "tmpfiles.conf")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    drop = tmp_path / "var/spool/outmail/drop"
    assert drop.stat().st_mode & 0o7777 == 0o3777 and drop.stat().st_uid == 12345, done.stderr
    assert drop.parent.stat().st_mode & 0o7777 == 0o755 and drop.parent.stat().st_uid == 0


def test_every_unit_starts_what_exists() -> None:
    for unit in UNITS.glob("*.service"):
        parsed = configparser.RawConfigParser(strict=False)
        parsed.optionxform = str  # type: ignore[assignment,method-assign]
        parsed.read(unit)
        assert parsed["Service"]["ExecStart"].startswith("@OUTMAIL@ run")


def test_the_service_says_when_it_is_ready_alive_and_stopping(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hearing:
        hearing.bind(str(tmp_path / "notify"))
        hearing.settimeout(30)
        config = tmp_path / "outmail.toml"
        config.write_text(f'store = "{tmp_path}/q.db"\n[listen]\nsmtp = ["127.0.0.1:0"]\n')
        env = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
        with subprocess.Popen(
            [sys.executable, "-m", "outmail", "run", "--config", str(config)],
            env=env,
            stderr=subprocess.DEVNULL,
        ) as service:
            heard = [hearing.recv(1000)]
            while not heard[-1].startswith(b"READY=1\nSTATUS=listening: smtp 127.0.0.1:"):
                heard.append(hearing.recv(1000))
            assert hearing.recv(1000) == b"WATCHDOG=1"
            service.send_signal(signal.SIGTERM)
            while heard[-1] != b"STOPPING=1":
                heard.append(hearing.recv(1000))
            assert service.wait(30) == 0
