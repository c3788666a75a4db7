"""``mq-send-test [CONFIG] [QUEUE] --to=A``: a test message straight to the server, as `outmail test` does.

Promises: those of `outmail test`: every step is shown, each trouble is explained, nothing is queued.
Fails: 69 when the server refused, 75 when it may work later; 64 usage, 65 an address, 78 configuration. Does
not: look into the queue directory.
"""

from __future__ import annotations

import contextlib
import os
import sys

from outmail.cli import trial
from outmail.compat.mailqueue.run import configured, places
from outmail.compat.mailqueue.settings import advise, config_of
from outmail.compat.programs import Parser, ended, teller
from outmail.system import trust

tell = teller("mq-send-test")


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit status."""
    return ended("mq-send-test", lambda: _test(sys.argv[1:] if argv is None else argv))


def _test(argv: list[str]) -> int:
    words = _parser().parse_args(argv)
    config, folder = places(words.config, words.places)
    ini = configured(config)
    advise(ini, tell)
    if ini.text("smtp_password"):
        trust.warn_if_open(ini.path, "the configuration, which holds a password,")
    folder = folder or ini.place("queue_dir")
    if folder and not os.path.isdir(folder):
        tell(f"there is no queue directory {folder} yet")
    with contextlib.ExitStack() as stack:
        if words.quiet:
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        found = config_of(ini, folder or os.curdir, tell=tell)
        sender = words.sender or found.sender or words.to
        return trial.verdict(*trial.attempted(found, words.to, sender))


def _parser() -> Parser:
    parser = Parser(
        prog="mq-send-test",
        description="Send a test message straight to the server of an ini file of mailqueue-runner.",
        epilog="Exit status: 0 accepted; 64 usage; 65 an address; 69 refused; 75 it may work later; 78 "
        "configuration.",
    )
    parser.add_argument("places", nargs="*", metavar="CONFIG QUEUE", help="either may be left out")
    parser.add_argument("-C", "--config", metavar="CFG", help="the ini file, instead of the first word")
    parser.add_argument("--to", required=True, metavar="ADDRESS", help="the recipient")
    parser.add_argument("--from", dest="sender", metavar="ADDRESS", help="the sender; else `from`, else --to")
    parser.add_argument("--quiet", action="store_true", help="say nothing; the exit status tells")
    parser.add_argument("-v", "--verbose", action="store_true", help="accepted: every step is shown anyway")
    return parser


if __name__ == "__main__":
    sys.exit(main())
