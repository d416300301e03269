"""Messages of the queue: each is a part of one submission, with headers, content and payload.

A message's `MessageKind` says what its content is, most often whole records, one per line, exactly as received. Its
payload is the content, plain or as a zstd frame. Its headers name its submission. The same facts, `AcceptedSubmission`,
are in the messages, in the identity and in the object's footer.
"""

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec
import zstandard

from bronze.errors import DeadLetter

#: The newest version of the message format that this version knows; newer messages are left to a newer consumer.
FORMAT = 4
#: The largest message, headers included (the server's max_payload), in bytes.
MESSAGE_BYTES_MAX = 2**20
#: Bytes of it reserved for headers: three texts of 256 characters, each of 12 bytes when escaped, and ids.
HEADER_BYTES_MAX = 12 * 2**10
#: The most messages of one submission: the server's bound of an atomic batch.
MESSAGES_MAX = 1_000
FILE_NAME_CHARS_MAX = 256
#: Content of at least this size, in bytes, is sent as a zstd frame (RFC 8878): for less, it would save little.
ZSTD_BYTES_MIN = 4 * 2**10
#: Compresses the sample's records to a twelfth, at 1 GB/s; the next levels save a twentieth more
#: (`docs/performance.md`).
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

#: Takes the place of a record that is in another message, so that a record's place gives its index.
PLACEHOLDER = b"null"


class AcceptedSubmission(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The facts about an accepted submission; each 202, the first and those of retries, is made from them.

    `digest` is the SHA-256 of the decoded body; `received_at` is RFC 3339 in UTC, in microseconds.
    `classification_id` is the classification of all its records, None if there are several; `classification_default`
    applies to records that name none. `records` counts the records that become rows, `rejected` the records that go to
    quarantine at the sender's request. `schema_version` is the version of the source that the records were checked
    against. `principal` is who sent it; empty if the API had no keys.
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
    principal: str = ""


class MessageKind(StrEnum):
    """The kind of a message's content."""

    RECORDS = "records"  # a JSON array of records, each as received
    COLUMNAR = "columnar"  # an Arrow IPC stream
    SPARSE = "sparse"  # a JSON array with null in the place of each rejected record; `records` counts the others
    REJECTED = "rejected"  # records that do not fit their source, with the reasons (`rejected_records.py`)
    LINES = "lines"  # one line per record (NDJSON), each as received and without a line break


#: The first version of the format that has each kind, and the first that has compressed content.
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
        # printable ASCII: a header must not depend on how the client library encodes it
        submission = msgspec.json.encode(self.accepted).decode()
        if not (submission.isascii() and submission.isprintable()):
            submission = json.dumps(msgspec.to_builtins(self.accepted), separators=(",", ":"))
        # the lowest version that can read it, so that older consumers can store as much as possible
        version = max(_FORMAT_OF[self.kind], _FORMAT_OF_ZSTD if self.zstd else 1)
        return {
            HEADER_FORMAT: str(version),
            **({HEADER_KIND: self.kind} if self.kind is not MessageKind.RECORDS else {}),
            **({HEADER_ENCODING: ZSTD} if self.zstd else {}),
            # a header of its own, since an older consumer may not be able to read the submission's header
            HEADER_SCHEMA_VERSION: str(self.accepted.schema_version),
            HEADER_PART: f"{self.number}/{self.count}",
            HEADER_FIRST_RECORD: str(self.first_record),
            HEADER_RECORDS: str(self.records),
            HEADER_SUBMISSION: submission,
        }

    @classmethod
    def parse(cls, headers: Mapping[str, str]) -> "Part":
        """The part that a message's headers describe; raises `DeadLetter`."""
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
            raise DeadLetter(
                f"the message's headers state an invalid part: {headers[HEADER_PART]}, first record {part.first_record}"
            )
        return part


def _is_zstd(headers: Mapping[str, str]) -> bool:
    """Whether a message's payload is a zstd frame; raises `ValueError` for any other encoding."""
    encoding = headers.get(HEADER_ENCODING)
    if encoding not in {None, ZSTD}:
        raise ValueError(f"the encoding {encoding!r} is not supported")
    return encoding is not None


def compress(content: bytes) -> tuple[bytes, bool]:
    """A message's payload, and whether it is compressed: a zstd frame that states its size.

    Content is compressed only if that saves at least an eighth.
    """
    if len(content) < ZSTD_BYTES_MIN:
        return content, False
    frame = zstandard.compress(content, ZSTD_LEVEL)
    return (frame, True) if len(frame) < len(content) - len(content) // 8 else (content, False)


def content_bytes(headers: Mapping[str, str], payload: bytes) -> int:
    """The size of a message's content; the size of its payload if a zstd frame does not state that of its content."""
    if HEADER_ENCODING not in headers:
        return len(payload)
    try:
        return max(len(payload), zstandard.frame_content_size(payload))
    except zstandard.ZstdError:
        return len(payload)


def decompress(headers: Mapping[str, str], payload: bytes) -> bytes:
    """A message's content; raises `DeadLetter` if its payload is not encoded as its headers say."""
    try:
        if not _is_zstd(headers):
            return payload
        size = zstandard.frame_content_size(payload)
        if size < 0:
            raise DeadLetter("its payload is a zstd frame that does not state the size of its content")
        if size > MESSAGE_BYTES_MAX:
            raise DeadLetter(
                f"its payload is a zstd frame of {size} bytes, and at most {MESSAGE_BYTES_MAX} are allowed"
            )
        return zstandard.decompress(payload)
    except (ValueError, zstandard.ZstdError) as error:
        raise DeadLetter(f"its payload cannot be decoded: {error}") from error


def split_records(kind: MessageKind, content: bytes) -> list[bytes]:
    """The records in a message's content, as received; `PLACEHOLDER` for each record that is in another message.

    Raises `msgspec.DecodeError` or `RecursionError` if the content cannot be split into records.
    """
    if kind is MessageKind.LINES:
        return content.split(b"\n")
    return list(map(bytes, msgspec.json.decode(content, type=list[msgspec.Raw])))


def format_version(headers: Mapping[str, str]) -> int | None:
    """The version of a message's format; None if its headers do not state it."""
    return _number(headers, HEADER_FORMAT)


def schema_version(headers: Mapping[str, str]) -> int | None:
    """The version of the source that a message's records were checked against; None if its headers do not state it."""
    return _number(headers, HEADER_SCHEMA_VERSION)


def _number(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name, "")
    return int(text) if text.isdecimal() else None


@dataclass(frozen=True, slots=True)
class Message:
    """A message as the queue stores it. `time` is the server's own string: it is compared without being parsed."""

    sequence: int
    subject: str
    time: str
    headers: Mapping[str, str] = field(repr=False)
    payload: bytes = field(repr=False)

    @property
    def size(self) -> int:
        """The size of its content, in bytes."""
        return content_bytes(self.headers, self.payload)

    def content(self) -> bytes:
        """Its decoded payload; raises `DeadLetter`."""
        return decompress(self.headers, self.payload)

    @property
    def submission_id(self) -> str:
        return self.subject.rpartition(".")[2]


def unix_time_s(time: str) -> float:
    """A server's time (RFC 3339, UTC, up to nanoseconds) as seconds since 1970."""
    date_and_time, _, fraction = time.removesuffix("Z").partition(".")
    whole_s = dt.datetime.fromisoformat(date_and_time).replace(tzinfo=dt.UTC).timestamp()
    return whole_s + (float(f"0.{fraction}") if fraction else 0.0)
