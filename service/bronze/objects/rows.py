"""Rows: the records of messages become record batches with the columns of an object."""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from bronze.errors import DeadLetter
from bronze.protocol.chain import AcceptedMessage
from bronze.protocol.message import PLACEHOLDER, MessageKind, Part, split_records
from bronze.records.columns import ARROW_TYPES, arrow_type, columnar_schema
from bronze.records.fields import Field, FieldType
from bronze.records.sources import CLASSIFICATION_ID, Source

#: Messages are collected until they have so many rows or bytes; then they become one batch.
BATCH_ROWS = 4 * 1024
BATCH_BYTES = 4 * 2**20
#: With fewer rows, Arrow's JSON reader takes longer to set up than it saves.
ARROW_ROWS_MIN = 64


@dataclass(frozen=True, slots=True)
class DecodedMessage:
    """A message's records, as structs of their source and as received, each with its index and its classification."""

    accepted: AcceptedMessage
    records: list[Any]
    raw: list[bytes]
    indices: Sequence[int]
    classifications: list[str]
    received_at: dt.datetime


def decode_message(source: Source, accepted: AcceptedMessage) -> DecodedMessage:
    content = accepted.message.content()
    part = accepted.part
    checked_as = source.at_version(part.accepted.schema_version)
    sparse = part.kind is MessageKind.SPARSE
    record_type: Any = checked_as.record_type_text_times | None if sparse else checked_as.record_type_text_times
    records: list[Any]
    try:
        raw = split_records(part.kind, content)
        if checked_as.is_raw:
            records = [None if sparse and record == PLACEHOLDER else checked_as.decode_raw(record) for record in raw]
        elif part.kind is MessageKind.LINES:
            records = list(map(msgspec.json.Decoder(record_type).decode, raw))
        else:
            records = msgspec.json.decode(content, type=list[record_type])
        received_at = dt.datetime.fromisoformat(part.accepted.received_at)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise DeadLetter(f"its records cannot be decoded as {source.name}: {error}") from error
    indices: Sequence[int] = range(part.first_record, part.first_record + len(records))
    if sparse:
        present = [offset for offset, record in enumerate(records) if record is not None]
        records, raw = [records[offset] for offset in present], [raw[offset] for offset in present]
        indices = [indices[offset] for offset in present]
    if len(records) != part.records or not records:
        raise DeadLetter(f"it holds {len(records)} records, but its headers say {part.records}")
    default = part.accepted.classification_default
    classifications: list[Any] = [record.classification_id or default for record in records]
    if None in classifications:
        raise DeadLetter("a record has no classification_id, and its submission has none")
    return DecodedMessage(accepted, records, raw, indices, classifications, received_at)


def record_batch(source: Source, columns: pa.Schema, key: str, messages: Sequence[DecodedMessage]) -> pa.RecordBatch:
    """The rows of several messages in one batch, since a message may be a single record, and each array has a cost.

    Raises `DeadLetter` if records of any message do not fit the columns.
    """
    records = [record for message in messages for record in message.records]
    parts = [message.accepted.part for message in messages]
    versions = [part.accepted.schema_version for part in parts]
    try:
        arrays = [column(field, records, versions) for field in source.fields]
        payloads = pa.array([raw for message in messages for raw in message.raw], pa.binary()).cast(pa.string())
    except (pa.ArrowTypeError, OverflowError, ValueError) as error:  # an ArrowInvalid is a ValueError
        raise DeadLetter(f"its records do not fit {source.name}'s columns: {error}") from error
    ids = [classification for message in messages for classification in message.classifications]
    received = [message.received_at for message in messages]
    indices = pa.array([index for message in messages for index in message.indices], pa.int64())
    return _rows(columns, key, parts, indices, received, arrays, pa.array(ids, pa.string()), payloads)


def lines_batch(
    source: Source, columns: pa.Schema, key: str, messages: Sequence[AcceptedMessage]
) -> pa.RecordBatch | None:
    """The rows of several messages of lines, by Arrow's JSON reader, without a Python object for each value.

    The API has checked the records, so a value that the reader accepts is read correctly. None if it accepts fewer
    values or lines than the headers state: then `decode_message` decides.
    """
    parts = [message.part for message in messages]
    expected = sum(part.records for part in parts)
    as_checked = all(field.is_plain for field in source.fields) and all(
        part.kind is MessageKind.LINES and part.accepted.schema_version == source.version for part in parts
    )
    if not as_checked or expected < ARROW_ROWS_MIN:
        return None
    try:
        contents = [message.message.content() for message in messages]
        content = contents[0] if len(contents) == 1 else b"\n".join(contents)
        table = pa.json.read_json(
            pa.BufferReader(content),
            pa.json.ReadOptions(use_threads=False, block_size=len(content) + 1),
            pa.json.ParseOptions(explicit_schema=_read_as(source), unexpected_field_behavior="ignore"),
        )
        read = {name: table.column(name).combine_chunks() for name in table.column_names}
        arrays = [_positive_zeros(read[field.name_in_records].cast(arrow_type(field))) for field in source.fields]
        payloads = pc.split_pattern(pa.array([content], pa.binary()), b"\n").values.cast(pa.string())
        received = [dt.datetime.fromisoformat(part.accepted.received_at) for part in parts]
    except (DeadLetter, pa.ArrowException, ValueError):
        return None
    if not table.num_rows == len(payloads) == expected or not _begin_at_rows(contents, parts, payloads):
        return None
    ids = read[CLASSIFICATION_ID]
    if ids.null_count:
        ids = pc.coalesce(ids, _per_row(parts, [part.accepted.classification_default for part in parts], pa.string()))
    required = [array for field, array in zip(source.fields, arrays, strict=True) if field.required]
    if any(array.null_count for array in [*required, ids]):
        return None
    rows_before = accumulate((part.records for part in parts[:-1]), initial=0)
    to_index = [part.first_record - before for part, before in zip(parts, rows_before, strict=True)]
    indices = pc.add(pa.arange(0, expected), _per_row(parts, to_index, pa.int64()))
    return _rows(columns, key, parts, indices, received, arrays, ids, payloads)


def _begin_at_rows(contents: Sequence[bytes], parts: Sequence[Part], lines: pa.StringArray) -> bool:
    """Whether the lines of each content, of one after the other, are as many as its part has records.

    The end of the last of so many lines is compared with the length of the contents: nothing is counted again.
    """
    ends = memoryview(lines.buffers()[1]).cast("i")[lines.offset :]
    rows = size = 0
    for content, part in zip(contents, parts, strict=True):
        rows += part.records
        size += len(content) - (part.records - 1)  # line breaks are in no line
        if ends[rows] - ends[0] != size:
            return False
    return True


def _read_as(source: Source) -> pa.Schema:
    """The schema for Arrow's JSON reader: times and dates as text, and float32 as the decoder reads it. They are cast
    later.
    """
    other = {FieldType.TIMESTAMP: pa.string(), FieldType.DATE: pa.string(), FieldType.FLOAT32: pa.float64()}
    fields = [(field.name_in_records, other.get(field.type) or arrow_type(field)) for field in source.fields]
    return pa.schema([*fields, (CLASSIFICATION_ID, pa.string())])


def columnar_batch(source: Source, columns: pa.Schema, key: str, message: AcceptedMessage) -> pa.RecordBatch:
    """The rows of an Arrow stream that `columnar_intake` wrote; fields that were added later are null.

    Raises `DeadLetter` if the message is anything else.
    """
    part, accepted = message.part, message.part.accepted
    expected = columnar_schema(source.at_version(accepted.schema_version))
    try:
        received_at = dt.datetime.fromisoformat(accepted.received_at)
        with pa.ipc.open_stream(message.message.content()) as stream:
            if not stream.schema.equals(expected):
                raise DeadLetter(f"its columns are not those of {source.name}, version {accepted.schema_version}")
            table = stream.read_all().combine_chunks()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DeadLetter(f"its columns cannot be decoded as {source.name}: {error}") from error
    count = table.num_rows
    if count != part.records or not count:
        raise DeadLetter(f"it holds {count} records, but its headers say {part.records}")
    read = {field.name: table.column(field.name).combine_chunks() for field in expected}
    null = [field.name for field in expected if not field.nullable and read[field.name].null_count]
    if null:
        raise DeadLetter(f"its column {null[0]} has nulls, but the field is required")
    ids = read[CLASSIFICATION_ID]
    if ids.null_count:
        if accepted.classification_default is None:
            raise DeadLetter("a record has no classification_id, and its submission has none")
        ids = ids.fill_null(accepted.classification_default)
    arrays = [
        read[field.name].cast(arrow_type(field)) if field.name in read else pa.nulls(count, arrow_type(field))
        for field in source.fields
    ]
    indices = pa.arange(part.first_record, part.first_record + count)
    return _rows(columns, key, [part], indices, [received_at], arrays, ids, read["_payload"])


def _rows(
    columns: pa.Schema,
    key: str,
    parts: Sequence[Part],
    indices: pa.Array,
    received: Sequence[dt.datetime],
    arrays: Sequence[pa.Array],
    classification_ids: pa.Array,
    payloads: pa.Array,
) -> pa.RecordBatch:
    """The rows of several messages: the declared columns in `arrays`, and the columns that Bronze adds."""
    added = [
        pa.repeat(key, len(payloads)),
        classification_ids,
        _per_row(parts, [part.accepted.submission_id for part in parts], pa.string()),
        indices,
        _per_row(parts, [part.accepted.origin for part in parts], pa.string()),
        _per_row(parts, received, pa.timestamp("us", tz="UTC")),
        _per_row(parts, [part.accepted.trace_id for part in parts], pa.string()),
        _per_row(parts, [part.accepted.schema_version for part in parts], pa.int32()),
        payloads,
    ]
    return pa.RecordBatch.from_arrays([*arrays, *added], schema=columns)


def _per_row(parts: Sequence[Part], values: Iterable[object], data_type: pa.DataType) -> pa.Array:
    """One value per message, repeated for each of its rows."""
    ends = pa.array(accumulate(part.records for part in parts), pa.int32())
    return pc.run_end_decode(pa.RunEndEncodedArray.from_arrays(ends, pa.array(values, data_type)))


def column(field: Field, records: Sequence[Any], versions: Sequence[int]) -> pa.Array:
    """A field of each record; null if the record is older than the field. `versions` are those of the messages."""
    if field.since <= min(versions):
        values = list(map(attrgetter(field.name), records))
    else:
        values = [getattr(record, field.name, None) for record in records]
    if field.type is FieldType.TIMESTAMP and field.is_plain:
        return _times(values)
    if field.is_checked_by_value or not field.is_plain:
        values = [_stored(field, value) for value in values]
    return _positive_zeros(pa.array(values, arrow_type(field)))


def column_of_value(field: Field, text: bytes) -> pa.Array:
    """A field's column of one row, from the JSON text of a value; null if the value does not fit."""
    try:
        value = _stored(field, msgspec.json.decode(text, type=field.optional_type))
        return _positive_zeros(pa.array([value], arrow_type(field)))
    except (pa.ArrowException, OverflowError, RecursionError, TypeError, ValueError):
        return pa.nulls(1, arrow_type(field))


def _positive_zeros(column: pa.Array) -> pa.Array:
    """The column with 0.0 for -0.0: Arrow and msgspec read `-0` as different zeros."""
    return pc.add(column, pa.scalar(0.0, column.type)) if pa.types.is_floating(column.type) else column


def _stored(field: Field, value: Any) -> Any:
    """The value of a column for a decoded value."""
    if value is None:
        return None
    match field.type:
        case FieldType.DECIMAL:
            return field.quantize(value)
        case FieldType.TIMESTAMP:
            return field.time(value)
        case FieldType.JSON:
            text = bytes(value).decode()
            return None if text == "null" else text
        case FieldType.LIST:
            return [_stored(field.children[0], item) for item in value]
        case FieldType.MAP:
            return [(key, _stored(field.children[1], item)) for key, item in value.items()]
        case FieldType.STRUCT:
            return {child.name: _stored(child, value.get(child.name)) for child in field.children}
        case _:
            return value


def _times(texts: Sequence[str | None]) -> pa.Array:
    """RFC 3339 texts as timestamps: by Arrow, which is three times as fast, else by msgspec, as in the API."""
    data_type = ARROW_TYPES[FieldType.TIMESTAMP]
    try:
        return pa.array(texts, pa.string()).cast(data_type)
    except pa.ArrowInvalid:
        return pa.array([None if text is None else msgspec.convert(text, dt.datetime) for text in texts], data_type)
