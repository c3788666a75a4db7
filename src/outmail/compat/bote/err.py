"""The exceptions of the package bote, with its names and hierarchy, and one that is both of those which its
versions raise in the same case.
"""


class BoteException(Exception):
    """The base of bote's own exceptions."""


class UnencryptedRemoteConnection(BoteException):
    """The server is another machine, and ``encryption`` is off."""


class NotAnEmail(BoteException):
    """The sender or a recipient is no address."""


class MissingSubject(BoteException, ValueError):
    """A mail without a subject."""


class MissingMailContent(BoteException, ValueError):
    """A mail without a text."""


class WrongType(TypeError, ValueError):
    """A setting of the wrong type: bote 2.0 raises TypeError, bote 1.2 ValueError."""
