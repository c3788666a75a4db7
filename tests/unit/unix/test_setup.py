"""The steps of `outmail init` in a root file system of the test's own, and their undoing."""

from __future__ import annotations

import grp
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from outmail.config import from_toml
from outmail.errors import ConfigError
from outmail.outbox.outbox import Outbox
from outmail.policy.setup import (
    AddCronLine,
    AddLine,
    GiveFolder,
    MakeFolder,
    MakeUser,
    Run,
    Step,
    TakeName,
    WriteFile,
)
from outmail.system import trust
from outmail.unix import setup
from outmail.unix.manifest import Manifest, write
from outmail.unix.setup import Doer, Failure, Place
from outmail.unix.undo import Undoer, Undone
from tests import programs
from tests.cli.test_init import tree


class Scratch(Place):
    """A root folder whose programs are played: what was called, and a crontab."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.owns = False
        self.calls: list[list[str]] = []
        self.cron = b""
        self.broken = ""

    def run(self, words: Sequence[str], given: bytes | None = None) -> bytes:
        self.calls.append(list(words))
        if words[0] == self.broken:
            raise Failure(f"{words[0]} is broken")
        if list(words) == ["crontab", "-l"] and not self.cron:
            raise Failure("crontab -l failed with 1: no crontab for me")
        if list(words) == ["crontab", "-"]:
            self.cron = given or b""
        elif list(words) == ["crontab", "-r"]:
            self.cron = b""
        return self.cron if words[-1] == "-l" else b""


@pytest.fixture
def place(tmp_path: Path) -> Scratch:
    (tmp_path / "root" / "etc").mkdir(parents=True)
    return Scratch(tmp_path / "root")


def manifest(place: Place) -> Manifest:
    path = place.at("/etc/outmail/config.toml.init.json")
    return Manifest.load(path) or Manifest(path, scope="system")


@pytest.fixture
def do(place: Scratch) -> Callable[..., list[str]]:
    def run(*steps: Step, queue: str = "") -> list[str]:
        doer = Doer(place, manifest(place))
        doer.begin(0o755)
        if queue:
            doer.note_queue(queue)
        return [doer.do(step) for step in steps]

    return run


Do = Callable[..., list[str]]


def undo(place: Scratch, **words: Any) -> Undone:
    return Undoer(place, manifest(place), **words).all()


CONFIG = WriteFile("/etc/outmail/config.toml", "new\n", 0o644, "", "it")
SENDMAIL = TakeName("/usr/sbin/sendmail", "#!/bin/sh\n")


def test_all_of_it_and_back(place: Scratch, do: Do) -> None:
    root = Path(place.root)
    (root / "usr/sbin").mkdir(parents=True)
    (root / "usr/sbin/sendmail").symlink_to("other-mta")
    before = tree(root)
    steps: list[Step] = [
        MakeFolder("/var/spool/outmail/drop", 0o3777, exact=True),
        WriteFile("/etc/outmail/password", "geheim\n", 0o600),
        CONFIG,
        AddCronLine("* * * * * outmail"),
        Run(("systemctl", "daemon-reload"), ("systemctl", "daemon-reload"), late=True),
        Run(("systemctl", "enable", "a"), ("systemctl", "disable", "a")),
        SENDMAIL,
    ]
    assert do(*steps) == ["done"] * 7
    assert do(*steps) != ["done"] * 7  # a second time changes nothing
    assert (root / "usr/sbin/sendmail").read_text() == "#!/bin/sh\n"
    assert os.readlink(root / "usr/sbin/sendmail.before-outmail") == "other-mta"
    assert stat.S_IMODE((root / "var/spool/outmail/drop").stat().st_mode) == 0o3777
    assert "geheim" not in Path(manifest(place).path).read_text()
    assert stat.S_IMODE(Path(manifest(place).path).stat().st_mode) == 0o600
    result = undo(place)
    assert (result.stays, result.failed) == ([], []) and tree(root) == before and place.cron == b""
    assert [c[1] for c in place.calls if c[0] == "systemctl"][-2:] == ["disable", "daemon-reload"]


def test_a_set_up_that_is_killed_in_a_step_can_be_taken_back(
    place: Scratch, do: Do, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(place.root)
    (root / "etc/outmail").mkdir()
    (root / "etc/outmail/config.toml").write_text("old\n")
    (root / "usr/sbin").mkdir(parents=True)
    (root / "usr/sbin/sendmail").write_text("mta")
    before = tree(root)

    calls = [
        (name, n) for name, times in (("write", 3), ("os.rename", 1), ("os.mkdir", 1)) for n in range(times)
    ]
    for name, n in calls:
        with monkeypatch.context() as patch:
            patch.setattr(f"outmail.unix.setup.{name}", killed_at(n, getattr(os, name[3:], write)))
            with pytest.raises(SystemExit):
                do(CONFIG, MakeFolder("/var/x", 0o755), SENDMAIL)
        result = undo(place)
        assert not result.failed and not result.stays and tree(root) == before, (name, n)


def test_a_set_up_that_is_killed_in_a_step_goes_on(
    place: Scratch, do: Do, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbin = Path(place.at("/usr/sbin"))
    sbin.mkdir(parents=True)
    (sbin / "sendmail").write_text("mta")
    for name in ("os.rename", "write"):
        with monkeypatch.context() as patch:
            patch.setattr(f"outmail.unix.setup.{name}", killed_at(0, os.rename))
            with pytest.raises(SystemExit):
                do(SENDMAIL)
    assert do(SENDMAIL) == ["done"] and (sbin / "sendmail.before-outmail").read_text() == "mta"
    undo(place)
    assert (sbin / "sendmail").read_text() == "mta"


def killed_at(n: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """Ends the program at the n-th call, from 0."""
    left = iter(range(n))

    def call(*arguments: Any, **words: Any) -> Any:
        if next(left, None) is None:
            raise SystemExit
        return real(*arguments, **words)

    return call


def test_a_step_that_fails_leaves_what_was_done_in_the_manifest(place: Scratch, do: Do) -> None:
    before = tree(Path(place.root))
    place.broken = "systemctl"
    with pytest.raises(Failure, match="systemctl is broken"):
        do(CONFIG, Run(("systemctl", "enable", "a"), ("systemctl", "disable", "a")), SENDMAIL)
    result = undo(place)
    assert result.failed == ["systemctl is broken"] and not os.path.exists(place.at(CONFIG.path))
    place.broken = ""
    result = undo(place)
    assert not result.failed and tree(Path(place.root)) == before


def test_what_the_owner_changed_stays(place: Scratch, do: Do) -> None:
    do(CONFIG, SENDMAIL, AddCronLine("* * * * * outmail"))
    for step in (CONFIG, SENDMAIL):
        Path(place.at(step.path)).write_text("mine")
    place.cron = b"other\n"
    result = undo(place)
    assert [Path(place.at(step.path)).read_text() for step in (CONFIG, SENDMAIL)] == ["mine", "mine"]
    assert place.cron == b"other\n" and not result.failed
    assert "changed since" in result.stays[1] and len(result.stays) >= 3


def test_a_new_mta_at_the_path_is_not_touched(place: Scratch, do: Do) -> None:
    sbin = Path(place.at("/usr/sbin"))
    sbin.mkdir(parents=True)
    (sbin / "sendmail").write_text("old mta")
    do(SENDMAIL)
    (sbin / "sendmail").write_text("new mta")
    result = undo(place)
    assert (sbin / "sendmail").read_text() == "new mta" and "before-outmail" in result.stays[0]


def test_a_name_that_is_kept_already_stops_it(place: Scratch, do: Do) -> None:
    Path(place.at("/usr/sbin")).mkdir(parents=True)
    Path(place.at("/usr/sbin/sendmail.before-outmail")).write_text("?")
    with pytest.raises(Failure, match="exists already"):
        do(SENDMAIL)
    assert not undo(place).failed
    assert Path(place.at("/usr/sbin/sendmail.before-outmail")).read_text() == "?"


def test_other_lines_of_a_crontab_stay_as_they_are(place: Scratch, do: Do) -> None:
    place.cron = b"MAILTO=me\n* * * * * other \xff\n"
    before = place.cron
    assert do(AddCronLine("* * * * * outmail")) == ["done"]
    assert place.cron == before + b"* * * * * outmail\n"
    undo(place)
    assert place.cron == before


@pytest.mark.parametrize("before", [None, b"", b"postmaster: root\n", b"a: b \xff"])
def test_a_line_is_added_and_goes_again(place: Scratch, do: Do, before: bytes | None) -> None:
    path = Path(place.at("/etc/aliases"))
    if before is not None:
        path.write_bytes(before)
        path.chmod(0o640)
    line = AddLine("/etc/aliases", "root: me@x.test", "why")
    assert [*do(line), *do(line)] == ["done", "is so already"]
    assert path.read_bytes().endswith(b"\nroot: me@x.test\n" if before else b"root: me@x.test\n")
    assert setup.machine(place).root_alias
    undo(place)
    if before is None:
        assert not path.exists()
    else:
        assert path.read_bytes() == before and path.stat().st_mode & 0o777 == 0o640
    do(line)
    path.write_bytes(b"root: somebody\n")
    assert "changed or removed" in undo(place).stays[0] and path.read_bytes() == b"root: somebody\n"


def test_a_drop_folder_of_somebody_else_is_no_drop_folder(place: Scratch, do: Do) -> None:
    drop = MakeFolder("/var/spool/outmail/drop", 0o3777, exact=True)
    Path(place.at(drop.path)).mkdir(parents=True)
    with pytest.raises(Failure, match=r"with mode 0755.*chmod 3777"):
        do(drop)
    Path(place.at(drop.path)).chmod(0o3777)
    assert do(drop) == ["exists"]
    undo(place)
    assert os.path.isdir(place.at(drop.path))


@programs.as_root("owners are changed by root only")
def test_a_folder_is_given_away_and_comes_back(place: Scratch, do: Do) -> None:
    place.owns = True
    Path(place.at("/etc/passwd")).write_text("outmail:x:1234:1235::/:/bin/false\n")
    folder = Path(place.at("/var/lib/outmail"))
    folder.mkdir(parents=True)
    (folder / "queue.db").write_text("")
    assert setup.machine(place).roots_home
    do(GiveFolder("/var/lib/outmail", "outmail"))
    (folder / "new").write_text("")
    paths = [folder, folder / "queue.db"]
    assert [path.stat().st_uid for path in paths] == [1234, 1234] and not setup.machine(place).roots_home
    assert not undo(place).stays
    assert [path.stat().st_uid for path in [*paths, folder / "new"]] == [0, 0, 0]


@programs.as_root("owners are changed by root only")
def test_a_folder_that_was_given_in_part_is_given_whole_the_next_time(
    place: Scratch, do: Do, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, give = of_service(place), GiveFolder("/var/lib/outmail", "outmail")
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        (folder / name).write_text("")
    for n in range(2):
        with monkeypatch.context() as patch:
            patch.setattr("outmail.unix.setup.os.chown", killed_at(n, os.chown))
            with pytest.raises(SystemExit):
                do(give)
        assert setup.machine(place).roots_home
    do(give)
    assert {path.stat().st_uid for path in [folder, *folder.iterdir()]} == {1234}
    undo(place)
    assert {path.stat().st_uid for path in [folder, *folder.iterdir()]} == {0}


@programs.as_root("owners are changed by root only")
def test_a_file_with_a_second_name_is_not_given_away_and_not_back(place: Scratch, do: Do) -> None:
    folder, victim = of_service(place), Path(place.at("/etc/victim"))
    folder.mkdir(parents=True)
    victim.write_text("")
    os.link(victim, folder / "x")
    assert "second name" in do(GiveFolder("/var/lib/outmail", "outmail"))[0]
    assert victim.stat().st_uid == 0 and folder.stat().st_uid == 1234
    os.chown(victim, 4321, 4321)
    assert "second name" in undo(place).stays[0] and victim.stat().st_uid == 4321


def of_service(place: Scratch) -> Path:
    """Steps set owners, and there is a user outmail; the folder of the service, which is not there yet."""
    place.owns = True
    Path(place.at("/etc/passwd")).write_text("outmail:x:1234:1235::/:/bin/false\n")
    return Path(place.at("/var/lib/outmail"))


DROP = "/var/spool/outmail/drop"


@pytest.mark.parametrize("made_by_us", [True, False])
def test_a_link_in_the_place_of_a_folder_is_refused(place: Scratch, do: Do, made_by_us: bool) -> None:
    root, victim = Path(place.root), Path(place.at("/victim"))
    victim.mkdir(mode=0o700)
    if made_by_us:
        do(MakeFolder(DROP, 0o3777, exact=True))
        (root / "var/spool/outmail/drop").rename(root / "old")
    else:
        (root / "var/spool/outmail").mkdir(parents=True)
    (root / "var/spool/outmail/drop").symlink_to("../../../victim")
    with pytest.raises(Failure, match="drop is a symbolic link"):
        do(MakeFolder(DROP, 0o3777, exact=True))
    assert stat.S_IMODE(victim.stat().st_mode) == 0o700


def test_what_a_link_in_the_place_of_the_drop_folder_leads_to_is_not_removed(place: Scratch, do: Do) -> None:
    root, deposit = Path(place.root), f"{'0' * 12}-{'a' * 24}"
    do(MakeFolder(DROP, 0o3777))
    (root / "victim").mkdir()
    (root / "victim" / deposit).write_text("")
    (root / DROP[1:]).rmdir()
    (root / DROP[1:]).symlink_to("../../../victim")
    assert Undoer(place, manifest(place)).waits() == []
    assert "symbolic link" in undo(place, delete_mail=True).failed[0]
    assert (root / "victim" / deposit).exists()


def test_whatever_lies_in_the_drop_folder_goes_with_its_mail(place: Scratch, do: Do) -> None:
    root, drop = Path(place.root), Path(place.at(DROP))
    do(MakeFolder(DROP, 0o3777))
    (root / "victim").write_text("")
    for name in (f"{'0' * 12}-{'a' * 24}", "other"):
        (drop / name / "deeper").mkdir(parents=True)
        (drop / name / "link").symlink_to(root / "victim")
    (drop / "link").symlink_to(root / "victim")
    (drop / "x.bad").write_text("")
    result = undo(place, delete_mail=True)
    assert (result.failed, result.stays) == ([], []) and not drop.exists() and (root / "victim").exists()


def test_a_link_in_the_place_of_the_queue_is_neither_opened_nor_followed(place: Scratch, do: Do) -> None:
    victim, home = Path(place.at("/victim")), Path(place.at("/var/lib/outmail"))
    victim.write_bytes(b"")
    do(MakeFolder("/var/lib/outmail", 0o750), queue="/var/lib/outmail/queue.db")
    (home / "queue.db").symlink_to(victim)
    assert "is a link" in Undoer(place, manifest(place)).waits()[0]
    assert "is a link" in undo(place).stays[0] and victim.read_bytes() == b""
    assert not undo(place, delete_mail=True).failed and victim.exists() and not home.exists()


@programs.as_root("owners are changed by root only")
@pytest.mark.parametrize(
    ("users", "groups", "shared"),
    [
        ("outmail:x:990:65534::/:\n", "nogroup:x:65534:\n", "nogroup"),
        ("outmail:x:990:990::/:\n", "outmail:x:990:outmail,eve\n", "outmail"),
        ("outmail:x:990:990::/:\neve:x:991:990::/:\n", "outmail:x:990:\n", "outmail"),
        ("outmail:x:990:990::/:\n", "", "990"),
        ("outmail:x:990:990::/:\n", "outmail:x:990:outmail\n", ""),
        ("outmail:x:990:990::/:\n", "outmail:x:990:\n", ""),
    ],
)
def test_the_group_that_gets_to_read_the_password_has_no_other_member(
    place: Scratch, do: Do, users: str, groups: str, shared: str
) -> None:
    place.owns = True
    Path(place.at("/etc/passwd")).write_text(f"root:x:0:0::/root:/bin/sh\n{users}")
    Path(place.at("/etc/group")).write_text(groups)
    user = MakeUser("outmail", "/var/lib/outmail")
    if not shared:
        assert do(user) == ["exists"]
        return
    with pytest.raises(Failure, match=f"its group {shared},.*usermod --gid outmail outmail"):
        do(user)


@pytest.mark.parametrize(
    "step",
    [
        AddLine("/etc/aliases", "root: me@x.test", "why"),
        WriteFile("/etc/cron.d/outmail", "x\n"),
        TakeName("/usr/sbin/sendmail", "#!"),
        MakeFolder("/var/lib/outmail", 0o750),
    ],
)
def test_an_absolute_link_does_not_lead_out_of_the_root(place: Scratch, do: Do, step: Step) -> None:
    root, host = Path(place.root), Path(place.root).parent / "host"
    (host / "cron.d").mkdir(parents=True)
    (host / "sbin").mkdir()
    (host / "lib").mkdir()
    (host / "aliases").write_text("root: host\n")
    (host / "sbin/sendmail").write_text("the host's")
    before = tree(host)
    for folder in ("usr", "var"):
        (root / folder).mkdir()
    (root / "etc/aliases").symlink_to(host / "aliases")
    (root / "etc/cron.d").symlink_to(host / "cron.d")
    (root / "usr/sbin").symlink_to(host / "sbin")
    assert not setup.machine(place).root_alias
    (root / "var/lib").symlink_to(host / "lib")
    with pytest.raises(Failure, match="outside of it"):
        do(step)
    assert not undo(place).failed and tree(host) == before


def test_a_relative_link_below_the_root_is_followed(place: Scratch, do: Do) -> None:
    root = Path(place.root)
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/sbin").symlink_to("bin")
    assert do(SENDMAIL) == ["done"] and (root / "usr/bin/sendmail").exists()


def test_a_queue_goes_only_with_delivered_mail(place: Scratch, do: Do) -> None:
    path = "/var/lib/outmail/queue.db"
    do(CONFIG, MakeUser("outmail", "/x"), MakeFolder("/var/lib/outmail", 0o750), queue=path)
    found = place.at(path)
    with Outbox(found, config=from_toml("", "test", {}), deliver="never") as box:
        receipt = box.send("you@x.test", "s", "t", sender="me@x.test")
    result = undo(place)
    assert "1 queued" in result.stays[0] and os.path.exists(found)
    assert not os.path.exists(place.at(CONFIG.path)) and os.path.exists(manifest(place).path)
    with Outbox(found, config=from_toml("", "test", {}), deliver="never") as box:
        box.queue.cancel(receipt.id)
    result = undo(place)
    assert not result.stays and not os.path.exists(os.path.dirname(found)), result
    assert not os.path.exists(os.path.dirname(manifest(place).path))


def test_a_queue_that_an_engine_works_on_stays_even_when_mail_may_go(place: Scratch, do: Do) -> None:
    path = place.at("/var/lib/outmail/queue.db")
    do(CONFIG, MakeFolder("/var/lib/outmail", 0o750), queue="/var/lib/outmail/queue.db")
    with Outbox(path, relay="null:", config=from_toml("", "test", {})) as box:
        receipt = box.send("you@x.test", "s", "t", sender="me@x.test")
        assert box.wait(receipt.id, timeout=30).status == "delivered"
        result = undo(place, delete_mail=True)
        assert "an engine works on it" in result.stays[0] and os.path.exists(path)
    assert not undo(place).stays and not os.path.exists(path)


def test_a_queue_that_was_there_before_stays(place: Scratch, do: Do) -> None:
    path = Path(place.at("/var/lib/outmail/queue.db"))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    do(CONFIG, queue="/var/lib/outmail/queue.db")
    assert not undo(place, delete_mail=True).stays and path.exists()


def test_dropped_mail_that_waits_is_named(place: Scratch, do: Do) -> None:
    do(MakeFolder("/var/spool/outmail/drop", 0o3777))
    Path(place.at(f"/var/spool/outmail/drop/{'0' * 12}-{'a' * 24}")).write_bytes(b"")
    result = undo(place)
    assert any("1 message of this machine's programs" in line for line in result.stays)
    assert os.path.isdir(place.at("/var/spool/outmail/drop"))
    assert "1 message of" in Undoer(place, manifest(place)).waits()[0]
    assert not undo(place, delete_mail=True).stays and not os.path.exists(place.at("/var"))


def test_a_manifest_that_others_may_have_written_is_not_used(place: Scratch, do: Do) -> None:
    do(CONFIG)
    os.chmod(manifest(place).path, 0o666)
    with pytest.raises(ConfigError, match="everybody may write it"):
        manifest(place)
    os.chmod(place.at("/etc/outmail/config.toml.init.json"), 0o600)
    Path(place.at("/etc/outmail/config.toml.init.json")).write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        manifest(place)


def test_nothing_outside_the_root_is_asked_to_change(tmp_path: Path) -> None:
    below = Place(str(tmp_path))._below
    root = str(tmp_path)
    assert below(["systemctl", "enable", "a"]) == ["systemctl", f"--root={root}", "enable", "a"]
    assert below(["dpkg-divert", "--add", "/x"]) == ["dpkg-divert", f"--root={root}", "--add", "/x"]
    assert below(["userdel", "outmail"]) == ["userdel", "--prefix", root, "outmail"]
    assert Place()._below(["systemctl", "x"]) == ["systemctl", "x"]


def test_a_command_that_fails_or_is_missing_is_a_sentence() -> None:
    with pytest.raises(Failure, match="is not installed"):
        Place().run(["no-such-program-of-outmail"])
    with pytest.raises(Failure, match="failed with 3: why"):
        Place().run([sys.executable, "-c", "import sys; sys.exit(print('why', file=sys.stderr) or 3)"])


def test_the_script_is_a_sendmail_that_needs_no_environment(tmp_path: Path) -> None:
    script, drop = tmp_path / "sendmail", tmp_path / "drop"
    script.write_text(setup.program().replace("@NAME@", "sendmail"))
    script.chmod(0o755)
    drop.mkdir(mode=0o3777)
    done = subprocess.run(
        [script, "-t", "-i"],
        input=b"To: you@x.test\n\ntext\n",
        env={"OUTMAIL_DROP": str(drop), "PYTHONPATH": "/nowhere"},
        timeout=60,
        check=False,
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"") and len(list(drop.iterdir())) == 1


def test_an_installation_that_is_closed_to_others_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text("")
    monkeypatch.setattr(sys, "executable", str(program))
    found = setup.closed_to_others()
    assert found and os.path.realpath(program).startswith(found)


@pytest.mark.parametrize("which", ["others", "group", "owner", "above"])
def test_an_installation_that_others_may_write_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    site = tmp_path / "site"
    site.mkdir(mode=0o755)
    monkeypatch.setattr(setup, "_folders", lambda: [str(site)])
    monkeypatch.setattr(setup, "_packages", list)
    monkeypatch.setattr(setup, "command", lambda: ())
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    monkeypatch.setattr(os, "__file__", "/bin/sh")
    assert setup.written_by_others() == ""
    if which == "owner":
        if os.geteuid():
            pytest.skip("owners are changed by root only")
        os.chown(site, 12345, -1)
    elif which == "group":
        if os.geteuid():
            pytest.skip("owners are changed by root only")
        os.chown(site, -1, 12345)
        site.chmod(0o775)
    else:
        (site if which == "others" else tmp_path).chmod(0o777)
    assert str(tmp_path) in setup.written_by_others() and "is not safe" in setup.written_by_others()


def test_a_password_cannot_be_looked_up_by_a_hash_in_the_manifest(place: Scratch, do: Do) -> None:
    password = WriteFile("/etc/outmail/password", "geheim\n", 0o600, secret=True)
    assert do(password) == do(password) == ["done"]
    (entry,) = [entry for entry in manifest(place).entries if entry["kind"] == "file"]
    assert [note.partition(":")[0] for note in entry["written"]] == ["scrypt"]
    assert not undo(place).stays and not os.path.exists(place.at(password.path))
    do(password)
    Path(place.at(password.path)).write_text("mine\n")
    assert "changed since" in undo(place).stays[0]


@pytest.mark.parametrize(
    ("members", "users", "safe"), [([], "", True), (["eve"], "", False), ([], "eve", False)]
)
def test_a_group_without_members_is_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: list[str], users: str, safe: bool
) -> None:
    """Debian's /usr/local may be written by the group staff."""
    tmp_path.chmod(0o775)
    gid = tmp_path.stat().st_gid
    (tmp_path / "passwd").write_text(f"{users}:x:1:{gid}::/:\n" if users else "")
    monkeypatch.setattr(trust, "PASSWD", str(tmp_path / "passwd"))
    monkeypatch.setattr(grp, "getgrgid", lambda _: grp.struct_group(("staff", "x", gid, members)))
    assert (trust.doubt(str(tmp_path)) == "") is safe
