"""Keys of the bucket: objects by the hour and the message that they begin with, and what is in quarantine."""

import re

from bronze.protocol.lane import Lane
from bronze.protocol.message import Message

#: Version of the keys' layout; stands in each lane's stream, so that roles of different layouts never share one.
KEY_LAYOUT = "1"
#: S3 takes no longer ones.
KEY_BYTES_MAX = 1024


def hour_prefix(prefix: str, source: str, time: str) -> str:
    """The folder of the hour of a server's time; ends in a slash (without it, a listing from here hides the hour)."""
    return f"{prefix}/source={source}/date={time[:10]}/hour={time[11:13]}/"


_OBJECT_KEY = re.compile(
    r".*/source=(?P<source>[^/]+)/date=[^/]+/hour=[^/]+/"
    r"(?P<epoch>[^/-]+)-(?P<lane>[0-9]+)-(?P<first>[0-9]{12,})\.parquet"
)


def object_key(prefix: str, lane: Lane, first: Message) -> str:
    """The key of the object that begins with a message: a function of that message and its lane alone."""
    folder = hour_prefix(prefix, lane.source, first.time)
    return f"{folder}{lane.epoch}-{lane.number}-{first.sequence:012}.parquet"


def may_be_object(prefix: str, key: str) -> bool:
    """Whether there may be an object of ours under a key. A bucket answers what can be no key as if it were away."""
    return (
        key.startswith(f"{prefix}/")
        and key.endswith(".parquet")
        and key.isprintable()
        and len(key.encode()) <= KEY_BYTES_MAX
        and all(part.strip(".") for part in key.split("/"))
    )


def first_of_key(lane: Lane, key: str) -> int | None:
    """The first sequence that a key tells of; None where the key is not of this lane."""
    of = lane_of_key(key)
    return of[1] if of and of[0] == lane else None


def lane_of_key(key: str) -> tuple[Lane, int] | None:
    """The lane and the first sequence that an object's key tells of; None where it is no such key."""
    found = _OBJECT_KEY.fullmatch(key)
    return (Lane(found["source"], int(found["lane"]), found["epoch"]), int(found["first"])) if found else None
