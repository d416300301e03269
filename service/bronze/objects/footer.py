"""What an object says of itself: its footer, and the user metadata beside it."""

import struct

import msgspec
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from bronze.protocol.documents import Contents

CONTENT_TYPE = "application/vnd.apache.parquet"
FOOTER_KEY = b"bronze"
#: A Parquet file ends with the footer's length (4 bytes, little-endian) and this mark.
MAGIC = b"PAR1"
TAIL_BYTES = 8


class NotABronzeObject(Exception):
    """A file that this package did not write."""


def user_metadata(contents: Contents) -> dict[str, str]:
    """The object's user metadata: ASCII, counts and digests, no lists of ids (2 KB is all that S3 takes)."""
    return {
        "bronze-writer": contents.writer,
        "bronze-epoch": contents.epoch,
        "bronze-lane": str(contents.lane),
        "bronze-first": str(contents.first),
        "bronze-last": str(contents.last),
        "bronze-last-time": contents.last_time,
        "bronze-digest": contents.digest,
        "bronze-messages": str(contents.messages),
        "bronze-records": str(contents.records),
        "traceparent": contents.traceparent,
    }


def footer_start(size: int, tail: bytes) -> int:
    """Where the footer of a file of `size` bytes begins, by its last `TAIL_BYTES`; raises `NotABronzeObject`."""
    if len(tail) != TAIL_BYTES or tail[4:] != MAGIC:
        raise NotABronzeObject("it is no Parquet file")
    length: int = struct.unpack("<I", tail[:4])[0]
    start = size - TAIL_BYTES - length
    if start < len(MAGIC):
        raise NotABronzeObject("it is no Parquet file")
    return start


def contents_of_footer(footer: bytes) -> Contents:
    """What an object holds, by its footer and tail; raises `NotABronzeObject`."""
    try:
        metadata = pq.read_metadata(pa.BufferReader(MAGIC + footer)).metadata or {}
        return msgspec.json.decode(metadata[FOOTER_KEY], type=Contents)
    except (pa.ArrowException, OSError, KeyError, msgspec.DecodeError) as error:
        raise NotABronzeObject(f"its footer does not say what it holds: {error}") from error
