"""The tables of README.rst and of the pages in docs/, compared with the code."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any, NamedTuple

import pytest

from async_repool import AsyncConnectionPool, FeedGap, PoolStats, errors, events
from async_repool._core.slots import Reason
from async_repool.config import PoolConfig
from async_repool.stats import CloseReport
from async_repool.testing.faults import Faults
from paths import PACKAGE, ROOT

README = "README.rst"
CALLS = "docs/calls.rst"
OPTIONS = {name: option.default for name, option in inspect.signature(PoolConfig).parameters.items()}
PUBLIC = {name: member for name, member in vars(AsyncConnectionPool).items() if not name.startswith("_")}
PROPERTIES = {name for name, member in PUBLIC.items() if isinstance(member, property)}
HOOKS = {name for name, member in PUBLIC.items() if isinstance(member, staticmethod)}  # to be given, not called


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def table(page: str, above: str) -> list[list[str]]:
    """The cells of the first simple table below a line of a page, row by row, without the names of its columns."""
    whole = text(page)
    lines = whole[whole.index(f"\n{above}\n") :].splitlines()
    first, *others = (n for n, line in enumerate(lines) if re.fullmatch(r"=+(  +=+)+", line))
    columns = [(column.start(), column.end()) for column in re.finditer("=+", lines[first])]
    columns[-1] = (columns[-1][0], 1000)
    second = others[0]
    has_header = first + 2 == second
    rows: list[list[str]] = []
    for line in lines[second + 1 : others[1]] if has_header else lines[first + 1 : second]:
        cells = [line[start:end].strip() for start, end in columns]
        if cells[0]:
            rows.append(cells)
        else:  # the row before goes on
            rows[-1] = [f"{before} {cell}".strip() for before, cell in zip(rows[-1], cells, strict=True)]
    return rows


def named(page: str, above: str) -> list[str]:
    """The names in the first column of a table, sorted."""
    return sorted(name for row in table(page, above) for name in re.findall(r"``(\w+)", row[0]))


def fields(record: type) -> set[str]:
    return {field.name for field in dataclasses.fields(record)}


class Call(NamedTuple):
    """As the table writes it: ``await acquire(timeout=…)``."""

    name: str
    options: dict[str, str]


def calls() -> list[Call]:
    found = re.findall(r"``(?:[a-z …]* )?(\w+)\((.*?)\)``", " ".join(row[0] for row in table(CALLS, "Calls")))
    return [Call(name, dict(re.findall(r"(\w+)=([^,]+)", arguments))) for name, arguments in found if name != "repr"]


def test_the_table_of_options_has_every_option_with_its_default() -> None:
    (first, *_), *rows = table(README, "Options")
    assert first.startswith("``rethinkdb_connection")
    assert [(option.strip("`"), default) for option, default, _ in rows] == [
        (name, str(default)) for name, default in OPTIONS.items()
    ]


def test_every_option_of_the_table_has_a_meaning() -> None:
    assert all(meaning for _, _, meaning in table(README, "Options"))


def test_the_positional_arguments_are_told_with_their_defaults() -> None:
    parameters = inspect.signature(AsyncConnectionPool).parameters.values()
    positional = [parameter for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    told = ", ".join(str(parameter.replace(annotation=parameter.empty)) for parameter in positional)
    assert f"``AsyncConnectionPool({told}, *, …)``" in text(README)


def test_the_table_of_calls_names_every_public_method_and_no_other() -> None:
    assert sorted(call.name for call in calls()) == sorted(PUBLIC.keys() - PROPERTIES - HOOKS)


@pytest.mark.parametrize("call", [call for call in calls() if call.options], ids=lambda call: call.name)
def test_the_table_of_calls_names_options_that_exist_with_their_defaults(call: Call) -> None:
    parameters = inspect.signature(PUBLIC[call.name]).parameters
    for option, default in call.options.items():
        assert option in parameters
        assert default == "…" or float(default) == parameters[option].default


def test_the_table_of_calls_names_every_property_and_no_other() -> None:
    *_, (names, meaning) = table(CALLS, "Calls")
    assert set(re.findall(r"``(\w+)``", names + meaning)) == PROPERTIES


def test_hooks_that_are_ready_made_are_named() -> None:
    assert HOOKS
    for name in HOOKS:
        assert f"AsyncConnectionPool.{name}``" in text(CALLS)
        assert f"AsyncConnectionPool.{name}``" in text("docs/hooks-and-checks.rst")


def test_the_table_of_errors_names_every_error_that_users_meet() -> None:
    kinds = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert named(README, "Errors") == sorted(kinds - {errors.NotSent.__name__})  # which is for connectors


def test_the_table_of_errors_names_the_other_bases() -> None:
    for name, other, _ in table(README, "Errors"):
        bases = {base.__name__ for base in getattr(errors, name.strip("`")).__bases__}
        assert not other or other.strip("`") in bases


def test_the_tables_of_statistics_name_every_field() -> None:
    gauges, totals = (named("docs/observing.rst", kind) for kind in ("Gauges:", "Totals:"))
    assert sorted([*gauges, *totals, "name", "min_size", "max_size"]) == sorted(fields(PoolStats))


def test_every_reason_to_close_a_connection_is_named() -> None:
    *_, (name, reasons) = table("docs/observing.rst", "Totals:")
    assert name == "``closed_by_reason``"
    assert re.findall(r"``([\w ]+)``", reasons) == [str(reason) for reason in Reason]


def test_the_table_of_events_names_every_event() -> None:
    kinds = {kind for kind in vars(events).values() if inspect.isclass(kind) and issubclass(kind, events.Event)}
    last = {kind.__name__ for kind in kinds if not kind.__subclasses__()}
    assert named("docs/observing.rst", "Events") == sorted(last)


@pytest.mark.parametrize(
    ("record", "page", "above"),
    [
        (CloseReport, "docs/shutdown.rst", "It returns a ``CloseReport``:"),
        (FeedGap, "docs/feeds.rst", "Gaps"),
    ],
)
def test_the_table_of_a_record_names_every_field(record: type[Any], page: str, above: str) -> None:
    properties = {name for name, member in vars(record).items() if isinstance(member, property)}
    assert named(page, above) == sorted(fields(record) | properties)


def test_the_table_of_faults_names_controls_that_exist() -> None:
    for name in named("docs/testing.rst", "Faults"):
        assert hasattr(Faults, name)


def test_the_table_of_modules_names_every_module_that_has_rules_of_its_own() -> None:
    told = {name for row in table("docs/inside.rst", "The modules") for name in re.findall(r"``([\w/.]+)``", row[0])}
    for name in told:
        assert (PACKAGE / name).exists(), name
    small = {"__init__.py", "_fork.py", "_lazy.py", "_core/__init__.py", "_shell/__init__.py"}
    modules = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    folders = tuple(name for name in told if name.endswith("/"))
    assert {name for name in modules if not name.startswith(folders)} == told - {*folders} | small
