"""mailqueue-runner's ini file means what it means there; what is wrong is named with its line."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from outmail.compat.mailqueue import ini
from outmail.compat.mailqueue.settings import config_of, relay_of
from outmail.errors import ConfigError
from outmail.policy.route import Relay

SEED = (
    "[mqrunner]\nsmtp_hostname = hostname\nsmtp_port = 587\nsmtp_username = someuser@site.example\n"
    "smtp_password = secret\n"
)


def relay(text: str) -> Relay:
    return relay_of(ini.parse(f"[mqrunner]\nsmtp_hostname = h.test\n{text}", "c.ini"))


def test_the_seeds_file() -> None:
    found = relay_of(ini.parse(SEED, "c.ini"))
    assert (found.host, found.port, found.user, found.password) == (
        "hostname",
        587,
        "someuser@site.example",
        "secret",
    )
    assert found.tls == "opportunistic" and not found.insecure_auth


@pytest.mark.parametrize(
    "text, tls, verify",
    [
        ("", "opportunistic", False),
        ("smtp_port = 465", "implicit", True),
        ("smtp_tls = yes", "required", True),
        ("smtp_tls = yes\nsmtp_port = 465", "implicit", True),
        ("smtp_tls = implicit\nsmtp_port = 2465", "implicit", True),
        ("smtp_tls = opportunistic", "opportunistic", False),
        ("smtp_tls = yes\nsmtp_tls_verify = no", "required", False),
        ("smtp_tls_verify = TRUE", "opportunistic", True),
        ("smtp_hostname_ = x", "", True),
    ],
)
def test_tls_as_mailqueue_runner_decides_it(text: str, tls: str, verify: bool) -> None:
    if not tls:
        with pytest.raises(
            ConfigError, match=r"line 3: unknown key smtp_hostname_; did you mean smtp_hostname"
        ):
            relay(text)
        return
    found = relay(text)
    assert (found.tls, found.verify) == (tls, verify)


def test_this_machines_certificate_is_not_verified() -> None:
    text = "[mqrunner]\nsmtp_hostname = 127.0.0.1\nsmtp_tls = yes\n"
    assert not relay_of(ini.parse(text, "c.ini")).verify


def test_a_time_out_is_a_number_in_seconds() -> None:
    assert relay("smtp_timeout = 12.5").timeout == 12.5  # a text, on which mailqueue-runner 1.0.0 fails


def test_a_login_needs_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert relay("smtp_username = me").user == ""
    assert "belong together" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, told",
    [
        ("smtp_port = x", "c.ini, line 3: smtp_port: 'x' is no number"),
        ("smtp_port = 70000", "line 3: smtp_port: 70000 is not between"),
        ("smtp_port = 2.5", "line 3: smtp_port: it is a whole number"),
        ("smtp_tls = maybe", "line 3: smtp_tls: 'maybe' is not yes"),
        ("smtp_port = 465\nsmtp_tls = opportunistic", "line 4: smtp_tls: port 465"),
        ("smtp_tls_verify = 2", "line 3: smtp_tls_verify"),
        ("smtp_timeout = -1", "line 3: smtp_timeout"),
        ("smtp_tlz = yes", "line 3: unknown key smtp_tlz; did you mean smtp_tls?"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        relay(text)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    "text, told",
    [
        ("smtp_port = 25\n[mqrunner]", "line 1: a setting stands before the first section"),
        ("[mqrunner]\njust words", "line 2: this is no setting"),
        ("[mqrunner]\nfrom = a\nFROM = b", "line 3: from is there twice"),
        ("[mqrunner]\n[mqrunner]", r"line 2: the section [mqrunner] is there twice"),
        ("[other]\na = b", "has no section [mqrunner]"),
        ("[mqrunner]\nfrom = %(from)s", "line 2: %(from)s leads to itself"),
    ],
)
def test_a_broken_file_is_named_with_the_line(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ini.parse(text, "c.ini")
    assert told in str(raised.value)


READABLE = """
; a comment
[DEFAULT]
domain: x.test
[other]
smtp_unheard_of = 1
[mqrunner]
# another one
SMTP_HostName = mail.%(domain)s
smtp_password : a=b:c;d#e%%f
from = me@x.test
    and more
smtp_port=25
delivery_log =
plugins = *
"""


def test_it_is_read_as_configparser_reads_it() -> None:
    oracle = configparser.ConfigParser()
    oracle.read_string(READABLE)
    found = ini.parse(READABLE, "c.ini")
    for key, value in oracle.items("mqrunner"):
        assert found.text(key) == value, key


def test_a_percent_sign_in_a_password_is_one() -> None:
    assert relay("smtp_username = u\nsmtp_password = 50%-off %(").password == "50%-off %("


def test_files_of_windows_and_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "c.ini"
    path.write_bytes(b"\xef\xbb\xbf[mqrunner]\r\nsmtp_hostname = h.test\r\n")
    assert ini.read(str(path)).text("smtp_hostname") == "h.test"
    path.write_bytes(b"[mqrunner]\nsmtp_password = \xe9\n")
    with pytest.raises(ConfigError, match="line 2: this is no UTF-8"):
        ini.read(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        ini.read(str(tmp_path / "none"))


def test_outmails_own_settings_hold_and_another_relay_replaces_the_server(tmp_path: Path) -> None:
    own = tmp_path / "outmail.toml"
    own.write_text('[safety]\nonly_to = ["*@x.test"]\n[listen]\nsmtp = ["127.0.0.1:2525"]\n')
    file = ini.parse(SEED, "c.ini")
    config = config_of(file, "/q", {"OUTMAIL_CONFIG": str(own)})
    assert config.only_to == ("*@x.test",) and config.listen.smtp == ()
    assert config.store == "/q/outmail.db" and config.routes.relays["default"].host == "hostname"
    config = config_of(file, "/q", {"OUTMAIL_CONFIG": str(own), "OUTMAIL_RELAY": "null:"})
    assert config.routes.relays["default"].url == "null:"


def test_without_a_server_there_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="smtp_hostname is missing"):
        relay_of(ini.parse("[mqrunner]\n", "c.ini"))
