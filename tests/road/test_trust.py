"""Who may make outmail do what: files that somebody else may have written, routes that somebody left in a
store, certificates that change.
"""

from __future__ import annotations

import grp
import json
import logging
import os
import pwd
import signal
import smtplib
import sqlite3
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from outmail import ConfigError, Outbox
from outmail.config import from_toml, load
from outmail.intake.certificate import Certificate
from outmail.intake.logins import hashed
from outmail.reports import mail
from outmail.service.prepared import read_users
from outmail.system import trust
from outmail.testing import Sink
from tests.road.test_listen import Service
from tests.waiting import until, until_in_loop

Run = Callable[..., subprocess.CompletedProcess[bytes]]
ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root gives files away")


def foreign(path: Path) -> None:
    """From now on somebody else may write it."""
    if ROOT:
        os.chown(path, 65534, 65534)
    else:
        path.chmod(path.stat().st_mode | 0o022)


def trap(folder: Path) -> tuple[str, Path]:
    """(configuration, the file that is there once its password_command was run)."""
    sprung = folder / "sprung"
    return (
        f'store = "q.db"\nto = ["a@x.test"]\nfrom = "b@x.test"\n[relay]\nurl = '
        f'"smtp://me@127.0.0.1:1"\npassword_command = "touch {sprung}"\n',
        sprung,
    )


# -- configuration that was found ----------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "here"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    monkeypatch.chdir(folder)
    yield folder
    folder.chmod(0o755)


@pytest.mark.parametrize("hostile", ["file", "folder"])
def test_a_hostile_folder_runs_nothing(tmp_path: Path, outmail: Run, hostile: str) -> None:
    toml, sprung = trap(tmp_path)
    (tmp_path / "outmail.toml").write_text(toml)
    if hostile == "file":
        foreign(tmp_path / "outmail.toml")
    else:
        tmp_path.chmod(0o777)
    done = outmail("run", "--once")
    assert (done.returncode, sprung.exists()) == (78, False)
    assert (
        b"outmail.toml was found here but is not read" in done.stderr
        and b"--config" in done.stderr
        and done.stderr.count(b"\n") == 1
    )
    for words, status in (("true", 0), ("false", 1)):
        done = outmail("watch", "--", words)
        assert (done.returncode, sprung.exists()) == (status, False) and b"is not read" in done.stderr, (
            done.stderr
        )
    assert not list(tmp_path.glob("q.db*"))


def test_our_own_file_in_our_own_folder_is_read(here: Path) -> None:
    (here / "outmail.toml").write_text(trap(here)[0])
    assert load(env={}).source == "outmail.toml"


def test_our_file_in_a_sticky_folder_is_read_and_somebody_elses_is_not(here: Path) -> None:
    (here / "outmail.toml").write_text("")
    here.chmod(0o1777)
    assert load(env={}).source == "outmail.toml"
    foreign(here / "outmail.toml")
    with pytest.raises(ConfigError, match="is not read"):
        load(env={})


@needs_root
def test_a_sticky_folder_of_somebody_else_is_not_safe(here: Path) -> None:
    (here / "outmail.toml").write_text("")
    here.chmod(0o1777)
    foreign(here)
    with pytest.raises(ConfigError, match="its folder belongs to"):
        load(env={})


@pytest.mark.parametrize("where", ["target", "targets-folder", "links-folder"])
def test_of_a_link_target_and_folders_count(here: Path, tmp_path: Path, where: str) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (home / "real.toml").write_text("")
    (here / "outmail.toml").symlink_to(home / "real.toml")
    assert load(env={}).source == "outmail.toml"
    foreign({"target": home / "real.toml", "targets-folder": home, "links-folder": here}[where])
    with pytest.raises(ConfigError, match="is not read"):
        load(env={})


@needs_root
def test_a_group_counts_as_others_unless_it_is_private(here: Path) -> None:
    file = here / "outmail.toml"
    file.write_text("")
    file.chmod(0o664)
    os.chown(file, 0, 0)
    assert load(env={}).source == "outmail.toml"
    os.chown(file, 0, 1)
    with pytest.raises(ConfigError, match="by the group"):
        load(env={})


def _machine(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    groups: dict[int, tuple[str, list[str]]],
    users: dict[int, tuple[str, int]],
    me: int,
) -> Callable[[int, int], str]:
    """A machine with these groups and users, as seen by ``me``; → (owner, group) of a file 0664 → the
    doubt.
    """
    passwd = tmp_path / "passwd"
    passwd.write_text("".join(f"{name}:x:{uid}:{gid}::/:/bin/sh\n" for uid, (name, gid) in users.items()))
    monkeypatch.setattr(trust, "PASSWD", str(passwd))
    monkeypatch.setattr(os, "geteuid", lambda: me)
    monkeypatch.setattr(os, "getegid", lambda: users.get(me, ("", me))[1])
    monkeypatch.setattr(
        grp, "getgrgid", lambda gid: grp.struct_group((groups[gid][0], "x", gid, groups[gid][1]))
    )
    monkeypatch.setattr(
        pwd,
        "getpwuid",
        lambda uid: pwd.struct_passwd((users[uid][0], "x", uid, users[uid][1], "", "/", "/bin/sh")),
    )
    return lambda uid, gid: trust._doubt(
        os.stat_result((0o100664, 1, 1, 1, uid, gid, 0, 0, 0, 0)), "it", "/srv/c.toml"
    )


def test_a_private_group_is_nobody_elses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    groups = {0: ("root", []), 7: ("bob", ["bob"]), 8: ("staff", []), 9: ("eve", ["bob"])}
    users = {0: ("root", 0), 7: ("bob", 7), 9: ("eve", 9)}
    bob = _machine(monkeypatch, tmp_path, groups, users, 7)
    assert bob(7, 7) == "" == bob(0, 7)
    assert bob(7, 8) and bob(7, 9)
    assert bob(0, 0) == "it may be written by the group root", "gid 0 is private to root alone"
    assert _machine(monkeypatch, tmp_path, groups, users, 0)(0, 0) == ""
    others = _machine(monkeypatch, tmp_path, groups, {**users, 10: ("mallory", 7)}, 7)
    assert others(7, 7) == "it may be written by the group bob", "it is mallory's primary group"
    elsewhere = _machine(monkeypatch, tmp_path, groups, {7: ("bob", 8)}, 7)
    assert elsewhere(7, 7), "bob's own group is another"


def test_a_user_without_entries_has_the_group_of_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nobody = _machine(monkeypatch, tmp_path, {0: ("root", [])}, {}, 1005)
    assert nobody(1005, 1005) == ""
    assert nobody(1005, 1006) and nobody(0, 1005) and nobody(1005, 0)


@pytest.mark.parametrize(
    ("mapped", "path", "believed"),
    [
        ("1000 1000 1", "/etc/outmail/c.toml", True),
        ("0 1000 1", "/etc/outmail/c.toml", False),
        ("1000 1000 1", "/srv/c.toml", False),
    ],
)
def test_root_that_a_user_namespace_hides_is_root_in_roots_folders(
    monkeypatch: pytest.MonkeyPatch, mapped: str, path: str, believed: bool
) -> None:
    import io

    texts = {"/proc/sys/kernel/overflowuid": "65534\n", "/proc/self/uid_map": f"  {mapped}\n"}
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("builtins.open", lambda name, *_: io.StringIO(texts[name]))
    status = os.stat_result((0o100644, 1, 1, 1, 65534, 65534, 0, 0, 0, 0))
    assert (trust._doubt(status, "it", path) == "") is believed


@needs_root
def test_somebody_elses_link_in_a_sticky_folder_chooses_nothing(here: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("")
    tmp_path.chmod(0o755)
    (here / "outmail.toml").symlink_to(tmp_path / "empty.toml")
    here.chmod(0o1777)
    assert load(env={}).source == "outmail.toml", "our own link"
    os.chown(here / "outmail.toml", 65534, 65534, follow_symlinks=False)
    with pytest.raises(ConfigError, match="the link belongs to"):
        load(env={})


def test_what_cannot_be_seen_is_not_passed_over(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"XDG_CONFIG_HOME": str(here / "none")}
    assert trust.configuration("", env) is None or os.path.exists("/etc/outmail/config.toml")
    (here / "outmail.toml").symlink_to(here / "gone")
    with pytest.raises(ConfigError, match=r"outmail\.toml: No such file"):
        load(env=env)
    (here / "outmail.toml").unlink()

    def locked(path: str, real: Callable[[str], os.stat_result] = os.lstat) -> os.stat_result:
        if "none" in path:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "lstat", locked)
    with pytest.raises(ConfigError, match=r"config\.toml: Permission denied"):
        load(env=env)


def test_a_fifo_does_not_hold_us_up(here: Path) -> None:
    os.mkfifo(here / "outmail.toml")
    with pytest.raises(ConfigError, match="no regular file"):
        load(env={})


def test_the_users_own_file_is_looked_at_the_same_way(here: Path, tmp_path: Path) -> None:
    folder = tmp_path / "xdg-config" / "outmail"
    folder.mkdir(parents=True, mode=0o755)
    (folder / "config.toml").write_text("")
    assert load(env={"XDG_CONFIG_HOME": str(folder.parent)}).source == str(folder / "config.toml")
    foreign(folder / "config.toml")
    with pytest.raises(ConfigError, match=r"config\.toml was found here but is not read"):
        load(env={"XDG_CONFIG_HOME": str(folder.parent)})


# -- files that were named -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "what"),
    [
        ("[relay]\nurl = 'smtp://me@x.test'\npassword = 'p'", "password"),
        ("[relay]\nurl = 'smtp://me@x.test'\npassword_file = '/p'", "password_file"),
        ("[relays.b]\nurl = 'smtp://me@x.test'\npassword_command = ['p']", "password_command"),
        ("relay = 'smtp://me:p@x.test'", "a password"),
        ("relay = 'sendmail:/p'", "sendmail:"),
        ("relay = 'file:/p'", "file:"),
        ("relay = 'lmtp:/p'", "lmtp:"),
        ("[receive]\nmailboxes = '/etc/cron.d/{user}'", "mailboxes"),
        ("[[outbox]]\nurl = 'postgresql://u:p@x.test/d'", "a password"),
        ("[[outbox]]\nurl = 'postgresql://x.test/d?user=u&password=p'", "a password"),
        ("store = 'postgresql://u:p@x.test/d'", "a password"),
    ],
)
def test_a_named_file_of_somebody_else_gives_neither_commands_nor_passwords(
    tmp_path: Path, outmail: Run, toml: str, what: str
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(toml)
    assert load(str(file), {}).source == str(file)
    foreign(file)
    with pytest.raises(ConfigError, match=f"{what} is not taken from this file, because"):
        load(str(file), {})
    done = outmail("queue", "list", "--config", str(file), "--store", "q.db")
    assert done.returncode == 78 and done.stderr.count(b"\n") == 1


def test_the_environments_password_is_not_sent_where_a_file_in_doubt_says(
    tmp_path: Path, outmail: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.toml"
    env = {"OUTMAIL_PASSWORD": "geheim"}
    for toml in (
        "relay = 'smtps://me@evil.test'",
        "[relays.b]\nurl = 'smtps://me@evil.test'\nverify = false",
    ):
        file.write_text(toml)
        file.chmod(0o644)
        os.chown(file, os.geteuid(), -1)
        assert load(str(file), env).secrets
        foreign(file)
        with pytest.raises(
            ConfigError,
            match=rf"OUTMAIL_PASSWORD is not sent where this file says, because .*; "
            rf"if it is yours: chown root {file}",
        ):
            load(str(file), env)
        assert load(str(file), {}).source == str(file), "without a password there is nothing to send"
    monkeypatch.setenv("OUTMAIL_PASSWORD", "geheim")
    done = outmail("queue", "list", "--config", str(file), "--store", "q.db")
    assert done.returncode == 78 and done.stderr.count(b"\n") == 1
    file.write_text("relay = 'smtps://me@evil.test'")
    assert (
        load(str(file), {**env, "OUTMAIL_RELAY": "smtps://me@y.test"}).routes.relays["default"].host
        == "y.test"
    )


def test_relative_paths_are_beside_the_file_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    etc, evil = tmp_path / "etc", tmp_path / "evil"
    for folder, word in ((etc, "ours"), (evil, "theirs")):
        folder.mkdir(mode=0o755)
        (folder / "get").write_text(f"#!/bin/sh\necho {word}\n")
        (folder / "get").chmod(0o755)
        (folder / "pw").write_text(word)
        (folder / "pw").chmod(0o600)
    monkeypatch.chdir(evil)
    file = etc / "c.toml"
    for password in (
        "password_command = './get'",
        "password_command = ['sh', './get']",
        "password_file = 'pw'",
    ):
        file.write_text(f"[relay]\nurl = 'smtp://me@x.test'\nca = 'ca.pem'\n{password}\n")
        for name in (str(file), "../etc/c.toml"):
            config = load(name, {})
            assert config.with_passwords(config.routes).relays["default"].password == "ours"
        assert config.routes.relays["default"].ca == f"{etc}/ca.pem"
    file.write_text(
        "[relays.b]\nurl = 'smtp://x.test'\nca = 'ca.pem'\n[listen]\ncertificate = 'c'\nkey = "
        "'/k'\nusers_file = 'u'\n"
        "[receive]\naliases = 'a'\ncertificate = 'c'\nkey = 'k'\n[reports]\ntemplates = 't'\n"
    )
    (etc / "t").mkdir()
    config = load(str(file), {})
    found = (
        config.routes.relays["b"].ca,
        config.listen.certificate,
        config.listen.users_file,
        config.receive.aliases,
        config.receive.certificate,
        config.receive.key,
        config.templates,
    )
    assert (
        found == tuple(f"{etc}/{name}" for name in ("ca.pem", "c", "u", "a", "c", "k", "t"))
        and config.listen.key == "/k"
    )


def test_the_rest_of_a_named_file_holds_whoever_wrote_it(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("relay = 'smtp://x.test'\nfrom = 'a@x.test'")
    foreign(file)
    assert load(str(file), {"OUTMAIL_RELAY": "smtp://me:p@y.test"}).sender == "a@x.test"


def test_password_and_users_files_of_somebody_else_are_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    password, users = tmp_path / "password", tmp_path / "users"
    password.write_text("geheim\n")
    users.write_text(f"me:{hashed('geheim')}\n")
    config = from_toml(f"[relay]\nurl = 'smtp://me@x.test'\npassword_file = '{password}'", "t", {})
    for file in (password, users):
        file.chmod(0o600)
    assert (
        config.with_passwords(config.routes).relays["default"].password == "geheim"
        and set(read_users(str(users))) == {"me"}
        and not caplog.records
    )
    for file in (password, users):
        file.chmod(0o604)
    assert config.with_passwords(config.routes).relays["default"].password == "geheim" and set(
        read_users(str(users))
    ) == {"me"}
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        f"[relay] password_file {password} can be read by every user of this machine",
        f"[listen] users_file {users} can be read by every user of this machine",
    ]
    for file in (password, users):
        foreign(file)
    with pytest.raises(ConfigError, match=r"password_file .* is not used, because"):
        config.with_passwords(config.routes)
    with pytest.raises(ConfigError, match=r"users_file .* is not used, because"):
        read_users(str(users))


def test_templates_of_somebody_else_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = mail.Report("failed", "s", "a headline")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir(mode=0o755)
        (folder / "report.txt").write_text("by a template: $headline")
    foreign(theirs / "report.txt")
    assert mail.as_text(report, str(ours)).startswith("by a template")
    assert (
        mail.as_text(report, str(theirs)).startswith("FAILED: a headline")
        and "is not used, because" in caplog.text
    )


# -- routes in a store ---------------------------------------------------------------------------------------


def acting(folder: Path) -> dict[str, str]:
    """Relays that act on this machine."""
    program = folder / "program"
    program.write_text(f"#!/bin/sh\ntouch {folder}/acted/ran\n")
    program.chmod(0o755)
    there = folder / "acted"
    return {
        "sendmail": f"sendmail:{program}",
        "file": f"file:{there}/f",
        "maildir": f"maildir:{there}/m",
        "mailbox": f"mailbox:{there}/{{user}}",
        "lmtp": f"lmtp:{there}/s",
    }


def test_stored_routes_start_no_program_and_write_no_file(
    make_box: Callable[..., Outbox], tmp_path: Path, outmail: Run
) -> None:
    (tmp_path / "acted").mkdir()
    ids = [
        make_box(deliver="never").send("a@x.test", kind, "t", relay=url).id
        for kind, url in acting(tmp_path).items()
    ]
    engine = make_box(deliver="thread")
    other = engine.send("a@x.test", "s", "t", relay="null:").id
    assert engine.wait(other, 10).status == "delivered"
    assert outmail("run", "--once", "--store", "q.db").returncode == 0
    for id in ids:
        (recipient,) = engine.status(id).recipients
        assert (recipient.state, recipient.attempts, recipient.reason) == ("queued", 0, "route unknown here")
    assert not list((tmp_path / "acted").iterdir())
    assert (
        outmail("queue", "list", "--store", "q.db").stdout.count(b"queued; route unknown here")
        == len(ids)
        == 5
    )
    assert (
        json.loads(outmail("show", ids[0], "--json", "--store", "q.db").stdout)["recipients"][0]["reason"]
        == "route unknown here"
    )


def test_an_id_in_a_store_names_no_file_elsewhere(tmp_path: Path) -> None:
    config = from_toml('from = "me@x.test"', "t", {})
    with Outbox(tmp_path / "q.db", relay=f"file:{tmp_path}/out/in", config=config, deliver="never") as box:
        box.send("a@x.test", "s", "t")
    with sqlite3.connect(tmp_path / "q.db") as store:
        store.execute("UPDATE message SET id = '../../evil'")
    store.close()
    with Outbox(tmp_path / "q.db", relay=f"file:{tmp_path}/out/in", config=config, exit_wait=10) as box:
        pass
    assert [file.parent.name for file in tmp_path.rglob("*.eml")] == ["in"]


def test_what_the_process_itself_names_is_used(
    make_box: Callable[..., Outbox], tmp_path: Path, outmail: Run
) -> None:
    folder = tmp_path / "acted"
    send = ("send", "--store", "q.db", "-f", "me@x.test", "a@x.test")
    assert outmail(*send, "--relay", f"file:{folder}", "--wait", "10", stdin=b"x").returncode == 0
    box = make_box(f"file:{folder}")
    assert box.wait(box.send("a@x.test", "s", "t").id, 10).status == "delivered"
    assert box.wait(box.send("a@x.test", "s", "t", relay=f"maildir:{folder}/m").id, 10).status == "delivered"
    assert len(list(folder.glob("*.eml"))) == 2 and len(list((folder / "m/new").iterdir())) == 1
    (tmp_path / "c.toml").write_text(f'[relays.archive]\nurl = "file:{folder}/a"\n')
    done = outmail(*send, "--relay", f"file:{folder}/a", stdin=b"x")
    assert done.returncode == 0 and b"the message waits until an engine knows file:" in done.stderr
    assert (
        outmail("run", "--once", "--store", "q.db", "--config", "c.toml").returncode == 0
        and len(list((folder / "a").glob("*.eml"))) == 1
    )


def test_what_is_left_names_the_relay_that_nobody_else_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in-the-way").write_text("")
    url = f"file:{tmp_path}/in-the-way/f"
    with Outbox(tmp_path / "q.db", relay=url, config=from_toml("", "t", {}), exit_wait=0.3) as box:
        box.send("a@x.test", "s", "t", sender="me@x.test")
    assert capsys.readouterr().err.rstrip().endswith(f"--relay {url}")


def test_a_row_learns_nothing_from_the_program_that_takes_it_over(tmp_path: Path) -> None:
    """The program's own relay is known to it; what only a row names is not."""
    app = sqlite3.connect(tmp_path / "app.db")
    app.executescript((Path(__file__).parents[2] / "src/outmail/store/sql/outbox-sqlite.sql").read_text())
    for n, envelope in enumerate(
        (
            {"draft": {"to": "a@x.test", "text": "t", "relay": f"file:{tmp_path}/acted"}},
            {"recipients": ["a@x.test"], "route": f"file:{tmp_path}/acted"},
        )
    ):
        app.execute(
            "INSERT INTO outmail_outbox (id, added_at, content, envelope) VALUES (?, 1, ?, ?)",
            (f"{n}" * 26, b"A: b\r\n\r\n", json.dumps(envelope)),
        )
    app.commit()
    app.close()
    config = from_toml(f'from = "me@x.test"\n[[outbox]]\nurl = "{tmp_path}/app.db"', "t", {})
    with Outbox(tmp_path / "q.db", relay="null:", config=config, deliver="thread") as box:
        until(lambda: len(list(box.find())) == 2)
        found = list(box.find())
        assert {s.status for s in found} == {"failed"} and all(
            "is not configured" in s.recipients[0].reason for s in found
        )
    assert not (tmp_path / "acted").exists()


# -- certificates --------------------------------------------------------------------------------------------


def pair(folder: Path, ca: trustme.CA, *, key_of: trustme.LeafCert | None = None) -> trustme.LeafCert:
    made = ca.issue_cert("localhost", "127.0.0.1")
    (key_of or made).private_key_pem.write_to_path(str(folder / "key.pem"))
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    (folder / "key.pem").chmod(0o600)
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    return made


def serial(port: int, ca: Path) -> object:
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        client.starttls(context=ssl.create_default_context(cafile=str(ca)))
        assert isinstance(client.sock, ssl.SSLSocket)
        return (client.sock.getpeercert() or {})["serialNumber"]


def said(log: Path, words: str, times: int) -> bool:
    until(lambda: log.read_text().count(words) >= times)
    return log.read_text().count(words) == times


def test_new_certificates_serve_new_handshakes_and_broken_ones_do_not(tmp_path: Path, sink: Sink) -> None:
    ca = trustme.CA()
    first = pair(tmp_path, ca)
    service = Service(
        tmp_path,
        f'relay = "{sink.url}"\n[listen]\nsmtp = ["127.0.0.1:0"]\ncertificate = "{tmp_path}/cert.pem"\nkey = '
        f'"{tmp_path}/key.pem"\n',
    )
    try:
        port = service.ports["smtp"]
        before = serial(port, tmp_path / "ca.pem")
        with smtplib.SMTP("127.0.0.1", port, timeout=10) as standing:
            standing.starttls(context=ssl.create_default_context(cafile=str(tmp_path / "ca.pem")))
            pair(tmp_path, ca, key_of=first)
            service.process.send_signal(signal.SIGHUP)
            assert said(service.log, "stays in force", 1) and serial(port, tmp_path / "ca.pem") == before
            pair(tmp_path, ca)
            service.process.send_signal(signal.SIGHUP)
            assert said(service.log, "was read again", 1)
            after = serial(port, tmp_path / "ca.pem")
            assert after != before and standing.sendmail("a@x.test", ["b@x.test"], b"A: b\r\n\r\n") == {}
        assert "can be read by" not in service.log.read_text() and service.stop() == 0
    finally:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait(30)


def test_a_certificate_is_looked_at_by_its_files_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ca = trustme.CA()
    pair(tmp_path, ca)
    (tmp_path / "key.pem").chmod(0o644)
    tls = Certificate("listen", str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    assert "[listen] key" in caplog.text and "can be read by every user" in caplog.text
    first = tls.context
    assert not tls.renew() and tls.context is first
    (tmp_path / "cert.pem").unlink()
    assert (
        not tls.renew()
        and not tls.renew()
        and tls.context is first
        and caplog.text.count("the old one stays in use") == 1
    )
    pair(tmp_path, ca, key_of=ca.issue_cert("other.test"))
    assert (
        not tls.renew()
        and not tls.renew()
        and tls.context is first
        and caplog.text.count("the old one stays in use") == 2
    )
    pair(tmp_path, ca)
    assert tls.renew() and tls.context is not first


def test_the_service_looks_at_its_certificate_by_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import asyncio
    from types import SimpleNamespace

    from outmail.intake.smtp import ListenerSettings
    from outmail.service import serving

    monkeypatch.setattr(serving, "FRESH", 0.01)
    pair(tmp_path, trustme.CA())
    tls = Certificate("listen", str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    listener = SimpleNamespace(settings=ListenerSettings(tls=tls.context))
    first = tls.context

    async def story() -> None:
        one: Any = SimpleNamespace(_now=SimpleNamespace(tls=tls), listeners={"smtp": listener})
        one._renew = lambda: serving.Serving._renew(one)
        looking = asyncio.ensure_future(serving.Serving.keep_fresh(one))
        pair(tmp_path, trustme.CA())
        await until_in_loop(lambda: listener.settings.tls is not first)
        looking.cancel()

    asyncio.run(story())
