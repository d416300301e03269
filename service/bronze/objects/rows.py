"""Rows: the records of messages become record batches of an object's columns."""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from operator import attrgetter
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from bronze.errors import DeadLetter
from bronze.protocol.chain import AcceptedMessage
from bronze.protocol.message import MessageKind, Part, split_records
from bronze.records.columns import ARROW_TYPES, arrow_type, columnar_schema
from bronze.records.sources import CLASSIFICATION_ID, Field, FieldType, Source

#: How much is made rows of at once, at least, where there is so much.
BATCH_ROWS = 4 * 1024
BATCH_BYTES = 4 * 2**20
#: Below it, Arrow's JSON reader takes longer to set up than it saves.
ARROW_ROWS_MIN = 64


@dataclass(frozen=True, slots=True)
class DecodedMessage:
    """A message's records, as structs of their source and as received; the index in the body and the run of each."""

    one: AcceptedMessage
    records: list[Any]
    raw: list[bytes]
    indices: Sequence[int]
    classifications: list[str]
    received_at: dt.datetime


def decode_message(source: Source, one: AcceptedMessage) -> DecodedMessage:
    content = one.message.content()
    checked_as = source.at(one.part.accepted.schema_version)
    sparse = one.part.kind is MessageKind.SPARSE
    record_type: Any = checked_as.text_type | None if sparse else checked_as.text_type
    try:
        raw = split_records(one.part.kind, content)
        if one.part.kind is MessageKind.LINES:
            records = list(map(msgspec.json.Decoder(record_type).decode, raw))
        else:
            records = msgspec.json.decode(content, type=list[record_type])
        received_at = dt.datetime.fromisoformat(one.part.accepted.received_at)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise DeadLetter(f"its records cannot be decoded as {source.name}: {error}") from error
    indices: Sequence[int] = range(one.part.first_record, one.part.first_record + len(records))
    if sparse:
        there = [place for place, record in enumerate(records) if record is not None]
        records, raw = [records[place] for place in there], [raw[place] for place in there]
        indices = [indices[place] for place in there]
    if len(records) != one.part.records or not records:
        raise DeadLetter(f"it holds {len(records)} records, and its headers say {one.part.records}")
    default = one.part.accepted.classification_default
    classifications: list[Any] = [record.classification_id or default for record in records]
    if None in classifications:
        raise DeadLetter("a record names no classification_id, and its submission has none")
    return DecodedMessage(one, records, raw, indices, classifications, received_at)


def record_batch(source: Source, columns: pa.Schema, key: str, messages: Sequence[DecodedMessage]) -> pa.RecordBatch:
    """The rows of some messages: together, since a message may be one record, and an array costs as much as its rows.

    Raises `DeadLetter` where the records of any of them fit no column.
    """
    records = [record for message in messages for record in message.records]
    parts = [message.one.part for message in messages]
    versions = [part.accepted.schema_version for part in parts]
    try:
        arrays = [_column(field, records, versions) for field in source.fields]
        payloads = pa.array([raw for message in messages for raw in message.raw], pa.binary()).cast(pa.string())
    except (pa.ArrowTypeError, OverflowError, ValueError) as error:  # an ArrowInvalid is a ValueError
        raise DeadLetter(f"its records do not fit {source.name}'s columns: {error}") from error
    named = pa.array([name for message in messages for name in message.classifications], pa.string())
    received = [message.received_at for message in messages]
    indices = [index for message in messages for index in message.indices]
    return _rows(columns, key, parts, indices, received, arrays, named, payloads)


def lines_batch(
    source: Source, columns: pa.Schema, key: str, messages: Sequence[AcceptedMessage]
) -> pa.RecordBatch | None:
    """The rows of some messages of lines, by Arrow's JSON reader, without an object for each value.

    They were checked, so a value that it reads is the one that was meant. None where it reads less, or other lines than
    the headers tell of: then `_decode` has the word.
    """
    parts = [one.part for one in messages]
    expected = sum(part.records for part in parts)
    as_checked = all(
        part.kind is MessageKind.LINES and part.accepted.schema_version == source.version for part in parts
    )
    if not as_checked or expected < ARROW_ROWS_MIN:
        return None
    try:
        contents = [one.message.content() for one in messages]
        content = contents[0] if len(contents) == 1 else b"\n".join(contents)
        table = pa.json.read_json(
            pa.BufferReader(content),
            pa.json.ReadOptions(use_threads=False, block_size=len(content) + 1),
            pa.json.ParseOptions(explicit_schema=_read_as(source), unexpected_field_behavior="ignore"),
        )
        read = {name: table.column(name).combine_chunks() for name in table.column_names}
        arrays = [read[field.name].cast(arrow_type(field)) for field in source.fields]
        payloads = pc.split_pattern(pa.array([content], pa.binary()), b"\n").values.cast(pa.string())
        received = [dt.datetime.fromisoformat(part.accepted.received_at) for part in parts]
    except (DeadLetter, pa.ArrowException, ValueError):
        return None
    one_a_line = table.num_rows == len(payloads) == expected and (
        len(messages) == 1
        or all(content.count(b"\n") + 1 == part.records for content, part in zip(contents, parts, strict=True))
    )
    if not one_a_line:
        return None
    named = read[CLASSIFICATION_ID]
    if named.null_count:
        named = pc.coalesce(named, _each(parts, [part.accepted.classification_default for part in parts], pa.string()))
    required = [array for field, array in zip(source.fields, arrays, strict=True) if field.required]
    if any(array.null_count for array in [*required, named]):
        return None
    indices = chain.from_iterable(range(part.first_record, part.first_record + part.records) for part in parts)
    return _rows(columns, key, parts, indices, received, arrays, named, payloads)


def _read_as(source: Source) -> pa.Schema:
    """What Arrow's JSON reader is to look for: times and days as the texts that they are, to be cast."""
    texts = {FieldType.TIMESTAMP, FieldType.DATE}
    fields = [(field.name, pa.string() if field.type in texts else arrow_type(field)) for field in source.fields]
    return pa.schema([*fields, (CLASSIFICATION_ID, pa.string())])


def columnar_batch(source: Source, columns: pa.Schema, key: str, one: AcceptedMessage) -> pa.RecordBatch:
    """The rows of an Arrow stream that `columnar_intake` wrote; a field that was added since is null.

    Raises `DeadLetter` where it is anything else.
    """
    accepted = one.part.accepted
    wanted = columnar_schema(source.at(accepted.schema_version))
    try:
        received_at = dt.datetime.fromisoformat(accepted.received_at)
        with pa.ipc.open_stream(one.message.content()) as stream:
            if not stream.schema.equals(wanted):
                raise DeadLetter(f"its columns are not those of {source.name}, version {accepted.schema_version}")
            table = stream.read_all().combine_chunks()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DeadLetter(f"its columns cannot be decoded as {source.name}: {error}") from error
    count = table.num_rows
    if count != one.part.records or not count:
        raise DeadLetter(f"it holds {count} records, and its headers say {one.part.records}")
    found = {field.name: table.column(field.name).combine_chunks() for field in wanted}
    null = [field.name for field in wanted if not field.nullable and found[field.name].null_count]
    if null:
        raise DeadLetter(f"its column {null[0]} has nulls, and the field is required")
    named = found[CLASSIFICATION_ID]
    if named.null_count:
        if accepted.classification_default is None:
            raise DeadLetter("a record names no classification_id, and its submission has none")
        named = named.fill_null(accepted.classification_default)
    arrays = [
        found[field.name] if field.name in found else pa.nulls(count, arrow_type(field)) for field in source.fields
    ]
    indices = range(one.part.first_record, one.part.first_record + count)
    return _rows(columns, key, [one.part], indices, [received_at], arrays, named, found["_payload"])


def _rows(
    columns: pa.Schema,
    key: str,
    parts: Sequence[Part],
    indices: Iterable[int],
    received: Sequence[dt.datetime],
    arrays: Sequence[pa.Array],
    named: pa.Array,
    payloads: pa.Array,
) -> pa.RecordBatch:
    """The rows of some messages' declared columns, with ours."""
    ours = [
        pa.repeat(key, len(payloads)),
        named,
        _each(parts, [part.accepted.submission_id for part in parts], pa.string()),
        pa.array(indices, pa.int64()),
        _each(parts, [part.accepted.origin for part in parts], pa.string()),
        _each(parts, received, pa.timestamp("us", tz="UTC")),
        _each(parts, [part.accepted.trace_id for part in parts], pa.string()),
        _each(parts, [part.accepted.schema_version for part in parts], pa.int32()),
        payloads,
    ]
    return pa.RecordBatch.from_arrays([*arrays, *ours], schema=columns)


def _each(parts: Sequence[Part], values: Iterable[object], kind: pa.DataType) -> pa.Array:
    """A value a message, for each of its rows."""
    ends = pa.array(accumulate(part.records for part in parts), pa.int32())
    return pc.run_end_decode(pa.RunEndEncodedArray.from_arrays(ends, pa.array(values, kind)))


def _column(field: Field, records: Sequence[Any], versions: Sequence[int]) -> pa.Array:
    """A field of each record, which are of these versions; null where the record is older than the field."""
    if field.since <= min(versions):
        values = list(map(attrgetter(field.name), records))
    else:
        values = [getattr(record, field.name, None) for record in records]
    if field.type is FieldType.TIMESTAMP:
        return _times(values)
    if field.type is FieldType.DECIMAL:
        values = [None if value is None else field.exact(value) for value in values]
    return pa.array(values, arrow_type(field))


def _times(texts: Sequence[str | None]) -> pa.Array:
    """RFC 3339 as timestamps: by Arrow, which is three times as fast, or as they were checked where it knows less."""
    kind = ARROW_TYPES[FieldType.TIMESTAMP]
    try:
        return pa.array(texts, pa.string()).cast(kind)
    except pa.ArrowInvalid:
        return pa.array([None if text is None else msgspec.convert(text, dt.datetime) for text in texts], kind)
