"""Hostile text costs no more than its length: every regular expression of the package, and every function
that sees foreign bytes.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import logging
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

import pytest

import outmail
from outmail import clock
from outmail.errors import Refused
from outmail.mime import headers, splice
from outmail.policy import aliases, digest, plain, route, secrets, selection
from outmail.reports import digest as digests
from outmail.reports import digest_fold, mail, records
from outmail.smtp import client, lines, reply, server, syntax
from outmail.store.verbs.outbox_rows import Row
from outmail.transactional import poller
from outmail.transport import mailbox
from tests.growth import superlinear

SRC = Path(outmail.__file__).parent

#: Expressions whose input somebody bounds: how long it can be, and who says so. Within that they have to be
#: quick.
BOUNDED = {
    r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)": (100, "clock.parse_span"),
    r"\s*(\d+(?:\.\d+)?)\s*([kKmMgG]?[bB]?)\s*": (100, "selection.parse_size"),
    r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)": (500, "options of a command line"),
    r"(password=)[^&\s]*": (4000, "a store's URL, from the configuration"),
    r"(?<=://)([^/@:]*):[^@]*@": (4000, "a store's URL, from the configuration"),
    r"<([^>]*)>\s*(.*)": (4096, "the test server's command lines"),
    r"\s*([A-Za-z]+)(?:\s+(\S+?))?\s*:\s*(.*?)(?:\s+(?:(\d+)/(\d+)|x(\d+)))?\s*": (
        200,
        "the test server's script",
    ),
}


#: Expressions that would be slow in a search, and why they never search such a text.
NEVER_SO = {
    r"[ \t]*[^ \t]+": "headers.unstructured strips what it splits, so every run of blanks ends in a word"
}


# -- expressions ---------------------------------------------------------------------------------------------


def _modules() -> Iterator[Any]:
    for found in pkgutil.walk_packages([str(SRC)], "outmail."):
        if ".contrib" in found.name or found.name == "outmail.__main__":
            continue
        with contextlib.suppress(ImportError):  # what is not installed here is found by its text
            yield importlib.import_module(found.name)


def _compiled(value: Any, depth: int = 3) -> Iterator[re.Pattern[Any]]:
    if isinstance(value, re.Pattern):
        yield value
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _compiled(item, depth - 1)
    elif depth and isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _compiled(item, depth - 1)


def _used(pattern: re.Pattern[Any], name: str, text: str) -> None:
    """Remember whether a module searches with an expression, or only asks whether it fits at a place."""
    methods = set(re.findall(rf"(?<![\w.]){re.escape(name)}\.(\w{{1,20}})\(", text))
    if not methods or methods - {"match", "fullmatch"}:
        SEARCHED.add((pattern.pattern, pattern.flags))


SEARCHED: set[tuple[Any, int]] = set()


def _literals(path: Path) -> Iterator[re.Pattern[Any]]:
    """``re.…("literal", …)`` calls; what an f-string puts in stands as an x."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "re"
            and node.args
        ):
            continue
        first: Any = node.args[0]
        if isinstance(first, ast.JoinedStr):
            text: Any = "".join(
                str(part.value) if isinstance(part, ast.Constant) else "x" for part in first.values
            )
        elif isinstance(first, ast.Constant):
            text = first.value
        else:
            continue
        flags = 0
        for given in [*node.args[1:], *(word.value for word in node.keywords if word.arg == "flags")]:
            names = [
                part.attr
                for part in ast.walk(given)
                if isinstance(part, ast.Attribute) and isinstance(getattr(re, part.attr, None), re.RegexFlag)
            ]
            for name in names:
                flags |= getattr(re, name)
        pattern = re.compile(text, flags)
        if node.func.attr not in ("match", "fullmatch", "compile"):
            SEARCHED.add((pattern.pattern, pattern.flags))
        yield pattern


def _expressions() -> list[re.Pattern[Any]]:
    for _, text, _ in secrets.examples():
        secrets.masked(text)
    found = {}
    for module in _modules():
        text = Path(module.__file__).read_text()
        for name, value in vars(module).items():
            for pattern in _compiled(value):
                found[pattern.pattern, pattern.flags] = pattern
                _used(pattern, name, text)
    for path in SRC.rglob("*.py"):
        for pattern in _literals(path):
            found[pattern.pattern, pattern.flags] = pattern
    return [found[key] for key in sorted(found, key=repr)]


def _one(code: Any, argument: Any) -> str:
    """The shortest-but-one text that a node of a parsed expression takes."""
    if code is op.LITERAL:
        return chr(argument)
    if code is op.NOT_LITERAL:
        return "a" if argument != ord("a") else "b"
    if code is op.ANY:
        return "a"
    if code is op.IN:
        return _member(argument)
    if code in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
        low, high, body = argument
        return _all(body) * max(int(low), min(2, int(high)))
    if code is op.SUBPATTERN:
        return _all(argument[3])
    if code is op.ATOMIC_GROUP:
        return _all(argument)
    if code is op.BRANCH:
        return _all(argument[1][0])
    return ""


def _member(items: Any) -> str:
    negated = items[0][0] is op.NEGATE
    for char in "a1 ._-A\"'/@=+\t\n:;!\x00\x80\ud800\u202e" if negated else "":
        if not any(_holds(item, char) for item in items[1:]):
            return char
    for code, argument in items:
        if code is op.LITERAL:
            return chr(argument)
        if code is op.RANGE:
            return chr(argument[0])
        if code is op.CATEGORY:
            return {
                op.CATEGORY_DIGIT: "1",
                op.CATEGORY_SPACE: " ",
                op.CATEGORY_WORD: "a",
                op.CATEGORY_NOT_SPACE: "a",
                op.CATEGORY_NOT_DIGIT: "a",
            }.get(argument, "!")
    return "a"


def _holds(item: Any, char: str) -> bool:
    code, argument = item
    if code is op.LITERAL:
        return chr(argument) == char
    if code is op.RANGE:
        return bool(argument[0] <= ord(char) <= argument[1])
    return (
        (argument is op.CATEGORY_SPACE and char.isspace())
        or (argument is op.CATEGORY_WORD and (char.isalnum() or char == "_"))
        or (argument is op.CATEGORY_DIGIT and char.isdigit())
    )


def _all(parsed: Any) -> str:
    return "".join(_one(code, argument) for code, argument in parsed)


def _parts(parsed: Any, before: str = "") -> Iterator[str]:
    """Texts to repeat: what each part takes, alone and behind what stands before it."""
    so_far = before
    for code, argument in parsed:
        one = _one(code, argument)
        yield from (one, so_far + one)
        if code is op.IN and argument[0][0] is not op.NEGATE:
            for kind, value in argument[:8]:
                if kind is op.LITERAL:
                    yield from (chr(value), one + chr(value))
        if code in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            yield from _parts(argument[2], so_far)
        elif code is op.SUBPATTERN:
            yield from _parts(argument[3], so_far)
        elif code is op.BRANCH:
            for branch in argument[1]:
                yield from _parts(branch, so_far)
        so_far += one


def _hostile(pattern: re.Pattern[Any]) -> list[tuple[str, str]]:
    """(what stands in front, what is repeated)."""
    text = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    parsed = _parser.parse(
        text, pattern.flags & ~re.UNICODE if isinstance(pattern.pattern, bytes) else pattern.flags
    )
    parts = list(dict.fromkeys(part for part in _parts(parsed) if part))
    fronts = ["", parts[0] if parts else "", max(parts, key=len, default="")]
    found = [("", part) for part in parts[:25]] + [("", part[:-1]) for part in parts[:8] if len(part) > 2]
    found += [(front, char) for front in fronts for char in dict.fromkeys(part[-1] for part in parts)][:12]
    return list(dict.fromkeys(found))


def test_an_expression_takes_no_more_than_linear_time() -> None:
    patterns = _expressions()
    texts = {pattern.pattern for pattern in patterns}
    assert len(patterns) > 90
    assert {rb"\r(?!\n)", r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)"} <= texts, "one of a module, one of a call"
    assert {*BOUNDED, *NEVER_SO} <= texts, "BOUNDED names an expression that is gone"
    assert not [problem for pattern in patterns for problem in _slow(pattern)]


def _slow(pattern: re.Pattern[Any]) -> Iterator[str]:
    limit = BOUNDED.get(pattern.pattern, (10**9, ""))[0] if isinstance(pattern.pattern, str) else 10**9
    encode = (lambda text: text.encode("latin-1", "replace")) if isinstance(pattern.pattern, bytes) else str
    put = b"" if isinstance(pattern.pattern, bytes) else ""
    searched = (pattern.pattern, pattern.flags) in SEARCHED and pattern.pattern not in NEVER_SO
    for front, part in _hostile(pattern):
        for end in ("", "\0!\n"):

            def run(n: int, front: str = front, part: str = part, end: str = end) -> Callable[[], object]:
                text = encode(front + part * (min(n, limit) // len(part)) + end)
                return lambda: (
                    pattern.sub(put, text) if searched else None,
                    pattern.match(text),
                    pattern.fullmatch(text),
                )

            if problem := superlinear(run):
                yield f"{pattern.pattern!r} on {front[:40]!r} + {part[:80]!r} * n + {end!r}: {problem}"


@pytest.mark.parametrize("text", [r"(a+)+b", r"\b[\w-]*secret\b", r"a+$", r"(?:a|a)*c", r"x[^@]*@"])
def test_the_test_finds_what_is_worse(text: str) -> None:
    pattern = re.compile(text)

    def slow(front: str, part: str, end: str) -> str:
        sizes = (16, 20, 24, 6_000)
        return superlinear(
            lambda n: lambda: pattern.sub("", front + part * (n // len(part)) + end), sizes, 0.001
        )

    assert any(slow(front, part, end) for front, part in _hostile(pattern) for end in ("", "\0"))


# -- functions -----------------------------------------------------------------------------------------------

TEXTS = [
    "secret-",
    'password="',
    "password: ",
    "://",
    "a:b@",
    "a@a.",
    "eyJ",
    "-----BEGIN PRIVATE KEY-----",
    '\\"token\\":\\"',
    "Authorization: ",
    "--password ",
    "A",
    "a ",
    "\n",
    "\t",
    " ",
    "\x1b[",
    "\x1b",
    "\u202e",
    "\udc80",
    "1",
    "1.",
    "9h",
    "=?utf-8?b?QQ==?= ",
    "=?utf-8?q?",
    "=?",
    "a:\r\n",
    "Received:\r\n",
    "Delivered-To:\r\n ",
    "From \n",
    ">",
    "\n>",
    "Subject: x\r\n ",
    "\r\n ",
    "\r\n.\r\n",
    ".\n",
    "\n.",
    "..\n",
    "X-A: b\r\n",
    '"',
    "'",
    "\\",
    "<",
    ">",
    "(",
    ",",
    ", ",
    "a: b\n",
    "x,",
    '"a",',
    ":include:",
    "{",
    "[",
    '["a",',
    "ü",
    ".",
    "-",
    "xn--",
    "@",
    "250-a\r\n",
    "250 ",
]


def _server(text: str) -> None:
    session = server.Server(server.ServerSettings("h"), _Everybody())
    for start in range(0, len(text), 4096):
        session.feed(text[start : start + 4096].encode("utf-8", "replace"))
        session.outgoing()


class _Everybody:
    def mail(self, session: Any, sender: str) -> None: ...
    def rcpt(self, session: Any, address: str) -> None: ...


def _content(text: str) -> None:
    session = server.Server(server.ServerSettings("h"), _Everybody(), normalise=True)
    session.feed(b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n")
    raw = text.encode("utf-8", "replace")
    for start in range(0, len(raw), 1000):
        session.feed(raw[start : start + 1000])


def _client(text: str) -> None:
    reader = reply.ReplyReader()
    with contextlib.suppress(reply.ProtocolError):
        for start in range(0, len(text), 1000):
            reader.feed(text[start : start + 1000].encode("utf-8", "replace"))
            while reader.pop():
                pass


def _look(text: str) -> None:
    for front in (b"Subject: ", b"Message-ID: ", b"A: ", b""):
        raw = front + text.encode("utf-8", "replace")
        with contextlib.suppress(splice.ContentError):
            splice.look(splice.normalised(raw), headless=True)


def _expand(text: str) -> None:
    found = aliases.parse("list: :include:/f", "f")
    aliases.Directory(frozenset({"h"}), found, lambda name: True, lambda path: text).expand("list")


def _drafted(text: str) -> None:
    for words in (
        {"at": text},
        {"relay": text},
        {"to": text},
        {"subject": text},
        {"expires": text},
        {"headers": {"X-A": text}},
        {"text": text},
    ):
        envelope = json.dumps({"draft": {"to": "a@b.example", **words}})
        with contextlib.suppress(Refused):
            poller.drafted(Row(1, "01J0000000000000000000000A", b"", envelope.encode(), 0), _compose)
    for name in ("sender", "recipients", "key", "tag", "route", "priority"):
        with contextlib.suppress(Refused):
            poller.drafted(
                Row(1, "01J0000000000000000000000A", b"A: b\r\n\r\n", json.dumps({name: text}).encode(), 0),
                _compose,
            )


def _compose(words: dict[str, Any]) -> Any:
    from outmail.intake import api

    relay = words.pop("relay", None)
    if relay:
        route.parse_relay(relay)
    return api.composed(1_800_000_000_000, "h", "", **{"sender": "a@b.example", "to": "c@d.example", **words})


def _folded(text: str) -> None:
    gathered = digest.Gathered()
    line = digest_fold._line(
        [1.0, 40, "app", text[: digests.NAME], text[: records.MESSAGE], "", "", "", text[: digests.TRACE]]
    )
    assert line is not None
    gathered.add(line, digest_fold._shown(line), counts=True)
    mail.as_text(digest_fold.digest_report(digest_fold.DigestSettings("x"), gathered, [], {}))


def _report(text: str) -> None:
    report = mail.Report(
        "failed",
        text,
        text,
        [(text, text)],
        [mail.Section(text, text, text, [[text, "b"], ["1", text]])],
        [text],
    )
    mail.as_text(report)
    mail.as_html(report)


FUNCTIONS: dict[str, Callable[[str], object]] = {
    "secrets.masked": secrets.masked,
    "plain": lambda text: (plain.plain(text), plain.plain_line(text), plain.as_json(text)),
    "report": _report,
    "one_line": mail.one_line,
    "named": mail.named,
    "digest": _folded,
    "splice.look": _look,
    "splice loops": lambda text: (
        splice.has_passed(text.encode("utf-8", "replace"), 1),
        splice.delivered_to(text.encode("utf-8", "replace")),
    ),
    "lines.mended": lambda text: lines.mended(text.encode("utf-8", "replace"), 10**9),
    "mbox quoting": lambda text: mailbox._quoted(text.encode("utf-8", "replace")),
    "splice.fields": lambda text: list(splice.fields(text.encode("utf-8", "replace"))),
    "splice.cut": lambda text: splice.cut(text.encode("utf-8", "replace"), "bcc", "a"),
    "splice.split": lambda text: splice.split(text.encode("utf-8", "replace")),
    "stuffing": lambda text: lines.unstuffed(lines.stuffed(text.encode("utf-8", "replace"))),
    "headers.unstructured": lambda text: headers.unstructured("X-A", text),
    "syntax.parse_mailbox": syntax.parse_mailbox,
    "syntax.valid_original": syntax.valid_original,
    "syntax.valid_notify": syntax.valid_notify,
    "server commands": _server,
    "server content": _content,
    "client replies": _client,
    "client.xtext": client.xtext,
    "aliases.parse": aliases.parse,
    "aliases.included": lambda text: aliases.included(text, "f"),
    "aliases.expand": _expand,
    "clock.instant": lambda text: clock.instant(text, 0),
    "clock.parse_span": clock.parse_span,
    "route.parse_relay": route.parse_relay,
    "relay with user": lambda text: route.parse_relay(f"smtp://{text}@h:25"),
    "routes.resolve": lambda text: route.Routes({}).resolve(text),
    "route.matches": lambda text: route.matches("*@*.example", text),
    "takeover.drafted": _drafted,
    "selection.parse": lambda text: selection.parse(text, 0),
    "selection words": lambda text: selection.parse(f"before:{text}", 0),
    "parse_size": selection.parse_size,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_sees_foreign_text_takes_no_more_than_linear_time(name: str) -> None:
    logging.getLogger("outmail").setLevel(logging.CRITICAL)
    function = FUNCTIONS[name]
    for part in TEXTS:
        for front in ("", "a:"):

            def run(n: int, front: str = front, part: str = part) -> Callable[[], object]:
                text = front + part * (n // len(part))

                def call() -> None:
                    # refusing is an answer
                    with contextlib.suppress(ValueError, Refused, reply.ProtocolError):
                        function(text)

                return call

            problem = superlinear(run, (3_000,), 0.06)
            assert not problem, f"{name} on {front!r} + {part!r} * n: {problem}"


def _seeds(kind: secrets.Kind) -> list[str]:
    """What to repeat, of a kind's own words: what tells of it with what may follow, its examples, their
    beginnings and their lines.
    """
    seeds = [
        hint + end
        for hint in kind.hints
        for end in ("", " ", "=/", "=", ":", ": x", "='", "=(", "=['", '="""', "=/ab/", "=****", '=a"b')
    ]
    for marked in kind.examples:
        text = re.sub("[«»]", "", marked)
        seeds += [text, text + "\n", marked.partition("«")[0], *(line + "\n" for line in text.split("\n"))]
    return [seed for seed in dict.fromkeys(seeds) if seed.strip()]


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.name) for kind in secrets.KINDS])
def test_masking_takes_no_more_than_linear_time_on_the_words_of_a_kind(kind: secrets.Kind) -> None:
    for seed in _seeds(kind):
        for front in ("", "x "):

            def run(n: int, seed: str = seed, front: str = front) -> Callable[[], object]:
                text = front + seed * (n // len(seed) + 1) + "\n" + kind.hints[0]
                return lambda: secrets.masked(text)

            problem = superlinear(run, (6_000,), 0.0075)
            assert not problem, f"{front!r} + {seed!r} * n: {problem}"


def test_a_charset_that_cannot_be_one_is_shown_as_it_stands() -> None:
    assert splice.look(b"Subject: =?u\xff-8?q?=C3?=\r\n\r\n").subject == "=?u\ufffd-8?q?=C3?="


def test_a_subject_of_encoded_words_is_read_at_once() -> None:
    content = b"Subject: " + b"=?utf-8?q?=C3=BC?= " * 50_000 + b"\r\n\r\n"
    began = __import__("time").thread_time()
    assert splice.look(content).subject.startswith("üüü")
    assert __import__("time").thread_time() - began < 0.5


def test_a_header_block_of_many_fields_is_refused_and_its_fields_come_one_by_one() -> None:
    import tracemalloc

    content = b"a:\r\n" * 1_000_000 + b"\r\n"
    with pytest.raises(splice.ContentError, match="header block") as told:
        splice.look(content)
    assert told.value.code == "too-large"
    content = b"a:\r\n" * 100_000 + b"\r\n"
    tracemalloc.start()
    try:
        assert sum(1 for _ in splice.fields(content)) == 100_000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    with pytest.raises(splice.ContentError):
        splice.look(b"Message-ID: <" + b"a" * 2_000_000 + b"@b>\r\n\r\n")


def test_mbox_quoting_lets_other_threads_run_and_holds_no_more_than_its_result() -> None:
    """Pieces are short, and what is quoted is the same as without them."""
    import tracemalloc

    content = b"From x\n" * 100_000 + b">>From y\n" * 100_000 + b"a From \n From z\n"
    expected = b">From x\n" * 100_000 + b">>>From y\n" * 100_000 + b"a From \n From z\n"
    tracemalloc.start()
    try:
        assert mailbox._quoted(content) == expected
        assert tracemalloc.get_traced_memory()[1] < 3 * len(expected) + 20 * mailbox._PIECE
    finally:
        tracemalloc.stop()
    assert mailbox._quoted(b"> x\n") == b"> x\n"


@pytest.mark.parametrize("line, means", [(b".\n", 0), (b"\n", 2), (b"\n..", 3), (b".\n\n", 2), (b"x\r", 2)])
def test_mending_is_lean_and_refuses_what_would_be_too_long_before_it_makes_it(
    line: bytes, means: int
) -> None:
    """Content of lone dots cost 45 bytes for each byte, and 0.3 seconds for a megabyte."""
    import time
    import tracemalloc

    content = line * (4_000_000 // len(line))
    began = time.thread_time()
    made = lines.mended(content, 50_000_000)
    assert made is not None and time.thread_time() - began < 0.5
    size = len(lines.unstuffed(made))
    assert abs(size - means * (len(content) // len(line))) <= 5
    assert lines.mended(content, size) == made and (not size or lines.mended(content, size - 1) is None)
    tracemalloc.start()
    try:
        lines.mended(content, 1000)
        assert tracemalloc.get_traced_memory()[1] < 3.2 * len(content)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("seed", range(20))
def test_mended_content_is_what_its_lines_say(seed: int) -> None:
    import random

    chosen = random.Random(seed)
    for _ in range(200):
        content = b"".join(
            chosen.choices([b".", b"\n", b"\r\n", b"\r", b"a", b"..", b".\n"], k=chosen.randrange(12))
        )
        text = content.replace(b"\r\n", b"\n").replace(b"\r", b" ")
        expected = b"".join(
            line.replace(b"\n", b"\r\n") for line in text.splitlines(keepends=True) if line != b".\n"
        )
        assert lines.mended(content, 10**9) == expected
