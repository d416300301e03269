"""Reading: the records of a file of any format, decompressed, in order, within a memory bound."""

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, BinaryIO, cast

import msgspec

from bronze.errors import Refusal, Refused
from bronze.publisher.formats import COMPRESSIONS, FileFormat, Record, SourceGetter, unreadable
from bronze.publisher.text_files import CHUNK_BYTES, _encode, csv_records, json_records, ndjson
from bronze.records.encodings import ENCODINGS, Decoder
from bronze.records.sources import CLASSIFICATION_ID


def records(file: str, stream: BinaryIO, form: FileFormat, source: SourceGetter) -> Iterator[Record]:
    """The records of an open file, in order.

    `source` is asked only by a format that does not type its values. Raises `Refused` for what cannot be read, once
    what stands before it was given out.
    """
    try:
        yield from _READERS[form](file, _plain(file, stream, form), source)
    except UnicodeDecodeError as error:
        raise unreadable(file, Refusal.INVALID_UTF8, f"is not UTF-8: {error}") from error


def _plain(file: str, stream: BinaryIO, form: FileFormat) -> BinaryIO:
    """The stream without its compression, which the end of the file's name tells."""
    suffix = PurePath(file.lower()).suffix
    if suffix not in COMPRESSIONS:
        return stream
    if not form.is_text:
        raise unreadable(
            file, Refusal.UNSUPPORTED_ENCODING, f"is compressed as a whole, and {form} is compressed within: unpack it"
        )
    decoded = io.BufferedReader(_Decoded(file, stream, ENCODINGS[COMPRESSIONS[suffix]]()), CHUNK_BYTES)
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
            while data := stream.read(CHUNK_BYTES):
                yield from decoder.feed(data)
            decoder.finish()
        except Refused as error:
            raise unreadable(self._file, Refusal.CORRUPT_ENCODING, f"cannot be decompressed: {error}") from error


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


def _parquet(file: str, stream: BinaryIO, source: SourceGetter) -> Iterator[Record]:
    from bronze.publisher import columnar_files  # heavy, and most files are text

    return columnar_files.parquet(file, stream, source)


def _arrow(file: str, stream: BinaryIO, source: SourceGetter) -> Iterator[Record]:
    from bronze.publisher import columnar_files

    return columnar_files.arrow(file, stream, source)


_READERS: Mapping[FileFormat, Callable[[str, BinaryIO, SourceGetter], Iterator[Record]]] = {
    FileFormat.NDJSON: ndjson,
    FileFormat.JSON: json_records,
    FileFormat.CSV: csv_records,
    FileFormat.PARQUET: _parquet,
    FileFormat.ARROW: _arrow,
}
