"""A shop in FastAPI with SQLAlchemy's asyncio: an order and its mail are one transaction.

Run: python shop_fastapi.py QUEUE RELAY, for example: python shop_fastapi.py mail.db smtp://localhost:25
"""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import outmail

queue, relay = sys.argv[1:3]
database = Path(queue).with_name("shop.db")
os.environ.setdefault("OUTMAIL_OUTBOX", str(database))  # or [[outbox]] url = "…" in outmail.toml
engine = create_async_engine(f"sqlite+aiosqlite:///{database}")


@asynccontextmanager
async def life(app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:  # your migrations
        await connection.execute(
            text("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL UNIQUE)")
        )
        await connection.execute(text(outmail.outbox_ddl("sqlite")))
    async with outmail.AsyncOutbox(queue, relay=relay) as app.state.box:
        yield
    await engine.dispose()


app = FastAPI(lifespan=life)


@app.post("/orders/{item}", status_code=201)
async def order(item: str, customer: str) -> dict[str, str]:
    try:
        async with AsyncSession(engine) as session, session.begin():
            receipt = await app.state.box.send(
                customer, "Your order", f"Thank you for {item}.", sender="shop@example.org", using=session
            )
            await session.execute(text("INSERT INTO orders (item) VALUES (:item)"), {"item": item})
    except IntegrityError:
        raise HTTPException(409, "sold out") from None
    return {"mail": receipt.id}


if __name__ == "__main__":
    with TestClient(app) as client:
        for item in ("chair", "table", "chair"):  # the second chair breaks the rule that items are unique
            print(
                item, client.post(f"/orders/{item}", params={"customer": f"{item}@example.org"}).status_code
            )
    with outmail.Outbox(queue, deliver="never") as look:
        for status in look.find():
            print(status.recipients[0].address, status.status)
