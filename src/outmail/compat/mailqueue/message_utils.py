"""Messages and results, as mailqueue-runner's transports and plugins know them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from email.message import Message
from email.parser import BytesHeaderParser
from email.policy import SMTP
from email.utils import format_datetime, parsedate_to_datetime
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple, Protocol

from outmail.compat.mailqueue import spool


class SMTPResponse(NamedTuple):
    """What a server answered."""

    code: int
    message: str


class Result:
    """A value with named details: ``Result(True, host="x").host``. It is as true, and as long, as its value.
    Only details that were given to the constructor can be set.
    """

    value: Any
    data: dict[str, Any]

    def __init__(self, value: Any, **data: Any) -> None:
        self.__dict__.update(value=value, data=data)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("value", "data"):
            self.__dict__[name] = value
        elif name in self.data:
            self.data[name] = value
        else:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __bool__(self) -> bool:
        return bool(self.value)

    def __len__(self) -> int:
        return len(self.value)

    def __eq__(self, other: object) -> bool:
        return bool(self.value == (other.value if isinstance(other, Result) else other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        words = [repr(self.value), *(f"{name}={value!r}" for name, value in sorted(self.data.items()))]
        return f"{type(self).__name__}({', '.join(words)})"


class SendResult(Result):
    """What a transport made of a message; true when it took it for everybody. ``remaining``: the recipients
    who did not get it, where some did; None means all or nobody.
    """

    def __init__(
        self,
        was_sent: bool,
        queued: bool | None = None,
        transport: str | None = None,
        host: str | None = None,
        smtp_response: Any = None,
        error: str | None = None,
        remaining: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            was_sent,
            queued=queued,
            transport=transport,
            discarded=None,
            host=host,
            smtp_response=smtp_response,
            error=error,
            remaining=remaining,
        )


class Transport(Protocol):
    """Anything that takes a message: a server, a queue."""

    def send(self, from_addr: str, to_addrs: Sequence[str], message: Any) -> SendResult | bool: ...


class MsgInfo:
    """An envelope with its message, as a file that can be read."""

    def __init__(
        self,
        from_addr: str | None,
        to_addrs: Sequence[str] | None,
        msg_fp: BinaryIO,
        queue_date: datetime | None = None,
        last: datetime | None = None,
        retries: int | None = None,
    ) -> None:
        self.from_addr, self.to_addrs, self.msg_fp = from_addr, to_addrs, msg_fp
        self.queue_date, self.last, self.retries = queue_date or dt_now(), last, retries or 0

    @property
    def msg_bytes(self) -> bytes:
        at = self.msg_fp.tell()
        self.msg_fp.seek(0)
        try:
            return self.msg_fp.read()
        finally:
            self.msg_fp.seek(at)

    @property
    def msg_id(self) -> str | None:
        """The Message-ID without its brackets."""
        found = BytesHeaderParser().parsebytes(self.msg_bytes, headersonly=True)["Message-ID"]
        return str(found).strip().strip("<>") if found is not None else None


def dt_now() -> datetime:
    """The present time, aware, in the local zone."""
    return datetime.now().astimezone()


def msg_as_bytes(msg: Any) -> bytes:
    """bytes, an `email.message.Message` or a file → bytes. Raises ValueError for anything else."""
    if isinstance(msg, Message):
        return msg.as_bytes(policy=SMTP)
    if isinstance(msg, bytes):
        return msg
    if hasattr(msg, "read"):
        return bytes(msg.read())
    raise ValueError(f"a message is bytes, an email.message.Message or a file, not {msg!r}")


def parse_message_envelope(fp: BinaryIO) -> MsgInfo:
    """The bytes of a queue file → envelope and message. Raises ValueError."""
    try:
        envelope, content = spool.unpacked(fp.read())
        queued, last = _moment(envelope.queued), _moment(envelope.last)
    except ValueError as problem:
        raise ValueError(f"the queue file {problem}") from None
    return MsgInfo(envelope.sender, envelope.recipients, BytesIO(content), queued, last, envelope.retries)


def _moment(text: str) -> datetime | None:
    """A date with its zone; ``-0000`` is UTC (RFC 5322, section 3.3). Raises ValueError with a clause, also
    for a year, an hour or a zone that no date has.
    """
    if not text:
        return None
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        raise ValueError("has a date that is none") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def serialize_message_with_queue_data(
    msg: Any,
    sender: str | bytes,
    recipients: Sequence[str | bytes],
    queue_date: datetime | None = None,
    last: datetime | None = None,
    retries: int | None = None,
) -> bytes:
    """The bytes of a queue file. Raises ValueError for an address that it cannot hold."""
    envelope = spool.Envelope(
        _text(sender),
        [_text(recipient) for recipient in recipients],
        format_datetime(queue_date or dt_now()),
        format_datetime(last) if last else "",
        retries or 0,
    )
    return spool.packed(envelope, msg_as_bytes(msg))


def _text(address: str | bytes) -> str:
    return address.decode("utf-8", "surrogateescape") if isinstance(address, bytes) else address
