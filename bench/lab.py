"""The lab: smtp-source → X → smtp-sink on one machine in one go, X = nothing, outmail, Postfix, and the naive
Python way.

Run: python bench/lab.py [--quick] [--only outmail,postfix] (Debian's package postfix; Postfix itself only as
root). Rates count from the first byte to the last message at the sink. Ratios are medians over rounds that
take turns, in one run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SBIN = "/usr/sbin"


def tool(name: str) -> str:
    return (
        shutil.which(name)
        or shutil.which(name, path=SBIN)
        or sys.exit(f"{name} is needed: Debian's package postfix")
    )


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def until_open(port: int, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.05)
    sys.exit(f"nobody listens on {port}")


class SinkProcess:
    """smtp-sink with its counter."""

    def __init__(self) -> None:
        self.port = free_port()
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        self.process = subprocess.Popen(
            [tool("smtp-sink"), "-c", *user, f"127.0.0.1:{self.port}", "1000"], stdout=subprocess.PIPE
        )
        self.count = 0
        threading.Thread(target=self._read, daemon=True).start()
        until_open(self.port)

    def _read(self) -> None:
        assert self.process.stdout
        rest = b""
        while data := os.read(self.process.stdout.fileno(), 65536):
            # it writes a line a message: following each would take a tenth of a core from those who are
            # measured
            time.sleep(0.003)
            found = re.findall(rb"mesg=(\d+)", rest + data)
            rest = data[-40:]
            if found:
                self.count = int(found[-1])

    def wait(self, count: int, seconds: float) -> float:
        """The moment when it has ``count`` messages."""
        deadline = time.monotonic() + seconds
        while self.count < count and time.monotonic() < deadline:
            time.sleep(0.002)
        if self.count < count:
            print(f"  only {self.count} of {count} messages came", file=sys.stderr)
        return time.perf_counter()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


@dataclass
class Load:
    """One kind of load."""

    name: str
    size: int = 4096
    kept: bool = True
    recipients: int = 1
    count: int = 10_000


@dataclass
class Seen:
    """What the rounds of one contestant showed."""

    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: int = 0


@dataclass
class Standing:
    """A contestant that runs: where it listens, its processes, and how to ask what each message took from
    acceptance to delivery, in ms.
    """

    port: int
    pids: list[int] = field(default_factory=list)
    delays: Callable[[], list[float]] | None = None


Contestant = Callable[[Path, int], "contextlib.AbstractContextManager[Standing]"]


@contextlib.contextmanager
def direct(folder: Path, sink: int) -> Iterator[Standing]:
    yield Standing(sink)


def outmail(loop: str, more: str = "") -> Contestant:
    @contextlib.contextmanager
    def run(folder: Path, sink: int) -> Iterator[Standing]:
        port = free_port()
        config = folder / f"outmail-{loop}-{port}.toml"
        config.write_text(
            f'store = "{folder}/{loop}-{port}.db"\nrelay = "smtp://127.0.0.1:{sink}"\nloop = '
            f'"{loop}"\n[listen]\nsmtp = ["127.0.0.1:{port}"]\n{more}'
        )
        with open(folder / "outmail.log", "ab") as log:
            process = subprocess.Popen(
                [str(Path(sys.executable).with_name("outmail")), "run", "--config", str(config)], stderr=log
            )
        try:
            until_open(port)
            yield Standing(port, [process.pid], lambda: _recorded(folder / f"{loop}-{port}.db"))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)

    return run


def _recorded(store: Path) -> list[float]:
    """outmail's own record: from acceptance to the relay's answer."""
    with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as db:
        rows = db.execute(
            "SELECT a.at - m.accepted_at FROM attempt a JOIN message m ON m.seq = a.message WHERE a.outcome "
            "= 'delivered' ORDER BY a.id"
        )
        return [float(row[0]) for row in rows]


@contextlib.contextmanager
def postfix(folder: Path, sink: int, more: str = "") -> Iterator[Standing]:
    """A private Postfix with its default durability: everything goes to the sink by SMTP. ``more`` goes into
    main.cf.
    """
    base = Path(tempfile.mkdtemp(prefix="outmail-lab-postfix-", dir="/tmp"))
    base.chmod(0o755)
    for name in ("conf", "queue", "data"):
        (base / name).mkdir()
    port = free_port()
    os.chown(base / "data", pwd.getpwnam("postfix").pw_uid, -1)
    (base / "conf" / "main.cf").write_text(
        f"compatibility_level = 3.6\nqueue_directory = {base}/queue\ndata_directory = "
        f"{base}/data\nmaillog_file = {base}/data/log\nmaillog_file_prefixes = /tmp\n"
        f"mail_owner = postfix\nmyhostname = localhost\nmydestination =\nrelayhost = "
        f"[127.0.0.1]:{sink}\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\n"
        "mynetworks = 127.0.0.0/8\nalias_maps =\nalias_database =\nsmtp_host_lookup = "
        "native\nsmtp_dns_support_level = disabled\n" + more
    )
    (base / "conf" / "master.cf").write_text(
        f"127.0.0.1:{port} inet n - n - - smtpd\ncleanup unix n - n - 0 cleanup\nqmgr unix n - n 300 1 "
        f"qmgr\nrewrite unix - - n - - trivial-rewrite\n"
        "tlsmgr unix - - n 1000? 1 tlsmgr\nbounce unix - - n - 0 bounce\ndefer unix - - n - 0 bounce\ntrace "
        "unix - - n - 0 bounce\nflush unix n - n 1000? 0 flush\n"
        "proxymap unix - - n - - proxymap\nsmtp unix - - n - - smtp\nrelay unix - - n - - smtp\nerror unix - "
        "- n - - error\nretry unix - - n - - error\n"
        "anvil unix - - n - 1 anvil\nscache unix - - n - 1 scache\npostlog unix-dgram n - n - 1 postlogd\n"
    )
    subprocess.run(
        [tool("postfix"), "-c", str(base / "conf"), "start"], capture_output=True, timeout=60, check=False
    )
    try:
        until_open(port)

        def logged() -> list[float]:
            return [
                float(found) * 1000
                for found in re.findall(
                    r" delay=([\d.]+), .*status=sent", (base / "data" / "log").read_text()
                )
            ]

        yield Standing(port, [int((base / "queue" / "pid" / "master.pid").read_text())], logged)
    finally:
        subprocess.run(
            [tool("postfix"), "-c", str(base / "conf"), "stop"], capture_output=True, timeout=60, check=False
        )
        shutil.rmtree(base, ignore_errors=True)


NAIVE = """
import asyncio, sqlite3, sys, aiosmtplib
from aiosmtpd.controller import Controller

db = sqlite3.connect(sys.argv[1], check_same_thread=False, isolation_level=None)
for sql in (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "CREATE TABLE mail (id INTEGER PRIMARY KEY, sender TEXT, rcpts TEXT, content BLOB)",
):
    db.execute(sql)
queue = None


class Handler:
    async def handle_DATA(self, server, session, envelope):
        id = db.execute(
            "INSERT INTO mail (sender, rcpts, content) VALUES (?,?,?)",
            (envelope.mail_from, " ".join(envelope.rcpt_tos), envelope.content),
        ).lastrowid
        queue.put_nowait((id, envelope.mail_from, envelope.rcpt_tos, envelope.content))
        return "250 stored"


async def send(port):
    client = aiosmtplib.SMTP(hostname="127.0.0.1", port=port, use_tls=False, start_tls=False)
    await client.connect()
    while True:
        id, sender, rcpts, content = await queue.get()
        await client.sendmail(sender, rcpts, content)
        db.execute("DELETE FROM mail WHERE id = ?", (id,))


async def main():
    global queue
    queue = asyncio.Queue()
    from aiosmtpd.smtp import SMTP

    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(Handler(), data_size_limit=None), "127.0.0.1", int(sys.argv[2])
    )
    await asyncio.gather(*(send(int(sys.argv[3])) for _ in range(20)))


asyncio.run(main())
"""


@contextlib.contextmanager
def naive(folder: Path, sink: int) -> Iterator[Standing]:
    """aiosmtpd and aiosmtplib in one process, one commit per mail."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", NAIVE, str(folder / f"naive-{port}.db"), str(port), str(sink)],
        stderr=subprocess.DEVNULL,
    )
    try:
        until_open(port)
        yield Standing(port, [process.pid])
    finally:
        process.kill()
        process.wait()


def processes(roots: list[int]) -> list[int]:
    """These and everything below them."""
    found = list(roots)
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if (
                int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1]) in found
                and int(path.name) not in found
            ):
                found.append(int(path.name))
    return found


def used(roots: list[int]) -> tuple[float, int]:
    """(CPU seconds, resident MB) of a process tree."""
    cpu, memory = 0.0, 0
    for pid in processes(roots):
        with contextlib.suppress(OSError, IndexError):
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            cpu += (int(words[11]) + int(words[12]) + int(words[13]) + int(words[14])) / os.sysconf(
                "SC_CLK_TCK"
            )
            memory += int(words[21]) * os.sysconf("SC_PAGE_SIZE") // 1_048_576
    return cpu, memory


def one(contestant: Contestant, load: Load, folder: Path, seen: Seen, count: int) -> None:
    """One round."""
    sink = SinkProcess()
    try:
        with contestant(folder, sink.port) as standing:
            port, pids = standing.port, standing.pids
            source = [
                tool("smtp-source"),
                "-s",
                "20",
                "-l",
                str(load.size),
                "-r",
                str(load.recipients),
                *(["-d"] if load.kept else []),
                "-f",
                "a@x.test",
                "-t",
                "b@x.test",
            ]
            # warm
            subprocess.run(
                [*source, "-m", "200", f"127.0.0.1:{port}"], check=True, capture_output=True, timeout=300
            )
            sink.wait(200 // 1, 60)
            before, _ = used(pids)
            began, start = time.perf_counter(), sink.count
            subprocess.run(
                [*source, "-m", str(count), f"127.0.0.1:{port}"], check=True, capture_output=True, timeout=900
            )
            ended = sink.wait(start + count, 120)
            after, memory = used(pids)
            seen.rates.append(count / (ended - began))
            seen.cpu.append((after - before) / count * 1e6)
            seen.memory = max(seen.memory, memory)
    finally:
        sink.close()


#: Speaks to ``port`` at a fixed rate over twenty kept connections, for so many seconds.
PACED = """
import asyncio, sys, time
port, rate, seconds = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
BODY = b"From: a@x.test\\r\\nSubject: x\\r\\n\\r\\n" + (b"x" * 76 + b"\\r\\n") * 51 + b".\\r\\n"
async def one(n):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.readline()
    writer.write(b"EHLO lab\\r\\n")
    while (await reader.readline())[3:4] == b"-":
        pass
    begin, i = time.perf_counter() + n / rate, 0
    while (due := begin + i * 20 / rate) < begin + seconds:
        await asyncio.sleep(max(0, due - time.perf_counter()))
        writer.write(b"MAIL FROM:<a@x.test>\\r\\nRCPT TO:<b@x.test>\\r\\nDATA\\r\\n")
        for _ in range(3):
            await reader.readline()
        writer.write(BODY)
        assert (await reader.readline()).startswith(b"250")
        i += 1
    writer.close()
async def main():
    await asyncio.gather(*(one(n) for n in range(20)))
asyncio.run(main())
"""


def latency(contestant: Contestant, rate: float, folder: Path, seconds: float) -> list[float]:
    """Milliseconds from acceptance to delivery at so many messages a second, by the contestant's own
    record.
    """
    sink = SinkProcess()
    try:
        with contestant(folder, sink.port) as standing:
            subprocess.run(
                [sys.executable, "-c", PACED, str(standing.port), str(rate), "1"], check=True, timeout=60
            )
            time.sleep(1.0 if standing.delays else 0.0)  # its record is written a moment later
            warm = len(standing.delays()) if standing.delays else 0
            subprocess.run(
                [sys.executable, "-c", PACED, str(standing.port), str(rate), str(seconds)],
                check=True,
                timeout=600,
            )
            time.sleep(2.0)
            return standing.delays()[warm:] if standing.delays else []
    finally:
        sink.close()


def latencies(
    contestants: dict[str, Contestant], rates: dict[str, float], folder: Path, seconds: float
) -> Iterator[str]:
    """The table of p50 and p99 at half of each one's own rate."""
    yield ""
    yield "| accepted → delivered, 4 KB, kept, at half of its own rate | messages/s | p50 ms | p99 ms |"
    yield "|---|---|---|---|"
    for name, contestant in contestants.items():
        if name in ("nothing", "naive"):
            continue
        found = sorted(latency(contestant, rates[name] / 2, folder, seconds))
        if found:
            yield (
                f"| {name} | {rates[name] / 2:,.0f} | {found[len(found) // 2]:,.0f} | "
                f"{found[len(found) * 99 // 100]:,.0f} |"
            )


def plot(results: dict[str, dict[str, float]], path: Path) -> None:
    """Rates as times Postfix's, bars by load, as SVG."""
    width, bar, gap, left = 760, 16, 14, 190
    colours = {"outmail": "#2a6fbb", "outmail, uvloop": "#8db4dd", "Postfix": "#c65d2e", "naive": "#999999"}
    rows: list[str] = []
    y = 48
    most = max(rates.get(name, 0) / rates["Postfix"] for rates in results.values() for name in colours)
    for load, rates in results.items():
        rows.append(f'<text x="{left - 10}" y="{y + bar * 2}" text-anchor="end">{load}</text>')
        for name, colour in colours.items():
            if name in rates:
                ratio = rates[name] / rates["Postfix"]
                length = (width - left - 120) * ratio / most
                rows.append(
                    f'<rect x="{left}" y="{y}" width="{length:.0f}" height="{bar - 3}" fill="{colour}"/>'
                )
                rows.append(
                    f'<text x="{left + length + 6:.0f}" y="{y + 11}">{ratio:.1f} × '
                    f"({rates[name]:,.0f}/s)</text>"
                )
                y += bar
        y += gap
    key = "".join(
        f'<rect x="{left + i * 130}" y="16" width="12" height="12" fill="{c}"/><text '
        f'x="{left + i * 130 + 18}" y="26">{n}</text>'
        for i, (n, c) in enumerate(colours.items())
    )
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" font-family="sans-serif" '
        f'font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{key}{"".join(rows)}</svg>\n'
    )


ABOUT = (
    "Twenty sessions of smtp-source hand mail to X, which stores it (SQLite FULL; Postfix with its own "
    "defaults; the naive way, aiosmtpd and aiosmtplib with a commit"
    " a mail) and hands it to smtp-sink, all on the same cores. The rate counts until the last message has "
    "reached the sink; medians of rounds that take turns."
)


def copies(folder: Path, *, rounds: int = 5, count: int = 10_000) -> Iterator[str]:
    """What loopback copies cost on the whole road, as lines of Markdown. No copy comes home here."""
    sample = '[loopback]\naddress = "loop@example.org"\nsample = {}\n'.format
    contestants = {
        "without": outmail("asyncio"),
        "of one message in a hundred": outmail("asyncio", sample(0.01)),
        "in every transaction": outmail("asyncio", sample(1)),
    }
    results = {name: Seen() for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            one(contestant, LOADS[0], folder, results[name], count)
    base = results["without"]
    yield "| loopback copies | messages/s | rate | CPU µs a message | CPU |"
    yield "|---|---|---|---|---|"
    for name, seen in results.items():
        rate = statistics.median(mine / other for mine, other in zip(seen.rates, base.rates))
        cpu = statistics.median(mine / other for mine, other in zip(seen.cpu, base.cpu))
        yield (
            f"| {name} | {statistics.median(seen.rates):,.0f} | {rate:.2f} |"
            f" {statistics.median(seen.cpu):,.0f} | {cpu:.2f} |"
        )


def everybody() -> dict[str, Contestant]:
    """Those who can run here."""
    contestants: dict[str, Contestant] = {
        "nothing": direct,
        "outmail": outmail("asyncio"),
        "outmail, uvloop": outmail("uvloop"),
        "Postfix": postfix,
        "naive": naive,
    }
    try:
        import uvloop  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        del contestants["outmail, uvloop"]
    if os.geteuid() != 0:
        del contestants["Postfix"]
    return contestants


LOADS = [
    Load("4 KB, kept connections"),
    Load("4 KB, a connection each", kept=False),
    Load("1 KB, kept", size=1024),
    Load("100 KB, kept", size=102_400, count=1000),
    Load("4 KB, 50 recipients, kept", recipients=50, count=1000),
]


def measured(
    folder: Path, *, quick: bool = False, rounds: int = 5, picture: Path | None = None
) -> Iterator[str]:
    """The whole lab as lines of Markdown; with Postfix there, ``picture`` is drawn too."""
    results: dict[str, dict[str, float]] = {}
    yield from table(everybody(), LOADS, folder, 2 if quick else rounds, 5 if quick else 1, results)
    yield from latencies(everybody(), results[LOADS[0].name], folder, 3 if quick else 20)
    if picture is not None and "Postfix" in results[LOADS[0].name]:
        plot(results, picture)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--only", default="")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--loads", default="")
    arguments.add_argument(
        "--latency", action="store_true", help="p50 and p99 too, at half of the first load's rates"
    )
    arguments.add_argument("--copies", action="store_true", help="what loopback copies cost, nothing else")
    options = arguments.parse_args()
    if options.copies:
        with tempfile.TemporaryDirectory(prefix="outmail-lab-", dir=os.environ.get("BENCH_DIR")) as name:
            for line in copies(Path(name), rounds=options.rounds, count=2000 if options.quick else 10_000):
                print(line, flush=True)
        return
    contestants, loads = everybody(), LOADS
    if options.only:
        contestants = {
            name: made
            for name, made in contestants.items()
            if any(word in name.lower() for word in options.only.lower().split(","))
        }
    if options.loads:
        loads = [load for load in loads if any(word in load.name for word in options.loads.split("+"))]
    with tempfile.TemporaryDirectory(prefix="outmail-lab-", dir=os.environ.get("BENCH_DIR")) as name:
        results: dict[str, dict[str, float]] = {}
        for line in table(
            contestants,
            loads,
            Path(name),
            2 if options.quick else options.rounds,
            5 if options.quick else 1,
            results,
        ):
            print(line, flush=True)
        if options.latency:
            for line in latencies(
                contestants, results[loads[0].name], Path(name), 3 if options.quick else 20
            ):
                print(line, flush=True)


def table(
    contestants: dict[str, Contestant],
    loads: list[Load],
    folder: Path,
    rounds: int,
    share: int,
    rates: dict[str, dict[str, float]],
) -> Iterator[str]:
    """The result as lines of Markdown; ``rates`` is filled with the medians by load and name."""
    slow = {"Postfix": 5, "naive": 4}
    for load in loads:
        results = {name: Seen() for name in contestants}
        for _ in range(rounds):
            for name, contestant in contestants.items():
                one(
                    contestant,
                    load,
                    folder,
                    results[name],
                    max(200, load.count // share // slow.get(name, 1)),
                )
        rates[load.name] = {name: statistics.median(seen.rates) for name, seen in results.items()}
        yield ""
        yield f"| {load.name} | messages/s | × Postfix | CPU µs a message | memory MB |"
        yield "|---|---|---|---|---|"
        for name, seen in results.items():
            ratio = ""
            if "Postfix" in results and results["Postfix"].rates:
                ratio = (
                    f"{statistics.median(a / b for a, b in zip(seen.rates, results['Postfix'].rates)):.1f}"
                )
            cpu = f"{statistics.median(seen.cpu):,.0f}" if any(seen.cpu) else ""
            yield f"| {name} | {statistics.median(seen.rates):,.0f} | {ratio} | {cpu} | {seen.memory or ''} |"


if __name__ == "__main__":
    main()
