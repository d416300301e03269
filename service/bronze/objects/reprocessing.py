"""Reprocessing: rows of an earlier version of a source get the columns that were declared since, from `_payload`.

A row has the columns of the version that its record was checked against, and null in those that were added later, even
if its record has the fields. They are checked now, as a body's are: the row is then as if it were accepted today.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from bronze.objects.rows import column
from bronze.records.json_intake import RecordCheck
from bronze.records.sources import Source

VERSION, PAYLOAD = "_schema_version", "_payload"


@dataclass(frozen=True, slots=True)
class Reprocessed:
    """The same rows in the same order. `changed` counts those that are of the source's version now. `unfit` counts
    those that stay as they are since a field does not fit; `reason` says why of the first.
    """

    rows: pa.Table
    changed: int = 0
    unfit: int = 0
    reason: str | None = None


def reprocess(rows: pa.Table, source: Source) -> Reprocessed:
    """Fill the columns of `source` in rows of earlier versions. Columns that are missing altogether are appended.

    Rows without a payload stay as they are: they had no undeclared field.
    """
    result = Reprocessed(rows)
    has_payload = pc.is_valid(rows[PAYLOAD])
    for version in sorted(pc.unique(rows[VERSION]).to_pylist()):
        added = tuple(field for field in source.fields if field.since > version)
        if not added:
            continue
        chosen = pc.and_(pc.equal(rows[VERSION], version), has_payload)
        later = replace(source, fields=added, strict=False, event_time=None)
        result = _fill(result, later, pc.indices_nonzero(chosen).to_pylist())
    return result


def _fill(before: Reprocessed, source: Source, indices: Sequence[int]) -> Reprocessed:
    """Fill the columns of a source in the rows with these indices."""
    rows, unfit, reason = before.rows, before.unfit, before.reason
    check = RecordCheck(source)
    decoder = msgspec.json.Decoder(source.record_type_text_times)
    records: list[Any] = [None] * rows.num_rows
    for index, payload in zip(indices, rows[PAYLOAD].take(pa.array(indices, pa.int64())).to_pylist(), strict=True):
        record = payload.encode()
        if rejection := check.rejection(record):
            unfit, reason = unfit + 1, reason or rejection
        else:
            records[index] = decoder.decode(record)
    is_filled = pa.array((record is not None for record in records), pa.bool_())
    for name, values in [
        (VERSION, pa.repeat(pa.scalar(source.version, pa.int32()), rows.num_rows)),
        *((field.name, column(field, records, [0])) for field in source.fields),
    ]:
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, values.type))
        old = rows[name]
        new = pc.if_else(is_filled, values.cast(old.type), old)
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), new)
    changed = len(indices) - (unfit - before.unfit)
    return Reprocessed(rows, before.changed + changed, unfit, reason)
