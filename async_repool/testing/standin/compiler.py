"""The compiler: a term becomes a Python function of its variables.

This module has the order of evaluation, and the forms, which decide themselves what to evaluate. All other terms are
elsewhere.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from .streams import Function, Steps, as_is, datum, function_of, is_true, plain
from .tables import Database, EmptyError, Missing, World, logic_error, number, unsupported
from .wire import COMPILE_ERROR, TERM_NAMES, TERM_NUMBERS, QueryError

Scope = dict[Any, Any]
_IMPLICIT: Final = object()
Quick = Callable[[Scope], Any]


@dataclass(frozen=True, slots=True)
class Slow:
    """Compiled code that runs in steps."""

    start: Callable[[Scope], Steps]


@dataclass(frozen=True, slots=True)
class Const:
    """Compiled code that is a constant."""

    value: Any

    def __call__(self, scope: Scope) -> Any:
        return self.value


Code = Quick | Slow | Const
Deferred = Function


def run(code: Code, scope: Scope) -> Steps:
    """The steps of any code."""
    if isinstance(code, Slow):
        return (yield from code.start(scope))
    return code(scope)


def finish(steps: Steps) -> Any:
    """Run all steps at once, and return their value."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def lazily(form: Callable[[Scope], Steps], codes: Iterable[Code]) -> Code:
    """The code of a form that decides itself which of its parts to run. It is slow if one of its parts is slow."""
    if any(isinstance(code, Slow) for code in codes):
        return Slow(form)
    return lambda scope: finish(form(scope))


@dataclass(frozen=True, slots=True)
class Operation:
    """A term whose arguments are evaluated first. The signature of its function says how many, and which options.

    An argument annotated as ``Deferred`` is passed as a function. It is evaluated when the term calls that function.
    """

    call: Callable[..., Any]
    least: int
    most: float
    options: frozenset[str]
    refused: frozenset[str]
    deferred: frozenset[str]
    places: tuple[str, ...]
    is_slow: bool
    wants_session: bool
    wants_selection: bool


@dataclass(frozen=True, slots=True)
class Session:
    """The data that a query runs on, and the database to use if the query names none."""

    world: World
    default_database: str = "test"

    @property
    def database(self) -> Database:
        return self.world.database(self.default_database)


OPERATIONS: dict[int, Operation] = {}
_FORMS: dict[int, Callable[[Compiler, list[Any]], Code]] = {}


def term(*names: str, selection: bool = False, refuses: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register an operation. If ``selection``, it gets documents together with their place in a table.

    ``refuses`` names the options that RethinkDB knows and the stand-in server does not.
    """

    def register(call: Callable[..., Any]) -> Callable[..., Any]:
        parameters = list(inspect.signature(call).parameters.values())
        wants_session = bool(parameters) and parameters[0].name == "session"
        positional = [p for p in parameters[wants_session:] if p.kind is p.POSITIONAL_OR_KEYWORD]
        operation = Operation(
            call,
            sum(p.default is p.empty for p in positional),
            math.inf if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(positional),
            frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY),
            frozenset(refuses.split()),
            frozenset(p.name for p in parameters if str(p.annotation).startswith("Deferred")),
            tuple(p.name for p in parameters[wants_session:] if p.kind is not p.KEYWORD_ONLY),
            inspect.isgeneratorfunction(call),
            wants_session,
            selection,
        )
        for name in names:
            OPERATIONS[TERM_NUMBERS[name]] = operation
        return call

    return register


def form(name: str) -> Callable[[Callable[[Compiler, list[Any]], Code]], Callable[[Compiler, list[Any]], Code]]:
    """Register a term that evaluates its arguments itself."""

    def register(make: Callable[[Compiler, list[Any]], Code]) -> Callable[[Compiler, list[Any]], Code]:
        _FORMS[TERM_NUMBERS[name]] = make
        return make

    return register


def compile_error(message: str) -> QueryError:
    """The error for a query that cannot be compiled."""
    return QueryError(COMPILE_ERROR, message)


def check_count(found: int, least: int, most: float) -> None:
    """Raise the error for a wrong number of arguments."""
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
        self.names: list[Any] = []  # the variables that are in scope
        self.rows = 0  # the number of enclosing functions that define ``r.row``

    def compile(self, source: Any) -> Code:
        if type(source) is dict:
            return self._object(source)
        if type(source) is not list:
            return Const(number(source) if type(source) in (int, float) else source)
        if not source or type(source[0]) is not int:
            raise compile_error("Expected a TermType as a NUMBER.")
        number_of_term, args, options = (source + [[], {}][len(source) - 1 :])[:3]
        if number_of_term in _FORMS:
            return _FORMS[number_of_term](self, args)
        operation = OPERATIONS.get(number_of_term)
        if operation is not None:
            return self._operation(TERM_NAMES[number_of_term], operation, args, options)
        if number_of_term not in TERM_NAMES:
            raise compile_error(f"Unrecognized TermType: {number_of_term}.")
        return _fails(unsupported(f"`{TERM_NAMES[number_of_term]}`"))

    def compile_all(self, sources: Iterable[Any]) -> list[Code]:
        return [self.compile(source) for source in sources]

    def _object(self, source: dict[str, Any]) -> Code:
        if source.get("$reql_type$", "TIME") not in ("TIME", "BINARY"):
            return _fails(unsupported(f"The pseudotype `{source['$reql_type$']}`"))
        codes = {key: self.compile(value) for key, value in source.items()}
        if all(isinstance(code, Const) for code in codes.values()):
            return Const({key: code.value for key, code in codes.items() if isinstance(code, Const)})

        def build(scope: Scope) -> Steps:
            result = {}
            for key, code in codes.items():
                result[key] = datum(plain((yield from run(code, scope))))
            return result

        return lazily(build, codes.values())

    def _operation(self, term_name: str, operation: Operation, args: list[Any], options: dict[str, Any]) -> Code:
        check_count(len(args), operation.least, operation.most)
        for name in options:
            if name not in operation.options and name not in operation.refused:
                raise compile_error(f"Unrecognized optional argument `{name}`.")
        # The last place takes all further arguments.
        places = itertools.chain(operation.places, itertools.cycle(operation.places[-1:]))
        codes = [
            self._argument(source, place in operation.deferred) for place, source in zip(places, args, strict=False)
        ]
        keywords = {name: self._argument(source, name in operation.deferred) for name, source in options.items()}
        call = functools.partial(operation.call, self._session) if operation.wants_session else operation.call
        resolve = as_is if operation.wants_selection else plain

        def start(scope: Scope) -> Steps:
            given = []
            for code in codes:
                given.append(resolve((yield from run(code, scope))))
            named = {}
            for name, code in keywords.items():
                value = plain((yield from run(code, scope)))
                if name not in operation.refused:
                    named[name] = value
                elif value not in (None, False):
                    raise unsupported(f"`{term_name}` with `{name}`")
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

    def _argument(self, source: Any, is_deferred: bool) -> Code:
        code = self.compile(source)
        if not is_deferred:
            return code

        def defer(scope: Scope) -> Function:
            def call(*given: Any) -> Steps:
                value = plain((yield from run(code, scope)))
                return (yield from function_of(value).steps(*given))

            return Function(call, is_slow=True, is_deterministic=is_deterministic(source))

        return defer


def is_deterministic(source: Any) -> bool:
    """Whether a term provably has the same value each time."""
    if type(source) is dict:
        return all(map(is_deterministic, source.values()))
    if type(source) is not list or not source:
        return True
    number_of_term, args, options = (source + [[], {}][len(source) - 1 :])[:3]
    if number_of_term == TERM_NUMBERS["TABLE"] or (number_of_term == TERM_NUMBERS["UUID"] and not args):
        return False
    return all(map(is_deterministic, args)) and is_deterministic(options)


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
    if name not in compiler.names:
        raise compile_error("Variable name not found.")
    return lambda scope: scope[name]


@form("IMPLICIT_VAR")
def _implicit_var(compiler: Compiler, args: list[Any]) -> Code:
    if not compiler.rows:
        raise compile_error("r.row is not defined in this context.")
    if compiler.rows > 1:
        raise compile_error("Cannot use r.row in nested queries.  Use functions instead.")
    return lambda scope: scope[_IMPLICIT]


@form("FUNC")
def _func(compiler: Compiler, args: list[Any]) -> Code:
    check_count(len(args), 2, 2)
    names = args[0][1] if args[0] and type(args[0][0]) is int and type(args[0][-1]) is list else args[0]
    outer = compiler.names, compiler.rows
    compiler.names = [*compiler.names, *names]
    compiler.rows += len(names) == 1
    body = compiler.compile(args[1])
    compiler.names, compiler.rows = outer
    is_pattern, has_one_value = type(args[1]) is dict, is_deterministic(args[1])
    is_slow = isinstance(body, Slow)
    evaluate: Callable[[Scope], Any] = body.start if isinstance(body, Slow) else body

    def make(scope: Scope) -> Function:
        def call(*given: Any) -> Any:
            if names and len(given) != len(names):
                wanted, found = (f"{n} argument{'s' * (n != 1)}" for n in (len(given), len(names)))
                raise logic_error(f"Expected function with {wanted} but found function with {found}.")
            inner = {**scope, **dict(zip(names, given, strict=False))}
            if len(given) == 1:
                inner[_IMPLICIT] = given[0]
            return evaluate(inner)

        return Function(call, is_slow, is_pattern, has_one_value)

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
        missing: Missing | None = None
        try:
            value = yield from run(tried, scope)
            if plain(value) is not None:
                return value
        except Missing as error:
            missing = error
        try:
            value = yield from run(otherwise, scope)
            if type(value) is Function:
                value = yield from value.steps(missing and missing.message)
        except EmptyError:
            if missing is not None:
                raise missing from None
            return None
        return value

    return lazily(attempt, (tried, otherwise))
