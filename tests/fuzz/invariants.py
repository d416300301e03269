"""What has to be true of every input, however it is damaged: one function per target of the fuzzer.

An input is a head of a few bytes, which chooses source, format and pieces, and the body. What is refused must be
refused by `Refused`; what is accepted must become rows that are the records.
"""

import json
import os
import random
import resource
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from bronze.api import columnar_worker
from bronze.api.body import EXPANSION_FREE_BYTES
from bronze.api.columnar_worker import ReadJob
from bronze.errors import Refusal, Refused
from bronze.objects.encoder import encode_object
from bronze.protocol import rejected_records
from bronze.protocol.chain import reconcile
from bronze.protocol.keys import object_key
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.message import AcceptedSubmission, Message, MessageKind
from bronze.records import sources
from bronze.records.columns import arrow_type
from bronze.records.encodings import ENCODINGS, Gzip, Zstd
from bronze.records.json_intake import IntakeBounds, JsonIntake
from bronze.records.media import ColumnarType
from bronze.records.sources import CLASSIFICATION_ID, Source
from bronze.records.spool import BodyDigest, CheckedSubmission
from bronze.settings import Settings

SOURCES = list(sources.without_canary(sources.load(Path(__file__).parent / "sources.toml")).values())
#: CPU time of one input: a thousand times that of a valid one.
CPU_S_MAX = 10.0
#: Rows that a columnar body may declare here: fewer than the API allows, since the rows are encoded as well.
ROWS_MAX = 20_000
HEAD_BYTES = 4

_FIELDS = Settings.model_fields
#: What the API sets, by default.
BOUNDS = IntakeBounds(
    blank_lines_max=_FIELDS["blank_lines_max"].default,
    json_values_max=_FIELDS["json_values_max"].default,
    classifications_max=_FIELDS["classifications_max"].default,
    rejected_records_max=_FIELDS["rejected_records_max"].default,
    rejected_bytes_max=_FIELDS["rejected_bytes_max"].default,
)
#: Bounds that a small input reaches.
TIGHT = IntakeBounds(
    blank_lines_max=3, json_values_max=16, classifications_max=3, rejected_records_max=3, rejected_bytes_max=600
)
EXPANSION_MAX: int = _FIELDS["body_expansion_max"].default

TIME = "2026-11-24T12:34:56.123456789Z"
RECEIVED_AT = "2026-11-24T12:34:56.000001+00:00"
TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"


def json_records(data: bytes) -> None:
    """NDJSON in any pieces, and documents: both ways store the same rows, and `_payload` is the record."""
    source, options, body = _head(data)
    quarantine, document, tight = bool(options & 1), bool(options & 2), bool(options & 4)
    bounds = TIGHT if tight else BOUNDS
    if document:
        records = _document_records(body)
        found = _taken(source, bounds, quarantine, lambda intake: intake.add_document(body))
    else:
        records = [
            record for line in body.removeprefix(b"\xef\xbb\xbf").split(b"\n") if (record := line.strip(b" \t\r"))
        ]
        found = _taken(source, bounds, quarantine, lambda intake: _add_lines(intake, _pieces(body, data)))
        whole = _taken(source, bounds, quarantine, lambda intake: intake.add_lines(body))
        # the bound of blank lines is that of the lines so far, which pieces decide
        assert found == whole or tight, f"pieces matter: {found} / {whole}"
    if isinstance(found, str):
        return
    rows, rejected = found
    assert records is not None, "accepted what is no document"
    assert len(rows) + len(rejected) == len(records)
    rows_by_index = dict(rows)
    for index, record in enumerate(records):
        if index in rejected:
            assert rejected[index] == record, "another record is in quarantine"
            continue
        row = rows_by_index[index]
        assert row["_payload"].encode() == record, "another record is stored"
        with suppress(RecursionError):
            json.loads(record, parse_int=str)
    if tight:
        return
    one_line_each = [record for index, record in enumerate(records) if index not in rejected]
    if document and not any(b"\n" in record for record in one_line_each):
        other = _taken(source, BOUNDS, False, lambda intake: intake.add_lines(b"\n".join(one_line_each)))
    else:
        other = _taken(
            source, BOUNDS, False, lambda intake: intake.add_document(b"[" + b",".join(one_line_each) + b"]")
        )
    if not one_line_each:
        return
    assert not isinstance(other, str), f"accepted one way, and refused the other way: {other}"
    assert _values(rows) == _values(other[0]), "lines and document are stored differently"


def content_encodings(data: bytes) -> None:
    """Decoders in any pieces give what the whole gives, or refuse; what they accept is what other decoders give."""
    options, body = data[0], data[HEAD_BYTES:]
    name = ("gzip", "zstd")[options & 1]
    if options & 2:  # a valid body, with one byte changed if the head says so
        plain = body
        compressed = bytearray(zlib_gzip(plain) if name == "gzip" else zstandard.compress(plain, 1))
        if options & 4:
            compressed[int.from_bytes(data[1:3], "big") % len(compressed)] ^= data[3] or 1
        body = bytes(compressed)
    found = _decoded(name, _pieces(body, data), len(body))
    whole = _decoded(name, [body], len(body))
    assert found == whole, "pieces matter"
    if options & 2 and not options & 4:
        assert whole == plain, "a valid body is not decoded"
    # of frames without content, some that are malformed are taken; the API then refuses the body as empty
    if whole and len(whole) <= EXPANSION_FREE_BYTES:
        assert whole == _reference(name, body), "another decoder decodes something else"


def columnar_records(data: bytes) -> None:
    """Arrow and Parquet, as the child process reads them: what it accepts becomes rows, without dead letters."""
    source, options, body = _head(data)
    form = ColumnarType.PARQUET if options & 1 else ColumnarType.ARROW_STREAM
    if options & 2:
        body = composed(source, form, options, body)
    with TemporaryFile() as file, TemporaryFile() as spool:
        file.write(body)
        file.flush()
        job = ReadJob(
            source=source,
            format=form,
            body=file.fileno(),
            spool=os.dup(spool.fileno()),
            memory_bytes_max=_FIELDS["columnar_memory_bytes_max"].default,
            cpu_s_max=int(CPU_S_MAX),
            rows_max=ROWS_MAX,
            classifications_max=BOUNDS.classifications_max,
        )
        try:
            read = columnar_worker.read(job)
        except (Refused, MemoryError):  # the child process ends with a code for it
            return
        finally:
            with suppress(OSError):  # `read` closes it, unless the body cannot be opened
                os.close(job.spool)
        count = sum(place.records for place in read.slices)
        assert 0 < count <= ROWS_MAX, "more rows than the bound"
        assert read.unclassified <= count
        checked = CheckedSubmission(
            spool,
            read.slices,
            tally=BodyDigest(2**30),
            records=count,
            classifications=read.classifications,
            unclassified=read.unclassified,
            rejected_by_code={},
        )
        rows, _ = _stored(source, checked)
        assert [index for index, _ in rows] == list(range(count))
        named = {row[CLASSIFICATION_ID] for _, row in rows} - {"default"}
        assert named <= set(read.classifications), "rows have classifications that the submission does not list"
        for _, row in rows:
            if row["_payload"] is not None:
                assert isinstance(json.loads(row["_payload"]), dict)


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "json": json_records,
    "encodings": content_encodings,
    "columnar": columnar_records,
}


def check(target: str, data: bytes) -> None:
    """Check an input within a time that no input of its size may take."""
    start_s = time.process_time()
    TARGETS[target](data.ljust(HEAD_BYTES, b"\0"))
    spent_s = time.process_time() - start_s
    assert spent_s <= CPU_S_MAX, f"{len(data)} bytes take {spent_s:.1f} s of CPU time"


def bound_memory(memory_bytes_max: int) -> None:
    """Bound the memory of this process, in addition to what it has."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes_max, memory_bytes_max))


# --- inputs


def head(source: int, options: int, seed: int = 0) -> bytes:
    """The head of an input."""
    return bytes([source, options]) + seed.to_bytes(2, "big")


def _head(data: bytes) -> tuple[Source, int, bytes]:
    return SOURCES[data[0] % len(SOURCES)], data[1], data[HEAD_BYTES:]


def _pieces(body: bytes, data: bytes) -> Iterator[bytes]:
    choose = random.Random(data[:HEAD_BYTES])
    largest = choose.choice([1, 3, 16, 200, 5000])
    start = 0
    while start < len(body):
        end = start + choose.randint(1, largest)
        yield body[start:end]
        start = end


def _add_lines(intake: JsonIntake, pieces: Iterator[bytes]) -> None:
    for piece in pieces:
        intake.add_lines(piece)


def _document_records(body: bytes) -> list[bytes] | None:
    document = body.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n")
    if not document.startswith(b"["):
        return [document] if document else None
    try:
        return [bytes(record) for record in msgspec.json.decode(document, type=list[msgspec.Raw])]
    except (msgspec.DecodeError, RecursionError):
        return None


_KINDS: Sequence[pa.DataType] = [
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary(3), pa.bool_(), pa.null(),
    pa.int8(), pa.uint64(), pa.int64(), pa.int32(), pa.float16(), pa.float32(), pa.float64(),
    pa.decimal128(12, 3), pa.decimal256(50, 2), pa.date32(), pa.date64(), pa.time32("s"), pa.time64("ns"),
    pa.timestamp("s"), pa.timestamp("ns", "UTC"), pa.timestamp("us", "Europe/Lisbon"), pa.timestamp("ms"),
    pa.duration("us"), pa.list_(pa.string()), pa.large_list(pa.int64()), pa.list_(pa.int8(), 2),
    pa.struct([("lat", pa.float64()), ("lon", pa.float32()), ("x", pa.string())]),
    pa.map_(pa.string(), pa.string()), pa.map_(pa.string(), pa.binary()), pa.map_(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.int64()),
    pa.list_(pa.struct([("sku", pa.string()), ("price", pa.decimal128(9, 2))])),
]  # fmt: skip


def composed(source: Source, form: ColumnarType, options: int, data: bytes) -> bytes:
    """A valid body whose columns and values `data` chooses; with a byte changed if `options` says so."""
    choose = random.Random(data)
    names = [field.name_in_records for field in source.fields]
    names = [name for name in names if choose.random() < 0.8] + ["classification_id", "extra", "nul\0 é"][
        : choose.randint(0, 3)
    ]
    rows = choose.choice([1, 2, 7, 70])
    columns: dict[str, pa.Array] = {}
    for name in names:
        declared = _declared_type(source, name)
        kind = declared if declared is not None and choose.random() < 0.7 else choose.choice(_KINDS)
        with suppress(pa.ArrowException, ValueError, TypeError, OverflowError):
            columns[name] = _column(kind, rows, choose)
    sink = pa.BufferOutputStream()
    batch = pa.record_batch(columns) if columns else pa.record_batch({"id": pa.array(["a"])})
    try:
        if form is ColumnarType.PARQUET:
            pq.write_table(
                pa.Table.from_batches([batch]),
                sink,
                compression=choose.choice(["none", "snappy", "gzip", "zstd", "lz4"]),
                use_dictionary=choose.random() < 0.5,
                data_page_version=choose.choice(["1.0", "2.0"]),
                write_page_checksum=choose.random() < 0.5,
                row_group_size=choose.choice([1, 3, 1000]),
                use_deprecated_int96_timestamps=choose.random() < 0.2,
            )
        else:
            options_of_writer = pa.ipc.IpcWriteOptions(compression=choose.choice([None, "lz4", "zstd"]))
            with pa.ipc.new_stream(sink, batch.schema, options=options_of_writer) as writer:
                for _ in range(choose.randint(1, 3)):
                    writer.write_batch(batch)
    except (pa.ArrowException, ValueError):  # not every type can be written
        return data
    body = bytearray(sink.getvalue())
    if options & 4:
        for _ in range(choose.randint(1, 3)):
            body[choose.randrange(len(body))] ^= 1 << choose.randrange(8)
    return bytes(body)


def _declared_type(source: Source, name: str) -> pa.DataType | None:
    return next((arrow_type(field) for field in source.fields if field.name_in_records == name), None)


def _column(kind: pa.DataType, rows: int, choose: random.Random) -> pa.Array:
    if pa.types.is_null(kind):
        return pa.nulls(rows)
    numbers = [choose.choice([None, 0, 1, -1, 2**31 - 1, 2**40, -(2**63), choose.randint(0, 255)]) for _ in range(rows)]
    texts = [choose.choice([None, "", "a", "é\0", "1.5", "null", "{}", '{"a":1}', "x" * 300]) for _ in range(rows)]
    if pa.types.is_struct(kind):
        return pa.StructArray.from_arrays([_column(f.type, rows, choose) for f in kind], fields=list(kind))
    if pa.types.is_map(kind):
        offsets = pa.array(range(rows + 1), pa.int32())
        keys = pa.array(["k"] * rows if pa.types.is_string(kind.key_type) else [1] * rows, kind.key_type)
        return pa.MapArray.from_arrays(offsets, keys, _column(kind.item_type, rows, choose))
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(
            pa.array([choose.choice([None, 0, 1]) for _ in range(rows)], kind.index_type),
            _column(kind.value_type, 2, choose),
        )
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        of = pa.ListArray if pa.types.is_list(kind) else pa.LargeListArray
        return of.from_arrays(pa.array(range(rows + 1), pa.int32()), _column(kind.value_type, rows, choose)).cast(kind)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(_column(kind.value_type, 2 * rows, choose), 2)
    if pa.types.is_fixed_size_binary(kind) and not pa.types.is_decimal(kind):
        return pa.array([choose.choice([None, b"abc", b"\xff\0\xc3"]) for _ in range(rows)], kind)
    if pa.types.is_boolean(kind):
        return pa.array([choose.choice([None, True, False]) for _ in range(rows)], kind)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        return pa.array(texts, kind)
    if pa.types.is_binary(kind):
        return pa.array([None if text is None else text.encode() + b"\xff" for text in texts], kind)
    if pa.types.is_floating(kind):
        values = [
            choose.choice([None, 0.0, -0.0, 1.5, float("nan"), float("inf"), 1e300, -1e-300]) for _ in range(rows)
        ]
        return pa.array(values, pa.float64()).cast(kind, safe=False)
    if pa.types.is_decimal(kind):
        return pa.array([choose.choice([None, 0, 1, -12345]) for _ in range(rows)], pa.int64()).cast(kind)
    if pa.types.is_integer(kind) or pa.types.is_date32(kind) or pa.types.is_time32(kind):
        small = [number if number is None or 0 <= number < 100 else number % 100 for number in numbers]
        wide = kind.bit_width == 64 and not pa.types.is_unsigned_integer(kind)
        return (
            pa.array(numbers if wide else small, pa.int64())
            .cast(pa.int32() if kind.bit_width == 32 else kind)
            .cast(kind)
        )
    return pa.array(numbers, pa.int64()).cast(kind, safe=False)


# --- what becomes of them

Stored = tuple[list[tuple[int, dict[str, Any]]], dict[int, bytes]]


def _taken(source: Source, bounds: IntakeBounds, quarantine: bool, add: Callable[[JsonIntake], None]) -> Stored | str:  # noqa: FBT001
    """The rows and the rejected records, both by index, or why the body was refused."""
    with closing(
        JsonIntake(
            source,
            body_bytes_max=2**20,
            spool_memory_bytes_max=2**20,
            quarantine_rejected=quarantine,
            bounds=bounds,
        )
    ) as intake:
        try:
            add(intake)
            checked = intake.finish()
        except Refused as error:
            _check_refusal(error)
            return f"{error.code} {error.detail}"
        rows, rejected = _stored(source, checked)
        assert len(rows) == checked.records
        assert len(rejected) == checked.rejected
        return rows, rejected


def _check_refusal(error: Refused) -> None:
    """A refusal can be written as a problem document."""
    json.dumps({"detail": error.detail, **error.members}).encode()
    error.detail.encode()
    assert isinstance(error.code, Refusal)
    assert len(error.detail) < 5000, "the detail is as long as the body"


def _stored(source: Source, checked: CheckedSubmission) -> Stored:
    """The rows of the object that the consumer makes of a submission, and the records for quarantine, by index."""
    accepted = AcceptedSubmission(
        submission_id="s",
        source=source.name,
        digest=checked.digest,
        records=checked.records,
        classification_id=None,
        classification_default="default",
        classification_count=len(checked.classifications),
        received_at=RECEIVED_AT,
        trace_id="a" * 32,
        traceparent=TRACEPARENT,
        schema_version=source.version,
    )
    lane = Lane(source.name, 0, "20261124T120000000")
    subject = lane_subject(source.name, 0, "s")
    parts = list(checked.parts(accepted))
    messages = [
        Message(number, subject, TIME, part.headers(), payload) for number, (part, payload) in enumerate(parts, start=1)
    ]
    encoded = encode_object(
        source, lane, object_key("bronze", lane, messages[0]), reconcile(lane, messages, {}), TRACEPARENT
    )
    rejected: dict[int, bytes] = {}
    for part, payload in parts:
        if part.kind is MessageKind.REJECTED:
            _, records = rejected_records.unpack(payload)
            rejected |= {note.index: record for note, record in records}
    dead = [each for each in encoded.contents.quarantined if "asked for quarantine" not in each.reason]
    assert not dead, f"accepted, but a dead letter: {dead[0].reason}"
    table = pq.read_table(pa.BufferReader(encoded.body))
    table.validate(full=True)
    assert table.num_rows == checked.records, "another number of rows"
    rows = table.to_pylist(maps_as_pydicts="lossy")
    return [(row["_record_index"], row) for row in rows], rejected


def _values(rows: Sequence[tuple[int, dict[str, Any]]]) -> list[str]:
    """The rows without their indices, as text: a NaN does not equal itself."""
    return [repr({name: value for name, value in row.items() if name != "_record_index"}) for _, row in rows]


# --- content encodings


def zlib_gzip(plain: bytes) -> bytes:
    compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
    return compressor.compress(plain) + compressor.flush()


def _decoded(name: str, pieces: Iterable[bytes], received: int) -> bytes | None:
    """What a body decodes to, up to the bound of its expansion, or None if it is refused."""
    decoder = ENCODINGS[name]()
    step_bytes_max = (Gzip if name == "gzip" else Zstd).STEP_BYTES
    decoded: list[bytes] = []
    size = 0
    try:
        for piece in pieces:
            for step in decoder.feed(piece):
                assert len(step) <= step_bytes_max, "a step larger than its bound"
                size += len(step)
                if size > EXPANSION_FREE_BYTES + EXPANSION_MAX * received:
                    return None
                decoded.append(step)
        decoder.finish()
    except Refused:
        return None
    return b"".join(decoded)


def _reference(name: str, body: bytes) -> bytes:
    if name == "gzip":
        plain = b""
        while body:
            member = zlib.decompressobj(31)
            plain += member.decompress(body) + member.flush()
            assert member.eof
            body = member.unused_data
        return plain
    reader = zstandard.ZstdDecompressor(max_window_size=Zstd.WINDOW_BYTES_MAX).stream_reader(
        body, read_across_frames=True
    )
    return bytes(reader.read(EXPANSION_FREE_BYTES + 1))
