"""Options and signatures: checked at construction, by name and value, and told to those who inspect them."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any
from unittest.mock import create_autospec

import pytest

from async_repool import AsyncConnectionPool
from async_repool.config import PoolConfig, PoolOptions
from async_repool.testing.scripted import ScriptedConnector

pytestmark = pytest.mark.virtual_time


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"pool_size": 0}, ValueError, "pool_size must be 1 or more, not 0"),
        ({"pool_size": "3"}, TypeError, "pool_size must be an int, not '3'"),
        ({"pool_size": True}, TypeError, "pool_size must be an int, not True"),
        ({"connection_ttl": -1}, ValueError, "connection_ttl must be a finite number of seconds >= 0, not -1"),
        ({"connection_ttl": "1"}, TypeError, "connection_ttl must be a number of seconds or None, not '1'"),
        ({"min_size": 4}, ValueError, "min_size=4 is more than pool_size=3"),
        ({"min_size": -1}, ValueError, "min_size must be 0 or more, not -1"),
        ({"min_size": 1.5}, TypeError, "min_size must be an int or None, not 1.5"),
        ({"max_idle": float("nan")}, ValueError, "max_idle must be a finite number of seconds >= 0, not nan"),
        ({"acquire_timeout": -0.1}, ValueError, "acquire_timeout must be a finite number of seconds >= 0, not -0.1"),
        ({"connect_timeout": 0}, ValueError, "connect_timeout must be a finite number of seconds > 0, not 0"),
        ({"close_timeout": None}, TypeError, "close_timeout must be a number of seconds, not None"),
        ({"check_timeout": 0}, ValueError, "check_timeout must be a finite number of seconds > 0, not 0"),
        ({"cursor_grace": float("inf")}, ValueError, "cursor_grace must be a finite number of seconds >= 0, not inf"),
        ({"max_feed_connections": -1}, ValueError, "max_feed_connections must be 0 or more, not -1"),
        ({"max_waiting": -1}, ValueError, "max_waiting must be 0 or more, not -1"),
        ({"max_waiting": None}, TypeError, "max_waiting must be an int, not None"),
        ({"configure": 1}, TypeError, "configure must be an async callable or None, not 1"),
        ({"check": "no"}, TypeError, "check must be an async callable or None, not 'no'"),
        ({"reset": []}, TypeError, r"reset must be an async callable or None, not \[\]"),
        ({"name": 7}, TypeError, "name must be a str or None, not 7"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_bad_option_is_refused_at_construction_by_name_and_value(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        AsyncConnectionPool(ScriptedConnector(), **options)


@pytest.mark.parametrize("thing", [None, "localhost", 28015, ["localhost"]])
def test_what_is_neither_arguments_nor_a_connector_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="rethinkdb_connection_kwargs must be a mapping .* or a Connector, not"):
        AsyncConnectionPool(thing)


def test_every_option_of_the_configuration_is_an_argument_of_the_pool_with_the_same_default() -> None:
    arguments = dict(inspect.signature(AsyncConnectionPool).parameters)
    del arguments["rethinkdb_connection_kwargs"]
    options = inspect.signature(PoolConfig).parameters
    assert {name: argument.default for name, argument in arguments.items()} == {
        name: option.default for name, option in options.items()
    }


async def test_acquire_passes_for_a_coroutine_function_to_those_who_mock_it() -> None:
    pool = create_autospec(AsyncConnectionPool, instance=True)
    pool.acquire.return_value = "a lease"
    assert await pool.acquire() == "a lease"


def test_positional_arguments_are_those_of_1_0_1() -> None:
    pool = AsyncConnectionPool({}, 7, 42)
    assert (pool.pool_size, pool.connection_ttl, pool.empty) == (7, 42, True)


def test_each_option_stands_once_and_its_types_for_editors_are_the_same() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(PoolConfig)}
    positional = {"pool_size", "connection_ttl"}
    assert {name: kind for name, kind in fields.items() if name not in positional} == {
        name: kind.__forward_arg__ for name, kind in PoolOptions.__annotations__.items()
    }


def test_help_shows_each_option_with_its_default_and_type() -> None:
    parameters = inspect.signature(AsyncConnectionPool).parameters
    for field in dataclasses.fields(PoolConfig):
        assert parameters[field.name].default == field.default
        assert parameters[field.name].annotation == field.type


def test_an_option_that_there_is_not_is_refused_with_the_one_that_may_be_meant() -> None:
    with pytest.raises(TypeError, match=r"AsyncConnectionPool\(\) has no option 'max_idel'; did you mean 'max_idle'\?"):
        AsyncConnectionPool(ScriptedConnector(), max_idel=3)
    with pytest.raises(TypeError, match=r"AsyncConnectionPool\(\) has no option 'colour'$"):
        AsyncConnectionPool(ScriptedConnector(), colour="red")
