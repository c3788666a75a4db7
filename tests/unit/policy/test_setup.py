"""What `outmail init` would do, as a list of steps."""

from __future__ import annotations

import shlex
import tomllib
from dataclasses import replace
from typing import Any

import pytest

from outmail.policy.discovery import Server
from outmail.policy.setup import (
    CONFIG,
    AddCronLine,
    AddLine,
    GiveFolder,
    Machine,
    MakeFolder,
    MakeUser,
    Run,
    Step,
    TakeName,
    Wanted,
    WriteFile,
    config_text,
    plan,
    toml,
)

SERVER = Server("smtp.x.test", 465, "implicit", "me@x.test", "")
UNITS = {
    "outmail.service": "[Service]\nExecStart=@OUTMAIL@ run\n"
    "ExecReload=/bin/sh -c '@OUTMAIL@ config >/dev/null && kill -HUP $MAINPID'\n"
    "User=outmail\nNoNewPrivileges=yes\n\n[Install]\nWantedBy=multi-user.target\n",
    "outmail-user.service": "[Service]\nExecStart=@OUTMAIL@ run\n",
    "outmail-once.service": "[Service]\nType=oneshot\nExecStart=@OUTMAIL@ run --once\n",
    "outmail-once.timer": "[Timer]\n",
}
EVERYTHING = Machine(systemd=True, crontab=True, cron_d=True, dpkg=True)


def wanted(**words: Any) -> Wanted:
    return Wanted(
        **{
            "scope": "user",
            "config": "/h/.config/outmail/config.toml",
            "text": "x",
            "unit_texts": UNITS,
            **words,
        }
    )


def system(**words: Any) -> Wanted:
    return wanted(**{"scope": "system", "config": CONFIG, **words})


def texts(steps: list[Step]) -> dict[str, str]:
    return {step.path: step.text for step in steps if isinstance(step, WriteFile)}


def test_a_user_gets_two_private_files() -> None:
    folder, password, config = plan(wanted(password="geheim"), Machine())
    assert folder == MakeFolder("/h/.config/outmail", 0o700)
    assert isinstance(password, WriteFile) and (password.mode, password.text) == (0o600, "geheim\n")
    assert isinstance(config, WriteFile) and config.mode == 0o600
    assert password.path == "/h/.config/outmail/password"


def test_no_step_tells_the_password() -> None:
    steps = plan(system(password="geheim", service="systemd", sendmail=True, program="#!"), EVERYTHING)
    told = " ".join([*(step.told for step in steps), repr(steps), repr(system(password="geheim"))])
    assert "geheim" not in told and "/etc/outmail/password" in told


def test_a_machine_has_a_user_and_a_drop_folder_and_one_secret_file() -> None:
    steps = plan(system(password="geheim"), Machine())
    assert steps[0] == MakeUser("outmail", "/var/lib/outmail")
    assert MakeFolder("/var/spool/outmail/drop", 0o3777, "outmail", exact=True) in steps
    assert MakeFolder("/var/spool/outmail", 0o755, "root", exact=True) in steps
    files = [step for step in steps if isinstance(step, WriteFile)]
    assert [(file.path, file.mode, file.group) for file in files] == [
        ("/etc/outmail/password", 0o640, "outmail"),
        ("/etc/outmail/config.toml", 0o644, ""),
    ]


def test_the_secret_is_there_before_what_names_it_and_that_before_who_uses_it() -> None:
    what = system(password="p", service="systemd", sendmail=True, program="@NAME@", to="me@x.test")
    steps = plan(what, EVERYTHING)
    kinds = [type(step).__name__ for step in steps]
    assert kinds == [
        "MakeUser",
        *["MakeFolder"] * 4,
        *["WriteFile"] * 3,
        "Run",
        "Run",
        *["TakeName"] * 3,
        "AddLine",
    ]
    assert [step.text for step in steps if isinstance(step, TakeName)] == ["sendmail", "mailq", "newaliases"]


def test_roots_mail_goes_to_a_person_unless_it_does_already() -> None:
    what = system(sendmail=True, to="me@x.test")
    assert plan(what, Machine())[-1] == AddLine("/etc/aliases", "root: me@x.test", "who reads root's mail")
    assert isinstance(plan(what, Machine(root_alias=True))[-1], TakeName)


def test_what_root_has_used_is_given_to_the_service() -> None:
    steps = plan(system(), Machine(roots_home=True))
    assert GiveFolder("/var/lib/outmail", "outmail") in steps
    assert not any(isinstance(step, MakeFolder) and step.path == "/var/lib/outmail" for step in steps)


def test_services() -> None:
    steps = plan(system(service="systemd", command=("/o p/outmail",), given_config=True), EVERYTHING)
    assert (
        'ExecStart="/o p/outmail" run --config /etc/outmail/config.toml\n'
        in texts(steps)["/etc/systemd/system/outmail.service"]
    )
    assert steps[-1] == Run(
        ("systemctl", "enable", "--now", "outmail.service"),
        ("systemctl", "disable", "--now", "outmail.service"),
    )
    steps = plan(wanted(service="timer", units="/h/.config/systemd/user"), EVERYTHING)
    assert steps[-1].told == "run systemctl --user enable --now outmail-once.timer"
    assert "User=" not in "".join(texts(steps).values())
    steps = plan(system(service="timer"), replace(EVERYTHING, offline=True))
    assert (
        "Type=oneshot\nUser=outmail\nNoNewPrivileges=yes\nExecStart="
        in texts(steps)["/etc/systemd/system/outmail-once.service"]
    )
    assert steps[-1].told == "run systemctl enable outmail-once.timer"
    assert "[Install]" not in texts(steps)["/etc/systemd/system/outmail-once.service"]


def test_cron_escapes_what_cron_would_change() -> None:
    steps = plan(wanted(service="cron", command=("/o%p/outmail",)), EVERYTHING)
    assert steps[-1] == AddCronLine(r"*/5 * * * * /o\%p/outmail run --once")
    steps = plan(system(service="cron"), EVERYTHING)
    assert texts(steps)["/etc/cron.d/outmail"].endswith("\n*/5 * * * * outmail outmail run --once\n")


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (wanted(sendmail=True), "--system"),
        (wanted(service="systemd"), "systemd"),
        (system(service="timer"), "systemd"),
        (wanted(service="cron"), "no cron"),
        (system(service="cron"), "no cron"),
    ],
)
def test_what_cannot_be_had_here_is_a_sentence(what: Wanted, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        plan(what, Machine())
    with pytest.raises(ValueError, match="characters"):
        plan(wanted(service="cron", command=('/a"b',)), EVERYTHING)


def test_the_configuration_is_toml_whatever_is_in_it() -> None:
    odd = SERVER._replace(user='m"e\\@x.test', tls="starttls", port=587)
    text = config_text(odd, sender="me@x.test", to="é\x7f@x.test", store="/a b", ca="/c.pem", socket="/s")
    assert tomllib.loads(text) == {
        "store": "/a b",
        "from": "me@x.test",
        "to": ["é\x7f@x.test"],
        "relay": {
            "url": "smtp://m%22e%5C%40x.test@smtp.x.test:587",
            "tls": "required",
            "ca": "/c.pem",
            "password_file": "password",
        },
        "accept": {"masquerade": "me@x.test"},
        "listen": {"lmtp": ["unix:/s"]},
    }
    text = config_text(SERVER._replace(user=""), sender="me@x.test", to="me@x.test", login=False)
    assert tomllib.loads(text)["relay"] == {"url": "smtps://smtp.x.test:465"}
    assert tomllib.loads(f"x = {toml(chr(10) + chr(0) + chr(9))}") == {"x": "\n\0\t"}


def test_a_percent_sign_in_the_configurations_path_is_escaped() -> None:
    what = replace(
        system(service="cron", command=("/o%p/outmail",), given_config=True), config="/s%t u/c.toml"
    )
    line = texts(plan(what, EVERYTHING))["/etc/cron.d/outmail"].splitlines()[-1]
    assert line.endswith(r'outmail /o\%p/outmail run --once --config "/s\%t u/c.toml"')
    text = texts(plan(replace(what, service="systemd"), EVERYTHING))["/etc/systemd/system/outmail.service"]
    assert 'ExecStart=/o%%p/outmail run --config "/s%%t u/c.toml"\n' in text


def test_a_reload_checks_the_configuration_of_the_service() -> None:
    """The shell gets one argument of systemd's, and reads the words in it as ExecStart has them."""
    what = system(service="systemd", command=("/o p/outmail",), given_config=True)
    text = texts(plan(replace(what, config="/s t/c.toml"), EVERYTHING))["/etc/systemd/system/outmail.service"]
    line = next(line for line in text.splitlines() if line.startswith("ExecReload="))
    _, _, script = shlex.split(line.removeprefix("ExecReload="))
    assert shlex.split(script)[:4] == ["/o p/outmail", "config", "--config", "/s t/c.toml"]
