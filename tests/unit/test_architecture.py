"""Who may import whom, and where things live: each rule is one test.

All imports count: those at the head of a module, those inside functions, those for the type checker only, and
`import_module` with a literal name. There are no exceptions.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

SRC = Path(__file__).parents[2] / "src" / "outmail"

#: From the lowest layer to the highest. Modules of one layer may import each other, but not in a circle.
LAYERS = [
    ("model", "lifecycle", "errors", "clock"),
    ("policy", "smtp", "mime"),
    ("system",),
    ("store", "transport"),
    ("accept", "engine"),
    ("transactional", "intake", "reports", "returns", "ops"),
    ("config", "wiring", "outbox", "service"),
    ("cli", "unix", "compat", "contrib", "__main__"),
]
#: The package itself hands out names to programs, `testing` helps their tests: only faces may import these.
BESIDE = ("__init__", "testing")
RANK = {name: i for i, names in enumerate(LAYERS) for name in names} | dict.fromkeys(BESIDE, len(LAYERS) - 1)

PURE = ("policy", "smtp", "mime")
IMPURE = {"asyncio", "socket", "ssl", "sqlite3", "apsw", "threading", "subprocess", "time", "os"}
#: Formatting a given moment (gmtime) reads no clock.
ALLOWED_TIME = {"mime/headers.py"}

#: Where each package of others may be imported: a folder or a file.
THIRD_PARTY: dict[str, tuple[str, ...]] = {
    "apsw": ("store/sqlite/",),
    "psycopg": ("store/postgres/", "transactional/"),
    "idna": ("smtp/syntax.py",),
    "uvloop": ("cli/",),
    "cryptography": ("ops/certify.py",),
    "dns": ("cli/lookup.py",),
    "tqdm": ("reports/bar.py",),
    "django": ("contrib/django/",),
    "transaction": ("contrib/transaction.py",),
    "pytest": ("testing/",),
    "hypothesis": ("testing/",),
    "schwarz": ("compat/mailqueue/",),
}
#: Public, although they begin with an underscore (the documentation of `collections.namedtuple`).
OF_TUPLES = {"_make", "_replace", "_asdict", "_fields"}
#: The classes behind a store's URL and a relay's URL.
CONCRETE = (
    "SqliteStore",
    "PostgresStore",
    "MaildirStore",
    "SmtpTransport",
    "LocalTransport",
    "MailboxTransport",
)
ROOT = {"__init__", "__main__", "model", "lifecycle", "errors", "clock", "config", "wiring"}
#: Unit tests about all modules, or about the tests' own tools.
OF_ALL = {"architecture", "contract", "growth", "imports", "starts", "waiting"}


class Import(NamedTuple):
    """One import. ``module``: the name that is imported from; ``name``: what is taken from it, or ""."""

    module: str
    name: str
    line: int

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module


@cache
def files() -> dict[str, Path]:
    """Path below the package → file."""
    return {path.relative_to(SRC).as_posix(): path for path in sorted(SRC.rglob("*.py"))}


@cache
def tree_of(file: str) -> ast.Module:
    return ast.parse(files()[file].read_text())


@cache
def nodes(file: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree_of(file)))


@cache
def imports(file: str) -> tuple[Import, ...]:
    """Every import of a file, wherever it stands in it."""
    return tuple(found for node in nodes(file) for found in _imports(node))


def _imports(node: ast.AST) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, "", node.lineno) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (Import(_absolute(node), alias.name, node.lineno) for alias in node.names)
    elif isinstance(node, ast.Call) and _name(node.func) == "import_module" and node.args:
        yield from (
            Import(str(one.value), "", one.lineno) for one in node.args if isinstance(one, ast.Constant)
        )


def _name(called: ast.expr) -> str:
    return getattr(called, "attr", "") or getattr(called, "id", "")


def _absolute(node: ast.ImportFrom) -> str:
    assert node.level == 0 and node.module, f"line {node.lineno}: write the whole name: from outmail.…"
    return node.module


def module_of(file: str) -> str:
    """``store/__init__.py`` → ``outmail.store``."""
    return ".".join(["outmail", *Path(file).with_suffix("").parts]).removesuffix(".__init__")


def part_of(file: str) -> str:
    """The room, or the module at the root of the package."""
    return Path(file).parts[0].removesuffix(".py")


@cache
def arrows(file: str) -> frozenset[str]:
    """The files of the package that a file imports."""
    homes = {module_of(other): other for other in files()}
    targets = {homes.get(one.dotted) or homes.get(one.module) for one in imports(file)}
    return frozenset(target for target in targets if target)


def judge(sentence: str, found: Mapping[str, list[str]]) -> None:
    """Fail for each file that breaks a rule."""
    wrong = [f"{file}: {what}" for file in found for what in found[file]]
    assert not wrong, f"{sentence}:\n" + "\n".join(wrong)


def test_imports_go_downward() -> None:
    found = {
        file: [
            f"imports {target}"
            for target in sorted(arrows(file))
            if RANK[part_of(target)] > RANK[part_of(file)]
        ]
        for file in files()
        if part_of(file) not in BESIDE
    }
    judge("a module may import its own layer and those below, never one above", found)


def test_nothing_but_a_face_imports_testing() -> None:
    found = {
        file: [f"imports {target}" for target in arrows(file) if part_of(target) == "testing"]
        for file in files()
        if part_of(file) not in ("cli", "testing")
    }
    judge("only the command may import outmail.testing (for its demo)", found)


def test_there_are_no_circles_between_modules() -> None:
    """Also inside a room, for types only, and inside functions."""
    left = [" → ".join(sorted(circle)) for circle in _circles({file: arrows(file) for file in files()})]
    assert not left, "modules must not import each other in a circle:\n" + "\n".join(left)


def _circles(graph: Mapping[str, frozenset[str]]) -> list[frozenset[str]]:
    """The sets of files that reach each other."""
    reach = {file: _reached(graph, file) for file in graph}
    return list(
        {
            frozenset(other for other in reach[file] if file in reach[other])
            for file in graph
            if file in reach[file]
        }
    )


def _reached(graph: Mapping[str, frozenset[str]], start: str) -> set[str]:
    seen: set[str] = set()
    left = list(graph[start])
    while left:
        if (file := left.pop()) not in seen:
            seen.add(file)
            left += graph[file]
    return seen


def test_a_circle_is_found() -> None:
    graph = {"a": frozenset("b"), "b": frozenset("ac"), "c": frozenset("d"), "d": frozenset("")}
    assert _circles(graph) == [frozenset("ab")]
    assert _circles({**graph, "d": frozenset("d")}).count(frozenset("d")) == 1


def test_no_room_reaches_into_the_private_parts_of_another() -> None:
    """Neither by an import, nor as an attribute: a name that begins with one underscore is used in the room
    that defines it.
    """
    homes: dict[str, set[str]] = {}
    for file in files():
        for name in _private_names_made(file):
            homes.setdefault(name, set()).add(part_of(file))
    found = {
        file: [
            f"line {line} uses {name}, which belongs to {', '.join(sorted(homes[name]))}"
            for name, line in _private_names_used(file)
            if part_of(file) not in homes.get(name, {part_of(file)})
        ]
        for file in files()
    }
    judge("what begins with an underscore is for its own room", found)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in ("_", *OF_TUPLES)


def _private_names_made(file: str) -> set[str]:
    made = set()
    for node in nodes(file):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            made.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            made.add(node.attr)
    return {name for name in made if _is_private(name)}


def _private_names_used(file: str) -> Iterator[tuple[str, int]]:
    for one in imports(file):
        if one.module.partition(".")[0] == "outmail" and _is_private(one.name):
            yield one.name, one.line
    for node in nodes(file):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and _is_private(node.attr):
            yield node.attr, node.lineno


def test_store_and_transport_do_not_know_each_other() -> None:
    found = {
        file: [f"imports {target}" for target in arrows(file) if part_of(target) == other]
        for file in files()
        for part, other in (("store", "transport"), ("transport", "store"))
        if part_of(file) == part
    }
    judge("stores know nothing of transports, and transports nothing of stores", found)


def test_decisions_protocols_and_messages_do_no_io() -> None:
    found = {}
    for file in files():
        if part_of(file) in PURE:
            taken = {one.module.split(".")[0] for one in imports(file)} & IMPURE
            if file in ALLOWED_TIME:
                taken.discard("time")
            found[file] = [f"imports {name}" for name in sorted(taken)]
    judge(f"{', '.join(PURE)} decide and translate: no file, socket, thread or clock there", found)


def test_packages_of_others_stay_in_their_room() -> None:
    found: dict[str, list[str]] = {}
    for file in files():
        for one in imports(file):
            package = one.module.split(".")[0]
            if package in sys.stdlib_module_names or package == "outmail":
                continue
            if not file.startswith(THIRD_PARTY.get(package, ("nowhere",))):
                where = ", ".join(THIRD_PARTY.get(package, ())) or "a place that THIRD_PARTY names"
                found.setdefault(file, []).append(
                    f"line {one.line} imports {package}, which belongs in {where}"
                )
    judge("a package of others may be imported in its own room only", found)


def test_only_wiring_names_concrete_stores_and_transports() -> None:
    found = {
        file: sorted({f"line {one.line} imports {one.name}" for one in imports(file) if one.name in CONCRETE})
        for file in files()
        if file != "wiring.py" and part_of(file) not in ("store", "transport", "testing")
    }
    judge("only wiring.py may choose a class of store or transport", found)


def test_every_concrete_class_is_known_here() -> None:
    """A new kind of store or transport is bound by the rule above, too."""
    made = {
        node.name
        for file in files()
        if part_of(file) in ("store", "transport") and not file.endswith("/__init__.py")
        for node in tree_of(file).body
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Store", "Transport"))
    }
    assert made == set(CONCRETE), f"CONCRETE and the classes that there are differ: {made ^ set(CONCRETE)}"


def test_the_root_of_the_package_holds_the_words_and_the_wiring_only() -> None:
    found = {path.stem for path in SRC.glob("*.py")}
    assert found == ROOT, f"a new module goes into a room, not to the root of the package: {found ^ ROOT}"


def test_every_room_has_its_layer() -> None:
    missing = {part_of(file) for file in files()} - set(RANK)
    assert not missing, f"LAYERS does not say where these belong: {missing}"


def test_no_public_name_is_a_submodule() -> None:
    import outmail

    modules = {path.stem for path in SRC.iterdir()}
    both = modules & set(outmail.__all__) - {"__version__"}
    assert not both, f"importing the module would hide the public name: {both}"


def test_every_module_says_what_it_is() -> None:
    silent = [file for file in files() if not ast.get_docstring(tree_of(file))]
    assert not silent, f"a module begins with a docstring: {', '.join(silent)}"


def test_unit_tests_stand_where_their_module_does() -> None:
    """``tests/unit/store/test_owner.py`` is about ``store/owner.py``, or a package of that name."""
    unit = Path(__file__).parent
    places = {
        path: SRC / path.parent.relative_to(unit) / path.stem.removeprefix("test_")
        for path in unit.rglob("test_*.py")
    }
    lost = {
        path.relative_to(unit).as_posix()
        for path, place in places.items()
        if not place.is_dir() and not place.with_suffix(".py").is_file()
    }
    assert lost == {f"test_{of_all}.py" for of_all in OF_ALL}, "tests/unit mirrors src/outmail"
