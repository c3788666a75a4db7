"""Mail programs of others into outmail's listener: the same two mails by each that is installed.

Arguments: the folder with ``node_modules``, or "".
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from live import Live
from results import check, note

live = Live()
TO = ["a@example.com", "b@example.com"]
LINES = ["", "First line", ".", "..two dots", ".a dot", "Grüße", "x" * 900, "last"]
MESSAGE = (
    "From: me@example.com\nTo: a@example.com\nSubject: By {name}\nMIME-Version: 1.0\n"
    "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n" + "\n".join(LINES) + "\n"
)
NODE = Path(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1] else None
Client = Callable[[str], None]


def run(words: Sequence[str], content: str = "", **env: str) -> None:
    done = subprocess.run(
        words, input=content.encode(), capture_output=True, timeout=60, check=False, env={**os.environ, **env}
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()


def curl(name: str) -> None:
    words = ["curl", "-sS", "--url", f"smtp://127.0.0.1:{live.port}", "--mail-from", "me@example.com"]
    for address in TO:
        words += ["--mail-rcpt", address]
    run([*words, "--upload-file", "-"], MESSAGE.format(name=name).replace("\n", "\r\n"))


def msmtp(name: str) -> None:
    words = ["msmtp", "--file=/dev/null", "--host=127.0.0.1", f"--port={live.port}"]
    run([*words, "--from=me@example.com", *TO], MESSAGE.format(name=name))


def swaks(name: str) -> None:
    words = ["swaks", "--server", f"127.0.0.1:{live.port}", "--from", "me@example.com"]
    run([*words, "--to", ",".join(TO), "--data", "-", "--suppress-data"], MESSAGE.format(name=name))


PERL = """
use Net::SMTP; local $/; my $content = <STDIN>;
my $smtp = Net::SMTP->new('127.0.0.1', Port => $ENV{PORT}, Timeout => 30) or die $@;
$smtp->mail('me@example.com') or die; $smtp->to('a@example.com', 'b@example.com') or die;
$smtp->data() or die; $smtp->datasend($content) or die; $smtp->dataend() or die $smtp->message; $smtp->quit;
"""


def perl(name: str) -> None:
    run(["perl", "-e", PERL], MESSAGE.format(name=name), PORT=str(live.port))


NODEMAILER = """
const mailer = require('nodemailer').createTransport({
  host: '127.0.0.1', port: +process.env.PORT, secure: false, ignoreTLS: true});
const raw = require('fs').readFileSync(0);
mailer.sendMail({envelope: {from: 'me@example.com', to: ['a@example.com', 'b@example.com']}, raw})
  .then(() => mailer.close(), error => { console.error(error); process.exit(1); });
"""


def nodemailer(name: str) -> None:
    assert NODE is not None
    run(["node", "-e", NODEMAILER], MESSAGE.format(name=name), PORT=str(live.port), NODE_PATH=str(NODE))


PHP = """
$mail = stream_get_contents(STDIN); ini_set('SMTP', '127.0.0.1'); ini_set('smtp_port', getenv('PORT'));
$smtp = stream_socket_client('tcp://127.0.0.1:' . getenv('PORT'), $e, $m, 30) or exit(1);
function say($smtp, $line, $code) { if ($line !== null) fwrite($smtp, $line . "\\r\\n");
  do { $got = fgets($smtp); } while (substr($got, 3, 1) === '-'); if (substr($got, 0, 3) !== $code) exit(2); }
say($smtp, null, '220'); say($smtp, 'EHLO localhost', '250'); say($smtp, 'MAIL FROM:<me@example.com>', '250');
foreach (['a@example.com', 'b@example.com'] as $to) say($smtp, "RCPT TO:<$to>", '250');
say($smtp, 'DATA', '354'); $text = preg_replace('/^\\\\./m', '..', str_replace("\\n", "\\r\\n", $mail));
say($smtp, $text . '.', '250'); say($smtp, 'QUIT', '221');
"""


def php(name: str) -> None:
    run(["php", "-r", PHP], MESSAGE.format(name=name), PORT=str(live.port))


def aiosmtplib(name: str) -> None:
    program = (
        "import asyncio, os, sys, aiosmtplib\n"
        "asyncio.run(aiosmtplib.send(sys.stdin.buffer.read(), sender='me@example.com', "
        "recipients=['a@example.com', 'b@example.com'], hostname='127.0.0.1', port=int(os.environ['PORT'])))"
    )
    run([sys.executable, "-c", program], MESSAGE.format(name=name), PORT=str(live.port))


CLIENTS: dict[str, Client] = {
    "curl": curl,
    "msmtp": msmtp,
    "swaks": swaks,
    "perl": perl,
    "nodemailer": nodemailer,
    "php": php,
    "aiosmtplib": aiosmtplib,
}


def there(name: str) -> bool:
    if name == "nodemailer":
        return NODE is not None and (NODE / name).is_dir() and shutil.which("node") is not None
    if name == "aiosmtplib":
        return any(found.name == name for found in importlib.metadata.distributions())
    return shutil.which(name) is not None


def arrives(name: str, client: Client) -> None:
    live.forget()
    client(name)
    (mail,) = live.received()
    assert (mail.sender, mail.recipients) == ("me@example.com", TO), (mail.sender, mail.recipients)
    body = mail.content.partition(b"\r\n\r\n")[2].decode().rstrip("\r\n").split("\r\n")
    assert body == LINES[1:], json.dumps(body)[:500]


try:
    for name, client in CLIENTS.items():
        if there(name):
            check(name, lambda name=name, client=client: arrives(name, client))
        else:
            note(name, "skipped", "not installed")
finally:
    live.stop()
