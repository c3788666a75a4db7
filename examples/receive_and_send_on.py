"""Receive on this machine, deliver to a Maildir, and send on what is for somebody elsewhere.

Run: python receive_and_send_on.py STORE RELAY
"""

import pathlib
import re
import signal
import smtplib
import subprocess
import sys
import time

store, relay = sys.argv[1:3]
folder = pathlib.Path(store).resolve().parent
(folder / "mail").mkdir(exist_ok=True)
(folder / "aliases").write_text("postmaster: alice\nteam: alice, eve@elsewhere.example\n")
(folder / "receive.toml").write_text(f"""
store = "{folder / pathlib.Path(store).name}"
relay = "{relay}"
[receive]
smtp = ["127.0.0.1:0"]
domains = ["here.example"]
users = ["alice"]
mailboxes = "{folder}/mail/{{user}}/"
aliases = "{folder}/aliases"
""")
log = folder / "receive.log"
server = subprocess.Popen(
    [sys.executable, "-m", "outmail", "receive", "--config", str(folder / "receive.toml")],
    stderr=log.open("wb"),
)
deadline = time.monotonic() + 20
while (
    not (found := re.search(r"listening: smtp 127\.0\.0\.1:(\d+)", log.read_text()))
    and time.monotonic() < deadline
):
    time.sleep(0.05)
assert found, log.read_text()

with smtplib.SMTP("127.0.0.1", int(found[1])) as client:
    client.sendmail("me@here.example", "team@here.example", "Subject: hello\r\n\r\nTo all of us.\r\n")
    print(
        "a stranger's mail:",
        client.docmd("MAIL FROM:<x@y.example>")[0],
        client.docmd("RCPT TO:<z@y.example>")[1].decode(),
    )

while not list(folder.glob("mail/alice/new/*")) or log.read_text().count("status=delivered") < 2:
    assert time.monotonic() < deadline, log.read_text()
    time.sleep(0.05)
server.send_signal(signal.SIGTERM)
server.wait(30)
print("delivered to", *folder.glob("mail/alice/new/*"), "and sent on to eve")
