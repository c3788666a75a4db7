"""What a program waits for when it calls sendmail or mailq: from exec to exit, beside a bare interpreter and
the sendmails of others.

Run: python bench/handing_in.py [--quick], or as a part of `make bench`. The contenders take turns in one
run; the ratios to a bare interpreter's start are the claim. Beside the wall time stands the CPU time of the
process (user and system), which busy neighbours disturb less. All but msmtp and mq-sendmail, which hand over
by SMTP to a sink, say 0 when the message is on disk. Postfix runs from a folder of its own, which needs root.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from outmail.config import from_toml
from outmail.outbox.outbox import Outbox
from outmail.testing import Sink
from outmail.unix import setup

MESSAGE = b"From: me@x.test\nTo: you@x.test\nSubject: bench\n\n" + (b"x" * 70 + b"\n") * 55
#: The name of the row that all others are compared with.
BARE = "`python -I -S -c pass`"
OURS = "outmail's sendmail (the script of `outmail init`)"
MQ = "import sys; from schwarz.mailqueue.cli import mq_sendmail_main; mq_sendmail_main(sys.argv)"
POSTFIX = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
mail_owner = postfix
myhostname = bench.test
inet_interfaces = 127.0.0.1
"""

Words = Sequence[str]


def call(words: Words, env: Mapping[str, str], given: bytes = MESSAGE) -> tuple[float, float]:
    """(seconds from exec to exit, seconds of CPU) of one program, which must end with 0."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as source:
        source.write(given)
        source.seek(0)
        began = time.perf_counter()
        process = subprocess.Popen(
            words, stdin=source, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
        )
        _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}")
    return seconds, used.ru_utime + used.ru_stime


@contextmanager
def contenders(folder: Path) -> Iterator[tuple[dict[str, Words], dict[str, str]]]:
    """Who is there, and the environment that all run in."""
    drop = folder / "drop"
    drop.mkdir()
    drop.chmod(0o3777)
    script = folder / "sendmail"
    script.write_text(setup.program().replace("@NAME@", "sendmail"))
    script.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith("OUTMAIL_")}
    env |= {"OUTMAIL_DROP": str(drop), "HOME": str(folder)}
    with Sink(keep=False) as sink:
        found: dict[str, Words] = {
            BARE: (sys.executable, "-I", "-S", "-c", "pass"),
            OURS: (str(script), "-t", "-i"),
            "`outmail sendmail` (the command of pip)": (*setup.command(), "sendmail", "-t", "-i"),
        }
        if (postfix := shutil.which("postfix", path="/usr/sbin")) and os.geteuid() == 0:
            found["Postfix's sendmail"] = _postfix(folder / "postfix", postfix)
        if msmtp := shutil.which("msmtp"):
            (folder / "msmtp").write_text(
                f"account default\nhost 127.0.0.1\nport {sink.port}\nfrom me@x.test\ntls off\nauth off\n"
            )
            found["msmtp (by SMTP to a sink)"] = (msmtp, f"--file={folder}/msmtp", "-t", "-i")
        if (
            subprocess.run([sys.executable, "-c", "import schwarz.mailqueue"], capture_output=True).returncode
            == 0
        ):
            (folder / "mq").write_text(
                f"[mqrunner]\nsmtp_hostname = 127.0.0.1\nsmtp_port = {sink.port}\nfrom = me@x.test\n"
            )
            found["mailqueue-runner's mq-sendmail (by SMTP to a sink)"] = (
                sys.executable, "-c", MQ, f"--config={folder}/mq", "-f", "me@x.test", "-t",
            )  # fmt: skip
        yield found, env


def _postfix(folder: Path, program: str) -> Words:
    """Its sendmail, with a queue of its own; no daemon is needed to take a message."""
    for name in ("conf", "queue", "data"):
        (folder / name).mkdir(parents=True)
    os.chown(folder / "data", pwd.getpwnam("postfix").pw_uid, -1)
    (folder / "conf" / "main.cf").write_text(POSTFIX.format(folder=folder))
    (folder / "conf" / "master.cf").write_text("pickup unix n - n 60 1 pickup\n")
    subprocess.run(
        [program, "-c", str(folder / "conf"), "check"], check=True, capture_output=True, timeout=60
    )
    sendmail = shutil.which("sendmail", path="/usr/sbin") or "/usr/sbin/sendmail"
    return (sendmail, "-C", str(folder / "conf"), "-t", "-i")


def one_each(found: Mapping[str, Words], env: Mapping[str, str], rounds: int) -> list[str]:
    """A table: what one call costs."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for words in found.values():
        call(words, env)  # files are in the cache
    for _ in range(rounds):
        for name, words in found.items():
            times[name].append(call(words, env))
    rows = [
        "| `sendmail -t` of 4 KB, exec to exit | ms | × bare | CPU ms | × bare |",
        "|---|---|---|---|---|",
    ]
    bare = [statistics.median(column) for column in zip(*times[BARE])]
    for name, measured in times.items():
        wall, used = (statistics.median(column) for column in zip(*measured))
        beside = f"{wall * 1000:.1f} | {wall / bare[0]:.2f} | {used * 1000:.1f} | {used / bare[1]:.2f}"
        rows.append(f"| {name} | {beside} |")
    return rows


def fifty(words: Words, env: Mapping[str, str], folder: Path, rounds: int) -> str:
    """Fifty at once beside fifty one after the other, in turns."""
    drop = Path(env["OUTMAIL_DROP"])
    together, alone = [], []
    for _ in range(rounds):
        for old in drop.iterdir():
            old.unlink()
        alone += [call(words, env)[0] for _ in range(10)]
        source = folder / "message"
        source.write_bytes(MESSAGE)
        began = time.perf_counter()
        started = [subprocess.Popen(words, stdin=open(source, "rb"), env=env) for _ in range(50)]
        if any(process.wait(120) for process in started):
            raise RuntimeError("one of fifty failed")
        together.append(time.perf_counter() - began)
        if (kept := sum(1 for _ in drop.iterdir())) != 60:
            raise RuntimeError(f"{60 - kept} of 60 messages are lost")
    all_of_them, one = statistics.median(together), statistics.median(alone)
    return (
        f"| 50 at once, none lost | {all_of_them * 1000:,.0f} | {all_of_them / one:.0f} × one of "
        f"{one * 1000:.0f} ms |"
    )


def listing(folder: Path, count: int, rounds: int) -> list[str]:
    """``mailq`` with many waiting: the first line, and all of them."""
    store = folder / "q.db"
    with Outbox(store, config=from_toml('from = "me@x.test"', "bench", {}), deliver="never") as box:
        for start in range(0, count, 1000):
            box.submit_many(
                {
                    "content": b"Subject: s\r\n\r\n",
                    "sender": "me@x.test",
                    "recipients": [f"u{start + i}@x.test"],
                }
                for i in range(1000)
            )
    first, whole, used = [], [], []
    for _ in range(rounds):
        began = time.perf_counter()
        with subprocess.Popen(
            [*setup.command(), "mailq", "--store", str(store)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            first.append(time.perf_counter() - began)
            lines = sum(1 for _ in process.stdout)
            _, status, resources = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        whole.append(time.perf_counter() - began)
        used.append(resources.ru_utime + resources.ru_stime)
        if process.returncode or lines < 3 * count:
            raise RuntimeError(f"mailq ended with {process.returncode} after {lines} lines")
    one, all_of_it, cpu = (statistics.median(column) * 1000 for column in (first, whole, used))
    return [
        f"| `mailq` with {count:,} waiting: the first line | {one:.0f} | |",
        f"| … complete | {all_of_it:,.0f} | of it CPU: {cpu:,.0f} |",
    ]


def measured(folder: Path, *, quick: bool = False) -> list[str]:
    """The lines of a page. ``folder`` is empty, and every user may enter it."""
    rounds = 10 if quick else 40
    with contenders(folder) as (found, env):
        lines = one_each(found, env, rounds)
        lines += ["", "| | ms | |", "|---|---|---|", fifty(found[OURS], env, folder, 3 if quick else 7)]
    return lines + listing(folder, 10_000 if quick else 100_000, 3 if quick else 5)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--quick", action="store_true")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="outmail-bench-", dir=os.environ.get("BENCH_DIR")) as place:
        os.chmod(place, 0o755)
        print("\n".join(measured(Path(place), quick=options.quick)))


if __name__ == "__main__":
    main()
