"""A certificate is made here and checked elsewhere; one changed byte makes it fail. And the story."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from outmail.errors import ConfigError, Refused
from outmail.ops import certify
from outmail.outbox.outbox import Outbox
from outmail.testing import Sink

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
MakeBox = Callable[..., Outbox]


@pytest.fixture
def made(sink: Sink, make_box: MakeBox, outmail: Run, tmp_path: Path) -> tuple[str, bytes, Path]:
    """(id, certificate, a folder of another machine with the public key)."""
    sink.script("RCPT b@*: 550 5.1.1 nobody")
    box = make_box(sink.url)
    id = box.send(["a@x.test", "b@x.test"], "grüße", "t").id
    box.wait(id, 10)
    done = outmail("certify", id, "--store", "q.db")
    assert done.returncode == 0, done.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "signer.pem").write_bytes((tmp_path / "q.db.certify.pub").read_bytes())
    (elsewhere / "proof.json").write_bytes(done.stdout)
    return id, done.stdout, elsewhere


def test_it_checks_elsewhere_with_the_public_key(made: tuple[str, bytes, Path], outmail: Run) -> None:
    id, text, elsewhere = made
    words = ("certify", "--verify", str(elsewhere / "proof.json"))
    good = outmail(*words, "--key", str(elsewhere / "signer.pem"), "--store", "nowhere/x.db")
    assert good.returncode == 0 and id.encode() in good.stdout
    statement = json.loads(text)["statement"]
    assert [r["state"] for r in statement["message"]["recipients"]] == ["delivered", "failed"]
    assert any("nobody" in line["line"] for a in statement["attempts"] for line in a["transcript"])
    assert [e["event"] for e in statement["events"]] == ["accepted", "delivered", "refused"]
    assert outmail(*words, "--store", "q.db").returncode == 0  # with this store's own key
    assert outmail(*words, "--key", "none.pem").returncode == 66
    assert outmail("certify", "0" * 26, "--store", "q.db").returncode == 66
    assert outmail("certify").returncode == 64


def test_one_changed_byte_makes_it_fail(made: tuple[str, bytes, Path], outmail: Run) -> None:
    _, text, elsewhere = made
    public = (elsewhere / "signer.pem").read_bytes()
    assert certify.check(text, public)
    for at in range(len(text)):
        for byte in (text[at] ^ 1, 32) if at % 8 == 0 else (text[at] ^ 1,):
            changed = text[:at] + bytes([byte]) + text[at + 1 :]
            if changed != text:
                with pytest.raises(Refused, match="does not hold"):
                    certify.check(changed, public)
    for changed in (text + b" ", text[:-1], text + text, b"", b"[]", b"{" * 100_000, b"null"):
        with pytest.raises(Refused, match="does not hold"):
            certify.check(changed, public)
    (elsewhere / "proof.json").write_bytes(text.replace(b"a@x.test", b"c@x.test"))
    done = outmail("certify", "--verify", str(elsewhere / "proof.json"), "--store", "q.db", "--json")
    assert done.returncode == 64  # there is no --json
    done = outmail("certify", "--verify", str(elsewhere / "proof.json"), "--store", "q.db")
    assert done.returncode == 65 and b"was changed" in done.stderr


def test_another_key_and_a_key_that_others_can_read(
    made: tuple[str, bytes, Path], make_box: MakeBox, tmp_path: Path
) -> None:
    _, text, _ = made
    other = make_box(store=str(tmp_path / "other.db"), deliver="never").store
    certify.certificate(other, {})
    key, public = map(Path, certify.paths(other))
    with pytest.raises(Refused, match="another key"):
        certify.check(text, public.read_bytes())
    with pytest.raises(Refused, match="cannot be read"):
        certify.check(text, b"nonsense")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read it"):
        certify.certificate(other, {})


def test_without_the_package_it_says_what_to_install(tmp_path: Path, make_box: MakeBox) -> None:
    store = make_box(deliver="never").store
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from outmail.cli import main\n"
        f"file = {str(tmp_path / 'q.db')!r}\n"
        "sys.exit(main(['certify', '--verify', file, '--key', file]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert store and done.returncode == 78 and b'pip install "outmail[certify]"' in done.stderr


def test_show_and_log_tell_the_story(sink: Sink, make_box: MakeBox, outmail: Run) -> None:
    sink.script("RCPT b@*: 450 4.2.0 greylisted")
    box = make_box(sink.url)
    id = box.send(["a@x.test", "b@x.test"], "s", "t").id
    while not box.status(id).recipients[1].attempts:
        box.wait(id, 0.05)
    for command in ("show", "log"):
        told = outmail(command, id, "--store", "q.db").stdout.decode()
        assert "accepted from me@outmail.test for 2 recipients" in told
        assert "b@x.test: put off by 127.0.0.1; it said: 450 4.2.0 greylisted. That means:" in told
        assert "a@x.test: It was delivered." in told and "given up" in told
