"""Who imports whom: the modules' table, held true by parsing the imports."""

from __future__ import annotations

import ast
import asyncio

import pytest

from async_repool._core.core import Core
from async_repool.config import PoolConfig
from paths import PACKAGE

NOTHING: set[str] = set()

# Modules of connectors.rethinkdb, lowest first: which of those above it each may import, and what else of the package.
RETHINKDB: dict[str, tuple[set[str], set[str]]] = {
    "frames": (NOTHING, NOTHING),
    "codec": ({"frames"}, NOTHING),
    "arguments": (NOTHING, NOTHING),
    "login": ({"arguments"}, NOTHING),
    "transient": (NOTHING, {"errors"}),
    "cursor": ({"codec", "transient"}, NOTHING),
    "wire": ({"codec", "cursor", "frames", "transient"}, {"_fork"}),
    "connection": ({"arguments", "codec", "login", "wire"}, {"lease"}),
    "connector": ({"arguments", "connection", "cursor", "login", "transient"}, {"connectors", "errors"}),
}

# Modules of the core, lowest first.
CORE: dict[str, set[str]] = {
    "backoff": NOTHING,
    "slots": NOTHING,
    "orders": {"slots"},
    "line": {"slots"},
    "shares": {"slots"},
    "shelf": {"backoff", "slots"},
    "servers": {"backoff"},
    "census": {"line", "shares", "slots"},
    "core": {"backoff", "census", "line", "orders", "servers", "shares", "shelf", "slots"},
}

# Module: what it may import of the package, and of the rest of the world beside the standard library.
OWN: dict[str, set[str]] = {
    "_lazy": NOTHING,
    "_fork": NOTHING,
    "errors": NOTHING,
    "events": NOTHING,
    "stats": NOTHING,
    "config": {"events"},
    "lease": {"errors"},
    "feeds": {"_shell.messages", "_shell.queries", "connectors", "errors"},
    "connectors": NOTHING,
    **{
        f"connectors.rethinkdb.{module}": {f"connectors.rethinkdb.{name}" for name in below} | others
        for module, (below, others) in RETHINKDB.items()
    },
    "connectors.rethinkdb": {f"connectors.rethinkdb.{name}" for name in ("connection", "connector", "cursor")},
    "_core": NOTHING,
    **{f"_core.{module}": {f"_core.{name}" for name in below} for module, below in CORE.items() if module != "core"},
    "_core.core": {"config", *(f"_core.{name}" for name in CORE["core"])},
    "_shell": NOTHING,
    "_shell.holders": NOTHING,
    "_shell.idle": NOTHING,
    "_shell.hooks": {"config", "connectors"},
    "_shell.messages": {"config", "errors"},
    "_shell.journal": {"_core.census", "_shell.messages", "config", "events", "stats"},
    "_shell.worker": {
        *("_core.core", "_core.orders", "_core.slots", "_shell.holders", "_shell.hooks", "_shell.journal", "config"),
        *("connectors", "errors", "events"),
    },
    "_shell.runtime": {
        *("_core.backoff", "_core.census", "_core.core", "_core.orders", "_core.slots", "_fork", "_shell.holders"),
        *(
            "_shell.idle",
            "_shell.journal",
            "_shell.messages",
            "_shell.worker",
            "config",
            "connectors",
            "errors",
            "events",
            "lease",
        ),
        "stats",
    },
    "_shell.queries": {
        *("_core.backoff", "_core.slots", "_shell.messages", "_shell.runtime", "connectors", "errors", "events"),
    },
    "async_pool": {
        *("_shell.holders", "_shell.journal", "_shell.messages", "_shell.queries", "_shell.runtime", "config"),
        *("connectors", "connectors.rethinkdb", "errors", "feeds", "lease", "stats"),
    },
    "": {"_lazy", "async_pool", "connectors", "connectors.rethinkdb", "errors", "feeds", "lease", "stats"},
}
VENDORS: dict[str, set[str]] = {
    **{f"connectors.rethinkdb.{module}": {"rethinkdb"} for module in RETHINKDB if module != "frames"},
    "testing.pytest_plugin": {"pytest"},
}
FORBIDDEN: dict[str, set[str]] = {
    module: {"asyncio", "threading", "time", "random", "logging"}
    for module in ("errors", "config", "events", "stats", *(f"_core.{name}" for name in CORE))
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
        assert {name for name in own(module) if not name.startswith("testing")} <= {"_lazy", "connectors", "errors"}
    assert vendors(module) <= VENDORS.get(module, NOTHING) | (
        {"pytest", "testcontainers"} if module == "testing.pytest_plugin" else NOTHING
    )
    assert not imports(module) & FORBIDDEN.get(module, NOTHING)


def test_the_driver_is_imported_by_its_connector_only() -> None:
    importing = [module for module in ALL if "rethinkdb" in vendors(module)]
    assert [module for module in importing if not module.startswith("connectors.rethinkdb.")] == []
    assert importing


def test_the_imports_of_the_rethinkdb_connector_go_one_way() -> None:
    """Whatever the table allows: each module imports only what stands before it."""
    order = [f"connectors.rethinkdb.{name}" for name in RETHINKDB]
    assert sorted(order) == sorted(module for module in ALL if module.startswith("connectors.rethinkdb."))
    for place, module in enumerate(order):
        neighbours = {name for name in own(module) if name.startswith("connectors.rethinkdb")}
        assert neighbours <= set(order[:place])


def test_only_the_login_opens_sockets() -> None:
    opening = [name for name in RETHINKDB if "create_connection" in ALL[f"connectors.rethinkdb.{name}"].read_text()]
    assert opening == ["login"]


def reachable(module: str) -> set[str]:
    """The modules of the package that a module imports, directly or through others."""
    found: set[str] = set()
    pending = {module}
    while pending:
        pending = {name for each in pending for name in own(each) if name in ALL} - found
        found |= pending
    return found


def test_no_module_imports_itself_through_others() -> None:
    circles = {module: sorted(name for name in reachable(module) if module in reachable(name)) for module in ALL}
    assert {module: circle for module, circle in circles.items() if circle} == {}


def test_the_test_tools_reach_neither_the_pool_nor_the_driver() -> None:
    for module in ALL:
        if module.startswith("testing"):
            assert not reachable(module) & {"async_pool", "connectors.rethinkdb"}, module


def test_the_stand_in_server_stands_alone() -> None:
    """It is written from the protocol, so a mistake of the driver or of the connector cannot be in it as well."""
    inside = [module for module in ALL if module.startswith("testing.standin")]
    assert {"testing.standin", "testing.standin.server", "testing.standin.wire"} <= set(inside)
    for module in inside:
        assert own(module) <= {*inside, "testing.faults"}, module


def test_the_door_to_the_core_is_narrow() -> None:
    """What a shell must know of the core: its facts, its orders, and the few things it asks."""
    config = PoolConfig(pool_size=1)
    core = Core(config, lambda: 0.0, asyncio.LifoQueue(), is_open=lambda _: True, has_streams=lambda _: False)
    names = {name for name in dir(core) if not name.startswith("_")} - {"check"}  # which is for tests
    assert len(names) <= 25, sorted(names)
