"""Objects: a cut becomes one Parquet file, and a file tells what it holds. Pure: bytes in, bytes out.

Columns: the source's declared fields under their own names, then ours. The footer's key `bronze` holds `Contents`.
"""

import datetime as dt
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import accumulate, chain
from operator import attrgetter
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from bronze import __version__
from bronze.chain import Contents, Kept, Lane, Message, Sorted, Stored, digest, set_aside
from bronze.errors import Poison
from bronze.sources import CLASSIFICATION_ID, Field, FieldType, Source
from bronze.submission import CLASSIFICATIONS_LISTED_MAX, Kind, Part, records_of

CONTENT_TYPE = "application/vnd.apache.parquet"
FOOTER_KEY = b"bronze"
#: Readers skip by row group: small enough to skip, large enough to compress.
ROW_GROUP_ROWS = 32 * 1024
#: How much is made rows of at once, at least, where there is so much.
BATCH_ROWS = 4 * 1024
BATCH_BYTES = 4 * 2**20
#: Below it, Arrow's JSON reader takes longer to set up than it saves.
ARROW_ROWS_MIN = 64
#: A Parquet file ends with the footer's length (4 bytes, little-endian) and this mark.
MAGIC = b"PAR1"
TAIL_BYTES = 8

_ARROW: Mapping[FieldType, pa.DataType] = {
    FieldType.STRING: pa.string(),
    FieldType.BOOL: pa.bool_(),
    FieldType.INT64: pa.int64(),
    FieldType.FLOAT64: pa.float64(),
    FieldType.TIMESTAMP: pa.timestamp("us", tz="UTC"),
    FieldType.DATE: pa.date32(),
}

_OURS = [
    pa.field("file_path", pa.string(), nullable=False),
    pa.field("classification_id", pa.string(), nullable=False),
    pa.field("_submission_id", pa.string(), nullable=False),
    pa.field("_record_index", pa.int64(), nullable=False),
    pa.field("_origin", pa.string()),
    pa.field("_received_at", pa.timestamp("us", tz="UTC"), nullable=False),
    pa.field("_trace_id", pa.string(), nullable=False),
    pa.field("_schema_version", pa.int32(), nullable=False),
    pa.field("_payload", pa.string()),
]

#: Columns with a value for nearly each row, as timestamps have: a dictionary only costs (13 % of the bytes, measured).
_NO_DICTIONARY = frozenset({"_payload", "_record_index", "classification_id"})


class NotOurs(Exception):
    """A file that this package did not write."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An object before it is written: its bytes, and what they say of themselves."""

    body: bytes
    contents: Contents


def arrow_type(field: Field) -> pa.DataType:
    """The Arrow type of a declared field's column."""
    return pa.decimal128(field.precision, field.scale) if field.type is FieldType.DECIMAL else _ARROW[field.type]


def schema(source: Source) -> pa.Schema:
    """The columns of a source's objects."""
    return pa.schema(_declared(source) + _OURS)


def columnar_schema(source: Source) -> pa.Schema:
    """The columns of a source's columnar messages: the declared fields, then what a row may have of its own.

    `classification_id` is null where the submission's default holds; `_payload` is null, or the undeclared columns as
    a JSON object.
    """
    return pa.schema([*_declared(source), pa.field(CLASSIFICATION_ID, pa.string()), pa.field("_payload", pa.string())])


def _declared(source: Source) -> list[pa.Field]:
    return [pa.field(field.name, arrow_type(field), nullable=not field.required) for field in source.fields]


def encode(source: Source, lane: Lane, key: str, cut: Sorted, traceparent: str, written_at: str = "") -> Encoded:
    """Encode a cut as the object that lies under `key`. A message that cannot become rows is listed as set aside."""
    with ThreadPoolExecutor(1) as thread:  # none is begun before a row group is full
        filling = _Filling(source, key, thread)
        filling.take(cut.kept)
        return filling.object(lane, cut, traceparent, written_at)


class _Filling:
    """An object that is being filled: what its rows are of, and the messages that became none, with the reasons."""

    def __init__(self, source: Source, key: str, aside: Executor) -> None:
        self._source = source
        self._key = key
        self._columns = schema(source)
        self._writing = Writing(self._columns, aside)
        self._rows: dict[int, int] = {}  # by sequence
        self._runs: list[pa.Array] = []
        self._poison: list[tuple[Message, str]] = []

    def take(self, messages: Iterable[Kept]) -> None:
        group: list[Kept] = []
        rows = size = 0
        for one in messages:
            if one.part.kind is Kind.REJECTED:
                self._poison.append(
                    (one.message, f"its records do not fit {self._source.name}; its sender had them kept apart")
                )
            elif one.undecoded:
                self._poison.append((one.message, one.undecoded))
            elif one.part.kind is Kind.COLUMNAR:
                self._take_together(group)
                group, rows, size = [], 0, 0
                try:
                    self._add([one], _columnar_batch(self._source, self._columns, self._key, one))
                except Poison as error:
                    self._poison.append((one.message, str(error)))
            else:
                group.append(one)
                rows += one.part.records
                size += one.message.size
                if rows >= BATCH_ROWS or size >= BATCH_BYTES:
                    self._take_together(group)
                    group, rows, size = [], 0, 0
        self._take_together(group)

    def _take_together(self, group: Sequence[Kept]) -> None:
        batch = _lines_batch(self._source, self._columns, self._key, group)
        if batch is not None:
            self._add(group, batch)
            return
        decoded: list[_Decoded] = []
        for one in group:
            try:
                decoded.append(_decode(self._source, one))
            except Poison as error:
                self._poison.append((one.message, str(error)))
        if decoded:
            self._add_together(decoded)

    def _add_together(self, group: Sequence["_Decoded"]) -> None:
        try:
            batch = _batch(self._source, self._columns, self._key, group)
        except Poison as error:
            if len(group) == 1:
                self._poison.append((group[0].one.message, str(error)))
                return
            for decoded in group:
                self._add_together([decoded])
        else:
            self._add([decoded.one for decoded in group], batch)

    def _add(self, of: Iterable[Kept], batch: pa.RecordBatch) -> None:
        self._writing.add(batch)
        self._runs.append(batch.column(CLASSIFICATION_ID).unique())  # a copy: the column may hold its whole message
        self._rows |= {one.message.sequence: one.part.records for one in of}

    def object(self, lane: Lane, cut: Sorted, traceparent: str, written_at: str) -> Encoded:
        """The whole object."""
        poison = sorted([*cut.poison, *self._poison], key=lambda one: one[0].sequence)
        aside = [set_aside(lane, message, reason) for message, reason in poison]
        stored = _stored(self._key, cut, self._rows, {one.sequence: one.key for one in aside})
        received = sorted(one.accepted.received_at for one in stored)
        runs = pa.chunked_array(self._runs, pa.string()).unique()
        bounds = pc.min_max(runs)
        contents = Contents(
            writer=f"bronze {__version__}",
            file_path=self._key,
            source=lane.source,
            epoch=lane.epoch,
            lane=lane.number,
            first=cut.messages[0].sequence,
            last=cut.messages[-1].sequence,
            last_time=cut.messages[-1].time,
            digest=digest(cut.messages),
            messages=len(cut.messages),
            records=sum(self._rows.values()),
            first_received_at=received[0] if received else None,
            last_received_at=received[-1] if received else None,
            traceparent=traceparent,
            submissions=stored,
            quarantined=aside,
            duplicates=list(cut.duplicates),
            written_at=written_at,
            classifications=runs[:CLASSIFICATIONS_LISTED_MAX].to_pylist(),
            classification_count=len(runs),
            classification_least=bounds["min"].as_py(),
            classification_greatest=bounds["max"].as_py(),
        )
        return Encoded(self._writing.finish({FOOTER_KEY: msgspec.json.encode(contents)}), contents)


@dataclass(frozen=True, slots=True)
class _Decoded:
    """A message's records, as structs of their source and as received; the index in the body and the run of each."""

    one: Kept
    records: list[Any]
    raw: list[bytes]
    indices: Sequence[int]
    classifications: list[str]
    received_at: dt.datetime


def _decode(source: Source, one: Kept) -> _Decoded:
    content = one.message.content()
    checked_as = source.at(one.part.accepted.schema_version)
    sparse = one.part.kind is Kind.SPARSE
    record_type: Any = checked_as.text_type | None if sparse else checked_as.text_type
    try:
        raw = records_of(one.part.kind, content)
        if one.part.kind is Kind.LINES:
            records = list(map(msgspec.json.Decoder(record_type).decode, raw))
        else:
            records = msgspec.json.decode(content, type=list[record_type])
        received_at = dt.datetime.fromisoformat(one.part.accepted.received_at)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise Poison(f"its records cannot be decoded as {source.name}: {error}") from error
    indices: Sequence[int] = range(one.part.first_record, one.part.first_record + len(records))
    if sparse:
        there = [place for place, record in enumerate(records) if record is not None]
        records, raw = [records[place] for place in there], [raw[place] for place in there]
        indices = [indices[place] for place in there]
    if len(records) != one.part.records or not records:
        raise Poison(f"it holds {len(records)} records, and its headers say {one.part.records}")
    default = one.part.accepted.classification_default
    classifications: list[Any] = [record.classification_id or default for record in records]
    if None in classifications:
        raise Poison("a record names no classification_id, and its submission has none")
    return _Decoded(one, records, raw, indices, classifications, received_at)


def _batch(source: Source, columns: pa.Schema, key: str, messages: Sequence[_Decoded]) -> pa.RecordBatch:
    """The rows of some messages: together, since a message may be one record, and an array costs as much as its rows.

    Raises `Poison` where the records of any of them fit no column.
    """
    records = [record for message in messages for record in message.records]
    parts = [message.one.part for message in messages]
    versions = [part.accepted.schema_version for part in parts]
    try:
        arrays = [_column(field, records, versions) for field in source.fields]
        payloads = pa.array([raw for message in messages for raw in message.raw], pa.binary()).cast(pa.string())
    except (pa.ArrowTypeError, OverflowError, ValueError) as error:  # an ArrowInvalid is a ValueError
        raise Poison(f"its records do not fit {source.name}'s columns: {error}") from error
    named = pa.array([name for message in messages for name in message.classifications], pa.string())
    received = [message.received_at for message in messages]
    indices = [index for message in messages for index in message.indices]
    return _rows(columns, key, parts, indices, received, arrays, named, payloads)


def _lines_batch(source: Source, columns: pa.Schema, key: str, messages: Sequence[Kept]) -> pa.RecordBatch | None:
    """The rows of some messages of lines, by Arrow's JSON reader, without an object for each value.

    They were checked, so a value that it reads is the one that was meant. None where it reads less, or other lines than
    the headers tell of: then `_decode` has the word.
    """
    parts = [one.part for one in messages]
    expected = sum(part.records for part in parts)
    as_checked = all(part.kind is Kind.LINES and part.accepted.schema_version == source.version for part in parts)
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
    except (Poison, pa.ArrowException, ValueError):
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


def _columnar_batch(source: Source, columns: pa.Schema, key: str, one: Kept) -> pa.RecordBatch:
    """The rows of an Arrow stream that `bronze.columnar` wrote; a field that was added since is null.

    Raises `Poison` where it is anything else.
    """
    accepted = one.part.accepted
    wanted = columnar_schema(source.at(accepted.schema_version))
    try:
        received_at = dt.datetime.fromisoformat(accepted.received_at)
        with pa.ipc.open_stream(one.message.content()) as stream:
            if not stream.schema.equals(wanted):
                raise Poison(f"its columns are not those of {source.name}, version {accepted.schema_version}")
            table = stream.read_all().combine_chunks()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Poison(f"its columns cannot be decoded as {source.name}: {error}") from error
    count = table.num_rows
    if count != one.part.records or not count:
        raise Poison(f"it holds {count} records, and its headers say {one.part.records}")
    found = {field.name: table.column(field.name).combine_chunks() for field in wanted}
    null = [field.name for field in wanted if not field.nullable and found[field.name].null_count]
    if null:
        raise Poison(f"its column {null[0]} has nulls, and the field is required")
    named = found[CLASSIFICATION_ID]
    if named.null_count:
        if accepted.classification_default is None:
            raise Poison("a record names no classification_id, and its submission has none")
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
    kind = _ARROW[FieldType.TIMESTAMP]
    try:
        return pa.array(texts, pa.string()).cast(kind)
    except pa.ArrowInvalid:
        return pa.array([None if text is None else msgspec.convert(text, dt.datetime) for text in texts], kind)


def _stored(key: str, cut: Sorted, rows: Mapping[int, int], aside: Mapping[int, str]) -> list[Stored]:
    """Each submission of a cut with what its identity needs, in the order of their first messages.

    `rows` and `aside` are the number of rows and the key in quarantine, by the message's sequence.
    """
    stored: dict[str, Stored] = {}
    for one in cut.kept:
        accepted = one.part.accepted
        before = stored.get(accepted.submission_id)
        earlier = one.earlier if before is None else None
        so_far = before or earlier
        set_aside_here = aside.get(one.message.sequence)
        objects = before.objects if before else [*(earlier.objects if earlier else []), key]
        stored[accepted.submission_id] = Stored(
            accepted=accepted,
            first_sequence=one.first_sequence,
            parts=one.part.count,
            parts_done=one.part.number,
            parts_quarantined=(so_far.parts_quarantined if so_far else 0) + (set_aside_here is not None),
            records=(before.records if before else 0) + rows.get(one.message.sequence, 0),
            objects=list(dict.fromkeys(objects)),
            queued_at=before.queued_at if before else one.message.time,
            quarantined=(so_far.quarantined if so_far else []) + ([set_aside_here] if set_aside_here else []),
        )
    return list(stored.values())


class Writing:
    """An object's file as it is written, a row group at a time: of its rows, no more than one group's are held.

    With `aside`, a group is written there while the next one is made, and two groups' rows are held. `changed` are
    other options of PyArrow's writer, to compare.
    """

    def __init__(self, columns: pa.Schema, aside: Executor | None = None, **changed: Any) -> None:
        # docs/performance.md has what was compared: what is not here made objects larger, or writing slower
        options = {
            "row_group_size": ROW_GROUP_ROWS,
            "compression": "zstd",
            "use_dictionary": [
                field.name
                for field in columns
                if field.name not in _NO_DICTIONARY and not pa.types.is_timestamp(field.type)
            ],
            "write_statistics": True,
            "write_page_index": True,
            "store_schema": False,  # Parquet's own types say it all; Arrow's beside them are a fifth of a small object
            **changed,
        }
        self._group_rows: int = options.pop("row_group_size")
        self._columns = columns
        self._sink = BytesIO()
        self._writer = pq.ParquetWriter(self._sink, columns, **options)
        self._aside = aside
        self._under_way: Future[None] | None = None
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0
        self._begun = False

    def add(self, batch: pa.RecordBatch) -> None:
        self._waiting.append(batch)
        self._rows += batch.num_rows
        if self._rows >= self._group_rows:
            self._write(self._rows - self._rows % self._group_rows)

    def _write(self, rows: int) -> None:
        table = pa.Table.from_batches(self._waiting, self._columns)
        write = partial(self._writer.write_table, table.slice(0, rows), row_group_size=self._group_rows)
        self._wait()
        if self._aside:
            self._under_way = self._aside.submit(write)
        else:
            write()
        self._waiting = table.slice(rows).to_batches()
        self._rows -= rows
        self._begun = True

    def _wait(self) -> None:
        """Until the group before is written."""
        if self._under_way:
            self._under_way.result()
            self._under_way = None

    def finish(self, metadata: Mapping[bytes, bytes]) -> bytes:
        """The whole file; one without rows has its columns all the same."""
        if self._rows or not self._begun:
            self._write(self._rows)
        self._wait()
        self._writer.add_key_value_metadata(metadata)
        self._writer.close()
        return self._sink.getvalue()


# --- what an object says of itself


def user_metadata(contents: Contents) -> dict[str, str]:
    """The object's user metadata: ASCII, counts and digests, no lists of ids (2 KB is all that S3 takes)."""
    return {
        "bronze-writer": contents.writer,
        "bronze-epoch": contents.epoch,
        "bronze-lane": str(contents.lane),
        "bronze-first": str(contents.first),
        "bronze-last": str(contents.last),
        "bronze-last-time": contents.last_time,
        "bronze-digest": contents.digest,
        "bronze-messages": str(contents.messages),
        "bronze-records": str(contents.records),
        "traceparent": contents.traceparent,
    }


def footer_start(size: int, tail: bytes) -> int:
    """Where the footer of a file of `size` bytes begins, by its last `TAIL_BYTES`; raises `NotOurs`."""
    if len(tail) != TAIL_BYTES or tail[4:] != MAGIC:
        raise NotOurs("it is no Parquet file")
    length: int = struct.unpack("<I", tail[:4])[0]
    start = size - TAIL_BYTES - length
    if start < len(MAGIC):
        raise NotOurs("it is no Parquet file")
    return start


def holders(file: BinaryIO, classification_id: str) -> Mapping[str, int]:
    """The submissions that have rows of a run in an object, with how many; raises `NotOurs`.

    Of the file only the row groups are read that may have some, and two columns of these.
    """
    found: Counter[str] = Counter()
    try:
        with pq.ParquetFile(file) as parquet:
            metadata = parquet.metadata
            number = parquet.schema_arrow.get_field_index("classification_id")
            for group in range(metadata.num_row_groups):
                statistics = metadata.row_group(group).column(number).statistics
                if statistics.has_min_max and not statistics.min <= classification_id <= statistics.max:
                    continue
                rows = parquet.read_row_group(group, ["classification_id", "_submission_id"])
                found.update(rows.filter(pc.equal(rows[0], classification_id))[1].to_pylist())
    except (pa.ArrowException, KeyError, IndexError) as error:
        raise NotOurs(f"its rows cannot be read: {error}") from error
    return found


def read_contents(footer: bytes) -> Contents:
    """What an object holds, by its footer and tail; raises `NotOurs`."""
    try:
        metadata = pq.read_metadata(pa.BufferReader(MAGIC + footer)).metadata or {}
        return msgspec.json.decode(metadata[FOOTER_KEY], type=Contents)
    except (pa.ArrowException, OSError, KeyError, msgspec.DecodeError) as error:
        raise NotOurs(f"its footer does not say what it holds: {error}") from error
