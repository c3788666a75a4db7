"""Mail in a transaction of the package `transaction` (Zope, Pyramid, ZODB, zope.sqlalchemy): it goes out if
and only if the transaction commits.

    mail = TransactionMail(outbox)
    mail.send("a@example.org", "Your order", "Thank you.")     # stored when the transaction commits

The mail of one transaction is one data manager (`MailDataManager`): two-phase, and aware of savepoints. What
is wrong with a message raises in `send`, not at the commit.
Promises: nothing is stored before ``tpc_finish``, and nothing after an abort; a savepoint that is rolled back
takes along what was sent after it. The vote writes all of it into the store and takes it back, so a store
that would refuse ends the transaction while everybody can still turn back. The vote comes before that of
zope.sqlalchemy, which commits in its own.
Fails: `Refused` and `ConfigError` in `send`; `NotStored` in the vote. Does not: close the gap between vote
and finish: where the store fails in that moment, ``tpc_finish`` raises `NotStored`, the mail is not sent, and
`transaction` logs it as critical. Where the application's database is PostgreSQL or SQLite,
``Outbox.send(using=session)`` has no such gap: the mail is a row of the same transaction.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

from outmail.clock import as_datetime
from outmail.model import Message, Receipt

if TYPE_CHECKING:
    from outmail.outbox.outbox import Outbox


class TransactionMail:
    """Sends with the current transaction of ``manager`` (default: ``transaction.manager``, one for each
    thread). ``outbox``: where it is stored (default: an `Outbox` of its own for the configured store).
    """

    def __init__(self, outbox: Outbox | None = None, *, manager: Any = None) -> None:
        if outbox is None:
            from outmail import Outbox

            outbox = Outbox()
        if manager is None:
            import transaction

            manager = transaction.manager
        self.outbox = outbox
        self.manager = manager

    def send(self, to: Any = (), subject: str = "", text: str | None = None, **words: Any) -> Receipt:
        """As `Outbox.send`, without ``using`` and ``wait``. The receipt says ``durable=False``: the
        transaction decides.
        """
        return self._joined({"to": to, "subject": subject, "text": text, **words})

    def submit(self, content: Any, **words: Any) -> Receipt:
        """As `Outbox.submit`, in the same way."""
        return self._joined({"content": content, **words})

    def _joined(self, words: dict[str, Any]) -> Receipt:
        message = self.outbox.prepared(words)
        current = self.manager.get()
        try:
            mails: MailDataManager = current.data(self)
        except KeyError:
            mails = MailDataManager(self.outbox, self.manager)
            current.set_data(self, mails)
        mails.add(message, current)
        return Receipt(message.id, message.message_id, as_datetime(message.accepted_at), durable=False)


_numbers = count()


class MailDataManager:
    """The mail of one transaction (``transaction.interfaces.ISavepointDataManager``)."""

    def __init__(self, outbox: Outbox, manager: Any) -> None:
        self.transaction_manager = manager
        self.messages: list[Message] = []
        self._outbox = outbox
        self._in = False
        self._key = f"outmail:{next(_numbers):015d}"

    def add(self, message: Message, current: Any) -> None:
        """Joins the transaction with the first message, and again after a savepoint from before it was rolled
        back. Raises what ``join`` raises: a transaction that has failed takes nothing.
        """
        if not self._in:
            current.join(self)
            self._in = True
        self.messages.append(message)

    def sortKey(self) -> str:
        """In the order of joining, and before ``~sqlalchemy``, whose vote cannot be taken back."""
        return self._key

    def savepoint(self) -> Savepoint:
        return Savepoint(self)

    def abort(self, transaction: Any) -> None:
        """Also called when a savepoint is rolled back that is older than our first message."""
        self._forget()

    def tpc_begin(self, transaction: Any) -> None:
        """Nothing is to be done."""

    def commit(self, transaction: Any) -> None:
        """Nothing is to be done before the vote."""

    def tpc_vote(self, transaction: Any) -> None:
        """Raises `NotStored` when the store would not take the mail now."""
        if self.messages:
            self._outbox.door.rehearse(self.messages)

    def tpc_finish(self, transaction: Any) -> None:
        """Accept the mail: when this returns, it is on disk."""
        messages = list(self.messages)
        if messages:
            self._outbox.door.keep(messages, again=True)
        self._forget()

    def tpc_abort(self, transaction: Any) -> None:
        self._forget()

    def _forget(self) -> None:
        self.messages.clear()
        self._in = False


class Savepoint:
    """``transaction.interfaces.IDataManagerSavepoint``."""

    def __init__(self, mails: MailDataManager) -> None:
        self._mails, self._count = mails, len(mails.messages)

    def rollback(self) -> None:
        """Drop what was sent since. May be called more than once."""
        del self._mails.messages[self._count :]
