"""``@outmail.notify()``: a job around each call of a function, coroutine function, generator or asynchronous
generator.

Promises: the result, the exception and the kind of function are not changed. Does not: show arguments or
results unless asked.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

from outmail.errors import ConfigError
from outmail.reports.jobs import Job
from outmail.reports.mail import one_line
from outmail.reports.records import in_words

F = TypeVar("F", bound=Callable[..., Any])
WORDS = ("start", "finish", "fail", "stop")


@overload
def notify(function: F) -> F: ...
@overload
def notify(
    function: None = None,
    *,
    on: Iterable[str] = ...,
    name: str | None = None,
    result: Callable[[Any], str] | None = None,
    **options: Any,
) -> Callable[[F], F]: ...
def notify(
    function: Any = None,
    *,
    on: Iterable[str] = ("fail", "finish", "stop"),
    name: str | None = None,
    result: Callable[[Any], str] | None = None,
    **options: Any,
) -> Any:
    """Mail when a call of the function starts, finishes, fails or is stopped (``on``).

    ``name``: the job's name (default: the function's). ``result``: turns the result into text for the finish
    mail, such as ``repr``. The other options are those of `Job`: to, after_failures, remind, quiet_under,
    outbox, strict …
    """
    words = (on,) if isinstance(on, str) else tuple(on)
    for word in words:
        if word not in WORDS:
            raise ConfigError(f"notify(on={word!r}): known are {', '.join(WORDS)}")
    says = {word: word in words for word in WORDS}

    def decorate(wrapped: F) -> F:
        def begin() -> Job:
            return Job(name or wrapped.__qualname__, bar=False, **{**says, **options})

        begin()  # wrong options raise now
        return _wrapper(wrapped, begin, result)  # type: ignore[return-value]

    return decorate(function) if function is not None else decorate


def _wrapper(
    wrapped: Any, begin: Callable[[], Job], result: Callable[[Any], str] | None
) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(wrapped):

        @functools.wraps(wrapped)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            with begin() as job:
                answer = await wrapped(*args, **kwargs)
                _show(job, answer, result)
            return answer

        return call_async
    if inspect.isasyncgenfunction(wrapped):

        @functools.wraps(wrapped)
        async def iterate_async(*args: Any, **kwargs: Any) -> Any:
            with begin() as job:
                async for item in wrapped(*args, **kwargs):
                    yield item
                    job.update()

        return iterate_async
    if inspect.isgeneratorfunction(wrapped):

        @functools.wraps(wrapped)
        def iterate(*args: Any, **kwargs: Any) -> Any:
            with begin() as job:
                answer = yield from _counted(wrapped(*args, **kwargs), job)
            return answer

        return iterate

    @functools.wraps(wrapped)
    def call(*args: Any, **kwargs: Any) -> Any:
        with begin() as job:
            answer = wrapped(*args, **kwargs)
            _show(job, answer, result)
        return answer

    return call


def _counted(generator: Any, job: Job) -> Any:
    """``yield from`` that counts; what is sent or thrown in and the return value pass through."""
    sent = None
    try:
        item = next(generator)
        while True:
            try:
                sent = yield item
            except GeneratorExit:
                generator.close()
                raise
            except BaseException as problem:
                item = generator.throw(problem)
            else:
                job.update()
                item = generator.send(sent)
    except StopIteration as stop:
        return stop.value


def _show(job: Job, answer: Any, result: Callable[[Any], str] | None) -> None:
    if result is None:
        return
    try:
        job.update(0, Result=one_line(str(result(answer)), 500))
    except Exception as problem:
        job.update(0, Result=f"({in_words(problem)} while it was put into words)")
