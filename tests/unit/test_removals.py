"""Removal records: their keys, and what the bucket says of them."""

from typing import Any

import msgspec
import pytest

from bronze.errors import Halted
from bronze.objects.removals import read_removal, read_removals, removed_paths, write_removal
from bronze.protocol.keys import lane_of_key, may_be_object
from bronze.protocol.removal import Removal, removal_key, removed_path
from tests import factories
from tests.delivery.servers import ModelBucket, Object

PREFIX = "bronze"


def removal(first: int, last: int | None = None, **facts: Any) -> Removal:
    """The record of an object; with `last`, of messages of unknown objects."""
    unknown: dict[str, Any] = {"file_path": None, "entry": None, "identities": [], "records": None} if last else {}
    return factories.removal(factories.contents(first, last or first), **unknown, **facts)


def test_the_key_of_a_record_follows_from_that_of_its_object() -> None:
    """It is below the prefix, in a folder that readers of datasets ignore, and is no key of an object."""
    file_path = factories.contents(7, 9).file_path
    key = removal_key(PREFIX, file_path)
    assert key == (
        "bronze/.removed/source=vehicles/date=2026-11-24/hour=12/20261124T120000000-0-000000000007.parquet.json"
    )
    assert removed_path(PREFIX, key) == file_path
    assert lane_of_key(key) is None
    assert not may_be_object(PREFIX, key)
    assert removal(3, 12).key(PREFIX) == (
        "bronze/.removed/source=vehicles/messages/20261124T120000000-0-000000000003-000000000012.json"
    )


async def test_the_first_record_of_an_object_counts() -> None:
    bucket = ModelBucket({})
    first = removal(1)
    assert await write_removal(bucket, PREFIX, first) == first
    assert await write_removal(bucket, PREFIX, removal(1, note="another")) == first
    assert await read_removal(bucket, PREFIX, str(first.file_path)) == first
    assert await read_removal(bucket, PREFIX, factories.contents(2, 2).file_path) is None


async def test_records_are_listed_in_the_order_of_their_objects() -> None:
    bucket = ModelBucket({})
    records = [removal(number) for number in range(1, 40)]
    for record in reversed([*records, removal(50, 60)]):
        await write_removal(bucket, PREFIX, record)
    assert [record async for record in read_removals(bucket, PREFIX)] == [*records, removal(50, 60)]
    paths = [str(record.file_path) for record in records]
    listed = await removed_paths(bucket, PREFIX, "vehicles", paths[30])
    assert listed & set(paths) == set(paths[30:])
    assert await removed_paths(bucket, PREFIX, "vehicles", paths[5], paths[7]) == set(paths[5:8])
    assert await removed_paths(bucket, PREFIX, "vehicle", paths[0]) == set()


async def test_a_record_of_a_newer_version_is_read() -> None:
    """With a reason and a field that this version does not know."""
    record = removal(1)
    newer = {**msgspec.to_builtins(record), "reason": "expired", "until": "2027"}
    bucket = ModelBucket({record.key(PREFIX): Object(msgspec.json.encode(newer), {})})
    read = await read_removal(bucket, PREFIX, str(record.file_path))
    assert read == msgspec.structs.replace(record, reason="expired")


async def test_a_record_that_cannot_be_read_is_named() -> None:
    record = removal(1)
    bucket = ModelBucket({record.key(PREFIX): Object(b'{"first": "one"}', {})})
    with pytest.raises(Halted, match=r"removal record bronze/\.removed/source=vehicles/.* cannot be read"):
        await read_removal(bucket, PREFIX, str(record.file_path))
