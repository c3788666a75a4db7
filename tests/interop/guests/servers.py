"""outmail into mail servers of Debian: Exim, Dovecot's LMTP server, OpenSMTPD and Postfix.

Arguments: a folder with the unpacked packages. They need to be where they are compiled for, so this program
goes on in a mount namespace of its own, where the packages' /usr lies over the machine's, and their users are
in /etc/passwd; nothing of it is seen outside. That needs root and the right to mount.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from live import free_port, until
from results import check, note

from outmail import Outbox

PACKAGES = Path(sys.argv[1])
USERS = {
    "Debian-exim": 901,
    "dovecot": 902,
    "dovenull": 903,
    "opensmtpd": 904,
    "opensmtpq": 905,
    "postfix": 906,
}
GROUPS = {**USERS, "postdrop": 907}
LINES = ["", ".", "..two dots", ".a dot", "Grüße", "x" * 900, "last"]


def inside() -> None:
    """Begin anew in a mount namespace, unless this is one already."""
    if os.environ.get("INTEROP_INSIDE"):
        return
    etc = PACKAGES / "made-etc"
    etc.mkdir(exist_ok=True)
    for name, made in (("passwd", USERS), ("group", GROUPS)):
        known = Path("/etc", name).read_text()
        more = "".join(
            f"{user}:x:{number}:" + (f"{number}::/nonexistent:/bin/false\n" if name == "passwd" else "\n")
            for user, number in made.items()
            if f"\n{user}:" not in known
        )
        (etc / name).write_text(known + more)
    mounts = (
        f"mount -t overlay o -o lowerdir={PACKAGES}/usr:/usr /usr && "
        f"mount -t overlay o -o lowerdir={etc}:{PACKAGES}/etc:/etc /etc && "
        "mount -t tmpfs t /run && mount -t tmpfs t /var/spool && mount -t tmpfs t /var/lib && "
        'exec "$@"'
    )
    os.environ["INTEROP_INSIDE"] = "1"
    os.execvp("unshare", ["unshare", "-m", "sh", "-c", mounts, "sh", sys.executable, *sys.argv])


@contextmanager
def running(words: list[str], log: Path) -> Iterator[None]:
    with open(log, "ab") as file:
        server = subprocess.Popen(
            words, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        yield
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextmanager
def exim(folder: Path, port: int) -> Iterator[str]:
    conf = folder / "exim.conf"
    conf.write_text(f"""
spool_directory = {folder}/spool
log_file_path = {folder}/%slog
pid_file_path = {folder}/pid
primary_hostname = exim.test
acl_smtp_rcpt = accept
acl_smtp_data = accept
host_lookup =
tls_advertise_hosts =
keep_environment =
deliver_drop_privilege = true
smtp_accept_queue_per_connection = 0
begin routers
all:
  driver = accept
  transport = folder
begin transports
folder:
  driver = appendfile
  directory = {folder}/mail
  maildir_format
  user = Debian-exim
""")
    for path in (folder, folder / "mail"):
        shutil.chown(path, "Debian-exim")
    with running(["/usr/sbin/exim4", "-C", str(conf), "-bdf", "-oX", f"127.0.0.1.{port}"], folder / "log"):
        yield f"smtp://127.0.0.1:{port}"


@contextmanager
def dovecot(folder: Path, port: int) -> Iterator[str]:
    conf = folder / "dovecot.conf"
    conf.write_text(f"""
protocols = lmtp
base_dir = {folder}/run
state_dir = {folder}/run
log_path = {folder}/log
mail_location = maildir:{folder}/mail
first_valid_uid = 1
ssl = no
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = static
  args = uid=mail gid=mail home={folder}
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {port}
  }}
}}
""")
    for path in (folder, folder / "mail"):
        os.chown(path, 8, 8)
    with running(["/usr/sbin/dovecot", "-c", str(conf), "-F"], folder / "log"):
        yield f"lmtp://127.0.0.1:{port}"


@contextmanager
def opensmtpd(folder: Path, port: int) -> Iterator[str]:
    for name, owner, mode in (("offline", "root:opensmtpq", 0o770), ("purge", "opensmtpq:root", 0o700)):
        made = Path("/var/spool/smtpd", name)
        made.mkdir(parents=True)
        shutil.chown(made, *owner.split(":"))
        made.chmod(mode)
    Path("/var/spool/smtpd").chmod(0o711)
    Path("/var/lib/opensmtpd/empty").mkdir(parents=True)
    os.chown(folder / "mail", 8, 8)
    conf = folder / "smtpd.conf"
    conf.write_text(f"""
table everybody {{ "@" = mail }}
listen on 127.0.0.1 port {port}
action "keep" maildir "{folder}/mail" virtual <everybody>
match from any for any action "keep"
""")
    with running(["/usr/sbin/smtpd", "-d", "-f", str(conf)], folder / "log"):
        yield f"smtp://127.0.0.1:{port}"


@contextmanager
def postfix(folder: Path, port: int) -> Iterator[str]:
    for name in ("conf", "queue", "data"):
        (folder / name).mkdir()
    shutil.chown(folder / "data", "postfix")
    os.chown(folder / "mail", 8, 8)
    (folder / "conf" / "main.cf").write_text(f"""
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/data/log
maillog_file_prefixes = {folder}
mail_owner = postfix
myhostname = postfix.test
mydestination =
virtual_mailbox_domains = example.com
virtual_mailbox_base = {folder}
virtual_mailbox_maps = static:mail/
virtual_uid_maps = static:8
virtual_gid_maps = static:8
virtual_minimum_uid = 1
inet_interfaces = loopback-only
inet_protocols = ipv4
smtpd_recipient_restrictions = reject_unauth_destination
""")
    shutil.copy("/usr/share/postfix/master.cf.dist", folder / "conf" / "master.cf")
    master = (folder / "conf" / "master.cf").read_text().replace("smtp      inet", f"{port}      inet", 1)
    (folder / "conf" / "master.cf").write_text(master)
    command = ["/usr/sbin/postfix", "-c", str(folder / "conf")]
    with open(folder / "log", "ab") as file:
        subprocess.run([*command, "start"], stdout=file, stderr=file, timeout=60, check=True)
    try:
        yield f"smtp://127.0.0.1:{port}"
    finally:
        subprocess.run([*command, "stop"], capture_output=True, timeout=60, check=False)


def takes(server: Callable[[Path, int], object]) -> None:
    """Twelve mails at once to two recipients each: all come, line by line; one of 300 KB."""
    folder = Path(tempfile.mkdtemp(prefix="outmail-server-"))
    folder.chmod(0o755)
    (folder / "mail").mkdir()
    texts = ["\r\n".join([str(i), *LINES]) for i in range(12)] + [
        "12\r\n" + "y" * 70 + ("\r\n" + "z" * 70) * 4000
    ]
    with server(folder, free_port()) as url, Outbox(folder / "q.db", relay=url) as box:  # type: ignore[attr-defined]
        ids = [
            box.submit(
                f"From: me@example.com\r\nSubject: x\r\n\r\n{text}\r\n".encode(),
                sender="me@example.com",
                recipients=["a@example.com", "b@example.com"],
            ).id
            for text in texts
        ]
        for id in ids:
            end = time.monotonic() + 60
            while (status := box.wait(id, 5)).status != "delivered":
                reply = status.recipients[0].reply or status.recipients[0].reason
                if status.recipients[0].state != "sending" and time.monotonic() < end:
                    box.retry(id)
                assert time.monotonic() < end, f"{reply}; {(folder / 'log').read_text()[-1500:]}"
        until(lambda: len(texts_in(folder / "mail")) >= len(texts), 60)
        assert texts_in(folder / "mail") == set(texts)
    shutil.rmtree(folder)


def texts_in(folder: Path) -> set[str]:
    found = set()
    for path in folder.rglob("new/*"):
        content = path.read_bytes().replace(b"\r\n", b"\n").decode()
        found.add(content.partition("\n\n")[2].rstrip("\n").replace("\n", "\r\n"))
    return found


SERVERS = {
    "Exim": (exim, "usr/sbin/exim4"),
    "Dovecot, LMTP": (dovecot, "usr/lib/dovecot/lmtp"),
    "OpenSMTPD": (opensmtpd, "usr/sbin/smtpd"),
    "Postfix": (postfix, "usr/sbin/postfix"),
}

inside()
for name, (server, program) in SERVERS.items():
    if Path("/", program).exists():
        check(name, lambda server=server: takes(server))
    else:
        note(name, "skipped", "the package is not there")
