"""What one thread can do at most: `python -m benchmarks.limit FILE PASSES`, as JSON what it took.

Decode, check and write the same Parquet to the same bucket, with no service around it: the quickest way that was found
in these libraries, one piece after the other, a put only when an object is full.
"""

import io
import json
import os
import sys
import time
from pathlib import Path
from uuid import uuid4

import boto3
import pyarrow as pa
import pyarrow.json

from bronze import parquet, sources
from bronze.settings import Settings

PIECE_BYTES = 2**20
SOURCE = "status"


def main() -> int:
    file, passes = Path(sys.argv[1]), int(sys.argv[2])
    pa.set_cpu_count(1)
    source = sources.built_in()[SOURCE]
    columns = parquet.schema(source)
    declared = [columns.field(field.name) for field in source.fields]
    options = pyarrow.json.ParseOptions(
        explicit_schema=pa.schema([*declared, columns.field("classification_id")]), unexpected_field_behavior="ignore"
    )
    reading = pyarrow.json.ReadOptions(use_threads=False)
    now = pa.scalar(int(time.time() * 1e6), pa.timestamp("us", "UTC"))
    s3 = boto3.client("s3")
    bucket, run = os.environ["BRONZE_BUCKET"], uuid4().hex
    limit = Settings().object_bytes_max

    def rows(piece: bytes, key: str, first: int) -> pa.RecordBatch:
        table = pyarrow.json.read_json(io.BytesIO(piece), reading, options).combine_chunks()
        count = table.num_rows
        for field in declared:
            if not field.nullable and table.column(field.name).null_count:
                raise SystemExit(f"{field.name} is missing")
        ours = {
            "file_path": pa.repeat(key, count),
            "_submission_id": pa.repeat(run, count),
            "_record_index": pa.array(range(first, first + count), pa.int64()),
            "_origin": pa.nulls(count, pa.string()),
            "_received_at": pa.repeat(now, count),
            "_trace_id": pa.repeat(run, count),
            "_schema_version": pa.repeat(pa.scalar(source.version, pa.int32()), count),
            "_payload": pa.array(piece.splitlines(), pa.string()),
        }
        arrays = [
            ours[name] if name in ours else table.column(name).chunk(0).cast(columns.field(name).type)
            for name in columns.names
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=columns)

    began, cpu_s = time.monotonic(), time.process_time()
    records = objects = stored_bytes = size = 0
    waiting: list[pa.RecordBatch] = []
    key = ""

    def put() -> None:
        nonlocal objects, stored_bytes, size
        body = parquet.written(columns, waiting, {})
        s3.put_object(Bucket=bucket, Key=key, Body=body)
        objects, stored_bytes, size = objects + 1, stored_bytes + len(body), 0
        waiting.clear()

    for _ in range(passes):
        with file.open("rb") as stream:
            while piece := stream.read(PIECE_BYTES):
                piece += stream.readline()
                if not waiting:
                    key = f"limit/{run}/{objects:06}.parquet"
                batch = rows(piece, key, records)
                waiting.append(batch)
                records, size = records + batch.num_rows, size + len(piece)
                if size >= limit:
                    put()
    if waiting:
        put()
    took = {"wall_s": time.monotonic() - began, "cpu_s": time.process_time() - cpu_s}
    print(json.dumps({**took, "records": records, "objects": objects, "stored_bytes": stored_bytes}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
