"""The formats of files: each is read as a sequence of JSON records, a line each, within a memory bound.

NDJSON is sent as it stands. What becomes JSON here loses nothing: text of JSON is kept as it is, integers have all
their digits, decimals are strings, times are RFC 3339, bytes are base64.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from itertools import count
from pathlib import PurePath
from typing import Any, BinaryIO, cast

import msgspec

from bronze.encodings import ENCODINGS, Decoder
from bronze.errors import Misconfigured, Refused
from bronze.sources import CLASSIFICATION_ID, FieldType, Source
from bronze.submission import MESSAGE_BYTES_MAX
from bronze.telemetry.signals import Refusal

STDIN = "-"

#: A record's number, from 1, and its JSON; the number is that of the line it begins on, where there are lines.
Record = tuple[int, bytes]
#: What tells a source's fields; asked only by a format that needs them.
Asked = Callable[[], Source]


class Format(StrEnum):
    """How a file holds its records."""

    NDJSON = "ndjson"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"
    ARROW = "arrow"

    @property
    def unit(self) -> str:
        """What a record's number counts."""
        return "line" if self in {Format.NDJSON, Format.CSV} else "record"

    @property
    def is_text(self) -> bool:
        return self in {Format.NDJSON, Format.JSON, Format.CSV}


#: By the end of a file's name, in lower case.
EXTENSIONS: Mapping[str, Format] = {
    ".ndjson": Format.NDJSON,
    ".jsonl": Format.NDJSON,
    ".json": Format.JSON,
    ".csv": Format.CSV,
    ".parquet": Format.PARQUET,
    ".arrow": Format.ARROW,
    ".arrows": Format.ARROW,
    ".feather": Format.ARROW,
    ".ipc": Format.ARROW,
}
#: The content encoding that the end of a name stands for.
COMPRESSIONS: Mapping[str, str] = {".gz": "gzip", ".zst": "zstd"}

_CHUNK_BYTES = 2**18
#: What may be missing of a word of JSON where a text is cut off.
_TOKEN_CHARS = 8
_SPACE = re.compile(r"[ \t\n\r]*")
_INT = re.compile(r"[+-]?\d{1,40}")


def called(file: str) -> str:
    """What a person calls a file."""
    return "standard input" if file == STDIN else file


def format_of(file: str, chosen: Format | None = None) -> Format | None:
    """A file's format: the chosen one, or what its name ends in; None if that says nothing."""
    path = PurePath(file.lower())
    if path.suffix in COMPRESSIONS:
        path = path.with_suffix("")
    found = chosen or EXTENSIONS.get(path.suffix)
    return Format.NDJSON if found is None and file == STDIN else found


def told_format(file: str, chosen: Format | None) -> Format:
    """As `format_of`; raises `Misconfigured` where nothing tells it."""
    found = format_of(file, chosen)
    if found is None:
        known = ", ".join(EXTENSIONS)
        raise Misconfigured(f"{file}: its name does not tell its format ({known}): say it by --format")
    return found


def records(file: str, stream: BinaryIO, form: Format, source: Asked) -> Iterator[Record]:
    """The records of an open file, in order.

    `source` is asked only by a format that does not type its values. Raises `Refused` for what cannot be read, once
    what stands before it was given out.
    """
    try:
        yield from _READERS[form](file, _plain(file, stream, form), source)
    except UnicodeDecodeError as error:
        raise unreadable(file, Refusal.INVALID_UTF8, f"is not UTF-8: {error}") from error


def unreadable(file: str, kind: Refusal, what: str) -> Refused:
    return Refused(400, kind, f"{called(file)} {what}")


def too_long(file: str, unit: str, number: int) -> Refused:
    return Refused(
        413,
        Refusal.RECORD_TOO_LARGE,
        f"{called(file)}, {unit} {number} is longer than {MESSAGE_BYTES_MAX} bytes. "
        "Split it, or refer to what it carries.",
    )


def _plain(file: str, stream: BinaryIO, form: Format) -> BinaryIO:
    """The stream without its compression, which the end of the file's name tells."""
    suffix = PurePath(file.lower()).suffix
    if suffix not in COMPRESSIONS:
        return stream
    if not form.is_text:
        raise unreadable(
            file, Refusal.UNSUPPORTED_ENCODING, f"is compressed as a whole, and {form} is compressed within: unpack it"
        )
    decoded = io.BufferedReader(_Decoded(file, stream, ENCODINGS[COMPRESSIONS[suffix]]()), _CHUNK_BYTES)
    return cast(BinaryIO, decoded)


class _Decoded(io.RawIOBase):
    """A stream's content by one of the API's own decoders, which meet what is not whole."""

    def __init__(self, file: str, stream: BinaryIO, decoder: Decoder) -> None:
        self._file = file
        self._pieces = self._decode(stream, decoder)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(self._rest), len(buffer))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def _decode(self, stream: BinaryIO, decoder: Decoder) -> Iterator[bytes]:
        try:
            while data := stream.read(_CHUNK_BYTES):
                yield from decoder.feed(data)
            decoder.finish()
        except Refused as error:
            raise unreadable(self._file, Refusal.CORRUPT_ENCODING, f"cannot be decompressed: {error}") from error


# --- text


def _ndjson(file: str, stream: BinaryIO, _source: object) -> Iterator[Record]:
    for number in count(1):
        line = stream.readline(MESSAGE_BYTES_MAX + 1)
        if not line:
            return
        if len(line) > MESSAGE_BYTES_MAX:
            raise too_long(file, Format.NDJSON.unit, number)
        if line.strip(b" \t\r\n"):
            yield number, line


def _json(file: str, stream: BinaryIO, _source: object) -> Iterator[Record]:
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
            chunk = stream.read(max(_CHUNK_BYTES, chars))
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
                raise too_long(file, Format.JSON.unit, number) from error
            raise malformed(error.msg) from error
        except (ValueError, RecursionError) as error:
            raise malformed(str(error)) from error
        record = text[at:end].replace("\n", " ").replace("\r", " ").encode()
        if len(record) >= MESSAGE_BYTES_MAX:
            raise too_long(file, Format.JSON.unit, number)
        yield number, record + b"\n"
        number, at = number + 1, end


def _no_json(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


def _csv(file: str, stream: BinaryIO, source: Asked) -> Iterator[Record]:
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
            raise too_long(file, Format.CSV.unit, number)
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


# --- the run that a record belongs to

_fields_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_scalar = msgspec.json.Decoder(str | int | float | None).decode


def classified(record: bytes, column: str) -> bytes:
    """The record with a field's value as its `classification_id`; as it is where it has none, or is no record."""
    try:
        fields = _fields_of(record)
        value = _scalar(fields[column]) if column in fields else None
    except msgspec.DecodeError:
        return record
    if value is None or value == "":
        return record
    run = value if isinstance(value, str) else bytes(fields[column]).decode()
    fields[CLASSIFICATION_ID] = msgspec.Raw(_encode(run))
    return _encode(fields) + b"\n"


def _parquet(file: str, stream: BinaryIO, source: Asked) -> Iterator[Record]:
    from bronze.publisher import columns  # heavy, and most files are text

    return columns.parquet(file, stream, source)


def _arrow(file: str, stream: BinaryIO, source: Asked) -> Iterator[Record]:
    from bronze.publisher import columns

    return columns.arrow(file, stream, source)


_READERS: Mapping[Format, Callable[[str, BinaryIO, Asked], Iterator[Record]]] = {
    Format.NDJSON: _ndjson,
    Format.JSON: _json,
    Format.CSV: _csv,
    Format.PARQUET: _parquet,
    Format.ARROW: _arrow,
}
