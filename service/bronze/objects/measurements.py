"""What an object says of the values in its columns, known from writing it: nothing is read again.

The nulls are those of the Arrow columns that are written. Minimum and maximum are the statistics of the Parquet file,
and the number of different values is that of its dictionaries. Only where a declaration lists the values of a field are
its values compared.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bronze.records.expectations import Expectation, FieldExpectations
from bronze.records.fields import Field, FieldType
from bronze.records.sources import CANARY, Source

#: Of a source with more fields, those with expectations and then the first ones are measured.
FIELDS_MAX = 50

#: The types whose values have an order that numbers show, and the unit of what the file states: for times and dates in
#: seconds.
_UNITS: Mapping[FieldType, float] = {
    **dict.fromkeys((FieldType.INT32, FieldType.INT64, FieldType.FLOAT32, FieldType.FLOAT64, FieldType.DECIMAL), 1),
    FieldType.TIMESTAMP: 1e-6,
    FieldType.DATE: 86_400,
}


_INTEGER = rb"[\x80-\xff]*[\x00-\x7f]"
#: The header of a dictionary page in Thrift's compact protocol, which PyArrow does not show: type, two sizes, maybe a
#: checksum, and a struct that begins with the number of values.
#: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift (PageHeader)
_DICTIONARY_PAGE = re.compile(
    rb"\x15\x04\x15" + _INTEGER + rb"\x15" + _INTEGER + rb"(?:\x4c|\x15" + _INTEGER + rb"\x3c)\x15(" + _INTEGER + rb")",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class FieldMeasurement:
    """The values of one field in an object.

    `least` and `greatest` are numbers, or seconds since 1970; None without values, and if there is a NaN. `distinct` is
    exact for an object with one row group, else at least so many; None for a column without a dictionary. `unexpected`
    are values that are not among those that the declaration lists.
    """

    records: int
    nulls: int
    least: float | None = None
    greatest: float | None = None
    distinct: int | None = None
    unexpected: int = 0

    def broken(self, expected: FieldExpectations) -> list[Expectation]:
        """The expectations of the values that an object does not meet."""
        limits = expected.limits
        least, greatest, distinct = limits.get(Expectation.MIN), limits.get(Expectation.MAX), expected.distinct_max
        found = {
            Expectation.MIN: least is not None and self.least is not None and self.least < least,
            Expectation.MAX: greatest is not None and self.greatest is not None and self.greatest > greatest,
            Expectation.VALUES: self.unexpected > 0,
            Expectation.DISTINCT_MAX: distinct is not None and (self.distinct or 0) > distinct,
        }
        return [expectation for expectation, is_broken in found.items() if is_broken]


def measured_fields(source: Source) -> list[Field]:
    """The fields that are measured: a bounded number, and none of the canary."""
    if source.name == CANARY:
        return []
    expected = source.expectations.fields
    return sorted(source.fields, key=lambda field: field.name not in expected)[:FIELDS_MAX]


class Measurements:
    """The measurements of an object that is being written."""

    def __init__(self, source: Source, columns: pa.Schema) -> None:
        self._fields = [(field, columns.get_field_index(field.name)) for field in measured_fields(source)]
        self._listed = {
            name: pa.array(expected.values, columns.field(name).type)
            for name, expected in source.expectations.fields.items()
            if expected.values
        }
        self._nulls: Counter[str] = Counter()
        self._unexpected: Counter[str] = Counter()

    def add(self, batch: pa.RecordBatch) -> None:
        for field, column in self._fields:
            self._nulls[field.name] += batch.column(column).null_count
        for name, listed in self._listed.items():
            column = batch.column(name)
            among = pc.sum(pc.is_in(column, listed)).as_py() or 0  # a null is in no list
            self._unexpected[name] += len(column) - column.null_count - among

    def finish(self, metadata: pq.FileMetaData, body: bytes) -> Mapping[str, FieldMeasurement]:
        """By the name of the field; nothing of an object without rows."""
        if not metadata.num_rows:
            return {}
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        # fields of nested types have other paths
        schema = metadata.schema
        leaves = {schema.column(number).path: number for number in range(len(schema))}
        return {field.name: self._measurement(field, groups, leaves.get(field.name), body) for field, _ in self._fields}

    def _measurement(
        self, field: Field, groups: list[pq.RowGroupMetaData], leaf: int | None, body: bytes
    ) -> FieldMeasurement:
        records = sum(group.num_rows for group in groups)
        nulls, unexpected = self._nulls[field.name], self._unexpected[field.name]
        if leaf is None or nulls == records:
            return FieldMeasurement(records, nulls)
        chunks = [group.column(leaf) for group in groups]
        least, greatest = _bounds(field, chunks)
        distinct = [size for chunk in chunks if (size := dictionary_size(body, chunk)) is not None]
        return FieldMeasurement(records, nulls, least, greatest, max(distinct, default=None), unexpected)


def _bounds(field: Field, chunks: Iterable[pq.ColumnChunkMetaData]) -> tuple[float, float] | tuple[None, None]:
    """The smallest and the greatest value. A column with a NaN has none, and a row group with nulls alone has none."""
    if field.type not in _UNITS:
        return None, None
    found = [chunk.statistics for chunk in chunks]
    bounds = [(each.min_raw, each.max_raw) for each in found if each is not None and each.has_min_max]
    if not bounds:
        return None, None
    return min(_number(field, least) for least, _ in bounds), max(_number(field, greatest) for _, greatest in bounds)


def _number(field: Field, stated: float | bytes) -> float:
    """A value as the file states it: of a decimal, the bytes of its digits as one number."""
    if isinstance(stated, bytes):
        return int.from_bytes(stated, "big", signed=True) / 10.0**field.scale
    return stated * _UNITS[field.type]


def dictionary_size(body: bytes, chunk: pq.ColumnChunkMetaData) -> int | None:
    """The number of values in the dictionary of a column chunk, from the header of its page; None without one.

    If the writer found a dictionary too large, later values are not in it: then it is a lower bound.
    """
    if not chunk.has_dictionary_page or not (header := _DICTIONARY_PAGE.match(body, chunk.dictionary_page_offset)):
        return None
    digits: bytes = header[1]
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(digits)) >> 1  # zigzag, and not negative
