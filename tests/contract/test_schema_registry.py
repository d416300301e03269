"""Registration on the real queue: of two declarations that contradict each other the first one decides, in any race."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from bronze.errors import Misconfigured
from bronze.records.sources import Field, FieldType, Source
from bronze.servers import schema_registry
from bronze.servers.jetstream import JetStream
from bronze.servers.key_value import KeyValueStore
from bronze.settings import Settings

FILE = "own.toml"
A = Field("a", FieldType.INT64, "d", required=True)
THINGS = Source("things", "d", 1, (A,))


def grown(version: int, *names: str, kind: FieldType = FieldType.STRING) -> Source:
    """The source at a version that added fields."""
    return replace(THINGS, version=version, fields=(A, *(Field(n, kind, "d", since=version) for n in names)))


async def register(key_values: KeyValueStore, *sources: Source) -> None:
    await schema_registry.register(key_values, {source.name: source for source in sources}, FILE)


async def registered(key_values: KeyValueStore, name: str = "things") -> int:
    """At which version a source is registered."""
    value, _ = await key_values.get(f"schema.{name}")
    return schema_registry._decode(value, "test").version


async def race(settings: Settings, sources: Sequence[Source]) -> Mapping[int, str]:
    """Register each over a connection of its own, all at once; what those who are refused are told, by their place."""
    streams = [await JetStream.connect(settings.nats_url) for _ in sources]
    ends = await asyncio.gather(
        *(register(KeyValueStore(stream, 1), source) for stream, source in zip(streams, sources, strict=True)),
        return_exceptions=True,
    )
    await asyncio.gather(*(stream.close() for stream in streams))
    refused = {place: end for place, end in enumerate(ends) if end is not None}
    assert all(isinstance(end, Misconfigured) for end in refused.values()), refused
    return {place: str(end) for place, end in refused.items()}


async def test_a_schema_is_registered_once_and_grows(key_values: KeyValueStore) -> None:
    """The same again is fine, an additive successor is registered, and an older process may still start."""
    await register(key_values, THINGS)
    _, revision = await key_values.get("schema.things")
    await register(key_values, THINGS)
    assert (await key_values.get("schema.things"))[1] == revision
    await register(key_values, grown(2, "b"))
    assert await registered(key_values) == 2
    await register(key_values, THINGS)
    assert await registered(key_values) == 2


async def test_a_breaking_change_is_refused_by_file_source_field_and_both_values(key_values: KeyValueStore) -> None:
    await register(key_values, THINGS)
    retyped = replace(THINGS, version=2, fields=(replace_type(A, FieldType.STRING),))
    with pytest.raises(Misconfigured) as refused:
        await register(key_values, retyped)
    assert str(refused.value).startswith(
        "own.toml: source things, field a: version 1, which is registered, has int64, required, since version 1; "
        "version 2, which is declared, has string, required, since version 1; "
    )
    assert await registered(key_values) == 1


def replace_type(field: Field, kind: FieldType) -> Field:
    return Field(field.name, kind, field.description, field.required)


async def test_all_who_declare_the_same_at_once_are_fine(settings: Settings, key_values: KeyValueStore) -> None:
    assert await race(settings, [THINGS] * 8) == {}
    assert await registered(key_values) == 1


async def test_versions_that_follow_each_other_may_start_in_any_order(
    settings: Settings, key_values: KeyValueStore
) -> None:
    """Old and new processes that start at once end with the newest one registered."""
    assert await race(settings, [THINGS, grown(2, "b"), THINGS, grown(2, "b"), THINGS, grown(2, "b")]) == {}
    assert await registered(key_values) == 2


async def test_of_two_that_contradict_each_other_one_starts(settings: Settings, key_values: KeyValueStore) -> None:
    """Both would be good successors of what is registered; all who declare the one that lost are told."""
    await register(key_values, THINGS)
    contenders = [grown(2, "b"), grown(2, "b", kind=FieldType.BOOL)] * 4
    refused = await race(settings, contenders)
    assert {place % 2 for place in refused} in ({0}, {1})
    assert len(refused) == 4
    assert all("source things, field b: version 2" in told for told in refused.values())


async def test_a_source_that_is_no_longer_declared_is_told_of(
    key_values: KeyValueStore, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays registered, with its objects and with what of it is queued."""
    await register(key_values, THINGS, replace(THINGS, name="others"), replace(THINGS, name="more"))
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    await register(key_values, THINGS)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message.split(". ")[0] for message in sorted(told)] == [
        "own.toml no longer declares the source more",
        "own.toml no longer declares the source others",
    ]
    assert await registered(key_values, "others") == 1


async def test_what_cannot_be_read_is_left_alone(key_values: KeyValueStore) -> None:
    await key_values.put("schema.things", b"what", 0)
    with pytest.raises(Misconfigured, match="source things: its registered schema cannot be read"):
        await register(key_values, THINGS)
    assert (await key_values.get("schema.things"))[0] == b"what"
