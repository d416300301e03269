"""The metadata of our streams: what each was created with, so that a role with other settings refuses to use it."""

from collections.abc import Mapping

from bronze.errors import Misconfigured
from bronze.protocol.keys import KEY_LAYOUT
from bronze.servers.jetstream import StreamState
from bronze.settings import Settings

LANES = "bronze.lanes"
#: Set on the catalog's stream until its rebuild is done.
REBUILDING = "bronze.rebuilding"


def of_catalog(settings: Settings) -> dict[str, str]:
    """The metadata of the catalog's stream."""
    return {"bronze.bucket": settings.bucket, "bronze.prefix": settings.prefix}


def of_objects(settings: Settings) -> dict[str, str]:
    """The metadata that says where a lane's objects go."""
    return {**of_catalog(settings), "bronze.key_layout": KEY_LAYOUT}


def of_lane(settings: Settings) -> dict[str, str]:
    """The metadata of a lane's stream."""
    return {**of_objects(settings), LANES: str(settings.lanes)}


def check(state: StreamState, expected: Mapping[str, str], advice: str) -> None:
    """Raises `Misconfigured` if a stream was created with other settings; names both values."""
    created_with = {key: state.metadata.get(key) for key in expected}
    if created_with != expected:
        raise Misconfigured(
            f"the stream {state.name} was created with {created_with}, but the settings are {dict(expected)}. {advice}"
        )
