"""Encoding: a cut becomes one Parquet file. Pure: messages in, bytes out.

Columns: the source's declared fields under their own names, then ours. The footer's key `bronze` holds `Contents`.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from bronze import __version__
from bronze.errors import DeadLetter
from bronze.objects.file_writer import FileWriter
from bronze.objects.footer import FOOTER_KEY
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
from bronze.protocol.documents import CLASSIFICATIONS_LISTED_MAX, Contents, StoredSubmission
from bronze.protocol.lane import Lane
from bronze.protocol.limits import digest
from bronze.protocol.message import Message, MessageKind
from bronze.records.columns import object_schema
from bronze.records.sources import CLASSIFICATION_ID, Source


@dataclass(frozen=True, slots=True)
class Encoded:
    """An object before it is written: its bytes, and what they say of themselves."""

    body: bytes
    contents: Contents


def encode_object(
    source: Source, lane: Lane, key: str, cut: ReconciledCut, traceparent: str, written_at: str = ""
) -> Encoded:
    """Encode a cut as the object that lies under `key`. A message that cannot become rows is listed as set aside."""
    with ThreadPoolExecutor(1) as thread:  # none is begun before a row group is full
        filling = _Filling(source, key, thread)
        filling.take(cut.accepted)
        return filling.object(lane, cut, traceparent, written_at)


class _Filling:
    """An object that is being filled: what its rows are of, and the messages that became none, with the reasons."""

    def __init__(self, source: Source, key: str, aside: Executor) -> None:
        self._source = source
        self._key = key
        self._columns = object_schema(source)
        self._writing = FileWriter(self._columns, aside)
        self._rows: dict[int, int] = {}  # by sequence
        self._runs: list[pa.Array] = []
        self._poison: list[tuple[Message, str]] = []

    def take(self, messages: Iterable[AcceptedMessage]) -> None:
        group: list[AcceptedMessage] = []
        rows = size = 0
        for one in messages:
            if one.part.kind is MessageKind.REJECTED:
                self._poison.append(
                    (one.message, f"its records do not fit {self._source.name}; its sender had them kept apart")
                )
            elif one.undecoded:
                self._poison.append((one.message, one.undecoded))
            elif one.part.kind is MessageKind.COLUMNAR:
                self._take_together(group)
                group, rows, size = [], 0, 0
                try:
                    self._add([one], columnar_batch(self._source, self._columns, self._key, one))
                except DeadLetter as error:
                    self._poison.append((one.message, str(error)))
            else:
                group.append(one)
                rows += one.part.records
                size += one.message.size
                if rows >= BATCH_ROWS or size >= BATCH_BYTES:
                    self._take_together(group)
                    group, rows, size = [], 0, 0
        self._take_together(group)

    def _take_together(self, group: Sequence[AcceptedMessage]) -> None:
        batch = lines_batch(self._source, self._columns, self._key, group)
        if batch is not None:
            self._add(group, batch)
            return
        decoded: list[DecodedMessage] = []
        for one in group:
            try:
                decoded.append(decode_message(self._source, one))
            except DeadLetter as error:
                self._poison.append((one.message, str(error)))
        if decoded:
            self._add_together(decoded)

    def _add_together(self, group: Sequence["DecodedMessage"]) -> None:
        try:
            batch = record_batch(self._source, self._columns, self._key, group)
        except DeadLetter as error:
            if len(group) == 1:
                self._poison.append((group[0].one.message, str(error)))
                return
            for decoded in group:
                self._add_together([decoded])
        else:
            self._add([decoded.one for decoded in group], batch)

    def _add(self, of: Iterable[AcceptedMessage], batch: pa.RecordBatch) -> None:
        self._writing.add(batch)
        self._runs.append(batch.column(CLASSIFICATION_ID).unique())  # a copy: the column may hold its whole message
        self._rows |= {one.message.sequence: one.part.records for one in of}

    def object(self, lane: Lane, cut: ReconciledCut, traceparent: str, written_at: str) -> Encoded:
        """The whole object."""
        poison = sorted([*cut.dead_letters, *self._poison], key=lambda one: one[0].sequence)
        aside = [quarantined_message(lane, message, reason) for message, reason in poison]
        stored = _stored_submissions(self._key, cut, self._rows, {one.sequence: one.key for one in aside})
        received = sorted(one.accepted.received_at for one in stored)
        runs = pa.chunked_array(self._runs, pa.string()).unique()
        bounds = pc.min_max(runs)
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
            quarantined=aside,
            duplicates=list(cut.duplicates),
            written_at=written_at,
            classifications=runs[:CLASSIFICATIONS_LISTED_MAX].to_pylist(),
            classification_count=len(runs),
            classification_least=bounds["min"].as_py(),
            classification_greatest=bounds["max"].as_py(),
        )
        return Encoded(self._writing.finish({FOOTER_KEY: msgspec.json.encode(contents)}), contents)


def _stored_submissions(
    key: str, cut: ReconciledCut, rows: Mapping[int, int], aside: Mapping[int, str]
) -> list[StoredSubmission]:
    """Each submission of a cut with what its identity needs, in the order of their first messages.

    `rows` and `aside` are the number of rows and the key in quarantine, by the message's sequence.
    """
    stored: dict[str, StoredSubmission] = {}
    for one in cut.accepted:
        accepted = one.part.accepted
        before = stored.get(accepted.submission_id)
        earlier = one.earlier if before is None else None
        so_far = before or earlier
        set_aside_here = aside.get(one.message.sequence)
        objects = before.objects if before else [*(earlier.objects if earlier else []), key]
        stored[accepted.submission_id] = StoredSubmission(
            accepted=accepted,
            first_sequence=one.first_sequence,
            parts=one.part.count,
            parts_done=one.part.number,
            parts_quarantined=(so_far.parts_quarantined if so_far else 0) + (set_aside_here is not None),
            records=(before.records if before else 0) + rows.get(one.message.sequence, 0),
            objects=list(dict.fromkeys(objects)),
            queued_at=before.queued_at if before else one.message.time,
            quarantined=(so_far.quarantined if so_far else []) + ([set_aside_here] if set_aside_here else []),
        )
    return list(stored.values())
