"""The search for a server, against real https servers on loopback and a resolver of our own."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import trustme

from outmail.cli import lookup
from outmail.cli.lookup import Found, Ways, fetch, find
from outmail.policy.discovery import Srv
from outmail.testing import Sink
from tests.unit.policy.test_discovery import document, server

Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


class Site:
    """An https server: path → what it answers."""

    def __init__(self, authority: trustme.CA) -> None:
        self.pages: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.over = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:
                self.asked.append(handler.path)
                self.pages.get(handler.path.partition("?")[0], says(404))(handler)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(context)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://localhost:{self.server.server_address[1]}"


@pytest.fixture
def site(authority: trustme.CA) -> Iterator[Site]:
    made = Site(authority)
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,))
    thread.start()
    yield made
    made.over.set()
    made.server.shutdown()
    made.server.server_close()
    thread.join(10)


def says(status: int, body: bytes = b"", **fields: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in fields.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        try:
            handler.wfile.write(body)
        except OSError:
            pass  # who asked has hung up, which is what some tests want

    return answer


def ways(**words: Any) -> Ways:
    """Nobody answers but who is named."""
    silent = {"srv": lambda _: [], "mx": lambda _: (), "name": lambda _: "", "urls": lambda _: []}
    return Ways(**{**silent, **words})


def where(found: Found) -> tuple[str, int] | None:
    return (found.server.host, found.server.port) if found.server else None


def test_a_known_domain_asks_nobody() -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("asked")

    found = find("me@GMail.com", Ways(never, never, never, never, never))
    assert where(found) == ("smtp.gmail.com", 465) and "app password" in (
        found.server.note if found.server else ""
    )


def test_autoconfig_by_https(site: Site, trusting: ssl.SSLContext) -> None:
    site.pages["/mail/config-v1.1.xml"] = says(200, document(server()))
    urls = [f"{site.url}/mail/config-v1.1.xml?emailaddress=me%40example.org"]
    found = find("me@example.org", ways(urls=lambda _: urls, get=partial(fetch, context=trusting)))
    assert where(found) == ("smtp.example.org", 587) and site.asked == [urls[0].removeprefix(site.url)]
    assert found.server is not None and found.server.found == urls[0].partition("?")[0]


def test_a_redirect_is_followed_to_https_only(site: Site, trusting: ssl.SSLContext) -> None:
    site.pages["/a"] = says(302, Location="/b")
    site.pages["/b"] = says(200, b"here")
    assert fetch(f"{site.url}/a", trusting) == b"here"
    for target in ("http://localhost:1/x", "file:///etc/passwd", ""):
        site.pages["/b"] = says(301, Location=target)
        site.pages["/c"] = says(301, Location=target)
        if target:
            with pytest.raises(ValueError, match="not https"):
                fetch(f"{site.url}/c", trusting)
        else:
            assert fetch(f"{site.url}/c", trusting) == b""
    site.pages["/circle"] = says(302, Location="/circle")
    with pytest.raises(ValueError, match="redirects"):
        fetch(f"{site.url}/circle", trusting)


def test_a_certificate_that_is_not_trusted_ends_it(site: Site) -> None:
    site.pages["/a"] = says(200, document(server()))
    found = find("me@example.org", ways(urls=lambda _: [f"{site.url}/a"]))
    assert where(found) is None and "CERTIFICATE_VERIFY_FAILED" in found.missed[0] and not site.asked


def test_too_much_and_too_slow_are_given_up(site: Site, trusting: ssl.SSLContext) -> None:
    site.pages["/big"] = says(200, b"x" * 300_000)
    with pytest.raises(ValueError, match="more than 200000 bytes"):
        fetch(f"{site.url}/big", trusting)

    def drips(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not site.over.wait(0.02):
            try:
                handler.wfile.write(b"x")
            except OSError:
                return

    site.pages["/slow"] = drips
    with pytest.raises(OSError, match="too slow"):
        fetch(f"{site.url}/slow", trusting, patience=0.2)


def test_nobody_is_waited_for_longer_than_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    found = find("me@example.org", ways(mx=lambda _: over.wait(60), urls=lambda _: ["https://a.test"],
                                        get=lambda _: over.wait(60), patience=0.1))  # fmt: skip
    over.set()
    assert where(found) is None and found.missed == ["https://a.test: no answer within 0.1 s"]


def test_the_order_is_srv_then_autoconfig_then_mx_then_autodiscover() -> None:
    records = {"_submissions._tcp.example.org": [Srv(0, 0, 465, "srv.example.org.")]}
    everything: dict[str, Any] = {
        "srv": lambda name: records.get(name, []),
        "urls": lambda _: ["https://own.test", "https://second.test"],
        "get": lambda url: document(server(host=f"{url[8:]}")),
        "mx": lambda _: ("aspmx.l.google.com",),
        "name": lambda _: "autodiscover.outlook.com",
    }
    seen = []
    for _ in range(5):
        seen.append(where(find("me@example.org", ways(**everything))))
        everything.pop(next(iter(everything)))
    assert seen == [
        ("srv.example.org", 465),
        ("own.test", 587),
        ("smtp.gmail.com", 465),
        ("smtp.gmail.com", 465),
        ("smtp.office365.com", 587),
    ]
    assert where(find("me@example.org", ways())) is None


def test_what_is_nonsense_is_named_and_the_next_one_is_taken() -> None:
    pages = {
        "https://a.test": b"<html/>",
        "https://b.test": b"",
        "https://c.test": document(server(tls="plain")),
        "https://d.test": document(server()),
    }
    found = find("me@example.org", ways(urls=lambda _: list(pages), get=pages.__getitem__))
    assert where(found) == ("smtp.example.org", 587)
    assert [line.partition(": ")[2] for line in found.missed] == [
        "it is no autoconfig file",
        "there is nothing",
        "it names no server with TLS and a password",
    ]


def test_only_the_own_domain_gets_the_whole_address() -> None:
    own, second, collection = lookup.autoconfig_urls("a+b@example.org")
    assert own.startswith("https://autoconfig.example.org/") and own.endswith(
        "?emailaddress=a%2Bb%40example.org"
    )
    assert second.startswith("https://example.org/.well-known/autoconfig/mail/config-v1.1.xml?")
    assert collection == "https://autoconfig.thunderbird.net/v1.1/example.org"


@pytest.mark.parametrize("implicit", [True, False])
def test_what_answers_at_a_host_is_taken(authority: trustme.CA, implicit: bool) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    with Sink(tls=context, implicit_tls=implicit) as sink, Sink() as plain:
        ports = (sink.port, plain.port) if implicit else (plain.port, sink.port)
        found = lookup.at_host("localhost", "me", ports)
        assert found is not None and (found.port, found.user) == (sink.port, "me")
        assert found.tls == ("implicit" if implicit else "starttls")
        assert not plain.messages and not any(c.startswith("AUTH") for c in sink.commands)


def test_a_host_without_tls_is_none() -> None:
    with Sink() as plain:
        assert lookup.at_host("localhost", "me", (plain.port, plain.port)) is None
    assert lookup.at_host("localhost", "me", (plain.port, plain.port)) is None
