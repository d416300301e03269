"""The preview of an object: the wanted rows and no others, as text that a person reads."""

import datetime as dt
import io
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bronze.objects import preview
from bronze.objects.preview import NoPreview, RowFilter, first_rows

#: Rows of each submission, in the order of an object with small row groups.
SUBMISSIONS = ["a"] * 50 + ["b"] * 30 + ["c"] * 3 + ["b"] * 5


def written(table: pa.Table, row_group_size: int = 16) -> io.BytesIO:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=row_group_size, store_schema=False)
    sink.seek(0)
    return sink


def submissions() -> io.BytesIO:
    numbers = range(len(SUBMISSIONS))
    payloads = [f'{{"number": {number}}}' for number in numbers]
    return written(pa.table({"number": [*numbers], "_submission_id": SUBMISSIONS, "_payload": payloads}))


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        ({"a"}, [*range(20)]),
        ({"b"}, [*range(50, 70)]),
        ({"c"}, [80, 81, 82]),
        ({"c", "b"}, [*range(50, 70)]),
        ({"x"}, []),
    ],
)
def test_only_the_rows_of_the_wanted_submissions_are_shown(values: set[str], rows: list[int]) -> None:
    """Wherever they are in the object, in order, and at most 20."""
    found = first_rows(submissions(), RowFilter("_submission_id", values))
    assert found.columns == ["number", "_submission_id", "_payload"]
    assert [row[0] for row in found.rows] == [f"{number}" for number in rows]
    assert [row[2] for row in found.rows] == [f'{{"number": {number}}}' for number in rows]


def test_without_a_filter_the_first_rows_of_all_row_groups_are_shown() -> None:
    assert [row[0] for row in first_rows(submissions()).rows] == [f"{number}" for number in range(preview.ROWS_MAX)]


def test_values_are_shown_as_a_person_writes_them() -> None:
    """None of them is spelled as in Python."""
    at = dt.datetime(2026, 11, 27, 22, 28, 1, 500_000, dt.UTC)
    shown = {
        "flag": (True, pa.bool_(), "true"),
        "delay": (1.8249999999999997, pa.float64(), "1.825"),
        "nan": (float("nan"), pa.float64(), "NaN"),
        "price": (Decimal("12345678901234567890.123"), pa.decimal128(23, 3), "12345678901234567890.123"),
        "at": (at, pa.timestamp("us", "UTC"), "2026-11-27 22:28:01.500000"),
        "whole": (at.replace(microsecond=0), pa.timestamp("us", "UTC"), "2026-11-27 22:28:01"),
        "bytes": (b"\x00\xff", pa.binary(), "AP8="),
        "tags": (["é", None], pa.list_(pa.string()), '["é", null]'),
        "place": ({"seat": 7, "at": at}, pa.struct([("seat", pa.int64()), ("at", pa.timestamp("us", "UTC"))]),
                  '{"seat": 7, "at": "2026-11-27 22:28:01.500000"}'),
        "limits": ([("a", True)], pa.map_(pa.string(), pa.bool_()), '{"a": true}'),
        "nothing": (None, pa.string(), None),
        "_payload": ("x" * 500, pa.string(), "x" * preview.CELL_CHARS_MAX + "…"),
    }  # fmt: skip
    table = pa.table({name: pa.array([value], kind) for name, (value, kind, _) in shown.items()})
    found = first_rows(written(table))
    assert dict(zip(found.columns, found.rows[0], strict=True)) == {name: text for name, (*_, text) in shown.items()}


def test_large_payloads_are_not_read() -> None:
    """A page has up to 1,024 of them, and two previews may be read at once."""
    large = "x" * (2 * preview.RECORD_BYTES_MAX)
    table = pa.table({"number": [1, 2], "_payload": [large, "y" + large]})
    found = first_rows(written(table))
    assert (found.columns, found.payloads) == (["number"], False)


def test_many_columns_leave_a_place_for_the_payload() -> None:
    table = pa.table({f"c{number}": [number] for number in range(40)} | {"_payload": ["{}"]})
    found = first_rows(written(table))
    assert len(found.columns) == preview.COLUMNS_MAX
    assert found.columns[-1] == "_payload"


def test_an_object_without_the_column_of_the_filter_has_no_preview() -> None:
    with pytest.raises(NoPreview, match="cannot be shown"):
        first_rows(written(pa.table({"number": [1]})), RowFilter("_submission_id", {"a"}))
