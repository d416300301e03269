"""Reads NDJSON, JSON and CSV files as JSON records, one per line, with bounded memory.

NDJSON lines are sent unchanged. JSON values keep their text.
"""

import codecs
import csv
import io
import json
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from itertools import chain, count
from typing import BinaryIO

import msgspec

from bronze.errors import Refusal, Refused
from bronze.plurals import counted
from bronze.protocol.message import MESSAGE_BYTES_MAX
from bronze.publisher.formats import (
    ANY_CSV,
    CsvOptions,
    FileFormat,
    Record,
    SourceGetter,
    display_name,
    too_long,
    unreadable,
    warn_of_no_classification,
)
from bronze.records.fields import Field, FieldType
from bronze.records.sources import CLASSIFICATION_ID

_log = logging.getLogger(__name__)

CHUNK_BYTES = 2**18
#: The delimiters of CSV that are guessed.
DELIMITERS = (",", ";", "\t", "|")
#: An error within this many characters of the end can be a token that is only incomplete, such as `tru`.
_TOKEN_CHARS = 8
_SPACE = re.compile(r"[ \t\n\r]*")
#: The text of a number: blanks, sign, leading zeros, and what remains in JSON (RFC 8259).
_INT = re.compile(r"[ \t]*([+-]?)0*([0-9]+)[ \t]*")
_FLOAT = re.compile(r"[ \t]*([+-]?)(?=\.?[0-9])0*([0-9]*)(?:\.([0-9]*))?([eE][+-]?[0-9]+)?[ \t]*")


def ndjson(file: str, stream: BinaryIO) -> Iterator[Record]:
    for number in count(1):
        line = stream.readline(MESSAGE_BYTES_MAX + 1)
        if not line:
            return
        if len(line) > MESSAGE_BYTES_MAX:
            raise too_long(file, FileFormat.NDJSON.unit, number)
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip(b" \t\r\n"):
            yield number, line


class _JsonText:
    """The text of a JSON stream, read in chunks. `position` is the start of the next value in `text`."""

    def __init__(self, stream: BinaryIO) -> None:
        self.text = ""
        self.position = 0
        self.ended = False
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()

    @property
    def at_end(self) -> bool:
        return self.position == len(self.text)

    def fill(self, chars: int) -> None:
        """Skips white space, and reads until `chars` characters follow the position or the stream ends."""
        while True:
            self.position = _SPACE.match(self.text, self.position).end()  # type: ignore[union-attr]  # matches "" too
            if self.ended or len(self.text) - self.position >= chars:
                return
            chunk = self._stream.read(max(CHUNK_BYTES, chars))
            self.ended = not chunk
            self.text = self.text[self.position :] + self._decoder.decode(chunk, final=self.ended)
            self.position = 0

    def skip(self, token: str) -> bool:
        """Moves behind a token if it is at the position; returns whether it is."""
        found = self.text.startswith(token, self.position)
        self.position += len(token) if found else 0
        return found


def json_records(file: str, stream: BinaryIO) -> Iterator[Record]:
    """The elements of an array, or concatenated values. Each record keeps its text, except for line breaks."""
    decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse_constant)
    source_text = _JsonText(stream)
    source_text.fill(1)
    is_array = source_text.skip("[")
    for number in count(1):
        source_text.fill(MESSAGE_BYTES_MAX)
        if _json_ends(file, source_text, number, is_array=is_array):
            return
        record = _json_value(file, source_text, number, decoder).replace("\n", " ").replace("\r", " ").encode()
        if len(record) >= MESSAGE_BYTES_MAX:
            raise too_long(file, FileFormat.JSON.unit, number)
        yield number, record + b"\n"


def _json_ends(file: str, source_text: _JsonText, number: int, *, is_array: bool) -> bool:
    """Whether there is no record of this number. Otherwise moves to its start, behind the comma of an array."""
    if is_array and source_text.skip("]"):
        source_text.fill(1)
        if not source_text.at_end:
            raise _malformed_json(file, number, "there is more text after the end of the array")
        return True
    if source_text.at_end:
        if is_array:
            raise _malformed_json(file, number, "the file ends before its array does")
        return True
    if is_array and number > 1:
        if not source_text.skip(","):
            raise _malformed_json(file, number, "a comma is missing")
        source_text.fill(MESSAGE_BYTES_MAX)
    return False


def _json_value(file: str, source_text: _JsonText, number: int, decoder: json.JSONDecoder) -> str:
    """The text of the value at the position; moves behind it."""
    text, start = source_text.text, source_text.position
    try:
        _, end = decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        cut_off = error.msg.startswith("Unterminated") or error.pos >= len(text) - _TOKEN_CHARS
        if cut_off and not source_text.ended:
            raise too_long(file, FileFormat.JSON.unit, number) from error
        raise _malformed_json(file, number, error.msg) from error
    except (ValueError, RecursionError) as error:
        raise _malformed_json(file, number, str(error)) from error
    source_text.position = end
    return text[start:end]


def _malformed_json(file: str, number: int, reason: str) -> Refused:
    return unreadable(file, Refusal.MALFORMED_JSON, f"is not JSON after {counted(number - 1, 'record')}: {reason}")


def _refuse_constant(constant: str) -> object:
    raise ValueError(f"{constant} is not allowed in JSON")


def csv_records(
    file: str,
    stream: BinaryIO,
    source: SourceGetter,
    classification_column: str | None = None,
    options: CsvOptions = ANY_CSV,
) -> Iterator[Record]:
    """One record per row below the header row. Empty values are null; others are of the type that the source declares.

    The text of a value in the `classification_column` becomes the record's `classification_id`.
    """
    csv.field_size_limit(MESSAGE_BYTES_MAX)
    fields = {field.name_in_records: field for field in source().fields}
    lines = _csv_lines(file, stream, options.encoding)
    blank = list(_until_text(lines))
    header = blank.pop() if blank else ""
    delimiter = options.delimiter or _guess_delimiter(file, header, fields.keys())
    rows = csv.reader(chain(blank, [header], lines), delimiter=delimiter, strict=True)
    first_line = 1
    commas = _DecimalCommas(file) if options.decimal_comma else None

    def malformed(reason: str) -> Refused:
        return unreadable(file, Refusal.MALFORMED_JSON, f"is not CSV, line {first_line}: {reason}")

    try:
        names = next(filter(None, rows), [])  # a blank line gives an empty row
        if len({*names}) < len(names) or not all(names):
            raise malformed("the header row must give each column a name, and all names must be different")
        columns = [(name, _converter(fields.get(name), commas)) for name in names]
        classification = names.index(classification_column) if classification_column in names else None
        if classification_column and classification is None:
            warn_of_no_classification(file, classification_column)
        first_line = rows.line_num + 1
        for row in rows:
            if row:
                if len(row) != len(columns):
                    raise malformed(f"the row has {len(row)} values for {len(columns)} columns")
                if commas:
                    commas.line = first_line
                values = zip(columns, row, strict=True)
                record = {name: convert(text) if text else None for (name, convert), text in values}
                if classification is not None and row[classification]:
                    record[CLASSIFICATION_ID] = row[classification]
                yield first_line, json_line(record)
            first_line = rows.line_num + 1
    except csv.Error as error:
        reason = "a line ends with CR alone: use LF or CRLF" if "new-line character" in str(error) else str(error)
        raise malformed(reason) from error


def _until_text(lines: Iterator[str]) -> Iterator[str]:
    """The blank lines at the beginning, and the line after them."""
    for line in lines:
        yield line
        if line.strip():
            return


def _guess_delimiter(file: str, header: str, declared: Collection[str]) -> str:
    """The delimiter with which the header row has most names of declared fields; if none has any, most names."""

    def rank(delimiter: str) -> tuple[int, int]:
        try:
            names = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:
            return 0, 0
        return len({*names} & {*declared}), len(names)

    best = max(DELIMITERS, key=rank)  # the first of those that are alike
    if best != DELIMITERS[0]:
        _log.warning("%s: the delimiter is %r, guessed from the header row (--delimiter)", display_name(file), best)
    return best


def _csv_lines(file: str, stream: BinaryIO, encoding: str | None) -> Iterator[str]:
    if encoding is None:
        beginning = stream.peek(2)[:2] if isinstance(stream, io.BufferedReader) else b""
        if beginning in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
            encoding = "utf-16"
            _log.warning("%s: the encoding is UTF-16, guessed from its first bytes (--encoding)", display_name(file))
    return _utf8_lines(file, stream) if encoding is None else _encoded_lines(file, stream, encoding)


def _utf8_lines(file: str, stream: BinaryIO) -> Iterator[str]:
    for number in count(1):
        line = stream.readline(MESSAGE_BYTES_MAX + 1)
        if len(line) > MESSAGE_BYTES_MAX:
            raise too_long(file, FileFormat.CSV.unit, number)
        if not line:
            return
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise unreadable(
                file,
                Refusal.INVALID_UTF8,
                f"is not UTF-8, line {number}: {error}. If it is in another encoding, name it: --encoding cp1252",
            ) from error


def _encoded_lines(file: str, stream: BinaryIO, encoding: str) -> Iterator[str]:
    text = io.TextIOWrapper(stream, encoding, newline="")
    try:
        for number in count(1):
            line = text.readline(MESSAGE_BYTES_MAX + 1)
            if len(line) > MESSAGE_BYTES_MAX:
                raise too_long(file, FileFormat.CSV.unit, number)
            if not line:
                return
            yield line.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}") if number == 1 else line
    except UnicodeError as error:
        raise unreadable(file, Refusal.INVALID_UTF8, f"is not {encoding}: {error}") from error
    finally:
        with suppress(ValueError):  # reading may end after the stream was closed
            text.detach()  # else it closes the stream


class _DecimalCommas:
    """Reads the numbers of a file that are written as 1,5. With a point, which may separate thousands, none is certain.

    `line` is that of the current row.
    """

    def __init__(self, file: str) -> None:
        self.line = 1
        self._file = file
        self._warned = False

    def with_point(self, text: str) -> str:
        """The number as 1.5. If it has a point, a text that no field of numbers accepts, and that says why."""
        if "." not in text:
            return text.replace(",", ".")
        reason = "has a decimal point, but --decimal-comma is given"
        if not self._warned:
            self._warned = True
            _log.warning(
                "%s, line %d: the number %r %s: such records do not fit the source",
                display_name(self._file),
                self.line,
                text,
                reason,
            )
        return f"{text} {reason}"


def _converter(declared: Field | None, commas: _DecimalCommas | None) -> Callable[[str], object]:
    """Converts text to a declared type. A value that does not fit stays text, so that the API says what is wrong."""
    if declared is None:
        return str
    match declared.type:
        case FieldType.INT32 | FieldType.INT64:
            return _int
        case FieldType.FLOAT32 | FieldType.FLOAT64:
            return (lambda text: _float(commas.with_point(text))) if commas else _float
        case FieldType.BOOL:
            return _bool
        case _ if declared.decoded_type is Decimal:  # also of times that are numbers
            return (lambda text: _decimal(commas.with_point(text))) if commas else _decimal
        case _:
            return str


def _int(text: str) -> object:
    found = _INT.fullmatch(text)
    return msgspec.Raw(f"{found[1].strip('+')}{found[2]}".encode()) if found else text


def _float(text: str) -> object:
    """A number with all digits of the text."""
    number = _number(text)
    return text if number is None else msgspec.Raw(number.encode())


def _decimal(text: str) -> object:
    """The same as a string, which no reader of `_payload` takes for a float."""
    number = _number(text)
    return text if number is None else number


def _number(text: str) -> str | None:
    """A number as JSON spells it, of the same value and digits: without blanks, `+` and zeros before it."""
    found = _FLOAT.fullmatch(text)
    if not found:
        return None
    sign, whole, fraction, exponent = found.groups(default="")
    return f"{sign.strip('+')}{whole or '0'}{'.' if fraction else ''}{fraction}{exponent}"


def _bool(text: str) -> object:
    return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), text)


encode_json = msgspec.json.Encoder().encode


def json_line(record: Mapping[str, object]) -> bytes:
    return encode_json(record) + b"\n"
