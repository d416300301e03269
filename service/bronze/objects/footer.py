"""The description of an object: its footer, and its user metadata in S3."""

import struct

import msgspec
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from bronze.protocol.documents import Contents
from bronze.servers.bucket import STORED_BYTES

CONTENT_TYPE = "application/vnd.apache.parquet"
FOOTER_KEY = b"bronze"
#: A Parquet file ends with the length of its footer (4 bytes, little-endian) and this magic number.
MAGIC = b"PAR1"
TAIL_BYTES = 8


class NotABronzeObject(Exception):
    """A file that Bronze did not write."""


def user_metadata(contents: Contents) -> dict[str, str]:
    """The object's user metadata: ASCII, counts and digests; no lists of ids, since S3 accepts only 2 KB."""
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
        **(
            {"bronze-erased": str(contents.erased), STORED_BYTES: str(contents.erasures[0].bytes)}
            if contents.erasures
            else {}
        ),
    }


def footer_start(size: int, tail: bytes) -> int:
    """The offset of the footer in a file of `size` bytes, from its last `TAIL_BYTES`; raises `NotABronzeObject`."""
    if len(tail) != TAIL_BYTES or tail[4:] != MAGIC:
        raise NotABronzeObject("it is not a Parquet file")
    length: int = struct.unpack("<I", tail[:4])[0]
    start = size - TAIL_BYTES - length
    if start < len(MAGIC):
        raise NotABronzeObject("it is not a Parquet file")
    return start


def contents_of_file(body: bytes) -> Contents:
    """The contents of an object, from its whole file; raises `NotABronzeObject`."""
    return contents_of_footer(body[footer_start(len(body), body[-TAIL_BYTES:]) :])


def contents_of_footer(footer: bytes) -> Contents:
    """The contents of an object, from its footer and tail; raises `NotABronzeObject`."""
    try:
        metadata = pq.read_metadata(pa.BufferReader(MAGIC + footer)).metadata or {}
        return msgspec.json.decode(metadata[FOOTER_KEY], type=Contents)
    except (pa.ArrowException, OSError, KeyError, msgspec.DecodeError) as error:
        raise NotABronzeObject(f"its footer does not describe its contents: {error}") from error
