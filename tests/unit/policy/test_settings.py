"""The list of settings says what `config` does."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from outmail import config
from outmail.policy import settings
from outmail.policy.settings import TABLES, TOP, Setting, Table


def loaded(text: str) -> dict[str, Any]:
    """What a configuration says, without its name."""
    found = config.from_toml(text, "sample.toml", {"HOME": "/nowhere"})
    values = {one.name: getattr(found, one.name) for one in fields(found) if one.name != "source"}
    return {**{name: value for name, value in values.items() if not callable(value)}, "origin": found.origin}


def test_the_sample_changes_nothing() -> None:
    assert loaded(settings.sample()) == loaded("")


def test_the_sample_names_every_key() -> None:
    plain = "\n".join(line.removeprefix("# ") for line in settings.sample().splitlines())
    named = {line.partition(" = ")[0] for line in plain.splitlines() if " = " in line}
    shown = {one.key for table in TABLES for one in table.settings if one.text or one.example}
    assert shown | {one.key for one in TOP} <= named


NEEDED = {"loopback": 'address = "loop@example.org"\n', "route": 'relays = ["default"]\n'}


@pytest.mark.parametrize("table", [table for table in TABLES if table.optional], ids=lambda table: table.name)
def test_the_defaults_of_a_table_that_is_not_there_are_its_defaults(table: Table) -> None:
    start = f"{table.heading}\n{NEEDED.get(table.name, '')}"
    for one in table.settings:
        if one.default:
            assert loaded(f"{start}{one.key} = {one.default}\n") == loaded(start), one.key


EXAMPLES = [(table, one) for table in TABLES for one in table.settings if one.example]


@pytest.mark.parametrize("one", [one for one in TOP if one.example], ids=lambda one: one.key)
def test_an_example_at_the_top_is_valid_and_changes_something(one: Setting) -> None:
    assert loaded(f"{one.key} = {one.example}\n") != loaded("")


@pytest.mark.parametrize(
    ("table", "one"), EXAMPLES, ids=[f"{table.name}.{one.key}" for table, one in EXAMPLES]
)
def test_an_example_in_a_table_is_valid_and_changes_something(table: Table, one: Setting) -> None:
    example = one.example.replace("…", "a" * 64)
    needed = {"relay": 'url = "smtp://me@smtp.example.org"\n', **NEEDED}.get(table.name, "")
    beside = "" if needed.startswith(f"{one.key} =") else needed
    named = "" if table is settings.RELAYS else '[relays.backup]\nurl = "null:"\n'
    without = f"{named}{table.heading}\n{needed}" if beside else named
    assert loaded(f"{named}{table.heading}\n{beside}{one.key} = {example}\n") != loaded(without)
