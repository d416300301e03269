"""NDJSON to rows as the service's objects have them, in as few steps as these libraries take, on one thread."""

import io
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.json

from bronze.records.columns import object_schema
from bronze.records.sources import Source

_READING = pyarrow.json.ReadOptions(use_threads=False)


@dataclass(frozen=True)
class Rows:
    """Of one source. Raises `pyarrow.ArrowInvalid` for what is not of its types, `ValueError` for what is missing."""

    source: Source

    @cached_property
    def columns(self) -> pa.Schema:
        return object_schema(self.source)

    @cached_property
    def _parsing(self) -> pyarrow.json.ParseOptions:
        named = [*(field.name for field in self.source.fields), "classification_id"]
        declared = pa.schema([self.columns.field(name) for name in named])
        return pyarrow.json.ParseOptions(explicit_schema=declared, unexpected_field_behavior="ignore")

    def batch(
        self, lines: bytes, *, key: str, submission_id: str, trace_id: str, first: int, received_us: int
    ) -> pa.RecordBatch:
        """The records of these lines, the first of which is `first` in its submission."""
        table = pyarrow.json.read_json(io.BytesIO(lines), _READING, self._parsing).combine_chunks()
        count = table.num_rows
        for field in self.source.fields:
            if field.required and table.column(field.name).null_count:
                raise ValueError(f"{field.name} is missing")
        received = pa.scalar(received_us, pa.timestamp("us", "UTC"))
        ours = {
            "file_path": pa.repeat(key, count),
            "_submission_id": pa.repeat(submission_id, count),
            "_record_index": pa.array(range(first, first + count), pa.int64()),
            "_origin": pa.nulls(count, pa.string()),
            "_received_at": pa.repeat(received, count),
            "_trace_id": pa.repeat(trace_id, count),
            "_schema_version": pa.repeat(pa.scalar(self.source.version, pa.int32()), count),
            "_payload": pa.array(lines.splitlines(), pa.string()),
        }
        arrays = [
            ours[field.name] if field.name in ours else table.column(field.name).chunk(0).cast(field.type)
            for field in self.columns
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.columns)
