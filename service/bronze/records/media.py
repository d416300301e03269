"""Media types of bodies."""

from collections.abc import Mapping
from enum import StrEnum

NDJSON = "application/x-ndjson"
JSON = "application/json"


class ColumnarType(StrEnum):
    """The media types of columnar bodies."""

    ARROW_STREAM = "application/vnd.apache.arrow.stream"
    PARQUET = "application/vnd.apache.parquet"


#: The supported media types, each with a description of its bodies.
MEDIA_TYPES: Mapping[str, str] = {
    NDJSON: "one JSON object per line",
    JSON: "an object or an array of objects",
    ColumnarType.ARROW_STREAM: "an Arrow IPC stream",
    ColumnarType.PARQUET: "a Parquet file",
}
