"""JSON documents that Bronze keeps in the bucket beside the objects."""

from typing import TypeVar

import msgspec

from bronze.errors import Halted
from bronze.servers.bucket import Bucket, NoSuchKey

_T = TypeVar("_T")


async def read_json_document(bucket: Bucket, key: str, of_type: type[_T], kind: str) -> _T | None:
    """The document with a key; None if there is none. Raises `Halted` if it cannot be read: `kind` is what it is."""
    head = await bucket.head(key)
    if head is None:
        return None
    try:
        return msgspec.json.decode(await bucket.read(key, 0, head.size), type=of_type)
    except NoSuchKey:
        return None
    except msgspec.DecodeError as error:
        raise Halted(f"the {kind} {key} cannot be read: {error}. Nothing was changed") from error
