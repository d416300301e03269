"""Many followers of the feed beside small requests, in process."""

import asyncio

from bronze.api.feed import Followers
from bronze.lineage.catalog_index import CatalogIndex
from bronze.protocol.feed_cursor import system_of

FOLLOWERS = 200


async def test_followers_take_turns() -> None:
    """However many have something to get, few are served between two steps of another request. They share what is
    read.
    """
    index = await CatalogIndex().open()
    reads: list[object] = []
    events = index.events

    async def count(*arguments: object) -> object:
        reads.append(arguments)
        return await events(*arguments)  # type: ignore[arg-type]

    index.events = count  # type: ignore[method-assign, assignment]
    followers = Followers(index, system_of("bronze", "bronze"), FOLLOWERS)
    served: list[bytes] = []

    async def follow() -> None:
        served.append(await followers.poll("", lambda: None, 100, 0))

    async with asyncio.TaskGroup() as group:
        for _ in range(FOLLOWERS):
            group.create_task(follow())
        most = 0
        while len(served) < FOLLOWERS:
            before = len(served)
            await asyncio.sleep(0)
            most = max(most, len(served) - before)
    assert most <= 2
    assert (len(reads), len(set(served))) == (1, 1)
    await index.close()
