"""aliases(5): who gets mail for a name.

Promises: pure (``:include:`` files are read by a function that is passed in). Names are compared in lower
case. Expansion always ends, and its depth, steps and bytes read are bounded. A name that leads to itself
means the user; a circle of several names is an error. The rules are the table in docs/receive.md, with one
test for each row.
Fails: `AliasError` with file and line. Does not: write to files or pipes, or read ~/.forward (later).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

MAX_TARGETS = 10_000
#: For one name: how many names and files may lead to one another, how many targets are looked at, and how
#: many characters of included files are read.
MAX_DEPTH = 50
MAX_STEPS = 100_000
MAX_INCLUDED = 5_000_000


class AliasError(ValueError):
    """The alias file is wrong."""


def parse(text: str, source: str = "aliases") -> dict[str, tuple[str, ...]]:
    """``name: target, target`` lines → name → targets. A line that begins with white space continues the line
    before.
    """
    found: dict[str, tuple[str, ...]] = {}
    for number, line in _logical(text):
        name, rest = _name(line, f"{source}, line {number}")
        if name in found:
            raise AliasError(f"{source}, line {number}: {name} is defined twice")
        found[name] = tuple(_targets(rest, f"{source}, line {number}"))
        if not found[name]:
            raise AliasError(f"{source}, line {number}: {name} has no target")
    return found


def included(text: str, source: str) -> list[str]:
    """The targets in an ``:include:`` file, which has lists, comments and blank lines."""
    return [
        target for number, line in _logical(text) for target in _targets(line, f"{source}, line {number}")
    ]


def _logical(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, with continuations joined, and the number of their first line."""
    start, current = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0] in " \t" and current:
            current += " " + line.strip()
            continue
        if current:
            yield start, current
        start, current = number, line.strip()
    if current:
        yield start, current


def _name(line: str, where: str) -> tuple[str, str]:
    if line.startswith('"'):
        end = line.find('"', 1)
        name, rest = line[1:end], line[end + 1 :].lstrip()
        if end < 0 or not rest.startswith(":"):
            raise AliasError(f'{where}: write "name": target')
        return name.lower(), rest[1:]
    name, colon, rest = line.partition(":")
    if not colon or not name.strip() or " " in name.strip():
        raise AliasError(f"{where}: write name: target, target")
    return name.strip().lower(), rest


def _targets(text: str, where: str) -> Iterator[str]:
    """Comma-separated targets; commas and white space inside double quotes belong to the target."""
    current, quoted = "", False
    for letter in text + ",":
        if letter == '"':
            quoted = not quoted
        elif letter == "," and not quoted:
            target = current.strip()
            if target:
                yield _checked(target, where)
            current = ""
        elif letter == "#" and not quoted and (not current or current[-1] in " \t"):
            break
        else:
            current += letter
    else:
        if quoted:
            raise AliasError(f"{where}: a quote is not closed")
        return
    if current.strip():
        yield _checked(current.strip(), where)


def _checked(target: str, where: str) -> str:
    if target.startswith(("/", "|")):
        raise AliasError(
            f"{where}: {target!r}: files and pipes are not part of this version yet; use a user, an address "
            f"or :include:/file"
        )
    return target


@dataclass(slots=True)
class Directory:
    """Users and aliases of the local domains. ``knows`` says whether a user exists; ``read`` returns the text
    of an included file.
    """

    domains: frozenset[str]
    aliases: Mapping[str, tuple[str, ...]]
    knows: Callable[[str], bool]
    read: Callable[[str], str]
    _steps: int = 0
    _included: int = 0

    def is_local(self, domain: str) -> bool:
        return domain.lower() in self.domains

    def known_as(self, local: str) -> str:
        """The name that `expand` looks up: local parts with the same one lead to the same people."""
        name = local.lower()
        return name if name in self.aliases else name.partition("+")[0]

    def expand(self, local: str) -> list[str] | None:
        """A local part → users (plain names) and addresses elsewhere (with @), each once; None when nobody
        has this name.

        Raises `AliasError` for circles, and when the expansion is too deep or too large.
        """
        self._steps = self._included = 0
        found: dict[str, None] = {}
        if not self._name(local.lower(), (), found):
            return None
        return list(found)

    def _name(self, name: str, path: tuple[str, ...], found: dict[str, None]) -> bool:
        base = name.partition("+")[0]
        for known in dict.fromkeys((name, base)):
            if known in self.aliases and known not in path:
                for target in self.aliases[known]:
                    self._target(target, (*path, known), found)
                return True
        if path and path[-1] in (name, base):  # an alias that names itself means the user
            found[base] = None
            return True
        if name in path or base in path:
            raise AliasError(f"the aliases go round in a circle: {' -> '.join((*path, name))}")
        if self.knows(base):
            found[base] = None
            return True
        return False

    def _target(self, target: str, path: tuple[str, ...], found: dict[str, None]) -> None:
        self._steps += 1
        if len(found) > MAX_TARGETS or self._steps > MAX_STEPS:
            raise AliasError(f"{path[0]} leads to more than {MAX_TARGETS} addresses")
        if len(path) > MAX_DEPTH:
            raise AliasError(f"{path[0]} leads through more than {MAX_DEPTH} names and files")
        if target.lower().startswith(":include:"):
            file = target[9:].strip()
            if f":include:{file}" in path:
                raise AliasError(f"{file} includes itself")
            text = self.read(file)
            self._included += len(text)
            if self._included > MAX_INCLUDED:
                raise AliasError(
                    f"{path[0]} includes more than {MAX_INCLUDED} characters; the last file was {file}"
                )
            for inner in included(text, file):
                self._target(inner, (*path, f":include:{file}"), found)
            return
        local, at, domain = target.rpartition("@")
        if at and not self.is_local(domain):
            found[target] = None
            return
        name = (local if at else target).lower()
        if (
            name in path
            and path[-1] != name
            and not (path[-1].startswith(":include:") and path[-2:-1] == (name,))
        ):
            raise AliasError(f"the aliases go round in a circle: {' -> '.join((*path, name))}")
        if not self._name(name, path, found):
            raise AliasError(f"{path[0]} leads to {target}, whom nobody knows")
