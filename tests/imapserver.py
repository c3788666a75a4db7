"""A small IMAP server for tests: LOGIN, SELECT, UID SEARCH, FETCH and STORE, IDLE, NOOP; one mailbox."""

from __future__ import annotations

import re
import socket
import socketserver
import threading


class ImapServer:
    """``mails`` by uid; ``seen`` uids. ``broken``: says BYE to whoever logs in. ``idle``: it offers that."""

    def __init__(self, password: str = "geheim", *, idle: bool = True) -> None:
        self.mails: dict[int, bytes] = {}
        self.seen: set[int] = set()
        self.broken = False
        self.idle = idle
        self.fetched: list[str] = []
        self.idling = threading.Event()
        self.news = threading.Event()
        self.logins = 0
        outer = self

        class Session(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                outer._serve(self)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self.password = password
        self._server = Server(("127.0.0.1", 0), Session)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def add(self, mail: bytes) -> None:
        self.mails[len(self.mails) + 1] = mail
        self.news.set()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, session: socketserver.StreamRequestHandler) -> None:
        def say(line: str) -> None:
            session.wfile.write(line.encode() + b"\r\n")

        capabilities = "IMAP4rev1" + (" IDLE" if self.idle else "")
        say(f"* OK [CAPABILITY {capabilities}] ready")
        try:
            while line := session.rfile.readline():
                tag, _, rest = line.decode().strip().partition(" ")
                self._answer(session, say, tag, rest, capabilities)
        except (OSError, ValueError):
            pass  # the client is gone

    def _answer(
        self, session: socketserver.StreamRequestHandler, say: object, tag: str, rest: str, caps: str
    ) -> None:
        assert callable(say)
        word = rest.upper()
        if word.startswith("CAPABILITY"):
            say(f"* CAPABILITY {caps}")
        elif word.startswith("LOGIN"):
            self.logins += 1
            if self.broken:
                say("* BYE out of order")
                session.connection.shutdown(socket.SHUT_RDWR)
                return
            if self.password not in rest:
                say(f"{tag} NO who are you")
                return
        elif word.startswith("SELECT"):
            say(f"* {len(self.mails)} EXISTS")
        elif word.startswith("UID SEARCH"):
            say("* SEARCH " + " ".join(str(uid) for uid in self.mails if uid not in self.seen))
        elif word.startswith("UID FETCH"):
            uid = int(rest.split()[2])
            self.fetched.append(rest)
            head = re.split(rb"(?<=\r\n)\r\n", self.mails[uid], maxsplit=1)[0]
            session.wfile.write(
                f"* 1 FETCH (UID {uid} BODY[HEADER]<0> {{{len(head)}}}\r\n".encode() + head + b")\r\n"
            )
        elif word.startswith("UID STORE"):
            self.seen.add(int(rest.split()[2]))
        elif word.startswith("IDLE"):
            say("+ idling")
            self.news.clear()
            self.idling.set()
            if self.news.wait(20):
                say(f"* {len(self.mails)} EXISTS")
            session.rfile.readline()
        say(f"{tag} OK done")
