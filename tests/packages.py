"""Install a wheel and an sdist into empty environments, and use what is there: ``make dist`` runs it.

``python tests/packages.py FILE…``. Each file is installed under every CPython 3.11 and later that is found in
the PATH or with pyenv, by pip, and by uv and pipx where those are found. In each environment the version is
asked, a message is sent to nowhere, and pages and scripts must be in its share folder; pip's runs the demo.
Prints a line for each; status 1 when one has failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NEWEST = 20
SHARED = (
    "man/man1/outmail.1",
    "man/man1/outmail-sendmail.1",
    "man/man1/outmail-mailq.1",
    "man/man5/outmail.toml.5",
    "bash-completion/completions/outmail",
    "zsh/site-functions/_outmail",
    "fish/vendor_completions.d/outmail.fish",
)


def main(files: list[str]) -> int:
    failed = 0
    for tool, version, python, file in _plan([os.path.abspath(file) for file in files]):
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                _use(_installed(tool, python, file, Path(folder)), demo=tool == "pip")
                said = f"ok, {time.monotonic() - begin:.0f} s"
            except (subprocess.SubprocessError, OSError, AssertionError) as problem:
                failed += 1
                output = getattr(problem, "stdout", None) or b""
                said = f"FAILED: {problem}\n{output.decode(errors='replace')}"
        print(f"{tool:<5} {version:<8} {os.path.basename(file):<36} {said}", flush=True)
    return min(failed, 1)


def _plan(files: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """(tool, version of Python, its path, file)."""
    for tool in ("pip", "uv", "pipx"):
        if tool != "pip" and not shutil.which(tool):
            print(f"{tool:<5} is not here")
            continue
        for version, python in pythons().items():
            yield from ((tool, version, python, file) for file in files)


def pythons() -> dict[str, str]:
    """Minor version → an interpreter with the venv module."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = {}
    for minor in range(11, NEWEST):
        name = f"python3.{minor}"
        places = [
            shutil.which(name),
            *map(str, sorted(pyenv.glob(f"3.{minor}.*/bin/{name}"))),
            sys.executable,
        ]
        for python in filter(None, places):
            asked = [
                python,
                "-c",
                f"import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, {minor}))",
            ]
            if subprocess.run(asked, capture_output=True, timeout=60, check=False).returncode == 0:
                found[f"3.{minor}"] = python
                break
    return found


def _installed(tool: str, python: str, file: str, folder: Path) -> Path:
    """An environment with nothing but the file and what it needs."""
    made = folder / "environment"
    if tool == "pip":
        _run(python, "-m", "venv", made)
        _run(made / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check", file)
    elif tool == "uv":
        _run("uv", "venv", "--python", python, made)
        _run("uv", "pip", "install", "--python", made / "bin" / "python", file)
    else:
        places = {"PIPX_HOME": made, "PIPX_BIN_DIR": folder / "bin", "PIPX_MAN_DIR": folder / "man"}
        _run(
            "pipx", "install", "--python", python, file, **{name: str(path) for name, path in places.items()}
        )
        assert (folder / "bin" / "outmail").exists(), "pipx has not linked the command"
        made = made / "venvs" / "outmail"
    return made


def _use(made: Path, *, demo: bool) -> None:
    outmail = made / "bin" / "outmail"
    first, *facts = _run(outmail, "--version").splitlines()
    assert first.startswith("outmail ") and len(first.split()) == 2, first
    assert any(line.startswith("commit ") for line in facts) or not _in_checkout(), "no commit is named"
    store = ("--store", made / "queue.db", "--relay", "null:")
    sent = _run(outmail, "send", "-f", "me@x.test", "you@x.test", *store).strip()
    _run(outmail, "run", "--once", "--strict", *store)
    assert "delivered" in _run(outmail, "show", sent, *store), "the message is not delivered"
    assert ".SH NAME" in _run(outmail, "man", "sendmail"), "there is no page"
    missing = [path for path in SHARED if not (made / "share" / path).is_file()]
    assert not missing, f"the environment's share lacks {', '.join(missing)}"
    if demo:
        _run(outmail, "demo")


def _in_checkout() -> bool:
    return (Path(__file__).parents[1] / ".git").exists()


def _run(*words: str | Path, **more: str) -> str:
    """What a command prints. Raises with its output when it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OUTMAIL_", "PYTHON"))}
    done = subprocess.run(
        list(map(str, words)),
        env={**kept, **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
        check=True,
        cwd="/",
    )
    return done.stdout.decode()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
