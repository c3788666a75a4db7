"""What every fuzz target has in common: ``python tests/fuzz/TARGET.py --seconds N [--seed S]``.

Exit: 0 when nothing was found, 1 for an exception, a call that takes longer than a second of CPU, or memory
that goes on growing. The input is printed and kept in ``--keep`` (default: the folder for temporary files),
so that it can be made a test. With atheris the inputs are led by coverage; where it is not installed they are
mutations of the seeds, which finds less. Does not: touch the network or the disk beside that file.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

#: CPU seconds of one call, and bytes that memory may grow after the first tenth of the time.
HANG = 1.0
GROWTH = 200_000_000
#: Octets of one input.
LONGEST = 8192


class Found(Exception):
    """Something is wrong with the target."""


def run(
    name: str, seeds: Sequence[bytes], modules: Sequence[str], make: Callable[[], Callable[[bytes], None]]
) -> None:
    """``make()`` gives the target, once ``modules`` are imported (and instrumented, with atheris)."""
    parser = argparse.ArgumentParser(prog=name)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", default=tempfile.gettempdir())
    parser.add_argument("--plain", action="store_true", help="mutations of the seeds only, without atheris")
    parser.add_argument("input", nargs="?", help="a file that was kept: run only this")
    words = parser.parse_args()
    seed = words.seed if words.seed is not None else random.SystemRandom().randrange(2**31)
    atheris = None
    if not words.plain and not words.input:
        with contextlib.suppress(ImportError):
            atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["outmail"]) if atheris else contextlib.nullcontext():
        for module in modules:
            importlib.import_module(module)
    target = make()
    watched = Watched(name, target, words.keep)
    if words.input:
        watched(Path(words.input).read_bytes())
        return
    print(
        f"{name}: {words.seconds:.0f} s, seed {seed}, {'led by coverage' if atheris else 'mutations only'}",
        flush=True,
    )
    if atheris:
        _led(atheris, watched, seeds, words.seconds, seed)
    else:
        _mutated(watched, seeds, words.seconds, seed)
        print(f"{name}: {watched.count} inputs, nothing found", flush=True)


class Watched:
    """The target with its limits."""

    def __init__(self, name: str, target: Callable[[bytes], None], keep: str) -> None:
        self.name, self.target, self.keep = name, target, keep
        self.count, self.base = 0, 0
        self.began = time.monotonic()

    def __call__(self, data: bytes) -> None:
        before = time.thread_time()
        try:
            self.target(data)
            if time.thread_time() - before > HANG:
                raise Found(f"one call took {time.thread_time() - before:.1f} s of CPU")
            self._memory()
        except BaseException:
            path = os.path.join(self.keep, f"outmail-{self.name}-{hashlib.sha256(data).hexdigest()[:12]}")
            Path(path).write_bytes(data)
            traceback.print_exc()
            print(f"{self.name}: found by {data[:200]!r}; kept as {path}", file=sys.stderr, flush=True)
            os._exit(1)
        self.count += 1

    def _memory(self) -> None:
        if self.count % 1000 or time.monotonic() - self.began < 3:
            return
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        self.base = self.base or now
        if now - self.base > GROWTH:
            raise Found(f"memory has grown by {(now - self.base) / 1e6:.0f} MB")


def _led(atheris: object, watched: Watched, seeds: Sequence[bytes], seconds: float, seed: int) -> None:
    with tempfile.TemporaryDirectory(prefix="outmail-fuzz-") as corpus:
        for i, one in enumerate(seeds):
            Path(corpus, f"seed{i}").write_bytes(one)
        flags = [
            f"-max_total_time={max(1, int(seconds))}",
            f"-seed={seed % 2**31 or 1}",
            f"-max_len={LONGEST}",
            "-rss_limit_mb=2048",
            "-verbosity=0",
            f"-artifact_prefix={watched.keep}/",
            corpus,
        ]
        atheris.Setup([watched.name, *flags], watched)  # type: ignore[attr-defined]
        atheris.Fuzz()  # type: ignore[attr-defined]


def _mutated(watched: Watched, seeds: Sequence[bytes], seconds: float, seed: int) -> None:
    chance = random.Random(seed)
    pool = [*seeds, b""]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        watched(mutated(chance, pool)[:LONGEST])


def mutated(chance: random.Random, pool: Sequence[bytes]) -> bytes:
    """A seed with some of it changed, cut, doubled, or joined with another one."""
    data = bytearray(chance.choice(pool))
    for _ in range(chance.randrange(1, 8)):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] = chance.randrange(256)
        elif kind == 1:
            data[at:at] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 2:
            del data[at : at + chance.randrange(1, 20)]
        elif kind == 3:
            data[at:at] = data[at : at + chance.randrange(1, 40)] * chance.randrange(1, 30)
        elif kind == 4:
            data[at:at] = chance.choice(pool)
        else:
            data[at:at] = chance.choice(
                (
                    b"\r\n",
                    b"\0",
                    b".\r\n",
                    b"\xff",
                    b'"',
                    b"\\",
                    b"<",
                    b">",
                    b"=?",
                    b"\xe2\x80\xae",
                    b"\xc2\x9b",
                    b"9" * 30,
                )
            )
    return bytes(data)
