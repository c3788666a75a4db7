"""Another route for mail that waits: while engines work, are killed, or know neither of the two."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from outmail.errors import ConfigError
from outmail.outbox.outbox import Outbox
from outmail.testing import Sink
from tests.campaigns.reroutes import campaign
from tests.waiting import until

MakeBox = Callable[..., Outbox]


def test_mail_for_a_relay_that_is_not_there_goes_out_by_another(sink: Sink, make_box: MakeBox) -> None:
    lost = make_box(relay="smtp://localhost:1")
    id = lost.send("a@x.test", "s", "t").id
    until(lambda: lost.status(id).recipients[0].attempts)
    box = make_box(relay=sink.url)
    assert box.queue.reroute("route:smtp://localhost:1", sink.url) == 1
    assert box.wait(id, 10).status == "delivered" and len(sink.messages) == 1
    assert box.status(id).recipients[0].route == sink.url
    assert "reroute" in [event.event for event in box.events()]


def test_only_relays_that_this_process_knows(make_box: MakeBox) -> None:
    box = make_box(relay="smtps://me:secret@isp.example", deliver="never")
    id = box.send("a@x.test", "s", "t").id
    for relay in ("backup", "sendmail:/usr/sbin/sendmail", "smtps://you@isp.example"):
        with pytest.raises(ConfigError):
            box.queue.reroute(id, relay)
    assert box.queue.reroute(id, "default") == 1
    assert box.queue.reroute(id, "smtps://me:other@isp.example") == 1
    assert box.status(id).recipients[0].route == "smtps://me@isp.example:465"


def test_what_is_sent_while_it_is_rerouted_arrives_once_and_says_where(sink: Sink, make_box: MakeBox) -> None:
    sink.script("DOT: delay 0.5")
    box = make_box(relay=sink.url)
    id = box.send("a@x.test", "s", "t").id
    until(lambda: box.status(id).status == "sending")
    assert box.queue.reroute(id, "smtp://localhost:1") == 1
    assert box.wait(id, 10).status == "delivered" and len(sink.messages) == 1
    assert box.status(id).recipients[0].route == sink.url


def test_a_few_random_moments(tmp_path: Path) -> None:
    """The small form of `tests/campaigns/reroutes.py`."""
    seed = random.SystemRandom().randrange(1 << 32)
    bad, states = campaign(tmp_path, kills=2, count=40, seed=seed)
    assert not bad, seed
    assert states["delivered"] > 10
