"""Media types of bodies."""

from enum import StrEnum


class Format(StrEnum):
    """The media types of columnar bodies."""

    ARROW_STREAM = "application/vnd.apache.arrow.stream"
    PARQUET = "application/vnd.apache.parquet"
