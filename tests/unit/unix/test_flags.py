"""The flags of sendmail(1)."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outmail.unix.flags import Call, UsageError, parse


def differs(words: str) -> dict[str, Any]:
    """What the words change in a plain call."""
    plain = vars(Call())
    found = vars(parse(shlex.split(words)))
    return {name: value for name, value in found.items() if name != "notes" and value != plain[name]}


#: Command lines of real programs.
CALLERS: dict[str, dict[str, Any]] = {
    "-FCronDaemon -i -odi -oem -oi -t -f root": {  # cronie
        "name": "CronDaemon",
        "dots": False,
        "from_header": True,
        "sender": "root",
    },
    "-i -FCronDaemon -B8BITMIME -oem root": {  # Debian's cron
        "name": "CronDaemon",
        "dots": False,
        "recipients": ["root"],
    },
    "-FCronDaemon -odi -oem -oi -t": {  # ISC cron
        "name": "CronDaemon",
        "dots": False,
        "from_header": True,
    },
    "-t -i": {"from_header": True, "dots": False},  # PHP
    "-oi -fme@x.test -t": {"dots": False, "sender": "me@x.test", "from_header": True},  # PHPMailer
    "-i -f s@x.test a@x.test b@x.test": {
        "dots": False,
        "sender": "s@x.test",
        "recipients": ["a@x.test", "b@x.test"],
    },  # git
    "-bs": {"mode": "smtp"},  # Symfony Mailer
    "-oi -oeq -t": {"dots": False, "from_header": True},
}


@pytest.mark.parametrize("words", CALLERS)
def test_real_callers_are_understood(words: str) -> None:
    assert differs(words) == CALLERS[words]


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("a@x.test", {}),
        ("-ti", {"from_header": True, "dots": False, "recipients": []}),
        ("-r me@x.test a@x.test", {"sender": "me@x.test"}),
        ("-f '' a@x.test", {"sender": ""}),
        ("-f '<>' a@x.test", {"sender": ""}),
        ("-f '<me@x.test>' a@x.test", {"sender": "me@x.test"}),
        ("a@x.test -f me@x.test", {"sender": "me@x.test"}),
        ("-F 'A Name' a@x.test", {"name": "A Name"}),
        (
            "-N success,failure -R hdrs -V id a@x.test",
            {"notify": "success,failure", "ret": "hdrs", "envid": "id"},
        ),
        ("-G a@x.test", {"gateway": True}),
        ("-v a@x.test", {"verbose": True}),
        ("-X log a@x.test", {"traffic": "log"}),
        ("-XV a@x.test", {}),
        ("-XV+= a@x.test", {}),
        ("-XVlog a@x.test", {"traffic": "Vlog"}),
        ("-C f a@x.test", {"config": "f"}),
        ("--file=f a@x.test", {"config": "f"}),
        ("--store q.db --relay backup a@x.test", {"store": "q.db", "relay": "backup"}),
        ("-a backup a@x.test", {"relay": "backup"}),
        ("--read-recipients", {"from_header": True, "recipients": []}),
        ("-bq a@x.test", {}),
        ("-odq a@x.test", {}),
        ("-odb a@x.test", {}),
        ("-bm a@x.test", {}),
        ("-n -m -U -c -x -O Timeout=5 -o7 -oAfile -om -h 5 -L tag -p x -Am -d0.1 -D a@x.test", {}),
        ("-bp", {"mode": "list", "recipients": []}),
        ("-bi", {"mode": "aliases", "recipients": []}),
        ("-I", {"mode": "aliases", "recipients": []}),
        ("-bv a@x.test", {"mode": "verify"}),
        ("-q", {"mode": "flush", "recipients": []}),
        ("-q15m", {"mode": "flush", "recipients": []}),
        ("-qIabc", {"mode": "flush", "only": "abc", "recipients": []}),
        ("-qR@x.test", {"mode": "flush", "only": "to:@x.test", "recipients": []}),
        ("-qSme@", {"mode": "flush", "only": "from:me@", "recipients": []}),
        ("-Zt a@x.test", {"unknown": ["-Z"], "from_header": True}),
        ("--odd a@x.test", {"unknown": ["--odd"]}),
        ("-- -f@x.test", {"recipients": ["-f@x.test"]}),
    ],
)
def test_each_flag(words: str, change: dict[str, Any]) -> None:
    assert differs(words) == {
        name: value for name, value in {"recipients": ["a@x.test"], **change}.items() if value != []
    }


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "no recipient"),
        ("-i", "no recipient"),
        ("-f", "-f needs a value"),
        ("--store", "--store needs a value"),
        ("-N sometimes a@x.test", "never, or some of"),
        ("-N never,failure a@x.test", "never, or some of"),
        ("-R all a@x.test", "full or hdrs"),
        ("-bd", "outmail run"),
        ("-bt", "does not exist"),
        ("-bv -t", "-bv"),
        ("-P", "outmail config"),
    ],
)
def test_what_nobody_can_mean_is_a_usage_error(words: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse(shlex.split(words))


@given(st.lists(st.text("-abcdefFiNoOqrRtVX0 @.", max_size=8), max_size=6))
def test_any_words_are_understood_or_a_usage_error(words: list[str]) -> None:
    try:
        parse(words)
    except UsageError as problem:
        assert str(problem)
