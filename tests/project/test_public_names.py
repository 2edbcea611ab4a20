"""The public names, and what a type checker makes of them."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import rethinkdb

import async_repool
import async_repool.testing
from async_repool import async_pool
from paths import ROOT


def test_the_public_names_are_these() -> None:
    assert async_repool.__all__ == [
        "AsyncConnectionPool",
        "ConnectFailed",
        "Connector",
        "FeedGap",
        "Lease",
        "LeaseError",
        "OutcomeUnknown",
        "PoolClosed",
        "PoolDeadlock",
        "PoolException",
        "PoolStats",
        "PoolTimeout",
        "R",
        "RethinkDBConnector",
        "TooManyWaiters",
    ]
    assert len(async_repool.__all__) <= 15


def test_the_names_of_1_0_1_are_where_they_were() -> None:
    assert isinstance(async_repool.R, rethinkdb.RethinkDB)
    assert async_pool.R is async_repool.R
    assert async_pool.AsyncConnectionPool is async_repool.AsyncConnectionPool
    assert async_pool.PoolException is async_repool.PoolException
    pool = inspect.signature(async_repool.AsyncConnectionPool)
    assert list(pool.parameters)[:3] == ["rethinkdb_connection_kwargs", "pool_size", "connection_ttl"]
    for name in ("init_pool", "acquire", "release", "release_to_looped", "release_pool", "connect", "empty"):
        assert hasattr(async_repool.AsyncConnectionPool, name)


def test_a_star_import_of_the_pools_module_has_the_names_of_1_0_1() -> None:
    names: dict[str, object] = {}
    exec("from async_repool.async_pool import *", names)
    assert {"AsyncConnectionPool", "PoolException", "R"} <= names.keys()


def names_for_type_checkers(package: ModuleType) -> dict[str, str]:
    """The names that a package imports under ``TYPE_CHECKING``, and the modules that it imports them from."""
    assert package.__file__ is not None
    tree = ast.parse(Path(package.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imported = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: f"{package.__name__}.{node.module}" for node in imported for alias in node.names}


@pytest.mark.parametrize("package", [async_repool, async_repool.testing], ids=lambda package: package.__name__)
def test_a_lazy_name_is_the_one_that_type_checkers_see(package: ModuleType) -> None:
    homes = names_for_type_checkers(package)
    assert sorted(homes) == package.__all__
    assert set(homes) <= set(dir(package))
    for name, module in homes.items():
        assert getattr(package, name) is getattr(importlib.import_module(module), name)


def test_a_star_import_has_all_public_names() -> None:
    names: dict[str, object] = {}
    exec("from async_repool import *", names)
    assert set(async_repool.__all__) <= names.keys()


def test_modules_are_attributes_of_the_package_before_anybody_imports_them() -> None:
    program = (
        "import async_repool, async_repool.testing; "
        "print(async_repool.errors.PoolTimeout.__name__, async_repool.testing.scripted.ScriptedConnector.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["PoolTimeout", "ScriptedConnector"]


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'async_repool' has no attribute 'AsyncPool'"):
        _ = async_repool.AsyncPool
    with pytest.raises(ImportError):
        exec("from async_repool.testing import StandIn")


def test_the_version_is_that_of_the_distribution() -> None:
    assert importlib.metadata.version("async-repool") == async_repool.__version__


def test_all_public_names_have_documentation() -> None:
    for name in async_repool.__all__:
        public = getattr(async_repool, name)
        assert public is async_repool.R or inspect.getdoc(public), name
    for name, member in vars(async_repool.AsyncConnectionPool).items():
        if not name.startswith("_"):
            assert inspect.getdoc(member), name


def test_a_program_that_uses_the_types_passes_the_type_checker(tmp_path: Path) -> None:
    checked = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--cache-dir",
            str(tmp_path),
            str(ROOT / "tests/project/typing_example.py"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
