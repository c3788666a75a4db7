"""Questions to a person at a terminal, or their answers from the command line.

Promises: with ``--yes`` nothing is asked: the default is the answer, and a question without one is a usage
error that names the option. Without a terminal, too, each question is such an error, before anything was
done. A secret is never echoed.
Fails: `Missing`; KeyboardInterrupt for Ctrl-C and for an input that ends. Does not: know what is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from outmail.policy.plain import plain_line

#: How often a wrong answer is asked for again.
TRIES = 3


class Missing(Exception):
    """An answer that cannot be asked for."""


class Asker:
    """``yes``: nobody is asked."""

    def __init__(self, *, yes: bool) -> None:
        self.yes = yes

    def tell(self, line: str = "") -> None:
        print(plain_line(line), file=sys.stderr, flush=True)

    @property
    def can_ask(self) -> bool:
        return not self.yes and sys.stdin.isatty()

    def text(
        self, question: str, option: str, default: str = "", check: Callable[[str], str] | None = None
    ) -> str:
        """A line. ``check`` returns the answer as it shall be, or raises ValueError with what is wrong; then
        the question comes again.
        """
        for _ in range(TRIES):
            answer = self._line(question, option, default)
            try:
                return check(answer) if check is not None else answer
            except ValueError as problem:
                if not self.can_ask:
                    raise
                self.tell(f"  {problem}")
        raise Missing(f"no usable answer after {TRIES} tries; it can be given as {option}")

    def agrees(self, question: str, option: str, *, default: bool = True) -> bool:
        """Yes or no."""
        if self.yes:
            return default

        def check(answer: str) -> str:
            if answer.lower() not in ("y", "yes", "n", "no"):
                raise ValueError("answer y or n")
            return answer.lower()

        said = self.text(
            f"{question} [{'Y/n' if default else 'y/N'}]", option, "y" if default else "n", check
        )
        return said.startswith("y")

    def choice(self, question: str, option: str, choices: Sequence[tuple[str, str]], default: str) -> str:
        """One of (word, what it means)."""
        if not self.yes:
            self.tell(question)
            for word, means in choices:
                self.tell(f"  {word:<9} {means}")
        words = [word for word, _ in choices]

        def check(answer: str) -> str:
            if answer not in words:
                raise ValueError(f"answer one of {', '.join(words)}")
            return answer

        return self.text(f"Which? [{default}]", option, default, check)

    def secret(self, question: str, option: str) -> str:
        """What is not echoed."""
        if not self.can_ask:
            raise Missing(self._lacks(option))
        import getpass

        try:
            return getpass.getpass(f"{question} (it is not shown): ", sys.stderr)
        except EOFError:
            raise KeyboardInterrupt from None

    def _line(self, question: str, option: str, default: str) -> str:
        if self.yes and default:
            return default
        if not self.can_ask:
            raise Missing(self._lacks(option))
        print(plain_line(question), end=" ", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()
        if not answer:
            raise KeyboardInterrupt
        return answer.strip() or default

    def _lacks(self, option: str) -> str:
        why = "with --yes nothing is asked" if self.yes else "there is no terminal to ask at"
        return f"{option} is missing, and {why}"
