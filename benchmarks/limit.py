"""What one thread can do at most: `python -m benchmarks.limit FILE PASSES`, as JSON what it took.

Decode, check and write the same Parquet to the same bucket, with no service around it: the quickest way that was found
in these libraries, one piece after the other, a put only when an object is full.
"""

import json
import os
import sys
import time
from pathlib import Path
from uuid import uuid4

import boto3
import pyarrow as pa

from benchmarks.rows import Rows
from bronze.objects.file_writer import FileWriter
from bronze.records import sources
from bronze.settings import Settings

PIECE_BYTES = 2**20


def main() -> int:
    file, passes = Path(sys.argv[1]), int(sys.argv[2])
    pa.set_cpu_count(1)
    rows = Rows(sources.built_in()["status"])
    s3 = boto3.client("s3")
    bucket, run = os.environ["BRONZE_BUCKET"], uuid4().hex
    limit = Settings().object_bytes_max

    began, cpu_s = time.monotonic(), time.process_time()
    records = objects = stored_bytes = size = 0
    waiting: list[pa.RecordBatch] = []
    key = ""

    def put() -> None:
        nonlocal objects, stored_bytes, size
        writing = FileWriter(rows.columns)
        for batch in waiting:
            writing.add(batch)
        body, _ = writing.finish({})
        s3.put_object(Bucket=bucket, Key=key, Body=body)
        objects, stored_bytes, size = objects + 1, stored_bytes + len(body), 0
        waiting.clear()

    for _ in range(passes):
        with file.open("rb") as stream:
            while piece := stream.read(PIECE_BYTES):
                piece += stream.readline()
                if not waiting:
                    key = f"limit/{run}/{objects:06}.parquet"
                batch = rows.batch(
                    piece, key=key, submission_id=run, trace_id=run, first=records, received_us=int(time.time() * 1e6)
                )
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
