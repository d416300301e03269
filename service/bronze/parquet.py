"""Objects: a cut becomes one Parquet file, and a file tells what it holds. Pure: bytes in, bytes out.

Columns: the source's declared fields under their own names, then ours. The footer's key `bronze` holds `Contents`.
"""

import datetime as dt
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from operator import attrgetter

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from bronze import __version__
from bronze.chain import Contents, Kept, Lane, Sorted, Stored, digest, set_aside
from bronze.errors import Poison
from bronze.sources import FieldType, Source

CONTENT_TYPE = "application/vnd.apache.parquet"
FOOTER_KEY = b"bronze"
#: Readers skip by row group: small enough to skip, large enough to compress.
ROW_GROUP_ROWS = 64 * 1024
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

#: Columns with a value for nearly each row: a dictionary would only cost.
_NO_DICTIONARY = frozenset({"_payload", "_record_index"})


class NotOurs(Exception):
    """A file that this package did not write."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An object before it is written: its bytes, what they say of themselves, and the runs that its rows belong to."""

    body: bytes
    contents: Contents
    classifications: tuple[str, ...]


def schema(source: Source) -> pa.Schema:
    """The columns of a source's objects."""
    declared = [pa.field(field.name, _ARROW[field.type], nullable=not field.required) for field in source.fields]
    return pa.schema(declared + _OURS)


def encode(source: Source, lane: Lane, key: str, cut: Sorted, traceparent: str) -> Encoded:
    """Encode a cut as the object that lies under `key`. A message that cannot become rows is listed as set aside."""
    columns = schema(source)
    batches: list[pa.RecordBatch] = []
    poison = list(cut.poison)
    kept: list[tuple[Kept, int]] = []
    classifications: dict[str, None] = {}
    for one in cut.kept:
        try:
            batch = _rows(source, columns, key, one)
        except Poison as error:
            poison.append((one.message, str(error)))
        else:
            batches.append(batch)
            kept.append((one, batch.num_rows))
            classifications.update(dict.fromkeys(batch.column("classification_id").unique().to_pylist()))
    spoilt = {message.sequence for message, _ in poison}
    stored = _stored(key, cut, {one.message.sequence: rows for one, rows in kept}, spoilt)
    received = sorted(one.accepted.received_at for one in stored)
    contents = Contents(
        writer=f"bronze {__version__}",
        file_path=key,
        source=lane.source,
        epoch=lane.epoch,
        lane=lane.number,
        first=cut.messages[0].sequence,
        last=cut.messages[-1].sequence,
        last_time=cut.messages[-1].time,
        digest=digest(cut.messages),
        messages=len(cut.messages),
        records=sum(rows for _, rows in kept),
        first_received_at=received[0] if received else None,
        last_received_at=received[-1] if received else None,
        traceparent=traceparent,
        submissions=stored,
        quarantined=[
            set_aside(lane, message, reason) for message, reason in sorted(poison, key=lambda pair: pair[0].sequence)
        ],
        duplicates=list(cut.duplicates),
    )
    return Encoded(_write(columns, batches, contents), contents, tuple(classifications))


def _rows(source: Source, columns: pa.Schema, key: str, one: Kept) -> pa.RecordBatch:
    if one.undecoded:
        raise Poison(one.undecoded)
    payload = one.message.payload
    accepted = one.part.accepted
    try:
        records = msgspec.json.decode(payload, type=list[source.record_type])  # type: ignore[name-defined]
        raw = pa.array(list(map(bytes, msgspec.json.decode(payload, type=list[msgspec.Raw]))), pa.binary())
        received_at = dt.datetime.fromisoformat(accepted.received_at)
        texts = raw.cast(pa.string())  # which has to be UTF-8
    except (msgspec.DecodeError, RecursionError, ValueError) as error:  # Arrow's error is a ValueError
        raise Poison(f"its records cannot be decoded as {source.name}: {error}") from error
    count = len(records)
    if count != one.part.records or not count:
        raise Poison(f"it holds {count} records, and its headers say {one.part.records}")
    named = [record.classification_id for record in records]
    default = accepted.classification_default
    if default is None and None in named:
        raise Poison("a record names no classification_id, and its submission has none")
    ours = [
        pa.repeat(key, count),
        pa.array([name if name is not None else default for name in named], pa.string()),
        pa.repeat(accepted.submission_id, count),
        pa.array(range(one.part.first_record, one.part.first_record + count), pa.int64()),
        pa.repeat(pa.scalar(accepted.origin, pa.string()), count),
        pa.repeat(pa.scalar(received_at, pa.timestamp("us", tz="UTC")), count),
        pa.repeat(accepted.trace_id, count),
        pa.repeat(pa.scalar(source.version, pa.int32()), count),
        texts,
    ]
    try:
        arrays = [pa.array(list(map(attrgetter(f.name), records)), _ARROW[f.type]) for f in source.fields]
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise Poison(f"its records do not fit {source.name}'s columns: {error}") from error
    return pa.RecordBatch.from_arrays(arrays + ours, schema=columns)


def _stored(key: str, cut: Sorted, rows: Mapping[int, int], spoilt: set[int]) -> list[Stored]:
    """Each submission of a cut with what its identity needs, in the order of their first messages."""
    stored: dict[str, Stored] = {}
    for one in cut.kept:
        accepted = one.part.accepted
        before = stored.get(accepted.submission_id)
        earlier = one.earlier if before is None else None
        quarantined = before.parts_quarantined if before else earlier.parts_quarantined if earlier else 0
        objects = before.objects if before else [*(earlier.objects if earlier else []), key]
        stored[accepted.submission_id] = Stored(
            accepted=accepted,
            first_sequence=one.first_sequence,
            parts=one.part.count,
            parts_done=one.part.number,
            parts_quarantined=quarantined + (one.message.sequence in spoilt),
            records=(before.records if before else 0) + rows.get(one.message.sequence, 0),
            objects=list(dict.fromkeys(objects)),
        )
    return list(stored.values())


def _write(columns: pa.Schema, batches: list[pa.RecordBatch], contents: Contents) -> bytes:
    sink = BytesIO()
    with pq.ParquetWriter(
        sink,
        columns,
        compression="zstd",
        use_dictionary=[name for name in columns.names if name not in _NO_DICTIONARY],
        write_statistics=True,
        write_page_index=True,
    ) as writer:
        writer.write_table(pa.Table.from_batches(batches, columns), row_group_size=ROW_GROUP_ROWS)
        writer.add_key_value_metadata({FOOTER_KEY: msgspec.json.encode(contents)})
    return sink.getvalue()


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


def read_contents(footer: bytes) -> Contents:
    """What an object holds, by its footer and tail; raises `NotOurs`."""
    try:
        metadata = pq.read_metadata(pa.BufferReader(MAGIC + footer)).metadata or {}
        return msgspec.json.decode(metadata[FOOTER_KEY], type=Contents)
    except (pa.ArrowException, OSError, KeyError, msgspec.DecodeError) as error:
        raise NotOurs(f"its footer does not say what it holds: {error}") from error
