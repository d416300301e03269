"""Registered schemas: two versions of a source that cannot be read together never run on one queue.

At its start each role registers the sources that it declares, by compare-and-set, so that of two roles with different
declarations the first one decides. Roles of different versions may run side by side, as in a rolling upgrade.
"""

import logging
from collections.abc import Mapping

import msgspec

from bronze.errors import Misconfigured
from bronze.records.sources import RegisteredSchema, Source, incompatibility
from bronze.servers.key_value import KeyChanged, KeyValueStore

log = logging.getLogger(__name__)

PREFIX = "schema."


async def register(key_values: KeyValueStore, declared: Mapping[str, Source], origin: str) -> None:
    """Register the declared sources, which the file `origin` declares.

    Raises `Misconfigured` that names file, source, field and both values where one contradicts what is registered.
    """
    await key_values.open()
    for source in declared.values():
        await _register(key_values, source, f"{origin}: source {source.name}")
    for name in await key_values.names(PREFIX):
        if name not in declared:
            log.warning(
                "%s no longer declares the source %s: its objects stay, and what of it is still queued waits for a "
                "consumer that declares it",
                origin,
                name,
            )


async def _register(key_values: KeyValueStore, source: Source, place: str) -> None:
    mine = source.schema
    key = f"{PREFIX}{source.name}"
    while True:
        value, revision = await key_values.get(key)
        if value:
            there = _read(value, place)
            if why := incompatibility(there, mine):
                raise Misconfigured(f"{place}, {why}")
            if there.version > mine.version:
                log.info("%s: version %d is registered, this is %d", place, there.version, mine.version)
            if there.version >= mine.version:
                return
        try:
            await key_values.put(key, msgspec.json.encode(mine), revision)
        except KeyChanged:
            continue
        log.info("%s: registered version %d", place, mine.version)
        return


def _read(value: bytes, place: str) -> RegisteredSchema:
    try:
        return msgspec.json.decode(value, type=RegisteredSchema)
    except msgspec.DecodeError as error:
        raise Misconfigured(f"{place}: what is registered of it cannot be read: {error}") from error
