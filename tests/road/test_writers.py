"""Writers on this machine under attack: nothing torn, nothing through links, nobody held up by another's
lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import json
import mailbox
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from outmail.clock import Clock
from outmail.engine import engine as engine_module
from outmail.intake.smtp import _remove_stale
from outmail.model import Delivery, Leased, Outcome, Reply
from outmail.outbox.outbox import Outbox
from outmail.policy.route import parse_relay
from outmail.smtp.client import CopyTrouble
from outmail.system.lockfile import boot_id, try_lock
from outmail.system.threads import CallThread
from outmail.transport import dotlock, mbox, pipe, places
from outmail.transport.local import LocalTransport
from outmail.transport.mailbox import Mailboxes, deliver, to_mbox
from outmail.wiring import build_engine, route_of
from tests.waiting import until, until_in_loop

MakeBox = Callable[..., Outbox]
SMALL = b"From: a@x.test\r\nSubject: small\r\n\r\nx\r\n"


def script(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sendmail"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def python(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdout=subprocess.PIPE
    )


# -- programs ------------------------------------------------------------------------------------------------


def test_a_program_has_the_whole_message_also_when_outmail_is_killed(tmp_path: Path) -> None:
    program = script(
        tmp_path,
        f": > {tmp_path}/begun; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; cat > {tmp_path}/part; "
        f"mv {tmp_path}/part {tmp_path}/got",
    )
    engine = python(
        """
        import sys, time
        from outmail import Outbox

        box = Outbox(sys.argv[1], relay=sys.argv[2])
        content = b"Subject: x\\r\\n\\r\\n" + b"y" * 1_000_000 + b"\\r\\n"
        box.submit(content, sender="a@x.test", recipients="b@x.test")
        time.sleep(60)
        """,
        tmp_path / "q.db",
        f"sendmail:{program}",
    )
    until(lambda: (tmp_path / "begun").exists(), 30)
    engine.kill()
    engine.communicate()
    (tmp_path / "go").touch()
    until(lambda: (tmp_path / "got").exists())
    got = (tmp_path / "got").read_bytes()
    assert got.endswith(b"\nSubject: x\n\n" + b"y" * 1_000_000 + b"\n"), f"{len(got)} bytes"


@pytest.mark.parametrize("stubborn", [False, True])
def test_stopping_beyond_patience_ends_and_reaps_the_program(
    make_box: MakeBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stubborn: bool
) -> None:
    monkeypatch.setattr(engine_module, "PATIENCE", 0.05)
    monkeypatch.setattr(pipe, "GRACE", 0.2 if stubborn else 5.0)
    trap = "trap '' TERM; " if stubborn else ""
    words = f"{trap}echo $$ > {tmp_path}/p; mv {tmp_path}/p {tmp_path}/pid; while :; do sleep 0.05; done"
    relay = f"sendmail:{script(tmp_path, words)}"
    box = make_box(relay=relay, deliver="never")
    id = box.send("a@x.test", "s", "t").id
    engine = build_engine(box.store, box.config, route_of(relay, box.config)[1], Clock())

    async def work() -> None:
        life = asyncio.ensure_future(engine.run())
        await until_in_loop(lambda: (tmp_path / "pid").exists() or life.done())
        engine.stop()
        await life

    asyncio.run(work())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    (recipient,) = box.status(id).recipients
    assert recipient.uncertain and recipient.state == "queued" and "ended with outmail" in recipient.reason


def test_a_program_that_does_not_end_in_time_is_ended(make_box: MakeBox, tmp_path: Path) -> None:
    program = script(tmp_path, f"echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done")
    box = make_box(toml=f'[relay]\nurl = "sendmail:{program}"\ndot_timeout = 0.3\n', relay="default")
    id = box.send("a@x.test", "s", "t").id
    until(lambda: box.status(id).recipients[0].uncertain)
    assert "did not end in time" in box.status(id).recipients[0].reason
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_program_that_forks_and_keeps_stderr_open_hangs_nobody(make_box: MakeBox, tmp_path: Path) -> None:
    box = make_box(f"sendmail:{script(tmp_path, f'sleep 60 > /dev/null & echo $! > {tmp_path}/pid; exit 0')}")
    id = box.send("a@x.test", "s", "t").id
    try:
        assert box.wait(id, 15).status == "delivered"
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_much_stderr_blocks_nobody_and_its_beginning_is_kept(make_box: MakeBox, tmp_path: Path) -> None:
    words = "echo first words >&2; head -c 1000000 /dev/zero >&2; cat > /dev/null; exit 67"
    box = make_box(f"sendmail:{script(tmp_path, words)}")
    id = box.send("a@x.test", "s", "t").id
    assert box.wait(id, 15).status == "failed" and "first words" in box.status(id).recipients[0].reason


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux what a process has")
def test_a_program_inherits_no_descriptors_and_no_signal_mask(make_box: MakeBox, tmp_path: Path) -> None:
    program = script(
        tmp_path,
        f"ls /proc/$$/fd > {tmp_path}/fds; grep Sig /proc/self/status > {tmp_path}/signals; cat > /dev/null",
    )
    ours = os.dup2(os.open(os.devnull, os.O_RDONLY), 50)
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
    ignored = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        box = make_box(f"sendmail:{program}")  # its engine's thread inherits the mask
        assert box.wait(box.send("a@x.test", "s", "t").id, 15).status == "delivered"
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
        signal.signal(signal.SIGUSR2, ignored)
        os.close(ours)
    fds = {int(fd) for fd in (tmp_path / "fds").read_text().split()}
    assert 50 not in fds and {fd for fd in fds if fd < 10} == {0, 1, 2}, "the shell's own are 10 and more"
    signals = dict(line.split(":") for line in (tmp_path / "signals").read_text().splitlines())
    assert int(signals["SigBlk"], 16) == 0 and int(signals["SigIgn"], 16) & 1 << signal.SIGUSR2 - 1 == 0


@pytest.mark.parametrize("most", [65536, 1])
def test_where_descriptors_are_not_listed_they_are_tried_or_the_error_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    import resource

    real = os.listdir

    def listdir(path: Any = ".") -> list[str]:
        if str(path) in ("/dev/fd", "/proc/self/fd"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return real(path)

    program = script(tmp_path, f"[ -e /proc/$$/fd/50 ] && echo leaks > {tmp_path}/leak; cat > {tmp_path}/got")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours = os.dup2(os.open(os.devnull, os.O_RDONLY), 50)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, soft), hard))
    monkeypatch.setattr(os, "listdir", listdir)
    monkeypatch.setattr(pipe, "_MOST", most, raising=False)
    try:
        outcome = handed(f"sendmail:{program}")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(ours)
    if most == 1:
        assert outcome.kind == "deferred" and outcome.reply.text.startswith(
            "neither /dev/fd nor /proc/self/fd"
        )
        assert not (tmp_path / "got").exists()
    else:
        assert (
            outcome.kind == "delivered" and (tmp_path / "got").exists() and not (tmp_path / "leak").exists()
        )


def test_an_exit_status_that_nobody_can_know_is_uncertain(make_box: MakeBox, tmp_path: Path) -> None:
    old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        box = make_box(f"sendmail:{script(tmp_path, 'cat > /dev/null; exit 0')}")
        id = box.send("a@x.test", "s", "t").id
        until(lambda: box.status(id).recipients[0].uncertain)
        assert "SIGCHLD" in box.status(id).recipients[0].reason
    finally:
        signal.signal(signal.SIGCHLD, old)


# -- mbox ----------------------------------------------------------------------------------------------------

HALF = """
import os, signal, sys
from outmail.transport.mailbox import deliver
template, user, content = sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3]) * 20000
if len(sys.argv) > 4:
    os.setgid(int(sys.argv[4])); os.setuid(int(sys.argv[4]))
path, write = template.replace("{user}", user), os.write
def half(fd, data):
    if os.path.exists(path) and os.path.sameopenfile(fd, os.open(path, os.O_RDONLY)):
        write(fd, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(fd, data)
os.write = half
deliver(template, "a@x.test", user + "@x.test", content)
"""


def killed_in_the_middle(folder: Path, user: str = "alice", uid: int | None = None) -> Path:
    """An mbox with one whole message and half of another, from a process that is gone."""
    path = folder / user
    if not path.exists():
        deliver(f"{folder}/{{user}}", "a@x.test", f"{user}@x.test", SMALL)
    before = path.stat().st_size
    if uid is not None:
        os.chown(path, uid, uid)
    child = python(
        HALF, f"{folder}/{{user}}", user, b"0123456789abcdef\r\n".hex(), *([] if uid is None else [uid])
    )
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL and path.stat().st_size > before + 100_000
    return path


def subjects(path: Path) -> list[str]:
    return [message["Subject"] for message in mailbox.mbox(path, create=False)]


def test_a_kill_in_the_middle_of_an_mbox_swallows_nothing(tmp_path: Path) -> None:
    path = killed_in_the_middle(tmp_path)
    assert (tmp_path / "alice.lock").exists(), "it keeps others off until we are back"
    deliver(f"{tmp_path}/{{user}}", "a@x.test", "alice@x.test", SMALL)
    assert subjects(path) == ["small", "small"] and b"0123456789abcdef" not in path.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["alice"]


def test_nothing_is_cut_when_another_program_wrote_behind(tmp_path: Path) -> None:
    path = killed_in_the_middle(tmp_path)
    (tmp_path / "alice.lock").unlink()
    with open(path, "ab") as file:
        file.write(b"\nFrom foreign\nSubject: foreign\n\nno newline")
    before = path.read_bytes()
    deliver(f"{tmp_path}/{{user}}", "a@x.test", "alice@x.test", SMALL)
    assert path.read_bytes().startswith(before + b"\n\nFrom a@x.test ") and subjects(path)[-2:] == [
        "foreign",
        "small",
    ]
    assert sorted(os.listdir(tmp_path)) == ["alice"]


def test_nothing_is_cut_from_another_file_of_the_same_name(tmp_path: Path) -> None:
    path = killed_in_the_middle(tmp_path)
    copy = path.read_bytes()
    (tmp_path / "new").write_bytes(copy)
    (tmp_path / "new").rename(path)
    deliver(f"{tmp_path}/{{user}}", "a@x.test", "alice@x.test", SMALL)
    assert path.read_bytes().startswith(copy + b"\n") and subjects(path)[-1] == "small"


@pytest.mark.parametrize(
    ("same", "behind", "cut"),
    [
        (True, b"From", 4),
        (True, b"", 0),
        (True, b"From x\n", 0),
        (True, b"From x\n.", 0),
        (True, b"Fron", 0),
        (False, b"From", 0),
    ],
)
def test_only_a_beginning_that_is_not_all_is_cut(same: bool, behind: bytes, cut: int) -> None:
    assert mbox.partial(same, behind, b"From x\n") == cut


@pytest.mark.parametrize(
    "end", [b"", b"x", b"\n", b"\n\n", b"From x\n\nbody", b"From x\n\nbody\n", b"From x\n\nbody\n\n"]
)
def test_an_entry_is_never_glued_to_what_stands_there(tmp_path: Path, end: bytes) -> None:
    (tmp_path / "alice").write_bytes(end)
    to_mbox(f"{tmp_path}/alice", "a@x.test", b"Subject: s\n\nx\n")
    text = (tmp_path / "alice").read_bytes()
    assert text.startswith(end) and (text.startswith(b"From a@x.test") or b"\n\nFrom a@x.test " in text)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_where_the_folder_is_not_ours_the_journal_is_in_the_state_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "state").mkdir()
        os.chown(folder / "state", 65534, 65534)
        monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
        path = killed_in_the_middle(folder, "nobody", 65534)
        assert not (folder / "nobody.lock").exists() and list((folder / "state/outmail/mbox").iterdir())
        pid = os.fork()
        if not pid:
            os.setgid(65534)
            os.setuid(65534)
            deliver(f"{folder}/{{user}}", "a@x.test", "nobody@x.test", SMALL)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert subjects(path) == ["small", "small"] and not list((folder / "state/outmail/mbox").iterdir())


def test_a_lock_of_somebody_else_is_never_broken(tmp_path: Path) -> None:
    lock = tmp_path / "alice.lock"
    for text in ("", "12345\n", '{"lock of": "outmail"}', '{"pid": 1}'):
        lock.write_text(text)
        os.utime(lock, (1, 1))
        with pytest.raises(dotlock.Locked, match="remove that file"):
            to_mbox(f"{tmp_path}/alice", "a@x.test", b"Subject: s\n\nx\n")
        assert lock.read_text() == text
    assert os.listdir(tmp_path) == ["alice.lock"]


def test_our_lock_is_taken_over_when_its_holder_is_gone_and_not_before(tmp_path: Path) -> None:
    child = python(
        """
        import os, sys, time
        from outmail.transport import dotlock
        dotlock.take(os.open(sys.argv[1], os.O_RDONLY), "box.lock")
        print("has it", flush=True)
        time.sleep(60)
        """,
        tmp_path,
    )
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        assert child.stdout and child.stdout.readline() == b"has it\n"
        child.send_signal(signal.SIGSTOP)
        with pytest.raises(dotlock.Locked):
            dotlock.take(folder, "box.lock")
        inode = (tmp_path / "box.lock").stat().st_ino
        child.kill()
        child.communicate()
        fd = dotlock.take(folder, "box.lock")
        assert fd is not None and (tmp_path / "box.lock").stat().st_ino == inode, "it never lost its name"
        with pytest.raises(dotlock.Locked):
            dotlock.take(folder, "box.lock")
        dotlock.release(folder, "box.lock", fd)
        assert os.listdir(tmp_path) == []
    finally:
        child.kill()
        os.close(folder)


def left_lock(path: Path, **words: object) -> None:
    path.write_text(json.dumps({**json.loads(dotlock._who()), **words}) + "\n")


def test_a_lock_of_another_host_and_kernel_stays(tmp_path: Path) -> None:
    left_lock(tmp_path / "alice.lock", host="elsewhere", boot="another", pid=2**22 - 3)
    with pytest.raises(dotlock.Locked):
        to_mbox(f"{tmp_path}/alice", "a@x.test", b"Subject: s\n\nx\n")


@pytest.mark.skipif(not boot_id(), reason="the system does not name its boots")
@pytest.mark.parametrize(
    "words", [{"pid": 2**22 - 3}, {"pid": 1}, {}], ids=["no process", "another's", "ours"]
)
def test_a_lock_of_a_killed_container_is_taken_over(tmp_path: Path, words: dict[str, object]) -> None:
    """Another host name on the same kernel, and a process number that means somebody else here."""
    left_lock(tmp_path / "alice.lock", host="3f2a9c", **words)
    to_mbox(f"{tmp_path}/alice", "a@x.test", b"Subject: s\n\nx\n")
    assert os.listdir(tmp_path) == ["alice"]


@pytest.mark.skipif(not boot_id(), reason="the system does not name its boots")
def test_a_lock_that_a_living_container_holds_stays(tmp_path: Path) -> None:
    left_lock(tmp_path / "alice.lock", host="3f2a9c", pid=2**22 - 3)
    with open(tmp_path / "alice.lock") as holder:
        assert try_lock(holder.fileno())
        with pytest.raises(dotlock.Locked):
            to_mbox(f"{tmp_path}/alice", "a@x.test", b"Subject: s\n\nx\n")


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    fd = dotlock.take(folder, "box.lock")
    pid = os.fork()
    if not pid:
        time.sleep(60)
        os._exit(0)
    try:
        os.close(fd or -1)  # as if we were dead, though the child lives
        dotlock._held.discard(fd or -1)
        again = os.open(tmp_path / "box.lock", os.O_RDWR)
        until(lambda: try_lock(again))  # the child closes its copy as soon as it runs
        os.close(again)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(folder)


# -- links and other traps -----------------------------------------------------------------------------------


def made(what: str, target: Path, victim: Path) -> None:
    victim.write_text("a key\n")
    if what == "symbolic link":
        target.symlink_to(victim)
    elif what == "hard link":
        os.link(victim, target)
    elif what == "not a regular file":
        os.mkfifo(target)
    elif what == "Is a directory":
        target.mkdir()
    else:
        target.write_text("")
        os.chown(target, 12345, 12345)


WRONG = ["symbolic link", "hard link", "not a regular file", "Is a directory"] + (
    ["belongs to uid 12345"] if os.geteuid() == 0 else []
)


@pytest.mark.parametrize("what", WRONG)
def test_an_mbox_that_is_none_is_deferred_with_a_sentence(tmp_path: Path, what: str) -> None:
    made(what, tmp_path / "alice", tmp_path / "victim")
    outcome = attempt(f"{tmp_path}/{{user}}", "alice@x.test")
    assert outcome.kind == "deferred" and what in outcome.reply.text, outcome
    assert (tmp_path / "victim").read_text() == "a key\n" and not (tmp_path / "alice.lock").exists()


@pytest.mark.parametrize("what", ["symbolic link", "not a file", "Is a directory"])
def test_a_journal_that_is_none_is_deferred(tmp_path: Path, what: str) -> None:
    made(
        "not a regular file" if what == "not a file" else what,
        tmp_path / ".alice.outmail",
        tmp_path / "victim",
    )
    outcome = attempt(f"{tmp_path}/{{user}}", "alice@x.test")
    assert (
        outcome.kind == "deferred"
        and (tmp_path / "victim").read_text() == "a key\n"
        and not (tmp_path / "alice").read_bytes()
    )


def attempt(template: str, address: str) -> Any:
    async def once() -> Any:
        worker = CallThread("test")
        try:
            return await Mailboxes(template, worker.run).attempt("a@x.test", address, SMALL)
        finally:
            worker.close()

    return asyncio.run(once())


@pytest.mark.parametrize("part", ["", "/tmp", "/new", "/cur"])
def test_a_maildir_behind_a_link_is_deferred(tmp_path: Path, part: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = Path(f"{tmp_path}/boxes/alice{part}")
    target.parent.mkdir(parents=True)
    target.symlink_to(tmp_path / "elsewhere")
    outcome = attempt(f"{tmp_path}/boxes/{{user}}/", "alice@x.test")
    assert (
        outcome.kind == "deferred"
        and "symbolic link" in outcome.reply.text
        and not os.listdir(tmp_path / "elsewhere")
    )


def test_a_link_of_the_administrator_above_the_users_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "boxes").symlink_to("real")
    assert (
        attempt(f"{tmp_path}/boxes/{{user}}", "alice@x.test").kind == "delivered"
        and (tmp_path / "real/alice").stat().st_size
    )


def test_a_folder_that_everybody_may_write_is_deferred(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    outcome = attempt(f"{tmp_path}/open/{{user}}", "alice@x.test")
    assert (
        outcome.kind == "deferred" and "chmod o-w" in outcome.reply.text and not os.listdir(tmp_path / "open")
    )
    (tmp_path / "open").chmod(0o1777)
    assert attempt(f"{tmp_path}/open/{{user}}", "alice@x.test").kind == "delivered"
    (tmp_path / "open").chmod(0o2775)
    assert attempt(f"{tmp_path}/open/{{user}}", "bob@x.test").kind == "delivered", "as /var/mail is"


@pytest.mark.skipif(os.geteuid() != 0, reason="makes folders of another user")
def test_a_strangers_folder_in_a_sticky_one_is_deferred(tmp_path: Path) -> None:
    (tmp_path / "sticky/alice").mkdir(parents=True)
    (tmp_path / "sticky").chmod(0o1777)
    os.chown(tmp_path / "sticky/alice", 12345, 12345)
    outcome = attempt(f"{tmp_path}/sticky/{{user}}/", "alice@x.test")
    assert outcome.kind == "deferred" and "uid 12345 made it" in outcome.reply.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_makes_belongs_to_the_user(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    attempt(f"{tmp_path}/{{user}}", "nobody@x.test")
    attempt(f"{tmp_path}/dir/{{user}}/", "nobody@x.test")
    nobody = (tmp_path / "nobody").stat().st_uid
    (message,) = (tmp_path / "dir/nobody/new").iterdir()
    assert nobody != 0 and {
        message.stat().st_uid,
        (tmp_path / "dir/nobody").stat().st_uid,
        (tmp_path / "dir/nobody/cur").stat().st_uid,
    } == {nobody}
    assert (tmp_path / "dir").stat().st_uid == 0
    assert attempt(f"{tmp_path}/{{user}}", "nobody@x.test").kind == "delivered"


class OneDelivery:
    """A feed with no more than that."""

    ahead = False

    def __init__(self, id: str, content: bytes = SMALL) -> None:
        self.delivery = Delivery(
            1, id, 1, "d", "a@x.test", content, b"", 0, "<m@x>", 0, 0, [Leased(1, "b@x.test", 0, False, 0)]
        )
        self._left = [self.delivery]

    def take_now(self) -> Delivery | None:
        return self._left.pop() if self._left else None

    def ask(self, then: Callable[[Delivery | None], None]) -> None:
        then(None)

    def leave(self) -> None: ...

    def dot(self, delivery: Delivery, recipients: Sequence[Leased], then: Callable[[bool], None]) -> None:
        then(True)

    def done(self, delivery: Delivery) -> None: ...

    def healthy(self, greeting: Any = ()) -> None: ...

    def failed(self, outcome: Any, transcript: Any = ()) -> None: ...

    def refuses_ahead(self, reply: Reply) -> None: ...

    def copy_trouble(self, trouble: CopyTrouble) -> None: ...


def handed(url: str, id: str = "0" * 26) -> Any:
    feed = OneDelivery(id)
    asyncio.run(LocalTransport(parse_relay(url)).session(feed))
    return feed.delivery.recipients[0].outcome


@pytest.mark.parametrize(
    "id",
    ["../evil", "../../etc/cron.d/x", "/tmp/x", "", ".", "a" * 300, "0" * 25 + "\n", "..", "x\0y", "\ud800"],
)
def test_an_id_that_is_none_of_ours_is_no_path(tmp_path: Path, id: str) -> None:
    outcome = handed(f"file:{tmp_path}/a/b/out", id)
    (name,) = os.listdir(tmp_path / "a/b/out")
    assert (
        outcome.kind == "delivered"
        and name.startswith("other-")
        and name.endswith("-1.eml")
        and len(name) < 60
    )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "a/b/out" / name]


@pytest.mark.parametrize("place", ["out", "out/" + "0" * 26 + "-1.eml"])
@pytest.mark.parametrize("what", ["symbolic link", "hard link"])
def test_a_file_relay_writes_through_no_link(tmp_path: Path, place: str, what: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    made(what, tmp_path / place, tmp_path / "victim")
    outcome = handed(f"file:{tmp_path}/out")
    assert outcome.kind == "deferred" and (tmp_path / "victim").read_text() == "a key\n"


@pytest.mark.parametrize("part", ["", "/new", "/tmp", "/cur"])
def test_a_maildir_relay_enters_no_link(tmp_path: Path, part: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = Path(f"{tmp_path}/m{part}")
    target.parent.mkdir(exist_ok=True)
    target.symlink_to(tmp_path / "elsewhere")
    outcome = handed(f"maildir:{tmp_path}/m")
    assert (
        outcome.kind == "deferred"
        and "symbolic link" in outcome.reply.text
        and not os.listdir(tmp_path / "elsewhere")
    )


def test_another_attempt_of_what_is_there_changes_nothing(tmp_path: Path) -> None:
    assert handed(f"file:{tmp_path}/out").kind == handed(f"file:{tmp_path}/out").kind == "delivered"
    (name,) = os.listdir(tmp_path / "out")
    (tmp_path / "out" / name).write_text("something else")
    outcome = handed(f"file:{tmp_path}/out")
    assert (
        outcome.kind == "deferred"
        and "move it away" in outcome.reply.text
        and (tmp_path / "out" / name).read_text() == "something else"
    )


def test_where_every_file_needs_a_name_the_same_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_UNNAMED", 0)
    for url in (f"file:{tmp_path}/out", f"maildir:{tmp_path}/m"):
        assert handed(url).kind == "delivered"
    assert attempt(f"{tmp_path}/{{user}}", "alice@x.test").kind == "delivered"
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3 and not list(
        tmp_path.rglob("*.tmp")
    )


# -- trouble when it is there already ------------------------------------------------------------------------


def once(
    monkeypatch: pytest.MonkeyPatch, name: str, number: int, match: Callable[..., bool], done: bool = True
) -> list[Any]:
    """``os.<name>`` fails one time, with or without having done it."""
    real, failed = getattr(os, name), list[Any]()

    def call(*given: Any, **words: Any) -> Any:
        if failed or not match(*given):
            return real(*given, **words)
        failed.append(given)
        if done:
            real(*given, **words)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, call)
    return failed


def wrote(url: str) -> str:
    """One delivery of whatever kind; returns its outcome's kind."""
    scheme, _, path = url.partition(":")
    outcome: Outcome = attempt(path, "alice@x.test") if scheme == "mailbox" else handed(url)
    return outcome.kind


def there(folder: Path) -> int:
    """Messages under a name that says so."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return sum(path.read_bytes().count(b"Subject: ") for path in files)


KINDS = ["file:{}/out", "maildir:{}/m", "mailbox:{}/{{user}}", "mailbox:{}/{{user}}/"]


@pytest.mark.parametrize("url", KINDS)
@pytest.mark.parametrize("number", [errno.EEXIST, errno.EIO])
@pytest.mark.parametrize("unnamed", [False, True])
def test_a_link_that_was_done_though_it_says_no_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, number: int, unnamed: bool
) -> None:
    """A network file system repeats a request whose answer was lost: the dot lock, the journal, the mail."""
    if not unnamed:
        monkeypatch.setattr(places, "_UNNAMED", 0)
    failed = once(monkeypatch, "link", number, lambda *_: True)
    assert wrote(url.format(tmp_path)) == "delivered" and failed
    assert there(tmp_path) == 1 and not list(tmp_path.glob("*.lock"))
    if url.startswith("mailbox:"):
        assert wrote(url.format(tmp_path)) == "delivered", "we are not locked out"


@pytest.mark.parametrize("url", KINDS)
@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO])
@pytest.mark.parametrize("what", [".tmp", ".outmail", ".lock"])
def test_trouble_in_clearing_up_is_no_trouble_with_the_mail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, number: int, what: str
) -> None:
    monkeypatch.setattr(places, "_UNNAMED", 0)
    failed = once(monkeypatch, "unlink", number, lambda name: str(name).endswith(what))
    assert wrote(url.format(tmp_path)) == "delivered" and there(tmp_path) == 1
    assert bool(failed) == (what == ".tmp" or url == KINDS[2])


@pytest.mark.parametrize("url", [kind for kind in KINDS if kind != KINDS[2]])
def test_what_is_there_and_may_not_be_on_disk_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr(places, "_UNNAMED", 0)
    failed = once(
        monkeypatch, "fsync", errno.EIO, lambda fd: stat.S_ISDIR(os.fstat(fd).st_mode) and there(tmp_path) > 0
    )
    assert wrote(url.format(tmp_path)) == "unknown" and failed and there(tmp_path) == 1


@pytest.mark.parametrize("truncates", [False, True])
def test_an_entry_that_may_not_be_on_disk_is_cut_off_or_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truncates: bool
) -> None:
    box = tmp_path / "alice"
    box.touch()
    once(monkeypatch, "fsync", errno.EIO, lambda fd: os.path.sameopenfile(fd, os.open(box, os.O_RDONLY)))
    if not truncates:
        once(monkeypatch, "ftruncate", errno.EIO, lambda *_: True, done=False)
    assert wrote(f"mailbox:{tmp_path}/{{user}}") == ("deferred" if truncates else "unknown")
    assert there(tmp_path) == (0 if truncates else 1)


@pytest.mark.parametrize("call", [True, False], ids=["renameat2", "looking first"])
@pytest.mark.parametrize("url", KINDS)
def test_where_there_are_no_hard_links_files_are_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, call: bool
) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(places, "_UNNAMED", 0)
    monkeypatch.setattr(os, "link", none)
    if not call:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    kind = wrote(url.format(tmp_path))
    if url == KINDS[2] and not call:
        assert kind == "deferred" and there(tmp_path) == 0, "a lock is never made by looking first"
    else:
        assert kind == "delivered" and there(tmp_path) == 1 and not list(tmp_path.rglob("*.tmp"))
    if url == KINDS[0]:
        (file,) = (tmp_path / "out").iterdir()
        file.write_text("something else")
        assert wrote(url.format(tmp_path)) == "deferred" and file.read_text() == "something else"


def test_a_home_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    outcome = attempt(f"{tmp_path}/{{user}}/Maildir/", "alice@x.test")
    assert outcome.kind == "deferred" and f"{tmp_path}/alice does not exist" in outcome.reply.text
    assert os.listdir(tmp_path) == []
    (tmp_path / "alice").mkdir()
    assert attempt(f"{tmp_path}/{{user}}/Maildir/", "alice@x.test").kind == "delivered"


def test_what_a_killed_process_left_is_tidied_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_UNNAMED", 0)
    monkeypatch.setattr(places, "_tidied", set())
    out = tmp_path / "out"
    out.mkdir()
    gone, old = 2**22 - 3, time.time() - 90_000
    names = {
        "left": f".outmail-{gone}-0123456789ab.tmp",
        "young": f".outmail-{gone}-1123456789ab.tmp",
        "alive": f".outmail-{os.getppid()}-0123456789ab.tmp",
        "other": f".outmail-{gone}-0123456789ab.tmp.old",
        "theirs": ".x.tmp",
    }
    for name in names.values():
        (out / name).touch()
        os.utime(out / name, (old, old))
    os.utime(out / names["young"])
    folder = out / f".outmail-{gone}-2123456789ab.tmp"
    folder.mkdir()
    os.utime(folder, (old, old))
    assert handed(f"file:{out}").kind == "delivered"
    left = {path.name for path in out.iterdir() if path.suffix != ".eml"}
    assert left == {*names.values(), folder.name} - {names["left"]}


# -- one locked mailbox --------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    path.write_text("somebody\n")
    yield
    path.unlink()


def test_a_locked_mailbox_holds_up_nobody_else(make_box: MakeBox, tmp_path: Path) -> None:
    (tmp_path / "boxes").mkdir()
    with locked(tmp_path / "boxes/alice.lock"):
        box = make_box(f"mailbox:{tmp_path}/boxes/{{user}}", toml='[retry]\nschedule = "1h"\n')
        alices = [box.send("alice@x.test", "s", "t").id for _ in range(30)]
        began = time.monotonic()
        assert box.wait(box.send("bob@x.test", "s", "t").id, 30).status == "delivered"
        assert time.monotonic() - began < 20, (
            "thirty times two seconds, were they waited for one after the other"
        )
        until(lambda: all(box.status(id).recipients[0].attempts for id in alices))
        assert all("another program holds alice.lock" in box.status(id).recipients[0].reason for id in alices)


def test_a_lock_that_is_soon_given_up_is_waited_for(tmp_path: Path) -> None:
    lock = tmp_path / "alice.lock"
    lock.write_text("somebody\n")

    async def both() -> Any:
        worker = CallThread("test")
        asyncio.get_running_loop().call_later(0.2, lock.unlink)
        try:
            return await Mailboxes(f"{tmp_path}/{{user}}", worker.run).attempt(
                "a@x.test", "alice@x.test", SMALL
            )
        finally:
            worker.close()

    assert asyncio.run(both()).kind == "delivered"


# -- sockets -------------------------------------------------------------------------------------------------


def test_only_a_socket_that_nobody_listens_on_is_removed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a queue")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
        live.bind(str(tmp_path / "live"))
        live.listen()
        stale.close()
        for name in ("file", "link", "fifo", "live", "stale", "nothing"):
            _remove_stale(str(tmp_path / name))
    assert (
        sorted(os.listdir(tmp_path)) == ["fifo", "file", "link", "live"]
        and (tmp_path / "file").read_text() == "a queue"
    )


def test_a_file_where_the_socket_should_be_stays_and_the_service_says_so(
    tmp_path: Path, outmail: Callable[..., subprocess.CompletedProcess[bytes]]
) -> None:
    (tmp_path / "here").write_text("a queue")
    (tmp_path / "outmail.toml").write_text(
        f'store = "q.db"\nrelay = "null:"\n[listen]\nlmtp = ["unix:{tmp_path}/here"]\n'
    )
    done = outmail("run")
    assert (
        done.returncode == 78
        and b"cannot be listened on" in done.stderr
        and (tmp_path / "here").read_text() == "a queue"
    )


# -- the campaign's short form -------------------------------------------------------------------------------


def test_one_round_of_the_campaign() -> None:
    from tests.campaigns.writers import campaign

    assert not campaign(0.0, 7, ("mbox",))["bad"]
