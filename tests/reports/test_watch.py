"""`outmail watch`: the command runs as it would alone; mails come when the policy says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from outmail.cli.watch import OPTIONS
from outmail.reports import watch as watches
from outmail.reports.post import host
from outmail.testing import Sink
from tests import starts

from .conftest import Mails, text

Done = subprocess.CompletedProcess[bytes]
Watch = Callable[..., Done]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment(tmp_path: Path, sink: Sink) -> dict[str, str]:
    return {
        **os.environ,
        "OUTMAIL_STORE": str(tmp_path / "q.db"),
        "OUTMAIL_RELAY": sink.url,
        "OUTMAIL_TO": "me@x.test",
        "OUTMAIL_FROM": "robot@x.test",
    }


@pytest.fixture
def watch(tmp_path: Path, environment: dict[str, str]) -> Watch:
    def run(*words: str, stdin: bytes = b"", **more: str) -> Done:
        return starts.outmail(
            ("watch", *words), stdin=stdin, cwd=tmp_path, env={**environment, **more}, timeout=60
        )

    return run


def sh(script: str) -> tuple[str, ...]:
    return ("--", "sh", "-c", script)


# -- running -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", 0),
        ("exit 3", 3),
        ("kill -9 $$", 137),
        ("kill -15 $$", 143),
        ("nosuchcommand_", 127),
        ("exec ./notexecutable", 126),
    ],
)
def test_the_commands_own_status(watch: Watch, tmp_path: Path, script: str, status: int) -> None:
    (tmp_path / "notexecutable").write_text("x")
    assert watch("--on", "never", *sh(script)).returncode == status


def test_commands_that_cannot_be_run(watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    assert watch("--on", "never", "--", "no-such-command").returncode == 127
    done = watch("--on", "never", "--", "./plain")
    assert done.returncode == 126 and b"Permission denied" in done.stderr


def test_streams_pass_unchanged_and_success_is_silent(watch: Watch) -> None:
    every = bytes(range(256)) * 400
    done = watch(*sh("cat; printf 'e\\000r\\n' >&2"), stdin=every)
    assert (done.returncode, done.stdout, done.stderr) == (0, every, b"e\0r\n")
    assert watch("--", "true").stderr == b""


def test_signals_reach_the_command(environment: dict[str, str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "outmail",
            "watch",
            "--on",
            "never",
            *sh("trap 'echo got; exit 7' USR1; echo up; while :; do sleep 0.05; done"),
        ],
        stdout=subprocess.PIPE,
        env=environment,
        cwd=tmp_path,
    )
    assert process.stdout and process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGUSR1)
    rest, _ = process.communicate(timeout=30)
    assert (rest, process.returncode) == (b"got\n", 7)


def test_a_terminal_stays_a_terminal(environment: dict[str, str], tmp_path: Path) -> None:
    import pty

    answers = b""
    pid, master = pty.fork()
    if not pid:
        os.execve(
            sys.executable,
            [
                sys.executable,
                "-m",
                "outmail",
                "watch",
                "--on",
                "never",
                *sh("test -t 1 && test -t 2 && printf 'a\\nterminal'"),
            ],
            environment,
        )
    while True:
        try:
            data = os.read(master, 1000)
        except OSError:
            break
        if not data:
            break
        answers += data
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert answers == b"a\r\nterminal"


def test_a_grandchild_that_keeps_the_pipe_does_not_hold_us(watch: Watch) -> None:
    began = time.monotonic()
    assert watch(*sh("sleep 30 & echo done")).stdout == b"done\n"
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "words",
    [
        ["--after", "0"],
        ["--after", "x"],
        ["--on", "sometimes"],
        ["--timeout", "5"],
        ["--lock", "maybe"],
        ["--nonsense"],
        ["--grep-fail", "("],
        [],
    ],
)
def test_wrong_options_are_64_and_nothing_runs(watch: Watch, tmp_path: Path, words: list[str]) -> None:
    command = ["--", "touch", str(tmp_path / "ran")] if words else []
    done = watch(*words, *command)
    assert done.returncode == 64 and done.stderr.count(b"\n") == 1 and not (tmp_path / "ran").exists()


def test_outmails_own_trouble_is_said_and_changes_nothing(watch: Watch) -> None:
    done = watch(*sh("exit 3"), OUTMAIL_STORE="/proc/nowhere/q.db")
    assert done.returncode == 3 and b"the report of sh was not stored" in done.stderr
    assert watch("--", "true", OUTMAIL_STORE="/proc/nowhere/q.db").returncode == 0
    done = watch(*sh("exit 5"), OUTMAIL_TO="")
    assert done.returncode == 5 and b"nobody is told" in done.stderr


# -- the options, one test each ------------------------------------------------------------------------------


def test_option_after_remind_recovered(watch: Watch, mails: Mails) -> None:
    for script in ("exit 1", "exit 1", "exit 1", "exit 1", "true", "true"):
        watch("--name", "backup", "--after", "3", *sh(script))
    alert, recovered = mails.wait(2)
    assert str(alert["subject"]) == f"✗ backup failed, 3 in a row: exit status 1 [{host()}]"
    assert (
        recovered["in-reply-to"] == alert["message-id"]
        and "RECOVERED" in text(recovered)
        and str(recovered["subject"]) == f"✓ backup works again [{host()}]"
    )
    watch("--name", "other", "--remind", "1ms", *sh("exit 1"))
    watch("--name", "other", "--remind", "1ms", *sh("exit 1"))
    assert "STILL FAILING" in text(mails.wait(4)[3])


def test_option_no_recovered(watch: Watch, mails: Mails) -> None:
    watch("--name", "x", "--no-recovered", *sh("exit 1"))
    watch("--name", "x", "--no-recovered", *sh("true"))
    assert len(mails.wait(1)) == 1


def test_option_on(watch: Watch, mails: Mails) -> None:
    watch("--name", "n", "--on", "never", *sh("exit 1"))
    watch("--name", "a", "--on", "always", *sh("true"))
    for word in ("one", "one", "two"):
        watch("--name", "c", "--on", "change", *sh(f"echo {word}"))
    always, change = mails.wait(2)
    assert str(always["subject"]) == f"✓ a finished [{host()}]" and "two" in text(change)


def test_option_on_stderr_ok_codes_grep_fail(watch: Watch, mails: Mails) -> None:
    watch("--name", "a", "--on-stderr", *sh("echo warn >&2"))
    watch("--name", "b", "--ok-codes", "0,24", *sh("exit 24"))
    watch("--name", "c", "--grep-fail", "^ERROR", *sh("echo ERROR: x"))
    first, second = mails.subjects(2)
    assert "it wrote to stderr" in first and "matches" in second


def test_option_timeout_and_kill_after(watch: Watch, mails: Mails) -> None:
    began = time.monotonic()
    done = watch(
        "--name",
        "slow",
        "--timeout",
        "300ms",
        "--kill-after",
        "300ms",
        *sh("trap '' TERM; echo here; while :; do sleep 0.1; done"),
    )
    assert done.returncode == 124 and done.stdout == b"here\n" and time.monotonic() - began < 30
    assert "it took too long" in mails.subjects(1)[0]


def test_option_lock(watch: Watch, environment: dict[str, str], tmp_path: Path) -> None:
    first = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "outmail",
            "watch",
            "--name",
            "l",
            "--lock",
            "wait",
            *sh("echo up; read x; echo first >> order"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        cwd=tmp_path,
    )
    assert first.stdout and first.stdout.readline() == b"up\n"
    skipped = watch("--name", "l", "--lock", "skip", *sh("echo never >> order"))
    assert (skipped.returncode, skipped.stderr) == (75, b"")
    second = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "outmail",
            "watch",
            "--name",
            "l",
            "--lock",
            "wait",
            *sh("echo second >> order"),
        ],
        env=environment,
        cwd=tmp_path,
    )
    first.communicate(b"\n", timeout=30)
    second.wait(30)
    assert (tmp_path / "order").read_text() == "first\nsecond\n"


def test_option_late_by_cron_once_and_back(
    watch: Watch, mails: Mails, environment: dict[str, str], tmp_path: Path
) -> None:
    watch("--name", "nightly", "--late", "20ms", "--", "true")  # the next program needs longer to start
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-m", "outmail", "run", "--once"],
            env=environment,
            cwd=tmp_path,
            check=True,
            timeout=60,
            capture_output=True,
        )
    (late,) = mails.wait(1)
    assert str(late["subject"]).startswith("! nightly is late: no run for")
    watch("--name", "nightly", "--late", "20ms", "--", "true")
    back = mails.wait(2)[1]
    assert back["in-reply-to"] == late["message-id"] and "RECOVERED" in text(back)


def test_option_tail_attach_no_output_longer_than_start(watch: Watch, mails: Mails) -> None:
    watch("--name", "a", "--tail", "2", "--attach", *sh("seq 1 500; exit 1"))
    watch("--name", "b", "--no-output", *sh("echo geheim; exit 1"))
    watch("--name", "c", "--longer-than", "1ms", "--start", *sh("sleep 0.05"))
    a, b, start, slow = mails.wait(4)
    assert [word for word in text(a).split() if word in ("498", "499", "500")] == ["499", "500"]
    attached = next(a.iter_attachments())
    assert attached.get_filename() == "output.txt" and attached.get_content().startswith("1\n2\n")
    assert "geheim" not in text(b).replace("echo geheim", "")
    assert text(start).startswith("STARTED: c on") and str(slow["subject"]).startswith("✓ c took ")


def test_option_quiet(watch: Watch) -> None:
    assert watch("--quiet", "--on", "never", *sh("echo x")).stdout == b""
    assert watch("--quiet", "--on", "never", *sh("echo x; exit 1")).stdout == b"x\n"


def test_option_name_to_config_store_relay(watch: Watch, mails: Mails, tmp_path: Path, sink: Sink) -> None:
    (tmp_path / "c.toml").write_text('from = "c@x.test"\nto = ["other@x.test"]')
    done = watch(
        "--config",
        "c.toml",
        "--store",
        "second.db",
        "--relay",
        sink.url,
        "--to",
        "one@x.test",
        "--to",
        "two@x.test",
        *sh("exit 1"),
        OUTMAIL_FROM="",
        OUTMAIL_TO="",
        OUTMAIL_RELAY="",
    )
    assert done.returncode == 1 and (tmp_path / "second.db").exists(), done.stderr
    (mail,) = mails.wait(1)
    assert (
        str(mail["to"]) == "one@x.test, two@x.test"
        and "c@x.test" in str(mail["from"])
        and "✗ sh failed: exit status 1" in str(mail["subject"])
    )


def test_option_explain_and_help(watch: Watch) -> None:
    said = watch(
        "--explain", "--after", "3", "--remind", "1d", "--late", "26h", "--timeout", "2h", "--lock", "skip"
    ).stdout.decode()
    assert (
        "after 3 failures in a row" in said
        and "again every 1d" in said
        and "outmail run" in said
        and "SIGKILL" in said
        and "75" in said
    )
    usage = watch("--help").stdout.decode()
    assert all(f"--{name}" in usage for name in OPTIONS)


def test_the_docs_table_has_every_option_and_its_test() -> None:
    page = (ROOT / "docs" / "reports.md").read_text()
    tests = Path(__file__).read_text()
    for name in OPTIONS:
        assert f"`--{name}`" in page, name
        assert name == "help" or f"--{name}" in tests, name


# -- remembering ---------------------------------------------------------------------------------------------


def test_quick_runs_are_folded_and_listed(
    watch: Watch, outmail: Callable[..., Done], environment: dict[str, str], tmp_path: Path
) -> None:
    for _ in range(3):
        watch("--name", "quick", "--", "true")
    with open(tmp_path / "q.db.spool" / "watch.jsonl", "a") as file:
        file.write('{"torn')
    store = ("--store", str(tmp_path / "q.db"))
    assert not (tmp_path / "q.db").exists(), "nothing to say needs no store"
    assert outmail("jobs", "ls", *store).stdout.startswith(b"quick")
    assert outmail("jobs", "history", "quick", *store).stdout.count(b"finished") == 3
    assert json.loads(outmail("jobs", "show", "quick", "--json", *store).stdout)["runs"] == 3
    assert (
        outmail("jobs", "show", "nobody", *store).returncode == 66
        and outmail("jobs", "show", *store).returncode == 64
    )


def test_mute_and_reset(watch: Watch, mails: Mails, outmail: Callable[..., Done], tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "q.db"))
    watch("--name", "m", "--on", "never", *sh("exit 1"))
    assert outmail("jobs", "mute", "m", "8h", *store).returncode == 0
    watch("--name", "m", *sh("exit 1"))
    assert b"2 failures in a row, muted" in outmail("jobs", "ls", *store).stdout
    assert outmail("jobs", "mute", "m", "potato", *store).returncode == 65
    assert outmail("jobs", "mute", "m", "0s", *store).returncode == 0
    watch("--name", "m", *sh("exit 1"))
    assert "3 in a row" in mails.subjects(1)[0]
    assert outmail("jobs", "reset", "m", *store).returncode == 0
    watch("--name", "m", "--after", "2", *sh("exit 1"))
    assert len(mails.wait(1)) == 1


def test_a_killed_watch_is_told_dead(
    environment: dict[str, str], watch: Watch, mails: Mails, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "outmail", "watch", "--name", "victim", *sh("echo up; sleep 1")],
        stdout=subprocess.PIPE,
        env=environment,
        cwd=tmp_path,
    )
    assert process.stdout and process.stdout.readline() == b"up\n"
    process.kill()
    process.communicate(timeout=30)
    subprocess.run(
        [sys.executable, "-m", "outmail", "run", "--once"],
        env=environment,
        cwd=tmp_path,
        check=True,
        timeout=60,
        capture_output=True,
    )
    watch("--name", "victim", "--", "true")
    dead, recovered = mails.wait(2)
    assert (
        str(dead["subject"]).startswith("✗ victim died: process ")
        and recovered["in-reply-to"] == dead["message-id"]
    )


def test_a_cron_like_schedule(watch: Watch, mails: Mails) -> None:
    """A failing and recovering command: the expected list of subjects, in order, in threads."""
    for script in "o f f o f f f f o o f f f o".split():
        watch("--name", "cron", "--after", "3", *sh("exit 2" if script == "f" else "true"))
    found = mails.wait(4)
    failed, again = f"✗ cron failed, 3 in a row: exit status 2 [{host()}]", f"✓ cron works again [{host()}]"
    assert [str(mail["subject"]) for mail in found] == [failed, again, failed, again]
    assert (
        found[1]["in-reply-to"] == found[0]["message-id"]
        and found[3]["in-reply-to"] == found[2]["message-id"]
    )
    assert found[0]["references"] != found[2]["references"]


def test_no_secret_of_a_command_is_kept_or_shown() -> None:
    from types import SimpleNamespace

    command = [
        "./mysqldump",
        "-u",
        "root",
        "-pgeheim1",
        "--password",
        "geheim2",
        "--db-password",
        "geheim 3",
        "curl",
        "-u",
        "me:geheim4",
        "--token=geheim5",
        "sh",
        "-c",
        "PGPASSWORD=geheim6 psql",
    ]
    wanted = [
        "./mysqldump",
        "-u",
        "root",
        "-p****",
        "--password",
        "****",
        "--db-password",
        "****",
        "curl",
        "-u",
        "me:****",
        "--token=****",
        "sh",
        "-c",
        "PGPASSWORD=****",
    ]
    assert watches.shown_words(command) == wanted
    result = SimpleNamespace(
        began_ms=0, duration_ms=1, status=1, failed=True, reason="", output=b"", peak_kb=1, cpu=0.0
    )
    kept = watches._run(SimpleNamespace(name="x", no_output=True), command, result)
    assert kept["command"] == wanted and "geheim" not in str(watches._facts(command, 0, result))
    plain = ["tar", "-C", "/a b", "", "x\ty\n", "-p", "80"]
    assert watches.shown_words(plain) == plain
    long = ["x" * 495, "--password", "geheim"]
    assert "geh" not in str(watches._facts(long, 0, result)), "cut once it is masked"


def test_a_hostile_command_is_masked_at_once() -> None:
    began = time.thread_time()
    assert len(watches.shown_words(["false", "pwd=/" * 200_000, *["a"] * 100_000])) <= watches.WORDS
    assert time.thread_time() - began < 1
