"""The formats of files, recognized by file name extensions, and the errors of files that cannot be read."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath

from bronze.errors import Misconfigured, Refusal, Refused
from bronze.protocol.message import MESSAGE_BYTES_MAX
from bronze.records.sources import Source

STDIN = "-"

_log = logging.getLogger(__name__)

#: A record's number, from 1, and its JSON. In a text format with lines, it is the number of the record's first line.
Record = tuple[int, bytes]
#: Returns the declaration of a source; called only for a format that needs its fields.
SourceGetter = Callable[[], Source]


class FileFormat(StrEnum):
    """How records are stored in a file."""

    NDJSON = "ndjson"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"
    ARROW = "arrow"

    @property
    def unit(self) -> str:
        """The unit of a record's number."""
        return "line" if self in {FileFormat.NDJSON, FileFormat.CSV} else "record"

    @property
    def is_text(self) -> bool:
        return self in {FileFormat.NDJSON, FileFormat.JSON, FileFormat.CSV}


#: By file name extension, in lower case.
EXTENSIONS: Mapping[str, FileFormat] = {
    ".ndjson": FileFormat.NDJSON,
    ".jsonl": FileFormat.NDJSON,
    ".json": FileFormat.JSON,
    ".csv": FileFormat.CSV,
    ".parquet": FileFormat.PARQUET,
    ".arrow": FileFormat.ARROW,
    ".arrows": FileFormat.ARROW,
    ".feather": FileFormat.ARROW,
    ".ipc": FileFormat.ARROW,
}
#: Why a columnar file cannot be sent with `--on-invalid quarantine`.
COLUMNAR_AS_A_WHOLE = (
    "is Parquet or Arrow, whose submissions are accepted or refused as a whole: --on-invalid quarantine works for "
    "NDJSON, JSON and CSV"
)
#: Content encodings by file name extension.
COMPRESSIONS: Mapping[str, str] = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True, slots=True)
class CsvOptions:
    """How a CSV file is written. Delimiter and encoding are guessed if they are None."""

    delimiter: str | None = None
    encoding: str | None = None
    decimal_comma: bool = False


#: Of a file about which nothing is known.
ANY_CSV = CsvOptions()


def display_name(file: str) -> str:
    r"""The name of a file in messages to people. Bytes that are not UTF-8 are shown as `\xe9`."""
    return "standard input" if file == STDIN else os.fsencode(file).decode(errors="backslashreplace")


def format_of(file: str, chosen: FileFormat | None = None) -> FileFormat | None:
    """A file's format: the chosen format, or else that of the file name extension; None if that is unknown."""
    path = PurePath(file.lower())
    if path.suffix in COMPRESSIONS:
        path = path.with_suffix("")
    form = chosen or EXTENSIONS.get(path.suffix)
    return FileFormat.NDJSON if form is None and file == STDIN else form


def required_format(file: str, chosen: FileFormat | None) -> FileFormat:
    """As `format_of`; raises `Misconfigured` if the format is unknown."""
    form = format_of(file, chosen)
    if form is None:
        known = ", ".join(EXTENSIONS)
        raise Misconfigured(
            f"{file}: the file name has no known extension ({known}): give the format of the file with --format"
        )
    return form


def warn_of_no_classification(file: str, column: str) -> None:
    _log.warning("%s: no record has a value in %r (--classification-column)", display_name(file), column)


def unreadable(file: str, kind: Refusal, problem: str) -> Refused:
    # 400 for any kind: to a watcher, a 415 of the API concerns every file, and this concerns one file only
    return Refused(kind, f"{display_name(file)} {problem}", status=400)


def too_long(file: str, unit: str, number: int) -> Refused:
    return Refused(
        Refusal.RECORD_TOO_LARGE,
        f"{display_name(file)}, {unit} {number} is longer than {MESSAGE_BYTES_MAX} bytes. "
        "Split the record, or store its large values elsewhere and refer to them.",
    )
