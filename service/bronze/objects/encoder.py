"""Encoding: a cut becomes one Parquet file. Pure: messages in, bytes out.

The columns are the source's declared fields, and after them those that Bronze adds. The footer has `Contents` under the
key `bronze`.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import pyarrow as pa
import pyarrow.json

from bronze import __version__
from bronze.errors import DeadLetter
from bronze.objects.classifications import Classifications
from bronze.objects.event_times import EventTimesOfObject
from bronze.objects.file_writer import FileWriter
from bronze.objects.footer import FOOTER_KEY
from bronze.objects.measurements import FieldMeasurement, Measurements
from bronze.objects.rows import (
    BATCH_BYTES,
    BATCH_ROWS,
    DecodedMessage,
    columnar_batch,
    decode_message,
    lines_batch,
    record_batch,
)
from bronze.protocol.chain import AcceptedMessage, ReconciledCut, quarantined_message
from bronze.protocol.documents import Contents, StoredObject, StoredSubmission, Totals
from bronze.protocol.lane import Lane
from bronze.protocol.limits import digest
from bronze.protocol.message import Message, MessageKind
from bronze.records.columns import object_schema
from bronze.records.sources import CLASSIFICATION_ID, Source


@dataclass(frozen=True, slots=True)
class Encoded:
    """An object before it is written to the bucket: its bytes, the contents of its footer, and what its columns hold,
    by the names of the fields. `lateness_s` is the median age of what its rows are about when they were received.
    """

    body: bytes
    contents: Contents
    fields: Mapping[str, FieldMeasurement]
    lateness_s: float | None = None

    @property
    def stored(self) -> StoredObject:
        return StoredObject(size=len(self.body), contents=self.contents)


def encode_object(
    source: Source,
    lane: Lane,
    key: str,
    cut: ReconciledCut,
    traceparent: str,
    written_at: str = "",
    totals_before: Totals | None = None,
) -> Encoded:
    """Encode a cut as the object with this key. Its footer lists the messages that go to quarantine."""
    nan_columns: AbstractSet[str] = frozenset()
    while True:
        with ThreadPoolExecutor(1) as executor:  # its thread is not started before a row group is full
            builder = _ObjectBuilder(source, key, executor, nan_columns)
            builder.add_messages(cut.accepted)
            if builder.nan_columns <= nan_columns:
                return builder.finish(lane, cut, traceparent, written_at, totals_before)
            nan_columns = builder.nan_columns  # the options of the file were chosen before its rows were known


class _ObjectBuilder:
    """An object that is being encoded: the rows of its messages, and its dead letters with their reasons."""

    def __init__(self, source: Source, key: str, executor: Executor, nan_columns: AbstractSet[str]) -> None:
        self._source = source
        self._key = key
        self._columns = object_schema(source)
        self._writer = FileWriter(self._columns, executor, nan_columns)
        self._measurements = Measurements(source, self._columns)
        self._event_times = EventTimesOfObject(source.event_time)
        self._rows: dict[int, int] = {}  # by sequence
        self._classifications = Classifications()
        self._dead_letters: list[tuple[Message, str]] = []

    @property
    def nan_columns(self) -> AbstractSet[str]:
        """The columns that have had a NaN so far."""
        return self._writer.nan_columns_found

    def add_messages(self, messages: Iterable[AcceptedMessage]) -> None:
        group: list[AcceptedMessage] = []
        rows = size = 0
        for accepted in messages:
            if accepted.part.kind is MessageKind.REJECTED:
                reason = f"its records do not fit {self._source.name}; its sender asked for quarantine"
                self._dead_letters.append((accepted.message, reason))
            elif accepted.skip_reason:
                self._dead_letters.append((accepted.message, accepted.skip_reason))
            elif accepted.part.kind is MessageKind.COLUMNAR:
                self._add_group(group)
                group, rows, size = [], 0, 0
                try:
                    batch = columnar_batch(self._source, self._columns, self._key, accepted)
                    self._add_batch([accepted], batch)
                except DeadLetter as error:
                    self._dead_letters.append((accepted.message, str(error)))
            else:
                group.append(accepted)
                rows += accepted.part.records
                size += accepted.message.size
                if rows >= BATCH_ROWS or size >= BATCH_BYTES:
                    self._add_group(group)
                    group, rows, size = [], 0, 0
        self._add_group(group)

    def _add_group(self, group: Sequence[AcceptedMessage]) -> None:
        batch = lines_batch(self._source, self._columns, self._key, group)
        if batch is not None:
            self._add_batch(group, batch)
            return
        decoded: list[DecodedMessage] = []
        for accepted in group:
            try:
                decoded.append(decode_message(self._source, accepted))
            except DeadLetter as error:
                self._dead_letters.append((accepted.message, str(error)))
        if decoded:
            self._add_decoded(decoded)

    def _add_decoded(self, group: Sequence["DecodedMessage"]) -> None:
        """Add the rows of a group in one batch; if that fails, message by message, to find the dead letters."""
        try:
            batch = record_batch(self._source, self._columns, self._key, group)
        except DeadLetter as error:
            if len(group) == 1:
                self._dead_letters.append((group[0].accepted.message, str(error)))
                return
            for decoded in group:
                self._add_decoded([decoded])
        else:
            self._add_batch([decoded.accepted for decoded in group], batch)

    def _add_batch(self, messages: Iterable[AcceptedMessage], batch: pa.RecordBatch) -> None:
        self._writer.add(batch)
        self._measurements.add(batch)
        self._event_times.add(batch)
        self._classifications.add(batch.column(CLASSIFICATION_ID))
        self._rows |= {accepted.message.sequence: accepted.part.records for accepted in messages}

    def finish(
        self, lane: Lane, cut: ReconciledCut, traceparent: str, written_at: str, totals_before: Totals | None
    ) -> Encoded:
        """The complete object."""
        dead_letters = sorted([*cut.dead_letters, *self._dead_letters], key=lambda letter: letter[0].sequence)
        quarantined = [quarantined_message(lane, message, reason) for message, reason in dead_letters]
        quarantine_keys = {message.sequence: message.key for message in quarantined}
        stored = _stored_submissions(self._key, cut, self._rows, quarantine_keys)
        received = sorted(submission.accepted.received_at for submission in stored)
        contents = Contents(
            writer=f"bronze {__version__}",
            file_path=self._key,
            source=lane.source,
            epoch=lane.epoch,
            lane=lane.number,
            first=cut.messages[0].sequence,
            last=cut.messages[-1].sequence,
            last_time=cut.messages[-1].time,
            digest=digest(cut.messages),
            messages=len(cut.messages),
            records=sum(self._rows.values()),
            first_received_at=received[0] if received else None,
            last_received_at=received[-1] if received else None,
            traceparent=traceparent,
            submissions=stored,
            quarantined=quarantined,
            duplicates=list(cut.duplicates),
            written_at=written_at,
            **self._classifications.facts(),
            totals_before=totals_before,
            event_times=self._event_times.times or msgspec.UNSET,
        )
        body, metadata = self._writer.finish({FOOTER_KEY: msgspec.json.encode(contents)})
        return Encoded(body, contents, self._measurements.finish(metadata, body), self._event_times.lateness_s)


def _stored_submissions(
    key: str, cut: ReconciledCut, rows: Mapping[int, int], quarantine_keys: Mapping[int, str]
) -> list[StoredSubmission]:
    """The submissions of a cut, with the values that their identities need, in the order of their first messages.

    `rows` and `quarantine_keys` are by the sequence of the message.
    """
    stored: dict[str, StoredSubmission] = {}
    for message in cut.accepted:
        accepted = message.part.accepted
        in_object = stored.get(accepted.submission_id)
        earlier = message.earlier_identity if in_object is None else None
        so_far = in_object or earlier
        quarantine_key = quarantine_keys.get(message.message.sequence)
        objects = in_object.objects if in_object else [*(earlier.objects if earlier else []), key]
        stored[accepted.submission_id] = StoredSubmission(
            accepted=accepted,
            first_sequence=message.first_sequence,
            parts=message.part.count,
            parts_done=message.part.number,
            parts_quarantined=(so_far.parts_quarantined if so_far else 0) + (quarantine_key is not None),
            records=(in_object.records if in_object else 0) + rows.get(message.message.sequence, 0),
            objects=list(dict.fromkeys(objects)),
            queued_at=in_object.queued_at if in_object else message.message.time,
            quarantined=(so_far.quarantined if so_far else []) + ([quarantine_key] if quarantine_key else []),
        )
    return list(stored.values())
