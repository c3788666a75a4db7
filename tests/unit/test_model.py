"""Ids: in order of time, or from a key."""

from outmail.model import is_id, keyed_id, new_id


def test_ids() -> None:
    ids = [new_id(now) for now in range(1_700_000_000_000, 1_700_000_000_050)]
    assert ids == sorted(ids) and all(is_id(id) and len(id) == 26 for id in ids)
    assert (
        keyed_id("a") == keyed_id("a") != keyed_id("b")
        and is_id(keyed_id("a") + "/3")
        and not is_id("state:queued")
    )
