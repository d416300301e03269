"""Reading: the records of a text file, decompressed and in order, with bounded memory."""

import io
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, BinaryIO, cast

import msgspec

from bronze.errors import Refusal, Refused
from bronze.publisher.formats import (
    ANY_CSV,
    COMPRESSIONS,
    CsvOptions,
    FileFormat,
    Record,
    SourceGetter,
    unreadable,
    warn_of_no_classification,
)
from bronze.publisher.text_files import CHUNK_BYTES, csv_records, encode_json, json_line, json_records, ndjson
from bronze.records.encodings import ENCODINGS, Decoder
from bronze.records.sources import CLASSIFICATION_ID


def records(
    file: str,
    stream: BinaryIO,
    form: FileFormat,
    source: SourceGetter,
    classification_column: str | None = None,
    csv: CsvOptions = ANY_CSV,
) -> Iterator[Record]:
    """The records of an open text file, in order, with the value of a field or column as their `classification_id`.

    `source` is called only for a format whose values must be converted to the declared types. Raises `Refused` for
    what cannot be read, after it has yielded the records before it.
    """
    try:
        text = _decompressed(file, stream, form)
        if form is FileFormat.CSV:
            yield from csv_records(file, text, source, classification_column, csv)
            return
        numbered = (ndjson if form is FileFormat.NDJSON else json_records)(file, text)
        if classification_column is None:
            yield from numbered
            return
        found = False
        for number, record in numbered:
            classified = with_classification_id(record, classification_column)
            found = found or classified is not record
            yield number, classified
        if not found:
            warn_of_no_classification(file, classification_column)
    except UnicodeDecodeError as error:
        raise unreadable(file, Refusal.INVALID_UTF8, f"is not UTF-8: {error}") from error


def _decompressed(file: str, stream: BinaryIO, form: FileFormat) -> BinaryIO:
    """The stream, decompressed as the file name extension says."""
    suffix = PurePath(file.lower()).suffix
    if suffix not in COMPRESSIONS:
        return stream
    if not form.is_text:
        raise unreadable(
            file,
            Refusal.UNSUPPORTED_ENCODING,
            f"is compressed as a whole, but {form} compresses its content itself: decompress the file first",
        )
    decoder = ENCODINGS[COMPRESSIONS[suffix]]()
    return cast(BinaryIO, io.BufferedReader(_DecompressedStream(file, stream, decoder), CHUNK_BYTES))


class _DecompressedStream(io.RawIOBase):
    """Decompresses a stream with one of the API's decoders, which detect incomplete data."""

    def __init__(self, file: str, stream: BinaryIO, decoder: Decoder) -> None:
        self._file = file
        self._chunks = self._decode(stream, decoder)
        self._remaining = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._remaining:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._remaining = memoryview(chunk)
        size = min(len(self._remaining), len(buffer))
        buffer[:size], self._remaining = self._remaining[:size], self._remaining[size:]
        return size

    def _decode(self, stream: BinaryIO, decoder: Decoder) -> Iterator[bytes]:
        try:
            while data := stream.read(CHUNK_BYTES):
                yield from decoder.feed(data)
            decoder.finish()
        except Refused as error:
            raise unreadable(self._file, Refusal.CORRUPT_ENCODING, f"cannot be decompressed: {error}") from error


_fields_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_scalar = msgspec.json.Decoder(str | int | float | bool | None).decode


def with_classification_id(record: bytes, column: str) -> bytes:
    """The record with the value of a field as its `classification_id`.

    Unchanged if the field is missing or empty, or if `record` is not a JSON object.
    """
    try:
        fields = _fields_of(record)
        value = _scalar(fields[column]) if column in fields else None
    except msgspec.DecodeError:
        return record
    if value is None or value == "":
        return record
    classification_id = value if isinstance(value, str) else bytes(fields[column]).decode()
    fields[CLASSIFICATION_ID] = msgspec.Raw(encode_json(classification_id))
    return json_line(fields)


def columnar_bodies(file: str, stream: BinaryIO, form: FileFormat, **bounds: Any) -> Iterator[tuple[int, bytes]]:
    """The rows of a Parquet or Arrow file as bodies of submissions, each with its number of rows; raises `Refused`."""
    from bronze.publisher import columnar_files  # slow to import, and most files are text

    return columnar_files.bodies(file, _decompressed(file, stream, form), form, **bounds)
