"""mailqueue-runner's look-up of aliases, by outmail's rules (`policy.aliases`).

Better than there: continuation lines, quotes, upper and lower case, and circles are known.
Fails: `outmail.policy.aliases.AliasError`, a ValueError.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from outmail.policy.aliases import AliasError, Directory, parse

_SYSTEM = "/etc/aliases"


def lookup_address(
    address: str, _aliases: Mapping[str, Sequence[str]] | None = None
) -> tuple[str, ...] | None:
    """The addresses that a name stands for; an address is itself; None for a name that nobody knows."""
    if "@" in address:
        return (address,)
    names = _aliases or _system()
    if not names:
        return None
    found = Directory(
        frozenset(("localhost",)),
        {name.lower(): tuple(targets) for name, targets in names.items()},
        lambda user: False,
        _no_file,
    ).expand(address)
    return tuple(found) if found else None


def lookup_adresses(
    recipients: Sequence[str],
    aliases: Mapping[str, Sequence[str]] | None,
    msg_recipients: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """The addresses of several names, each once. Names that nobody knows are left out."""
    names = [*recipients, *(msg_recipients or ())]
    return tuple(dict.fromkeys(one for name in names for one in lookup_address(name, aliases) or ()))


def _parse_aliases(src: Any) -> dict[str, list[str]]:
    """A path or an open text file → names."""
    if hasattr(src, "read"):
        text = src.read()
    else:
        with open(src, encoding="utf-8") as file:
            text = file.read()
    return {name: list(targets) for name, targets in parse(text, str(src)).items()}


def _system() -> dict[str, list[str]]:
    return _parse_aliases(_SYSTEM) if os.path.exists(_SYSTEM) else {}


def _no_file(path: str) -> str:
    raise AliasError(f":include: {path} is read by the receiving server only")
