"""What is loaded, and what is not: a program that only stores mail pays for that, and for nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: Each costs many milliseconds, and none is needed to store a message.
HEAVY = {
    "asyncio", "concurrent", "ssl", "email", "importlib.resources", "tempfile", "shutil", "subprocess",
    "difflib", "tomllib", "mimetypes", "http", "sqlite3", "psycopg", "socket", "uuid",
}  # fmt: skip
#: These are loaded with an engine, or with a store.
LATER = {
    "apsw", "outmail.engine", "outmail.transport", "outmail.transactional", "outmail.service",
    "outmail.store.sqlite", "outmail.policy.reply_texts",
}  # fmt: skip


def loaded(code: str, folder: Path) -> set[str]:
    """The modules that a new interpreter has loaded when the code is through, and had not before."""
    script = f"import sys; before = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=b"Hello\n",
        capture_output=True,
        env={
            **os.environ,
            "HOME": str(folder),
            "XDG_DATA_HOME": str(folder),
            "OUTMAIL_STORE": f"{folder}/q.db",
        },
        cwd=folder,
        timeout=60,
        check=True,
    )
    return set(done.stdout.decode().splitlines()[-1].split())


@pytest.mark.parametrize("name", ["Outbox", "Receipt", "Refused"])
def test_a_name_of_the_library_loads_little(name: str, tmp_path: Path) -> None:
    found = loaded(f"import outmail; outmail.{name}", tmp_path)
    assert "outmail" in found and not found & (HEAVY | LATER)


def test_storing_a_message_needs_no_event_loop_and_no_email_package(tmp_path: Path) -> None:
    code = "import outmail\nwith outmail.Outbox() as box: box.send('a@x.test', 's', 't', sender='me@x.test')"
    loaded(code, tmp_path)  # makes the store
    found = loaded(code, tmp_path)
    assert "outmail.store.sqlite" in found and not found & HEAVY


@pytest.mark.parametrize(
    "words",
    [
        ["send", "-f", "me@x.test", "-s", "s", "a@x.test"],
        ["queue", "list"],
        ["queue", "hold", "state:queued"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_command_loads_what_it_needs(words: list[str], tmp_path: Path) -> None:
    loaded("import outmail\noutmail.Outbox(deliver='never').close()", tmp_path)  # makes the store
    code = f"from outmail.cli import main\nassert main({words!r}) == 0"
    loaded(code, tmp_path)
    found = loaded(code, tmp_path)
    assert "outmail.cli.common" in found and not found & {
        *HEAVY,
        "outmail.smtp.client",
        "outmail.policy.reply_texts",
    }
    assert ("outmail.outbox.outbox" in found) == (words[0] == "send")
