"""aliases(5), a test for each row of the table in docs/receive.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from outmail.policy.aliases import AliasError, Directory, parse

ROOT = Path(__file__).parents[3]


def directory(text: str, files: dict[str, str] | None = None) -> Directory:
    return Directory(
        frozenset(("here.test", "localhost")),
        parse(text),
        {"alice", "bob", "root"}.__contains__,
        lambda name: (files or {})[name],
    )


def expand(text: str, name: str, files: dict[str, str] | None = None) -> list[str] | None:
    return directory(text, files).expand(name)


ROWS = {
    "a user": lambda: expand("", "alice") == ["alice"],
    "nobody": lambda: expand("", "carol") is None,
    "case": lambda: (
        expand("PostMaster: Alice", "postMASTER") == ["alice"] and expand("", "ALICE") == ["alice"]
    ),
    "a list": lambda: expand("team: alice, bob,eve@far.test", "team") == ["alice", "bob", "eve@far.test"],
    "comments and blank lines": lambda: (
        expand("# top\n\nteam: alice # not bob, carol\n", "team") == ["alice"]
    ),
    "continuation": lambda: (
        expand("team: alice,\n\tbob\n  , eve@far.test\n", "team") == ["alice", "bob", "eve@far.test"]
    ),
    "quotes": lambda: expand('"my team": "alice", bob', "my team") == ["alice", "bob"],
    "recursion": lambda: expand("a: b\nb: c, bob\nc: alice", "a") == ["alice", "bob"],
    "itself": lambda: expand("alice: alice, bob", "alice") == ["alice", "bob"],
    "each once": lambda: expand("a: alice, b\nb: alice, bob", "a") == ["alice", "bob"],
    "+tag": lambda: (
        expand("alice+news: bob", "alice+news") == ["bob"] and expand("", "alice+other") == ["alice"]
    ),
    ":include:": lambda: (
        expand("list: :include:/l, bob", "list", {"/l": "# people\nalice,\n eve@far.test\n"})
        == ["alice", "eve@far.test", "bob"]
    ),
    "a local address": lambda: expand("a: bob@HERE.test", "a") == ["bob"],
}


@pytest.mark.parametrize("row", ROWS)
def test_rows(row: str) -> None:
    assert ROWS[row]()
    assert f"| {row} |" in (ROOT / "docs" / "receive.md").read_text()


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("a: b\nb: a", "a", "circle"),
        ("a: b\nb: c\nc: a", "b", "circle"),
        ("a: nobody", "a", "nobody knows"),
        ("l: :include:/l", "l", "includes itself"),
    ],
)
def test_circles_and_dead_ends_are_errors(text: str, name: str, words: str) -> None:
    with pytest.raises(AliasError, match=words):
        expand(text, name, {"/l": ":include:/l"})


@pytest.mark.parametrize(
    "text", ["no colon", "a b: c", 'a: "open', "a:", "a: alice\na: bob", "a: |program", "a: /file", '"a: b']
)
def test_wrong_lines_are_told(text: str) -> None:
    with pytest.raises(AliasError):
        parse(text)


def test_expansion_is_bounded_in_depth_steps_and_bytes() -> None:
    chain = "\n".join(f"a{i}: a{i + 1}" for i in range(5000)) + "\na5000: alice"
    with pytest.raises(AliasError, match="more than 50 names"):
        expand(chain, "a0")
    doubled = (
        "\n".join(f"a{i}: b{i}, c{i}\nb{i}: a{i + 1}\nc{i}: a{i + 1}" for i in range(24)) + "\na24: alice"
    )
    with pytest.raises(AliasError, match="leads to more than"):
        expand(doubled, "a0")
    with pytest.raises(AliasError, match="includes more than"):
        expand("list: :include:/l, :include:/l", "list", {"/l": "# " + "x" * 3_000_000})
    nested = {f"/{i}": f":include:/{i + 1}" for i in range(1000)}
    with pytest.raises(AliasError, match="more than 50 names"):
        expand("list: :include:/0", "list", nested)


@pytest.mark.parametrize("make", ["pipe", "folder", "endless", "long", "missing"])
def test_an_included_file_is_regular_and_bounded(tmp_path: Path, make: str) -> None:
    import os

    from outmail.service import prepared

    path = tmp_path / "list"
    if make == "pipe":
        os.mkfifo(path)
    elif make == "folder":
        path.mkdir()
    elif make == "endless":
        path = Path("/dev/zero")
    elif make == "long":
        path.write_bytes(b"#" * 6_000_000)
    with pytest.raises((AliasError, OSError)):
        prepared._text_of(str(path))
