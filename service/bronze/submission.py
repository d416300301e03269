"""Submissions: a body is decoded, checked record by record and packed into the queue's messages.

Nothing of it acts: what comes out is either `Refused`, or messages that a consumer can decode again.

A message's content is what its `Kind` says, most often whole records, a line each, exactly as received; its payload is
the content, or a zstd frame of it. Its headers say which submission it is a part of. The same facts, `Accepted`, stand
in the messages, in the identity and in the object's footer.
"""

import datetime as dt
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from tempfile import SpooledTemporaryFile
from typing import IO, Any
from uuid import UUID, uuid5

import msgspec
import uuid_utils
import zstandard

from bronze import rejected
from bronze.errors import Poison, Refused
from bronze.sources import CLASSIFICATION_ID, Field, FieldType, Source

#: The newest version of the message's format; a consumer leaves a newer one to a newer consumer.
FORMAT = 4
#: A message in the queue with its headers (the server's max_payload), in bytes.
MESSAGE_BYTES_MAX = 2**20
#: What of it is left to the headers, in bytes: three texts of 256 characters, of 12 bytes each when escaped, and ids.
HEADER_BYTES_MAX = 12 * 2**10
#: Messages of one submission: the server's bound of an atomic batch.
MESSAGES_MAX = 1_000
FILE_NAME_CHARS_MAX = 256
CLASSIFICATIONS_LISTED_MAX = 128
#: Content from this size on goes as a zstd frame (RFC 8878), in bytes: less would save little.
ZSTD_BYTES_MIN = 4 * 2**10
#: A twelfth of the sample's records is left, at 1 GB/s; the next levels save a twentieth more (`docs/performance.md`).
ZSTD_LEVEL = 1
ZSTD = "zstd"
#: How much of a body is checked at once, in bytes: what its records become, ten times that, stays in the CPU's cache.
CHECKED_AT_ONCE_BYTES = 64 * 2**10
#: A record with fewer brackets than this cannot be nested too deeply for any decoder.
NESTING_UNCHECKED = 256
#: How much deeper than here a record must be decodable: a consumer decodes it in an array, and from another stack.
NESTING_SPARE = 64

HEADER_FORMAT = "Bronze-Format"
HEADER_KIND = "Bronze-Kind"
HEADER_ENCODING = "Bronze-Encoding"
HEADER_SCHEMA_VERSION = "Bronze-Schema-Version"
HEADER_PART = "Bronze-Part"
HEADER_FIRST_RECORD = "Bronze-First-Record"
HEADER_RECORDS = "Bronze-Records"
HEADER_SUBMISSION = "Bronze-Submission"

#: What stands in a message for a record that is kept elsewhere, so that a record's place tells its index.
GAP = b"null"

_KEYED = UUID("b2f0c1de-6a51-5d0e-9b1c-0d4e5b1c7a11")
_FIELD_AT = re.compile(r" - at `\$\.([^`\[]+)[^`]*`$")
_FIELD_MISSING = re.compile(r"missing required field `([^`]+)`")


class Accepted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
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


class Kind(StrEnum):
    """What a message's content is."""

    RECORDS = "records"  # a JSON array of records, each as received
    COLUMNAR = "columnar"  # an Arrow IPC stream
    SPARSE = "sparse"  # as the first, with null in the place of each rejected record: `records` are the others
    REJECTED = "rejected"  # records that do not fit their source, with the reasons (`rejected.py`)
    LINES = "lines"  # a line for each record, which is as received and has no line break (NDJSON)


#: The first version of the format that knows a kind, and the first that knows compressed content.
_FORMAT_OF: Mapping[Kind, int] = {Kind.RECORDS: 1, Kind.COLUMNAR: 2, Kind.SPARSE: 2, Kind.REJECTED: 2, Kind.LINES: 4}
_FORMAT_OF_ZSTD = 3


@dataclass(frozen=True, slots=True)
class Part:
    """A message's place in its submission: part `number` of `count`, with `records` from `first_record` on."""

    accepted: Accepted
    number: int
    count: int
    first_record: int
    records: int
    kind: Kind = Kind.RECORDS
    zstd: bool = False

    def headers(self) -> dict[str, str]:
        # ASCII: a header must not depend on how the client library encodes it
        submission = json.dumps(msgspec.to_builtins(self.accepted), separators=(",", ":"))
        # the least that can read it: an older consumer takes what it can
        version = max(_FORMAT_OF[self.kind], _FORMAT_OF_ZSTD if self.zstd else 1)
        return {
            HEADER_FORMAT: str(version),
            **({HEADER_KIND: self.kind} if self.kind is not Kind.RECORDS else {}),
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
        """The part that a message's headers tell of; raises `Poison`."""
        try:
            number, _, count = headers[HEADER_PART].partition("/")
            part = cls(
                accepted=msgspec.json.decode(headers[HEADER_SUBMISSION], type=Accepted),
                number=int(number),
                count=int(count),
                first_record=int(headers[HEADER_FIRST_RECORD]),
                records=int(headers[HEADER_RECORDS]),
                kind=Kind(headers.get(HEADER_KIND, Kind.RECORDS)),
                zstd=_is_zstd(headers),
            )
        except KeyError as error:
            raise Poison(f"the message has no header {error}") from error
        except (ValueError, msgspec.DecodeError) as error:
            raise Poison(f"the message's headers cannot be read: {error}") from error
        if not 1 <= part.number <= part.count <= MESSAGES_MAX or part.first_record < 0:
            raise Poison(f"the message's part {headers[HEADER_PART]!r} is impossible")
        return part


def _is_zstd(headers: Mapping[str, str]) -> bool:
    """Raises `ValueError` for any other encoding."""
    encoding = headers.get(HEADER_ENCODING)
    if encoding not in {None, ZSTD}:
        raise ValueError(f"the encoding {encoding!r} is not known")
    return encoding is not None


def packed(content: bytes) -> tuple[bytes, bool]:
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


def content(headers: Mapping[str, str], payload: bytes) -> bytes:
    """A message's content; raises `Poison` where its payload is not what its headers say."""
    try:
        if not _is_zstd(headers):
            return payload
        size = zstandard.frame_content_size(payload)
        if not 0 <= size <= MESSAGE_BYTES_MAX:
            raise Poison(f"its payload is a zstd frame of {size} bytes")
        return zstandard.decompress(payload)
    except (ValueError, zstandard.ZstdError) as error:
        raise Poison(f"its payload cannot be decoded: {error}") from error


def records_of(kind: Kind, content: bytes) -> list[bytes]:
    """The records in the content of a message that holds them as received; `GAP` for each that is kept elsewhere.

    Raises `msgspec.DecodeError` or `RecursionError` where they cannot be told apart.
    """
    if kind is Kind.LINES:
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


def new_id() -> str:
    """The id of a submission without a key: a UUIDv7 (RFC 9562)."""
    return str(uuid_utils.uuid7())


def keyed_id(source: str, key: str, principal: str = "") -> str:
    """The id of a submission with an `Idempotency-Key`: a function of who sends what under which key."""
    return str(uuid5(_KEYED, f"{principal}\0{source}\0{key}"))


def lane_of(submission_id: str, lanes: int) -> int:
    """The lane that a submission goes to."""
    return UUID(submission_id).int % lanes


# --- checking and packing


@dataclass(frozen=True, slots=True)
class Slice:
    """One message's payload, as a place in the spool."""

    start: int
    end: int
    first_record: int
    records: int
    kind: Kind
    zstd: bool = False


class Checked:
    """A submission that was checked whole: what its messages hold, spooled within a memory bound."""

    def __init__(
        self,
        spool: IO[bytes],
        slices: Sequence[Slice],
        *,
        tally: "Tally",
        records: int,
        classifications: Iterable[str],
        unclassified: int,
        invalid: Mapping[str, int],
    ) -> None:
        self._spool = spool
        self._slices = slices
        self.records = records
        self.body_bytes = tally.bytes
        self.digest = tally.digest()
        #: the classification_ids that records name, in order of appearance
        self.classifications = tuple(classifications)
        #: how many records name none
        self.unclassified = unclassified
        #: how many records were rejected, by what is wrong with them
        self.invalid = invalid

    @property
    def rejected(self) -> int:
        return sum(self.invalid.values())

    @property
    def messages(self) -> int:
        return len(self._slices)

    def parts(self, accepted: Accepted) -> Iterator[tuple[Part, bytes]]:
        """The submission's messages, in order."""
        for number, piece in enumerate(self._slices, start=1):
            self._spool.seek(piece.start)
            payload = self._spool.read(piece.end - piece.start)
            if piece.kind is Kind.REJECTED:
                payload = msgspec.json.encode(accepted) + b"\n" + payload
            count = len(self._slices)
            yield Part(accepted, number, count, piece.first_record, piece.records, piece.kind, piece.zstd), payload

    def close(self) -> None:
        self._spool.close()


class _Invalid(Exception):
    """A record that does not fit its source; `kind` is the word of its refusal."""

    def __init__(self, kind: str, reason: str, field: str | None = None) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.field = field


class Tally:
    """The digest and the size of a decoded body, within a bound."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._sha = hashlib.sha256()
        self.bytes = 0

    def add(self, piece: bytes) -> None:
        """Raises `Refused` past the bound."""
        self.bytes += len(piece)
        if self.bytes > self._bytes_max:
            raise too_large(self._bytes_max)
        self._sha.update(piece)

    def digest(self) -> str:
        """SHA-256, in hexadecimal."""
        return self._sha.hexdigest()


class Intake:
    """Takes a decoded body in pieces, checks each record against the source, and packs whole records into messages.

    Raises `Refused` that names the record's index and field; nothing is kept then. With `keep_invalid`, a record that
    does not fit its source is packed apart, byte for byte, and refuses nothing. It is plain CPU work: give it large
    pieces in a thread.
    """

    def __init__(
        self, source: Source, *, body_bytes_max: int, spool_memory_bytes_max: int, keep_invalid: bool = False
    ) -> None:
        self._source = source
        self._keep_invalid = keep_invalid
        self._decoder = msgspec.json.Decoder(source.record_type)
        self._timestamps = [field.name for field in source.fields if field.type is FieldType.TIMESTAMP]
        self._decimals = [field for field in source.fields if field.type is FieldType.DECIMAL]
        self._spool: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(spool_memory_bytes_max)  # noqa: SIM115
        self._tally = Tally(body_bytes_max)
        self._records = 0
        self._spooled_bytes = 0
        self._slices: list[Slice] = []
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        #: gaps in what is pending, and after it
        self._gaps = 0
        self._gap = 0
        self._invalid: Counter[str] = Counter()
        self._rejected_slices: list[Slice] = []
        self._notes: list[bytes] = []
        self._rejected: list[bytes] = []
        self._rejected_bytes = 0
        self._rejected_first = 0
        self._rest = b""
        self._whole = Kind.LINES  # what a message is that has no gaps
        self._classifications: dict[str, None] = {}
        self._unclassified = 0

    @property
    def records(self) -> int:
        """How many records were taken so far."""
        return self._records

    def close(self) -> None:
        self._spool.close()

    def lines(self, piece: bytes) -> None:
        """Take a piece of NDJSON."""
        self._tally.add(piece)
        head, newline, rest = piece.rpartition(b"\n")
        if not newline:
            self._rest += piece
            if len(self._rest) > MESSAGE_BYTES_MAX:
                raise self._record_too_large()
            return
        block, self._rest = self._rest + head, rest
        start = 0
        while (end := block.find(b"\n", start + CHECKED_AT_ONCE_BYTES)) >= 0:
            self._take(block[start:end])
            start = end + 1
        self._take(block[start:])

    def document(self, body: bytes) -> None:
        """Take a JSON document: one record, or an array of records."""
        self._tally.add(body)
        if not body.strip():
            return
        try:
            body.decode("utf-8")
            array = body.lstrip(b" \t\r\n").startswith(b"[")
            records = msgspec.json.decode(body, type=list[msgspec.Raw]) if array else [body.strip(b" \t\r\n")]
        except UnicodeDecodeError as error:
            raise _not_utf8(error.reason) from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise Refused(400, "malformed-json", f"The body is not JSON: {error}.") from error
        if b"\n" in body:
            self._whole = Kind.RECORDS
        self._add([bytes(record) for record in records])

    def finish(self) -> Checked:
        """The submission, once its body has ended; raises `Refused` for what is missing."""
        if self._rest:
            self._take(self._rest)
            self._rest = b""
        if not self._records:
            raise empty("Send one JSON object a line.")
        self._flush()
        self._flush_rejected()
        return Checked(
            self._spool,
            [*self._slices, *self._rejected_slices],
            tally=self._tally,
            records=self._records - self._invalid.total(),
            classifications=self._classifications,
            unclassified=self._unclassified,
            invalid=self._invalid,
        )

    def _take(self, block: bytes) -> None:
        try:
            block.decode("utf-8")
            utf8 = True
        except UnicodeDecodeError:
            utf8 = False
        lines = block.split(b"\n")
        if not all(lines) or list(map(bytes.strip, lines)) != lines:
            lines = [record for line in lines if (record := line.strip(b" \t\r"))]
        self._add(lines, utf8=utf8)

    def _add(self, records: Sequence[bytes], *, utf8: bool = True) -> None:
        """Take records: all in one go, which is faster, unless one of them needs a closer look."""
        checked: list[Any] = []
        if utf8:
            with suppress(msgspec.DecodeError, RecursionError):
                checked = list(map(self._decoder.decode, records))
        if not checked or _any_deep(records) or self._near_calendar_end(checked) or self._inexact(checked):
            for record in records:
                try:
                    one = self._check(record)
                except _Invalid as invalid:
                    self._reject(record, invalid)
                else:
                    self._classify([one])
                    self._pack([record])
        else:
            self._classify(checked)
            self._pack(records)

    def _check(self, record: bytes) -> Any:
        try:
            record.decode("utf-8")
            checked = self._decoder.decode(record)
            if _deep(record):
                msgspec.json.decode(b"[" * NESTING_SPARE + record + b"]" * NESTING_SPARE, type=msgspec.Raw)
        except UnicodeDecodeError as error:
            raise _Invalid("invalid-utf8", error.reason) from error
        except msgspec.ValidationError as error:
            raise _violation(str(error)) from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise _Invalid("malformed-json", str(error)) from error
        for name in self._timestamps:
            if _beyond_calendar(getattr(checked, name)):
                raise _violation(f"Expected a time of the years 1 to 9999 in UTC - at `$.{name}`")
        for field in self._inexact([checked]):
            raise _violation(
                f"Expected a number of {field.precision} digits at most, {field.scale} of them after the point "
                f"({field.declared_type}) - at `$.{field.name}`"
            )
        return checked

    def _near_calendar_end(self, checked: Sequence[Any]) -> bool:
        """Whether a time is in the first or the last year, and so may be in none in UTC."""
        for name in self._timestamps:
            years = set(map(attrgetter("year"), filter(None, map(attrgetter(name), checked))))
            if dt.MINYEAR in years or dt.MAXYEAR in years:
                return True
        return False

    def _inexact(self, checked: Sequence[Any]) -> Sequence[Field]:
        """The decimals that hold a value which would change if it were stored."""
        return [field for field in self._decimals if not all(map(field.holds, map(attrgetter(field.name), checked)))]

    def _classify(self, checked: Sequence[Any]) -> None:
        named = list(map(attrgetter(CLASSIFICATION_ID), checked))
        self._unclassified += named.count(None)
        self._classifications.update(dict.fromkeys(filter(None, named)))

    def _pack(self, records: Sequence[bytes]) -> None:
        room = MESSAGE_BYTES_MAX - HEADER_BYTES_MAX - 1
        if self._gap:
            self._close_gap(room)
        size = sum(map(len, records)) + len(records)
        if self._pending_bytes + size <= room:
            self._pending += records
            self._pending_bytes += size
            self._records += len(records)
            return
        for record in records:
            size = len(record) + 1
            if self._pending_bytes + size > room:
                if size > room:
                    raise self._record_too_large()
                self._flush()
            self._pending.append(record)
            self._pending_bytes += size
            self._records += 1

    def _close_gap(self, room: int) -> None:
        """What is pending goes on after records that were rejected: behind gaps, or in a new message."""
        size = self._gap * (len(GAP) + 1)
        if self._pending_bytes + size > room:
            self._flush()
        if self._pending:
            self._pending += [GAP] * self._gap
            self._pending_bytes += size
            self._gaps += self._gap
        self._gap = 0

    def _flush(self) -> None:
        """Make a message of the records that are pending."""
        if not self._pending:
            return
        first = self._records - self._gap - len(self._pending)
        kind = Kind.SPARSE if self._gaps else self._whole
        content = b"\n".join(self._pending) if kind is Kind.LINES else b"[" + b",".join(self._pending) + b"]"
        self._slices.append(self._spool_message(content, first, len(self._pending) - self._gaps, kind))
        self._pending = []
        self._pending_bytes = 0
        self._gaps = 0

    def _reject(self, record: bytes, invalid: _Invalid) -> None:
        """Refuse the submission for a record, or keep the record apart where the sender asked for that."""
        if not self._keep_invalid:
            raise self._refusal(invalid) from invalid
        note = rejected.note(self._records, invalid.kind, invalid.reason, invalid.field, record)
        size = rejected.size(note, record)
        room = MESSAGE_BYTES_MAX - HEADER_BYTES_MAX - rejected.HEAD_BYTES_MAX - len(b"[]\n")
        if self._rejected_bytes + size > room:
            if size > room:
                raise self._record_too_large(room - len(note) - 2)
            self._flush_rejected()
        if not self._notes:
            self._rejected_first = self._records
        self._notes.append(note)
        self._rejected.append(record)
        self._rejected_bytes += size
        self._invalid[invalid.kind] += 1
        self._records += 1
        self._gap += 1

    def _flush_rejected(self) -> None:
        """Make a message of the records that were rejected."""
        if not self._notes:
            return
        payload = rejected.pack(self._notes, self._rejected)
        self._rejected_slices.append(
            self._spool_message(payload, self._rejected_first, len(self._notes), Kind.REJECTED)
        )
        self._notes = []
        self._rejected = []
        self._rejected_bytes = 0

    def _spool_message(self, content: bytes, first_record: int, records: int, kind: Kind) -> Slice:
        if len(self._slices) + len(self._rejected_slices) == MESSAGES_MAX:
            raise too_many_messages()
        # what was rejected is not whole yet: its first line is missing
        payload, zstd = (content, False) if kind is Kind.REJECTED else packed(content)
        start, self._spooled_bytes = self._spooled_bytes, self._spooled_bytes + self._spool.write(payload)
        return Slice(start, self._spooled_bytes, first_record, records, kind, zstd)

    def _refusal(self, invalid: _Invalid) -> Refused:
        record = self._records
        match invalid.kind:
            case "invalid-utf8":
                return _not_utf8(invalid.reason, record=record)
            case "malformed-json":
                detail = f"Record {record} is not a JSON object: {invalid.reason}. One record is one line."
                return Refused(400, invalid.kind, detail, record=record)
            case _:
                return violation(self._source, invalid.reason, record=record, field=invalid.field)

    def _record_too_large(self, limit: int = MESSAGE_BYTES_MAX - HEADER_BYTES_MAX - 2) -> Refused:
        return record_too_large(self._records, limit)


def _violation(message: str) -> _Invalid:
    """What a record violates, by the decoder's words."""
    found = _FIELD_AT.search(message) or _FIELD_MISSING.search(message)
    return _Invalid("schema-violation", _FIELD_AT.sub("", message), found.group(1) if found else None)


# --- refusals that bodies of each form have


def violation(source: Source, said: str, *, record: int | None = None, field: str | None = None) -> Refused:
    """What does not fit the source: a field of a record, a record, or a whole column."""
    names = {"record": record, "field": field}
    members = {name: value for name, value in names.items() if value is not None}
    place = ", ".join(f"{name} {value}" for name, value in members.items()) or "record"
    return Refused(
        422,
        "schema-violation",
        f"{place[:1].upper()}{place[1:]}: {said}. The source {source.name} declares its fields; mend the record and "
        "send the submission again: nothing of it was kept.",
        **members,
    )


def record_too_large(record: int, limit: int) -> Refused:
    return Refused(
        413,
        "record-too-large",
        f"Record {record} is larger than {limit} bytes. Split it, or refer to what it carries.",
        record=record,
    )


def too_many_messages() -> Refused:
    return Refused(
        413,
        "body-too-large",
        f"The body makes more than {MESSAGES_MAX} messages of 1 MiB. Send it as several submissions.",
    )


def empty(advice: str) -> Refused:
    return Refused(400, "empty-body", f"The body holds no record. {advice}")


def too_large(limit: int, advice: str = "Send it as several submissions.") -> Refused:
    return Refused(
        413,
        "body-too-large",
        f"The body is larger than {limit} bytes, decoded. {advice}",
        limit=limit,
    )


def _any_deep(records: Sequence[bytes]) -> bool:
    return max(map(len, records)) > NESTING_UNCHECKED and any(map(_deep, records))


def _deep(record: bytes) -> bool:
    """Whether a record has so many brackets that it may be nested too deeply."""
    return len(record) > NESTING_UNCHECKED and record.count(b"[") + record.count(b"{") > NESTING_UNCHECKED


def _beyond_calendar(time: dt.datetime | None) -> bool:
    """Whether a time has no date in UTC: Arrow could keep it, and most of its readers could not read it."""
    if time is None or dt.MINYEAR < time.year < dt.MAXYEAR:
        return False
    try:
        time.astimezone(dt.UTC)
    except OverflowError:
        return True
    return False


def _not_utf8(reason: str, **members: object) -> Refused:
    place = f"Record {members['record']}" if "record" in members else "The body"
    return Refused(400, "invalid-utf8", f"{place} is not UTF-8: {reason}. JSON is UTF-8 (RFC 8259).", **members)
