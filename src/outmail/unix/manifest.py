"""What `outmail init` has done to this machine: a file beside the configuration, so that ``init --undo``
takes back exactly that.

Promises: an entry is on disk before its step begins, so a set-up that is killed anywhere can be taken back. A
file is on disk, whole, or not there (`write`). Of files there are the hashes only; that of a secret is salted
and slow, so that a good password cannot be guessed from it. Only the owner reads the manifest (0600).
Fails: OSError; `ConfigError` for a manifest that somebody else may have written. Does not: do or undo
anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from outmail.errors import ConfigError
from outmail.system import trust

SUFFIX = ".init.json"
#: The end of the name of a file that is just being written.
_HALF = ".half"
Entry = dict[str, Any]


def note_of(content: bytes, *, secret: bool = False) -> str:
    """What the manifest notes of a file's content: ``sha256:HEX``, or for a secret ``scrypt:SALT:HEX``."""
    if not secret:
        return f"sha256:{hashlib.sha256(content).hexdigest()}"
    return _scrypt(content, os.urandom(16).hex())


def is_noted(content: bytes, notes: Iterable[str]) -> bool:
    """True if one of the notes is of this content."""
    return any(note == _as_in(note, content) for note in notes)


def _as_in(note: str, content: bytes) -> str:
    kind, _, rest = note.partition(":")
    return _scrypt(content, rest.partition(":")[0]) if kind == "scrypt" else note_of(content)


def _scrypt(content: bytes, salt: str) -> str:
    """With 16 MiB and some 50 ms for each guess (RFC 7914: N = 2^14, r = 8, p = 1)."""
    key = hashlib.scrypt(content, salt=bytes.fromhex(salt), n=1 << 14, r=8, p=1, dklen=32)
    return f"scrypt:{salt}:{key.hex()}"


def read(path: str) -> bytes | None:
    """The content of a regular file or of what a link leads to; None where there is nothing."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def write(path: str, content: bytes, mode: int, uid: int = -1, gid: int = -1) -> None:
    """Write a file so that it appears whole; a secret in it was never readable by others."""
    temporary = path + _HALF
    remove_half(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            if uid != -1 or gid != -1:
                os.fchown(fd, uid, gid)
            os.fchmod(fd, mode)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        remove_half(path)
        raise
    _sync(os.path.dirname(path))


def remove_half(path: str) -> None:
    """Remove what a killed `write` may have left."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path + _HALF)


def _sync(folder: str) -> None:
    fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass
class Manifest:
    """``entries`` in the order in which they were done."""

    path: str
    entries: list[Entry] = field(default_factory=list)
    scope: str = ""

    @classmethod
    def load(cls, path: str) -> Manifest | None:
        """None where nothing was set up."""
        try:
            file = trust.read(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if file.doubt:
            raise ConfigError(f"{path} is not used, because {file.doubt}")
        try:
            data = json.loads(file.content)
            return cls(path, list(data["entries"]), str(data["scope"]))
        except (ValueError, KeyError, TypeError) as problem:
            raise ConfigError(f"{path} is damaged: {problem!r}") from None

    def save(self) -> None:
        """Write it; without entries there is no file."""
        if not self.entries:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            return
        data = {"v": 1, "scope": self.scope, "entries": self.entries}
        write(self.path, json.dumps(data, indent=1).encode() + b"\n", 0o600)

    def entry(self, kind: str, path: str) -> Entry | None:
        """What was noted of a path."""
        return next((one for one in self.entries if one["kind"] == kind and one.get("path") == path), None)

    def note(self, kind: str, **words: Any) -> Entry:
        """Note a step that begins now; on disk when this returns."""
        made: Entry = {"kind": kind, **words}
        self.entries.append(made)
        self.save()
        return made

    def forget(self, entry: Entry) -> None:
        """A step was taken back."""
        self.entries = [one for one in self.entries if one is not entry]
