"""The standing comparison: other people's test suites and mail programs against a live outmail, as one table.

``python tests/interop/compare.py [--short] [PEER…]``. Each peer is installed at its pinned version into an
environment of its own under ``build/interop`` (nothing is installed twice), and its suite runs there, beside
this working tree. What it needs comes from PyPI, npm and Debian. Exit: 0 when every difference has its reason
in `peers`, and every reason its difference; 1 when not, 69 when nothing could be run.
Does not: bring any of the peers' code into the repository, or change the machine. Debian's servers need root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.interop.peers import PEERS, Peer  # noqa: E402

GUESTS = ROOT / "tests" / "interop" / "guests"
#: Seconds for one peer's suite, and for the installation of one.
SUITE, INSTALL = 300, 300


class Unavailable(Exception):
    """The peer cannot be had here; the reason."""


@dataclass
class Row:
    """What became of one peer's tests."""

    peer: Peer
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    #: (test, reason)
    differs: list[tuple[str, str]] = field(default_factory=list)
    #: (test, what happened): no reason is known
    unexplained: list[tuple[str, str]] = field(default_factory=list)
    absent: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Run other people's test suites against outmail.")
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"one of: {', '.join(PEERS)}")
    parser.add_argument("--short", action="store_true", help="only the peers that are quick")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "interop", help="for environments")
    words = parser.parse_args()
    unknown = [name for name in words.peers if name not in PEERS]
    if unknown:
        parser.error(f"no peer is named {unknown[0]!r}; known are {', '.join(PEERS)}")
    chosen = [PEERS[name] for name in words.peers] or [
        p for p in PEERS.values() if p.quick or not words.short
    ]
    words.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for peer in chosen:
        print(f"{peer.name} {peer.version} …", file=sys.stderr, flush=True)
        rows.append(compared(peer, words.folder.resolve()))
    print(table(rows))
    print(reasons(rows))
    if all(row.absent for row in rows):
        return 69
    return 1 if any(row.unexplained for row in rows) else 0


def compared(peer: Peer, folder: Path) -> Row:
    row = Row(peer)
    try:
        python = environment(peer, folder / peer.name)
        source = sdist(peer, folder) if peer.sdist else None
        node = npm(peer, folder) if peer.npm else None
        debian = unpacked(peer, folder) if peer.debian else None
    except Unavailable as problem:
        row.absent = str(problem)
        return row
    began = time.monotonic()
    results = folder / f"{peer.name}.jsonl"
    results.unlink(missing_ok=True)
    found = {"source": source, "node": node, "debian": debian, "guests": GUESTS}
    ended = suite(peer, python, found, results)
    row.seconds = time.monotonic() - began
    judge(row, results, ended)
    return row


# -- installing ----------------------------------------------------------------------------------------------


def environment(peer: Peer, folder: Path) -> Path:
    """The Python of the peer's environment; made when it is not there."""
    base = python_for(peer)
    made = folder / "bin" / "python"
    mark = folder / ".installed"
    wanted = [*own_dependencies(), *peer.packages]
    if mark.exists() and mark.read_text() == "\n".join(wanted):
        return made
    if peer.module:
        asked = [base, "-c", f"import {peer.module.partition(' ')[0]}"]
        if subprocess.run(asked, capture_output=True, check=False).returncode:
            raise Unavailable(f"needs {peer.module}")
    shutil.rmtree(folder, ignore_errors=True)
    run([base, "-m", "venv", "--without-pip", str(folder)])
    pip(base, "--python", str(made), "install", *wanted)
    mark.write_text("\n".join(wanted))
    return made


def own_dependencies() -> list[str]:
    """What outmail itself needs: it runs from the working tree."""
    found: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return found


def python_for(peer: Peer) -> str:
    """A Python that is new enough for the peer; this one if it is."""
    names = [f"python3.{minor}" for minor in range(peer.python[1], 20)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [sys.executable, *filter(None, map(shutil.which, names)), *map(str, pyenv.glob("3.*/bin/python"))]
    for python in found:
        asked = [python, "-c", f"import sys, venv; sys.exit(sys.version_info < {peer.python!r})"]
        if subprocess.run(asked, capture_output=True, check=False).returncode == 0:
            return python
    raise Unavailable(f"needs Python {'.'.join(map(str, peer.python))}")


def sdist(peer: Peer, folder: Path) -> Path:
    """The unpacked source of the peer, where its tests are; fresh for each run."""
    kept = folder / "sources" / f"{peer.name}-{peer.version}"
    if not any(kept.glob("*.tar.gz")):
        words = ["--no-deps", "--no-binary", peer.sdist, "-d", str(kept)]
        pip(python_for(peer), "download", *words, f"{peer.sdist}=={peer.version}")
    (archive,) = kept.glob("*.tar.gz")
    unpacked = kept / "source"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    run(["tar", "-xzf", str(archive), "-C", str(unpacked)])
    (source,) = unpacked.iterdir()
    return source


def npm(peer: Peer, folder: Path) -> Path:
    """The folder node_modules with the peer's packages."""
    home = folder / f"{peer.name}-npm"
    program = shutil.which("npm")
    if program is None:
        raise Unavailable("npm is missing")
    if not all((home / "node_modules" / name.rpartition("@")[0]).is_dir() for name in peer.npm):
        home.mkdir(exist_ok=True)
        run([program, "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(home), *peer.npm])
    return home / "node_modules"


def unpacked(peer: Peer, folder: Path) -> Path:
    """A folder with the unpacked packages of Debian; nothing is installed."""
    home = folder / f"{peer.name}-debian"
    needed = ("apt-get", "dpkg", "unshare")
    if os.geteuid() != 0 or not all(map(shutil.which, needed)):
        raise Unavailable(f"needs root and {', '.join(needed)}")
    try:
        subprocess.run(["unshare", "-m", "true"], capture_output=True, check=True, timeout=INSTALL)
    except subprocess.CalledProcessError:
        raise Unavailable("needs the right to mount") from None
    if not (home / "usr").is_dir():
        archives = folder / f"{peer.name}-archives"
        archives.mkdir(exist_ok=True)
        run(["apt-get", "update", "-qq"])
        run(["sh", "-c", 'cd "$0" && apt-get download -qq "$@"', str(archives), *peer.debian])
        for archive in archives.glob("*.deb"):
            run(["dpkg", "-x", str(archive), str(home)])
    return home


def pip(python: str, *words: str) -> None:
    run([python, "-m", "pip", "--quiet", "--disable-pip-version-check", *words])


def run(words: list[str]) -> None:
    try:
        subprocess.run(words, capture_output=True, check=True, timeout=INSTALL)
    except subprocess.CalledProcessError as problem:
        last = problem.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise Unavailable(f"cannot be installed: {' '.join(last)}") from None
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise Unavailable(f"cannot be installed: {problem}") from None


# -- running -------------------------------------------------------------------------------------------------


def suite(peer: Peer, python: Path, found: Mapping[str, Path | None], results: Path) -> str:
    """Run it; returns how it ended where that was not in order."""
    source = found["source"]
    if source is not None and peer.fixtures:
        with open(source / "tests" / "conftest.py", "a", encoding="utf-8") as file:
            file.write(f"\nfrom {peer.fixtures} import *\n")
    words = [word.format(**{name: path or "" for name, path in found.items()}) for word in peer.command]
    paths = [str(ROOT / "src"), str(GUESTS), *([str(source)] if source is not None else [])]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "INTEROP_RESULTS": str(results),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    log = results.with_suffix(".log")
    # Servers that drop their rights must be able to enter it.
    with tempfile.TemporaryDirectory(prefix="outmail-interop-", ignore_cleanup_errors=True) as scratch:
        os.chmod(scratch, 0o755)
        status = finished([str(python), *words], source or results.parent, env | {"TMPDIR": scratch}, log)
    if status is None:
        return f"not done after {SUITE} s; see {log}"
    # pytest says 1 when a test failed, which the results tell
    return "" if status in (0, 1) and results.exists() else f"status {status}; see {log}"


def finished(words: list[str], folder: Path, env: Mapping[str, str], log: Path) -> int | None:
    """Run a program with all that it starts, none of which is left; its status, None after the time-out."""
    with open(log, "wb") as file:
        program = subprocess.Popen(
            words,
            cwd=folder,
            env=env,
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        return program.wait(SUITE)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def judge(row: Row, results: Path, ended: str) -> None:
    """Results → counts, and which differences have a reason."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    used: set[str] = set()
    for found in map(json.loads, lines):
        row.counts[found["outcome"]] += 1
        if found["outcome"] == "failed":
            explain(row, found["test"], found["detail"], used)
    for pattern in row.peer.differs:
        if pattern not in used and not ended:
            row.unexplained.append((pattern, "differs no more: take the reason out of the table"))
    if ended:
        row.unexplained.append((row.peer.name, ended))
    elif not row.counts["passed"] + row.counts["failed"]:
        row.unexplained.append((row.peer.name, f"no test ran; see {results.with_suffix('.log')}"))


def explain(row: Row, test: str, detail: str, used: set[str]) -> None:
    for pattern, reason in row.peer.differs.items():
        if re.search(pattern, test):
            used.add(pattern)
            row.differs.append((test, reason))
            return
    last = [line.strip() for line in detail.strip().splitlines() if line.strip()]
    row.unexplained.append((test, last[-1] if last else "failed"))


# -- telling -------------------------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    head = ("peer", "version", "what", "ran", "passed", "differs", "left out", "seconds")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        counts = row.counts
        if row.absent:
            lines.append((row.peer.name, row.peer.version, "not here", *"-----"))
            continue
        ran = counts["passed"] + counts["failed"]
        others = counts["left-out"] + counts["skipped"]
        numbers = (ran, counts["passed"], counts["failed"], others, f"{row.seconds:.0f}")
        lines.append((row.peer.name, row.peer.version, row.peer.what, *map(str, numbers)))
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
        for line in lines
    )


def reasons(rows: list[Row]) -> str:
    """Every difference with its reason; then what has none."""
    lines = [f"{row.peer.name} is not here: {row.absent}" for row in rows if row.absent]
    for row in rows:
        for reason, count in Counter(reason for _, reason in row.differs).items():
            tests = [test.rpartition("::")[2] for test, because in row.differs if because == reason]
            shown = ", ".join(tests[:4]) + (f" and {count - 4} more" if count > 4 else "")
            lines.append(f"{row.peer.name}: {reason}\n    {shown}")
    for row in rows:
        lines += [f"UNEXPLAINED {row.peer.name}: {test}: {detail}" for test, detail in row.unexplained]
    return "\n" + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
