"""Columnar bodies: each batch is cast to the source's columns, and whole rows are packed into messages.

A batch of the body becomes rows of `columns.columnar_schema(source)`: the declared columns in their declared types,
each value unaltered, and what is not declared as a JSON object in `_payload`.
"""

from typing import IO

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from bronze.errors import Refusal, Refused
from bronze.protocol.message import HEADER_BYTES_MAX, MESSAGE_BYTES_MAX, MESSAGES_MAX, MessageKind, compress
from bronze.records.arrow_cast import (
    cast_unaltered,
    castable,
    fails_to_cast,
    first_beyond_calendar,
    first_failing,
    storage,
    storage_type,
)
from bronze.records.arrow_json import json_values
from bronze.records.columns import columnar_schema
from bronze.records.refusals import SAID_CHARS_MAX, empty, record_too_large, too_many_messages, violation
from bronze.records.sources import CLASSIFICATION_ID, CLASSIFICATION_ID_CHARS_MAX, Source
from bronze.records.spool import MessageSlice

PAYLOAD_BYTES_MAX = MESSAGE_BYTES_MAX - HEADER_BYTES_MAX
#: Rows of one message: so many empty ones would be small here, and large in the consumer.
PAYLOAD_ROWS_MAX = 16 * 2**10
#: All the runs that one body may name, in bytes of UTF-8.
CLASSIFICATIONS_BYTES_MAX = 16 * 2**20


class ReadBody(msgspec.Struct, frozen=True, tag=True):
    """The body is in the spool, as messages."""

    slices: list[MessageSlice]
    classifications: list[str]
    unclassified: int


class ColumnarIntake:
    """The rows taken so far, and the messages that they are packed into; raises `Refused`."""

    def __init__(self, source: Source, foreign: pa.Schema, spool: IO[bytes]) -> None:
        self._source = source
        self._foreign = foreign
        self._schema = columnar_schema(source)
        self._packer = RowPacker(self._schema, spool)
        self._records = 0
        self._classifications: dict[str, None] = {}
        self._classifications_bytes = 0
        self._unclassified = 0
        names = foreign.names
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) != len(names) else []
        if twice:
            raise self._violation("there are several columns of that name", field=twice[0][:SAID_CHARS_MAX])
        for field in self._schema.names[:-2]:
            self._check_column(field)
        if CLASSIFICATION_ID in names and not castable(self._given(CLASSIFICATION_ID), pa.string()):
            raise self._violation(f"Expected string, got {self._given(CLASSIFICATION_ID)}", field=CLASSIFICATION_ID)
        self._undeclared = [name for name in names if name not in self._schema.names[:-1]]

    def add(self, batch: pa.RecordBatch) -> None:
        """Take a batch that was validated."""
        if not batch.num_rows:
            return
        columns = [self._declared(batch, field) for field in self._schema.names[:-2]]
        rows = [*columns, self._classified(batch), self._payloads(batch)]
        self._packer.add(pa.RecordBatch.from_arrays(rows, schema=self._schema))
        self._records += batch.num_rows

    def finish(self) -> ReadBody:
        if not self._records:
            raise empty("Send one row at least.")
        self._packer.finish()
        return ReadBody(self._packer.slices, list(self._classifications), self._unclassified)

    def _given(self, name: str) -> pa.DataType:
        return storage_type(self._foreign.field(name).type)

    def _check_column(self, name: str) -> None:
        wanted = self._schema.field(name)
        if name not in self._foreign.names:
            if not wanted.nullable:
                raise self._violation("the column is missing, and the field is required", field=name)
            return
        given = self._given(name)
        if not castable(given, wanted.type):
            zone = " (without a zone)" if types.is_timestamp(given) and given.tz is None else ""
            raise self._violation(f"Expected {wanted.type}, got {str(given)[:SAID_CHARS_MAX]}{zone}", field=name)

    def _declared(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        wanted = self._schema.field(name)
        if name not in self._foreign.names:
            return pa.nulls(batch.num_rows, wanted.type)
        column = self._cast(storage(batch.column(name)), wanted)
        if not wanted.nullable and column.null_count:
            at = column.is_null().index(pa.scalar(value=True)).as_py()
            raise self._violation(f"Expected {wanted.type}, got null", at=at, field=name)
        beyond = first_beyond_calendar(column)
        if beyond is not None:
            raise self._violation("Expected a time of the years 1 to 9999 in UTC", at=beyond, field=name)
        return column

    def _cast(self, column: pa.Array, wanted: pa.Field) -> pa.Array:
        try:
            return cast_unaltered(column, wanted.type)
        except pa.ArrowInvalid as error:
            at = first_failing(lambda count: fails_to_cast(column.slice(0, count), wanted.type), len(column))
            said = f"Expected {wanted.type}: {str(error)[:SAID_CHARS_MAX].rstrip('.')}"
            raise self._violation(said, at=at, field=wanted.name) from error

    def _classified(self, batch: pa.RecordBatch) -> pa.Array:
        if CLASSIFICATION_ID not in self._foreign.names:
            self._unclassified += batch.num_rows
            return pa.nulls(batch.num_rows, pa.string())
        column = self._cast(storage(batch.column(CLASSIFICATION_ID)), self._schema.field(CLASSIFICATION_ID))
        length = pc.utf8_length(column)
        wrong = pc.or_(pc.equal(length, 0), pc.greater(length, CLASSIFICATION_ID_CHARS_MAX))
        if pc.any(wrong).as_py():
            at = wrong.index(pa.scalar(value=True)).as_py()
            raise self._violation(
                f"Expected 1 to {CLASSIFICATION_ID_CHARS_MAX} characters", at=at, field=CLASSIFICATION_ID
            )
        self._unclassified += column.null_count
        for name in column.unique().drop_null().to_pylist():
            if name not in self._classifications:
                self._classifications[name] = None
                self._classifications_bytes += len(name.encode())
        if self._classifications_bytes > CLASSIFICATIONS_BYTES_MAX:
            raise Refused(
                Refusal.BODY_TOO_LARGE,
                f"The body's rows name runs of more than {CLASSIFICATIONS_BYTES_MAX} bytes. "
                "Send it as several submissions.",
                limit=CLASSIFICATIONS_BYTES_MAX,
            )
        return column

    def _payloads(self, batch: pa.RecordBatch) -> pa.Array:
        if not self._undeclared:
            return pa.nulls(batch.num_rows, pa.string())
        columns = [json_values(batch.column(name)) for name in self._undeclared]
        encode = msgspec.json.Encoder().encode
        return pa.array(
            [encode(dict(zip(self._undeclared, row, strict=True))).decode() for row in zip(*columns, strict=True)],
            pa.string(),
        )

    def _violation(self, said: str, *, at: int | None = None, field: str | None = None) -> Refused:
        return violation(self._source, said, record=None if at is None else self._records + at, field=field)


class RowPacker:
    """Packs rows into messages: Arrow streams of whole rows, as full as the bounds let them be."""

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
        self._pack(to_the_end=True)
        self._spool.flush()

    def _pack(self, *, to_the_end: bool = False) -> None:
        """Write what is full, or all."""
        rest = pa.concat_batches(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
        while rest.num_rows:
            count = self._fitting(rest)
            if not count:
                raise record_too_large(self._records, PAYLOAD_BYTES_MAX)
            if count == rest.num_rows and not to_the_end:
                break
            self._write(rest.slice(0, count))
            rest = rest.slice(count)
        self._waiting = [rest]
        self._waiting_bytes = rest.nbytes
        self._waiting_rows = rest.num_rows

    def _fitting(self, rows: pa.RecordBatch) -> int:
        """How many of the first rows one message takes."""

        def over(count: int) -> bool:
            size = self._frame_bytes + pa.ipc.get_record_batch_size(rows.slice(0, count))
            return bool(size > PAYLOAD_BYTES_MAX)

        most = min(rows.num_rows, PAYLOAD_ROWS_MAX)
        return first_failing(over, most) if over(most) else most

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
