"""Registered schemas: two incompatible versions of a source are never used on one queue.

When it starts, each role registers the sources that it declares, by compare-and-set: if two roles have contradicting
declarations, the first one wins. Roles of different versions may run at the same time, as in a rolling upgrade.
"""

import logging
from collections.abc import Mapping

import msgspec

from bronze.errors import Misconfigured, NotPermitted
from bronze.records.sources import RegisteredSchema, Source, incompatibility
from bronze.servers.jetstream import Missing
from bronze.servers.key_value import KeyChanged, KeyValueStore

log = logging.getLogger(__name__)

PREFIX = "schema."


async def register(key_values: KeyValueStore, declared: Mapping[str, Source], origin: str) -> None:
    """Register the sources that the file `origin` declares.

    Raises `Misconfigured`, with file, source, field and both values, if one contradicts its registered schema.
    """
    await key_values.open()
    for source in declared.values():
        await _register(key_values, source, f"{origin}: source {source.name}")
    for name in await key_values.names(PREFIX):
        if name not in declared:
            log.warning(
                "%s no longer declares the source %s. Its objects stay. Its messages that are still in the queue wait "
                "for a consumer that declares the source",
                origin,
                name,
            )


async def registered(key_values: KeyValueStore) -> Mapping[str, RegisteredSchema]:
    """The registered schemas, by source. Creates nothing."""
    try:
        names = await key_values.names(PREFIX)
        values = {name: (await key_values.get(f"{PREFIX}{name}"))[0] for name in names}
    except Missing:
        return {}
    return {name: _decode(value, f"source {name}") for name, value in values.items() if value}


async def check(key_values: KeyValueStore, declared: Mapping[str, Source], origin: str) -> None:
    """Raises as `register` does, without registering anything."""
    found = await registered(key_values)
    for source in declared.values():
        if source.name in found and (reason := incompatibility(found[source.name], source.schema)):
            raise Misconfigured(f"{origin}: source {source.name}, {reason}")


async def _register(key_values: KeyValueStore, source: Source, place: str) -> None:
    declared = source.schema
    key = f"{PREFIX}{source.name}"
    same_fields = False
    while True:
        value, revision = await key_values.get(key)
        if value:
            registered = _decode(value, place)
            if reason := incompatibility(registered, declared):
                raise Misconfigured(f"{place}, {reason}")
            if registered.version > declared.version:
                log.info(
                    "%s: the registered version is %d; this process has the older version %d",
                    place,
                    registered.version,
                    declared.version,
                )
            if registered.version > declared.version or registered == declared:
                return
            same_fields = registered.version == declared.version
        try:
            await key_values.put(key, msgspec.json.encode(declared), revision)
        except KeyChanged:
            continue
        except NotPermitted as error:
            if same_fields:  # nothing that another process depends on
                return
            raise Misconfigured(
                f"{place}: version {declared.version} is not registered, and the user of this process may not register "
                "it: run `bronze init` as a user who may (docs/security.md)"
            ) from error
        log.info("%s: registered version %d", place, declared.version)
        return


def _decode(value: bytes, place: str) -> RegisteredSchema:
    try:
        return msgspec.json.decode(value, type=RegisteredSchema)
    except msgspec.DecodeError as error:
        raise Misconfigured(f"{place}: its registered schema cannot be read: {error}") from error
