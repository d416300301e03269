"""The first rows of an object, or of some submissions in it, to look at. At most one batch of rows is in memory."""

import base64
import datetime as dt
import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROWS_MAX = 20
COLUMNS_MAX = 24
CELL_CHARS_MAX = 200
#: Bytes per request: about a page of a column.
READ_BYTES = 256 * 2**10
#: Rows that are decoded at once.
BATCH_ROWS = 1024
#: The payloads of larger records are not read: PyArrow writes up to 1,024 of them into one page.
RECORD_BYTES_MAX = 16 * 2**10
PAYLOAD = "_payload"
#: Columns that have the same value in all rows, or that the page shows elsewhere.
_OMITTED = frozenset({"file_path", "_origin", "_received_at", "_trace_id", "_schema_version", PAYLOAD})


class NoPreview(Exception):
    """The rows of an object cannot be read."""


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Only the rows that have one of these texts in a column."""

    column: str
    values: Collection[str]


@dataclass(frozen=True, slots=True)
class Preview:
    """Rows of text; None if a record has no value. `payloads`: the last column is the payload."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | None]]
    payloads: bool


def first_rows(file: BinaryIO, only: RowFilter | None = None) -> Preview:
    """The declared columns and the payload of the first rows. Raises `NoPreview` if they cannot be read."""
    try:
        with pq.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False) as parquet:
            payloads = _has_small_payloads(parquet)
            declared = [name for name in parquet.schema_arrow.names if name not in _OMITTED]
            columns = [*declared[: COLUMNS_MAX - payloads], *([PAYLOAD] if payloads else [])]
            rows = [
                [_text(row[name]) for name in columns]
                for group, numbers in _wanted(parquet, only)
                for row in _rows(parquet, group, columns, numbers)
            ]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise NoPreview(f"Its rows cannot be shown: {error}.") from error
    return Preview(columns, rows, payloads)


def _has_small_payloads(parquet: pq.ParquetFile) -> bool:
    number = parquet.schema_arrow.get_field_index(PAYLOAD)
    if number < 0:
        return False
    chunks = [parquet.metadata.row_group(group).column(_leaf(parquet, PAYLOAD)) for group in _groups(parquet)]
    return all(chunk.total_uncompressed_size <= chunk.num_values * RECORD_BYTES_MAX for chunk in chunks)


def _groups(parquet: pq.ParquetFile) -> range:
    return range(parquet.metadata.num_row_groups)


def _leaf(parquet: pq.ParquetFile, column: str) -> int:
    """The place of a column without children among all of the file, which also counts the children of others."""
    schema = parquet.schema
    return {schema.column(number).path: number for number in range(len(schema))}[column]


def _wanted(parquet: pq.ParquetFile, only: RowFilter | None) -> Iterator[tuple[int, Sequence[int]]]:
    """Row groups, and the numbers of the wanted rows in each, in order; `ROWS_MAX` rows in all."""
    remaining = ROWS_MAX
    for group in _groups(parquet):
        if only is None:
            numbers = [*range(min(remaining, parquet.metadata.row_group(group).num_rows))]
        else:
            numbers = _matches(parquet, group, only)[:remaining]
        if numbers:
            yield group, numbers
        remaining -= len(numbers)
        if not remaining:
            return


def _matches(parquet: pq.ParquetFile, group: int, only: RowFilter) -> list[int]:
    statistics = parquet.metadata.row_group(group).column(_leaf(parquet, only.column)).statistics
    if statistics is not None and statistics.has_min_max:
        least, greatest = statistics.min, statistics.max
        if not any(least <= value <= greatest for value in only.values):
            return []
    column = parquet.read_row_group(group, [only.column], use_threads=False)[only.column]
    wanted = pc.is_in(column, pa.array(sorted(only.values), column.type))
    numbers: list[int] = pc.indices_nonzero(wanted).to_pylist()
    return numbers


def _rows(
    parquet: pq.ParquetFile, group: int, columns: Sequence[str], numbers: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """The rows of a row group with these numbers, which are in order."""
    start = 0
    size = min(BATCH_ROWS, numbers[-1] + 1)
    for batch in parquet.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
        end = start + batch.num_rows
        inside = [number - start for number in numbers if start <= number < end]
        yield from batch.take(pa.array(inside, pa.int64())).to_pylist() if inside else []
        if end > numbers[-1]:
            return
        start = end


# --- values, as a person reads them


def _text(value: object) -> str | None:
    if value is None:
        return None
    text = json.dumps(_plain(value), ensure_ascii=False) if isinstance(value, list | dict) else _scalar(value)
    return text if len(text) <= CELL_CHARS_MAX else f"{text[:CELL_CHARS_MAX]}…"


def _scalar(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            # 15 digits, which every double keeps: 1.8249999999999997 is a sum of decimals, and means 1.825
            return f"{value:.15g}" if math.isfinite(value) else str(value).replace("nan", "NaN")
        case Decimal():
            return f"{value:f}"
        case dt.datetime():
            return value.replace(tzinfo=None).isoformat(" ")
        case bytes():
            return base64.b64encode(value).decode()
        case _:
            return str(value)


def _plain(value: object) -> object:
    """A nested value as one of JSON. PyArrow returns a map as pairs."""
    match value:
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
        case dict():
            return {name: _plain(item) for name, item in value.items()}
        case list() if value and all(isinstance(item, tuple) for item in value):
            return {_scalar(name): _plain(item) for name, item in value}
        case list():
            return [_plain(item) for item in value]
        case _:
            return _scalar(value)
