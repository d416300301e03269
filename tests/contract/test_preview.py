"""The first rows of an object, from a real bucket: a few pages of it, whatever its size."""

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


class Counting:
    """A bucket that says how many bytes were read of it."""

    def __init__(self, bucket: S3Bucket) -> None:
        self.bytes_read = 0
        self.head = bucket.head
        self._bucket = bucket

    async def read(self, key: str, start: int, end: int) -> bytes:
        self.bytes_read += end - start
        return await self._bucket.read(key, start, end)


def parquet(rows: int = ROWS) -> bytes:
    """Two declared columns and ours, the payload of which is nearly all of it."""
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


async def stored(bucket: Bucket, prefix: str, body: bytes) -> str:
    key = f"{prefix}/{uuid4().hex}.parquet"
    assert await bucket.create(key, body, {}, "application/octet-stream")
    return key


async def test_a_large_object_is_read_by_a_few_pages(bucket: S3Bucket, prefix: str) -> None:
    """The declared columns of the first rows; what each row repeats and its payload stay where they are."""
    body = parquet()
    counting = Counting(bucket)
    shown = await read_in_thread(counting, await stored(bucket, prefix, body), first_rows)  # type: ignore[arg-type]
    assert shown
    assert shown.columns == ["vehicle_id", "seats", "_record_index"]
    assert len(shown.rows) == preview.ROWS_MAX
    assert [row[1:] for row in shown.rows] == [[str(i), str(i)] for i in range(preview.ROWS_MAX)]
    assert shown.rows[1][0] is None
    assert counting.bytes_read < len(body) / 4


async def test_an_object_without_rows_and_what_is_none(bucket: S3Bucket, prefix: str) -> None:
    empty = await read_in_thread(bucket, await stored(bucket, prefix, parquet(0)), first_rows)
    assert empty
    assert empty.rows == []
    with pytest.raises(NoPreview, match="cannot be shown"):
        await read_in_thread(bucket, await stored(bucket, prefix, b"no parquet"), first_rows)
