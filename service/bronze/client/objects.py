"""Reads the rows of objects from the bucket, as Arrow. Objects may have been written with different columns."""

import datetime as dt
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from bronze import settings
from bronze.client.calls import Time, moment
from bronze.client.condition import parse
from bronze.errors import Misconfigured, Outage, Refusal, Refused, Unavailable
from bronze.protocol.feed_event import ObjectEvent

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
        since: Time | None = None,
        until: Time | None = None,
        events: "EventRange | None" = None,
        empty: pa.Schema | None = None,
    ) -> pa.Table:
        """The rows of these objects that were received, and happened, in a time, as a table. Without objects, its
        columns are those of `empty`, if it is given.
        """
        if not paths and empty is None:
            return pa.schema([]).empty_table()
        schema = self.schema(paths) if paths else empty
        shown = chosen(schema, columns)
        condition = within(where, since, until, schema, events)
        return pa.Table.from_batches(self.batches(paths, schema, columns, condition), shown)


@dataclass(frozen=True, slots=True)
class EventRange:
    """The rows of which the event time, in this column, is at `since` or later and before `until`."""

    column: str
    since: Time | None = None
    until: Time | None = None

    @classmethod
    def of(cls, source: str, column: str | None, since: Time | None, until: Time | None) -> Self:
        """The range of a source with this event time. Raises `Refused` if it declares none."""
        if column is None:
            raise Refused(
                Refusal.INVALID_QUERY,
                f"the source {source} declares no event_time: name a column in a condition (where) instead, or declare "
                "it (docs/sources.md)",
            )
        return cls(column, since, until)

    def may_be_in(self, event: ObjectEvent) -> bool:
        """Whether an object may have such rows, by what the catalog says of it."""
        times = event.event_times
        if times is None or times.field != self.column:
            return True  # it was written before this column was the event time, or has none
        least, greatest = _start(times.least), _start(times.greatest)
        return not (
            (self.since is not None and greatest < moment(self.since))
            or (self.until is not None and least >= moment(self.until))
        )

    def condition(self, schema: pa.Schema) -> pc.Expression:
        """The condition on rows; a date is a time at its beginning, in UTC."""
        if self.column not in schema.names:  # objects of before this column
            return pc.scalar(value=False)
        kind = schema.field(self.column).type
        column, found = pc.field(self.column), pc.field(self.column).is_valid()
        if self.since is not None:
            found &= column >= _bound(self.since, kind)
        if self.until is not None:
            found &= column < _bound(self.until, kind)
        return found


def _start(text: str) -> dt.datetime:
    """The time of a text that is a time or a date, in UTC."""
    found = dt.datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def _bound(given: Time, kind: pa.DataType) -> pa.Scalar:
    time = moment(given).astimezone(dt.UTC)
    if not pa.types.is_date(kind):
        return pa.scalar(time, pa.timestamp("us", "UTC"))
    # the first date that begins at this time or later
    return pa.scalar((time + dt.timedelta(days=1) - dt.timedelta(microseconds=1)).date(), kind)


def chosen(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """The schema with only these columns. Raises `Refused` if one of them does not exist."""
    for name in columns or ():
        if name not in schema.names:
            raise Refused(
                Refusal.INVALID_QUERY, f"there is no column {name!r}; the columns are {', '.join(schema.names)}"
            )
    return schema if columns is None else pa.schema([schema.field(name) for name in columns])


def within(
    where: "Where | None",
    since: Time | None,
    until: Time | None,
    schema: pa.Schema,
    events: EventRange | None = None,
) -> pc.Expression | None:
    """A condition, that the record was received at `since` or later and before `until`, and when what it is about
    happened. Raises `Refused`.
    """
    conditions = [] if where is None else [parse(where, schema) if isinstance(where, str) else _checked(where, schema)]
    received = pc.field(RECEIVED_AT)
    if since is not None:
        conditions.append(received >= pa.scalar(moment(since), pa.timestamp("us", "UTC")))
    if until is not None:
        conditions.append(received < pa.scalar(moment(until), pa.timestamp("us", "UTC")))
    if events is not None:
        conditions.append(events.condition(schema))
    combined: pc.Expression | None = None
    for condition in conditions:
        combined = condition if combined is None else combined & condition
    return combined


def _checked(where: pc.Expression, schema: pa.Schema) -> pc.Expression:
    try:
        schema.empty_table().filter(where)
    except pa.ArrowException as error:
        raise Refused(Refusal.INVALID_QUERY, f"the condition is not valid: {error}") from error
    return where
