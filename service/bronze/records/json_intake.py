"""JSON bodies: each record is checked against its source, and whole records are packed into messages. CPU-bound."""

import codecs
import datetime as dt
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
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
from bronze.records.fields import Field, FieldType, Unfit
from bronze.records.media import NDJSON
from bronze.records.refusals import (
    empty,
    not_utf8,
    record_too_large,
    too_costly,
    too_many_classifications,
    too_many_messages,
    too_many_rejected,
    violation,
)
from bronze.records.sources import CLASSIFICATION_ID, Source
from bronze.records.spool import BodyDigest, CheckedSubmission, MessageSlice
from bronze.records.undeclared import NAMES_MAX, UndeclaredFields, first_names, shown_name, undeclared_reason

#: How much of a body is checked at once, in bytes: the decoded records, ten times as large, stay in the CPU's cache.
BLOCK_BYTES = 64 * 2**10
#: How much of a JSON array is parsed at once at most, unless all its rest is: larger than any accepted record.
PIECE_BYTES_MAX = 2 * MESSAGE_BYTES_MAX
#: How many records of a JSON array are decoded at once.
RECORDS_AT_ONCE = 4096
#: A record with at most this many brackets cannot be nested too deeply for any decoder.
NESTING_UNCHECKED = 256
#: How many records of those that are decoded at once are searched for undeclared fields, in addition to the first that
#: has one, and the size of the largest.
SEARCHED_MAX = 2
SEARCHED_BYTES_MAX = 4 * 2**10
#: Additional levels in which a record must be decodable: a consumer decodes it in an array, with another stack.
NESTING_MARGIN = 64
#: Between two objects, unless it is in a string. `group(1)` is the comma.
_BOUNDARY = re.compile(rb"\}[ \t\r\n]*(,)[ \t\r\n]*\{")
_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)")
#: The text of a decimal: a number, a string of a number, or null.
_NUMBER_TEXT = re.compile(rb'"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?"|[-0-9.eE+]+|null')
_FIELD_SUFFIX = re.compile(r" - at `\$\.([^`\[]+)[^`]*`$")
_UNDECLARED_FIELD = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
#: What the decoder says of a decimal, in words that are not those of the declaration.
_NO_NUMBER = re.compile(r"Invalid decimal string|Expected `decimal(?: \| null)?`(?P<got>, got `\w+`)")
#: Of one that is in a list, a struct or a map.
_EXPECTED_NUMBER = "Expected the digits of a number as in JSON, as a string or a number"
_MISSING_FIELD = re.compile(r"missing required field `([^`]+)`")


class _RejectedRecord(Exception):
    """A record does not fit its source; `code` is the code of a refusal for it."""

    def __init__(self, code: Refusal, reason: str, field: str | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.field = field


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeBounds:
    """What the check of one body may cost. Without a bound, nothing but its size limits the work.

    `blank_lines_max` is in addition to one blank line per record; `rejected_bytes_max` includes the reasons.
    """

    blank_lines_max: int = sys.maxsize
    json_values_max: int = sys.maxsize
    classifications_max: int = sys.maxsize
    rejected_records_max: int = sys.maxsize
    rejected_bytes_max: int = sys.maxsize


class _Checks:
    """What checks the records of a source, the same for each body."""

    def __init__(self, source: Source) -> None:
        self.decoder = msgspec.json.Decoder(source.record_type)
        self.closed_decoder = self.decoder if source.is_raw else msgspec.json.Decoder(source.closed_record_type)
        self.undeclared = UndeclaredFields(source)
        self.fields = [field for field in source.fields if field.is_checked_by_value]
        #: the year of a time with an offset tells whether it has to be checked
        self.timestamps = [field.name for field in self.fields if _is_plain_time(field)]
        self.decimals = [field for field in self.fields if field.decoded_type is Decimal]
        self.decimal_texts = _decimal_texts(self.decimals) if self.decimals else None
        self.fields_each = [field for field in self.fields if not _is_plain_time(field)]


@lru_cache(maxsize=1024)
def _checks(source: Source) -> _Checks:
    return _Checks(source)


class JsonIntake:
    """Accepts a decoded body in pieces, checks each record against the source, and packs whole records into messages.

    Raises `Refused` with the record's index and field; the submission is then refused as a whole. With
    `quarantine_rejected`, a record that does not fit its source does not refuse the submission: it is packed into a
    separate message, byte for byte. With `on_rejected`, such a record is only reported: its index, the reason, and the
    field. The methods are CPU-bound: call them in a thread for large pieces.
    """

    def __init__(
        self,
        source: Source,
        *,
        body_bytes_max: int,
        spool_memory_bytes_max: int,
        quarantine_rejected: bool = False,
        bounds: IntakeBounds = IntakeBounds(),
        on_rejected: Callable[[int, str, str | None], None] | None = None,
    ) -> None:
        self._source = source
        self._bounds = bounds
        self._quarantine_rejected = quarantine_rejected
        self._on_rejected = on_rejected
        checks = _checks(source)
        self._decoder = checks.decoder
        self._closed_decoder = checks.closed_decoder
        self._undeclared = checks.undeclared
        self._undeclared_names: dict[str, None] = {}
        self._checked = checks.fields
        self._timestamps = checks.timestamps
        self._decimals = checks.decimals
        self._decimal_texts = checks.decimal_texts
        self._checked_each = checks.fields_each
        self._spool: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(spool_memory_bytes_max)  # noqa: SIM115
        self._tally = BodyDigest(body_bytes_max)
        self._records = 0
        self._spooled_bytes = 0
        self._slices: list[MessageSlice] = []
        #: of lines, one text may be several records
        self._pending: list[bytes] = []
        self._pending_records = 0
        self._pending_bytes = 0
        #: placeholders for rejected records among the pending records
        self._placeholders = 0
        #: rejected records after the pending records
        self._rejected_after = 0
        self._rejected_by_code: Counter[str] = Counter()
        self._rejected_slices: list[MessageSlice] = []
        self._notes: list[bytes] = []
        self._rejected: list[bytes] = []
        self._rejected_bytes = 0
        self._rejected_bytes_in_all = 0
        self._rejected_first = 0
        self._blank_lines = 0
        self._incomplete_line = b""
        #: the first bytes, if they may be the beginning of a byte order mark
        self._at_start = True
        self._held = b""
        self._kind = MessageKind.LINES  # of messages without placeholders
        self._is_document = False
        self._classifications: dict[str, None] = {}
        self._unclassified = 0

    @property
    def records(self) -> int:
        """The number of records so far."""
        return self._records

    @property
    def spooled_bytes(self) -> int:
        """The size of the messages so far."""
        return self._spooled_bytes

    @property
    def pending_bytes(self) -> int:
        """The size of what is not in a message yet."""
        return self._pending_bytes + self._rejected_bytes + len(self._incomplete_line)

    def close(self) -> None:
        self._spool.close()

    def add_lines(self, piece: bytes) -> None:
        """Add a piece of NDJSON."""
        self._tally.add(piece)
        if self._at_start:
            piece = self._held + piece
            if codecs.BOM_UTF8.startswith(piece[: len(codecs.BOM_UTF8)]) and len(piece) < len(codecs.BOM_UTF8):
                self._held = piece
                return
            self._at_start, self._held = False, b""
            piece = piece.removeprefix(codecs.BOM_UTF8)
        last = piece.rfind(b"\n")
        if last < 0:
            self._incomplete_line += piece
            if len(self._incomplete_line) > MESSAGE_BYTES_MAX:
                raise self._record_too_large()
            return
        begun_line, self._incomplete_line = self._incomplete_line, piece[last + 1 :]
        start = 0
        while start <= last:
            end = piece.find(b"\n", start + BLOCK_BYTES, last)
            if end < 0:
                end = last
            self._add_block(begun_line + piece[start:end])
            begun_line, start = b"", end + 1

    def add_document(self, body: bytes) -> None:
        """Add a JSON document: one record, or an array of records."""
        self._tally.add(body)
        self._is_document = True
        document = body.removeprefix(codecs.BOM_UTF8).strip(b" \t\r\n")
        if not document:
            return
        if b"\n" in body:
            self._kind = MessageKind.RECORDS
        if not document.startswith(b"["):
            _check_utf8(document)
            with suppress(RecursionError):  # which is the record's
                _check_json(document)
            self._add_records([document])
            return
        for records in self._array(document):
            for start in range(0, len(records), RECORDS_AT_ONCE):
                self._add_records([bytes(record) for record in records[start : start + RECORDS_AT_ONCE]])

    def _array(self, document: bytes) -> Iterator[list[msgspec.Raw]]:
        """The records of a JSON array, piece by piece: all at once, they can take 60 times the memory of the document.

        A piece ends where an object is followed by a comma and an object. If that is in a string or deeper in the
        array, the piece is not JSON, and a larger one is tried. If none is, the rest is parsed at once, within a bound.
        """
        start = 1
        size = BLOCK_BYTES
        while size <= PIECE_BYTES_MAX and (end := _BOUNDARY.search(document, start + size)):
            comma = end.start(1)
            if comma - start > PIECE_BYTES_MAX:
                break
            try:
                records = self._decode_array(document[start:comma] + b"]")
            except (msgspec.DecodeError, RecursionError):
                size *= 2
            else:
                yield records
                start, size = comma + 1, BLOCK_BYTES
        try:
            yield self._decode_array(document[start:])
        except (msgspec.DecodeError, RecursionError) as error:
            raise _not_json(_syntax_error(document, error)) from error

    def _decode_array(self, elements: bytes) -> list[msgspec.Raw]:
        limit = self._bounds.json_values_max
        if len(elements) > limit and elements.count(b",") >= limit:
            raise too_costly(
                f"The document has more than {limit} values that cannot be parsed one after the other",
                limit,
                "BRONZE_JSON_VALUES_MAX",
                "Send NDJSON (application/x-ndjson), which is streamed.",
            )
        _check_utf8(elements)
        return msgspec.json.decode(b"[" + elements, type=list[msgspec.Raw])

    def finish(self) -> CheckedSubmission:
        """The submission, at the end of its body; raises `Refused` if the body has no record."""
        self._incomplete_line += self._held
        if self._incomplete_line:
            self._add_block(self._incomplete_line)
            self._incomplete_line = b""
        if not self._records:
            raise empty(
                "Send an object or an array of objects." if self._is_document else "Send one JSON object per line."
            )
        self._flush()
        self._flush_rejected()
        return CheckedSubmission(
            self._spool,
            [*self._slices, *self._rejected_slices],
            tally=self._tally,
            records=self._records - self._rejected_by_code.total(),
            classifications=self._classifications,
            unclassified=self._unclassified,
            rejected_by_code=self._rejected_by_code,
            undeclared=self._undeclared_names,
        )

    def _add_block(self, block: bytes) -> None:
        """Add whole lines, without the last line break."""
        utf8 = _is_utf8(block)
        lines = block.split(b"\n")
        if not all(lines) or list(map(bytes.strip, lines)) != lines:
            records = [record for line in lines if (record := line.strip(b" \t\r"))]
            self._blank_lines += len(lines) - len(records)
            self._check_blank_lines(len(records))
            lines = records
            block = b"\n".join(lines)
        self._add_records(lines, utf8=utf8, lines=block)

    def _check_blank_lines(self, records: int) -> None:
        limit = self._bounds.blank_lines_max
        if self._blank_lines - self._records - records > limit:
            raise too_costly(
                f"The body has more than {limit} blank lines in addition to one per record",
                limit,
                "BRONZE_BLANK_LINES_MAX",
                "Send one record per line.",
            )

    def _add_records(self, records: Sequence[bytes], *, utf8: bool = True, lines: bytes | None = None) -> None:
        """Add records: all together, which is faster, unless a record may not fit and each has to be checked.

        `lines` is the text of records that are one line each.
        """
        decoded = self._decode_all(records) if utf8 else []
        if (
            not decoded
            or _any_may_be_too_deep(records)
            or self._at_calendar_boundary(decoded)
            or not self._all_fit(decoded)
            or (self._decimals and any(map(self._misspelled, records)))
        ):
            accepted: list[bytes] = []
            for record in records:
                try:
                    decoded_record = self._check(record)
                except _RejectedRecord as rejection:
                    self._reject(record, rejection)
                else:
                    self._classify([decoded_record])
                    self._pack([record])
                    accepted.append(record)
            if accepted and not self._source.is_raw:
                self._search_undeclared(accepted, 0)
        else:
            self._classify(decoded)
            if lines is None:
                self._pack(records)
            else:
                self._pack_lines(lines, len(records))

    def _decode_all(self, records: Sequence[bytes]) -> list[Any]:
        """The decoded records; none if one of them may not fit."""
        decoded: list[Any] = []
        try:
            decoded.extend(map(self._closed_decoder.decode, records))
        except RecursionError:
            return []
        except msgspec.DecodeError as error:
            # `decoded` has the records before this one
            if self._source.strict or not (name := _UNDECLARED_FIELD.match(str(error))):
                return []
            first = len(decoded)
            try:
                decoded.extend(map(self._decoder.decode, records[first:]))
            except (msgspec.DecodeError, RecursionError):
                return []
            self._note_undeclared([shown_name(name[1])])
            self._search_undeclared(records, first)
        else:
            if self._undeclared.nested:
                if self._source.strict and self._any_undeclared(records):
                    return []
                self._search_undeclared(records, 0)
        return decoded

    def _any_undeclared(self, records: Sequence[bytes]) -> bool:
        """Whether a record has an undeclared field, or may have one."""
        try:
            return any(any(self._undeclared.of_record(record)) for record in records)
        except RecursionError:
            return True

    def _search_undeclared(self, records: Sequence[bytes], first: int) -> None:
        """Note undeclared fields of some records, `first` among them: to search all would cost as much as the check."""
        step = max(1, (len(records) - first) // SEARCHED_MAX)
        for record in [*records[first : first + 1], *records[first + 1 :: step][:SEARCHED_MAX]]:
            if len(record) <= SEARCHED_BYTES_MAX and not _may_be_too_deep(record):
                self._note_undeclared(self._undeclared.of_record(record))

    def _note_undeclared(self, names: Iterable[str]) -> None:
        for name in names:
            if len(self._undeclared_names) > NAMES_MAX:
                return
            self._undeclared_names[name] = None

    def _check(self, record: bytes) -> Any:
        """The decoded record; raises `_RejectedRecord`."""
        try:
            record.decode("utf-8")
            decoded = self._decode(record)
            if _may_be_too_deep(record):
                msgspec.json.decode(b"[" * NESTING_MARGIN + record + b"]" * NESTING_MARGIN, type=msgspec.Raw)
        except UnicodeDecodeError as error:
            raise _RejectedRecord(Refusal.INVALID_UTF8, error.reason) from error
        except msgspec.ValidationError as error:
            leap = "RFC3339" in str(error) and b":60" in record
            raise self._violation(str(error), " (leap seconds are not accepted)" if leap else "") from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise _RejectedRecord(Refusal.MALFORMED_JSON, _syntax_error(record, error)) from error
        for field in self._checked:
            try:
                field.check(getattr(decoded, field.name))
            except Unfit as error:
                raise _RejectedRecord(Refusal.SCHEMA_VIOLATION, str(error), field.name_in_records) from error
        for field in self._misspelled(record):
            raise _RejectedRecord(Refusal.SCHEMA_VIOLATION, field.expected_number, field.name_in_records)
        if self._source.strict and (names := first_names(self._undeclared.of_record(record))):
            raise _RejectedRecord(Refusal.SCHEMA_VIOLATION, undeclared_reason(names), names[0])
        return decoded

    def _violation(self, message: str, explanation: str = "") -> _RejectedRecord:
        """The rejection for an error message in the decoder's format; the message's end may name the field."""
        match = _FIELD_SUFFIX.search(message) or _MISSING_FIELD.search(message)
        name = match.group(1) if match else None
        reason = _FIELD_SUFFIX.sub("", message)
        if number := _NO_NUMBER.fullmatch(reason):
            field = next((field for field in self._decimals if field.name_in_records == name), None)
            reason = (field.expected_number if field else _EXPECTED_NUMBER) + (number["got"] or "")
        return _RejectedRecord(Refusal.SCHEMA_VIOLATION, reason + explanation, name)

    def _decode(self, record: bytes) -> Any:
        if not self._source.is_raw:
            return self._decoder.decode(record)
        if record == PLACEHOLDER:
            raise msgspec.ValidationError("Expected a value, got `null`")
        return self._source.decode_raw(record)

    def _misspelled(self, record: bytes) -> Sequence[Field]:
        """The decimals whose strings are not numbers of JSON. The decoder also takes `1_000`, ` 5 ` and `١٢`."""
        if self._decimal_texts is None:
            return []
        texts = self._decimal_texts.decode(record)
        return [field for field in self._decimals if not _NUMBER_TEXT.fullmatch(bytes(getattr(texts, field.name)))]

    def _at_calendar_boundary(self, decoded: Sequence[Any]) -> bool:
        """Whether a time is in the first or the last year, so that it may have no date in UTC."""
        for name in self._timestamps:
            years = set(map(attrgetter("year"), filter(None, map(attrgetter(name), decoded))))
            if dt.MINYEAR in years or dt.MAXYEAR in years:
                return True
        return False

    def _all_fit(self, decoded: Sequence[Any]) -> bool:
        """Whether no value of the fields that need more than the decoder would change if it were stored."""
        return all(all(map(field.fits, map(attrgetter(field.name), decoded))) for field in self._checked_each)

    def _classify(self, decoded: Sequence[Any]) -> None:
        classification_ids = list(map(attrgetter(CLASSIFICATION_ID), decoded))
        distinct = dict.fromkeys(classification_ids)
        if None in distinct:
            del distinct[None]
            self._unclassified += classification_ids.count(None)
        self._classifications.update(distinct)
        if len(self._classifications) > self._bounds.classifications_max:
            raise too_many_classifications(self._bounds.classifications_max)

    def _pack(self, records: Sequence[bytes]) -> None:
        bytes_max = MESSAGE_BYTES_MAX - HEADER_BYTES_MAX - 1
        if self._rejected_after:
            self._add_placeholders(bytes_max)
        size = sum(map(len, records)) + len(records)
        if self._pending_bytes + size <= bytes_max:
            self._pending += records
            self._pending_records += len(records)
            self._pending_bytes += size
            self._records += len(records)
            return
        for record in records:
            size = len(record) + 1
            if self._pending_bytes + size > bytes_max:
                if size > bytes_max:
                    raise self._record_too_large()
                self._flush()
            self._pending.append(record)
            self._pending_records += 1
            self._pending_bytes += size
            self._records += 1

    def _pack_lines(self, lines: bytes, records: int) -> None:
        """As `_pack`, for records that are one line each: their text is kept, and copied once for its message."""
        bytes_max = MESSAGE_BYTES_MAX - HEADER_BYTES_MAX - 1
        if self._rejected_after:
            self._add_placeholders(bytes_max)
        room = bytes_max - self._pending_bytes
        if len(lines) >= room:
            end = lines.rfind(b"\n", 0, max(0, room))
            if end < 0:
                self._pack(lines.split(b"\n"))
                return
            fitting = lines.count(b"\n", 0, end) + 1
            self._pack_lines(lines[:end], fitting)
            self._flush()
            self._pack_lines(lines[end + 1 :], records - fitting)
            return
        self._pending.append(lines)
        self._pending_records += records
        self._pending_bytes += len(lines) + 1
        self._records += records

    def _add_placeholders(self, bytes_max: int) -> None:
        """Add placeholders for rejected records to the pending records, or begin a new message if they do not fit."""
        size = self._rejected_after * (len(PLACEHOLDER) + 1)
        if self._pending_bytes + size > bytes_max:
            self._flush()
        if self._pending:
            self._pending += [PLACEHOLDER] * self._rejected_after
            self._pending_records += self._rejected_after
            self._pending_bytes += size
            self._placeholders += self._rejected_after
        self._rejected_after = 0

    def _flush(self) -> None:
        """Make a message of the pending records."""
        if not self._pending:
            return
        first = self._records - self._rejected_after - self._pending_records
        kind = MessageKind.SPARSE if self._placeholders else self._kind
        if kind is MessageKind.LINES:
            content = b"\n".join(self._pending)
        else:
            records = self._pending if self._is_document else b"\n".join(self._pending).split(b"\n")
            content = b"[" + b",".join(records) + b"]"
        self._slices.append(self._spool_message(content, first, self._pending_records - self._placeholders, kind))
        self._pending = []
        self._pending_records = 0
        self._pending_bytes = 0
        self._placeholders = 0

    def _reject(self, record: bytes, rejection: _RejectedRecord) -> None:
        """Refuse the submission because of a record, or quarantine the record if the sender asked for that."""
        if self._on_rejected:
            self._on_rejected(self._records, rejection.reason, rejection.field)
            self._records += 1
            return
        if not self._quarantine_rejected:
            raise self._refusal(rejection) from rejection
        note = rejected_records.encode_note(self._records, rejection.code, rejection.reason, rejection.field, record)
        size = rejected_records.packed_bytes(note, record)
        self._bound_rejected(size)
        bytes_max = MESSAGE_BYTES_MAX - HEADER_BYTES_MAX - rejected_records.HEAD_BYTES_MAX - len(b"[]\n")
        if self._rejected_bytes + size > bytes_max:
            if size > bytes_max:
                raise self._record_too_large(bytes_max - len(note) - 2)
            self._flush_rejected()
        if not self._notes:
            self._rejected_first = self._records
        self._notes.append(note)
        self._rejected.append(record)
        self._rejected_bytes += size
        self._rejected_by_code[rejection.code] += 1
        self._records += 1
        self._rejected_after += 1

    def _bound_rejected(self, size: int) -> None:
        limit = self._bounds.rejected_records_max
        if self._rejected_by_code.total() >= limit:
            raise too_many_rejected(f"{limit} records", limit, "BRONZE_REJECTED_RECORDS_MAX")
        self._rejected_bytes_in_all += size
        limit = self._bounds.rejected_bytes_max
        if self._rejected_bytes_in_all > limit:
            raise too_many_rejected(f"{limit} bytes of records", limit, "BRONZE_REJECTED_BYTES_MAX")

    def _flush_rejected(self) -> None:
        """Make a message of the rejected records."""
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
        # a message of rejected records is not complete yet: `CheckedSubmission.parts` adds its first line
        payload, zstd = (content, False) if kind is MessageKind.REJECTED else compress(content)
        start, self._spooled_bytes = self._spooled_bytes, self._spooled_bytes + self._spool.write(payload)
        return MessageSlice(start, self._spooled_bytes, first_record, records, kind, zstd)

    def _refusal(self, rejection: _RejectedRecord) -> Refused:
        record = self._records
        match rejection.code:
            case Refusal.INVALID_UTF8:
                return not_utf8(rejection.reason, record=record)
            case Refusal.MALFORMED_JSON:
                advice = "" if self._is_document else " In NDJSON, each record is one line."
                detail = f"Record {record} is not a JSON object: {rejection.reason}.{advice}"
                return Refused(rejection.code, detail, record=record)
            case _:
                return violation(self._source, rejection.reason, record=record, field=rejection.field)

    def _record_too_large(self, limit: int = MESSAGE_BYTES_MAX - HEADER_BYTES_MAX - 2) -> Refused:
        return record_too_large(self._records, limit)


class RecordCheck:
    """Checks single records as those of a body are checked."""

    def __init__(self, source: Source) -> None:
        self._intake = JsonIntake(source, body_bytes_max=0, spool_memory_bytes_max=0)
        self._intake.close()  # a check stores nothing

    def rejection(self, record: bytes) -> str | None:
        """Why a record does not fit the source; None if it does."""
        try:
            self._intake._check(record)  # noqa: SLF001  of this module
        except _RejectedRecord as error:
            return f"{error.field}: {error.reason}" if error.field else error.reason
        return None


def _decimal_texts(decimals: Sequence[Field]) -> "msgspec.json.Decoder[Any]":
    """Decodes the texts of decimals."""
    return msgspec.json.Decoder(
        msgspec.defstruct(
            "decimals",
            [(field.name, msgspec.Raw, msgspec.Raw(b"null")) for field in decimals],
            rename={field.name: field.name_in_records for field in decimals},
        )
    )


def _is_utf8(text: bytes) -> bool:
    if text.isascii():  # which needs no copy
        return True
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _check_utf8(document: bytes) -> None:
    try:
        document.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(error.reason) from error


def _check_json(document: bytes) -> None:
    try:
        msgspec.json.decode(document, type=msgspec.Raw)
    except msgspec.DecodeError as error:
        advice = f" If it has one record per line, send it as {NDJSON}."
        raise _not_json(_syntax_error(document, error), advice) from error


def _not_json(reason: str, advice: str = "") -> Refused:
    return Refused(Refusal.MALFORMED_JSON, f"The body is not one JSON document: {reason}.{advice}")


def _syntax_error(record: bytes, error: Exception) -> str:
    """Why a record is not JSON, also where the decoder's words do not say it."""
    if record.startswith(codecs.BOM_UTF8):
        return "it begins with a byte order mark, which only the first record may have"
    position = _lone_surrogate(record)
    if position is not None:
        return f"half of a surrogate pair (byte {position})"
    return str(error)


def _lone_surrogate(record: bytes) -> int | None:
    """The position of the first escaped surrogate that is not one of a pair."""
    high: int | None = None
    end = 0
    for escape in _ESCAPE.finditer(record):
        code = int(escape[1] or b"0", 16)
        if high is not None and not (0xDC00 <= code < 0xE000 and escape.start() == end):
            return high
        if high is None and 0xDC00 <= code < 0xE000:
            return escape.start()
        high, end = (escape.start() if 0xD800 <= code < 0xDC00 else None), escape.end()
    return high


def _any_may_be_too_deep(records: Sequence[bytes]) -> bool:
    return max(map(len, records)) > NESTING_UNCHECKED and any(map(_may_be_too_deep, records))


def _may_be_too_deep(record: bytes) -> bool:
    """Whether a record has so many brackets that it may be nested too deeply."""
    return len(record) > NESTING_UNCHECKED and record.count(b"[") + record.count(b"{") > NESTING_UNCHECKED


def _is_plain_time(field: Field) -> bool:
    return field.type is FieldType.TIMESTAMP and field.is_plain
