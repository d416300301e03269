"""Erasing rows from an object. Pure: the bytes of an object in, and those of the same object without these rows out.

All other rows stay as they are, in their order, and so does what the footer says of messages and submissions. Only what
it says of the values in rows is that of the rows that are left.
"""

import hashlib
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bronze.errors import DeadLetter
from bronze.objects.classifications import Classifications
from bronze.objects.event_times import EventTimesOfObject
from bronze.objects.file_writer import FileWriter
from bronze.objects.footer import FOOTER_KEY, NotABronzeObject, contents_of_file
from bronze.objects.selection import Chosen
from bronze.protocol.documents import Contents, ErasedRows, EventTimes, QuarantinedMessage, StoredSubmission
from bronze.protocol.message import HEADER_SUBMISSION, Part
from bronze.records.sources import CLASSIFICATION_ID

SUBMISSION_ID = "_submission_id"


@dataclass(frozen=True, slots=True)
class Rewritten:
    """An object without the chosen rows."""

    body: bytes
    contents: Contents


def erase_rows(
    body: bytes, chosen: Chosen, erasure_id: str, quarantined: Sequence[QuarantinedMessage] | None = None
) -> Rewritten | None:
    """The object without the chosen rows, and without their classification in its footer; None if it has neither.

    `quarantined` replaces the list of messages in quarantine. Raises `NotABronzeObject`.
    """
    contents = contents_of_file(body)
    try:
        left, erased = _split(body, chosen)
    except (pa.ArrowException, OSError) as error:
        raise NotABronzeObject(f"its rows cannot be read: {error}") from error
    emptied = _emptied(contents.quarantined, quarantined or [])
    submissions = [_cleared(stored, chosen, left.rows, {*erased, *emptied}) for stored in contents.submissions]
    messages = [cleared_message(message, chosen) for message in quarantined or contents.quarantined]
    if not erased and (submissions, messages) == (contents.submissions, contents.quarantined):
        return None
    erasure = ErasedRows(
        erasure_id=erasure_id,
        records=sum(erased.values()),
        bytes=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
    )
    new = msgspec.structs.replace(
        contents,
        submissions=submissions,
        quarantined=messages,
        erasures=[*(contents.erasures or []), erasure],
        event_times=left.event_times or msgspec.UNSET,
        **left.classifications.facts(),
    )
    return Rewritten(left.write(msgspec.json.encode(new)), new)


class _Left:
    """The rows that are left of an object."""

    def __init__(self, columns: pa.Schema, event_time: str | None) -> None:
        self._columns = columns
        self._batches: list[pa.RecordBatch] = []
        self._times = EventTimesOfObject(event_time)
        self.classifications = Classifications()
        self.rows: Counter[str] = Counter()  # by submission

    def add(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self._times.add(batch)
        self.classifications.add(batch.column(CLASSIFICATION_ID))
        self.rows.update(_counts(batch.column(SUBMISSION_ID)))

    @property
    def event_times(self) -> EventTimes | None:
        return self._times.times

    def write(self, footer: bytes) -> bytes:
        nan_columns: AbstractSet[str] = frozenset()
        while True:
            writer = FileWriter(self._columns, nan_columns=nan_columns)
            for batch in self._batches:
                writer.add(batch)
            if writer.nan_columns_found <= nan_columns:
                return writer.finish({FOOTER_KEY: footer})[0]
            nan_columns = frozenset(writer.nan_columns_found)


def _split(body: bytes, chosen: Chosen) -> tuple[_Left, Mapping[str, int]]:
    """The rows that are left, and the number of chosen rows by submission."""
    erased: Counter[str] = Counter()
    with pq.ParquetFile(BytesIO(body)) as parquet:
        columns = parquet.schema_arrow.remove_metadata()
        times = contents_of_file(body).event_times
        left = _Left(columns, times.field if times else None)
        for rows in _row_groups(parquet):
            mask = chosen.mask(rows)
            erased.update(_counts(rows.filter(mask)[SUBMISSION_ID]))
            for batch in rows.filter(pc.invert(mask)).to_batches():
                left.add(batch)
    return left, erased


def _row_groups(parquet: pq.ParquetFile) -> Iterator[pa.Table]:
    for group in range(parquet.num_row_groups):
        yield parquet.read_row_group(group, use_threads=False).replace_schema_metadata(None)


def _counts(column: pa.Array) -> Mapping[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}


def _emptied(before: Sequence[QuarantinedMessage], after: Sequence[QuarantinedMessage]) -> Iterator[str]:
    """The submissions of messages in quarantine that have lost their classification: no record is left of them."""
    for old, new in zip(before, after, strict=False):
        with suppress(DeadLetter):
            accepted, left = Part.parse(old.headers).accepted, Part.parse(new.headers).accepted
            if accepted.classification_id is not None and left.classification_id is None:
                yield accepted.submission_id


def _cleared(
    stored: StoredSubmission, chosen: Chosen, left: Mapping[str, int], erased: Container[str]
) -> StoredSubmission:
    """A submission without the classification that was erased: without any, if no row of it is left here, and rows or
    all rejected records of it were erased.
    """
    submission_id = stored.accepted.submission_id
    all_erased = submission_id in erased and not left.get(submission_id, 0)
    return msgspec.structs.replace(stored, accepted=chosen.cleared(stored.accepted, all_erased=all_erased))


def cleared_message(message: QuarantinedMessage, chosen: Chosen, *, all_erased: bool = False) -> QuarantinedMessage:
    """A message in quarantine of which the headers do not have the classification that was erased."""
    try:
        part = Part.parse(message.headers)
    except DeadLetter:
        # they cannot be read as a submission, but as a text
        headers = {name: "" if chosen.mentions(text.encode()) else text for name, text in message.headers.items()}
        return msgspec.structs.replace(message, headers=headers)
    accepted = chosen.cleared(part.accepted, all_erased=all_erased)
    if accepted == part.accepted:
        return message
    # only this header: the others are of no person, and a newer version may have written them
    headers = {**message.headers, HEADER_SUBMISSION: replace(part, accepted=accepted).headers()[HEADER_SUBMISSION]}
    return msgspec.structs.replace(message, headers=headers)
