"""The formats of files, told by the ends of their names, and what is said of a file that cannot be read."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import PurePath

from bronze.errors import Misconfigured, Refusal, Refused
from bronze.protocol.message import MESSAGE_BYTES_MAX
from bronze.records.sources import Source

STDIN = "-"

#: A record's number, from 1, and its JSON; the number is that of the line it begins on, where there are lines.
Record = tuple[int, bytes]
#: What tells a source's fields; asked only by a format that needs them.
SourceGetter = Callable[[], Source]


class FileFormat(StrEnum):
    """How a file holds its records."""

    NDJSON = "ndjson"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"
    ARROW = "arrow"

    @property
    def unit(self) -> str:
        """What a record's number counts."""
        return "line" if self in {FileFormat.NDJSON, FileFormat.CSV} else "record"

    @property
    def is_text(self) -> bool:
        return self in {FileFormat.NDJSON, FileFormat.JSON, FileFormat.CSV}


#: By the end of a file's name, in lower case.
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
#: The content encoding that the end of a name stands for.
COMPRESSIONS: Mapping[str, str] = {".gz": "gzip", ".zst": "zstd"}


def display_name(file: str) -> str:
    """What a person calls a file."""
    return "standard input" if file == STDIN else file


def format_of(file: str, chosen: FileFormat | None = None) -> FileFormat | None:
    """A file's format: the chosen one, or what its name ends in; None if that says nothing."""
    path = PurePath(file.lower())
    if path.suffix in COMPRESSIONS:
        path = path.with_suffix("")
    found = chosen or EXTENSIONS.get(path.suffix)
    return FileFormat.NDJSON if found is None and file == STDIN else found


def required_format(file: str, chosen: FileFormat | None) -> FileFormat:
    """As `format_of`; raises `Misconfigured` where nothing tells it."""
    found = format_of(file, chosen)
    if found is None:
        known = ", ".join(EXTENSIONS)
        raise Misconfigured(f"{file}: its name does not tell its format ({known}): say it by --format")
    return found


def unreadable(file: str, kind: Refusal, what: str) -> Refused:
    return Refused(kind, f"{display_name(file)} {what}")


def too_long(file: str, unit: str, number: int) -> Refused:
    return Refused(
        Refusal.RECORD_TOO_LARGE,
        f"{display_name(file)}, {unit} {number} is longer than {MESSAGE_BYTES_MAX} bytes. "
        "Split it, or refer to what it carries.",
    )
