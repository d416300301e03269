"""Inputs at which peers of Bronze have lost or changed data: each is kept as it is, or refused with its reason."""

import datetime as dt
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from bronze.errors import Refused
from bronze.objects import encoder
from bronze.objects.encoder import Encoded
from bronze.protocol import request_headers
from bronze.protocol.chain import reconcile
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.message import HEADER_BYTES_MAX, MESSAGE_BYTES_MAX, Message, MessageKind, Part
from bronze.publisher import FileFormat, Plan, checking, reading
from bronze.publisher.formats import CsvOptions, display_name
from bronze.records import sources
from bronze.records.arrow_json import json_values
from bronze.records.columnar_reading import read_parquet
from bronze.records.columns import columnar_schema
from bronze.records.json_intake import JsonIntake
from bronze.records.sources import Source
from tests import factories

SOURCES = sources.built_in()
VEHICLES, RESULTS, STATUS = SOURCES["vehicles"], SOURCES["results"], SOURCES["status"]
BOM = b"\xef\xbb\xbf"
AT = '"arrived_at":"2013-01-01T00:00:00Z"'


# --- times beyond what a text of RFC 3339 holds, in undeclared columns


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (9_223_372_036_854_775_807, pa.timestamp("us"), "+294247-01-10T04:00:54.775807"),  # PostgreSQL's infinity
        (-(2**63), pa.timestamp("us"), "-290308-12-21T19:59:05.224192"),
        (6_249_223_180_800, pa.timestamp("s"), "+200000-01-01T00:00:00"),
        (253_402_300_800, pa.timestamp("s", "UTC"), "+010000-01-01T00:00:00Z"),
        (253_402_300_799, pa.timestamp("s", "+14:00"), "9999-12-31T23:59:59Z"),
        (-62_167_219_201, pa.timestamp("s", "UTC"), "-000001-12-31T23:59:59Z"),
        (-62_135_596_800_001, pa.timestamp("ms"), "0000-12-31T23:59:59.999"),
        (2**63 - 1, pa.timestamp("ns"), "2262-04-11T23:47:16.854775807"),
        (2_932_897, pa.date32(), "+010000-01-01"),
        (2**31 - 1, pa.date32(), "+5881580-07-11"),
        (253_402_300_800_000, pa.date64(), "+010000-01-01"),
        (-86_400_000, pa.date64(), "1969-12-31"),
    ],
)
def test_a_time_of_any_year_keeps_its_value(number: int, kind: pa.DataType, text: str) -> None:
    """Beside other times and nulls, and in lists."""
    integers = pa.int32() if kind == pa.date32() else pa.int64()
    column = pa.array([0, number, None], integers).cast(kind)
    assert json_values(column)[1:] == [text, None]
    assert json_values(pa.array([column.slice(1)], pa.list_(kind))) == [[text, None]]


def int96(values: Sequence[Any], kind: pa.DataType) -> tuple[pa.DataType, list[Any]]:
    """The type and the values that are read of a file with times of 96 bits."""
    sink = BytesIO()
    pq.write_table(pa.table({"valid": pa.array(values, kind)}), sink, use_deprecated_int96_timestamps=True)
    schema, batches = read_parquet(pa.BufferReader(sink.getvalue()))
    return schema.field(0).type, [value for batch in batches for value in json_values(batch.column(0))]


def test_times_of_96_bits_keep_their_value() -> None:
    """In nanoseconds, or in microseconds if they are beyond what nanoseconds hold."""
    far = [-62_135_596_800_000_000, 253_402_300_799_999_999, None]
    texts = ["0001-01-01T00:00:00.000000", "9999-12-31T23:59:59.999999", None]
    assert int96(far, pa.timestamp("us")) == (pa.timestamp("us"), texts)
    assert int96([1_234_567_891], pa.timestamp("ns")) == (pa.timestamp("ns"), ["1970-01-01T00:00:01.234567891"])
    assert int96([far], pa.list_(pa.timestamp("us")))[1] == [texts]
    assert int96([{"t": far[0]}], pa.struct([("t", pa.timestamp("us"))]))[1] == [{"t": texts[0]}]


@pytest.mark.parametrize("seconds", [253_402_300_800, -62_135_596_801])
def test_times_of_96_bits_outside_the_calendar_are_refused_by_column(seconds: int) -> None:
    with pytest.raises(pa.ArrowInvalid, match=r"column valid: a time .* is outside the years 1 to 9999"):
        int96([seconds], pa.timestamp("s"))


def test_times_of_96_bits_that_no_unit_holds_are_refused_by_column() -> None:
    near, far = pa.array([1], pa.timestamp("ns")), pa.array([253_402_300_799], pa.timestamp("s"))
    files = []
    for column in (near, far):
        sink = BytesIO()
        pq.write_table(pa.table({"valid": column}), sink, use_deprecated_int96_timestamps=True, use_dictionary=False)
        files.append(sink.getvalue())
    # the 12 bytes of the near time, in the place of the second of two far times
    sink = BytesIO()
    both = pa.table({"valid": pa.array([253_402_300_799] * 2, pa.timestamp("s"))})
    options = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    pq.write_table(both, sink, use_deprecated_int96_timestamps=True, **options)
    time = (253_402_300_799 % 86_400 * 10**9).to_bytes(8, "little") + (2_440_588 + 253_402_300_799 // 86_400).to_bytes(
        4, "little"
    )
    content = sink.getvalue()
    assert content.count(time * 2) == 1
    content = content.replace(time * 2, time + (1).to_bytes(8, "little") + (2_440_588).to_bytes(4, "little"))
    with pytest.raises(pa.ArrowInvalid, match=r"column valid has times .* before 1677 or after 2262, and column valid"):
        read_parquet(pa.BufferReader(content))


# --- values of CSV


PRICE = sources.parse(
    """
    [prices]
    description = "-"
    fields = [
        { name = "id", type = "string", required = true, description = "-" },
        { name = "price", type = "decimal128(9, 2)", description = "-" },
        { name = "weight", type = "float64", description = "-" },
        { name = "at", type = "timestamp", unit = "s", description = "-" },
    ]
    """,
    "prices.toml",
)["prices"]


def raw_text(text: bytes, source: Source) -> bytes:
    ((_, record),) = reading.records("f.csv", BytesIO(text), FileFormat.CSV, lambda: source)
    return record


def rejected(lines: Sequence[bytes], source: Source) -> list[tuple[int, str | None]]:
    """The records that the API would refuse: their index and field."""
    found: list[tuple[int, str | None]] = []
    intake = JsonIntake(
        source,
        body_bytes_max=10**6,
        spool_memory_bytes_max=10**6,
        on_rejected=lambda index, _, field: found.append((index, field)),
    )
    try:
        intake.add_lines(b"".join(lines))
    finally:
        intake.close()
    return found


def csv_values(text: bytes, source: Source, column: str | None = None) -> list[Any]:
    records = reading.records("f.csv", BytesIO(text), FileFormat.CSV, lambda: source, column)
    return [json.loads(record, parse_int=str, parse_float=str) for _, record in records]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.12345678901234567890123", None),
        ("1e400", None),
        ("12345678901234567890.123", None),
        ("-2.50", None),
        ("+.5", "0.5"),
        (" 5. ", "5"),
        ("007.10", "7.10"),
        ("-0", None),
        ("1E5", None),
    ],
)
def test_a_number_of_csv_keeps_its_digits(text: str, number: str | None) -> None:
    """Signs, blanks and zeros before a number, which JSON does not have, are left out."""
    (record,) = csv_values(f"delay_min\n{text}\n".encode(), RESULTS)
    assert record == {"delay_min": number or text}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("+007.50", "7.50"),
        (" 7.50 ", "7.50"),
        ("\t-007.5", "-7.5"),
        (".5", "0.5"),
        ("5.", "5"),
        ("7.50", "7.50"),
        ("1e2", "1e2"),
    ],
)
@pytest.mark.parametrize("column", ["price", "at"])
def test_a_decimal_of_csv_may_be_written_as_other_numbers(column: str, text: str, number: str) -> None:
    """It is sent as text, spelled as in JSON: the value is the same."""
    line = raw_text(f"id,{column}\na,{text}\n".encode(), PRICE)
    assert json.loads(line) == {"id": "a", column: number}
    assert rejected([line], PRICE) == []


@pytest.mark.parametrize(
    "text", ["1_000.5", "1e5_0", "١٢", "0x10", "1,5", "nan", "inf", "e5", ".", "\N{NO-BREAK SPACE}7"]
)
@pytest.mark.parametrize(("source", "column"), [(RESULTS, "delay_min"), (VEHICLES, "seats"), (PRICE, "price")])
def test_what_is_no_number_of_json_stays_text(source: Source, column: str, text: str) -> None:
    """So that the API names record and field."""
    line = raw_text(f'{column},x\n"{text}",\n'.encode(), source)
    assert json.loads(line) == {column: text, "x": None}
    assert rejected([line], source)


def test_a_classification_of_csv_is_the_text() -> None:
    """`007` and `7` are two classifications, although they are one number."""
    records = csv_values(b"run_number,x\n007,1\n7,2\n,3\n", STATUS, "run_number")
    assert [record.get("classification_id") for record in records] == ["007", "7", None]
    assert [record["run_number"] for record in records] == ["7", "7", None]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"vehicle_id,seats\rA,1\r", "is not CSV, line 1: a line ends with CR alone"),
        (b"vehicle_id,seats\nA,1\ncaf\xe9,2\n", "is not UTF-8, line 3: "),
        (b"vehicle_id,seats\nA,1\ncaf\xc3", "is not UTF-8, line 3: "),
    ],
)
def test_what_is_wrong_with_csv_is_said_with_its_line(text: bytes, reason: str) -> None:
    with pytest.raises(Refused) as refused:
        csv_values(text, VEHICLES)
    assert reason in refused.value.detail


@pytest.mark.parametrize(
    ("text", "options", "record"),
    [
        ("id;price;weight\nä;1.5;2.5\n", {}, {"id": "ä", "price": "1.5", "weight": "2.5"}),
        ("id\tprice\nä\t1.5\n", {}, {"id": "ä", "price": "1.5"}),
        ("id|price\nä|1.5\n", {}, {"id": "ä", "price": "1.5"}),
        ("a;b\n1;2\n", {}, {"a": "1", "b": "2"}),
        ("id,a;b\nä,2\n", {}, {"id": "ä", "a;b": "2"}),
        ('"id","a;b"\nä,2\n', {}, {"id": "ä", "a;b": "2"}),
        ("id:a;b\nä:2\n", {"delimiter": ":"}, {"id": "ä", "a;b": "2"}),
        ("id;price;weight;x\nä;1,5;2,5;2,5\n", {"decimal_comma": True}, {"price": "1.5", "weight": "2.5", "x": "2,5"}),
        ("id;price;weight\nä;1,5;2,5\n", {}, {"price": "1,5", "weight": "2,5"}),  # which the API refuses
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_csv_of_other_tools(
    text: str, options: dict[str, Any], record: dict[str, str], encoding: str, tmp_path: Path
) -> None:
    """Delimiter and UTF-16 are guessed; a comma in a number is a decimal comma only if that was said."""
    (tmp_path / "f.csv").write_bytes(text.encode(encoding))
    chosen = CsvOptions(**options, encoding=encoding if encoding == "cp1252" else None)
    with (tmp_path / "f.csv").open("rb") as stream:
        found = list(reading.records("f.csv", stream, FileFormat.CSV, lambda: PRICE, None, chosen))
    ((_, line),) = found
    values = {name: str(value) for name, value in json.loads(line).items()}
    assert values == ({"id": "ä"} if "id" in values else {}) | record


@pytest.mark.parametrize("text", ["1.234", "1.234,50", "-1.5", "+1.5", " 1.5 "])
@pytest.mark.parametrize("column", ["price", "weight", "at"])
def test_a_decimal_point_beside_decimal_commas_concerns_its_record_only(
    column: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`1.234` is a number with a point, or a thousand and more: nobody knows. A warning names the first one."""
    stream = BytesIO(f"id;{column}\na;1,5\nb;{text}\nc;7.5\nd;2,5\n".encode())
    options = CsvOptions(";", decimal_comma=True)
    records = list(reading.records("f.csv", stream, FileFormat.CSV, lambda: PRICE, None, options))
    assert rejected([line for _, line in records], PRICE) == [(1, column), (2, column)]
    (warning,) = caplog.messages
    assert warning.startswith(f"f.csv, line 3: the number {text!r} has a decimal point, but --decimal-comma is given")
    assert text in json.loads(records[1][1])[column]


def test_blank_lines_before_the_header_row_are_ignored() -> None:
    records = list(reading.records("f.csv", BytesIO(b"\n\r\nvehicle_id\n\nA\n"), FileFormat.CSV, lambda: VEHICLES))
    assert records == [(5, b'{"vehicle_id":"A"}\n')]


# --- the start of a text, and its lines


def payloads(*pieces: bytes, document: bool = False) -> list[bytes]:
    intake = JsonIntake(VEHICLES, body_bytes_max=10**6, spool_memory_bytes_max=10**6)
    try:
        for piece in pieces:
            (intake.add_document if document else intake.add_lines)(piece)
        checked = intake.finish()
        return [payload for _, payload in checked.parts(factories.accepted())]
    finally:
        intake.close()


ONE, TWO = b'{"vehicle_id": "1"}', b'{"vehicle_id": "2"}'


@pytest.mark.parametrize("cuts", [[], [1], [2], [3], [1, 2], [4]])
def test_a_byte_order_mark_at_the_start_is_left_out(cuts: list[int]) -> None:
    """RFC 8259 lets a reader do so. In bodies that come in any pieces, in documents, and in files of each format."""
    text = BOM + ONE + b"\n" + TWO
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert payloads(*pieces) == [ONE + b"\n" + TWO]
    assert payloads(BOM + ONE, document=True) == [ONE]
    assert payloads(BOM + b"[" + ONE + b"]", document=True) == [ONE]
    for form, content in [
        (FileFormat.NDJSON, text),
        (FileFormat.JSON, text),
        (FileFormat.CSV, BOM + b"vehicle_id\n1\n2\n"),
    ]:
        records = [record for _, record in reading.records("f", BytesIO(content), form, lambda: VEHICLES)]
        assert [json.loads(record)["vehicle_id"] for record in records] == ["1", "2"]


@pytest.mark.parametrize("body", [BOM[:1], BOM[:2], BOM, BOM + b"\n"])
def test_a_byte_order_mark_alone_is_no_record(body: bytes) -> None:
    with pytest.raises(Refused):
        payloads(body)


def test_a_later_byte_order_mark_is_named() -> None:
    with pytest.raises(Refused, match="begins with a byte order mark, which only the first record may have"):
        payloads(ONE + b"\n" + BOM + TWO)


def test_a_carriage_return_in_a_line_is_no_end_of_a_line(tmp_path: Path) -> None:
    """A dry run counts the records that the API counts."""
    file = tmp_path / "f.ndjson"
    file.write_bytes(b'{"vehicle_id":\r"1"}\n{"vehicle_id":\r7}\r\n' + ONE)
    findings = checking.check(Plan("vehicles"), VEHICLES, [str(file)])
    assert (findings.records, findings.invalid) == (3, 1)
    assert findings.problems == [f"{file}, line 2, field vehicle_id: Expected `str`, got `int`"]


@pytest.mark.parametrize(
    ("form", "content"), [(FileFormat.NDJSON, ONE), (FileFormat.JSON, ONE), (FileFormat.CSV, b"vehicle_id\n1\n")]
)
def test_a_misspelled_classification_column_is_named(
    form: FileFormat, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for column, words in (
        ("typo", ["f: no record has a value in 'typo' (--classification-column)"]),
        ("vehicle_id", []),
    ):
        caplog.clear()
        records = list(reading.records("f", BytesIO(content), form, lambda: VEHICLES, column))
        assert len(records) == 1
        assert caplog.messages == words


def test_a_flag_gives_a_classification() -> None:
    assert reading.with_classification_id(b'{"flag": true}', "flag") == b'{"flag":true,"classification_id":"true"}\n'


def test_the_documented_size_of_a_record_is_the_bound() -> None:
    page = (Path(__file__).parents[2] / "docs/publishing.md").read_text()
    assert f"A record may have at most {MESSAGE_BYTES_MAX - HEADER_BYTES_MAX - 2:,} bytes." in page


# --- documents that are not JSON


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    "body", [b'{"vehicle_id": "Q', ONE + b"\n" + TWO, b"<html>502 Bad Gateway</html>", b"nul", ONE + b",", b"NaN"]
)
def test_a_document_that_is_not_json_is_refused(body: bytes, *, keep: bool) -> None:
    """Also with `on_invalid=quarantine`, which is for records: these bytes are none."""
    intake = JsonIntake(VEHICLES, body_bytes_max=10**6, spool_memory_bytes_max=10**6, quarantine_rejected=keep)
    with pytest.raises(Refused, match=r"The body is not one JSON document.*application/x-ndjson") as refused:
        intake.add_document(body)
    assert refused.value.status == 400
    intake.close()


def test_the_advice_for_a_document_is_not_that_for_lines() -> None:
    for body in (b"[]", b'[{"vehicle_id": "\\ud800"}]'):
        with pytest.raises(Refused) as refused:
            payloads(body, document=True)
        assert "line" not in refused.value.detail


@pytest.mark.parametrize(
    ("text", "position"),
    [(rb"\ud800", 16), (rb"\udc00", 16), (rb"\ud83d\ude00\ud800", 28), (rb"\ud800\u0041", 16), (rb"\\\ud800", 18)],
)
def test_half_a_surrogate_pair_is_named(text: bytes, position: int) -> None:
    with pytest.raises(Refused, match=rf"half of a surrogate pair \(byte {position}\)"):
        payloads(b'{"vehicle_id": "%s"}' % text)


PRICES = sources.parse(
    """
    [prices]
    description = "-"
    fields = [{ name = "price", type = "decimal128(9, 2)", description = "-", alias = "the price" }]
    """,
    "prices.toml",
)["prices"]


@pytest.mark.parametrize("text", ['"1_000"', '" 5 "', '"١٢"', '"+5"', '"5."', '".5"', '"NaN"', '"0x1"', '""'])
def test_a_decimal_is_spelled_as_in_json(text: str) -> None:
    """The JSON Schema of the source refuses other spellings, too."""
    for good, refused in ((True, False), (False, True)):
        value = '"-1000.50"' if good else text
        intake = JsonIntake(PRICES, body_bytes_max=10**6, spool_memory_bytes_max=10**6)
        lines = "\n".join(f'{{"the price": {price}}}' for price in ("1", '"1e2"', "null", value)).encode()
        if refused:
            with pytest.raises(Refused) as error:
                intake.add_lines(lines + b"\n")
            assert (error.value.status, error.value.members["record"]) == (422, 3)
        else:
            intake.add_lines(lines + b"\n")
        intake.close()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (
            '"price": "x"',
            r"field price: Expected the digits of a number .*, as a string or a number (decimal128(9, 2)).",
        ),
        ('"price": true', "or a number (decimal128(9, 2)), got `bool`."),
        ('"price": "1_0"', "or a number (decimal128(9, 2))."),
        (
            '"at": "2013-01-01T00:00:00Z"',
            "field at: Expected a number of seconds since 1970, or a string of its digits.",
        ),
        ('"at": []', "field at: Expected a number of seconds since 1970, or a string of its digits, got `array`."),
        ('"at": " 1"', "field at: Expected a number of seconds since 1970, or a string of its digits."),
    ],
)
def test_of_what_is_no_decimal_the_refusal_says_what_was_expected(record: str, reason: str) -> None:
    """In the words of the declaration."""
    intake = JsonIntake(PRICE, body_bytes_max=10**6, spool_memory_bytes_max=10**6)
    with pytest.raises(Refused) as refused:
        intake.add_lines(f'{{"id": "a", {record}}}\n'.encode())
    intake.close()
    assert re.search(re.escape(reason).replace(r"\.\*", ".*"), refused.value.detail)


def test_a_leap_second_is_named() -> None:
    intake = JsonIntake(RESULTS, body_bytes_max=10**6, spool_memory_bytes_max=10**6)
    with pytest.raises(Refused, match="leap seconds are not accepted"):
        intake.add_lines(b'{"arrived_at": "2016-12-31T23:59:60Z"}\n')
    intake.close()


@pytest.mark.parametrize("count", [1, 100])
def test_of_a_name_that_occurs_twice_the_last_value_counts(count: int, tmp_path: Path) -> None:
    """docs/bodies.md says so, and that DuckDB takes the first of `_payload`, which has both as they were sent."""
    record = f'{{{AT},"vehicle_id":"first","vehicle_id":"second"}}'.encode()
    (tmp_path / "o.parquet").write_bytes(encode([(b"\n".join([record] * count), MessageKind.LINES, count)]).body)
    table = pq.read_table(tmp_path / "o.parquet", columns=["vehicle_id", "_payload"])
    assert {*table.column("vehicle_id").to_pylist()} == {"second"}
    assert {*table.column("_payload").to_pylist()} == {record.decode()}
    read = f"SELECT DISTINCT _payload->>'vehicle_id' FROM '{tmp_path / 'o.parquet'}'"
    assert duckdb.execute(read).fetchall() == [("first",)]


# --- texts of headers and names of files


@pytest.mark.parametrize("value", ["run-%E9", "caf\xc3\xa9", "%C3", "\udce9", "%ED%A0%80"])
def test_a_header_that_is_not_utf8_is_refused(value: str) -> None:
    """Decoded with replacement, two different texts would be the same."""
    with pytest.raises(UnicodeError):
        request_headers.decode(value)


def test_names_of_files_stay_different() -> None:
    names = [os.fsdecode(name) for name in (b"caf\xe9.csv", b"caf\xe8.csv")]
    assert list(map(display_name, names)) == ["caf\\xe9.csv", "caf\\xe8.csv"]
    encoded = [request_headers.encode(display_name(name)) for name in names]
    assert list(map(request_headers.decode, encoded)) == ["caf\\xe9.csv", "caf\\xe8.csv"]


# --- statistics, and zeros

RESULT_LANE = Lane("results", 0, "1")


def encode(messages: Sequence[tuple[bytes, MessageKind, int]]) -> Encoded:
    made, first = [], 0
    for sequence, (payload, kind, rows) in enumerate(messages, start=1):
        submission = factories.accepted(
            submission_id=f"s{sequence}", source="results", schema_version=RESULTS.version, records=rows
        )
        headers = Part(submission, 1, 1, 0, rows, kind).headers()
        subject = lane_subject("results", 0, f"s{sequence}")
        made.append(Message(sequence, subject, f"2026-11-24T12:34:{sequence:02}Z", headers, payload))
        first += rows
    return encoder.encode_object(RESULTS, RESULT_LANE, "key", reconcile(RESULT_LANE, made, {}), "")


def columnar(delays: Sequence[float | None]) -> tuple[bytes, MessageKind, int]:
    schema = columnar_schema(RESULTS)
    at = dt.datetime(2013, 1, 1, tzinfo=dt.UTC)
    rows = pa.Table.from_pylist([{"arrived_at": at, "delay_min": delay} for delay in delays], schema=schema)
    sink = BytesIO()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(rows)
    return sink.getvalue(), MessageKind.COLUMNAR, rows.num_rows


NAN = float("nan")


@pytest.mark.parametrize("delays", [[[1.0, NAN]], [[1.0] * 16_384] * 3 + [[NAN]], [[NAN]], [[None, NAN]]])
def test_rows_with_nan_are_found(delays: list[list[float | None]], tmp_path: Path) -> None:
    """The minimum and the maximum of a column leave NaN out, so that readers would skip it where `<> 1` asks for it.
    Also if the first NaN comes when other rows are written already.
    """
    file = tmp_path / "o.parquet"
    file.write_bytes(encode(list(map(columnar, delays))).body)
    metadata = pq.ParquetFile(file).metadata
    for group in range(metadata.num_row_groups):
        statistics = {
            column.path_in_schema: column.statistics
            for column in (metadata.row_group(group).column(index) for index in range(metadata.num_columns))
        }
        assert statistics["delay_min"] is None
        assert statistics["arrived_at"].has_min_max
    expected = sum(delay is not None and delay != 1.0 for part in delays for delay in part)
    assert ds.dataset(file).to_table(filter=ds.field("delay_min") != 1.0).num_rows == expected == 1
    for where in ("delay_min <> 1.0", "isnan(delay_min)"):
        assert duckdb.execute(f"SELECT count(*) FROM '{file}' WHERE {where}").fetchall() == [(1,)]


def test_columns_without_nan_have_statistics() -> None:
    metadata = pq.ParquetFile(BytesIO(encode([columnar([1.0, None])]).body)).metadata
    assert all(metadata.row_group(0).column(i).statistics is not None for i in range(metadata.num_columns))


@pytest.mark.parametrize("text", ["-0", "-0.0", "0"])
def test_zero_is_one_value_however_many_records_come_with_it(text: str) -> None:
    record = f'{{{AT},"delay_min":{text}}}'.encode()
    for count in (1, 100):
        body = encode([(b"\n".join([record] * count), MessageKind.LINES, count)]).body
        values = pq.ParquetFile(BytesIO(body)).read(["delay_min"]).column(0).to_pylist()
        assert {str(value) for value in values} == {"0.0"}


# --- variables of OpenTelemetry


def test_a_propagator_that_is_not_installed_is_named() -> None:
    """With exit code 2, of settings that cannot work: a supervisor does not start it again and again."""
    code = "import sys; sys.argv = ['bronze', '--version']; from bronze.__main__ import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"OTEL_PROPAGATORS": "tracecontext,b3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("bronze: OTEL_PROPAGATORS cannot work: Propagator b3 not found")
