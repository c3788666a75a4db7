"""Registering an engine with its store, unless the queue is being moved to another store.

Promises: nobody is moving the queue on which a registered engine works.
Fails: `ConfigError` while the queue is being moved; `StoreError` of the store.
Does not: try again (`engine`), or know what is leased.
"""

from __future__ import annotations

from typing import Any

from outmail.errors import ConfigError
from outmail.store import Store


def register(store: Store, now: int) -> Any:
    """A new owner of leases (`Store.register`)."""
    owner = store.register(now)
    _refuse_when_moving(store, owner)
    return owner


def _refuse_when_moving(store: Store, owner: Any) -> None:
    """Called after the engine is registered. `ops.move` writes its note first and then looks for engines, so
    one of the two always sees the other.
    """
    found = store.read(store.verbs.note_get("store", "moving"))
    if found:
        owner.close()
        raise ConfigError(
            f"the queue is being moved to {found[0]['to']}",
            hint=f"finish that first: outmail move {store.url} {found[0]['to']}, or give it up: "
            f"outmail move --abandon {store.url}",
        )
