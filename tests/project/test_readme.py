"""The tables of README.rst, held true by what the code says."""

from __future__ import annotations

import inspect
import re
from typing import NamedTuple

import pytest

from async_repool import AsyncConnectionPool
from async_repool.config import PoolConfig
from paths import ROOT

README = (ROOT / "README.rst").read_text(encoding="utf-8")
OPTIONS = {name: option.default for name, option in inspect.signature(PoolConfig).parameters.items()}
PUBLIC = {name: member for name, member in vars(AsyncConnectionPool).items() if not name.startswith("_")}
PROPERTIES = {name for name, member in PUBLIC.items() if isinstance(member, property)}
HOOKS = {name for name, member in PUBLIC.items() if isinstance(member, staticmethod)}  # to be given, not called


def table(heading: str) -> list[list[str]]:
    """The cells of the first simple table below a heading, row by row, without the names of its columns."""
    lines = README[README.index(f"\n{heading}\n") :].splitlines()
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
            rows[-1] = [f"{above} {cell}".strip() for above, cell in zip(rows[-1], cells, strict=True)]
    return rows


class Call(NamedTuple):
    """As the table writes it: ``await acquire(timeout=…)``."""

    name: str
    options: dict[str, str]


def calls() -> list[Call]:
    found = re.findall(r"``(?:[a-z …]* )?(\w+)\((.*?)\)``", " ".join(row[0] for row in table("**Calls**")))
    return [Call(name, dict(re.findall(r"(\w+)=([^,]+)", arguments))) for name, arguments in found if name != "repr"]


def test_the_table_of_options_has_every_option_with_its_default() -> None:
    (first, *_), *rows = table("Options")
    assert first.startswith("``rethinkdb_connection")
    assert [(option.strip("`"), default) for option, default, _ in rows] == [
        (name, str(default)) for name, default in OPTIONS.items()
    ]


def test_every_option_of_the_table_has_a_meaning() -> None:
    assert all(meaning for _, _, meaning in table("Options"))


def test_the_positional_arguments_are_told_with_their_defaults() -> None:
    parameters = inspect.signature(AsyncConnectionPool).parameters.values()
    positional = [parameter for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    told = ", ".join(str(parameter.replace(annotation=parameter.empty)) for parameter in positional)
    assert f"``AsyncConnectionPool({told}, *, …)``" in README


def test_the_table_of_calls_names_every_public_method_and_no_other() -> None:
    assert sorted(call.name for call in calls()) == sorted(PUBLIC.keys() - PROPERTIES - HOOKS)


@pytest.mark.parametrize("call", [call for call in calls() if call.options], ids=lambda call: call.name)
def test_the_table_of_calls_names_options_that_exist_with_their_defaults(call: Call) -> None:
    parameters = inspect.signature(PUBLIC[call.name]).parameters
    for option, default in call.options.items():
        assert option in parameters
        assert default == "…" or float(default) == parameters[option].default


def test_the_table_of_calls_names_every_property_and_no_other() -> None:
    *_, (names, meaning) = table("**Calls**")
    assert set(re.findall(r"``(\w+)``", names + meaning)) == PROPERTIES


def test_hooks_that_are_ready_made_are_named() -> None:
    assert HOOKS
    for name in HOOKS:
        assert f"AsyncConnectionPool.{name}``" in README
