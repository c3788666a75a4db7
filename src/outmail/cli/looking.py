"""``outmail show``, ``log``, ``events``, ``why``, ``explain`` and ``config``: they only look."""

from __future__ import annotations

import argparse
import sys
import time

from outmail.cli.common import config_of, in_words, queue_of, tell_engines, tell_stranded
from outmail.cli.exits import EX_NOINPUT
from outmail.cli.explanations import CODES
from outmail.clock import rfc3339
from outmail.errors import NotFound
from outmail.model import is_id
from outmail.policy.plain import as_json, plain_line


def show(arguments: argparse.Namespace) -> int:
    """One message."""
    with queue_of(arguments) as queue:
        if arguments.raw:
            sys.stdout.buffer.write(queue.content(arguments.id))
            sys.stdout.buffer.flush()
            return 0
        status = queue.status(arguments.id)
        if arguments.json:
            print(as_json(status.as_dict()))
            return 0
        print(
            f"id         {status.id}\nmessage-id {plain_line(status.message_id)}\nfrom       "
            f"{plain_line(status.sender or '<>')}\nsubject    {plain_line(status.subject)}"
        )
        print(
            f"size       {status.size} bytes, sha256 {status.sha256}\naccepted   "
            f"{rfc3339(status.accepted_at)}, expires {rfc3339(status.expires_at)}"
        )
        for name in ("key", "tag"):
            if getattr(status, name):
                print(plain_line(f"{name:<10} {getattr(status, name)}"))
        for r in status.recipients:
            print(plain_line(f"  {r.n}. {r.address} via {r.route}: {in_words(r)}"))
        return 0


def log(arguments: argparse.Namespace) -> int:
    """Every attempt."""
    with queue_of(arguments) as queue:
        attempts = queue.attempts(arguments.id)
    for attempt in attempts:
        if arguments.jsonl:
            print(as_json(attempt.as_dict()))
            continue
        print(
            plain_line(
                f"{rfc3339(attempt.at)} {attempt.outcome} recipients "
                f"{','.join(map(str, attempt.recipients))} via {attempt.host or attempt.route}"
                f" in {attempt.duration_ms} ms: {attempt.reply}"
            )
        )
        for line in attempt.transcript:
            print(
                f"  {line['ms']:>6} {line['dir']}: "
                + "\n            ".join(map(plain_line, line["line"].split("\n")))
            )
    return 0


def events(arguments: argparse.Namespace) -> int:
    """What happened."""
    with queue_of(arguments) as queue:
        after = arguments.after
        while True:
            for event in queue.events(after):
                after = event.cursor
                if arguments.jsonl:
                    print(as_json(event.as_dict()), flush=True)
                else:
                    who = f"{event.id}/{event.n} {event.address}" if event.n else event.id
                    print(
                        plain_line(
                            f"{event.cursor} {rfc3339(event.at)} {event.event} {who}"
                            + (f" {event.reason}" if event.reason else "")
                        ),
                        flush=True,
                    )
            if not arguments.follow:
                return 0
            time.sleep(0.2)


def why(arguments: argparse.Namespace) -> int:
    """The story in sentences."""
    with queue_of(arguments) as queue:
        if is_id(arguments.what):
            stories = [queue.status(arguments.what)]
        else:
            stories = list(queue.find(to=arguments.what))
        if not stories:
            raise NotFound(f"no message to {arguments.what} is in the queue's records")
        for status in stories:
            print(
                plain_line(
                    f"{status.id} “{status.subject}” from {status.sender or '<>'}, accepted "
                    f"{rfc3339(status.accepted_at)}"
                )
            )
            for r in status.recipients:
                print(plain_line(f"  {r.address}: {in_words(r)}"))
            for attempt in queue.attempts(status.id):
                print(
                    plain_line(
                        f"    {rfc3339(attempt.at)} {attempt.host or attempt.route}: {attempt.outcome}; "
                        f"{attempt.reply}"
                    )
                )
        tell_engines(queue)
        tell_stranded(queue, arguments)
        return 0


def explain(arguments: argparse.Namespace) -> int:
    """What a code means."""
    text = CODES.get(arguments.code)
    if text is None:
        print(f"outmail: no code {arguments.code!r}; known are {', '.join(sorted(CODES))}", file=sys.stderr)
        return EX_NOINPUT
    print(text)
    return 0


def config(arguments: argparse.Namespace) -> int:
    """The configuration in force, without passwords; or with --hash, a password from stdin hashed for
    [listen] users_file.
    """
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
