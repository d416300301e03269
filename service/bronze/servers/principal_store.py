"""The principals and their API keys, as one key of the queue's key-value store: each change is a compare-and-set."""

import msgspec

from bronze.errors import Outage, Unavailable
from bronze.protocol.principals import Principals
from bronze.servers.key_value import KeyValueStore

KEY = "principals"


class PrincipalStore:
    """The stored principals. Reads come from the queue's leader, so that a revoked key is never read as alive again."""

    def __init__(self, key_values: KeyValueStore) -> None:
        self._key_values = key_values

    async def open(self) -> None:
        """Create the key-value store, if there is none."""
        await self._key_values.open()

    async def read(self) -> tuple[Principals, int]:
        """All principals, and the revision of the document; 0 if there is none. Raises `Unavailable`."""
        document, revision = await self._key_values.get(KEY)
        try:
            return Principals.decode(document), revision
        except msgspec.DecodeError as error:
            raise Unavailable(Outage.UNAVAILABLE, f"the stored API keys cannot be read: {error}") from error

    async def write(self, principals: Principals, revision: int) -> None:
        """Replace the document, if it is still at this revision. Raises `KeyChanged` and `Unavailable`."""
        await self._key_values.put(KEY, principals.encode(), revision)
