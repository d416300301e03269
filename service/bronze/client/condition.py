"""Conditions on rows as text, in the form of an SQL WHERE clause: `seats > 100 AND (model = 'A7' OR model IS NULL)`.

A small part of SQL, which becomes an Arrow expression, so that Parquet statistics prune. Nothing is executed.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bronze.errors import Refusal, Refused

#: The longest condition, and the deepest nesting.
CHARS_MAX = 10_000
DEPTH_MAX = 50

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>'(?:[^']|'')*')
      | (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<quoted>"(?:[^"]|"")*")
      | (?P<word>[A-Za-z_][A-Za-z0-9_.]*)
      | (?P<operator><>|!=|<=|>=|==|[=<>(),])
    )""",
    re.VERBOSE,
)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": lambda column, value: column == value,
    "==": lambda column, value: column == value,
    "<>": lambda column, value: column != value,
    "!=": lambda column, value: column != value,
    "<": lambda column, value: column < value,
    "<=": lambda column, value: column <= value,
    ">": lambda column, value: column > value,
    ">=": lambda column, value: column >= value,
}
_CONSTANTS = {"TRUE": True, "FALSE": False}


def parse(text: str, schema: pa.Schema) -> pc.Expression:
    """The condition, for rows with these columns. Raises `Refused`, with what is wrong and where."""
    if len(text) > CHARS_MAX:
        raise _refused(f"it is longer than {CHARS_MAX} characters")
    parser = _Parser(text, schema)
    found = parser.disjunction()
    parser.expect_end()
    return found


def values(text: str) -> list[str]:
    """The texts and numbers that a condition names, as they are. Raises `Refused`."""
    found = [(kind, token) for kind, token in _tokens(text) if kind in {"string", "number"}]
    return [_text(token) if kind == "string" else token for kind, token in found]


class _Parser:
    def __init__(self, text: str, schema: pa.Schema) -> None:
        self._tokens = list(_tokens(text))
        self._place = 0
        self._schema = schema
        self._depth = 0

    # --- tokens

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._place]

    def _next(self) -> tuple[str, str]:
        token = self._tokens[self._place]
        self._place += token[0] != "end"
        return token

    def _take(self, *texts: str) -> bool:
        """Whether the next tokens are these keywords or operators; then they are behind."""
        following = self._tokens[self._place : self._place + len(texts)]
        if [text.upper() if kind in {"word", "operator"} else None for kind, text in following] != list(texts):
            return False
        self._place += len(texts)
        return True

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise _refused(f"{text} is expected before {self._shown()}")

    def expect_end(self) -> None:
        if self._peek()[0] != "end":
            raise _refused(f"AND or OR is expected before {self._shown()}")

    def _shown(self) -> str:
        kind, text = self._peek()
        return "its end" if kind == "end" else repr(text)

    # --- grammar

    def disjunction(self) -> pc.Expression:
        found = self._conjunction()
        while self._take("OR"):
            found |= self._conjunction()
        return found

    def _conjunction(self) -> pc.Expression:
        found = self._negation()
        while self._take("AND"):
            found &= self._negation()
        return found

    def _negation(self) -> pc.Expression:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise _refused(f"it is nested more than {DEPTH_MAX} times")
        found = ~self._negation() if self._take("NOT") else self._primary()
        self._depth -= 1
        return found

    def _primary(self) -> pc.Expression:
        if self._take("("):
            found = self.disjunction()
            self._expect(")")
            return found
        field = self._column()
        column = pc.field(field.name)
        if self._take("IS", "NOT", "NULL"):
            return column.is_valid()
        if self._take("IS", "NULL"):
            return column.is_null()
        if self._take("NOT", "IN"):
            return ~_is_in(column, self._values(field))
        if self._take("IN"):
            return _is_in(column, self._values(field))
        if self._take("BETWEEN"):
            low = self._value(field)
            self._expect("AND")
            return (column >= low) & (column <= self._value(field))
        kind, text = self._peek()
        if kind == "operator" and text in _COMPARE:
            self._next()
            result: pc.Expression = _COMPARE[text](column, self._value(field))
            return result
        if pa.types.is_boolean(field.type):
            return column
        raise _refused(f"=, <>, <, <=, >, >=, IN, BETWEEN or IS NULL is expected after {field.name}")

    def _column(self) -> pa.Field:
        kind, text = self._next()
        if kind not in {"word", "quoted"}:
            self._place -= kind != "end"
            raise _refused(f"a column is expected before {self._shown()}")
        name = text[1:-1].replace('""', '"') if kind == "quoted" else text
        if name not in self._schema.names:
            raise _refused(f"there is no column {name!r}; the columns are {', '.join(self._schema.names)}")
        return self._schema.field(name)

    def _values(self, field: pa.Field) -> pa.Array:
        self._expect("(")
        values = [self._value(field)]
        while self._take(","):
            values.append(self._value(field))
        self._expect(")")
        return pa.array(values, field.type)

    def _value(self, field: pa.Field) -> pa.Scalar:
        """A value of a column's type: a time as text, such as '2026-11-29T10:00Z'."""
        kind, text = self._next()
        value: Any
        match kind:
            case "string":
                value = _text(text)
            case "number":
                value = text
            case "word" if text.upper() in _CONSTANTS:
                value = _CONSTANTS[text.upper()]
            case _:
                self._place -= kind != "end"
                raise _refused(f"a value is expected before {self._shown()}; texts are in single quotes")
        fits = {
            "string": not pa.types.is_boolean(field.type) and not _is_number(field.type),
            "number": _is_number(field.type),
            "word": pa.types.is_boolean(field.type),
        }
        no_value = _refused(f"{text} is not a value of {field.name}, which is a {field.type}{_form(field.type)}")
        if not fits[kind]:
            raise no_value
        try:
            return pa.scalar(value).cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise no_value from error


def _is_in(column: pc.Expression, values: pa.Array) -> pc.Expression:
    """Whether a column has one of these values; null if it is null, as in SQL. Arrow's `isin` is false there, and takes
    0.0 and -0.0 for two values.
    """
    if pa.types.is_floating(values.type) and pc.any(pc.equal(values, pa.scalar(0.0, values.type))).as_py():
        values = pa.concat_arrays([values, pa.array([0.0, -0.0], values.type)])
    return column.isin(values) | (column.is_null() & pc.scalar(pa.scalar(None, pa.bool_())))


def _text(token: str) -> str:
    return token[1:-1].replace("''", "'")


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _form(kind: pa.DataType) -> str:
    """How a value of a type is written, where an error does not say it."""
    if pa.types.is_timestamp(kind):
        return ": write '2026-11-29T10:00:00Z', with its zone"
    if pa.types.is_date(kind):
        return ": write '2026-11-29'"
    return ""


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    place = 0
    while text[place:].strip():
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            raise _refused(f"{text[place:].strip()[:20]!r} cannot be read; texts are in single quotes")
        yield match.lastgroup, match[match.lastgroup]
        place = match.end()
    yield "end", ""


def _refused(reason: str) -> Refused:
    return Refused(Refusal.INVALID_QUERY, f"the condition is not valid: {reason}")
