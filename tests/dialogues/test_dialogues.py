"""Dialogues as text files: what the client says, what the server answers, what each recipient gets.

``C:`` a line of ours, ``S:`` a line of theirs, ``S: <closed>`` the connection is gone, ``= address kind
code`` an outcome (with ``session`` when it is about that alone), ``! stage`` the session ended there (with
``ahead`` when nothing is to be sent ahead again, and ``alone`` when the loopback copy was taken alone). ``>
sender -> rcpt …`` queues a message before the session begins; ``+ address`` at its end is its loopback copy,
and with ``+? address`` DATA waits until a recipient is accepted. Each file runs with the server's bytes
whole, and again byte by byte. Files that begin with "both roles" are also played to our own server, by the
client's lines. Files that begin with "server" and its settings are played to our server only: each answer
begins with what its ``S:`` lines say, of an answer in several lines the first and some of the others; ``(3000
letters)`` stands for what it says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outmail.model import Copies, Delivery, Leased, Reply
from outmail.smtp.client import (
    AheadRefused,
    Broken,
    Client,
    ClientSettings,
    CopyTrouble,
    Done,
    Dot,
    ProtocolError,
    Read,
    SessionFailed,
    Take,
)
from outmail.smtp.server import Close, Deliver, Server, ServerSettings, StartTls

ALL = sorted(Path(__file__).parent.glob("*.txt"))
SERVER = [path for path in ALL if path.name.startswith("server-")]
FILES = [path for path in ALL if path not in SERVER]
CONTENT = b"Subject: x\r\n\r\n.dot\r\n"


def delivery(line: str) -> Delivery:
    line, _, copy = line.partition(" +")
    sender, _, recipients = line.partition(" -> ")
    people = [Leased(n, address, 0, False, 0) for n, address in enumerate(recipients.split(), 1)]
    made = Delivery(1, "id", 1, "default", sender.strip("<>"), CONTENT, b"", 0, "<m@x>", 0, 0, people)
    if copy:
        made.copies = Copies(lambda part: copy.lstrip("? "), asks_first=lambda: copy.startswith("?"))
    return made


class Script:
    def __init__(self, text: str) -> None:
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        self.settings = ClientSettings(
            hostname="client.test",
            lmtp="lmtp" in text.splitlines()[0],
            user="",
            pipelining="lock-step" not in text.splitlines()[0],
        )
        self.queue = [delivery(line[2:]) for line in lines if line.startswith("> ")]
        self.talk = [line for line in lines if line.startswith(("C: ", "S: "))]
        self.outcomes = [tuple(line[2:].split()) for line in lines if line.startswith("= ")]
        self.done: list[Delivery] = []
        self.end = next((line[2:] for line in lines if line.startswith("! ")), "")

    def expect(self, said: bytes) -> None:
        """Everything said must be the next C: lines."""
        got = said.replace(b"Subject: x\r\n\r\n..dot\r\n.\r\n", b"(content)\r\n").decode().split("\r\n")[:-1]
        want = []
        while self.talk and self.talk[0].startswith("C: "):
            want.append(self.talk.pop(0)[3:])
        assert got == want

    def answer(self) -> bytes | None:
        """The next S: lines; None when the connection is gone."""
        lines: list[str] = []
        while self.talk and self.talk[0].startswith("S: ") and not (lines and self.talk[0] == "S: <closed>"):
            lines.append(self.talk.pop(0)[3:])
        assert lines, "the client waits for more than the dialogue has"
        return None if lines == ["<closed>"] else "".join(line + "\r\n" for line in lines).encode()


@pytest.mark.parametrize("step", [0, 1], ids=["whole", "byte-by-byte"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dialogue(path: Path, step: int) -> None:
    script = Script(path.read_text())
    client = Client(script.settings)
    ended = run(client, script, step)
    got = [
        (
            r.address,
            r.outcome.kind,
            str(r.outcome.reply.code),
            *(["session"] if r.outcome.scope == "session" else []),
        )
        for d in script.done
        for r in d.recipients
        if r.outcome
    ]
    assert got == script.outcomes
    assert ended == script.end and not script.talk


def run(client: Client, script: Script, step: int) -> str:
    flow, trouble, ahead = client.dialogue(), None, ""
    answer: Delivery | bool | None = None
    buffered = b""
    while True:
        try:
            request = flow.throw(trouble) if trouble else flow.send(answer)
        except StopIteration:
            return ""
        except SessionFailed as failure:
            return failure.outcome.stage + ahead
        answer = trouble = None
        if isinstance(request, Read):
            said = b"".join(client.outgoing())
            if said:
                assert not buffered, "the client spoke before it had heard everything"
            if not buffered:
                script.expect(said)
                got = script.answer()
                if got is None:
                    trouble = Broken("closed")
                    continue
                buffered = got
            portion, buffered = (buffered[:1], buffered[1:]) if step else (buffered, b"")
            try:
                client.feed(portion)
            except ProtocolError as problem:
                trouble = Broken(str(problem))
        elif isinstance(request, Take):
            answer = script.queue.pop(0) if script.queue else None
        elif isinstance(request, Dot):
            answer = True
        elif isinstance(request, AheadRefused):
            ahead = " ahead"
            client.ahead = False
        elif isinstance(request, CopyTrouble) and request.kind == "alone":
            ahead = " alone"
        elif isinstance(request, Done):
            script.done.append(request.delivery)


# -- the same from the server's side -------------------------------------------------------------------------

BOTH = [path for path in FILES if path.read_text().startswith("# both roles")]


class Scripted:
    """A policy that says what the dialogue's server said to MAIL and RCPT."""

    def __init__(self, said: list[Reply]) -> None:
        self.said = said

    def mail(self, session: Server, sender: str) -> Reply | None:
        return self._next()

    def rcpt(self, session: Server, address: str) -> Reply | None:
        return self._next()

    def _next(self) -> Reply | None:
        reply = self.said.pop(0)
        return reply if reply.code >= 400 else None


@pytest.mark.parametrize("step", [0, 1], ids=["whole", "byte-by-byte"])
@pytest.mark.parametrize("path", BOTH, ids=lambda path: path.stem)
def test_the_servers_side(path: Path, step: int) -> None:
    """Our server, driven by the client's lines, answers with the dialogue's codes."""
    lines = [line for line in path.read_text().splitlines() if line.startswith(("C: ", "S: "))]
    words = [line[3:] for line in lines if line.startswith("C: ")]
    replies = [
        Reply(int(line[3:6]), line[7:]) for line in lines if line.startswith("S: ") and line[6:7] != "-"
    ]
    lmtp = "lmtp" in path.read_text().splitlines()[0]
    answers = iter(replies[1:])
    policy: list[Reply] = []
    stored: list[list[Reply]] = []
    accepted = 0
    for word in words:
        if word == "(content)":
            stored.append([next(answers) for _ in range(accepted if lmtp else 1)])
            accepted = 0
            continue
        reply = next(answers)
        if word.startswith(("MAIL", "RCPT")) and reply.code != 503:
            policy.append(reply)
            accepted += word.startswith("RCPT") and reply.code < 300
    server = Server(ServerSettings(hostname="server.test", lmtp=lmtp), Scripted(policy))
    said = server.outgoing()
    data = b"".join(
        b"Subject: x\r\n\r\n..dot\r\n.\r\n" if word == "(content)" else word.encode() + b"\r\n"
        for word in words
    )
    for portion in [data[i : i + 1] for i in range(len(data))] if step else [data]:
        server.feed(portion)
        while server.requests:
            request = server.requests.popleft()
            if isinstance(request, Deliver):
                assert request.content == CONTENT
                server.answer(stored.pop(0))
        said += server.outgoing()
    codes = [int(line[:3]) for line in said.decode().splitlines() if line[3:4] != "-"]
    assert codes == [reply.code for reply in replies] and not stored and not policy


@pytest.mark.parametrize("step", [0, 1], ids=["whole", "byte-by-byte"])
@pytest.mark.parametrize("path", SERVER, ids=lambda path: path.stem)
def test_what_the_server_says(path: Path, step: int) -> None:
    first, *lines = path.read_text().splitlines()
    words = first.partition(":")[0].split()[2:]
    said_so: dict[str, Any] = dict.fromkeys(words, True)
    server = Server(ServerSettings(hostname="server.test", **said_so), Scripted([Reply(250, "ok")] * 9))
    closed = False
    said = server.outgoing().decode().splitlines()
    while lines:
        wanted = []
        while lines and lines[0].startswith("S: "):
            wanted.append(lines.pop(0)[3:])
        if "<closed>" in wanted:
            assert closed and not lines
            wanted.remove("<closed>")
        assert len(wanted) > 1 or len(said) == 1, said
        for line in wanted:
            assert any(got.replace("-", " ", 1).startswith(line.replace("-", " ", 1)) for got in said), (
                line,
                said,
            )
        if not lines:
            break
        data = lines.pop(0).removeprefix("C: ").replace("(3000 letters)", "x" * 3000).encode() + b"\r\n"
        for portion in [data[i : i + 1] for i in range(len(data))] if step else [data]:
            server.feed(portion)
        said = server.outgoing().decode().splitlines()
        while server.requests:
            request = server.requests.popleft()
            closed = closed or isinstance(request, Close)
            if isinstance(request, StartTls):
                server.encrypted()


def test_there_are_dialogues() -> None:
    assert len(FILES) >= 8 and len(BOTH) >= 4 and len(SERVER) >= 8
