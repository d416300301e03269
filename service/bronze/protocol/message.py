"""Messages: what the queue stores. A part of one submission with its headers, content and payload.

A message's content is what its `MessageKind` says, most often whole records, one per line, exactly as received; its
payload is the content, or a zstd frame of it. Its headers say which submission it is a part of. The same facts,
`AcceptedSubmission`, stand in the messages, in the identity and in the object's footer.
"""

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec
import zstandard

from bronze.errors import DeadLetter

#: The newest version of the message's format; a consumer leaves a newer one to a newer consumer.
FORMAT = 4
#: A message in the queue with its headers (the server's max_payload), in bytes.
MESSAGE_BYTES_MAX = 2**20
#: What of it is left to the headers, in bytes: three texts of 256 characters, of 12 bytes each when escaped, and ids.
HEADER_BYTES_MAX = 12 * 2**10
#: Messages of one submission: the server's bound of an atomic batch.
MESSAGES_MAX = 1_000
FILE_NAME_CHARS_MAX = 256
#: Content from this size on goes as a zstd frame (RFC 8878), in bytes: less would save little.
ZSTD_BYTES_MIN = 4 * 2**10
#: A twelfth of the sample's records is left, at 1 GB/s; the next levels save a twentieth more (`docs/performance.md`).
ZSTD_LEVEL = 1
ZSTD = "zstd"

HEADER_FORMAT = "Bronze-Format"
HEADER_KIND = "Bronze-Kind"
HEADER_ENCODING = "Bronze-Encoding"
HEADER_SCHEMA_VERSION = "Bronze-Schema-Version"
HEADER_PART = "Bronze-Part"
HEADER_FIRST_RECORD = "Bronze-First-Record"
HEADER_RECORDS = "Bronze-Records"
HEADER_SUBMISSION = "Bronze-Submission"

#: What stands in a message for a record that is kept elsewhere, so that a record's place tells its index.
PLACEHOLDER = b"null"


class AcceptedSubmission(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a submission once it is accepted; the 202 is made from it, now and at any retry.

    `digest` is the SHA-256 of the decoded body; `received_at` is RFC 3339 in UTC, in microseconds.
    `classification_id` is the run that all its records belong to, None where there are several;
    `classification_default` is that of a record that names none. `records` are those that become rows, `rejected` those
    that were kept in quarantine at the sender's request. `schema_version` is the version of the source that they were
    checked against.
    """

    submission_id: str
    source: str
    digest: str
    records: int
    classification_id: str | None
    classification_default: str | None
    classification_count: int
    received_at: str
    trace_id: str
    traceparent: str
    keyed: bool = False
    origin: str | None = None
    schema_version: int = 1
    rejected: int = 0


class MessageKind(StrEnum):
    """What a message's content is."""

    RECORDS = "records"  # a JSON array of records, each as received
    COLUMNAR = "columnar"  # an Arrow IPC stream
    SPARSE = "sparse"  # as the first, with null in the place of each rejected record: `records` are the others
    REJECTED = "rejected"  # records that do not fit their source, with the reasons (`rejected_records.py`)
    LINES = "lines"  # a line for each record, which is as received and has no line break (NDJSON)


#: The first version of the format that knows a kind, and the first that knows compressed content.
_FORMAT_OF: Mapping[MessageKind, int] = {
    MessageKind.RECORDS: 1,
    MessageKind.COLUMNAR: 2,
    MessageKind.SPARSE: 2,
    MessageKind.REJECTED: 2,
    MessageKind.LINES: 4,
}
_FORMAT_OF_ZSTD = 3


@dataclass(frozen=True, slots=True)
class Part:
    """A message's place in its submission: part `number` of `count`, with `records` from `first_record` on."""

    accepted: AcceptedSubmission
    number: int
    count: int
    first_record: int
    records: int
    kind: MessageKind = MessageKind.RECORDS
    zstd: bool = False

    def headers(self) -> dict[str, str]:
        # ASCII: a header must not depend on how the client library encodes it
        submission = json.dumps(msgspec.to_builtins(self.accepted), separators=(",", ":"))
        # the least that can read it: an older consumer takes what it can
        version = max(_FORMAT_OF[self.kind], _FORMAT_OF_ZSTD if self.zstd else 1)
        return {
            HEADER_FORMAT: str(version),
            **({HEADER_KIND: self.kind} if self.kind is not MessageKind.RECORDS else {}),
            **({HEADER_ENCODING: ZSTD} if self.zstd else {}),
            # beside the rest, which an older consumer may not be able to read
            HEADER_SCHEMA_VERSION: str(self.accepted.schema_version),
            HEADER_PART: f"{self.number}/{self.count}",
            HEADER_FIRST_RECORD: str(self.first_record),
            HEADER_RECORDS: str(self.records),
            HEADER_SUBMISSION: submission,
        }

    @classmethod
    def parse(cls, headers: Mapping[str, str]) -> "Part":
        """The part that a message's headers tell of; raises `DeadLetter`."""
        try:
            number, _, count = headers[HEADER_PART].partition("/")
            part = cls(
                accepted=msgspec.json.decode(headers[HEADER_SUBMISSION], type=AcceptedSubmission),
                number=int(number),
                count=int(count),
                first_record=int(headers[HEADER_FIRST_RECORD]),
                records=int(headers[HEADER_RECORDS]),
                kind=MessageKind(headers.get(HEADER_KIND, MessageKind.RECORDS)),
                zstd=_is_zstd(headers),
            )
        except KeyError as error:
            raise DeadLetter(f"the message has no header {error}") from error
        except (ValueError, msgspec.DecodeError) as error:
            raise DeadLetter(f"the message's headers cannot be read: {error}") from error
        if not 1 <= part.number <= part.count <= MESSAGES_MAX or part.first_record < 0:
            raise DeadLetter(f"the message's part {headers[HEADER_PART]!r} is impossible")
        return part


def _is_zstd(headers: Mapping[str, str]) -> bool:
    """Raises `ValueError` for any other encoding."""
    encoding = headers.get(HEADER_ENCODING)
    if encoding not in {None, ZSTD}:
        raise ValueError(f"the encoding {encoding!r} is not known")
    return encoding is not None


def compress(content: bytes) -> tuple[bytes, bool]:
    """A message's payload, and whether it is one zstd frame that says its size: else that would save too little."""
    if len(content) < ZSTD_BYTES_MIN:
        return content, False
    frame = zstandard.compress(content, ZSTD_LEVEL)
    return (frame, True) if len(frame) < len(content) - len(content) // 8 else (content, False)


def content_bytes(headers: Mapping[str, str], payload: bytes) -> int:
    """The size of a message's content; of what is none, that of the payload."""
    if HEADER_ENCODING not in headers:
        return len(payload)
    try:
        return max(len(payload), zstandard.frame_content_size(payload))
    except zstandard.ZstdError:
        return len(payload)


def decompress(headers: Mapping[str, str], payload: bytes) -> bytes:
    """A message's content; raises `DeadLetter` where its payload is not what its headers say."""
    try:
        if not _is_zstd(headers):
            return payload
        size = zstandard.frame_content_size(payload)
        if not 0 <= size <= MESSAGE_BYTES_MAX:
            raise DeadLetter(f"its payload is a zstd frame of {size} bytes")
        return zstandard.decompress(payload)
    except (ValueError, zstandard.ZstdError) as error:
        raise DeadLetter(f"its payload cannot be decoded: {error}") from error


def split_records(kind: MessageKind, content: bytes) -> list[bytes]:
    """The records in the content of a message that holds them as received; `PLACEHOLDER` for each that lies elsewhere.

    Raises `msgspec.DecodeError` or `RecursionError` where they cannot be told apart.
    """
    if kind is MessageKind.LINES:
        return content.split(b"\n")
    return list(map(bytes, msgspec.json.decode(content, type=list[msgspec.Raw])))


def format_version(headers: Mapping[str, str]) -> int | None:
    """The version of a message's format; None where it states none."""
    return _number(headers, HEADER_FORMAT)


def schema_version(headers: Mapping[str, str]) -> int | None:
    """The version of the source that a message's records were checked against; None where it states none."""
    return _number(headers, HEADER_SCHEMA_VERSION)


def _number(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name, "")
    return int(text) if text.isdecimal() else None


@dataclass(frozen=True, slots=True)
class Message:
    """A message as the queue stores it. `time` is the server's own string: never parsed where it is compared."""

    sequence: int
    subject: str
    time: str
    headers: Mapping[str, str] = field(repr=False)
    payload: bytes = field(repr=False)

    @property
    def size(self) -> int:
        """The bytes of its content."""
        return content_bytes(self.headers, self.payload)

    def content(self) -> bytes:
        """What its payload holds; raises `DeadLetter`."""
        return decompress(self.headers, self.payload)

    @property
    def submission_id(self) -> str:
        return self.subject.rpartition(".")[2]


def unix_time_s(time: str) -> float:
    """A server's time (RFC 3339, UTC, up to nanoseconds) as seconds since the epoch."""
    whole, _, fraction = time.removesuffix("Z").partition(".")
    moment = dt.datetime.fromisoformat(whole).replace(tzinfo=dt.UTC).timestamp()
    return moment + (float(f"0.{fraction}") if fraction else 0.0)
