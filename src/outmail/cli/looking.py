"""``outmail show``, ``log``, ``events``, ``explain`` and ``config``: commands that only read.

Promises: no control character of a mail or a server's reply reaches the terminal, but with ``show --raw``.
Fails: `NotFound` (66) for what is not there. Does not: change the store, or make one.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial

from outmail.cli.common import config_of, in_words, named_id, past, queue_of
from outmail.cli.exits import EX_NOINPUT
from outmail.cli.explanations import explanation, unknown
from outmail.cli.terminal import when
from outmail.model import Event
from outmail.outbox.queue import Queue
from outmail.policy.plain import as_json, plain_line


def show(arguments: argparse.Namespace) -> int:
    """One message."""
    with queue_of(arguments, reading=True) as queue:
        id = named_id(queue, arguments.id)
        if arguments.raw:
            sys.stdout.buffer.write(queue.content(id))
            sys.stdout.buffer.flush()
            return 0
        if arguments.text:
            print(*map(plain_line, _as_read(queue.content(id))), sep="\n")
            return 0
        status = queue.status(id)
        moment = partial(when, utc=arguments.utc)
        story = [] if arguments.json else queue.story(id, moment)
    if arguments.json:
        print(as_json(status.as_dict()))
        return 0
    lines = {
        "id": status.id,
        "message-id": status.message_id,
        "from": status.sender or "<>",
        "subject": status.subject,
        "size": f"{status.size} bytes, sha256 {status.sha256}",
        "accepted": f"{moment(status.accepted_at)}, expires {moment(status.expires_at)}",
        "key": status.key,
        "tag": status.tag,
    }
    for name, value in lines.items():
        if value is not None:
            print(plain_line(f"{name:<10} {value}"))
    for r in status.recipients:
        print(plain_line(f"  {r.n}. {r.address} via {r.route}: {in_words(r, utc=arguments.utc)}"))
    print("", *map(plain_line, story), sep="\n")
    return 0


def _as_read(content: bytes) -> list[str]:
    """Lines: what a mail program shows of a message, as far as it is text."""
    from outmail.mime.view import shown_fields, view

    found = view(content)
    return [
        *(f"{name}: {value}" for name, value in shown_fields(content)),
        "",
        *(found.text or found.html).splitlines(),
        *(f"[attachment: {part.name}, {part.type}, {part.size:,} bytes]" for part in found.attachments),
    ]


def log(arguments: argparse.Namespace) -> int:
    """Every attempt."""
    with queue_of(arguments, reading=True) as queue:
        id = named_id(queue, arguments.id)
        attempts = queue.attempts(id)
        people = {r.n: r.address for r in queue.status(id).recipients}
        story = [] if arguments.jsonl else queue.story(id, partial(when, utc=arguments.utc))
    if story:
        print(*map(plain_line, story), "", sep="\n")
    for attempt in attempts:
        if arguments.jsonl:
            print(as_json(attempt.as_dict()))
            continue
        to = ", ".join(people.get(n, f"recipient {n}") for n in attempt.recipients)
        print(
            plain_line(
                f"{when(attempt.at, utc=arguments.utc)} {attempt.outcome} {to} via {attempt.where} "
                f"in {attempt.duration_ms} ms: {attempt.reply}"
            )
        )
        for line in attempt.transcript if len(attempt.transcript) > 1 else ():
            print(
                f"  {line['ms']:>6} {line['dir']}: "
                + "\n            ".join(map(plain_line, line["line"].split("\n")))
            )
    return 0


def events(arguments: argparse.Namespace) -> int:
    """What happened."""
    with queue_of(arguments, reading=True) as queue:
        after = _beginning(queue, arguments)
        while True:
            for event in queue.events(after):
                after = event.cursor
                words = as_json(event.as_dict()) if arguments.jsonl else _event(event, arguments.utc)
                print(words, flush=True)
            if not arguments.follow:
                return 0
            time.sleep(0.2)


def _beginning(queue: Queue, arguments: argparse.Namespace) -> int:
    """The cursor after which events are shown; ``--follow`` alone begins now."""
    if arguments.after is not None:
        return int(arguments.after)
    if arguments.since is not None:
        return queue.cursor_at(past("--since", arguments.since))
    return queue.last_cursor() if arguments.follow else 0


def _event(event: Event, utc: bool) -> str:
    who = f"{event.id}/{event.n} {event.address}" if event.n else event.id or event.route
    to = f" to {event.route}" if event.id and event.route else ""
    reason = f" {event.reason}" if event.reason else ""
    return plain_line(f"{event.cursor} {when(event.at, utc=utc)} {event.event} {who}{to}{reason}")


def explain(arguments: argparse.Namespace) -> int:
    """What a code or a server's reply means."""
    found = explanation(" ".join(arguments.code))
    if found is None:
        print(unknown(" ".join(arguments.code)), file=sys.stderr)
        return EX_NOINPUT
    print("\n".join(map(plain_line, found)))
    return 0


def config(arguments: argparse.Namespace) -> int:
    """The configuration in force, without passwords. Or with --hash the hash of a password from stdin, for
    [listen] users_file; with --sample a file that says all defaults.
    """
    if arguments.sample:
        from outmail.policy import settings

        print(settings.sample(), end="")
        return 0
    if arguments.hash:
        from outmail.intake.logins import hashed

        print(hashed(sys.stdin.readline().rstrip("\r\n")))
        return 0
    found = config_of(arguments).as_dict()
    if arguments.json:
        print(as_json(found))
    else:
        for key, value in found.items():
            print(f"{key:<12} {value if isinstance(value, str) else as_json(value)}")
    return 0
