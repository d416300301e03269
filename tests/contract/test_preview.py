"""The first rows of an object from a real bucket: only a few pages are read, whatever its size."""

import io
import os
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bronze.objects import preview
from bronze.objects.preview import NoPreview, first_rows
from bronze.objects.reader import read_in_thread
from bronze.servers.bucket import Bucket
from bronze.servers.s3 import S3Bucket

ROWS = 50_000


class CountingBucket:
    """A bucket that counts the bytes that were read."""

    def __init__(self, bucket: S3Bucket) -> None:
        self.bytes_read = 0
        self.head = bucket.head
        self._bucket = bucket

    async def read(self, key: str, start: int, end: int) -> bytes:
        self.bytes_read += end - start
        return await self._bucket.read(key, start, end)


def parquet(rows: int = ROWS) -> bytes:
    """Two declared columns and some of Bronze's own; nearly all bytes are payload."""
    sink = io.BytesIO()
    numbers = range(rows)
    table = pa.table(
        {
            "vehicle_id": pa.array([None if i == 1 else os.urandom(8).hex() for i in numbers], pa.string()),
            "seats": pa.array(numbers, pa.int64()),
            "file_path": pa.repeat("a/path", rows),
            "_record_index": pa.array(numbers, pa.int64()),
            "_payload": pa.array([os.urandom(128).hex() for _ in numbers], pa.string()),
        }
    )
    pq.write_table(table, sink, compression="zstd", row_group_size=ROWS)
    return sink.getvalue()


async def store(bucket: Bucket, prefix: str, body: bytes) -> str:
    key = f"{prefix}/{uuid4().hex}.parquet"
    assert await bucket.create(key, body, {}, "application/octet-stream")
    return key


async def test_only_a_few_pages_of_a_large_object_are_read(bucket: S3Bucket, prefix: str) -> None:
    """It has the declared columns and the payload of the first rows; repeated values are not read."""
    body = parquet()
    counting = CountingBucket(bucket)
    first = await read_in_thread(counting, await store(bucket, prefix, body), first_rows)  # type: ignore[arg-type]
    assert first
    assert first.columns == ["vehicle_id", "seats", "_record_index", "_payload"]
    assert len(first.rows) == preview.ROWS_MAX
    assert [row[1:3] for row in first.rows] == [[str(i), str(i)] for i in range(preview.ROWS_MAX)]
    assert first.rows[1][0] is None
    assert counting.bytes_read < len(body) / 4


async def test_an_object_without_rows_is_empty_and_another_file_is_refused(bucket: S3Bucket, prefix: str) -> None:
    empty = await read_in_thread(bucket, await store(bucket, prefix, parquet(0)), first_rows)
    assert empty
    assert empty.rows == []
    with pytest.raises(NoPreview, match="cannot be shown"):
        await read_in_thread(bucket, await store(bucket, prefix, b"no parquet"), first_rows)
