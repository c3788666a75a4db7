"""PostgreSQL: outmail beside django-post_office and django-mailer, on the same server, in the same run.

Run: python bench/postgres.py [--quick] [--server 18] (needs django-post_office and django-mailer for the
peers). Accepts come from eight processes with a connection each, as web workers are; the server, the source
and the sink share the machine with what is measured. Rounds take turns; ratios are medians over rounds of one
run.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import pgserver

from bench import lab


def text(size: int = 4000) -> str:
    """Made-up words in lines, the same in each run. (A line repeated would be compressed away in the tables
    of whoever lets PostgreSQL do that.)
    """
    chance = random.Random(5)
    words = [
        "".join(chance.choices("etaoinshrdlucmfwypvbgkjqxz", k=chance.randint(2, 9))) for _ in range(1500)
    ]
    lines: list[str] = []
    while sum(map(len, lines)) < size:
        lines.append(" ".join(chance.choices(words, k=11))[:76] + "\n")
    return "".join(lines)


TEXT = text()

SETTINGS = """
SECRET_KEY = "x" * 50
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "post_office",
    "mailer",
    "outmail.contrib.django",
]
SERVER = {{"ENGINE": "django.db.backends.postgresql", "USER": "outmail", "HOST": "127.0.0.1", "PORT": {port}}}
DATABASES = {{"default": {{**SERVER, "NAME": "{name}", "CONN_MAX_AGE": None}}}}
EMAIL_HOST, EMAIL_PORT = "127.0.0.1", {sink}
EMAIL_BACKEND = "{backend}"
MAILER_EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
POST_OFFICE = {{"BATCH_SIZE": 5000, "LOG_LEVEL": 1}}
TEMPLATES = [{{"BACKEND": "django.template.backends.django.DjangoTemplates"}}]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
OUTMAIL = {{"store": "postgresql://outmail@127.0.0.1:{port}/{name}"}}
USE_TZ = True
"""
DJANGO = (
    "import os, sys, time\nos.environ['DJANGO_SETTINGS_MODULE'] = 'settings'\nimport django\ndjango.setup()\n"
)
READY = "print('ready', flush=True); sys.stdin.readline()\n"
DONE = "\nprint('done', flush=True)\n"
TEXT_CODE = f"TEXT = {TEXT!r}\n"

#: One message before the clock starts: modules are imported and connections made.
ACCEPT = {
    "outmail": "import sys\nfrom outmail import Outbox\nbox = Outbox(sys.argv[2], "
    "deliver='never')\n" + TEXT_CODE + "def one(i): box.send('b@x.test', f's{i}', TEXT, "
    "sender='a@x.test')\none(0)\n" + READY + "for i in range(int(sys.argv[1])): one(i)\n",
    "django-post_office": DJANGO
    + "from post_office import mail\n"
    + TEXT_CODE
    + "def one(i): mail.send('b@x.test', 'a@x.test', subject=f's{i}', "
    "message=TEXT)\none(0)\n" + READY + "for i in range(int(sys.argv[1])): one(i)\n",
    "django-mailer": DJANGO
    + "from django.core.mail import send_mail\n"
    + TEXT_CODE
    + "def one(i): send_mail(f's{i}', TEXT, 'a@x.test', ['b@x.test'])\none(0)\n"
    + READY
    + "for i in "
    "range(int(sys.argv[1])): "
    "one(i)\n",
}
#: The same from eight threads, as in a threaded web server.
THREADS = """import threading
begin, end = threading.Barrier(9), threading.Barrier(9)
def thread(count):
    one(0)
    begin.wait()
    for i in range(count): one(i)
    end.wait()
for _ in range(8): threading.Thread(target=thread, args=(int(sys.argv[1]) // 8,), daemon=True).start()
"""
THREADED = {
    name: ACCEPT[name]
    .replace(READY, THREADS + READY)
    .replace("for i in range(int(sys.argv[1])): one(i)\n", "begin.wait()\nend.wait()\n")
    for name in ("outmail", "django-post_office")
}
MANY = {
    "outmail": "import sys\nfrom outmail import Outbox\nbox = Outbox(sys.argv[2], "
    "deliver='never')\n"
    + TEXT_CODE
    + "C = ('From: a@x.test\\r\\nSubject: s\\r\\n\\r\\n' + TEXT).encode()\n"
    + READY
    + "box.submit_many({'content': C, 'sender': 'a@x.test', 'recipients': 'b@x.test'} for i in "
    "range(int(sys.argv[1])))\n",
    "django-post_office": DJANGO
    + "from post_office import mail\n"
    + TEXT_CODE
    + READY
    + "mail.send_many([{'recipients': 'b@x.test', 'sender': 'a@x.test', 'subject': f's{i}', 'message': TEXT} "
    "for i in range(int(sys.argv[1]))])\n",
}


def project(folder: Path, name: str, backend: str, database: str, port: int, sink: int) -> Path:
    made = folder / name
    made.mkdir()
    made.joinpath("settings.py").write_text(
        SETTINGS.format(name=database, port=port, sink=sink, backend=backend)
    )
    manage(made, "migrate", "-v0")
    return made


def manage(folder: Path, *words: str) -> None:
    code = (
        "import os, sys\nos.environ['DJANGO_SETTINGS_MODULE'] = 'settings'\nfrom django.core.management "
        "import execute_from_command_line\nexecute_from_command_line(['manage.py', *sys.argv[1:]])"
    )
    subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, check=True, timeout=900, capture_output=True
    )


def at_once(code: str, count: int, processes: int, folder: Path, *more: str) -> float:
    """Messages a second of so many processes that start together."""
    each = count // processes
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code + DONE, str(each), *more],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(processes)
    ]
    for process in running:
        assert process.stdout and process.stdout.readline() == b"ready\n"
    began = time.perf_counter()
    for process in running:
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in running:  # what an interpreter takes to end is not counted
        assert process.stdout and process.stdout.readline() == b"done\n"
    ended = time.perf_counter()
    for process in running:
        if process.wait(600):
            sys.exit("a process failed")
    return each * processes / (ended - began)


def drained(sink: lab.SinkProcess, count: int, action: Callable[[], object]) -> float:
    """Messages a second from the start of the command to the last one at the sink."""
    start, began = sink.count, time.perf_counter()
    action()
    return count / (sink.wait(start + count, 60) - began)


def measured(folder: Path, version: str, *, quick: bool = False) -> Iterator[str]:
    """The section for benchmarks.md."""
    rounds, accepts, many, drains = (1, 400, 4000, 1000) if quick else (3, 8000, 20_000, 10_000)
    server = pgserver.PgServer(pgserver.installed()[version]).start()
    sink = lab.SinkProcess()
    try:
        backends = {
            "django-post_office": "post_office.EmailBackend",
            "django-mailer": "mailer.backend.DbBackend",
            "outmail": "outmail.contrib.django.EmailBackend",
        }
        urls = {name: server.create(name.replace("-", "_")) for name in backends}
        places = {
            name: project(folder, name, backend, name.replace("-", "_"), server.port, sink.port)
            for name, backend in backends.items()
        }
        yield (
            f"PostgreSQL {version}, its own defaults, on the same machine as everything else; messages of "
            f"4 KB of made-up words; what an interpreter takes to start and to end is not counted; medians "
            f"of {rounds} rounds that take turns."
        )
        yield ""
        yield "| | outmail | django-post_office | django-mailer | outmail : django-post_office |"
        yield "|---|---|---|---|---|"
        seen: dict[str, dict[str, list[float]]] = {}

        def note(what: str, name: str, value: float) -> None:
            seen.setdefault(what, {}).setdefault(name, []).append(value)
            print(f"  {what}: {name} {value:,.0f}/s", file=sys.stderr, flush=True)

        for _ in range(rounds):
            for name in backends:
                note(
                    "accepts/s from 8 processes, a commit each",
                    name,
                    at_once(ACCEPT[name], accepts, 8, places[name], urls[name]),
                )
            for name, code in THREADED.items():
                note(
                    "accepts/s from 8 threads of one process",
                    name,
                    at_once(code, accepts, 1, places[name], urls[name]),
                )
            note(
                "accepted at once (submit_many)/s",
                "outmail",
                at_once(MANY["outmail"], many, 1, places["outmail"], urls["outmail"]),
            )
            note(
                "accepted at once (submit_many)/s",
                "django-post_office",
                at_once(MANY["django-post_office"], many, 1, places["django-post_office"]),
            )
            for name in backends:
                drain_all(
                    name,
                    places[name],
                    urls[name],
                    sink.port,
                    accepts + (many if name != "django-mailer" else 0),
                    quiet=True,
                    server=server,
                )
                count = drains // (5 if name != "outmail" else 1)
                fill(name, places[name], urls[name], count)
                drain = partial(
                    drain_all, name, places[name], urls[name], sink.port, count, quiet=False, server=server
                )
                note("drained/s to smtp-sink", name, drained(sink, count, drain))
        for what, found in seen.items():
            middle = {name: statistics.median(values) for name, values in found.items()}
            ratio = statistics.median(a / b for a, b in zip(found["outmail"], found["django-post_office"]))
            yield (
                f"| {what} | {middle['outmail']:,.0f} | {middle['django-post_office']:,.0f} | "
                f"{format(middle['django-mailer'], ',.0f') if 'django-mailer' in middle else ''} | "
                f"{ratio:.1f} |"
            )
        single = statistics.median(
            a / b
            for a, b in zip(
                seen["accepted at once (submit_many)/s"]["outmail"],
                seen["accepts/s from 8 processes, a commit each"]["django-post_office"],
            )
        )
        yield ""
        yield f"`submit_many` against django-post_office's accepts one by one: {single:.0f} times."
        yield ""
        yield using(server, 300 if quick else 2000)
    finally:
        sink.close()
        server.remove()


def fill(name: str, folder: Path, url: str, count: int) -> None:
    if name == "django-mailer":
        at_once(ACCEPT[name], count, 2, folder, url)
    else:
        at_once(MANY[name], count, 1, folder, url)


def drain_all(
    name: str, folder: Path, url: str, sink: int, count: int, *, quiet: bool, server: pgserver.PgServer
) -> None:
    """The peer's own command; before a measurement the tables are emptied by hand."""
    if quiet:
        import psycopg

        tables = {
            "django-post_office": "post_office_email",
            "django-mailer": "mailer_message",
            "outmail": "outmail.message, outmail.body, outmail.recipient, outmail.event, outmail.attempt",
        }
        with psycopg.connect(url, autocommit=True) as db:
            db.execute(f"TRUNCATE {tables[name]} CASCADE")
        return
    if name == "outmail":
        subprocess.run(
            [
                sys.executable,
                "-m",
                "outmail",
                "run",
                "--once",
                "--store",
                url,
                "--relay",
                f"smtp://127.0.0.1:{sink}",
            ],
            check=True,
            timeout=900,
            stderr=subprocess.DEVNULL,
        )
    elif name == "django-post_office":
        manage(folder, "send_queued_mail", "--processes", "1")
    else:
        manage(folder, "send_mail")


def using(server: pgserver.PgServer, count: int) -> str:
    """What a row in the caller's transaction costs it."""
    import psycopg

    from outmail import Outbox

    url = server.create("shop")
    with (
        tempfile.TemporaryDirectory() as folder,
        psycopg.connect(url) as db,
        Outbox(f"{folder}/q.db", deliver="never") as box,
    ):
        db.execute((Path(__file__).parents[1] / "src/outmail/store/sql/outbox-postgresql.sql").read_text())
        db.execute("CREATE TABLE orders (id int)")
        db.commit()
        times: dict[bool, list[float]] = {True: [], False: []}
        for i in range(2 * count):
            began = time.perf_counter()
            db.execute("INSERT INTO orders VALUES (%s)", (i,))
            if i % 2:
                box.send("b@x.test", f"s{i}", TEXT, sender="a@x.test", using=db)
            db.commit()
            times[bool(i % 2)].append((time.perf_counter() - began) * 1000)
    without, with_mail = statistics.median(times[False]), statistics.median(times[True])
    return (
        f"A mail of 4 KB with `using=` adds {with_mail - without:.2f} ms to a transaction of "
        f"{without:.2f} ms (medians of {count} each, taking turns)."
    )


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--server", default=max(pgserver.installed(), key=int))
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="outmail-bench-pg-") as name:
        os.environ["XDG_STATE_HOME"] = name
        for line in measured(Path(name), options.server, quick=options.quick):
            print(line, flush=True)


if __name__ == "__main__":
    main()
