"""Reads NDJSON, JSON and CSV files as JSON records, one per line, with bounded memory.

NDJSON lines are sent unchanged. JSON values keep their text.
"""

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import BinaryIO

import msgspec

from bronze.errors import Refusal, Refused
from bronze.plurals import counted
from bronze.protocol.message import MESSAGE_BYTES_MAX
from bronze.publisher.formats import FileFormat, Record, SourceGetter, too_long, unreadable
from bronze.records.fields import FieldType

CHUNK_BYTES = 2**18
#: An error within this many characters of the end can be a token that is only incomplete, such as `tru`.
_TOKEN_CHARS = 8
_SPACE = re.compile(r"[ \t\n\r]*")
_INT = re.compile(r"[+-]?\d{1,40}")


def ndjson(file: str, stream: BinaryIO, _source: object) -> Iterator[Record]:
    for number in count(1):
        line = stream.readline(MESSAGE_BYTES_MAX + 1)
        if not line:
            return
        if len(line) > MESSAGE_BYTES_MAX:
            raise too_long(file, FileFormat.NDJSON.unit, number)
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


def json_records(file: str, stream: BinaryIO, _source: object) -> Iterator[Record]:
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


def csv_records(file: str, stream: BinaryIO, source: SourceGetter) -> Iterator[Record]:
    """One record per row below the header row. Empty values are null; others get the type that the source declares."""
    csv.field_size_limit(MESSAGE_BYTES_MAX)
    rows = csv.reader(_text_lines(file, stream), strict=True)
    types = {field.name_in_records: field.type for field in source().fields}
    first_line = 1

    def malformed(reason: str) -> Refused:
        return unreadable(file, Refusal.MALFORMED_JSON, f"is not CSV, line {first_line}: {reason}")

    try:
        names = next(rows, [])
        if len({*names}) < len(names) or not all(names):
            raise malformed("the header row must give each column a name, and all names must be different")
        columns = [(name, _converter(types.get(name))) for name in names]
        first_line = rows.line_num + 1
        for row in rows:
            if row:  # a blank line gives an empty row
                if len(row) != len(columns):
                    raise malformed(f"the row has {len(row)} values for {len(columns)} columns")
                values = zip(columns, row, strict=True)
                yield first_line, json_line({name: convert(text) if text else None for (name, convert), text in values})
            first_line = rows.line_num + 1
    except csv.Error as error:
        raise malformed(str(error)) from error


def _text_lines(file: str, stream: BinaryIO) -> Iterator[str]:
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    for number in count(1):
        line = stream.readline(MESSAGE_BYTES_MAX + 1)
        if len(line) > MESSAGE_BYTES_MAX:
            raise too_long(file, FileFormat.CSV.unit, number)
        if not line:
            return
        yield decode(line)


def _converter(declared: FieldType | None) -> Callable[[str], object]:
    """Converts text to a declared type. A value that does not fit stays text, so that the API says what is wrong."""
    match declared:
        case FieldType.INT32 | FieldType.INT64:
            return _int
        case FieldType.FLOAT32 | FieldType.FLOAT64:
            return _float
        case FieldType.BOOL:
            return _bool
        case _:
            return str


def _int(text: str) -> object:
    return int(text) if _INT.fullmatch(text.strip()) else text


def _float(text: str) -> object:
    try:
        value = float(text)
    except ValueError:
        return text
    if value - value != 0:  # NaN or infinity, which JSON does not have
        return text
    return value


def _bool(text: str) -> object:
    return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), text)


encode_json = msgspec.json.Encoder().encode


def json_line(record: Mapping[str, object]) -> bytes:
    return encode_json(record) + b"\n"
