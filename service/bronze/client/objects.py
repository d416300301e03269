"""Reads the rows of objects from the bucket, as Arrow. Objects may have been written with different columns."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from bronze import settings
from bronze.client.calls import moment
from bronze.client.condition import parse
from bronze.errors import Misconfigured, Outage, Refusal, Refused, Unavailable

#: A condition on rows: an Arrow expression, or a text as in an SQL WHERE clause.
Where: TypeAlias = "pc.Expression | str"
RECEIVED_AT = "_received_at"
#: Footers that are read at the same time.
READS = 16


class Bucket:
    """The objects of a bucket, read by Arrow."""

    def __init__(self, filesystem: fs.FileSystem, name: str) -> None:
        self._fs = fs.SubTreeFileSystem(name, filesystem)
        self._name = name

    @classmethod
    def of_settings(cls) -> Self:
        """The bucket of `BRONZE_BUCKET`, with the address and the credentials of the variables `AWS_*`."""
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        try:
            s3 = fs.S3FileSystem(
                **{"endpoint_override": endpoint} if endpoint else {}, **{"region": region} if region else {}
            )
        except (OSError, ValueError) as error:
            raise Misconfigured(f"the bucket cannot be opened: {error}. Set AWS_ENDPOINT_URL_S3") from error
        return cls(s3, settings.load().bucket)

    def schema(self, paths: Sequence[str]) -> pa.Schema:
        """The columns of all of these objects. A column that only some of them have is null in the others."""
        with ThreadPoolExecutor(READS) as threads:
            schemas = list(threads.map(self._schema, paths))
        different = list(dict.fromkeys(schema.remove_metadata() for schema in schemas))
        return pa.unify_schemas(different, promote_options="permissive") if different else pa.schema([])

    def _schema(self, path: str) -> pa.Schema:
        try:
            return pq.read_schema(path, filesystem=self._fs)
        except FileNotFoundError as error:
            raise Unavailable(
                Outage.CONFLICT, f"the object {path} is not in the bucket {self._name}: it was removed, or is missing"
            ) from error
        except OSError as error:
            raise Unavailable(Outage.UNAVAILABLE, f"the object {path} cannot be read: {error}") from error

    def batches(
        self,
        paths: Sequence[str],
        schema: pa.Schema,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """The rows of these objects with these columns, in the order of the objects."""
        if not paths:
            return
        dataset = ds.dataset(list(paths), schema=schema, format="parquet", filesystem=self._fs)
        try:
            yield from dataset.to_batches(columns=None if columns is None else list(columns), filter=where)
        except FileNotFoundError as error:
            raise Unavailable(Outage.CONFLICT, f"an object is not in the bucket any more: {error}") from error
        except OSError as error:
            raise Unavailable(Outage.UNAVAILABLE, f"the objects cannot be read: {error}") from error

    def table(
        self,
        paths: Sequence[str],
        columns: Sequence[str] | None = None,
        where: "Where | None" = None,
        *,
        since: str | None = None,
        until: str | None = None,
    ) -> pa.Table:
        """The rows of these objects that were received in a time, as a table."""
        schema = self.schema(paths)
        shown = chosen(schema, columns) if paths else schema
        condition = within(where, since, until, schema) if paths else None
        return pa.Table.from_batches(self.batches(paths, schema, columns, condition), shown)


def chosen(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """The schema with only these columns. Raises `Refused` if one of them does not exist."""
    for name in columns or ():
        if name not in schema.names:
            raise Refused(
                Refusal.INVALID_QUERY, f"there is no column {name!r}; the columns are {', '.join(schema.names)}"
            )
    return schema if columns is None else pa.schema([schema.field(name) for name in columns])


def within(where: "Where | None", since: str | None, until: str | None, schema: pa.Schema) -> pc.Expression | None:
    """A condition, and that the record was received at `since` or later and before `until`. Raises `Refused`."""
    conditions = [] if where is None else [parse(where, schema) if isinstance(where, str) else where]
    received = pc.field(RECEIVED_AT)
    if since is not None:
        conditions.append(received >= pa.scalar(moment(since), pa.timestamp("us", "UTC")))
    if until is not None:
        conditions.append(received < pa.scalar(moment(until), pa.timestamp("us", "UTC")))
    combined: pc.Expression | None = None
    for condition in conditions:
        combined = condition if combined is None else combined & condition
    return combined
