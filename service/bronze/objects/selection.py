"""Which rows and records an erasure is about: those of a classification, or those of a source that meet a condition."""

import json
import re
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Self

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from bronze.errors import Halted
from bronze.objects.footer import NotABronzeObject
from bronze.objects.rows import column_of_value
from bronze.protocol.documents import EntrySubmission
from bronze.protocol.message import AcceptedSubmission
from bronze.records.columns import object_schema
from bronze.records.sources import CLASSIFICATION_ID, Source

RECEIVED_AT = "_received_at"
_TIME = pa.timestamp("us", tz="UTC")
#: The escapes of JSON; those of one character may be two, as surrogates.
_ESCAPES = re.compile(rb'(?:\\u[0-9a-fA-F]{4})+|\\["\\/bfnrt]')
_CLASSIFICATION = pa.schema([(CLASSIFICATION_ID, pa.string()), (RECEIVED_AT, _TIME)])


@dataclass(frozen=True, slots=True)
class Chosen:
    """The chosen rows. The condition is about these columns; one that an object lacks is null there.

    `classification_id` is that of all chosen rows, None if they are chosen by a condition on the rows of `source`.
    Records that were accepted at `accepted_before` or later are not chosen (RFC 3339 in UTC, in microseconds).
    """

    condition: pc.Expression
    columns: pa.Schema
    classification_id: str | None = None
    source: Source | None = None
    accepted_before: str | None = None

    @classmethod
    def of_classification(cls, classification_id: str) -> Self:
        return cls(pc.field(CLASSIFICATION_ID) == classification_id, _CLASSIFICATION, classification_id)

    @classmethod
    def of_source(cls, source: Source, condition: pc.Expression) -> Self:
        return cls(condition, object_schema(source), source=source)

    def in_table(self, columns: pa.Schema) -> pc.Expression:
        """The condition on the rows of a table with these columns. Raises `Halted` if it is about one that is missing:
        the table then takes the declaration that has it when `bronze table` starts with it.
        """
        try:
            ds.dataset(columns.empty_table()).scanner(filter=self.condition)
        except pa.ArrowInvalid as error:
            raise Halted(
                f"the table cannot be searched: {error}. Start `bronze table` with this declaration, then run the "
                "erasure again"
            ) from error
        return self.condition

    def before(self, time: str) -> "Chosen":
        """Only what was accepted before a time, or at an unknown time."""
        received_at = pc.field(RECEIVED_AT)
        condition = self.condition & ((received_at < pa.scalar(time).cast(_TIME)) | received_at.is_null())
        return replace(self, condition=condition, accepted_before=time)

    def is_too_new(self, accepted: AcceptedSubmission | EntrySubmission | None) -> bool:
        """Whether a submission was accepted too late to be chosen."""
        return bool(accepted and self.accepted_before and accepted.received_at >= self.accepted_before)

    def count(self, file: BinaryIO) -> int:
        """The number of chosen rows in an object; only the row groups and columns that may show it are read.

        Raises `NotABronzeObject`.
        """
        try:
            fragment = ds.ParquetFileFormat().make_fragment(file).subset(filter=self.condition, schema=self.columns)
            if not fragment.row_groups:
                return 0
            scanner = fragment.scanner(schema=self.columns, filter=self.condition, columns=[], use_threads=False)
            rows: int = scanner.count_rows()
        except (pa.ArrowException, OSError) as error:
            raise NotABronzeObject(f"its rows cannot be read: {error}") from error
        return rows

    def mask(self, rows: pa.Table) -> pa.BooleanArray:
        """For each row whether it is chosen."""
        known = [
            rows[field.name].cast(field.type)
            if field.name in rows.column_names
            else pa.chunked_array([pa.nulls(rows.num_rows, field.type)])
            for field in self.columns
        ]
        columns = ds.dataset(pa.table(known, names=self.columns.names))
        found = columns.to_table(columns={"chosen": self.condition}, use_threads=False)["chosen"]
        return pc.fill_null(found, fill_value=False).combine_chunks()

    def has_all_of(self, accepted: AcceptedSubmission | None) -> bool:
        """Whether all records of a submission are chosen, as far as it says so itself."""
        if self.classification_id is None or accepted is None or self.is_too_new(accepted):
            return False
        return accepted.classification_id == self.classification_id

    def mentions(self, text: bytes) -> bool:
        """Whether the classification occurs in a text, as it is or as any JSON."""
        if self.classification_id is None:
            return False
        wanted = self.classification_id.encode()
        return wanted in text or wanted in _ESCAPES.sub(_unescaped, text)

    def has_record(self, record: bytes, accepted: AcceptedSubmission | None) -> bool | None:
        """Whether a record, as received, is chosen; None if that cannot be said since it cannot be read.

        A value that its column cannot hold is null.
        """
        if self.is_too_new(accepted):
            return False
        try:
            values = msgspec.json.decode(record)
        except (msgspec.DecodeError, RecursionError):
            values = None
        if not isinstance(values, dict):
            if self.classification_id is None:
                return None
            return self.has_all_of(accepted) or self.mentions(record)
        own = values.get(CLASSIFICATION_ID) or _classification_of(accepted)
        if self.classification_id is not None:
            # it is a text; in one that was refused for it, it may be anything
            in_parts = isinstance(own, dict | list) and self.mentions(msgspec.json.encode(own))
            return in_parts or str(own) == self.classification_id
        return bool(self.mask(self._row(own, record, accepted))[0].as_py())

    def _row(self, classification_id: Any, record: bytes, accepted: AcceptedSubmission | None) -> pa.Table:
        texts = msgspec.json.decode(record, type=dict[str, msgspec.Raw])
        fields = {
            field.name: column_of_value(field, bytes(texts[field.name_in_records]))
            for field in (self.source.fields if self.source else ())
            if field.name_in_records in texts
        }
        known = {CLASSIFICATION_ID: classification_id, "_payload": record.decode(errors="replace")}
        if accepted:
            known |= {
                "_submission_id": accepted.submission_id,
                "_origin": accepted.origin,
                RECEIVED_AT: accepted.received_at,
                "_trace_id": accepted.trace_id,
                "_schema_version": accepted.schema_version,
            }
        others = {field.name: _column(known.get(field.name), field.type) for field in self.columns}
        return pa.table({**others, **fields})

    def cleared(self, accepted: AcceptedSubmission, *, all_erased: bool = False) -> AcceptedSubmission:
        """A submission without the classification that was erased; without any, if `all_erased`."""

        def left(classification_id: str | None) -> str | None:
            return None if all_erased or classification_id == self.classification_id else classification_id

        if self.is_too_new(accepted):
            return accepted
        return msgspec.structs.replace(
            accepted,
            classification_id=left(accepted.classification_id),
            classification_default=left(accepted.classification_default),
        )


def _unescaped(escapes: re.Match[bytes]) -> bytes:
    return str(json.loads(b'"' + escapes[0] + b'"')).encode(errors="surrogatepass")


def _classification_of(accepted: AcceptedSubmission | None) -> str | None:
    """The classification of a record that names none."""
    return (accepted.classification_default or accepted.classification_id) if accepted else None


def _column(value: Any, kind: pa.DataType) -> pa.Array:
    """A value of JSON as a column of one row."""
    try:
        return pa.array([value], pa.string()).cast(kind) if isinstance(value, str) else pa.array([value], kind)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.nulls(1, kind)
