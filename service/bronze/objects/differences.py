"""Objects whose state in the bucket is not that of the catalog: they are gone, or have another size."""

from collections.abc import Mapping
from dataclasses import dataclass

from bronze.objects.expiry import expired_up_to
from bronze.objects.removals import removed_paths
from bronze.protocol.keys import lane_of_key
from bronze.servers.bucket import Bucket


@dataclass(frozen=True, slots=True)
class Difference:
    """An object that is gone, or has another size.

    `size` is its size in bytes by the catalog, None if unknown; `found` that in the bucket, None if it is gone.
    `removed`: it has a removal record, or has expired.
    """

    key: str
    size: int | None
    found: int | None
    removed: bool


async def find_differences(
    bucket: Bucket, prefix: str, source: str, sizes: Mapping[str, int | None], folder: str | None = None
) -> list[Difference]:
    """Those of some objects of a source that differ from the bucket, in the order of their keys.

    `sizes` has their sizes by key, None if unknown. Only the keys from the first to the last of them are listed, at
    most those in `folder`; so memory is bounded by the number of objects.
    """
    keys = sorted(sizes)
    found: dict[str, int] = {}
    async for key, size in bucket.sizes(folder or f"{prefix}/source={source}/", keys[0][:-1]):
        if key > keys[-1]:
            break
        if key in sizes:
            found[key] = size
    differing = [key for key in keys if key not in found or sizes[key] not in {None, found[key]}]
    for key in differing:
        if key in found and (head := await bucket.head(key)):  # an erasure may have made it smaller
            found[key] = head.stored_size
    differing = [key for key in differing if key not in found or sizes[key] != found[key]]
    if not differing:
        return []
    removed = await removed_paths(bucket, prefix, source, differing[0], differing[-1])
    expired = await expired_up_to(bucket, prefix, source)

    def is_removed(key: str) -> bool:
        lane, first = lane_of_key(key) or (None, 0)
        return key in removed or (lane is not None and first <= expired.get(lane, 0))

    return [Difference(key, sizes[key], found.get(key), is_removed(key)) for key in differing]
