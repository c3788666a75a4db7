"""Django as people use it: a project of its own, manage.py, transactions, the admin. 5.2 on Python 3.11, 6.1
on later ones.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django
import pytest

from outmail import Outbox
from outmail.testing import Sink
from tests import pgserver, starts

MODERN = django.VERSION >= (6, 1)
MAILER = (
    'MAILERS = {"default": {"BACKEND": "outmail.contrib.django.EmailBackend"}, "other": {"BACKEND": '
    '"outmail.contrib.django.EmailBackend", "OPTIONS": {"store": STORE, "database": None}}}'
    if MODERN
    else 'EMAIL_BACKEND = "outmail.contrib.django.EmailBackend"'
)
SETTINGS = """
import os
BASE = {base!r}
STORE = BASE + "/queue.db"
SECRET_KEY = "x" * 50
DEBUG = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "urls"
CONTRIB = ["admin", "auth", "contenttypes", "messages", "sessions"]
INSTALLED_APPS = [*("django.contrib." + name for name in CONTRIB), "outmail.contrib.django"]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
PROCESSORS = [
    "django.template.context_processors.request",
    "django.contrib.auth.context_processors.auth",
    "django.contrib.messages.context_processors.messages",
]
DJANGO = "django.template.backends.django.DjangoTemplates"
TEMPLATES = [{{"BACKEND": DJANGO, "APP_DIRS": True, "OPTIONS": {{"context_processors": PROCESSORS}}}}]
DATABASES = {{"default": {database}}}
DEFAULT_FROM_EMAIL = "Shop <shop@outmail.test>"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # the others are slow on purpose
OUTMAIL = {{"store": STORE, "relay": "smtp://127.0.0.1:{port}"}}
{mailer}
"""
MANAGE = (
    "import os, sys\nos.environ['DJANGO_SETTINGS_MODULE'] = 'settings'\nfrom django.core.management "
    "import execute_from_command_line\nexecute_from_command_line(sys.argv)\n"
)


class Project:
    """A Django project in a folder."""

    def __init__(self, folder: Path, database: str, port: int) -> None:
        self.folder = folder
        folder.joinpath("settings.py").write_text(
            SETTINGS.format(base=str(folder), database=database, port=port, mailer=MAILER)
        )
        folder.joinpath("urls.py").write_text(
            "from django.contrib import admin\nfrom django.urls import path\nurlpatterns = [path('admin/', "
            "admin.site.urls)]\n"
        )
        folder.joinpath("manage.py").write_text(MANAGE)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = starts.run(words, cwd=self.folder, env=dict(os.environ), timeout=60, loaded="django")
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def manage(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = self.run("manage.py", *words)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def story(self, code: str) -> str:
        """Run lines inside the project."""
        head = (
            "import os\nos.environ['DJANGO_SETTINGS_MODULE'] = 'settings'\nimport "
            "django\ndjango.setup()\nfrom django.core import mail\nfrom django.db import transaction, "
            "connection\n"
        )
        done = self.run("-Werror::DeprecationWarning", "-c", head + textwrap.dedent(code))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def statuses(self) -> list[Any]:
        with Outbox(self.folder / "queue.db", deliver="never") as box:
            return list(box.find())


VERSION = max(pgserver.installed(), key=int, default="")


def on_sqlite(file: Path) -> str:
    return repr({"ENGINE": "django.db.backends.sqlite3", "NAME": str(file)})


def on_postgresql(url: str) -> str:
    return repr(
        {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": url.rpartition("/")[2],
            "USER": "outmail",
            "HOST": "127.0.0.1",
            "PORT": pgserver.running(VERSION).port,
        }
    )


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """migrated(kind) → an application's database after `manage.py migrate`, to be copied: a file or a URL."""
    made: dict[str, str] = {}
    with contextlib.ExitStack() as until_the_end:

        def database(kind: str) -> str:
            if kind not in made:
                folder = tmp_path_factory.mktemp(kind)
                if kind == "sqlite":
                    made[kind], name = str(folder / "app.db"), on_sqlite(folder / "app.db")
                else:
                    made[kind] = until_the_end.enter_context(pgserver.database(VERSION))
                    name = on_postgresql(made[kind])
                Project(folder, name, 1).manage("migrate", "-v0")
            return made[kind]

        yield database


@pytest.fixture(params=["sqlite", "postgresql"])
def project(
    request: pytest.FixtureRequest, migrated: Callable[[str], str], tmp_path: Path, sink: Sink
) -> Iterator[Project]:
    folder = tmp_path / "shop"
    folder.mkdir()
    if request.param == "sqlite":
        shutil.copy(migrated("sqlite"), folder / "app.db")
        yield Project(folder, on_sqlite(folder / "app.db"), sink.port)
        return
    with pgserver.database(VERSION, like=migrated("postgresql")) as url:
        yield Project(folder, on_postgresql(url), sink.port)


def test_mail_follows_the_transaction(project: Project, sink: Sink) -> None:
    project.story("""
        try:
            with transaction.atomic():
                mail.send_mail("gone", "text", None, ["a@x.test"])
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        with transaction.atomic():
            assert mail.send_mail("kept", "text", None, ["Ann <a@x.test>"]) == 1
            try:
                with transaction.atomic():
                    mail.send_mail("inner", "text", None, ["a@x.test"])
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass
            with connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM outmail_outbox")
                assert cursor.fetchone() == (1,)
        assert mail.send_mail("outside", "text", "me@outmail.test", ["b@x.test"]) == 1
    """)
    assert [s.subject for s in project.statuses()] == ["outside"]
    project.manage("outmail", "run", "--once")
    assert sorted(m.content.partition(b"Subject: ")[2].partition(b"\r\n")[0] for m in sink.messages) == [
        b"kept",
        b"outside",
    ]
    assert [m.sender for m in sink.messages if b"kept" in m.content] == ["shop@outmail.test"]
    assert (
        project.story("""
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM outmail_outbox")
            print(cursor.fetchone()[0])
    """)
        == "0\n"
    )


def test_words_travel_by_attribute_and_by_header(project: Project) -> None:
    project.story("""
        one = mail.EmailMultiAlternatives(
            "héllo",
            "text",
            None,
            ["a@x.test"],
            bcc=["hidden@x.test"],
            cc=["c@x.test"],
            headers={"X-Outmail-Tag": "t", "X-Other": "kept"},
        )
        one.attach_alternative("<p>html</p>", "text/html")
        one.attach("ä.txt", "content", "text/plain")
        one.outmail = {"priority": "high", "at": "2h", "key": "order-1"}
        assert one.send() == 1 and one.send() == 1
        assert one.extra_headers == {"X-Outmail-Tag": "t", "X-Other": "kept"}
        assert mail.EmailMessage("nobody", "text", None, []).send() == 0
    """)
    (status,) = project.statuses()
    assert (status.priority, status.tag, status.key, [r.address for r in status.recipients]) == (
        "high",
        "t",
        "order-1",
        ["a@x.test", "c@x.test", "hidden@x.test"],
    )
    with Outbox(project.folder / "queue.db", deliver="never") as box:
        content = box.content(status.id)
    assert b"hidden" not in content and b"X-Outmail" not in content and b"X-Other: kept" in content


def test_errors_raise_before_anything_is_queued_or_are_silent(project: Project) -> None:
    silent = (
        "mail.mailers['default'].__class__(fail_silently=True)"
        if MODERN
        else "mail.get_connection(fail_silently=True)"
    )
    default = "mail.mailers.default" if MODERN else "mail.get_connection()"
    project.story(f"""
        import outmail
        good = mail.EmailMessage("good", "t", None, ["a@x.test"])
        bad = mail.EmailMessage("bad", "t", None, ["no address"])
        try:
            {default}.send_messages([good, bad])
        except outmail.Refused as refusal:
            assert "no address" in str(refusal)
        else:
            raise AssertionError
        assert {silent}.send_messages([bad, good]) == 1
        assert {default}.send_messages([]) == 0
    """)
    assert [s.subject for s in project.statuses()] == ["good"]


def test_djangos_own_documentation_examples(project: Project) -> None:
    """The calls of the topic guide "Sending email", with this backend behind them."""
    project.story("""
        from django.core.mail import EmailMessage, EmailMultiAlternatives
        from django.core.mail import mail_admins, send_mail, send_mass_mail

        words = {} if hasattr(mail, "mailers") else {"fail_silently": False}
        send_mail("Subject here", "Here is the message.", "from@example.com", ["to@example.com"], **words)
        message1 = (
            "Subject here",
            "Here is the message",
            "from@example.com",
            ["first@example.com", "other@example.com"],
        )
        message2 = ("Another Subject", "Here is another message", "from@example.com", ["second@test.com"])
        assert send_mass_mail((message1, message2)) == 2
        email = EmailMessage(
            "Hello",
            "Body goes here",
            "from@example.com",
            ["to1@example.com", "to2@example.com"],
            ["bcc@example.com"],
            reply_to=["another@example.com"],
            headers={"Message-ID": "<foo@example.com>"},
        )
        assert email.send() == 1
        msg = EmailMultiAlternatives(
            "subject",
            "This is an important message.",
            "from@example.com",
            ["to@example.com"],
            headers={"List-Unsubscribe": "<mailto:unsub@example.com>"},
        )
        msg.attach_alternative("<p>This is an <strong>important</strong> message.</p>", "text/html")
        assert msg.send() == 1
    """)
    found = {s.subject: s for s in project.statuses()}
    assert set(found) == {"Subject here", "Another Subject", "Hello", "subject"}
    assert found["Hello"].message_id == "<foo@example.com>" and len(found["Hello"].recipients) == 3


def test_an_address_that_two_readers_read_differently_is_refused(project: Project) -> None:
    """As Django's own SMTP backend refuses them (its test_avoids_sending_to_invalid_addresses)."""
    project.story("""
        import outmail

        for address in (
            "to@other.com <to@example.com>",
            "tö@other.com <to@example.com>",
            "to@other.com@example.com",
            "to@example.com, other@example.com",
            "a <one@example.com>, b <two@example.com>",
            "Bot [prod] <to@example.com>",
            "a\\nBcc: evil@example.com <to@example.com>",
            "to\\nevil@example.com",
            "@", "to@", "@example.com",
        ):
            for words in ({"bcc": [address]}, {"bcc": ["to@x.test"], "from_email": address}):
                try:
                    mail.EmailMessage("s", "t", **words).send()
                except outmail.Refused as refusal:
                    assert refusal.code == "bad-address", refusal
                except ValueError:
                    assert "from_email" in words  # Django's own, while it writes the From field
                else:
                    raise AssertionError(address)
        for address in (
            '"to@other.com" <to@example.com>', '"to@other.com"@example.com', "J. Doe <to@example.com>",
            "Tó <to@éxample.com>", "<to@example.com>", "tó@example.com",
        ):
            assert mail.EmailMessage("s", "t", bcc=[address]).send() == 1, address
    """)
    found = [status.recipients[0].address for status in project.statuses()]
    assert sorted(found) == sorted(
        [
            "to@example.com",
            '"to@other.com"@example.com',
            "to@example.com",
            "to@xn--xample-9ua.com",
            "to@example.com",
            "tó@example.com",
        ]
    )


def test_bare_names_get_the_origin_in_envelope_and_header(project: Project) -> None:
    project.folder.joinpath("outmail.toml").write_text('[accept]\norigin = "o.test"\n')
    project.story("""
        import outmail

        message = mail.EmailMessage(
            "s", "t", "Cron <root>", ["John", "Ann <ann>", "a@x.test"], ["eve"], cc=["cc"], reply_to=["help"],
            headers={"Sender": "daemon", "X-Names": "root"},
        )
        names = ("from_email", "to", "cc", "bcc", "reply_to", "extra_headers")
        kept = {name: getattr(message, name) for name in names}
        assert message.send() == 1
        assert {name: getattr(message, name) for name in names} == kept
        message.from_email = None
        try:
            message.send()
        except (outmail.Refused, ValueError):
            pass
        else:
            raise AssertionError
    """)
    (status,) = project.statuses()
    assert status.sender == "root@o.test"
    assert [r.address for r in status.recipients] == [
        "John@o.test", "ann@o.test", "a@x.test", "cc@o.test", "eve@o.test",
    ]  # fmt: skip
    with Outbox(project.folder / "queue.db", deliver="never") as box:
        head = box.content(status.id).partition(b"\r\n\r\n")[0] + b"\r\n"
    for line in (
        b"From: Cron <root@o.test>", b"To: John@o.test, Ann <ann@o.test>, a@x.test", b"Cc: cc@o.test",
        b"Reply-To: help@o.test", b"Sender: daemon@o.test", b"X-Names: root",
    ):  # fmt: skip
        assert line + b"\r\n" in head, head
    assert b"hidden" not in head


def test_attributes_of_anymail_are_mapped_refused_or_named(project: Project) -> None:
    out = project.story("""
        import datetime
        import outmail
        from outmail.contrib.django import queue

        message = mail.EmailMessage("s", "t", "Shop <shop@x.test>", ["a@x.test"])
        message.tags = ["orders", "grün"]
        message.metadata = {"order": 7, "who": "Ö" * 300}
        message.envelope_sender = "Bounces <bounce+7@x.test>"
        message.send_at = datetime.date(2099, 5, 1)
        message.track_clicks = message.track_opens = True
        message.esp_extra = {"x": 1}
        assert message.send() == 1 and message.extra_headers == {}
        (status,) = queue.outbox().find()
        content = queue.outbox().content(status.id)
        assert status.sender == "bounce+7@x.test" and status.tag == "orders"
        assert status.recipients[0].next_try_at > 4_080_000_000_000  # in April of 2099
        assert b"X-Tag: " in content and b"From: Shop <shop@x.test>" in content
        assert max(map(len, content.split(b"\\n"))) < 998
        import email, json
        found = email.message_from_bytes(content, policy=email.policy.default)
        assert found["x-tag"] == "orders, grün" and json.loads(found["x-metadata"])["order"] == 7
        for name, value in (
            ("template_id", "t-1"), ("merge_data", {"a@x.test": {}}), ("metadata", "x"), ("send_at", "soon"),
            ("metadata", {"long": "x" * 1000}), ("tags", ["x" * 1000]),
        ):
            bad = mail.EmailMessage("s", "t", None, ["a@x.test"])
            setattr(bad, name, value)
            try:
                bad.send()
            except outmail.Refused as refusal:
                assert name in str(refusal)
            else:
                raise AssertionError(name)
        from django.core.checks import run_checks
        from django.test import override_settings
        assert not [one for one in run_checks() if one.id.startswith("outmail")]
        with override_settings(ANYMAIL={"SEND_DEFAULTS": {"track_opens": True}}):
            told = {one.id: one.msg for one in run_checks()}
            assert "SEND_DEFAULTS" in told["outmail.W002"]
            assert "track_clicks" in told["outmail.I001"] and "template_id" in told["outmail.I001"]
        print("seen")
    """)
    assert out == "seen\n"


@pytest.mark.skipif(not MODERN, reason="MAILERS came with Django 6.1, which needs Python 3.12")
def test_mailers(project: Project) -> None:
    project.story("""
        with transaction.atomic():
            mail.send_mail("beside", "text", None, ["a@x.test"], using="other")
        try:
            type(mail.mailers.default)(alias="x", nonsense=1)
        except Exception as problem:
            assert "nonsense" in str(problem)
        else:
            raise AssertionError
    """)
    assert [s.subject for s in project.statuses()] == ["beside"]


def test_checks_say_what_is_wrong(project: Project) -> None:
    assert "no issues" in project.manage("check").stdout
    settings = project.folder / "settings.py"
    settings.write_text(settings.read_text() + 'OUTMAIL["stor"] = 1\n')
    done = project.manage("check", check=False)
    assert done.returncode != 0 and "outmail.E001" in done.stderr and "'stor'" in done.stderr


def test_no_migration_is_missing(project: Project) -> None:
    assert "No changes detected" in project.manage("makemigrations", "--check", "--dry-run", "outmail").stdout


def test_the_admin_lists_retries_and_cancels(project: Project) -> None:
    out = project.story("""
        from django.contrib.auth.models import User, Permission
        from django.test import Client

        User.objects.create_superuser("root", "r@x.test", "pw")
        looker = User.objects.create_user("looker", password="pw", is_staff=True)
        looker.user_permissions.add(
            Permission.objects.get(codename="view_message", content_type__app_label="outmail")
        )
        mail.send_mail("<b>to be seen</b>", "text", None, ["a@x.test"])
        from outmail.contrib.django import queue

        (status,) = queue.outbox().find()
        queue.outbox().hold(status.id)
        queue.outbox().release(status.id)
        client = Client()
        assert client.login(username="root", password="pw")
        page = client.get("/admin/outmail/message/").content.decode()
        assert (
            "&lt;b&gt;to be seen" in page
            and "a@x.test" in page
            and "Cancel" in page
            and "Add" not in page.split("result_list")[1]
        )
        assert "Nothing found" in client.get("/admin/outmail/message/?q=to:nobody").content.decode()
        assert "unknown" in client.get("/admin/outmail/message/?q=nonsense:1").content.decode().lower()
        assert client.get(f"/admin/outmail/message/{status.id}/change/").status_code == 200
        assert client.get("/admin/outmail/message/00000000000000000000000000/change/").status_code == 404
        chosen = {"action": "cancel", "id": [status.id]}
        assert client.post("/admin/outmail/message/", chosen).status_code == 302
        assert queue.outbox().status(status.id).status == "cancelled"
        other = Client()
        assert other.login(username="looker", password="pw")
        assert "Cancel" not in other.get("/admin/outmail/message/?q=state:cancelled").content.decode()
        chosen = {"action": "retry", "id": [status.id]}
        assert other.post("/admin/outmail/message/", chosen).status_code == 403
        assert Client().get("/admin/outmail/message/").status_code == 302
        assert client.get("/admin/").status_code == 200
        print("seen")
    """)
    assert out == "seen\n"


def test_the_admin_shows_every_recipient_with_times_and_a_sealed_preview(
    project: Project, sink: Sink
) -> None:
    sink.script("RCPT bad@*: 550 5.1.1 nobody of this name\nRCPT slow@*: 451 4.7.1 greylisted")
    project.story("""
        html = '<p>Thank <img src="https://evil.test/x.png"><script>alert(1)</script></p>'
        message = mail.EmailMultiAlternatives(
            "mixed", "Thank you.", None, ["good@x.test", "bad@x.test", "slow@x.test"]
        )
        message.attach_alternative(html, "text/html")
        message.attach("bill.csv", "1;2", "text/csv")
        message.send()
        mail.send_mail("waits", "text", None, ["slow@x.test"])
    """)
    project.manage("outmail", "run", "--once")
    out = project.story(r"""
        import re
        from django.contrib.auth.models import User
        from django.test import Client
        from outmail.contrib.django import queue

        User.objects.create_superuser("root", "r@x.test", "pw")
        client = Client()
        assert client.login(username="root", password="pw")
        base = "/admin/outmail/message/"
        (mixed,) = queue.outbox().find("subject:mixed")

        def listed(words):
            page = client.get(base, {"q": words}).content.decode()
            return [subject for subject in ("mixed", "waits") if f">{subject}</a>" in page]

        assert listed("") == ["mixed", "waits"] == listed("ALL") and listed(mixed.id) == ["mixed"]
        assert listed("ALL state:failed") == ["mixed"] == listed("state:failed") == listed("code:550")
        for page in (client.get(base), client.get(f"{base}{mixed.id}/change/")):
            text = page.content.decode()
            assert "nobody of this name" in text and "greylisted" in text and "delivered" in text
            assert "deferred" in text and re.search(r"\d\d:\d\d C[SD]T", text)  # Django's own zone
        assert 'sandbox=""' in text and "default-src &#x27;none&#x27;" in text
        assert "&lt;script&gt;alert(1)" in text and "<script>alert(1)" not in text
        assert "<pre>Thank you." in text and "bill.csv" in text
        assert "good@x.test, bad@x.test, slow@x.test by" in text or "bad@x.test by" in text

        assert client.post(base, {"action": "retry", "id": [mixed.id]}).status_code == 302
        states = {r.address: r.state for r in queue.outbox().status(mixed.id).recipients}
        assert states == {"good@x.test": "delivered", "bad@x.test": "queued", "slow@x.test": "queued"}
        queue.outbox().cancel(mixed.id)
        page = client.post(base, {"action": "retry", "id": [mixed.id]}, follow=True).content.decode()
        assert "Waiting and failed recipients can be tried again" in page
        print("seen")
    """)
    assert out == "seen\n"


def test_every_page_of_the_admin_answers_for_every_kind_of_message(project: Project) -> None:
    out = project.story(r"""
        from django.contrib.auth.models import User
        from django.contrib.contenttypes.models import ContentType
        from django.test import Client
        from outmail.contrib.django import queue
        from outmail.contrib.django.models import Message

        User.objects.create_superuser("root", "r@x.test", "pw")
        box = queue.outbox()
        odd = [
            "<script>alert(1)</script>",
            "=?utf-8?b?G1szMW0bXTA7eAc=?=",
            "=?utf-8?q?=C2=9B31m=E2=80=AEevil?=",
            "ä😀中",
            "",
            "a" * 3000,
        ]
        ids = [
            box.submit(
                f"A: b\r\nSubject: {subject}\r\n\r\n".encode(),
                sender=None,
                recipients=["a@x.test", '"<b>"@x.test'],
                tag="<i>",
            ).id
            for subject in odd
        ]
        ids += [box.send("k@x.test", "with a key", "t", sender="m@x.test", key="<u>", priority="high").id]
        for id, change in zip(ids, (box.hold, box.cancel, box.retry)):
            assert change(id)
        client = Client(raise_request_exception=True)
        assert client.login(username="root", password="pw")
        base = "/admin/outmail/message/"
        for filter in (
            "",
            "is:live",
            "state:held",
            "to:a@x.test",
            "'",
            "‮",
            "before:x",
            "larger:x",
            "-",
            "is:nothing",
            "x" * 5000,
        ):
            page = client.get(base, {"q": filter})
            assert page.status_code == 200, filter
            text = page.content.decode()
            marked = any(mark in text for mark in "\x1b\x9b\u202e")
            assert "<script>alert(1)" not in text and (not marked or filter == "‮"), filter
        for id in [*ids, "0" * 26, "nothing", "is:live", "a_2Fb", "ä", "x" * 300]:
            known = 200 if id in ids else 404
            page = client.get(f"{base}{id}/change/")
            assert page.status_code == known, (id, page.status_code)
            if known == 200:
                text = page.content.decode()
                assert (
                    "<script>alert(1)" not in text
                    and "<b>" not in text
                    and "<i>" not in text
                    and "<u>" not in text
                    and "\x1b" not in text
                )
            assert client.get(f"{base}{id}/history/").status_code == 302
            assert client.get(f"{base}{id}/history/", follow=True).status_code == known
            assert client.get(f"{base}{id}/", follow=True).status_code == known
            for ask in (client.get, client.post):
                assert ask(f"{base}{id}/delete/").status_code == 403
                assert ask(f"{base}add/").status_code == 403
            kind = ContentType.objects.get_for_model(Message, for_concrete_model=False)
            assert client.get(f"/admin/r/{kind.pk}/{id}/").status_code == 404
        asked = {"app_label": "outmail", "model_name": "message", "field_name": "id"}
        assert client.get("/admin/autocomplete/", asked).status_code in (403, 404)
        for page in ("/admin/", "/admin/outmail/", "/admin/jsi18n/"):
            assert client.get(page).status_code == 200
        assert client.post(f"{base}is:live/change/", {"action": "cancel"}).status_code == 302
        assert client.post(base, {"action": "cancel", "id": ["is:live", "", ids[3]]}).status_code == 302
        assert {s.status for s in box.find("state:cancelled")} == {"cancelled"} and len(
            list(box.find("state:cancelled"))
        ) == 2
        nobody = Client()
        for path in ("", f"{ids[0]}/history/", f"{ids[0]}/delete/", f"{ids[0]}/change/", "add/"):
            assert nobody.get(base + path).status_code == 302
        box.close()
        broken = queue.options()["store"]
        for name in (broken, broken + "-wal", broken + "-shm"):
            os.path.exists(name) and os.unlink(name)
        open(broken, "w").write("this is no database" * 100)
        page = client.get(f"{base}{ids[0]}/change/", follow=True)
        assert page.status_code == 200 and "cannot be opened" in page.content.decode()
        print("seen")
    """)
    assert out == "seen\n"


def test_the_command_is_outmails_own(project: Project) -> None:
    project.story('mail.send_mail("listed", "text", None, ["a@x.test"])')
    assert "listed" in project.manage("outmail", "queue", "list").stdout
    assert project.manage("outmail", "show", "nothing", check=False).returncode == 66
    assert "usage: outmail" in project.manage("outmail", "--help").stdout
