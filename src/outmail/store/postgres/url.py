"""``postgresql://…`` as the URL of a store: its form for libpq, our own options in it, and a short name for
files.

Fails: `ConfigError` when it is no such URL, or its options exclude each other. Does not: connect.
"""

from __future__ import annotations

import hashlib
import re

from outmail.errors import ConfigError
from outmail.store import shown
from outmail.store.postgres.connection import psycopg

#: Seconds that connecting may take.
CONNECT = 10


def asked(url: str, word: str) -> bool:
    """True when the URL contains ``word=1``. ``pgbouncer`` and ``notify`` are our options, not libpq's."""
    found = re.search(rf"[?&]{word}=([^&]*)", url)
    return found is not None and found[1] not in ("0", "false", "no")


def conninfo_of(url: str) -> tuple[str, bool]:
    """``postgresql://…`` → (its form for libpq, True when statements may be prepared)."""
    library = psycopg()
    if asked(url, "pgbouncer") and asked(url, "notify"):
        raise ConfigError(
            f"{shown(url)}: NOTIFY does not work behind PgBouncer",
            hint="leave notify=1 out; polling finds mail from other hosts",
        )
    bare = url
    for word in ("pgbouncer", "notify"):
        bare = re.sub(rf"([?&]){word}=[^&]*&?", r"\1", bare)
    try:
        words = library.conninfo.conninfo_to_dict(bare.rstrip("?&"))
    except library.Error as problem:
        raise ConfigError(f"{shown(url)} is no URL of a PostgreSQL database: {problem}") from None
    words.setdefault("connect_timeout", CONNECT)
    words.setdefault("application_name", "outmail")
    words.setdefault("keepalives_idle", 30)
    words.setdefault("tcp_user_timeout", 30_000)
    if "," in str(words.get("host", "")):
        words.setdefault("target_session_attrs", "read-write")
    return library.conninfo.make_conninfo(**words), not asked(url, "pgbouncer")


def place_of(url: str) -> str:
    """A short name for the database of a URL, used in names of files on this host."""
    words = psycopg().conninfo.conninfo_to_dict(conninfo_of(url)[0])
    place = "\0".join(str(words.get(name, "")) for name in ("host", "hostaddr", "port", "dbname", "service"))
    return f"postgresql-{hashlib.sha256(place.encode()).hexdigest()[:12]}"
