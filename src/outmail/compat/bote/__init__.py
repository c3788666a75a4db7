"""The package bote, 1.2 and 2.0: write ``from outmail.compat import bote`` instead of ``import bote``.

A dictionary of settings, and plain-text mails with them. `mailer` says what is the same and what is better;
docs/compat.md lists each difference.
"""

from outmail import __version__
from outmail.compat.bote import err
from outmail.compat.bote.err import (
    BoteException,
    MissingMailContent,
    MissingSubject,
    NotAnEmail,
    UnencryptedRemoteConnection,
)
from outmail.compat.bote.mailer import Mailer

NAME = "bote"
__author__ = "the outmail authors"

__all__ = [
    "NAME",
    "BoteException",
    "Mailer",
    "MissingMailContent",
    "MissingSubject",
    "NotAnEmail",
    "UnencryptedRemoteConnection",
    "__author__",
    "__version__",
    "err",
]
