"""The key that signs loopback tokens: one for each store, made on first use.

Where: beside a SQLite store in the file ``<store>.loopback.key``, which only its owner may read. On
PostgreSQL in the store itself, because engines on all hosts sign, and copies may come home at several places;
so whoever can read that database can make tokens (docs/loopback.md says what they are worth).
Promises: before a token is made, the key is complete under its name and on disk. When several processes make
a key, one wins and all use its key. The key is never part of an export or a move, because tokens refer to
numbers of one store.
Fails: `ConfigError` when the key cannot be made or read, when others can read it, or when it is no key.
Does not: rotate keys. To do that remove the file; tokens that are on their way then count as forged.
"""

from __future__ import annotations

import os
import stat

from outmail.errors import ConfigError
from outmail.store import Store
from outmail.system.lockfile import write_once

#: How many octets a key has.
LENGTH = 32


def signing_key(store: Store) -> bytes:
    """The key of the store."""
    return _in_store(store) if store.blocking else _in_file(path_of(store))


def path_of(store: Store) -> str:
    """The file with the key of a SQLite store."""
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
        write_once(path, os.urandom(LENGTH), 0o600)
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


def _unusable(path: str, problem: OSError) -> ConfigError:
    return ConfigError(
        f"the key of the loopback tokens, {path}, cannot be used: {problem.strerror}",
        hint="the user who runs outmail must be able to make and to read that file",
    )
