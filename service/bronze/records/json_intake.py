"""JSON bodies: each record is checked against its source, and whole records are packed into messages. Pure CPU work."""

import datetime as dt
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from operator import attrgetter
from tempfile import SpooledTemporaryFile
from typing import Any

import msgspec

from bronze.errors import Refusal, Refused
from bronze.protocol import rejected_records
from bronze.protocol.message import (
    HEADER_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    MESSAGES_MAX,
    PLACEHOLDER,
    MessageKind,
    compress,
)
from bronze.records.refusals import empty, not_utf8, record_too_large, too_many_messages, violation
from bronze.records.sources import CLASSIFICATION_ID, Field, FieldType, Source
from bronze.records.spool import BodyDigest, CheckedSubmission, MessageSlice

#: How much of a body is checked at once, in bytes: what its records become, ten times that, stays in the CPU's cache.
CHECKED_AT_ONCE_BYTES = 64 * 2**10
#: A record with fewer brackets than this cannot be nested too deeply for any decoder.
NESTING_UNCHECKED = 256
#: How much deeper than here a record must be decodable: a consumer decodes it in an array, and from another stack.
NESTING_SPARE = 64
_FIELD_AT = re.compile(r" - at `\$\.([^`\[]+)[^`]*`$")
_FIELD_MISSING = re.compile(r"missing required field `([^`]+)`")


class _Invalid(Exception):
    """A record that does not fit its source; `code` is that of its refusal."""

    def __init__(self, code: Refusal, reason: str, field: str | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.field = field


class JsonIntake:
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
        self._tally = BodyDigest(body_bytes_max)
        self._records = 0
        self._spooled_bytes = 0
        self._slices: list[MessageSlice] = []
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        #: gaps in what is pending, and after it
        self._gaps = 0
        self._gap = 0
        self._invalid: Counter[str] = Counter()
        self._rejected_slices: list[MessageSlice] = []
        self._notes: list[bytes] = []
        self._rejected: list[bytes] = []
        self._rejected_bytes = 0
        self._rejected_first = 0
        self._rest = b""
        self._whole = MessageKind.LINES  # what a message is that has no gaps
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
            raise not_utf8(error.reason) from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise Refused(Refusal.MALFORMED_JSON, f"The body is not JSON: {error}.") from error
        if b"\n" in body:
            self._whole = MessageKind.RECORDS
        self._add([bytes(record) for record in records])

    def finish(self) -> CheckedSubmission:
        """The submission, once its body has ended; raises `Refused` for what is missing."""
        if self._rest:
            self._take(self._rest)
            self._rest = b""
        if not self._records:
            raise empty("Send one JSON object a line.")
        self._flush()
        self._flush_rejected()
        return CheckedSubmission(
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
            raise _Invalid(Refusal.INVALID_UTF8, error.reason) from error
        except msgspec.ValidationError as error:
            raise _violation(str(error)) from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise _Invalid(Refusal.MALFORMED_JSON, str(error)) from error
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
        size = self._gap * (len(PLACEHOLDER) + 1)
        if self._pending_bytes + size > room:
            self._flush()
        if self._pending:
            self._pending += [PLACEHOLDER] * self._gap
            self._pending_bytes += size
            self._gaps += self._gap
        self._gap = 0

    def _flush(self) -> None:
        """Make a message of the records that are pending."""
        if not self._pending:
            return
        first = self._records - self._gap - len(self._pending)
        kind = MessageKind.SPARSE if self._gaps else self._whole
        content = b"\n".join(self._pending) if kind is MessageKind.LINES else b"[" + b",".join(self._pending) + b"]"
        self._slices.append(self._spool_message(content, first, len(self._pending) - self._gaps, kind))
        self._pending = []
        self._pending_bytes = 0
        self._gaps = 0

    def _reject(self, record: bytes, invalid: _Invalid) -> None:
        """Refuse the submission for a record, or keep the record apart where the sender asked for that."""
        if not self._keep_invalid:
            raise self._refusal(invalid) from invalid
        note = rejected_records.encode_note(self._records, invalid.code, invalid.reason, invalid.field, record)
        size = rejected_records.size(note, record)
        room = MESSAGE_BYTES_MAX - HEADER_BYTES_MAX - rejected_records.HEAD_BYTES_MAX - len(b"[]\n")
        if self._rejected_bytes + size > room:
            if size > room:
                raise self._record_too_large(room - len(note) - 2)
            self._flush_rejected()
        if not self._notes:
            self._rejected_first = self._records
        self._notes.append(note)
        self._rejected.append(record)
        self._rejected_bytes += size
        self._invalid[invalid.code] += 1
        self._records += 1
        self._gap += 1

    def _flush_rejected(self) -> None:
        """Make a message of the records that were rejected."""
        if not self._notes:
            return
        payload = rejected_records.pack(self._notes, self._rejected)
        self._rejected_slices.append(
            self._spool_message(payload, self._rejected_first, len(self._notes), MessageKind.REJECTED)
        )
        self._notes = []
        self._rejected = []
        self._rejected_bytes = 0

    def _spool_message(self, content: bytes, first_record: int, records: int, kind: MessageKind) -> MessageSlice:
        if len(self._slices) + len(self._rejected_slices) == MESSAGES_MAX:
            raise too_many_messages()
        # what was rejected is not whole yet: its first line is missing
        payload, zstd = (content, False) if kind is MessageKind.REJECTED else compress(content)
        start, self._spooled_bytes = self._spooled_bytes, self._spooled_bytes + self._spool.write(payload)
        return MessageSlice(start, self._spooled_bytes, first_record, records, kind, zstd)

    def _refusal(self, invalid: _Invalid) -> Refused:
        record = self._records
        match invalid.code:
            case Refusal.INVALID_UTF8:
                return not_utf8(invalid.reason, record=record)
            case Refusal.MALFORMED_JSON:
                detail = f"Record {record} is not a JSON object: {invalid.reason}. One record is one line."
                return Refused(invalid.code, detail, record=record)
            case _:
                return violation(self._source, invalid.reason, record=record, field=invalid.field)

    def _record_too_large(self, limit: int = MESSAGE_BYTES_MAX - HEADER_BYTES_MAX - 2) -> Refused:
        return record_too_large(self._records, limit)


def _violation(message: str) -> _Invalid:
    """What a record violates, by the decoder's words."""
    found = _FIELD_AT.search(message) or _FIELD_MISSING.search(message)
    return _Invalid(Refusal.SCHEMA_VIOLATION, _FIELD_AT.sub("", message), found.group(1) if found else None)


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
