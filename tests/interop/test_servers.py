"""Foreign servers take our mail: aiosmtpd with every kind of TLS and authentication; Debian's Postfix."""

from __future__ import annotations

import os
import pwd
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from outmail.outbox.outbox import Outbox
from tests import programs
from tests.pgserver import free_port
from tests.waiting import listens, until

MakeBox = Callable[..., Outbox]


class Keep:
    def __init__(self) -> None:
        self.got: list[tuple[list[str], bytes]] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.got.append((envelope.rcpt_tos, envelope.original_content))
        return "250 2.0.0 kept"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(CA, key, chain) as files; the certificate is for localhost."""
    folder = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    cert = ca.issue_cert("localhost")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    cert.private_key_pem.write_to_path(folder / "key.pem")
    cert.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    return folder / "ca.pem", folder / "key.pem", folder / "cert.pem"


@pytest.mark.parametrize("kind", ["plain", "starttls", "tls"])
@pytest.mark.parametrize("auth", [False, True])
def test_aiosmtpd(make_box: MakeBox, certificate: tuple[Path, Path, Path], kind: str, auth: bool) -> None:
    ca, key, chain = certificate
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain, key)
    handler = Keep()

    def check(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        return AuthResult(success=(data.login, data.password) == (b"me", b"geheim"))

    controller = Controller(
        handler,
        hostname="127.0.0.1",
        port=free_port(),
        ssl_context=context if kind == "tls" else None,
        authenticator=check,
        auth_required=auth,
        auth_require_tls=False,
        tls_context=context if kind == "starttls" else None,
        require_starttls=kind == "starttls",
    )
    try:
        controller.start()
    except (ssl.SSLError, OSError):  # aiosmtpd's own self-test does not trust our CA; the server runs
        pass
    try:
        scheme = "smtps" if kind == "tls" else "smtp"
        user = "me:geheim@" if auth else ""
        tls = 'tls = "required"\n' if kind == "starttls" else ""
        box = make_box(
            toml=f'[relay]\nurl = "{scheme}://{user}localhost:{controller.port}"\nca = "{ca}"\n{tls}',
            deliver="thread",
        )
        ids = [box.send("a@x.test", "grüße", ".dot\n" * 20).id for _ in range(3)]
        assert [box.wait(id, 15).status for id in ids] == ["delivered"] * 3, box.status(ids[0])
        assert sorted(content for _, content in handler.got) == sorted(box.content(id) for id in ids)
    finally:
        controller.stop()


POSTFIX = programs.found("postfix")


@pytest.fixture
def postfix(
    tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path, Path]
) -> Iterator[tuple[int, Path]]:
    """A private Postfix that takes mail for example.test into a folder; (port, maildir)."""
    _, key, chain = certificate
    folder = Path("/tmp") / f"outmail-postfix-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("conf", "queue", "data", "mail", "tls"):
        (folder / name).mkdir(parents=True)
    for source in (key, chain):
        shutil.copy(source, folder / "tls")
    port, uid = free_port(), pwd.getpwnam("postfix").pw_uid
    os.chown(folder / "data", uid, -1)
    nobody = pwd.getpwnam("nobody")
    os.chown(folder / "mail", nobody.pw_uid, nobody.pw_gid)
    (folder / "conf" / "main.cf").write_text(f"""
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/data/log
maillog_file_prefixes = /tmp
mail_owner = postfix
myhostname = localhost
mydestination =
virtual_mailbox_domains = example.test
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = static:box/
virtual_uid_maps = static:{nobody.pw_uid}
virtual_gid_maps = static:{nobody.pw_gid}
virtual_minimum_uid = 1
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
alias_maps =
smtpd_tls_cert_file = {folder}/tls/cert.pem
smtpd_tls_key_file = {folder}/tls/key.pem
smtpd_tls_security_level = may
""")
    (folder / "conf" / "master.cf").write_text(f"""
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
tlsmgr unix - - n 1000? 1 tlsmgr
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
error unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
proxymap unix - - n - - proxymap
postlog unix-dgram n - n - 1 postlogd
""")
    assert POSTFIX
    subprocess.run(
        [POSTFIX, "-c", str(folder / "conf"), "start"], capture_output=True, timeout=60, check=False
    )
    until(lambda: listens(port))
    yield port, folder / "mail" / "box" / "new"
    subprocess.run(
        [POSTFIX, "-c", str(folder / "conf"), "stop"], capture_output=True, timeout=60, check=False
    )
    shutil.rmtree(folder, ignore_errors=True)


@programs.needs("postfix", "postfix")
@programs.as_root("Postfix is started as root only")
@pytest.mark.parametrize("kind", ["plain", "starttls"])
def test_postfix(
    make_box: MakeBox, postfix: tuple[int, Path], certificate: tuple[Path, Path, Path], kind: str
) -> None:
    port, maildir = postfix
    tls = f'tls = "required"\nca = "{certificate[0]}"\n' if kind == "starttls" else ""
    box = make_box(toml=f'[relay]\nurl = "smtp://localhost:{port}"\n{tls}', deliver="thread")
    ids = [
        box.send(["a@example.test", "b@example.test"], f"grüße {i}", ".dot\n.\n..\n" * 20).id
        for i in range(5)
    ]
    refused = box.send("a@elsewhere..test".replace("..", "."), "s", "t", sender="me@outmail.test").id
    assert [box.wait(id, 20).status for id in ids] == ["delivered"] * 5, box.status(ids[0]).recipients
    until(lambda: maildir.exists() and len(os.listdir(maildir)) == 10)
    files = [path.read_bytes() for path in maildir.iterdir()]
    assert len(files) == 10
    for id in ids:
        body = box.content(id).replace(b"\r\n", b"\n")
        assert sum(body in file for file in files) == 2
    assert refused


@pytest.mark.parametrize(("name", "count"), [("progress_from_dictionaries", 4), ("log_over_three_runs", 1)])
def test_the_seeds_examples_against_a_real_server_with_nothing_else_started(
    name: str, count: int, tmp_path: Path
) -> None:
    keep = Keep()
    controller = Controller(keep, hostname="127.0.0.1", port=free_port())
    controller.start()
    try:
        example = Path(__file__).parents[2] / "examples" / f"{name}.py"
        done = subprocess.run(
            [sys.executable, str(example), str(tmp_path / "q.db"), f"smtp://127.0.0.1:{controller.port}"],
            capture_output=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
        )
    finally:
        controller.stop()
    assert (done.returncode, done.stderr, len(keep.got)) == (0, b"", count)
