"""The rows of objects, with the columns of the table as they are now."""

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from bronze.errors import Halted
from bronze.objects.footer import NotABronzeObject, contents_of_file
from bronze.objects.removals import read_removal
from bronze.protocol.documents import CatalogEntry
from bronze.servers.bucket import Bucket


async def read_rows(bucket: Bucket, prefix: str, entry: CatalogEntry, columns: pa.Schema) -> pa.Table | None:
    """The rows of an object; None if it was removed. Raises `Halted` if it is missing or differs from its entry, and
    `Unavailable`.
    """
    head = await bucket.head(entry.file_path)
    if head is None:
        if await read_removal(bucket, prefix, entry.file_path):
            return None
        raise Halted(
            f"{entry.file_path} is in the catalog, but not in the bucket. See docs/operations.md, missing objects"
        )
    body = await bucket.read(entry.file_path, 0, head.size)
    try:
        rows = with_columns(pq.read_table(io.BytesIO(body)), columns)
    except (pa.ArrowException, OSError) as error:
        raise Halted(f"{entry.file_path} cannot be read: {error}") from error
    if rows.num_rows != entry.records and rows.num_rows + _erased(body) != entry.records:
        raise Halted(f"{entry.file_path} has {rows.num_rows} rows, but its entry says {entry.records}")
    return rows


def _erased(body: bytes) -> int:
    """How many rows were erased from an object, by its own footer: the entry may have been read before that."""
    try:
        return contents_of_file(body).erased
    except NotABronzeObject:
        return 0


def with_columns(rows: pa.Table, columns: pa.Schema) -> pa.Table:
    """The rows of an older version of the source: columns that were added later are null, narrower ones are widened."""
    arrays: Sequence[pa.ChunkedArray] = [
        rows.column(field.name).cast(field.type)
        if field.name in rows.column_names
        else pa.chunked_array([pa.nulls(rows.num_rows, field.type)])
        for field in columns
    ]
    return pa.Table.from_arrays(arrays, schema=columns)
