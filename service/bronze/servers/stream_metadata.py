"""The metadata of the streams: the settings that each was created with. A role with other settings refuses to start."""

from collections.abc import Mapping

from bronze.errors import Misconfigured
from bronze.protocol.keys import KEY_LAYOUT
from bronze.servers.jetstream import StreamState
from bronze.settings import Settings

LANES = "bronze.lanes"
#: The names of the metadata in messages.
NAMES = {
    "bronze.bucket": "BRONZE_BUCKET",
    "bronze.prefix": "BRONZE_PREFIX",
    "bronze.key_layout": "the key layout",
    LANES: "BRONZE_LANES",
}
#: Set on the catalog's stream until its rebuild is done.
REBUILDING = "bronze.rebuilding"


def of_catalog(settings: Settings) -> dict[str, str]:
    """The metadata of the catalog's stream."""
    return {"bronze.bucket": settings.bucket, "bronze.prefix": settings.prefix}


def of_objects(settings: Settings) -> dict[str, str]:
    """The part of a lane's metadata that determines the keys of its objects."""
    return {**of_catalog(settings), "bronze.key_layout": KEY_LAYOUT}


def of_lane(settings: Settings) -> dict[str, str]:
    """The metadata of a lane's stream."""
    return {**of_objects(settings), LANES: str(settings.lanes)}


def check(state: StreamState, expected: Mapping[str, str], advice: str) -> None:
    """Raises `Misconfigured`, with both values, if a stream was created with other settings."""
    differences = [
        f"{NAMES[key]} is {state.metadata.get(key)!r} for the stream and {value!r} in the settings"
        for key, value in expected.items()
        if state.metadata.get(key) != value
    ]
    if differences:
        raise Misconfigured(
            f"the stream {state.name} was created with other settings: {', '.join(differences)}. {advice}"
        )
