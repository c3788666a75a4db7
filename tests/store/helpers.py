"""Messages and moves for the stores' tests."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from outmail.model import Delivery, Message, Outcome, Recipient, Reply, Settled, Verdict, keyed_id, new_id
from outmail.store import Store
from outmail.store.postgres import PostgresStore
from outmail.store.sqlite import SqliteStore
from tests import pgserver

NOW = 1_800_000_000_000
KINDS = ["apsw", "stdlib", *(f"postgresql-{version}" for version in pgserver.installed())]


@contextlib.contextmanager
def opened(kind: str, folder: Path) -> Iterator[Any]:
    """An empty store of a kind."""
    if not kind.startswith("postgresql"):
        made: Any = SqliteStore(str(folder / "q.db"), kind)
        yield made
        made.close()
        return
    with pgserver.database(kind.partition("-")[2]) as url:
        made = PostgresStore(url, str(folder / "q"))
        try:
            yield made
        finally:
            for owner in list(made._owners):
                owner.file.abandon()
            made.close()


def message(*to: str, destination: str = "default", priority: int = 1, now: int = NOW, due: int | None = None, content: bytes = b"A: b\r\n\r\n", key: str | None = None, expires: int = 10**9) -> Message:
    id = new_id(now) if key is None else keyed_id(key)
    people = tuple(Recipient(address, destination) for address in to or ("a@x.test",))
    return Message(id, content, "me@x.test", people, f"<{id}@x>", "subject", hashlib.sha256(content).digest(), 0, now, due or now, now + expires, priority, key)


def add(store: Store, *messages: Message) -> Any:
    return [one[:4] for one in store.run(store.verbs.add(list(messages)))]


def lease(store: Store, owner: Any, n: int = 10, now: int = NOW, number: int = 1, destination: str = "default") -> list[Delivery]:
    return store.run(store.verbs.lease(owner.id, number, {destination: n}, now))


def settle(store: Store, owner: Any, delivery: Delivery, event: str, kind: str = "deferred", due: int = NOW, now: int = NOW) -> int:
    outcome = Outcome(kind, "recipient", "dot", Reply(250, "text"))  # type: ignore[arg-type]
    for r in delivery.recipients:
        r.outcome = outcome
    item = Settled(delivery, tuple((r, Verdict(event, due, "why")) for r in delivery.recipients), now, 5, True)
    return store.run(store.verbs.settle(owner.id, [item]))


def standing(store: Store, id: str, n: int = 1) -> Any:
    seq = store.read(store.verbs.seq_of(id))
    return store.read(store.verbs.statuses([seq]))[0].recipients[n - 1]


