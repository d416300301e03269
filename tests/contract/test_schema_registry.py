"""Registration on the real queue: if two declarations contradict each other, the first one wins, in any race."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from bronze.errors import Misconfigured
from bronze.records.fields import Field, FieldType
from bronze.records.sources import Source
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
    """The version of a source that is registered."""
    value, _ = await key_values.get(f"schema.{name}")
    return schema_registry._decode(value, "test").version


async def race(settings: Settings, sources: Sequence[Source]) -> Mapping[int, str]:
    """Register all at once, each over its own connection; returns the errors, by the index of the source."""
    connections = [await JetStream.connect(settings.queue_servers) for _ in sources]
    results = await asyncio.gather(
        *(
            register(KeyValueStore(connection, 1), source)
            for connection, source in zip(connections, sources, strict=True)
        ),
        return_exceptions=True,
    )
    await asyncio.gather(*(connection.close() for connection in connections))
    errors = {index: result for index, result in enumerate(results) if result is not None}
    assert all(isinstance(error, Misconfigured) for error in errors.values()), errors
    return {index: str(error) for index, error in errors.items()}


async def test_a_schema_is_registered_once_and_grows(key_values: KeyValueStore) -> None:
    """The same schema again changes nothing, new fields are registered, and an older process may still start."""
    await register(key_values, THINGS)
    _, revision = await key_values.get("schema.things")
    await register(key_values, THINGS)
    assert (await key_values.get("schema.things"))[1] == revision
    await register(key_values, grown(2, "b"))
    assert await registered(key_values) == 2
    await register(key_values, THINGS)
    assert await registered(key_values) == 2


async def test_the_error_of_a_breaking_change_names_file_source_field_and_both_values(
    key_values: KeyValueStore,
) -> None:
    await register(key_values, THINGS)
    retyped = replace(THINGS, version=2, fields=(replace_type(A, FieldType.STRING),))
    with pytest.raises(Misconfigured) as refused:
        await register(key_values, retyped)
    assert str(refused.value).startswith(
        "own.toml: source things, field a: the registered version 1 has int64, required, since version 1; "
        "the declared version 2 has string, required, since version 1; "
    )
    assert await registered(key_values) == 1


def replace_type(field: Field, kind: FieldType) -> Field:
    return Field(field.name, kind, field.description, field.required)


async def test_the_same_declaration_can_be_registered_concurrently(
    settings: Settings, key_values: KeyValueStore
) -> None:
    assert await race(settings, [THINGS] * 8) == {}
    assert await registered(key_values) == 1


async def test_compatible_versions_may_start_in_any_order(settings: Settings, key_values: KeyValueStore) -> None:
    """If old and new processes start at once, the newest version is registered in the end."""
    assert await race(settings, [THINGS, grown(2, "b"), THINGS, grown(2, "b"), THINGS, grown(2, "b")]) == {}
    assert await registered(key_values) == 2


async def test_of_two_contradicting_declarations_one_is_registered(
    settings: Settings, key_values: KeyValueStore
) -> None:
    """Both are compatible with the registered version; all processes with the other declaration are refused."""
    await register(key_values, THINGS)
    contenders = [grown(2, "b"), grown(2, "b", kind=FieldType.BOOL)] * 4
    errors = await race(settings, contenders)
    assert {index % 2 for index in errors} in ({0}, {1})
    assert len(errors) == 4
    assert all("source things, field b: the registered version 2" in error for error in errors.values())


async def test_a_source_that_is_no_longer_declared_is_logged(
    key_values: KeyValueStore, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays registered, and its objects and its queued messages stay."""
    await register(key_values, THINGS, replace(THINGS, name="others"), replace(THINGS, name="more"))
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    await register(key_values, THINGS)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message.split(". ")[0] for message in sorted(warnings)] == [
        "own.toml no longer declares the source more",
        "own.toml no longer declares the source others",
    ]
    assert await registered(key_values, "others") == 1


async def test_an_unreadable_registration_is_not_changed(key_values: KeyValueStore) -> None:
    await key_values.put("schema.things", b"what", 0)
    with pytest.raises(Misconfigured, match="source things: its registered schema cannot be read"):
        await register(key_values, THINGS)
    assert (await key_values.get("schema.things"))[0] == b"what"


async def test_strict_is_registered_without_a_new_version(key_values: KeyValueStore) -> None:
    """No process depends on it: who declares the other value may start, too, and the last one is registered."""
    for strict in (True, False, True):
        await register(key_values, replace(THINGS, strict=strict))
        value, revision = await key_values.get("schema.things")
        assert schema_registry._decode(value, "test").strict is strict
        await register(key_values, replace(THINGS, strict=strict))
        assert (await key_values.get("schema.things"))[1] == revision
    await register(key_values, grown(2, "b"))
    await register(key_values, replace(THINGS, strict=True))
    assert await registered(key_values) == 2
