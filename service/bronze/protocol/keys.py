"""Keys of objects in the bucket: made from the hour and the sequence of the object's first message."""

import re

from bronze.protocol.lane import Lane
from bronze.protocol.message import Message

#: Version of the key layout. Each lane's stream records it, so that roles of different layouts never share a lane.
KEY_LAYOUT = "1"
#: The longest key that S3 accepts.
KEY_BYTES_MAX = 1024


def hour_prefix(prefix: str, source: str, time: str) -> str:
    """The folder of the hour of a server's time; ends in a slash, without which a listing from it omits the hour."""
    return f"{prefix}/source={source}/date={time[:10]}/hour={time[11:13]}/"


_OBJECT_KEY = re.compile(
    r".*/source=(?P<source>[^/]+)/date=[^/]+/hour=[^/]+/"
    r"(?P<epoch>[^/-]+)-(?P<lane>[0-9]+)-(?P<first>[0-9]{12,})\.parquet"
)


def object_key(prefix: str, lane: Lane, first: Message) -> str:
    """The key of the object that begins with the message `first`: it depends only on that message and its lane."""
    folder = hour_prefix(prefix, lane.source, first.time)
    return f"{folder}{lane.epoch}-{lane.number}-{first.sequence:012}.parquet"


def may_be_object(prefix: str, key: str) -> bool:
    """Whether there may be a Bronze object under a key; asked first, since an invalid key looks like an outage."""
    return (
        key.startswith(f"{prefix}/")
        and key.endswith(".parquet")
        and key.isprintable()
        and len(key.encode()) <= KEY_BYTES_MAX
        and all(part.strip(".") for part in key.split("/"))
    )


def first_of_key(lane: Lane, key: str) -> int | None:
    """The first sequence of the object under a key; None if the key is not of this lane."""
    lane_and_first = lane_of_key(key)
    return lane_and_first[1] if lane_and_first and lane_and_first[0] == lane else None


def lane_of_key(key: str) -> tuple[Lane, int] | None:
    """The lane and the first sequence of the object under a key; None if it is not the key of an object."""
    match = _OBJECT_KEY.fullmatch(key)
    return (Lane(match["source"], int(match["lane"]), match["epoch"]), int(match["first"])) if match else None
