"""The names of this machine come from the system and from files, never from DNS."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from outmail.config import from_toml
from outmail.errors import ConfigError
from outmail.system import host


def test_it_is_the_name_that_the_system_gives() -> None:
    assert host.hostname() == socket.gethostname()


def test_where_there_is_no_uname_the_environment_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "uname")
    monkeypatch.setenv("COMPUTERNAME", "DESK")
    assert host.hostname() == "DESK"


def test_a_machine_without_a_name_is_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "uname")
    monkeypatch.delenv("COMPUTERNAME", raising=False)
    assert host.hostname() == "localhost"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine called ``web1`` without files; DNS does not answer, it raises."""

    def never(machine: Path, *_: object) -> None:
        raise AssertionError("DNS was asked")

    for function in ("getfqdn", "getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr"):
        monkeypatch.setattr(socket, function, never)
    monkeypatch.setattr(host, "hostname", lambda: "web1")
    monkeypatch.setattr(host, "MAILNAME", str(tmp_path / "mailname"))
    monkeypatch.setattr(host, "HOSTS", str(tmp_path / "hosts"))
    return tmp_path


def origin(toml: str = "") -> str:
    return from_toml(toml, "test", {}).origin


def test_nothing_but_its_name_is_known(machine: Path) -> None:
    assert origin() == "web1"


@pytest.mark.parametrize(
    ("hosts", "full"),
    [
        ("127.0.0.1 localhost\n127.0.1.1 web1.example.org web1\n", "web1.example.org"),
        ("127.0.1.1\tweb1 web1.example.org # web1.comment.test\n", "web1.example.org"),
        ("127.0.0.1 localhost.localdomain localhost web1\n", "web1"),
        ("10.0.0.1 web10.example.org web1x\n# 127.0.1.1 web1.example.org web1\n", "web1"),
        ("\n \nweb1.example.org\n", "web1"),
    ],
)
def test_the_full_name_is_read_from_hosts(machine: Path, hosts: str, full: str) -> None:
    (machine / "hosts").write_text(hosts)
    assert origin() == full


def test_a_name_with_a_domain_is_taken_as_it_is(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "hostname", lambda: "web1.corp.test")
    (machine / "hosts").write_text("127.0.1.1 web1.corp.test.example.org web1.corp.test\n")
    assert origin() == "web1.corp.test"


def test_mailname_goes_before_the_hosts_name_and_the_setting_before_both(machine: Path) -> None:
    (machine / "mailname").write_text("# for mail\n\nexample.org\nsecond.test\n")
    assert origin() == origin('hostname = "mx.example.net"') == "example.org"
    assert origin('[accept]\norigin = "bücher.test"') == "xn--bcher-kva.test"
    assert origin('[accept]\norigin = ""') == ""


def test_the_configured_host_name_is_the_full_name(machine: Path) -> None:
    assert origin('hostname = "mx.example.net"') == "mx.example.net"


@pytest.mark.parametrize("content", [b"", b"\n", b"two..dots\n", b"\xff\xfe\n", b"a@b.test\n", b"x" * 300])
def test_a_mailname_that_is_no_domain_is_passed_over(machine: Path, content: bytes) -> None:
    (machine / "mailname").write_bytes(content)
    assert origin() == "web1"


def test_a_folder_in_its_place_and_a_name_that_is_none(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "mailname").mkdir()
    monkeypatch.setattr(host, "hostname", lambda: "DESKTOP PC")
    assert origin() == "localhost"


@pytest.mark.parametrize("wrong", ["a@b.test", "two..dots", "exa mple.org", "-x.test", "x.test>"])
def test_an_origin_that_is_no_domain_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"\[accept\] origin .* is no domain"):
        origin(f'[accept]\norigin = "{wrong}"')


def test_addresses_of_the_configuration_are_qualified() -> None:
    config = from_toml('from = "robot"\nto = ["root", "a@x.test"]\n[accept]\norigin = "o.test"', "t", {})
    assert (config.sender, config.to) == ("robot@o.test", ("root@o.test", "a@x.test"))
    config = from_toml('[accept]\norigin = "o.test"', "t", {"OUTMAIL_FROM": "me", "OUTMAIL_TO": "root"})
    assert (config.sender, config.to) == ("me@o.test", ("root@o.test",))


def test_the_machines_files_are_read_when_the_origin_is_first_needed(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "mailname").write_text("example.org\n")
    asked: list[str] = []
    read = host.mail_name

    def mail_name() -> str:
        asked.append("mailname")
        return read()

    monkeypatch.setattr(host, "mail_name", mail_name)
    config = from_toml('from = "robot@x.test"\nto = ["a@x.test"]', "t", {})
    assert not asked
    assert [config.origin, config.origin, config.as_dict()["accept"]["origin"]] == ["example.org"] * 3
    assert asked == ["mailname"]
    assert from_toml('from = "robot"', "t", {}).sender == "robot@example.org"
