"""Make docs/img/mails: one of each report, from the real code, as text and as pictures in light and dark
(needs chromium).

Run: python docs/pictures.py [--only-text]. Nothing is sent: the mails are read back from a queue in a
temporary folder.
"""

from __future__ import annotations

import argparse
import email
import email.policy
import linecache
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from email.message import EmailMessage
from pathlib import Path
from typing import Any, cast
from unittest import mock

import outmail
from outmail.cli import child
from outmail.cli.watch import parse
from outmail.config import from_toml
from outmail.outbox.outbox import Outbox
from outmail.policy.progress import Estimate
from outmail.reports import failures, job_mails, job_signals, state, watch, watchdog
from outmail.reports.jobs import Job

HERE = Path(__file__).parent / "img" / "mails"
START = 1_795_250_000.0
CRAWL = """
def fetch(url):
    raise ValueError(f"{url} answered 503 three times")

def main():
    fetch("https://reader:secret@feeds.example.net/b")
"""


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--only-text", action="store_true")
    options = arguments.parse_args()
    HERE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, mock.patch("outmail.reports.post.hostname", lambda: "web1.example.org"), mock.patch("os.getcwd", lambda: "/srv/backup"):
        box = Outbox(Path(folder) / "q.db", config=from_toml('from = "robot@example.org"\nto = ["me@example.org"]', "pictures", {}), deliver="never")
        sys.argv = ["crawl.py", "--all"]
        for name, mail in samples(box, Path(folder)).items():
            text, page = _part(mail, "plain"), _part(mail, "html")
            (HERE / f"{name}.txt").write_text(f"Subject: {mail['subject']}\nFrom: {mail['from']}\n\n{text}")
            if not options.only_text:
                for mode in ("light", "dark"):
                    picture(page, HERE / f"{name}-{mode}.png", mode, Path(folder))
                picture(page, HERE / f"{name}-375.png", "light", Path(folder), 375)
        job_signals.running.clear()
        box.close()


def samples(box: Outbox, folder: Path) -> dict[str, EmailMessage]:
    """Name → mail, one for each state."""
    made: dict[str, EmailMessage] = {}

    def newest(name: str) -> None:
        made[name] = cast(EmailMessage, email.message_from_bytes(box.content(list(box.find())[-1].id), policy=email.policy.default))

    job = _job(box, done=0)
    job._say_start()
    newest("started")
    _forget(job)
    job = _job(box, done=20_160)
    job.note("switched to the second proxy")
    job.table([("Source", "Pages", "Errors"), ("feeds", "18,204", "3"), ("sitemaps", "1,956", "0")], "Sources")
    job._say_progress()
    newest("progress")
    job._say(job_mails.stalled(job._run(), 1860), "stalled")
    newest("stalled")
    _forget(job)
    job = _job(box, done=48_000)
    job.metric("new pages", 12)
    job.close()
    newest("finished")
    job = _job(box, done=31_077)
    logging.getLogger("crawl").warning("feed https://feeds.example.net/a took 41 s")
    logging.getLogger("crawl").error("feed https://feeds.example.net/b answered 503")
    try:
        _program("/srv/crawl/crawl.py", CRAWL)["main"]()
    except ValueError as problem:
        job.close(problem.with_traceback(problem.__traceback__.tb_next if problem.__traceback__ else None))
    newest("failed")
    _job(box, done=48_000).close()
    newest("recovered")
    job = _job(box, done=9_411)
    job._signal = "SIGTERM"
    job.close(SystemExit(143))
    newest("stopped")
    state.remember(box, "run", "deadrun", {"job": "crawl", "kind": "job", "host": "web1", "pid": 4711, "started_at": int(START * 1000), "at": int(START * 1000) + 7_200_000,
                                           "done": 20_160, "total": 48_000, "state": "running", "to": []})
    os.makedirs(box.spool, exist_ok=True)
    Path(box.spool, "run.deadrun").touch()
    watchdog.dead_runs(box)
    newest("dead")
    for name, script, words in (("watch-failed", "seq 1 3; echo 'rsync: connection unexpectedly closed' >&2; exit 23", ["--after", "1", "--remind", "1ms"]),
                                ("watch-reminder", "echo 'rsync: connection unexpectedly closed'; exit 23", ["--after", "1", "--remind", "1ms"]),
                                ("watch-recovered", "echo 'sent 18,204 files'", ["--after", "1"])):
        options, command = parse([*words, "--name", "backup", "--quiet", "--", "sh", "-c", script])
        time.sleep(0.01)
        result = child.run(command, options)
        result.duration_ms = 754_000
        watch.ended(box, options, ["backup", "--all", "/home"], result)
        newest(name)
    state.remember(box, "job", "nightly", {"late": {"every_ms": 93_600_000, "seen_at": int(time.time() * 1000) - 100_000_000, "to": []}})
    watchdog.late_jobs(box)
    newest("late")
    _digest(box)
    newest("digest")
    for _ in range(3):
        _feeds(box)
    newest("digest-key")
    _failures(box)
    newest("notify")
    return made


def _job(box: Outbox, done: int) -> Job:
    job = Job("crawl", 48_000, outbox=box, strict=True, bar=False, start=False, initial=0)
    job.start()
    job._began -= 8040
    job._began_at -= 8040
    job._estimate = Estimate(48_000, job._began)
    for i in range(1, 805):
        job._estimate.sample(int(done * i / 804 * (0.8 + 0.2 * i / 804)), job._began + 10 * i)
    job.done = done
    return job


def _forget(job: Job) -> None:
    """It does not go on beside the ones that follow."""
    if job._life is not None:
        job._life.end()


def _program(path: str, source: str) -> dict[str, Any]:
    """A module that looks as if it had been read from ``path``."""
    linecache.cache[path] = (len(source), None, source.splitlines(True), path)
    names: dict[str, Any] = {}
    exec(compile(source, path, "exec"), names)
    return names


def _digest(box: Outbox) -> None:
    handler = outmail.DigestHandler(outbox=box, name="importer", head=20, tail=5)
    clock = START
    with handler.run():
        for i in range(240):
            clock += 17
            slow = logging.LogRecord("importer.fetch", 30, "f", 1, "feed %s took %d s", (f"f{i % 9}", 5 + i % 30), None)
            failed = logging.LogRecord("importer.fetch", 40, "f", 1, "feed %s answered 503", (f"f{i % 5}",), None)
            for record in [slow, *([failed] if i % 20 in (3, 4, 5) and i > 80 else [])]:
                record.created = clock
                handler.handle(record)
        try:
            _program("/srv/importer/parse.py", 'def title(entry):\n    return entry["title"]\n')["title"]({})
        except KeyError as problem:
            trace = problem.__traceback__.tb_next if problem.__traceback__ else None
            record = logging.LogRecord("importer.parse", 40, "f", 1, "entry %s has no title", (4711,), (KeyError, problem.with_traceback(trace), trace))
            record.created = clock
            handler.handle(record)
    handler.close()


def _feeds(box: Outbox) -> None:
    handler = outmail.DigestHandler(outbox=box, name="feeds", after_runs=3)
    with handler.run():
        record: Any = logging.LogRecord("feeds", 40, "f", 1, "feed %s failed: %s", ("daily-news", "503"), None)
        record.key = "daily-news"
        handler.handle(record)
    handler.close()


def _failures(box: Outbox) -> None:
    why = "550 5.1.1 <bookkeeping@customers.example.com>: Recipient address rejected: User unknown in virtual mailbox table"
    now = box.clock.now()
    failed = [{"id": f"06h253ssrk3o1rbluruc31p6r{i}", "at": now - 60_000 * i, "to": "bookkeeping@customers.example.com", "from": "shop@example.org",
               "subject": f"Invoice 2026-11-{i} for order 48,21{i}", "why": why} for i in (2, 1)]  # fmt: skip
    state.change(box, "notify", "failed", lambda known: (known, failures._notice(box, {"waiting": failed, "more": 3, "cursor": 1}, box.report_to, now)))


def _part(mail: EmailMessage, kind: str) -> str:
    part = mail.get_body((kind,))
    assert part is not None
    return str(part.get_content()).replace("\r\n", "\n")


#: The narrowest window that chromium makes: a narrower page is shown in a frame.
NARROW = 500


def picture(page: str, target: Path, mode: str, folder: Path, width: int = 760) -> None:
    """A screenshot of the HTML part, cut to its height."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or sys.exit("chromium is needed for the pictures")
    source, window = folder / "page.html", folder / "window.html"
    script = "<script>onload = () => document.title = [document.querySelector('.page').offsetHeight, document.documentElement.scrollWidth]</script>"
    source.write_text(page.replace("</body>", f"{script}</body>"))
    frame = "<body style='margin:0;background:#b4bcc6;text-align:center'><iframe src='page.html' style='border:0;display:block;margin:auto;width:{}px;height:{}px'></iframe><script>onload = () => document.title = frames[0].document.title</script>"
    window.write_text(frame.format(width, 800))
    common = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files",
              f"--blink-settings=preferredColorScheme={'01'[mode == 'light']}"]  # fmt: skip
    seen = subprocess.run([*common, f"--window-size={max(width, NARROW)},800", "--dump-dom", window.as_uri()], check=True, capture_output=True, timeout=120)
    match = re.search(rb"<title>(\d+),(\d+)</title>", seen.stdout)
    if match is None:
        sys.exit(f"{target.name}: chromium did not say how high the page is")
    height, needed = int(match[1]), int(match[2])
    if needed > width:
        sys.exit(f"{target.name}: the page is {needed} px wide, which does not fit {width}")
    window.write_text(frame.format(width, height))
    subprocess.run([*common, f"--window-size={max(width, NARROW)},{height}", f"--screenshot={target}", window.as_uri()], check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    main()
