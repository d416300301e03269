"""Why records are in quarantine: the messages there, each with its first rejected records."""

from collections.abc import Sequence
from dataclasses import dataclass

from bronze.errors import DeadLetter
from bronze.protocol import rejected_records
from bronze.protocol.quarantine import REJECTED, REPLAYED, QuarantineMetadata, source_of
from bronze.servers.bucket import Bucket, NoSuchKey

#: Records of each message that are shown, and characters of each.
RECORDS_MAX = 10
RECORD_CHARS_MAX = 200
#: A message of the queue has at most 1 MiB; an object of another size is not read.
MESSAGE_BYTES_MAX = 2 * 2**20


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A rejected record: its `index` in the body, why, the field with the error if any, and its begin as text."""

    index: int
    reason: str
    field: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """A message in quarantine. `time` is when the queue stored it. `count` is the number of its rejected records, of
    which `records` has the first; without any, it could not be decoded, and `reason` says why. `replayed`: its records
    were sent again.
    """

    key: str
    source: str
    submission_id: str
    time: str
    reason: str
    count: int
    records: Sequence[RejectedRecord]
    replayed: bool


async def read_rejection(bucket: Bucket, key: str, records_max: int = RECORDS_MAX) -> Rejection | None:
    """A message in quarantine; None if there is no such object. Raises `Unavailable`."""
    head = await bucket.head(key)
    if head is None:
        return None
    metadata = QuarantineMetadata.parse(head.metadata)
    records: Sequence[RejectedRecord] = []
    count = 0
    if key.endswith(REJECTED) and 0 < head.size <= MESSAGE_BYTES_MAX:
        try:
            _, rejected = rejected_records.unpack(await bucket.read(key, 0, head.size))
        except NoSuchKey:
            return None
        except DeadLetter:
            rejected = []
        count = len(rejected)
        records = [
            RejectedRecord(note.index, note.reason, note.field, _begin(record))
            for note, record in rejected[:records_max]
        ]
    return Rejection(
        key=key,
        source=source_of(key),
        submission_id=metadata.submission_id,
        time=metadata.time,
        reason=metadata.reason,
        count=count,
        records=records,
        replayed=await bucket.head(key + REPLAYED) is not None,
    )


def _begin(record: bytes) -> str:
    text = record[: 4 * RECORD_CHARS_MAX].decode(errors="replace")
    return text if len(record) <= RECORD_CHARS_MAX else f"{text[:RECORD_CHARS_MAX]}…"
