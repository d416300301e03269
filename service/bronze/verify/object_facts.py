"""What an object in the bucket says of itself, in its footer and user metadata, and whether its bytes are intact."""

import asyncio
import hashlib
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from bronze.objects.footer import MAGIC, TAIL_BYTES, NotABronzeObject, contents_of_footer, footer_start
from bronze.protocol.documents import Contents
from bronze.servers.bucket import Bucket, NoSuchKey

#: The user metadata with the SHA-256 of the whole object, which the bucket's client adds to each PUT.
SHA256 = "sha256"


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """An object: its size in bytes, the SHA-256 of its user metadata, Parquet's own number of rows, and its footer."""

    size: int
    sha256: str | None
    rows: int
    contents: Contents

    @property
    def records(self) -> int:
        """The records that were stored as rows, with those that were erased since."""
        return self.rows + self.contents.erased

    @property
    def stored_size(self) -> int:
        return self.contents.stored_size(self.size)


async def read_facts(bucket: Bucket, key: str) -> ObjectFacts | None:
    """The facts, in three small requests; None if there is no object. Raises `NotABronzeObject`, `Unavailable`."""
    head = await bucket.head(key)
    if head is None:
        return None
    if head.size < TAIL_BYTES:
        raise NotABronzeObject("it is not a Parquet file")
    try:
        tail = await bucket.read(key, head.size - TAIL_BYTES, head.size)
        footer = await bucket.read(key, footer_start(head.size, tail), head.size)
    except NoSuchKey:
        return None
    contents = contents_of_footer(footer)
    rows = pq.read_metadata(pa.BufferReader(MAGIC + footer)).num_rows
    return ObjectFacts(head.size, head.metadata.get(SHA256), rows, contents)


async def damage(bucket: Bucket, key: str, facts: ObjectFacts) -> str | None:
    """What is wrong with the bytes of an object; None if they are intact.

    Without a SHA-256, all pages are decoded, which finds most damage, but not a changed value. Raises `NoSuchKey` and
    `Unavailable`.
    """
    body = await bucket.read(key, 0, facts.size)
    return await asyncio.to_thread(_damage, body, facts)


def _damage(body: bytes, facts: ObjectFacts) -> str | None:
    if facts.sha256 is not None:
        found = hashlib.sha256(body).hexdigest()
        return None if found == facts.sha256 else f"the SHA-256 of its bytes is {found}, that of its PUT {facts.sha256}"
    try:
        rows = pq.read_table(pa.BufferReader(body), use_threads=False).num_rows
    except (pa.ArrowException, OSError) as error:
        return f"its pages cannot be decoded: {error}"
    return None if rows == facts.rows else f"its pages have {rows} rows, its footer says {facts.rows}"
