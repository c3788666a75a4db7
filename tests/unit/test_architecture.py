"""Imports go downward only."""

import ast
from pathlib import Path

SRC = Path(__file__).parents[2] / "src" / "outmail"
LAYERS = [
    ("model", "lifecycle", "errors", "clock"),
    ("policy", "smtp", "mime"),
    ("system",),
    ("store", "transport"),
    ("accept", "engine"),
    ("transactional", "intake", "reports", "ops"),
    ("config", "wiring", "outbox", "service"),
    ("cli", "compat", "contrib", "__main__"),
]
RANK = {name: i for i, names in enumerate(LAYERS) for name in names}
PURE = ("policy", "smtp", "mime")
FORBIDDEN = {"asyncio", "socket", "ssl", "sqlite3", "apsw", "threading", "subprocess", "time", "os"}
ALLOWED_TIME = {"mime/headers.py"}  # gmtime only: formatting, no clock


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _part(path: Path) -> str:
    relative = path.relative_to(SRC)
    return relative.parts[0].removesuffix(".py")


def test_imports_go_downward() -> None:
    wrong = []
    for path in SRC.rglob("*.py"):
        part = _part(path)
        if part in ("__init__", "testing"):
            continue
        for name in _imports(path):
            if not name.startswith("outmail."):
                continue
            target = name.split(".")[1]
            if target == "testing":
                assert part == "cli", f"{path}: only a face may import testing"
            elif target in RANK and target != part and RANK[target] > RANK[part]:
                wrong.append(f"{path.name} imports {name}")
    assert not wrong


def test_store_and_transport_do_not_know_each_other() -> None:
    for part, other in (("store", "outmail.transport"), ("transport", "outmail.store")):
        for path in (SRC / part).rglob("*.py"):
            assert not any(name.startswith(other) for name in _imports(path)), path


def test_decisions_protocols_and_messages_do_no_io() -> None:
    for part in PURE:
        for path in (SRC / part).rglob("*.py"):
            names = {name.split(".")[0] for name in _imports(path)}
            if str(path.relative_to(SRC)) in ALLOWED_TIME:
                names.discard("time")
            assert not names & FORBIDDEN, f"{path}: {names & FORBIDDEN}"


def test_no_public_name_is_a_submodule() -> None:
    import outmail

    modules = {path.stem for path in SRC.iterdir()}
    assert not modules & set(outmail.__all__) - {"__version__"}


def test_every_module_says_what_it_is() -> None:
    for path in SRC.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
