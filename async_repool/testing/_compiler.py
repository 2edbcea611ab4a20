"""The compiler: terms become Python functions of their variables.

What lives here: evaluation, its order, and the forms that decide themselves what to evaluate. What must not: what
the other terms do.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from ._streams import Function, Steps, as_is, datum, is_true, plain
from ._tables import Database, Missing, World, logic_error, unsupported
from ._wire import COMPILE_ERROR, TERM_NAMES, TERM_NUMBERS, QueryError

Scope = dict[Any, Any]
_IMPLICIT: Final = object()
Quick = Callable[[Scope], Any]


@dataclass(frozen=True, slots=True)
class Slow:
    """Compiled code that takes steps."""

    start: Callable[[Scope], Steps]


@dataclass(frozen=True, slots=True)
class Const:
    """Compiled code that is data."""

    value: Any

    def __call__(self, scope: Scope) -> Any:
        return self.value


Code = Quick | Slow | Const


def run(code: Code, scope: Scope) -> Steps:
    if isinstance(code, Slow):
        return (yield from code.start(scope))
    return code(scope)


def finish(steps: Steps) -> Any:
    """The value of steps, taken all at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def lazily(form: Callable[[Scope], Steps], codes: Iterable[Code]) -> Code:
    """The code of a form that decides itself which of its parts to run: slow if one of them is."""
    if any(isinstance(code, Slow) for code in codes):
        return Slow(form)
    return lambda scope: finish(form(scope))


@dataclass(frozen=True, slots=True)
class Operation:
    """A term whose arguments are evaluated before it. Its signature says how many, and which options."""

    call: Callable[..., Any]
    least: int
    most: float
    options: frozenset[str]
    is_slow: bool
    wants_session: bool
    wants_selection: bool


@dataclass(frozen=True, slots=True)
class Session:
    """What a query runs in: the data, and the database that it means where it names none."""

    world: World
    default_database: str = "test"

    @property
    def database(self) -> Database:
        return self.world.database(self.default_database)


OPERATIONS: dict[int, Operation] = {}
_FORMS: dict[int, Callable[[Compiler, list[Any]], Code]] = {}


def term(*names: str, selection: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register an operation. With ``selection`` it is given documents with their place, not their values."""

    def register(call: Callable[..., Any]) -> Callable[..., Any]:
        parameters = list(inspect.signature(call).parameters.values())
        wants_session = bool(parameters) and parameters[0].name == "session"
        positional = [p for p in parameters[wants_session:] if p.kind is p.POSITIONAL_OR_KEYWORD]
        operation = Operation(
            call,
            sum(p.default is p.empty for p in positional),
            math.inf if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(positional),
            frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY),
            inspect.isgeneratorfunction(call),
            wants_session,
            selection,
        )
        for name in names:
            OPERATIONS[TERM_NUMBERS[name]] = operation
        return call

    return register


def form(name: str) -> Callable[[Callable[[Compiler, list[Any]], Code]], Callable[[Compiler, list[Any]], Code]]:
    """Register a term that evaluates its arguments itself, or not at all."""

    def register(make: Callable[[Compiler, list[Any]], Code]) -> Callable[[Compiler, list[Any]], Code]:
        _FORMS[TERM_NUMBERS[name]] = make
        return make

    return register


def compile_error(message: str) -> QueryError:
    return QueryError(COMPILE_ERROR, message)


def check_count(found: int, least: int, most: float) -> None:
    if least <= found <= most:
        return
    if most == math.inf:
        expected = f"{least} or more arguments"
    elif least == most:
        expected = f"{least} argument{'s' * (least != 1)}"
    else:
        expected = f"between {least} and {most} arguments"
    raise compile_error(f"Expected {expected} but found {found}.")


class Compiler:
    """Turns terms into code, within one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def compile(self, source: Any) -> Code:
        if type(source) is dict:
            return self._object(source)
        if type(source) is not list:
            return Const(source)
        if not source or type(source[0]) is not int:
            raise compile_error("Expected a TermType as a NUMBER.")
        number, args, options = (source + [[], {}][len(source) - 1 :])[:3]
        if number in _FORMS:
            return _FORMS[number](self, args)
        operation = OPERATIONS.get(number)
        if operation is not None:
            return self._operation(operation, args, options)
        if number not in TERM_NAMES:
            raise compile_error(f"Unrecognized TermType: {number}.")
        return _fails(unsupported(f"`{TERM_NAMES[number]}`"))

    def compile_all(self, sources: Iterable[Any]) -> list[Code]:
        return [self.compile(source) for source in sources]

    def _object(self, source: dict[str, Any]) -> Code:
        codes = {key: self.compile(value) for key, value in source.items()}
        if all(isinstance(code, Const) for code in codes.values()):
            return Const({key: code.value for key, code in codes.items() if isinstance(code, Const)})

        def build(scope: Scope) -> Steps:
            result = {}
            for key, code in codes.items():
                result[key] = datum(plain((yield from run(code, scope))))
            return result

        return lazily(build, codes.values())

    def _operation(self, operation: Operation, args: list[Any], options: dict[str, Any]) -> Code:
        check_count(len(args), operation.least, operation.most)
        for name in options:
            if name not in operation.options:
                raise compile_error(f"Unrecognized optional argument `{name}`.")
        codes = self.compile_all(args)
        keywords = {name: self.compile(value) for name, value in options.items()}
        call = functools.partial(operation.call, self._session) if operation.wants_session else operation.call
        resolve = as_is if operation.wants_selection else plain

        def start(scope: Scope) -> Steps:
            given = []
            for code in codes:
                given.append(resolve((yield from run(code, scope))))
            named = {}
            for name, code in keywords.items():
                named[name] = plain((yield from run(code, scope)))
            result = call(*given, **named)
            return (yield from result) if operation.is_slow else result

        if operation.is_slow or any(isinstance(code, Slow) for code in (*codes, *keywords.values())):
            return Slow(start)
        if keywords:
            return lambda scope: finish(start(scope))
        if len(codes) == 2:
            one, two = codes
            return lambda scope: call(resolve(one(scope)), resolve(two(scope)))  # type: ignore[operator]
        return lambda scope: call(*[resolve(code(scope)) for code in codes])  # type: ignore[operator]


def _fails(error: QueryError) -> Code:
    def fail(scope: Scope) -> Any:
        raise error.with_traceback(None)

    return fail


# --- forms ------------------------------------------------------------------------------------------------------------


@form("MAKE_ARRAY")
def _make_array(compiler: Compiler, args: list[Any]) -> Code:
    codes = compiler.compile_all(args)
    if all(isinstance(code, Const) for code in codes):
        return Const([code.value for code in codes if isinstance(code, Const)])

    def build(scope: Scope) -> Steps:
        result = []
        for code in codes:
            result.append(datum(plain((yield from run(code, scope)))))
        return result

    return lazily(build, codes)


@form("VAR")
def _var(compiler: Compiler, args: list[Any]) -> Code:
    check_count(len(args), 1, 1)
    name = args[0]
    return lambda scope: scope[name]


@form("IMPLICIT_VAR")
def _implicit_var(compiler: Compiler, args: list[Any]) -> Code:
    return lambda scope: scope[_IMPLICIT]


@form("FUNC")
def _func(compiler: Compiler, args: list[Any]) -> Code:
    check_count(len(args), 2, 2)
    names = args[0][1] if args[0] and type(args[0][0]) is int and type(args[0][-1]) is list else args[0]
    body = compiler.compile(args[1])
    is_slow = isinstance(body, Slow)
    evaluate: Callable[[Scope], Any] = body.start if isinstance(body, Slow) else body

    def make(scope: Scope) -> Function:
        def call(*given: Any) -> Any:
            if len(given) != len(names):
                wanted, found = (f"{n} argument{'s' * (n != 1)}" for n in (len(given), len(names)))
                raise logic_error(f"Expected function with {wanted} but found function with {found}.")
            inner = {**scope, **dict(zip(names, given, strict=True))}
            if given:
                inner[_IMPLICIT] = given[0]
            return evaluate(inner)

        return Function(call, is_slow)

    return make


@form("BRANCH")
def _branch(compiler: Compiler, args: list[Any]) -> Code:
    check_count(len(args), 3, math.inf)
    if not len(args) % 2:
        raise logic_error("Cannot call `branch` term with an even number of arguments.")
    codes = compiler.compile_all(args)

    def choose(scope: Scope) -> Steps:
        for test, then in zip(codes[:-1:2], codes[1::2], strict=True):
            if is_true(plain((yield from run(test, scope)))):
                return (yield from run(then, scope))
        return (yield from run(codes[-1], scope))

    return lazily(choose, codes)


def _logic(stops_at: bool) -> Callable[[Compiler, list[Any]], Code]:
    def make(compiler: Compiler, args: list[Any]) -> Code:
        codes = compiler.compile_all(args)

        def decide(scope: Scope) -> Steps:
            value: Any = not stops_at
            for code in codes:
                value = plain((yield from run(code, scope)))
                if is_true(value) is stops_at:
                    break
            return value

        return lazily(decide, codes)

    return make


form("AND")(_logic(stops_at=False))
form("OR")(_logic(stops_at=True))


@form("DEFAULT")
def _default(compiler: Compiler, args: list[Any]) -> Code:
    check_count(len(args), 2, 2)
    tried, otherwise = compiler.compile_all(args)

    def attempt(scope: Scope) -> Steps:
        try:
            value = yield from run(tried, scope)
            if plain(value) is not None:
                return value
        except Missing:
            pass
        return (yield from run(otherwise, scope))

    return lazily(attempt, (tried, otherwise))
