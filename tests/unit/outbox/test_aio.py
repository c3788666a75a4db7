"""AsyncOutbox: every verb of Outbox, in a loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

from outmail import AsyncOutbox
from outmail.config import from_toml


def test_the_verbs_of_a_queue(tmp_path: Path) -> None:
    async def story() -> None:
        config = from_toml('from = "me@x.test"\n', "test", {})
        box = AsyncOutbox(tmp_path / "q.db", config=config, deliver="never")
        words = {"sender": "me@x.test", "recipients": "a@x.test"}
        receipts = await box.submit_many({"content": b"A: b\r\n\r\n", **words} for _ in range(2))
        first, second = (receipt.id for receipt in receipts)
        assert await box.hold(first) == 1 and (await box.status(first)).status == "held"
        assert await box.release(first) == 1 and (await box.status(first)).status == "queued"
        assert await box.retry(second) == 1
        assert await box.cancel(second) == 1 and await box.requeue(second) == 1
        assert [status.status async for status in box.find()] == ["queued"] * 2
        said = [event.event async for event in box.events()]
        assert said == ["accepted", "accepted", "hold", "release", "due", "cancel", "requeue"]
        assert [event.event async for event in box.events(after=5)] == ["cancel", "requeue"]
        assert box.on("delivered")(print) is print
        assert not box.closed
        await box.close()
        assert box.closed

    asyncio.run(story())
