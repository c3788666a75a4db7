"""A shop in Flask with SQLAlchemy: an order and its mail are one transaction.

Run: python shop_flask.py QUEUE RELAY, for example: python shop_flask.py mail.db smtp://localhost:25
"""

import os
import sys
from pathlib import Path

from flask import Flask, request
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

import outmail

queue, relay = sys.argv[1:3]
database = Path(queue).with_name("shop.db")
os.environ.setdefault("OUTMAIL_OUTBOX", str(database))  # or [[outbox]] url = "…" in outmail.toml

engine = create_engine(f"sqlite:///{database}")
box = outmail.Outbox(queue, relay=relay)  # delivers by itself; with a service on this queue: deliver="never"
app = Flask(__name__)

with engine.begin() as connection:  # your migrations
    connection.execute(
        text("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL UNIQUE)")
    )
    connection.execute(text(outmail.outbox_ddl("sqlite")))


@app.post("/orders")
def order() -> tuple[str, int]:
    with Session(engine) as session, session.begin():
        box.send(
            request.form["customer"],
            "Your order",
            f"Thank you for {request.form['item']}.",
            sender="shop@example.org",
            using=session,
        )
        session.execute(text("INSERT INTO orders (item) VALUES (:item)"), {"item": request.form["item"]})
    return "ordered\n", 201


if __name__ == "__main__":
    client = app.test_client()
    for item in ("chair", "table", "chair"):  # the second chair breaks the rule that items are unique
        answer = client.post("/orders", data={"item": item, "customer": f"{item}@example.org"})
        print(item, answer.status_code)
    box.close()
    with outmail.Outbox(queue, deliver="never") as look:
        for status in look.find():
            print(status.recipients[0].address, status.status)
