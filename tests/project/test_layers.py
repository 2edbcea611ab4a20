"""Who imports whom: the modules' table, held true by parsing the imports."""

from __future__ import annotations

import ast

import pytest

from paths import PACKAGE

NOTHING: set[str] = set()

# Module: what it may import of the package, and of the rest of the world beside the standard library.
OWN: dict[str, set[str]] = {
    "errors": NOTHING,
    "config": {"errors"},
    "stats": NOTHING,
    "_backoff": NOTHING,
    "_ledger": {"errors", "config", "stats", "_backoff"},
    "_waiting_room": NOTHING,
    "_holders": NOTHING,
    "lease": {"errors", "config", "_ledger"},
    "connectors": NOTHING,
    "connectors._frames": NOTHING,
    "connectors.rethinkdb": {"errors", "connectors._frames"},
    "streams": {"errors", "_backoff", "_ledger", "connectors"},
    "async_pool": {
        *("_holders", "_ledger", "_waiting_room", "config", "connectors", "connectors.rethinkdb", "errors", "lease"),
        *("stats", "streams"),
    },
    "": {"async_pool", "connectors", "connectors.rethinkdb", "errors", "lease", "stats", "streams"},
}
VENDORS: dict[str, set[str]] = {"connectors.rethinkdb": {"rethinkdb"}, "testing.pytest_plugin": {"pytest"}}
FORBIDDEN: dict[str, set[str]] = {
    module: {"asyncio", "threading", "time", "random", "logging"}
    for module in ("errors", "config", "stats", "_backoff", "_ledger", "_holders")
}
ALL = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
    for path in PACKAGE.rglob("*.py")
}


def imports(module: str) -> set[str]:
    """Absolute names of all that a module imports, in functions too."""
    found = set()
    package = ["async_repool", *(module.split(".") if ALL[module].stem == "__init__" else module.split(".")[:-1])]
    package = [part for part in package if part]
    for node in ast.walk(ast.parse(ALL[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, node.module] if node.module else base)
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= {name if name.removeprefix("async_repool.") in ALL else source for name in names}
    return found


def own(module: str) -> set[str]:
    return {
        name.removeprefix("async_repool").lstrip(".")
        for name in imports(module)
        if name.split(".")[0] == "async_repool"
    }


def vendors(module: str) -> set[str]:
    import sys

    roots = {name.split(".")[0] for name in imports(module)}
    return {
        root for root in roots if root not in sys.stdlib_module_names and root not in ("async_repool", "__future__")
    }


@pytest.mark.parametrize("module", ALL, ids=lambda module: module or "__init__")
def test_a_module_imports_only_what_it_may_know(module: str) -> None:
    if module in OWN:
        assert own(module) <= OWN[module]
    else:
        assert module.startswith("testing"), "a new module: say in this table what it may know"
        assert {name for name in own(module) if not name.startswith("testing")} <= {"connectors", "errors"}
    assert vendors(module) <= VENDORS.get(module, NOTHING) | (
        {"pytest", "testcontainers"} if module == "testing.pytest_plugin" else NOTHING
    )
    assert not imports(module) & FORBIDDEN.get(module, NOTHING)


def test_the_driver_is_imported_in_one_module_only() -> None:
    assert [module for module in ALL if "rethinkdb" in vendors(module)] == ["connectors.rethinkdb"]
