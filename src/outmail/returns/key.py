"""The key that signs loopback tokens: one for each store, made on first use.

Where: beside a SQLite store, in the file ``<store>.loopback.key``, which only its owner may read; in the
store itself on PostgreSQL, because engines on all hosts sign and several places may hear what comes home, so
that whoever may read that database may make tokens (what they are worth: `docs/loopback.md`).
Promises: a key appears whole under its name, and on disk, before a token is made with it; of several makers
one wins, and all use its key. It is never part of an export or a move: what tokens name are one store's own
numbers.
Fails: `ConfigError` for a key that cannot be made or read, that others may read, or that is no key.
Does not: rotate keys: to do so remove the file; tokens that are under way then count as forged.
"""

from __future__ import annotations

import os
import stat

from outmail.errors import ConfigError
from outmail.store import Store
from outmail.system.lockfile import sync_folder

#: Octets of a key.
LENGTH = 32


def signing_key(store: Store) -> bytes:
    """The store's key."""
    return _in_store(store) if store.blocking else _in_file(path_of(store))


def path_of(store: Store) -> str:
    """Where the key of a SQLite store is."""
    return f"{store.spool.removesuffix('.spool')}.loopback.key"


def _in_store(store: Store) -> bytes:
    while True:
        found = store.read(store.verbs.note_get("loopback", "key"))
        if found:
            return _checked(bytes.fromhex(str(found[0])), "the note loopback/key of the store")
        store.run(store.verbs.note_put("loopback", "key", os.urandom(LENGTH).hex(), 0))


def _in_file(path: str) -> bytes:
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except OSError as problem:
        raise _unusable(path, problem) from None
    try:
        _make(path)
        return _read(path)
    except OSError as problem:
        raise _unusable(path, problem) from None


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_IMODE(mode) & 0o077 and hasattr(os, "geteuid"):
            raise ConfigError(
                f"{path} is not used: others may read it, and make loopback tokens with it",
                hint=f"remove it, so that a new key is made, or: chmod go= {path}",
            )
        return _checked(file.read(LENGTH + 1), path)


def _checked(key: bytes, where: str) -> bytes:
    if len(key) != LENGTH:
        raise ConfigError(
            f"{where} is no key: it has {len(key)} bytes where {LENGTH} belong",
            hint="remove it, so that a new key is made",
        )
    return key


def _make(path: str) -> None:
    """Whole, on disk, and then by its name; one that is there already stays."""
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(fd, os.urandom(LENGTH))
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        sync_folder(os.path.dirname(path))
    finally:
        os.unlink(temporary)


def _unusable(path: str, problem: OSError) -> ConfigError:
    return ConfigError(
        f"the key of the loopback tokens, {path}, cannot be used: {problem.strerror}",
        hint="the user who runs outmail must be able to make and to read that file",
    )
