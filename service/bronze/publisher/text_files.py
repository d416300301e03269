"""NDJSON, JSON and CSV as JSON records, a line each, within a memory bound.

NDJSON is sent as it stands, and the text of JSON is kept as it is.
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
from bronze.protocol.message import MESSAGE_BYTES_MAX
from bronze.publisher.formats import FileFormat, Record, SourceGetter, too_long, unreadable
from bronze.records.sources import FieldType

CHUNK_BYTES = 2**18
#: What may be missing of a word of JSON where a text is cut off.
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


def json_records(file: str, stream: BinaryIO, _source: object) -> Iterator[Record]:
    """The records of an array, or values one after another; each keeps its text, on one line."""
    decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_no_json)
    text, at, ended = "", 0, False
    incoming = codecs.getincrementaldecoder("utf-8-sig")()

    def fill(chars: int) -> None:
        """Have so many characters from here on, if there are as many, without the space before them."""
        nonlocal text, at, ended
        while True:
            at = _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing too
            if ended or len(text) - at >= chars:
                return
            chunk = stream.read(max(CHUNK_BYTES, chars))
            ended = not chunk
            text, at = text[at:] + incoming.decode(chunk, final=ended), 0

    def malformed(why: str) -> Refused:
        return unreadable(file, Refusal.MALFORMED_JSON, f"is not JSON after {number - 1} records: {why}")

    number = 1
    fill(1)
    array = text.startswith("[", at)
    at += array
    while True:
        fill(MESSAGE_BYTES_MAX)
        if array and text.startswith("]", at):
            at += 1
            fill(1)
            if at < len(text):
                raise malformed("there is more after the end of its array")
            return
        if at == len(text):
            if array:
                raise malformed("it ends before its array does")
            return
        if array and number > 1:
            if not text.startswith(",", at):
                raise malformed("a comma is missing")
            at += 1
            fill(MESSAGE_BYTES_MAX)
        try:
            _, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            cut_off = error.msg.startswith("Unterminated") or error.pos >= len(text) - _TOKEN_CHARS
            if cut_off and not ended:
                raise too_long(file, FileFormat.JSON.unit, number) from error
            raise malformed(error.msg) from error
        except (ValueError, RecursionError) as error:
            raise malformed(str(error)) from error
        record = text[at:end].replace("\n", " ").replace("\r", " ").encode()
        if len(record) >= MESSAGE_BYTES_MAX:
            raise too_long(file, FileFormat.JSON.unit, number)
        yield number, record + b"\n"
        number, at = number + 1, end


def _no_json(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


def csv_records(file: str, stream: BinaryIO, source: SourceGetter) -> Iterator[Record]:
    """A header row, then a record a row; an empty value is null, others are typed as their source declares them."""
    csv.field_size_limit(MESSAGE_BYTES_MAX)
    rows = csv.reader(_lines(file, stream), strict=True)
    types = {field.name: field.type for field in source().fields}
    begun = 1

    def malformed(why: str) -> Refused:
        return unreadable(file, Refusal.MALFORMED_JSON, f"is not CSV, line {begun}: {why}")

    try:
        names = next(rows, [])
        if len({*names}) < len(names) or not all(names):
            raise malformed("the header row has to name each column, and no two alike")
        columns = [(name, _typed_by(types.get(name))) for name in names]
        begun = rows.line_num + 1
        for row in rows:
            if row:  # no blank line
                if len(row) != len(columns):
                    raise malformed(f"it has {len(row)} values for {len(columns)} columns")
                values = zip(columns, row, strict=True)
                yield begun, encoded({name: typed(text) if text else None for (name, typed), text in values})
            begun = rows.line_num + 1
    except csv.Error as error:
        raise malformed(str(error)) from error


def _lines(file: str, stream: BinaryIO) -> Iterator[str]:
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    for number in count(1):
        line = stream.readline(MESSAGE_BYTES_MAX + 1)
        if len(line) > MESSAGE_BYTES_MAX:
            raise too_long(file, FileFormat.CSV.unit, number)
        if not line:
            return
        yield decode(line)


def _typed_by(declared: FieldType | None) -> Callable[[str], object]:
    """What reads a value as it is declared. A value that is not of the type stays text: the API says what is wrong."""
    match declared:
        case FieldType.INT64:
            return _int
        case FieldType.FLOAT64:
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
    if value - value != 0:  # JSON has neither NaN nor infinity
        return text
    return value


def _bool(text: str) -> object:
    return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), text)


_encode = msgspec.json.Encoder().encode


def encoded(record: Mapping[str, object]) -> bytes:
    return _encode(record) + b"\n"
