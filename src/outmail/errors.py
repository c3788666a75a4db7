"""The errors that a caller can get, as five classes.

Promises: every message is a sentence that says what happened and what to do. ``code`` is one stable
lower-case word, the same in ``Refused.code``, in the command's JSON errors and in ``outmail explain``.
Does not: cover delivery. A relay that refuses a recipient is a value (`model.Outcome`), never an exception.
"""

from __future__ import annotations

import errno


class Error(Exception):
    """Base of everything outmail raises on purpose.

    ``code`` is a stable lower-case word; ``hint`` says what to do next and may be empty.
    """

    code: str = "error"

    def __init__(self, message: str = "", *, code: str | None = None, hint: str = "") -> None:
        super().__init__(message or (self.__doc__ or "").strip())
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return self.message


class Refused(Error, ValueError):
    """The message cannot be accepted as it is; nothing was stored.

    ``index`` is the position of the bad item in ``send_many`` and ``submit_many``, else None.
    """

    code = "refused"

    def __init__(
        self, message: str, *, code: str = "refused", hint: str = "", index: int | None = None
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.index = index


class NotStored(Error, OSError):
    """The store could not take the message now; nothing was stored, and the caller still has it.

    ``errno`` is set when the cause is one of the system's (EACCES, EROFS, ENOSPC …).
    """

    code = "not-stored"

    def __init__(
        self, message: str, *, code: str = "not-stored", hint: str = "", errno: int | None = None
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.errno = errno

    @property
    def forbidden(self) -> bool:
        """True when trying again is useless until somebody changes permissions (exit status 77)."""
        return self.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


class ConfigError(Error):
    """A setting or argument is wrong; nothing was started."""

    code = "config"


class NotFound(Error, LookupError):
    """No message or recipient with this id is in the store."""

    code = "not-found"
