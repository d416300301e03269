"""Columnar bodies: each batch is cast to the source's columns, and whole rows are packed into messages.

A batch of the body becomes rows of `columns.columnar_schema(source)`: the declared columns in their declared types,
each value unaltered, and the undeclared columns as a JSON object in `_payload`.
"""

import sys
from collections.abc import Iterator
from typing import IO

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from bronze.errors import Refusal, Refused
from bronze.protocol.message import HEADER_BYTES_MAX, MESSAGE_BYTES_MAX, MESSAGES_MAX, MessageKind, compress
from bronze.records.arrow_cast import (
    LIST_TYPES,
    castable,
    casts_all,
    first_failing,
    first_outside_calendar,
    is_any,
    rows_outside_calendar,
    storage,
    storage_type,
)
from bronze.records.arrow_fields import convert, convertible
from bronze.records.arrow_json import json_values
from bronze.records.columns import arrow_type, columnar_schema
from bronze.records.fields import CALENDAR_ERROR, Field, FieldType
from bronze.records.refusals import (
    ERROR_CHARS_MAX,
    empty,
    record_too_large,
    too_many_classifications,
    too_many_messages,
    violation,
)
from bronze.records.sources import CLASSIFICATION_ID, CLASSIFICATION_ID_CHARS_MAX, Source
from bronze.records.spool import MessageSlice
from bronze.records.undeclared import first_names, shown_name, undeclared_reason

PAYLOAD_BYTES_MAX = MESSAGE_BYTES_MAX - HEADER_BYTES_MAX
#: The most rows of one message: more empty rows would fit, but they would be large in the consumer.
PAYLOAD_ROWS_MAX = 16 * 2**10
#: Bound of all the different classification ids in one body, in bytes of UTF-8.
CLASSIFICATIONS_BYTES_MAX = 16 * 2**20

#: Of a part with so few rows, some of which cannot be converted, each row is converted.
_ROWS_EACH = 64

_CLASSIFICATION = Field(CLASSIFICATION_ID, FieldType.STRING, "")
_WRONG_LENGTH = f"Expected 1 to {CLASSIFICATION_ID_CHARS_MAX} characters"


class ReadBody(msgspec.Struct, frozen=True, tag=True):
    """A body whose records are in the spool, as messages."""

    slices: list[MessageSlice]
    classifications: list[str]
    unclassified: int
    undeclared: list[str]


class ColumnarIntake:
    """Checks the batches of a columnar body and packs their rows into messages; raises `Refused`."""

    def __init__(
        self, source: Source, body_schema: pa.Schema, spool: IO[bytes], *, classifications_max: int = sys.maxsize
    ) -> None:
        self._source = source
        self._classifications_max = classifications_max
        self._body_schema = body_schema
        self._schema = columnar_schema(source)
        self._packer = RowPacker(self._schema, spool)
        self._records = 0
        self._classifications: dict[str, None] = {}
        self._classifications_bytes = 0
        self._unclassified = 0
        names = body_schema.names
        repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) != len(names) else []
        if repeated:
            raise self._violation("several columns have this name", field=repeated[0][:ERROR_CHARS_MAX])
        for field in source.fields:
            self._check_column(field)
        if CLASSIFICATION_ID in names and not castable(self._body_type(CLASSIFICATION_ID), pa.string()):
            raise self._violation(f"Expected string, got {self._body_type(CLASSIFICATION_ID)}", field=CLASSIFICATION_ID)
        declared = {field.name_in_records: field for field in source.fields}
        self._undeclared = [
            name
            for name in names
            if name != CLASSIFICATION_ID
            and (name not in declared or not casts_all(self._body_type(name), arrow_type(declared[name])))
        ]
        self._undeclared_names = first_names(
            path
            for name in ([] if source.is_raw else self._undeclared)
            for path in _undeclared_paths(name, self._body_type(name), declared.get(name))
        )
        if source.strict and self._undeclared_names:
            raise self._violation(undeclared_reason(self._undeclared_names), field=self._undeclared_names[0])

    def add(self, batch: pa.RecordBatch) -> None:
        """Add a batch that was validated."""
        if not batch.num_rows:
            return
        columns = [self._declared_column(batch, field) for field in self._source.fields]
        rows = [*columns, self._classification_column(batch), self._payload_column(batch)]
        self._packer.add(pa.RecordBatch.from_arrays(rows, schema=self._schema))
        self._records += batch.num_rows

    def finish(self) -> ReadBody:
        if not self._records:
            raise empty("Send at least one row.")
        self._packer.finish()
        return ReadBody(self._packer.slices, list(self._classifications), self._unclassified, self._undeclared_names)

    def _body_type(self, name: str) -> pa.DataType:
        return storage_type(self._body_schema.field(name).type)

    def _check_column(self, field: Field) -> None:
        name = field.name_in_records
        if name not in self._body_schema.names:
            if field.required:
                raise self._violation("the column is missing, but the field is required", field=name)
            return
        given = self._body_type(name)
        if not convertible(given, field):
            zone = " (without a time zone)" if types.is_timestamp(given) and given.tz is None else ""
            wanted = _described(field)
            raise self._violation(f"Expected {wanted}, got {str(given)[:ERROR_CHARS_MAX]}{zone}", field=name)

    def _declared_column(self, batch: pa.RecordBatch, field: Field) -> pa.Array:
        name = field.name_in_records
        if name not in self._body_schema.names:
            return pa.nulls(batch.num_rows, arrow_type(field))
        column = self._convert(storage(batch.column(name)), field)
        if field.required and column.null_count:
            row = column.is_null().index(pa.scalar(value=True)).as_py()
            raise self._violation(_got_null(field), row=row, field=name)
        row = first_outside_calendar(column)
        if row is not None:
            raise self._violation(CALENDAR_ERROR, row=row, field=name)
        if field is _CLASSIFICATION:
            self._check_length(column)
        return column

    def _check_length(self, ids: pa.Array) -> None:
        wrong = _rows(_has_wrong_length(ids))
        if wrong:
            raise self._violation(_WRONG_LENGTH, row=wrong[0], field=CLASSIFICATION_ID)

    def _convert(self, column: pa.Array, field: Field) -> pa.Array:
        try:
            return convert(column, field)
        except pa.ArrowInvalid as error:
            row = first_failing(lambda count: _fails(column.slice(0, count), field), len(column))
            raise self._violation(_not_converted(field, error), row=row, field=field.name_in_records) from error

    def invalid_rows(self, batch: pa.RecordBatch) -> dict[int, tuple[str, str]]:
        """The rows of a batch that do not fit the source, each with its first such field and the reason."""
        found: dict[int, tuple[str, str]] = {}
        for field in [*self._source.fields, _CLASSIFICATION]:
            if field.name_in_records in self._body_schema.names:
                for row, reason in _invalid_values(storage(batch.column(field.name_in_records)), field):
                    found.setdefault(row, (field.name_in_records, reason))
        return found

    def _classification_column(self, batch: pa.RecordBatch) -> pa.Array:
        if CLASSIFICATION_ID not in self._body_schema.names:
            self._unclassified += batch.num_rows
            return pa.nulls(batch.num_rows, pa.string())
        column = self._declared_column(batch, _CLASSIFICATION)
        self._unclassified += column.null_count
        for name in column.unique().drop_null().to_pylist():
            if name not in self._classifications:
                self._classifications[name] = None
                self._classifications_bytes += len(name.encode())
        if len(self._classifications) > self._classifications_max:
            raise too_many_classifications(self._classifications_max)
        if self._classifications_bytes > CLASSIFICATIONS_BYTES_MAX:
            raise Refused(
                Refusal.BODY_TOO_LARGE,
                f"The different values of {CLASSIFICATION_ID} in the body have more than {CLASSIFICATIONS_BYTES_MAX} "
                "bytes in all. Send the body as several submissions.",
                limit=CLASSIFICATIONS_BYTES_MAX,
            )
        return column

    def _payload_column(self, batch: pa.RecordBatch) -> pa.Array:
        if not self._undeclared:
            return pa.nulls(batch.num_rows, pa.string())
        columns = [json_values(batch.column(name)) for name in self._undeclared]
        encode = msgspec.json.Encoder().encode
        return pa.array(
            [encode(dict(zip(self._undeclared, row, strict=True))).decode() for row in zip(*columns, strict=True)],
            pa.string(),
        )

    def _violation(self, reason: str, *, row: int | None = None, field: str | None = None) -> Refused:
        """The refusal of the body; `row` is an index in the current batch."""
        return violation(self._source, reason, record=None if row is None else self._records + row, field=field)


def _undeclared_paths(name: str, given: pa.DataType, field: Field | None) -> Iterator[str]:
    if field is None:
        yield shown_name(name)
    else:
        yield from _paths_without_place(name, given, arrow_type(field))


def _paths_without_place(path: str, given: pa.DataType, wanted: pa.DataType) -> Iterator[str]:
    """The fields of structs for which a declared type has no place."""
    given = storage_type(given)
    if types.is_struct(wanted) and types.is_struct(given):
        places = {child.name: child.type for child in wanted}
        for child in given:
            if child.name in places:
                yield from _paths_without_place(f"{path}.{child.name}", child.type, places[child.name])
            else:
                yield shown_name(f"{path}.{child.name}")
    elif types.is_map(wanted) and types.is_map(given):
        yield from _paths_without_place(path, given.item_type, wanted.item_type)
    elif types.is_list(wanted) and is_any(given, *LIST_TYPES):
        yield from _paths_without_place(path, given.value_type, wanted.value_type)


def _described(field: Field) -> str:
    """The type of a field's column, for the sender."""
    if field.type is FieldType.JSON:
        return field.type.value
    if field.unit:
        return f"a number of {field.unit} since 1970"
    return str(arrow_type(field))


def _invalid_values(column: pa.Array, field: Field) -> Iterator[tuple[int, str]]:
    """The rows of a column whose values are none of the field, each with the reason."""
    if field.required and column.null_count:
        yield from ((row, _got_null(field)) for row in _rows(column.is_null()))
    for start, part in _convertible_parts(column, field, 0):
        if isinstance(part, str):
            yield start, part
            continue
        yield from ((start + row, CALENDAR_ERROR) for row in rows_outside_calendar(part))
        if field is _CLASSIFICATION:
            yield from ((start + row, _WRONG_LENGTH) for row in _rows(_has_wrong_length(part)))


def _convertible_parts(column: pa.Array, field: Field, start: int) -> Iterator[tuple[int, pa.Array | str]]:
    """The converted parts of a column, each with its first row, and the reason for each row that cannot be converted.

    Halves what cannot be converted, and converts small parts row by row.
    """
    try:
        yield start, convert(column, field)
    except pa.ArrowInvalid as error:
        rows = len(column)
        if rows == 1:
            yield start, _not_converted(field, error)
        else:
            step = rows // 2 if rows > _ROWS_EACH else 1
            for first in range(0, rows, step):
                yield from _convertible_parts(column.slice(first, step), field, start + first)


def _got_null(field: Field) -> str:
    return f"Expected {_described(field)}, got null"


def _not_converted(field: Field, error: pa.ArrowInvalid) -> str:
    return f"Expected {_described(field)}: {str(error)[:ERROR_CHARS_MAX].rstrip('.')}"


def _has_wrong_length(ids: pa.Array) -> pa.Array:
    length = pc.utf8_length(ids)
    return pc.or_(pc.equal(length, 0), pc.greater(length, CLASSIFICATION_ID_CHARS_MAX))


def _rows(mask: pa.Array) -> list[int]:
    """The rows at which a mask is true."""
    rows: list[int] = pc.indices_nonzero(mask.fill_null(False)).to_pylist()
    return rows


def _fails(column: pa.Array, field: Field) -> bool:
    try:
        convert(column, field)
    except pa.ArrowInvalid:
        return True
    return False


class RowPacker:
    """Packs rows into messages: Arrow streams of whole rows, as full as the bounds allow."""

    def __init__(self, schema: pa.Schema, spool: IO[bytes]) -> None:
        self._schema = schema
        self._spool = spool
        self._frame_bytes = len(_ipc_stream(schema, None))
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = 0
        self._waiting_rows = 0
        self._records = 0
        self.slices: list[MessageSlice] = []

    def add(self, rows: pa.RecordBatch) -> None:
        self._waiting.append(rows)
        self._waiting_bytes += rows.nbytes
        self._waiting_rows += rows.num_rows
        if self._waiting_bytes >= PAYLOAD_BYTES_MAX or self._waiting_rows >= PAYLOAD_ROWS_MAX:
            self._pack()

    def finish(self) -> None:
        self._pack(write_all=True)
        self._spool.flush()

    def _pack(self, *, write_all: bool = False) -> None:
        """Write the full messages; with `write_all`, also a last one that is not full."""
        rest = pa.concat_batches(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
        while rest.num_rows:
            count = self._rows_that_fit(rest)
            if not count:
                raise record_too_large(self._records, PAYLOAD_BYTES_MAX)
            if count == rest.num_rows and not write_all:
                break
            self._write(rest.slice(0, count))
            rest = rest.slice(count)
        self._waiting = [rest]
        self._waiting_bytes = rest.nbytes
        self._waiting_rows = rest.num_rows

    def _rows_that_fit(self, rows: pa.RecordBatch) -> int:
        """How many of the first rows fit into one message."""

        def too_large(count: int) -> bool:
            size = self._frame_bytes + pa.ipc.get_record_batch_size(rows.slice(0, count))
            return bool(size > PAYLOAD_BYTES_MAX)

        count_max = min(rows.num_rows, PAYLOAD_ROWS_MAX)
        return first_failing(too_large, count_max) if too_large(count_max) else count_max

    def _write(self, rows: pa.RecordBatch) -> None:
        if len(self.slices) == MESSAGES_MAX:
            raise too_many_messages()
        payload, zstd = compress(_ipc_stream(self._schema, rows))
        start = self.slices[-1].end if self.slices else 0
        end = start + self._spool.write(payload)
        self.slices.append(MessageSlice(start, end, self._records, rows.num_rows, MessageKind.COLUMNAR, zstd))
        self._records += rows.num_rows


def _ipc_stream(schema: pa.Schema, rows: pa.RecordBatch | None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        if rows is not None:
            writer.write_batch(rows)
    return bytes(sink.getvalue())
