"""A server's certificate and key, which are read again when their files change.

Promises: the first reading raises `ConfigError` on errors. Later `renew` reads the files only when one of
them was exchanged or has another time or size. A pair that cannot be used is logged once, and the old pair
stays in use. A new pair is used for new handshakes; existing connections keep theirs. Does not: look for
changes by itself (the service does, regularly and on SIGHUP), or request certificates.
"""

from __future__ import annotations

import logging
import os
import ssl

from outmail.errors import ConfigError
from outmail.system.trust import warn_if_open

log = logging.getLogger("outmail")

Mark = list[tuple[int, int, int]]


class Certificate:
    """``context`` is used for the next handshake. ``key`` may be "": then the key is in the certificate's
    file. ``asks``: a password of the key may be asked for at the terminal.
    """

    def __init__(self, section: str, path: str, key: str, *, asks: bool = True) -> None:
        self._section, self._path, self._key = section, path, key
        self._mark = self._look()
        try:
            self.context = self._read(None if asks else "")
        except OSError as problem:  # ssl's own errors are OSErrors, too
            raise ConfigError(f"[{section}] certificate {path}: {problem.strerror or problem}") from None
        warn_if_open(key or path, f"[{section}] key")

    def renew(self) -> bool:
        """True when there is a new context."""
        mark = self._look()
        if mark == self._mark:
            return False
        self._mark = mark
        try:
            self.context = self._read(password="")  # nobody is there to be asked for a password
        except OSError as problem:
            said = problem.strerror or problem
            log.error(
                "[%s] the new certificate %s cannot be used: %s; the old one stays in use",
                self._section,
                self._path,
                said,
            )
            return False
        log.info("[%s] the certificate %s was read again", self._section, self._path)
        return True

    def _look(self) -> Mark:
        """What distinguishes the files from others of the same name; nothing while one is missing."""
        try:
            found = [os.stat(path) for path in (self._path, self._key or self._path)]
        except OSError:
            return []
        return [(status.st_ino, status.st_mtime_ns, status.st_size) for status in found]

    def _read(self, password: str | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._path, self._key or None, password)
        return context
